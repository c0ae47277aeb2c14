//! How many segment files, and maps of them, a set holds open at once, and which are closed when there are too many.
//!
//! Each open segment counts from its opening to its drop, and has one ticket in a round. Who needs one more than the budget
//! allows goes round: a segment that was written to or read since it was last looked at gets another round, one that was not is
//! closed, and opened again by whoever needs it. Nothing is noted when a segment is used: what its frames and marks add up to
//! tells it, so a put and a close pay nothing.
//!
//! What is not durable stays open: an error of writing back is told once, to the descriptors that were open then. So the budget
//! may be exceeded until somebody without a lock has synced ([`Way::Synced`]).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use crate::sync::thread::{self, ThreadId};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Looks of one that holds locks.
const LOOKS: usize = 128;

/// How far one may go to close a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Under the caller's locks: nothing is synced, no lock is waited for that comes before the table's.
    AsIs,
    /// The caller holds no lock: what is not durable is made so, what is spent is freed.
    Synced,
}

/// Who knows which of its segments are in use: a queue.
pub(crate) trait Keeper: fmt::Debug + Send + Sync {
    /// A number that changes as the segment is used; `None`: this opening of it has ended.
    fn usage(&self, number: u64, opening: u64) -> Option<u64>;

    /// Closes a segment that nobody uses. `false`: it is still open.
    fn rest(&self, number: u64, way: Way) -> bool;
}

/// The open segments of a set.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    max: u64,
    open: AtomicU64,
    openings: AtomicU64,
    /// Taken for a moment, with any other lock held or none, and none is taken under it.
    round: Mutex<VecDeque<Ticket>>,
    /// Held by the one who syncs and closes; the others wait for what that gives, and so cannot outrun it.
    closing: Mutex<()>,
    /// That one. A waker that it wakes may come here again.
    closer: Mutex<Option<ThreadId>>,
}

#[derive(Debug)]
struct Ticket {
    keeper: Weak<dyn Keeper>,
    number: u64,
    opening: u64,
    usage: u64,
}

/// Counts as open until dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    files: Arc<OpenFiles>,
    opening: u64,
}

impl OpenFiles {
    pub(crate) fn new(max: u64) -> OpenFiles {
        OpenFiles {
            max,
            open: AtomicU64::new(0),
            openings: AtomicU64::new(0),
            round: Mutex::new(VecDeque::new()),
            closing: Mutex::new(()),
            closer: Mutex::new(None),
        }
    }

    pub(crate) fn count(self: &Arc<Self>) -> Counted {
        self.open.fetch_add(1, Ordering::Relaxed);
        Counted { files: Arc::clone(self), opening: self.openings.fetch_add(1, Ordering::Relaxed) }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Three quarters of the budget are used: time to close some in the background.
    pub(crate) fn is_tight(&self) -> bool {
        self.open() > self.max - self.max / 4
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open() >= self.max
    }

    /// A segment was opened that may be closed again; called without its queue's table.
    pub(crate) fn enter(&self, keeper: &Weak<dyn Keeper>, number: u64, opening: u64) {
        let mut stale = VecDeque::new();
        {
            let mut round = self.round.lock();
            round.push_back(Ticket { keeper: Weak::clone(keeper), number, opening, usage: 0 });
            // Openings end without their tickets, by a segment's end for one.
            if round.len() as u64 > 2 * self.open() + 64 {
                std::mem::swap(&mut stale, &mut *round);
            }
        }
        if !stale.is_empty() {
            stale.retain(|ticket| {
                ticket.keeper.upgrade().is_some_and(|k| k.usage(ticket.number, ticket.opening).is_some())
            });
            self.round.lock().extend(stale);
        }
    }

    /// Closes what nobody uses until one more can be opened. `false`: that is not so yet.
    pub(crate) fn make_room(&self) -> bool {
        if self.is_full() {
            self.close_down_to(self.max - 1, Way::AsIs);
        }
        !self.is_full()
    }

    /// The system has no more, whatever the budget: closes half of what is open, as far as nobody uses it.
    pub(crate) fn close_half(&self, way: Way) {
        self.close_down_to(self.open() / 2, way);
    }

    /// Makes durable what keeps files open, and closes more than must be, so that this is seldom. The caller holds no lock.
    pub(crate) fn relieve(&self) {
        self.close_down_to(self.max - self.max / 4, Way::Synced);
    }

    fn close_down_to(&self, most: u64, way: Way) {
        /// Also after a waker's panic.
        struct Closing<'a>(&'a OpenFiles);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                *self.0.closer.lock() = None;
            }
        }
        let me = thread::current().id();
        if way == Way::Synced && *self.closer.lock() == Some(me) {
            return;
        }
        let _lock = (way == Way::Synced).then(|| self.closing.lock());
        let _closing = _lock.as_ref().map(|_| {
            *self.closer.lock() = Some(me);
            Closing(self)
        });
        let all = 2 * self.round.lock().len();
        let mut looks = if way == Way::AsIs { all.min(LOOKS) } else { all };
        while self.open() > most && looks > 0 {
            looks -= 1;
            let Some(mut ticket) = self.round.lock().pop_front() else { return };
            let Some(keeper) = ticket.keeper.upgrade() else { continue };
            let Some(usage) = keeper.usage(ticket.number, ticket.opening) else { continue };
            let is_idle = usage == ticket.usage;
            ticket.usage = usage;
            if !is_idle || !keeper.rest(ticket.number, way) {
                self.round.lock().push_back(ticket);
            }
        }
    }
}

impl Counted {
    /// Tells this opening from others.
    pub(crate) fn opening(&self) -> u64 {
        self.opening
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Wraps round to one less.
        self.files.open.fetch_add(u64::MAX, Ordering::Relaxed);
    }
}
