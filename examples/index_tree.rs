//! Indexes a directory tree through a persistent queue, and survives `kill -9` at any moment.
//!
//! Every file becomes a job. Workers open a job, hash the file and count its lines, put what they found into a second
//! queue, and close the job. A file that fails is given back and tried again; if its third attempt fails (those that a kill
//! interrupted count), it is moved aside with its error. Started again after a kill, the program goes on where it was.
//!
//! | queue | holds |
//! |---|---|
//! | `jobs` | a file to index: its path in the tree |
//! | `results` | a [`Record`] of every attempt that succeeded or is to be repeated |
//! | `aside` | a [`Record`] of every job that was given up |
//! | `plan` | one item, once the walk is complete: how many jobs, and of which tree |
//! | `runs` | one item for each start of the program: its number of workers |
//!
//! How a kill loses nothing and counts nothing twice:
//! - *During the walk* there is no plan yet. The next start clears what was put and walks again.
//! - *During the work* a record is on the device before its job is closed or given back. A kill in between brings the job
//!   again; two records with one job id are one file and a redelivery.
//! - *At the end* the records are read without being closed, so a kill brings the next start back to the same sum. Then
//!   the plan goes first: what is still there without it is cleared by the next start, which indexes anew.
//!
//! All queues have the default durability, `Sync`: no file is lost in a power cut either. But a close is durable only from
//! the next sync on, so after a power cut the check may find more deliveries than kills explain, and say so.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kestrel_core::{Item, Queue, QueueSet};

const USAGE: &str = "\
Indexes a directory tree through a persistent queue, and survives kill -9 at any moment.

index_tree [TREE] [--data DIR] [--workers N] [--pause MS] [--kill-after MS [--kills N]]

  TREE             the directory to index; default: the checkout that cargo runs, else the current directory
  --data DIR       where the queues live; default: a directory under the system's temporary one, named by the tree's path
  --workers N      threads; default 4
  --pause MS       how long each attempt takes at least; default 0, with --kill-after 20
  --kill-after MS  start itself as a child, kill -9 it after MS, then start another: N times (default 3), and let the
                   last one finish

target/, .git/ and the data directory are skipped, symbolic links are not followed. A start after a kill goes on where the
last one was; a start after a finished run indexes anew. Exit code 1: something was lost, counted twice or redelivered
without a kill, or the run failed.";

const ATTEMPTS_MAX: u32 = 3;
/// Paths that the walk puts at once.
const BATCH_ITEMS: usize = 1_000;
/// `Item::attempts` counts no further across crashes.
const ATTEMPTS_SATURATED: u32 = 31;

type Failure = Box<dyn Error + Send + Sync>;

struct Settings {
    tree: PathBuf,
    data: PathBuf,
    workers: u32,
    pause: Option<Duration>,
    kill_after: Option<Duration>,
    kills: u32,
}

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("index_tree: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    let good = match settings.kill_after {
        Some(after) => survive(&settings, after),
        None => index(&settings),
    };
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("index_tree: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command line; `None` if help is wanted.
fn settings() -> Result<Option<Settings>, Failure> {
    let (mut tree, mut data, mut pause, mut kill_after) = (None, None, None, None);
    let (mut workers, mut kills) = (4, 3);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or(format!("{name} needs a value"));
        let number = |text: OsString| -> Result<u32, String> {
            let text = text.to_string_lossy();
            text.parse().map_err(|_| format!("{name} needs a number, not {text:?}"))
        };
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--data" => data = Some(PathBuf::from(value()?)),
            "--workers" => workers = number(value()?)?.max(1),
            "--pause" => pause = Some(Duration::from_millis(number(value()?)?.into())),
            "--kill-after" => kill_after = Some(Duration::from_millis(number(value()?)?.into())),
            "--kills" => kills = number(value()?)?.max(1),
            _ if name.starts_with('-') => return Err(format!("unknown option {name}").into()),
            _ if tree.is_none() => tree = Some(PathBuf::from(arg)),
            _ => return Err(format!("one tree at a time, not {name:?} as well").into()),
        }
    }
    let tree = tree
        .or_else(|| std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("."));
    let tree = tree.canonicalize().map_err(|error| format!("{}: {error}", tree.display()))?;
    if !tree.is_dir() {
        return Err(format!("{} is not a directory", tree.display()).into());
    }
    let key = digest(path_bytes(&tree), 0);
    let data = data.unwrap_or_else(|| std::env::temp_dir().join(format!("kestrel-index-{key:016x}")));
    Ok(Some(Settings { tree, data, workers, pause, kill_after, kills }))
}

/// Starts itself, kills the child, and does so again; the last child may finish.
fn survive(settings: &Settings, after: Duration) -> Result<bool, Failure> {
    let spawn = |pause: Duration| {
        Command::new(std::env::current_exe()?)
            .arg(&settings.tree)
            .arg("--data")
            .arg(&settings.data)
            .args(["--workers", &settings.workers.to_string()])
            .args(["--pause", &pause.as_millis().to_string()])
            .spawn()
    };
    for n in 1..=settings.kills {
        let mut child = spawn(settings.pause.unwrap_or(Duration::from_millis(20)))?;
        std::thread::sleep(after);
        if let Some(status) = child.try_wait()? {
            if n == 1 {
                let hint = "choose fewer milliseconds, a larger --pause or a larger tree";
                return Err(format!("the child ended before it could be killed: {hint}").into());
            }
            println!("this one ended before it could be killed");
            return Ok(status.success());
        }
        child.kill()?;
        child.wait()?;
        println!("kill {n}: SIGKILL after {after:?}");
    }
    let status = spawn(settings.pause.unwrap_or_default())?.wait()?;
    Ok(status.success())
}

struct Queues {
    jobs: Queue,
    results: Queue,
    aside: Queue,
    plan: Queue,
    runs: Queue,
}

impl Queues {
    fn open(set: &QueueSet) -> Result<Queues, Failure> {
        Ok(Queues {
            jobs: set.queue("jobs")?,
            results: set.queue("results")?,
            aside: set.queue("aside")?,
            plan: set.queue("plan")?,
            runs: set.queue("runs")?,
        })
    }

    /// The plan goes first: without it the rest is worth nothing.
    fn clear(&self) -> Result<(), Failure> {
        for queue in [&self.plan, &self.jobs, &self.results, &self.aside, &self.runs] {
            queue.clear()?;
        }
        Ok(())
    }
}

fn index(settings: &Settings) -> Result<bool, Failure> {
    let set = QueueSet::open(&settings.data)?;
    let queues = Queues::open(&set)?;
    let progress = Progress::default();
    let (over, shown) = mpsc::channel();
    let good = std::thread::scope(|scope| {
        scope.spawn(|| show(&progress, shown));
        let good = run(settings, &queues, &progress);
        drop(over); // the line on the terminal is wiped before the sum is printed
        good
    })
    .and_then(|elapsed| sum_up(&queues, progress.done.load(Ordering::Relaxed), elapsed))?;
    if good {
        queues.clear()?;
    } else {
        println!("the state is left in {}", settings.data.display());
    }
    set.close()?;
    Ok(good)
}

/// Walks, unless an earlier start did, and works until no job is left. Answers how long the work took.
fn run(settings: &Settings, queues: &Queues, progress: &Progress) -> Result<Duration, Failure> {
    let plan = match queues.plan.peek()? {
        Some(item) => Plan::decode(item.data())?,
        None => walk(settings, queues, progress)?,
    };
    if plan.tree != settings.tree {
        let other = plan.tree.display();
        return Err(format!("the data directory holds an unfinished index of {other}").into());
    }
    queues.runs.put(settings.workers.to_le_bytes())?;
    let number = u32::try_from(queues.runs.len())?;
    let left = queues.jobs.len();
    if number > 1 {
        let (done, of) = (plan.jobs.saturating_sub(left), plan.jobs);
        println!("start {number}: going on, {done} of {of} jobs are done");
    }
    progress.jobs.store(left, Ordering::Relaxed);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let worker = || work(settings, queues, number, progress);
        let workers: Vec<_> = (0..settings.workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".into())))
    })?;
    Ok(start.elapsed())
}

/// What the walk found. Its presence says that the walk was complete.
struct Plan {
    jobs: u64,
    tree: PathBuf,
}

impl Plan {
    fn encode(&self) -> Vec<u8> {
        [&self.jobs.to_le_bytes()[..], path_bytes(&self.tree)].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Plan, Failure> {
        let (jobs, tree) = bytes.split_first_chunk().ok_or("a plan of another format")?;
        Ok(Plan { jobs: u64::from_le_bytes(*jobs), tree: path_of(tree).to_owned() })
    }
}

/// Puts a job for every regular file, in the order of the paths. What cannot be listed becomes a job too: it will fail, and
/// be set aside with its error.
fn walk(settings: &Settings, queues: &Queues, progress: &Progress) -> Result<Plan, Failure> {
    queues.clear()?;
    let data = settings.data.canonicalize()?;
    let mut plan = Plan { jobs: 0, tree: settings.tree.clone() };
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut paths = vec![(settings.tree.clone(), true)]; // the next one last
    while let Some((path, is_dir)) = paths.pop() {
        if is_dir && let Ok(mut entries) = list(&path, &data) {
            entries.sort_by(|a, b| b.cmp(a));
            paths.append(&mut entries);
            continue;
        }
        batch.push(path_bytes(path.strip_prefix(&settings.tree)?).to_owned());
        plan.jobs += 1;
        progress.jobs.store(plan.jobs, Ordering::Relaxed);
        if batch.len() == BATCH_ITEMS {
            queues.jobs.put_batch(&batch)?;
            batch.clear();
        }
    }
    queues.jobs.put_batch(&batch)?;
    queues.plan.put(plan.encode())?;
    Ok(plan)
}

/// What is to be indexed in a directory, and whether it is one itself.
fn list(dir: &Path, data: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, name, path) = (entry.file_type()?, entry.file_name(), entry.path());
        let is_skipped = kind.is_dir() && (name == "target" || name == ".git" || path == data);
        if (kind.is_dir() || kind.is_file()) && !is_skipped {
            paths.push((path, kind.is_dir()));
        }
    }
    Ok(paths)
}

/// One attempt at a job, as it is kept. Little-endian, in the order of the fields.
struct Record {
    job: u64,
    /// The start of the program in which it was made.
    run: u32,
    /// Which delivery of the job it was: `Item::attempts`.
    attempt: u32,
    /// The job that this worker had closed before, with a close that returned; 0 for none.
    closed_before: u64,
    outcome: Outcome,
}

enum Outcome {
    Indexed { bytes: u64, lines: u64, digest: u64 },
    Retry,
    Aside(String),
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.job.to_le_bytes().to_vec();
        out.extend_from_slice(&self.run.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.extend_from_slice(&self.closed_before.to_le_bytes());
        match &self.outcome {
            Outcome::Indexed { bytes, lines, digest } => {
                out.push(b'I');
                for number in [bytes, lines, digest] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Outcome::Retry => out.push(b'R'),
            Outcome::Aside(why) => {
                out.push(b'A');
                out.extend_from_slice(why.as_bytes());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*number)
        }
        let rest = &mut &*bytes;
        Some(Record {
            job: u64::from_le_bytes(number(rest)?),
            run: u32::from_le_bytes(number(rest)?),
            attempt: u32::from_le_bytes(number(rest)?),
            closed_before: u64::from_le_bytes(number(rest)?),
            outcome: match number(rest)? {
                [b'I'] => Outcome::Indexed {
                    bytes: u64::from_le_bytes(number(rest)?),
                    lines: u64::from_le_bytes(number(rest)?),
                    digest: u64::from_le_bytes(number(rest)?),
                },
                [b'R'] => Outcome::Retry,
                [b'A'] => Outcome::Aside(String::from_utf8_lossy(rest).into_owned()),
                _ => return None,
            },
        })
    }
}

/// Opens jobs until there are none, or until a worker failed.
fn work(settings: &Settings, queues: &Queues, run: u32, progress: &Progress) -> Result<(), Failure> {
    let mut closed_before = 0;
    while !progress.failed.load(Ordering::SeqCst) {
        let Some(job) = queues.jobs.open_timeout(Duration::from_millis(5))? else {
            // Another worker may still give one back.
            if queues.jobs.is_empty() && queues.jobs.stats().open_items == 0 {
                break;
            }
            continue;
        };
        std::thread::sleep(settings.pause.unwrap_or_default());
        let id = job.id().get();
        let outcome = attempt(settings, &job);
        let (to, is_done) = match &outcome {
            Outcome::Indexed { .. } => (&queues.results, true),
            Outcome::Retry => (&queues.results, false),
            Outcome::Aside(_) => (&queues.aside, true),
        };
        let record = Record { job: id, run, attempt: job.attempts(), closed_before, outcome };
        if let Err(error) = to.put(record.encode()) {
            // The job stays open: nobody shall take it before the next start.
            progress.failed.store(true, Ordering::SeqCst);
            job.into_token();
            return Err(error.into());
        }
        if is_done {
            job.close()?;
            closed_before = id;
            progress.done.fetch_add(1, Ordering::Relaxed);
        } else {
            job.abort();
        }
    }
    Ok(())
}

/// Opens, hashes and counts one file.
fn attempt(settings: &Settings, job: &Item) -> Outcome {
    let path = path_of(job.data());
    match read(&settings.tree.join(path)) {
        Ok((bytes, lines, crc)) => Outcome::Indexed { bytes, lines, digest: digest(job.data(), crc) },
        Err(_) if job.attempts() < ATTEMPTS_MAX => Outcome::Retry,
        Err(error) => Outcome::Aside(format!("{}: {error}", path.display())),
    }
}

/// A file's bytes, lines and CRC-32.
fn read(path: &Path) -> io::Result<(u64, u64, u32)> {
    let mut file = File::open(path)?;
    let (mut bytes, mut lines, mut crc) = (0, 0, crc32fast::Hasher::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let part = match file.read(&mut buffer)? {
            0 => return Ok((bytes, lines, crc.finalize())),
            count => &buffer[..count],
        };
        bytes += part.len() as u64;
        lines += part.iter().filter(|byte| **byte == b'\n').count() as u64;
        crc.update(part);
    }
}

/// FNV-1a over a path and its file's checksum: summed over all files it is the same in whatever order they were indexed.
fn digest(path: &[u8], crc: u32) -> u64 {
    let bytes = path.iter().chain(&[0]).copied().chain(crc.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[derive(Default)]
struct Progress {
    /// Found by the walk, then to be done in this run.
    jobs: AtomicU64,
    /// Closed in this run.
    done: AtomicU64,
    /// A worker met an error that no other should try its luck with.
    failed: AtomicBool,
}

/// One line on the terminal, if standard error is one, until the channel closes.
fn show(progress: &Progress, over: mpsc::Receiver<()>) {
    let mut terminal = io::stderr();
    if !terminal.is_terminal() {
        return;
    }
    let start = Instant::now();
    while over.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        let done = progress.done.load(Ordering::Relaxed);
        let jobs = progress.jobs.load(Ordering::Relaxed);
        let rate = done as f64 / start.elapsed().as_secs_f64();
        let _ = write!(terminal, "\r\x1b[K{done} of {jobs} files, {rate:.0} files/s");
    }
    let _ = write!(terminal, "\r\x1b[K");
}

/// Reads all records, checks them, and prints the last line. The records stay in their queues.
fn sum_up(queues: &Queues, done: u64, elapsed: Duration) -> Result<bool, Failure> {
    let mut complaints = Vec::new();
    let (mut sums, mut by_job) = (Sums::default(), BTreeMap::<u64, Vec<Record>>::new());
    // By job: the start in which a worker saw its close return.
    let mut closed = BTreeMap::<u64, u32>::new();
    for queue in [&queues.results, &queues.aside] {
        while let Some(item) = queue.try_open()? {
            let record = Record::decode(item.data()).ok_or("a record of another format")?;
            item.into_token(); // open until the set is closed, then back in its place
            let run = closed.entry(record.closed_before).or_insert(record.run);
            *run = record.run.min(*run);
            by_job.entry(record.job).or_default().push(record);
        }
    }
    for (job, records) in &mut by_job {
        records.sort_by_key(|record| (record.run, record.attempt));
        if let Err(complaint) = sums.add(records, closed.get(job)) {
            complaints.push(format!("job {job}: {complaint}"));
        }
    }
    let jobs = match queues.plan.peek()? {
        Some(item) => Plan::decode(item.data())?.jobs,
        None => 0,
    };
    if sums.files + sums.set_aside != jobs {
        complaints.push(format!("the walk put {jobs} jobs, not as many were closed"));
    }
    // A kill interrupts at most one job of each worker.
    let mut interruptible = 0;
    for _ in 1..queues.runs.len() {
        let Some(run) = queues.runs.try_open()? else {
            break;
        };
        let workers = run.data().try_into().map_or(0, u32::from_le_bytes);
        interruptible += u64::from(workers);
        run.into_token();
    }
    if sums.redeliveries > interruptible {
        complaints.push(format!("kills interrupted at most {interruptible} jobs, not {}", sums.redeliveries));
    }
    complaints.iter().for_each(|complaint| println!("WRONG: {complaint}"));
    let Sums { files, bytes, lines, digest, retries, redeliveries, set_aside } = sums;
    println!("digest of all paths and contents: {digest:016x}");
    let rate = done as f64 / elapsed.as_secs_f64();
    println!(
        "{files} files, {bytes} bytes, {lines} lines, {retries} retries, {redeliveries} redeliveries, \
         {set_aside} set aside, {rate:.0} files/s"
    );
    Ok(complaints.is_empty())
}

#[derive(Default)]
struct Sums {
    files: u64,
    bytes: u64,
    lines: u64,
    digest: u64,
    retries: u64,
    redeliveries: u64,
    set_aside: u64,
}

impl Sums {
    /// Counts one job by its records, oldest first, or says what is wrong with them.
    ///
    /// Every delivery leaves a record, unless a kill came first; and every record ends a delivery, unless a kill came before
    /// the close. A kill ends its run. So a job may be delivered again in the same run only after a retry, each delivery
    /// without a record takes a run of its own, and nothing follows a close that returned (`closed`: in which run).
    fn add(&mut self, records: &[Record], closed: Option<&u32>) -> Result<(), String> {
        let (mut attempt, mut run) = (0, 1);
        for (n, record) in records.iter().enumerate() {
            let unrecorded = match record.attempt.checked_sub(attempt + 1) {
                Some(unrecorded) => unrecorded,
                None if record.attempt == ATTEMPTS_SATURATED => 0,
                None => return Err(format!("attempt {} came twice", record.attempt)),
            };
            if record.run < run || unrecorded > record.run - run {
                let which = record.run;
                return Err(format!("delivered again without a kill, by start {which}"));
            }
            if closed.is_some_and(|run| record.run > *run) {
                return Err(format!("delivered by start {} after its close", record.run));
            }
            attempt = record.attempt;
            run = record.run;
            self.redeliveries += u64::from(unrecorded);
            if matches!(record.outcome, Outcome::Retry) {
                self.retries += 1;
            } else if n + 1 < records.len() {
                self.redeliveries += 1;
                run += 1;
            }
        }
        match records.last().map(|record| &record.outcome) {
            Some(Outcome::Indexed { bytes, lines, digest }) => {
                self.files += 1;
                self.bytes += bytes;
                self.lines += lines;
                self.digest = self.digest.wrapping_add(*digest);
                Ok(())
            }
            Some(Outcome::Aside(why)) => {
                self.set_aside += 1;
                println!("set aside: {why}");
                Ok(())
            }
            Some(Outcome::Retry) | None => Err("given back and never done".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job's records as `run attempt outcome`, oldest first: what they add up to, or the complaint.
    fn add(records: &[(u32, u32, char)], closed: Option<u32>) -> Result<(u64, u64, u64), String> {
        let records = records.iter().map(|&(run, attempt, outcome)| Record {
            job: 7,
            run,
            attempt,
            closed_before: 0,
            outcome: match outcome {
                'R' => Outcome::Retry,
                'A' => Outcome::Aside("why".into()),
                _ => Outcome::Indexed { bytes: 1, lines: 2, digest: 3 },
            },
        });
        let records: Vec<_> = records.map(|r| Record::decode(&r.encode()).expect("as encoded")).collect();
        let mut sums = Sums::default();
        sums.add(&records, closed.as_ref())?;
        Ok((sums.files, sums.retries, sums.redeliveries))
    }

    #[test]
    fn deliveries_that_kills_explain_are_counted() {
        assert_eq!(add(&[(1, 1, 'I')], Some(1)), Ok((1, 0, 0)));
        assert_eq!(add(&[(1, 1, 'R'), (1, 2, 'I')], None), Ok((1, 1, 0)));
        assert_eq!(add(&[(1, 1, 'R'), (1, 2, 'R'), (1, 3, 'A')], None), Ok((0, 2, 0)));
        // Killed before the record, before the close, before both.
        assert_eq!(add(&[(2, 2, 'I')], Some(2)), Ok((1, 0, 1)));
        assert_eq!(add(&[(1, 1, 'I'), (2, 2, 'I')], Some(2)), Ok((1, 0, 1)));
        assert_eq!(add(&[(1, 1, 'I'), (3, 3, 'I')], None), Ok((1, 0, 2)));
        assert_eq!(add(&[(1, 1, 'R'), (3, 3, 'I')], None), Ok((1, 1, 1)));
        assert_eq!(add(&[(40, 31, 'I'), (41, 31, 'I')], None), Ok((1, 0, 31)));
    }

    #[test]
    fn deliveries_that_no_kill_explains_are_told() {
        assert!(add(&[], None).is_err());
        assert!(add(&[(1, 1, 'R')], None).is_err(), "never done");
        assert!(add(&[(1, 2, 'I')], None).is_err(), "a delivery without a record or a kill");
        assert!(add(&[(1, 1, 'I'), (1, 2, 'I')], None).is_err(), "twice in one run");
        assert!(add(&[(1, 1, 'I'), (2, 1, 'I')], None).is_err(), "a start not counted");
        assert!(add(&[(1, 1, 'I'), (2, 3, 'I')], None).is_err(), "two starts, one run");
        assert!(add(&[(1, 1, 'I'), (2, 2, 'I')], Some(1)).is_err(), "after its close");
    }
}
