//! Group commit: one leader asks the device, everybody who waits for something it covers is answered.
//!
//! ```text
//!  put A ─ append ─┐ leader: snapshot of the tail ── sync ── durable = A ── wake all ──┐
//!  put B ─ append ─┼─ waits ─────────────────────────────────────────────────┬─ leader: …
//!  put C ─ append ─┘  waits ─────────────────────────────────────────────────┘  C waits, and is covered by B's sync
//! ```
//!
//! The latch: after the first failed sync nothing is asked of the device again. What was known durable stays so, all else
//! is undetermined until the next open, because a second sync may succeed without having written what the first one
//! dropped (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).

use std::io;
use std::sync::Arc;

use crate::planted::{self, Bug};
use crate::sync::{AtomicBool, AtomicU64, Condvar, Event, EventListener, Mutex, Ordering};

#[derive(Debug)]
pub(crate) struct Commit {
    /// Lock 4. Never held across a sync.
    state: Mutex<State>,
    /// The id up to which all items are durable; a copy of `State::durable` for a look without the lock.
    durable: AtomicU64,
    has_failed: AtomicBool,
    /// Told once per sync, whatever came of it: threads by the first, which hands them the lock one by one, tasks by the
    /// second.
    told: Condvar,
    ended: Event,
    pub(crate) syncs: AtomicU64,
}

#[derive(Debug)]
struct State {
    durable: u64,
    leading: bool,
    failed: Option<Arc<io::Error>>,
}

impl Commit {
    /// `durable`: the id up to which recovery found or made everything durable.
    pub(crate) fn new(durable: u64) -> Commit {
        Commit {
            state: Mutex::new(State { durable, leading: false, failed: None }),
            durable: AtomicU64::new(durable),
            has_failed: AtomicBool::new(false),
            told: Condvar::new(),
            ended: Event::new(),
            syncs: AtomicU64::new(0),
        }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The first failure, once there was one.
    #[inline]
    pub(crate) fn failure(&self) -> Option<Arc<io::Error>> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().failed.clone()
    }

    /// Whether the device is being asked. What that covers looks synced by then, and is so only once it has answered.
    pub(crate) fn is_asking(&self) -> bool {
        self.state.lock().leading
    }

    /// Latches a failure that happened outside of [`Commit::wait`].
    pub(crate) fn fail(&self, error: io::Error) -> Arc<io::Error> {
        let mut state = self.state.lock();
        let error = state.failed.get_or_insert_with(|| Arc::new(error)).clone();
        self.has_failed.store(true, Ordering::Release);
        drop(state);
        self.tell();
        error
    }

    /// Blocks until the item `id` is durable, as a follower or as the leader.
    ///
    /// `sync` makes all that was appended so far durable and returns the last id that it covers; `publish` hands what is
    /// durable now to the consumers. Neither runs under a lock of this module, and never two at a time.
    pub(crate) fn wait(
        &self,
        id: u64,
        sync: impl Fn() -> io::Result<u64>,
        publish: impl Fn(u64),
    ) -> Result<(), Arc<io::Error>> {
        loop {
            let mut state = self.state.lock();
            if state.durable >= id {
                return Ok(());
            }
            if let Some(error) = &state.failed {
                return Err(Arc::clone(error));
            }
            if state.leading {
                self.told.wait(&mut state);
                continue;
            }
            state.leading = true;
            drop(state);
            self.lead(&sync, &publish);
        }
    }

    /// Syncs once now, whatever is durable already: for marks, and for periods. Waits for a sync under way first.
    pub(crate) fn round(
        &self,
        sync: impl Fn() -> io::Result<u64>,
        publish: impl Fn(u64),
    ) -> Result<(), Arc<io::Error>> {
        loop {
            let mut state = self.state.lock();
            if let Some(error) = &state.failed {
                return Err(Arc::clone(error));
            }
            if state.leading {
                self.told.wait(&mut state);
                continue;
            }
            state.leading = true;
            drop(state);
            self.lead(&sync, &publish);
            return match self.failure() {
                Some(error) => Err(error),
                None => Ok(()),
            };
        }
    }

    fn lead(&self, sync: &impl Fn() -> io::Result<u64>, publish: &impl Fn(u64)) {
        /// A panic below must not leave the followers waiting for a leader that is gone.
        struct Leading<'a>(&'a Commit);
        impl Drop for Leading<'_> {
            fn drop(&mut self) {
                self.0.state.lock().leading = false;
                self.0.tell();
            }
        }
        let leading = Leading(self);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let mut result = if planted::is(Bug::AckBeforeSync) { Ok(u64::MAX >> 1) } else { sync() };
        if planted::is(Bug::RetryFailedSync) && result.is_err() {
            result = sync();
        }
        match result {
            Ok(durable) => {
                // Before anybody is answered, so that who has put an item finds it there.
                publish(durable);
                let mut state = self.state.lock();
                state.durable = state.durable.max(durable);
                self.durable.store(state.durable, Ordering::Release);
            }
            Err(_) if planted::is(Bug::ForgetFailure) => self.forget_by_mistake(),
            Err(error) => {
                self.fail(error);
            }
        }
        drop(leading);
    }

    /// Planted: the waiting ones would ask again, and the next sync, which finds nothing to write, would be believed.
    fn forget_by_mistake(&self) {
        self.state.lock().failed = None;
    }

    fn tell(&self) {
        self.told.notify_all();
        self.ended.notify(usize::MAX);
    }

    /// For futures: told at the end of the next sync. Check [`Commit::durable`] and [`Commit::failure`] after listening.
    pub(crate) fn listen(&self) -> EventListener {
        self.ended.listen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn one_sync_answers_all_that_it_covers() {
        let commit = Commit::new(0);
        let appended = AtomicU64::new(0);
        let syncs = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let id = appended.fetch_add(1, Ordering::SeqCst) + 1;
                        let sync = || {
                            syncs.fetch_add(1, Ordering::SeqCst);
                            Ok(appended.load(Ordering::SeqCst))
                        };
                        commit.wait(id, sync, |_| {}).expect("no failure planted");
                        assert!(commit.durable() >= id);
                    }
                });
            }
        });
        assert!(syncs.load(Ordering::SeqCst) <= 800);
    }

    #[test]
    fn nobody_is_answered_before_it_is_published() {
        let commit = Commit::new(0);
        std::thread::scope(|scope| {
            let (begun, begins) = std::sync::mpsc::channel();
            let (go_on, waits) = std::sync::mpsc::channel::<()>();
            let (answer, answered) = std::sync::mpsc::channel();
            let commit = &commit;
            scope.spawn(move || {
                let publish = |_| {
                    begun.send(()).expect("somebody waits");
                    waits.recv().expect("the test tells when");
                };
                commit.wait(1, || Ok(2), publish).expect("no failure planted");
            });
            begins.recv().expect("it has begun");
            scope.spawn(move || answer.send(commit.wait(2, || panic!("covered"), |_| {}).is_ok()));
            let early = answered.recv_timeout(std::time::Duration::from_millis(50));
            go_on.send(()).expect("somebody waits");
            assert!(early.is_err(), "answered before consumers could see it");
            assert_eq!(answered.recv(), Ok(true));
        });
    }

    #[test]
    fn the_first_failure_stays() {
        let commit = Commit::new(5);
        let first = commit.wait(6, || Err(io::Error::other("first")), |_| {});
        assert!(first.is_err_and(|e| e.to_string() == "first"));
        let second = commit.wait(7, || panic!("asked the device again"), |_| {});
        assert!(second.is_err_and(|e| e.to_string() == "first"));
        assert!(commit.wait(5, || panic!("durable already"), |_| {}).is_ok());
    }

    #[test]
    fn a_leader_that_panics_leaves_the_lead() {
        let commit = Commit::new(0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = commit.wait(1, || panic!("planted"), |_| {});
        }));
        assert!(caught.is_err());
        assert!(commit.wait(1, || Ok(1), |_| {}).is_ok());
    }
}
