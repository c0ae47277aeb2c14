//! How segments leave: all of whose items are done, and those of a cleared queue.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::segment::Segment;
use super::{AppendError, Entry, Journal, Tail, file_name};
use crate::planted::{self, Bug};
use crate::sync::{Ordering, fence};

/// A segment to be freed.
struct Spent {
    /// The number of the one before it.
    after: u64,
    number: u64,
    len: u32,
}

impl Journal {
    /// The segments whose items are all done, or cleared.
    pub(crate) fn spent(&self) -> BTreeSet<u64> {
        let readers = self.readers();
        let table = self.table.lock();
        let spent = table.iter().filter(|(_, entry)| entry.is_spent());
        spent
            .filter(|(number, entry)| self.is_read_by_all(&readers, **number, entry))
            .map(|(number, _)| *number)
            .collect()
    }

    /// Whether a segment holds no item from the id `id` on.
    pub(crate) fn ends_before(&self, number: u64, id: u64) -> bool {
        self.table.lock().get(&number).is_none_or(|entry| entry.ids_end() <= id)
    }

    /// Frees those segments of `listed` whose items are all done, wherever they lie. Returns whether one had to be left
    /// because somebody holds it.
    pub(crate) fn free_spent(&self, listed: &BTreeSet<u64>) -> io::Result<bool> {
        let mut left = false;
        // From the look on: a reader that begins with the oldest item must not count what is about to leave.
        let _giving_back = self.giving_back.read();
        let readers = self.readers();
        let spent: Vec<Spent> = {
            let table = self.table.lock();
            let spent = table.iter().filter(|(number, entry)| {
                if !listed.contains(*number) || !entry.is_spent() || !self.is_read_by_all(&readers, **number, entry) {
                    return false;
                }
                let held = entry.is_held();
                left |= held;
                !held
            });
            spent
                .map(|(number, entry)| Spent {
                    after: entry.header.previous.map_or(0, |previous| previous.number),
                    number: *number,
                    len: entry.header.segment_bytes,
                })
                .collect()
        };
        if spent.is_empty() || self.context.read_only {
            return Ok(left);
        }
        let next_id = self.tail.lock().next_id;
        let mut freed = Vec::new();
        self.meta.lock().update(|meta| {
            meta.next_id = meta.next_id.max(next_id);
            // Numbers between a segment and the one that it names as its predecessor are explained by its header alone.
            freed.extend(spent.into_iter().filter(|s| meta.add_freed_run(s.number.min(s.after + 1), s.number)));
        })?;
        self.tail.lock().unsynced.retain(|number| !freed.iter().any(|freed| freed.number == *number));
        let mut first_error = Ok(());
        let mut gone = Vec::with_capacity(freed.len());
        let _giving = self.giving.lock();
        for Spent { number, len, .. } in freed {
            // The header took its time. Meanwhile a sync may have got hold of the segment, which then must not be used for
            // something else, or given it its final name; or somebody else may have freed it.
            let entry = {
                let mut table = self.table.lock();
                if table.get(&number).is_some_and(Entry::is_held) {
                    left = true;
                    continue;
                }
                table.remove(&number)
            };
            gone.push(number);
            if let (Some(entry), Some(dir)) = (entry, &self.context.dir) {
                self.context.pool.add_disk_bytes(entry.holes.bytes.into());
                let whole = !entry.may_have_holes;
                let given = self.context.pool.give(&dir.join(file_name(number, entry.named)), len, whole);
                // The header says that it is gone; the next open removes what is left of it.
                first_error = first_error.and(given);
            }
        }
        self.forget_lanes(&gone);
        first_error.map(|()| left)
    }

    /// Clears everything appended so far: one small durable write, whatever the number of items. The tail lock keeps puts
    /// out.
    pub(crate) fn clear(&self, tail: &mut Tail) -> io::Result<()> {
        self.wake_tail(tail).map_err(|error| match error {
            AppendError::Io { error, .. } | AppendError::NoSpace(error) | AppendError::TooManyFiles(error) => error,
            _ => io::ErrorKind::Other.into(),
        })?;
        let clear_id = tail.next_id - 1;
        self.meta.lock().update(|meta| {
            meta.clear_id = if planted::is(Bug::ClearInMemory) { meta.clear_id } else { clear_id };
            meta.next_id = meta.next_id.max(clear_id + 1);
        })?;
        self.discard_empty(tail);
        let _ = self.seal_tail(tail);
        tail.unsynced.clear();
        for entry in self.table.lock().values_mut() {
            entry.cleared = true;
        }
        Ok(())
    }

    /// Waits until nobody holds a segment but the journal itself. No take may begin any more; one that began before still marks
    /// its item, which must not happen once somebody else has the files.
    pub(crate) fn await_takers(&self) {
        let is_taken = || {
            let tail = self.tail.lock();
            let own = tail.segment.as_ref().map(|segment| segment.number);
            self.table
                .lock()
                .values()
                .filter_map(|entry| entry.open.as_ref())
                .any(|segment| Arc::strong_count(segment) > 1 + usize::from(own == Some(segment.number)))
        };
        while is_taken() {
            crate::disk::give_way();
        }
        // Pairs with the drop of what was held.
        fence(Ordering::Acquire);
    }

    /// Makes durable what was cleared and is still there, since an archive has not taken it or a move needs it: the header is
    /// about to say that it is.
    pub(super) fn sync_cleared(&self) -> io::Result<()> {
        let cleared: Vec<u64> = {
            let table = self.table.lock();
            table.iter().filter(|(_, entry)| entry.cleared).map(|(number, _)| *number).collect()
        };
        for number in &cleared {
            self.with_segment(*number, Segment::sync)?;
        }
        match &self.context.dir {
            Some(dir) if !cleared.is_empty() => self.context.disk.sync_dir(dir),
            _ => Ok(()),
        }
    }
}
