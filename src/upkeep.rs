//! The set's one background thread: chores that somebody rang for, and chores by time.
//!
//! A chore never runs on the path of a put or get: arming the next segment, freeing spent ones, syncs on a period, sweeps of
//! expired items, checkpoints of idle queues. Nothing walks all queues: a queue that has something to do by time says so,
//! and is forgotten again when it has not. An idle set's thread sleeps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::disk::Disk;
use crate::queue::core::{Core, Shared, Since};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, Receiver, RecvTimeoutError, Sender, unbounded};

/// Something to be done soon.
#[derive(Debug)]
pub(crate) enum Chore {
    /// Prepare the next segment.
    Arm(Weak<Core>),
    /// Free what is spent.
    Free(Weak<Core>),
    /// Give back what done items take in the next of the segments that hold little.
    Thin(Weak<Core>),
    /// Sync now: somebody appended without waiting.
    Sync(Weak<Core>),
    /// Look after the queue after this many ms.
    Tend(Weak<Core>, u64),
    /// End leases after this many ms.
    EndLeases(Weak<Core>, u64),
    /// Look for items whose delay has ended, at this moment of the monotonic clock in ms.
    Ripen(Weak<Core>, u64),
    /// Move items to the dead letters, and expired ones where they are to go.
    Bury(Weak<Core>),
    /// See after this many ms whether the queue is old and empty.
    Age(Weak<Core>, u64),
    /// Put a stricter state of the set in force after this many ms.
    Tighten(Weak<Shared>, u64),
    Stop,
}

/// The bell and the thread behind it.
#[derive(Debug)]
pub(crate) struct Upkeep {
    bell: Sender<Chore>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Without a thread, the chores wait here until told to run.
    inline: Option<Mutex<Rounds>>,
}

impl Upkeep {
    pub(crate) fn start(disk: &Disk) -> std::io::Result<Upkeep> {
        let (bell, chores) = unbounded();
        let rounds = Rounds { disk: disk.clone(), chores, due: BinaryHeap::new(), serial: 0 };
        if !disk.has_threads() {
            return Ok(Upkeep { bell, thread: Mutex::new(None), inline: Some(Mutex::new(rounds)) });
        }
        let thread = thread::Builder::new().name("kestrel-upkeep".into()).spawn(move || rounds.run())?;
        Ok(Upkeep { bell, thread: Mutex::new(Some(thread)), inline: None })
    }

    pub(crate) fn ring(&self, chore: Chore) {
        // After the end of the thread there is nothing left to do.
        let _ = self.bell.send(chore);
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = self.bell.send(Chore::Stop);
            // The last handle may be dropped by a chore itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// In a forked child there is no such thread.
    pub(crate) fn abandon(&self) {
        if let Some(mut thread) = self.thread.try_lock()
            && let Some(handle) = thread.take()
        {
            drop(handle);
        }
    }

    /// Runs all chores that are rung for or due.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn run_pending(&self) {
        if let Some(rounds) = &self.inline {
            rounds.lock().run_pending();
        }
    }

    #[cfg(not(any(test, feature = "testing")))]
    #[expect(dead_code, reason = "keeps the field in use where every disk has threads")]
    fn has_inline(&self) -> bool {
        self.inline.is_some()
    }
}

#[derive(Debug)]
struct Rounds {
    disk: Disk,
    chores: Receiver<Chore>,
    /// Due time in ms, an order among equals, the queue.
    due: BinaryHeap<Reverse<Due>>,
    serial: u64,
}

#[derive(Debug)]
struct Due {
    at_ms: u64,
    serial: u64,
    errand: Errand,
}

/// What is due.
#[derive(Debug)]
enum Errand {
    Tend(Weak<Core>),
    EndLeases(Weak<Core>),
    Ripen(Weak<Core>),
    Tighten(Weak<Shared>),
    Age(Weak<Core>),
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.serial).cmp(&(other.at_ms, other.serial))
    }
}

impl Rounds {
    fn run(mut self) {
        loop {
            let now_ms = self.disk.mono_exact_ms();
            let next = self.due.peek().map(|due| Duration::from_millis(due.0.at_ms.saturating_sub(now_ms)));
            let chore = match next {
                Some(wait) => match self.chores.recv_timeout(wait) {
                    Ok(chore) => Some(chore),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match self.chores.recv() {
                    Ok(chore) => Some(chore),
                    Err(_) => return,
                },
            };
            if matches!(chore, Some(Chore::Stop)) {
                return;
            }
            // A waker that panics has been told of already; the chores of all other queues go on.
            let _ = catch_unwind(AssertUnwindSafe(|| match chore {
                Some(chore) => self.perform(chore),
                None => self.perform_due(),
            }));
        }
    }

    #[cfg(any(test, feature = "testing"))]
    fn run_pending(&mut self) {
        while let Ok(chore) = self.chores.try_recv() {
            self.perform(chore);
        }
        self.perform_due();
        while let Ok(chore) = self.chores.try_recv() {
            self.perform(chore);
        }
    }

    fn perform(&mut self, chore: Chore) {
        match chore {
            Chore::Arm(queue) => with(&queue, |core| core.arm()),
            Chore::Free(queue) => {
                // Somebody was just leaving one of them: look again in a moment.
                let left = queue.upgrade().is_some_and(|core| {
                    let left = core.free_spent();
                    core.thin_out(Since::LeftBehind);
                    left
                });
                if left {
                    self.later(Errand::Tend(queue), 1);
                }
            }
            Chore::Thin(queue) => with(&queue, |core| core.thin_next()),
            Chore::Sync(queue) => with(&queue, |core| core.sync_appended()),
            Chore::Tend(queue, after_ms) => self.later(Errand::Tend(queue), after_ms),
            Chore::EndLeases(queue, after_ms) => self.later(Errand::EndLeases(queue), after_ms),
            Chore::Ripen(queue, at_ms) => self.at(Errand::Ripen(queue), at_ms),
            Chore::Tighten(set, after_ms) => self.later(Errand::Tighten(set), after_ms),
            Chore::Bury(queue) => with(&queue, |core| {
                core.bury();
                core.move_expired(core.max_expire_sweep());
            }),
            Chore::Age(queue, after_ms) => self.later(Errand::Age(queue), after_ms),
            Chore::Stop => {}
        }
    }

    fn later(&mut self, errand: Errand, after_ms: u64) {
        let at_ms = self.disk.mono_exact_ms().saturating_add(after_ms);
        self.at(errand, at_ms);
    }

    fn at(&mut self, errand: Errand, at_ms: u64) {
        self.serial += 1;
        self.due.push(Reverse(Due { at_ms, serial: self.serial, errand }));
    }

    fn perform_due(&mut self) {
        let now_ms = self.disk.mono_exact_ms();
        while self.due.peek().is_some_and(|due| due.0.at_ms <= now_ms) {
            let Some(Reverse(due)) = self.due.pop() else {
                return;
            };
            match due.errand {
                Errand::Tend(queue) => {
                    let after_ms = queue.upgrade().and_then(|core| core.tend());
                    if let Some(after_ms) = after_ms {
                        self.later(Errand::Tend(queue), after_ms);
                    }
                }
                Errand::Age(queue) => {
                    let after_ms = queue.upgrade().and_then(|core| core.age());
                    if let Some(after_ms) = after_ms {
                        self.later(Errand::Age(queue), after_ms);
                    }
                }
                Errand::EndLeases(queue) => with(&queue, |core| core.end_leases()),
                Errand::Ripen(queue) => with(&queue, |core| core.ripen()),
                Errand::Tighten(set) => {
                    let set = set.upgrade().and_then(|shared| shared.neighbours.get()?.upgrade());
                    if let Some(set) = set {
                        set.tighten();
                    }
                }
            }
        }
    }
}

fn with(queue: &Weak<Core>, chore: impl FnOnce(&Arc<Core>)) {
    if let Some(core) = queue.upgrade() {
        chore(&core);
    }
}
