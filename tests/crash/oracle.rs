//! The ledger of what was asked and answered, and what must hold after any recovery.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::{Durability, OpenItem, PutError, PutOptions, Queue, QueueOptions, QueueSet};

pub(super) const DIR: &str = "/s";

pub(super) type Verdict = Result<(), String>;

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Asked,
    Ok,
    /// It failed and must never appear.
    Refused,
    /// It failed and may appear.
    Indeterminate,
}

/// One item's history.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) queue: &'static str,
    pub(super) put: Put,
    pub(super) id: u64,
    /// Items of one batch share a number.
    pub(super) batch: u64,
    pub(super) close_asked: bool,
    pub(super) close_ok: bool,
    /// A sync after the close was answered.
    pub(super) close_durable: bool,
    pub(super) clear_asked: bool,
    pub(super) clear_ok: bool,
    /// A sync after the put was answered, or the put was one of `Sync`.
    pub(super) durable: bool,
    pub(super) starts: u32,
    pub(super) size: usize,
}

/// All items of a run, by key; keys rise in the order of puts.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) held: Vec<u64>,
    /// The workload had ended, and the set was being closed: starts of held items may have been given back.
    pub(super) closing: bool,
    batches: u64,
    pub(super) ids: BTreeMap<&'static str, u64>,
}

/// How a state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Kill,
    Power,
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

pub(super) fn options(durability: Durability) -> QueueOptions {
    QueueOptions::default().durability(durability).segment_bytes(64 << 10)
}

pub(super) fn open(disk: &SimDisk, durability: Durability) -> Result<QueueSet, crate::OpenError> {
    QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(options(durability)).open(DIR)
}

/// The verbs of a workload; each notes what it asks before and what it was answered after, and ends the workload at the
/// first error that a crash can cause.
pub(super) struct Run<'a> {
    pub(super) set: &'a QueueSet,
    pub(super) ledger: &'a mut Ledger,
    pub(super) durability: Durability,
    disk: SimDisk,
    open: BTreeMap<u64, OpenItem>,
}

pub(super) struct Stop;

impl<'a> Run<'a> {
    pub(super) fn new(set: &'a QueueSet, ledger: &'a mut Ledger, durability: Durability, disk: &SimDisk) -> Run<'a> {
        Run { set, ledger, durability, disk: disk.clone(), open: BTreeMap::new() }
    }

    /// An answer that comes after the crash reaches nobody.
    fn reached(&self) -> Result<(), Stop> {
        if self.disk.has_crashed() { Err(Stop) } else { Ok(()) }
    }

    pub(super) fn queue(&self, name: &str) -> Result<Queue, Stop> {
        self.set.queue(name).map_err(|_| Stop)
    }

    pub(super) fn put(&mut self, name: &'static str, size: usize) -> Result<(), Stop> {
        self.batch(name, &[size])
    }

    pub(super) fn batch(&mut self, name: &'static str, sizes: &[usize]) -> Result<(), Stop> {
        let queue = self.queue(name)?;
        let first = self.ask(name, sizes);
        let payloads: Vec<Vec<u8>> = sizes.iter().zip(first..).map(|(size, key)| payload(key, *size)).collect();
        let answer = match &payloads[..] {
            [one] => queue.put_with(one, &PutOptions::new().flags(first as u32)).map(|id| vec![id]),
            _ => queue.put_batch(&payloads),
        };
        self.answered(first, sizes.len(), name, &answer.map(|ids| ids.iter().map(|id| id.get()).collect()))
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
                close_asked: false,
                close_ok: false,
                close_durable: false,
                clear_asked: false,
                clear_ok: false,
                durable: false,
                starts: 0,
                size: (*size).max(8),
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
        answer: &Result<Vec<u64>, PutError>,
    ) -> Result<(), Stop> {
        self.reached()?;
        for (i, key) in (first..first + count as u64).enumerate() {
            let Some(entry) = self.ledger.entries.get_mut(&key) else {
                continue;
            };
            match answer {
                Ok(ids) => {
                    entry.put = Put::Ok;
                    entry.id = ids[i];
                    entry.durable = self.durability == Durability::Sync;
                    let highest = self.ledger.ids.entry(name).or_default();
                    *highest = (*highest).max(ids[i]);
                }
                Err(PutError::Indeterminate { .. }) => entry.put = Put::Indeterminate,
                Err(_) => entry.put = Put::Refused,
            }
        }
        answer.as_ref().map(|_| ()).map_err(|_| Stop)
    }

    /// Appends without waiting.
    pub(super) fn append(&mut self, name: &'static str, size: usize) -> Result<u64, Stop> {
        let queue = self.queue(name)?;
        let key = self.ask(name, &[size]);
        let answer = queue.append(payload(key, size)).map(|id| vec![id.get()]);
        self.answered(key, 1, name, &answer)?;
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            // An id, not yet a promise.
            entry.durable = false;
            entry.put = if self.durability == Durability::Sync { Put::Indeterminate } else { Put::Ok };
        }
        Ok(key)
    }

    pub(super) fn open(&mut self, name: &str) -> Result<Option<u64>, Stop> {
        let queue = self.queue(name)?;
        let Some(item) = queue.try_open().map_err(|_| Stop)? else {
            return Ok(None);
        };
        let key = key_of(item.data()).ok_or(Stop)?;
        if self.reached().is_err() {
            let _ = item.into_token();
            return Err(Stop);
        }
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.starts += 1;
        }
        self.ledger.held.push(key);
        self.open.insert(key, item);
        Ok(Some(key))
    }

    pub(super) fn close(&mut self, key: u64) -> Result<(), Stop> {
        let Some(item) = self.open.remove(&key) else {
            return Ok(());
        };
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.close_asked = true;
        }
        self.ledger.held.retain(|held| *held != key);
        item.close().map_err(|_| Stop)?;
        self.reached()?;
        if let Some(entry) = self.ledger.entries.get_mut(&key) {
            entry.close_ok = true;
        }
        Ok(())
    }

    pub(super) fn abort(&mut self, key: u64) {
        self.ledger.held.retain(|held| *held != key);
        drop(self.open.remove(&key));
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
        self.queue(name)?.sync().map_err(|_| Stop)?;
        self.reached()?;
        for entry in self.ledger.entries.values_mut().filter(|entry| entry.queue == name) {
            entry.durable |= entry.put == Put::Ok || entry.put == Put::Indeterminate;
            if entry.durable && entry.id > 0 {
                entry.put = Put::Ok;
            }
            entry.close_durable |= entry.close_ok;
        }
        Ok(())
    }

    pub(super) fn clear(&mut self, name: &'static str) -> Result<(), Stop> {
        let queue = self.queue(name)?;
        for entry in self.ledger.entries.values_mut().filter(|entry| entry.queue == name) {
            entry.clear_asked = true;
        }
        queue.clear().map_err(|_| Stop)?;
        self.reached()?;
        for entry in self.ledger.entries.values_mut().filter(|entry| entry.queue == name) {
            entry.clear_ok = true;
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, name: &'static str) -> Result<(), Stop> {
        for entry in self.ledger.entries.values_mut().filter(|entry| entry.queue == name) {
            entry.clear_asked = true;
        }
        self.set.delete(name).map_err(|_| Stop)?;
        self.reached()?;
        for entry in self.ledger.entries.values_mut().filter(|entry| entry.queue == name) {
            entry.clear_ok = true;
        }
        Ok(())
    }

    pub(super) fn upkeep(&self) {
        self.set.run_upkeep();
    }

    /// Ends the run as a crash does: guards are leaked, so that their drop marks nothing.
    pub(super) fn leave(self) {
        for (_, item) in self.open {
            let _ = item.into_token();
        }
    }
}

pub(super) fn key_of(data: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(..8)?.try_into().ok()?))
}

/// Recovers the state twice, drains it, and judges what came out. The numbers in the messages are those of the list of
/// invariants in the durability page of the fault model.
pub(super) fn judge(disk: &SimDisk, ledger: &Ledger, durability: Durability, cut: Cut) -> Verdict {
    let queues: BTreeSet<&str> = ledger.entries.values().map(|entry| entry.queue).collect();
    let mut first_look = BTreeMap::new();
    {
        let set = open(disk, durability).map_err(|e| format!("I1: the set does not open: {e}"))?;
        for name in &queues {
            if let Some(queue) = set.get_queue(name).map_err(|e| format!("I1: {name} does not open: {e}"))? {
                first_look.insert(*name, (queue.len(), queue.stats().bytes, queue.recovery().redelivered));
            }
        }
        // The process dies again, right after recovery.
        let again = disk.kill();
        drop(set);
        judge_drained(&again, ledger, durability, cut, &queues, &first_look)
    }
}

fn judge_drained(
    disk: &SimDisk,
    ledger: &Ledger,
    durability: Durability,
    cut: Cut,
    queues: &BTreeSet<&str>,
    first_look: &BTreeMap<&str, (u64, u64, u64)>,
) -> Verdict {
    let set = open(disk, durability).map_err(|e| format!("I6: the second open fails: {e}"))?;
    for name in queues {
        let mut present = Vec::new();
        let queue = set.get_queue(name).map_err(|e| format!("I6: {name}: the second open fails: {e}"))?;
        if let Some(queue) = &queue {
            let look = (queue.len(), queue.stats().bytes, queue.recovery().redelivered);
            if first_look.get(*name) != Some(&look) {
                return Err(format!("I6: {name}: first {:?}, then {look:?}", first_look.get(*name)));
            }
            if queue.recovery().items != look.0 {
                return Err(format!("I10: {name}: reported {} items of {}", queue.recovery().items, look.0));
            }
            let mut bytes = 0;
            let mut last_id = 0;
            let mut opened = Vec::new();
            while let Some(item) = queue.try_open().map_err(|e| format!("I1: {name}: open fails: {e}"))? {
                let key = key_of(item.data()).ok_or(format!("I5: {name}: a payload that was never put"))?;
                let Some(entry) = ledger.entries.get(&key) else {
                    return Err(format!("I5: {name}: key {key} was never put"));
                };
                if entry.queue != *name || item.data() != payload(key, entry.size) {
                    return Err(format!("I4: {name}: key {key} has other bytes or another queue"));
                }
                if entry.id != 0 && entry.id != item.id().get() {
                    return Err(format!("I4: {name}: key {key} had id {}, has {}", entry.id, item.id()));
                }
                if item.id().get() <= last_id {
                    return Err(format!("I3: {name}: id {} after {last_id}", item.id()));
                }
                let given_back = ledger.closing && ledger.held.contains(&key);
                let exact = item.attempts() == entry.starts + 1;
                let counted = exact || (given_back && item.attempts() == entry.starts);
                if cut == Cut::Kill && !counted && !entry.close_asked {
                    return Err(format!(
                        "I7: {name}: key {key} was started {} times, says {}",
                        entry.starts,
                        item.attempts()
                    ));
                }
                last_id = item.id().get();
                bytes += item.data().len() as u64;
                present.push(key);
                opened.push(item);
            }
            if (present.len() as u64, bytes) != (look.0, look.1) {
                return Err(format!("I7: {name}: {look:?} announced, {} items of {bytes} bytes there", present.len()));
            }
            if !queue.recovery().lost.is_empty() {
                return Err(format!("I10: {name}: reports lost items: {:?}", queue.recovery().lost));
            }
            opened.into_iter().for_each(|item| {
                let _ = item.into_token();
            });
        }
        judge_presence(name, &present, ledger, durability, cut)?;
    }
    live(&set, ledger, queues)
}

fn judge_presence(name: &str, present: &[u64], ledger: &Ledger, durability: Durability, cut: Cut) -> Verdict {
    let there: BTreeSet<u64> = present.iter().copied().collect();
    if present.len() != there.len() {
        return Err(format!("I1: {name}: an item is there twice"));
    }
    if !present.is_sorted() {
        return Err(format!("I3: {name}: order is {present:?}"));
    }
    let highest = present.last().copied().unwrap_or(0);
    let strict = cut == Cut::Kill || durability == Durability::Sync;
    let own: Vec<(&u64, &Entry)> = ledger.entries.iter().filter(|(_, entry)| entry.queue == name).collect();
    let cleared_there = own.iter().any(|(key, entry)| entry.clear_asked && there.contains(key));
    for (key, entry) in &own {
        let is_there = there.contains(key);
        if entry.put == Put::Refused && is_there {
            return Err(format!("I5: {name}: key {key} was refused and is there"));
        }
        if entry.clear_ok && is_there {
            return Err(format!("K113: {name}: key {key} was cleared and is there"));
        }
        if entry.close_ok && is_there && (cut == Cut::Kill || entry.close_durable) {
            return Err(format!("I2: {name}: key {key} was closed and is there"));
        }
        let expected = entry.put == Put::Ok && !entry.close_asked && !entry.clear_asked;
        if expected && !is_there && (strict || entry.durable) {
            return Err(format!("I1: {name}: key {key} was answered and is gone"));
        }
        if expected && !is_there && **key < highest {
            return Err(format!("I1: {name}: key {key} is gone, a later one is there"));
        }
        let all_or_none =
            entry.clear_asked && !entry.clear_ok && cleared_there && entry.put == Put::Ok && !entry.close_asked;
        if all_or_none && !is_there && (strict || **key < highest) {
            return Err(format!("K118: {name}: key {key} is gone, others of the same clear are there"));
        }
        let mates = own.iter().filter(|(_, other)| other.batch == entry.batch && !other.close_asked);
        if !entry.close_asked && mates.into_iter().any(|(other, _)| there.contains(other) != is_there) {
            return Err(format!("K111: {name}: a part of the batch of key {key} is there"));
        }
    }
    Ok(())
}

/// I8 and I9: the queue works, and its ids are new.
fn live(set: &QueueSet, ledger: &Ledger, queues: &BTreeSet<&str>) -> Verdict {
    for name in queues {
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
