//! What happens to this crate when there is much of something: queues, backlog, stragglers, waiting consumers.

use std::time::{Duration, Instant};

use kestrel_core::{Durability, QueueOptions, QueueSet};

use crate::child::{join, told};
use crate::load::{Batches, Check, Source, random};
use crate::machine;
use crate::subject::Any;
use crate::task::{Task, Told};

fn options() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os)
}

fn set(task: &Task, options: QueueOptions) -> Any<QueueSet> {
    Ok(QueueSet::builder().defaults(options).open(task.dir.join("set"))?)
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Files and maps that this process has open.
fn open_files() -> Any<(f64, f64)> {
    let files = std::fs::read_dir("/proc/self/fd")?.count();
    let maps = std::fs::read_to_string("/proc/self/maps")?.lines().count();
    Ok((files as f64, maps as f64))
}

/// Creates that many queues with one item each, opens them again, and puts at random against one hot queue.
pub fn many_queues(task: &Task) -> Any<Told> {
    // Small segments: a queue that holds little shall not take 64 MiB of the disk.
    let options = || options().segment_bytes(64 << 10);
    let name = |n: u64| format!("queue-{n:06}");
    let mut source = Source::new(0, task.size);
    let start = Instant::now();
    let queues = set(task, options())?;
    for n in 0..task.items {
        queues.queue(&name(n))?.put(source.payload())?;
    }
    queues.close()?;
    let create_ms = ms(start);
    let before = machine::own_memory();
    let start = Instant::now();
    let queues = set(task, options())?;
    let list_ms = ms(start);
    let set_memory = machine::own_memory().saturating_sub(before);
    let start = Instant::now();
    let all = (0..task.items).map(|n| Ok(queues.queue(&name(n))?)).collect::<Any<Vec<_>>>()?;
    let load_ms = ms(start);
    let memory = machine::own_memory().saturating_sub(before);
    let (files, maps) = open_files()?;
    let mut dice = 7;
    let puts = 200_000;
    let hot = &all[0];
    for queue in &all {
        queue.put(source.payload())?;
    }
    let start = Instant::now();
    for _ in 0..puts {
        let place = random(&mut dice) as usize % all.len();
        all[place].put(source.payload())?;
    }
    let at_random = f64::from(puts) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..puts {
        hot.put(source.payload())?;
    }
    let hot = f64::from(puts) / start.elapsed().as_secs_f64();
    Ok(told([
        ("create ms", create_ms),
        ("open the set ms", list_ms),
        ("memory of the set MB", set_memory as f64 / 1e6),
        ("load all queues ms", load_ms),
        ("memory of all MB", memory as f64 / 1e6),
        ("open files", files),
        ("maps", maps),
        ("put at random k/s", at_random / 1e3),
        ("put to one k/s", hot / 1e3),
    ]))
}

/// A backlog behind a memory budget of 64 MB, drained and checked.
pub fn big_backlog(task: &Task) -> Any<Told> {
    let set = set(task, options().memory_bytes(64 << 20))?;
    let queue = set.queue("q")?;
    let mut batches = Batches::new(0, task.size);
    let before = machine::own_memory();
    let count = task.bytes / task.size as u64 / 100;
    let start = Instant::now();
    for _ in 0..count {
        batches.with(|payloads| queue.put_batch(payloads)).map(drop)?;
    }
    let put_s = start.elapsed().as_secs_f64();
    let memory = machine::own_memory().saturating_sub(before);
    let mut check = Check::all(1, task.size);
    let mut most_memory = memory;
    let start = Instant::now();
    for number in 0..count * 100 {
        let item = queue.open()?;
        check.see(item.data());
        item.close()?;
        if number % 100_000 == 0 {
            most_memory = most_memory.max(machine::own_memory().saturating_sub(before));
        }
    }
    check.verdict()?;
    let get_s = start.elapsed().as_secs_f64();
    let bytes = (count * 100 * task.size as u64) as f64;
    Ok(told([
        ("GB", bytes / 1e9),
        ("put MB/s", bytes / put_s / 1e6),
        ("drain MB/s", bytes / get_s / 1e6),
        ("memory with the backlog MB", memory as f64 / 1e6),
        ("most memory MB", most_memory as f64 / 1e6),
    ]))
}

/// One item in a thousand stays open while the rest pass by.
pub fn stragglers(task: &Task) -> Any<Told> {
    let set = set(task, options())?;
    let queue = set.queue("q")?;
    let mut source = Source::new(0, task.size);
    let mut check = Check::all(1, task.size);
    let mut open = Vec::new();
    let mut most_disk = 0;
    let count = task.bytes / task.size as u64;
    let start = Instant::now();
    for number in 0..count {
        queue.put(source.payload())?;
        let item = queue.open()?;
        check.see(item.data());
        if number % 1000 == 0 {
            open.push(item)
        } else {
            item.close()?
        }
        if number % (count / 50).max(1) == 0 {
            most_disk = most_disk.max(machine::disk_bytes(&task.dir)?);
        }
    }
    check.verdict()?;
    let seconds = start.elapsed().as_secs_f64();
    let live = (open.len() * task.size) as f64;
    let disk = machine::disk_bytes(&task.dir)? as f64;
    let pool = set.stats().pool_bytes as f64;
    // Then nothing is put, until the disk stands still.
    let mut rest = disk;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(3));
        let now = machine::disk_bytes(&task.dir)? as f64;
        if now >= rest {
            break;
        }
        rest = now;
    }
    let pool_at_rest = set.stats().pool_bytes as f64;
    Ok(told([
        ("GB through", task.bytes as f64 / 1e9),
        ("items/s k", count as f64 / seconds / 1e3),
        ("live MB", live / 1e6),
        ("disk MB", disk / 1e6),
        ("pool MB", pool / 1e6),
        ("most disk MB", most_disk as f64 / 1e6),
        ("disk without the pool to live", (disk - pool) / live),
        ("disk MB at rest", rest / 1e6),
        ("disk at rest, without the pool, to live", (rest - pool_at_rest) / live),
    ]))
}

/// A put and a get with that many items waiting.
pub fn depth(task: &Task) -> Any<Told> {
    let set = set(task, options())?;
    let queue = set.queue("q")?;
    let mut batches = Batches::new(0, task.size);
    for _ in 0..task.items / 100 {
        batches.with(|payloads| queue.put_batch(payloads)).map(drop)?;
    }
    let mut source = Source::new(1, task.size);
    for _ in 0..task.items % 100 {
        queue.put(source.payload())?;
    }
    let (mut put, mut get) = (Duration::ZERO, Duration::ZERO);
    let (turns, each) = (400, 500);
    for turn in 0..turns + 20 {
        let start = Instant::now();
        for _ in 0..each {
            queue.put(source.payload())?;
        }
        let put_time = start.elapsed();
        let start = Instant::now();
        for _ in 0..each {
            queue.open()?.close()?;
        }
        if turn >= 20 {
            put += put_time;
            get += start.elapsed();
        }
    }
    let calls = f64::from(turns * each);
    Ok(told([("put ns", put.as_nanos() as f64 / calls), ("get ns", get.as_nanos() as f64 / calls)]))
}

/// That many consumers wait; items come one at a time, then all at once.
pub fn waiters(task: &Task) -> Any<Told> {
    let set = set(task, options())?;
    let queue = set.queue("q")?;
    let waiters = task.threads;
    let rounds = 2_000;
    let total = rounds + 2 * waiters;
    let mut source = Source::new(0, task.size);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..waiters)
            .map(|_| {
                let queue = queue.clone();
                std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, move || -> Any<u64> {
                    let mut count = 0;
                    loop {
                        let item = queue.open()?;
                        let is_end = item.data().len() == 1;
                        item.close()?;
                        if is_end {
                            return Ok(count);
                        }
                        count += 1;
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        while queue.stats().waiters < waiters as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut put_ns = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            queue.put(source.payload())?;
            put_ns.push(start.elapsed().as_nanos() as u64);
            while !queue.is_empty() || queue.stats().waiters < waiters as u64 {
                std::thread::yield_now();
            }
        }
        put_ns.sort_unstable();
        let start = Instant::now();
        for _ in 0..2 * waiters {
            queue.put(source.payload())?;
        }
        while !queue.is_empty() || queue.stats().waiters < waiters as u64 {
            std::thread::yield_now();
        }
        let burst = start.elapsed();
        let (memory, (files, _)) = (machine::own_memory(), open_files()?);
        for _ in 0..waiters {
            queue.put([0])?;
        }
        let counts = threads.into_iter().map(join).collect::<Any<Vec<u64>>>()?;
        if counts.iter().sum::<u64>() != total as u64 {
            return Err("items were lost or came twice".into());
        }
        let served = counts.iter().filter(|count| **count > 0).count();
        Ok(told([
            ("put p50 us", put_ns[rounds / 2] as f64 / 1e3),
            ("put p99 us", put_ns[rounds * 99 / 100] as f64 / 1e3),
            ("burst of two a waiter, k items/s", 2.0 * waiters as f64 / burst.as_secs_f64() / 1e3),
            ("waiters served", served as f64),
            ("memory MB", memory as f64 / 1e6),
            ("open files", files),
        ]))
    })
}
