//! The jobs of this crate, and beside them its queue alone: what the jobs cost on top of it.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jobs_bench::{Any, Seen, Subject, Sync};
use kestrel_core::jobs::{Fail, Job, Jobs, Push, Runner, Worker};
use kestrel_core::{Durability, Postcard, Queue, QueueOptions, QueueSet};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Tick(u64);

impl Job for Tick {
    const KIND: &'static str = "tick";
    type Codec = Postcard;
}

fn set(dir: &Path, sync: Sync) -> Any<QueueSet> {
    let durability = match sync {
        Sync::No => Durability::Os,
        Sync::Each => Durability::Sync,
    };
    Ok(QueueSet::builder().defaults(QueueOptions::default().durability(durability)).open(dir.join("set"))?)
}

struct Ours {
    jobs: Jobs,
    seen: Seen,
    runner: Option<Runner>,
    worker: Option<Worker>,
}

pub fn jobs(dir: &Path, sync: Sync) -> Any<Box<dyn Subject>> {
    let jobs = Jobs::builder(&set(dir, sync)?).max_delayed(2_000_000).open()?;
    let seen = Seen::default();
    let told = seen.clone();
    let handler = move |_: &kestrel_core::jobs::Ctx, tick: Tick| {
        told.add(tick.0);
        Ok::<_, Fail>(())
    };
    let runner = Some(jobs.worker().on(handler).runner()?);
    Ok(Box::new(Ours { jobs, seen, runner, worker: None }))
}

impl Subject for Ours {
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()> {
        let how = delay.map_or(Push::new(), Push::after);
        for number in numbers {
            self.jobs.push_with(&Tick(number), &how)?;
        }
        Ok(())
    }

    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        let Some(runner) = &self.runner else { return self.seen.wait(count) };
        runner.run_until_empty()?;
        Ok(self.seen.take())
    }

    fn left(&mut self) -> Any<u64> {
        let stats = self.jobs.stats();
        Ok(stats.queues.values().map(|queue| queue.waiting + queue.delayed + queue.running).sum())
    }

    fn detach(&mut self) -> Any<()> {
        self.runner = None;
        let told = self.seen.clone();
        let handler = move |_: &kestrel_core::jobs::Ctx, tick: Tick| {
            told.add(tick.0);
            Ok::<_, Fail>(())
        };
        self.worker = Some(self.jobs.worker().on(handler).start()?);
        Ok(())
    }
}

struct Engine(Queue);

pub fn engine(dir: &Path, sync: Sync) -> Any<Box<dyn Subject>> {
    Ok(Box::new(Engine(set(dir, sync)?.queue("tick")?)))
}

impl Subject for Engine {
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()> {
        if delay.is_some() {
            return Err("measured with the jobs".into());
        }
        for number in numbers {
            self.0.put(number.to_le_bytes())?;
        }
        Ok(())
    }

    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        let mut seen = Vec::with_capacity(count);
        for _ in 0..count {
            let item = self.0.try_open()?.ok_or("an item is missing")?;
            seen.push((u64::from_le_bytes(item.data().try_into()?), SystemTime::now()));
            item.close()?;
        }
        Ok(seen)
    }

    fn left(&mut self) -> Any<u64> {
        Ok(self.0.len())
    }

    fn detach(&mut self) -> Any<()> {
        Err("measured with the jobs".into())
    }
}
