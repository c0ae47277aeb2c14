//! Three queues in a row, through which items move while queues are cleared and deleted: `in`, whose items are held under
//! leases, moved on by `close_into`, given up by hand or after too many starts; `out`, which takes what moves on; `dead`, which
//! takes what is given up. An archive is shown what is spent. An item has one token wherever it is, so that it can be told
//! whether it is lost, or in two places.
//!
//! What is answered is written down here; [`crate::links`] holds it to the rules.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::engine::{self, Random};
use crate::history::{Answer, Tick, tells};
use crate::links::{Links, Verdict};
use crate::sync::thread::{self, spawn};
use crate::sync::time;
use crate::testing::SimDisk;
use crate::work::{Cut, DIR, cut_of, payload, token_of};
use crate::{
    CloseError, Durability, Error, GetError, Item, MoveFault, OpenItem, PutError, Queue, QueueOptions, QueueSet,
    RetiredSegment, SyncError,
};

pub const NAMES: [&str; 3] = ["in", "out", "dead"];
pub const IN: usize = 0;
pub const OUT: usize = 1;
pub const DEAD: usize = 2;
/// The reason of what is given up by hand.
pub const BY_HAND: &str = "by hand";

#[derive(Clone, Debug)]
pub struct Asked {
    pub token: u64,
    pub began: Tick,
    pub ended: Option<Tick>,
    pub answer: Answer,
    /// The answer says that the device has it.
    pub synced: bool,
}

/// What a consumer does with an item that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Close,
    Move,
    Letter,
    Back,
    /// A lease of so many ms from now on.
    Extend(u64),
}

#[derive(Clone, Debug)]
pub struct Try {
    pub step: Step,
    pub began: Tick,
    pub began_ms: u64,
    pub ended: Option<Tick>,
    pub ok: Option<bool>,
    /// Of the new item.
    pub id: Option<u64>,
    pub synced: bool,
}

/// An item that a consumer was given. Without `open` it was done with that.
#[derive(Clone, Debug)]
pub struct Given {
    pub queue: usize,
    pub open: bool,
    pub began: Tick,
    pub began_ms: u64,
    pub ended: Tick,
    pub ended_ms: u64,
    pub found: Found,
    pub tries: Vec<Try>,
}

/// An item as it was given out.
#[derive(Clone, Debug)]
pub struct Found {
    pub token: u64,
    pub id: u64,
    pub attempts: u64,
    pub letter: Option<crate::DeadLetter>,
}

impl Found {
    pub fn of(item: &Item) -> Found {
        Found {
            token: token_of(item.data()).expect("the payload is as it was put"),
            id: item.id().get(),
            attempts: item.attempts().into(),
            letter: item.dead_letter().cloned(),
        }
    }
}

/// A clear, or a delete.
#[derive(Clone, Debug)]
pub struct Wipe {
    pub queue: usize,
    pub delete: bool,
    pub began: Tick,
    pub ended: Option<Tick>,
}

/// A segment that the archive took.
#[derive(Clone, Debug)]
pub struct Shown {
    pub queue: usize,
    pub tick: Tick,
    pub ids: Vec<u64>,
}

#[derive(Clone, Debug)]
pub struct Synced {
    pub queue: usize,
    pub began: Tick,
    pub ended: Tick,
}

#[derive(Clone, Debug, Default)]
pub struct Story {
    now: Tick,
    pub asked: Vec<Asked>,
    pub given: Vec<Given>,
    pub wipes: Vec<Wipe>,
    pub shown: Vec<Shown>,
    pub syncs: Vec<Synced>,
    pub closing: Option<Tick>,
    pub closed: Option<Tick>,
}

impl Story {
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }
}

/// Shared by all threads of an execution, which are one thread of the system: nobody is stopped while he writes.
#[derive(Clone, Debug, Default)]
pub struct Book(Arc<Mutex<Story>>);

impl Book {
    pub fn write(&self) -> MutexGuard<'_, Story> {
        self.0.lock().expect("nobody panics while writing")
    }

    fn now(&self) -> Tick {
        self.write().tick()
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if tells() {
            let what = what();
            println!("{:4} {what}", self.write().now);
        }
    }
}

pub struct Chain {
    pub book: Book,
    pub disk: SimDisk,
    pub set: QueueSet,
    pub options: [QueueOptions; 3],
    /// Renewed when a queue was deleted; the number tells one life of a queue from the next.
    handles: Mutex<Vec<(u64, Queue)>>,
    cuts: Mutex<Vec<Cut>>,
    payload_max: u64,
}

fn durability(random: &mut Random) -> Durability {
    match random.below(4) {
        0 | 1 => Durability::Sync,
        2 => Durability::Every(Duration::from_millis(20)),
        _ => Durability::Os,
    }
}

fn options(random: &mut Random) -> [QueueOptions; 3] {
    let [mut first, mut out, dead] = [(); 3].map(|()| {
        let options = QueueOptions::default().segment_bytes(64 << 10).durability(durability(random));
        if random.chance(3) { options.memory_bytes(random.below(3) * 40) } else { options }
    });
    first = first.dead_letters(NAMES[DEAD]);
    if random.chance(2) {
        first = first.lease(Duration::from_millis(1 + random.below(30)));
    }
    if !random.chance(3) {
        first = first.max_attempts(1 + random.below(3) as u32);
    }
    if random.chance(4) {
        out = out.max_items(1 + random.below(3));
    }
    [first, out, dead]
}

/// Takes what it is shown, mostly.
fn archive(book: Book, seed: u64) -> impl Fn(&RetiredSegment<'_>) -> io::Result<()> {
    let random = Mutex::new(Random::new(seed));
    move |segment| {
        let queue = NAMES.iter().position(|name| *name == segment.queue()).expect("one of the three");
        if random.lock().expect("not poisoned").chance(4) {
            book.note(|| format!("the archive refuses segment {} of {queue}", segment.number()));
            return Err(io::Error::other("not now"));
        }
        let items = segment.items().collect::<Result<Vec<_>, _>>().expect("undamaged");
        let ids: Vec<u64> = items.iter().map(|item| item.id().get()).collect();
        assert_eq!(ids.len() as u64, segment.len(), "an archive is shown all items");
        book.note(|| format!("the archive takes segment {} of {queue}: {ids:?}", segment.number()));
        let mut story = book.write();
        let tick = story.tick();
        story.shown.push(Shown { queue, tick, ids });
        Ok(())
    }
}

impl Chain {
    fn new(seed: u64) -> Chain {
        let mut random = Random::new(seed ^ 0x0C4A_1234);
        let (book, disk) = (Book::default(), SimDisk::new(random.next()));
        let builder = QueueSet::builder().simulated(&disk).archive(archive(book.clone(), random.next()));
        let set = builder.open(DIR).expect("a healthy disk");
        let options = options(&mut random);
        let handles: Result<_, _> =
            options.iter().zip(NAMES).map(|(options, name)| Ok((0, set.queue_with(name, options.clone())?))).collect();
        let handles = handles.map_err(|error: crate::OpenError| error).expect("a healthy disk");
        let payload_max = if random.chance(2) { 25_000 } else { 40 };
        Chain { book, disk, set, options, handles: Mutex::new(handles), cuts: Mutex::default(), payload_max }
    }

    fn handle(&self, queue: usize) -> (u64, Queue) {
        self.handles.lock().expect("not poisoned")[queue].clone()
    }

    fn is_closing(&self) -> bool {
        self.book.write().closing.is_some()
    }

    fn run(self, seed: u64) -> Arc<Chain> {
        let mut random = Random::new(seed ^ 0x0C4A);
        let chain = Arc::new(self);
        let (mut threads, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..1 + random.below(2) {
            let (chain, mut random) = (Arc::clone(&chain), Random::new(random.next()));
            threads.push(spawn(move || chain.produce(&mut random)));
        }
        for _ in 0..1 + random.below(3) {
            let (chain, mut random) = (Arc::clone(&chain), Random::new(random.next()));
            threads.push(spawn(move || chain.work(&mut random)));
        }
        // One who waits without end is woken by a delete, or by the end of the set.
        let waits = random.chance(3);
        for _ in 0..1 + random.below(2) {
            let (chain, mut random) = (Arc::clone(&chain), Random::new(random.next()));
            let queue = if random.chance(3) { DEAD } else { OUT };
            let thread = spawn(move || chain.consume(queue, waits, &mut random));
            if waits { waiting.push(thread) } else { threads.push(thread) }
        }
        for _ in 0..1 + random.below(2) {
            let (chain, mut random) = (Arc::clone(&chain), Random::new(random.next()));
            threads.push(spawn(move || chain.meddle(&mut random)));
        }
        threads.into_iter().for_each(|thread| thread.join().expect("a panic ends the execution"));
        if waits {
            chain.close();
        }
        waiting.into_iter().for_each(|thread| thread.join().expect("a panic ends the execution"));
        chain
    }

    // ---- in

    fn produce(&self, random: &mut Random) {
        for _ in 0..1 + random.below(4) {
            let (_, handle) = self.handle(IN);
            let token = {
                let mut story = self.book.write();
                let began = story.tick();
                let token = began << 8;
                story.asked.push(Asked { token, began, ended: None, answer: Answer::None, synced: false });
                token
            };
            let data = payload(token, 16 + random.below(self.payload_max));
            let waits = random.chance(2);
            let result = if waits { handle.put(data) } else { handle.append(data) };
            self.book.note(|| format!("put {token}: {result:?}"));
            let mut story = self.book.write();
            let ended = story.tick();
            let asked = story.asked.iter_mut().find(|asked| asked.token == token).expect("it was asked");
            asked.ended = Some(ended);
            asked.synced = waits && self.options[IN].durability == Durability::Sync && result.is_ok();
            asked.answer = match result {
                Ok(id) => Answer::Stored(id.get()),
                Err(PutError::Closed) => Answer::Refused,
                Err(error) => panic!("a put on a healthy disk: {error}"),
            };
        }
    }

    // ---- out

    /// Notes what a consumer was given.
    fn given(&self, queue: usize, open: bool, began: (Tick, u64), item: &Item) -> usize {
        let found = Found::of(item);
        self.book.note(|| format!("given from {queue}, open {open}, asked at {}: {found:?}", began.0));
        let mut story = self.book.write();
        let (ended, ended_ms) = (story.tick(), time::passed_ms());
        let (began, began_ms) = began;
        story.given.push(Given { queue, open, began, began_ms, ended, ended_ms, found, tries: Vec::new() });
        story.given.len() - 1
    }

    fn begin(&self) -> (Tick, u64) {
        (self.book.now(), time::passed_ms())
    }

    fn glance<T>(&self, future: impl Future<Output = T>, random: &mut Random) -> Option<T> {
        let mut future = pin!(future);
        let waker = thread::waker();
        for _ in 0..1 + random.below(2) {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(value);
            }
            (0..random.below(4)).for_each(|_| engine::yield_now());
        }
        None
    }

    /// `None`: the queue or the set has been closed.
    fn unless_closed<T>(&self, result: Result<T, GetError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(GetError::Closed) => None,
            Err(error) => panic!("a take on a healthy disk: {error}"),
        }
    }

    fn work(&self, random: &mut Random) {
        for _ in 0..2 + random.below(5) {
            let (_, handle) = self.handle(IN);
            let began = self.begin();
            let some_ms = Duration::from_millis(1 + random.below(20));
            let opened = match random.below(3) {
                0 => handle.try_open(),
                1 => handle.open_timeout(some_ms),
                _ => self.glance(handle.open_async(), random).transpose(),
            };
            if let Some(Some(item)) = self.unless_closed(opened) {
                let given = self.given(IN, true, began, &item);
                self.hold(given, &handle, item, random);
            }
        }
    }

    /// Does something with a held item, and notes what came of it: whether it was done, and the id of the new item.
    fn step(&self, given: usize, step: Step, does: impl FnOnce() -> (bool, Option<u64>)) -> bool {
        let number = {
            let mut story = self.book.write();
            let (began, began_ms) = (story.tick(), time::passed_ms());
            let tries = &mut story.given[given].tries;
            tries.push(Try { step, began, began_ms, ended: None, ok: None, id: None, synced: false });
            tries.len() - 1
        };
        let (ok, id) = does();
        let mut story = self.book.write();
        let ended = story.tick();
        let step = &mut story.given[given].tries[number];
        (step.ended, step.ok, step.id) = (Some(ended), Some(ok), id);
        drop(story);
        self.book.note(|| format!("of {given}: {:?}", self.book.write().given[given].tries[number]));
        ok
    }

    fn hold(&self, given: usize, handle: &Queue, item: OpenItem, random: &mut Random) {
        for _ in 0..random.below(3) {
            (0..random.below(6)).for_each(|_| engine::yield_now());
            match random.below(4) {
                0 => time::pass(Duration::from_millis(random.below(20))),
                1 | 2 => {
                    let lease = if random.chance(4) { Duration::MAX } else { Duration::from_millis(random.below(30)) };
                    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
                    self.step(given, Step::Extend(lease_ms), || (item.extend(lease), None));
                }
                _ => {}
            }
        }
        let token = token_of(item.data()).expect("looked at before");
        match random.below(10) {
            0..=4 => {
                let (_, out) = self.handle(OUT);
                let data = payload(token, 16 + random.below(self.payload_max));
                let mut left = None;
                self.step(given, Step::Move, || match item.close_into(&out, data) {
                    Ok(id) => (true, Some(id.get())),
                    Err(error) => {
                        let fault = error.fault();
                        let full = matches!(fault, MoveFault::Put(PutError::Full { .. }));
                        let gone = matches!(fault, MoveFault::LeaseEnded | MoveFault::Closed);
                        let target_gone =
                            matches!(fault, MoveFault::Put(PutError::Closed) | MoveFault::Sync(SyncError::Closed));
                        assert!(full || gone || target_gone, "a move on a healthy disk: {fault:?}");
                        left = error.into_item();
                        assert_eq!(left.is_none(), gone, "the item is given back where it is still held");
                        (false, None)
                    }
                });
                if let Some(item) = left {
                    self.end(given, handle, item, random);
                }
            }
            5 => {
                let mut left = None;
                self.step(given, Step::Letter, || match item.dead_letter(BY_HAND) {
                    Ok(id) => (true, Some(id.get())),
                    Err(error) => {
                        left = error.into_item();
                        (false, None)
                    }
                });
                if let Some(item) = left {
                    self.end(given, handle, item, random);
                }
            }
            // Left to its lease.
            6 if self.options[IN].lease.is_some() && !self.is_endless(given) => drop(item.into_token()),
            _ => self.end(given, handle, item, random),
        }
    }

    fn is_endless(&self, given: usize) -> bool {
        self.book.write().given[given].tries.iter().any(|step| step.step == Step::Extend(u64::MAX))
    }

    /// Closes an item, or gives it back.
    fn end(&self, given: usize, handle: &Queue, item: OpenItem, random: &mut Random) {
        match random.below(6) {
            0 => drop(self.step(given, Step::Close, || (item.close().is_ok(), None))),
            1 => drop(self.step(given, Step::Close, || (handle.close_token(item.into_token()).unwrap_or(false), None))),
            2 => {
                let mut synced = false;
                self.step(given, Step::Close, || {
                    let closed = item.close_synced();
                    synced = closed.is_ok();
                    (synced || matches!(closed, Err(CloseError::Sync(_))), None)
                });
                if synced && let Some(step) = self.book.write().given[given].tries.last_mut() {
                    step.synced = true;
                }
            }
            3 => drop(self.step(given, Step::Back, || (handle.abort_token(item.into_token()), None))),
            _ => drop(self.step(given, Step::Back, || {
                item.abort();
                (true, None)
            })),
        }
    }

    fn consume(&self, queue: usize, waits: bool, random: &mut Random) {
        let mut left = 2 + random.below(4);
        while waits || left > 0 {
            left = left.saturating_sub(1);
            let (life, handle) = self.handle(queue);
            let began = self.begin();
            let some_ms = Duration::from_millis(1 + random.below(20));
            if random.chance(2) {
                let got = match random.below(2) {
                    _ if waits && random.chance(2) => handle.get().map(Some),
                    _ if waits => thread::block_on(handle.get_async()).map(Some),
                    0 => handle.try_get(),
                    _ => handle.get_timeout(some_ms),
                };
                match self.unless_closed(got) {
                    Some(Some(item)) => drop(self.given(queue, false, began, &item)),
                    Some(None) => {}
                    None if self.is_closing() => return,
                    None => self.await_next(queue, life),
                }
                continue;
            }
            let opened = match random.below(2) {
                _ if waits => handle.open().map(Some),
                0 => handle.try_open(),
                _ => handle.open_timeout(some_ms),
            };
            match self.unless_closed(opened) {
                Some(Some(item)) => {
                    let given = self.given(queue, true, began, &item);
                    (0..random.below(3)).for_each(|_| engine::yield_now());
                    self.end(given, &handle, item, random);
                }
                Some(None) => {}
                None if self.is_closing() => return,
                None => self.await_next(queue, life),
            }
        }
    }

    /// A queue was deleted: whoever did that makes the next one.
    fn await_next(&self, queue: usize, life: u64) {
        while self.handle(queue).0 == life && !self.is_closing() {
            engine::yield_now();
        }
    }

    // ---- everything else

    fn meddle(&self, random: &mut Random) {
        for _ in 0..1 + random.below(4) {
            let queue = random.below(3) as usize;
            let (_, handle) = self.handle(queue);
            (0..random.below(60)).for_each(|_| engine::yield_now());
            match random.below(12) {
                0 | 1 => self.cut(random),
                2 => {
                    let began = self.book.now();
                    if handle.sync().is_ok() {
                        self.synced(queue, began);
                    }
                }
                3 => {
                    let began = self.book.now();
                    if self.set.sync().is_ok() {
                        (0..NAMES.len()).for_each(|queue| self.synced(queue, began));
                    }
                }
                4 | 5 => {
                    let number = self.begin_wipe(queue, false);
                    let result = handle.clear();
                    self.book.note(|| format!("cleared {queue}: {result:?}"));
                    self.end_wipe(number, matches!(result, Ok(_)));
                }
                6 | 7 => self.delete(queue),
                8 => {
                    self.book.note(|| "time passes".into());
                    time::pass(Duration::from_millis(random.below(40)));
                }
                9 => {
                    let stats = handle.stats();
                    assert!(stats.mem_items <= stats.items, "more in memory than there are: {stats:?}");
                    assert!(stats.leases_ended <= stats.canceled_transactions, "an ended lease is an abort: {stats:?}");
                }
                10 if random.chance(4) => self.close(),
                _ => {
                    handle.pause();
                    (0..random.below(20)).for_each(|_| engine::yield_now());
                    handle.resume();
                }
            }
        }
    }

    fn begin_wipe(&self, queue: usize, delete: bool) -> usize {
        let mut story = self.book.write();
        let began = story.tick();
        story.wipes.push(Wipe { queue, delete, began, ended: None });
        story.wipes.len() - 1
    }

    fn end_wipe(&self, number: usize, ok: bool) {
        let mut story = self.book.write();
        let ended = story.tick();
        story.wipes[number].ended = ok.then_some(ended);
    }

    /// Deletes a queue and makes a new one of the name.
    fn delete(&self, queue: usize) {
        let (life, old) = self.handle(queue);
        let number = self.begin_wipe(queue, true);
        self.book.note(|| format!("deletes {queue}"));
        match self.set.delete(NAMES[queue]) {
            Ok(deleted) => {
                self.book.note(|| format!("deleted {queue}: {deleted}"));
                self.end_wipe(number, true);
            }
            Err(Error::Closed) => return,
            Err(error) => panic!("a delete on a healthy disk: {error}"),
        }
        // Another delete may have been first, and its next queue the one that is gone now.
        if self.handle(queue).0 == life {
            assert!(matches!(old.put("late"), Err(PutError::Closed)), "a put into a deleted queue");
            assert!(matches!(old.try_get(), Err(GetError::Closed)), "a get from a deleted queue");
        }
        match self.set.queue_with(NAMES[queue], self.options[queue].clone()) {
            Ok(handle) => {
                let mut handles = self.handles.lock().expect("not poisoned");
                let life = handles[queue].0 + 1;
                handles[queue] = (life, handle);
            }
            Err(_) if self.is_closing() => {}
            // Deleted again before its options were stored.
            Err(error) if format!("{error:?}").contains("Closed") => {}
            Err(error) => panic!("no new queue: {error}"),
        }
    }

    fn synced(&self, queue: usize, began: Tick) {
        let mut story = self.book.write();
        let ended = story.tick();
        story.syncs.push(Synced { queue, began, ended });
    }

    fn cut(&self, random: &mut Random) {
        let mut cuts = self.cuts.lock().expect("not poisoned");
        if cuts.len() < 2 {
            let cut = cut_of(&self.disk, self.book.now(), random);
            self.book.note(|| format!("cut, power {}, {:?}", cut.power, cut.fate));
            cuts.push(cut);
        }
    }

    fn close(&self) {
        let began = {
            let mut story = self.book.write();
            let began = story.tick();
            *story.closing.get_or_insert(began)
        };
        let closed = self.set.clone().close();
        self.book.note(|| format!("close: {closed:?}"));
        let mut story = self.book.write();
        let ended = story.tick();
        if closed.is_ok() && story.closed.is_none() {
            story.closed = Some(ended);
            (0..NAMES.len()).for_each(|queue| story.syncs.push(Synced { queue, began, ended }));
        }
    }

    // ---- afterwards

    fn judged(&self, random: &mut Random) -> Verdict {
        self.cut(random);
        Links::new(self).live()?;
        let looks_at_files = random.chance(4);
        if !self.is_closing() && random.chance(2) {
            let handles: Vec<Queue> = (0..NAMES.len()).map(|queue| self.handle(queue).1).collect();
            Links::new(self).rest(&drained(&handles)?)?;
            self.close();
            if looks_at_files {
                Links::new(self).archived()?;
            }
        } else {
            self.close();
            if looks_at_files {
                Links::new(self).archived()?;
            }
            let closed = self.book.write().closed.ok_or("no close on a healthy disk")?;
            self.opened(&self.disk.restart(), |found| Links::new(self).found(found, closed, false))?;
        }
        let cuts = std::mem::take(&mut *self.cuts.lock().expect("not poisoned"));
        cuts.iter().try_for_each(|cut| {
            let told = self.opened(&cut.disk, |found| Links::new(self).found(found, cut.tick, cut.power));
            told.map_err(|error| format!("cut at {} (power {}, {:?}): {error}", cut.tick, cut.power, cut.fate))
        })
    }

    /// What is there on a disk, judged; then puts go on with new ids.
    fn opened(&self, disk: &SimDisk, judged: impl FnOnce(&[Vec<Found>]) -> Verdict) -> Verdict {
        let set = QueueSet::builder().simulated(disk).open(DIR).map_err(|error| format!("no open: {error}"))?;
        let queues: Result<Vec<Queue>, _> = NAMES.iter().map(|name| set.queue(name)).collect();
        let queues = queues.map_err(|error| format!("no open of a queue: {error}"))?;
        let found = drained(&queues)?;
        judged(&found)?;
        for (handle, found) in queues.iter().zip(found) {
            let id = handle.put("alive").map_err(|error| format!("not alive: {error}"))?.get();
            if found.last().is_some_and(|last| last.id >= id) {
                return Err(format!("the id {id} is given out twice"));
            }
        }
        drop(queues);
        set.close().map_err(|error| format!("no close: {error}"))
    }
}

/// All that is left, `in` first: what has used up its starts is then on its way to the dead letters.
fn drained(queues: &[Queue]) -> Result<Vec<Vec<Found>>, String> {
    let mut all = Vec::new();
    for (queue, handle) in queues.iter().enumerate() {
        let mut found = Vec::new();
        let mut rounds = 0;
        loop {
            let item = handle.try_get().map_err(|error| format!("no get from {queue}: {error}"))?;
            found.extend(item.as_ref().map(Found::of));
            if item.is_none() {
                let stats = handle.stats();
                if (stats.items, stats.open_items, stats.waiters) == (0, 0, 0) {
                    break;
                }
                // It waits for a sync, for the end of a lease, or to be buried.
                time::pass(Duration::from_millis(50));
                engine::yield_now();
                rounds += 1;
                if rounds > 500 {
                    return Err(format!("something is left behind in {queue}: {stats:?}"));
                }
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// One execution: the work, and then the rules.
pub fn execute(seed: u64) -> Verdict {
    let chain = Chain::new(seed);
    chain.book.note(|| format!("a chain: {:?}", chain.options));
    let chain = chain.run(seed);
    chain.judged(&mut Random::new(seed ^ 0x0E0D_C4A1))
}
