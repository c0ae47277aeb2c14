//! Random steps against a model that fits on two pages: after each of them every job stands where the model says, the lists
//! and numbers agree, and what may run is what does.
//!
//! `KESTREL_SEED` repeats a run, `PROPTEST_CASES` asks for more of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use kestrel_core::jobs::{
    Backoff, Cancelled, Ctx, DeadReason, Done, Fail, Filter, JobId, JobState, Priority, Push, RunningJob, Status,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::common::*;

const PAUSE: Duration = Duration::from_secs(10);

job!(Any(u32) = "any", |o| o.max_attempts(3).max_crashes(2).backoff(Backoff::Fixed(PAUSE)));

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Done,
    Fail,
    Reject,
    Discard,
    Snooze(u64),
    Panic,
    HandBack,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push {
        delay_ms: Option<u64>,
        priority: Priority,
        key: Option<u8>,
    },
    Run(Verdict),
    Cancel(usize),
    Promote(usize),
    Requeue(usize),
    Purge(usize),
    Pass(u64),
    Pause,
    Resume,
    Reopen,
    /// With up to so many jobs running.
    Kill(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Done),
        4 => Just(Verdict::Fail),
        1 => Just(Verdict::Reject),
        1 => Just(Verdict::Discard),
        2 => (1u64..20_000).prop_map(Verdict::Snooze),
        1 => Just(Verdict::Panic),
        1 => Just(Verdict::HandBack),
    ];
    let priority = prop_oneof![Just(Priority::Normal), Just(Priority::High), Just(Priority::Idle)];
    let delay = prop_oneof![2 => Just(None), 1 => (1u64..30_000).prop_map(Some)];
    prop_oneof![
        8 => (delay, priority, prop::option::weighted(0.3, 0u8..3))
            .prop_map(|(delay_ms, priority, key)| Step::Push { delay_ms, priority, key }),
        12 => verdict.prop_map(Step::Run),
        2 => any::<usize>().prop_map(Step::Cancel),
        2 => any::<usize>().prop_map(Step::Promote),
        2 => any::<usize>().prop_map(Step::Requeue),
        1 => any::<usize>().prop_map(Step::Purge),
        6 => (1u64..15_000).prop_map(Step::Pass),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        2 => Just(Step::Reopen),
        2 => (0usize..4).prop_map(Step::Kill),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Live,
    Dead(DeadReason),
    Ended,
}

#[derive(Clone, Debug)]
struct Known {
    place: Place,
    due: Option<SystemTime>,
    attempts: u32,
    crashes: u32,
    snoozes: u32,
    snoozed: bool,
    key: Option<u8>,
}

struct Model {
    w: World,
    jobs: BTreeMap<JobId, Known>,
    order: Vec<JobId>,
    /// Keys of which a dead one was let again while another may have had it.
    murky: Vec<u8>,
    paused: bool,
    next: u32,
}

impl Model {
    fn id(&self, n: usize) -> Option<JobId> {
        (!self.order.is_empty()).then(|| self.order[n % self.order.len()])
    }

    fn ready(&self, known: &Known) -> bool {
        known.place == Place::Live && known.due.is_none_or(|due| due <= self.w.now())
    }

    fn runnable(&self) -> usize {
        if self.paused { 0 } else { self.jobs.values().filter(|known| self.ready(known)).count() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push { delay_ms, priority, key } => self.push(delay_ms, priority, key),
            Step::Run(verdict) => self.run(verdict),
            Step::Cancel(n) => {
                let Some(id) = self.id(n) else { return };
                let known = self.jobs.get_mut(&id).unwrap();
                let expected = if known.place == Place::Live { Cancelled::Removed } else { Cancelled::TooLate };
                assert_eq!(self.w.jobs.cancel(id).unwrap(), expected);
                if expected == Cancelled::Removed {
                    known.place = Place::Ended;
                }
            }
            Step::Promote(n) => {
                let Some(id) = self.id(n) else { return };
                let now = self.w.now();
                let known = self.jobs.get_mut(&id).unwrap();
                let pauses = known.place == Place::Live && known.due.is_some_and(|due| due > now);
                let promoted = self.w.jobs.promote(id).unwrap();
                // One that is due and was not started yet may be either.
                if known.place != Place::Live || known.due.is_none() || pauses {
                    assert_eq!(promoted, pauses);
                }
                if pauses {
                    known.due = Some(now);
                }
            }
            Step::Requeue(n) => {
                let Some(id) = self.id(n) else { return };
                let dead = matches!(self.jobs[&id].place, Place::Dead(_));
                assert_eq!(self.w.jobs.requeue_dead(&Filter::new().ids([id])).unwrap(), u64::from(dead));
                if dead {
                    let known = self.jobs.get_mut(&id).unwrap();
                    (known.place, known.due, known.attempts, known.crashes) = (Place::Live, None, 0, 0);
                    known.snoozed = false;
                    self.murky.extend(known.key);
                }
            }
            Step::Purge(n) => {
                let Some(id) = self.id(n) else { return };
                let dead = matches!(self.jobs[&id].place, Place::Dead(_));
                assert_eq!(self.w.jobs.purge_dead(&Filter::new().ids([id])).unwrap(), u64::from(dead));
                if dead {
                    self.jobs.get_mut(&id).unwrap().place = Place::Ended;
                }
            }
            Step::Pass(ms) => self.w.pass(Duration::from_millis(ms)),
            Step::Pause => {
                self.w.jobs.pause("default").unwrap();
                self.paused = true;
            }
            Step::Resume => {
                self.w.jobs.resume("default").unwrap();
                self.paused = false;
            }
            Step::Reopen => {
                let fresh = self.w.killed();
                let w = std::mem::replace(&mut self.w, fresh);
                self.w = w.reopened();
            }
            Step::Kill(held) => self.kill(held),
        }
    }

    fn push(&mut self, delay_ms: Option<u64>, priority: Priority, key: Option<u8>) {
        let mut how = Push::new().priority(priority);
        if let Some(ms) = delay_ms {
            how = Push::after(Duration::from_millis(ms)).priority(priority);
        }
        if let Some(key) = key {
            how = how.key([key]);
        }
        self.next += 1;
        let pushed = self.w.jobs.push_with(&Any(self.next), &how).unwrap();
        let holders: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, known)| known.place == Place::Live && key.is_some() && known.key == key)
            .map(|(id, _)| *id)
            .collect();
        if key.is_none_or(|key| !self.murky.contains(&key)) {
            assert_eq!(pushed.duplicate, !holders.is_empty(), "{holders:?}");
        }
        if pushed.duplicate {
            assert!(holders.contains(&pushed.id));
            return;
        }
        let due = delay_ms.map(|ms| self.w.now() + Duration::from_millis(ms));
        let known = Known { place: Place::Live, due, attempts: 0, crashes: 0, snoozes: 0, snoozed: false, key };
        assert!(self.jobs.insert(pushed.id, known).is_none(), "an id came twice");
        self.order.push(pushed.id);
    }

    /// Checks a start against the model.
    fn started(&self, job: &RunningJob) -> JobId {
        let ctx = job.ctx();
        let known = self.jobs.get(&ctx.id()).expect("one of ours");
        assert!(!self.paused && self.ready(known), "{} is not to be started: {known:?}", ctx.id());
        assert_eq!((ctx.attempt(), ctx.crashes()), (known.attempts + 1, known.crashes));
        ctx.id()
    }

    fn run(&mut self, verdict: Verdict) {
        let say = Arc::new(Mutex::new(verdict));
        let runner = self
            .w
            .jobs
            .worker()
            .on(move |_: &Ctx, _: Any| -> Result<Done, Fail> {
                let verdict = *say.lock().unwrap();
                match verdict {
                    Verdict::Done | Verdict::HandBack => Ok(Done::Complete),
                    Verdict::Fail => Err(Fail::retry("failed")),
                    Verdict::Reject => Err(Fail::reject("rejected")),
                    Verdict::Discard => Err(Fail::discard("discarded")),
                    Verdict::Snooze(ms) => Ok(Done::Snooze(Duration::from_millis(ms))),
                    // Without the hook, which would print it each time.
                    Verdict::Panic => std::panic::resume_unwind(Box::new("panicked")),
                }
            })
            .runner()
            .unwrap();
        let Some(job) = runner.try_next().unwrap() else {
            assert_eq!(self.runnable(), 0, "nothing is started");
            return;
        };
        let id = self.started(&job);
        if let Verdict::HandBack = verdict {
            drop(job);
            return;
        }
        let status = job.run_blocking();
        let now = self.w.now();
        let known = self.jobs.get_mut(&id).unwrap();
        match verdict {
            Verdict::Done | Verdict::Discard => known.place = Place::Ended,
            Verdict::Reject => {
                known.attempts += 1;
                known.place = Place::Dead(DeadReason::Rejected);
            }
            Verdict::Fail | Verdict::Panic => {
                known.attempts += 1;
                known.snoozed = false;
                known.due = Some(now + PAUSE);
                if known.attempts == 3 {
                    known.place = Place::Dead(DeadReason::Attempts);
                }
            }
            Verdict::Snooze(ms) => {
                known.snoozes += 1;
                known.snoozed = true;
                known.due = Some(now + Duration::from_millis(ms));
            }
            Verdict::HandBack => unreachable!("handed back above"),
        }
        assert_eq!(status, self.w.status(id));
    }

    fn kill(&mut self, most: usize) {
        let held: Vec<JobId>;
        let next = {
            let runner = self.w.jobs.worker().threads(most.max(1)).on(ok::<Any>).runner().unwrap();
            let running: Vec<RunningJob> = std::iter::from_fn(|| runner.try_next().unwrap()).take(most).collect();
            held = running.iter().map(|job| self.started(job)).collect();
            let suspects = held.iter().filter(|id| self.jobs[id].crashes > 0).count();
            assert!(suspects <= 1, "{suspects} suspects at once");
            self.w.killed()
        };
        self.w = next;
        let now = self.w.now();
        for id in held {
            let known = self.jobs.get_mut(&id).unwrap();
            known.attempts += 1;
            known.crashes += 1;
            known.due = Some(now + PAUSE);
            known.snoozed = false;
            if known.crashes >= 2 || known.attempts >= 3 {
                let Status::Dead { reason } = self.w.jobs.status(id) else {
                    panic!("{known:?} is {:?}", self.w.jobs.status(id))
                };
                let allowed = (known.crashes >= 2, known.attempts >= 3);
                assert!(matches!(
                    (reason, allowed),
                    (DeadReason::Crashes, (true, _)) | (DeadReason::Attempts, (_, true))
                ));
                known.place = Place::Dead(reason);
            }
        }
    }

    fn check(&self) {
        let w = &self.w;
        let now = w.now();
        let (mut waiting, mut delayed, mut dead) = (0, 0, 0);
        let mut listed: BTreeMap<JobId, JobState> = BTreeMap::new();
        for info in w.list(&Filter::all()) {
            assert!(listed.insert(info.id, info.state).is_none(), "{} is listed twice", info.id);
        }
        for (id, known) in &self.jobs {
            let status = w.status(*id);
            let says = || format!("{id} is {status:?}, and should be {known:?} at {now:?}");
            match known.place {
                Place::Ended => {
                    assert!(status == Status::Finished && w.jobs.info(*id).is_none(), "{}", says());
                    assert!(!listed.contains_key(id), "{}", says());
                    continue;
                }
                Place::Dead(reason) => {
                    dead += 1;
                    assert!(status == Status::Dead { reason }, "{}", says());
                    assert_eq!(listed.get(id), Some(&JobState::Dead), "{}", says());
                }
                Place::Live => {
                    let pauses = known.due.is_some_and(|due| due > now);
                    if pauses {
                        delayed += 1;
                    } else {
                        waiting += 1;
                    }
                    let right = match &status {
                        Status::Waiting => !pauses && (known.attempts == 0 || known.snoozed),
                        Status::Scheduled { due } => {
                            pauses && known.due == Some(*due) && (known.attempts == 0 || known.snoozed)
                        }
                        Status::Retrying { attempt, due, error } => {
                            *attempt == known.attempts
                                && known.attempts > 0
                                && !error.is_empty()
                                && (!pauses || known.due == Some(*due))
                        }
                        _ => false,
                    };
                    assert!(right, "{}", says());
                    assert!(
                        matches!(listed.get(id), Some(JobState::Waiting | JobState::Scheduled | JobState::Retrying)),
                        "{}: listed as {:?}",
                        says(),
                        listed.get(id)
                    );
                }
            }
            let info = w.info(*id);
            assert_eq!(
                (info.attempts, info.crashes, info.snoozes),
                (known.attempts, known.crashes, known.snoozes),
                "{}",
                says()
            );
            let counted = usize::try_from(known.attempts).unwrap().min(3);
            // Failures before a requeue may be remembered.
            assert!(info.failures.len() >= counted && info.failures.len() <= 3, "{}: {:?}", says(), info.failures);
        }
        assert_eq!(listed.len(), waiting + delayed + dead, "jobs are listed that were never pushed");
        let stats = w.stats("default");
        assert_eq!(
            (stats.waiting, stats.delayed, stats.running, stats.dead, stats.paused),
            (waiting as u64, delayed as u64, 0, dead as u64, self.paused)
        );
    }
}

fn run(steps: Vec<Step>) {
    let mut model =
        Model { w: world(), jobs: BTreeMap::new(), order: Vec::new(), murky: Vec::new(), paused: false, next: 0 };
    for step in steps {
        model.step(step);
        model.check();
    }
    // In the end everything is done.
    model.step(Step::Resume);
    for _ in 0..model.jobs.len() + 1 {
        model.step(Step::Pass(40_000));
        while model.runnable() > 0 {
            model.step(Step::Run(Verdict::Done));
        }
    }
    model.check();
    assert!(model.jobs.values().all(|known| known.place != Place::Live));
}

#[test]
fn jobs_do_what_the_model_does() {
    let seed = std::env::var("KESTREL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        now.as_secs() ^ u64::from(now.subsec_nanos()) << 20
    });
    println!("model: KESTREL_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut config = ProptestConfig { max_shrink_iters: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 96;
    }
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    runner
        .run(&prop::collection::vec(step(), 1..60), |steps| {
            run(steps);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("KESTREL_SEED={seed}: {error}"));
}
