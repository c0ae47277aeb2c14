//! Named readers: where each one begins, and the state of every item for it.
//!
//! A queue's own reader keeps its lanes inside the segments. A named reader's stand apart, one byte an item as there, in files
//! of 65,536 ids each, made when it first marks one of them:
//!
//! ```text
//!   <reader id>.reader                 its header: name, start, options; there from its creation to its end
//!   <reader id>.<number of ids>.lanes  the states of the ids from number * 65,536 on; missing: all of them wait
//! ```
//!
//! They go by id and not by segment, because an id is never given out twice: whatever recovery does with segments, a lane
//! stays the item's own. A lost file of lanes means that items come again, which at-least-once allows; one that a sync has
//! covered is not lost. On a full disk new lanes are kept in memory until there is room: a close must work then, or nothing
//! would ever be freed.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::Commit;
use super::lane::Lane;
use super::segment::{FRAMES_AT, Segment};
use super::{Context, Entry, Journal, NAMED_READERS, SlotFile, Tail, write_new_file};
use crate::disk::{self, Disk, EntryKind, File, Map};
use crate::error::OpenError;
use crate::format::frame::{self, Frame};
use crate::format::meta::FILE_LEN;
use crate::format::reader::{self, LANES_AT, LANES_HEAD, LANES_LEN, LanesHead, RANGE_IDS, ReaderMeta};
use crate::format::{Fault, VERSION};
use crate::ids::Cursor;
use crate::planted::{self, Bug};
use crate::sync::Mutex;

pub(crate) use crate::format::name::check_reader as check_name;

const PAGE: usize = 4096;

/// A segment as one reader sees it: the same frames, and that reader's lanes.
#[derive(Clone, Debug)]
pub(crate) struct View {
    segment: Arc<Segment>,
    /// `None`: the queue's own reader, whose lanes are the segment's.
    lanes: Option<Arc<ReaderLanes>>,
}

impl View {
    pub(crate) fn new(segment: Arc<Segment>, lanes: Option<&Arc<ReaderLanes>>) -> View {
        View { segment, lanes: lanes.cloned() }
    }

    #[inline]
    pub(crate) fn lane(&self, ordinal: u32) -> io::Result<Option<Lane>> {
        match &self.lanes {
            None => self.segment.lane(ordinal),
            Some(lanes) => lanes.lane(self.id_of(ordinal)),
        }
    }

    /// Marks an item waiting or in flight.
    #[inline]
    pub(crate) fn mark(&self, ordinal: u32, lane: Lane) -> io::Result<()> {
        match &self.lanes {
            None => self.segment.mark(ordinal, lane),
            Some(lanes) => lanes.mark(self.id_of(ordinal), lane),
        }
    }

    /// Marks an item done; `true` if this reader needs the segment no more.
    #[inline]
    pub(crate) fn mark_done(&self, ordinal: u32) -> io::Result<bool> {
        match &self.lanes {
            None => self.segment.mark_done(ordinal),
            Some(lanes) => lanes.mark_done(&self.segment, ordinal),
        }
    }

    fn id_of(&self, ordinal: u32) -> u64 {
        self.segment.first_id + u64::from(ordinal)
    }
}

impl Deref for View {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

/// Whether an item is for the reader with these lanes, or the queue's own: it is unless it names others.
pub(crate) fn is_for(frame: &Frame, lanes: Option<&Arc<ReaderLanes>>) -> bool {
    frame.only.is_none_or(|only| lanes.is_some_and(|lanes| only == frame::NAMED_READERS || only == lanes.id))
}

/// A named reader as the journal knows it.
#[derive(Debug)]
pub(crate) struct ReaderLanes {
    /// Names it in its files, and in frames that are for it alone or took the place of its items.
    pub(crate) id: u64,
    disk: Disk,
    /// `None`: memory only.
    dir: Option<PathBuf>,
    head: LanesHead,
    mapped: bool,
    read_only: bool,
    /// Lock 7, the last one: file creation happens under it, no sync but that of its header.
    state: Mutex<State>,
    /// Held over a sync, so that nobody is answered before the device has.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    meta: ReaderMeta,
    /// `None`: memory only.
    slots: Option<SlotFile>,
    ranges: BTreeMap<u64, Range>,
    /// How far it is with each segment that it has marked something in.
    segments: BTreeMap<u64, Progress>,
    /// Its files may be somebody else's by now.
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    first_id: u64,
    /// Items that it is done with, those before its start included.
    done: u64,
}

/// The lanes of [`RANGE_IDS`] ids.
#[derive(Debug)]
struct Range {
    /// `None`: all are done.
    map: Option<Map>,
    /// `None`: in memory only, or closed because all are done.
    file: Option<Arc<File>>,
    done: u64,
    dirty: bool,
    /// An earlier process stored it, of which nobody knows whether it reached the device.
    unproven: bool,
    /// No sync has covered its name.
    nameless: bool,
}

/// What waits for a reader.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    /// At or before the first item that waits.
    pub(crate) first: Option<Cursor>,
    /// Items that it held open when the last process ended.
    pub(crate) held: Vec<u64>,
}

/// What was before a reader's backlog is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// It is just being made.
    New,
    /// The last process closed the queue in good order.
    Closed,
    /// It did not.
    Died,
}

fn header_name(id: u64) -> String {
    format!("{id:016x}.reader")
}

fn lanes_name(id: u64, number: u64) -> String {
    format!("{id:016x}.{number:016x}.lanes")
}

/// The reader and the number of a file of lanes.
fn parse_lanes_name(name: &str) -> Option<(u64, u64)> {
    let (id, number) = name.strip_suffix(".lanes")?.split_once('.')?;
    let parse = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    let (id, number) = (parse(id)?, parse(number)?);
    (lanes_name(id, number) == name).then_some((id, number))
}

impl ReaderLanes {
    fn new(context: &Context, meta: ReaderMeta, slots: Option<SlotFile>) -> ReaderLanes {
        let head = LanesHead { set_id: meta.set_id, queue_id: meta.queue_id, reader_id: meta.reader_id, first_id: 0 };
        ReaderLanes {
            id: meta.reader_id,
            disk: context.disk.clone(),
            dir: context.dir.clone(),
            head,
            mapped: context.pool.mapped() && !context.read_only,
            read_only: context.read_only,
            state: Mutex::new(State { meta, slots, ranges: BTreeMap::new(), segments: BTreeMap::new(), closed: false }),
            syncing: Mutex::new(()),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.state.lock().meta.name.clone()
    }

    pub(crate) fn create_ms(&self) -> u64 {
        self.state.lock().meta.create_ms
    }

    /// Items up to this id are none of its.
    pub(crate) fn start_id(&self) -> u64 {
        self.state.lock().meta.start_id
    }

    /// The options of its own, as its header has them.
    pub(crate) fn own_options(&self) -> Vec<u8> {
        self.state.lock().meta.options.clone()
    }

    pub(crate) fn store_options(&self, options: Vec<u8>) -> io::Result<()> {
        self.state.lock().update(|meta| meta.options = options)
    }

    pub(crate) fn lane(&self, id: u64) -> io::Result<Option<Lane>> {
        self.state.lock().lane(id)
    }

    pub(crate) fn mark(&self, id: u64, lane: Lane) -> io::Result<()> {
        debug_assert!(lane != Lane::Done, "done is counted: mark_done");
        let mut state = self.state.lock();
        if state.closed || state.lane(id)? == Some(Lane::Done) {
            return Ok(());
        }
        state.store(self, id, lane)
    }

    /// `true` if the segment takes no more items and it is done with all of them. Marking an item twice counts once.
    pub(crate) fn mark_done(&self, segment: &Segment, ordinal: u32) -> io::Result<bool> {
        let id = segment.first_id + u64::from(ordinal);
        let done = {
            let mut state = self.state.lock();
            if state.closed || state.lane(id)? == Some(Lane::Done) {
                return Ok(false);
            }
            state.store(self, id, Lane::Done)?;
            state.count_done(id);
            let start_id = state.meta.start_id;
            let progress = state.segments.entry(segment.number).or_insert_with(|| Progress {
                first_id: segment.first_id,
                done: (start_id + 1).saturating_sub(segment.first_id),
            });
            progress.done += 1;
            progress.done
        };
        // After the lock: who sealed it before will see this count, or has sealed it before this look.
        Ok(segment.is_sealed() && done >= segment.count().into())
    }

    /// Whether it may have marked any of these ids.
    fn has_marks(&self, first_id: u64, end: u64) -> bool {
        let ranges = first_id / RANGE_IDS..=(end - 1) / RANGE_IDS;
        self.state.lock().ranges.range(ranges).next().is_some()
    }

    /// How many of the `count` items of a sealed segment it is not done with.
    pub(super) fn left_in(&self, number: u64, first_id: u64, count: u32) -> u64 {
        let state = self.state.lock();
        let before = || (state.meta.start_id + 1).saturating_sub(first_id);
        u64::from(count).saturating_sub(state.segments.get(&number).map_or_else(before, |progress| progress.done))
    }

    /// Items up to `id` are none of its from now on; durable when this returns. The tail's holder says what `id` is, and
    /// nothing above it was marked.
    pub(crate) fn begin_at(&self, id: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.update(|meta| meta.start_id = id)?;
        for progress in state.segments.values_mut() {
            progress.done = progress.done.max((id + 1).saturating_sub(progress.first_id));
        }
        let below = (id + 1) / RANGE_IDS;
        let over: Vec<u64> = state.ranges.range(..below).map(|(number, _)| *number).collect();
        self.drop_ranges(&mut state, &over);
        Ok(())
    }

    fn drop_ranges(&self, state: &mut State, numbers: &[u64]) {
        for number in numbers {
            if let (Some(_), Some(dir), false) = (state.ranges.remove(number), &self.dir, state.closed) {
                // If it stays, the next open removes it.
                let _ = self.disk.unlink(&dir.join(lanes_name(self.id, *number)));
            }
        }
    }

    /// Segments have left; ranges without an id in one of `kept` (first id, end) below `next_id` are over.
    fn forget(&self, freed: &[u64], kept: &[(u64, u64)], next_id: u64) {
        let mut state = self.state.lock();
        for number in freed {
            state.segments.remove(number);
        }
        let is_over = |number: u64| {
            let (first, end) = (number * RANGE_IDS, (number + 1).saturating_mul(RANGE_IDS));
            end <= next_id && !kept.iter().any(|(from, to)| *from < end && first < *to)
        };
        let over: Vec<u64> = state.ranges.keys().copied().filter(|number| is_over(*number)).collect();
        self.drop_ranges(&mut state, &over);
    }

    /// From here on none of its files is touched.
    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.slots = None;
    }

    fn is_dirty(&self) -> bool {
        self.dir.is_some() && self.state.lock().ranges.values().any(|range| range.dirty || range.unproven)
    }

    /// A file of lanes: allocated, and its head says whose they are.
    fn create_file(&self, dir: &Path, number: u64) -> io::Result<(Arc<File>, Map)> {
        let path = dir.join(lanes_name(self.id, number));
        let file = match self.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.unlink(&path)?;
                self.disk.create(&path)?
            }
            created => created?,
        };
        let file = Arc::new(file);
        let made = (|| {
            let reserved = file.allocate(LANES_LEN as u64)?;
            let map = self.disk.open_map(&file, LANES_LEN, self.mapped && reserved)?;
            let first_id = number.saturating_mul(RANGE_IDS);
            map.copy_in(0, &reader::encode_lanes(&LanesHead { first_id, ..self.head }))?;
            Ok((Arc::clone(&file), map))
        })();
        if made.is_err() {
            let _ = self.disk.unlink(&path);
        }
        made
    }

    fn begin_range(&self, number: u64) -> io::Result<Range> {
        let made = match &self.dir {
            Some(dir) => self.create_file(dir, number),
            None => Err(io::ErrorKind::StorageFull.into()),
        };
        let (file, map) = match made {
            Ok((file, map)) => (Some(file), map),
            Err(error) if disk::is_no_space(&error) => (None, Map::anonymous(LANES_LEN)?),
            Err(error) => return Err(error),
        };
        Ok(Range { map: Some(map), file, done: 0, dirty: true, unproven: false, nameless: true })
    }

    /// Makes every mark so far durable. A sync that fails is latched, as any other of the queue is; that there is no room for new
    /// lanes is not: the next one tries again.
    pub(super) fn sync(&self, commit: &Commit) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let _syncing = self.syncing.lock();
        let mut first_error = Ok(());
        let mut asked: Vec<(u64, Arc<File>)> = Vec::new();
        let mut is_nameless = false;
        {
            let mut state = self.state.lock();
            if state.closed {
                return Ok(());
            }
            for (number, range) in &mut state.ranges {
                if !range.dirty && !range.unproven {
                    continue;
                }
                match self.store_range(dir, *number, range) {
                    Ok(file) => {
                        (range.dirty, range.unproven) = (false, false);
                        is_nameless |= range.nameless;
                        asked.push((*number, file));
                    }
                    Err(error) => first_error = first_error.and(Err(error)),
                }
            }
        }
        let mut synced: io::Result<()> = asked.iter().try_for_each(|(_, file)| file.sync_data());
        if synced.is_ok() && is_nameless {
            synced = self.disk.sync_dir(dir);
        }
        let mut state = self.state.lock();
        for (number, _) in &asked {
            let Some(range) = state.ranges.get_mut(number) else { continue };
            range.nameless &= synced.is_err();
            if range.done == RANGE_IDS && !range.dirty && synced.is_ok() {
                (range.map, range.file) = (None, None);
            }
        }
        drop(state);
        first_error.and(synced.map_err(|error| {
            let latched = commit.fail(error);
            io::Error::new(latched.kind(), latched)
        }))
    }

    /// Sees to it that the next sync of the file writes what the range holds.
    fn store_range(&self, dir: &Path, number: u64, range: &mut Range) -> io::Result<Arc<File>> {
        let Some(file) = &range.file else {
            let Some(memory) = &range.map else {
                // All done, and closed: as an earlier process has left it.
                let file = Arc::new(self.disk.open(&dir.join(lanes_name(self.id, number)), true)?);
                dirty_again(&self.disk.open_map(&file, LANES_LEN, false)?)?;
                return Ok(file);
            };
            let (file, map) = self.create_file(dir, number)?;
            map.copy_in(LANES_AT, &memory.copy_vec(LANES_AT, RANGE_IDS as usize)?)?;
            (range.map, range.file) = (Some(map), Some(Arc::clone(&file)));
            return Ok(file);
        };
        if range.unproven
            && let Some(map) = &range.map
            && !planted::is(Bug::MarksOfOthers)
        {
            dirty_again(map)?;
        }
        Ok(Arc::clone(file))
    }

    /// Reads the files that an earlier process has left of its lanes.
    fn read_ranges(&self, numbers: &BTreeSet<u64>, is_proven: bool) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut state = self.state.lock();
        for &number in numbers {
            let path = dir.join(lanes_name(self.id, number));
            let file = Arc::new(self.disk.open(&path, !self.read_only)?);
            let mut bytes = vec![0; LANES_LEN];
            let len = file.len()?.min(LANES_LEN as u64) as usize;
            file.read_at(0, bytes.get_mut(..len).unwrap_or_default())?;
            let first_id = number.saturating_mul(RANGE_IDS);
            let head = reader::decode_lanes(bytes.get(..LANES_HEAD).unwrap_or_default());
            if len < LANES_LEN || head != Ok(LanesHead { first_id, ..self.head }) {
                // An interrupted creation, or damage: its items come again.
                if !self.read_only {
                    self.disk.unlink(&path)?;
                }
                continue;
            }
            let lanes = bytes.get(LANES_AT..).unwrap_or_default();
            let done = lanes.iter().filter(|byte| Lane::from_byte(**byte) == Some(Lane::Done)).count() as u64;
            let is_over = done == RANGE_IDS;
            let map = if is_over { None } else { Some(self.disk.open_map(&file, LANES_LEN, self.mapped)?) };
            let file = map.is_some().then_some(file);
            let unproven = !is_proven && !self.read_only;
            state.ranges.insert(number, Range { map, file, done, dirty: false, unproven, nameless: unproven });
        }
        Ok(())
    }
}

/// Stores every page again as it is, so that the next sync writes it.
fn dirty_again(map: &Map) -> io::Result<()> {
    for at in (0..LANES_LEN).step_by(PAGE) {
        map.store_byte(at, map.load_byte(at)?)?;
    }
    Ok(())
}

impl State {
    fn update(&mut self, change: impl FnOnce(&mut ReaderMeta)) -> io::Result<()> {
        let mut meta = self.meta.clone();
        change(&mut meta);
        if meta == self.meta {
            return Ok(());
        }
        if self.closed {
            return Err(io::Error::other("the reader is closed"));
        }
        if let Some(slots) = &mut self.slots {
            slots.prove(|sequence| reader::encode(&self.meta, sequence))?;
            slots.store(|sequence| reader::encode(&meta, sequence))?;
        }
        self.meta = meta;
        Ok(())
    }

    fn lane(&self, id: u64) -> io::Result<Option<Lane>> {
        if id <= self.meta.start_id {
            return Ok(Some(Lane::Done));
        }
        match self.ranges.get(&(id / RANGE_IDS)) {
            None => Ok(Some(Lane::Waiting { starts: 0 })),
            Some(Range { map: None, .. }) => Ok(Some(Lane::Done)),
            Some(Range { map: Some(map), .. }) => Ok(Lane::from_byte(map.load_byte(lane_at(id))?)),
        }
    }

    fn store(&mut self, lanes: &ReaderLanes, id: u64, lane: Lane) -> io::Result<()> {
        let number = id / RANGE_IDS;
        let range = match self.ranges.entry(number) {
            Slot::Occupied(found) => found.into_mut(),
            Slot::Vacant(free) => free.insert(lanes.begin_range(number)?),
        };
        if let Some(map) = &range.map {
            map.store_byte(lane_at(id), lane.to_byte())?;
            range.dirty = true;
        }
        Ok(())
    }

    fn count_done(&mut self, id: u64) {
        if let Some(range) = self.ranges.get_mut(&(id / RANGE_IDS)) {
            range.done += 1;
        }
    }
}

fn lane_at(id: u64) -> usize {
    LANES_AT + (id % RANGE_IDS) as usize
}

// ---- what a journal does for its readers

impl Journal {
    pub(crate) fn readers(&self) -> Vec<Arc<ReaderLanes>> {
        self.readers.read().clone()
    }

    pub(crate) fn has_readers(&self) -> bool {
        !self.readers.read().is_empty()
    }

    /// Finds the readers of a recovered journal. Called before anybody has the queue.
    pub(crate) fn load_readers(&self, is_clean: bool) -> Result<Vec<Arc<ReaderLanes>>, OpenError> {
        let Some(dir) = &self.context.dir else { return Ok(Vec::new()) };
        let disk = &self.context.disk;
        let io = |path: &Path, source| OpenError::Io { path: path.to_owned(), source };
        let mut headers = Vec::new();
        let mut lanes: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut unfinished = Vec::new();
        for entry in disk.list(dir).map_err(|e| io(dir, e))? {
            if entry.kind != EntryKind::File {
                continue;
            }
            if entry.name.ends_with(".reader.tmp") {
                unfinished.push(entry.name);
            } else if let Some((id, number)) = parse_lanes_name(&entry.name) {
                lanes.entry(id).or_default().insert(number);
            } else if let Some(id) = entry.name.strip_suffix(".reader").and_then(|id| u64::from_str_radix(id, 16).ok())
                && header_name(id) == entry.name
            {
                headers.push(id);
            }
        }
        headers.sort_unstable();
        let is_proven = self.context.read_only || is_clean || (headers.is_empty() && lanes.is_empty());
        if !is_proven {
            // A reader that an earlier process was making, or removing, is there or not from now on.
            disk.sync_dir(dir).map_err(|e| io(dir, e))?;
        }
        let mut found = Vec::new();
        for id in headers {
            let reader = Arc::new(self.load_reader(dir, id)?);
            let numbers = lanes.remove(&id).unwrap_or_default();
            reader.read_ranges(&numbers, is_clean).map_err(|e| io(dir, e))?;
            found.push(reader);
        }
        if !self.context.read_only {
            let left = lanes.iter().flat_map(|(id, numbers)| numbers.iter().map(|number| lanes_name(*id, *number)));
            for name in left.chain(unfinished) {
                let path = dir.join(name);
                disk.unlink(&path).map_err(|e| io(&path, e))?;
            }
        }
        self.readers.write().clone_from(&found);
        self.forget_lanes(&[]);
        Ok(found)
    }

    fn load_reader(&self, dir: &Path, id: u64) -> Result<ReaderLanes, OpenError> {
        let path = dir.join(header_name(id));
        let io = |source| OpenError::Io { path: path.clone(), source };
        let corrupt = |what| OpenError::Corrupt {
            queue: self.context.queue.clone(),
            path: path.clone(),
            segment: None,
            offset: 0,
            what,
        };
        let file = self.context.disk.open(&path, !self.context.read_only).map_err(io)?;
        let mut bytes = vec![0; usize::try_from(file.len().map_err(io)?).unwrap_or(FILE_LEN).min(FILE_LEN)];
        file.read_at(0, &mut bytes).map_err(io)?;
        let slots = reader::decode(&bytes).map_err(|fault| match fault {
            Fault::Version(found) => OpenError::UnsupportedVersion { path: path.clone(), found, supported: VERSION },
            Fault::Invalid(what) => corrupt(what),
        })?;
        let mut meta = slots.newest;
        if meta.set_id != self.context.set_id || meta.queue_id != self.queue_id() || meta.reader_id != id {
            return Err(corrupt("reader header (of another queue)"));
        }
        // What was cleared with the queue is gone for all; and nobody begins behind the end.
        meta.start_id = meta.start_id.max(self.cleared()).min(self.appended());
        let slots = SlotFile::new(&self.context.disk, path, slots.sequence, slots.next_slot, false);
        Ok(ReaderLanes::new(&self.context, meta, Some(slots)))
    }

    /// Keeps what is there from being given back, for a reader that is to begin with it. Comes before the tail lock.
    pub(crate) fn keep(&self) -> impl Sized + '_ {
        self.giving_back.write()
    }

    /// A new reader. Nothing that is appended from now on is freed before it is done with it; under the tail lock, so that
    /// its start parts all puts in two. It is made durable by [`Journal::store_reader`].
    pub(crate) fn begin_reader(
        &self,
        tail: &Tail,
        name: &str,
        from_oldest: bool,
        options: Vec<u8>,
        create_ms: u64,
    ) -> io::Result<Arc<ReaderLanes>> {
        let end = tail.next_id - 1;
        let start_id = match from_oldest {
            true => self.oldest_kept().map_or(end, |first| first.saturating_sub(1)),
            false => end,
        };
        let meta = ReaderMeta {
            set_id: self.context.set_id,
            queue_id: self.queue_id(),
            reader_id: self.context.disk.random_u64()? >> 1,
            create_ms,
            start_id,
            name: name.to_owned(),
            options,
        };
        let reader = Arc::new(ReaderLanes::new(&self.context, meta, None));
        self.readers.write().push(Arc::clone(&reader));
        Ok(reader)
    }

    fn oldest_kept(&self) -> Option<u64> {
        let table = self.table.lock();
        table.values().find(|entry| !entry.cleared).map(|entry| entry.header.first_id)
    }

    /// Makes a new reader durable: it is there whole or not at all.
    pub(crate) fn store_reader(&self, reader: &ReaderLanes) -> io::Result<()> {
        let Some(dir) = &self.context.dir else { return Ok(()) };
        let disk = &self.context.disk;
        // What it passes over as gone must not wait for it after a crash.
        reader.sync(&self.commit)?;
        let slot = reader::encode(&reader.state.lock().meta, 1);
        let name = header_name(reader.id);
        if planted::is(Bug::ReaderBeforeHeader) {
            let file = disk.create(&dir.join(name))?;
            file.allocate(FILE_LEN as u64)?;
            return file.write_at(0, &slot);
        }
        write_new_file(disk, dir, &name, &slot).inspect_err(|_| {
            // It may have its name already, and nobody was told of it.
            let _ = disk.unlink(&dir.join(&name));
        })?;
        reader.state.lock().slots = Some(SlotFile::new(disk, dir.join(name), 1, 1, true));
        Ok(())
    }

    /// Removes a reader: durably first, then what is left of it.
    pub(crate) fn remove_reader(&self, reader: &ReaderLanes) -> io::Result<()> {
        if let Some(dir) = &self.context.dir {
            match self.context.disk.unlink(&dir.join(header_name(reader.id))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.context.disk.sync_dir(dir)?;
        }
        self.drop_reader(reader);
        Ok(())
    }

    /// A reader that is not durable holds nothing any more.
    pub(crate) fn drop_reader(&self, reader: &ReaderLanes) {
        self.readers.write().retain(|other| other.id != reader.id);
        {
            let mut state = reader.state.lock();
            let all: Vec<u64> = state.ranges.keys().copied().collect();
            reader.drop_ranges(&mut state, &all);
        }
        reader.close();
    }

    /// The queue goes, or its set closes: the readers' files are left alone from here on.
    pub(crate) fn close_readers(&self) {
        self.readers().iter().for_each(|reader| reader.close());
    }

    /// Whether no named reader needs a segment any more.
    pub(super) fn is_read_by_all(&self, readers: &[Arc<ReaderLanes>], number: u64, entry: &Entry) -> bool {
        entry.cleared
            || planted::is(Bug::FreeBeforeReaders)
            || readers.iter().all(|reader| reader.left_in(number, entry.header.first_id, entry.count()) == 0)
    }

    /// Those segments have left, and with them the lanes of ids that are in no other.
    pub(super) fn forget_lanes(&self, freed: &[u64]) {
        let readers = self.readers();
        if readers.is_empty() || self.context.read_only {
            return;
        }
        // Before the table: what is appended later is above it.
        let next_id = self.appended() + 1;
        let kept: Vec<(u64, u64)> =
            self.table.lock().values().map(|entry| (entry.header.first_id, entry.ids_end())).collect();
        readers.iter().for_each(|reader| reader.forget(freed, &kept, next_id));
    }

    /// Whether a reader has marks that no sync has covered.
    pub(crate) fn has_dirty_readers(&self) -> bool {
        self.readers.read().iter().any(|reader| reader.is_dirty())
    }

    /// Makes the marks of all readers durable.
    pub(crate) fn sync_readers(&self) -> io::Result<()> {
        if self.context.read_only {
            return Ok(());
        }
        // All of them, whatever becomes of the first.
        self.readers().iter().map(|reader| reader.sync(&self.commit)).fold(Ok(()), io::Result::and)
    }

    /// The last `count` items of the tail are none of this reader's.
    pub(crate) fn pass_named(&self, tail: &Tail, count: u32, reader: &ReaderLanes) -> io::Result<()> {
        let Some(segment) = &tail.segment else { return Ok(()) };
        (tail.ordinal.saturating_sub(count)..tail.ordinal)
            .try_for_each(|ordinal| reader.mark_done(segment, ordinal).map(drop))
    }

    /// Where a reader reads on that begins with the next put.
    pub(crate) fn end_of(&self, tail: &Tail) -> Cursor {
        match &tail.segment {
            Some(segment) => Cursor { segment: segment.number, offset: tail.end.max(FRAMES_AT), ordinal: tail.ordinal },
            None => Cursor::behind(tail.newest()),
        }
    }

    /// Counts what waits for a reader. Reads lanes, and the frame headers of those segments that it has begun with; if a process
    /// has died, also those of the last one, where an item may be another's and its mark not have been made; for a new reader,
    /// also those of which pages were given back.
    pub(crate) fn backlog(&self, tail: &Tail, reader: &Arc<ReaderLanes>, past: Past) -> io::Result<Backlog> {
        let mut backlog = Backlog::default();
        let start_id = reader.start_id();
        let entries: Vec<_> = {
            let table = self.table.lock();
            let last = table.keys().next_back().copied();
            let entries = table.iter().filter(|(_, entry)| !entry.cleared);
            entries
                .map(|(number, entry)| {
                    let is_tail = tail.segment.as_ref().is_some_and(|segment| segment.number == *number);
                    let extent = if is_tail { tail.extent() } else { entry.extent };
                    let is_punched = past == Past::New && (entry.may_have_holes || entry.holes.bytes > 0);
                    let must_look = (past == Past::Died && last == Some(*number)) || is_punched;
                    (*number, entry.header.first_id, extent, entry.lost.clone(), (must_look, is_punched))
                })
                .collect()
        };
        for (number, first_id, extent, lost, (must_look, is_punched)) in entries {
            let end = first_id + u64::from(extent.count);
            if extent.count == 0 || end <= start_id + 1 {
                continue;
            }
            let from_start = Cursor { segment: number, offset: FRAMES_AT, ordinal: 0 };
            let is_whole = first_id > start_id && lost.is_empty() && !must_look;
            if is_whole && !reader.has_marks(first_id, end) {
                backlog.items += u64::from(extent.count);
                backlog.bytes += extent.payload_bytes;
                backlog.first.get_or_insert(from_start);
                continue;
            }
            let mut waiting = self.waiting_ids(reader, first_id, end, &lost, &mut backlog.held)?;
            if !waiting.is_empty() {
                let (mut first, mut bytes, mut met, mut done) = (None, 0, BTreeSet::new(), BTreeSet::new());
                self.walk_segment(number, |segment, id, offset, frame| {
                    if waiting.binary_search(&id).is_err() {
                        return Ok(());
                    }
                    if is_punched && !planted::is(Bug::CountPunched) {
                        // Of what was done for all who were there, a hole may have left the header, and not the payload.
                        let (at, len) = (frame.head_len(), frame.payload_len);
                        let is_done = segment.lane(frame.ordinal)? == Some(Lane::Done);
                        if is_done && segment.payload(offset, at, len, frame.payload_crc)?.is_none() {
                            return Ok(());
                        }
                    }
                    met.insert(id);
                    if frame.only.is_some_and(|only| only != NAMED_READERS && only != reader.id) {
                        done.insert(id);
                        return Ok(());
                    }
                    bytes += u64::from(frame.payload_len);
                    first.get_or_insert(Cursor { segment: segment.number, offset, ordinal: frame.ordinal });
                    Ok(())
                })?;
                if is_punched && met.len() < waiting.len() && !planted::is(Bug::CountPunched) {
                    // Done for all who were there, and its bytes have been given back. What nobody had is damaged, and stays.
                    self.with_segment(number, |segment| {
                        for id in waiting.iter().filter(|id| !met.contains(*id)) {
                            let ordinal = u32::try_from(id - first_id).unwrap_or(u32::MAX);
                            if segment.lane(ordinal)? == Some(Lane::Done) {
                                done.insert(*id);
                            }
                        }
                        Ok(())
                    })?;
                }
                if !self.context.read_only {
                    let mut state = reader.state.lock();
                    for &id in &done {
                        state.store(reader, id, Lane::Done)?;
                        state.count_done(id);
                    }
                    waiting.retain(|id| !done.contains(id));
                }
                backlog.items += waiting.len() as u64;
                backlog.bytes += bytes;
                if !waiting.is_empty() {
                    backlog.first.get_or_insert(first.unwrap_or(from_start));
                }
            }
            let done = u64::from(extent.count) - waiting.len() as u64;
            reader.state.lock().segments.insert(number, Progress { first_id, done });
        }
        Ok(backlog)
    }

    /// The ids of a segment that wait for a reader, lowest first.
    fn waiting_ids(
        &self,
        reader: &ReaderLanes,
        first_id: u64,
        end: u64,
        lost: &[std::ops::Range<u32>],
        held: &mut Vec<u64>,
    ) -> io::Result<Vec<u64>> {
        let is_lost = |id: u64| {
            let ordinal = id - first_id;
            lost.iter().any(|lost| ordinal >= lost.start.into() && ordinal < lost.end.into())
        };
        let mut waiting = Vec::new();
        let mut state = reader.state.lock();
        for id in first_id.max(state.meta.start_id + 1)..end {
            match state.lane(id)? {
                Some(Lane::Done) => continue,
                Some(Lane::InFlight { .. }) => held.push(id),
                _ => {}
            }
            if is_lost(id) && !self.context.read_only {
                // For good, or it would be counted again when the reader meets the damage.
                state.store(reader, id, Lane::Done)?;
                state.count_done(id);
            } else {
                waiting.push(id);
            }
        }
        Ok(waiting)
    }

    /// What nobody holds any more waits, so that the open after the next one does not count it among what this process held.
    pub(crate) fn give_back(&self, reader: &ReaderLanes, held: &[u64]) {
        if self.context.read_only {
            return;
        }
        for &id in held {
            if let Ok(Some(Lane::InFlight { starts })) = reader.lane(id) {
                // A mark that cannot be stored is counted once more.
                let _ = reader.mark(id, Lane::Waiting { starts });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_files_of_lanes() {
        assert_eq!(parse_lanes_name(&lanes_name(7, u64::MAX)), Some((7, u64::MAX)));
        for name in
            ["7.8.lanes", "0000000000000007.0000000000000008.lane", "000000000000000A.0000000000000008.lanes", ""]
        {
            assert_eq!(parse_lanes_name(name), None, "{name}");
        }
    }
}
