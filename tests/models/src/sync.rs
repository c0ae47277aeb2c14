//! The crate's `sync`, over the scheduler of `engine`.
//!
//! Parking is built of a lock and a condition variable here: loom's own loses a token that comes while the thread waits for a
//! lock.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use crate::engine;
pub use engine::atomic::{Ordering, fence};

#[derive(Debug, Default)]
pub struct Mutex<T>(engine::Mutex<T>);

#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<engine::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Mutex(engine::Mutex::new(value))
    }

    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("not poisoned")))
    }
}

impl<T> Mutex<T> {
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only a wait takes it out")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only a wait takes it out")
    }
}

#[derive(Debug, Default)]
pub struct Condvar(engine::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Condvar::default()
    }

    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.0.take().expect("only a wait takes it out");
        guard.0 = Some(self.0.wait(inner).expect("not poisoned"));
    }

    #[track_caller]
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    #[track_caller]
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Waits until told; before a deadline only for a moment where time passes by itself.
fn wait<'a, T>(
    told: &Condvar,
    mutex: &'a Mutex<T>,
    mut guard: MutexGuard<'a, T>,
    until: Option<Instant>,
) -> MutexGuard<'a, T> {
    match until {
        Some(deadline) if engine::TIME_PASSES => {
            drop(guard);
            time::idle(deadline);
            mutex.lock()
        }
        _ => {
            told.wait(&mut guard);
            guard
        }
    }
}

#[derive(Debug, Default)]
pub struct RwLock<T>(engine::RwLock<T>);

impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        RwLock(engine::RwLock::new(value))
    }

    #[track_caller]
    pub fn read(&self) -> engine::RwLockReadGuard<'_, T> {
        self.0.read().expect("not poisoned")
    }

    #[track_caller]
    pub fn try_read(&self) -> Option<engine::RwLockReadGuard<'_, T>> {
        self.0.try_read().ok()
    }

    pub fn write(&self) -> engine::RwLockWriteGuard<'_, T> {
        self.0.write().expect("not poisoned")
    }
}

macro_rules! atomics {
    ($($name:ident: $value:ty,)*) => {
        $(#[derive(Default)]
        pub struct $name(engine::atomic::$name);

        impl $name {
            pub fn new(value: $value) -> Self {
                $name(engine::atomic::$name::new(value))
            }

            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                engine::in_order(order);
                self.0.load(order)
            }

            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                engine::in_order(order);
                self.0.store(value, order);
            }

            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                engine::in_order(order);
                self.0.swap(value, order)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Looking would be one more access to be ordered.
                f.write_str(stringify!($name))
            }
        })*
    };
}

macro_rules! numbers {
    ($($name:ident: $value:ty,)*) => {
        atomics!($($name: $value,)*);
        $(impl $name {
            #[track_caller]
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                engine::in_order(order);
                self.0.fetch_add(value, order)
            }

            #[track_caller]
            pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                engine::in_order(order);
                self.0.fetch_max(value, order)
            }

            #[track_caller]
            pub fn fetch_min(&self, value: $value, order: Ordering) -> $value {
                engine::in_order(order);
                self.0.fetch_min(value, order)
            }
        })*
    };
}

atomics! {
    AtomicBool: bool,
}

numbers! {
    AtomicU8: u8,
    AtomicU32: u32,
    AtomicU64: u64,
}

pub fn spin_until(ready: impl Fn() -> bool) -> bool {
    ready()
}

pub use bell::{Receiver, RecvTimeoutError, Sender, unbounded};
pub use event::{Event, EventListener};

/// As much of `event-listener` as the crate uses. A lock stands for the fences of the original.
mod event {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::Mutex;

    #[derive(Debug, Default)]
    pub struct Event(Arc<Mutex<Listeners>>);

    #[derive(Debug, Default)]
    struct Listeners {
        next: u64,
        waiting: Vec<(u64, Option<Waker>)>,
    }

    #[derive(Debug)]
    pub struct EventListener {
        event: Arc<Mutex<Listeners>>,
        number: u64,
    }

    impl Event {
        pub fn new() -> Self {
            Event::default()
        }

        pub fn listen(&self) -> EventListener {
            let mut listeners = self.0.lock();
            let number = listeners.next;
            listeners.next += 1;
            listeners.waiting.push((number, None));
            EventListener { event: Arc::clone(&self.0), number }
        }

        pub fn notify(&self, count: usize) {
            assert_eq!(count, usize::MAX, "the crate tells all or nobody");
            let told = std::mem::take(&mut self.0.lock().waiting);
            told.into_iter().filter_map(|(_, waker)| waker).for_each(Waker::wake);
        }
    }

    impl Future for EventListener {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let mut listeners = self.event.lock();
            match listeners.waiting.iter_mut().find(|(number, _)| *number == self.number) {
                Some((_, waker)) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        }
    }

    impl Drop for EventListener {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.event.lock().waiting.retain(|(number, _)| *number != self.number);
            }
        }
    }
}

/// As much of `crossbeam-channel` as the crate uses.
mod bell {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Condvar, Mutex, time, wait};

    #[derive(Debug, Default)]
    struct Channel<T> {
        state: Mutex<State<T>>,
        told: Condvar,
    }

    #[derive(Debug)]
    struct State<T> {
        waiting: VecDeque<T>,
        has_sender: bool,
    }

    impl<T> Default for State<T> {
        fn default() -> Self {
            State { waiting: VecDeque::new(), has_sender: true }
        }
    }

    #[derive(Debug)]
    pub struct Sender<T>(Arc<Channel<T>>);

    #[derive(Debug)]
    pub struct Receiver<T>(Arc<Channel<T>>);

    #[derive(Debug)]
    pub enum RecvTimeoutError {
        Timeout,
        Disconnected,
    }

    pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new(Channel { state: Mutex::new(State::default()), told: Condvar::new() });
        (Sender(Arc::clone(&channel)), Receiver(channel))
    }

    impl<T> Sender<T> {
        pub fn send(&self, value: T) -> Result<(), T> {
            self.0.state.lock().waiting.push_back(value);
            self.0.told.notify_one();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.0.state.lock().has_sender = false;
                self.0.told.notify_one();
            }
        }
    }

    impl<T> Receiver<T> {
        pub fn recv(&self) -> Result<T, RecvTimeoutError> {
            self.recv_until(None)
        }

        pub fn recv_timeout(&self, span: Duration) -> Result<T, RecvTimeoutError> {
            self.recv_until(Some(time::now() + span))
        }

        pub fn try_recv(&self) -> Result<T, RecvTimeoutError> {
            self.0.state.lock().waiting.pop_front().ok_or(RecvTimeoutError::Timeout)
        }

        fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvTimeoutError> {
            let mut state = self.0.state.lock();
            loop {
                if let Some(value) = state.waiting.pop_front() {
                    return Ok(value);
                }
                if !state.has_sender {
                    return Err(RecvTimeoutError::Disconnected);
                }
                if deadline.is_some_and(|deadline| time::now() >= deadline) {
                    return Err(RecvTimeoutError::Timeout);
                }
                state = wait(&self.0.told, &self.0.state, state, deadline);
            }
        }
    }
}

/// Threads that park, and tasks that they run.
pub mod thread {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::{Duration, Instant};

    use super::{Condvar, Mutex, time, wait};
    use crate::engine;

    pub use engine::ThreadId;
    pub use engine::threads::*;

    #[derive(Clone, Debug)]
    pub struct Thread {
        id: ThreadId,
        parker: Arc<Parker>,
    }

    #[derive(Debug, Default)]
    pub(super) struct Parker {
        token: Mutex<bool>,
        told: Condvar,
    }

    engine::thread_local!(static ME: Thread = Thread::begin());

    impl Thread {
        fn begin() -> Thread {
            let parker = Arc::new(Parker::default());
            time::enter(&parker);
            Thread { id: engine::thread_id(), parker }
        }

        pub fn id(&self) -> ThreadId {
            self.id
        }

        pub fn unpark(&self) {
            self.parker.wake_by_ref();
        }
    }

    impl Parker {
        /// Sleepers look at the time again.
        pub(super) fn stir(&self) {
            let _token = self.token.lock();
            self.told.notify_one();
        }
    }

    pub fn current() -> Thread {
        ME.with(Thread::clone)
    }

    pub fn park() {
        park_until(None);
    }

    pub fn park_timeout(span: Duration) {
        park_until(Some(time::now() + span));
    }

    fn park_until(deadline: Option<Instant>) {
        let me = current();
        let Parker { token, told } = &*me.parker;
        let mut has_token = token.lock();
        while !*has_token && deadline.is_none_or(|deadline| time::now() < deadline) {
            has_token = wait(told, token, has_token, deadline);
        }
        *has_token = false;
    }

    impl Wake for Parker {
        fn wake(self: Arc<Self>) {
            self.wake_by_ref();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            *self.token.lock() = true;
            self.told.notify_one();
        }
    }

    pub fn waker() -> Waker {
        Waker::from(current().parker)
    }

    pub fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = waker();
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            park();
        }
    }
}

/// A clock that stands still until a model says otherwise, or where time passes by itself, somebody waits for it.
pub mod time {
    use std::cell::{Cell, RefCell};
    use std::sync::{Arc, OnceLock, Weak};
    use std::time::{Duration, Instant};

    use super::thread::Parker;
    use crate::engine;

    // Plain cells: all threads of a model share one thread of the system, and every look at the time has a lock beside it.
    thread_local! {
        static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static SLEEPERS: RefCell<Vec<Weak<Parker>>> = const { RefCell::new(Vec::new()) };
    }

    pub fn now() -> Instant {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        *BEGAN.get_or_init(Instant::now) + PASSED.get()
    }

    /// Moves the clock on; every sleeper whose time is over wakes.
    pub fn pass(span: Duration) {
        PASSED.set(PASSED.get() + span);
        let sleepers: Vec<_> = SLEEPERS.with_borrow(|sleepers| sleepers.iter().filter_map(Weak::upgrade).collect());
        sleepers.iter().for_each(|parker| parker.stir());
    }

    /// Somebody has nothing to do before `deadline`.
    pub(super) fn idle(deadline: Instant) {
        engine::yield_now();
        pass(engine::span(deadline.saturating_duration_since(now())));
    }

    /// Milliseconds that have passed since the model began.
    pub fn passed_ms() -> u64 {
        PASSED.get().as_millis() as u64
    }

    pub(crate) fn begin() {
        PASSED.set(Duration::ZERO);
        SLEEPERS.with_borrow_mut(Vec::clear);
    }

    pub(super) fn enter(parker: &Arc<Parker>) {
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.push(Arc::downgrade(parker)));
    }
}
