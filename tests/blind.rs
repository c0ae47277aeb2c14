//! Edge cases of the public API, written from the documentation alone, without a look at the code.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kestrel_core::{
    CloseError, Durability, Error, GetError, ItemId, Limit, OpenError, OpenItem, OptionsError, PutError, PutOptions,
    Queue, QueueOptions, QueueSet, SyncError, WhenFull,
};

// Helpers.

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(40);

/// Small segments, no waiting for the device.
fn quick() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os).segment_bytes(1 << 16)
}

fn open_quick(dir: &Path) -> QueueSet {
    QueueSet::builder().defaults(quick()).open(dir).unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn rest(queue: &Queue) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(item) = queue.try_get().unwrap() {
        all.push(String::from_utf8(item.into_vec()).unwrap());
    }
    all
}

fn text(item: &[u8]) -> &str {
    std::str::from_utf8(item).unwrap()
}

/// Runs `work` on a thread; what waits for its answer does not wait for ever.
fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (send, answer) = channel();
    thread::spawn(move || drop(send.send(work())));
    answer
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "never: {what}");
        thread::sleep(ms(1));
    }
}

type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Everything below `dir`; `None` if it changed under the reading.
fn read_tree(dir: &Path) -> Option<Tree> {
    fn walk(dir: &Path, base: &Path, tree: &mut Tree) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.strip_prefix(base).unwrap().to_path_buf();
            if path.is_dir() {
                tree.insert(name, None);
                walk(&path, base, tree)?;
            } else {
                tree.insert(name, Some(fs::read(&path)?));
            }
        }
        Ok(())
    }
    let mut tree = Tree::new();
    walk(dir, dir, &mut tree).ok().map(|()| tree)
}

/// The directory as a process that is killed now would leave it.
fn killed(dir: &Path) -> tempfile::TempDir {
    let begin = Instant::now();
    let tree = loop {
        let first = read_tree(dir);
        thread::sleep(ms(2));
        if let Some(tree) = first.filter(|first| read_tree(dir).as_ref() == Some(first)) {
            break tree;
        }
        assert!(begin.elapsed() < LONG, "the directory never rests");
    };
    let copy = tempfile::tempdir().unwrap();
    for (name, content) in tree {
        match content {
            None => fs::create_dir_all(copy.path().join(name)).unwrap(),
            Some(bytes) => fs::write(copy.path().join(name), bytes).unwrap(),
        }
    }
    copy
}

struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A task without an executor.
struct Task<F: Future> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
}

impl<F: Future> Task<F> {
    /// In the line from here on.
    fn begin(future: F) -> Task<F> {
        let mut task = Task { future: Box::pin(future), bell: Arc::new(Bell(AtomicUsize::new(0))) };
        assert!(task.poll().is_none());
        task
    }

    fn poll(&mut self) -> Option<F::Output> {
        let waker = Waker::from(Arc::clone(&self.bell));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn rung(&self) -> bool {
        self.bell.0.load(Ordering::SeqCst) > 0
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

// A long random life against a model.

#[derive(Clone, Debug)]
struct Known {
    data: Vec<u8>,
    flags: u32,
    starts: u32,
}

/// A queue and what it must hold. As only heads are opened, its order is always that of the ids.
struct Life {
    dir: tempfile::TempDir,
    options: QueueOptions,
    set: QueueSet,
    queue: Queue,
    waiting: BTreeMap<ItemId, Known>,
    open: Vec<(OpenItem, Known)>,
    /// Opened before a clear.
    ghosts: Vec<OpenItem>,
    highest: ItemId,
    /// Something was done to the queue since it was loaded.
    touched: bool,
    dice: Dice,
}

impl Life {
    fn new(options: QueueOptions, seed: u64) -> Life {
        let dir = tempfile::tempdir().unwrap();
        let set = QueueSet::open(dir.path()).unwrap();
        let queue = set.queue_with("life", options.clone()).unwrap();
        let dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (waiting, open, ghosts) = (BTreeMap::new(), Vec::new(), Vec::new());
        Life { dir, options, set, queue, waiting, open, ghosts, highest: ItemId::new(0), touched: false, dice }
    }

    fn new_item(&mut self) -> Known {
        let len = match self.dice.roll(8) {
            0 => 0,
            1 => self.dice.roll(4000),
            _ => self.dice.roll(300),
        };
        let data = (0..len).map(|_| self.dice.roll(256) as u8).collect();
        Known { data, flags: 0, starts: 0 }
    }

    fn make_room(&mut self, items: usize) {
        if let Some(max) = self.options.max_items.filter(|_| items > 0) {
            while self.waiting.len() + items > max as usize {
                self.waiting.pop_first();
            }
        }
    }

    fn was_put(&mut self, id: ItemId, item: Known) {
        assert!(id > self.highest, "{id} after {}", self.highest);
        self.highest = id;
        self.touched = true;
        self.waiting.insert(id, item);
    }

    fn step(&mut self) {
        match self.dice.roll(100) {
            0..=19 => {
                let mut item = self.new_item();
                self.make_room(1);
                item.flags = self.dice.roll(1 << 32) as u32;
                let id = self.queue.put_with(&item.data, &PutOptions::new().flags(item.flags)).unwrap();
                self.was_put(id, item);
            }
            20..=27 => {
                let count = self.dice.roll(7) as usize;
                let items: Vec<_> = (0..count).map(|_| self.new_item()).collect();
                self.make_room(count);
                let ids = self.queue.put_batch(items.iter().map(|item| &item.data)).unwrap();
                assert_eq!(ids.len(), count);
                for (id, item) in ids.into_iter().zip(items) {
                    self.was_put(id, item);
                }
            }
            28..=39 => match (self.queue.try_get().unwrap(), self.waiting.pop_first()) {
                (None, None) => {}
                (Some(item), Some((id, known))) => {
                    assert_eq!((item.id(), item.data(), item.flags()), (id, &known.data[..], known.flags));
                    assert_eq!(item.attempts(), known.starts + 1);
                }
                (got, known) => panic!("{got:?} for {known:?}"),
            },
            40..=59 => {
                let count = self.dice.roll(4) as usize + 1;
                let batch = self.queue.open_batch(count, Duration::ZERO).unwrap();
                assert_eq!(batch.len(), count.min(self.waiting.len()));
                for item in batch {
                    let (id, mut known) = self.waiting.pop_first().unwrap();
                    known.starts += 1;
                    assert_eq!((item.id(), item.data(), item.flags()), (id, &known.data[..], known.flags));
                    assert_eq!(item.attempts(), known.starts);
                    self.open.push((item, known));
                }
            }
            60..=89 if !self.open.is_empty() => {
                let at = self.dice.roll(self.open.len() as u64) as usize;
                let (item, known) = self.open.swap_remove(at);
                match self.dice.roll(6) {
                    0 | 1 => item.close().unwrap(),
                    2 => {
                        let token = item.into_token();
                        assert!(self.queue.close_token(token).unwrap());
                        assert!(!self.queue.abort_token(token));
                    }
                    3 => {
                        self.waiting.insert(item.id(), known);
                        let token = item.into_token();
                        assert!(self.queue.abort_token(token));
                        assert!(!self.queue.close_token(token).unwrap());
                    }
                    _ => {
                        self.waiting.insert(item.id(), known);
                        item.abort();
                    }
                }
            }
            60..=89 => {}
            90..=92 => {
                let seen = self.queue.peek().unwrap();
                assert_eq!(seen.as_ref().map(|item| item.id()), self.waiting.keys().next().copied());
            }
            93 => {
                if self.dice.roll(3) == 0 {
                    assert_eq!(self.queue.clear().unwrap(), self.waiting.len() as u64);
                    self.waiting.clear();
                    self.ghosts.extend(self.open.drain(..).map(|(item, _)| item));
                }
            }
            94 => {
                if let Some(ghost) = self.ghosts.pop() {
                    if self.dice.roll(2) == 0 { ghost.close().unwrap() } else { ghost.abort() }
                }
            }
            95 | 96 => self.reopen(),
            97 | 98 => self.kill(),
            _ => self.queue.sync().unwrap(),
        }
        let stats = self.queue.stats();
        assert_eq!(self.queue.len(), self.waiting.len() as u64);
        assert_eq!(stats.items, self.waiting.len() as u64);
        assert_eq!(stats.bytes, self.waiting.values().map(|known| known.data.len() as u64).sum::<u64>());
        if self.ghosts.is_empty() {
            assert_eq!(stats.open_items, self.open.len() as u64);
        }
    }

    fn reopen(&mut self) {
        if !self.options.journal {
            return;
        }
        self.set.clone().close().unwrap();
        let guards = std::mem::take(&mut self.open);
        self.set = QueueSet::open(self.dir.path()).unwrap();
        self.queue = self.set.get_queue("life").unwrap().unwrap();
        for (guard, mut known) in guards {
            known.starts -= 1;
            self.waiting.insert(guard.id(), known);
            if self.dice.roll(2) == 0 {
                assert!(matches!(guard.close(), Err(CloseError::Closed)));
            }
        }
        self.ghosts.clear();
        let report = self.queue.recovery();
        assert!(report.clean || report.segments == 0, "{report:?}"); // see an_orderly_close_is_seen_as_one
        assert_eq!(report.items, self.waiting.len() as u64);
        assert_eq!(self.queue.options(), self.options);
        self.touched = false;
    }

    fn kill(&mut self) {
        if !self.options.journal {
            return;
        }
        let copy = killed(self.dir.path());
        let set = QueueSet::open(copy.path()).unwrap();
        self.queue = set.get_queue("life").unwrap().unwrap();
        let report = self.queue.recovery();
        assert!(!(report.clean && self.touched), "a killed queue says that it was closed");
        self.touched = false;
        assert_eq!((report.discarded_items, report.damaged_marks), (0, 0));
        assert!(report.lost.is_empty());
        assert!(report.redelivered >= self.open.len() as u64);
        for (guard, known) in self.open.drain(..) {
            self.waiting.insert(guard.id(), known);
        }
        self.ghosts.clear();
        assert_eq!(report.items, self.waiting.len() as u64);
        self.set = set;
        self.dir = copy;
    }

    fn end(mut self) {
        self.kill();
        for (id, known) in std::mem::take(&mut self.waiting) {
            let item = self.queue.try_get().unwrap().unwrap();
            assert_eq!((item.id(), item.data()), (id, &known.data[..]));
            if self.options.journal {
                assert_eq!(item.attempts(), known.starts + 1);
            }
        }
        assert!(self.queue.try_get().unwrap().is_none());
    }
}

fn live(options: &QueueOptions, seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let mut life = Life::new(options.clone(), seed);
        for step in 0..steps {
            if std::env::var_os("KESTREL_BLIND_TRACE").is_some() {
                eprintln!("seed {seed} step {step}");
            }
            life.step();
        }
        life.end();
    }
}

#[test]
fn a_random_life_with_read_behind_keeps_to_the_model() {
    live(&quick().memory_bytes(700), 1..9, 500);
}

#[test]
fn a_random_life_with_drop_oldest_keeps_to_the_model() {
    live(&quick().max_items(9).when_full(WhenFull::DropOldest).memory_bytes(500), 11..17, 500);
}

#[test]
fn a_random_life_with_sync_or_in_memory_keeps_to_the_model() {
    live(&quick().durability(Durability::Sync), 21..23, 400);
    live(&quick().journal(false), 31..35, 500);
}

// Order, opening, ending.

#[test]
fn aborts_come_back_by_id_in_whatever_order_they_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [3, 0, 2, 1]] {
        let queue = set.queue(&format!("q{order:?}")).unwrap();
        queue.put_batch(["a", "b", "c", "d", "e"]).unwrap();
        let mut open: Vec<_> = queue.open_batch(4, Duration::ZERO).unwrap().into_iter().map(Some).collect();
        for (done, at) in order.into_iter().enumerate() {
            open[at].take().unwrap().abort();
            queue.put(format!("f{done}")).unwrap();
            let lowest = order[..=done].iter().min().unwrap();
            assert_eq!(text(queue.peek().unwrap().unwrap().data()), ["a", "b", "c", "d"][*lowest]);
        }
        assert_eq!(rest(&queue), ["a", "b", "c", "d", "e", "f0", "f1", "f2", "f3"]);
    }
    // One that came back is taken again before an older one comes back.
    let queue = set.queue("q").unwrap();
    queue.put_batch(["a", "b", "d"]).unwrap();
    let a = queue.open().unwrap();
    let b = queue.open().unwrap();
    let d = queue.open().unwrap();
    d.abort();
    b.abort();
    assert_eq!(text(queue.get().unwrap().data()), "b");
    assert_eq!(text(queue.get().unwrap().data()), "d");
    a.abort();
    let again = queue.open().unwrap();
    assert_eq!((text(again.data()), again.attempts()), ("a", 2));
    let copy = killed(dir.path());
    let later = open_quick(copy.path());
    assert_eq!(rest(&later.queue("q").unwrap()), ["a"]);
}

#[test]
fn a_token_ends_one_opening_of_one_item() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let id = queue.put("x").unwrap();
    let first = queue.open().unwrap().into_token();
    assert_eq!(first.id(), id);
    assert!(queue.abort_token(first));
    assert!(!queue.abort_token(first));
    let again = queue.open().unwrap().into_token();
    assert_ne!(again, first);
    assert!(!queue.close_token(first).unwrap());
    assert!(!queue.abort_token(first));
    let canceled = queue.stats().canceled_transactions;
    assert!(queue.close_token(again).unwrap());
    assert!(!queue.close_token(again).unwrap());
    assert!(!queue.abort_token(again));
    assert_eq!(queue.stats().canceled_transactions, canceled);
    assert_eq!((queue.len(), queue.stats().open_items), (0, 0));
    queue.put("y").unwrap();
    let parked = queue.open().unwrap().into_token();
    set.close().unwrap();
    assert!(matches!(queue.close_token(parked), Err(CloseError::Closed)));
    assert!(!queue.abort_token(parked));
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    assert!(!queue.close_token(parked).unwrap() && !queue.abort_token(parked)); // it waits, nobody has it open
    assert_eq!(rest(&queue), ["y"]);
}

#[test]
fn a_token_of_another_queue_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let other_set = open_quick(other_dir.path());
    let queue = set.queue("q").unwrap();
    queue.put("x").unwrap();
    let token = queue.open().unwrap().into_token();
    for other in [set.queue("other").unwrap(), other_set.queue("q").unwrap()] {
        other.put("y").unwrap();
        let held = other.open().unwrap();
        assert!(!other.close_token(token).unwrap(), "closed an item of another queue");
        assert!(!other.abort_token(token), "aborted an item of another queue");
        held.abort();
        assert_eq!(rest(&other), ["y"]);
    }
    assert!(queue.close_token(token).unwrap());
}

#[test]
fn a_token_of_an_earlier_life_of_the_set_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    queue.put("x").unwrap();
    let old = queue.open().unwrap().into_token();
    set.close().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let held = queue.open().unwrap();
    assert!(!queue.close_token(old).unwrap(), "closed an item that was opened anew");
    assert!(!queue.abort_token(old), "aborted an item that was opened anew");
    held.abort();
    assert_eq!(rest(&queue), ["x"]);
}

#[test]
fn one_of_many_that_end_the_same_token_wins() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let mut closed = 0;
    for round in 0..300 {
        queue.put(format!("{round}")).unwrap();
        let token = queue.open().unwrap().into_token();
        let wins = thread::scope(|scope| {
            let all: Vec<_> =
                (0..4)
                    .map(|who| {
                        let queue = &queue;
                        scope.spawn(move || {
                            if who % 2 == 0 { queue.close_token(token).unwrap() } else { queue.abort_token(token) }
                        })
                    })
                    .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(wins.iter().filter(|&&won| won).count(), 1, "{wins:?}");
        if wins[0] || wins[2] {
            closed += 1;
            assert!(queue.is_empty());
        } else {
            assert_eq!(rest(&queue), [format!("{round}")]);
        }
    }
    let stats = queue.stats();
    assert_eq!((stats.open_items, stats.canceled_transactions), (0, 300 - closed));
}

#[test]
fn a_batch_is_ended_one_by_one_and_a_panic_gives_items_back() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    assert!(queue.open_batch(0, Duration::ZERO).unwrap().is_empty());
    assert!(queue.open_batch(usize::MAX, SHORT).unwrap().is_empty());
    queue.put_batch(["a", "b", "c", "d", "e"]).unwrap();
    assert!(queue.open_batch(0, SHORT).unwrap().is_empty());
    let begin = Instant::now();
    let mut batch = queue.open_batch(usize::MAX, LONG).unwrap();
    assert!(begin.elapsed() < LONG, "waited for more than the first");
    assert_eq!(batch.len(), 5);
    batch.remove(3).close().unwrap();
    batch.remove(1).close().unwrap();
    let unwound = std::panic::catch_unwind(move || {
        let _held = batch;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(unwound.is_err());
    assert_eq!(queue.stats().canceled_transactions, 3);
    let again = queue.open().unwrap();
    assert_eq!((text(again.data()), again.attempts()), ("a", 2));
    drop(again);
    assert_eq!(rest(&queue), ["a", "c", "e"]);
    assert_eq!(queue.stats().open_items, 0);
}

// Waiting.

#[test]
fn get_timeout_racing_put_loses_no_item_and_is_never_early() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let mut dice = Dice(77);
    for round in 0..400u64 {
        let pause = Duration::from_micros(dice.roll(900));
        let consumer = queue.clone();
        let answer = background(move || {
            let begin = Instant::now();
            let got = consumer.get_timeout(Duration::from_micros(450)).unwrap();
            (got.map(|item| item.into_vec()), begin.elapsed())
        });
        let begin = Instant::now();
        while begin.elapsed() < pause {
            std::hint::spin_loop();
        }
        queue.put(round.to_le_bytes()).unwrap();
        let (got, took) = answer.recv_timeout(LONG).unwrap();
        match got {
            Some(data) => assert_eq!(data, round.to_le_bytes()),
            None => {
                assert!(took >= Duration::from_micros(450), "an early end after {took:?}");
                let left = queue.try_get().unwrap().expect("the item is lost");
                assert_eq!(left.data(), round.to_le_bytes());
            }
        }
        assert!(queue.try_get().unwrap().is_none());
    }
    let stats = queue.stats();
    assert_eq!((stats.waiters, stats.items, stats.get_hits), (0, 0, 400));
}

#[test]
fn who_leaves_the_line_passes_the_wake_on() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let first = Task::begin(queue.get_async());
    let second = Task::begin(queue.open_async());
    let mut third = Task::begin(queue.get_async());
    assert_eq!(queue.stats().waiters, 3);
    queue.put("x").unwrap();
    assert!(first.rung() && !third.rung());
    drop(first);
    assert!(second.rung(), "the item waits while a consumer sleeps");
    drop(second);
    assert!(third.rung());
    assert_eq!(text(third.poll().unwrap().unwrap().data()), "x");
    assert_eq!(queue.stats().waiters, 0);
    assert_eq!(queue.stats().open_items, 0);
    // An output that is dropped is an abort, and wakes the next.
    let mut opener = Task::begin(queue.open_async());
    let mut next = Task::begin(queue.open_async());
    queue.put("y").unwrap();
    let output = opener.poll().unwrap().unwrap();
    assert!(next.poll().is_none());
    drop(output);
    assert!(next.rung());
    let item = next.poll().unwrap().unwrap();
    assert_eq!((text(item.data()), item.attempts()), ("y", 2));
    item.close().unwrap();
    // One that has timed out has left the line too.
    assert!(queue.get_timeout(ms(1)).unwrap().is_none());
    let mut last = Task::begin(queue.get_async());
    queue.put("z").unwrap();
    assert!(last.poll().is_some());
}

#[test]
fn waiters_get_items_in_the_order_in_which_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let mut tasks: Vec<_> = (0..4).map(|_| Task::begin(queue.get_async())).collect();
    let consumer = queue.clone();
    let thread = background(move || consumer.get().unwrap().into_vec());
    until("the thread waits", || queue.stats().waiters == 5);
    queue.put_batch(["0", "1"]).unwrap();
    queue.put("2").unwrap();
    assert_eq!(tasks.iter().map(Task::rung).collect::<Vec<_>>(), [true, true, true, false]);
    queue.put_batch(["3", "4"]).unwrap();
    assert_eq!(thread.recv_timeout(LONG).unwrap(), b"4");
    let mut got = [const { None }; 4];
    until("all have an item", || {
        for at in (0..4).rev() {
            if got[at].is_none() {
                got[at] = tasks[at].poll().map(|answer| answer.unwrap().into_vec());
            }
        }
        got.iter().all(Option::is_some)
    });
    assert_eq!(got.map(Option::unwrap), [b"0", b"1", b"2", b"3"]);
    // An abort wakes one, a refused put and a clear none.
    let queue = set.queue_with("abort", quick().max_item_size(8)).unwrap();
    queue.put("a").unwrap();
    let held = queue.open().unwrap();
    let mut first = Task::begin(queue.open_async());
    let second = Task::begin(queue.open_async());
    assert!(queue.put("far too large").is_err());
    assert_eq!(queue.clear().unwrap(), 0);
    assert!(!first.rung() && !second.rung());
    held.abort(); // discards it: it was put before the clear
    assert!(first.poll().is_none() && !second.rung());
    queue.put("b").unwrap();
    assert!(first.rung() && !second.rung());
    let held = first.poll().unwrap().unwrap();
    held.abort();
    assert!(second.rung());
    assert_eq!(queue.stats().total_flushes, 1);
}

#[test]
fn closing_the_set_wakes_everyone_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let empty = set.queue("empty").unwrap();
    let full = set.queue_with("full", quick().max_items(1).when_full(WhenFull::Wait)).unwrap();
    full.put("only").unwrap();
    let mut task = Task::begin(empty.open_async());
    let queue = empty.clone();
    let get = background(move || queue.get_timeout(Duration::MAX).map(|_| ()));
    let queue = empty.clone();
    let batch = background(move || queue.open_batch(3, Duration::MAX).map(|_| ()));
    let (all, both) = (set.clone(), [empty.clone(), set.queue("bare").unwrap()]);
    let any = background(move || all.open_any(&both, Duration::MAX).map(|_| ()));
    let queue = full.clone();
    let put = background(move || queue.put("more").map(|_| ()));
    let queue = full.clone();
    let put_later = background(move || queue.put_timeout("more", Duration::MAX).map(|_| ()));
    until("all wait", || empty.stats().waiters >= 4);
    thread::sleep(SHORT);
    set.clone().close().unwrap();
    for answer in [get, batch, any] {
        assert!(matches!(answer.recv_timeout(LONG).unwrap(), Err(GetError::Closed)));
    }
    for answer in [put, put_later] {
        assert!(matches!(answer.recv_timeout(LONG).unwrap(), Err(PutError::Closed)));
    }
    assert!(task.rung());
    assert!(matches!(task.poll(), Some(Err(GetError::Closed))));
    assert!(matches!(empty.put("x"), Err(PutError::Closed)));
    assert!(matches!(empty.peek(), Err(GetError::Closed)));
    assert!(matches!(empty.try_get(), Err(GetError::Closed)));
    assert!(matches!(empty.sync(), Err(SyncError::Closed)));
    assert!(matches!(empty.clear(), Err(Error::Closed)));
    assert!(matches!(empty.set_options(quick()), Err(OptionsError::Closed)));
    assert!(matches!(set.queue("empty"), Err(OpenError::Closed)));
    assert!(matches!(empty.iter().next(), None | Some(Err(GetError::Closed))));
    let set = open_quick(dir.path());
    assert_eq!(rest(&set.queue("full").unwrap()), ["only"]);
}

#[test]
fn open_any_prefers_the_first_and_leaves_no_one_in_line() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queues = [set.queue("a").unwrap(), set.queue("b").unwrap(), set.queue("a").unwrap()];
    let waiters = || queues.iter().map(|queue| queue.stats().waiters).sum::<u64>();
    let begin = Instant::now();
    assert!(set.open_any(&queues, SHORT).unwrap().is_none());
    assert!(begin.elapsed() >= SHORT);
    assert!(set.open_any(&queues, Duration::ZERO).unwrap().is_none());
    assert!(set.open_any(&[], ms(5)).unwrap().is_none());
    assert_eq!(waiters(), 0);
    queues[1].put("1").unwrap();
    queues[0].put("0").unwrap();
    let (at, item) = set.open_any(&queues, Duration::MAX).unwrap().unwrap();
    assert_eq!((at, text(item.data())), (0, "0"));
    queues[0].pause();
    item.abort();
    let (at, other) = set.open_any(&queues, Duration::ZERO).unwrap().unwrap();
    assert_eq!((at, text(other.data())), (1, "1"));
    queues[0].resume();
    other.close().unwrap();
    queues[0].get().unwrap();
    let (all, three) = (set.clone(), queues.clone());
    let answer = background(move || all.open_any(&three, LONG).unwrap().map(|(at, item)| (at, item.into_token())));
    until("it waits", || queues[1].stats().waiters == 1);
    queues[1].put("2").unwrap();
    let (at, token) = answer.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(at, 1);
    assert_eq!(waiters(), 0);
    assert!(queues[1].close_token(token).unwrap());
    // What comes next goes to whoever comes next.
    let mut task = Task::begin(queues[0].get_async());
    queues[0].put("3").unwrap();
    assert!(task.poll().is_some());
    set.delete("b").unwrap();
    assert!(matches!(set.open_any(&queues, Duration::ZERO), Err(GetError::Closed)));
}

#[test]
fn a_paused_queue_looks_empty_and_keeps_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    queue.put("a").unwrap();
    let held = queue.open().unwrap();
    queue.put("b").unwrap();
    queue.pause();
    queue.pause();
    assert!(queue.is_paused());
    assert!(queue.try_get().unwrap().is_none());
    assert!(queue.peek().unwrap().is_none());
    assert!(queue.open_batch(5, Duration::ZERO).unwrap().is_empty());
    let begin = Instant::now();
    assert!(queue.get_timeout(SHORT).unwrap().is_none());
    assert!(begin.elapsed() >= SHORT);
    let mut tasks: Vec<_> = (0..3).map(|_| Task::begin(queue.get_async())).collect();
    queue.put("c").unwrap();
    held.abort();
    assert!(tasks.iter_mut().all(|task| task.poll().is_none()));
    assert_eq!(queue.len(), 3);
    assert_eq!(queue.stats().waiters, 3);
    queue.resume();
    assert!(!queue.is_paused());
    for (task, data) in tasks.iter_mut().zip(["a", "b", "c"]) {
        assert!(task.rung());
        assert_eq!(text(task.poll().unwrap().unwrap().data()), data);
    }
    queue.put("d").unwrap();
    queue.pause();
    set.close().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    assert!(!queue.is_paused());
    assert_eq!(rest(&queue), ["d"]);
    queue.pause();
    let consumer = queue.clone();
    let answer = background(move || consumer.get().map(|_| ()));
    until("it waits", || queue.stats().waiters == 1);
    set.delete("q").unwrap();
    assert!(matches!(answer.recv_timeout(LONG).unwrap(), Err(GetError::Closed)));
}

#[test]
fn no_time_and_endless_time_do_not_overflow() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    assert!(queue.get_timeout(Duration::ZERO).unwrap().is_none());
    let past = Instant::now().checked_sub(ms(1)).unwrap();
    assert!(queue.get_deadline(past).unwrap().is_none());
    assert!(queue.open_deadline(past).unwrap().is_none());
    queue.put_batch(["a", "b", "c", "d"]).unwrap();
    assert!(queue.get_deadline(past).unwrap().is_some());
    assert!(queue.get_timeout(Duration::ZERO).unwrap().is_some());
    assert!(queue.get_timeout(Duration::MAX).unwrap().is_some());
    let held = queue.open_batch(2, Duration::MAX).unwrap();
    assert_eq!(held.len(), 1);
    let consumer = queue.clone();
    let answer = background(move || consumer.open_timeout(Duration::MAX).unwrap().unwrap().into_token());
    until("it waits", || queue.stats().waiters == 1);
    queue.put("e").unwrap();
    answer.recv_timeout(LONG).unwrap();
    queue.put_timeout("f", Duration::MAX).unwrap();
    let far = PutOptions::new().expires_in(Duration::MAX);
    queue.put_with("g", &far).unwrap();
    let aged = set.queue_with("aged", quick().max_age(Duration::MAX)).unwrap();
    aged.put("h").unwrap();
    aged.put_with("i", &far).unwrap();
    assert_eq!(rest(&queue), ["f", "g"]);
    let copy = killed(dir.path());
    assert_eq!(rest(&open_quick(copy.path()).queue("aged").unwrap()), ["h", "i"]);
    assert_eq!(rest(&aged), ["h", "i"]);
}

#[test]
fn every_item_is_closed_once_among_many_who_abort() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue_with("q", quick().memory_bytes(2000)).unwrap();
    let closed = thread::scope(|scope| {
        for producer in 0..3u32 {
            let queue = &queue;
            scope.spawn(move || {
                for n in 0..700u32 {
                    let data = (producer * 1000 + n).to_le_bytes();
                    if n % 50 == 0 {
                        queue.put_batch([data]).unwrap()[0]
                    } else {
                        queue.put(data).unwrap()
                    };
                }
            });
        }
        let consumers: Vec<_> = (0..3u64)
            .map(|who| {
                let queue = &queue;
                scope.spawn(move || {
                    let (mut closed, mut dice) = (Vec::new(), Dice(who + 5));
                    while let Some(item) = queue.open_timeout(ms(200)).unwrap() {
                        if dice.roll(4) == 0 {
                            item.abort();
                        } else {
                            closed.push(u32::from_le_bytes(item.data().try_into().unwrap()));
                            item.close().unwrap();
                        }
                    }
                    closed
                })
            })
            .collect();
        consumers.into_iter().flat_map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let each: BTreeSet<_> = closed.iter().collect();
    assert_eq!((closed.len(), each.len()), (2100, 2100));
    let stats = queue.stats();
    assert_eq!((stats.items, stats.bytes, stats.open_items, stats.waiters), (0, 0, 0, 0));
    assert_eq!(stats.get_hits, 2100 + stats.canceled_transactions);
    assert_eq!(stats.redelivered, stats.canceled_transactions);
    let copy = killed(dir.path());
    assert!(open_quick(copy.path()).queue("q").unwrap().is_empty());
}

// Limits.

#[test]
fn a_batch_that_does_not_fit_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue_with("q", quick().max_items(5).max_bytes(20).max_item_size(10)).unwrap();
    let before = queue.put_batch(["aa", "bb"]).unwrap();
    let stats = queue.stats();
    assert!(matches!(queue.put_batch(["c"; 4]), Err(PutError::Full { limit: Limit::Items, .. })));
    assert!(matches!(queue.put_batch(["seventeen"; 2]), Err(PutError::Full { limit: Limit::Bytes, .. })));
    assert!(matches!(queue.put_batch(["ok", "elevenbytes"]), Err(PutError::TooLarge { len: 11, max: 10 })));
    assert!(queue.put_batch(Vec::<&str>::new()).unwrap().is_empty());
    let after = queue.stats();
    assert_eq!((after.items, after.bytes, after.total_items, after.put_bytes), (2, 4, 2, 4));
    assert_eq!(after.log_size, stats.log_size);
    let ids = queue.put_batch(["0123456789", "012345"]).unwrap();
    assert!(ids[0] > before[1]);
    assert_eq!(queue.stats().bytes, 20);
    assert!(matches!(queue.put("x"), Err(PutError::Full { limit: Limit::Bytes, .. })));
    queue.put("").unwrap();
    assert!(matches!(queue.put(""), Err(PutError::Full { limit: Limit::Items, .. })));
    assert!(queue.put_batch(Vec::<&str>::new()).unwrap().is_empty());
    let copy = killed(dir.path());
    assert_eq!(rest(&open_quick(copy.path()).queue("q").unwrap()), ["aa", "bb", "0123456789", "012345", ""]);
    // One that can never fit is refused at once under every policy, and drops nothing.
    for when_full in [WhenFull::Wait, WhenFull::DropOldest] {
        queue.set_options(queue.options().when_full(when_full)).unwrap();
        let other = queue.clone();
        let answer = background(move || other.put_batch(["x"; 6])).recv_timeout(LONG).expect("waits for ever");
        assert!(matches!(answer, Err(PutError::Full { limit: Limit::Items, .. })));
        assert!(matches!(queue.put("elevenbytes"), Err(PutError::TooLarge { .. })));
        assert_eq!((queue.len(), queue.stats().discarded), (5, 0));
    }
}

#[test]
fn drop_oldest_never_drops_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue_with("q", quick().max_items(2).when_full(WhenFull::DropOldest)).unwrap();
    queue.put_batch(["a", "b"]).unwrap();
    let a = queue.open().unwrap();
    queue.put("c").unwrap();
    assert_eq!(queue.stats().discarded, 0);
    queue.put("d").unwrap();
    assert_eq!((queue.len(), queue.stats().discarded), (2, 1));
    let copy = killed(dir.path());
    assert_eq!(rest(&open_quick(copy.path()).queue("q").unwrap()), ["a", "c", "d"]);
    a.abort();
    assert_eq!(queue.len(), 3); // one above the limit, and nothing lost
    assert_eq!(text(queue.peek().unwrap().unwrap().data()), "a");
    queue.put_batch(["e", "f"]).unwrap();
    assert_eq!((queue.len(), queue.stats().discarded), (2, 4));
    let e = queue.open().unwrap();
    let f = queue.open().unwrap();
    queue.put_batch(["g", "h"]).unwrap();
    queue.put_timeout("i", Duration::MAX).unwrap();
    f.close().unwrap();
    let copy = killed(dir.path());
    assert_eq!(rest(&open_quick(copy.path()).queue("q").unwrap()), ["e", "h", "i"]);
    drop(e);
    set.close().unwrap();
    let set = open_quick(dir.path());
    assert_eq!(rest(&set.queue("q").unwrap()), ["e", "h", "i"]);
    // No room at all: refused, and no loop.
    for options in [quick().max_items(0), quick().max_bytes(0)] {
        let none = set.queue_with("none", options.when_full(WhenFull::DropOldest)).unwrap();
        let answer = background(move || none.put("x")).recv_timeout(LONG).expect("loops");
        assert!(matches!(answer, Err(PutError::Full { .. })));
        set.delete("none").unwrap();
    }
}

#[test]
fn limits_hold_against_many_putters_and_against_what_is_not_yet_durable() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    for durability in [Durability::Os, Durability::Sync] {
        let queue = set.queue_with(&format!("{durability:?}"), quick().durability(durability).max_items(10)).unwrap();
        let accepted = thread::scope(|scope| {
            let all: Vec<_> = (0..16)
                .map(|_| {
                    let queue = &queue;
                    scope.spawn(move || (0..8).filter(|_| queue.put("x").is_ok()).count())
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
        });
        assert_eq!((accepted, queue.len()), (10, 10));
    }
    let slow = set.queue_with("slow", quick().durability(Durability::Sync).max_items(3)).unwrap();
    for n in 0..3 {
        slow.append(format!("{n}")).unwrap();
    }
    assert!(matches!(slow.append("3"), Err(PutError::Full { limit: Limit::Items, .. })));
    slow.sync().unwrap();
    assert_eq!(rest(&slow), ["0", "1", "2"]);
}

#[test]
fn drop_oldest_makes_room_also_where_items_are_not_yet_durable() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let options = quick().durability(Durability::Sync).max_items(3).when_full(WhenFull::DropOldest);
    let put = set.queue_with("put", options.clone()).unwrap();
    let refused = thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| {
                let queue = &put;
                scope.spawn(move || (0..10).filter(|_| queue.put("x").is_err()).count())
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
    });
    let queue = set.queue_with("append", options).unwrap();
    let appended: Vec<_> = (0..40).map(|n| queue.append(format!("{n}"))).collect();
    let not_appended = appended.iter().filter(|answer| answer.is_err()).count();
    assert_eq!((refused, not_appended), (0, 0), "puts and appends refused, though nothing is open");
    queue.sync().unwrap();
    assert_eq!((put.len(), put.stats().discarded), (3, 77));
    assert_eq!(queue.stats().discarded, 37);
    assert_eq!(rest(&queue), ["37", "38", "39"]);
}

#[test]
fn putters_that_wait_are_let_in_by_everything_that_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let options = quick().max_items(1).when_full(WhenFull::Wait);
    let queue = set.queue_with("q", options.clone()).unwrap();
    queue.put("0").unwrap();
    let later = |data: &'static str| {
        let queue = queue.clone();
        let answer = background(move || queue.put(data));
        thread::sleep(SHORT); // so that it stands in line
        answer
    };
    let begin = Instant::now();
    assert!(matches!(queue.put_timeout("no", SHORT), Err(PutError::Full { limit: Limit::Items, .. })));
    assert!(begin.elapsed() >= SHORT);
    assert!(matches!(queue.put_timeout("no", Duration::ZERO), Err(PutError::Full { .. })));
    let (one, two) = (later("1"), later("2"));
    assert_eq!(text(queue.get().unwrap().data()), "0"); // a get
    one.recv_timeout(LONG).unwrap().unwrap();
    let held = queue.open().unwrap(); // an open
    assert_eq!(text(held.data()), "1");
    two.recv_timeout(LONG).unwrap().unwrap();
    held.abort();
    assert_eq!(queue.len(), 2);
    let three = later("3");
    assert_eq!(queue.clear().unwrap(), 2); // a clear
    three.recv_timeout(LONG).unwrap().unwrap();
    let four = later("4");
    queue.set_options(options.clone().max_items(2)).unwrap(); // a higher limit
    four.recv_timeout(LONG).unwrap().unwrap();
    let five = later("5");
    queue.set_options(options.max_items(2).when_full(WhenFull::Refuse)).unwrap();
    assert_eq!(text(queue.get().unwrap().data()), "3");
    let _ = five.recv_timeout(LONG).expect("a putter sleeps although there is room");
    queue.clear().unwrap();
    queue.put_with("old", &PutOptions::new().expires_at(UNIX_EPOCH + ms(5))).unwrap();
    queue.put("6").unwrap();
    queue.put("7").unwrap(); // swept before it is refused
    assert_eq!(rest(&queue), ["6", "7"]);
}

// Expiry.

#[test]
fn expired_items_are_never_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let past = |time: SystemTime| PutOptions::new().expires_at(time);
    queue.put_with("a", &past(UNIX_EPOCH + ms(1))).unwrap();
    queue.put("b").unwrap();
    queue.put_with("c", &past(UNIX_EPOCH)).unwrap();
    queue.put_with("d", &past(UNIX_EPOCH - ms(1))).unwrap();
    queue.put_with("e", &past(SystemTime::now() - ms(100))).unwrap();
    queue.put("f").unwrap();
    queue.put_with("g", &PutOptions::new().expires_in(Duration::ZERO)).unwrap();
    let far = SystemTime::now() + Duration::from_secs(1000);
    queue.put_with("h", &past(far)).unwrap();
    thread::sleep(ms(20));
    assert_eq!(text(queue.peek().unwrap().unwrap().data()), "b");
    let copy = killed(dir.path());
    let later = open_quick(copy.path());
    assert_eq!(rest(&later.queue("q").unwrap()), ["b", "f", "h"]);
    assert_eq!(text(queue.get().unwrap().data()), "b");
    assert_eq!(text(queue.get().unwrap().data()), "f");
    let h = queue.get().unwrap();
    let off = h.expires_at().unwrap().duration_since(far).unwrap_or_else(|early| early.duration());
    assert_eq!(text(h.data()), "h");
    assert!(off <= ms(1), "{off:?}");
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(queue.stats().expired_items, 5);
    assert_eq!((queue.len(), queue.stats().bytes), (0, 0));
}

#[test]
fn an_item_that_expires_while_open_is_closed_or_expires_after_its_abort() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    let soon = PutOptions::new().expires_in(ms(60));
    for data in ["a", "b", "c"] {
        queue.put_with(data, &soon).unwrap();
    }
    queue.put("d").unwrap();
    let [a, b, c] = <[OpenItem; 3]>::try_from(queue.open_batch(3, Duration::ZERO).unwrap()).unwrap();
    assert!(a.expires_at().is_some());
    thread::sleep(ms(100));
    let mut task = None;
    assert_eq!(text(queue.get().unwrap().data()), "d");
    let task = task.get_or_insert_with(|| Task::begin(queue.get_async()));
    a.close().unwrap();
    b.abort();
    assert!(task.poll().is_none());
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(queue.stats().expired_items, 1);
    let copy = killed(dir.path());
    let later = open_quick(copy.path());
    assert!(later.queue("q").unwrap().try_get().unwrap().is_none());
    drop(c);
    queue.put("e").unwrap();
    assert!(task.rung());
    assert_eq!(text(task.poll().unwrap().unwrap().data()), "e");
    assert_eq!(queue.stats().open_items, 0);
}

#[test]
fn a_batch_ages_as_a_whole_across_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let aged = quick().max_age(ms(150)).memory_bytes(50);
    let queue = set.queue_with("q", aged.clone()).unwrap();
    let keep = set.queue_with("keep", quick()).unwrap();
    queue.put_batch((0..200).map(|n| format!("{n:010}"))).unwrap();
    keep.put_batch(["a", "b"]).unwrap();
    let open = queue.open_batch(2, Duration::ZERO).unwrap();
    assert!(open.iter().all(|item| item.expires_at().unwrap() <= item.put_time() + ms(150)));
    assert_eq!(open[0].expires_at(), open[1].expires_at());
    queue.set_options(aged.max_age(Duration::from_secs(3600))).unwrap(); // raising changes nothing
    let copy = killed(dir.path());
    set.close().unwrap();
    thread::sleep(ms(200));
    for place in [dir.path(), copy.path()] {
        let set = open_quick(place);
        let queue = set.queue("q").unwrap();
        assert!(queue.peek().unwrap().is_none());
        assert!(queue.try_open().unwrap().is_none());
        queue.discard_expired(usize::MAX).unwrap();
        assert_eq!((queue.len(), queue.stats().bytes, queue.stats().expired_items), (0, 0, 200));
        queue.put("young").unwrap();
        assert_eq!(rest(&queue), ["young"]);
        // Lowering it does change what waits.
        let keep = set.queue("keep").unwrap();
        keep.set_options(quick().max_age(ms(1))).unwrap();
        assert!(keep.try_get().unwrap().is_none());
        drop((queue, keep));
        set.close().unwrap();
        let set = open_quick(place);
        assert!(set.queue("q").unwrap().try_get().unwrap().is_none());
        assert!(set.queue("keep").unwrap().try_get().unwrap().is_none());
    }
}

// Clear and delete.

#[test]
fn a_clear_means_open_items_too_also_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue_with("q", quick().memory_bytes(300)).unwrap();
    queue.put_batch((0..50).map(|n| format!("{n:020}"))).unwrap();
    let [a, b, c, d] = <[OpenItem; 4]>::try_from(queue.open_batch(4, Duration::ZERO).unwrap()).unwrap();
    let highest = queue.put("last").unwrap();
    d.abort();
    let [d] = <[OpenItem; 1]>::try_from(queue.open_batch(1, Duration::ZERO).unwrap()).unwrap();
    let token = d.into_token();
    assert_eq!(queue.clear().unwrap(), 47);
    assert_eq!((queue.len(), queue.stats().bytes), (0, 0));
    let copies = [killed(dir.path()), {
        queue.put("new").unwrap();
        killed(dir.path())
    }];
    let mut counts = Vec::new();
    for copy in &copies {
        let later = open_quick(copy.path()).queue("q").unwrap();
        counts.push(later.len());
        assert!(later.put("newer").unwrap() > highest);
    }
    assert_eq!(counts, [0, 1]);
    a.abort();
    drop(b);
    queue.abort_token(token);
    assert_eq!((queue.len(), queue.stats().open_items), (1, 1));
    c.close().unwrap();
    assert_eq!(queue.stats().open_items, 0);
    assert_eq!(text(queue.peek().unwrap().unwrap().data()), "new");
    assert_eq!(queue.clear().unwrap(), 1);
    assert_eq!(queue.clear().unwrap(), 0);
    assert_eq!(queue.stats().total_flushes, 3);
    queue.put("end").unwrap();
    set.close().unwrap();
    let set = open_quick(dir.path());
    assert_eq!(rest(&set.queue("q").unwrap()), ["end"]);
}

#[test]
fn a_clear_takes_what_is_not_yet_durable() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let queue = set.queue_with("q", quick().durability(Durability::Sync)).unwrap();
    for round in 0..10 {
        let mut ids = Vec::new();
        for n in 0..5 {
            ids.push(queue.append(format!("old {round} {n}")).unwrap());
        }
        queue.clear().unwrap();
        let new = queue.put(format!("new {round}")).unwrap();
        assert!(new > ids[4]);
        for id in ids {
            queue.synced(id).unwrap();
        }
        let copy = killed(dir.path());
        let later = QueueSet::open(copy.path()).unwrap().queue("q").unwrap();
        assert_eq!(rest(&later), [format!("new {round}")]);
        assert_eq!(rest(&queue), [format!("new {round}")]);
    }
}

#[test]
fn a_queue_made_anew_has_nothing_of_the_deleted_one() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    assert!(!set.delete("q").unwrap());
    assert!(!set.delete("../q").unwrap_or(false));
    assert!(set.get_queue("q").unwrap().is_none());
    assert!(set.names().is_empty());
    let old = set.queue_with("q", quick().max_items(3)).unwrap();
    old.put_batch(["a", "b"]).unwrap();
    let kept = old.open().unwrap();
    let token = old.open().unwrap().into_token();
    let highest = old.append("c").unwrap();
    assert!(set.delete("q").unwrap());
    assert!(set.get_queue("q").unwrap().is_none());
    let copy = killed(dir.path());
    let again = open_quick(copy.path());
    assert!(again.names().is_empty());
    assert!(again.queue("q").unwrap().put("x").unwrap() > highest);
    let new = set.queue("q").unwrap();
    assert_ne!(new, old);
    assert_eq!((new.options(), new.len(), new.stats().total_items), (quick(), 0, 0));
    let first = new.put("n").unwrap();
    assert!(first > highest);
    let held = new.open().unwrap();
    assert_eq!(text(kept.data()), "a");
    kept.abort();
    assert!(!new.close_token(token).unwrap() && !new.abort_token(token));
    assert!(!matches!(old.close_token(token), Ok(true)) && !old.abort_token(token));
    assert!(matches!(old.put("x"), Err(PutError::Closed)));
    assert!(matches!(old.try_get(), Err(GetError::Closed)));
    assert!(matches!(old.synced(highest), Err(SyncError::Closed)));
    assert!(matches!(old.clear(), Err(Error::Closed)));
    held.abort();
    assert!(set.delete("q").unwrap());
    set.close().unwrap();
    let set = open_quick(dir.path());
    assert!(set.queue("q").unwrap().put("m").unwrap() > first);
    assert_eq!(rest(&set.queue("q").unwrap()), ["m"]);
}

#[test]
fn a_delete_releases_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let (empty, full) = (set.queue("empty").unwrap(), set.queue_with("full", quick().max_items(1)).unwrap());
    full.put("x").unwrap();
    let held = full.open().unwrap();
    full.put("z").unwrap();
    let mut task = Task::begin(empty.get_async());
    let queue = empty.clone();
    let get = background(move || queue.get().map(|_| ()));
    let queue = full.clone();
    let put = background(move || queue.put_timeout("y", Duration::MAX).map(|_| ()));
    until("both wait", || empty.stats().waiters == 2);
    thread::sleep(SHORT);
    assert!(set.delete("empty").unwrap() && set.delete("full").unwrap());
    assert!(matches!(get.recv_timeout(LONG).unwrap(), Err(GetError::Closed)));
    assert!(matches!(put.recv_timeout(LONG).unwrap(), Err(PutError::Closed)));
    assert!(task.rung());
    assert!(matches!(task.poll(), Some(Err(GetError::Closed))));
    assert!(matches!(held.close(), Err(CloseError::Closed)));
    assert_eq!((set.stats().queues, set.stats().queue_deletes), (0, 2));
}

// Sizes.

#[test]
fn empty_payloads_are_items_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue_with("q", quick().memory_bytes(1)).unwrap();
    queue.put("").unwrap();
    queue.put_batch(vec![Vec::new(); 9000]).unwrap();
    queue.put("end").unwrap();
    assert_eq!((queue.len(), queue.stats().bytes), (9002, 3));
    let open = queue.open_batch(10, Duration::ZERO).unwrap();
    assert!(open.iter().all(|item| item.data().is_empty()));
    let copy = killed(dir.path());
    let later = open_quick(copy.path()).queue("q").unwrap();
    assert_eq!((later.len(), later.stats().bytes), (9002, 3));
    let mut count = 0;
    while let Some(item) = later.try_get().unwrap() {
        assert_eq!(item.attempts(), if count < 10 { 2 } else { 1 });
        count += 1;
        assert_eq!(item.data(), if count < 9002 { &b""[..] } else { b"end" });
    }
    assert_eq!(count, 9002);
    drop(open);
    assert_eq!(queue.len(), 9002);
}

#[test]
fn the_largest_item_and_batch_pass_and_one_more_byte_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let size = 3 << 20;
    let queue = set.queue_with("q", quick().max_item_size(size).memory_bytes(1 << 10)).unwrap();
    let large: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    queue.put("small").unwrap();
    queue.put(&large).unwrap(); // larger than a segment of this queue otherwise is
    let mut larger = large.clone();
    larger.push(0);
    let refused = queue.put(&larger);
    assert!(
        matches!(refused, Err(PutError::TooLarge { len, max }) if len == u64::from(size) + 1 && max == u64::from(size))
    );
    let kib: Vec<Vec<u8>> = (0..600u32).map(|n| vec![n as u8; 1 << 10]).collect();
    queue.put_batch(&kib).unwrap();
    queue.put_batch([&large, &large]).unwrap();
    let copy = killed(dir.path());
    let later = open_quick(copy.path()).queue("q").unwrap();
    for queue in [&later, &queue] {
        assert_eq!(queue.get().unwrap().data(), b"small");
        let open = queue.open().unwrap();
        assert!(open.data() == large);
        drop(open);
        assert!(queue.get().unwrap().into_vec() == large);
        for one in &kib {
            assert!(queue.get().unwrap().data() == one);
        }
        for _ in 0..2 {
            assert!(queue.get().unwrap().data() == large);
        }
        assert!(queue.try_get().unwrap().is_none());
    }
    let over = QueueOptions::default().max_item_size(1 << 28);
    assert!(matches!(queue.set_options(over.clone()), Err(OptionsError::Invalid { .. })));
    assert!(matches!(set.queue_with("over", over), Err(OpenError::Options(OptionsError::Invalid { .. }))));
    assert_eq!(set.names(), ["q"]);
    assert_eq!(queue.options().max_item_size, size);
    // A batch must fit one segment, whatever the limits say.
    let queue = set.queue_with("wide", quick().max_item_size((1 << 28) - 8192)).unwrap();
    queue.put("before").unwrap();
    let quarter = vec![0; (1 << 28) - 8192];
    for count in [5, 17] {
        let refused = queue.put_batch(std::iter::repeat_n(&quarter, count));
        assert!(matches!(refused, Err(PutError::TooLarge { .. })), "{count}");
    }
    let stats = queue.stats();
    assert_eq!((stats.items, stats.total_items), (1, 1));
    assert!(stats.log_size < 1 << 24, "{}", stats.log_size);
    queue.put("after").unwrap();
    let copy = killed(dir.path());
    assert_eq!(rest(&open_quick(copy.path()).queue("wide").unwrap()), ["before", "after"]);
}

// Names and sets.

#[test]
fn hostile_names_are_refused_or_stay_apart() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("set");
    let set = open_quick(&dir);
    let too_long = "x".repeat(201);
    for name in ["", "+b", "a+", "+", "nul\0", too_long.as_str()] {
        assert!(matches!(set.queue(name), Err(OpenError::InvalidName { .. })), "{name:?}");
        assert!(!set.delete(name).unwrap_or(false));
    }
    assert!(set.names().is_empty());
    let mut names: Vec<String> = [" ", "a ", "\n", "\r\n", "\u{7f}", "\u{feff}"].map(String::from).to_vec();
    let marks = ". .. / ../x a/b a\\b ~ ~~ % %41 %2e * - _ \"'`$(x) \u{1F985} \u{202E}x \u{e9} e\u{301}";
    let words = "A 0 CON nul Orders orders meta lock set pool trash queues 0000000000000001.seg 0000000000000001.new";
    names.extend(marks.split(' ').chain(words.split(' ')).map(String::from));
    // Around the length at which the name of a directory is cut.
    names.extend((78..=81).map(|len| ".".repeat(len)));
    names.extend(["a", "b", ".", "A"].map(|end| ".".repeat(80) + end));
    names.extend((159..=161).map(|len| ".".repeat(len)));
    names.extend([".".repeat(200), "x".repeat(200), ".".repeat(199) + "x", "\u{10FFFF}".repeat(50)]);
    names.sort();
    names.dedup();
    for name in &names {
        set.queue(name).unwrap().put(name).unwrap();
    }
    assert_eq!(set.names(), names);
    set.close().unwrap();
    let outside: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside, ["set"]);
    let set = open_quick(&dir);
    assert_eq!(set.names(), names);
    // Deleting every second one touches no other, also not one nested in or beside it.
    for name in names.iter().step_by(2) {
        assert!(set.delete(name).unwrap(), "{name:?}");
    }
    let kept: Vec<_> = names.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(set.names(), kept);
    let copy = killed(&dir);
    let later = open_quick(copy.path());
    for set in [&set, &later] {
        assert_eq!(set.names(), kept);
        for name in &names {
            let left = set.get_queue(name).unwrap();
            assert_eq!(left.is_some(), kept.contains(name), "{name:?}");
            let expected: &[String] = if left.is_some() { std::slice::from_ref(name) } else { &[] };
            assert_eq!(rest(&set.queue(name).unwrap()), expected);
        }
    }
}

#[test]
fn one_set_at_a_time_has_a_directory() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep").join("set");
    assert!(matches!(QueueSet::open_read_only(&dir), Err(OpenError::Io { .. })));
    assert!(!dir.exists());
    let set = open_quick(&dir);
    let queue = set.queue("q").unwrap();
    queue.put_batch(["a", "b"]).unwrap();
    #[cfg(unix)]
    {
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(matches!(QueueSet::open(link), Err(OpenError::Locked { .. })));
    }
    assert!(matches!(QueueSet::open(dir.join("..").join("set")), Err(OpenError::Locked { .. })));
    // Two sets beside each other share nothing.
    let other = open_quick(&parent.path().join("other"));
    assert_ne!(other.id(), set.id());
    assert!(other.names().is_empty());
    assert_ne!(other.queue("q").unwrap(), queue);
    assert!(other.queue("q").unwrap().is_empty());
    // Looking is allowed, and only looking.
    let watch = QueueSet::open_read_only(&dir).unwrap();
    let before = read_tree(&dir);
    let seen = watch.get_queue("q").unwrap().unwrap();
    assert_eq!(text(seen.peek().unwrap().unwrap().data()), "a");
    assert_eq!((watch.names(), seen.len()), (vec![String::from("q")], 2));
    assert!(matches!(seen.put("x"), Err(PutError::ReadOnly)));
    assert!(matches!(seen.try_get(), Err(GetError::ReadOnly)));
    assert!(matches!(seen.try_open(), Err(GetError::ReadOnly)));
    assert!(matches!(seen.clear(), Err(Error::ReadOnly)));
    assert!(matches!(watch.delete("q"), Err(Error::ReadOnly)));
    assert!(matches!(seen.set_options(quick()), Err(OptionsError::ReadOnly)));
    assert!(watch.get_queue("none").unwrap().is_none());
    drop((seen, watch));
    assert_eq!(read_tree(&dir), before);
    // A queue's handle keeps the set; the last one gives the lock up.
    drop(set);
    assert!(matches!(QueueSet::open(&dir), Err(OpenError::Locked { .. })));
    assert_eq!(text(queue.get().unwrap().data()), "a");
    drop(queue);
    let set = open_quick(&dir);
    assert!(set.queue("q").unwrap().recovery().clean);
    assert_eq!(rest(&set.queue("q").unwrap()), ["b"]);
}

#[test]
fn a_guard_that_outlives_its_set_changes_nothing_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    queue.put_batch(["a", "b", "c", "d"]).unwrap();
    let [a, b, c, d] = <[OpenItem; 4]>::try_from(queue.open_batch(4, Duration::ZERO).unwrap()).unwrap();
    set.close().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    assert_eq!((queue.len(), queue.stats().open_items), (4, 0));
    let mine = queue.open().unwrap();
    mine.close().unwrap();
    a.abort(); // done in the new set: must not come back
    let mine = queue.open().unwrap();
    assert!(matches!(b.close(), Err(CloseError::Closed))); // open in the new set: must not be ended
    assert!(matches!(c.close_synced(), Err(CloseError::Closed))); // waiting: must stay
    std::mem::forget(d);
    mine.abort();
    let copy = killed(dir.path());
    let later = open_quick(copy.path()).queue("q").unwrap();
    assert_eq!(later.peek().unwrap().unwrap().attempts(), 1.max(later.peek().unwrap().unwrap().attempts()));
    assert_eq!(rest(&later), ["b", "c", "d"]);
    assert_eq!(rest(&queue), ["b", "c", "d"]);
}

// Attempts, durability, options.

#[test]
fn starts_are_counted_across_kills_but_not_across_an_orderly_close() {
    let mut dir = tempfile::tempdir().unwrap();
    let mut set = open_quick(dir.path());
    set.queue("q").unwrap().put_batch(["pill", "next"]).unwrap();
    let mut starts = 0;
    for round in 0..12 {
        let queue = set.queue("q").unwrap();
        queue.peek().unwrap();
        let item = queue.open().unwrap();
        starts += 1;
        assert_eq!((text(item.data()), item.attempts()), ("pill", starts), "round {round}");
        match round % 4 {
            0 => {
                let copy = killed(dir.path());
                set = open_quick(copy.path());
                assert_eq!(set.queue("q").unwrap().recovery().redelivered, 1);
                dir = copy;
            }
            1 => item.abort(),
            2 => {
                set.close().unwrap();
                starts -= 1;
                set = open_quick(dir.path());
            }
            _ => {
                item.abort();
                let copy = killed(dir.path());
                set = open_quick(copy.path());
                assert_eq!(set.queue("q").unwrap().recovery().redelivered, 0);
                dir = copy;
            }
        }
    }
    assert_eq!(starts, 9);
    let queue = set.queue("q").unwrap();
    for _ in 0..40 {
        queue.open().unwrap().abort();
    }
    assert_eq!(queue.stats().redelivered, 40);
    let copy = killed(dir.path());
    let later = open_quick(copy.path()).queue("q").unwrap();
    let item = later.open().unwrap();
    assert!((31..=50).contains(&item.attempts()), "{}", item.attempts());
    item.close().unwrap();
    let next = later.get().unwrap();
    assert_eq!((text(next.data()), next.attempts()), ("next", 1));
}

#[test]
fn recovery_tells_of_the_last_process_only() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    queue.put_batch(["a", "b", "c"]).unwrap();
    let held = queue.open_batch(2, Duration::ZERO).unwrap();
    let first = killed(dir.path());
    let set = open_quick(first.path());
    let report = set.queue("q").unwrap().recovery();
    assert_eq!((report.clean, report.items, report.redelivered), (false, 3, 2));
    // This process opens nothing, and closes in good order.
    set.queue("q").unwrap().put("d").unwrap();
    set.close().unwrap();
    let set = open_quick(first.path());
    let report = set.queue("q").unwrap().recovery();
    assert_eq!((report.clean, report.items, report.redelivered), (true, 4, 0));
    drop(held);
}

#[test]
fn an_orderly_close_is_seen_as_one_also_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let queue = set.queue_with("q", quick().durability(Durability::Sync)).unwrap();
    queue.put("x").unwrap();
    queue.get().unwrap();
    let copy = killed(dir.path());
    let set = QueueSet::open(copy.path()).unwrap();
    assert!(set.queue("q").unwrap().is_empty());
    set.close().unwrap();
    let set = QueueSet::open(copy.path()).unwrap();
    let report = set.queue("q").unwrap().recovery();
    assert!(report.clean, "{report:?}");
}

#[test]
fn appended_items_keep_their_order_and_become_durable() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let queue = set.queue_with("q", quick().durability(Durability::Sync)).unwrap();
    for unknown in [1, 2, u64::MAX] {
        assert!(matches!(queue.synced(ItemId::new(unknown)), Err(SyncError::UnknownId { .. })), "{unknown}");
    }
    for round in 0..20 {
        let a = queue.append(format!("a{round}")).unwrap();
        let b = queue.put_with(format!("b{round}"), &PutOptions::new().durability(Durability::Os)).unwrap();
        assert!(a < b);
        let c = queue.append(format!("c{round}")).unwrap();
        assert!(matches!(queue.synced(ItemId::new(c.get() + 1)), Err(SyncError::UnknownId { .. })));
        // Nobody overtakes one that is not durable yet, and who waits for it is woken.
        for name in ["a", "b", "c"] {
            let got = queue.get_timeout(LONG).unwrap().unwrap();
            assert_eq!(text(got.data()), format!("{name}{round}"));
        }
        queue.synced(a).unwrap();
        queue.synced(c).unwrap();
    }
    let ids = queue.put_batch(["x", "y", "z"]).unwrap();
    queue.synced(ids[1]).unwrap();
    let last = queue.append("end").unwrap();
    let mut task = Box::pin(queue.synced_async(last));
    let bell = Waker::from(Arc::new(Bell(AtomicUsize::new(0))));
    until("it is durable", || match task.as_mut().poll(&mut Context::from_waker(&bell)) {
        Poll::Ready(answer) => answer.is_ok(),
        Poll::Pending => false,
    });
    queue.append("after").unwrap();
    set.close().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let queue = set.queue("q").unwrap();
    queue.synced(last).unwrap();
    assert_eq!(rest(&queue), ["x", "y", "z", "end", "after"]);
    for durability in [Durability::Os, Durability::Every(Duration::from_secs(3600))] {
        let lazy = set.queue_with("lazy", quick().durability(durability)).unwrap();
        let id = lazy.append("x").unwrap();
        assert_eq!(lazy.peek().unwrap().unwrap().id(), id);
        lazy.synced(id).unwrap();
        lazy.sync().unwrap();
        lazy.get().unwrap();
        assert_eq!(lazy.stats().unsynced_bytes, 0);
    }
}

#[test]
fn refused_options_change_nothing_and_others_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let plain = set.queue("plain").unwrap();
    let own = quick().max_items(7).max_age(Duration::from_secs(9)).when_full(WhenFull::Wait).memory_bytes(1234);
    let queue = set.queue_with("own", own.clone()).unwrap();
    queue.put_batch(["a", "b", "c"]).unwrap();
    for bad in [quick().segment_bytes(1000), quick().segment_bytes(1 << 15), quick().segment_bytes(3 << 16)] {
        assert!(matches!(queue.set_options(bad.clone()), Err(OptionsError::Invalid { .. })));
        assert!(matches!(set.queue_with("bad", bad), Err(OpenError::Options(_))));
    }
    assert!(matches!(queue.set_options(own.clone().journal(false)), Err(OptionsError::Journal { items: 3, .. })));
    assert!(set.queue_with("own", own.clone().journal(false)).is_err());
    assert_eq!(queue.options(), own);
    assert_eq!(set.names(), ["own", "plain"]);
    // A lowered limit drops nothing by itself.
    let low = own.max_items(1).when_full(WhenFull::Refuse);
    queue.set_options(low.clone()).unwrap();
    assert_eq!(queue.len(), 3);
    assert!(queue.put("d").is_err());
    assert_eq!(queue.len(), 3);
    let memory = set.queue_with("memory", quick().journal(false)).unwrap();
    memory.put("gone").unwrap();
    let copy = killed(dir.path());
    set.close().unwrap();
    for place in [dir.path(), copy.path()] {
        let set = QueueSet::builder().defaults(quick().max_items(99)).open(place).unwrap();
        assert_eq!(set.queue("own").unwrap().options(), low);
        assert_eq!(set.queue("plain").unwrap().options(), quick().max_items(99));
        if let Some(memory) = set.get_queue("memory").unwrap() {
            assert!(memory.is_empty() && !memory.options().journal);
        }
        let queue = set.queue("own").unwrap();
        assert!(queue.put("d").is_err());
        queue.set_options(low.clone().when_full(WhenFull::DropOldest)).unwrap();
        queue.put("e").unwrap();
        assert_eq!((rest(&queue), queue.stats().discarded), (vec![String::from("e")], 3));
        set.close().unwrap();
        let set = QueueSet::builder().queue_options("own", quick().max_items(2)).open(place).unwrap();
        assert_eq!(set.queue("own").unwrap().options(), quick().max_items(2));
    }
    assert_eq!(plain.options(), quick());
}

#[test]
fn counters_mean_what_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let set = open_quick(dir.path());
    let queue = set.queue("q").unwrap();
    queue.peek().unwrap();
    queue.try_get().unwrap();
    queue.open_timeout(ms(2)).unwrap();
    let stats = queue.stats();
    assert_eq!((stats.get_misses, stats.get_hits, stats.transactions, stats.age_ms), (3, 0, 1, 0));
    queue.put_batch(["aaa", "bb", "c"]).unwrap();
    queue.put("").unwrap();
    queue.peek().unwrap();
    drop(queue.try_open().unwrap());
    queue.open().unwrap().close().unwrap();
    queue.get().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.total_items, stats.put_bytes, stats.items, stats.bytes), (4, 6, 2, 1));
    assert_eq!((stats.get_misses, stats.get_hits, stats.transactions), (3, 3, 3));
    assert_eq!((stats.canceled_transactions, stats.redelivered, stats.open_items), (1, 1, 0));
    let all = set.stats();
    assert_eq!((all.queues, all.open_queues, all.curr_items, all.bytes, all.queue_creates), (1, 1, 2, 1, 1));
    let copy = killed(dir.path());
    set.close().unwrap();
    for place in [dir.path(), copy.path()] {
        let set = open_quick(place);
        assert_eq!((set.stats().queues, set.stats().open_queues), (1, 0));
        let stats = set.queue("q").unwrap().stats();
        assert_eq!((stats.total_items, stats.get_hits, stats.items, stats.bytes), (0, 0, 2, 1));
        assert_eq!(set.stats().queue_creates, 0);
    }
}
