//! The story of an append: room, the frame, and the tail that follows it.

use std::io;
use std::sync::Arc;

use super::front::Intake;
use super::segment::Segment;
use super::{Journal, Tail, lane};
use crate::format::frame::{self, Frame, Kind};
use crate::ids::NEVER_MS;
use crate::planted::{self, Bug};
use crate::sync::Ordering;

/// The reach of a segment is raised in steps of this many bytes.
const REACH_STEP: u64 = 1 << 20;

/// Why an append did not happen. Nothing was stored.
#[derive(Debug)]
pub(crate) enum AppendError {
    NoSpace(io::Error),
    TooManyFiles(io::Error),
    DiskCap,
    TooLarge {
        max: u64,
    },
    Exhausted,
    Io {
        segment: u64,
        error: io::Error,
    },
    /// A store failed, and the segment could not be ended before it: only the next open knows.
    Undetermined(Arc<io::Error>),
}

/// One item to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewItem<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) expiry_ms: u64,
    /// Not delivered before; 0: at once.
    pub(crate) due_ms: u64,
    pub(crate) user_flags: u32,
    pub(crate) moved: Option<Moved>,
    /// The one reader that it is for, or [`frame::NAMED_READERS`].
    pub(crate) only: Option<u64>,
}

impl NewItem<'_> {
    /// What the journal takes in with it.
    #[inline]
    pub(crate) fn intake(&self) -> Intake {
        let bytes = self.payload.len() as u64;
        Intake {
            payload_bytes: bytes,
            expiring: u64::from(self.expiry_ms != NEVER_MS),
            deferred: u64::from(self.due_ms != 0),
            deferred_bytes: if self.due_ms == 0 { 0 } else { bytes },
        }
    }
}

/// What a frame says of the item that it takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Queue id, item id.
    pub(crate) origin: (u64, u64),
    pub(crate) starts: u32,
    /// The payload begins with a note.
    pub(crate) noted: bool,
}

/// Where a writer is, before the tail follows.
#[derive(Clone, Copy)]
pub(super) struct Write {
    end: u32,
    ordinal: u32,
    pub(super) next_id: u64,
    payload_bytes: u64,
    last_ms: u64,
    intake: Intake,
    /// Items that are done for the queue's own reader from the start.
    addressed: u32,
}

impl Write {
    #[inline]
    fn behind(tail: &Tail) -> Write {
        Write {
            end: tail.end,
            ordinal: tail.ordinal,
            next_id: tail.next_id,
            payload_bytes: tail.payload_bytes,
            last_ms: tail.last_ms,
            intake: tail.intake,
            addressed: 0,
        }
    }
}

impl Tail {
    /// Whether the segment takes so many items more, of so many bytes of frames.
    #[inline]
    fn fits(&self, items: u64, bytes: u64, put_ms: u64) -> bool {
        let Some(segment) = &self.segment else {
            return false;
        };
        let last = u64::from(self.ordinal) + items;
        let limit = if last <= u64::from(self.ordinal.next_multiple_of(lane::BLOCK_LANES)) {
            self.limit
        } else {
            u32::try_from(last).map_or(0, |last| lane::frame_limit(segment.len, last))
        };
        self.ends_within(segment, limit, bytes, put_ms)
    }

    /// Whether so many bytes of frames end before `limit`, and can say when they were put.
    #[inline]
    fn ends_within(&self, segment: &Segment, limit: u32, bytes: u64, put_ms: u64) -> bool {
        u64::from(self.end) + bytes <= u64::from(limit) && put_ms.saturating_sub(segment.base_ms) <= u64::from(u32::MAX)
    }
}

impl Journal {
    /// Appends one item. On success it is in the page cache and the tail has moved past it. Returns its id.
    #[inline]
    pub(crate) fn append(&self, tail: &mut Tail, item: NewItem<'_>, put_ms: u64) -> Result<u64, AppendError> {
        let mut write = self.make_room(tail, 1, frame_bytes(&item), put_ms)?;
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let kind = if item.due_ms == 0 { Kind::Item } else { Kind::Deferred };
        if let Err(error) = write_item(segment, &mut write, item, kind, put_ms, None) {
            return Err(self.abandon(tail, error));
        }
        self.advance(tail, write);
        Ok(write.next_id - 1)
    }

    /// Appends an item of which nothing is to be said but its bytes, where the segment has room. `None`: nothing is done, and
    /// [`append`](Self::append) takes it. What most items do not have is no question here, and is answered by the compiler.
    #[inline]
    pub(crate) fn append_plain(
        &self,
        tail: &mut Tail,
        payload: &[u8],
        put_ms: u64,
    ) -> Option<Result<u64, AppendError>> {
        let item = NewItem { payload, expiry_ms: NEVER_MS, due_ms: 0, user_flags: 0, moved: None, only: None };
        let segment = tail.segment.as_deref()?;
        let has_room = !tail.ordinal.is_multiple_of(lane::BLOCK_LANES)
            && tail.ends_within(segment, tail.limit.min(tail.reach), frame_bytes(&item), put_ms)
            && tail.next_id < u64::MAX - 1
            && segment.is_checked(put_ms);
        if !has_room {
            return None;
        }
        let mut write = Write::behind(tail);
        if let Err(error) = write_item(segment, &mut write, item, Kind::Item, put_ms, None) {
            return Some(Err(self.abandon(tail, error)));
        }
        self.advance(tail, write);
        Some(Ok(write.next_id - 1))
    }

    /// Appends all items or, after a crash at any point, none. Returns the last one's id.
    pub(crate) fn append_batch(&self, tail: &mut Tail, items: &[NewItem<'_>], put_ms: u64) -> Result<u64, AppendError> {
        let bytes = items.iter().map(frame_bytes).sum();
        let mut write = self.make_room(tail, items.len() as u64, bytes, put_ms)?;
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let from = write.end;
        let mut run = segment.writes_at_once(bytes).then(|| Vec::with_capacity(bytes as usize));
        for (i, item) in items.iter().enumerate() {
            let kind = match (items.len(), i + 1 == items.len()) {
                (1, _) => Kind::Item,
                (_, true) => Kind::BatchEnd,
                (_, false) => Kind::BatchPart,
            };
            if let Err(error) = write_item(segment, &mut write, *item, kind, put_ms, run.as_mut()) {
                return Err(self.abandon(tail, error));
            }
        }
        if let Some(run) = run
            && let Err(error) = segment.write_run(from, &run)
        {
            let error = refused(segment.number, error);
            return Err(self.abandon(tail, error));
        }
        self.advance(tail, write);
        Ok(write.next_id - 1)
    }

    /// A store failed, so what stands behind the tail is not known: parts of a batch may, which frames of another length would
    /// leave behind them as valid ones. So nothing is written there again, and the segment says where it ends. If it cannot
    /// say that, nobody knows what the next open finds.
    #[cold]
    pub(super) fn abandon(&self, tail: &mut Tail, error: AppendError) -> AppendError {
        self.discard_empty(tail);
        match self.seal_tail(tail) {
            Ok(()) => error,
            Err(second) => AppendError::Undetermined(self.commit.fail(second)),
        }
    }

    /// A writer over the tail segment, which has room for `items` items of `bytes` frame bytes; rolls if it must.
    #[inline]
    pub(super) fn make_room(&self, tail: &mut Tail, items: u64, bytes: u64, put_ms: u64) -> Result<Write, AppendError> {
        if tail.next_id.checked_add(items).is_none_or(|next| next == u64::MAX) {
            return Err(AppendError::Exhausted);
        }
        // The last segment may have been closed with room left in it.
        let fits_now = tail.fits(items, bytes, put_ms) || (self.wake_tail(tail)? && tail.fits(items, bytes, put_ms));
        if !fits_now {
            self.roll(tail, items, bytes, put_ms)?;
        }
        let segment = tail.segment.as_deref().ok_or(AppendError::Exhausted)?;
        let checked = segment.check_whole(put_ms).and_then(|()| raise_reach(segment, tail.end, bytes, &mut tail.reach));
        checked.map_err(|error| refused(segment.number, error))?;
        Ok(Write::behind(tail))
    }

    /// Moves the tail behind what was written: only now do the frames exist for anyone else. Had a writer died before, the
    /// next one would write over its frames, so no hole can arise.
    #[inline]
    pub(super) fn advance(&self, tail: &mut Tail, write: Write) {
        let Some(segment) = &tail.segment else { return };
        let appended_bytes = self.appended_bytes.load(Ordering::Relaxed) + u64::from(write.end - tail.end);
        self.appended_bytes.store(appended_bytes, Ordering::Relaxed);
        segment.publish(write.end, write.ordinal);
        tail.limit = match write.ordinal.is_multiple_of(lane::BLOCK_LANES) {
            true => lane::frame_limit(segment.len, write.ordinal + 1),
            false => lane::frame_limit(segment.len, write.ordinal),
        };
        tail.end = write.end;
        tail.ordinal = write.ordinal;
        tail.next_id = write.next_id;
        tail.payload_bytes = write.payload_bytes;
        tail.last_ms = write.last_ms;
        tail.intake = write.intake;
        tail.proven = false;
        if write.addressed > 0 {
            segment.count_done(write.addressed);
        }
        self.front.advance(write.next_id - 1, write.intake);
    }
}

/// Has the segment say that frames of so many bytes may follow its end.
#[inline]
pub(super) fn raise_reach(segment: &Segment, end: u32, bytes: u64, raised: &mut u32) -> io::Result<()> {
    let reach = u64::from(end) + bytes;
    if reach > u64::from(*raised) {
        let reach = u32::try_from(reach + REACH_STEP).unwrap_or(u32::MAX).min(segment.len);
        segment.write_reach(reach)?;
        *raised = reach;
    }
    Ok(())
}

/// Writes the next frame behind what was written, or puts it at the end of what is to be written there. Inlined, so that who
/// puts a plain item pays for nothing else.
#[inline(always)]
pub(super) fn write_item(
    segment: &Segment,
    write: &mut Write,
    item: NewItem<'_>,
    kind: Kind,
    put_ms: u64,
    run: Option<&mut Vec<u8>>,
) -> Result<(), AppendError> {
    let time_delta = u32::try_from(put_ms.saturating_sub(segment.base_ms)).unwrap_or(u32::MAX);
    let frame = Frame {
        kind,
        payload_len: item.payload.len() as u32,
        payload_crc: frame::payload_crc(segment.salt, item.payload),
        ordinal: write.ordinal,
        time_delta,
        synced_to: match planted::is(Bug::EagerMark) {
            true => write.end,
            false => segment.synced_to.load(Ordering::Acquire).min(write.end),
        },
        id: None,
        expiry_ms: (item.expiry_ms != NEVER_MS).then_some(item.expiry_ms),
        user_flags: item.user_flags,
        starts_before: item.moved.map_or(0, |moved| moved.starts),
        origin: item.moved.map(|moved| moved.origin),
        noted: item.moved.is_some_and(|moved| moved.noted),
        due_ms: item.due_ms,
        only: item.only,
    };
    let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let head_len = frame::encode(&frame, segment.salt, write.end, &mut head);
    store(segment, write, &item, &head[..head_len], run).map_err(|error| refused(segment.number, error))?;
    write.end += frame.total_len();
    write.ordinal += 1;
    write.next_id += 1;
    write.payload_bytes += u64::from(frame.payload_len);
    write.last_ms = write.last_ms.max(segment.base_ms + u64::from(time_delta));
    write.intake.payload_bytes += u64::from(frame.payload_len);
    write.intake.expiring += u64::from(item.expiry_ms != NEVER_MS);
    if item.due_ms != 0 {
        write.intake.deferred += 1;
        write.intake.deferred_bytes += u64::from(frame.payload_len);
    }
    write.addressed += u32::from(item.only.is_some());
    Ok(())
}

/// Stores a frame, and before it what must stand in the lanes by then.
#[inline(always)]
fn store(
    segment: &Segment,
    write: &Write,
    item: &NewItem<'_>,
    head: &[u8],
    run: Option<&mut Vec<u8>>,
) -> io::Result<()> {
    if write.ordinal.is_multiple_of(lane::BLOCK_LANES) {
        segment.begin_lane_block(write.ordinal / lane::BLOCK_LANES)?;
    }
    if item.only.is_some() {
        // None of the queue's own, and before there is a frame: a process that dies in between leaves nothing to be met.
        segment.mark_lost(write.ordinal)?;
    }
    match run {
        Some(run) => {
            run.extend_from_slice(head);
            run.extend_from_slice(item.payload);
            run.resize(run.len().next_multiple_of(frame::ALIGN as usize), 0);
            Ok(())
        }
        None => segment.write_frame(write.end, head, item.payload),
    }
}

/// Why the system did not do what an append needs.
#[cold]
pub(super) fn refused(segment: u64, error: io::Error) -> AppendError {
    if crate::disk::is_no_space(&error) {
        return AppendError::NoSpace(error);
    }
    match crate::disk::is_too_many_files(&error) {
        true => AppendError::TooManyFiles(error),
        false => AppendError::Io { segment, error },
    }
}

/// At most this many bytes of frame.
#[inline(always)]
pub(super) fn frame_bytes(item: &NewItem<'_>) -> u64 {
    let user = item.user_flags != 0 || item.moved.is_some_and(|moved| moved.starts != 0);
    let extension = if item.expiry_ms != NEVER_MS { 8 } else { 0 }
        + if user { 8 } else { 0 }
        + if item.moved.is_some() { 16 } else { 0 }
        + if item.due_ms != 0 { 8 } else { 0 }
        + if item.only.is_some() { 8 } else { 0 };
    (frame::HEADER_BYTES as u64 + extension + item.payload.len() as u64).next_multiple_of(u64::from(frame::ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::NAMED_READERS;
    use crate::journal::segment::FRAMES_AT;

    /// The room of an item is reckoned before its frame is made: one that is too small runs into the lanes.
    #[test]
    fn a_frame_takes_as_many_bytes_as_were_reckoned() {
        let origins = [None, Some(0), Some(3)];
        for (expiry_ms, user_flags, starts, (due_ms, only)) in [NEVER_MS, 7]
            .into_iter()
            .flat_map(|expiry_ms| [0, 5].map(|flags| (expiry_ms, flags)))
            .flat_map(|(expiry_ms, flags)| origins.map(|starts| (expiry_ms, flags, starts)))
            .flat_map(|(expiry_ms, flags, starts)| {
                [(0, None), (9, None), (0, Some(8)), (9, Some(NAMED_READERS))]
                    .map(|behind| (expiry_ms, flags, starts, behind))
            })
        {
            let moved = starts.map(|starts| Moved { origin: (1, 2), starts, noted: false });
            let item = NewItem { payload: &[1; 13], expiry_ms, due_ms, user_flags, moved, only };
            let frame = Frame {
                kind: if due_ms == 0 { Kind::Item } else { Kind::Deferred },
                payload_len: 13,
                payload_crc: 0,
                ordinal: 0,
                time_delta: 0,
                synced_to: FRAMES_AT,
                id: None,
                expiry_ms: (expiry_ms != NEVER_MS).then_some(expiry_ms),
                user_flags,
                starts_before: starts.unwrap_or(0),
                origin: moved.map(|moved| moved.origin),
                noted: false,
                due_ms,
                only,
            };
            assert_eq!(frame_bytes(&item), u64::from(frame.total_len()), "{item:?}");
        }
    }
}
