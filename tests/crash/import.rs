//! The import of Kestrel's journals, ended at every step and repeated: each item is there once, and what was done is said.

#[allow(dead_code)]
#[path = "../../examples/import_kestrel/journal.rs"]
mod journal;
#[allow(dead_code)]
#[path = "../../examples/import_kestrel/write.rs"]
mod write;

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use super::everywhere::{from_env, is_long};
use super::oracle::{SYNC, Verdict, open_with, payload};
use crate::disk::sim::{SimDisk, When};
use crate::planted::{Bug, with};
use crate::{Durability, PutOptions, QueueSet};
use journal::Found;
use write::Came;

type Failed = Box<dyn std::error::Error>;
/// What is tried: the import, or a careless one.
type Import = fn(&QueueSet, &str, &Found) -> Result<Came, Failed>;

/// Two queues of Kestrel's, by name with the sizes of their items.
const QUEUES: &[(&str, &[usize])] = &[("mail", &[8, 25_000, 40, 25_000]), ("spam", &[30, 8])];

struct Kestrel {
    _dir: tempfile::TempDir,
    found: Vec<(&'static str, Found)>,
}

fn items_of(name: &str, sizes: &[usize]) -> Vec<Vec<u8>> {
    let first = u64::from(name.as_bytes()[0]) * 100;
    sizes.iter().zip(first..).map(|(size, key)| payload(key, *size)).collect()
}

impl Kestrel {
    fn new() -> Kestrel {
        let dir = tempfile::tempdir().expect("a directory");
        let mut found = Vec::new();
        for (name, sizes) in QUEUES {
            let mut bytes = Vec::new();
            for data in items_of(name, sizes) {
                bytes.push(2);
                bytes.extend((data.len() as i32 + 16).to_le_bytes());
                bytes.extend(1_300_000_000_000_i64.to_le_bytes());
                // One that expires long after, and the others never.
                bytes.extend(if data.len() == 40 { 4_000_000_000_000_i64 } else { 0 }.to_le_bytes());
                bytes.extend(data);
            }
            let file = dir.path().join(name);
            std::fs::write(&file, bytes).expect("writable");
            found.push((*name, journal::replay(&[file], false, &mut |_| {})));
        }
        Kestrel { _dir: dir, found }
    }

    /// Runs the import until it ends or the disk crashes; which queues were told to be imported.
    fn import(&self, disk: &SimDisk, import: Import) -> BTreeSet<&'static str> {
        let mut told = BTreeSet::new();
        let Ok(set) = open_with(disk, &SYNC) else { return told };
        for (name, found) in &self.found {
            let came = import(&set, name, found);
            if came.is_err() || disk.has_crashed() {
                break;
            }
            told.insert(*name);
        }
        told
    }

    /// Repeats the import on what a crash has left.
    fn judge(&self, disk: &SimDisk, told: &BTreeSet<&str>, import: Import) -> Verdict {
        let set = open_with(disk, &SYNC).map_err(|error| format!("the set does not open: {error}"))?;
        for round in 0..2 {
            for (name, found) in &self.found {
                let came = import(&set, name, found).map_err(|error| format!("{name}: {error}"))?;
                let count = found.items.len() as u64;
                let is_right = match came {
                    Came::Before(before) => before == count,
                    Came::Imported(all, before) => round == 0 && !told.contains(name) && all == count && before <= all,
                };
                if !is_right {
                    return Err(format!(
                        "{name}: imported before: {}, says {came:?}",
                        round > 0 || told.contains(name)
                    ));
                }
            }
        }
        for (name, sizes) in QUEUES {
            let queue = set.queue(name).map_err(|error| format!("{name}: {error}"))?;
            let mut there = Vec::new();
            while let Some(item) = queue.try_get().map_err(|error| format!("{name}: {error}"))? {
                if item.expires_at().is_some() != (item.data().len() == 40) {
                    return Err(format!("{name}: another expiry"));
                }
                there.push(item.data().to_vec());
            }
            if there != items_of(name, sizes) {
                let sizes: Vec<usize> = there.iter().map(Vec::len).collect();
                return Err(format!("{name}: items of {sizes:?} bytes are there"));
            }
        }
        let left: Vec<String> = set.names().into_iter().filter(|name| name.starts_with("~import ")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left over: {left:?}")) }
    }

    fn explore(&self, import: Import, stride: u64) -> Result<u64, String> {
        let seed = from_env("KESTREL_SEED", 1);
        let whole = SimDisk::new(seed);
        assert_eq!(self.import(&whole, import).len(), QUEUES.len());
        let mut states = 0;
        for step in (0..=whole.steps()).step_by(stride as usize) {
            for when in [When::Before, When::During] {
                let disk = SimDisk::new(seed);
                disk.crash_at(step, when);
                let told = self.import(&disk, import);
                let tell =
                    |fate: &dyn std::fmt::Debug, error| format!("seed {seed}, step {step} {when:?}, {fate:?}: {error}");
                self.judge(&disk.kill(), &told, import).map_err(|error| tell(&"kill", error))?;
                for fate in disk.fates(2, 2, seed ^ step) {
                    self.judge(&disk.power_cut(fate), &told, import).map_err(|error| tell(&fate, error))?;
                    states += 1;
                }
                states += 1;
            }
        }
        Ok(states)
    }
}

fn careful(set: &QueueSet, name: &str, found: &Found) -> Result<Came, Failed> {
    write::write(set, name, found, &mut |_| {})
}

/// Puts the items into their queue, and then notes that they are there.
fn careless(set: &QueueSet, name: &str, found: &Found) -> Result<Came, Failed> {
    if let Some(count) = write::done_before(set, name)? {
        return Ok(Came::Before(count));
    }
    let queue = set.queue(name)?;
    for item in &found.items {
        let file = std::fs::read(&found.files[item.file])?;
        let at = item.offset as usize;
        let options = PutOptions::new().durability(Durability::Os);
        let options = match item.expiry_ms {
            Some(ms) => options.expires_at(UNIX_EPOCH + Duration::from_millis(ms)),
            None => options,
        };
        queue.put_with(&file[at..at + item.len as usize], &options)?;
    }
    queue.sync()?;
    set.queue(write::DONE)?.put(format!("{} {name}", found.items.len()))?;
    Ok(Came::Imported(found.items.len() as u64, 0))
}

#[test]
fn k73_an_import_that_is_ended_anywhere_and_repeated_puts_each_item_once() {
    let states = Kestrel::new()
        .explore(careful, if is_long() { 1 } else { 7 })
        .unwrap_or_else(|violation| panic!("{violation}"));
    println!("crash: {states} states, of an import, each item there once");
}

#[test]
fn planted_careless_import_is_caught() {
    let found = Kestrel::new().explore(careless, 3);
    println!("planted: careless import: {found:?}");
    assert!(found.is_err());
}

#[test]
fn planted_mark_before_moved_is_caught_by_the_import() {
    let found = with(Bug::MarkBeforeMoved, || Kestrel::new().explore(careful, 3));
    println!("planted: MarkBeforeMoved in an import: {found:?}");
    assert!(found.is_err());
}
