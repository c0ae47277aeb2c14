//! From files to a state and a report.
//!
//! ```text
//!  list ── header of each ── chain: extent of k from the header of the next, or its seal, or a scan
//!       ── lanes of each  ── waiting, in flight, done
//!       ── at the first invalid frame: verdict ── torn: drop what follows · damage: refuse, or skip by option
//!       ── unproven frames of a queue that promises more than the page cache: copied to a new segment, synced
//! ```
//!
//! Recovery writes only files that it creates: the copy is made under a temporary name, synced, renamed, and made part of
//! the journal by its header, which says where the segment before it ends. What that supersedes is removed last, after the
//! queue's header says so. A crash at any step leaves a directory that recovers to the same state. Nothing is appended to a
//! segment of an earlier process. Sealed segments that are proven durable, or whose page cache is intact, are not read
//! through: only their lanes are.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holes::Holes;
use super::lane::{self, BLOCK, BLOCK_LANES, Lane};
use super::segment::{FRAMES_AT, LEN_MAX, LEN_MIN, Segment, block_is_ours};
use super::verdict::{Evidence, Verdict, judge};
use super::{Context, Entry, MetaFile, Recovered, file_name, ids_after_loss};
use crate::disk::{self, Disk, EntryKind, File};
use crate::error::OpenError;
use crate::format::frame::{self, Frame, Kind, Salt};
use crate::format::header::{self, Extent, PAGE, Previous, SegmentHeader};
use crate::format::{Fault, VERSION};
use crate::ids::{Cursor, ItemId};
use crate::planted::{self, Bug};
use crate::stats::{LostRange, RecoveryReport};

/// How the caller wants it.
pub(crate) struct Wishes<'a> {
    pub(crate) salvage: bool,
    /// The queue's puts are answered from the page cache.
    pub(crate) cache_promised: bool,
    pub(crate) segment_bytes: u32,
    /// What was cleared is not removed unseen: somebody asks what moved there, or archives it.
    pub(crate) keep_cleared: bool,
    /// No id up to this one is given out again.
    pub(crate) id_floor: u64,
    /// Told after each segment: done, total. `false` cancels.
    pub(crate) progress: &'a dyn Fn(u64, u64) -> bool,
}

/// A recovered journal, and what its reader begins with.
pub(crate) struct Outcome {
    pub(crate) recovered: Recovered,
    pub(crate) report: RecoveryReport,
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    /// The first waiting item.
    pub(crate) first: Option<Cursor>,
    /// The newest put time found.
    pub(crate) newest_ms: u64,
}

/// A segment file as found. Opened when it is read, so that a long journal needs no more descriptors than a short one.
struct Found {
    path: PathBuf,
    named: bool,
    disk: Disk,
    header: SegmentHeader,
    seal: Option<header::Seal>,
    /// Frames end at or before this.
    reach: u32,
    extent: Option<Extent>,
    proven_to: u32,
    last_ms: u64,
    scan: Option<Scan>,
    done: u32,
    waiting: u64,
    waiting_bytes: u64,
    first_waiting: Option<(u32, u32)>,
    /// Some lane is not as it was at the put.
    marked: bool,
    /// Items that a consumer held when the last process ended, and their starts.
    in_flight: Vec<(u32, u8)>,
}

impl Found {
    /// What nobody holds any more waits, so that the open after the next one does not count it among what this process held.
    /// A mark that cannot be stored is counted once more.
    fn give_back(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        let Some(file) = (!in_flight.is_empty()).then(|| self.open(true).ok()).flatten() else {
            return;
        };
        for (ordinal, starts) in in_flight {
            if let Some(at) = lane::lane_at(self.header.segment_bytes, ordinal) {
                let _ = file.write_at(at as u64, &[Lane::Waiting { starts }.to_byte()]);
            }
        }
    }

    fn open(&self, writable: bool) -> io::Result<File> {
        self.disk.open(&self.path, writable)
    }
}

/// What reading a segment's frames found.
#[derive(Default)]
struct Scan {
    extent: Extent,
    last_ms: u64,
    /// The highest durable mark met, also behind an invalid frame.
    synced_to: u32,
    /// The first invalid place, with the next valid frame behind it, if any.
    stop: Option<Stop>,
    discarded_items: u64,
    discarded_bytes: u64,
}

#[derive(Clone, Copy)]
struct Stop {
    offset: u32,
    valid_follows: bool,
}

/// A stretch of a segment that holds no valid frame, and the frame behind it.
struct Gap {
    next: Option<(u32, Frame)>,
}

pub(crate) struct Recovery<'a> {
    context: &'a Context,
    wishes: Wishes<'a>,
    report: RecoveryReport,
    /// Items up to this id were cleared.
    clear_id: u64,
    /// What says that files are gone is durable, so that they may be removed.
    may_remove: bool,
    /// Segments older than a clear.
    cleared: Vec<Found>,
}

impl<'a> Recovery<'a> {
    pub(crate) fn new(context: &'a Context, wishes: Wishes<'a>) -> Self {
        let report = RecoveryReport::default();
        Recovery { context, wishes, report, clear_id: 0, may_remove: false, cleared: Vec::new() }
    }

    /// A journal without files.
    pub(crate) fn nothing(meta: MetaFile, id_floor: u64) -> Outcome {
        let next_id = meta.meta.next_id.max(id_floor + 1).max(1);
        let next_number = meta.meta.segment_last.max(meta.meta.segment_floor.saturating_sub(1)) + 1;
        Outcome {
            recovered: Recovered {
                entries: BTreeMap::new(),
                previous: None,
                next_id,
                next_number,
                next_len: LEN_MIN,
                unsynced: Vec::new(),
                meta,
            },
            report: RecoveryReport { clean: true, ..RecoveryReport::default() },
            items: 0,
            bytes: 0,
            first: None,
            newest_ms: 0,
        }
    }

    pub(crate) fn run(mut self, dir: &Path, mut meta: MetaFile) -> Result<Outcome, OpenError> {
        self.clear_id = meta.meta.clear_id;
        let mut found = self.list(dir, &mut meta)?;
        let nameless = self.check_gaps(dir, &mut found, &meta)?;
        if !self.context.read_only && !meta.meta.clean {
            self.prove_names(dir, &found)?;
        }
        self.measure(&mut found, &meta)?;
        let mut torn = self.truncate(&mut found)?;
        torn.extend(nameless);
        let lost_tail = !torn.is_empty();

        // Segments that hold nothing any more are forgotten once the header says so.
        let mut gone: Vec<(u64, PathBuf)> = torn.into_iter().map(|f| (f.header.number, f.path)).collect();
        for segment in found.values_mut() {
            self.read_lanes(segment)?;
        }
        let clean = meta.meta.clean && !lost_tail && self.report.discarded_items == 0;

        let last_id = found
            .values()
            .next_back()
            .map_or(0, |last| (last.header.first_id + u64::from(last.extent.map_or(0, |e| e.count))).saturating_sub(1));
        let mut next_id = (last_id + 1)
            .max(found.values().next_back().map_or(1, |last| last.header.first_id))
            .max(meta.meta.next_id)
            .max(meta.meta.clear_id + 1)
            .max(self.wishes.id_floor + 1);
        if !meta.meta.clean && meta.meta.boot_id != self.context.boot_id {
            // Puts that a power cut undid may have told their ids: start above all that can have been given out.
            next_id = ids_after_loss(next_id);
        }
        if planted::is(Bug::ReuseId) {
            let waiting = found.values().rev().find(|f| f.waiting > 0);
            next_id = waiting.map_or(1, |f| f.header.first_id + u64::from(f.extent.map_or(0, |e| e.count)));
        }
        let mut next_number = (meta.meta.segment_last + 1)
            .max(meta.meta.segment_floor)
            .max(found.keys().next_back().map_or(1, |n| n + 1))
            .max(gone.iter().map(|(n, ..)| n + 1).max().unwrap_or(1))
            .max(meta.meta.freed.iter().map(|(_, last)| last + 1).max().unwrap_or(1));

        let mut unsynced = Vec::new();
        if !self.context.read_only {
            // What is torn off before anything says where what stays ends: a next recovery that finds both would see no tear
            // between them, if the segments there had been freed.
            if !gone.is_empty() && !planted::is(Bug::SealBeforeTear) {
                self.remove(dir, std::mem::take(&mut gone), &mut meta)?;
            }
            self.prove(dir, &mut found, &mut gone, &mut next_number, &mut unsynced)?;
            // The last one, and what a recovery left that ended between its copy and the seal of the segment that it copied from.
            for open in found.values_mut().filter(|segment| segment.seal.map(|seal| seal.extent) != segment.extent) {
                let proven = open.proven_to >= open.extent.unwrap_or_default().end;
                // A durable seal proves what is older, too: not while anything is left for the next sync to prove. That
                // takes this seal along.
                let durable = proven && unsynced.is_empty() && !self.wishes.cache_promised;
                Self::reseal(open, durable)?;
                let number = open.header.number;
                if !durable && !unsynced.contains(&number) {
                    unsynced.push(number);
                }
            }
            if !gone.is_empty() {
                self.remove(dir, gone, &mut meta)?;
            }
            for segment in found.values_mut() {
                segment.give_back();
            }
        }
        self.report.held.sort_unstable();

        let mut outcome = Outcome {
            recovered: Recovered {
                entries: BTreeMap::new(),
                previous: None,
                next_id,
                next_number,
                next_len: LEN_MIN,
                unsynced,
                meta,
            },
            report: RecoveryReport::default(),
            items: 0,
            bytes: 0,
            first: None,
            newest_ms: 0,
        };
        for (number, segment) in found {
            let extent = segment.extent.unwrap_or_default();
            // Only now that nothing can fail any more: a queue that does not open is tried again.
            self.context.pool.add_disk_bytes(u64::from(segment.header.segment_bytes));
            outcome.items += segment.waiting;
            outcome.bytes += segment.waiting_bytes;
            outcome.newest_ms = outcome.newest_ms.max(segment.last_ms).max(segment.header.base_ms);
            if outcome.first.is_none() {
                outcome.first =
                    segment.first_waiting.map(|(offset, ordinal)| Cursor { segment: number, offset, ordinal });
            }
            outcome.recovered.previous =
                Some(Previous { number, salt: segment.header.salt, extent, synced_to: segment.proven_to });
            let used = extent.end.max(FRAMES_AT) + extent.count;
            outcome.recovered.next_len = used.next_power_of_two().clamp(LEN_MIN, self.wishes.segment_bytes);
            let lost = self.report.lost.iter().filter(|lost| lost.segment == number);
            let ordinal =
                |id: ItemId| u32::try_from(id.get().saturating_sub(segment.header.first_id)).unwrap_or(u32::MAX);
            let lost = lost.map(|lost| ordinal(lost.first)..ordinal(lost.last).saturating_add(1).min(extent.count));
            outcome.recovered.entries.insert(
                number,
                Entry {
                    lost: lost.collect(),
                    open: None,
                    named: segment.named,
                    extent,
                    synced_to: extent.end,
                    done: segment.done,
                    last_ms: segment.last_ms,
                    sealed: true,
                    unproven_from: (segment.proven_to < extent.end).then_some(segment.proven_to),
                    cleared: false,
                    marks_unsynced: segment.marked,
                    marks_unproven: segment.marked,
                    holes: Holes::default(),
                    may_have_holes: true,
                    thinned: segment.seal.is_some_and(|seal| seal.thinned),
                    header: segment.header,
                },
            );
        }
        for segment in std::mem::take(&mut self.cleared) {
            let extent = segment.extent.unwrap_or_default();
            self.context.pool.add_disk_bytes(u64::from(segment.header.segment_bytes));
            outcome.recovered.entries.insert(
                segment.header.number,
                Entry {
                    lost: Vec::new(),
                    open: None,
                    named: segment.named,
                    extent,
                    synced_to: extent.end,
                    done: extent.count,
                    last_ms: segment.last_ms,
                    sealed: true,
                    unproven_from: None,
                    cleared: true,
                    marks_unsynced: false,
                    marks_unproven: false,
                    holes: Holes::default(),
                    may_have_holes: true,
                    thinned: false,
                    header: segment.header,
                },
            );
        }
        self.report.clean = clean;
        self.report.items = outcome.items;
        outcome.report = self.report;
        Ok(outcome)
    }

    fn io(path: &Path, source: io::Error) -> OpenError {
        match disk::as_not_regular(&source) {
            Some(what) => OpenError::NotRegular { path: path.to_owned(), what },
            None if disk::is_no_space(&source) => OpenError::NoSpace { path: path.to_owned(), source },
            None if disk::is_too_many_files(&source) => OpenError::TooManyFiles { path: path.to_owned(), source },
            None => OpenError::Io { path: path.to_owned(), source },
        }
    }

    fn corrupt(&self, path: &Path, segment: u64, offset: u64, what: &'static str) -> OpenError {
        OpenError::Corrupt {
            queue: self.context.queue.clone(),
            path: path.to_owned(),
            segment: Some(segment),
            offset,
            what,
        }
    }

    /// Opens every segment file and reads its first page; removes what the header says is gone, and unfinished copies.
    fn list(&mut self, dir: &Path, meta: &mut MetaFile) -> Result<BTreeMap<u64, Found>, OpenError> {
        let disk = &self.context.disk;
        let mut names: BTreeMap<u64, (String, bool, EntryKind)> = BTreeMap::new();
        for entry in disk.list(dir).map_err(|e| Self::io(dir, e))? {
            let Some((stem, ending)) = entry.name.split_once('.') else {
                continue;
            };
            let Ok(number) = u64::from_str_radix(stem, 16) else {
                continue;
            };
            if stem.len() != 16 || number == 0 || number == u64::MAX || stem.bytes().any(|b| b.is_ascii_uppercase()) {
                continue;
            }
            let named = match ending {
                "seg" => true,
                "new" => false,
                "tmp" if entry.kind == EntryKind::File && !self.context.read_only => {
                    let path = dir.join(&entry.name);
                    disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                    continue;
                }
                _ => continue,
            };
            if meta.meta.is_freed(number) {
                if entry.kind == EntryKind::File && !self.context.read_only {
                    self.before_removal(dir, meta)?;
                    let path = dir.join(&entry.name);
                    disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                }
                continue;
            }
            // Of a number's two names only one can be ours; the final one is.
            if named || !names.contains_key(&number) {
                names.insert(number, (entry.name, named, entry.kind));
            }
        }
        let total = names.len() as u64;
        self.report.segments = total;
        let mut found = BTreeMap::new();
        // From the newest down, because a header tells what the recovery that wrote it has superseded.
        let mut superseded_above = u64::MAX;
        let mut newer: Option<u64> = None;
        // Whether a power cut may have taken what is older than what was seen so far: nothing newer was covered by a sync,
        // and the page cache is not the one it was stored in.
        let mut may_be_torn = true;
        // Whether everything older was cleared: no sync has waited for it since, so it may be torn without what is newer
        // being so.
        let mut all_cleared = false;
        for (done, (number, (name, named, kind))) in names.into_iter().rev().enumerate() {
            if !(self.wishes.progress)(done as u64, total) {
                return Err(OpenError::Cancelled);
            }
            let path = dir.join(name);
            if newer.is_some_and(|newer| number < newer) && (number > superseded_above || all_cleared) {
                if kind == EntryKind::File && !self.context.read_only {
                    if number <= superseded_above
                        && let Some(segment) = self.look_cleared(&path, named, number, meta)
                    {
                        superseded_above = segment.header.previous.map_or(0, |previous| previous.number);
                        self.cleared.push(segment);
                        continue;
                    }
                    self.before_removal(dir, meta)?;
                    meta.update(|meta| {
                        meta.add_freed(number);
                    })
                    .map_err(|e| Self::io(dir, e))?;
                    disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                }
                continue;
            }
            if kind != EntryKind::File {
                return Err(OpenError::NotRegular { path, what: "a directory, link, FIFO or device" });
            }
            let Some(segment) = self.look(path, number, named, meta, may_be_torn)? else {
                continue;
            };
            all_cleared |= segment.header.first_id <= self.clear_id.saturating_add(1);
            may_be_torn &= !segment.named && segment.header.boot_id != self.context.boot_id;
            superseded_above = segment.header.previous.map_or(0, |previous| previous.number);
            newer = Some(number);
            found.insert(number, segment);
        }
        Ok(found)
    }

    /// An earlier process of this boot may have died between giving a durable copy its name and syncing that: the copy is
    /// taken for proven, so its name must be.
    fn prove_names(&self, dir: &Path, found: &BTreeMap<u64, Found>) -> Result<(), OpenError> {
        match found.values().any(|segment| segment.header.boot_id == self.context.boot_id) {
            true => self.context.disk.sync_dir(dir).map_err(|e| Self::io(dir, e)),
            false => Ok(()),
        }
    }

    /// What an earlier process stored and we read may be in the page cache only: a header slot, or the name of a recovery's
    /// copy. A file that one of them declares gone may be removed only once they are durable, or a power cut could keep the
    /// removal and lose the reason.
    fn before_removal(&mut self, dir: &Path, meta: &mut MetaFile) -> Result<(), OpenError> {
        if !self.may_remove && !planted::is(Bug::RemoveBeforeProof) {
            self.context.disk.sync_dir(dir).map_err(|e| Self::io(dir, e))?;
            meta.prove().map_err(|e| Self::io(dir, e))?;
            self.may_remove = true;
        }
        Ok(())
    }

    /// Opens one file. `None`: an interrupted creation, or a lost segment under `Salvage`.
    fn look(
        &mut self,
        path: PathBuf,
        number: u64,
        named: bool,
        meta: &mut MetaFile,
        may_be_torn: bool,
    ) -> Result<Option<Found>, OpenError> {
        let disk = &self.context.disk;
        let file = disk.open(&path, !self.context.read_only).map_err(|e| Self::io(&path, e))?;
        let len = file.len().map_err(|e| Self::io(&path, e))?;
        let mut page = vec![0; PAGE.min(usize::try_from(len).unwrap_or(PAGE))];
        file.read_at(0, &mut page).map_err(|e| Self::io(&path, e))?;
        let header = match header::decode(&page) {
            Ok(header) => header,
            Err(Fault::Version(version)) => {
                return Err(OpenError::UnsupportedVersion { path, found: version, supported: VERSION });
            }
            Err(Fault::Invalid(what)) => {
                // A `.new` whose header never reached the device is an interrupted creation.
                if !named && may_be_torn {
                    self.report.discarded_bytes += u64::from(len > 0);
                    if !self.context.read_only {
                        disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                    }
                    return Ok(None);
                }
                if self.wishes.salvage {
                    self.give_up(&path, number, meta)?;
                    return Ok(None);
                }
                return Err(self.corrupt(&path, number, 0, what));
            }
        };
        let foreign = |what| OpenError::ForeignSegment {
            queue: self.context.queue.clone(),
            segment: number,
            path: path.clone(),
            what,
        };
        let mismatch = if header.set_id != self.context.set_id {
            Some("it belongs to another set")
        } else if header.queue_id != meta.meta.queue_id {
            Some("it belongs to another queue")
        } else if header.number != number {
            Some("it has another number")
        } else {
            None
        };
        if let Some(what) = mismatch {
            if !named && may_be_torn {
                // A recycled file whose new header never reached the device.
                if !self.context.read_only {
                    disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                }
                return Ok(None);
            }
            if self.wishes.salvage {
                self.give_up(&path, number, meta)?;
                return Ok(None);
            }
            return Err(foreign(what));
        }
        let legal = header.segment_bytes.is_power_of_two() && (LEN_MIN..=LEN_MAX).contains(&header.segment_bytes);
        if !legal {
            return Err(self.corrupt(&path, number, 0, "segment length"));
        }
        if len != u64::from(header.segment_bytes) {
            if !named && may_be_torn && header.boot_id != self.context.boot_id {
                if !self.context.read_only {
                    disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
                }
                return Ok(None);
            }
            if self.wishes.salvage && len < u64::from(header.segment_bytes) && !self.context.read_only {
                file.allocate(u64::from(header.segment_bytes)).map_err(|e| Self::io(&path, e))?;
            } else {
                return Err(self.corrupt(&path, number, len, "file length"));
            }
        }
        page.resize(PAGE, 0);
        let seal = header::decode_seal(&page, header.salt);
        let same_boot = header.boot_id == self.context.boot_id;
        let reach = match header::decode_reach(&page, header.salt) {
            Some(reach) if same_boot => reach.min(header.segment_bytes),
            _ => header.segment_bytes,
        };
        Ok(Some(Found {
            path,
            named,
            disk: disk.clone(),
            reach,
            extent: None,
            proven_to: FRAMES_AT,
            last_ms: seal.map_or(header.base_ms, |seal| seal.last_ms),
            seal,
            scan: None,
            done: 0,
            waiting: 0,
            waiting_bytes: 0,
            first_waiting: None,
            marked: false,
            in_flight: Vec::new(),
            header,
        }))
    }

    /// A cleared segment, as far as it can be read: no sync has waited for it since the clear.
    fn look_cleared(&mut self, path: &Path, named: bool, number: u64, meta: &mut MetaFile) -> Option<Found> {
        if !self.wishes.keep_cleared {
            return None;
        }
        let salvage = std::mem::take(&mut self.wishes.salvage);
        let looked = self.look(path.to_owned(), number, named, meta, false);
        self.wishes.salvage = salvage;
        let mut segment = looked.ok().flatten()?;
        let limit = segment.seal.map_or(segment.reach, |seal| seal.extent.end.min(segment.header.segment_bytes));
        let scan = self.scan(&segment, limit, false).ok()?;
        segment.last_ms = segment.last_ms.max(scan.last_ms);
        segment.extent = Some(scan.extent);
        Some(segment)
    }

    /// Salvage: a segment that cannot be read at all. Its items are lost; the file is set aside.
    fn give_up(&mut self, path: &Path, number: u64, meta: &mut MetaFile) -> Result<(), OpenError> {
        self.report.lost.push(LostRange { segment: number, offset: 0, first: ItemId(0), last: ItemId(0) });
        if self.context.read_only {
            return Ok(());
        }
        let aside = path.with_extension("damaged");
        self.context.disk.rename(path, &aside).map_err(|e| Self::io(path, e))?;
        meta.update(|meta| {
            meta.add_freed(number);
        })
        .map_err(|e| Self::io(path, e))
    }

    /// Every number from the floor to the newest must be there, be freed, or be superseded.
    ///
    /// A power cut may also have lost the name of a segment and kept that of a later one, as long as no sync has covered
    /// either: then the journal ends at the gap. Returns what lies behind.
    fn check_gaps(
        &mut self,
        dir: &Path,
        found: &mut BTreeMap<u64, Found>,
        meta: &MetaFile,
    ) -> Result<Vec<Found>, OpenError> {
        let given_up: Vec<u64> = self.report.lost.iter().map(|lost| lost.segment).collect();
        let missing =
            |segment| OpenError::MissingSegment { queue: self.context.queue.clone(), segment, path: dir.to_owned() };
        let mut lost = Vec::new();
        let mut expected = meta.meta.segment_floor.max(1);
        let mut last_id = None;
        let mut cut_at = None;
        let last_covered = found.iter().rev().find(|(_, f)| f.named).map_or(0, |(number, _)| *number);
        for (number, segment) in found.iter() {
            if segment.header.first_id <= self.clear_id.saturating_add(1) {
                // What was before it was cleared.
                expected = number + 1;
                last_id = Some(segment.header.first_id);
                continue;
            }
            let superseded_from = segment.header.previous.map_or(1, |previous| previous.number + 1);
            let mut gap = expected;
            while gap < *number {
                if let Some(&(_, last)) = meta.meta.freed.iter().find(|(first, last)| (*first..=*last).contains(&gap)) {
                    gap = last + 1;
                } else if gap >= superseded_from {
                    break;
                } else if gap > last_covered && segment.header.boot_id != self.context.boot_id {
                    cut_at = Some(*number);
                    break;
                } else if given_up.contains(&gap) || self.wishes.salvage {
                    lost.push((gap, last_id, segment.header.first_id));
                    gap = superseded_from.min(*number);
                } else {
                    return Err(missing(gap));
                }
            }
            if cut_at.is_some() {
                break;
            }
            expected = number + 1;
            last_id = Some(segment.header.first_id);
        }
        let behind = match cut_at {
            Some(cut_at) => found.split_off(&cut_at).into_values().collect(),
            None => Vec::new(),
        };
        for segment in &behind {
            // How many items they held is not worth reading: nothing of it was promised.
            self.report.discarded_items += 1;
            self.report.discarded_bytes += u64::from(segment.header.segment_bytes);
        }
        if !meta.meta.is_freed(meta.meta.segment_last)
            && meta.meta.segment_last >= expected
            && !given_up.contains(&meta.meta.segment_last)
        {
            if !self.wishes.salvage {
                return Err(missing(meta.meta.segment_last));
            }
            lost.push((meta.meta.segment_last, last_id, meta.meta.next_id));
        }
        for (segment, first, next_first) in lost {
            // Exact where the segment before is there: its successor's header says how many items it had.
            let before = found.range(..segment).next_back();
            let first = match before {
                Some((_, before)) => {
                    let count = before.seal.map(|seal| seal.extent.count).unwrap_or(0);
                    before.header.first_id + u64::from(count)
                }
                None => first.unwrap_or(meta.meta.clear_id + 1),
            };
            let range = LostRange {
                segment,
                offset: 0,
                first: ItemId(first),
                last: ItemId(next_first.saturating_sub(1).max(first)),
            };
            match self.report.lost.iter_mut().find(|lost| lost.segment == segment) {
                Some(known) => *known = range,
                None => self.report.lost.push(range),
            }
        }
        Ok(behind)
    }

    /// Finds where each segment ends and how far it is proven, from the newest down: what is newer proves what is older.
    fn measure(&mut self, found: &mut BTreeMap<u64, Found>, meta: &MetaFile) -> Result<(), OpenError> {
        let mut newer: Option<Previous> = None;
        let mut all_older_proven = false;
        for segment in found.values_mut().rev() {
            let same_boot = segment.header.boot_id == self.context.boot_id;
            let told = match newer {
                Some(previous) if previous.number == segment.header.number => {
                    if previous.salt != segment.header.salt {
                        return Err(OpenError::ForeignSegment {
                            queue: self.context.queue.clone(),
                            segment: segment.header.number,
                            path: segment.path.clone(),
                            what: "it is another use of that file",
                        });
                    }
                    segment.proven_to = segment.proven_to.max(previous.synced_to);
                    Some(previous.extent)
                }
                _ => segment.seal.map(|seal| seal.extent),
            };
            if segment.header.number == meta.meta.segment_last {
                segment.proven_to = segment.proven_to.max(meta.meta.last_end);
            }
            let durable_seal = segment.seal.is_some_and(|seal| seal.durable && Some(seal.extent) == told);
            let legal = |e: &Extent| {
                e.end >= FRAMES_AT && e.end <= segment.header.segment_bytes && e.count <= segment.header.segment_bytes
            };
            let told = told.filter(legal);
            let proven = all_older_proven || durable_seal;
            let thinned = segment.seal.is_some_and(|seal| seal.thinned);
            match told {
                // Believed unread only where the page cache is: a failed sync may have undone frames that are told of, and what
                // tells of them, a seal or the next header, may have been stored after that. What was being thinned out cannot be
                // read through, and only a queue that promised the page cache does that before a sync.
                Some(extent) if proven || (same_boot && (self.wishes.cache_promised || thinned)) => {
                    segment.extent = Some(extent);
                    if proven {
                        segment.proven_to = extent.end;
                    }
                }
                _ => {
                    let limit = told.map_or(segment.reach, |extent| extent.end);
                    let scan = self.scan(segment, limit, told.is_some())?;
                    segment.proven_to = segment.proven_to.max(scan.synced_to);
                    segment.last_ms = segment.last_ms.max(scan.last_ms);
                    if proven {
                        segment.proven_to = limit;
                    }
                    segment.extent = Some(scan.extent);
                    segment.scan = Some(scan);
                }
            }
            all_older_proven |= segment.named || durable_seal || segment.proven_to > FRAMES_AT;
            newer = segment.header.previous;
        }
        Ok(())
    }

    /// Judges the first invalid place of the journal. A torn one ends it: returns the segments behind.
    fn truncate(&mut self, found: &mut BTreeMap<u64, Found>) -> Result<Vec<Found>, OpenError> {
        let mut cut_at = None;
        let numbers: Vec<u64> = found.keys().copied().collect();
        for (i, number) in numbers.iter().enumerate() {
            let newer_exists = i + 1 < numbers.len();
            let Some(segment) = found.get_mut(number) else {
                continue;
            };
            let Some(scan) = &segment.scan else { continue };
            self.report.discarded_items += scan.discarded_items;
            self.report.discarded_bytes += scan.discarded_bytes;
            let Some(stop) = scan.stop else { continue };
            let verdict = judge(Evidence {
                below_durable_mark: stop.offset < segment.proven_to,
                same_boot: segment.header.boot_id == self.context.boot_id,
                cache_promised: self.wishes.cache_promised,
                valid_follows: stop.valid_follows || newer_exists,
            });
            match verdict {
                Verdict::Torn if newer_exists => {
                    cut_at = Some(*number + 1);
                    break;
                }
                Verdict::Torn => {}
                Verdict::Damage if self.wishes.salvage => {
                    self.report.discarded_items -= scan.discarded_items;
                    self.report.discarded_bytes -= scan.discarded_bytes;
                    let limit = segment.proven_to.max(scan.extent.end).max(stop.offset);
                    let limit = if newer_exists { limit } else { segment.reach.max(limit) };
                    self.salvage(segment, limit)?;
                }
                Verdict::Damage => {
                    let offset = u64::from(stop.offset);
                    return Err(self.corrupt(&segment.path, *number, offset, "frame"));
                }
            }
        }
        let Some(cut_at) = cut_at else {
            return Ok(Vec::new());
        };
        let dropped: Vec<Found> = found.split_off(&cut_at).into_values().collect();
        for segment in &dropped {
            let extent = segment.extent.unwrap_or_default();
            self.report.discarded_items += u64::from(extent.count);
            self.report.discarded_bytes += u64::from(extent.end.saturating_sub(FRAMES_AT));
        }
        Ok(dropped)
    }

    /// Reads the frames of a segment up to `limit`.
    fn scan(&mut self, segment: &Found, limit: u32, ends_known: bool) -> Result<Scan, OpenError> {
        let mut reader = Reader::new(segment);
        let mut scan = Scan { extent: Extent { end: FRAMES_AT, ..Extent::default() }, ..Scan::default() };
        let mut at = Extent { end: FRAMES_AT, ..Extent::default() };
        let mut in_batch = false;
        let io = |e| Self::io(&segment.path, e);
        while at.end < limit {
            let Some(frame) = reader.frame(at.end, at.count, limit).map_err(io)? else {
                break;
            };
            scan.synced_to = scan.synced_to.max(frame.synced_to);
            at.end += frame.total_len();
            if frame.kind.is_item() {
                at.count += 1;
                at.payload_bytes += u64::from(frame.payload_len);
                scan.last_ms = scan.last_ms.max(segment.header.base_ms + u64::from(frame.time_delta));
            }
            in_batch = frame.kind == Kind::BatchPart && !planted::is(Bug::BatchWithoutEnd);
            if !in_batch {
                scan.extent = at;
            }
        }
        let stopped = at.end < limit || in_batch;
        if stopped {
            let gap = reader.search(at.end, at.count, limit).map_err(io)?;
            scan.discarded_items = u64::from(at.count - scan.extent.count) + reader.found_items;
            scan.discarded_bytes = u64::from(at.end - scan.extent.end) + reader.found_bytes;
            scan.synced_to = scan.synced_to.max(reader.found_synced_to);
            let offset = if in_batch && at.end >= limit { scan.extent.end } else { at.end };
            let stop = Stop { offset, valid_follows: gap.next.is_some() };
            // Without a known end, nothing invalid and nothing behind it is just the end.
            scan.stop = Some(stop).filter(|stop| {
                ends_known
                    || stop.valid_follows
                    || stop.offset < segment.proven_to
                    || in_batch
                    || scan.synced_to > stop.offset
                    || at.end != scan.extent.end
            });
        }
        self.report.scanned_bytes += u64::from(at.end - FRAMES_AT);
        Ok(scan)
    }

    /// Reads over damage: keeps every valid frame, and says which ids are lost.
    fn salvage(&mut self, segment: &mut Found, limit: u32) -> Result<(), OpenError> {
        let io = |e| Self::io(&segment.path, e);
        let mut reader = Reader::new(segment);
        let mut at = Extent { end: FRAMES_AT, ..Extent::default() };
        let mut kept = at;
        let mut lost = Vec::new();
        while at.end < limit {
            if let Some(frame) = reader.frame(at.end, at.count, limit).map_err(io)? {
                at.end += frame.total_len();
                if frame.kind.is_item() {
                    at.count += 1;
                    at.payload_bytes += u64::from(frame.payload_len);
                }
                kept = at;
                continue;
            }
            let gap = reader.search(at.end, at.count, limit).map_err(io)?;
            let Some((offset, next)) = gap.next else {
                break;
            };
            if next.ordinal > at.count {
                lost.push((at.end, at.count, next.ordinal - 1));
            }
            at.end = offset;
            at.count = next.ordinal;
        }
        let extent = kept;
        let last_known = segment.proven_to.max(kept.end);
        if kept.end < segment.proven_to {
            // The damage reaches to the proven end: how many items were there only the neighbours know.
            let count = segment.seal.map_or(kept.count + 1, |seal| seal.extent.count.max(kept.count + 1));
            lost.push((kept.end, kept.count, count - 1));
        }
        for (offset, first, last) in lost {
            self.report.lost.push(LostRange {
                segment: segment.header.number,
                offset: offset.into(),
                first: ItemId(segment.header.first_id + u64::from(first)),
                last: ItemId(segment.header.first_id + u64::from(last)),
            });
        }
        segment.proven_to = segment.proven_to.min(last_known);
        segment.extent = Some(extent);
        Ok(())
    }

    /// Reads the state of each item; for a segment that is partly done also its frame headers, for the exact byte count.
    fn read_lanes(&mut self, segment: &mut Found) -> Result<(), OpenError> {
        let clear_id = self.clear_id;
        let extent = segment.extent.unwrap_or_default();
        let lanes = Lanes::read(segment, extent.count).map_err(|e| Self::io(&segment.path, e))?;
        segment.in_flight.clear();
        for ordinal in 0..extent.count {
            let lane = match lanes.get(ordinal) {
                _ if segment.header.first_id + u64::from(ordinal) <= clear_id => Lane::Done,
                Some(lane) => lane,
                None => {
                    self.report.damaged_marks += 1;
                    Lane::Waiting { starts: 0 }
                }
            };
            segment.marked |= lane != (Lane::Waiting { starts: 0 });
            match lane {
                Lane::Done => segment.done += 1,
                Lane::InFlight { starts } => segment.in_flight.push((ordinal, starts)),
                Lane::Waiting { .. } => {}
            }
        }
        self.report.redelivered += segment.in_flight.len() as u64;
        let first_id = segment.header.first_id;
        self.report.held.extend(segment.in_flight.iter().map(|(ordinal, _)| ItemId(first_id + u64::from(*ordinal))));
        segment.waiting = u64::from(extent.count - segment.done);
        let ids = self.report.lost.iter().filter(|lost| lost.segment == segment.header.number);
        let lost: Vec<(u64, u64)> = ids.map(|lost| (lost.first.get(), lost.last.get())).collect();
        if segment.waiting == 0 {
            return Ok(());
        }
        if segment.done == 0 && lost.is_empty() {
            segment.waiting_bytes = extent.payload_bytes;
            segment.first_waiting = Some((FRAMES_AT, 0));
            return Ok(());
        }
        let mut reader = Reader::new(segment);
        let mut offset = FRAMES_AT;
        let mut ordinal = 0;
        let mut waiting = 0;
        let mut bytes = 0;
        let mut first = None;
        let mut met = Vec::new();
        let io = |e| Self::io(&segment.path, e);
        // In the order of ids, as the salvage found them.
        let is_lost = |id: u64| lost.get(lost.partition_point(|(_, last)| *last < id)).is_some_and(|l| l.0 <= id);
        let waits = |ordinal: u32| {
            let id = segment.header.first_id + u64::from(ordinal);
            id > clear_id && lanes.get(ordinal) != Some(Lane::Done) && !is_lost(id)
        };
        while offset < extent.end {
            let Some(frame) = reader.head(offset, ordinal, extent.end).map_err(io)? else {
                let gap = reader.search(offset, ordinal, extent.end).map_err(io)?;
                let next = gap.next.map_or((extent.end, extent.count), |(at, frame)| (at, frame.ordinal));
                if (ordinal..next.1).any(waits) {
                    met.push((offset, ordinal, next.1 - 1));
                }
                if !met.is_empty() && !self.wishes.salvage {
                    let number = segment.header.number;
                    return Err(self.corrupt(&segment.path, number, u64::from(offset), "frame"));
                }
                (offset, ordinal) = next;
                continue;
            };
            if frame.kind.is_item() {
                if ordinal >= extent.count {
                    // More items than whoever says where it ends has counted.
                    return Err(self.corrupt(&segment.path, segment.header.number, u64::from(offset), "item count"));
                }
                if waits(ordinal) {
                    waiting += 1;
                    bytes += u64::from(frame.payload_len);
                    first.get_or_insert((offset, ordinal));
                }
                ordinal += 1;
            }
            offset += frame.total_len();
        }
        if (ordinal..extent.count).any(waits) {
            if !self.wishes.salvage {
                return Err(self.corrupt(&segment.path, segment.header.number, u64::from(offset), "frame"));
            }
            met.push((offset, ordinal, extent.count - 1));
        }
        self.report.lost.extend(met.into_iter().map(|(offset, first, last)| LostRange {
            segment: segment.header.number,
            offset: offset.into(),
            first: ItemId(segment.header.first_id + u64::from(first)),
            last: ItemId(segment.header.first_id + u64::from(last)),
        }));
        // Items lost to damage are neither waiting nor ever done: count them as done, so that the rest can free the file.
        // Their marks follow when the segment is opened, or the reader would count them a second time.
        segment.done = extent.count - u32::try_from(waiting).unwrap_or(0);
        segment.waiting = waiting;
        segment.waiting_bytes = bytes;
        segment.first_waiting = first;
        Ok(())
    }

    /// A queue that promises more than the page cache must not serve what may not be on the device: an earlier process may
    /// have been told that a sync failed, and the next sync of the same file would succeed without those bytes.
    fn prove(
        &mut self,
        dir: &Path,
        found: &mut BTreeMap<u64, Found>,
        gone: &mut Vec<(u64, PathBuf)>,
        next_number: &mut u64,
        unsynced: &mut Vec<u64>,
    ) -> Result<(), OpenError> {
        let unproven: Vec<u64> = found
            .iter()
            .filter(|(_, f)| f.proven_to < f.extent.unwrap_or_default().end)
            .map(|(number, _)| *number)
            .collect();
        let Some(&first) = unproven.first() else {
            return Ok(());
        };
        unsynced.extend(&unproven);
        if planted::is(Bug::ServeUnproven) {
            unsynced.clear();
            for segment in found.values_mut() {
                segment.proven_to = segment.extent.unwrap_or_default().end;
            }
            return Ok(());
        }
        if self.wishes.cache_promised {
            return Ok(());
        }
        // One new segment takes all frames above the mark, if they fit and are all there and their ids have no gap; else the first sync,
        // which comes before anything is served, stores their pages again. What is newer than the last unproven one is
        // empty, and is superseded too.
        let region: Vec<&Found> = found.range(first..).map(|(_, f)| f).collect();
        let bytes: u64 = region
            .iter()
            .map(|f| {
                let extent = f.extent.unwrap_or_default();
                u64::from(extent.end - f.proven_to) + u64::from(extent.count) * 2
            })
            .sum();
        let gapless = region.windows(2).all(|pair| {
            pair[0].header.first_id + u64::from(pair[0].extent.unwrap_or_default().count) == pair[1].header.first_id
        });
        let len = (bytes + 4 * PAGE as u64 + 2 * BLOCK as u64).next_power_of_two().max(u64::from(LEN_MIN));
        let lost = self.report.lost.iter().any(|lost| lost.segment >= first);
        let thinned = region.iter().any(|f| f.seal.is_some_and(|seal| seal.thinned));
        if !gapless || lost || thinned || len > u64::from(self.wishes.segment_bytes.max(LEN_MIN)) {
            return Ok(());
        }
        let number = *next_number;
        let (copy, kept) = match self.copy(dir, found, first, number, len as u32) {
            Ok(copied) => copied,
            // On a full medium the first sync stores the pages again where they are: that needs no space.
            Err(OpenError::NoSpace { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        *next_number = number + 1;
        unsynced.clear();
        for (number, old) in found.split_off(&(first + 1)) {
            gone.push((number, old.path));
        }
        if let Some(old) = found.get_mut(&first) {
            old.extent = Some(kept);
            if kept.count > 0 {
                Self::reseal(old, true)?;
            }
        }
        // What is left of the first one is counted again without the frames that moved.
        if kept.count == 0 {
            if let Some(old) = found.remove(&first) {
                gone.push((first, old.path));
            }
        } else if let Some(old) = found.get_mut(&first) {
            (old.done, old.waiting, old.waiting_bytes, old.first_waiting) = (0, 0, 0, None);
            let (in_flight, held) = (self.report.redelivered, self.report.held.clone());
            let marks = self.report.damaged_marks;
            let mut old = found.remove(&first).ok_or(OpenError::Closed)?;
            self.read_lanes(&mut old)?;
            (self.report.redelivered, self.report.held) = (in_flight, held);
            self.report.damaged_marks = marks;
            found.insert(first, old);
        }
        found.insert(number, copy);
        Ok(())
    }

    /// Says in the segment itself where its frames end now. Its successor's header says so too, but may be freed first; then a
    /// scan would find again what was moved, or torn, and take it for the segment's own.
    fn reseal(segment: &mut Found, durable: bool) -> Result<(), OpenError> {
        let extent = segment.extent.unwrap_or_default();
        let thinned = !durable && segment.seal.is_some_and(|seal| seal.thinned);
        let seal = header::Seal { extent, last_ms: segment.last_ms, durable, thinned };
        if segment.seal == Some(seal) {
            return Ok(());
        }
        let io = |e| Self::io(&segment.path, e);
        let bytes = header::encode_seal(&seal, segment.header.salt);
        let file = segment.open(true).map_err(io)?;
        file.write_at(header::CLEAN_SEAL_AT as u64, &bytes).map_err(io)?;
        if durable && let Err(error) = file.sync_data() {
            // It may be in the page cache for good and on the device never: the next recovery shall not believe it.
            let _ = file.write_at(header::CLEAN_SEAL_AT as u64, &[0; header::SEAL_LEN]);
            return Err(io(error));
        }
        segment.seal = Some(seal);
        Ok(())
    }

    /// Writes the unproven frames of `first` and of all behind it to a new segment, syncs and publishes it.
    fn copy(
        &mut self,
        dir: &Path,
        found: &BTreeMap<u64, Found>,
        first: u64,
        number: u64,
        len: u32,
    ) -> Result<(Found, Extent), OpenError> {
        let disk = &self.context.disk;
        let path = dir.join(format!("{number:016x}.tmp"));
        let io = |e: io::Error| Self::io(&path, e);
        let oldest = found.get(&first).ok_or(OpenError::Closed)?;

        // Where the proven part of the oldest ends: at a frame, never inside a batch.
        let mut kept = Extent { end: FRAMES_AT, ..Extent::default() };
        let mut at = kept;
        let mut reader = Reader::new(oldest);
        while at.end < oldest.proven_to {
            let Some(frame) = reader.head(at.end, at.count, oldest.proven_to).map_err(io)? else {
                break;
            };
            at.end += frame.total_len();
            if frame.kind.is_item() {
                at.count += 1;
                at.payload_bytes += u64::from(frame.payload_len);
            }
            if frame.kind != Kind::BatchPart {
                kept = at;
            }
        }
        let header = SegmentHeader {
            set_id: self.context.set_id,
            queue_id: oldest.header.queue_id,
            number,
            segment_bytes: len,
            first_id: oldest.header.first_id + u64::from(kept.count),
            base_ms: oldest.header.base_ms,
            salt: Salt(disk.random_u64().map_err(io)?),
            boot_id: self.context.boot_id,
            // If nothing of the oldest stays, the copy takes its place behind the one before it.
            previous: match kept.count {
                0 => oldest.header.previous,
                _ => Some(Previous { number: first, salt: oldest.header.salt, extent: kept, synced_to: kept.end }),
            },
        };
        let file = Arc::new(disk.create(&path).map_err(io)?);
        let made = (|| {
            let reserved = file.allocate(u64::from(len))?;
            let map = disk.open_map(&file, len as usize, self.context.pool.mapped() && reserved)?;
            let segment = Segment::begin(&header, Some(Arc::clone(&file)), map)?;
            let mut to = Extent { end: FRAMES_AT, ..Extent::default() };
            let mut done = 0;
            let mut first_waiting = None;
            let mut waiting_bytes = 0;
            let mut last_ms = 0;
            for (number, old) in found.range(first..) {
                let extent = old.extent.unwrap_or_default();
                let lanes = Lanes::read(old, extent.count)?;
                let mut from = if *number == first { kept } else { Extent { end: FRAMES_AT, ..Extent::default() } };
                let mut reader = Reader::new(old);
                while from.end < extent.end {
                    let Some(frame) = reader.frame(from.end, from.count, extent.end)? else {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame changed while it was copied"));
                    };
                    let offset = from.end;
                    from.end += frame.total_len();
                    if !frame.kind.is_item() {
                        continue;
                    }
                    let payload = reader.payload(offset + frame.head_len(), frame.payload_len)?;
                    let put_ms = old.header.base_ms + u64::from(frame.time_delta);
                    let moved = Frame {
                        ordinal: to.count,
                        payload_crc: frame::payload_crc(header.salt, &payload),
                        time_delta: u32::try_from(put_ms.saturating_sub(header.base_ms)).unwrap_or(u32::MAX),
                        synced_to: 0,
                        kind: match planted::is(Bug::CopyWithoutDelay) {
                            true => Kind::Item,
                            false => frame.kind,
                        },
                        ..frame
                    };
                    let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
                    let head_len = frame::encode(&moved, header.salt, to.end, &mut head);
                    if to.count.is_multiple_of(BLOCK_LANES) {
                        segment.begin_lane_block(to.count / BLOCK_LANES)?;
                    }
                    segment.write_frame(to.end, &head[..head_len], &payload)?;
                    let id = old.header.first_id + u64::from(from.count);
                    // What is addressed is none of the queue's own, also where a power cut took the mark.
                    let is_done =
                        id <= self.clear_id || lanes.get(from.count) == Some(Lane::Done) || frame.only.is_some();
                    let is_done = is_done && !planted::is(Bug::CopyWithoutMarks);
                    match lanes.get(from.count) {
                        _ if is_done => {
                            segment.mark_done(to.count)?;
                            done += 1;
                        }
                        Some(Lane::Waiting { starts: 0 }) | None => {}
                        Some(lane) => segment.mark(to.count, Lane::Waiting { starts: lane.starts() })?,
                    }
                    if !is_done {
                        first_waiting.get_or_insert((to.end, to.count));
                        waiting_bytes += u64::from(frame.payload_len);
                    }
                    last_ms = last_ms.max(put_ms);
                    from.count += 1;
                    to.count += 1;
                    to.payload_bytes += u64::from(frame.payload_len);
                    to.end += moved.total_len();
                }
            }
            segment.write_seal(to, last_ms, false)?;
            if !planted::is(Bug::CopyWithoutSync) {
                file.sync_data()?;
            }
            segment.write_seal(to, last_ms, true)?;
            if !planted::is(Bug::CopyWithoutSync) {
                file.sync_data()?;
            }
            let named = dir.join(file_name(number, true));
            disk.rename(&path, &named)?;
            disk.sync_dir(dir)?;
            Ok(Found {
                path: named,
                named: true,
                disk: disk.clone(),
                seal: Some(header::Seal { extent: to, last_ms, durable: true, thinned: false }),
                reach: to.end,
                extent: Some(to),
                proven_to: to.end,
                last_ms,
                scan: None,
                done,
                waiting: u64::from(to.count - done),
                waiting_bytes,
                first_waiting,
                marked: false,
                in_flight: Vec::new(),
                header,
            })
        })();
        match made {
            Ok(copy) => {
                self.report.copied_items += u64::from(copy.extent.unwrap_or_default().count);
                Ok((copy, kept))
            }
            Err(error) => {
                let _ = disk.unlink(&path);
                Err(Self::io(&path, error))
            }
        }
    }

    /// Removes segments that are superseded or torn off, after the header says that they are gone.
    fn remove(&self, dir: &Path, gone: Vec<(u64, PathBuf)>, meta: &mut MetaFile) -> Result<(), OpenError> {
        meta.update(|meta| {
            for (number, ..) in &gone {
                meta.add_freed(*number);
            }
        })
        .map_err(|e| Self::io(dir, e))?;
        for (_, path) in gone {
            self.context.disk.unlink(&path).map_err(|e| Self::io(&path, e))?;
        }
        Ok(())
    }
}

/// The lanes of a segment, copied out.
struct Lanes {
    salt: Salt,
    /// Block after block, in the order of ordinals.
    bytes: Vec<u8>,
}

impl Lanes {
    fn read(segment: &Found, count: u32) -> io::Result<Lanes> {
        let mut bytes = Vec::new();
        let blocks = count.div_ceil(BLOCK_LANES);
        if let Some(lowest) = blocks.checked_sub(1).and_then(|b| lane::block_at(segment.header.segment_bytes, b)) {
            let mut raw = vec![0; (segment.header.segment_bytes - lowest) as usize];
            segment.open(false)?.read_at(u64::from(lowest), &mut raw)?;
            bytes.reserve(raw.len());
            for block in raw.rchunks(BLOCK) {
                bytes.extend_from_slice(block);
            }
        }
        Ok(Lanes { salt: segment.header.salt, bytes })
    }

    /// `None`: no legal state. A block that is not of this use of the file holds no marks: its items wait.
    fn get(&self, ordinal: u32) -> Option<Lane> {
        let block = ordinal / BLOCK_LANES;
        let bytes = self.bytes.get(block as usize * BLOCK..(block as usize + 1) * BLOCK)?;
        if !block_is_ours(self.salt, block, bytes) {
            return Some(Lane::Waiting { starts: 0 });
        }
        Lane::from_byte(*bytes.get(lane::TAG + (ordinal % BLOCK_LANES) as usize)?)
    }
}

/// Reads frames from a file through a window of constant size.
struct Reader<'a> {
    segment: &'a Found,
    /// Once something was read.
    file: Option<File>,
    window: Vec<u8>,
    window_at: u64,
    found_items: u64,
    found_bytes: u64,
    found_synced_to: u32,
}

const WINDOW: usize = 256 << 10;
const HEAD_MAX: usize = frame::HEADER_BYTES + frame::EXTENSION_MAX;

impl<'a> Reader<'a> {
    fn new(segment: &'a Found) -> Self {
        Reader {
            segment,
            file: None,
            window: Vec::new(),
            window_at: 0,
            found_items: 0,
            found_bytes: 0,
            found_synced_to: 0,
        }
    }

    fn open(&mut self) -> io::Result<File> {
        match self.file.take() {
            Some(file) => Ok(file),
            None => self.segment.open(false),
        }
    }

    /// Up to `want` bytes at `offset`, fewer only at the end of the segment.
    fn bytes(&mut self, offset: u32, want: usize) -> io::Result<&[u8]> {
        let len = u64::from(self.segment.header.segment_bytes);
        let offset = u64::from(offset);
        let want = want.min(WINDOW).min(usize::try_from(len.saturating_sub(offset)).unwrap_or(WINDOW));
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if !(held.contains(&offset) && offset + want as u64 <= held.end) {
            let size = WINDOW.min(usize::try_from(len.saturating_sub(offset)).unwrap_or(WINDOW));
            self.window.resize(size, 0);
            self.window_at = offset;
            let file = self.open()?;
            file.read_at(offset, &mut self.window)?;
            self.file = Some(file);
        }
        let start = (offset - self.window_at) as usize;
        Ok(self.window.get(start..start + want).unwrap_or_default())
    }

    /// The frame at `offset`, if its header is valid and continues the sequence.
    fn head(&mut self, offset: u32, ordinal: u32, limit: u32) -> io::Result<Option<Frame>> {
        let salt = self.segment.header.salt;
        let limit = limit.min(lane::frame_limit(self.segment.header.segment_bytes, ordinal.saturating_add(1)));
        let head = self.bytes(offset, HEAD_MAX)?;
        Ok(frame::decode(head, salt, offset, limit).filter(|frame| frame.ordinal == ordinal))
    }

    /// The same, with a valid payload.
    fn frame(&mut self, offset: u32, ordinal: u32, limit: u32) -> io::Result<Option<Frame>> {
        match self.head(offset, ordinal, limit)? {
            Some(frame) => Ok(self.payload_valid(offset, &frame)?.then_some(frame)),
            None => Ok(None),
        }
    }

    fn payload_valid(&mut self, offset: u32, frame: &Frame) -> io::Result<bool> {
        if planted::is(Bug::SkipPayloadCrc) {
            return Ok(true);
        }
        let salt = self.segment.header.salt;
        let mut at = offset + frame.head_len();
        let mut left = frame.payload_len as usize;
        let mut hasher = crc32fast::Hasher::new_with_initial(salt.payload_seed());
        while left > 0 {
            let part = self.bytes(at, left)?;
            if part.is_empty() {
                return Ok(false);
            }
            hasher.update(part);
            left -= part.len();
            at += part.len() as u32;
        }
        Ok(hasher.finalize() == frame.payload_crc)
    }

    fn payload(&mut self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; len as usize];
        let file = self.open()?;
        file.read_at(u64::from(offset), &mut payload)?;
        self.file = Some(file);
        Ok(payload)
    }

    /// Looks behind an invalid frame for valid ones: the next one, and what they say about durability. A candidate counts
    /// only if header, payload and a plausible ordinal hold, so payloads that imitate frames do not pass without the salt.
    fn search(&mut self, from: u32, ordinal: u32, limit: u32) -> io::Result<Gap> {
        let salt = self.segment.header.salt;
        let mut next = None;
        let mut expected = ordinal;
        let mut offset = from;
        // The frame that broke off: if its header is whole, its put was under way.
        if let Some(frame) = self.head(from, ordinal, limit)?
            && frame.kind.is_item()
        {
            self.found_items += 1;
            self.found_bytes += u64::from(frame.total_len());
            self.found_synced_to = self.found_synced_to.max(frame.synced_to);
        }
        offset = offset.saturating_add(frame::ALIGN);
        while offset < limit {
            let page_end = (offset & !(PAGE as u32 - 1)) + PAGE as u32;
            let stretch = self.bytes(offset, (page_end - offset) as usize)?;
            let Some(zeros) = stretch.iter().position(|byte| *byte != 0) else {
                offset = page_end;
                continue;
            };
            // No frame begins where its kind would be zero.
            offset += (zeros as u32).saturating_sub(frame::KIND_END - 1).next_multiple_of(frame::ALIGN);
            let head = self.bytes(offset, HEAD_MAX)?;
            let plausible = |frame: &Frame| {
                frame.ordinal >= expected
                    && frame.ordinal - expected <= (offset - from) / frame::HEADER_BYTES as u32 + 1
            };
            let candidate = frame::decode(head, salt, offset, limit).filter(plausible);
            match candidate {
                Some(frame) if self.payload_valid(offset, &frame)? => {
                    self.found_synced_to = self.found_synced_to.max(frame.synced_to);
                    self.found_items += u64::from(frame.kind.is_item());
                    self.found_bytes += u64::from(frame.total_len());
                    if next.is_none() {
                        next = Some((offset, frame));
                    }
                    expected = frame.ordinal + u32::from(frame.kind.is_item());
                    offset += frame.total_len();
                }
                _ => offset += frame::ALIGN,
            }
        }
        Ok(Gap { next })
    }
}
