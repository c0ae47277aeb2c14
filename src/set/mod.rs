//! A directory of queues: its lock, its registry, how it opens and closes.
//!
//! ```text
//! <dir>/lock                     held while the set is open; the holder's process id
//! <dir>/set                      set id, and the highest id of any deleted queue
//! <dir>/aliases                  names that stand for several queues, if there are any
//! <dir>/moves                    which queues items move between, while that is not settled
//! <dir>/queues/<encoded name>/   meta, <number>.new, <number>.seg
//! <dir>/pool/<number>.spare      segments for re-use
//! <dir>/trash/                   deleted queues on their way out
//! ```

mod alias;

pub use alias::Alias;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::disk::{self, Disk, EntryKind, File, ForkGuard};
use crate::error::{Error, GetError, OpenError, OptionsError, StateError, SyncError};
use crate::format::alias::Aliases;
use crate::format::header;
use crate::format::meta::{self, QueueMeta, SetMeta};
use crate::format::{Fault, VERSION, name};
use crate::item;
use crate::journal::moves::{Moves, Route};
use crate::journal::pool::Pool;
use crate::journal::recovery::{Outcome, Recovery, Wishes};
use crate::journal::{Context, Journal, MetaFile, SlotFile, ids_after_loss};
use crate::options::{Durability, OnDamage, QueueOptions, QueueOverrides, State, StateOptions};
use crate::planted::{self, Bug};
use crate::queue::Queue;
use crate::queue::archive::{Archive, RetiredSegment};
use crate::queue::core::{Core, Patience, Shared};
use crate::queue::handoff::Neighbours;
use crate::queue::open_item::OpenItem;
use crate::queue::state::States;
use crate::queue::take::{Given, Mode, Took};
use crate::reader::Reader;
use crate::reader::waiters::{Wakes, sleep_any};
use crate::stats::{RecoveryProgress, SetStats};
use crate::sync::thread;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock};
use crate::upkeep::{Chore, Upkeep};

type OnRecovery = Arc<dyn Fn(&RecoveryProgress) -> bool + Send + Sync>;

/// A directory with its named queues: a cheap handle, to be cloned at will.
///
/// One process at a time has a set open for writing; a second opener gets [`OpenError::Locked`] at once. Queues are loaded
/// when first used. The set closes when [`close`](QueueSet::close) is called, or when the last handle of it and of its queues
/// is dropped.
///
/// # Fork
/// In a forked child every operation that can fail answers `Forked`, and dropping the handles there changes nothing. While such a child
/// lives, it keeps the lock of a parent that has ended: the next opener gets `Locked`.
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
    /// Given up at close, so that the directory can be opened again while handles are still around.
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

/// How a set is to be opened: [`QueueSet::builder`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use kestrel_core::{Durability, QueueOptions, QueueSet};
/// let set = QueueSet::builder()
///     .defaults(QueueOptions::default().durability(Durability::Os))
///     .queue_options("payments", QueueOptions::default())
///     .max_disk_bytes(1 << 30)
///     .open(dir.path())?;
/// assert_eq!(set.queue("logs")?.options().durability, Durability::Os);
/// assert_eq!(set.queue("payments")?.options().durability, Durability::Sync);
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `open`"]
pub struct QueueSetBuilder {
    defaults: QueueOptions,
    overrides: HashMap<String, QueueOverrides>,
    max_disk_bytes: u64,
    pool_bytes: u64,
    on_damage: OnDamage,
    on_recovery: Option<OnRecovery>,
    archive: Option<Archive>,
    read_only: bool,
    disk: Disk,
}

impl Default for QueueSetBuilder {
    fn default() -> Self {
        QueueSetBuilder {
            defaults: QueueOptions::default(),
            overrides: HashMap::new(),
            max_disk_bytes: u64::MAX,
            pool_bytes: 256 << 20,
            on_damage: OnDamage::Refuse,
            on_recovery: None,
            archive: None,
            read_only: false,
            disk: Disk::real(),
        }
    }
}

impl QueueSetBuilder {
    /// Options of queues that have none of their own.
    pub fn defaults(mut self, options: QueueOptions) -> Self {
        self.defaults = options;
        self
    }

    /// Options of one queue; they win over the defaults and over what the queue has stored.
    pub fn queue_options(self, name: &str, options: QueueOptions) -> Self {
        self.queue_overrides(name, options.into())
    }

    /// Some options of one queue, in place of what the queue has stored; the others follow the defaults.
    pub fn queue_overrides(mut self, name: &str, own: QueueOverrides) -> Self {
        self.overrides.insert(name.to_owned(), own);
        self
    }

    /// Most bytes of segment files, spares included, over all queues that are loaded. A put that would need more is refused
    /// with [`Limit::Disk`](crate::Limit::Disk), or drops oldest items where `when_full` says so. Default: no limit.
    pub fn max_disk_bytes(mut self, bytes: u64) -> Self {
        self.max_disk_bytes = bytes;
        self
    }

    /// Most bytes of segments kept for re-use. Default: 256 MiB.
    pub fn pool_bytes(mut self, bytes: u64) -> Self {
        self.pool_bytes = bytes;
        self
    }

    /// What to do with a damaged queue. Default: refuse to open that queue.
    pub fn on_damage(mut self, choice: OnDamage) -> Self {
        self.on_damage = choice;
        self
    }

    /// Told while a queue is recovered, once per segment; answering `false` cancels ([`OpenError::Cancelled`]), and nothing
    /// is changed. The callback may ask the set for all but the queue it is told of, and must not close it.
    pub fn on_recovery(mut self, callback: impl Fn(&RecoveryProgress) -> bool + Send + Sync + 'static) -> Self {
        self.on_recovery = Some(Arc::new(callback));
        self
    }

    /// Shows every segment whose items are all done to `archive` before its file is used again or removed: to copy it, or its
    /// items, to a place of their own.
    ///
    /// Called by the background thread, by a put that makes room, or by [`QueueSet::close`], without any lock held that the
    /// callback could need; it must not close the set. While it answers an error, or panics, the segment stays and is shown again after a second. A
    /// segment may be shown again after a crash; none is skipped, except those of a queue that is deleted.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let kept = tempfile::tempdir()?;
    /// # let place = kept.path().to_owned();
    /// let set = kestrel_core::QueueSet::builder()
    ///     .archive(move |segment| {
    ///         let name = format!("{}-{}", segment.queue(), segment.number());
    ///         std::fs::copy(segment.path(), place.join(name)).map(|_| ())
    ///     })
    ///     .open(dir.path())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn archive(mut self, callback: impl Fn(&RetiredSegment<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.archive = Some(Arc::new(callback));
        self
    }

    /// Opens for looking only: creates nothing, takes no lock, changes nothing. `peek`, `len`, `names` and `stats` work. The
    /// state shown is that of the moment in which a queue is first looked at.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn disk(mut self, disk: Disk) -> Self {
        self.disk = disk;
        self
    }

    /// A set on a simulated disk.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn simulated(self, disk: &crate::testing::SimDisk) -> Self {
        self.disk(Disk::Sim(disk.clone()))
    }

    /// Opens the set in `dir`, creating it if there is none.
    ///
    /// Lists the queues; each is recovered when it is first used.
    ///
    /// # Errors
    /// [`OpenError::Locked`], [`OpenError::ReadOnly`], [`OpenError::UnsupportedVersion`], [`OpenError::Corrupt`] for the set's
    /// own header, [`OpenError::Options`] for options out of range, [`OpenError::Io`].
    pub fn open(self, dir: impl AsRef<Path>) -> Result<QueueSet, OpenError> {
        let dir = dir.as_ref();
        self.defaults.check()?;
        for (name, own) in &self.overrides {
            check_name(name)?;
            own.check_over(&self.defaults, name)?;
        }
        let disk = &self.disk;
        let io = |error| open_error(dir, error);
        let lock = if self.read_only {
            None
        } else {
            // Also where the directory is there: whoever made it may have died before its name was durable.
            let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && disk.list(dir).is_err();
            let missing = dir.ancestors().take_while(is_missing).count();
            disk.create_dir_all(dir).map_err(io)?;
            for parent in dir.ancestors().skip(1).take(missing.max(1)) {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                match disk.sync_dir(parent) {
                    // Somebody else's directory, which was there before.
                    Err(error) if missing == 0 && error.kind() == io::ErrorKind::PermissionDenied => {}
                    synced => synced.map_err(io)?,
                }
            }
            Some(take_lock(disk, &dir.join("lock"))?)
        };
        let file = open_set_file(disk, dir, self.read_only)?;
        let aliases = alias::load(disk, dir, file.meta.set_id)?;
        let queues = dir.join("queues");
        let pool_dir = dir.join("pool");
        if !self.read_only {
            for dir in [&queues, &pool_dir, &dir.join("trash")] {
                disk.create_dir_all(dir).map_err(|e| open_error(dir, e))?;
            }
            disk.sync_dir(dir).map_err(io)?;
            let trash = dir.join("trash");
            if !disk.list(&trash).map_err(io)?.is_empty() {
                // A queue that an earlier process was deleting must not come back without its files.
                disk.sync_dir(&trash).map_err(io)?;
                disk.sync_dir(&queues).map_err(io)?;
            }
            empty_trash(disk, &trash);
        }
        let mut names = BTreeMap::new();
        list_queues(disk, &queues, &mut Vec::new(), &mut names).map_err(|e| open_error(&queues, e))?;
        let pool = Pool::open(disk.clone(), pool_dir.clone(), self.pool_bytes, self.max_disk_bytes, self.read_only)
            .map_err(|e| open_error(&pool_dir, e))?;
        let shared = Arc::new(Shared {
            disk: disk.clone(),
            clock: Clock::new(disk.clone()),
            fork: ForkGuard::new(),
            upkeep: Upkeep::start(disk).map_err(io)?,
            closed: AtomicBool::new(false),
            read_only: self.read_only,
            states: States::new(match State::from_code(file.meta.state) {
                Some(state) if !self.read_only => state,
                _ => State::Up,
            }),
            defaults: RwLock::new(self.defaults),
            changing_options: Mutex::new(()),
            salvage: self.on_damage == OnDamage::Salvage,
            moves: Moves::new(disk.clone(), dir, file.meta.set_id),
            unmarked: AtomicBool::new(false),
            settling: AtomicBool::new(false),
            neighbours: OnceLock::new(),
            archive: self.archive,
        });
        let set = QueueSet {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                set_id: file.meta.set_id,
                boot_id: disk.boot_id(),
                shared,
                pool: Arc::new(pool),
                overrides: self.overrides,
                on_recovery: self.on_recovery,
                registry: Mutex::new(names),
                aliases: Mutex::new(aliases),
                changing_aliases: Mutex::new(()),
                meta: Mutex::new(file),
                trash_unsynced: AtomicBool::new(false),
                lock: Mutex::new(lock),
                creates: AtomicU64::new(0),
                deletes: AtomicU64::new(0),
                expires: AtomicU64::new(0),
                attached: Mutex::new(Vec::new()),
            }),
        };
        let inner: Weak<Inner> = Arc::downgrade(&set.inner);
        let _ = set.inner.shared.neighbours.set(inner);
        if !self.read_only {
            set.inner.settle_moves().map_err(|e| open_error(&dir.join("moves"), e))?;
        }
        Ok(set)
    }
}

impl fmt::Debug for QueueSetBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSetBuilder").field("defaults", &self.defaults).finish_non_exhaustive()
    }
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

    /// The queue of this name, created if there is none.
    ///
    /// Names have 1 to 200 bytes of UTF-8 without NUL and `+`. The first use of a queue recovers it, which takes time only
    /// for what was not closed in good order.
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
        own.check_over(&self.inner.shared.defaults.read(), name)?;
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
        own.check_over(&self.inner.shared.defaults.read(), name)?;
        let core = self.load(name, Want::Create(Some(&own)))?.ok_or(OpenError::Closed)?;
        let queue = self.handle(core);
        if queue.overrides() != own {
            queue.set_overrides(own)?;
        }
        Ok(queue)
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

    /// The names of all queues, sorted.
    pub fn names(&self) -> Vec<String> {
        let registry = self.inner.registry.lock();
        let aliases = self.inner.aliases.lock();
        registry.keys().filter(|name| !aliases.contains_key(*name)).cloned().collect()
    }

    /// Removes a queue with all its items and files; `false` if there was none.
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
            pool_bytes,
            disk_bytes,
            ..SetStats::default()
        };
        for core in loaded {
            let reader = core.reader.lock();
            stats.curr_items += reader.items();
            stats.bytes += reader.bytes();
        }
        stats
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

    /// Removes up to `max` expired items from each queue now, and returns how many in all. The background does this once a
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

#[derive(Clone, Copy)]
enum Want<'a> {
    Existing,
    /// By the set itself, in whatever state it is.
    Needed,
    Create(Option<&'a QueueOverrides>),
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

    fn load(&self, name: &str, want: Want<'_>) -> Result<Option<Arc<Core>>, OpenError> {
        check_name(name)?;
        let inner = self;
        inner.check_open().map_err(|error| match error {
            Error::Forked => OpenError::Forked,
            _ => OpenError::Closed,
        })?;
        let (slot, is_new) = {
            let mut registry = inner.registry.lock();
            if inner.aliases.lock().contains_key(name) {
                return Err(OpenError::Alias { name: name.to_owned() });
            }
            match registry.get(name) {
                Some(slot) => (Arc::clone(slot), false),
                None => match want {
                    Want::Existing => return Ok(None),
                    _ if inner.shared.read_only => {
                        return Err(OpenError::ReadOnly { path: inner.dir.clone() });
                    }
                    Want::Create(_) if inner.shared.states.may_put().is_err() => {
                        return Err(OpenError::State { state: inner.shared.states.in_force() });
                    }
                    Want::Create(_) | Want::Needed => {
                        let slot = Arc::new(Slot::default());
                        registry.insert(name.to_owned(), Arc::clone(&slot));
                        (slot, true)
                    }
                },
            }
        };
        let busy = slot.busy.lock();
        if let Some(core) = slot.core.lock().clone() {
            return Ok(Some(core));
        }
        // While we waited for the slot, the queue may have been deleted, or the set closed.
        if !inner.registry.lock().get(name).is_some_and(|current| Arc::ptr_eq(current, &slot)) {
            drop(busy);
            return self.load(name, want);
        }
        if inner.shared.closed.load(Ordering::Acquire) {
            return Err(OpenError::Closed);
        }
        let given = match want {
            Want::Create(options) => options,
            Want::Existing | Want::Needed => None,
        };
        match inner.open_queue(name, given) {
            Ok((core, created)) => {
                *slot.core.lock() = Some(Arc::clone(&core));
                // The defaults may have changed while it was being loaded.
                let _changing = inner.shared.changing_options.lock();
                let own = core.own.lock().clone();
                let options = core.options_over(&own, &inner.shared.defaults.read());
                if let Ok(options) = options
                    && !inner.shared.read_only
                {
                    core.adopt(options);
                }
                inner.creates.fetch_add(u64::from(created), Ordering::Relaxed);
                Ok(Some(core))
            }
            Err(error) => {
                if is_new {
                    inner.registry.lock().remove(name);
                }
                Err(error)
            }
        }
    }
}

impl Inner {
    /// Marks what moved before a crash, and forgets the routes of it. Queues that do not open now are left to the next open of
    /// the set; what is delivered of them meanwhile may be delivered twice.
    fn settle_moves(&self) -> io::Result<()> {
        let routes = self.shared.moves.found()?;
        if routes.is_empty() {
            return self.shared.moves.forget();
        }
        self.shared.settling.store(true, Ordering::Release);
        let mut kept = Vec::new();
        // The newest note of a pair counts.
        let newest: BTreeMap<(&str, &str), u64> =
            routes.iter().map(|route| ((route.from.as_str(), route.into.as_str()), route.floor)).collect();
        for ((from, into), floor) in newest {
            match self.settle_route(from, into, floor) {
                Ok(()) => {}
                Err(_) => kept.push(Route { from: from.to_owned(), into: into.to_owned(), floor }),
            }
        }
        for route in &kept {
            // The next open needs the note, and what it leads to.
            self.shared.unmarked.store(true, Ordering::Release);
            if let Ok(Some(into)) = self.load(&route.into, Want::Existing) {
                into.keep_all();
            }
        }
        let done = self.shared.moves.keep(kept);
        self.shared.settling.store(false, Ordering::Release);
        for core in self.loaded() {
            core.ring_free();
        }
        done
    }

    fn settle_route(&self, from: &str, into: &str, floor: u64) -> Result<(), Error> {
        let (Some(from), Some(into)) = (self.load(from, Want::Existing)?, self.load(into, Want::Existing)?) else {
            // Whoever deletes a queue first makes the marks durable that it vouches for.
            return Ok(());
        };
        let io = |source| Error::Io { path: self.dir.join("moves"), source };
        let moved = into.successors_of(from.journal.queue_id(), floor).map_err(io)?;
        if !moved.is_empty() {
            // A process that died may have left the new ones in the page cache only: they must not be less durable than the
            // marks of the old ones.
            into.sync_round()?;
        }
        from.forget_moved(&moved).map_err(io)?;
        from.sync_round()?;
        Ok(())
    }

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

    fn queue_dir(&self, name: &str) -> PathBuf {
        let mut dir = self.dir.join("queues");
        dir.extend(name::encode(name));
        dir
    }

    /// Recovers or creates a queue; says whether it was created.
    fn open_queue(&self, name: &str, given: Option<&QueueOverrides>) -> Result<(Arc<Core>, bool), OpenError> {
        let disk = &self.shared.disk;
        let dir = self.queue_dir(name);
        let id_floor = self.meta.lock().meta.id_floor;
        let preset = self.overrides.get(name).or(given);
        let mut meta = match disk.open(&dir.join("meta"), !self.shared.read_only) {
            Ok(file) => Some(self.read_meta(name, &dir, file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(open_error(&dir.join("meta"), error)),
        };
        if let Some(MetaFile { slots: Some(slots), .. }) = &meta
            && slots.is_first()
            && !self.shared.read_only
            && !planted::is(Bug::UnsyncedNames)
        {
            // Whoever made it may have died, or failed, before its names were durable.
            self.sync_names(&dir).map_err(|error| open_error(&dir, error))?;
        }
        let created = meta.is_none();
        let own = match (&meta, preset) {
            (_, Some(own)) => own.clone(),
            (Some(file), None) => QueueOverrides::from_bytes(&file.meta.options).ok_or_else(|| OpenError::Corrupt {
                queue: name.to_owned(),
                path: dir.join("meta"),
                segment: None,
                offset: 0,
                what: "options",
            })?,
            _ => QueueOverrides::default(),
        };
        let options = own.check_over(&self.shared.defaults.read(), name)?;
        if !created && !options.journal {
            return Err(OptionsError::Journal { queue: name.to_owned(), items: 0 }.into());
        }
        if meta.is_none() && self.shared.read_only {
            return Err(OpenError::Io { path: dir.join("meta"), source: io::ErrorKind::NotFound.into() });
        }
        let meta = match meta.take() {
            Some(meta) => meta,
            None => self.create_meta(name, &dir, given, &options)?,
        };
        let create_ms = meta.meta.create_ms;
        let context = Context {
            disk: disk.clone(),
            pool: Arc::clone(&self.pool),
            dir: options.journal.then(|| dir.clone()),
            set_id: self.set_id,
            boot_id: self.boot_id,
            queue: name.to_owned(),
            read_only: self.shared.read_only,
        };
        let outcome = self.recover(&context, &dir, meta, &options, id_floor)?;
        self.shared.clock.observe(outcome.newest_ms);
        let unproven = !outcome.recovered.unsynced.is_empty();
        let has_segments = !outcome.recovered.entries.is_empty();
        let durability = options.durability;
        let has_journal = options.journal;
        let journal = Journal::new(context, outcome.recovered, options.segment_bytes);
        let front = Arc::clone(&journal.front);
        let reader = Reader::new(front, outcome.first, journal.newest(), outcome.items, outcome.bytes);
        let core = Core::new(
            name.to_owned(),
            Arc::clone(&self.shared),
            journal,
            reader,
            options.clone(),
            outcome.report,
            create_ms,
            has_journal,
        );
        *core.own.lock() = own;
        if !self.shared.read_only {
            if unproven && durability != Durability::Os && !planted::is(Bug::ServeUnproven) {
                core.sync_round().map_err(|error| {
                    let (_, bytes, _) = core.journal.gauges();
                    self.pool.forget_bytes(bytes);
                    OpenError::Io {
                        path: dir.clone(),
                        source: match error {
                            SyncError::Failed { source, .. } => io::Error::new(source.kind(), source),
                            other => io::Error::other(other),
                        },
                    }
                })?;
            }
            if has_segments {
                core.ring_free();
                core.apply(options);
            }
            core.ring_age();
        }
        Ok((core, created))
    }

    fn recover(
        &self,
        context: &Context,
        dir: &Path,
        meta: MetaFile,
        options: &QueueOptions,
        id_floor: u64,
    ) -> Result<Outcome, OpenError> {
        if context.dir.is_none() {
            return Ok(Recovery::nothing(meta, id_floor));
        }
        let progress = |done, total| {
            let Some(callback) = &self.on_recovery else {
                return true;
            };
            callback(&RecoveryProgress { queue: context.queue.clone(), segments_done: done, segments_total: total })
        };
        let wishes = Wishes {
            salvage: self.shared.salvage,
            cache_promised: options.durability == Durability::Os,
            segment_bytes: options.segment_bytes,
            keep_cleared: self.shared.archive.is_some() || self.shared.settling.load(Ordering::Acquire),
            id_floor,
            progress: &progress,
        };
        Recovery::new(context, wishes).run(dir, meta)
    }

    fn read_meta(&self, name: &str, dir: &Path, file: File) -> Result<MetaFile, OpenError> {
        let path = dir.join("meta");
        let corrupt =
            |what| OpenError::Corrupt { queue: name.to_owned(), path: path.clone(), segment: None, offset: 0, what };
        let bytes = read_small(&file, meta::FILE_LEN).map_err(|e| open_error(&path, e))?;
        let slots = meta::decode_queue(&bytes).map_err(|fault| match fault {
            Fault::Version(found) => OpenError::UnsupportedVersion { path: path.clone(), found, supported: VERSION },
            Fault::Invalid(what) => corrupt(what),
        })?;
        if slots.newest.set_id != self.set_id {
            return Err(corrupt("queue header (of another set)"));
        }
        if slots.newest.name != name {
            return Err(corrupt("queue header (of another queue)"));
        }
        Ok(MetaFile {
            meta: slots.newest,
            slots: Some(SlotFile::new(file, slots.sequence, slots.next_slot, false)),
            closed: false,
        })
    }

    fn create_meta(
        &self,
        name: &str,
        dir: &Path,
        given: Option<&QueueOverrides>,
        options: &QueueOptions,
    ) -> Result<MetaFile, OpenError> {
        let disk = &self.shared.disk;
        let io = |error| open_error(dir, error);
        let meta = QueueMeta {
            set_id: self.set_id,
            queue_id: disk.random_u64().map_err(io)?,
            create_ms: self.shared.clock.exact_ms(),
            segment_floor: 1,
            segment_last: 0,
            next_id: self.meta.lock().meta.id_floor + 1,
            clear_id: 0,
            last_end: 0,
            clean: true,
            boot_id: self.boot_id,
            freed: Vec::new(),
            name: name.to_owned(),
            options: given.map(QueueOverrides::to_bytes).unwrap_or_default(),
        };
        if !options.journal {
            return Ok(MetaFile { meta, slots: None, closed: false });
        }
        disk.create_dir_all(dir).map_err(io)?;
        for entry in disk.list(dir).map_err(io)? {
            if entry.name.ends_with(".seg") {
                return Err(OpenError::Corrupt {
                    queue: name.to_owned(),
                    path: dir.join("meta"),
                    segment: None,
                    offset: 0,
                    what: "queue header (missing)",
                });
            }
        }
        let slot = meta::encode_queue(&meta, 1);
        let file = write_new_file(disk, dir, "meta", &slot).map_err(io)?;
        self.sync_names(dir).map_err(io)?;
        Ok(MetaFile { meta, slots: Some(SlotFile::new(file, 1, 1, true)), closed: false })
    }

    /// Makes the names durable that lead to a queue's files: of its directory, and of those it is nested in; and before them
    /// that an earlier queue of the same name has left.
    fn sync_names(&self, dir: &Path) -> io::Result<()> {
        let disk = &self.shared.disk;
        if self.trash_unsynced.load(Ordering::Acquire) {
            disk.sync_dir(&self.dir.join("trash"))?;
            self.trash_unsynced.store(false, Ordering::Release);
        }
        let queues = self.dir.join("queues");
        disk.sync_dir(dir)?;
        for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(&queues)) {
            disk.sync_dir(parent)?;
        }
        Ok(())
    }

    /// The highest id that a queue which is not loaded may have given out; generous where it cannot be read.
    fn highest_id(&self, name: &str) -> u64 {
        let disk = &self.shared.disk;
        let dir = self.queue_dir(name);
        let mut highest = 0;
        let mut is_torn = false;
        if let Ok(file) = disk.open(&dir.join("meta"), false)
            && let Ok(bytes) = read_small(&file, meta::FILE_LEN)
            && let Ok(slots) = meta::decode_queue(&bytes)
        {
            highest = slots.newest.next_id.saturating_sub(1);
            is_torn = !slots.newest.clean && slots.newest.boot_id != self.boot_id;
        }
        for entry in disk.list(&dir).unwrap_or_default() {
            let Ok(file) = disk.open(&dir.join(&entry.name), false) else {
                continue;
            };
            if let Ok(page) = read_small(&file, header::PAGE)
                && let Ok(header) = header::decode(&page)
                && header.set_id == self.set_id
            {
                // No segment holds more items than it has bytes.
                highest = highest.max(header.first_id.saturating_add(header.segment_bytes.into()));
            }
        }
        match is_torn {
            // As when it is opened: a power cut may have taken whole segments whose ids were told.
            true => ids_after_loss(highest + 1) - 1,
            false => highest,
        }
    }

    fn raise_id_floor(&self, id: u64) -> io::Result<()> {
        let mut file = self.meta.lock();
        if id <= file.meta.id_floor {
            return Ok(());
        }
        let raised = SetMeta { id_floor: id, ..file.meta.clone() };
        store_set_meta(&mut file, raised)
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
        *self.lock.lock() = None;
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

fn check_name(name: &str) -> Result<(), OpenError> {
    name::check(name).map_err(|reason| OpenError::InvalidName { name: name.to_owned(), reason })
}

fn open_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    if let Some(what) = disk::as_not_regular(&source) {
        return OpenError::NotRegular { path, what };
    }
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => OpenError::ReadOnly { path },
        _ if disk::is_no_space(&source) => OpenError::NoSpace { path, source },
        _ => OpenError::Io { path, source },
    }
}

fn take_lock(disk: &Disk, path: &Path) -> Result<File, OpenError> {
    match disk.lock(path) {
        Ok(file) => {
            // For the message of the next opener; the lock holds without it.
            let _ = file.write_at(0, format!("{:<11}\n", std::process::id()).as_bytes());
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let pid = disk.open(path, false).ok().and_then(|file| {
                let text = String::from_utf8(read_small(&file, 12).ok()?).ok()?;
                text.trim().parse().ok()
            });
            Err(OpenError::Locked { path: path.to_owned(), pid })
        }
        Err(error) => Err(open_error(path, error)),
    }
}

/// Up to `max` bytes from the start of a file.
fn read_small(file: &File, max: usize) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).unwrap_or(max).min(max);
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// A small header file that is there whole or not at all.
fn write_new_file(disk: &Disk, dir: &Path, name: &str, slot: &[u8]) -> io::Result<File> {
    let tmp = dir.join(format!("{name}.tmp"));
    match disk.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&tmp)?;
    let written = (|| {
        file.allocate(meta::FILE_LEN as u64)?;
        file.write_at(0, slot)?;
        file.sync_data()?;
        disk.rename(&tmp, &dir.join(name))?;
        disk.sync_dir(dir)
    })();
    if let Err(error) = written {
        let _ = disk.unlink(&tmp);
        return Err(error);
    }
    Ok(file)
}

fn store_set_meta(file: &mut SetFile, changed: SetMeta) -> io::Result<()> {
    let SetFile { meta, slots } = file;
    slots.prove(|sequence| meta::encode_set(meta, sequence))?;
    slots.store(|sequence| meta::encode_set(&changed, sequence))?;
    *meta = changed;
    Ok(())
}

fn open_set_file(disk: &Disk, dir: &Path, read_only: bool) -> Result<SetFile, OpenError> {
    let path = dir.join("set");
    let corrupt =
        |what| OpenError::Corrupt { queue: String::new(), path: path.clone(), segment: None, offset: 0, what };
    match disk.open(&path, !read_only) {
        Ok(file) => {
            let bytes = read_small(&file, meta::FILE_LEN).map_err(|e| open_error(&path, e))?;
            let slots = meta::decode_set(&bytes).map_err(|fault| match fault {
                Fault::Version(found) => {
                    OpenError::UnsupportedVersion { path: path.clone(), found, supported: VERSION }
                }
                Fault::Invalid(what) => corrupt(what),
            })?;
            Ok(SetFile { meta: slots.newest, slots: SlotFile::new(file, slots.sequence, slots.next_slot, false) })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !read_only => {
            let queues = dir.join("queues");
            if disk.list(&queues).is_ok_and(|entries| !entries.is_empty()) {
                return Err(corrupt("set header (missing)"));
            }
            let io = |error| open_error(&path, error);
            let set_id = || disk.random_u64().map(u128::from);
            let set_id = set_id().map_err(io)? << 64 | set_id().map_err(io)?;
            let meta = SetMeta { set_id, id_floor: 0, state: State::Up.code() };
            let file = write_new_file(disk, dir, "set", &meta::encode_set(&meta, 1)).map_err(io)?;
            Ok(SetFile { meta, slots: SlotFile::new(file, 1, 1, true) })
        }
        Err(error) => Err(open_error(&path, error)),
    }
}

/// Finds the queues below `dir`; directories that no name is encoded to are not ours and are left alone.
fn list_queues(
    disk: &Disk,
    dir: &Path,
    parts: &mut Vec<String>,
    names: &mut BTreeMap<String, Arc<Slot>>,
) -> io::Result<()> {
    for entry in disk.list(dir)? {
        if entry.kind != EntryKind::Dir {
            continue;
        }
        let goes_on = entry.name.ends_with('+');
        parts.push(entry.name);
        // A name of 200 bytes has at most three parts.
        if goes_on && parts.len() < 4 {
            if let Some(last) = parts.last() {
                list_queues(disk, &dir.join(last), parts, names)?;
            }
        } else if let Some(name) = name::decode(parts) {
            names.insert(name, Arc::default());
        }
        parts.pop();
    }
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
