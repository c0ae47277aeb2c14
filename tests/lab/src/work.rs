//! The work that every rig interrupts, the ledger of what was asked and answered, and the judge of what a recovery brings.
//!
//! A worker is a process of its own: `lab worker DIR LEDGER SEED THREADS DURABILITY [LIFE]`. It opens the set `DIR/set`, works on its
//! queue `q` until it is killed, and tells each question and each answer in one line, written by one `write`: so what the
//! ledger says is true whenever the process, or the machine, stops. `LEDGER` is a file, or `-` for standard output.
//!
//! ```text
//! p WRITER SEQUENCE   a put is asked        P  it is answered: in      R  refused: never appears      I  indeterminate
//! c WRITER SEQUENCE   a close is asked      C  it is answered
//! S                   a sync of the whole queue is answered: all closes above are durable
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use kestrel_core::{Durability, PutError, QueueOptions, QueueSet};

pub type Key = (u64, u64);

/// splitmix64 (Steele, Lea, Flood 2014).
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writer, sequence, then bytes that follow from both.
pub fn payload(key: Key) -> Vec<u8> {
    let mut seed = key.0 << 40 | key.1;
    let len = 16 + random(&mut seed) as usize % [40, 300, 5000][key.1 as usize % 3];
    let mut bytes = [key.0.to_le_bytes(), key.1.to_le_bytes()].concat();
    while bytes.len() < len {
        bytes.extend_from_slice(&random(&mut seed).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn parse(bytes: &[u8]) -> Option<Key> {
    let writer = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == payload((writer, sequence))).then_some((writer, sequence))
}

pub fn durability(name: &str) -> Durability {
    match name {
        "sync" => Durability::Sync,
        "every" => Durability::Every(Duration::from_millis(5)),
        _ => Durability::Os,
    }
}

/// Small segments, so that rolls and recycling come often.
pub fn options(name: &str) -> QueueOptions {
    QueueOptions::default().segment_bytes(64 << 10).durability(durability(name))
}

/// Works until killed, or until `puts` puts were tried. Errors are noted and do not end it.
pub fn worker(
    dir: &Path,
    ledger: Box<dyn Write + Send>,
    seed: u64,
    threads: u64,
    mode: &str,
    life: u64,
    puts: u64,
) -> Result<(), String> {
    let set = QueueSet::builder().defaults(options(mode)).open(dir.join("set")).map_err(|e| format!("open: {e}"))?;
    let queue = set.queue("q").map_err(|e| format!("queue: {e}"))?;
    let ledger = Mutex::new(ledger);
    let note = |what: char, key: Key| {
        let line = format!("{what} {} {}\n", key.0, key.1);
        let mut ledger = ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = ledger.write_all(line.as_bytes()).and_then(|()| ledger.flush());
    };
    let answered = |answer: Result<(), PutError>, keys: &[Key]| {
        let what = match answer {
            Ok(()) => 'P',
            Err(PutError::Indeterminate { .. }) => 'I',
            Err(_) => 'R',
        };
        keys.iter().for_each(|key| note(what, *key));
        what
    };
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (queue, note, answered) = (queue.clone(), &note, &answered);
            scope.spawn(move || {
                let mut state = seed ^ thread << 32 ^ life << 16;
                let writer = life << 8 | thread;
                let mut sequence = 0;
                while sequence < puts {
                    match random(&mut state) % 16 {
                        0..=7 => {
                            let key = (writer, sequence);
                            note('p', key);
                            answered(queue.put(payload(key)).map(|_| ()), &[key]);
                            sequence += 1;
                        }
                        8 | 9 => {
                            let keys: Vec<Key> = (0..3).map(|n| (writer, sequence + n)).collect();
                            keys.iter().for_each(|key| note('p', *key));
                            answered(queue.put_batch(keys.iter().map(|key| payload(*key))).map(|_| ()), &keys);
                            sequence += 3;
                        }
                        10..=13 => {
                            if let Ok(Some(item)) = queue.try_open()
                                && let Some(key) = parse(item.data())
                            {
                                note('c', key);
                                if item.close().is_ok() {
                                    note('C', key);
                                }
                            }
                        }
                        14 => drop(queue.try_open()),
                        _ => {
                            if threads == 1 && queue.sync().is_ok() {
                                note('S', (0, 0));
                            }
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

/// What the ledger says; only its first `len` bytes count.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    pub asked: BTreeSet<Key>,
    pub put: BTreeSet<Key>,
    pub refused: BTreeSet<Key>,
    pub close_asked: BTreeSet<Key>,
    pub closed: BTreeSet<Key>,
    /// Closed before a sync of the whole queue was answered.
    pub close_durable: BTreeSet<Key>,
}

impl Ledger {
    /// What was asked, but not what was answered: for a moment of which only the answers before it hold.
    pub fn read_questions(&mut self, text: &str) {
        let mut later = Ledger::default();
        later.read(text);
        self.asked.extend(later.asked);
        self.close_asked.extend(later.close_asked);
    }

    pub fn read(&mut self, text: &str) {
        for line in text.split_inclusive('\n') {
            // A line without its end was being written when the process died.
            let Some(line) = line.strip_suffix('\n') else { continue };
            let mut parts = line.trim_end_matches('\r').split(' ');
            let what = parts.next().unwrap_or_default();
            let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
            let (Some(writer), Some(sequence)) = (number(), number()) else { continue };
            let key = (writer, sequence);
            match what {
                "p" => self.asked.insert(key),
                "P" => self.put.insert(key),
                "R" => self.refused.insert(key),
                "c" => self.close_asked.insert(key),
                "C" => self.closed.insert(key),
                "S" => {
                    self.close_durable.extend(&self.closed);
                    true
                }
                _ => true,
            };
        }
    }
}

/// How the work was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The process died: everything answered holds.
    Kill,
    /// The power went: what `Sync` answered holds; an `Os` or `Every` queue keeps a beginning.
    Power,
}

/// What a recovery brought.
#[derive(Debug, Default)]
pub struct Found {
    pub items: u64,
    /// Of these, closed ones whose mark no sync had covered.
    pub closed_before: u64,
}

/// Recovers twice, drains, and holds what is there against the ledger. Closes everything it takes.
pub fn judge(dir: &Path, ledger: &Ledger, mode: &str, cut: Cut) -> Result<Found, String> {
    let path = dir.join("set");
    let open = || {
        let set = QueueSet::builder()
            .defaults(options(mode))
            .open(&path)
            .map_err(|e| format!("I1: the set does not open: {e}"))?;
        let queue = set.queue("q").map_err(|e| format!("I1: the queue does not open: {e}"))?;
        Ok::<_, String>((set, queue))
    };
    let first = {
        let (_set, queue) = open()?;
        if !queue.recovery().lost.is_empty() {
            return Err(format!("I10: reports lost items: {:?}", queue.recovery()));
        }
        (queue.len(), queue.stats().bytes)
    };
    let (_set, queue) = open()?;
    if first != (queue.len(), queue.stats().bytes) {
        return Err(format!("I6: first {first:?}, then {} items", queue.len()));
    }
    let mut there = BTreeSet::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_id = 0;
    while let Some(item) = queue.try_open().map_err(|e| format!("I1: open fails: {e}"))? {
        let key = parse(item.data()).ok_or("I4: a payload that was never put")?;
        if !there.insert(key) {
            return Err(format!("I1: {key:?} came twice"));
        }
        if !ledger.asked.contains(&key) {
            return Err(format!("I5: {key:?} was never asked for"));
        }
        if ledger.refused.contains(&key) {
            return Err(format!("I5: {key:?} was refused and is there"));
        }
        if item.id().get() <= last_id {
            return Err(format!("I3: id {} after {last_id}", item.id()));
        }
        last_id = item.id().get();
        if last.insert(key.0, key.1).is_some_and(|before| before >= key.1) {
            return Err(format!("I3: writer {} out of order at {}", key.0, key.1));
        }
        item.close().map_err(|e| format!("I9: close fails: {e}"))?;
    }
    let strict = cut == Cut::Kill || mode == "sync";
    if strict && let Some(key) = ledger.put.iter().find(|key| !ledger.close_asked.contains(key) && !there.contains(key))
    {
        return Err(format!("I1: {key:?} was answered and is gone"));
    }
    let closed = if cut == Cut::Kill { &ledger.closed } else { &ledger.close_durable };
    if let Some(key) = closed.iter().find(|key| there.contains(key)) {
        return Err(format!("I2: {key:?} was closed and is back"));
    }
    queue.put(b"alive").map_err(|e| format!("I9: put fails: {e}"))?;
    match queue.try_get() {
        Ok(Some(item)) if item.data() == b"alive" && item.id().get() > last_id => {}
        other => return Err(format!("I9: the new item does not come: {other:?}")),
    }
    Ok(Found { items: there.len() as u64, closed_before: ledger.closed.intersection(&there).count() as u64 })
}
