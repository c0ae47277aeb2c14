//! How far a segment has come: what readers may see, and the moment at which it is spent.
//!
//! Two promises, for which the orderings stand: who sees `end` sees the frames below it; and of the last close and the seal,
//! in whatever order they come, at least one learns that the segment is spent.

use crate::planted::{self, Bug};
use crate::sync::{AtomicBool, AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Progress {
    /// Offset behind the last whole frame; Release by the putter, Acquire by readers.
    end: AtomicU32,
    /// Items in it; written under the tail lock, final once sealed.
    count: AtomicU32,
    sealed: AtomicBool,
    /// Items done, each counted once.
    done: Apart,
}

/// Away from what the putter writes: consumers count here, and would take its cache line each time.
#[derive(Debug)]
#[repr(align(128))]
struct Apart(AtomicU32);

impl Progress {
    pub(crate) fn new(end: u32, count: u32, done: u32) -> Progress {
        Progress {
            end: AtomicU32::new(end),
            count: AtomicU32::new(count),
            sealed: AtomicBool::new(false),
            done: Apart(AtomicU32::new(done)),
        }
    }

    #[inline]
    pub(crate) fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn done(&self) -> u32 {
        self.done.0.load(Ordering::Acquire)
    }

    /// Makes frames up to `end` visible: the last step of an append.
    #[inline]
    pub(crate) fn publish(&self, end: u32, count: u32) {
        self.count.store(count, Ordering::Relaxed);
        let order = if planted::is(Bug::PublishRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.end.store(end, order);
    }

    /// No frame will follow. Returns whether all items are done already.
    pub(crate) fn seal(&self) -> bool {
        if planted::is(Bug::SealAfterLook) {
            let spent = self.done.0.load(Ordering::Acquire) >= self.count();
            self.sealed.store(true, Ordering::Release);
            return spent;
        }
        self.sealed.store(true, Ordering::Release);
        // Adds nothing, and so takes its place among the closes: one that comes after it acquires `sealed` with it, one that
        // came before it is in the number. A load could be overtaken by both.
        self.done.0.fetch_add(0, Ordering::AcqRel) >= self.count()
    }

    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Sealed, and every item done.
    pub(crate) fn is_spent(&self) -> bool {
        self.sealed.load(Ordering::Acquire) && self.done.0.load(Ordering::Acquire) >= self.count()
    }

    /// Counts an item that is done; `true` if that was the last one of a sealed segment. Called once per item.
    #[inline]
    pub(crate) fn done_one(&self) -> bool {
        let done = self.done.0.fetch_add(1, Ordering::AcqRel) + 1;
        // Pairs with `seal`: whichever comes second sees the other.
        self.sealed.load(Ordering::Acquire) && done >= self.count()
    }
}
