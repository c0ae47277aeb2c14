//! Segments that nobody uses are closed, and opened again for who needs them.

use std::io;
use std::sync::{Arc, Weak};

use super::append::refused;
use super::files::{Keeper, Way};
use super::segment::Segment;
use super::{AppendError, Entry, Journal, Tail, file_name};
use crate::planted::{self, Bug};
use crate::sync::Ordering;

/// What must be done before a segment may be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unrest {
    None,
    /// All its items are done.
    Spent,
    /// The device may not have all of it.
    Unsynced,
}

impl Journal {
    /// The open segment of this number; `None` if it is gone.
    pub(crate) fn segment(&self, number: u64) -> io::Result<Option<Arc<Segment>>> {
        match self.table.lock().get(&number) {
            Some(Entry { open: Some(segment), .. }) => return Ok(Some(Arc::clone(segment))),
            Some(_) => {}
            None => return Ok(None),
        }
        let files = &self.context.pool.files;
        files.make_room();
        let open = || self.table.lock().get_mut(&number).map(|entry| self.open_entry(entry)).transpose();
        let opened = match open() {
            Err(error) if crate::disk::is_too_many_files(&error) => {
                files.close_half(Way::AsIs);
                open()
            }
            opened => opened,
        }?;
        if let Some(segment) = &opened {
            self.enter(segment);
        }
        Ok(opened)
    }

    /// Whether the set holds as many segments open as it may, or more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.context.pool.files.is_full()
    }

    /// Lets the set close a segment that was opened when nobody uses it.
    pub(super) fn enter(&self, segment: &Segment) {
        if let (Some(keeper), Some(opening)) = (self.keeper.get(), segment.opening()) {
            self.context.pool.files.enter(keeper, segment.number, opening);
        }
    }

    /// Who closes its segments, told once, before any is open.
    pub(crate) fn kept_by(&self, keeper: Weak<dyn Keeper>) {
        debug_assert!(self.table.lock().values().all(|entry| entry.open.is_none()), "nothing is open yet");
        let _ = self.keeper.set(keeper);
    }

    /// See [`Keeper::usage`].
    pub(crate) fn usage(&self, number: u64, opening: u64) -> Option<u64> {
        let table = self.table.lock();
        let segment = table.get(&number)?.open.as_ref()?;
        (segment.opening() == Some(opening)).then(|| segment.usage())
    }

    /// Whether a sync is needed before a segment may be closed, and whether all its items are done.
    pub(crate) fn keeps_open(&self, number: u64) -> Unrest {
        let tail = self.tail.lock();
        let table = self.table.lock();
        let Some((entry, segment)) = table.get(&number).and_then(|entry| Some((entry, entry.open.as_ref()?))) else {
            return Unrest::None;
        };
        if entry.is_spent() {
            return Unrest::Spent;
        }
        match tail.is_durable(entry, segment) {
            true => Unrest::None,
            false => Unrest::Unsynced,
        }
    }

    /// Closes a segment that is durable and that nobody uses, be it the one that is appended to. `false`: it is still open.
    ///
    /// The tail's lock is only tried, since the caller may hold any other.
    pub(crate) fn rest(&self, number: u64) -> bool {
        let Some(mut tail) = self.tail.try_lock() else { return false };
        let mut table = self.table.lock();
        let Some(entry) = table.get_mut(&number) else { return true };
        let Some(segment) = &entry.open else { return true };
        let is_tail = tail.segment.as_ref().is_some_and(|own| own.number == number);
        let users = Arc::strong_count(segment) - 1 - usize::from(is_tail);
        if users > 0 || !tail.is_durable(entry, segment) {
            return false;
        }
        if is_tail {
            if tail.ordinal == 0 || !entry.named {
                return false;
            }
            (entry.extent, entry.last_ms) = (tail.extent(), tail.last_ms);
            tail.segment = None;
            tail.resting = Some(number);
            tail.spare_asked = false;
            if let Some(spare) = tail.spare.take() {
                self.context.pool.put_back(spare);
            }
        }
        entry.done = segment.done();
        entry.synced_to = segment.synced_to.load(Ordering::Acquire);
        entry.marks_unsynced = false;
        entry.open = None;
        true
    }

    /// Opens the last segment again, if it was closed because nobody used it. `false`: it was not.
    #[cold]
    pub(super) fn wake_tail(&self, tail: &mut Tail) -> Result<bool, AppendError> {
        let Some(number) = tail.resting else { return Ok(false) };
        tail.segment = self.segment(number).map_err(|error| refused(number, error))?;
        tail.resting = None;
        tail.crowded |= self.is_crowded();
        Ok(tail.segment.is_some())
    }

    pub(super) fn open_entry(&self, entry: &mut Entry) -> io::Result<Arc<Segment>> {
        if let Some(segment) = &entry.open {
            return Ok(Arc::clone(segment));
        }
        let dir = self.context.dir.as_deref().ok_or(io::ErrorKind::NotFound)?;
        let path = dir.join(file_name(entry.header.number, entry.named));
        let file = Arc::new(self.context.disk.open(&path, !self.context.read_only)?);
        let len = entry.header.segment_bytes;
        if file.len()? != u64::from(len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment file was truncated"));
        }
        let mapped = self.context.pool.mapped() && !self.context.read_only;
        let map = self.context.disk.open_map(&file, len as usize, mapped)?;
        let segment = Segment::resume(&entry.header, Some(file), map, entry.extent.end, entry.extent.count, entry.done);
        if entry.unproven_from.is_none() {
            let to = if planted::is(Bug::WokenAsSynced) { entry.extent.end } else { entry.synced_to };
            segment.synced_to.store(to, Ordering::Release);
        }
        segment.marks_unsynced.store(entry.marks_unsynced, Ordering::Release);
        if !self.context.read_only {
            segment.mend_lane_blocks()?;
            for ordinal in entry.lost.iter().cloned().flatten() {
                segment.mark_lost(ordinal)?;
            }
            entry.lost.clear();
        }
        if entry.sealed {
            segment.seal();
        }
        let segment = Arc::new(segment.counted(Some(self.context.pool.files.count())));
        entry.open = Some(Arc::clone(&segment));
        Ok(segment)
    }

    /// The lowest segment with a number above `number`.
    pub(crate) fn segment_after(&self, number: u64) -> io::Result<Option<Arc<Segment>>> {
        let after = || {
            let table = self.table.lock();
            let next = table.range(number.saturating_add(1)..).find(|(_, entry)| !entry.cleared);
            next.map(|(number, _)| *number)
        };
        while let Some(next) = after() {
            // Freed in between: there may be one behind it.
            if let Some(segment) = self.segment(next)? {
                return Ok(Some(segment));
            }
        }
        Ok(None)
    }

    /// Closes sealed segments above `above` that nobody uses, so that a long backlog holds neither maps nor descriptors; those
    /// that a sync has covered, for an error of writing back is told to descriptors that were open.
    pub(crate) fn rest_unused(&self, above: u64) {
        if self.context.dir.is_none() {
            return;
        }
        let has_readers = self.has_readers();
        for entry in self.table.lock().range_mut(above.saturating_add(1)..).map(|(_, entry)| entry) {
            if entry.open.as_ref().is_some_and(|segment| entry.is_durable(segment, segment.end())) {
                entry.rest(has_readers);
            }
        }
    }

    /// Opens a segment for what `with` does to it, and closes it again if it was not open: there may be more of them than
    /// descriptors. `None`: it is gone.
    pub(super) fn with_segment<T>(
        &self,
        number: u64,
        with: impl FnOnce(&Segment) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let has_readers = self.has_readers();
        let was_open = self.table.lock().get(&number).is_some_and(|entry| entry.open.is_some());
        let Some(segment) = self.segment(number)? else {
            return Ok(None);
        };
        let done = with(&segment)?;
        drop(segment);
        if !was_open && let Some(entry) = self.table.lock().get_mut(&number) {
            entry.rest(has_readers);
        }
        Ok(Some(done))
    }
}
