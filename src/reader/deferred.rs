//! Items that are not due yet: where they are, by the time at which they may be delivered.
//!
//! They stay in the journal where they were put, so that nothing moves and no second copy is to be told from the first; the holes
//! of [`crate::journal::holes`] give back what lies around them. Kept here is what it takes to find one again: 32 bytes an item.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::Rules;

/// Where a deferred item's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    pub(crate) payload_len: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Deferred {
    /// Due time, id, place; the id decides among equals.
    heap: BinaryHeap<Reverse<(u64, u64, At)>>,
    bytes: u64,
    /// Those whose time has come, in its order; they wait, and count as waiting.
    ripe: VecDeque<(u64, At)>,
}

impl Deferred {
    pub(super) fn push(&mut self, due_ms: u64, id: u64, at: At) {
        self.bytes += u64::from(at.payload_len);
        self.heap.push(Reverse((due_ms, id, at)));
    }

    /// Items that are not due, as far as anybody has looked.
    pub(super) fn len(&self) -> u64 {
        self.heap.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_ms, ..))| *due_ms)
    }

    /// Whether an item's time has come.
    pub(super) fn has_ripe(&mut self, rules: Rules<'_>) -> bool {
        if !self.heap.is_empty() {
            // Only where something is deferred: the exact clock costs as much as a third of a get.
            let now_ms = rules.exact_ms();
            while let Some(Reverse((due_ms, id, at))) = self.heap.peek().copied()
                && due_ms <= now_ms
            {
                self.heap.pop();
                self.bytes -= u64::from(at.payload_len);
                self.ripe.push_back((id, at));
            }
        }
        !self.ripe.is_empty()
    }

    /// Takes one out. Looks through all of them.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        if let Some(at) = self.ripe.iter().position(|(ripe, _)| *ripe == id) {
            self.ripe.remove(at);
            return true;
        }
        let Some(len) =
            self.heap.iter().find(|Reverse((_, found, _))| *found == id).map(|Reverse((.., at))| at.payload_len)
        else {
            return false;
        };
        self.bytes -= u64::from(len);
        self.heap.retain(|Reverse((_, found, _))| *found != id);
        true
    }

    pub(super) fn ripe(&self) -> Option<(u64, At)> {
        self.ripe.front().copied()
    }

    pub(super) fn pop_ripe(&mut self) {
        self.ripe.pop_front();
    }
}
