//! The thread that wakes workers when jobs come due, and tells jobs whose time is over. It sleeps until the earliest of these, and
//! there is none as long as nothing is asked of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::jobs::events::Event;
use crate::jobs::hub::Hub;
use crate::jobs::run::{Run, TIMED_OUT};

/// How long after the end of its time a job that goes on is told of.
const STUCK_MS: u64 = 1_000;
/// An hour at a time: what is later is looked at again.
const NAP_MS: u64 = 3_600_000;

#[derive(Default)]
pub(crate) struct Timer {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_started: bool,
    is_stopped: bool,
    /// When the workers are to be woken next.
    wake_ms: Option<u64>,
    /// When whose time is over; `true`: it was told, and should have ended by then.
    ends: BinaryHeap<Reverse<End>>,
    serial: u64,
}

struct End {
    at_ms: u64,
    serial: u64,
    was_told: bool,
    run: Weak<Run>,
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for End {}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.serial).cmp(&(other.at_ms, other.serial))
    }
}

impl Timer {
    /// Wakes the workers at this time, if not before.
    pub(crate) fn wake_at(&self, hub: &Arc<Hub>, at_ms: u64) {
        let mut state = self.inner.state.lock();
        if state.wake_ms.is_none_or(|known| at_ms < known) {
            state.wake_ms = Some(at_ms);
            self.ring(&mut state, hub);
        }
    }

    /// Tells the run at this time that its time is over.
    pub(crate) fn end_at(&self, hub: &Arc<Hub>, at_ms: u64, run: &Arc<Run>) {
        let mut state = self.inner.state.lock();
        state.push(at_ms, false, Arc::downgrade(run));
        self.ring(&mut state, hub);
    }

    fn ring(&self, state: &mut State, hub: &Arc<Hub>) {
        if !state.is_started && !state.is_stopped {
            let (inner, hub) = (Arc::clone(&self.inner), Arc::downgrade(hub));
            let thread = std::thread::Builder::new().name("kestrel-jobs".into());
            // Without a thread jobs start late, when a worker looks anyway; the next one to ask tries again.
            state.is_started = thread.spawn(move || inner.run(&hub)).is_ok();
        }
        self.inner.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.inner.state.lock().is_stopped = true;
        self.inner.changed.notify_one();
    }
}

impl State {
    fn push(&mut self, at_ms: u64, was_told: bool, run: Weak<Run>) {
        self.serial += 1;
        self.ends.push(Reverse(End { at_ms, serial: self.serial, was_told, run }));
    }
}

impl Inner {
    fn run(&self, hub: &Weak<Hub>) {
        let mut state = self.state.lock();
        while !state.is_stopped {
            let next_ms = state.wake_ms.into_iter().chain(state.ends.peek().map(|end| end.0.at_ms)).min();
            let Some(next_ms) = next_ms else {
                self.changed.wait(&mut state);
                continue;
            };
            // The set's time, not this thread's. Whatever the hub's end does takes this lock.
            drop(state);
            let now_ms = hub.upgrade().map(|hub| hub.now_ms());
            let Some(now_ms) = now_ms else {
                return;
            };
            state = self.state.lock();
            if next_ms > now_ms {
                // A call that came in between has been heard: what is next is looked for again.
                let is_next = state.wake_ms.into_iter().chain(state.ends.peek().map(|end| end.0.at_ms)).min();
                if is_next == Some(next_ms) && !state.is_stopped {
                    let nap = Duration::from_millis((next_ms - now_ms).min(NAP_MS));
                    self.changed.wait_for(&mut state, nap);
                }
                continue;
            }
            let wakes = state.wake_ms.take_if(|at_ms| *at_ms <= now_ms).is_some();
            let mut over = Vec::new();
            while state.ends.peek().is_some_and(|end| end.0.at_ms <= now_ms) {
                over.extend(state.ends.pop());
            }
            drop(state);
            if let Some(hub) = hub.upgrade() {
                if wakes {
                    hub.meet_clock();
                    hub.ring_all();
                }
                let over = over.into_iter().filter_map(|Reverse(end)| Some((end.run.upgrade()?, end.was_told)));
                for (run, was_told) in over {
                    if run.hold.lock().is_none() {
                        continue;
                    }
                    if was_told {
                        hub.emit(|| Event::Stuck { id: run.id, queue: run.room.name.to_string() });
                    } else {
                        run.tell(TIMED_OUT);
                        self.state.lock().push(now_ms.saturating_add(STUCK_MS), true, Arc::downgrade(&run));
                    }
                }
            }
            state = self.state.lock();
        }
    }
}
