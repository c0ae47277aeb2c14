//! What the fuzz targets call: each takes any bytes, and panics on a bug. No part of the API.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::OnceLock;

use super::{Fate, SimDisk};
use crate::disk::Disk;
use crate::format::frame::{self, Frame, Kind, Salt};
use crate::format::header::{self, Extent, Seal};
use crate::format::{meta, name};
use crate::journal::lane;
use crate::options::{QueueOptions, QueueOverrides};
use crate::{OnDamage, OpenItem, PutError, Queue, QueueSet};

/// Fuzzes the decoding of one frame: what decodes must encode to the same bytes.
pub fn frame_decode(data: &[u8]) {
    let salt = Salt(0x1234_5678_9abc_def0);
    let Some(decoded) = frame::decode(data, salt, 4096, 1 << 30) else {
        return;
    };
    let mut out = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let len = frame::encode(&decoded, salt, 4096, &mut out);
    assert_eq!(data.get(..len), Some(&out[..len]), "a frame decodes from other bytes than it encodes to");
}

const ITEMS: u8 = 40;

/// A small set with two queues, some items done, closed in good order or not.
fn small_set(clean: bool) -> SimDisk {
    let disk = SimDisk::new(1);
    let set = QueueSet::builder().disk(Disk::Sim(disk.clone())).open("/s");
    if let Ok(set) = set {
        for name in ["a", "b"] {
            if let Ok(queue) = set.queue(name) {
                for n in 0..ITEMS {
                    let _ = queue.append(vec![n; 20 + usize::from(n) * 9]);
                }
                let _ = queue.sync();
                let _ = queue.try_get();
            }
        }
        if !clean {
            return disk.kill();
        }
        let _ = set.close();
    }
    disk
}

/// Fuzzes the opening of a directory: `data` damages the files of a small set; whatever opens must hold only what was put.
///
/// The first byte chooses how the set was left and how it is opened; each five bytes after it choose a file, an offset, and
/// what is done there: another byte, a cut, zeros, bytes of another place.
pub fn open_dir(data: &[u8]) {
    let Some((&how, edits)) = data.split_first() else {
        return;
    };
    // Written once: the branches of a disk are independent.
    static SETS: OnceLock<[SimDisk; 2]> = OnceLock::new();
    let sets = SETS.get_or_init(|| [small_set(true), small_set(false)]);
    let disk = sets[usize::from(how & 1)].kill();
    let files = disk.list_files();
    for edit in edits.chunks_exact(5).take(64) {
        let Some(path) = files.get(usize::from(edit[0] >> 2) % files.len().max(1)) else {
            return;
        };
        let mut bytes = disk.read_file(path).unwrap_or_default();
        let at = (usize::from(edit[1]) << 8 | usize::from(edit[2])) % bytes.len().max(1);
        match edit[0] & 3 {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= edit[3];
                }
            }
            1 => bytes.truncate(at),
            2 => bytes.iter_mut().skip(at).take(usize::from(edit[3]) * 8).for_each(|byte| *byte = 0),
            _ => {
                let from = usize::from(edit[3]) << 8 | usize::from(edit[4]);
                let copied: Vec<u8> = bytes.iter().skip(from).take(64).copied().collect();
                bytes.iter_mut().skip(at).zip(copied).for_each(|(byte, copy)| *byte = copy);
            }
        }
        disk.write_file(path, &bytes);
    }
    let choice = if how & 2 == 0 { OnDamage::Refuse } else { OnDamage::Salvage };
    let Ok(set) = QueueSet::builder().disk(Disk::Sim(disk.clone())).on_damage(choice).open("/s") else {
        return;
    };
    for name in set.names() {
        let Ok(queue) = set.queue(&name) else {
            continue;
        };
        let mut last = None;
        for _ in 0..u32::from(ITEMS) + 2 {
            let Ok(Some(item)) = queue.try_open() else {
                break;
            };
            let n = item.data().first().copied().unwrap_or(u8::MAX);
            assert_eq!(item.data(), vec![n; 20 + usize::from(n) * 9], "a payload that was never put");
            assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
            last = Some(n);
            let _ = item.close();
        }
        let _ = queue.put("alive");
    }
}

/// Fuzzes the recovery of a segment whose checksums all hold: `data` says which frames, marks, seals and reaches are written
/// into it, by eights. What comes out must be what some frame held, in the order of ids.
pub fn segment(data: &[u8]) {
    let Some((&how, edits)) = data.split_first() else {
        return;
    };
    static SET: OnceLock<SimDisk> = OnceLock::new();
    let disk = SET.get_or_init(|| small_set(false)).kill();
    let Some(path) = disk.list_files().into_iter().find(|path| is_segment(path)) else {
        return;
    };
    let mut file = disk.read_file(&path).unwrap_or_default();
    let Ok(header) = header::decode(&file[..header::PAGE.min(file.len())]) else {
        return;
    };
    let mut end = header::PAGE as u32;
    let mut ordinal = 0u32;
    for edit in edits.chunks_exact(8).take(200) {
        let number = u32::from(edit[2]) << 8 | u32::from(edit[3]);
        let mut store = |at: usize, bytes: &[u8]| {
            if let Some(place) = file.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        match edit[0] & 7 {
            0..=3 => {
                let payload = vec![edit[1]; usize::from(edit[4]) * if edit[0] & 8 == 0 { 1 } else { 40 }];
                let frame = Frame {
                    kind: [Kind::Item, Kind::BatchPart, Kind::BatchEnd, Kind::Checkpoint][usize::from(edit[0] & 3)],
                    payload_len: payload.len() as u32,
                    payload_crc: frame::payload_crc(header.salt, &payload),
                    ordinal: if edit[0] & 16 == 0 { ordinal } else { number },
                    time_delta: u32::from(edit[5]),
                    synced_to: if edit[0] & 32 == 0 { 0 } else { end.wrapping_add(u32::from(edit[6])) },
                    id: None,
                    expiry_ms: (edit[0] & 64 != 0).then_some(u64::MAX - 1),
                    user_flags: u32::from(edit[7]),
                    starts_before: 0,
                    origin: None,
                    noted: false,
                    due_ms: 0,
                    only: None,
                };
                let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
                let len = frame::encode(&frame, header.salt, end, &mut head);
                store(end as usize, &head[..len]);
                store(end as usize + len, &payload);
                end = end.saturating_add(frame.total_len());
                ordinal += u32::from(frame.kind.is_item());
            }
            4 => {
                let durable = edit[0] & 8 != 0;
                let extent = Extent {
                    end: if edit[0] & 16 == 0 { end } else { number },
                    count: if edit[0] & 32 == 0 { ordinal } else { number },
                    payload_bytes: u64::from(number),
                };
                let at = if durable { header::CLEAN_SEAL_AT } else { header::SEAL_AT };
                store(
                    at,
                    &header::encode_seal(&Seal { extent, last_ms: 0, durable, thinned: number & 1 != 0 }, header.salt),
                );
            }
            5 => store(header::REACH_AT, &header::encode_reach(number << 4, header.salt)),
            6 => {
                if let Some(at) = lane::lane_at(header.segment_bytes, u32::from(edit[1])) {
                    store(at, &edit[2..3]);
                }
            }
            _ => end = header::PAGE as u32 + (number & !7),
        }
    }
    disk.write_file(&path, &file);
    let choice = if how & 1 == 0 { OnDamage::Refuse } else { OnDamage::Salvage };
    let disk = if how & 2 == 0 { disk } else { disk.power_cut(Fate::All) };
    let Ok(set) = QueueSet::builder().disk(Disk::Sim(disk)).on_damage(choice).open("/s") else {
        return;
    };
    for queue in set.names().iter().filter_map(|name| set.queue(name).ok()) {
        let mut last = 0;
        for _ in 0..1_000 {
            let Ok(Some(item)) = queue.try_open() else {
                break;
            };
            let first = item.data().first().copied().unwrap_or_default();
            assert!(item.data().iter().all(|byte| *byte == first), "a payload that no frame held");
            assert!(item.id().get() > last, "{} after {last}", item.id());
            last = item.id().get();
            let _ = item.close();
        }
        let _ = queue.put("alive");
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "seg" || ending == "new")
}

/// Fuzzes the names of queues: what is allowed comes back from its encoding, and no other bytes decode to it.
pub fn queue_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if name::check(&text).is_ok() {
        let parts = name::encode(&text);
        assert_eq!(name::decode(&parts).as_deref(), Some(&*text));
        for part in &parts {
            assert!((1..=255).contains(&part.len()) && !part.starts_with('.') && !part.contains('/'), "{part:?}");
        }
    }
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    if let Some(decoded) = name::decode(&parts) {
        assert_eq!(name::encode(&decoded), parts, "two encodings of one name");
    }
}

/// Fuzzes stored options, and the headers that hold them: what decodes must encode to something that decodes to the same.
pub fn options(data: &[u8]) {
    if let Some(options) = QueueOverrides::from_bytes(data) {
        assert_eq!(QueueOverrides::from_bytes(&options.to_bytes()), Some(options.clone()));
        let _ = options.over(&QueueOptions::default()).check();
    }
    let _ = meta::decode_set(data);
    let _ = meta::decode_queue(data);
    let _ = header::decode(data);
}

/// Fuzzes the codecs: any payload is a value or an error.
#[cfg(all(feature = "postcard", feature = "bincode"))]
pub fn typed(data: &[u8]) {
    type Value = (u64, String, Vec<Option<i32>>, std::collections::BTreeMap<String, Vec<u8>>);
    fn check<C: crate::Codec<Value>>(queue: &Queue, codec: C)
    where
        C::Error: std::fmt::Debug,
    {
        let typed = queue.typed::<Value, C>(codec);
        if let Ok(Some(item)) = typed.try_open() {
            let value = item.close().expect("marked");
            typed.put(&value).expect("what was decoded can be encoded");
            let again = typed.try_open().expect("decodes again").expect("is there").close().expect("marked");
            assert_eq!(again, value);
        }
    }
    let options = QueueOptions::default().journal(false);
    let set = QueueSet::builder().disk(Disk::Sim(SimDisk::new(1))).defaults(options).open("/s").expect("opens");
    for (name, bincode) in [("p", false), ("b", true)] {
        let queue = set.queue(name).expect("opens");
        queue.put(data).expect("room");
        match bincode {
            true => check(&queue, crate::Bincode),
            false => check(&queue, crate::Postcard),
        }
    }
}

/// Fuzzes sequences of operations, failures and crashes of a `Sync` queue: each byte is one step.
pub fn operations(data: &[u8]) {
    let mut world = World::new();
    for byte in data.iter().take(300) {
        if world.step(byte & 15, byte >> 4).is_none() {
            break;
        }
    }
    world.disk.heal();
    world.crash(None);
}

/// What was asked and answered, by payload number.
#[derive(Default)]
struct Answers {
    put: BTreeSet<u32>,
    maybe: BTreeSet<u32>,
    close_asked: BTreeSet<u32>,
    closed: BTreeSet<u32>,
    close_durable: BTreeSet<u32>,
}

struct World {
    disk: SimDisk,
    live: Option<(QueueSet, Queue)>,
    held: Vec<(u32, OpenItem)>,
    answers: Answers,
    next: u32,
}

impl World {
    fn new() -> World {
        let mut world =
            World { disk: SimDisk::new(1), live: None, held: Vec::new(), answers: Answers::default(), next: 0 };
        world.open();
        world
    }

    fn open(&mut self) {
        let options = QueueOptions::default().segment_bytes(64 << 10);
        let set =
            QueueSet::builder().disk(Disk::Sim(self.disk.clone())).defaults(options).pool_bytes(1 << 20).open("/s");
        self.live = set.ok().and_then(|set| {
            let queue = set.queue("q").ok()?;
            Some((set, queue))
        });
    }

    fn payload(number: u32, size: usize) -> Vec<u8> {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.resize(4 + size, number as u8);
        bytes
    }

    fn number(data: &[u8]) -> u32 {
        let number = u32::from_le_bytes(data[..4].try_into().expect("four bytes"));
        assert!(data[4..].iter().all(|byte| *byte == number as u8), "altered");
        number
    }

    fn note(&mut self, numbers: std::ops::Range<u32>, answer: Result<(), PutError>) {
        match answer {
            Ok(()) => self.answers.put.extend(numbers),
            Err(PutError::Indeterminate { .. }) => self.answers.maybe.extend(numbers),
            Err(_) => {}
        }
    }

    /// `None`: nothing more can be done with what is there.
    fn step(&mut self, what: u8, how_much: u8) -> Option<()> {
        if self.live.is_none() {
            self.disk.heal();
            self.open();
        }
        let (set, queue) = self.live.clone()?;
        let size = usize::from(how_much) * 700;
        match what {
            0..=3 => {
                let answer = queue.put(Self::payload(self.next, size)).map(drop);
                self.note(self.next..self.next + 1, answer);
                self.next += 1;
            }
            4 => {
                let count = u32::from(how_much % 4) + 1;
                let batch: Vec<Vec<u8>> = (self.next..self.next + count).map(|n| Self::payload(n, size)).collect();
                let answer = queue.put_batch(&batch).map(drop);
                self.note(self.next..self.next + count, answer);
                self.next += count;
            }
            5 | 6 => {
                if let Ok(Some(item)) = queue.try_open() {
                    let number = Self::number(item.data());
                    let asked = self.answers.put.contains(&number) || self.answers.maybe.contains(&number);
                    assert!(asked, "{number} was refused and is delivered");
                    assert!(!self.answers.closed.contains(&number), "{number} was closed and is delivered");
                    self.held.push((number, item));
                }
            }
            7 | 8 if !self.held.is_empty() => {
                let (number, item) = self.held.swap_remove(usize::from(how_much) % self.held.len());
                self.answers.close_asked.insert(number);
                if item.close().is_ok() {
                    self.answers.closed.insert(number);
                }
            }
            9 if !self.held.is_empty() => drop(self.held.swap_remove(usize::from(how_much) % self.held.len())),
            10 if queue.sync().is_ok() => {
                let closed = self.answers.closed.clone();
                self.answers.close_durable.extend(closed);
            }
            11 => set.run_upkeep(),
            12 => {
                self.held.clear();
                drop((set, queue));
                self.live = None;
            }
            13 => self.crash(None),
            14 => self.crash(Some(Fate::Random(u64::from(how_much)))),
            15 => {
                let kind = if how_much & 8 == 0 { ErrorKind::Other } else { ErrorKind::StorageFull };
                self.disk.fail_at(self.disk.steps() + u64::from(how_much & 7), kind);
            }
            _ => {}
        }
        Some(())
    }

    /// The process dies, or the power goes; what is there is held against the answers, and is the truth from then on.
    fn crash(&mut self, fate: Option<Fate>) {
        self.disk.heal();
        let after = match fate {
            Some(fate) => self.disk.restart_after_cut(fate),
            None => self.disk.restart(),
        };
        for (_, item) in self.held.drain(..) {
            let _ = item.into_token();
        }
        self.live = None;
        self.disk = after;
        // Of a copy, so that the items stay where they are.
        let looked = self.disk.kill();
        let set = QueueSet::builder().disk(Disk::Sim(looked)).open("/s").expect("the set opens after a crash");
        let mut there = BTreeSet::new();
        if let Some(queue) = set.get_queue("q").expect("the queue opens after a crash") {
            let mut last = 0;
            while let Some(item) = queue.try_open().expect("undamaged") {
                assert!(item.id().get() > last, "{} after {last}", item.id());
                last = item.id().get();
                there.insert(Self::number(item.data()));
                let _ = item.close();
            }
        }
        let answers = &mut self.answers;
        for number in &there {
            assert!(answers.put.contains(number) || answers.maybe.contains(number), "{number} is invented");
            let gone = if fate.is_some() { &answers.close_durable } else { &answers.closed };
            assert!(!gone.contains(number), "{number} was closed and is back");
        }
        for number in &answers.put {
            assert!(there.contains(number) || answers.close_asked.contains(number), "{number} is lost");
        }
        if fate.is_some() {
            answers.close_asked.retain(|number| !there.contains(number));
            answers.closed.retain(|number| !there.contains(number));
        }
        // The mark of a close may be in the page cache only: a later power cut can take it.
        let marked =
            answers.put.union(&answers.maybe).filter(|n| answers.close_asked.contains(n) && !there.contains(n));
        let marked = marked.filter(|n| fate.is_none() && !answers.close_durable.contains(n)).copied().collect();
        answers.put = there;
        answers.maybe = marked;
        self.open();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpora of the fuzz targets, and a few thousand inputs by chance.
    #[test]
    fn fuzz_corpora_find_nothing() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        type Target = fn(&[u8]);
        let targets: &[(&str, Target)] = &[
            ("frame_decode", frame_decode),
            ("open_dir", open_dir),
            ("segment", segment),
            ("queue_name", queue_name),
            ("options", options),
            ("operations", operations),
            #[cfg(all(feature = "postcard", feature = "bincode"))]
            ("typed", typed),
        ];
        for (name, target) in targets {
            let mut count = 0;
            for entry in std::fs::read_dir(root.join(name)).expect("the corpus") {
                target(&std::fs::read(entry.expect("readable").path()).expect("readable"));
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            for round in 0..1_500 {
                let mut input = Vec::new();
                for _ in 0..1 + round % 40 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    input.extend_from_slice(&state.to_le_bytes()[..5]);
                }
                target(&input);
            }
        }
    }
}
