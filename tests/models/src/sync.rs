//! What the crate's own `sync` offers, over loom's scheduler.

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::ops::{Deref, DerefMut};
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

pub(crate) struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        Guard(Some(self.0.lock().expect("nobody panics under it")))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("held")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("held")
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(loom::sync::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
        let inner = guard.0.take().expect("held");
        guard.0 = Some(self.0.wait(inner).expect("nobody panics under it"));
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Tasks are not modelled: only threads wait here.
#[derive(Debug)]
pub(crate) struct Event;

#[derive(Debug)]
pub(crate) struct EventListener;

impl Event {
    pub(crate) fn new() -> Event {
        Event
    }

    pub(crate) fn notify(&self, _: usize) {}

    pub(crate) fn listen(&self) -> EventListener {
        EventListener
    }
}

pub(crate) mod thread {
    pub(crate) use loom::thread::{Thread, current, park};

    /// No model waits for a while.
    pub(crate) fn park_timeout(_: std::time::Duration) {
        park();
    }
}

pub(crate) fn spin_until(ready: impl Fn() -> bool) -> bool {
    ready()
}
