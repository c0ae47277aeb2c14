//! What makes everything so far durable, and what says so on the disk.

use std::io;
use std::sync::Arc;

use super::{Entry, Journal, file_name, ids_after_loss};
use crate::format::frame::{self, Frame, Kind};
use crate::planted::{self, Bug};
use crate::sync::Ordering;

/// A frame without payload and extension.
pub(super) const CHECKPOINT_BYTES: u32 = (frame::HEADER_BYTES as u32).next_multiple_of(frame::ALIGN);

impl Journal {
    /// Makes everything appended so far durable, and with `marks` also every lane; returns the last id covered.
    ///
    /// The order is what recovery relies on: sealed segments from the lowest up, the tail, the names, then the final names.
    pub(crate) fn sync(&self, marks: bool) -> io::Result<u64> {
        let synced = self.sync_all(marks);
        if synced.is_err() {
            // Some systems take back what they could not write (btrfs), so the next open may not find the ids that were told.
            // If this fails too, nothing was promised that it breaks.
            let next_id = self.tail.lock().next_id;
            let _ = self.update_meta(|meta| meta.next_id = meta.next_id.max(ids_after_loss(next_id)));
        }
        synced
    }

    pub(super) fn sync_all(&self, marks: bool) -> io::Result<u64> {
        let (segment, end, unsynced, bytes, appended) = {
            let tail = self.tail.lock();
            (
                tail.segment.clone(),
                tail.end,
                tail.unsynced.clone(),
                self.appended_bytes.load(Ordering::Relaxed),
                tail.next_id - 1,
            )
        };
        let Some(dir) = &self.context.dir else {
            return Ok(appended);
        };
        let mut covered = Vec::with_capacity(unsynced.len() + 1);
        for number in unsynced.iter().filter(|_| !planted::is(Bug::SyncTailOnly)) {
            let is_unproven = self.unproven_from(*number).is_some();
            let end = self.with_segment(*number, |sealed| {
                if is_unproven {
                    sealed.dirty_again()?;
                }
                sealed.sync()?;
                Ok(sealed.end())
            })?;
            covered.extend(end.map(|end| (*number, end, true)));
        }
        if let Some(segment) = &segment {
            segment.sync()?;
            covered.push((segment.number, end, false));
        }
        let nameless: Vec<u64> = {
            let table = self.table.lock();
            covered.iter().map(|(n, ..)| *n).filter(|n| table.get(n).is_some_and(|e| !e.named)).collect()
        };
        if !nameless.is_empty() && !planted::is(Bug::SkipDirSync) {
            self.context.disk.sync_dir(dir)?;
        }
        for number in nameless {
            let mut table = self.table.lock();
            if let Some(entry) = table.get_mut(&number) {
                let renamed =
                    self.context.disk.rename(&dir.join(file_name(number, false)), &dir.join(file_name(number, true)));
                // Only evidence for recovery hangs on the final name, so a failure is no failed sync.
                entry.named = renamed.is_ok();
            }
        }
        if marks {
            for number in self.with_unsynced_marks() {
                let is_unproven = self.take_unproven_marks(number);
                self.with_segment(number, |segment| {
                    if is_unproven && !planted::is(Bug::MarksOfOthers) {
                        segment.dirty_marks_again()?;
                    }
                    segment.sync()
                })?;
            }
        }
        {
            let mut tail = self.tail.lock();
            tail.unsynced.retain(|number| !unsynced.contains(number));
            let mut table = self.table.lock();
            for (number, to, sealed) in covered {
                let Some(entry) = table.get_mut(&number) else { continue };
                match &entry.open {
                    Some(segment) => _ = segment.synced_to.fetch_max(to, Ordering::AcqRel),
                    None => entry.synced_to = entry.synced_to.max(to),
                }
                if sealed {
                    entry.unproven_from = None;
                }
            }
        }
        self.durable_bytes.fetch_max(bytes, Ordering::Relaxed);
        Ok(appended)
    }

    pub(super) fn unproven_from(&self, number: u64) -> Option<u32> {
        self.table.lock().get(&number).and_then(|entry| entry.unproven_from)
    }

    pub(super) fn with_unsynced_marks(&self) -> Vec<u64> {
        let is_dirty = |entry: &Entry| match &entry.open {
            Some(segment) => segment.marks_unsynced.load(Ordering::Acquire),
            None => entry.marks_unsynced,
        };
        let table = self.table.lock();
        table.iter().filter(|(_, entry)| is_dirty(entry) && !entry.cleared).map(|(number, _)| *number).collect()
    }

    /// Whether its marks are an earlier process's and must be stored again to be synced.
    pub(super) fn take_unproven_marks(&self, number: u64) -> bool {
        self.table.lock().get_mut(&number).is_some_and(|entry| std::mem::take(&mut entry.marks_unproven))
    }

    /// Whether a sync would have anything to do.
    pub(crate) fn is_unsynced(&self) -> bool {
        if self.context.dir.is_none() {
            return false;
        }
        if self.commit.durable() < self.appended() || !self.tail.lock().unsynced.is_empty() {
            return true;
        }
        self.table.lock().values().any(|entry| match &entry.open {
            Some(segment) => segment.marks_unsynced.load(Ordering::Acquire),
            None => entry.marks_unsynced,
        })
    }

    /// Whether the journal is as a close in good order left it: nothing was appended, armed or found unproven since.
    pub(crate) fn is_untouched(&self) -> bool {
        if !self.meta.lock().meta.clean {
            return false;
        }
        let tail = self.tail.lock();
        tail.segment.is_none() && tail.spare.is_none() && self.appended_bytes.load(Ordering::Relaxed) == 0
    }

    /// After a while without puts: a frame that says that everything is durable, so that damage to the last synced items
    /// is told from an interrupted write.
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        let mut tail = self.tail.lock();
        if tail.proven || self.commit.durable() < tail.next_id - 1 || self.commit.failure().is_some() {
            return Ok(());
        }
        let _ = self.wake_tail(&mut tail);
        let Some(segment) = tail.segment.clone() else {
            return Ok(());
        };
        let synced_to = segment.synced_to.load(Ordering::Acquire);
        let frame = Frame {
            kind: Kind::Checkpoint,
            payload_len: 0,
            payload_crc: frame::payload_crc(segment.salt, &[]),
            ordinal: tail.ordinal,
            time_delta: u32::try_from(tail.last_ms.saturating_sub(segment.base_ms)).unwrap_or(u32::MAX),
            synced_to,
            id: None,
            expiry_ms: None,
            user_flags: 0,
            starts_before: 0,
            origin: None,
            noted: false,
            due_ms: 0,
            only: None,
        };
        if synced_to < tail.end || tail.end + frame.total_len() > tail.limit {
            return Ok(());
        }
        let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
        let head_len = frame::encode(&frame, segment.salt, tail.end, &mut head);
        segment.write_frame(tail.end, &head[..head_len], &[])?;
        tail.end += frame.total_len();
        tail.proven = true;
        segment.publish(tail.end, tail.ordinal);
        Ok(())
    }

    /// Leaves the journal so that the next open needs no scan: everything durable, the last segment sealed.
    pub(crate) fn seal_clean(&self) -> io::Result<()> {
        if self.context.dir.is_none() || self.context.read_only {
            return Ok(());
        }
        self.sync_cleared()?;
        let last = {
            let mut tail = self.tail.lock();
            if let Some(spare) = tail.spare.take() {
                self.context.pool.put_back(spare);
            }
            self.discard_empty(&mut tail);
            match &tail.segment {
                Some(segment) => Some((Arc::clone(segment), tail.extent(), tail.last_ms)),
                None => None,
            }
        };
        let last = match last {
            Some(last) => Some(last),
            None => {
                let last = {
                    let table = self.table.lock();
                    table.iter().next_back().map(|(number, entry)| (*number, entry.extent, entry.last_ms))
                };
                match last {
                    Some((number, extent, last_ms)) => self.segment(number)?.map(|segment| (segment, extent, last_ms)),
                    None => None,
                }
            }
        };
        let mut sealed = None;
        if let Some((segment, extent, last_ms)) = last {
            segment.write_seal(extent, last_ms, true)?;
            segment.sync()?;
            sealed = Some((segment.number, extent.end));
        }
        let (next_id, last_number) = {
            let tail = self.tail.lock();
            (tail.next_id, tail.newest())
        };
        self.tail.lock().marked = false;
        self.meta.lock().update(|meta| {
            meta.clean = true;
            meta.next_id = meta.next_id.max(next_id);
            (meta.segment_last, meta.last_end) = sealed.unwrap_or((last_number, 0));
        })
    }
}
