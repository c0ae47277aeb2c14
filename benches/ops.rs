//! Micro-benchmarks of every operation, and the marks: our figures beside the physical limit, measured in one run.
//!
//! `cargo bench` runs all, `cargo bench -- --quick` less of it, `cargo bench -- put` only what matches, `cargo bench -- marks`
//! the marks alone. The directory is `KESTREL_BENCH_DIR`, else one below the target directory: a real disk, not a tmpfs. The
//! marks come last, in turns with their limits, as medians.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, SamplingMode, Throughput};
use kestrel_core::{Durability, Queue, QueueOptions, QueueSet};

const SIZES: [usize; 3] = [64, 1024, 8192];
/// Bytes put before they are got again, so that a benchmark stays small on the disk and its segments are recycled.
const TURN_BYTES: usize = 48 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    // `cargo bench` says so; `cargo test --benches` does not, and wants everything to run once and nothing measured.
    let is_measured = has("--bench") && !has("--test") && !has("--list");
    let quick = has("--quick");
    if !has("marks") {
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(if quick { 400 } else { 1500 }))
            .sample_size(10)
            .configure_from_args();
        operations(&mut criterion);
        waits(&mut criterion);
        reopens(&mut criterion, if is_measured { 1_000_000 } else { 1_000 });
        criterion.final_summary();
    }
    // A filter or a baseline is about the operations.
    let is_whole = args.iter().all(|arg| arg == "--bench" || arg == "--quick");
    if is_measured && (is_whole || has("marks")) {
        marks(if quick { 3 } else { 7 });
    }
}

/// A fresh directory on the disk under test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let base = std::env::var_os("KESTREL_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let name = format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = base.join(name);
        fs::create_dir_all(&path).expect("a directory to measure in");
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn queue(dir: &Dir, durability: Durability) -> (QueueSet, Queue) {
    let set = QueueSet::builder()
        .defaults(QueueOptions::default().durability(durability))
        .open(dir.0.join("set"))
        .expect("a set");
    let queue = set.queue("q").expect("a queue");
    (set, queue)
}

fn drain(queue: &Queue) {
    while queue.try_get().expect("undamaged").is_some() {}
}

fn turn_items(size: usize) -> u64 {
    (TURN_BYTES / (size + 32)).max(1) as u64
}

/// How long `count` puts take, without the draining after each turn.
fn in_turns(queue: &Queue, count: u64, turn: u64, put: impl Fn()) -> Duration {
    let (mut left, mut spent) = (count, Duration::ZERO);
    while left > 0 {
        let now = left.min(turn);
        let start = Instant::now();
        (0..now).for_each(|_| put());
        spent += start.elapsed();
        drain(queue);
        left -= now;
    }
    spent
}

fn operations(criterion: &mut Criterion) {
    let every = Durability::Every(Duration::from_millis(100));
    for (name, durability) in [("os", Durability::Os), ("every-100ms", every), ("sync", Durability::Sync)] {
        let mut group = criterion.benchmark_group(format!("put/{name}"));
        for size in SIZES {
            let dir = Dir::new();
            let (_set, queue) = queue(&dir, durability);
            let payload = vec![7; size];
            group.throughput(Throughput::Elements(1));
            group.bench_function(size.to_string(), |bencher| {
                bencher.iter_custom(|count| {
                    in_turns(&queue, count, turn_items(size), || {
                        let _ = queue.put(&payload).expect("room");
                    })
                });
            });
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("put_batch-100/os");
    for size in SIZES {
        let dir = Dir::new();
        let (_set, queue) = queue(&dir, Durability::Os);
        let batch = vec![vec![7; size]; 100];
        group.throughput(Throughput::Elements(100));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter_custom(|count| {
                in_turns(&queue, count, turn_items(size * 100), || {
                    let _ = queue.put_batch(&batch).expect("room");
                })
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("append-1000-then-synced");
    for size in SIZES {
        let dir = Dir::new();
        let (_set, queue) = queue(&dir, Durability::Sync);
        let payload = vec![7; size];
        group.throughput(Throughput::Elements(1000));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter_custom(|count| {
                in_turns(&queue, count, turn_items(size * 1000), || {
                    let last = (0..1000).map(|_| queue.append(&payload).expect("room")).fold(None, |_, id| Some(id));
                    queue.synced(last.expect("a thousand")).expect("durable");
                })
            });
        });
    }
    group.finish();
    for (name, opens) in [("get", false), ("open+close", true)] {
        let mut group = criterion.benchmark_group(name);
        for size in SIZES {
            let dir = Dir::new();
            let (_set, queue) = queue(&dir, Durability::Os);
            let payload = vec![7; size];
            group.throughput(Throughput::Elements(1000));
            group.bench_function(size.to_string(), |bencher| {
                bencher.iter_batched(
                    || {
                        (0..1000).for_each(|_| {
                            let _ = queue.put(&payload).expect("room");
                        })
                    },
                    |()| {
                        for _ in 0..1000 {
                            if opens {
                                let item = queue.try_open().expect("undamaged").expect("there");
                                black_box(item.data());
                                item.close().expect("marked");
                            } else {
                                black_box(queue.try_get().expect("undamaged").expect("there"));
                            }
                        }
                    },
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

/// What several threads do.
fn waits(criterion: &mut Criterion) {
    for pairs in [1u64, 2] {
        let mut group = criterion.benchmark_group(format!("{pairs}x{pairs}"));
        for size in SIZES {
            let dir = Dir::new();
            let (_set, queue) = queue(&dir, Durability::Os);
            let each = 20_000;
            group.throughput(Throughput::Elements(each * pairs));
            group.bench_function(size.to_string(), |bencher| bencher.iter(|| transfer(&queue, pairs, each, size)));
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("put/sync-16-threads");
    for size in SIZES {
        let dir = Dir::new();
        let (_set, queue) = queue(&dir, Durability::Sync);
        group.throughput(Throughput::Elements(16 * 20));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter_custom(|count| {
                in_turns(&queue, count, turn_items(size * 16 * 20), || put_from_threads(&queue, 16, 20, size))
            });
        });
    }
    group.finish();
    let dir = Dir::new();
    let (set, ping) = queue(&dir, Durability::Os);
    let pong = set.queue("pong").expect("a queue");
    let (echo_from, echo_to) = (ping.clone(), pong.clone());
    let echo = std::thread::spawn(move || {
        while let Ok(item) = echo_from.get() {
            if echo_to.put(item.data()).is_err() {
                return;
            }
        }
    });
    criterion.bench_function("ping-pong", |bencher| {
        bencher.iter(|| {
            ping.put(b"ping").expect("room");
            pong.get().expect("the answer")
        });
    });
    set.close().expect("closed");
    echo.join().expect("the echo ends");
}

fn reopens(criterion: &mut Criterion, items: u64) {
    let mut group = criterion.benchmark_group(format!("reopen-{items}"));
    // One opening a sample: each needs a directory of its own.
    group
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(10));
    for (name, killed) in [("killed", true), ("clean", false)] {
        // Made by the first sample, so that a filter leaves it out.
        let mut backlog = None;
        group.bench_function(name, |bencher| {
            let backlog = backlog.get_or_insert_with(|| Backlog::new(items));
            bencher.iter_custom(|count| (0..count).map(|_| backlog.reopen(killed)).sum())
        });
    }
    group.finish();
}

fn transfer(queue: &Queue, pairs: u64, each: u64, size: usize) {
    std::thread::scope(|scope| {
        for _ in 0..pairs {
            scope.spawn(|| {
                let payload = vec![7; size];
                (0..each).for_each(|_| {
                    let _ = queue.put(&payload).expect("room");
                });
            });
            scope.spawn(|| {
                for _ in 0..each {
                    assert_eq!(queue.get().expect("undamaged").data().len(), size);
                }
            });
        }
    });
}

/// Rate of `count` calls, in millions a second.
fn rate(count: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    count as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The least work that a put needs: checksum, copy and one entry of a ring, under a lock, into warm memory.
fn limit_put(size: usize, count: u64) -> f64 {
    let mut buffer = vec![0u8; 32 << 20];
    let ring = Mutex::new(std::collections::VecDeque::with_capacity(1 << 16));
    let payload = vec![7u8; size];
    let step = (size + 32).next_multiple_of(8);
    rate(count, || {
        let mut at = 0;
        for _ in 0..count {
            let mut ring = ring.lock().expect("not poisoned");
            if at + step > buffer.len() {
                at = 0;
            }
            let sum = crc32fast::hash(&payload);
            buffer[at..at + size].copy_from_slice(&payload);
            buffer[at + size..at + size + 4].copy_from_slice(&sum.to_le_bytes());
            if ring.len() == 1 << 16 {
                ring.clear();
            }
            ring.push_back((at as u64, size as u32, sum));
            at += step;
        }
        black_box(&buffer);
    })
}

/// The least work of a get: one copy out of warm memory into a new vector, and its checksum.
fn limit_get(size: usize, count: u64) -> f64 {
    let buffer = vec![7u8; 16 << 20];
    let step = (size + 32).next_multiple_of(8);
    rate(count, || {
        let mut at = 0;
        for _ in 0..count {
            if at + step > buffer.len() {
                at = 0;
            }
            let copy = buffer[at..at + size].to_vec();
            black_box(crc32fast::hash(&copy));
            black_box(copy);
            at += step;
        }
    })
}

/// A plain leader and its followers over one preallocated file: what group commit can do on this device.
fn limit_group_commit(dir: &Dir, threads: u64, each: u64) -> f64 {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(dir.0.join("plain")).expect("a file");
    // Written once, so that syncs find allocated blocks; by page, as large writes leave page cache that syncs slower.
    (0..64 << 20).step_by(4096).for_each(|at| file.write_all_at(&[0; 4096], at).expect("room"));
    file.sync_all().expect("durable");
    let state = Mutex::new((0u64, 0u64, false));
    let told = Condvar::new();
    rate(threads * each, || {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let payload = [7u8; 1024];
                    for _ in 0..each {
                        let mut held = state.lock().expect("not poisoned");
                        held.0 += 1;
                        let mine = held.0;
                        file.write_all_at(&payload, (mine * 1056) % (63 << 20)).expect("room");
                        while held.1 < mine {
                            if held.2 {
                                held = told.wait(held).expect("not poisoned");
                                continue;
                            }
                            held.2 = true;
                            let upto = held.0;
                            drop(held);
                            file.sync_data().expect("durable");
                            held = state.lock().expect("not poisoned");
                            (held.1, held.2) = (upto, false);
                            told.notify_all();
                        }
                    }
                });
            }
        });
    })
}

fn our_group_commit(threads: u64, each: u64) -> f64 {
    let dir = Dir::new();
    let (_set, queue) = queue(&dir, Durability::Sync);
    queue.put([0; 1024]).expect("room");
    rate(threads * each, || put_from_threads(&queue, threads, each, 1024))
}

fn put_from_threads(queue: &Queue, threads: u64, each: u64, size: usize) {
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let payload = vec![7; size];
                (0..each).for_each(|_| {
                    let _ = queue.put(&payload).expect("room");
                })
            });
        }
    });
}

/// Puts and gets in turns of `turn` items; rates of both. Many turns put into recycled segments, a single one into new ones.
fn put_and_get(size: usize, count: u64, turn: u64) -> (f64, f64) {
    let dir = Dir::new();
    let (_set, queue) = queue(&dir, Durability::Os);
    let payload = vec![7; size];
    let (mut put, mut get) = (Duration::ZERO, Duration::ZERO);
    let mut done = 0;
    while done < count {
        let start = Instant::now();
        (0..turn).for_each(|_| {
            let _ = queue.put(&payload).expect("room");
        });
        put += start.elapsed();
        let start = Instant::now();
        for _ in 0..turn {
            assert_eq!(queue.try_get().expect("undamaged").expect("there").data().len(), size);
        }
        get += start.elapsed();
        done += turn;
    }
    (done as f64 / put.as_secs_f64() / 1e6, done as f64 / get.as_secs_f64() / 1e6)
}

/// A set with pending items of 64 B, left in two ways. Killed: a copy of the directory of the living set, as a dead process
/// would leave it; the copy has all stores, and the same boot. Clean: closed.
struct Backlog {
    dir: Dir,
    items: u64,
}

impl Backlog {
    fn new(items: u64) -> Backlog {
        let dir = Dir::new();
        let (set, queue) = queue(&dir, Durability::Os);
        (0..items).for_each(|n| {
            let _ = queue.put([n as u8; 64]).expect("room");
        });
        copy_dir(&dir.0.join("set"), &dir.0.join("killed"));
        set.close().expect("closed");
        Backlog { dir, items }
    }

    /// How long opening takes until an item could be taken.
    fn reopen(&self, killed: bool) -> Duration {
        let path = self.dir.0.join(if killed { "copy" } else { "set" });
        if killed {
            // Recovery leaves a directory that is closed in good order: each one needs its own.
            let _ = fs::remove_dir_all(&path);
            copy_dir(&self.dir.0.join("killed"), &path);
        }
        let start = Instant::now();
        let set = QueueSet::builder()
            .defaults(QueueOptions::default().durability(Durability::Os))
            .open(&path)
            .expect("a set");
        let queue = set.queue("q").expect("recovered");
        let elapsed = start.elapsed();
        assert_eq!(queue.len(), self.items);
        assert_eq!(queue.recovery().clean, !killed);
        set.close().expect("closed");
        elapsed
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("readable").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("room");
        }
    }
}

/// What is to be reached.
enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
    OfLimit(f64),
}

struct Mark {
    name: &'static str,
    goal: Goal,
    ours: Vec<f64>,
    limit: Vec<f64>,
}

impl Mark {
    fn new(name: &'static str, goal: Goal) -> Mark {
        let (ours, limit) = (Vec::new(), Vec::new());
        Mark { name, goal, ours, limit }
    }

    fn print(mut self) {
        self.ours.sort_by(f64::total_cmp);
        let (least, most) = (self.ours[0], self.ours[self.ours.len() - 1]);
        let ours = median(self.ours);
        let limit = (!self.limit.is_empty()).then(|| median(self.limit));
        let ratio = limit.map_or(f64::NAN, |limit| ours / limit);
        let (goal, is_met) = match self.goal {
            Goal::None => (String::new(), None),
            Goal::AtLeast(goal) => (format!(">= {goal}"), Some(ours >= goal)),
            Goal::AtMost(goal) => (format!("<= {goal}"), Some(ours <= goal)),
            Goal::OfLimit(goal) => (format!(">= {goal} of the limit"), Some(ratio >= goal)),
        };
        let met = is_met.map_or("", |is_met| if is_met { "yes" } else { "no" });
        let (limit, ratio) = match limit {
            Some(limit) => (format!("{limit:.1}"), format!("{ratio:.2}")),
            None => ("-".into(), "-".into()),
        };
        println!("| {} | {ours:.1} | {goal} | {met} | {limit} | {ratio} | {least:.1} to {most:.1} |", self.name);
    }
}

fn marks(rounds: usize) {
    let mut put_64 = Mark::new("put, no sync, 64 B (M/s)", Goal::AtLeast(8.0));
    let mut put_1k = Mark::new("put, no sync, 1 KiB (M/s)", Goal::AtLeast(2.5));
    let mut put_8k = Mark::new("put, no sync, 8 KiB (M/s)", Goal::None);
    let mut new_64 = Mark::new("the same, 64 B, growing backlog (M/s)", Goal::None);
    let mut new_1k = Mark::new("the same, 1 KiB, growing backlog (M/s)", Goal::None);
    let mut get_64 = Mark::new("get + close, 64 B (M/s)", Goal::AtLeast(10.0));
    let mut get_1k = Mark::new("get + close, 1 KiB (M/s)", Goal::None);
    let sync_16 = "put, sync each, 16 threads, 1 KiB (k/s)";
    let mut sync_16 = Mark::new(sync_16, Goal::OfLimit(0.75));
    let killed = "reopen, 1 M of 64 B, after a kill (ms)";
    let mut killed = Mark::new(killed, Goal::AtMost(30.0));
    let mut clean = Mark::new("reopen, 1 M of 64 B, clean (ms)", Goal::None);
    for _ in 0..rounds {
        for (size, put, get, count) in [
            (64, &mut put_64, Some(&mut get_64), 2_000_000),
            (1024, &mut put_1k, Some(&mut get_1k), 1_000_000),
            (8192, &mut put_8k, None, 100_000),
        ] {
            let (put_rate, get_rate) = put_and_get(size, count, turn_items(size).min(50_000));
            put.ours.push(put_rate);
            put.limit.push(limit_put(size, count));
            if let Some(get) = get {
                get.ours.push(get_rate);
                get.limit.push(limit_get(size, count));
            }
        }
        for (size, mark, count) in [(64, &mut new_64, 2_000_000), (1024, &mut new_1k, 400_000)] {
            mark.ours.push(put_and_get(size, count, count).0);
            mark.limit.push(limit_put(size, count));
        }
        let dir = Dir::new();
        sync_16.limit.push(limit_group_commit(&dir, 16, 1_000) * 1e3);
        sync_16.ours.push(our_group_commit(16, 1_000) * 1e3);
        let backlog = Backlog::new(1_000_000);
        killed.ours.push(backlog.reopen(true).as_secs_f64() * 1e3);
        clean.ours.push(backlog.reopen(false).as_secs_f64() * 1e3);
    }
    println!(
        "\n| mark | median | goal | met | limit, same run | ratio | min to max |\n\
         |---|---|---|---|---|---|---|"
    );
    for mark in [put_64, put_1k, put_8k, new_64, new_1k, get_64, get_1k, sync_16, killed, clean] {
        mark.print();
    }
}
