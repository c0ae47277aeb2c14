//! The ledger of what was asked and answered, and what must hold after any recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::rules;
use crate::disk::Disk;
use crate::disk::sim::{Fate, SimDisk};
use crate::{
    Durability, MoveFault, OpenError, OpenItem, PutError, PutOptions, Queue, QueueOptions, QueueSet, WhenFull,
};

pub(super) const DIR: &str = "/s";

pub(super) type Verdict = Result<(), String>;

/// How long a `Sync` or `Every` queue may take, after somebody looked, to make marks durable.
const MARKS_MS: u64 = 1000;

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Put {
    Asked,
    Ok,
    /// It failed and must never appear.
    Refused,
    /// It failed and may appear.
    Indeterminate,
}

/// One item's history.
#[derive(Clone, Debug, Hash)]
pub(super) struct Entry {
    pub(super) queue: &'static str,
    pub(super) put: Put,
    pub(super) id: u64,
    /// Items of one batch share a number.
    pub(super) batch: u64,
    /// The process that put it, counted from 0.
    pub(super) life: u32,
    pub(super) close_asked: bool,
    pub(super) close_ok: bool,
    /// A sync after the close was answered, or had its time.
    pub(super) close_durable: bool,
    pub(super) clear_asked: bool,
    pub(super) clear_ok: bool,
    /// The put was one of `Sync`, or a sync after it was answered, or had its time.
    pub(super) durable: bool,
    pub(super) starts: u32,
    pub(super) size: usize,
    /// When the background chores first ran after the put, and after the close.
    noticed_ms: Option<u64>,
    close_noticed_ms: Option<u64>,
    pub(super) expires_ms: Option<u64>,
    put_ms: u64,
    /// When its delay ends.
    pub(super) due_ms: Option<u64>,
    /// When the delay ends with which this process gave it back.
    back_ms: Option<u64>,
    /// Where it moves once it has expired, as it is.
    pub(super) expires_to: Option<&'static str>,
    /// The item that was asked to take its place.
    pub(super) moved_to: Option<u64>,
}

/// All items of a run, by key; keys rise in the order of puts.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Ledger {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) held: Vec<u64>,
    /// The set was being closed: starts of held items may have been given back.
    pub(super) closing: bool,
    /// An open was asked and not answered: one item may have one start more.
    opening: bool,
    pub(super) life: u32,
    batches: u64,
    pub(super) ids: BTreeMap<&'static str, u64>,
    /// What went wrong while the workload ran.
    pub(super) violation: Option<String>,
    /// The device has answered a sync that it did not do: what opens must be right, but it need not open.
    pub(super) lied_to: bool,
    /// A failed sync has taken content back that a process had stored: as if the power had gone.
    pub(super) reverted: bool,
    /// Errors were planned: a start may not have been counted.
    pub(super) tolerant: bool,
}

impl Ledger {
    pub(super) fn queues(&self) -> BTreeSet<&'static str> {
        self.entries.values().flat_map(|entry| std::iter::once(entry.queue).chain(entry.expires_to)).collect()
    }

    /// When the last delay ends, if there is any.
    fn last_due_ms(&self) -> Option<u64> {
        self.entries.values().filter_map(|entry| entry.due_ms).max()
    }

    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (u64, &'a Entry)> {
        self.entries.iter().filter(move |(_, entry)| entry.queue == name).map(|(key, entry)| (*key, entry))
    }

    fn of_mut<'a>(&'a mut self, name: &'a str) -> impl Iterator<Item = &'a mut Entry> {
        self.entries.values_mut().filter(move |entry| entry.queue == name)
    }

    /// A recovery shows what is there: from now on that was answered, and what is not there must never come back.
    /// After a power cut all of it is durable too.
    pub(super) fn settle_by(&mut self, disk: &SimDisk, setting: &Setting, power: bool) {
        let there = what_is_there(disk, setting, self.last_due_ms());
        self.settle(&there, power);
    }

    fn settle(&mut self, there: &BTreeMap<u64, Seen>, power: bool) {
        for (key, entry) in &mut self.entries {
            match there.get(key) {
                Some(seen) => {
                    entry.put = Put::Ok;
                    entry.durable |= power;
                    entry.starts = seen.attempts - 1;
                    (entry.close_asked, entry.close_ok) = (false, false);
                    (entry.clear_asked, entry.clear_ok) = (false, false);
                    if power {
                        // The cut has undone its move, if there was one: only a next one is held against it.
                        entry.moved_to = None;
                    }
                    // Where it may have moved, its id is another queue's.
                    if entry.expires_to.is_none() {
                        entry.id = seen.id;
                        let highest = self.ids.entry(entry.queue).or_default();
                        *highest = (*highest).max(seen.id);
                    }
                }
                None if entry.close_ok || entry.clear_ok => entry.close_durable |= power,
                // Its mark may be in the page cache only.
                None if !power && (entry.close_asked || entry.clear_asked) => {}
                None => (entry.put, entry.close_asked) = (Put::Refused, true),
            }
        }
        self.held.clear();
        (self.closing, self.opening) = (false, false);
    }
}

/// How a state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    Kill,
    Power,
}

/// How a set is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) durability: Durability,
    pub(super) may_map: bool,
    /// Small: most items are read behind.
    pub(super) memory_bytes: u64,
    /// With a limit, the oldest items are dropped.
    pub(super) max_items: Option<u64>,
    pub(super) pool_bytes: u64,
    /// Segment files that may be open.
    pub(super) open_files: u64,
    /// Expired items of queue `a` move to queue `b`.
    pub(super) expire_to_b: bool,
    pub(super) pad_to: Option<u32>,
}

pub(super) const SYNC: Setting = Setting {
    durability: Durability::Sync,
    may_map: true,
    memory_bytes: 1 << 30,
    max_items: None,
    pool_bytes: 1 << 20,
    open_files: 1 << 10,
    expire_to_b: false,
    pad_to: None,
};

impl Setting {
    pub(super) const fn with(self, durability: Durability) -> Setting {
        Setting { durability, ..self }
    }
}

/// A payload that says which it is and can be checked byte by byte.
pub(super) fn payload(key: u64, size: usize) -> Vec<u8> {
    let mut bytes = key.to_le_bytes().to_vec();
    let mut x = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < size.max(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(size.max(8));
    bytes
}

pub(super) fn key_of(data: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(..8)?.try_into().ok()?))
}

pub(super) fn options(durability: Durability) -> QueueOptions {
    QueueOptions::default().durability(durability).segment_bytes(64 << 10)
}

pub(super) fn open_with(disk: &SimDisk, setting: &Setting) -> Result<QueueSet, OpenError> {
    let mut options = options(setting.durability).memory_bytes(setting.memory_bytes);
    options.max_items = setting.max_items;
    options.pad_to = setting.pad_to;
    if setting.max_items.is_some() {
        options.when_full = WhenFull::DropOldest;
    }
    let mut builder =
        QueueSet::builder().disk(Disk::Sim(disk.clone())).pool_bytes(setting.pool_bytes).open_files(setting.open_files);
    if setting.expire_to_b {
        builder = builder.queue_options("a", options.clone().expire_to("b"));
    }
    builder.defaults(options).open(DIR)
}

pub(super) fn open(disk: &SimDisk, durability: Durability) -> Result<QueueSet, OpenError> {
    open_with(disk, &SYNC.with(durability))
}

/// The verbs of a workload. Each notes what it asks before, and what it was answered after; an answer that comes after the
/// crash reaches nobody, and ends the workload.
pub(super) struct Run {
    set: Option<QueueSet>,
    pub(super) ledger: Ledger,
    pub(super) setting: Setting,
    pub(super) disk: SimDisk,
    /// From this step on, answers of the device may be lies.
    pub(super) lies_from: Option<u64>,
    open: BTreeMap<u64, OpenItem>,
    /// The queues that this process has opened: its orderly end makes these durable.
    opened: BTreeSet<String>,
}

pub(super) struct Stop;

impl Run {
    pub(super) fn new(disk: &SimDisk, setting: Setting) -> Run {
        disk.set_may_map(setting.may_map);
        Run {
            set: None,
            ledger: Ledger::default(),
            setting,
            disk: disk.clone(),
            lies_from: None,
            open: BTreeMap::new(),
            opened: BTreeSet::new(),
        }
    }

    pub(super) fn begin(&mut self) -> Result<(), Stop> {
        self.opened.clear();
        let opened = open_with(&self.disk, &self.setting);
        self.set = self.answer("opening the set", opened)?;
        if self.set.is_some() { Ok(()) } else { Err(Stop) }
    }

    /// `Ok(None)`: an error that was planned.
    fn answer<T, E: Debug>(&mut self, what: &str, result: Result<T, E>) -> Result<Option<T>, Stop> {
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        match result {
            Ok(value) => Ok(Some(value)),
            Err(_) if self.ledger.tolerant => Ok(None),
            Err(error) => {
                self.ledger.violation.get_or_insert_with(|| format!("{what} fails without a cause: {error:?}"));
                Err(Stop)
            }
        }
    }

    fn set(&self) -> Result<&QueueSet, Stop> {
        self.set.as_ref().ok_or(Stop)
    }

    pub(super) fn queue(&mut self, name: &str) -> Result<Option<Queue>, Stop> {
        let opened = self.set()?.queue(name);
        if opened.is_ok() {
            self.opened.insert(name.to_owned());
        }
        self.answer("opening a queue", opened)
    }

    pub(super) fn put(&mut self, name: &'static str, size: usize) -> Result<(), Stop> {
        self.batch(name, &[size])
    }

    pub(super) fn batch(&mut self, name: &'static str, sizes: &[usize]) -> Result<(), Stop> {
        let durability = self.setting.durability;
        self.put_as(name, sizes, durability, (None, None))
    }

    /// Puts with a durability of its own.
    pub(super) fn put_durably(&mut self, name: &'static str, size: usize, durability: Durability) -> Result<(), Stop> {
        self.put_as(name, &[size], durability, (None, None))
    }

    pub(super) fn put_expiring(&mut self, name: &'static str, size: usize, ms: u64) -> Result<(), Stop> {
        let durability = self.setting.durability;
        self.put_as(name, &[size], durability, (Some(ms), None))
    }

    /// Puts an item that is not to be delivered before `ms` have passed, and after `expires_in` no more.
    pub(super) fn put_delayed(
        &mut self,
        name: &'static str,
        size: usize,
        ms: u64,
        expires_in: Option<u64>,
    ) -> Result<(), Stop> {
        let durability = self.setting.durability;
        self.put_as(name, &[size], durability, (expires_in, Some(ms)))
    }

    fn put_as(
        &mut self,
        name: &'static str,
        sizes: &[usize],
        durability: Durability,
        (expires_in, delay): (Option<u64>, Option<u64>),
    ) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        let first = self.ask(name, sizes);
        let payloads: Vec<Vec<u8>> = sizes.iter().zip(first..).map(|(size, key)| payload(key, *size)).collect();
        let answer = match &payloads[..] {
            [one] => {
                let mut options = PutOptions::new().flags(first as u32);
                if durability != self.setting.durability {
                    options = options.durability(durability);
                }
                if let Some(ms) = expires_in {
                    options = options.expires_in(Duration::from_millis(ms));
                    let expires_ms = self.disk.wall_ms() + ms;
                    if let Some(entry) = self.ledger.entries.get_mut(&first) {
                        entry.expires_ms = Some(expires_ms);
                        entry.expires_to = (self.setting.expire_to_b && name == "a").then_some("b");
                    }
                }
                if let Some(ms) = delay {
                    options = options.delay(Duration::from_millis(ms));
                    let due_ms = self.disk.wall_ms() + ms;
                    if let Some(entry) = self.ledger.entries.get_mut(&first) {
                        entry.due_ms = Some(due_ms);
                    }
                }
                queue.put_with(one, &options).map(|id| vec![id.get()])
            }
            _ => queue.put_batch(&payloads).map(|ids| ids.iter().map(|id| id.get()).collect()),
        };
        self.answered(first, sizes.len(), name, answer, durability == Durability::Sync)
    }

    fn ask(&mut self, name: &'static str, sizes: &[usize]) -> u64 {
        let first = self.ledger.entries.keys().next_back().map_or(1, |key| key + 1);
        self.ledger.batches += 1;
        for (key, size) in (first..).zip(sizes) {
            let entry = Entry {
                queue: name,
                put: Put::Asked,
                id: 0,
                batch: self.ledger.batches,
                life: self.ledger.life,
                close_asked: false,
                close_ok: false,
                close_durable: false,
                clear_asked: false,
                clear_ok: false,
                durable: false,
                starts: 0,
                size: (*size).max(8),
                noticed_ms: None,
                close_noticed_ms: None,
                expires_ms: None,
                put_ms: self.disk.wall_ms(),
                due_ms: None,
                back_ms: None,
                expires_to: None,
                moved_to: None,
            };
            self.ledger.entries.insert(key, entry);
        }
        first
    }

    fn answered(
        &mut self,
        first: u64,
        count: usize,
        name: &'static str,
        answer: Result<Vec<u64>, PutError>,
        durable: bool,
    ) -> Result<(), Stop> {
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        let lied_to = self.lies_from.is_some_and(|step| self.disk.steps() > step);
        for (i, key) in (first..first + count as u64).enumerate() {
            let Some(entry) = self.ledger.entries.get_mut(&key) else { continue };
            match &answer {
                Ok(ids) => {
                    entry.put = if lied_to { Put::Indeterminate } else { Put::Ok };
                    entry.id = ids[i];
                    entry.durable = durable && !lied_to;
                    let highest = self.ledger.ids.entry(name).or_default();
                    *highest = (*highest).max(ids[i]);
                }
                Err(PutError::Indeterminate { .. }) => entry.put = Put::Indeterminate,
                Err(_) => entry.put = Put::Refused,
            }
        }
        self.answer("a put", answer).map(|_| ())
    }

    /// Appends without waiting.
    pub(super) fn append(&mut self, name: &'static str, size: usize) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        let key = self.ask(name, &[size]);
        let answer = queue.append(payload(key, size)).map(|id| vec![id.get()]);
        self.answered(key, 1, name, answer, false)?;
        // An id, not yet a promise.
        if let Some(entry) = self.ledger.entries.get_mut(&key)
            && entry.put == Put::Ok
            && self.setting.durability == Durability::Sync
        {
            entry.put = Put::Indeterminate;
        }
        Ok(())
    }

    pub(super) fn open(&mut self, name: &str) -> Result<Option<u64>, Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(None) };
        self.ledger.opening = true;
        let opened = queue.try_open();
        let opened = self.answer("an open", opened)?;
        self.ledger.opening = false;
        let Some(Some(item)) = opened else { return Ok(None) };
        let key = key_of(item.data()).ok_or(Stop)?;
        let now_ms = self.disk.wall_ms();
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.starts += 1;
            if entry.queue == name && entry.due_ms.max(entry.back_ms).is_some_and(|due_ms| due_ms > now_ms) {
                self.ledger.violation.get_or_insert(format!("K141: key {key} is delivered before its time"));
            }
            // A mark that no sync has covered may be taken back together with a failed one's content.
            let closed = entry.close_ok && (entry.close_durable || !self.ledger.reverted);
            if closed || entry.clear_ok || entry.put == Put::Refused {
                self.ledger.violation.get_or_insert(format!("key {key} was gone and is delivered"));
            }
        }
        self.ledger.held.push(key);
        self.open.insert(key, item);
        Ok(Some(key))
    }

    pub(super) fn close(&mut self, key: u64) -> Result<(), Stop> {
        self.close_by(key, |item| item.close())
    }

    /// Closes and waits until that is durable.
    pub(super) fn close_synced(&mut self, key: u64) -> Result<(), Stop> {
        self.close_by(key, |item| item.close_synced())?;
        if let Some(entry) = self.ledger.entries.get_mut(&key)
            && entry.close_ok
        {
            let name = entry.queue;
            self.all_durable(name);
        }
        Ok(())
    }

    /// Closes an item and puts another in its place, in any queue.
    pub(super) fn close_into(&mut self, key: u64, into: &'static str, size: usize) -> Result<(), Stop> {
        let Some(queue) = self.queue(into)? else { return Ok(()) };
        let Some(item) = self.open.remove(&key) else { return Ok(()) };
        let new = self.ask(into, &[size]);
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            (entry.close_asked, entry.moved_to) = (true, Some(new));
        }
        let moved = item.close_into_with(&queue, payload(new, size), &PutOptions::new().flags(new as u32));
        let moved = match moved {
            Ok(id) => Ok(vec![id.get()]),
            Err(error) => {
                let told = match error.fault() {
                    MoveFault::Put(put) => put.clone(),
                    _ => PutError::Closed,
                };
                match error.into_item() {
                    Some(item) if !self.disk.has_crashed() => drop(self.open.insert(key, item)),
                    Some(item) => drop(item.into_token()),
                    None => {}
                }
                Err(told)
            }
        };
        let is_ok = moved.is_ok();
        let durable = self.setting.durability != Durability::Os;
        self.answered(new, 1, into, moved, durable)?;
        // Of a put that may be there, the next process finds that it took the old one's place.
        let may_be = self.ledger.entries.get(&new).is_some_and(|entry| entry.put == Put::Indeterminate);
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            (entry.close_asked, entry.close_ok) = (is_ok || may_be, is_ok);
        }
        if is_ok {
            self.ledger.held.retain(|held| *held != key);
        }
        Ok(())
    }

    fn close_by<E: Debug>(&mut self, key: u64, close: impl FnOnce(OpenItem) -> Result<(), E>) -> Result<(), Stop> {
        let Some(item) = self.open.remove(&key) else { return Ok(()) };
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.close_asked = true;
        }
        self.ledger.held.retain(|held| *held != key);
        let closed = close(item);
        if self.answer("a close", closed)?.is_some()
            && let Some(entry) = self.ledger.entries.get_mut(&key)
        {
            entry.close_ok = true;
        }
        Ok(())
    }

    pub(super) fn abort(&mut self, key: u64) {
        self.ledger.held.retain(|held| *held != key);
        drop(self.open.remove(&key));
    }

    /// Gives an item back for later.
    pub(super) fn abort_after(&mut self, key: u64, ms: u64) {
        self.ledger.held.retain(|held| *held != key);
        let back_ms = self.disk.wall_ms() + ms;
        if let (Some(item), Some(entry)) = (self.open.remove(&key), self.ledger.entries.get_mut(&key)) {
            entry.back_ms = Some(back_ms);
            item.abort_after(Duration::from_millis(ms));
        }
    }

    /// Takes an item for good, in one call.
    pub(super) fn get(&mut self, name: &str) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        let first = queue.peek();
        let Some(Some(first)) = self.answer("a peek", first)? else { return Ok(()) };
        let key = key_of(first.data()).ok_or(Stop)?;
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.close_asked = true;
        }
        let got = queue.try_get();
        if let Some(got) = self.answer("a get", got)? {
            let got = got.and_then(|item| key_of(item.data()));
            if got != Some(key) {
                self.ledger.violation.get_or_insert(format!("key {key} was shown, {got:?} came"));
            }
            if let Some(entry) = self.ledger.entries.get_mut(&key) {
                entry.close_ok = true;
            }
        }
        Ok(())
    }

    /// Takes and closes up to `count` items.
    pub(super) fn drain(&mut self, name: &str, count: usize) -> Result<(), Stop> {
        for _ in 0..count {
            let Some(key) = self.open(name)? else { break };
            self.close(key)?;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, name: &'static str) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        let synced = queue.sync();
        if self.answer("a sync", synced)?.is_some() {
            self.all_durable(name);
        }
        Ok(())
    }

    fn all_durable(&mut self, name: &'static str) {
        if self.lies_from.is_some_and(|step| self.disk.steps() > step) {
            return;
        }
        for entry in self.ledger.of_mut(name) {
            entry.durable |= entry.put == Put::Ok || entry.put == Put::Indeterminate && entry.id > 0;
            if entry.durable {
                entry.put = Put::Ok;
            }
            entry.close_durable |= entry.close_ok;
        }
    }

    pub(super) fn clear(&mut self, name: &'static str) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        self.ledger.of_mut(name).for_each(|entry| entry.clear_asked = true);
        let cleared = queue.clear();
        if self.answer("a clear", cleared)?.is_some() {
            self.ledger.of_mut(name).for_each(|entry| entry.clear_ok = true);
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, name: &'static str) -> Result<(), Stop> {
        self.ledger.of_mut(name).for_each(|entry| entry.clear_asked = true);
        let deleted = self.set()?.delete(name);
        if self.answer("a delete", deleted)?.is_some() {
            self.ledger.of_mut(name).for_each(|entry| entry.clear_ok = true);
        }
        Ok(())
    }

    pub(super) fn set_options(&mut self, name: &str, options: QueueOptions) -> Result<(), Stop> {
        let Some(queue) = self.queue(name)? else { return Ok(()) };
        let set = queue.set_options(options);
        self.answer("set_options", set).map(|_| ())
    }

    /// Runs the background chores, which must keep what `Every` and `close` promise about time.
    pub(super) fn upkeep(&mut self) -> Result<(), Stop> {
        self.set()?.run_upkeep();
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        if self.ledger.tolerant {
            return Ok(());
        }
        let now_ms = self.disk.mono_ms();
        let (puts_ms, marks_ms) = match self.setting.durability {
            Durability::Every(period) => {
                let ms = period.as_millis() as u64;
                (ms, ms.min(MARKS_MS))
            }
            Durability::Sync => (MARKS_MS, MARKS_MS),
            Durability::Os => return Ok(()),
        };
        for entry in self.ledger.entries.values_mut() {
            if entry.put == Put::Ok {
                let noticed = *entry.noticed_ms.get_or_insert(now_ms);
                entry.durable |= noticed + puts_ms <= now_ms;
            }
            if entry.close_ok {
                let noticed = *entry.close_noticed_ms.get_or_insert(now_ms);
                entry.close_durable |= noticed + marks_ms <= now_ms;
            }
        }
        Ok(())
    }

    pub(super) fn pass(&self, ms: u64) {
        self.disk.advance_ms(ms);
    }

    /// Closes in good order and opens again.
    pub(super) fn reopen(&mut self) -> Result<(), Stop> {
        self.ledger.closing = true;
        let Some(set) = self.set.take() else { return Err(Stop) };
        let closed = set.close();
        self.leak();
        let in_order = self.answer("closing the set", closed)?.is_some();
        let lied_to = self.lies_from.is_some_and(|step| self.disk.steps() > step);
        if in_order {
            for key in std::mem::take(&mut self.ledger.held) {
                if let Some(entry) = self.ledger.entries.get_mut(&key) {
                    entry.starts -= 1;
                }
            }
            let opened = &self.opened;
            for entry in self.ledger.entries.values_mut().filter(|e| !lied_to && opened.contains(e.queue)) {
                entry.durable |= entry.put == Put::Ok;
                entry.close_durable |= entry.close_ok;
            }
            self.ledger.closing = false;
        }
        self.ledger.life += 1;
        self.look_again()?;
        self.begin()
    }

    /// Where a failed sync took content back, as a power cut would, what the next process finds must be right, and is the
    /// truth from then on.
    fn look_again(&mut self) -> Result<(), Stop> {
        if !self.ledger.reverted || self.disk.has_crashed() {
            return Ok(());
        }
        if let Err(violation) = judge(&self.disk.kill(), &self.ledger, &self.setting, Cut::Power) {
            self.ledger.violation.get_or_insert(format!("next life: {violation}"));
            return Err(Stop);
        }
        self.ledger.settle_by(&self.disk, &self.setting, false);
        Ok(())
    }

    fn leak(&mut self) {
        // It was this process that gave them back for later.
        self.ledger.entries.values_mut().for_each(|entry| entry.back_ms = None);
        for (_, item) in std::mem::take(&mut self.open) {
            let _ = item.into_token();
        }
    }

    /// The process dies and another one opens the set.
    pub(super) fn die(&mut self) -> Result<(), Stop> {
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        self.disk = self.disk.restart();
        self.end_life();
        self.look_again()?;
        self.begin()
    }

    fn end_life(&mut self) {
        self.leak();
        // Its orderly close meets a dead disk.
        self.set = None;
        self.ledger.held.clear();
        self.ledger.life += 1;
    }

    /// The power goes; what is there after it must be right, and is the truth from then on.
    pub(super) fn lose_power(&mut self, fate: Fate) -> Result<(), Stop> {
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        let after = self.disk.power_cut(fate);
        if let Err(violation) = judge(&after, &self.ledger, &self.setting, Cut::Power) {
            self.ledger.violation.get_or_insert(format!("power cut on the way, {fate:?}: {violation}"));
            return Err(Stop);
        }
        self.disk = self.disk.restart_after_cut(fate);
        self.end_life();
        self.ledger.settle_by(&after, &self.setting, true);
        self.begin()
    }

    /// Ends the workload, closes the set in good order, and gives the ledger.
    pub(super) fn end(mut self) -> Ledger {
        self.ledger.closing = true;
        self.leak();
        self.set = None;
        self.ledger
    }
}

/// An item as a recovered queue gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) key: u64,
    pub(super) id: u64,
    pub(super) attempts: u32,
}

/// Has everything moved that expired: until then it is nowhere to be taken.
fn sweep_all(set: &QueueSet, setting: &Setting) {
    if setting.expire_to_b {
        let _ = set.discard_expired(usize::MAX);
    }
}

/// All items of all queues, by key; of a copy, on which all delays are waited for.
fn what_is_there(disk: &SimDisk, setting: &Setting, last_due_ms: Option<u64>) -> BTreeMap<u64, Seen> {
    let mut there = BTreeMap::new();
    let copy = disk.kill();
    let Ok(set) = open_with(&copy, setting) else { return there };
    for until_ms in std::iter::once(0).chain(last_due_ms) {
        copy.advance_ms(until_ms.saturating_sub(copy.wall_ms()));
        sweep_all(&set, setting);
        for name in set.names() {
            let Ok(queue) = set.queue(&name) else { continue };
            while let Ok(Some(item)) = queue.try_open() {
                if let Some(key) = key_of(item.data()) {
                    there.insert(key, Seen { key, id: item.id().get(), attempts: item.attempts() });
                }
                let _ = item.into_token();
            }
            sweep_all(&set, setting);
        }
    }
    there
}

/// What a queue says of itself after an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    items: u64,
    bytes: u64,
    redelivered: u64,
}

fn look(queue: &Queue) -> Look {
    let stats = queue.stats();
    Look { items: queue.len() + stats.deferred_items, bytes: stats.bytes, redelivered: queue.recovery().redelivered }
}

/// Opens the set and those queues of the ledger that are there.
fn open_all(
    disk: &SimDisk,
    ledger: &Ledger,
    setting: &Setting,
    rule: &str,
) -> Result<(QueueSet, BTreeMap<&'static str, Queue>), Fault> {
    let set = open_with(disk, setting).map_err(|e| Fault::Told(format!("{rule}: the set does not open: {e}")))?;
    let mut queues = BTreeMap::new();
    for name in ledger.queues() {
        let queue = set.get_queue(name).map_err(|e| Fault::Told(format!("{rule}: {name} does not open: {e}")))?;
        queues.extend(queue.map(|queue| (name, queue)));
    }
    Ok((set, queues))
}

/// Takes all items of all queues, those that are there, and later those whose delay has ended. Sweeps in between: behind what was
/// taken there was more, if memory is small.
fn take_everything(
    disk: &SimDisk,
    set: &QueueSet,
    queues: &BTreeMap<&'static str, Queue>,
    ledger: &Ledger,
    setting: &Setting,
    cut: Cut,
) -> Result<BTreeMap<&'static str, Vec<Seen>>, Fault> {
    let mut found: BTreeMap<&str, Vec<Seen>> = BTreeMap::new();
    for until_ms in std::iter::once(0).chain(ledger.last_due_ms()) {
        disk.advance_ms(until_ms.saturating_sub(disk.wall_ms()));
        sweep_all(set, setting);
        for name in ledger.queues() {
            let all = found.entry(name).or_default();
            if let Some(queue) = queues.get(name) {
                let seen = take_all(queue, ledger, name, cut, disk.wall_ms())?;
                judge_delays(&seen, ledger, name)?;
                all.extend(seen);
                sweep_all(set, setting);
            }
        }
    }
    Ok(found)
}

/// S39: among those that were never started, delayed ones come before what was put after the end of their delay, and in the order
/// of these ends, also where they had come before the set was opened.
fn judge_delays(seen: &[Seen], ledger: &Ledger, name: &str) -> Verdict {
    let mut last = (0, 0);
    let mut last_put_ms = 0;
    for seen in seen.iter().filter(|seen| seen.attempts == 1) {
        let Some(entry) = ledger.entries.get(&seen.key).filter(|entry| entry.queue == name) else { continue };
        let Some(due_ms) = entry.due_ms else {
            last_put_ms = last_put_ms.max(entry.put_ms);
            continue;
        };
        let at = (due_ms, seen.id);
        if at < last || last_put_ms > due_ms {
            return Err(format!("S39: {name}: key {} comes too late", seen.key));
        }
        last = at;
    }
    Ok(())
}

/// Takes all items, leaving them in flight, and checks each by itself.
fn take_all(queue: &Queue, ledger: &Ledger, name: &str, cut: Cut, now_ms: u64) -> Result<Vec<Seen>, Fault> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut more_started = 0;
    let told = |e: crate::GetError| Fault::Told(format!("I1: {name}: open fails: {e}"));
    let wrong = |what: String| Err(Fault::Wrong(what));
    while let Some(item) = queue.try_open().map_err(told)? {
        let key = key_of(item.data()).ok_or(format!("I5: {name}: a payload that was never put"))?;
        let Some(entry) = ledger.entries.get(&key) else {
            return wrong(format!("I5: {name}: key {key} was never put"));
        };
        let (id, attempts) = (item.id().get(), item.attempts());
        if (entry.queue != name && entry.expires_to != Some(name)) || item.data() != payload(key, entry.size) {
            return wrong(format!("I4: {name}: key {key} has other bytes or another queue"));
        }
        if entry.queue == name && entry.id != 0 && entry.id != id {
            return wrong(format!("I4: {name}: key {key} had id {}, has {id}", entry.id));
        }
        let own = entry.queue == name;
        let last = seen.iter().rfind(|seen| ledger.entries.get(&seen.key).is_some_and(|entry| entry.due_ms.is_none()));
        if entry.due_ms.is_none() && last.is_some_and(|last| id <= last.id) {
            return wrong(format!("I3: {name}: id {id} after {last:?}"));
        }
        if own && entry.due_ms.is_some_and(|due_ms| due_ms > now_ms) {
            return wrong(format!("K141: {name}: key {key} is delivered before its time"));
        }
        if own && entry.expires_ms.is_some_and(|expires_ms| now_ms > expires_ms) {
            return wrong(format!("S31: {name}: key {key} expired and is delivered"));
        }
        let most = entry.starts + 1;
        let given_back = ledger.closing && ledger.held.contains(&key);
        let least = match cut {
            Cut::Kill if !entry.close_asked && !ledger.tolerant => most - u32::from(given_back && most > 1),
            _ => 1,
        };
        more_started += u32::from(attempts == most + 1);
        // Content that a failed sync took back may hold a start that was given back since.
        let unanswered = ledger.reverted || (ledger.opening && attempts == most + 1 && more_started == 1);
        if !(least..=most).contains(&attempts) && !unanswered {
            return wrong(format!("I7: {name}: key {key} was started {} times, says {attempts}", entry.starts));
        }
        seen.push(Seen { key, id, attempts });
        let _ = item.into_token();
    }
    Ok(seen)
}

/// Recovers the state twice and judges what came out. The numbers in the messages are those of the list of invariants in the
/// fault model.
pub(super) fn judge(disk: &SimDisk, ledger: &Ledger, setting: &Setting, cut: Cut) -> Verdict {
    if let Some(violation) = &ledger.violation {
        return Err(violation.clone());
    }
    let cut = if ledger.reverted { Cut::Power } else { cut };
    let found = judge_once(disk, ledger, setting, cut);
    // Where the device broke its word, or the page cache that was all the promise, an error is an answer.
    let may_fail = ledger.lied_to || (ledger.reverted && setting.durability != Durability::Sync);
    match found {
        Err(Fault::Told(_)) if may_fail => Ok(()),
        Err(Fault::Told(what) | Fault::Wrong(what)) => Err(what),
        Ok(()) => Ok(()),
    }
}

/// What is wrong, or an error that the engine told itself.
enum Fault {
    Told(String),
    Wrong(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Wrong(what)
    }
}

fn judge_once(disk: &SimDisk, ledger: &Ledger, setting: &Setting, cut: Cut) -> Result<(), Fault> {
    let first = disk.kill();
    let (set, queues) = open_all(&first, ledger, setting, "I1")?;
    let looks: BTreeMap<&str, Look> = queues.iter().map(|(name, queue)| (*name, look(queue))).collect();
    let again = first.kill();
    let cut_again = first.power_cut(Fate::None);
    let found = take_everything(&first, &set, &queues, ledger, setting, cut)?;
    for (name, seen) in &found {
        if let Some(queue) = queues.get(name) {
            judge_report(queue, ledger, name, cut, seen, looks[name])?;
        }
        judge_presence(name, seen, ledger, setting, cut)?;
    }
    judge_moves(&found, ledger, setting, cut)?;
    judge_expired(&found, ledger, cut, disk.wall_ms())?;
    drop(queues);
    drop(set);

    let before = again.fingerprint();
    let (set, queues) = open_all(&again, ledger, setting, "I6")?;
    if again.fingerprint() != before {
        // What did not fit one new segment is made durable where it stands, and its end is written anew by the next one.
        let third = again.kill();
        third.record();
        let before = third.fingerprint();
        drop(open_all(&third.kill(), ledger, setting, "I6")?);
        let opened = open_all(&third, ledger, setting, "I6")?;
        if third.fingerprint() != before {
            let calls: Vec<String> = third.take_calls().iter().map(rules::told).collect();
            return Err(Fault::Wrong(format!("I6: the third recovery changes something: {calls:#?}")));
        }
        drop(opened);
    }
    let now: BTreeMap<&str, Look> = queues.iter().map(|(name, queue)| (*name, look(queue))).collect();
    for name in queues.keys() {
        let now = now[name];
        // The process in between held nothing.
        if looks.get(name).map(|first| Look { redelivered: 0, ..*first }) != Some(now) {
            return Err(Fault::Wrong(format!("I6: {name}: first {:?}, then {now:?}", looks.get(name))));
        }
    }
    let then = take_everything(&again, &set, &queues, ledger, setting, cut)?;
    if found != then {
        return Err(Fault::Wrong(format!("I6: first {found:?}, then {then:?}")));
    }
    if queues.len() != looks.len() {
        return Err(Fault::Wrong("I6: a queue is there at one open only".into()));
    }
    if !ledger.lied_to {
        live(&set, ledger)?;
    }
    drop(queues);
    drop(set);

    if setting.durability == Durability::Sync && !ledger.lied_to {
        shown_is_durable(&cut_again, &found, ledger, setting)?;
    }
    Ok(())
}

/// Nobody acts on what a power cut could still unmake: what a recovered `Sync` queue shows is on the device.
fn shown_is_durable(disk: &SimDisk, found: &BTreeMap<&str, Vec<Seen>>, ledger: &Ledger, setting: &Setting) -> Verdict {
    let there = what_is_there(disk, setting, ledger.last_due_ms());
    for (name, seen) in found {
        for shown in seen {
            let moves = ledger.entries.get(&shown.key).is_some_and(|entry| entry.expires_to.is_some());
            if moves && there.contains_key(&shown.key) {
                continue;
            }
            if there.get(&shown.key).map(|seen| seen.id) != Some(shown.id) {
                return Err(format!("I1: {name}: key {} was shown, and a power cut took it", shown.key));
            }
        }
    }
    Ok(())
}

/// I7 and I10: numbers and report say what is there and what happened.
fn judge_report(queue: &Queue, ledger: &Ledger, name: &str, cut: Cut, seen: &[Seen], look: Look) -> Verdict {
    let report = queue.recovery();
    let own: Vec<(u64, &Entry)> = ledger.of(name).collect();
    let may_come = ledger.entries.values().any(|entry| entry.expires_to == Some(name));
    let can_expire = may_come || own.iter().any(|(_, entry)| entry.expires_ms.is_some());
    let has_delays = own.iter().any(|(_, entry)| entry.due_ms.is_some());
    let bytes: u64 = seen.iter().filter_map(|seen| ledger.entries.get(&seen.key)).map(|e| e.size as u64).sum();
    let is_right = seen.len() as u64 == look.items && (has_delays || bytes == look.bytes);
    if !can_expire && !is_right {
        return Err(format!("I7: {name}: {look:?} announced, {} items of {bytes} bytes there", seen.len()));
    }
    if report.items != look.items {
        return Err(format!("I10: {name}: reported {} items of {}", report.items, look.items));
    }
    if !report.lost.is_empty() || report.damaged_marks > 0 {
        return Err(format!("I10: {name}: reports damage: {report:?}"));
    }
    let here: BTreeSet<u64> = seen.iter().map(|seen| seen.key).collect();
    // Also what an earlier recovery has discarded is found again, until it is written over.
    // What was discarded of a move has moved again since.
    let comes = ledger.entries.values().filter(|entry| entry.expires_to == Some(name)).count() as u64;
    let missing = comes + own.iter().filter(|(key, _)| !here.contains(key)).count() as u64;
    if report.discarded_items > missing {
        return Err(format!("I10: {name}: {} discarded, {missing} missing", report.discarded_items));
    }
    let put_here = own.iter().any(|(_, e)| e.life == ledger.life && e.put == Put::Ok && !e.clear_asked);
    if report.clean && put_here && !ledger.closing && cut == Cut::Kill {
        return Err(format!("I10: {name}: says that it was closed in good order"));
    }
    if cut == Cut::Kill && !ledger.closing {
        let held = ledger.held.iter().filter(|key| here.contains(key)).count() as u64;
        // An item stays marked as in flight until somebody takes it again, through any number of recoveries.
        let started = own.iter().filter(|(key, e)| e.starts > 0 && here.contains(key)).count() as u64;
        let least = if ledger.tolerant { 0 } else { held };
        if !(least..=started + u64::from(ledger.opening)).contains(&report.redelivered) {
            return Err(format!("I10: {name}: {held} were open, {} reported", report.redelivered));
        }
    }
    Ok(())
}

fn judge_presence(name: &str, seen: &[Seen], ledger: &Ledger, setting: &Setting, cut: Cut) -> Verdict {
    let present: Vec<u64> = seen.iter().map(|seen| seen.key).collect();
    let there: BTreeSet<u64> = present.iter().copied().collect();
    if present.len() != there.len() {
        return Err(format!("I1: {name}: an item is there twice"));
    }
    let is_delayed = |key: &u64| ledger.entries.get(key).is_some_and(|entry| entry.due_ms.is_some());
    if !present.iter().filter(|key| !is_delayed(key)).is_sorted() {
        return Err(format!("I3: {name}: order is {present:?}"));
    }
    let highest = present.iter().max().copied().unwrap_or(0);
    let own: Vec<(u64, &Entry, bool)> =
        ledger.of(name).map(|(key, entry)| (key, entry, there.contains(&key))).collect();
    let cleared_there = own.iter().any(|(_, entry, is_there)| entry.clear_asked && *is_there);
    // Where the oldest are dropped, the newest must be there.
    let may_drop = |key: u64| {
        setting.max_items.is_some_and(|max| {
            // A put that an error ended may have made its room before.
            let came = |e: &Entry| e.put != Put::Refused || ledger.tolerant;
            let newer = own.iter().filter(|(other, e, _)| *other > key && came(e) && !e.clear_ok);
            newer.count() as u64 >= max
        })
    };
    for &(key, entry, is_there) in &own {
        let strict = (cut == Cut::Kill && !ledger.lied_to) || entry.durable;
        if entry.put == Put::Refused && is_there {
            return Err(format!("I5: {name}: key {key} was refused and is there"));
        }
        if entry.clear_ok && is_there {
            return Err(format!("K113: {name}: key {key} was cleared and is there"));
        }
        if entry.close_ok && is_there && (cut == Cut::Kill || entry.close_durable) {
            return Err(format!("I2: {name}: key {key} was closed and is there"));
        }
        let may_go = entry.close_asked || entry.clear_asked || entry.expires_ms.is_some() || may_drop(key);
        let expected = entry.put == Put::Ok && !may_go;
        if expected && !is_there && strict {
            return Err(format!("I1: {name}: key {key} was answered and is gone"));
        }
        if expected && !is_there && key < highest {
            return Err(format!("I1: {name}: key {key} is gone, a later one is there"));
        }
        let all_or_none =
            entry.clear_asked && !entry.clear_ok && cleared_there && entry.put == Put::Ok && !entry.close_asked;
        if all_or_none && !is_there && (strict || key < highest) {
            return Err(format!("K118: {name}: key {key} is gone, others of the same clear are there"));
        }
        let mut mates = own.iter().filter(|(_, other, _)| other.batch == entry.batch && !other.close_asked);
        if !may_go && mates.any(|(other, _, there)| *there != is_there && !may_drop(*other)) {
            return Err(format!("K111: {name}: a part of the batch of key {key} is there"));
        }
    }
    Ok(())
}

/// A move leaves one item: the old one or the new one.
fn judge_moves(found: &BTreeMap<&str, Vec<Seen>>, ledger: &Ledger, setting: &Setting, cut: Cut) -> Verdict {
    let there: BTreeSet<u64> = found.values().flatten().map(|seen| seen.key).collect();
    for (old, entry) in &ledger.entries {
        let Some((new, successor)) = entry.moved_to.and_then(|new| Some((new, ledger.entries.get(&new)?))) else {
            continue;
        };
        let (old_there, new_there) = (there.contains(old), there.contains(&new));
        let told = (cut == Cut::Kill || setting.durability == Durability::Sync) && !ledger.lied_to;
        if old_there && (new_there || (successor.put == Put::Ok && told)) {
            return Err(format!("K38: key {old} moved to {new} in {}, and is there", successor.queue));
        }
        let strict = entry.put == Put::Ok && (cut == Cut::Kill || entry.durable) && !ledger.lied_to;
        let ended = entry.close_ok || entry.clear_asked || successor.close_asked || successor.clear_asked;
        let asked = entry.close_asked && matches!(successor.put, Put::Asked | Put::Indeterminate);
        if strict && asked && !ended && !old_there && !new_there {
            return Err(format!("K38: key {old} was moving to {new} in {}, and neither is there", successor.queue));
        }
    }
    Ok(())
}

/// An expired item is where it moves to, once, and never delivered where it was.
fn judge_expired(found: &BTreeMap<&str, Vec<Seen>>, ledger: &Ledger, cut: Cut, now_ms: u64) -> Verdict {
    for (key, entry) in ledger.entries.iter().filter(|(_, entry)| entry.expires_to.is_some()) {
        let is_in = |name: &str| found.get(name).is_some_and(|seen| seen.iter().any(|seen| seen.key == *key));
        let (here, moved) = (is_in(entry.queue), entry.expires_to.is_some_and(is_in));
        let is_expired = entry.expires_ms.is_some_and(|expires_ms| now_ms > expires_ms);
        if here && moved {
            return Err(format!("K65: key {key} expired, moved, and is there"));
        }
        if here && is_expired {
            return Err(format!("K65: key {key} expired and is delivered"));
        }
        let strict = entry.put == Put::Ok && (cut == Cut::Kill || entry.durable) && !ledger.lied_to;
        if strict && !entry.close_asked && !entry.clear_asked && !here && !moved {
            return Err(format!("K65: key {key} expired and is nowhere"));
        }
    }
    Ok(())
}

/// I8 and I9: the queues work, and their ids are new.
fn live(set: &QueueSet, ledger: &Ledger) -> Verdict {
    for name in ledger.queues() {
        let queue = set.queue(name).map_err(|e| format!("I9: {name}: {e}"))?;
        let id = queue.put(b"alive").map_err(|e| format!("I9: {name}: put fails: {e}"))?;
        if ledger.ids.get(name).is_some_and(|highest| id.get() <= *highest) {
            return Err(format!("I8: {name}: id {id} is given out again"));
        }
        let mut found = false;
        while let Some(item) = queue.try_open().map_err(|e| format!("I9: {name}: open fails: {e}"))? {
            found |= item.data() == b"alive";
            item.close().map_err(|e| format!("I9: {name}: close fails: {e}"))?;
        }
        if !found {
            return Err(format!("I9: {name}: the new item does not come"));
        }
        set.run_upkeep();
    }
    Ok(())
}
