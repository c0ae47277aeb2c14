//! Those who do the jobs of one worker: what they take, in which order, and how many at once.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event as Bell;
use parking_lot::Mutex;

use crate::jobs::Jobs;
use crate::jobs::dying;
use crate::jobs::ending;
use crate::jobs::envelope::{Envelope, time_ms};
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::handler::{Ctx, Done, Fail, Next, checkpoint_key};
use crate::jobs::hub::{Hub, job_at};
use crate::jobs::job::{Backoff, Priority};
use crate::jobs::names::Patterns;
use crate::jobs::opening;
use crate::jobs::picks::{Bucket, Pick, Picks, STRIDE};
use crate::jobs::room::{Part, Room, count};
use crate::jobs::run::Run;
use crate::jobs::status::{Cause, DeadReason};
use crate::queue::open_item::OpenItem;

/// How long a job of a kind that nobody knows is put back, and after how long it is dead.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(30);
const UNKNOWN_MS: u64 = 24 * 3_600_000;
/// A clock that is set is noticed after this long.
const CLOCK_MS: u64 = 60_000;

pub(crate) type Answer = Result<Done, Fail>;
pub(crate) type BoxedFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;
pub(crate) type Around = Box<dyn Fn(&Ctx, Next<'_>) -> Answer + Send + Sync>;
/// The values of a batch, each of the handler's own type.
pub(crate) type Values = Vec<Box<dyn Any + Send>>;
pub(crate) type PrepareFn = Box<dyn Fn(&[u8]) -> Result<Work, Fail> + Send + Sync>;
pub(crate) type BatchFn = Box<dyn Fn(&[Ctx], Values) -> Vec<Answer> + Send + Sync>;

/// What a kind's jobs are done with.
pub(crate) struct Handler {
    pub(crate) codec: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) backoff: Backoff,
    pub(crate) prepare: PrepareFn,
    pub(crate) batch: Option<Batch>,
}

pub(crate) struct Batch {
    pub(crate) max: usize,
    pub(crate) linger: Duration,
    pub(crate) run: BatchFn,
}

/// A decoded value, with what is to be done with it.
pub(crate) enum Work {
    Sync(Box<dyn FnOnce(&Ctx) -> Answer + Send>),
    Async(Box<dyn FnOnce(Ctx) -> BoxedFuture + Send>),
    /// For a batch.
    Value(Box<dyn Any + Send>),
}

/// A job that was taken, ready to be run.
pub(crate) struct Claimed {
    pub(crate) run: Arc<Run>,
    pub(crate) work: Work,
    pub(crate) handler: Arc<Handler>,
}

/// From where jobs are taken; names are known and right.
pub(crate) enum Order {
    Strict(Vec<String>),
    Weighted(Vec<(String, u32)>),
    Matching(Patterns),
}

pub(crate) struct Team {
    pub(crate) number: u64,
    pub(crate) order: Order,
    pub(crate) threads: usize,
    pub(crate) aging_ms: u64,
    pub(crate) limits: HashMap<String, usize>,
    pub(crate) rates: HashMap<String, (Duration, u32)>,
    pub(crate) handlers: HashMap<String, Arc<Handler>>,
    pub(crate) around: Vec<Around>,
    /// Rings when there may be something to do.
    pub(crate) bell: Bell,
    pub(crate) is_quiet: AtomicBool,
    pub(crate) busy: AtomicUsize,
    pub(crate) running: Mutex<HashMap<u64, Arc<Run>>>,
    /// Starts that are through, and those of them that were handed back.
    pub(crate) ended: AtomicUsize,
    pub(crate) returned: AtomicUsize,
    picks: Mutex<Picks>,
    /// One of its places in a line was called.
    pub(crate) was_called: AtomicBool,
    me: Weak<Team>,
}

impl Team {
    #[expect(clippy::too_many_arguments, reason = "called once, by the builder")]
    pub(crate) fn new(
        number: u64,
        order: Order,
        threads: usize,
        aging_ms: u64,
        limits: HashMap<String, usize>,
        rates: HashMap<String, (Duration, u32)>,
        handlers: HashMap<String, Arc<Handler>>,
        around: Vec<Around>,
    ) -> Arc<Team> {
        Arc::new_cyclic(|me| Team {
            number,
            order,
            threads,
            aging_ms,
            limits,
            rates,
            handlers,
            around,
            bell: Bell::new(),
            is_quiet: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            running: Mutex::default(),
            ended: AtomicUsize::new(0),
            returned: AtomicUsize::new(0),
            picks: Mutex::new(Picks { seen: u64::MAX, ..Picks::default() }),
            was_called: AtomicBool::new(false),
            me: Weak::clone(me),
        })
    }

    /// Whether jobs of this room are its business.
    pub(crate) fn takes_from(&self, _hub: &Hub, room: &Room) -> bool {
        match &self.order {
            Order::Strict(names) => names.iter().any(|name| **name == *room.name),
            Order::Weighted(names) => names.iter().any(|(name, _)| **name == *room.name),
            Order::Matching(patterns) => patterns.matches(&room.name),
        }
    }

    /// Looks for rooms that were made since the last time.
    fn refresh(&self, hub: &Hub, picks: &mut Picks) {
        let made = hub.rooms_made.load(Ordering::Acquire);
        if picks.seen == made {
            return;
        }
        picks.seen = made;
        let now_ms = hub.now_ms();
        let named: Vec<(Arc<Room>, u32)> = match &self.order {
            Order::Strict(names) => names.iter().filter_map(|name| Some((hub.room(name)?, 1))).collect(),
            Order::Weighted(names) => {
                names.iter().filter_map(|(name, weight)| Some((hub.room(name)?, *weight))).collect()
            }
            // In the order of their names.
            Order::Matching(patterns) => {
                hub.rooms().into_iter().filter(|room| patterns.matches(&room.name)).map(|room| (room, 1)).collect()
            }
        };
        let mut before: HashMap<Arc<str>, Pick> =
            picks.rooms.drain(..).map(|pick| (Arc::clone(&pick.room.name), pick)).collect();
        for (room, weight) in named {
            let pick = before.remove(&room.name).unwrap_or_else(|| Pick {
                limit: self.limits.get(&*room.name).copied().unwrap_or(usize::MAX),
                running: 0,
                bucket: self.rates.get(&*room.name).map(|(per, n)| Bucket::new(*per, *n, now_ms)),
                stride: STRIDE / u64::from(weight.max(1)),
                share: picks.share,
                room,
            });
            picks.rooms.push(pick);
        }
    }

    /// Takes the next job, if one may be started now. The caller has a thread or permit free for it.
    pub(crate) fn claim(&self, jobs: &Jobs) -> Result<Option<Claimed>, JobError> {
        let hub = &jobs.hub;
        let mut picks = self.picks.lock();
        if self.is_quiet.load(Ordering::Acquire) || self.busy.load(Ordering::Acquire) >= self.threads {
            return Ok(None);
        }
        if self.was_called.swap(false, Ordering::AcqRel) {
            picks.watches.leave_called();
        }
        self.refresh(hub, &mut picks);
        let count = picks.rooms.len();
        let mut tried = HashSet::new();
        for turn in 0..count {
            let index = match self.order {
                Order::Weighted(_) => {
                    let rest = (0..count).filter(|index| !tried.contains(index));
                    let next = rest.min_by_key(|index| picks.rooms[*index].share);
                    let Some(next) = next else { break };
                    tried.insert(next);
                    next
                }
                _ => turn,
            };
            let pick = &mut picks.rooms[index];
            if pick.room.paused.load(Ordering::Acquire) || pick.running >= pick.limit {
                continue;
            }
            if let Some(bucket) = &mut pick.bucket
                && bucket.wait_ms(hub.now_ms()) > 0
            {
                continue;
            }
            let room = Arc::clone(&pick.room);
            while let Some((part, item)) = self.take_from(hub, &room)? {
                let Some(claimed) = self.accept(jobs, &room, part, item)? else {
                    continue;
                };
                let shared = picks.share;
                let pick = &mut picks.rooms[index];
                pick.running += 1;
                if let Some(bucket) = &mut pick.bucket {
                    bucket.take();
                }
                // Who has had nothing for a while does not get all of that now.
                let share = pick.share.max(shared);
                pick.share = share.saturating_add(pick.stride);
                picks.share = share;
                self.note(&claimed.run);
                return Ok(Some(claimed));
            }
        }
        Ok(None)
    }

    /// More jobs for a batch, from where the first one came.
    pub(crate) fn claim_more(&self, jobs: &Jobs, first: &Run, max: usize) -> Vec<Claimed> {
        let mut more = Vec::new();
        let mut picks = self.picks.lock();
        let Some(pick) = picks.rooms.iter_mut().find(|pick| pick.room.name == first.room.name) else {
            return more;
        };
        while more.len() < max && pick.running < pick.limit && !self.is_quiet.load(Ordering::Acquire) {
            let Some(Ok(Some(item))) = first.room.part(first.part).map(crate::queue::Queue::try_open) else {
                break;
            };
            let is_same =
                Envelope::decode(item.data()).is_some_and(|(envelope, _)| envelope.kind == first.envelope.kind);
            if !is_same {
                item.give_back(Duration::ZERO);
                break;
            }
            let Ok(Some(claimed)) = self.accept(jobs, &first.room, first.part, item) else {
                continue;
            };
            pick.running += 1;
            self.note(&claimed.run);
            more.push(claimed);
        }
        more
    }

    fn note(&self, run: &Arc<Run>) {
        self.busy.fetch_add(1, Ordering::AcqRel);
        // The address tells runs apart.
        self.running.lock().insert(Arc::as_ptr(run) as u64, Arc::clone(run));
    }

    /// A job that was claimed is through.
    pub(crate) fn leave(&self, run: &Arc<Run>) {
        if self.running.lock().remove(&(Arc::as_ptr(run) as u64)).is_none() {
            return;
        }
        {
            let mut picks = self.picks.lock();
            if let Some(pick) = picks.rooms.iter_mut().find(|pick| pick.room.name == run.room.name) {
                pick.running = pick.running.saturating_sub(1);
            }
            self.busy.fetch_sub(1, Ordering::AcqRel);
        }
        if run.was_returned.load(Ordering::Acquire) {
            self.returned.fetch_add(1, Ordering::AcqRel);
        }
        self.ended.fetch_add(1, Ordering::AcqRel);
        self.bell.notify_additional(1);
        run.jobs.hub.ended.notify(usize::MAX);
    }

    /// The next item of a room whose turn it is.
    fn take_from(&self, hub: &Hub, room: &Room) -> Result<Option<(Part, OpenItem)>, JobError> {
        if let Some(suspects) = room.part(Part::Suspects)
            && hub.begin_suspect()
        {
            match suspects.try_open() {
                Ok(Some(item)) => return Ok(Some((Part::Suspects, item))),
                Ok(None) => hub.end_suspect(),
                Err(error) => {
                    hub.end_suspect();
                    return Err(error.into());
                }
            }
        }
        let overtaker = if self.aging_ms > 0 { self.overtaker(hub, room)? } else { None };
        for priority in overtaker.into_iter().chain(Priority::ALL) {
            for part in [Part::Later(priority), Part::Fresh(priority)] {
                if let Some(queue) = room.part(part)
                    && let Some(item) = queue.try_open()?
                {
                    return Ok(Some((part, item)));
                }
            }
        }
        Ok(None)
    }

    /// The priority whose first job has waited so long that it is started before those of higher ones.
    fn overtaker(&self, hub: &Hub, room: &Room) -> Result<Option<Priority>, JobError> {
        let is_used = |priority: &Priority| {
            [Part::Fresh(*priority), Part::Later(*priority)].iter().any(|part| room.part(*part).is_some())
        };
        if Priority::ALL.iter().filter(|priority| is_used(priority)).count() < 2 {
            return Ok(None);
        }
        let mut highest = None;
        let mut found: Option<(u64, Priority)> = None;
        for (level, priority) in (0u64..).zip(Priority::ALL) {
            let mut waits_since = None;
            for part in [Part::Later(priority), Part::Fresh(priority)] {
                let Some(item) = room.part(part).filter(|queue| !queue.is_empty()).map(crate::queue::Queue::peek)
                else {
                    continue;
                };
                let Some(item) = item? else { continue };
                let since = time_ms(item.put_time());
                let due = match part {
                    Part::Later(_) => Envelope::decode(item.data()).and_then(|(envelope, _)| envelope.due_ms),
                    _ => None,
                };
                let since = since.max(due.unwrap_or(0));
                waits_since = Some(waits_since.map_or(since, |other: u64| other.min(since)));
            }
            let Some(since) = waits_since else { continue };
            let Some(highest) = highest else {
                highest = Some(level);
                continue;
            };
            let waited = hub.now_ms().saturating_sub(since);
            let over = waited.checked_sub(self.aging_ms.saturating_mul(level - highest));
            if let Some(over) = over
                && found.is_none_or(|(most, _)| over > most)
            {
                found = Some((over, priority));
            }
        }
        Ok(found.map(|(_, priority)| priority))
    }

    /// An item that was taken: a job to be run, unless it ends here.
    fn accept(&self, jobs: &Jobs, room: &Arc<Room>, part: Part, item: OpenItem) -> Result<Option<Claimed>, JobError> {
        let hub = &jobs.hub;
        let is_suspect = part == Part::Suspects;
        let claimed = self.accept_item(jobs, room, part, item);
        if is_suspect && !matches!(claimed, Ok(Some(_))) {
            hub.end_suspect();
        }
        claimed
    }

    fn accept_item(
        &self,
        jobs: &Jobs,
        room: &Arc<Room>,
        part: Part,
        item: OpenItem,
    ) -> Result<Option<Claimed>, JobError> {
        let hub = &jobs.hub;
        let now_ms = hub.now_ms();
        let Some((envelope, value_at)) = Envelope::decode(item.data()).filter(|(envelope, _)| !envelope.raw) else {
            dying::bury_raw(hub, room, part, item, now_ms)?;
            return Ok(None);
        };
        if item.attempts() > 1 {
            // A start of an earlier process that did not end, and that nobody has told of.
            let starts = item.attempts() - 1;
            opening::recover_job(hub, room, part, item, starts, false)?;
            return Ok(None);
        }
        let id = job_at(room.number(part), item.id(), &envelope);
        let bury = |item: OpenItem, reason, error: &str| {
            dying::bury_unstarted(hub, room, id, item, &envelope, value_at, reason, error, now_ms).map(|()| None)
        };
        if envelope.expires_ms.is_some_and(|end| end < now_ms) && envelope.attempts == 0 {
            return bury(item, DeadReason::Expired, "it was not started in time");
        }
        if envelope.by_wall
            && let Some(early_ms) = envelope.due_ms.unwrap_or(0).checked_sub(hub.wall_ms()).filter(|early| *early > 0)
        {
            item.give_back(Duration::from_millis(early_ms.min(CLOCK_MS)));
            return Ok(None);
        }
        let Some(handler) = self.handlers.get(&envelope.kind) else {
            match envelope.unknown_ms {
                Some(since_ms) if now_ms.saturating_sub(since_ms) >= UNKNOWN_MS => {
                    return bury(item, DeadReason::UnknownKind, "no worker knows its kind");
                }
                Some(_) => item.give_back(UNKNOWN_PAUSE),
                None => ending::put_by(hub, room, id, item, &envelope, value_at, now_ms, UNKNOWN_PAUSE)?,
            }
            count(&room.counters.returned);
            hub.emit(|| Event::Returned { id, queue: room.name.to_string() });
            return Ok(None);
        };
        if handler.codec != envelope.codec {
            let error = format!("stored with codec {}, this handler's is {}", envelope.codec, handler.codec);
            return bury(item, DeadReason::Undecodable, &error);
        }
        let value = item.data().get(value_at..).unwrap_or_default();
        let prepared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (handler.prepare)(value)));
        let work = match prepared {
            Ok(Ok(work)) => work,
            Ok(Err(fail)) => return bury(item, DeadReason::Undecodable, fail.error()),
            Err(panic) => return bury(item, DeadReason::Undecodable, &ending::panic_text(&*panic)),
        };
        if envelope.key.is_some() {
            hub.keys.started(&room.name, &envelope, id);
        }
        let key = checkpoint_key(id);
        let resume = if hub.checkpoints.contains(&key) { hub.checkpoints.get(&key)? } else { None };
        let is_suspect = part == Part::Suspects;
        let run = Run::new(
            jobs.clone(),
            Arc::clone(room),
            part,
            id,
            envelope,
            item,
            value_at,
            resume,
            now_ms,
            is_suspect,
            matches!(work, Work::Async(_)),
        );
        let run = Arc::new(run);
        hub.running.lock().insert(id, Arc::clone(&run));
        count(&room.counters.started);
        room.counters.running.fetch_add(1, Ordering::Relaxed);
        hub.emit(|| Event::Started { id, queue: room.name.to_string(), attempt: run.attempt });
        if let Some(timeout) = handler.timeout {
            let end_ms = now_ms.saturating_add(crate::jobs::envelope::ms(timeout));
            hub.timer.end_at(hub, end_ms, &run);
        }
        Ok(Some(Claimed { run, work, handler: Arc::clone(handler) }))
    }

    /// Before somebody sleeps: has them woken when a job comes due, or may be started that may not be now. `true`: look again first.
    pub(crate) fn arm(&self, hub: &Arc<Hub>) -> bool {
        let mut picks = self.picks.lock();
        if self.is_quiet.load(Ordering::Acquire) || self.busy.load(Ordering::Acquire) >= self.threads {
            return false;
        }
        self.refresh(hub, &mut picks);
        let now_ms = hub.now_ms();
        let Picks { rooms, watches, .. } = &mut *picks;
        let mut again = false;
        for pick in rooms {
            // Who ends what is in the way rings.
            if pick.room.paused.load(Ordering::Acquire) || pick.running >= pick.limit {
                continue;
            }
            let wait_ms = pick.bucket.as_mut().map_or(0, |bucket| bucket.wait_ms(now_ms));
            if wait_ms > 0 {
                hub.timer.wake_at(hub, now_ms.saturating_add(wait_ms));
                continue;
            }
            for part in Part::waiting() {
                let is_held_up = part == Part::Suspects && hub.suspect.load(Ordering::Acquire);
                if let Some(queue) = pick.room.part(part)
                    && !is_held_up
                    && queue.next_due().is_some()
                {
                    again |= watches.wait_at(&self.me, pick.room.number(part), queue);
                }
            }
            if pick.room.has_wall.load(Ordering::Acquire) {
                hub.timer.wake_at(hub, now_ms.saturating_add(CLOCK_MS));
            }
        }
        again
    }

    /// When the next delayed job comes due.
    pub(crate) fn next_due(&self, hub: &Hub) -> Option<u64> {
        let mut picks = self.picks.lock();
        self.refresh(hub, &mut picks);
        let rooms = picks.rooms.iter().map(|pick| &pick.room);
        let queues = rooms.flat_map(|room| Part::waiting().filter_map(|part| room.part(part)));
        queues.filter_map(crate::queue::Queue::next_due).map(time_ms).min()
    }

    /// What ran at the quiet has ended, or was handed back.
    pub(crate) fn forget_stopping(&self, hub: &Hub) -> Result<(), JobError> {
        hub.settings.remove(&stopping_key(self.number)).map(drop)
    }

    /// Whether nothing is left to do for it: no job runs, and none that it may start waits.
    pub(crate) fn is_through(&self, hub: &Hub) -> bool {
        let mut picks = self.picks.lock();
        self.refresh(hub, &mut picks);
        self.busy.load(Ordering::Acquire) == 0
            && picks.rooms.iter().all(|pick| pick.room.paused.load(Ordering::Acquire) || pick.room.waiting().0 == 0)
    }

    /// Takes no more jobs.
    pub(crate) fn stop_claims(&self) {
        {
            // Whoever is about to take a job has taken it, or sees this.
            let _picks = self.picks.lock();
            self.is_quiet.store(true, Ordering::Release);
        }
        self.bell.notify(usize::MAX);
    }

    /// The same, said aloud: what runs now is noted, so that it is not held against it if the process is killed.
    pub(crate) fn quiet(&self, hub: &Hub) {
        self.stop_claims();
        let mut places = Vec::new();
        for run in self.running.lock().values() {
            places.extend_from_slice(&run.room.number(run.part).to_le_bytes());
            places.extend_from_slice(&run.item_id.to_le_bytes());
        }
        if !places.is_empty() {
            let key = stopping_key(self.number);
            let options = crate::options::PutOptions::new().durability(crate::options::Durability::Os);
            if let Err(error) = hub.settings.put(&hub.set, &key, &places, options) {
                hub.emit(|| Event::Trouble { queue: String::new(), error });
            }
        }
    }
}

pub(crate) const STOPPING_PREFIX: &[u8] = b"stopping:";

fn stopping_key(team: u64) -> Vec<u8> {
    [STOPPING_PREFIX, &team.to_le_bytes()].concat()
}

/// What a failure of decoding is told as.
pub(crate) fn undecodable(error: impl std::fmt::Display) -> Fail {
    let mut fail = Fail::retry(error);
    fail.verdict = crate::jobs::handler::Verdict::Undecodable;
    fail.cause = Cause::Undecodable;
    fail
}
