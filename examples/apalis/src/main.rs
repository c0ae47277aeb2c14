//! apalis' workers over the jobs of a set: the adapter in [`backend`], and a run that shows what it makes of each ending.
//!
//! `cargo run --manifest-path examples/apalis/Cargo.toml`. Exit code 1: a task was run more or less often than it should, or ended
//! otherwise.

mod backend;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apalis_core::backend::TaskSink;
use apalis_core::error::{AbortError, BoxDynError, DeferredError, RetryAfterError, WorkerError};
use apalis_core::task::attempt::Attempt;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use backend::Kestrel;
use kestrel_core::jobs::{Backoff, DeadReason, Job, JobOptions, Jobs, Keep, Outcome};
use kestrel_core::{Postcard, QueueSet};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum How {
    Well,
    /// Fails the first two times.
    Third,
    /// Asks for another attempt in a moment.
    Later,
    /// Is put off once.
    Deferred,
    Aborted,
    Hopeless,
}

#[derive(Debug, Serialize, Deserialize)]
struct Greet {
    number: u32,
    how: How,
}

impl Job for Greet {
    const KIND: &'static str = "greet";
    type Codec = Postcard;

    fn options() -> JobOptions {
        JobOptions::default()
            .max_attempts(4)
            .backoff(Backoff::Fixed(Duration::from_millis(10)))
            .keep_done(Keep::last(1_000))
    }
}

/// How often each number was greeted.
type Seen = Arc<Mutex<BTreeMap<u32, u32>>>;

async fn greet(greet: Greet, attempt: Attempt, seen: Data<Seen>) -> Result<(), BoxDynError> {
    let times = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let times = seen.entry(greet.number).or_default();
        *times += 1;
        *times
    };
    let said = format!("number {}, {:?}, time {times}, attempt {}", greet.number, greet.how, attempt.current());
    tokio::time::sleep(Duration::from_millis(2)).await;
    match greet.how {
        How::Third if times < 3 => Err(said.into()),
        How::Later if times == 1 => Err(RetryAfterError::new(said, Duration::from_millis(30)).into()),
        How::Deferred if times == 1 => Err(DeferredError::new(said).into()),
        How::Aborted => Err(AbortError::new(said).into()),
        How::Hopeless => Err(said.into()),
        _ => Ok(()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kestrel-apalis: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool, BoxDynError> {
    let dir = tempfile::tempdir()?;
    let set = QueueSet::open(dir.path())?;
    let jobs = Jobs::new(&set)?;
    let seen = Seen::default();
    let mut backend = Kestrel::<Greet>::new(&jobs, 8)?;

    let kinds = [How::Well, How::Third, How::Later, How::Deferred, How::Aborted, How::Hopeless];
    let mut pushed = Vec::new();
    for (number, how) in (0..60).zip(kinds.into_iter().cycle()) {
        pushed.push((jobs.push(&Greet { number, how })?.id, number, how));
    }
    // The way that apalis knows, which answers no id.
    backend.push(Greet { number: 60, how: How::Well }).await?;

    let worker = WorkerBuilder::new("greeter").backend(backend).data(Arc::clone(&seen)).build(greet);
    let (ended, watch) = tokio::sync::oneshot::channel();
    let (watched, ids) = (jobs.clone(), pushed.clone());
    let all_ended = async move {
        let mut outcomes = Vec::new();
        for (id, ..) in &ids {
            outcomes.push(watched.wait_async(*id).await);
        }
        // The one without an id.
        while watched.stats().queues.values().any(|queue| queue.waiting + queue.delayed + queue.running > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = ended.send(outcomes);
        Ok::<(), WorkerError>(())
    };
    tokio::time::timeout(Duration::from_secs(60), worker.run_until(all_ended)).await??;

    let mut good = true;
    for ((id, number, how), outcome) in pushed.iter().zip(watch.await?) {
        let times = seen.lock().unwrap_or_else(PoisonError::into_inner).get(number).copied().unwrap_or(0);
        let (is_right, wanted) = match how {
            How::Well => (matches!(outcome, Outcome::Done(_)), 1),
            How::Third => (matches!(outcome, Outcome::Done(_)), 3),
            How::Later | How::Deferred => (matches!(outcome, Outcome::Done(_)), 2),
            How::Aborted => (matches!(outcome, Outcome::Dead { reason: DeadReason::Rejected, .. }), 1),
            How::Hopeless => (matches!(outcome, Outcome::Dead { reason: DeadReason::Attempts, .. }), 4),
        };
        if *number < 6 {
            println!("{id} {how:?}: run {times} times, {outcome:?}");
        }
        if !is_right || times != wanted {
            println!("WRONG: {id} {how:?}: run {times} times, not {wanted}; {outcome:?}");
            good = false;
        }
    }
    let stats = jobs.stats().queues.remove("default").unwrap_or_default();
    println!("{} starts, {} done, {} dead", stats.started, stats.done, stats.died);
    good &= stats.done == 41 && stats.died == 20;
    drop(jobs);
    set.close()?;
    Ok(good)
}
