//! A directory of queues: its registry, its state, and how it closes. [`builder`] opens it, [`loading`] opens its queues.
//!
//! ```text
//! <dir>/lock                     held while the set is open; the holder's process id
//! <dir>/set                      set id, and the highest id of any deleted queue
//! <dir>/aliases                  names that stand for several queues, if there are any
//! <dir>/moves                    which queues items move between, while that is not settled
//! <dir>/queues/<encoded name>/   meta, <number>.new, <number>.seg, <id>.reader, <id>.<number>.lanes
//! <dir>/pool/<number>.spare      segments for re-use
//! <dir>/trash/                   deleted queues on their way out
//! ```

mod alias;
mod builder;
mod loading;

pub use alias::Alias;
pub use builder::QueueSetBuilder;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::disk::{self, Disk, File};
use crate::error::{Error, GetError, OpenError, OptionsError, StateError, SyncError};
use crate::format::alias::Aliases;
use crate::format::meta::{self, SetMeta};
use crate::format::name;
use crate::item;
use crate::journal::SlotFile;
use crate::journal::pool::Pool;
use crate::options::{QueueOptions, QueueOverrides, State, StateOptions};
use crate::queue::Queue;
use crate::queue::core::{Core, Patience, Shared};
use crate::queue::handoff::Neighbours;
use crate::queue::open_item::OpenItem;
use crate::queue::take::{Given, Mode, Took};
use crate::reader::waiters::{Wakes, sleep_any};
use crate::stats::{RecoveryProgress, SetStats};
use crate::sync::thread;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::upkeep::Chore;
use loading::Want;

type OnRecovery = Arc<dyn Fn(&RecoveryProgress) -> bool + Send + Sync>;

/// A directory with its named queues: a cheap handle, to be cloned at will.
///
/// One process at a time has a set open for writing; a second opener gets [`OpenError::Locked`] at once. Queues are loaded
/// when first used. The set closes when [`close`](QueueSet::close) is called, or when the last handle of it and of its queues
/// is dropped.
///
/// # Fork
/// In a forked child every operation that can fail answers `Forked`, and dropping the handles there changes nothing. While such a child
/// lives, it keeps the lock of a parent that has died without closing the set: the next opener gets `Locked`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// use kestrel_core::{OpenError, QueueSet};
/// let set = QueueSet::open(path)?;
/// set.queue("mail")?.put(b"to: ada")?;
/// assert!(matches!(QueueSet::open(path), Err(OpenError::Locked { .. })));
/// set.close()?;
/// let set = QueueSet::open(path)?;
/// assert_eq!(set.names(), ["mail"]);
/// assert_eq!(set.queue("mail")?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct QueueSet {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    set_id: u128,
    boot_id: u128,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    overrides: HashMap<String, QueueOverrides>,
    on_recovery: Option<OnRecovery>,
    /// Lock 1. Every queue of the directory, loaded or not.
    registry: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Taken alone or after the registry.
    aliases: Mutex<Aliases>,
    /// Held while they are changed and stored.
    changing_aliases: Mutex<()>,
    meta: Mutex<SetFile>,
    /// A queue has left for the trash, and no sync has covered that.
    trash_unsynced: AtomicBool,
    /// Unlocked at close, so that the directory can be opened again while handles are still around.
    lock: Mutex<Option<File>>,
    creates: AtomicU64,
    deletes: AtomicU64,
    expires: AtomicU64,
    /// What layers above keep of this set.
    attached: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

/// A queue's entry.
#[derive(Default)]
struct Slot {
    /// Held while the queue is loaded or deleted, so that only who wants that queue waits.
    busy: Mutex<()>,
    /// Never held for long, so that who asks about all queues waits for none.
    core: Mutex<Option<Arc<Core>>>,
}

struct SetFile {
    meta: SetMeta,
    slots: SlotFile,
}

impl QueueSet {
    /// Opens the set in `dir` with default options, creating it if there is none.
    ///
    /// # Errors
    /// See [`QueueSetBuilder::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<QueueSet, OpenError> {
        QueueSet::builder().open(dir)
    }

    /// Opens a set for looking only: see [`QueueSetBuilder::read_only`].
    ///
    /// # Errors
    /// As [`open`](QueueSet::open); a directory without a set is an [`OpenError::Io`].
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<QueueSet, OpenError> {
        QueueSet::builder().read_only(true).open(dir)
    }

    /// A builder, for options that differ from the defaults.
    pub fn builder() -> QueueSetBuilder {
        QueueSetBuilder::default()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.inner.dir
    }

    /// The random number that names this set, drawn when it was created.
    pub fn id(&self) -> u128 {
        self.inner.set_id
    }

    fn handle(&self, core: Arc<Core>) -> Queue {
        Queue { core, _set: self.clone() }
    }

    /// The queue of this name, created if there is none; with a `+` in the name, the queue's [reader](Queue::reader), in the same
    /// way: `a+b+c` is the reader `b+c` of the queue `a`.
    ///
    /// Names of queues have 1 to 200 bytes of UTF-8 without NUL and `+`, those of readers as many without NUL. The first use of a
    /// queue recovers it, which takes time only for what was not closed in good order.
    ///
    /// # Errors
    /// [`OpenError::InvalidName`]; [`OpenError::Corrupt`], [`OpenError::MissingSegment`], [`OpenError::ForeignSegment`],
    /// [`OpenError::UnsupportedVersion`], [`OpenError::NotRegular`] for the queue's files, which are left as they are while
    /// other queues go on; [`OpenError::NoSpace`], [`OpenError::Io`], [`OpenError::Closed`], [`OpenError::Forked`].
    pub fn queue(&self, name: &str) -> Result<Queue, OpenError> {
        let core = self.load(name, Want::Create(None))?.ok_or(OpenError::Closed)?;
        Ok(self.handle(core))
    }

    /// The queue of this name with these options, which are stored: it is created with them, or they are put in force as by
    /// [`Queue::set_options`].
    ///
    /// # Errors
    /// As [`queue`](QueueSet::queue), and [`OpenError::Options`].
    pub fn queue_with(&self, name: &str, options: QueueOptions) -> Result<Queue, OpenError> {
        let own = QueueOverrides::from(options);
        self.check_given(&own, name)?;
        let core = self.load(name, Want::Create(Some(&own)))?.ok_or(OpenError::Closed)?;
        let queue = self.handle(core);
        // Where they are in force already, whosoever they are, nothing is stored.
        if own != queue.options().into() {
            queue.set_overrides(own)?;
        }
        Ok(queue)
    }

    /// The queue of this name with these options of its own, which are stored; the others follow the set's defaults, now and when
    /// they change. It is created with them, or they are put in force as by [`Queue::set_overrides`].
    ///
    /// # Errors
    /// As [`queue`](QueueSet::queue), and [`OpenError::Options`].
    pub fn queue_with_overrides(&self, name: &str, own: QueueOverrides) -> Result<Queue, OpenError> {
        self.check_given(&own, name)?;
        let core = self.load(name, Want::Create(Some(&own)))?.ok_or(OpenError::Closed)?;
        let queue = self.handle(core);
        if queue.overrides() != own {
            queue.set_overrides(own)?;
        }
        Ok(queue)
    }

    /// Before a queue is created for them; a reader looks at its own together with those of its queue.
    fn check_given(&self, own: &QueueOverrides, name: &str) -> Result<(), OptionsError> {
        match name.contains('+') {
            true => Ok(()),
            false => own.check_over(&self.inner.shared.defaults.read(), name).map(drop),
        }
    }

    /// The options of queues that have none of their own.
    pub fn defaults(&self) -> QueueOptions {
        self.inner.shared.defaults.read().clone()
    }

    /// Puts other defaults in force, until the set is closed: in every queue at once, for the options that are not its own. The
    /// builder brings the defaults anew at each open.
    ///
    /// # Errors
    /// [`OptionsError::Invalid`] names the field that is out of range; [`OptionsError::Queue`] the loaded queue in which they
    /// would be wrong together with its own, or would change `journal`. Nothing is changed then, in any queue. A queue that
    /// is not loaded answers [`OpenError::Options`] when it is.
    pub fn set_defaults(&self, options: QueueOptions) -> Result<(), OptionsError> {
        let inner = &self.inner;
        let check = || match inner.check_open() {
            Err(Error::Forked) => Err(OptionsError::Forked),
            Err(_) => Err(OptionsError::Closed),
            Ok(()) if inner.shared.read_only => Err(OptionsError::ReadOnly),
            Ok(()) => Ok(()),
        };
        check()?;
        options.check()?;
        let _changing = inner.shared.changing_options.lock();
        check()?;
        let old = std::mem::replace(&mut *inner.shared.defaults.write(), options.clone());
        let mut changes = Vec::new();
        // A queue that is loaded from here on has them, or looks again once it is.
        for core in inner.loaded() {
            let own = core.own.lock().clone();
            match core.options_over(&own, &options) {
                Ok(options) => changes.push((core, options)),
                Err(source) => {
                    *inner.shared.defaults.write() = old;
                    return Err(OptionsError::Queue { queue: core.name.clone(), source: Box::new(source) });
                }
            }
        }
        for (core, options) in changes {
            core.adopt(options);
        }
        Ok(())
    }

    /// The queue of this name if there is one.
    ///
    /// # Errors
    /// As [`queue`](QueueSet::queue).
    pub fn get_queue(&self, name: &str) -> Result<Option<Queue>, OpenError> {
        Ok(self.load(name, Want::Existing)?.map(|core| self.handle(core)))
    }

    /// The names of all queues, sorted; [`Queue::readers`] names the readers of one.
    pub fn names(&self) -> Vec<String> {
        let registry = self.inner.registry.lock();
        let aliases = self.inner.aliases.lock();
        registry.keys().filter(|name| !aliases.contains_key(*name)).cloned().collect()
    }

    /// Removes a queue with all its items, readers and files; `false` if there was none. `queue+reader` removes that reader alone:
    /// see [`Queue::delete_reader`].
    ///
    /// Who waits for an item of it gets `Closed` at once, and so does every later use of an old handle; a put that waits for the
    /// device is answered first. Items of it that are open stay with their consumers as values. A new queue of the same name
    /// starts empty, with ids above all earlier ones.
    /// After a crash during the call either all of the queue is there or nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if it could not be removed.
    pub fn delete(&self, name: &str) -> Result<bool, Error> {
        self.inner.check_open()?;
        if self.inner.shared.read_only {
            return Err(Error::ReadOnly);
        }
        let states = &self.inner.shared.states;
        states.may_put().map_err(|_| Error::State { state: states.in_force() })?;
        if let Some((queue, reader)) = name.split_once('+') {
            return match self.get_queue(queue)? {
                Some(queue) => queue.delete_reader(reader),
                None => Ok(false),
            };
        }
        if self.inner.aliases.lock().contains_key(name) {
            return Err(Error::Alias { name: name.to_owned() });
        }
        let Some(slot) = self.inner.registry.lock().get(name).cloned() else {
            return Ok(false);
        };
        let busy = slot.busy.lock();
        // While we waited for the slot, the set may have been closed: what is in its directory is no longer ours.
        self.inner.check_open()?;
        // Or somebody else has deleted this queue, and what has the name now is another one.
        if !self.inner.registry.lock().get(name).is_some_and(|current| Arc::ptr_eq(current, &slot)) {
            drop(busy);
            return self.delete(name);
        }
        let loaded = slot.core.lock().clone();
        if let Some(core) = &loaded {
            core.shut(false);
            core.answer_waiting();
        }
        let was_there = self.inner.bury_queue(name, &slot, loaded.as_deref())?;
        self.inner.deletes.fetch_add(was_there.into(), Ordering::Relaxed);
        Ok(was_there)
    }

    /// Opens the next item of the first of `queues` that has one, waiting up to `timeout` for any. Returns the index of its
    /// queue. Leaves nothing behind in the lines of the others.
    ///
    /// # Errors
    /// As [`Queue::open`], of the first queue that fails.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use std::time::Duration;
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// let both = [set.queue("urgent")?, set.queue("rest")?];
    /// both[1].put("later")?;
    /// let Some((index, item)) = set.open_any(&both, Duration::from_secs(1))? else { return Ok(()) };
    /// assert_eq!(index, 1);
    /// item.close()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_any(&self, queues: &[Queue], timeout: Duration) -> Result<Option<(usize, OpenItem)>, GetError> {
        let patience = Patience::lasting(timeout);
        let opened = |index: usize, given: Given| {
            (index, OpenItem::new(Arc::clone(&queues[index].core), given.item, given.serial))
        };
        for (index, queue) in queues.iter().enumerate() {
            queue.core.may_take()?;
            if let Took::Item(given) = queue.core.take(Mode::Open, None)? {
                return Ok(Some(opened(index, given)));
            }
        }
        if matches!(patience, Patience::None) || queues.is_empty() {
            queues.iter().for_each(|queue| queue.core.missed(Mode::Open));
            return Ok(None);
        }
        let places: Vec<_> = queues.iter().map(|queue| queue.core.join()).collect();
        loop {
            for (index, (queue, place)) in queues.iter().zip(&places).enumerate() {
                if let Took::Item(given) = queue.core.take(Mode::Open, Some(&place.ticket))? {
                    return Ok(Some(opened(index, given)));
                }
            }
            let tickets: Vec<_> = places.iter().map(|place| &place.ticket).collect();
            if !sleep_any(&tickets, patience.deadline()) {
                for (index, (queue, place)) in queues.iter().zip(&places).enumerate() {
                    if let Took::Item(given) = queue.core.take(Mode::Open, Some(&place.ticket))? {
                        return Ok(Some(opened(index, given)));
                    }
                }
                queues.iter().for_each(|queue| queue.core.missed(Mode::Open));
                return Ok(None);
            }
        }
    }

    /// Allows more or less from now on, until the set is closed: see [`State`].
    ///
    /// Once this has returned, nothing begins any more that the state does not allow: it answers with the error `State`. Whoever
    /// waits is told at once: a put for room under `ReadOnly`, a get for an item under `Quiescent`. A looser state ends a
    /// stricter one that is on its way. The set's files stay as they are.
    ///
    /// # Errors
    /// [`StateError::Pending`] where a stricter state is asked for and another one is on its way; nothing is changed then.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use kestrel_core::{PutError, QueueSet, State};
    /// let set = QueueSet::open(dir.path())?;
    /// let jobs = set.queue("jobs")?;
    /// jobs.put("one")?;
    /// set.set_state(State::ReadOnly)?;
    /// assert!(matches!(jobs.put("two"), Err(PutError::State { state: State::ReadOnly })));
    /// assert!(jobs.try_get()?.is_some());
    /// set.set_state(State::Up)?;
    /// jobs.put("two")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_state(&self, state: State) -> Result<(), StateError> {
        self.set_state_with(state, &StateOptions::new())
    }

    /// As [`set_state`](QueueSet::set_state), with a period of grace before a stricter state, or stored for the next open. Where
    /// it is not stored, the next open begins in the state that was stored last, or `Up`.
    ///
    /// # Errors
    /// As `set_state`; [`StateError::Io`] if it could not be stored, and nothing is changed then.
    pub fn set_state_with(&self, state: State, options: &StateOptions) -> Result<(), StateError> {
        let inner = &self.inner;
        let check = || match inner.check_open() {
            Err(Error::Forked) => Err(StateError::Forked),
            Err(_) => Err(StateError::Closed),
            Ok(()) if inner.shared.read_only => Err(StateError::ReadOnly),
            Ok(()) => Ok(()),
        };
        check()?;
        let states = &inner.shared.states;
        let mut pending = states.pending.lock();
        check()?;
        let in_force = states.in_force();
        if let Some((pending, _)) = *pending
            && state > in_force
        {
            return Err(StateError::Pending { in_force, pending });
        }
        if options.persist {
            let io = |source| StateError::Io { path: inner.dir.join("set"), source };
            inner.store_state(state).map_err(io)?;
        }
        let grace_ms = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
        if state > in_force && grace_ms > 0 {
            *pending = Some((state, inner.shared.disk.mono_exact_ms().saturating_add(grace_ms)));
            inner.shared.upkeep.ring(Chore::Tighten(Arc::downgrade(&inner.shared), grace_ms));
            return Ok(());
        }
        *pending = None;
        let wakes = inner.enforce(state);
        drop(pending);
        wakes.wake();
        Ok(())
    }

    /// The state in force. A set opened read-only is always `Up`.
    pub fn state(&self) -> State {
        self.inner.shared.states.in_force()
    }

    /// The stricter state that comes into force when its period of grace is over.
    pub fn pending_state(&self) -> Option<State> {
        self.inner.shared.states.pending.lock().map(|(state, _)| state)
    }

    /// Makes everything done so far in all loaded queues durable.
    ///
    /// # Errors
    /// The first [`SyncError`] met; the other queues are synced all the same.
    pub fn sync(&self) -> Result<(), SyncError> {
        if self.inner.shared.fork.forked() {
            return Err(SyncError::Forked);
        }
        if self.inner.shared.closed.load(Ordering::Acquire) {
            return Err(SyncError::Closed);
        }
        let mut result = Ok(());
        for core in self.inner.loaded() {
            match core.sync() {
                // It is being deleted: nothing of it will be missed.
                Err(SyncError::Closed) if !self.inner.shared.closed.load(Ordering::Acquire) => {}
                synced => result = result.and(synced),
            }
        }
        result
    }

    /// The set's counters and gauges.
    pub fn stats(&self) -> SetStats {
        let loaded = self.inner.loaded();
        let (pool_segments, pool_bytes, disk_bytes) = self.inner.pool.gauges();
        let mut stats = SetStats {
            queues: self.inner.registry.lock().len() as u64,
            open_queues: loaded.len() as u64,
            queue_creates: self.inner.creates.load(Ordering::Relaxed),
            queue_deletes: self.inner.deletes.load(Ordering::Relaxed),
            queue_expires: self.inner.expires.load(Ordering::Relaxed),
            pool_segments,
            open_files: self.inner.pool.files.open(),
            pool_bytes,
            disk_bytes,
            ..SetStats::default()
        };
        for core in loaded {
            core.each(|core| {
                let reader = core.reader.lock();
                stats.curr_items += reader.items();
                stats.bytes += reader.bytes();
            });
        }
        stats
    }

    /// Whether the set was opened for looking only.
    pub fn is_read_only(&self) -> bool {
        self.inner.shared.read_only
    }

    /// The time as the set's items see it: the wall clock when the set was opened, never before its newest put, and what has passed
    /// since. It never goes back; a clock that is set meanwhile does not move it.
    pub fn now(&self) -> SystemTime {
        item::at(self.inner.shared.clock.exact_ms())
    }

    /// The time that the wall clock shows now, whatever it has shown before.
    pub fn wall_clock(&self) -> SystemTime {
        item::at(self.inner.shared.disk.wall_ms())
    }

    /// What a layer above keeps of this set, one of each type: made at the first call, the same for all handles from then on, and
    /// dropped with the last of them. It must not hold a handle of the set or of its queues, or the set stays open.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// let set = kestrel_core::QueueSet::open(dir.path())?;
    /// set.attached(|| AtomicU64::new(7)).fetch_add(1, Ordering::Relaxed);
    /// assert_eq!(set.clone().attached(|| AtomicU64::new(0)).load(Ordering::Relaxed), 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn attached<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let find = |attached: &[Arc<dyn Any + Send + Sync>]| {
            attached.iter().find_map(|any| Arc::clone(any).downcast::<T>().ok())
        };
        if let Some(found) = find(&self.inner.attached.lock()) {
            return found;
        }
        // The caller's code runs without the lock; of two that are made at once the first is kept.
        let made = Arc::new(make());
        let mut attached = self.inner.attached.lock();
        find(&attached).unwrap_or_else(|| {
            attached.push(Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
            made
        })
    }

    /// Closes the set for all its handles: wakes everybody who waits (with `Closed`), makes all durable, ends the background
    /// thread, gives the lock up.
    ///
    /// Dropping the last handle does the same, without telling of errors. Items still open come back with the next open, and
    /// the starts that this interrupts are not counted.
    ///
    /// # Errors
    /// The first failed sync; the set is closed all the same.
    pub fn close(self) -> Result<(), Error> {
        self.inner.check_open()?;
        self.inner.close().map_err(Error::from)
    }

    /// Removes up to `max` expired items from each queue and each reader now, and returns how many in all. The background does this once a
    /// second by itself for the queues that are open; this opens the others.
    ///
    /// # Errors
    /// As [`Queue::discard_expired`], or what opening a queue answers; the queues before it were swept.
    #[doc(alias = "flush_all_expired")]
    pub fn discard_expired(&self, max: usize) -> Result<u64, Error> {
        let mut gone = 0;
        for name in self.names() {
            if let Some(queue) = self.get_queue(&name)? {
                gone += queue.discard_expired(max)?;
                for reader in queue.readers().iter().filter_map(|name| queue.get_reader(name)) {
                    gone += reader.discard_expired(max)?;
                }
            }
        }
        Ok(gone)
    }

    /// Runs the chores that a background thread does on a real disk.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn run_upkeep(&self) {
        self.inner.shared.upkeep.run_pending();
    }

    /// Runs the background chores that are due; a set on a simulated disk has no thread for them.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn run_chores(&self) {
        self.inner.shared.upkeep.run_pending();
    }

    fn load(&self, name: &str, want: Want<'_>) -> Result<Option<Arc<Core>>, OpenError> {
        self.inner.load(name, want)
    }
}

impl Neighbours for Inner {
    fn queue(&self, name: &str) -> Result<Arc<Core>, OpenError> {
        self.load(name, Want::Needed)?.ok_or(OpenError::Closed)
    }

    fn expire(&self, core: &Core) {
        let Some(slot) = self.registry.lock().get(&core.name).cloned() else {
            return;
        };
        // Whoever holds the slot is not waited for: the next look comes soon.
        let Some(_busy) = slot.busy.try_lock() else {
            return;
        };
        let current = slot.core.lock().clone();
        let is_this = current.is_some_and(|current| std::ptr::eq(&*current, core));
        if is_this && self.check_open().is_ok() && self.shared.states.may_put().is_ok() && core.shut_idle() {
            // What could not be removed is there again after the next open, empty and old.
            let _ = self.bury_queue(&core.name, &slot, Some(core));
            self.expires.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tighten(&self) {
        let mut pending = self.shared.states.pending.lock();
        let is_due = |(_, due_ms): &mut (State, u64)| *due_ms <= self.shared.disk.mono_exact_ms();
        if let Some((state, _)) = pending.take_if(is_due)
            && self.check_open().is_ok()
        {
            let wakes = self.enforce(state);
            drop(pending);
            wakes.wake();
        }
    }
}

impl Inner {
    /// Removes a queue that has been shut, or was never loaded; `false`: there was none. The caller holds its slot.
    fn bury_queue(&self, name: &str, slot: &Slot, loaded: Option<&Core>) -> Result<bool, Error> {
        let highest = match loaded {
            Some(core) => {
                // What moves here has been told `Closed`, or is stored and about to be marked.
                while core.pay().below != u64::MAX {
                    thread::park_timeout(Duration::from_millis(1));
                }
                core.journal.disarm();
                core.journal.appended()
            }
            None => self.highest_id(name),
        };
        let has_files = loaded.is_none_or(|core| core.has_journal());
        self.raise_id_floor(highest).map_err(|source| Error::Io { path: self.dir.join("set"), source })?;
        let was_there = !has_files || self.remove_files(name, loaded)?;
        self.shared.moves.leave(name);
        for reader in loaded.map_or_else(Vec::new, Core::names) {
            self.shared.moves.leave(&format!("{name}+{reader}"));
        }
        *slot.core.lock() = None;
        self.registry.lock().remove(name);
        Ok(was_there)
    }

    /// Puts a state in force. Once this is done, nothing begins any more that it does not allow.
    fn enforce(&self, state: State) -> Wakes {
        self.shared.states.enforce(state);
        let mut wakes = Wakes::default();
        for core in self.loaded() {
            core.meet_state(&mut wakes);
        }
        wakes
    }

    fn store_state(&self, state: State) -> io::Result<()> {
        let mut file = self.meta.lock();
        if file.meta.state == state.code() {
            return Ok(());
        }
        let changed = SetMeta { state: state.code(), ..file.meta.clone() };
        store_set_meta(&mut file, changed)
    }
}

impl Inner {
    fn check_open(&self) -> Result<(), Error> {
        if self.shared.fork.forked() {
            return Err(Error::Forked);
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(())
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.registry.lock().values().cloned().collect()
    }

    fn loaded(&self) -> Vec<Arc<Core>> {
        self.slots().iter().filter_map(|slot| slot.core.lock().clone()).collect()
    }

    /// The queue is gone when its directory has left; what is in it is removed afterwards, or at the next open. `false`: there
    /// was none yet, of a queue that somebody is about to create.
    fn remove_files(&self, name: &str, core: Option<&Core>) -> Result<bool, Error> {
        let disk = &self.shared.disk;
        let dir = self.queue_dir(name);
        let io = |source| Error::Io { path: dir.clone(), source };
        let trash = self.dir.join("trash");
        let grave = trash.join(format!("{:016x}", disk.random_u64().map_err(io)?));
        self.trash_unsynced.store(true, Ordering::Release);
        match disk.rename(&dir, &grave) {
            Err(error) if core.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(false),
            renamed => renamed.map_err(io)?,
        }
        if let Some(core) = core {
            self.pool.forget_bytes(core.journal.leave());
        }
        disk.sync_dir(&trash).map_err(io)?;
        self.trash_unsynced.store(false, Ordering::Release);
        let parent = dir.parent().unwrap_or(&self.dir);
        disk.sync_dir(parent).map_err(io)?;
        empty_trash(disk, &trash);
        // Directories of a long name that hold nothing any more; harmless if they stay.
        let queues = self.dir.join("queues");
        let mut parent = dir.parent();
        while let Some(dir) = parent.filter(|dir| *dir != queues && dir.starts_with(&queues)) {
            if disk.remove_dir(dir).is_err() {
                break;
            }
            parent = dir.parent();
        }
        Ok(true)
    }

    fn close(&self) -> Result<(), SyncError> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // A queue that is just being loaded is waited for; one that is loaded later finds the set closed.
        let loaded = |slot: &Arc<Slot>| {
            let _busy = slot.busy.lock();
            slot.core.lock().clone()
        };
        let cores: Vec<Arc<Core>> = self.slots().iter().filter_map(loaded).collect();
        for core in &cores {
            core.shut(!self.shared.read_only);
        }
        self.shared.upkeep.stop();
        // A move that has put its item is about to mark the old one; one that has not is told `Closed`.
        while !self.shared.moves.close() {
            thread::park_timeout(Duration::from_millis(1));
        }
        let mut result = Ok(());
        for core in &cores {
            result = result.and(core.settle());
            core.journal.close_meta();
        }
        if result.is_ok() && !self.shared.read_only && !self.shared.unmarked.load(Ordering::Acquire) {
            // What cannot be removed is looked through by the next open, in vain.
            let _ = self.shared.moves.forget();
        }
        // Slot by slot without the registry: who loads or deletes a queue takes it while holding the slot.
        for slot in self.slots() {
            let _busy = slot.busy.lock();
            *slot.core.lock() = None;
        }
        if let Some(file) = self.lock.lock().take() {
            // Closing the file would not be enough while a child has it.
            let _ = file.unlock();
        }
        result
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.fork.forked() {
            self.shared.upkeep.abandon();
            return;
        }
        // Nobody is left to be told of an error; `close` is there for who wants to know.
        let _ = self.close();
    }
}

impl fmt::Debug for QueueSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSet").field("path", &self.inner.dir).finish_non_exhaustive()
    }
}

/// Checks the name of a queue, or of a reader, `queue+reader`.
fn check_name(name: &str) -> Result<(), OpenError> {
    let (queue, reader) = name.split_once('+').map_or((name, None), |(queue, reader)| (queue, Some(reader)));
    let checked = name::check(queue).and_then(|()| reader.map_or(Ok(()), name::check_reader));
    checked.map_err(|reason| OpenError::InvalidName { name: name.to_owned(), reason })
}

fn open_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    if let Some(what) = disk::as_not_regular(&source) {
        return OpenError::NotRegular { path, what };
    }
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => OpenError::ReadOnly { path },
        _ if disk::is_no_space(&source) => OpenError::NoSpace { path, source },
        _ if disk::is_too_many_files(&source) => OpenError::TooManyFiles { path, source },
        _ => OpenError::Io { path, source },
    }
}

/// Up to `max` bytes from the start of a file.
fn read_small(file: &File, max: usize) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).unwrap_or(max).min(max);
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn store_set_meta(file: &mut SetFile, changed: SetMeta) -> io::Result<()> {
    let SetFile { meta, slots } = file;
    slots.prove(|sequence| meta::encode_set(meta, sequence))?;
    slots.store(|sequence| meta::encode_set(&changed, sequence))?;
    *meta = changed;
    Ok(())
}

/// Removes what deleted queues have left. Whatever cannot be removed waits for the next open.
fn empty_trash(disk: &Disk, trash: &Path) {
    for grave in disk.list(trash).unwrap_or_default() {
        let dir = trash.join(&grave.name);
        for entry in disk.list(&dir).unwrap_or_default() {
            let _ = disk.unlink(&dir.join(&entry.name));
        }
        let _ = disk.remove_dir(&dir);
    }
}
