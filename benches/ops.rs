//! Micro-benchmarks of every operation, and the marks: our figures beside the physical limit, measured in one run.
//!
//! `cargo bench` runs all, `cargo bench -- --quick` less of it, `cargo bench -- put` only what matches. The directory is
//! `KESTREL_BENCH_DIR`, else the target's: a real disk, not a tmpfs. The marks come last, interleaved with their limits, as
//! medians.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use kestrel_core::{Durability, Queue, QueueOptions, QueueSet};

const SIZES: [usize; 3] = [64, 1024, 8192];

fn main() {
    // `cargo test --benches` wants to know that it starts, no more.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let quick = std::env::args().any(|arg| arg == "--quick");
    let filtered = std::env::args().skip(1).any(|arg| !arg.starts_with('-'));
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(if quick { 400 } else { 1500 }))
        .sample_size(10)
        .configure_from_args();
    operations(&mut criterion);
    criterion.final_summary();
    if !filtered {
        marks(if quick { 3 } else { 7 });
    }
}

/// A fresh directory on the disk under test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let base = std::env::var_os("KESTREL_BENCH_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
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
                bencher.iter(|| queue.put(&payload).expect("room"));
                drain(&queue);
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
            bencher.iter(|| queue.put_batch(&batch).expect("room"));
            drain(&queue);
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
            bencher.iter(|| {
                let last = (0..1000).map(|_| queue.append(&payload).expect("room")).fold(None, |_, id| Some(id));
                queue.synced(last.expect("a thousand")).expect("durable");
            });
            drain(&queue);
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
    // Written once, so that syncs find allocated blocks.
    file.write_all_at(&vec![0; 64 << 20], 0).expect("room");
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
    rate(threads * each, || {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    (0..each).for_each(|_| {
                        let _ = queue.put([7u8; 1024]).expect("room");
                    })
                });
            }
        });
    })
}

/// Puts and gets in turns of `turn` items, so that segments are recycled; rates of both.
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

/// Milliseconds to open a set with a million pending items, killed or closed. The directory is copied as a dead process
/// would leave it: the copy has all stores, and the same boot.
fn reopen(killed: bool) -> f64 {
    let dir = Dir::new();
    let (set, queue) = queue(&dir, Durability::Os);
    (0..1_000_000u64).for_each(|n| {
        let _ = queue.put([n as u8; 64]).expect("room");
    });
    let path = if killed {
        let copy = dir.0.join("copy");
        copy_dir(&dir.0.join("set"), &copy);
        copy
    } else {
        set.close().expect("closed");
        dir.0.join("set")
    };
    let start = Instant::now();
    let set =
        QueueSet::builder().defaults(QueueOptions::default().durability(Durability::Os)).open(&path).expect("a set");
    let queue = set.queue("q").expect("recovered");
    let elapsed = start.elapsed();
    assert_eq!(queue.len(), 1_000_000);
    elapsed.as_secs_f64() * 1e3
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

fn marks(rounds: usize) {
    struct Mark {
        name: &'static str,
        goal: &'static str,
        ours: Vec<f64>,
        limit: Vec<f64>,
    }
    let mark = |name, goal| Mark { name, goal, ours: Vec::new(), limit: Vec::new() };
    let mut put_64 = mark("put, no sync, 64 B (M/s)", ">= 8");
    let mut put_1k = mark("put, no sync, 1 KiB (M/s)", ">= 2.5");
    let mut put_8k = mark("put, no sync, 8 KiB (M/s)", "");
    let mut get_64 = mark("get + close, 64 B (M/s)", ">= 10");
    let mut get_1k = mark("get + close, 1 KiB (M/s)", "");
    let mut sync_16 = mark("put, sync each, 16 threads, 1 KiB (k/s)", ">= 75 % of the limit");
    let mut killed = mark("reopen, 1 M of 64 B, after a kill (ms)", "<= 30");
    let mut clean = mark("reopen, 1 M of 64 B, clean (ms)", "");
    for _ in 0..rounds {
        for (size, put, get, count) in [
            (64, &mut put_64, Some(&mut get_64), 2_000_000),
            (1024, &mut put_1k, Some(&mut get_1k), 1_000_000),
            (8192, &mut put_8k, None, 100_000),
        ] {
            let turn = (48 << 20) / (size as u64 + 32);
            let (put_rate, get_rate) = put_and_get(size, count, turn.min(50_000));
            put.ours.push(put_rate);
            put.limit.push(limit_put(size, count));
            if let Some(get) = get {
                get.ours.push(get_rate);
                get.limit.push(limit_get(size, count));
            }
        }
        let dir = Dir::new();
        sync_16.limit.push(limit_group_commit(&dir, 16, 500) * 1e3);
        sync_16.ours.push(our_group_commit(16, 500) * 1e3);
        killed.ours.push(reopen(true));
        clean.ours.push(reopen(false));
    }
    println!("\n| mark | median | goal | limit, same run | ratio | min to max |\n|---|---|---|---|---|---|");
    for mark in [put_64, put_1k, put_8k, get_64, get_1k, sync_16, killed, clean] {
        let (least, most) =
            mark.ours.iter().fold((f64::MAX, f64::MIN), |(least, most), x| (least.min(*x), most.max(*x)));
        let ours = median(mark.ours);
        let (limit, ratio) = match mark.limit.is_empty() {
            true => (String::from("-"), String::from("-")),
            false => {
                let limit = median(mark.limit);
                (format!("{limit:.1}"), format!("{:.2}", ours / limit))
            }
        };
        println!("| {} | {ours:.1} | {} | {limit} | {ratio} | {least:.1} to {most:.1} |", mark.name, mark.goal);
    }
}
