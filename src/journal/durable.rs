//! What makes everything so far durable, and what says so on the disk.

use std::io;
use std::sync::Arc;

use super::append::raise_reach;
use super::segment::Segment;
use super::{Entry, Journal, Tail, file_name, ids_after_loss};
use crate::format::frame::{self, Frame, Kind};
use crate::planted::{self, Bug};
use crate::sync::Ordering;

/// A frame without payload and extension.
pub(super) const CHECKPOINT_BYTES: u32 = (frame::HEADER_BYTES as u32).next_multiple_of(frame::ALIGN);

/// As much as the largest sector lacks, where a frame does not fit into the rest of the one before it.
static ZEROS: [u8; 4096] = [0; 4096];

/// A segment that a sync has made durable, up to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered {
    pub(super) number: u64,
    pub(super) end: u32,
    pub(super) sealed: bool,
}

impl Journal {
    /// Makes everything appended so far durable, and with `marks` also every lane; returns the last id covered.
    ///
    /// The order is what recovery relies on: sealed segments from the lowest up, the tail, the names, then the final names.
    pub(crate) fn sync(&self, marks: bool) -> io::Result<u64> {
        self.told_of_loss(self.sync_all(marks))
    }

    /// What a sync came to; of one that failed the header tells, so that no id that was told is given out again.
    pub(super) fn told_of_loss(&self, synced: io::Result<u64>) -> io::Result<u64> {
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
            let mut tail = self.tail.lock();
            self.fill_sector(&mut tail)?;
            (
                tail.segment.clone(),
                tail.end,
                tail.unsynced.clone(),
                self.appended_bytes.load(Ordering::Relaxed),
                tail.next_id - 1,
            )
        };
        if self.context.dir.is_none() {
            return Ok(appended);
        }
        let mut covered = Vec::with_capacity(unsynced.len() + 1);
        for number in unsynced.iter().filter(|_| !planted::is(Bug::SyncTailOnly)) {
            covered.extend(self.sync_sealed(*number)?);
        }
        if let Some(segment) = &segment {
            segment.sync()?;
            covered.push(Covered { number: segment.number, end, sealed: false });
        }
        self.give_names(&covered)?;
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
        self.note_covered(&unsynced, &covered);
        self.durable_bytes.fetch_max(bytes, Ordering::Relaxed);
        Ok(appended)
    }

    /// Makes a segment durable that is not written to any more; `None`: it is gone.
    pub(super) fn sync_sealed(&self, number: u64) -> io::Result<Option<Covered>> {
        let (is_unproven, thinned) = {
            let table = self.table.lock();
            let entry = table.get(&number);
            let thinned = entry.filter(|entry| entry.thinned && !entry.cleared);
            (
                entry.is_some_and(|entry| entry.unproven_from.is_some()),
                thinned.map(|entry| (entry.extent, entry.last_ms)),
            )
        };
        let end = self.with_segment(number, |sealed| {
            if is_unproven {
                sealed.dirty_again()?;
            }
            sealed.sync()?;
            if let Some((extent, last_ms)) = thinned.filter(|_| !planted::is(Bug::ThinWithoutSeal)) {
                // Only now: the seal vouches for the holes, and so for the marks, the readers' too.
                if !planted::is(Bug::PunchBeforeReaderSync) {
                    self.readers().iter().try_for_each(|reader| reader.sync(&self.commit))?;
                }
                sealed.write_seal(extent, last_ms, true)?;
                if let Err(error) = sealed.sync() {
                    sealed.revoke_seal()?;
                    return Err(error);
                }
            }
            Ok(sealed.end())
        })?;
        if thinned.is_some()
            && let Some(entry) = self.table.lock().get_mut(&number)
        {
            entry.thinned = false;
        }
        Ok(end.map(|end| Covered { number, end, sealed: true }))
    }

    /// Gives the final names, which say that the device has what is older, too.
    pub(super) fn give_names(&self, covered: &[Covered]) -> io::Result<()> {
        let Some(dir) = &self.context.dir else { return Ok(()) };
        let nameless: Vec<u64> = {
            let table = self.table.lock();
            covered.iter().map(|c| c.number).filter(|n| table.get(n).is_some_and(|e| !e.named)).collect()
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
        Ok(())
    }

    /// Notes what the device has: all that was in `unsynced`, as far as it is still there.
    pub(super) fn note_covered(&self, unsynced: &[u64], covered: &[Covered]) {
        let mut tail = self.tail.lock();
        tail.unsynced.retain(|number| !unsynced.contains(number));
        let mut table = self.table.lock();
        for Covered { number, end, sealed } in covered {
            let Some(entry) = table.get_mut(number) else { continue };
            match &entry.open {
                Some(segment) => _ = segment.synced_to.fetch_max(*end, Ordering::AcqRel),
                None => entry.synced_to = entry.synced_to.max(*end),
            }
            if *sealed {
                entry.unproven_from = None;
            }
        }
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
        if segment.synced_to.load(Ordering::Acquire) < tail.end || tail.end + CHECKPOINT_BYTES > tail.limit {
            return Ok(());
        }
        write_checkpoint(&mut tail, &segment, &[])?;
        tail.proven = true;
        Ok(())
    }

    /// Ends what the next sync covers where a sector ends, so that none with a durable item is ever written again
    /// ([`pad_to`](crate::QueueOptions::pad_to)). Where that fails the segment ends instead, and the next put begins another.
    fn fill_sector(&self, tail: &mut Tail) -> io::Result<()> {
        let Some(segment) = tail.segment.clone().filter(|_| tail.pad_to != 0 && !planted::is(Bug::SectorNotFilled))
        else {
            return Ok(());
        };
        let mut gap = tail.end.next_multiple_of(tail.pad_to) - tail.end;
        if gap == 0 || segment.synced_to.load(Ordering::Acquire) >= tail.end {
            return Ok(());
        }
        if gap < CHECKPOINT_BYTES {
            gap += tail.pad_to;
        }
        // The limit is a multiple too: what does not end before it leaves less than a frame needs.
        if tail.end + gap > tail.limit {
            return Ok(());
        }
        let filled = raise_reach(&segment, tail.end, gap.into(), &mut tail.reach)
            .and_then(|()| write_checkpoint(tail, &segment, &ZEROS[..(gap - CHECKPOINT_BYTES) as usize]));
        match filled {
            Ok(()) => {
                let appended = self.appended_bytes.load(Ordering::Relaxed);
                self.appended_bytes.store(appended + u64::from(gap), Ordering::Relaxed);
                Ok(())
            }
            Err(_) => self.seal_tail(tail),
        }
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

/// Appends a frame without an item, which says how far the device has everything; `payload` only takes room.
fn write_checkpoint(tail: &mut Tail, segment: &Segment, payload: &[u8]) -> io::Result<()> {
    let frame = Frame {
        kind: Kind::Checkpoint,
        payload_len: payload.len() as u32,
        payload_crc: frame::payload_crc(segment.salt, payload),
        ordinal: tail.ordinal,
        time_delta: u32::try_from(tail.last_ms.saturating_sub(segment.base_ms)).unwrap_or(u32::MAX),
        synced_to: segment.synced_to.load(Ordering::Acquire),
        id: None,
        expiry_ms: None,
        user_flags: 0,
        starts_before: 0,
        origin: None,
        noted: false,
        due_ms: 0,
        only: None,
    };
    let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let head_len = frame::encode(&frame, segment.salt, tail.end, &mut head);
    segment.write_frame(tail.end, &head[..head_len], payload)?;
    tail.end += frame.total_len();
    segment.publish(tail.end, tail.ordinal);
    Ok(())
}
