//! Jobs on a disk that crashes at any step of their lives: started, retried, checkpointed, finished with others as one act, dead.
//! Nothing pushed is lost, and nothing runs again that was told to have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::everywhere::is_long;
use super::oracle::{Verdict, open};
use crate::disk::sim::{Fate, SimDisk, When};
use crate::jobs::{
    Ctx, DeadReason, Done, Fail, Filter, Job, JobId, JobOptions, Jobs, Keep, Push, Status, Transaction, Unique,
};
use crate::planted::{Bug, with};
use crate::{Codec, Durability};

/// What a job does is its number's.
struct Task(u32);

#[derive(Default)]
struct Plain;

impl Codec<Task> for Plain {
    type Error = std::array::TryFromSliceError;

    fn encode(&self, value: &Task, out: &mut Vec<u8>) -> Result<(), Self::Error> {
        out.extend_from_slice(&value.0.to_le_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Task, Self::Error> {
        Ok(Task(u32::from_le_bytes(bytes.try_into()?)))
    }
}

impl Job for Task {
    const KIND: &'static str = "task";
    type Codec = Plain;

    fn options() -> JobOptions {
        JobOptions::default().max_crashes(100).unique(Unique::UntilDone)
    }

    fn unique_key(&self) -> Option<Vec<u8>> {
        (self.0 == KEYED).then(|| b"key".to_vec())
    }
}

const FINE: u32 = 0;
const FAILS_ONCE: u32 = 1;
const REJECTED: u32 = 2;
const PARENT: u32 = 3;
const CHECKPOINTS: u32 = 4;
const DELAYED: u32 = 5;
const KEYED: u32 = 6;
const SNOOZES: u32 = 7;
const PUSHED: [u32; 8] = [FINE, FAILS_ONCE, REJECTED, PARENT, CHECKPOINTS, DELAYED, KEYED, SNOOZES];
const CHILDREN: [u32; 2] = [20, 21];
/// A parent may be started again until its end is stored.
const CHILD_QUEUES: [&str; 2] = ["default", "other"];

#[derive(Clone, Debug, Default)]
struct Ledger {
    pushed: BTreeMap<JobId, u32>,
    /// Told to have ended; `true`: and a sync was answered since.
    ended: BTreeMap<JobId, bool>,
    /// Whose handlers came to their ends, told or not.
    through: BTreeSet<JobId>,
    children: BTreeSet<(u32, JobId)>,
    wrong: Option<String>,
}

type Shared = Arc<Mutex<Ledger>>;

fn handle(ctx: &Ctx, task: &Task, ledger: &Shared) -> Result<Done, Fail> {
    {
        let mut ledger = ledger.lock();
        if ledger.ended.contains_key(&ctx.id()) {
            ledger.wrong.get_or_insert(format!("{} ({}) runs again", ctx.id(), task.0));
        }
        if CHILDREN.contains(&task.0) {
            ledger.children.insert((task.0, ctx.id()));
        }
    }
    let answer = answer(ctx, task);
    if matches!(&answer, Ok(Done::Complete | Done::With(_))) || task.0 == REJECTED {
        ledger.lock().through.insert(ctx.id());
    }
    answer
}

fn answer(ctx: &Ctx, task: &Task) -> Result<Done, Fail> {
    match task.0 {
        FAILS_ONCE if ctx.attempt() - ctx.crashes() == 1 => Err(Fail::retry("once")),
        REJECTED => Err(Fail::reject("never")),
        PARENT => {
            let mut next = Transaction::new();
            for (child, queue) in CHILDREN.into_iter().zip(CHILD_QUEUES) {
                ctx.jobs().stage(&mut next, &Task(child), &Push::new().queue(queue))?;
            }
            Ok(ctx.finish_with(next)?)
        }
        CHECKPOINTS if ctx.resume_from().is_none() => {
            ctx.checkpoint(b"half")?;
            Err(Fail::retry_in("interrupted", Duration::from_secs(1)))
        }
        SNOOZES if ctx.jobs().info(ctx.id()).is_some_and(|info| info.snoozes == 0) => {
            Ok(Done::Snooze(Duration::from_secs(2)))
        }
        _ => Ok(Done::Complete),
    }
}

/// One process: pushes, if it is the first one, and does what there is. Ends at a crash, or when nothing is left.
fn live(disk: &SimDisk, ledger: &Shared, pushes: bool) {
    let Ok(set) = open(disk, Durability::Sync) else { return };
    let Ok(jobs) = Jobs::new(&set) else { return };
    if pushes {
        for n in PUSHED {
            let how = if n == DELAYED { Push::after(Duration::from_secs(3)) } else { Push::new() };
            if let Ok(pushed) = jobs.push_with(&Task(n), &how)
                && !disk.has_crashed()
            {
                ledger.lock().pushed.insert(pushed.id, n);
            }
        }
    }
    let own = Arc::clone(ledger);
    let worker = jobs.worker().on(move |ctx, task: Task| handle(ctx, &task, &own));
    let Ok(runner) = worker.runner() else { return };
    for round in 0..400 {
        while let Ok(Some(job)) = runner.try_next() {
            let id = job.ctx().id();
            let status = job.run_blocking();
            if disk.has_crashed() {
                return;
            }
            let told = jobs.status(id);
            if status.has_ended() && told != status {
                let both = format!("{id} is told to be {status:?}, and then {told:?}");
                ledger.lock().wrong.get_or_insert(both);
            }
            if status.has_ended() {
                ledger.lock().ended.insert(id, false);
            }
            if round % 2 == 0 && set.sync().is_ok() && !disk.has_crashed() {
                ledger.lock().ended.values_mut().for_each(|synced| *synced = true);
            }
        }
        if disk.has_crashed() || runner.next_due().is_none() {
            return;
        }
        disk.advance_ms(1_000);
        set.run_upkeep();
    }
    ledger.lock().wrong.get_or_insert("it never ends".to_owned());
}

/// What must hold once a process has done all there was.
fn judge(disk: &SimDisk, ledger: &Ledger) -> Verdict {
    if let Some(wrong) = &ledger.wrong {
        return Err(wrong.clone());
    }
    let set = open(disk, Durability::Sync).map_err(|error| error.to_string())?;
    let jobs = Jobs::new(&set).map_err(|error| error.to_string())?;
    for (id, n) in &ledger.pushed {
        let status = jobs.status(*id);
        let expected = match *n {
            REJECTED => Status::Dead { reason: DeadReason::Rejected },
            _ => Status::Finished,
        };
        if status != expected {
            return Err(format!("{id} ({n}) is {status:?}, not {expected:?}"));
        }
        if !ledger.through.contains(id) {
            return Err(format!("{id} ({n}) is {status:?}, and was never done"));
        }
    }
    let has_parent = ledger.pushed.values().any(|n| *n == PARENT);
    if has_parent && ledger.children.len() != CHILDREN.len() {
        return Err(format!("the children are {:?}", ledger.children));
    }
    let left: Vec<_> = jobs.list(&Filter::all()).map(|info| info.map(|info| (info.id, info.state))).collect();
    if left.iter().any(|info| !matches!(info, Ok((_, crate::jobs::JobState::Dead)))) {
        return Err(format!("there is left {left:?}"));
    }
    match jobs.push(&Task(KEYED)) {
        Ok(pushed) if !pushed.duplicate => Ok(()),
        other => Err(format!("the key is taken: {other:?}")),
    }
}

/// Crashes at every `stride`-th step, from `first` on; the number of states judged.
fn explore(first: u64, stride: u64) -> Result<u64, String> {
    let mut states = 0;
    let mut step = first;
    loop {
        let disk = SimDisk::new(7);
        let ledger = Shared::default();
        disk.crash_at(step, if step.is_multiple_of(2) { When::Before } else { When::During });
        live(&disk, &ledger, true);
        let is_through = !disk.has_crashed();
        let mut after = vec![("kill", disk.kill())];
        for (name, fate) in [("none", Fate::None), ("all", Fate::All), ("some", Fate::Random(step))] {
            after.push((name, disk.power_cut(fate)));
        }
        for (name, disk) in after {
            let mut known = ledger.lock().clone();
            if name != "kill" {
                // What no sync has covered may be undone by the power cut.
                known.ended.retain(|_, synced| *synced);
            }
            let known = Arc::new(Mutex::new(known));
            live(&disk, &known, false);
            states += 1;
            let all = known.lock().clone();
            judge(&disk.restart(), &all).map_err(|wrong| format!("step {step}, {name}: {wrong}"))?;
        }
        if is_through {
            return Ok(states);
        }
        step += stride;
    }
}

#[test]
fn j28_jobs_survive_a_crash_at_any_step() {
    let states = explore(0, if is_long() { 1 } else { 7 }).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("crash: {states} states, of jobs, 0 lost, 0 run again once they were done");
    assert!(states > 100, "{states}");
}

fn is_caught(bug: Bug) {
    let caught = with(bug, || explore(0, 1));
    println!("planted: {bug:?}: {caught:?}");
    assert!(caught.is_err(), "{bug:?} was not caught");
}

#[test]
fn planted_staged_before_the_end_is_caught() {
    is_caught(Bug::StagedBeforeEnd);
}

#[test]
fn planted_retry_after_close_is_caught() {
    is_caught(Bug::RetryAfterClose);
}

#[test]
fn planted_start_not_told_as_crash_is_caught() {
    // A pill that is refunded each time never dies: seen by its crashes, not by the disk.
    let crashes_of = || {
        let mut disk = SimDisk::new(3);
        let mut id = None;
        for _ in 0..2 {
            let set = open(&disk, Durability::Sync).expect("opens");
            let jobs = Jobs::new(&set).expect("opens");
            let id = *id.get_or_insert_with(|| jobs.push(&Task(FINE)).expect("room").id);
            disk.advance_ms(60_000);
            let runner = jobs.worker().on(|_, _: Task| Ok::<_, Fail>(())).runner().expect("a runner");
            let running = runner.try_next().expect("reads").expect("there");
            assert_eq!(running.ctx().id(), id);
            disk = disk.kill();
        }
        let set = open(&disk, Durability::Sync).expect("opens");
        let jobs = Jobs::new(&set).expect("opens");
        jobs.info(id.expect("pushed")).expect("there").crashes
    };
    assert_eq!(crashes_of(), 2);
    assert_eq!(with(Bug::StartNotMarked, crashes_of), 0);
}

/// What a process took that had pushed nothing itself.
#[test]
fn j18_a_start_of_a_queue_that_was_closed_in_order_is_a_crash_too() {
    for durability in [Durability::Os, Durability::Sync] {
        let disk = SimDisk::new(3);
        let id = {
            let set = open(&disk, durability).expect("opens");
            let jobs = Jobs::new(&set).expect("opens");
            let id = jobs.push(&Task(FINE)).expect("room").id;
            set.close().expect("closes");
            id
        };
        let disk = disk.restart();
        let set = open(&disk, durability).expect("opens");
        let jobs = Jobs::new(&set).expect("opens");
        let runner = jobs.worker().on(|_, _: Task| Ok::<_, Fail>(())).runner().expect("a runner");
        let running = runner.try_next().expect("reads").expect("there");
        running.ctx().checkpoint(b"half").expect("stored");
        let disk = disk.kill();
        let set = open(&disk, durability).expect("opens");
        let jobs = Jobs::new(&set).expect("opens");
        assert!(
            matches!(jobs.status(id), Status::Retrying { attempt: 1, .. }),
            "{durability:?}: {:?}",
            jobs.status(id)
        );
    }
}

/// A record of the end, the output and the key of a window are there or not together with it.
#[test]
fn a_kept_record_is_there_once_the_end_was_told() {
    struct Kept;
    #[derive(Default)]
    struct Nothing;
    impl Codec<Kept> for Nothing {
        type Error = std::fmt::Error;
        fn encode(&self, _: &Kept, _: &mut Vec<u8>) -> Result<(), Self::Error> {
            Ok(())
        }
        fn decode(&self, _: &[u8]) -> Result<Kept, Self::Error> {
            Ok(Kept)
        }
    }
    impl Job for Kept {
        const KIND: &'static str = "kept";
        type Codec = Nothing;
        fn options() -> JobOptions {
            JobOptions::default()
                .keep_done(Keep::last(10).with_output())
                .unique(Unique::Window(Duration::from_secs(3600)))
        }
        fn unique_key(&self) -> Option<Vec<u8>> {
            Some(Vec::new())
        }
    }
    for step in 0.. {
        let disk = SimDisk::new(9);
        let (id, told) = {
            let set = open(&disk, Durability::Sync).expect("opens");
            let jobs = Jobs::new(&set).expect("opens");
            let id = jobs.push(&Kept).expect("room").id;
            let runner =
                jobs.worker().on(|_, _: Kept| Ok::<_, Fail>(Done::Output(vec![7; 100]))).runner().expect("one");
            let job = runner.try_next().expect("reads").expect("there");
            disk.crash_at(disk.steps() + step, When::Before);
            let status = job.run_blocking();
            (id, status == Status::Done && !disk.has_crashed())
        };
        let is_through = !disk.has_crashed();
        for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
            let set = open(&after, Durability::Sync).expect("opens");
            let jobs = Jobs::new(&set).expect("opens");
            match jobs.status(id) {
                Status::Done => {
                    let output = jobs.wait(id, Duration::ZERO);
                    assert_eq!(output, Some(crate::jobs::Outcome::Done(vec![7; 100])), "step {step}");
                    let again = jobs.push(&Kept).expect("room");
                    assert!(again.duplicate && again.id == id, "step {step}");
                }
                // The start itself may be undone by a power cut.
                Status::Retrying { .. } | Status::Waiting => assert!(!told, "step {step}"),
                other => panic!("step {step}: {other:?}"),
            }
        }
        if is_through {
            assert!(told && step > 5);
            break;
        }
    }
}
