//! What the threads of an execution do, drawn by its number: whole operations on a set of one or two queues.
//!
//! Three kinds. *Counted*: consumers take exactly what is put, mostly waiting without an end, so that a wake-up that is lost is
//! a deadlock. *Loose*: limits that drop, expiries, clears, deadlines, an end of the set in the middle. *Failing*: as loose, and
//! at some moment a sync of the device fails. At one or two moments of each, the disk is copied as a kill or a power cut would
//! leave it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::engine::{self, Random};
use crate::history::{Answer, Clear, Covers, End, Got, Log, Put, Sync, Take, Tick};
use crate::sync::thread::{self, spawn};
use crate::sync::time;
use crate::testing::{Fate, Op, SimDisk, SyncFailure};
use crate::{Durability, GetError, Item, OpenItem, PutError, PutOptions, Queue, QueueOptions, QueueSet, WhenFull};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counted,
    Loose,
    Failing,
}

pub const DIR: &str = "/set";
const NAMES: [&str; 2] = ["first", "second"];

/// A copy of the disk at some moment.
pub struct Cut {
    pub tick: Tick,
    pub disk: SimDisk,
    /// Power was lost, not only the process.
    pub power: bool,
    pub fate: Fate,
}

pub struct World {
    pub kind: Kind,
    pub log: Log,
    pub disk: SimDisk,
    pub set: QueueSet,
    pub queues: Vec<Queue>,
    pub options: Vec<QueueOptions>,
    pub cuts: Mutex<Vec<Cut>>,
    /// Items of each queue that consumers have still to take, where that is counted.
    claims: Vec<Mutex<u64>>,
    payload_max: u64,
    /// Consumers are tasks only, so that it is known when each stood in line.
    tasks_only: bool,
}

pub fn payload(token: u64, len: u64) -> Vec<u8> {
    let mut bytes = token.to_le_bytes().to_vec();
    bytes.resize(8 + len as usize, filling(token));
    bytes
}

pub fn filling(token: u64) -> u8 {
    (token.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// The token of a payload that is whole.
pub fn token_of(bytes: &[u8]) -> Option<u64> {
    let (token, rest) = bytes.split_first_chunk::<8>()?;
    let token = u64::from_le_bytes(*token);
    rest.iter().all(|byte| *byte == filling(token)).then_some(token)
}

fn options(random: &mut Random, kind: Kind) -> QueueOptions {
    let mut options = QueueOptions::default().segment_bytes(64 << 10);
    options = options.durability(match random.below(5) {
        0 | 1 => Durability::Sync,
        2 => Durability::Every(Duration::from_millis(20)),
        _ => Durability::Os,
    });
    if random.chance(3) {
        options = options.memory_bytes(random.below(3) * 40);
    }
    if random.chance(3) {
        options = options.max_items(3 + random.below(3)).when_full(match kind {
            Kind::Counted => WhenFull::Wait,
            _ => [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::Wait][random.below(3) as usize],
        });
    }
    options
}

impl World {
    pub fn new(kind: Kind, seed: u64) -> World {
        let mut random = Random::new(seed ^ 0x0005_0EED);
        let disk = SimDisk::new(random.next());
        let set = QueueSet::builder().simulated(&disk).open(DIR).expect("a healthy disk");
        let count = 1 + usize::from(random.chance(3));
        let options: Vec<_> = (0..count).map(|_| options(&mut random, kind)).collect();
        let queues: Vec<_> =
            options.iter().zip(NAMES).map(|(options, name)| set.queue_with(name, options.clone())).collect();
        let queues = queues.into_iter().collect::<Result<_, _>>().expect("a healthy disk");
        World {
            kind,
            log: Log::default(),
            disk,
            set,
            queues,
            options,
            cuts: Mutex::default(),
            claims: (0..count).map(|_| Mutex::new(0)).collect(),
            payload_max: if random.chance(3) { 25_000 } else { 40 },
            tasks_only: random.chance(3),
        }
    }

    /// Starts all threads, and waits for them.
    pub fn run(self, seed: u64) -> Arc<World> {
        let mut random = Random::new(seed ^ 0x0A11);
        let count = self.queues.len() as u64;
        let producers = 1 + random.below(2) + random.below(2);
        let consumers = 1 + random.below(2) + random.below(2);
        let others = random.below(2) + 1;
        let world = Arc::new(self);
        let (mut threads, mut putters) = (Vec::new(), Vec::new());
        for _ in 0..producers {
            let (world, mut random) = (Arc::clone(&world), Random::new(random.next()));
            let puts = 1 + random.below(4);
            let queue = random.below(count) as usize;
            *world.claims[queue].lock().expect("not poisoned") += puts;
            putters.push(spawn(move || world.produce(queue, puts, &mut random)));
        }
        for number in 0..consumers.max(count) {
            let (world, mut random) = (Arc::clone(&world), Random::new(random.next()));
            let queue = (number % count) as usize;
            threads.push(spawn(move || world.consume(queue, &mut random)));
        }
        for _ in 0..others {
            let (world, mut random) = (Arc::clone(&world), Random::new(random.next()));
            threads.push(spawn(move || world.meddle(&mut random)));
        }
        threads.into_iter().for_each(|thread| thread.join().expect("a panic ends the execution"));
        if world.kind != Kind::Counted && world.options.iter().any(|options| options.when_full == WhenFull::Wait) {
            // Nobody makes room any more.
            world.close();
        }
        putters.into_iter().for_each(|thread| thread.join().expect("a panic ends the execution"));
        world
    }

    // ---- puts

    fn ask(&self, queue: usize, count: u64, expires: bool) -> Vec<u64> {
        let mut history = self.log.write();
        let began = history.tick();
        let tokens: Vec<u64> = (0..count).map(|n| began << 8 | n).collect();
        for token in &tokens {
            history.puts.push(Put {
                queue,
                token: *token,
                batch: began,
                began,
                ended: None,
                answer: Answer::None,
                synced: false,
                expires,
            });
        }
        tokens
    }

    fn answer(&self, tokens: &[u64], result: Result<Vec<u64>, PutError>, synced: bool) -> Option<u64> {
        let mut history = self.log.write();
        let ended = history.tick();
        let last = result.as_ref().ok().and_then(|ids| ids.last().copied());
        for (n, token) in tokens.iter().enumerate() {
            let put = history.puts.iter_mut().find(|put| put.token == *token).expect("it was asked");
            put.ended = Some(ended);
            put.synced = synced && result.is_ok();
            put.answer = match &result {
                Ok(ids) => Answer::Stored(*ids.get(n).expect("an id for each")),
                Err(PutError::Indeterminate { .. }) => Answer::Unknown,
                Err(_) => Answer::Refused,
            };
        }
        drop(history);
        self.log.note(|| format!("put {tokens:?}: {result:?}"));
        last
    }

    fn is_sync(&self, queue: usize) -> bool {
        self.options[queue].durability == Durability::Sync
    }

    fn produce(&self, queue: usize, puts: u64, random: &mut Random) {
        let mut left = puts;
        while left > 0 {
            let count = if left > 1 && random.chance(4) { 2 + random.below(left.min(3) - 1) } else { 1 };
            left -= count;
            let handle = &self.queues[queue];
            let expires = self.kind != Kind::Counted && random.chance(5);
            let len = random.below(self.payload_max);
            let tokens = self.ask(queue, count, expires);
            let first = payload(tokens[0], len);
            self.log.note(|| format!("asks to put {tokens:?} in {queue}"));
            let sync = self.is_sync(queue);
            if count > 1 {
                let result = handle.put_batch(tokens.iter().map(|token| payload(*token, len / 3)));
                self.answer(&tokens, result.map(|ids| ids.into_iter().map(u64::from).collect()), sync);
                continue;
            }
            let one = |result: Result<crate::ItemId, PutError>| result.map(|id| vec![id.get()]);
            match random.below(8) {
                0..=2 => {
                    let mut options = PutOptions::new();
                    if expires {
                        options = options.expires_in(Duration::from_millis(random.below(30)));
                    }
                    self.answer(&tokens, one(handle.put_with(first, &options)), sync);
                }
                3 if self.kind != Kind::Counted => {
                    let result = handle.put_timeout(first, Duration::from_millis(random.below(20)));
                    self.answer(&tokens, one(result), sync);
                }
                _ => {
                    let Some(id) = self.answer(&tokens, one(handle.append(first)), false) else { continue };
                    self.settle(queue, id, random);
                }
            }
        }
    }

    /// After an append.
    fn settle(&self, queue: usize, id: u64, random: &mut Random) {
        let handle = &self.queues[queue];
        let synced = match random.below(4) {
            0 => handle.synced(id.into()).is_ok(),
            1 => thread::block_on(handle.synced_async(id.into())).is_ok(),
            2 => {
                // Polled, and dropped while the sync is on its way.
                let mut future = pin!(handle.synced_async(id.into()));
                let waker = thread::waker();
                matches!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(())))
            }
            _ => false,
        };
        if synced {
            let mut history = self.log.write();
            let ended = history.tick();
            history.syncs.push(Sync { queue, covers: Covers::Id(id), ended });
        }
    }

    // ---- takes

    fn begin_take(&self, queues: Vec<usize>, open: bool) -> usize {
        let mut history = self.log.write();
        let began = history.tick();
        history.takes.push(Take { queues, open, began, in_line: None, ended: None, got: None, end: None });
        history.takes.len() - 1
    }

    fn end_take(&self, take: usize, queue: usize, item: Option<&Item>) {
        let mut history = self.log.write();
        let ended = history.tick();
        let take_entry = &mut history.takes[take];
        take_entry.ended = Some(ended);
        take_entry.got = item.map(|item| Got {
            queue,
            token: token_of(item.data()).expect("the payload is as it was put"),
            id: item.id().get(),
            attempts: item.attempts().into(),
        });
        let got = take_entry.got;
        drop(history);
        self.log.note(|| format!("take {take} of {queue}: {got:?}"));
    }

    /// Waits as a task does, and notes when it stood in line.
    fn wait<T>(&self, take: usize, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = thread::waker();
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            {
                let mut history = self.log.write();
                let tick = history.tick();
                history.takes[take].in_line.get_or_insert(tick);
            }
            thread::park();
        }
    }

    /// Polls once or twice, and gives up: an answer that came all the same is the caller's.
    fn glance<T>(&self, take: usize, future: impl Future<Output = T>, random: &mut Random) -> Option<T> {
        let mut future = pin!(future);
        let waker = thread::waker();
        for _ in 0..1 + random.below(2) {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(value);
            }
            let tick = self.log.now();
            self.log.write().takes[take].in_line.get_or_insert(tick);
            (0..random.below(4)).for_each(|_| engine::yield_now());
        }
        None
    }

    fn consume(&self, queue: usize, random: &mut Random) {
        match self.kind {
            Kind::Counted => loop {
                {
                    let mut claims = self.claims[queue].lock().expect("not poisoned");
                    match claims.checked_sub(1) {
                        Some(left) => *claims = left,
                        None => return,
                    }
                }
                while !matches!(self.consume_one(queue, true, random), Ok(true)) {}
            },
            _ => {
                for _ in 0..1 + random.below(5) {
                    if self.consume_one(queue, false, random).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes one item, or tries to. `Ok(true)`: one is done.
    fn consume_one(&self, queue: usize, may_wait: bool, random: &mut Random) -> Result<bool, GetError> {
        let handle = &self.queues[queue];
        let some_ms = Duration::from_millis(1 + random.below(20));
        let way = match (self.tasks_only, may_wait) {
            (true, true) => 6 + random.below(4),
            (true, false) => 8 + random.below(2),
            (false, true) => random.below(11),
            (false, false) => [0, 1, 2, 3, 8, 9, 10][random.below(7) as usize],
        };
        let open = matches!(way, 1 | 3 | 5 | 7 | 9 | 10);
        let queues = if way == 10 { (0..self.queues.len()).collect() } else { vec![queue] };
        let take = self.begin_take(queues, open);
        self.log.note(|| format!("begins take {take} of {queue}, way {way}"));
        if !open {
            let result = match way {
                0 => handle.try_get(),
                2 => handle.get_timeout(some_ms),
                4 => handle.get().map(Some),
                6 => self.wait(take, handle.get_async()).map(Some),
                _ => self.glance(take, handle.get_async(), random).transpose(),
            };
            self.end_take(take, queue, result.as_ref().ok().and_then(Option::as_ref));
            return Ok(result?.is_some());
        }
        let result = match way {
            1 => handle.try_open().map(|item| item.map(|item| (queue, item))),
            3 => handle.open_timeout(some_ms).map(|item| item.map(|item| (queue, item))),
            5 => handle.open().map(|item| Some((queue, item))),
            7 => self.wait(take, handle.open_async()).map(|item| Some((queue, item))),
            9 => self.glance(take, handle.open_async(), random).transpose().map(|item| item.map(|item| (queue, item))),
            _ => self.set.open_any(&self.queues, some_ms),
        };
        match result {
            Ok(Some((from, item))) => {
                self.end_take(take, from, Some(&item));
                Ok(self.end(take, from, item, from == queue, random) && from == queue)
            }
            Ok(None) => {
                self.end_take(take, queue, None);
                Ok(false)
            }
            Err(error) => {
                self.end_take(take, queue, None);
                Err(error)
            }
        }
    }

    fn begin_end(&self, take: usize, close: bool) {
        let mut history = self.log.write();
        let began = history.tick();
        history.takes[take].end = Some(End { close, began, ended: None, synced: None });
    }

    /// Ends an open item in some way. `true`: it was closed.
    fn end(&self, take: usize, queue: usize, item: OpenItem, may_close: bool, random: &mut Random) -> bool {
        (0..random.below(3)).for_each(|_| engine::yield_now());
        let close = may_close && !random.chance(3);
        self.begin_end(take, close);
        let handle = &self.queues[queue];
        let way = random.below(4);
        let mut synced = false;
        let ok = match (close, way) {
            (true, 0) => {
                synced = item.close_synced().is_ok();
                synced
            }
            (true, 1) => handle.close_token(item.into_token()).unwrap_or(false),
            (true, _) => item.close().is_ok(),
            (false, 0) => handle.abort_token(item.into_token()),
            (false, 1) => {
                drop(item);
                true
            }
            (false, _) => {
                item.abort();
                true
            }
        };
        let mut history = self.log.write();
        let ended = history.tick();
        if let Some(end) = &mut history.takes[take].end
            && ok
        {
            end.ended = Some(ended);
            end.synced = synced.then_some(ended);
        }
        drop(history);
        self.log.note(|| format!("take {take} ended: close {close}, ok {ok}"));
        close && ok
    }

    // ---- everything else

    fn meddle(&self, random: &mut Random) {
        let counted = self.kind == Kind::Counted;
        for _ in 0..1 + random.below(3) {
            let queue = random.below(self.queues.len() as u64) as usize;
            let handle = &self.queues[queue];
            (0..random.below(40)).for_each(|_| engine::yield_now());
            match random.below(13) {
                0..=2 => self.cut(random),
                3 => {
                    let began = self.log.now();
                    if handle.sync().is_ok() {
                        self.synced(queue, began);
                    }
                }
                4 => {
                    let began = self.log.now();
                    if self.set.sync().is_ok() {
                        (0..self.queues.len()).for_each(|queue| self.synced(queue, began));
                    }
                }
                5 => {
                    handle.pause();
                    (0..random.below(20)).for_each(|_| engine::yield_now());
                    handle.resume();
                }
                6 => {
                    let stats = handle.stats();
                    assert!(stats.mem_items <= stats.items, "more in memory than there are: {stats:?}");
                    let _ = handle.peek();
                }
                7 => {
                    let mut options = handle.options().memory_bytes(random.below(3) * 60);
                    if let Some(max) = options.max_items {
                        options = options.max_items(max.max(3) + random.below(2));
                    }
                    let _ = handle.set_options(options);
                }
                8 => drop(handle.discard_expired(1 + random.below(3) as usize)),
                9 => {
                    self.log.note(|| "time passes".into());
                    time::pass(Duration::from_millis(random.below(40)));
                }
                10 if !counted => {
                    let number = {
                        let mut history = self.log.write();
                        let began = history.tick();
                        history.clears.push(Clear { queue, began, ended: None });
                        history.clears.len() - 1
                    };
                    self.log.note(|| format!("clears {queue}"));
                    let result = handle.clear();
                    let mut history = self.log.write();
                    let ended = history.tick();
                    history.clears[number].ended = result.is_ok().then_some(ended);
                    drop(history);
                    self.log.note(|| format!("cleared {queue}: {result:?}"));
                }
                11 if self.kind == Kind::Failing => {
                    let how = [SyncFailure::KeepsContent, SyncFailure::RevertsContent][random.below(2) as usize];
                    self.disk.set_sync_failure(how);
                    self.disk.fail(Op::Sync, random.below(2), 1, io::ErrorKind::Other);
                    self.log.note(|| "a sync will fail".into());
                }
                12 if !counted => {
                    if random.chance(3) {
                        self.close();
                    }
                }
                _ => drop(self.set.stats()),
            }
        }
    }

    fn synced(&self, queue: usize, began: Tick) {
        let mut history = self.log.write();
        let ended = history.tick();
        history.syncs.push(Sync { queue, covers: Covers::Before(began), ended });
    }

    pub fn cut(&self, random: &mut Random) {
        let mut cuts = self.cuts.lock().expect("not poisoned");
        if cuts.len() >= 2 {
            return;
        }
        let cut = cut_of(&self.disk, self.log.now(), random);
        self.log.note(|| format!("cut, power {}, {:?}", cut.power, cut.fate));
        cuts.push(cut);
    }

    /// Closes the set; what was stored is durable then.
    pub fn close(&self) {
        let began = {
            let mut history = self.log.write();
            let began = history.tick();
            history.closing.get_or_insert(began);
            began
        };
        let closed = self.set.clone().close();
        self.log.note(|| format!("close: {closed:?}"));
        let mut history = self.log.write();
        let ended = history.tick();
        if closed.is_ok() && history.closed.is_none() {
            history.closed = Some(ended);
            for queue in 0..self.queues.len() {
                history.syncs.push(Sync { queue, covers: Covers::Before(began), ended });
            }
        }
    }

    /// What is left, in the order in which it is given out.
    pub fn drain(&self, queues: &[Queue]) -> Vec<Vec<Got>> {
        queues.iter().enumerate().map(|(queue, handle)| drain(queue, handle)).collect()
    }

    /// The highest id known of each queue up to a moment.
    pub fn highest(&self, tick: Tick) -> BTreeMap<usize, u64> {
        let history = self.log.write();
        let mut highest = BTreeMap::new();
        for put in history.puts.iter().filter(|put| put.ended.is_some_and(|ended| ended <= tick)) {
            if let Answer::Stored(id) = put.answer {
                let known = highest.entry(put.queue).or_insert(0);
                *known = id.max(*known);
            }
        }
        highest
    }

    pub fn reopened(&self, disk: &SimDisk) -> Result<(QueueSet, Vec<Queue>), String> {
        let set = QueueSet::builder().simulated(disk).open(DIR).map_err(|error| format!("no open: {error}"))?;
        let mut queues = Vec::new();
        for name in NAMES.iter().take(self.queues.len()) {
            let queue = set.get_queue(name).map_err(|error| format!("no open of {name}: {error}"))?;
            queues.push(queue.ok_or_else(|| format!("the queue {name} is gone"))?);
        }
        Ok((set, queues))
    }
}

/// The disk as a kill or a power cut would leave it now.
pub fn cut_of(disk: &SimDisk, tick: Tick, random: &mut Random) -> Cut {
    let fate = [Fate::None, Fate::All, Fate::Random(random.next()), Fate::Random(random.next())];
    let fate = fate[random.below(4) as usize];
    let power = !random.chance(4);
    Cut { tick, disk: if power { disk.power_cut(fate) } else { disk.kill() }, power, fate }
}

fn drain(queue: usize, handle: &Queue) -> Vec<Got> {
    let mut all = Vec::new();
    while let Some(item) = handle.try_open().expect("a healthy queue") {
        all.push(Got {
            queue,
            token: token_of(item.data()).expect("the payload is as it was put"),
            id: item.id().get(),
            attempts: item.attempts().into(),
        });
        item.close().expect("a healthy queue");
    }
    all
}
