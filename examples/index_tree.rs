//! Indexes a directory tree through a persistent queue, and survives `kill -9` at any moment.
//!
//! Every file becomes a job. Workers open a job, hash the file and count its lines, put the result, close the job. A file
//! that fails is given back and tried again; after three attempts it is set aside with its error. Killed and started
//! again, the run goes on where it was; at its end it checks that every job was done exactly once, or delivered again only
//! because a kill or a failure interrupted it.
//!
//! How nothing is lost or counted twice:
//! - The walk puts all jobs with one `put_batch`: after a kill during the walk there are no jobs, and it walks again.
//! - A result is put, durably, before its job is closed. A kill in between delivers the job again; its second result has
//!   the same job id and is recognised.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{OpenItem, Queue, QueueSet};

const USAGE: &str = "index_tree [TREE] [--data DIR] [--workers N] [--pause MS] [--kill-after MS [--kills N]]

  TREE             the directory to index; default: the current one
  --data DIR       where the queues live; default: a directory of the system's temporary one, by the tree's path
  --workers N      threads; default 4
  --pause MS       time that each file takes at least, to have something to interrupt; default 0
  --kill-after MS  start itself as a child with --pause 20, kill -9 it after MS, N times (default 3), then let one finish

A finished run leaves no state: the next start indexes anew. target/, .git/ and the data directory are skipped.";

const ATTEMPTS_MAX: u32 = 3;

struct Settings {
    tree: PathBuf,
    data: PathBuf,
    workers: usize,
    pause: Duration,
    kill_after: Option<Duration>,
    kills: u32,
}

fn main() -> ExitCode {
    let run = || -> Result<bool, Box<dyn Error>> {
        let Some(settings) = settings()? else {
            println!("{USAGE}");
            return Ok(true);
        };
        match settings.kill_after {
            Some(after) => survive(&settings, after),
            None => index(&settings),
        }
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("index_tree: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings() -> Result<Option<Settings>, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut tree, mut data, mut workers, mut pause, mut kill_after, mut kills) = (None, None, 4, 0, None, 3);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n\n{USAGE}"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--data" => data = Some(PathBuf::from(value()?)),
            "--workers" => workers = value()?.parse::<usize>()?.max(1),
            "--pause" => pause = value()?.parse()?,
            "--kill-after" => kill_after = Some(Duration::from_millis(value()?.parse()?)),
            "--kills" => kills = value()?.parse()?,
            _ if arg.starts_with('-') => {
                return Err(format!("unknown option {arg}\n\n{USAGE}").into());
            }
            _ => tree = Some(PathBuf::from(arg)),
        }
    }
    let tree = tree.unwrap_or_else(|| PathBuf::from("."));
    let tree = tree.canonicalize().map_err(|error| format!("{}: {error}", tree.display()))?;
    let key = fnv(0xcbf2_9ce4_8422_2325, tree.as_os_str().as_encoded_bytes());
    let data = data.unwrap_or_else(|| std::env::temp_dir().join(format!("kestrel-index-{key:016x}")));
    let pause = Duration::from_millis(pause);
    Ok(Some(Settings { tree, data, workers, pause, kill_after, kills }))
}

/// Starts itself, kills the child, and does so again; the last child may finish.
fn survive(settings: &Settings, after: Duration) -> Result<bool, Box<dyn Error>> {
    let child = |pause: &str| {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(&settings.tree).arg("--data").arg(&settings.data);
        command.args(["--workers", &settings.workers.to_string(), "--pause", pause]);
        command.spawn()
    };
    for n in 1..=settings.kills {
        let mut running = child("20")?;
        std::thread::sleep(after);
        if let Some(status) = running.try_wait()? {
            println!("the child was done before it could be killed");
            return Ok(status.success());
        }
        running.kill()?;
        running.wait()?;
        println!("kill {n}: after {after:?}");
    }
    Ok(child("0")?.wait()?.success())
}

fn index(settings: &Settings) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let set = QueueSet::open(&settings.data)?;
    let jobs = set.queue("jobs")?;
    let results = set.queue("results")?;
    if jobs.is_empty() && results.is_empty() {
        let paths = walk(settings)?;
        let count = (paths.len() as u64).to_le_bytes();
        let mut batch = vec![[b"N", &count[..]].concat()];
        batch.extend(paths.iter().map(|path| [b"F", path.as_os_str().as_encoded_bytes()].concat()));
        jobs.put_batch(batch)?;
    } else {
        println!("going on: {} jobs and {} results are there from before", jobs.len(), results.len());
    }

    let progress = Progress::default();
    let outcome: Result<(), String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..settings.workers)
            .map(|_| scope.spawn(|| work(settings, &jobs, &results, &progress).map_err(|error| error.to_string())))
            .collect();
        let shown = scope.spawn(|| show(&progress, &jobs));
        let mut outcome = Ok(());
        for worker in workers {
            outcome = outcome.and(worker.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        }
        progress.over.store(true, Ordering::SeqCst);
        let _ = shown.join();
        outcome
    });
    outcome?;

    let here = progress.files.load(Ordering::SeqCst);
    let rate = here as f64 / start.elapsed().as_secs_f64();
    let good = tally(&results, rate)?;
    if good {
        // The results go last: as long as they are there, a start after a kill comes back to this point.
        jobs.clear()?;
        results.clear()?;
    }
    set.close()?;
    Ok(good)
}

/// All regular files below the tree, sorted, by their path in it.
fn walk(settings: &Settings) -> io::Result<Vec<PathBuf>> {
    let data = settings.data.canonicalize().unwrap_or_else(|_| settings.data.clone());
    let mut files = Vec::new();
    let mut dirs = vec![settings.tree.clone()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if dir != settings.tree => {
                eprintln!("skipped {}: {error}", dir.display());
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                let skipped = entry.file_name() == "target" || entry.file_name() == ".git" || path == data;
                if !skipped {
                    dirs.push(path);
                }
            } else if kind.is_file()
                && let Ok(inside) = path.strip_prefix(&settings.tree)
            {
                files.push(inside.to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[derive(Default)]
struct Progress {
    files: AtomicU64,
    bytes: AtomicU64,
    over: AtomicBool,
}

fn show(progress: &Progress, jobs: &Queue) {
    let mut err = io::stderr();
    let is_terminal = err.is_terminal();
    while !progress.over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        if is_terminal {
            let (files, bytes) = (progress.files.load(Ordering::SeqCst), progress.bytes.load(Ordering::SeqCst));
            let _ = write!(err, "\r\x1b[K{files} files, {} KiB, {} to go", bytes / 1024, jobs.len());
        }
    }
    if is_terminal {
        let _ = write!(err, "\r\x1b[K");
    }
}

/// What a worker found about a job: a line in the queue of results.
enum Outcome {
    /// The walk's own count.
    Count(u64),
    Indexed {
        bytes: u64,
        lines: u64,
        hash: u64,
    },
    /// An attempt failed.
    Retry,
    Aside(String),
}

struct Record {
    job: u64,
    attempt: u32,
    outcome: Outcome,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.job.to_le_bytes().to_vec();
        out.extend_from_slice(&self.attempt.to_le_bytes());
        match &self.outcome {
            Outcome::Count(count) => {
                out.push(b'N');
                out.extend_from_slice(&count.to_le_bytes());
            }
            Outcome::Indexed { bytes, lines, hash } => {
                out.push(b'I');
                for number in [bytes, lines, hash] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Outcome::Retry => out.push(b'R'),
            Outcome::Aside(error) => {
                out.push(b'A');
                out.extend_from_slice(error.as_bytes());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let (job, rest) = bytes.split_first_chunk()?;
        let (attempt, rest) = rest.split_first_chunk()?;
        let (kind, rest) = rest.split_first()?;
        let number = |n: usize| Some(u64::from_le_bytes(rest.get(n * 8..n * 8 + 8)?.try_into().ok()?));
        let outcome = match kind {
            b'N' => Outcome::Count(number(0)?),
            b'I' => Outcome::Indexed { bytes: number(0)?, lines: number(1)?, hash: number(2)? },
            b'R' => Outcome::Retry,
            b'A' => Outcome::Aside(String::from_utf8_lossy(rest).into_owned()),
            _ => return None,
        };
        Some(Record { job: u64::from_le_bytes(*job), attempt: u32::from_le_bytes(*attempt), outcome })
    }
}

fn work(
    settings: &Settings,
    jobs: &Queue,
    results: &Queue,
    progress: &Progress,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // All jobs were put before the workers began; another worker's last one may still come back.
    loop {
        let Some(job) = jobs.open_timeout(Duration::from_millis(20))? else {
            if jobs.is_empty() && jobs.stats().open_items == 0 {
                return Ok(());
            }
            continue;
        };
        std::thread::sleep(settings.pause);
        let outcome = attempt(settings, &job, progress);
        let again = matches!(outcome, Outcome::Retry);
        results.put(Record { job: job.id().get(), attempt: job.attempts(), outcome }.encode())?;
        if again {
            job.abort();
        } else {
            job.close()?;
        }
    }
}

fn attempt(settings: &Settings, job: &OpenItem, progress: &Progress) -> Outcome {
    let (path, count) = match job.data().split_first() {
        Some((b'F', path)) => (path, None),
        Some((_, count)) => (&[][..], count.try_into().ok().map(u64::from_le_bytes)),
        None => (&[][..], None),
    };
    if let Some(count) = count {
        return Outcome::Count(count);
    }
    match hash_and_count(&settings.tree.join(path_of(path))) {
        Ok((bytes, lines, hash)) => {
            progress.files.fetch_add(1, Ordering::SeqCst);
            progress.bytes.fetch_add(bytes, Ordering::SeqCst);
            Outcome::Indexed { bytes, lines, hash }
        }
        Err(_) if job.attempts() < ATTEMPTS_MAX => Outcome::Retry,
        Err(error) => Outcome::Aside(format!("{}: {error}", String::from_utf8_lossy(path))),
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(bytes))
    }
    #[cfg(not(unix))]
    {
        Path::new(std::str::from_utf8(bytes).unwrap_or_default())
    }
}

fn hash_and_count(path: &Path) -> io::Result<(u64, u64, u64)> {
    let mut file = fs::File::open(path)?;
    let (mut bytes, mut lines, mut hash) = (0, 0, 0xcbf2_9ce4_8422_2325);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((bytes, lines, hash));
        }
        let part = &buffer[..count];
        bytes += count as u64;
        lines += part.iter().filter(|byte| **byte == b'\n').count() as u64;
        hash = fnv(hash, part);
    }
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Reads all results, checks them against each other, prints the last line. The results stay where they are.
fn tally(results: &Queue, rate: f64) -> Result<bool, Box<dyn Error>> {
    let (mut expected, mut retries, mut again) = (None, 0u64, 0u64);
    let mut indexed: BTreeMap<u64, (u64, u64, u32)> = BTreeMap::new();
    let mut aside: BTreeMap<u64, (String, u32)> = BTreeMap::new();
    let mut attempts: BTreeMap<u64, u32> = BTreeMap::new();
    let mut good = true;
    // Held open until all are read, and then given back.
    let mut held = Vec::new();
    while let Some(item) = results.try_open()? {
        let record = Record::decode(item.data()).ok_or("a result that this program did not write")?;
        let before = attempts.insert(record.job, record.attempt).unwrap_or(0);
        if record.attempt <= before {
            println!("job {}: attempt {} came after attempt {before}", record.job, record.attempt);
            good = false;
        }
        match record.outcome {
            Outcome::Count(count) => expected = Some(count),
            Outcome::Retry => retries += 1,
            Outcome::Indexed { bytes, lines, .. } => {
                again += u64::from(indexed.insert(record.job, (bytes, lines, record.attempt)).is_some());
            }
            Outcome::Aside(error) => {
                again += u64::from(aside.insert(record.job, (error, record.attempt)).is_some());
            }
        }
        held.push(item);
    }
    let starts: u64 = attempts.values().map(|attempt| u64::from(*attempt)).sum();
    let redeliveries = (starts - attempts.len() as u64).saturating_sub(retries);
    for (error, _) in aside.values() {
        println!("set aside: {error}");
    }
    let files = indexed.len() as u64;
    let set_aside = aside.keys().filter(|job| !indexed.contains_key(job)).count() as u64;
    if expected != Some(files + set_aside) {
        println!("{files} files and {set_aside} set aside, but the walk put {expected:?}");
        good = false;
    }
    if again > redeliveries {
        println!("{again} results came twice, but only {redeliveries} jobs were delivered again");
        good = false;
    }
    let bytes: u64 = indexed.values().map(|(bytes, ..)| bytes).sum();
    let lines: u64 = indexed.values().map(|(_, lines, _)| lines).sum();
    println!(
        "{files} files, {bytes} bytes, {lines} lines, {retries} retries, {redeliveries} redeliveries, \
         {set_aside} set aside, {rate:.0} files/s"
    );
    Ok(good)
}
