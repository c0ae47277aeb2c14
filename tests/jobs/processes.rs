//! Real processes that really die: the child is this very test binary.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use kestrel_core::jobs::{Backoff, Cause, DeadReason, Fail, Filter, JobId, Jobs, Keep, Status};
use kestrel_core::{Durability, QueueOptions, QueueSet};

use crate::common::*;

const CHILD: &str = "KESTREL_JOBS_CHILD";

job!(Work(u32) = "work", |o| o.backoff(Backoff::None).keep_done(Keep::last(1000)));
job!(Endless(u32) = "endless", |o| o.backoff(Backoff::Fixed(LONG)));

fn open(dir: &Path) -> Jobs {
    let options = QueueOptions::default().durability(Durability::Os);
    Jobs::new(&QueueSet::builder().defaults(options).open(dir.join("set")).expect("opens")).expect("opens")
}

fn child(what: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "processes::child_entry", "--nocapture", "--test-threads", "1"])
        .env(CHILD, format!("{what}|{}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().expect("heard");
}

/// Waits until the child has said this.
fn hear(child: &mut Child, word: &str) {
    let out = child.stdout.as_mut().expect("piped");
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(word.as_bytes()) {
        match out.read(&mut byte) {
            Ok(1) => heard.push(byte[0]),
            _ => panic!("the child ended by itself: {}", String::from_utf8_lossy(&heard)),
        }
    }
}

#[test]
fn child_entry() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (what, dir) = task.split_once('|').expect("what and where");
    let (what, dir) = (what.to_owned(), Path::new(dir));
    let jobs = open(dir);
    match what.as_str() {
        // Numbers below 2 kill the process: the first by an abort, the second by a panic where panics abort.
        "pills" => {
            std::panic::set_hook(Box::new(|_| std::process::abort()));
            let worker = jobs
                .worker()
                .threads(8)
                .on(|_, job: Work| -> Result<(), Fail> {
                    match job.0 {
                        0 => std::process::abort(),
                        1 => panic!("under panic = abort"),
                        // Long enough to be caught beside a pill.
                        _ => std::thread::sleep(2 * MS),
                    }
                    Ok(())
                })
                .start()
                .expect("starts");
            assert!(worker.drain(LONG), "nothing is left to do");
            worker.shutdown(LONG);
            jobs.set().clone().close().expect("closes");
            std::process::exit(0);
        }
        "endless" | "quiet" | "dropped" => {
            let worker = jobs
                .worker()
                .on(|ctx, _: Endless| -> Result<(), Fail> {
                    ctx.checkpoint(b"half")?;
                    loop {
                        std::thread::park();
                    }
                })
                .start()
                .expect("starts");
            until("the checkpoint is stored", || {
                worker.busy() == 1 && jobs.set().names().iter().any(|name| name.contains("checkpoint"))
            });
            std::thread::sleep(20 * MS);
            match what.as_str() {
                "quiet" => worker.quiet(),
                "dropped" => drop(worker),
                _ => std::mem::forget(worker),
            }
            say("<at work>");
            loop {
                std::thread::park();
            }
        }
        "idle" => {
            let worker = jobs.worker().threads(4).on(ok::<Work>).start().expect("starts");
            jobs.push_with(&Work(9), &kestrel_core::jobs::Push::after(HOUR)).expect("room");
            assert!(worker.drain(LONG));
            std::thread::sleep(200 * MS);
            let before = switches();
            std::thread::sleep(2 * SEC);
            say(&format!("<switches {};", switches() - before));
            std::process::exit(0);
        }
        other => panic!("{other}"),
    }
}

/// How often threads of this process other than the calling one have gone to sleep.
fn switches() -> u64 {
    let own = std::fs::read_link("/proc/thread-self").expect("a thread");
    let own = own.file_name().expect("a number").to_owned();
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("tasks") {
        let task = task.expect("a task");
        if task.file_name() == own {
            continue;
        }
        let status = std::fs::read_to_string(task.path().join("status")).expect("a status");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).expect("counted");
        sum += line.split_whitespace().last().expect("a number").parse::<u64>().expect("a number");
    }
    sum
}

/// Starts children until one ends well; how many died.
fn until_quiet(dir: &Path) -> u32 {
    let mut deaths = 0;
    loop {
        let status: ExitStatus = child("pills", dir).wait().expect("ends");
        if status.success() {
            return deaths;
        }
        deaths += 1;
        assert!(deaths < 20, "it goes on: {status}");
    }
}

fn statuses(jobs: &Jobs, ids: &[JobId]) -> Vec<Status> {
    ids.iter().map(|id| jobs.status(*id)).collect()
}

fn pills(numbers: &[u32], normal: u32) -> (u32, Jobs, Vec<JobId>, Vec<JobId>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let (pills, others) = {
        let jobs = open(dir.path());
        let mut others = Vec::new();
        let mut pills = Vec::new();
        for n in 0..normal {
            // The pills lie among the others.
            if n == normal / 3 {
                pills = numbers.iter().map(|n| jobs.push(&Work(*n)).expect("room").id).collect();
            }
            others.push(jobs.push(&Work(100 + n)).expect("room").id);
        }
        jobs.set().clone().close().expect("closes");
        (pills, others)
    };
    let deaths = until_quiet(dir.path());
    (deaths, open(dir.path()), pills, others, dir)
}

#[test]
fn j16_a_job_that_aborts_is_dead_after_exactly_three_deaths_of_the_process() {
    let (deaths, jobs, pill, others, _dir) = pills(&[0], 20);
    assert_eq!(deaths, 3);
    assert_eq!(statuses(&jobs, &pill), [Status::Dead { reason: DeadReason::Crashes }]);
    let info = jobs.info(pill[0]).expect("kept");
    assert_eq!((info.crashes, info.attempts), (3, 3));
    assert!(info.failures.iter().all(|failure| failure.cause == Cause::Crash));
    assert_eq!(statuses(&jobs, &others), vec![Status::Done; 20]);
}

#[test]
fn j16_a_panic_under_panic_abort_is_bounded_the_same_way() {
    let (deaths, jobs, pill, others, _dir) = pills(&[1], 20);
    assert_eq!(deaths, 3);
    assert_eq!(statuses(&jobs, &pill), [Status::Dead { reason: DeadReason::Crashes }]);
    assert_eq!(statuses(&jobs, &others), vec![Status::Done; 20]);
}

#[test]
fn j17_two_pills_among_thirty_jobs_die_in_at_most_six_deaths() {
    let (deaths, jobs, pills, others, _dir) = pills(&[0, 0], 30);
    assert!((3..=6).contains(&deaths), "{deaths}");
    assert_eq!(statuses(&jobs, &pills), vec![Status::Dead { reason: DeadReason::Crashes }; 2]);
    assert_eq!(statuses(&jobs, &others), vec![Status::Done; 30]);
    assert_eq!(jobs.list(&Filter::new().state(kestrel_core::jobs::JobState::Dead)).count(), 2);
}

fn killed(what: &str) -> (Jobs, JobId, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let id = {
        let jobs = open(dir.path());
        let id = jobs.push(&Endless(1)).expect("room").id;
        jobs.set().clone().close().expect("closes");
        id
    };
    let mut child = child(what, dir.path());
    hear(&mut child, "<at work>");
    child.kill().expect("killed");
    child.wait().expect("gone");
    (open(dir.path()), id, dir)
}

#[test]
fn j18_after_a_sigkill_a_running_job_retries_with_one_attempt_and_one_crash() {
    let (jobs, id, _dir) = killed("endless");
    let status = jobs.status(id);
    assert!(matches!(status, Status::Retrying { attempt: 1, .. }), "{status:?}");
    let info = jobs.info(id).expect("live");
    assert_eq!((info.attempts, info.crashes, info.failures[0].cause), (1, 1, Cause::Crash));
    assert!(jobs.promote(id).expect("stored"));
    let log = Log::new();
    let seen = log.clone();
    let worker = jobs
        .worker()
        .on(move |ctx, _: Endless| -> Result<(), Fail> {
            seen.add((ctx.attempt(), ctx.crashes(), ctx.resume_from().map(<[u8]>::to_vec)));
            Ok(())
        })
        .start()
        .expect("starts");
    assert!(jobs.wait(id, LONG).is_some());
    assert_eq!(log.take(), [(2, 1, Some(b"half".to_vec()))]);
    drop(worker);
}

#[test]
fn j18_after_quiet_a_sigkill_counts_nothing() {
    let (jobs, id, _dir) = killed("quiet");
    assert_eq!(jobs.status(id), Status::Waiting);
    let info = jobs.info(id).expect("live");
    assert_eq!((info.attempts, info.crashes, info.failures.len()), (0, 0, 0));
    // To drop the worker says nothing of that kind.
    let (jobs, id, _dir) = killed("dropped");
    assert_eq!(jobs.info(id).expect("live").crashes, 1);
}

#[test]
#[cfg(target_os = "linux")]
fn j07_threads_that_wait_for_a_delayed_job_do_not_poll() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = child("idle", dir.path());
    hear(&mut child, "<switches ");
    let mut rest = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut rest).expect("heard");
    child.wait().expect("ends");
    let switches: u64 = rest.split(';').next().expect("a number").parse().expect("a number");
    // Two seconds; the set's own upkeep looks about once a second. Threads that polled ten times a second would be at eighty.
    assert!(switches <= 12, "{switches} wake-ups");
}
