//! One fair line for threads and tasks.
//!
//! A waiter takes a ticket when it begins to wait and keeps it until it has an item or leaves, so that a woken waiter who
//! finds nothing stands where it stood. What is handed over is a promise, not an item:
//!
//! ```text
//!            notify (oldest ticket first)           take                       item
//!  in line ───────────────────────────────► promised ─────► gone
//!     ▲                                        │ nothing there: the same ticket again
//!     └────────────────────────────────────────┘
//!  leaves in line: nothing to do · leaves promised: the promise passes to the next
//! ```
//!
//! Whoever comes without a ticket takes only what is promised to nobody. So no item waits while a consumer sleeps, nobody
//! overtakes, and a future that is dropped at any moment loses nothing. `event-listener` has the same hand-over but puts a
//! waiter that listens again at the end of its line; the tickets are why this line is our own.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::journal::front::Front;
use crate::planted::{self, Bug};
use crate::sync::thread::{self, Thread};
use crate::sync::{AtomicBool, Mutex, Ordering, spin_until};

/// One who waits. Shared by the line and by the thread or future itself.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    /// Set under the line's lock when a promise is made or the line ends; Release, read with Acquire.
    called: AtomicBool,
    wake: Mutex<Option<Wake>>,
}

#[derive(Debug)]
enum Wake {
    Thread(Thread),
    Task(Waker),
}

/// The place of a waiter in the line.
#[derive(Debug)]
pub(crate) struct Ticket {
    number: u64,
    waiter: Arc<Waiter>,
    /// Out of the line for good; written under the line's lock.
    left: AtomicBool,
}

/// Those who wait, and how many of those who left the line have a promise open. Guarded by the reader's lock.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: BTreeMap<u64, Arc<Waiter>>,
    next: u64,
    /// Tickets that left the line with a promise.
    promised: BTreeSet<u64>,
    /// Who is told how many wait without a promise.
    told: Option<Arc<Front>>,
    told_waiting: u64,
}

/// Waiters to be woken once the lock is released: no waker runs under it.
#[derive(Debug, Default)]
#[must_use = "a waiter that is not woken sleeps on its promise"]
pub(crate) struct Wakes(Vec<Arc<Waiter>>);

impl Wakes {
    /// A waker is the user's code and may panic: not before all others are woken.
    #[inline(always)]
    pub(crate) fn wake(self) {
        if !self.0.is_empty() {
            self.wake_all();
        }
    }

    fn wake_all(self) {
        let mut panicked = None;
        for waiter in self.0 {
            panicked = catch_unwind(AssertUnwindSafe(|| waiter.wake())).err().or(panicked);
        }
        if let Some(panicked) = panicked {
            resume_unwind(panicked);
        }
    }
}

impl Line {
    /// A line of consumers, whom a put must know of.
    pub(crate) fn known_to(front: Arc<Front>) -> Line {
        Line { told: Some(front), ..Line::default() }
    }

    fn tell(&mut self) {
        let now = self.waiting.len() as u64;
        if let Some(front) = &self.told
            && now != self.told_waiting
        {
            front.count_waiting(self.told_waiting, now);
            self.told_waiting = now;
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.waiting.len() as u64 + self.promised()
    }

    pub(crate) fn promised(&self) -> u64 {
        self.promised.len() as u64
    }

    /// How many that came earlier have a promise that they have not yet had kept: the items before its own that a ticket
    /// must leave, so that items go to waiters in the order of both.
    pub(crate) fn ahead(&self, ticket: &Ticket) -> usize {
        self.promised.range(..ticket.number).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.promised.is_empty()
    }

    /// Joins at the end.
    pub(crate) fn join(&mut self) -> Ticket {
        let waiter = Arc::new(Waiter::default());
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Arc::clone(&waiter));
        self.tell();
        Ticket { number, waiter, left: AtomicBool::new(false) }
    }

    /// Whether the ticket holds a promise (or the line was ended).
    pub(crate) fn is_called(&self, ticket: &Ticket) -> bool {
        !self.waiting.contains_key(&ticket.number)
    }

    /// A promise that could not be kept: back to the old place.
    pub(crate) fn rejoin(&mut self, ticket: &Ticket) {
        if self.is_called(ticket) {
            self.promised.remove(&ticket.number);
            ticket.waiter.called.store(false, Ordering::Relaxed);
            // Also one that had left: a promise can be spent on an item that turns out damaged.
            ticket.left.store(false, Ordering::Relaxed);
            self.waiting.insert(ticket.number, Arc::clone(&ticket.waiter));
            self.tell();
        }
    }

    /// A promise was kept, or is given up; out of the line either way. Returns whether it had one.
    pub(crate) fn leave(&mut self, ticket: &Ticket) -> bool {
        ticket.left.store(true, Ordering::Relaxed);
        if self.waiting.remove(&ticket.number).is_some() {
            self.tell();
            return false;
        }
        self.promised.remove(&ticket.number)
    }

    /// Out of the line, wherever the ticket stands; one that has left already is no longer known.
    pub(crate) fn forget(&mut self, ticket: &Ticket) {
        if !ticket.left.load(Ordering::Relaxed) {
            self.leave(ticket);
        }
    }

    /// Promises until `available` promises are out or nobody waits.
    pub(crate) fn promise_up_to(&mut self, available: u64, wakes: &mut Wakes) {
        while self.promised() < available
            && let Some((number, waiter)) = self.waiting.pop_first()
        {
            self.promised.insert(number);
            waiter.called.store(true, Ordering::Release);
            wakes.0.push(waiter);
        }
        self.tell();
    }

    /// Calls everybody: the queue is going away.
    pub(crate) fn end(&mut self, wakes: &mut Wakes) {
        self.promise_up_to(u64::MAX, wakes);
    }
}

impl Waiter {
    fn wake(&self) {
        // Out of the lock before it is woken: a waker may poll on the spot, and register again.
        let wake = self.wake.lock().take();
        match wake {
            Some(Wake::Thread(thread)) => thread.unpark(),
            Some(Wake::Task(waker)) => waker.wake(),
            // It has not gone to sleep yet and will see `called`.
            None => {}
        }
    }
}

impl Ticket {
    /// Sleeps until called or until `deadline`; `false`: the time is over.
    pub(crate) fn sleep(&self, deadline: Option<Instant>) -> bool {
        sleep_any(&[self], deadline)
    }

    /// Registers a task to be woken when called; `true` if it is already.
    pub(crate) fn register(&self, waker: &Waker) -> bool {
        let is_known = matches!(&*self.waiter.wake.lock(), Some(Wake::Task(known)) if known.will_wake(waker));
        if !is_known {
            // Cloned before the lock and dropped after it: both are the user's code.
            let new = Some(Wake::Task(waker.clone()));
            let old = std::mem::replace(&mut *self.waiter.wake.lock(), new);
            drop(old);
        }
        self.waiter.called.load(Ordering::Acquire)
    }
}

/// Sleeps until one of several tickets is called or until `deadline`; `false`: the time is over.
pub(crate) fn sleep_any(tickets: &[&Ticket], deadline: Option<Instant>) -> bool {
    let called = || tickets.iter().any(|t| t.waiter.called.load(Ordering::Acquire));
    if spin_until(called) {
        return true;
    }
    let mut look = !planted::is(Bug::SleepWithoutLook);
    loop {
        // Each time: the wake of an earlier promise, one that could not be kept, may still be on its way. It takes along what
        // stands here, and the next promise would find nobody to wake.
        for ticket in tickets {
            *ticket.waiter.wake.lock() = Some(Wake::Thread(thread::current()));
        }
        if look && called() {
            return true;
        }
        look = true;
        match deadline {
            None => thread::park(),
            Some(deadline) => match deadline.checked_duration_since(crate::disk::instant_now()) {
                Some(left) if !left.is_zero() => thread::park_timeout(left),
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_go_out_in_the_order_of_arrival() {
        let mut line = Line::default();
        let tickets: Vec<Ticket> = (0..3).map(|_| line.join()).collect();
        let mut wakes = Wakes::default();
        line.promise_up_to(2, &mut wakes);
        assert_eq!(tickets.iter().map(|t| line.is_called(t)).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!((line.promised(), line.len()), (2, 3));
        wakes.wake();
    }

    #[test]
    fn a_promise_that_was_not_kept_leads_back_to_the_old_place() {
        let mut line = Line::default();
        let first = line.join();
        let second = line.join();
        let mut wakes = Wakes::default();
        line.promise_up_to(1, &mut wakes);
        line.rejoin(&first);
        assert_eq!(line.promised(), 0);
        line.promise_up_to(1, &mut wakes);
        assert!(line.is_called(&first) && !line.is_called(&second));
        wakes.wake();
    }

    #[test]
    fn who_leaves_with_a_promise_says_so() {
        let mut line = Line::default();
        let first = line.join();
        let second = line.join();
        let mut wakes = Wakes::default();
        line.promise_up_to(1, &mut wakes);
        assert!(line.leave(&first));
        assert!(!line.leave(&second));
        assert!(line.is_empty());
        wakes.wake();
    }
}
