//! One item into several journals, or into none of them.

use super::append::{frame_bytes, write_item};
use super::{AppendError, Journal, NewItem, Tail};
use crate::format::frame::Kind;

/// A journal, its end, and what it is to store.
pub(crate) type Target<'a, 'b> = (&'a Journal, &'a mut Tail, NewItem<'b>);

impl Journal {
    /// Appends to each journal, or says which one refuses, and then none of them has changed. A crash on the way may leave the
    /// item in some of them: what stands behind a tail is found by the next open. Returns the ids.
    pub(crate) fn append_to_all(targets: &mut [Target<'_, '_>], put_ms: u64) -> Result<Vec<u64>, (usize, AppendError)> {
        // Whatever needs room comes first: a roll that turns out to have been for nothing leaves no trace.
        let mut writes = Vec::with_capacity(targets.len());
        for (index, (journal, tail, item)) in targets.iter_mut().enumerate() {
            let room = journal.make_room(tail, 1, frame_bytes(item), put_ms);
            writes.push(room.map_err(|error| (index, error))?);
        }
        for (index, (write, (_, tail, item))) in writes.iter_mut().zip(targets.iter()).enumerate() {
            let kind = if item.due_ms == 0 { Kind::Item } else { Kind::Deferred };
            let written = match tail.segment.as_deref() {
                Some(segment) => write_item(segment, write, *item, kind, put_ms, None),
                None => Err(AppendError::Exhausted),
            };
            match written {
                Ok(()) => {}
                Err(error) => {
                    // What stands behind the tails must not be found by the next open.
                    let mut told = (index, error);
                    for (index, (journal, tail, _)) in targets.iter_mut().enumerate().take(index + 1) {
                        let ended = journal.abandon(tail, AppendError::Exhausted);
                        if let AppendError::Undetermined(_) = ended {
                            told = (index, ended);
                        }
                    }
                    return Err(told);
                }
            }
        }
        for (write, (journal, tail, _)) in writes.iter().zip(targets) {
            journal.advance(tail, *write);
        }
        Ok(writes.iter().map(|write| write.next_id - 1).collect())
    }
}
