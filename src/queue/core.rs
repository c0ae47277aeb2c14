//! What a queue is made of, and what is done to it as a whole: options, clear, sync, upkeep, its end. How an item comes in is
//! [`super::put`]'s story, how one goes out [`super::take`]'s.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use crate::clock::Clock;
use crate::disk::{self, Disk, ForkGuard};
use crate::error::{Error, GetError, OptionsError, SyncError};
use crate::ids::{self, Cursor, ItemId, Place};
use crate::journal::commit::Commit;
use crate::journal::files::{Keeper, Way};
use crate::journal::lane::Lane;
use crate::journal::moves::Moves;
use crate::journal::{Journal, Unrest};
use crate::options::{Durability, QueueOptions, QueueOverrides};
use crate::queue::archive::Archive;
use crate::queue::fanout::Fanout;
use crate::queue::handoff::Neighbours;
use crate::queue::put::Limits;
use crate::queue::state::States;
use crate::reader::waiters::Wakes;
use crate::reader::{Finds, Reader, Rules};
use crate::stats::{QueueStats, RecoveryReport};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, RwLock};
use crate::upkeep::{Chore, Upkeep};

/// How long a queue that has something to do by time is left alone.
const TEND_MS: u64 = 1000;
const HOUR_MS: u64 = 3_600_000;
/// Segments that reading has left so far behind and that hold little are not about to be spent.
const LEFT_BEHIND: u64 = 2;
/// So many segments' worth of space is much. Fewer in tests, so that what is tried there needs few of them.
const MUCH: u64 = if cfg!(test) { 1 } else { 4 };

/// What all queues of a set share.
pub(crate) struct Shared {
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    pub(crate) fork: ForkGuard,
    pub(crate) upkeep: Upkeep,
    pub(crate) closed: AtomicBool,
    pub(crate) read_only: bool,
    pub(crate) states: States,
    /// Options of queues that have none of their own.
    pub(crate) defaults: RwLock<QueueOptions>,
    /// Held while options are changed, a queue's or the defaults.
    pub(crate) changing_options: Mutex<()>,
    pub(crate) salvage: bool,
    pub(crate) moves: Moves,
    /// The mark of an item that moved could not be stored: the next open must look for it.
    pub(crate) unmarked: AtomicBool,
    /// Nothing is freed while the journals are looked through for moves that were interrupted.
    pub(crate) settling: AtomicBool,
    pub(crate) neighbours: OnceLock<Weak<dyn Neighbours>>,
    pub(crate) archive: Option<Archive>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("closed", &self.closed)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) shared: Arc<Shared>,
    /// Shared by the queue and its named readers.
    pub(crate) journal: Arc<Journal>,
    /// Who else reads that journal, or whose reader this is.
    pub(crate) fanout: Fanout,
    /// Lock 3; the tail lock of the journal comes before it.
    pub(crate) reader: Mutex<Reader>,
    pub(crate) options: RwLock<QueueOptions>,
    /// What of them is the queue's own; the rest follows the set's defaults.
    pub(crate) own: Mutex<QueueOverrides>,
    /// What a put needs of the options, under the tail lock's eyes: read without a lock, written with it.
    pub(super) durability: AtomicU64,
    /// [`ENDLESS`]: open items are held as long as their consumers like.
    pub(super) lease_ms: AtomicU64,
    pub(super) limits: RwLock<Limits>,
    /// The largest payload, where that is the only limit; 0: look at `limits`.
    pub(super) only_limit: AtomicU32,
    pub(crate) report: Mutex<RecoveryReport>,
    pub(crate) create_ms: u64,
    /// The last id before this load of the queue.
    before_id: u64,
    before_bytes: u64,
    pub(super) has_journal: bool,
    /// A `Tend` is on its way or waits.
    tending: AtomicBool,
    sync_rung: AtomicBool,
    /// What was appended when the queue was last looked after.
    tended_id: AtomicU64,
    /// An `Age` is on its way or waits.
    aging: AtomicBool,
    /// The queues whose items were moved here since their marks were last made durable.
    pub(super) debts: Mutex<Vec<Weak<Core>>>,
    /// Spent segments that were shown to the archive.
    pub(super) archived: Mutex<BTreeSet<u64>>,
    /// For when the upkeep thread has been asked to look for items whose delay has ended.
    due_ms: AtomicU64,
    /// Segments that held little when the queue was last looked after.
    sparse: Mutex<BTreeSet<u64>>,
    /// Those that are about to be thinned out.
    thinning: Mutex<BTreeSet<u64>>,
    /// Segments up to this number stay until the next open.
    pub(super) unpaid: AtomicU64,
    /// Tells this load of the queue from every other in the process.
    pub(crate) life: u64,
    pub(super) me: Weak<Core>,
}

/// How long a get or a put may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Not at all.
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    /// A span that ends beyond what an `Instant` can say has no end.
    pub(crate) fn lasting(span: std::time::Duration) -> Patience {
        if span.is_zero() {
            return Patience::None;
        }
        disk::instant_now().checked_add(span).map_or(Patience::Forever, Patience::Until)
    }

    pub(crate) fn until(deadline: Instant) -> Patience {
        if deadline <= disk::instant_now() { Patience::None } else { Patience::Until(deadline) }
    }

    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Patience::Until(deadline) => Some(deadline),
            _ => None,
        }
    }
}

/// Which segments that hold little are thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// Those that held little when the queue was last looked after, too.
    LastTime,
    /// Those that reading has left behind.
    LeftBehind,
}

pub(super) const SYNC: u64 = 0;
pub(super) const OS: u64 = 1;

impl Core {
    #[expect(clippy::too_many_arguments, reason = "called once, by the set")]
    pub(crate) fn new(
        name: String,
        shared: Arc<Shared>,
        journal: Arc<Journal>,
        mut reader: Reader,
        options: QueueOptions,
        report: RecoveryReport,
        create_ms: u64,
        has_journal: bool,
        fanout: Fanout,
    ) -> Arc<Core> {
        reader.memory_bytes = options.memory_bytes;
        reader.max_age_ms = options.max_age_ms();
        reader.keeps_expired = options.expire_to.is_some() && !shared.read_only;
        // Who only looks moves nothing.
        reader.max_attempts = if shared.read_only { u32::MAX } else { options.attempts_in(queue_of(&name)) };
        Arc::new_cyclic(|me: &Weak<Core>| {
            if fanout.home.is_none() {
                journal.kept_by(Weak::clone(me) as Weak<dyn Keeper>);
                journal.set_pad_to(&mut journal.tail.lock(), options.pad_to);
            }
            Core {
                name,
                shared,
                reader: Mutex::new(reader),
                durability: AtomicU64::new(durability_code(&options)),
                lease_ms: AtomicU64::new(options.lease_ms()),
                only_limit: AtomicU32::new(Limits::of(&options).only_size()),
                limits: RwLock::new(Limits::of(&options)),
                options: RwLock::new(options),
                own: Mutex::new(QueueOverrides::default()),
                report: Mutex::new(report),
                create_ms,
                before_id: journal.appended(),
                before_bytes: journal.front.intake().payload_bytes,
                journal,
                fanout,
                has_journal,
                tending: AtomicBool::new(false),
                sync_rung: AtomicBool::new(false),
                tended_id: AtomicU64::new(0),
                aging: AtomicBool::new(false),
                debts: Mutex::new(Vec::new()),
                archived: Mutex::new(BTreeSet::new()),
                due_ms: AtomicU64::new(u64::MAX),
                sparse: Mutex::new(BTreeSet::new()),
                thinning: Mutex::new(BTreeSet::new()),
                unpaid: AtomicU64::new(0),
                life: ids::next_life(),
                me: me.clone(),
            }
        })
    }

    /// The options that would be in force above these defaults, if they are right.
    pub(crate) fn options_over(
        &self,
        own: &QueueOverrides,
        defaults: &QueueOptions,
    ) -> Result<QueueOptions, OptionsError> {
        let options = own.check_over(defaults, &self.name)?;
        if options.journal != self.has_journal() {
            let items = self.reader.lock().stored_items();
            return Err(OptionsError::Journal { queue: self.name.clone(), items });
        }
        self.check_readers_over(&options)?;
        Ok(options)
    }

    /// The queue's name, without that of the reader.
    pub(crate) fn queue_name(&self) -> &str {
        queue_of(&self.name)
    }

    /// Puts new options in force. The caller has checked and stored them.
    pub(crate) fn apply(&self, options: QueueOptions) {
        let mut wakes = Wakes::default();
        {
            let mut tail = self.journal.tail.lock();
            self.journal.set_segment_bytes(&mut tail, options.segment_bytes);
            self.journal.set_pad_to(&mut tail, options.pad_to);
            self.durability.store(durability_code(&options), Ordering::Relaxed);
            self.lease_ms.store(options.lease_ms(), Ordering::Relaxed);
            let limits = Limits::of(&options);
            self.only_limit.store(limits.only_size(), Ordering::Relaxed);
            *self.limits.write() = limits;
            let mut reader = self.reader.lock();
            reader.memory_bytes = options.memory_bytes;
            reader.max_age_ms = options.max_age_ms();
            reader.max_attempts = options.attempts_in(self.queue_name());
            reader.keeps_expired = options.expire_to.is_some();
            reader.room(&mut wakes);
            self.fanout.set_only(options.fanout_only);
            *self.options.write() = options;
        }
        wakes.wake();
        self.hand_down_options();
        self.ring_tend();
        self.ring_age();
    }

    /// Puts options in force if they are others.
    pub(crate) fn adopt(&self, options: QueueOptions) {
        let is_other = *self.options.read() != options;
        if is_other {
            self.apply(options);
        }
    }

    pub(crate) fn has_journal(&self) -> bool {
        self.has_journal
    }

    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.shared.fork.forked()
    }

    pub(super) fn rules(&self) -> Rules<'_> {
        Rules::new(&self.shared.clock, self.shared.salvage)
    }

    // ---- all at once

    pub(crate) fn clear(&self) -> Result<u64, Error> {
        let mut wakes = Wakes::default();
        let cleared = {
            let mut tail = self.journal.tail.lock();
            if tail.closed {
                return Err(Error::Closed);
            }
            self.shared.states.may_put().map_err(|_| Error::State { state: self.shared.states.in_force() })?;
            let io = |source| {
                let path = self.journal.context.dir.clone().unwrap_or_default();
                Error::Io { path, source }
            };
            if let Some(lanes) = &self.fanout.lanes {
                let mut reader = self.reader.lock();
                if reader.closed {
                    return Err(Error::Closed);
                }
                lanes.begin_at(tail.next_id - 1).map_err(io)?;
                let cleared = reader.clear(self.journal.end_of(&tail));
                reader.room(&mut wakes);
                cleared
            } else {
                let mut reader = self.reader.lock();
                self.journal.clear(&mut tail).map_err(io)?;
                let end = Cursor::behind(tail.newest());
                let cleared = reader.clear(end);
                reader.room(&mut wakes);
                drop(reader);
                // What the queue forgets is gone for all.
                self.each_named(|named| {
                    let mut reader = named.reader.lock();
                    reader.clear(end);
                    reader.room(&mut wakes);
                });
                cleared
            }
        };
        wakes.wake();
        self.ring_free();
        Ok(cleared)
    }

    /// Removes up to `max` expired items, or moves them where they are to go.
    pub(crate) fn sweep(&self, max: u64) -> Result<u64, GetError> {
        let before = self.move_expired(max);
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if reader.closed {
            return Err(GetError::Closed);
        }
        if reader.aside() > 0 {
            // Of more there is nothing to be found as long as these cannot leave.
            return Ok(before);
        }
        let rules = self.rules();
        let swept = reader.sweep(&self.journal, rules, max - before);
        let keeps = reader.keeps_expired;
        reader.room(&mut wakes);
        let finds = reader.finds();
        drop(reader);
        wakes.wake();
        self.ring_for(Finds { doomed: finds.doomed && (!keeps || swept.is_err()), ..finds });
        let swept = swept.map_err(|error| self.take_error(error))?;
        Ok(before + if keeps { self.move_expired(max - before) } else { swept })
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        reader.paused = paused;
        reader.promise(&mut wakes);
        drop(reader);
        wakes.wake();
    }

    /// Asks the group commit, and wakes consumers once it has answered: what a waker does may need the next sync.
    pub(super) fn commit<T>(&self, ask: impl FnOnce(&Commit, &dyn Fn(u64)) -> T) -> T {
        let wakes = RefCell::new(Wakes::default());
        let answer = ask(&self.journal.commit, &|durable| {
            self.journal.front.show(durable);
            // Always under its lock: who joined the line before sees what was shown, or is seen here.
            self.each(|core| core.reader.lock().promise(&mut wakes.borrow_mut()));
        });
        wakes.into_inner().wake();
        answer
    }

    /// Waits until the item `id` is on the device.
    pub(crate) fn synced(&self, id: u64) -> Result<(), SyncError> {
        self.may_sync()?;
        if id > self.journal.appended() {
            return Err(SyncError::UnknownId { id: ItemId(id) });
        }
        self.commit(|commit, publish| commit.wait(id, || self.journal.sync(false), publish))
            .map_err(|source| self.sync_error(source))
    }

    /// One sync of everything, marks included.
    pub(crate) fn sync(&self) -> Result<(), SyncError> {
        self.may_sync()?;
        self.sync_round()
    }

    pub(crate) fn sync_round(&self) -> Result<(), SyncError> {
        self.sync_segments()?;
        if !self.journal.has_readers() {
            return Ok(());
        }
        self.journal.sync_readers().map_err(|error| self.sync_error(Arc::new(error)))
    }

    fn sync_segments(&self) -> Result<(), SyncError> {
        // In this order: a sync that begins in between has nothing of the caller's to cover.
        if !self.journal.is_unsynced() && !self.journal.commit.is_asking() {
            return match self.journal.commit.failure() {
                Some(source) => Err(self.sync_error(source)),
                None => Ok(()),
            };
        }
        self.commit(|commit, publish| commit.round(|| self.journal.sync(true), publish))
            .map_err(|source| self.sync_error(source))
    }

    pub(crate) fn may_sync(&self) -> Result<(), SyncError> {
        if self.is_forked() {
            return Err(SyncError::Forked);
        }
        if self.shared.read_only {
            return Err(SyncError::ReadOnly);
        }
        if self.reader.lock().closed {
            return Err(SyncError::Closed);
        }
        Ok(())
    }

    pub(crate) fn sync_error(&self, source: Arc<std::io::Error>) -> SyncError {
        if self.reader.lock().closed && !self.shared.closed.load(Ordering::Acquire) {
            // It was deleted meanwhile: its files were not where they had been, and the device is well.
            return SyncError::Closed;
        }
        SyncError::Failed { queue: self.name.clone(), source }
    }

    // ---- upkeep

    /// Has done what a reader found.
    #[inline]
    pub(crate) fn ring_for(&self, finds: Finds) {
        if finds.spent || finds.crowded || finds.moved_on {
            self.ring_free();
        }
        if finds.doomed {
            self.shared.upkeep.ring(Chore::Bury(self.me.clone()));
        }
        if let Some(due_ms) = finds.due_ms {
            self.ring_due(due_ms);
        }
    }

    pub(crate) fn ring_free(&self) {
        let home = self.fanout.home.as_ref().unwrap_or(&self.me);
        self.shared.upkeep.ring(Chore::Free(home.clone()));
    }

    /// Asks for a sync by the upkeep thread, for those who do not wait for one.
    pub(crate) fn ring_sync(&self) {
        if !self.sync_rung.swap(true, Ordering::AcqRel) {
            self.shared.upkeep.ring(Chore::Sync(self.me.clone()));
        }
    }

    /// Asks to be looked after, once until that has happened.
    #[inline]
    pub(super) fn ring_tend(&self) {
        if self.has_journal_or_expiry() && !self.tending.load(Ordering::Relaxed) {
            self.ring_tend_now();
        }
    }

    /// Asks to be looked at when a delay has ended.
    pub(super) fn ring_due(&self, due_ms: u64) {
        if self.due_ms.load(Ordering::Relaxed) > due_ms && self.due_ms.fetch_min(due_ms, Ordering::AcqRel) > due_ms {
            // Told as a moment: the thread may hear of it late.
            let after_ms = due_ms.saturating_sub(self.shared.clock.exact_ms());
            let at_ms = self.shared.disk.mono_exact_ms().saturating_add(after_ms);
            self.shared.upkeep.ring(Chore::Ripen(self.me.clone(), at_ms));
        }
    }

    /// Calls consumers for what has become due.
    pub(crate) fn ripen(&self) {
        if self.is_forked() {
            return;
        }
        // From now on a put rings again; the tail parts those that are seen below from those that see this.
        self.due_ms.store(u64::MAX, Ordering::Release);
        if self.shared.settling.load(Ordering::Acquire) {
            // To look ahead would read items that are about to be found elsewhere.
            return self.ring_due(self.shared.clock.exact_ms() + 10);
        }
        drop(self.journal.tail.lock());
        let mut wakes = Wakes::default();
        let mut reader = self.reader.lock();
        if reader.closed {
            return;
        }
        let next_ms = reader.ripen(&self.journal, self.rules());
        reader.promise(&mut wakes);
        let finds = reader.finds();
        drop(reader);
        wakes.wake();
        self.ring_for(finds);
        if next_ms == Some(0) && self.journal.commit.failure().is_none() {
            // It waits for the device; nobody tells when that has answered.
            self.ring_due(self.shared.clock.exact_ms() + 10);
        }
    }

    /// The reader, having looked ahead so far that its counts tell waiting from deferred items.
    pub(crate) fn reader_ahead(&self) -> MutexGuard<'_, Reader> {
        let mut reader = self.reader.lock();
        if !reader.closed && !self.is_forked() && !self.shared.settling.load(Ordering::Acquire) {
            reader.ripen(&self.journal, self.rules());
        }
        reader
    }

    /// Promises what has come to those who wait for it.
    #[cold]
    pub(super) fn announce(&self) {
        let mut wakes = Wakes::default();
        self.each(|core| core.reader.lock().promise(&mut wakes));
        wakes.wake();
    }

    fn has_journal_or_expiry(&self) -> bool {
        !self.shared.read_only
    }

    #[cold]
    fn ring_tend_now(&self) {
        if !self.tending.swap(true, Ordering::AcqRel) {
            self.shared.upkeep.ring(Chore::Tend(self.me.clone(), self.tend_after_ms()));
        }
    }

    fn tend_after_ms(&self) -> u64 {
        match self.options.read().durability {
            Durability::Every(period) => u64::try_from(period.as_millis()).unwrap_or(u64::MAX).clamp(1, TEND_MS),
            _ => TEND_MS,
        }
    }

    pub(crate) fn sync_appended(&self) {
        // A swap, not a store: it reads what the last ring wrote, so what was appended before that ring is seen below. A store
        // could still be on its way out when the load below is done, and a ring in between would be nobody's.
        self.sync_rung.swap(false, Ordering::AcqRel);
        // A failure is latched and told to everyone who asks.
        let appended = self.journal.appended();
        let _ = self.commit(|commit, publish| commit.wait(appended, || self.journal.sync(false), publish));
    }

    /// Frees spent segments; `true`: one was still held and should be looked at again.
    pub(crate) fn free_spent(&self) -> bool {
        if let Some(home) = &self.fanout.home {
            return home.upgrade().is_some_and(|home| home.free_spent());
        }
        let mut above = {
            let mut reader = self.reader.lock();
            if reader.closed {
                return false;
            }
            reader.let_go();
            reader.reading()
        };
        self.each_named(|named| {
            let mut reader = named.reader.lock();
            reader.let_go();
            above = above.min(reader.reading());
        });
        let left = self.free_round();
        self.journal.rest_unused(above);
        let files = &self.journal.context.pool.files;
        if files.is_tight() {
            files.relieve();
        }
        let mut wakes = Wakes::default();
        self.each(|core| core.reader.lock().room(&mut wakes));
        wakes.wake();
        left.unwrap_or(false)
    }

    fn free_round(&self) -> std::io::Result<bool> {
        if self.shared.settling.load(Ordering::Acquire) {
            // Rung for again when that is over.
            return Ok(false);
        }
        // First listed, then paid for: what is listed holds no item whose move begins only now.
        let mut spent = self.journal.spent();
        if spent.is_empty() {
            return Ok(false);
        }
        let paid = self.pay();
        spent.retain(|number| *number > paid.above);
        let listed = spent.len();
        // Not the others: a move may be waiting for the room that they give.
        spent.retain(|number| self.journal.ends_before(*number, paid.below));
        let waits = spent.len() < listed;
        self.archive(&mut spent);
        Ok(self.journal.free_spent(&spent)? | waits)
    }

    /// What there is to do by time. `None`: nothing more, until somebody rings again.
    pub(crate) fn tend(&self) -> Option<u64> {
        if self.is_forked() || self.reader.lock().closed {
            return None;
        }
        if self.shared.settling.load(Ordering::Acquire) {
            // A sweep would read items into memory that are about to be found elsewhere.
            return Some(self.tend_after_ms());
        }
        // From now on whoever changes something rings again: puts that come before this look at the tail are seen below, and
        // those after it see that the flag is down.
        self.tending.store(false, Ordering::Release);
        drop(self.journal.tail.lock());
        let (durability, max_sweep) = {
            let options = self.options.read();
            (options.durability, options.max_expire_sweep)
        };
        if durability != Durability::Os && self.has_journal {
            let _ = self.sync_round();
            let appended = self.journal.appended();
            if self.tended_id.swap(appended, Ordering::AcqRel) == appended {
                let _ = self.journal.checkpoint();
            } else {
                self.ring_later();
            }
        }
        let can_expire = self.reader.lock().can_expire();
        if can_expire {
            let _ = self.sweep(max_sweep.into());
            self.ring_later();
        }
        if self.reader.lock().has_doomed() {
            self.bury();
        }
        self.free_spent();
        self.thin_out(Since::LastTime);
        None
    }

    /// Gives back the space of done items in segments that have held little for a while, or that reading has left behind, which
    /// bounds what they take however fast items pass. The rules of freeing hold: what vouches for a mark stays until that is
    /// durable, and an archive is shown whole segments.
    pub(crate) fn thin_out(&self, since: Since) {
        if let Some(home) = &self.fanout.home {
            if let Some(home) = home.upgrade() {
                home.thin_out(since);
            }
            return;
        }
        if self.shared.archive.is_some() || self.journal.commit.failure().is_some() || self.is_left_alone() {
            return;
        }
        if !self.thinning.lock().is_empty() {
            if since == Since::LastTime {
                self.ring_later();
            }
            return;
        }
        let mut below = u64::MAX;
        self.each(|core| below = below.min(core.reader.lock().reading_from()));
        let mut sparse = self.journal.sparse(below);
        // Most are spent a moment later.
        match since {
            Since::LastTime => {
                let before = std::mem::replace(&mut *self.sparse.lock(), sparse.keys().copied().collect());
                let has_new = sparse.keys().any(|number| !before.contains(number));
                sparse.retain(|number, _| before.contains(number));
                if has_new {
                    self.ring_later();
                }
            }
            Since::LeftBehind => sparse.retain(|number, _| number + LEFT_BEHIND < below),
        }
        // What is left behind may yet be spent, and used again whole: it is looked through only where there is much to gain.
        let gain: u64 = sparse.values().sum();
        if since == Since::LeftBehind && gain < MUCH * u64::from(self.options.read().segment_bytes) {
            return;
        }
        if !sparse.is_empty() {
            *self.thinning.lock() = sparse.into_keys().collect();
            self.shared.upkeep.ring(Chore::Thin(self.me.clone()));
        }
    }

    /// Prepares the next segment, if that does not keep this thread from giving back space: who puts faster than it can do both
    /// makes the next segment itself.
    pub(crate) fn arm(&self) {
        if (self.thinning.lock().len() as u64) < MUCH {
            self.journal.arm();
        }
    }

    /// Nothing of it may be given back now.
    fn is_left_alone(&self) -> bool {
        self.shared.settling.load(Ordering::Acquire) || self.reader.lock().closed
    }

    /// Thins out one of the segments that were chosen for it: a file system may take long over each, and what others need comes
    /// in between.
    pub(crate) fn thin_next(&self) {
        let next = self.thinning.lock().pop_first();
        let Some(number) = next.filter(|_| !self.is_left_alone()) else {
            return self.thinning.lock().clear();
        };
        let paid = self.pay();
        if number > paid.above && self.journal.ends_before(number, paid.below) {
            // What fails is tried again, or latched where it matters.
            let _ = match self.journal.is_synced(number) {
                true => self.journal.punch(number).map_err(Arc::new).map(drop),
                false => self.commit(|commit, publish| commit.round(|| self.journal.sync_thinned(number), publish)),
            };
        }
        self.shared.upkeep.ring(Chore::Thin(self.me.clone()));
    }

    pub(super) fn ring_later(&self) {
        self.ring_tend_now();
    }

    // ---- the age of the queue

    /// Asks to be looked at when the queue is old enough to go, once until that has happened.
    pub(crate) fn ring_age(&self) {
        let is_bounded = self.options.read().max_queue_age.is_some() && !self.shared.read_only;
        if is_bounded && !self.aging.swap(true, Ordering::AcqRel) {
            let chore = Chore::Age(self.me.clone(), self.too_old_after_ms().unwrap_or(0));
            self.shared.upkeep.ring(chore);
        }
    }

    /// In how many ms the queue is older than it may become; `None`: it never is.
    fn too_old_after_ms(&self) -> Option<u64> {
        let age = self.options.read().max_queue_age?;
        let due_ms = self.create_ms.saturating_add(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Some(due_ms.saturating_add(1).saturating_sub(self.shared.clock.exact_ms()))
    }

    /// Has the queue deleted if it is old and empty; says when to look again.
    pub(crate) fn age(&self) -> Option<u64> {
        let look_again = self.too_old_after_ms();
        if look_again == Some(0)
            && !self.is_forked()
            && !self.reader.lock().closed
            && let Some(neighbours) = self.shared.neighbours.get().and_then(Weak::upgrade)
        {
            neighbours.expire(self);
        }
        if look_again.is_none() || self.reader.lock().closed {
            self.aging.store(false, Ordering::Release);
            // The option may have come back just before that.
            if !self.reader.lock().closed {
                self.ring_age();
            }
            return None;
        }
        look_again.map(|after_ms| after_ms.max(TEND_MS))
    }

    // ---- the end

    /// Ends a queue that nobody uses, as [`Core::shut`] does; `false`: somebody does.
    pub(crate) fn shut_idle(&self) -> bool {
        let mut tail = self.journal.tail.lock();
        let named = self.fanout.all();
        let mut readers = vec![self.reader.lock()];
        readers.extend(named.iter().map(|named| named.reader.lock()));
        if readers.iter().any(|reader| reader.closed || !reader.is_idle()) || self.too_old_after_ms() != Some(0) {
            return false;
        }
        tail.closed = true;
        for reader in &mut readers {
            reader.closed = true;
            reader.let_go();
        }
        true
    }

    /// Ends all waiting; every later operation answers `Closed`. With `refund`, items held open get their start back.
    pub(crate) fn shut(&self, refund: bool) {
        let mut wakes = Wakes::default();
        let mut tail = self.journal.tail.lock();
        if self.fanout.home.is_none() {
            tail.closed = true;
            self.each(|core| core.end(refund, &mut wakes));
        } else {
            self.end(refund, &mut wakes);
        }
        drop(tail);
        wakes.wake();
    }

    /// Under the tail lock.
    fn end(&self, refund: bool, wakes: &mut Wakes) {
        let mut reader = self.reader.lock();
        if reader.closed {
            return;
        }
        reader.closed = true;
        reader.line.end(wakes);
        reader.space.end(wakes);
        if refund {
            let held = reader.open.values().filter(|held| !held.cleared);
            let mut held: Vec<(Place, u32)> =
                held.map(|held| (held.place, held.starts.saturating_sub(held.counts.into()))).collect();
            held.sort_unstable_by_key(|(place, _)| place.id);
            for (place, starts) in held {
                if let Ok(Some(segment)) = reader.segment(&self.journal, place.segment) {
                    let starts = u8::try_from(starts).unwrap_or(u8::MAX);
                    let _ = segment.mark(place.ordinal, Lane::Waiting { starts });
                }
            }
        }
        reader.open.clear();
        reader.leases.clear();
        reader.let_go();
    }

    /// Answers those who wait for the device, before the files of a queue that was shut leave.
    pub(crate) fn answer_waiting(&self) {
        let waits = self.has_journal && self.reader.lock().has_hidden();
        if waits {
            // A failure is told to everyone who waits.
            let _ = self.sync_round();
        }
    }

    /// Leaves the journal in good order: all durable, sealed.
    pub(crate) fn settle(&self) -> Result<(), SyncError> {
        if self.shared.read_only || !self.has_journal || self.journal.has_left() {
            return Ok(());
        }
        self.journal.await_takers();
        let is_unsynced = self.journal.is_unsynced() || self.journal.has_dirty_readers();
        let untouched = !is_unsynced && self.journal.is_untouched();
        if untouched {
            self.journal.disarm();
        } else {
            self.sync_round()?;
            let _ = self.free_round();
            self.journal.seal_clean().map_err(|error| self.sync_error(Arc::new(error)))?;
        }
        // Of many queues each opens its last segment here.
        self.journal.close_files();
        Ok(())
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let (segments, log_size, unsynced_bytes) = self.journal.gauges();
        let now_ms = self.shared.clock.exact_ms();
        // Before the reader's lock, which comes after that of the list.
        let readers = self.fanout.count();
        let reader = self.reader_ahead();
        let front = &self.journal.front;
        let (mem_items, mem_bytes) = reader.in_memory();
        let items = reader.items();
        let counts = &reader.counts;
        QueueStats {
            items,
            bytes: reader.bytes(),
            total_items: front.appended() - self.before_id - counts.others_items,
            put_bytes: front.intake().payload_bytes - self.before_bytes - counts.others_bytes,
            get_hits: counts.get_hits,
            get_misses: counts.get_misses,
            mem_items,
            mem_bytes,
            age_ms: if items == 0 { 0 } else { counts.last_age_ms },
            oldest_age_ms: match reader.oldest_put_ms() {
                Some(put_ms) if items > 0 => now_ms.saturating_sub(put_ms),
                _ => 0,
            },
            expired_items: counts.expired,
            discarded: counts.discarded,
            waiters: reader.line.len(),
            open_items: reader.open.len() as u64,
            transactions: counts.transactions,
            canceled_transactions: counts.aborts,
            total_flushes: counts.clears,
            create_time_ms: self.create_ms,
            log_size: if self.has_journal { log_size } else { 0 },
            segments,
            redelivered: counts.redelivered,
            unsynced_bytes,
            syncs: self.journal.commit.syncs.load(Ordering::Relaxed),
            leaked_open_items: reader
                .open
                .values()
                .filter(|held| now_ms.saturating_sub(held.since_ms) > HOUR_MS)
                .count() as u64,
            damaged_items: counts.damaged,
            leases_ended: counts.leases_ended,
            dead_lettered: counts.dead_lettered,
            deferred_items: reader.deferred().0,
            expiring_items: reader.aside(),
            lag: reader.lag(),
            readers,
            unread_items: self.fanout.unread(),
        }
    }
}

impl Keeper for Core {
    fn usage(&self, number: u64, opening: u64) -> Option<u64> {
        self.journal.usage(number, opening)
    }

    fn rest(&self, number: u64, way: Way) -> bool {
        if self.is_forked() {
            return false;
        }
        if way == Way::Synced {
            // Who looks at an archive runs user code, which may wait for someone who waits for this.
            if self.journal.keeps_open(number) == Unrest::Spent && self.shared.archive.is_none() {
                self.free_spent();
            }
            let is_done = self.journal.keeps_open(number) == Unrest::None;
            if !is_done && (self.may_sync().is_err() || self.sync_round().is_err()) {
                return false;
            }
        }
        let mut let_go = true;
        let met = self.try_each(|core| {
            let_go &= match core.reader.try_lock() {
                Some(mut reader) if !reader.closed => {
                    reader.let_go_of(number);
                    true
                }
                _ => false,
            };
        });
        met && let_go && self.journal.rest(number)
    }
}

/// The queue that a name is of, or whose reader.
fn queue_of(name: &str) -> &str {
    name.split_once('+').map_or(name, |(queue, _)| queue)
}

fn durability_code(options: &QueueOptions) -> u64 {
    match options.durability {
        Durability::Sync => SYNC,
        Durability::Os => OS,
        Durability::Every(_) => 2,
    }
}
