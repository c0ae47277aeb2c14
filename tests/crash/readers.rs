//! Named readers under crashes: every step of creating, using and deleting one, under every fate, judged by a ledger of its own.
//!
//! What must hold after any crash: a reader that was answered is there and one that was deleted is not; what was answered after
//! a reader was there waits for it, unless it has closed it; what it has closed durably does not come again; an item for one
//! reader comes to no other; numbers say what is there; and once all are done, the space comes back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;

use super::everywhere::is_long;
use super::oracle::{Cut, Verdict, key_of, open, payload};
use crate::disk::sim::{Op, SimDisk, When};
use crate::planted::{Bug, with};
use crate::{Durability, OpenItem, PutOptions, Queue, QueueSet, ReaderOptions};

/// The queue's own reader.
const OWN: &str = "";
const ALL: [&str; 3] = [OWN, "a", "b"];

/// What was asked and what was answered.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    Not,
    Asked,
    Ok,
    Durable,
}

#[derive(Clone, Debug, Default, Hash)]
struct Reader {
    created: Told,
    deleted: Told,
    /// The first item that it must have, and the first that it may have.
    must_from: u64,
    may_from: u64,
    closes: BTreeMap<u64, Told>,
    /// Items up to here were cleared.
    cleared: (u64, Told),
}

#[derive(Clone, Debug, Hash)]
struct Put {
    answered: Told,
    refused: bool,
    /// `None`: for all there are.
    only: Option<&'static str>,
    size: usize,
}

#[derive(Clone, Debug, Default, Hash)]
struct Ledger {
    puts: BTreeMap<u64, Put>,
    readers: BTreeMap<&'static str, Reader>,
    violation: Option<String>,
    /// A step was planned to fail.
    tolerant: bool,
    /// There is no room for lanes: they are in memory until the next sync.
    forgetful: bool,
}

struct Run {
    disk: SimDisk,
    set: Option<QueueSet>,
    ledger: Ledger,
    held: Vec<(&'static str, u64, OpenItem)>,
}

struct Stop;

type Done = Result<(), Stop>;

impl Run {
    fn new(disk: &SimDisk) -> Run {
        let own = Reader { created: Told::Durable, ..Reader::default() };
        let ledger = Ledger { readers: [(OWN, own)].into(), ..Ledger::default() };
        Run { disk: disk.clone(), set: None, ledger, held: Vec::new() }
    }

    fn answer<T, E: std::fmt::Debug>(&mut self, what: &str, result: Result<T, E>) -> Result<Option<T>, Stop> {
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

    fn begin(&mut self) -> Done {
        let opened = open(&self.disk, Durability::Sync);
        self.set = self.answer("opening the set", opened)?;
        if self.set.is_some() { Ok(()) } else { Err(Stop) }
    }

    fn queue(&mut self) -> Result<Option<Queue>, Stop> {
        let Some(set) = &self.set else { return Err(Stop) };
        let queue = set.queue("q");
        self.answer("opening the queue", queue)
    }

    fn of(&mut self, name: &str) -> Result<Option<Queue>, Stop> {
        let Some(queue) = self.queue()? else { return Ok(None) };
        Ok(if name == OWN { Some(queue) } else { queue.get_reader(name) })
    }

    fn reader(&mut self, name: &'static str) -> &mut Reader {
        self.ledger.readers.entry(name).or_default()
    }

    fn next_key(&self) -> u64 {
        self.ledger.puts.keys().next_back().map_or(1, |key| key + 1)
    }

    fn create(&mut self, name: &'static str, from_oldest: bool) -> Done {
        let Some(queue) = self.queue()? else { return Ok(()) };
        if queue.get_reader(name).is_some() {
            // Its deletion has failed before.
            return Ok(());
        }
        let must_from = self.next_key();
        let may_from = if from_oldest { 0 } else { must_from };
        *self.reader(name) = Reader { created: Told::Asked, must_from, may_from, ..Reader::default() };
        let created = queue.reader_with(name, &ReaderOptions::new().from_oldest(from_oldest));
        if self.answer("creating a reader", created)?.is_some() {
            self.reader(name).created = Told::Durable;
        }
        Ok(())
    }

    fn delete(&mut self, name: &'static str) -> Done {
        let Some(queue) = self.queue()? else { return Ok(()) };
        self.held.retain(|(of, ..)| *of != name);
        self.reader(name).deleted = Told::Asked;
        let deleted = queue.delete_reader(name);
        if self.answer("deleting a reader", deleted)? == Some(true) {
            self.reader(name).deleted = Told::Durable;
        }
        Ok(())
    }

    fn put(&mut self, size: usize) -> Done {
        self.put_to(OWN, None, size)
    }

    fn put_only(&mut self, name: &'static str, size: usize) -> Done {
        self.put_to(name, Some(name), size)
    }

    fn put_to(&mut self, to: &str, only: Option<&'static str>, size: usize) -> Done {
        let Some(queue) = self.of(to)? else { return Ok(()) };
        let key = self.next_key();
        let put = Put { answered: Told::Asked, refused: false, only, size: size.max(8) };
        self.ledger.puts.insert(key, put);
        let put = queue.put(payload(key, size));
        let is_undetermined = matches!(put, Err(crate::PutError::Indeterminate { .. }));
        let answer = self.answer("a put", put)?;
        if let Some(put) = self.ledger.puts.get_mut(&key) {
            match answer {
                Some(_) => put.answered = Told::Durable,
                None => put.refused = !is_undetermined,
            }
        }
        Ok(())
    }

    fn open(&mut self, name: &'static str) -> Done {
        let Some(queue) = self.of(name)? else { return Ok(()) };
        let opened = queue.try_open();
        let Some(Some(item)) = self.answer("an open", opened)? else { return Ok(()) };
        let key = key_of(item.data()).ok_or(Stop)?;
        let closed = self.reader(name).closes.get(&key).copied().unwrap_or_default();
        let foreign = self.ledger.puts.get(&key).is_some_and(|put| put.only.is_some_and(|only| only != name));
        let is_closed = closed == Told::Durable || (closed == Told::Ok && !self.ledger.forgetful);
        if is_closed || foreign {
            self.ledger.violation.get_or_insert(format!("{name:?}: key {key} is delivered, {closed:?}, {foreign}"));
        }
        self.held.push((name, key, item));
        Ok(())
    }

    /// Closes what was opened first.
    fn close(&mut self, name: &'static str) -> Done {
        let Some(at) = self.held.iter().position(|(of, ..)| *of == name) else { return Ok(()) };
        let (_, key, item) = self.held.remove(at);
        self.reader(name).closes.insert(key, Told::Asked);
        let closed = item.close();
        if self.answer("a close", closed)?.is_some() {
            self.reader(name).closes.insert(key, Told::Ok);
        }
        Ok(())
    }

    fn take(&mut self, name: &'static str, count: usize) -> Done {
        for _ in 0..count {
            self.open(name)?;
            self.close(name)?;
        }
        Ok(())
    }

    fn sync(&mut self, name: &'static str) -> Done {
        let Some(queue) = self.of(name)? else { return Ok(()) };
        let synced = queue.sync();
        if self.answer("a sync", synced)?.is_some() {
            self.closes_are_durable();
        }
        Ok(())
    }

    fn closes_are_durable(&mut self) {
        let closes = self.ledger.readers.values_mut().flat_map(|reader| reader.closes.values_mut());
        closes.filter(|close| **close == Told::Ok).for_each(|close| *close = Told::Durable);
    }

    fn clear(&mut self, name: &'static str) -> Done {
        let Some(queue) = self.of(name)? else { return Ok(()) };
        let last = self.next_key() - 1;
        let cleared: Vec<&'static str> = if name == OWN { ALL.into() } else { vec![name] };
        for name in &cleared {
            if let Some(reader) = self.ledger.readers.get_mut(name) {
                reader.cleared = (last, Told::Asked);
            }
        }
        let answer = queue.clear();
        if self.answer("a clear", answer)?.is_some() {
            for name in cleared {
                if let Some(reader) = self.ledger.readers.get_mut(name) {
                    reader.cleared = (last, Told::Durable);
                }
            }
        }
        Ok(())
    }

    fn upkeep(&mut self) -> Done {
        let Some(set) = &self.set else { return Err(Stop) };
        set.run_upkeep();
        if self.disk.has_crashed() { Err(Stop) } else { Ok(()) }
    }

    fn wait(&mut self, ms: u64) -> Done {
        self.disk.advance_ms(ms);
        self.upkeep()
    }

    fn leak(&mut self) {
        for (_, _, item) in std::mem::take(&mut self.held) {
            let _ = item.into_token();
        }
    }

    fn reopen(&mut self) -> Done {
        let Some(set) = self.set.take() else { return Err(Stop) };
        let closed = set.close();
        self.leak();
        if self.answer("closing the set", closed)?.is_some() {
            self.closes_are_durable();
        }
        self.begin()
    }

    fn die(&mut self) -> Done {
        if self.disk.has_crashed() {
            return Err(Stop);
        }
        self.disk = self.disk.restart();
        if self.ledger.forgetful {
            let closes = self.ledger.readers.values_mut().flat_map(|reader| reader.closes.values_mut());
            closes.filter(|close| **close == Told::Ok).for_each(|close| *close = Told::Asked);
        }
        self.leak();
        self.set = None;
        self.begin()
    }
}

type Workload = (&'static str, fn(&mut Run) -> Done);

const WORKLOADS: &[Workload] = &[
    ("come and go", come_and_go),
    ("rolls", rolls),
    ("own items", own_items),
    ("lives", lives),
    ("clears", clears),
    ("thin out", thin_out),
];

fn come_and_go(run: &mut Run) -> Done {
    run.put(20)?;
    run.create("a", false)?;
    run.put(20)?;
    run.open("a")?;
    run.create("b", true)?;
    run.put(20)?;
    run.close("a")?;
    run.take("b", 2)?;
    run.sync("b")?;
    run.delete("a")?;
    run.put(20)?;
    run.create("a", false)?;
    run.put(20)?;
    run.take("a", 1)?;
    run.take(OWN, 3)?;
    run.delete("b")
}

/// Segments are freed once all are done with them, whoever is the last.
fn rolls(run: &mut Run) -> Done {
    run.create("a", false)?;
    for _ in 0..4 {
        run.put(30_000)?;
    }
    run.take(OWN, 4)?;
    run.upkeep()?;
    run.create("b", true)?;
    run.put(30_000)?;
    run.take("a", 3)?;
    run.upkeep()?;
    run.take("b", 4)?;
    run.upkeep()?;
    run.sync(OWN)?;
    run.put(30_000)?;
    run.take(OWN, 1)?;
    run.delete("b")?;
    run.upkeep()?;
    run.put(30_000)
}

fn own_items(run: &mut Run) -> Done {
    run.create("a", false)?;
    run.create("b", false)?;
    run.put(20)?;
    run.put_only("a", 20)?;
    run.put(20)?;
    run.put_only("b", 30_000)?;
    run.put_only("b", 30_000)?;
    run.take("a", 2)?;
    run.take("b", 1)?;
    run.put_only("a", 20)?;
    run.sync("a")?;
    run.take(OWN, 2)?;
    run.upkeep()?;
    run.take("a", 2)?;
    run.take("b", 3)?;
    run.upkeep()?;
    run.put(20)
}

fn lives(run: &mut Run) -> Done {
    run.create("a", false)?;
    run.put(20)?;
    run.put(30_000)?;
    run.take("a", 1)?;
    run.die()?;
    run.put(30_000)?;
    run.open("a")?;
    run.create("b", false)?;
    run.reopen()?;
    run.put(30_000)?;
    run.take("b", 1)?;
    run.take("a", 2)?;
    run.sync("b")?;
    run.die()?;
    run.take(OWN, 4)?;
    run.take("a", 1)?;
    run.upkeep()?;
    run.delete("a")?;
    run.die()?;
    run.put(20)?;
    run.upkeep()
}

fn clears(run: &mut Run) -> Done {
    run.create("a", false)?;
    run.create("b", false)?;
    run.put(20)?;
    run.put(30_000)?;
    run.open("a")?;
    run.clear("a")?;
    run.put(30_000)?;
    run.take("b", 1)?;
    run.take("a", 1)?;
    run.take(OWN, 3)?;
    run.upkeep()?;
    run.put(20)?;
    run.clear(OWN)?;
    run.put(20)?;
    run.upkeep()?;
    run.take("a", 1)?;
    run.sync("a")
}

/// Something old is held by one reader only, and the space around it is given back. A reader that begins with the oldest after
/// that has what is left.
fn thin_out(run: &mut Run) -> Done {
    run.create("a", false)?;
    for _ in 0..3 {
        run.put(16_000)?;
    }
    run.take(OWN, 3)?;
    run.open("a")?;
    run.take("a", 2)?;
    run.put(30_000)?;
    run.open("a")?;
    run.take(OWN, 1)?;
    for _ in 0..3 {
        run.wait(1_001)?;
    }
    run.create("b", true)?;
    run.open("b")?;
    run.put(20)?;
    run.wait(1_001)?;
    run.take("b", 2)?;
    run.close("a")?;
    run.wait(1_001)?;
    run.take("a", 2)?;
    run.delete("b")?;
    run.upkeep()
}

fn run_on(disk: &SimDisk, workload: &Workload, tolerant: bool, forgetful: bool) -> Run {
    let mut run = Run::new(disk);
    run.ledger.forgetful = forgetful;
    run.ledger.tolerant = tolerant;
    let _ = run.begin().and_then(|()| workload.1(&mut run));
    run
}

/// Dies without a close.
fn end(mut run: Run) -> Ledger {
    run.leak();
    std::mem::forget(run.set.take());
    run.ledger
}

/// What waits for each reader that is there, in its order; taken and left in flight.
fn found(disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Result<BTreeMap<&'static str, Vec<u64>>, String> {
    let set = open(disk, Durability::Sync).map_err(|e| format!("the set does not open: {e}"))?;
    let Some(queue) = set.get_queue("q").map_err(|e| format!("the queue does not open: {e}"))? else {
        return Ok(BTreeMap::new());
    };
    if let Some(unknown) = queue.readers().iter().find(|name| !ALL.contains(&name.as_str())) {
        return Err(format!("a reader {unknown} that nobody made"));
    }
    let mut found = BTreeMap::new();
    for name in ALL {
        let Some(reader) = (if name == OWN { Some(queue.clone()) } else { queue.get_reader(name) }) else { continue };
        let told = (reader.len(), reader.stats().bytes, reader.recovery().items);
        let (mut keys, mut bytes) = (Vec::new(), 0);
        while let Some(item) = reader.try_open().map_err(|e| format!("{name:?}: {e}"))? {
            let key = key_of(item.data()).ok_or("a payload that was never put")?;
            let put = ledger.puts.get(&key).ok_or(format!("key {key} was never put"))?;
            if item.data() != payload(key, put.size) {
                return Err(format!("{name:?}: key {key} has other bytes"));
            }
            keys.push(key);
            bytes += put.size as u64;
            let _ = item.into_token();
        }
        let there = (keys.len() as u64, bytes, keys.len() as u64);
        // A power cut may take the mark that says that an item is another reader's: it counts until it is met.
        let others = ledger.puts.values().filter(|put| put.only.is_some_and(|only| only != name)).count() as u64;
        let is_near = |items: u64| (there.0..=there.0 + others).contains(&items);
        let may_differ = cut == Cut::Power && name != OWN && is_near(told.0) && told.1 >= bytes && is_near(told.2);
        if told != there && !may_differ {
            return Err(format!("{name:?}: {told:?} announced, {keys:?} of {bytes} bytes there"));
        }
        found.insert(name, keys);
    }
    Ok(found)
}

fn judge(disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Verdict {
    if let Some(violation) = &ledger.violation {
        return Err(violation.clone());
    }
    let first = disk.kill();
    let found_first = found(&first, ledger, cut)?;
    for (name, reader) in &ledger.readers {
        let keys = found_first.get(name);
        if keys.is_none() && reader.created == Told::Durable && reader.deleted == Told::Not && *name != OWN {
            return Err(format!("reader {name:?} was answered and is gone"));
        }
        if keys.is_some() && reader.deleted == Told::Durable {
            return Err(format!("reader {name:?} was deleted and is there"));
        }
        if let Some(keys) = keys {
            judge_reader(name, reader, keys, ledger, cut)?;
        }
    }
    let again = found(&first.kill(), ledger, cut)?;
    if again != found_first {
        return Err(format!("first {found_first:?}, then {again:?}"));
    }
    live(&first.kill())
}

fn judge_reader(name: &str, reader: &Reader, keys: &[u64], ledger: &Ledger, cut: Cut) -> Verdict {
    if !keys.is_sorted() || keys.iter().collect::<BTreeSet<_>>().len() != keys.len() {
        return Err(format!("{name:?}: order is {keys:?}"));
    }
    let there: BTreeSet<u64> = keys.iter().copied().collect();
    for (key, put) in &ledger.puts {
        let is_there = there.contains(key);
        let close = reader.closes.get(key).copied().unwrap_or_default();
        let may = *key >= reader.may_from && put.only.is_none_or(|only| only == name) && !put.refused;
        if is_there && !may {
            return Err(format!("{name:?}: key {key} is none of its: {put:?}"));
        }
        let cleared = if *key <= reader.cleared.0 { reader.cleared.1 } else { Told::Not };
        if is_there && cleared == Told::Durable {
            return Err(format!("{name:?}: key {key} was cleared and is there"));
        }
        if is_there && (close == Told::Durable || (close == Told::Ok && cut == Cut::Kill)) {
            return Err(format!("{name:?}: key {key} was closed, {close:?}, and is there"));
        }
        let must = may && *key >= reader.must_from && put.answered == Told::Durable;
        if must && close == Told::Not && cleared == Told::Not && !is_there {
            return Err(format!("{name:?}: key {key} was answered and is gone"));
        }
    }
    Ok(())
}

/// Everybody gets what is put now, and once all are done, only the last segment and the lanes of its ids are left.
fn live(disk: &SimDisk) -> Verdict {
    let set = open(disk, Durability::Sync).map_err(|e| format!("the set does not open: {e}"))?;
    let queue = set.queue("q").map_err(|e| format!("the queue does not open: {e}"))?;
    let readers: Vec<Queue> = queue.readers().iter().filter_map(|name| queue.get_reader(name)).collect();
    queue.put(b"alive").map_err(|e| format!("a put fails: {e}"))?;
    for reader in readers.iter().chain([&queue]) {
        let mut last = Vec::new();
        while let Some(item) = reader.try_open().map_err(|e| format!("an open fails: {e}"))? {
            last = item.data().to_vec();
            item.close().map_err(|e| format!("a close fails: {e}"))?;
        }
        if last != b"alive" {
            return Err(format!("{}: the new item does not come", reader.name()));
        }
    }
    set.run_upkeep();
    let segments = queue.stats().segments;
    let lanes = disk.list_files().iter().filter(|path| path.extension().is_some_and(|e| e == "lanes")).count();
    if segments > 1 || lanes > readers.len() {
        return Err(format!("all is done, and {segments} segments and {lanes} files of lanes are left"));
    }
    Ok(())
}

struct Explorer {
    judged: HashSet<(u64, u64, Cut)>,
    states: u64,
}

impl Explorer {
    fn state(&mut self, disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Verdict {
        self.states += 1;
        let mut hasher = DefaultHasher::new();
        ledger.hash(&mut hasher);
        if !self.judged.insert((disk.fingerprint(), hasher.finish(), cut)) {
            return Ok(());
        }
        judge(disk, ledger, cut)?;
        if self.judged.len().is_multiple_of(40) {
            self.crash_recovery(disk, ledger, cut)?;
        }
        Ok(())
    }

    fn crash_recovery(&mut self, disk: &SimDisk, ledger: &Ledger, cut: Cut) -> Verdict {
        let trial = disk.kill();
        let _ = open(&trial, Durability::Sync).map(|set| set.get_queue("q").map(drop));
        for step in 0..trial.steps() {
            let second = disk.kill();
            second.crash_at(step, When::During);
            let _ = open(&second, Durability::Sync).map(|set| set.get_queue("q").map(drop));
            let told = |e| format!("recovery crashed at its step {step}: {e}");
            self.states += 1;
            judge(&second.kill(), ledger, cut).map_err(told)?;
            for fate in second.fates(2, 1, step) {
                self.states += 1;
                judge(&second.power_cut(fate), ledger, Cut::Power).map_err(told)?;
            }
        }
        Ok(())
    }

    /// `killed`: what the death of the process may take with it.
    fn states_of(&mut self, disk: &SimDisk, ledger: &Ledger, seed: u64, killed: Cut) -> Verdict {
        self.state(&disk.kill(), ledger, killed).map_err(|e| format!("kill: {e}"))?;
        for fate in disk.fates(if ledger.tolerant { 1 } else { 3 }, 2, seed) {
            self.state(&disk.power_cut(fate), ledger, Cut::Power).map_err(|e| format!("{fate:?}: {e}"))?;
        }
        Ok(())
    }
}

/// Crashes a workload at each of its steps.
fn explore(workload: &Workload, stride: usize) -> Result<u64, String> {
    let whole = SimDisk::new(1);
    let ledger = end(run_on(&whole, workload, false, false));
    let tell = |what: String| format!("{}: {what}", workload.0);
    if let Some(violation) = ledger.violation {
        return Err(tell(violation));
    }
    let mut explorer = Explorer { judged: HashSet::new(), states: 0 };
    for step in (0..=whole.steps()).step_by(stride) {
        for when in [When::Before, When::During] {
            let disk = SimDisk::new(1);
            disk.crash_at(step, when);
            let run = run_on(&disk, workload, false, false);
            let disk = run.disk.clone();
            let ledger = end(run);
            explorer
                .states_of(&disk, &ledger, step, Cut::Kill)
                .map_err(|e| tell(format!("step {step} {when:?}, {e}")))?;
        }
    }
    Ok(explorer.states)
}

/// Each step fails once, and the workload goes on; then the process dies, or the power goes.
fn fail(workload: &Workload, stride: usize) -> Result<u64, String> {
    let whole = SimDisk::new(1);
    whole.record();
    end(run_on(&whole, workload, false, false));
    let mut explorer = Explorer { judged: HashSet::new(), states: 0 };
    for call in whole.take_calls().iter().step_by(stride) {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            if kind == ErrorKind::StorageFull && matches!(call.op, Op::Sync | Op::SyncDir | Op::Unlink | Op::Open) {
                continue;
            }
            let disk = SimDisk::new(1);
            disk.fail_at(call.step, kind);
            let is_lanes = call.path.extension().is_some_and(|ending| ending == "lanes");
            let forgetful = is_lanes && kind == ErrorKind::StorageFull;
            let run = run_on(&disk, workload, true, forgetful);
            let disk = run.disk.clone();
            let ledger = end(run);
            let tell = |e| format!("{}: step {} {:?} fails, {kind:?}, {e}", workload.0, call.step, call.op);
            let killed = if forgetful { Cut::Power } else { Cut::Kill };
            explorer.states_of(&disk, &ledger, call.step, killed).map_err(tell)?;
        }
    }
    Ok(explorer.states)
}

#[test]
fn s44_s47_s48_every_step_of_readers_under_every_fate() {
    let mut states = 0;
    for workload in WORKLOADS {
        states += explore(workload, if is_long() { 1 } else { 7 }).unwrap_or_else(|violation| panic!("{violation}"));
    }
    println!("crash: {states} states, of readers, 0 lost, 0 invented");
}

#[test]
fn every_step_of_readers_fails_once() {
    let mut states = 0;
    for workload in WORKLOADS {
        states += fail(workload, if is_long() { 1 } else { 9 }).unwrap_or_else(|violation| panic!("{violation}"));
    }
    println!("crash: {states} states, of readers after errors");
}

/// On the workload that is made for it.
fn caught(bug: Bug, name: &str) {
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(|workload| workload.0 == name).collect();
    assert_eq!(workloads.len(), 1, "{name}");
    let hunt = || workloads.iter().try_for_each(|workload| explore(workload, 1).map(drop));
    let caught = std::panic::catch_unwind(|| with(bug, hunt)).unwrap_or_else(|_| Err("a panic".into()));
    println!("planted: {bug:?}: {caught:?}");
    assert!(caught.is_err(), "{bug:?} was not caught");
}

#[test]
fn planted_free_before_readers_is_caught() {
    caught(Bug::FreeBeforeReaders, "rolls");
}

#[test]
fn planted_reader_before_header_is_caught() {
    caught(Bug::ReaderBeforeHeader, "come and go");
}

#[test]
fn planted_punch_unread_is_caught() {
    caught(Bug::PunchUnread, "thin out");
}

#[test]
fn planted_count_punched_is_caught() {
    caught(Bug::CountPunched, "thin out");
}

/// A queue that nobody syncs: what a reader has done is made durable before its bytes go.
fn punched_without_a_sync() -> Verdict {
    let disk = SimDisk::new(1);
    let set = open(&disk, Durability::Os).map_err(|e| e.to_string())?;
    let queue = set.queue("q").map_err(|e| e.to_string())?;
    let reader = queue.reader("a").map_err(|e| e.to_string())?;
    let put = |key, size| queue.put(payload(key, size)).map(drop).map_err(|e| e.to_string());
    (1..=8).try_for_each(|key| put(key, if key == 8 { 30_000 } else { 7_000 }))?;
    // The items are durable; what is done with them is not.
    queue.sync().map_err(|e| e.to_string())?;
    let held = reader.try_open().map_err(|e| e.to_string())?;
    for _ in 2..=8 {
        reader.try_get().map_err(|e| e.to_string())?;
    }
    while queue.try_get().map_err(|e| e.to_string())?.is_some() {}
    let before = queue.stats().log_size;
    for _ in 0..6 {
        // Only what may expire has such a queue looked after.
        let short = PutOptions::new().expires_in(std::time::Duration::from_millis(1));
        queue.put_with(payload(9, 20), &short).map_err(|e| e.to_string())?;
        disk.advance_ms(1_001);
        set.run_upkeep();
    }
    if queue.stats().log_size >= before {
        return Err("nothing was given back".into());
    }
    drop(held);
    held_comes_first(&disk)
}

/// After a power cut: what was punched may have reached the device, and the marks not.
fn held_comes_first(disk: &SimDisk) -> Verdict {
    for fate in disk.fates(3, 40, 7) {
        let tell = |e: String| format!("{fate:?}: {e}");
        let after = open(&disk.power_cut(fate), Durability::Os).map_err(|e| tell(e.to_string()))?;
        let reader = after.queue("q+a").map_err(|e| tell(e.to_string()))?;
        let first = reader.try_get().map_err(|e| tell(e.to_string()))?.and_then(|item| key_of(item.data()));
        while reader.try_get().map_err(|e| tell(e.to_string()))?.is_some() {}
        if first != Some(1) {
            return Err(tell(format!("{first:?} instead of what was held")));
        }
    }
    Ok(())
}

/// The same where no sync has reached the segments: they get one, and with it what the reader has done there.
fn punched_before_any_sync() -> Verdict {
    let disk = SimDisk::new(1);
    let set = open(&disk, Durability::Os).map_err(|e| e.to_string())?;
    let queue = set.queue("q").map_err(|e| e.to_string())?;
    let reader = queue.reader("a").map_err(|e| e.to_string())?;
    let mut held = Vec::new();
    for key in 1..=20 {
        let id = queue.put(payload(key, 28_000)).map_err(|e| e.to_string())?;
        queue.try_get().map_err(|e| e.to_string())?;
        let item = reader.try_open().map_err(|e| e.to_string())?.ok_or("not there")?;
        if key % 2 == 1 {
            held.push((id, item))
        } else {
            item.close().map_err(|e| e.to_string())?
        }
        set.run_upkeep();
    }
    if queue.stats().log_size >= 10 << 16 {
        return Err("nothing was given back".into());
    }
    // The first is told to be durable.
    queue.synced(held[0].0).map_err(|e| e.to_string())?;
    held_comes_first(&disk)
}

#[test]
fn planted_punch_before_reader_sync_is_caught() {
    for scenario in [punched_without_a_sync, punched_before_any_sync] {
        assert_eq!(scenario(), Ok(()));
        assert!(with(Bug::PunchBeforeReaderSync, scenario).is_err(), "it was not caught");
    }
}

/// New lanes need room, and closes give it: on a full disk they stay in memory until there is some.
#[test]
fn f14_a_reader_drains_on_a_full_disk() {
    let disk = SimDisk::new(1);
    let set = open(&disk, Durability::Sync).expect("opens");
    let queue = set.queue("q").expect("opens");
    let reader = queue.reader("a").expect("created");
    for key in 1..=5 {
        queue.put(payload(key, 30_000)).expect("room");
    }
    let used: usize = disk.list_files().iter().filter_map(|path| disk.read_file(path)).map(|bytes| bytes.len()).sum();
    disk.set_space(used as u64);
    for key in 1..=3 {
        let item = reader.open().expect("there");
        assert_eq!(key_of(item.data()), Some(key));
        item.close().expect("needs no room");
    }
    assert!(reader.sync().is_err(), "what is not durable is not said to be");
    for _ in 0..3 {
        queue.get().expect("there");
    }
    disk.set_space(u64::MAX);
    reader.sync().expect("there is room");
    let after = open(&disk.power_cut(crate::disk::sim::Fate::None), Durability::Sync).expect("opens");
    let left = after.queue("q+a").expect("opens").get().expect("there");
    assert_eq!(key_of(left.data()), Some(4));
    set.run_upkeep();
    assert!(queue.stats().segments <= 3);
    queue.put(payload(6, 30_000)).expect("the queue is as it was");
}

/// What each keeps of the others is looked at while they come and go.
#[test]
fn numbers_are_told_beside_readers_that_come_and_go() {
    let disk = SimDisk::new(1);
    let set = open(&disk, Durability::Os).expect("opens");
    let queue = set.queue("q").expect("opens");
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for _ in 0..100 {
                queue.reader("a").expect("created");
                assert!(queue.delete_reader("a").expect("removed"));
            }
        });
        let queue = &queue;
        let puts = scope.spawn(move || {
            while !changes.is_finished() {
                queue.put("x").expect("room");
                let _ = queue.get_timeout(std::time::Duration::from_millis(1)).expect("reads");
            }
        });
        while !puts.is_finished() {
            let stats = queue.stats();
            assert!(stats.readers <= 1, "{stats:?}");
            set.run_upkeep();
        }
    });
    assert_eq!((queue.readers().len(), queue.stats().readers), (0, 0));
}
