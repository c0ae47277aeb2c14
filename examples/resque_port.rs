//! php-resque's demonstration, step by step: what one writes there, what one writes here, and the status that both tell.
//!
//! | there | here |
//! |---|---|
//! | `Resque::setBackend('localhost:6379')`, a server | `QueueSet::open(dir)`, a directory |
//! | `Resque::enqueue('default', 'PHP_Job', $args, true)` answers a token | [`Jobs::push`] answers a `JobId` |
//! | `QUEUE=* php resque.php`, a process | `jobs.worker().on(…).start()`, threads of this process |
//! | `new Resque_Job_Status($token)`, `->get()` | [`Jobs::status`], [`Status::code`] |
//! | 1 waiting, 2 running, 3 failed, 4 complete, `false` unknown | the same numbers, `None` |
//! | a child that ends with another exit code than 0 has failed | a job whose process died has failed, found at the next open |
//! | kept for a day if asked for at the push | `keep_done`, `keep_dead` of the kind |
//! | `Resque_Job_DontPerform` | [`Fail::discard`] |
//!
//! There a failed job is not tried again and one that killed its worker is failed at once; so the kinds here say one attempt
//! and one crash. Without these two lines they would be tried 20 times, and be dead after three deaths of the process.
//!
//! `cargo run --example resque_port --features jobs,postcard`. Exit code 1: a status was not what it says there.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;

use kestrel_core::jobs::{Fail, Filter, Job, JobId, JobOptions, Jobs, Keep, Status};
use kestrel_core::{Postcard, QueueSet};
use serde::{Deserialize, Serialize};

type Any<T> = Result<T, Box<dyn std::error::Error>>;

const WAITING: Option<u8> = Some(1);
const RUNNING: Option<u8> = Some(2);
const FAILED: Option<u8> = Some(3);
const COMPLETE: Option<u8> = Some(4);

/// As php-resque treats a job whose status is tracked.
fn resque_options() -> JobOptions {
    JobOptions::default()
        .max_attempts(1)
        .max_crashes(1)
        .keep_done(Keep::last(10_000).for_at_most(Duration::from_secs(86_400)))
        .keep_dead(Keep::last(10_000).for_at_most(Duration::from_secs(86_400)))
}

macro_rules! job {
    ($name:ident, $kind:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name {
            test: String,
        }

        impl Job for $name {
            const KIND: &'static str = $kind;
            type Codec = Postcard;
            fn options() -> JobOptions {
                resque_options()
            }
        }
    };
}

job!(Good, "PHP_Job");
job!(Bad, "Bad_PHP_Job");
job!(Deadly, "PHP_Error_Job");
job!(Needless, "Needless_PHP_Job");

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [child, dir] if child == "--work" => work(Path::new(dir)).map(|()| true),
        _ => demonstrate(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("resque_port: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a step and tells whether the status is the one that php-resque tells.
fn step(jobs: &Jobs, what: &str, id: JobId, wanted: Option<u8>) -> bool {
    let status = jobs.status(id);
    let code = status.code();
    let shown = code.map_or("false".to_owned(), |code| code.to_string());
    println!("{what:<44} {shown}  {status:?}");
    if code != wanted {
        println!("WRONG: php-resque says {wanted:?}");
    }
    code == wanted
}

fn demonstrate() -> Any<bool> {
    let dir = tempfile::tempdir()?;
    let set = QueueSet::open(dir.path())?;
    let jobs = Jobs::new(&set)?;
    let mut good = true;

    // queue.php, check_status.php
    let id = jobs.push(&Good { test: "test".into() })?.id;
    println!("pushed, its token is {id}");
    good &= step(&jobs, "pushed", id, WAITING);

    // resque.php
    let (started, is_running) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    let worker = jobs
        .worker()
        .on(move |ctx, job: Good| -> Result<(), Fail> {
            ctx.note(&format!("Hello, {}!", job.test));
            started.send(ctx.id())?;
            may_go_on.lock().map_err(|_| Fail::reject("poisoned"))?.recv()?;
            Ok(())
        })
        .on(|_, job: Bad| -> Result<(), Fail> { Err(Fail::retry(format!("no {} today", job.test))) })
        .on(|_, job: Needless| -> Result<(), Fail> { Err(Fail::discard(format!("{} was done already", job.test))) })
        .start()?;
    good &= is_running.recv_timeout(Duration::from_secs(10))? == id;
    good &= step(&jobs, "a worker has it", id, RUNNING);
    go_on.send(())?;
    jobs.wait(id, Duration::from_secs(10)).ok_or("not done after ten seconds")?;
    good &= step(&jobs, "the worker is done with it", id, COMPLETE);

    // bad_job.php
    let id = jobs.push(&Bad { test: "test".into() })?.id;
    let outcome = jobs.wait(id, Duration::from_secs(10)).ok_or("not done after ten seconds")?;
    good &= step(&jobs, "one that fails", id, FAILED);
    println!("  {outcome:?}");

    // A beforePerform that says: rather not. There it is neither failed nor listed, and so here.
    let id = jobs.push(&Needless { test: "test".into() })?.id;
    jobs.wait(id, Duration::from_secs(10)).ok_or("not done after ten seconds")?;
    let discarded: u64 = jobs.stats().queues.values().map(|queue| queue.discarded).sum();
    println!("{:<44}    {:?}, discarded: {discarded}", "one that is not worth doing", jobs.status(id));
    good &= discarded == 1 && jobs.info(id).is_none();

    good &= step(&jobs, "a token that was never given out", "00000000-77".parse()?, None);

    // php_error_job.php: it takes its process with it. Another process does it, as this one has more to tell. This worker ends first:
    // what it cannot do it would put by for a while.
    worker.shutdown(Duration::from_secs(10));
    let id = jobs.push(&Deadly { test: "test".into() })?.id;
    let other = jobs.push(&Good { test: "its neighbour".into() })?.id;
    drop(jobs);
    set.close()?;
    let status = Command::new(std::env::current_exe()?).arg("--work").arg(dir.path()).status()?;
    println!("the worker's process: {status}");
    good &= !status.success();

    let set = QueueSet::open(dir.path())?;
    let jobs = Jobs::new(&set)?;
    good &= step(&jobs, "one that killed its worker", id, FAILED);
    good &= step(&jobs, "the one behind it", other, WAITING);
    let worker = jobs.worker().on(|_, _: Good| Ok::<_, Fail>(())).start()?;
    jobs.wait(other, Duration::from_secs(10)).ok_or("not done after ten seconds")?;
    good &= step(&jobs, "and when there is a worker again", other, COMPLETE);
    good &= matches!(jobs.status(other), Status::Done);

    // resque-web's page of failures, and its button that requeues them.
    for job in jobs.list(&Filter::new().state(kestrel_core::jobs::JobState::Dead)) {
        let job = job?;
        let error = job.failures.last().map_or("", |failure| &failure.error);
        println!("  failed: {} {} {:?} {error}", job.id, job.kind, job.dead);
    }
    let again = jobs.requeue_dead(&Filter::new().kind(Bad::KIND))?;
    println!("requeued: {again}");
    good &= again == 1;
    worker.shutdown(Duration::from_secs(10));
    set.close()?;
    Ok(good)
}

/// The other process: a worker that meets [`Deadly`] and does not survive it.
fn work(dir: &Path) -> Any<()> {
    let set = QueueSet::open(dir)?;
    let jobs = Jobs::new(&set)?;
    let worker = jobs.worker().on(|_, _: Deadly| -> Result<(), Fail> { std::process::abort() }).start()?;
    worker.drain(Duration::from_secs(10));
    Ok(())
}
