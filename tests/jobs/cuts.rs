//! Crashes at every step of a life with jobs: what was answered holds, and of acts that are one there is all or nothing.
//!
//! `KESTREL_CUTS=1` tries every step and more fates; by default every step dies once, in one of the ways by turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use kestrel_core::jobs::{
    Backoff, Ctx, DeadReason, Done, Fail, Filter, JobError, JobId, JobState, Jobs, Keep, OnConflict, Push, Status,
    Transaction,
};
use kestrel_core::testing::{Fate, SimDisk, When};
use kestrel_core::{QueueOptions, QueueSet};

use crate::common::*;

job!(Plain(u32) = "plain", |o| o.backoff(Backoff::Fixed(SEC)).max_attempts(9));
job!(Parent(u32) = "parent", |o| o
    .backoff(Backoff::Fixed(SEC))
    .keep_done(Keep::last(100).with_output())
    .queue("parents"));
job!(Child((u32, u32)) = "child", |o| o.backoff(Backoff::Fixed(SEC)));

/// What is known of a life from its answers.
#[derive(Clone, Default)]
struct Ledger {
    /// Pushes that were answered, by the number in the job.
    pushed: BTreeMap<u32, JobId>,
    /// Numbers whose handler has returned an end, so that they may have ended.
    ending: BTreeSet<u32>,
    /// Ends that were answered.
    ended: BTreeMap<u32, Status>,
    /// Ids that were told to be cancelled, promoted, replaced: answered or not.
    steered: BTreeSet<u32>,
    starts: BTreeMap<u32, u32>,
}

type Known = Arc<Mutex<Ledger>>;

fn push(jobs: &Jobs, known: &Known, n: u32, how: &Push) -> Result<(), JobError> {
    let pushed = jobs.push_with(&Plain(n), how)?;
    known.lock().unwrap().pushed.insert(n, pushed.id);
    Ok(())
}

/// 1 fails once, 2 is rejected, 3 snoozes once, 4 is discarded; the others end well.
fn plain(known: &Known) -> impl Fn(&Ctx, Plain) -> Result<Done, Fail> + Send + Sync + 'static {
    let known = Arc::clone(known);
    move |ctx, job| {
        let mut known = known.lock().unwrap();
        *known.starts.entry(job.0).or_default() += 1;
        let answer = match (job.0, ctx.attempt()) {
            (1, 1) => Err(Fail::retry("once")),
            (2, _) => Err(Fail::reject("never")),
            (3, _) if ctx.resume_from().is_none() => {
                drop(known);
                ctx.checkpoint(b"been here")?;
                return Ok(Done::Snooze(SEC));
            }
            (4, _) => Err(Fail::discard("no more")),
            _ => Ok(Done::Complete),
        };
        if !matches!((job.0, ctx.attempt()), (1, 1)) {
            known.ending.insert(job.0);
        }
        answer
    }
}

fn parent(known: &Known) -> impl Fn(&Ctx, Parent) -> Result<Done, Fail> + Send + Sync + 'static {
    let known = Arc::clone(known);
    move |ctx, job| {
        let mut tx = Transaction::new();
        ctx.jobs().stage(&mut tx, &Child((job.0, 1)), &Push::new())?;
        ctx.jobs().stage(&mut tx, &Child((job.0, 2)), &Push::after(SEC).queue("elsewhere"))?;
        tx.set_output(job.0.to_string());
        let done = ctx.finish_with(tx)?;
        known.lock().unwrap().ending.insert(job.0);
        Ok(done)
    }
}

/// Does jobs one by one and notes the answers; some more each time.
fn work(jobs: &Jobs, known: &Known, most: usize) -> Result<usize, JobError> {
    let noted = Arc::clone(known);
    let runner = jobs
        .worker()
        .on(plain(known))
        .on(parent(known))
        .on(move |_, job: Child| -> Result<(), Fail> {
            *noted.lock().unwrap().starts.entry(1000 + job.0.0 * 10 + job.0.1).or_default() += 1;
            Ok(())
        })
        .runner()?;
    for done in 0..most {
        let Some(job) = runner.try_next()? else { return Ok(done) };
        let id = job.ctx().id();
        let status = job.run_blocking();
        let mut known = known.lock().unwrap();
        let n = known.pushed.iter().find(|(_, known)| **known == id).map(|(n, _)| *n);
        if let (Some(n), true) = (n, status.has_ended()) {
            known.ended.insert(n, status);
        }
    }
    Ok(most)
}

fn open(disk: &SimDisk) -> Result<Jobs, JobError> {
    let options = QueueOptions::default().segment_bytes(64 << 10);
    let set = QueueSet::builder().simulated(disk).defaults(options).open("/set")?;
    Jobs::new(&set)
}

/// Pushes, ends of every kind, retries, a snooze with a checkpoint, dead ones let again, steering.
fn life(disk: &SimDisk, known: &Known) -> Result<(), JobError> {
    let jobs = open(disk)?;
    for n in 0..6 {
        push(&jobs, known, n, &Push::new())?;
    }
    push(&jobs, known, 6, &Push::after(HOUR).key("six"))?;
    push(&jobs, known, 7, &Push::after(HOUR))?;
    work(&jobs, known, 4)?;
    disk.advance_ms(2_000);
    jobs.set().run_chores();
    known.lock().unwrap().steered.insert(6);
    jobs.push_with(&Plain(6), &Push::after(2 * HOUR).key("six").on_conflict(OnConflict::Replace))?;
    work(&jobs, known, 100)?;
    jobs.promote(known.lock().unwrap().pushed[&7])?;
    work(&jobs, known, 100)?;
    jobs.requeue_dead(&Filter::new().reason(DeadReason::Rejected))?;
    work(&jobs, known, 100)?;
    known.lock().unwrap().steered.insert(5);
    jobs.set().run_chores();
    jobs.push_all(&[Plain(20), Plain(21)])?;
    work(&jobs, known, 100)?;
    Ok(())
}

/// A parent that ends with two jobs that follow.
fn family(disk: &SimDisk, known: &Known) -> Result<(), JobError> {
    let jobs = open(disk)?;
    for n in [100, 101] {
        let pushed = jobs.push(&Parent(n))?;
        known.lock().unwrap().pushed.insert(n, pushed.id);
        work(&jobs, known, 1)?;
    }
    disk.advance_ms(2_000);
    work(&jobs, known, 100)?;
    Ok(())
}

/// All effects of the end of a parent, or none.
fn judge_family(jobs: &Jobs, known: &Ledger, what: &str) {
    let mut children: BTreeMap<JobId, JobState> = BTreeMap::new();
    for info in jobs.list(&Filter::new().kind("child")) {
        let info = info.expect("lists");
        children.insert(info.id, info.state);
    }
    let run = |n: u32| [1, 2].map(|child| known.starts.contains_key(&(1000 + n * 10 + child)));
    let mut expected = 0;
    for n in [100, 101] {
        let Some(id) = known.pushed.get(&n) else { continue };
        let status = jobs.status(*id);
        match status {
            Status::Done => {
                // Both are there, unless they have run.
                expected += 2;
                let output = Some(kestrel_core::jobs::Outcome::Done(n.to_string().into_bytes()));
                assert_eq!(jobs.wait(*id, MS), output, "{what}: the result of {n}");
            }
            Status::Waiting | Status::Retrying { .. } => {
                assert_eq!(run(n), [false, false], "{what}: {n} is to be run, and what follows it has run");
            }
            other => panic!("{what}: parent {n} is {other:?}"),
        }
    }
    let have_run = known.starts.keys().filter(|n| **n >= 2000).count();
    let there = children.len();
    // One that ran just now may be there or not.
    assert!(there <= expected && there + have_run >= expected, "{what}: {there} there, {have_run} run, of {expected}");
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Kill,
    Cut(Fate),
}

/// Lives a life to each of its steps and dies there; then judges.
fn everywhere(life: fn(&SimDisk, &Known) -> Result<(), JobError>, judge: fn(&Jobs, &Ledger, &str)) {
    let thorough = std::env::var_os("KESTREL_CUTS").is_some();
    let base = SimDisk::new(1);
    {
        let jobs = open(&base).expect("opens");
        jobs.set().clone().close().expect("closes");
    }
    let whole = base.kill();
    life(&whole, &Known::default()).expect("lives");
    let steps = whole.steps();
    assert!(steps > 20, "{steps}");
    let mut deaths = 0;
    for step in 0..steps {
        let whens = [When::Before, When::After, When::During];
        let turn = usize::try_from(step).unwrap();
        for when in if thorough { &whens[..] } else { &whens[turn % 3..=turn % 3] } {
            let disk = base.kill();
            disk.crash_at(step, *when);
            let known = Known::default();
            let answer = life(&disk, &known);
            assert!(disk.has_crashed() || answer.is_ok(), "an answer without a crash: {answer:?}");
            let fates = [
                Death::Kill,
                Death::Cut(Fate::None),
                Death::Cut(Fate::All),
                Death::Cut(Fate::Random(step)),
                Death::Cut(Fate::Names),
                Death::Cut(Fate::Pages),
            ];
            let kill_and_one = [0, 1 + turn % 5];
            for (n, death) in fates.into_iter().enumerate() {
                if !thorough && !kill_and_one.contains(&n) {
                    continue;
                }
                let what = format!("step {step} of {steps}, {when:?}, {death:?}");
                let ended = match death {
                    Death::Kill => disk.kill(),
                    Death::Cut(fate) => disk.power_cut(fate),
                };
                let known = known.lock().unwrap().clone();
                afterwards(&ended, known, death, judge, &what);
                deaths += 1;
            }
        }
    }
    println!("{deaths} deaths at {steps} steps");
}

fn afterwards(disk: &SimDisk, mut known: Ledger, death: Death, judge: fn(&Jobs, &Ledger, &str), what: &str) {
    let jobs = open(disk).unwrap_or_else(|error| panic!("{what}: does not open: {error:?}"));
    let before = known.clone();
    for (n, id) in &known.pushed {
        let status = jobs.status(*id);
        assert_ne!(status, Status::Unknown, "{what}: job {n} was answered and is lost");
        match known.ended.get(n) {
            _ if known.steered.contains(n) => {}
            // The death of the process alone undoes no answer.
            Some(ended) if matches!(death, Death::Kill) && *n != 2 => assert_eq!(&status, ended, "{what}: job {n}"),
            None if !known.ending.contains(n) => {
                assert!(!status.has_ended(), "{what}: job {n} was not done and is {status:?}");
            }
            _ => {}
        }
        if *n == 2 {
            // Rejected: among the live or the dead, whole.
            assert_ne!(status, Status::Finished, "{what}: the dead job is lost");
        }
    }
    judge(&jobs, &known, what);
    // A second open finds the same.
    let list = |jobs: &Jobs| -> Vec<(JobId, JobState)> {
        jobs.list(&Filter::all()).map(|info| info.map(|info| (info.id, info.state)).expect("lists")).collect()
    };
    let first = list(&jobs);
    drop(jobs);
    let disk = disk.restart();
    let jobs = open(&disk).unwrap_or_else(|error| panic!("{what}: does not open again: {error:?}"));
    assert_eq!(list(&jobs), first, "{what}: a second open finds other jobs");
    // All that is left is done, in the end.
    known.starts.clear();
    let again = Arc::new(Mutex::new(known));
    for _ in 0..12 {
        work(&jobs, &again, 1_000).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        jobs.requeue_dead(&Filter::all()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        disk.advance_ms(3_600_000);
        jobs.set().run_chores();
    }
    let again = again.lock().unwrap();
    for (n, id) in &again.pushed {
        let status = jobs.status(*id);
        assert!(status.has_ended() || *n == 2, "{what}: job {n} never ends: {status:?}");
        if before.ended.contains_key(n) && matches!(death, Death::Kill) && *n != 2 {
            assert!(!again.starts.contains_key(n), "{what}: job {n} was reported done and ran again");
        }
        if !before.ending.contains(n) && *n < 100 {
            assert!(again.starts.contains_key(n), "{what}: job {n} ended without being run");
        }
    }
    for info in jobs.list(&Filter::all()) {
        let info = info.expect("lists");
        assert!(
            matches!(info.state, JobState::Dead | JobState::Done) || info.kind == "plain",
            "{what}: {info:?} is left"
        );
    }
}

#[test]
fn j19_whatever_step_the_life_ends_at_no_answered_job_is_lost_or_done_again() {
    everywhere(life, |_, _, _| {});
}

#[test]
fn j28_whatever_step_the_life_ends_at_an_end_with_jobs_that_follow_is_whole_or_not_at_all() {
    everywhere(family, judge_family);
}

#[test]
fn j19_a_power_cut_loses_no_job_that_was_answered_as_synced() {
    let w = world();
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(w.jobs.push(&Plain(n)).unwrap().id);
        ids.push(w.jobs.push_with(&Plain(n), &Push::after(HOUR)).unwrap().id);
    }
    ids.extend(w.jobs.push_all(&(0..10).map(Plain).collect::<Vec<_>>()).unwrap().iter().map(|pushed| pushed.id));
    // Some run, some have failed, one has snoozed and one is dead.
    let runner = w
        .jobs
        .worker()
        .threads(4)
        .on(|_, job: Plain| -> Result<Done, Fail> {
            match job.0 {
                1 => Ok(Done::Snooze(SEC)),
                2 => Err(Fail::reject("no")),
                _ => Err(Fail::retry("no")),
            }
        })
        .runner()
        .unwrap();
    for _ in 0..6 {
        runner.try_next().unwrap().unwrap().run_blocking();
    }
    let held: Vec<_> = std::iter::from_fn(|| runner.try_next().unwrap()).collect();
    assert_eq!(held.len(), 4);
    let mut cuts = 0;
    for (fate, disk) in w.disk.power_cuts(6, 40, 7) {
        let after = World::on(disk);
        for id in &ids {
            let status = after.status(*id);
            assert!(
                !status.has_ended() || matches!(status, Status::Dead { reason: DeadReason::Rejected }),
                "{fate:?}: {id} is {status:?}"
            );
        }
        after.pass(2 * HOUR);
        assert!(after.run(ok::<Plain>) >= ids.len() - 1, "{fate:?}");
        cuts += 1;
    }
    assert!(cuts > 3, "{cuts}");
}
