//! What all handles of the jobs of a set share: its job queues, who runs, who waits, and where moved jobs are.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use event_listener::Event as Bell;
use parking_lot::{Mutex, RwLock};

use crate::ids::ItemId;
use crate::jobs::envelope::{Envelope, time_ms};
use crate::jobs::error::JobError;
use crate::jobs::events::{Event, Feed};
use crate::jobs::id::JobId;
use crate::jobs::keys::Keys;
use crate::jobs::names;
use crate::jobs::records::Records;
use crate::jobs::room::{Lane, Lanes, Part, Room};
use crate::jobs::run::Run;
use crate::jobs::status::Outcome;
use crate::jobs::team::Team;
use crate::jobs::timer::Timer;
use crate::options::{Durability, PutOptions};
use crate::queue::Queue;
use crate::set::QueueSet;

/// What the set keeps of its jobs, so that there is one state for all handles.
#[derive(Default)]
pub(crate) struct Attachment {
    pub(crate) hub: Mutex<Weak<Hub>>,
    /// The crashes of the last process are counted once.
    pub(crate) recovered: Mutex<std::collections::HashSet<String>>,
}

/// Where a job is that is not where its id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    pub(crate) lane: u32,
    pub(crate) item: u64,
}

/// Somebody waits for the end of a job.
#[derive(Default)]
pub(crate) struct Waiter {
    pub(crate) outcome: Mutex<Option<Outcome>>,
    pub(crate) ended: Bell,
}

/// The jobs of a set.
pub(crate) struct Hub {
    pub(crate) set: QueueSet,
    pub(crate) max_delayed: u64,
    rooms: RwLock<Rooms>,
    /// Goes up with each job queue that is made.
    pub(crate) rooms_made: AtomicU64,
    /// Held while one is made.
    making: Mutex<()>,
    pub(crate) settings: Records,
    pub(crate) checkpoints: Records,
    pub(crate) windows: Records,
    pub(crate) keys: Keys,
    pub(crate) moved: Mutex<HashMap<JobId, Whereabouts>>,
    pub(crate) running: Mutex<HashMap<JobId, Arc<Run>>>,
    waiters: Mutex<HashMap<JobId, Arc<Waiter>>>,
    waiting: AtomicUsize,
    /// A suspect runs.
    pub(crate) suspect: AtomicBool,
    pub(crate) teams: Mutex<Vec<Weak<Team>>>,
    pub(crate) next_team: AtomicU64,
    pub(crate) feed: Feed,
    pub(crate) timer: Timer,
    /// Held while staged jobs are passed on.
    pub(crate) passing: Mutex<()>,
    /// How far the wall clock is ahead of the set's time, in ms, when it was last looked at.
    pub(crate) wall_ahead: Mutex<i64>,
    /// Rings whenever a job ends.
    pub(crate) ended: Bell,
}

#[derive(Default)]
struct Rooms {
    by_name: BTreeMap<Arc<str>, Arc<Room>>,
    lanes: Lanes,
}

impl Hub {
    pub(crate) fn new(set: &QueueSet, max_delayed: u64, feed: Feed) -> Result<Hub, JobError> {
        Ok(Hub {
            settings: Records::open(set, names::SETTINGS)?,
            checkpoints: Records::open(set, names::CHECKPOINTS)?,
            windows: Records::open(set, names::KEYS)?,
            set: set.clone(),
            max_delayed,
            rooms: RwLock::default(),
            rooms_made: AtomicU64::new(0),
            making: Mutex::new(()),
            keys: Keys::default(),
            moved: Mutex::default(),
            running: Mutex::default(),
            waiters: Mutex::default(),
            waiting: AtomicUsize::new(0),
            suspect: AtomicBool::new(false),
            teams: Mutex::default(),
            next_team: AtomicU64::new(0),
            feed,
            timer: Timer::default(),
            passing: Mutex::new(()),
            wall_ahead: Mutex::new(0),
            ended: Bell::new(),
        })
    }

    /// The set's time in ms.
    pub(crate) fn now_ms(&self) -> u64 {
        time_ms(self.set.now())
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        time_ms(self.set.wall_clock())
    }

    // ---- job queues

    pub(crate) fn room(&self, name: &str) -> Option<Arc<Room>> {
        self.rooms.read().by_name.get(name).cloned()
    }

    pub(crate) fn rooms(&self) -> Vec<Arc<Room>> {
        self.rooms.read().by_name.values().cloned().collect()
    }

    /// The job queue of this name, made if there is none.
    pub(crate) fn ensure_room(&self, name: &str) -> Result<Arc<Room>, JobError> {
        if let Some(room) = self.room(name) {
            return Ok(room);
        }
        names::check(name)?;
        let _making = self.making.lock();
        if let Some(room) = self.room(name) {
            return Ok(room);
        }
        let room = Arc::new(Room::new(name));
        room.load(&self.set)?;
        let is_used = |part: &Part| room.part(*part).is_some_and(|queue| !queue.is_empty());
        if Part::waiting().any(|part| is_used(&part)) {
            return Err(JobError::NotJobs { queue: name.to_owned() });
        }
        self.claim_numbers(&room)?;
        self.settings.put(&self.set, &queue_key(name), b"", PutOptions::new().durability(Durability::Sync))?;
        self.add_room(&room);
        Ok(room)
    }

    /// Ids of jobs tell queues apart by number.
    pub(crate) fn claim_numbers(&self, room: &Room) -> Result<(), JobError> {
        let rooms = self.rooms.read();
        for part in Part::all() {
            if rooms.lanes.contains_key(&room.number(part)) {
                let reason = "the ids of its jobs would be those of another queue; choose another name";
                return Err(JobError::QueueName { name: room.name.to_string(), reason });
            }
        }
        Ok(())
    }

    pub(crate) fn add_room(&self, room: &Arc<Room>) {
        let mut rooms = self.rooms.write();
        for part in Part::all() {
            rooms.lanes.insert(room.number(part), Lane { room: Arc::clone(room), part });
        }
        rooms.by_name.insert(Arc::clone(&room.name), Arc::clone(room));
        drop(rooms);
        self.rooms_made.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn lane(&self, number: u32) -> Option<Lane> {
        self.rooms.read().lanes.get(&number).cloned()
    }

    /// Where a job is, or was first.
    pub(crate) fn whereabouts(&self, id: JobId) -> Whereabouts {
        let moved = self.moved.lock().get(&id).copied();
        moved.unwrap_or(Whereabouts { lane: id.lane, item: id.item })
    }

    /// The queue that holds a place.
    pub(crate) fn queue_at(&self, at: Whereabouts) -> Option<(Lane, Queue)> {
        let lane = self.lane(at.lane)?;
        let queue = lane.room.part(lane.part)?.clone();
        Some((lane, queue))
    }

    pub(crate) fn has_moved(&self, id: JobId, room: &Room, part: Part, item: ItemId) {
        self.moved.lock().insert(id, Whereabouts { lane: room.number(part), item: item.get() });
    }

    /// Where a job was moved to.
    pub(crate) fn whereabouts_known(&self, id: JobId) -> Option<Whereabouts> {
        self.moved.lock().get(&id).copied()
    }

    /// The wall clock may have been set: jobs that are due by it are not kept waiting.
    pub(crate) fn meet_clock(&self) {
        if !self.rooms.read().by_name.values().any(|room| room.has_wall.load(Ordering::Acquire)) {
            return;
        }
        let wall_ms = self.wall_ms();
        let ahead = wall_ms as i64 - self.now_ms() as i64;
        let before = std::mem::replace(&mut *self.wall_ahead.lock(), ahead);
        if ahead.saturating_sub(before) < 500 {
            // Not set, or set back: who takes such a job looks at the clock.
            return;
        }
        for room in self.rooms().iter().filter(|room| room.has_wall.load(Ordering::Acquire)) {
            for queue in Part::waiting().filter_map(|part| room.part(part)) {
                for item in queue.browse(ItemId::new(0)).map_while(Result::ok) {
                    let is_due = Envelope::decode(item.data()).is_some_and(|(envelope, _)| {
                        envelope.by_wall && envelope.due_ms.is_some_and(|due| due <= wall_ms)
                    });
                    if is_due && let Ok(Some(item)) = queue.open_id(item.id()) {
                        // Back in its place, it waits at once.
                        item.abort();
                    }
                }
            }
        }
    }

    // ---- who waits, and who listens

    pub(crate) fn waiter(&self, id: JobId) -> Arc<Waiter> {
        let mut waiters = self.waiters.lock();
        self.waiting.store(waiters.len() + 1, Ordering::SeqCst);
        let waiter = Arc::clone(waiters.entry(id).or_default());
        self.waiting.store(waiters.len(), Ordering::SeqCst);
        waiter
    }

    /// Gives the entry up if nobody else waits for it.
    pub(crate) fn leave_waiter(&self, id: JobId, waiter: &Arc<Waiter>) {
        let mut waiters = self.waiters.lock();
        // The table's and the caller's.
        if waiters.get(&id).is_some_and(|known| Arc::ptr_eq(known, waiter)) && Arc::strong_count(waiter) <= 2 {
            waiters.remove(&id);
        }
        self.waiting.store(waiters.len(), Ordering::SeqCst);
    }

    /// A job has ended: whoever waits for that is told.
    pub(crate) fn tell(&self, id: JobId, outcome: impl FnOnce() -> Outcome) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let waiter = {
            let mut waiters = self.waiters.lock();
            let waiter = waiters.remove(&id);
            self.waiting.store(waiters.len(), Ordering::SeqCst);
            waiter
        };
        if let Some(waiter) = waiter {
            *waiter.outcome.lock() = Some(outcome());
            waiter.ended.notify(usize::MAX);
        }
    }

    #[inline]
    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        self.feed.emit(event);
    }

    // ---- who is woken

    fn each_team(&self, mut with: impl FnMut(&Arc<Team>)) {
        let teams: Vec<Arc<Team>> = {
            let mut teams = self.teams.lock();
            teams.retain(|team| team.strong_count() > 0);
            teams.iter().filter_map(Weak::upgrade).collect()
        };
        teams.iter().for_each(&mut with);
    }

    /// A job came into a room: one who may take it is woken in each team.
    pub(crate) fn ring(&self, room: &Room) {
        self.each_team(|team| {
            if team.takes_from(self, room) {
                team.bell.notify_additional(1);
            }
        });
    }

    /// Something changed that may concern anybody.
    pub(crate) fn ring_all(&self) {
        self.each_team(|team| {
            team.bell.notify(usize::MAX);
        });
    }

    // ---- suspects

    /// `true`: no other suspect runs, and none will until this one is through.
    pub(crate) fn begin_suspect(&self) -> bool {
        self.suspect.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn end_suspect(&self) {
        self.suspect.store(false, Ordering::Release);
    }

    /// A suspect is through: another may be started.
    pub(crate) fn after_suspect(&self) {
        self.end_suspect();
        self.ring_all();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.timer.stop();
    }
}

pub(crate) fn queue_key(name: &str) -> Vec<u8> {
    [b"queue:", name.as_bytes()].concat()
}

pub(crate) fn pause_key(name: &str) -> Vec<u8> {
    [b"pause:", name.as_bytes()].concat()
}

pub(crate) fn keyed_key(name: &str) -> Vec<u8> {
    [b"keyed:", name.as_bytes()].concat()
}

/// The job that an item at this place is.
pub(crate) fn job_at(lane: u32, item: ItemId, envelope: &Envelope) -> JobId {
    envelope.origin.unwrap_or(JobId { lane, item: item.get() })
}
