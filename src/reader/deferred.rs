//! Items that are not due yet: where they are, by the time at which they may be delivered.
//!
//! They stay in the journal where they were put, so that nothing moves and no second copy is to be told from the first; the holes
//! of [`crate::journal::holes`] give back what lies around them. Kept here is what it takes to find one again, by its time and
//! by its id: 32 bytes an item, and up to 18 for the id.
//!
//! Who is taken out of its turn leaves its entry behind, which is thrown away when it comes up, or with all others of its kind
//! once they are the half: so that one of a million costs no look at the others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;

use super::{IdHasher, Rules};

/// Where a deferred item's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    pub(crate) payload_len: u32,
}

type Ids = HashSet<u64, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Default)]
pub(crate) struct Deferred {
    /// Due time, id, place; the id decides among equals. The first is never stale.
    heap: BinaryHeap<Reverse<(u64, u64, At)>>,
    /// Who is kept back.
    kept: Ids,
    /// Who was taken out and has an entry in the heap all the same; nobody who is kept back.
    stale: Ids,
    bytes: u64,
    /// Those whose time has come, in its order; they wait, and count as waiting.
    ripe: VecDeque<(u64, At)>,
}

impl Deferred {
    pub(super) fn push(&mut self, due_ms: u64, id: u64, at: At) {
        if self.stale.contains(&id) {
            // Given back with another time: of two entries nobody could tell which one counts.
            self.purge();
        }
        self.bytes += u64::from(at.payload_len);
        self.kept.insert(id);
        self.heap.push(Reverse((due_ms, id, at)));
    }

    /// Neither kept back nor ripe: none at all.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty() && self.ripe.is_empty()
    }

    /// Items that are not due, as far as anybody has looked.
    pub(super) fn len(&self) -> u64 {
        self.kept.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_ms, ..))| *due_ms)
    }

    /// Whether an item's time has come.
    #[inline]
    pub(super) fn has_ripe(&mut self, rules: Rules<'_>) -> bool {
        if !self.heap.is_empty() {
            // Only where something is deferred: the exact clock costs as much as a third of a get.
            self.ripen(rules.exact_ms());
        }
        !self.ripe.is_empty()
    }

    fn ripen(&mut self, now_ms: u64) {
        while let Some(Reverse((due_ms, id, at))) = self.heap.peek().copied()
            && due_ms <= now_ms
        {
            self.heap.pop();
            self.kept.remove(&id);
            self.drop_stale();
            self.bytes -= u64::from(at.payload_len);
            self.ripe.push_back((id, at));
        }
    }

    /// Takes one out, of so many bytes. Looks through those whose time has come.
    pub(super) fn remove(&mut self, id: u64, payload_len: u32) -> bool {
        if !self.kept.remove(&id) {
            let found = self.ripe.iter().position(|(ripe, _)| *ripe == id);
            return found.and_then(|at| self.ripe.remove(at)).is_some();
        }
        self.bytes -= u64::from(payload_len);
        self.stale.insert(id);
        self.drop_stale();
        true
    }

    /// Those that come first; all, once they are the half.
    #[inline]
    fn drop_stale(&mut self) {
        if !self.stale.is_empty() && 2 * self.stale.len() >= self.heap.len() {
            self.purge();
        }
        while !self.stale.is_empty()
            && let Some(Reverse((_, id, _))) = self.heap.peek()
            && self.stale.remove(id)
        {
            self.heap.pop();
        }
    }

    fn purge(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        self.heap.retain(|Reverse((_, id, _))| !stale.contains(id));
    }

    pub(super) fn ripe(&self) -> Option<(u64, At)> {
        self.ripe.front().copied()
    }

    pub(super) fn pop_ripe(&mut self) {
        self.ripe.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// After this time, and with this id or the one after all others.
        Push(u64, Option<u64>),
        Remove(u64),
        /// So much later, this many are taken.
        Take(u64, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..50u64).prop_map(|after| Step::Push(after, None)),
            1 => (0..50u64, 0..40u64).prop_map(|(after, id)| Step::Push(after, Some(id))),
            4 => (0..40u64).prop_map(Step::Remove),
            2 => (0..20u64, 0..4usize).prop_map(|(later, count)| Step::Take(later, count)),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn at(id: u64) -> At {
        At { segment: 1, offset: id as u32 * 8, payload_len: id as u32 + 1 }
    }

    proptest! {
        #[test]
        fn comes_by_due_time_and_id_whoever_was_taken_out(steps in steps()) {
            let mut deferred = Deferred::default();
            // Due time by id; and those that are ripe, in their order.
            let (mut kept, mut ripe) = (BTreeMap::<u64, u64>::new(), Vec::new());
            let (mut now, mut next) = (0, 0);
            for step in steps {
                match step {
                    Step::Push(after, id) => {
                        let id = id.filter(|id| *id < next).unwrap_or(next);
                        if kept.contains_key(&id) || ripe.contains(&id) {
                            continue;
                        }
                        next = next.max(id + 1);
                        kept.insert(id, now + after);
                        deferred.push(now + after, id, at(id));
                    }
                    Step::Remove(id) => {
                        let is_there = kept.remove(&id).is_some() || ripe.contains(&id);
                        ripe.retain(|ripe| *ripe != id);
                        prop_assert_eq!(deferred.remove(id, at(id).payload_len), is_there);
                    }
                    Step::Take(later, count) => {
                        now += later;
                        let mut due: Vec<(u64, u64)> =
                            kept.iter().filter(|(_, due)| **due <= now).map(|(id, due)| (*due, *id)).collect();
                        due.sort_unstable();
                        kept.retain(|_, due| *due > now);
                        ripe.extend(due.iter().map(|(_, id)| *id));
                        deferred.ripen(now);
                        for _ in 0..count.min(ripe.len()) {
                            let id = ripe.remove(0);
                            prop_assert_eq!(deferred.ripe(), Some((id, at(id))));
                            deferred.pop_ripe();
                        }
                    }
                }
                prop_assert_eq!(deferred.len(), kept.len() as u64);
                prop_assert_eq!(deferred.bytes(), kept.keys().map(|id| u64::from(at(*id).payload_len)).sum::<u64>());
                prop_assert_eq!(deferred.next_due_ms(), kept.values().copied().min());
                prop_assert_eq!(deferred.is_empty(), kept.is_empty() && ripe.is_empty());
                prop_assert!(deferred.stale.len() <= deferred.kept.len(), "entries of the gone are given up");
            }
        }
    }
}
