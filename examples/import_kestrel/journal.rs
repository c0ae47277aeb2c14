//! Kestrel's and Starling's journal files: what stands in them, and which items are left at their end.
//!
//! Nothing of a file is held in memory but where its items are: 48 bytes each. No file is ever opened for writing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The largest item that a queue of this crate takes, less the 8 bytes that an item has ahead of it on its way; larger ones are
/// told.
pub(crate) const ITEM_MAX: u64 = (256 << 20) - 8192 - 8;

/// An item, and where its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Index into the files of its queue.
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// In ms since 1970; `None`: never.
    pub(crate) expiry_ms: Option<u64>,
    /// The number of its record: its place in the queue.
    place: u64,
    /// The number that a rolled file of 1.x gives an open item.
    preset: Option<i32>,
}

/// Something that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The last record is not whole: so many bytes of it are there. The file ends before it.
    Cut(u64),
    /// The rest of the file cannot be read.
    Damaged(String),
    /// Removals that may be of items that could not be read, and were not applied: their items come again.
    Doubtful(u64),
    /// Removals from an empty queue.
    Empty(u64),
    /// Openings that the journal ends under two numbers, as 1.2 did after a restart; both were followed.
    TwoNumbers(u64),
    /// Ends of openings that are not there.
    NotOpen(u64),
    /// This file holds what the one before it was packed from: a crash inside a rewrite. Its items come twice.
    Repeated,
    /// As `Repeated`, and the file was left out.
    LeftOut,
    /// An item is larger than a queue takes.
    TooLarge(u64),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: ", self.file.display(), self.offset)?;
        match &self.what {
            What::Cut(bytes) => write!(f, "ends inside a record, of which {bytes} bytes are there"),
            What::Damaged(why) => write!(f, "cannot be read from here on: {why}"),
            What::Doubtful(count) => write!(f, "{count} removals behind what could not be read were not applied"),
            What::Empty(count) => write!(f, "{count} removals from an empty queue"),
            What::TwoNumbers(count) => write!(f, "{count} openings were ended under their second number"),
            What::NotOpen(count) => write!(f, "{count} ends of openings that are not there"),
            What::Repeated => write!(f, "repeats the file before it (a crash in a rewrite); see --dedup"),
            What::LeftOut => write!(f, "repeats the file before it (a crash in a rewrite) and was left out"),
            What::TooLarge(len) => write!(f, "an item of {len} bytes is too large"),
        }
    }
}

/// What is left at the end of a queue's files, in order.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) items: Vec<Item>,
    pub(crate) notes: Vec<Note>,
}

/// The queues of a directory, each with its files in the order in which they were written. A pack replaces all files up to its
/// time; what has `~~` in its name was never finished.
pub(crate) fn queues(dir: &Path) -> io::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut found: BTreeMap<String, Vec<(u128, bool, PathBuf)>> = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.contains("~~")) else { continue };
        if !entry.file_type()?.is_file() {
            continue;
        }
        let (queue, rest) = name.split_once('.').map_or((name, None), |(queue, rest)| (queue, Some(rest)));
        let time = |text: &str| text.parse::<u64>().ok().map(u128::from);
        let (at, is_pack) = match rest {
            None => (u128::MAX, false),
            Some(rest) => match (time(rest), rest.strip_suffix(".pack").and_then(time)) {
                (Some(at), _) => (at, false),
                (_, Some(at)) => (at, true),
                _ => continue,
            },
        };
        if !queue.is_empty() {
            found.entry(queue.to_owned()).or_default().push((at, is_pack, entry.path()));
        }
    }
    let in_order = |mut files: Vec<(u128, bool, PathBuf)>| {
        let newest = files.iter().filter(|(_, is_pack, _)| *is_pack).map(|(at, ..)| *at).max();
        files.retain(|(at, is_pack, _)| newest.is_none_or(|newest| *at > newest || (*at == newest && *is_pack)));
        files.sort();
        files.into_iter().map(|(.., path)| path).collect()
    };
    Ok(found.into_iter().map(|(queue, files)| (queue, in_order(files))).collect())
}

/// One record.
#[derive(Debug)]
enum Record {
    Add {
        offset: u64,
        len: u64,
        added_ms: Option<i64>,
        expiry_ms: Option<u64>,
        preset: Option<i32>,
        ends: Option<i32>,
    },
    Remove,
    /// With its number, or counted.
    Open(Option<i32>),
    Count(i32),
    Unremove(i32),
    Confirm(i32),
}

/// Why there is no further record.
#[derive(Debug)]
enum Stop {
    Cut(u64),
    Damaged(String),
}

/// The records of one file.
struct Records {
    file: BufReader<File>,
    len: u64,
    at: u64,
}

impl Records {
    fn open(path: &Path) -> io::Result<Records> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Records { file: BufReader::with_capacity(1 << 16, file), len, at: 0 })
    }

    fn bytes<const N: usize>(&mut self, start: u64) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        if self.len - self.at < N as u64 {
            return Err(Stop::Cut(self.len - start));
        }
        self.file.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Stop::Cut(self.len - start),
            _ => Stop::Damaged(error.to_string()),
        })?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn number(&mut self, start: u64) -> Result<i32, Stop> {
        Ok(i32::from_le_bytes(self.bytes(start)?))
    }

    /// The next record with its offset; `Ok(None)`: the file ends here.
    fn next(&mut self) -> Result<Option<(u64, Record)>, Stop> {
        let start = self.at;
        if start >= self.len {
            return Ok(None);
        }
        let [op] = self.bytes(start)?;
        let record = match op {
            0 | 2 => self.add(start, op == 0, None, None)?,
            1 => Record::Remove,
            3 => Record::Open(None),
            4 => Record::Count(self.number(start)?),
            5 => Record::Unremove(self.number(start)?),
            6 => Record::Confirm(self.number(start)?),
            7 => {
                let preset = self.number(start)?;
                self.add(start, false, Some(preset), None)?
            }
            8 => {
                let ends = self.number(start)?;
                self.add(start, false, None, Some(ends))?
            }
            9 => Record::Open(Some(self.number(start)?)),
            other => return Err(Stop::Damaged(format!("no operation has the number {other}"))),
        };
        Ok(Some((start, record)))
    }

    fn add(&mut self, start: u64, short: bool, preset: Option<i32>, ends: Option<i32>) -> Result<Record, Stop> {
        let size = self.number(start)?;
        let head = if short { 4 } else { 16 };
        let Some(len) = u64::try_from(size).ok().and_then(|size| size.checked_sub(head)) else {
            return Err(Stop::Damaged(format!("an item of {size} bytes")));
        };
        let (added_ms, expiry_ms) = match short {
            true => (None, i64::from(self.number(start)?).saturating_mul(1000)),
            false => {
                let added_ms = i64::from_le_bytes(self.bytes(start)?);
                (Some(added_ms), i64::from_le_bytes(self.bytes(start)?))
            }
        };
        let offset = self.at;
        if self.len - offset < len {
            return Err(Stop::Cut(self.len - start));
        }
        let skip = i64::try_from(len).map_err(|error| Stop::Damaged(error.to_string()))?;
        self.file.seek_relative(skip).map_err(|error| Stop::Damaged(error.to_string()))?;
        self.at += len;
        // What is before 1970 has expired like anything else in the past.
        let expiry_ms = (expiry_ms != 0).then(|| u64::try_from(expiry_ms).unwrap_or(1));
        Ok(Record::Add { offset, len, added_ms, expiry_ms, preset, ends })
    }
}

/// A queue while its files are played.
#[derive(Default)]
struct Replay {
    waiting: VecDeque<Item>,
    /// Open items, and the numbers that they are known by.
    open: HashMap<u64, Item>,
    given: HashMap<i32, u64>,
    counted: HashMap<i32, u64>,
    counter: i32,
    places: u64,
    doubtful: bool,
    left_alone: u64,
    from_empty: u64,
    two_numbers: u64,
    not_open: u64,
}

impl Replay {
    fn play(&mut self, file: usize, record: &Record) {
        match *record {
            Record::Add { offset, len, expiry_ms, preset, ends, .. } => {
                if let Some(number) = ends {
                    self.end(number);
                }
                self.places += 1;
                self.waiting.push_back(Item { file, offset, len, expiry_ms, place: self.places, preset });
            }
            Record::Remove if self.doubtful => self.left_alone += 1,
            Record::Remove => self.from_empty += u64::from(self.waiting.pop_front().is_none()),
            Record::Open(number) => self.take(number),
            Record::Count(number) => self.counter = number,
            Record::Unremove(number) => match self.end(number) {
                Some(item) => self.waiting.push_front(item),
                None => self.not_open += 1,
            },
            Record::Confirm(number) => self.not_open += u64::from(self.end(number).is_none()),
        }
    }

    fn take(&mut self, number: Option<i32>) {
        // Behind what could not be read, the item that was opened may not be the one that is now the first: it stays.
        if self.doubtful {
            self.left_alone += 1;
            return;
        }
        let Some(item) = self.waiting.pop_front() else {
            self.from_empty += 1;
            return;
        };
        let key = item.place;
        match number {
            Some(number) => drop(self.given.insert(number, key)),
            None => {
                // The process that wrote this knew it by the number that it was written with; the next one counted.
                if let Some(preset) = item.preset {
                    self.given.insert(preset, key);
                }
                loop {
                    self.counter = self.counter.wrapping_add(1);
                    if self.counter != 0 && !self.counted.contains_key(&self.counter) {
                        break;
                    }
                }
                self.counted.insert(self.counter, key);
            }
        }
        self.open.insert(key, item);
    }

    fn end(&mut self, number: i32) -> Option<Item> {
        let given = self.given.remove(&number).and_then(|key| self.open.remove(&key));
        let item = given.or_else(|| {
            let item = self.counted.remove(&number).and_then(|key| self.open.remove(&key))?;
            self.two_numbers += u64::from(item.preset.is_some());
            Some(item)
        })?;
        // Its other number is free again.
        if given.is_some() {
            self.counted.retain(|_, key| *key != item.place);
        } else if let Some(preset) = item.preset {
            self.given.remove(&preset);
        }
        Some(item)
    }

    /// Open items come first, in the order of their places.
    fn items(self) -> Vec<Item> {
        let mut items: Vec<Item> = self.open.into_values().collect();
        items.sort_by_key(|item| item.place);
        items.extend(self.waiting);
        items
    }
}

/// Plays a queue's files in order. `progress` is told of the bytes that have been read, now and then.
pub(crate) fn replay(files: &[PathBuf], dedup: bool, progress: &mut dyn FnMut(u64)) -> Found {
    let mut found = Found { files: files.to_vec(), ..Found::default() };
    let mut replay = Replay::default();
    let last = files.last().filter(|_| repeats(files));
    for (index, path) in files.iter().enumerate() {
        let note = |offset, what| Note { file: path.clone(), offset, what };
        if last == Some(path) {
            found.notes.push(note(0, if dedup { What::LeftOut } else { What::Repeated }));
            if dedup {
                continue;
            }
        }
        let mut records = match Records::open(path) {
            Ok(records) => records,
            Err(error) => {
                found.notes.push(note(0, What::Damaged(error.to_string())));
                replay.doubtful = true;
                continue;
            }
        };
        let mut told = 0;
        loop {
            let at = records.at;
            match records.next() {
                Ok(Some((_, record))) => replay.play(index, &record),
                Ok(None) => break,
                Err(stop) => {
                    let is_last = index + 1 == files.len();
                    // Only at the very end is a cut record one that was being written.
                    replay.doubtful |= !is_last || matches!(stop, Stop::Damaged(_));
                    found.notes.push(note(
                        at,
                        match stop {
                            Stop::Cut(bytes) => What::Cut(bytes),
                            Stop::Damaged(why) => What::Damaged(why),
                        },
                    ));
                    break;
                }
            }
            if records.at - told >= 1 << 20 {
                progress(records.at - told);
                told = records.at;
            }
        }
        progress(records.len.saturating_sub(told));
    }
    let counts = [
        (replay.left_alone, What::Doubtful as fn(u64) -> What),
        (replay.from_empty, What::Empty),
        (replay.two_numbers, What::TwoNumbers),
        (replay.not_open, What::NotOpen),
    ];
    if let Some(file) = files.last() {
        let told = counts.iter().filter(|(count, _)| *count > 0);
        found.notes.extend(told.map(|(count, what)| Note { file: file.clone(), offset: 0, what: what(*count) }));
    }
    let (items, too_large): (Vec<Item>, Vec<Item>) = replay.items().into_iter().partition(|item| item.len <= ITEM_MAX);
    found.items = items;
    let told =
        |item: &Item| Note { file: files[item.file].clone(), offset: item.offset, what: What::TooLarge(item.len) };
    found.notes.extend(too_large.iter().map(told));
    found
}

/// Whether the last file holds what the one before it was packed from: a rewrite renames the packed file before it deletes the old
/// one. A packed file begins with the open items, each with its opening, then come the others, and nothing is removed.
fn repeats(files: &[PathBuf]) -> bool {
    let [.., packed, old] = files else { return false };
    let Some(packed) = adds(packed, true).filter(|adds| !adds.is_empty()) else { return false };
    adds(old, false).is_some_and(|old| old.ends_with(&packed))
}

/// Time of the put, expiry, length and checksum of an item.
type Known = (Option<i64>, Option<u64>, u64, u32);

/// Times, length and checksum of the items of a file. `None`: it is no packed file, though one was asked for.
fn adds(path: &Path, only_packed: bool) -> Option<Vec<Known>> {
    let (mut records, mut data) = (Records::open(path).ok()?, File::open(path).ok()?);
    let mut found = Vec::new();
    let (mut after_add, mut plain) = (false, 0);
    loop {
        let record = match records.next() {
            Ok(Some((_, record))) => record,
            Ok(None) => return Some(found),
            Err(_) if only_packed => return None,
            Err(_) => return Some(found),
        };
        match record {
            Record::Add { offset, len, added_ms, expiry_ms, ends: None, .. } => {
                plain += u64::from(after_add);
                after_add = true;
                found.push((added_ms, expiry_ms, len, sum(&mut data, offset, len)?));
            }
            Record::Open(Some(_)) if only_packed && after_add && plain == 0 => after_add = false,
            Record::Add { offset, len, added_ms, expiry_ms, .. } if !only_packed => {
                found.push((added_ms, expiry_ms, len, sum(&mut data, offset, len)?));
            }
            _ if only_packed => return None,
            _ => {}
        }
    }
}

fn sum(file: &mut File, offset: u64, len: u64) -> Option<u32> {
    file.seek(SeekFrom::Start(offset)).ok()?;
    let (mut hasher, mut left, mut buffer) = (crc32fast::Hasher::new(), len, vec![0; 1 << 16]);
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..step]).ok()?;
        hasher.update(&buffer[..step]);
        left -= step as u64;
    }
    Some(hasher.finalize())
}
