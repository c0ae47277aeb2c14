//! What every subject does, and how a child process is told to do it and tells what came out.
//!
//! A subject is a small program around one queue: it implements [`Subject`] and ends in [`child`]. Each measurement runs in a process and a
//! fresh directory of its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

pub type Any<T> = Result<T, Box<dyn std::error::Error + Send + std::marker::Sync>>;

/// One queue, with the settings that its own documentation gives. A job carries a number and does nothing but tell it.
pub trait Subject {
    /// Pushes a job for each number, with one call each if there is no delay.
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()>;
    /// Waits until so many more jobs were started, and answers each with the moment. Runs them on this thread before
    /// [`detach`](Subject::detach).
    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>>;
    /// Jobs that are stored and not at their end.
    fn left(&mut self) -> Any<u64>;
    /// From now on a thread of its own runs the jobs.
    fn detach(&mut self) -> Any<()>;
}

pub type Open = fn(&Path, Sync) -> Any<Box<dyn Subject>>;

/// When a push is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sync {
    /// Once a kill of the process cannot take it.
    No,
    /// Once a power cut cannot take it.
    Each,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub work: Work,
    pub sync: Sync,
    pub dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Pushes a number of jobs and runs them, over and over.
    Through { ms: u64, round: u64 },
    /// Pushes jobs that are due in an hour.
    Delayed { jobs: u64 },
    /// Jobs that come due one by one, while nothing else is to be done.
    Due { times: u64 },
    /// Nothing to do.
    Idle { ms: u64 },
}

/// By name.
pub type Told = BTreeMap<String, f64>;

/// What stands before the answer on a child's output.
pub const MARK: &str = "answer: ";
const PATIENCE: Duration = Duration::from_secs(30);

/// The whole program of a subject: `PROGRAM TASK`, the task in JSON.
pub fn child(open: Open) -> ExitCode {
    let task = std::env::args().next_back().unwrap_or_default();
    let answer = serde_json::from_str(&task).map_err(Into::into).and_then(|task: Task| {
        let mut subject = open(&task.dir, task.sync)?;
        work(task.work, &mut *subject)
    });
    match answer.and_then(|told| Ok(serde_json::to_string(&told)?)) {
        Ok(told) => {
            println!("{MARK}{told}");
            // What a runtime still has to do is of no interest.
            std::process::exit(0)
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1)
        }
    }
}

fn work(work: Work, subject: &mut dyn Subject) -> Any<Told> {
    match work {
        Work::Through { ms, round } => through(subject, Duration::from_millis(ms), round),
        Work::Delayed { jobs } => delayed(subject, jobs),
        Work::Due { times } => due(subject, times),
        Work::Idle { ms } => idle(subject, Duration::from_millis(ms)),
    }
}

fn told<const N: usize>(list: [(&str, f64); N]) -> Told {
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A round first that is not timed.
fn through(subject: &mut dyn Subject, time: Duration, round: u64) -> Any<Told> {
    let (mut next, mut start) = (0, Instant::now());
    let mut timed = 0;
    let mut in_order = true;
    loop {
        let numbers = next..next + round;
        subject.push(numbers.clone(), None)?;
        let mut seen: Vec<u64> = subject.run(round as usize)?.into_iter().map(|(number, _)| number).collect();
        in_order &= seen.is_sorted();
        seen.sort_unstable();
        if !seen.iter().copied().eq(numbers) {
            return Err("jobs were lost, altered or run twice".into());
        }
        if next == 0 {
            ended(subject)?;
            start = Instant::now();
        } else {
            timed += round;
        }
        next += round;
        if timed > 0 && start.elapsed() > time {
            break;
        }
    }
    ended(subject)?;
    let rate = timed as f64 / start.elapsed().as_secs_f64();
    Ok(told([("jobs/s", rate), ("in order", f64::from(u8::from(in_order)))]))
}

/// Waits until every job that was started is at its end.
fn ended(subject: &mut dyn Subject) -> Any<()> {
    let start = Instant::now();
    while subject.left()? > 0 {
        if start.elapsed() > PATIENCE {
            return Err("jobs that never ended".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn delayed(subject: &mut dyn Subject, jobs: u64) -> Any<Told> {
    let hour = Some(Duration::from_secs(3600));
    subject.push(0..1_000, hour)?;
    let before = own_memory();
    subject.push(1_000..1_000 + jobs, hour)?;
    let grown = own_memory().saturating_sub(before);
    if subject.left()? != 1_000 + jobs {
        return Err(format!("{} jobs of {}", subject.left()?, 1_000 + jobs).into());
    }
    Ok(told([("MB", grown as f64 / 1e6)]))
}

fn due(subject: &mut dyn Subject, times: u64) -> Any<Told> {
    subject.detach()?;
    let mut off = Vec::new();
    for n in 0..times {
        let delay = Duration::from_millis(300 + n * 137 % 400);
        let due = SystemTime::now() + delay;
        subject.push(n..n + 1, Some(delay))?;
        let &(number, at) = subject.run(1)?.first().ok_or("nothing came")?;
        if number != n {
            return Err(format!("job {number} came, not {n}").into());
        }
        off.push(match at.duration_since(due) {
            Ok(late) => late.as_secs_f64() * 1e3,
            Err(early) => -early.duration().as_secs_f64() * 1e3,
        });
    }
    let early = off.iter().filter(|off| **off < 0.0).count();
    off.iter_mut().for_each(|off| *off = off.abs());
    off.sort_by(f64::total_cmp);
    let (median, most) = (off[off.len() / 2], off.last().copied().unwrap_or(0.0));
    Ok(told([("ms", median), ("worst ms", most), ("early", early as f64)]))
}

fn idle(subject: &mut dyn Subject, time: Duration) -> Any<Told> {
    subject.push(0..1, None)?;
    subject.detach()?;
    subject.run(1)?;
    // What follows a job and a start: sleeping threads, a sync, a checkpoint.
    std::thread::sleep(Duration::from_secs(4));
    let before = wake_ups()?;
    std::thread::sleep(time);
    let woken = wake_ups()?.saturating_sub(before);
    Ok(told([("wake-ups/s", woken as f64 / time.as_secs_f64())]))
}

/// How often threads of this process went to sleep of their own will; the one that asks does not count.
fn wake_ups() -> Any<u64> {
    let own = std::process::id().to_string();
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let thread = thread?;
        if thread.file_name() != *own {
            sum += field(&std::fs::read_to_string(thread.path().join("status"))?, "voluntary_ctxt_switches:");
        }
    }
    Ok(sum)
}

/// Bytes of memory that this process has for itself alone; pages of mapped files belong to the page cache.
fn own_memory() -> u64 {
    field(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), "RssAnon:") << 10
}

/// The number behind a name, in files like `/proc/self/status`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The numbers of the jobs that were started.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<(Mutex<Vec<(u64, SystemTime)>>, Condvar)>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, SystemTime)>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the handler.
    pub fn add(&self, number: u64) {
        self.lock().push((number, SystemTime::now()));
        self.0.1.notify_all();
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn take(&self) -> Vec<(u64, SystemTime)> {
        std::mem::take(&mut self.lock())
    }

    /// Waits until so many were started.
    pub fn wait(&self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        let wait = self.0.1.wait_timeout_while(self.lock(), PATIENCE, |seen| seen.len() < count);
        let (mut seen, over) = wait.unwrap_or_else(PoisonError::into_inner);
        if over.timed_out() {
            return Err(format!("{} of {count} jobs were started", seen.len()).into());
        }
        Ok(std::mem::take(&mut *seen))
    }
}
