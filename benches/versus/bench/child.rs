//! The work of one child process: one subject, one workload, one fresh directory, one answer.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load::{BATCH, Batches, Check, Source};
use crate::machine;
use crate::scale;
use crate::subject::{self, Any, Opened, Put, Subject, Sync, Take, Wish};
use crate::task::{Answer, Durable, Task, Told, Work};

pub fn run(task: &Task) -> Any<Answer> {
    let told = match task.work {
        Work::Turns => turns(task),
        Work::Grow => grow(task),
        Work::Pairs => pairs(task),
        Work::Synced => synced(task),
        Work::Append => append(task),
        Work::Queues => queues(task),
        Work::Wake => wake(task),
        Work::PingPong => ping_pong(task),
        Work::Fill | Work::FillKilled => fill(task),
        Work::Reopen => return reopen(task),
        Work::Footprint => footprint(task),
        Work::KeptUp | Work::Growing => sustained(task),
        Work::Latency => latency(task),
        Work::ManyQueues => scale::many_queues(task),
        Work::BigBacklog => scale::big_backlog(task),
        Work::Stragglers => scale::stragglers(task),
        Work::Depth => scale::depth(task),
        Work::Waiters => scale::waiters(task),
    };
    Ok(Answer { told: told?, note: None })
}

impl Task {
    pub fn sync(&self) -> Sync {
        match self.sync {
            Durable::No => Sync::No,
            Durable::Each => Sync::Each,
            Durable::Every => Sync::Every,
        }
    }

    fn subject(&self) -> Any<&'static Subject> {
        subject::find(&self.subject)
    }

    fn open(&self) -> Any<Opened> {
        (self.subject()?.open)(&self.dir, Wish { sync: self.sync(), size: self.size })
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

pub fn told<const N: usize>(pairs: [(&str, f64); N]) -> Told {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>()
}

/// Looks at the clock once in so many calls.
const LOOK_EVERY: u64 = 32;

/// Calls `work` until it was called `count` times or the time is over; how often, and how long it took.
fn until(count: u64, time: Duration, every: u64, mut work: impl FnMut() -> Any<()>) -> Any<(u64, Duration)> {
    let start = Instant::now();
    let mut done = 0;
    while done < count {
        work()?;
        done += 1;
        if done % every == 0 && start.elapsed() >= time {
            break;
        }
    }
    Ok((done, start.elapsed()))
}

fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Puts one item or one batch a call.
enum Load {
    One(Source),
    Batch(Batches),
}

impl Load {
    fn new(batch: bool, producer: u32, size: usize) -> Load {
        if batch { Load::Batch(Batches::new(producer, size)) } else { Load::One(Source::new(producer, size)) }
    }

    fn put(&mut self, to: &mut dyn Put) -> Any<()> {
        match self {
            Load::One(source) => to.put(source.payload()),
            Load::Batch(batches) => batches.with(|payloads| to.put_batch(payloads)),
        }
    }

    fn step(&self) -> u64 {
        if matches!(self, Load::Batch(_)) { BATCH } else { 1 }
    }

    fn count(&self) -> u64 {
        match self {
            Load::One(source) => source.count(),
            Load::Batch(batches) => batches.count(),
        }
    }
}

/// Payload bytes put before they are taken again.
const TURN_BYTES: u64 = 48 << 20;
const TURN_ITEMS: u64 = 50_000;

/// Bytes put and taken before anything is measured: two segments of this crate and of the limit, which then use them again.
const WARM_UP_BYTES: u64 = 160 << 20;
const WARM_UP_SIZE: usize = 1024;

/// Brings a subject to the state in which it has files to use again, as far as it gets in that time.
fn warm_up(task: &Task, opened: &mut Opened) -> Any<()> {
    let size = task.size.max(WARM_UP_SIZE);
    let mut batches = Batches::new(0, size);
    let mut check = Check::all(1, size);
    let start = Instant::now();
    let mut left = WARM_UP_BYTES / size as u64 / BATCH;
    // One batch first, then twice as many each time: a slow subject is not held up for long.
    let (mut turn, most) = (1, TURN_BYTES / size as u64 / BATCH);
    while left > 0 && start.elapsed() < task.time().clamp(WARM_UP, WARM_UP * 6) {
        let put = &mut opened.put;
        let (done, _) = until(turn.min(left), WARM_UP / 4, 1, || batches.with(|payloads| put.put_batch(payloads)))?;
        until(done * BATCH, Duration::MAX, LOOK_EVERY, || opened.take.take(&mut |item| check.see(item)))?;
        left -= done;
        turn = (turn * 2).min(most);
    }
    Ok(check.verdict()?)
}

const WARM_UP: Duration = Duration::from_millis(100);

fn turns(task: &Task) -> Any<Told> {
    let mut opened = task.open()?;
    warm_up(task, &mut opened)?;
    let Opened { mut put, mut take } = opened;
    let mut load = Load::new(task.batch, 0, task.size);
    let mut check = Check::all(1, task.size);
    let step = load.step();
    let calls = (TURN_BYTES / (task.size as u64 + 32)).min(TURN_ITEMS) / step;
    // A slow subject takes shorter turns, so that there are several.
    let share = task.time() / 6;
    let every = if step == 1 { LOOK_EVERY } else { 1 };
    let start = Instant::now();
    let (mut items, mut taken, mut put_time, mut take_time) = (0, 0, Duration::ZERO, Duration::ZERO);
    while start.elapsed() < task.time() {
        let (count, time) = until(calls, share, every, || load.put(&mut *put))?;
        items += count * step;
        put_time += time;
        let (count, time) = until(items - taken, share * 3, LOOK_EVERY, || take.take(&mut |item| check.see(item)))?;
        taken += count;
        take_time += time;
        check.verdict()?;
    }
    Ok(told([("put", rate(items, put_time)), ("get", rate(taken, take_time))]))
}

fn grow(task: &Task) -> Any<Told> {
    let Opened { mut put, mut take } = task.open()?;
    let mut load = Load::new(task.batch, 0, task.size);
    until(1000 / load.step(), task.time() / 4, 1, || load.put(&mut *put))?;
    let calls = task.bytes / task.size as u64 / load.step();
    let every = if task.batch { 1 } else { LOOK_EVERY };
    let (done, time) = until(calls, task.time(), every, || load.put(&mut *put))?;
    drain(&mut *take, load.count(), Check::all(1, task.size), DRAIN)?;
    Ok(told([("put", rate(done * load.step(), time))]))
}

/// How long a backlog that was measured is read back at most, to be checked.
const DRAIN: Duration = Duration::from_secs(2);

/// Takes `count` items, or as many as the time allows, and judges them.
fn drain(take: &mut dyn Take, count: u64, mut check: Check, time: Duration) -> Any<u64> {
    let (done, _) = until(count, time, LOOK_EVERY, || {
        take.take(&mut |item| check.see(item))?;
        if check.is_wrong() { Ok(check.verdict()?) } else { Ok(()) }
    })?;
    check.verdict()?;
    Ok(done)
}

fn pairs(task: &Task) -> Any<Told> {
    let mut opened = task.open()?;
    warm_up(task, &mut opened)?;
    let Opened { put, take } = opened;
    let pairs = task.threads;
    let mut putters: Vec<Box<dyn Put>> = (1..pairs).map(|_| put.another()).collect::<Any<_>>()?;
    let mut takers: Vec<Box<dyn Take>> = (1..pairs).map(|_| take.another()).collect::<Any<_>>()?;
    putters.push(put);
    takers.push(take);
    let most = task.bytes / task.size as u64 / pairs as u64;
    let start_line = Barrier::new(2 * pairs + 1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (start_line, is_over) = (&start_line, &is_over);
        let putters: Vec<_> = putters
            .into_iter()
            .enumerate()
            .map(|(number, mut put)| {
                scope.spawn(move || -> Any<u64> {
                    let mut source = Source::new(number as u32, task.size);
                    start_line.wait();
                    while source.count() < most && !is_over.load(Ordering::Relaxed) {
                        put.put(source.payload())?;
                    }
                    put.put(&source.last())?;
                    Ok(source.count())
                })
            })
            .collect();
        let takers: Vec<_> = takers
            .into_iter()
            .map(|mut take| {
                scope.spawn(move || -> Any<(Check, Instant)> {
                    let mut check = if pairs == 1 { Check::all(1, task.size) } else { Check::some(pairs, task.size) };
                    start_line.wait();
                    while !check.is_last() {
                        take.take(&mut |item| check.see(item))?;
                        if check.is_wrong() {
                            is_over.store(true, Ordering::Relaxed);
                            check.verdict()?;
                        }
                    }
                    Ok((check, Instant::now()))
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        std::thread::sleep(task.time());
        is_over.store(true, Ordering::Relaxed);
        let put: Vec<u64> = putters.into_iter().map(join).collect::<Any<_>>()?;
        let took: Vec<(Check, Instant)> = takers.into_iter().map(join).collect::<Any<_>>()?;
        let end = took.iter().map(|(_, end)| *end).max().ok_or("no consumer")?;
        let checks: Vec<Check> = took.into_iter().map(|(check, _)| check).collect();
        Check::together(&checks, &put)?;
        Ok(told([("through", rate(put.iter().sum(), end - start))]))
    })
}

/// A failure of one thread ends the process: the others may wait for ever.
pub fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Any<T>>) -> Any<T> {
    match thread.join() {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
        // Its message is on the error output.
        Err(_) => std::process::exit(101),
    }
}

fn synced(task: &Task) -> Any<Told> {
    let Opened { mut put, mut take } = task.open()?;
    // Rows for the producers, then one more for the warm-up.
    let mut warm_up = Load::new(task.batch, task.threads as u32, task.size);
    until(u64::MAX, task.time() / 5, 1, || warm_up.put(&mut *put))?;
    let putters: Vec<Box<dyn Put>> = (0..task.threads).map(|_| put.another()).collect::<Any<_>>()?;
    let before = machine::device_bytes(&task.dir);
    let start_line = Barrier::new(task.threads + 1);
    let (counts, end, start) = std::thread::scope(|scope| -> Any<_> {
        let start_line = &start_line;
        let threads: Vec<_> = putters
            .into_iter()
            .enumerate()
            .map(|(number, mut put)| {
                scope.spawn(move || -> Any<(u64, Instant)> {
                    let mut load = Load::new(task.batch, number as u32, task.size);
                    start_line.wait();
                    until(u64::MAX, task.time(), 1, || load.put(&mut *put))?;
                    Ok((load.count(), Instant::now()))
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        let ends: Vec<(u64, Instant)> = threads.into_iter().map(join).collect::<Any<_>>()?;
        let end = ends.iter().map(|(_, end)| *end).max().ok_or("no thread")?;
        Ok((ends.into_iter().map(|(count, _)| count).collect::<Vec<u64>>(), end, start))
    })?;
    let items: u64 = counts.iter().sum();
    let mut figures = told([("put", rate(items, end - start))]);
    if let (Some(before), Some(after)) = (before, machine::device_bytes(&task.dir)) {
        figures.insert("device".into(), (after - before) as f64 / items as f64);
    }
    let mut check = Check::all(task.threads + 1, task.size);
    let total = items + warm_up.count();
    let (done, _) = until(total, DRAIN, LOOK_EVERY, || take.take(&mut |item| check.see(item)))?;
    check.verdict()?;
    if done < total {
        return Ok(figures);
    }
    let mut put = counts;
    put.push(warm_up.count());
    Check::together(&[check], &put)?;
    Ok(figures)
}

fn append(task: &Task) -> Any<Told> {
    let Opened { mut put, mut take } = task.open()?;
    let mut source = Source::new(0, task.size);
    let mut round = || -> Any<()> {
        for _ in 0..1000 {
            put.append(source.payload())?;
        }
        put.synced()
    };
    until(5, task.time() / 4, 1, &mut round)?;
    let most = task.bytes / task.size as u64 / 1000;
    let (rounds, time) = until(most, task.time(), 1, &mut round)?;
    drain(&mut *take, source.count(), Check::all(1, task.size), DRAIN)?;
    Ok(told([("put", rate(rounds * 1000, time))]))
}

fn queues(task: &Task) -> Any<Told> {
    let opened: Vec<Opened> = if task.subject == "kestrel-core" {
        let set = crate::peers::ours::set(&task.dir, task.sync())?;
        let open = |n| -> Any<Opened> { Ok(crate::peers::ours::opened(&set.queue(&format!("q{n}"))?)) };
        (0..task.threads).map(open).collect::<Any<_>>()?
    } else {
        let open = |n| -> Any<Opened> {
            let dir = task.dir.join(format!("q{n}"));
            std::fs::create_dir_all(&dir)?;
            (task.subject()?.open)(&dir, Wish { sync: task.sync(), size: task.size })
        };
        (0..task.threads).map(open).collect::<Any<_>>()?
    };
    let start_line = Barrier::new(task.threads + 1);
    std::thread::scope(|scope| {
        let start_line = &start_line;
        let threads: Vec<_> = opened
            .into_iter()
            .map(|mut opened| {
                scope.spawn(move || -> Any<(u64, Instant)> {
                    let mut source = Source::new(0, task.size);
                    until(u64::MAX, task.time() / 5, 1, || opened.put.put(source.payload()))?;
                    start_line.wait();
                    let (done, _) = until(u64::MAX, task.time(), 1, || opened.put.put(source.payload()))?;
                    let end = Instant::now();
                    drain(&mut *opened.take, source.count(), Check::all(1, task.size), DRAIN)?;
                    Ok((done, end))
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        let ends: Vec<(u64, Instant)> = threads.into_iter().map(join).collect::<Any<_>>()?;
        let end = ends.iter().map(|(_, end)| *end).max().ok_or("no thread")?;
        Ok(told([("put", rate(ends.iter().map(|(count, _)| count).sum(), end - start))]))
    })
}

fn percentile(sorted: &[u64], share: f64) -> f64 {
    let place = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(0) as f64 / 1e3
}

/// The consumer sleeps by the time an item is put, a millisecond after the last one.
fn wake(task: &Task) -> Any<Told> {
    let Opened { mut put, mut take } = task.open()?;
    let epoch = Instant::now();
    let stamp = AtomicU64::new(0);
    let mut source = Source::new(0, task.size);
    let mut latencies = std::thread::scope(|scope| -> Any<Vec<u64>> {
        let stamp = &stamp;
        let taker = scope.spawn(move || -> Any<Vec<u64>> {
            let mut check = Check::all(1, task.size);
            let mut latencies = Vec::new();
            while !check.is_last() {
                take.take(&mut |item| {
                    let now = epoch.elapsed().as_nanos() as u64;
                    latencies.push(now - stamp.load(Ordering::Acquire));
                    check.see(item);
                })?;
            }
            check.verdict()?;
            Ok(latencies)
        });
        until(u64::MAX, task.time(), 1, || {
            std::thread::sleep(Duration::from_millis(1));
            let payload = source.payload();
            stamp.store(epoch.elapsed().as_nanos() as u64, Ordering::Release);
            put.put(payload)
        })?;
        std::thread::sleep(Duration::from_millis(1));
        put.put(&source.last())?;
        join(taker)
    })?;
    // The first one and the end are no wakes of the kind.
    latencies.pop();
    latencies.drain(..latencies.len().min(10));
    latencies.sort_unstable();
    Ok(told([("p50", percentile(&latencies, 0.5)), ("p99", percentile(&latencies, 0.99))]))
}

fn ping_pong(task: &Task) -> Any<Told> {
    let open = |name: &str| -> Any<Opened> {
        let dir = task.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        (task.subject()?.open)(&dir, Wish { sync: task.sync(), size: task.size })
    };
    let (mut ping, mut pong) = (open("ping")?, open("pong")?);
    let mut times = std::thread::scope(|scope| -> Any<Vec<u64>> {
        let echo = scope.spawn(move || -> Any<()> {
            let mut check = Check::all(1, task.size);
            let mut bytes = Vec::new();
            while !check.is_last() {
                ping.take.take(&mut |item| {
                    check.see(item);
                    bytes.clear();
                    bytes.extend_from_slice(item);
                })?;
                pong.put.put(&bytes)?;
            }
            Ok(check.verdict()?)
        });
        let mut source = Source::new(0, task.size);
        let mut check = Check::all(1, task.size);
        let mut times = Vec::new();
        let mut round = |payload: &[u8]| -> Any<()> {
            let start = Instant::now();
            ping.put.put(payload)?;
            pong.take.take(&mut |item| check.see(item))?;
            times.push(start.elapsed().as_nanos() as u64);
            Ok(())
        };
        until(200_000, task.time(), 1, || round(source.payload()))?;
        round(&source.last())?;
        check.verdict()?;
        join(echo)?;
        Ok(times)
    })?;
    times.drain(..times.len() / 10);
    times.sort_unstable();
    Ok(told([("p50", percentile(&times, 0.5)), ("p99", percentile(&times, 0.99))]))
}

fn put_all(task: &Task, put: &mut dyn Put) -> Any<()> {
    let mut batches = Batches::new(0, task.size);
    until(task.items / BATCH, Duration::MAX, 1, || batches.with(|payloads| put.put_batch(payloads))).map(drop)
}

fn fill(task: &Task) -> Any<Told> {
    let mut opened = task.open()?;
    put_all(task, &mut *opened.put)?;
    if task.work == Work::FillKilled {
        // SAFETY: plain system calls; nothing runs after the second.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    Ok(Told::new())
}

fn reopen(task: &Task) -> Any<Answer> {
    let start = Instant::now();
    let Opened { put: _put, mut take } = task.open()?;
    let mut check = Check::all(1, task.size);
    take.take(&mut |item| check.see(item))?;
    let elapsed = start.elapsed();
    check.verdict()?;
    let rest = task.items - 1;
    let done = drain(&mut *take, rest, Check::all(1, task.size).after(1), DRAIN)?;
    let note = (done < rest).then(|| format!("the first {} items were read back", done + 1));
    Ok(Answer { told: told([("open", elapsed.as_secs_f64() * 1e6)]), note })
}

fn footprint(task: &Task) -> Any<Told> {
    let before = machine::own_memory();
    let Opened { mut put, take } = task.open()?;
    put_all(task, &mut *put)?;
    let memory = machine::own_memory().saturating_sub(before);
    drop((put, take));
    let disk = machine::disk_bytes(&task.dir)?;
    Ok(told([("disk", disk as f64 / task.items as f64), ("memory", memory as f64)]))
}

/// How far a producer goes ahead of a consumer that keeps up.
const AHEAD_BYTES: u64 = 64 << 20;

fn sustained(task: &Task) -> Any<Told> {
    let Opened { mut put, mut take } = task.open()?;
    let mut source = Source::new(0, task.size);
    let count = task.bytes / task.size as u64;
    let taken = AtomicU64::new(0);
    let before = machine::device_bytes(&task.dir);
    let start = Instant::now();
    let elapsed = if task.work == Work::Growing {
        until(count, Duration::MAX, LOOK_EVERY, || put.put(source.payload()))?;
        start.elapsed()
    } else {
        std::thread::scope(|scope| -> Any<Duration> {
            let taken = &taken;
            let taker = scope.spawn(move || -> Any<Duration> {
                let mut check = Check::all(1, task.size);
                until(count, Duration::MAX, LOOK_EVERY, || {
                    take.take(&mut |item| check.see(item))?;
                    taken.store(check.count(), Ordering::Relaxed);
                    if check.is_wrong() { Ok(check.verdict()?) } else { Ok(()) }
                })?;
                Ok(start.elapsed())
            });
            until(count, Duration::MAX, LOOK_EVERY, || {
                while (source.count() - taken.load(Ordering::Relaxed)) * task.size as u64 > AHEAD_BYTES {
                    if taker.is_finished() {
                        return Err("the consumer ended early".into());
                    }
                    std::thread::yield_now();
                }
                put.put(source.payload())
            })?;
            join(taker)
        })?
    };
    let mut figures = told([("put", rate(count, elapsed))]);
    if let (Some(before), Some(after)) = (before, machine::device_bytes(&task.dir)) {
        figures.insert("device".into(), (after - before) as f64 / (count * task.size as u64) as f64);
    }
    Ok(figures)
}

/// One producer at a fixed rate, whether its puts are done in time or not: what waits behind a slow put counts as late.
fn latency(task: &Task) -> Any<Told> {
    use hdrhistogram::Histogram;
    let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3);
    let Opened { mut put, mut take } = task.open()?;
    let mut source = Source::new(0, task.size);
    let interval_ns = if task.rate > 0.0 { 1e9 / task.rate } else { 0.0 };
    let most = task.bytes / task.size as u64;
    let (mut puts, mut throughs) = (new()?, new()?);
    let start = Instant::now() + Duration::from_millis(5);
    let since = move || Instant::now().saturating_duration_since(start).as_nanos() as u64;
    let due = move |number: u64| (number as f64 * interval_ns) as u64;
    let elapsed = std::thread::scope(|scope| -> Any<Duration> {
        let throughs = &mut throughs;
        let taker = scope.spawn(move || -> Any<Duration> {
            let mut check = Check::all(1, task.size);
            while !check.is_last() {
                take.take(&mut |item| {
                    let number = check.count();
                    check.see(item);
                    throughs.saturating_record(since().saturating_sub(due(number)).max(1));
                })?;
                if check.is_wrong() {
                    check.verdict()?;
                }
            }
            Ok(start.elapsed())
        });
        while Instant::now() < start {
            std::hint::spin_loop();
        }
        let end_ns = task.time().as_nanos() as u64;
        for number in 0..most {
            let due = due(number);
            let mut now = since();
            if now.max(due) >= end_ns {
                break;
            }
            while now < due {
                std::hint::spin_loop();
                now = since();
            }
            put.put(source.payload())?;
            puts.saturating_record((since() - due).max(1));
        }
        put.put(&source.last())?;
        join(taker)
    })?;
    let mut figures = told([("rate", rate(source.count(), elapsed))]);
    for (name, share) in versus::figures::PERCENTILES {
        figures.insert(format!("put {name}"), puts.value_at_quantile(share) as f64 / 1e3);
        figures.insert(format!("through {name}"), throughs.value_at_quantile(share) as f64 / 1e3);
    }
    Ok(figures)
}
