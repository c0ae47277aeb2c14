//! What becomes of a segment whose items are all done, where somebody wants to keep it: [`RetiredSegment`].

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::ItemId;
use crate::item::Item;
use crate::journal::segment::{FRAMES_AT, Segment};
use crate::queue::core::Core;
use crate::queue::take::item_of;
use crate::sync::Ordering;

/// The callback of [`QueueSetBuilder::archive`](crate::QueueSetBuilder::archive).
pub(crate) type Archive = Arc<dyn Fn(&RetiredSegment<'_>) -> io::Result<()> + Send + Sync>;

/// A segment file whose items are all done, on its way to be used again or removed.
///
/// See [`QueueSetBuilder::archive`](crate::QueueSetBuilder::archive).
pub struct RetiredSegment<'a> {
    core: &'a Core,
    segment: Arc<Segment>,
    path: PathBuf,
}

impl RetiredSegment<'_> {
    /// The queue's name.
    pub fn queue(&self) -> &str {
        &self.core.name
    }

    /// The file. It may be copied, but not linked or renamed: it goes on being used.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number, which rises from segment to segment of a queue.
    pub fn number(&self) -> u64 {
        self.segment.number
    }

    /// How many items it holds.
    pub fn len(&self) -> u64 {
        self.segment.count().into()
    }

    /// Whether it holds no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its items in the order of their puts: all of them, also such as expired, were dropped or cleared. `attempts` is 0.
    ///
    /// An item whose bytes are damaged is an error of kind [`io::ErrorKind::InvalidData`]; the next one follows.
    pub fn items(&self) -> impl Iterator<Item = io::Result<Item>> + '_ {
        let mut offset = FRAMES_AT;
        let end = self.segment.end();
        std::iter::from_fn(move || {
            while offset < end {
                let frame = match self.segment.frame_at(offset, end) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => {
                        let damaged = offset;
                        offset = self.next_frame(offset, end);
                        return Some(Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("damaged at offset {damaged}"),
                        )));
                    }
                    Err(error) => {
                        offset = end;
                        return Some(Err(error));
                    }
                };
                let place = self.segment.place(offset, &frame);
                offset += frame.total_len();
                if !frame.kind.is_item() {
                    continue;
                }
                return Some(match self.core.journal.read(&self.segment, &place) {
                    Ok(Some(payload)) => Ok(item_of(&self.segment, &place, payload, 0)),
                    Ok(None) => {
                        let what = format!("item {} is damaged", ItemId(place.id));
                        Err(io::Error::new(io::ErrorKind::InvalidData, what))
                    }
                    Err(error) => Err(error),
                });
            }
            None
        })
    }

    /// Where the next frame begins behind a damaged one.
    fn next_frame(&self, damaged: u32, end: u32) -> u32 {
        let mut offset = damaged + 8;
        while offset < end && !matches!(self.segment.frame_at(offset, end), Ok(Some(_))) {
            offset += 8;
        }
        offset
    }
}

impl fmt::Debug for RetiredSegment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetiredSegment").field("path", &self.path).field("items", &self.len()).finish_non_exhaustive()
    }
}

impl Core {
    /// Shows those segments to who wants to keep them, each once, and takes out of the list what could not be kept now.
    pub(super) fn archive(&self, spent: &mut BTreeSet<u64>) {
        let Some(archive) = &self.shared.archive else {
            return;
        };
        // Another thread is at it, or this one is in the callback: whatever is left is looked at again.
        let Some(mut archived) = self.archived.try_lock() else {
            spent.clear();
            self.ring_later();
            return;
        };
        // Numbers are not used twice, so the ones that are gone can be forgotten.
        archived.retain(|number| spent.contains(number));
        spent.retain(|&number| {
            let kept = archived.contains(&number) || self.show_retired(archive, number);
            if kept {
                archived.insert(number);
            } else {
                self.ring_later();
            }
            kept
        });
    }

    /// Whether any of those segments must stay for longer than somebody reads in it: for an archive that does not take it yet,
    /// or until the next open.
    pub(super) fn keeps(&self, listed: &BTreeSet<u64>) -> bool {
        let left: BTreeSet<u64> = self.journal.spent().intersection(listed).copied().collect();
        let unpaid = self.unpaid.load(Ordering::Acquire);
        let is_shown = |number: &u64| match (&self.shared.archive, self.archived.try_lock()) {
            (None, _) => true,
            (_, Some(archived)) => archived.contains(number),
            (_, None) => false,
        };
        left.iter().any(|number| *number <= unpaid || !is_shown(number))
    }

    fn show_retired(&self, archive: &Archive, number: u64) -> bool {
        let (Ok(Some(segment)), Some(path)) = (self.journal.segment(number), self.journal.path_of(number)) else {
            return false;
        };
        let retired = RetiredSegment { core: self, segment, path };
        // Not ours to trust: a panic must not end the set's upkeep.
        matches!(catch_unwind(AssertUnwindSafe(|| archive(&retired))), Ok(Ok(())))
    }
}
