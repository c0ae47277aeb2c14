//! How a set is opened.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use super::{Inner, OnRecovery, QueueSet, SetFile, Slot, alias, check_name, empty_trash, open_error, read_small};
use crate::clock::Clock;
use crate::disk::{Disk, EntryKind, File, ForkGuard};
use crate::error::OpenError;
use crate::format::meta::{self, SetMeta};
use crate::format::{Fault, VERSION, name};
use crate::journal::files::OpenFiles;
use crate::journal::moves::Moves;
use crate::journal::pool::Pool;
use crate::journal::{SlotFile, write_new_file};
use crate::options::{OnDamage, QueueOptions, QueueOverrides, State};
use crate::queue::archive::{Archive, RetiredSegment};
use crate::queue::core::Shared;
use crate::queue::state::States;
use crate::stats::RecoveryProgress;
use crate::sync::{AtomicBool, AtomicU64, Mutex, RwLock};
use crate::upkeep::Upkeep;

/// A quarter of the maps that a process may have by default.
const OPEN_FILES_MAX: u64 = 16_384;

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
    open_files: Option<u64>,
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
            open_files: None,
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

    /// Options of one queue, or of one reader (`queue+reader`); they win over the defaults and over what the queue has stored.
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

    /// How many segment files the set holds open, each mapped once: idle ones beyond that are closed, and opened again when they
    /// are used, least recently used first. At least 4. Default: half of the process's soft limit of open files (`ulimit -n`)
    /// when the set is opened, at least 16 and at most 16,384, for the system allows about 65,000 maps a process.
    ///
    /// A segment that is in use, or that no sync has covered, stays open: a system tells an error of writing back only to those
    /// who had the file open. So the number may be exceeded by one or two for each thread that puts or takes, and a set of more
    /// busy queues than this syncs some of them to close their files, whatever their durability. If the process's limit is met
    /// all the same, the call answers `TooManyFiles`, and nothing is lost.
    pub fn open_files(mut self, files: u64) -> Self {
        self.open_files = Some(files.max(4));
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
            // A reader's are looked at together with those of its queue, once these are known.
            if !name.contains('+') {
                own.check_over(&self.defaults, name)?;
            }
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
        let files = OpenFiles::new(self.open_files.unwrap_or_else(|| open_files_default(disk)));
        let pool =
            Pool::open(disk.clone(), pool_dir.clone(), files, self.pool_bytes, self.max_disk_bytes, self.read_only)
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

fn open_files_default(disk: &Disk) -> u64 {
    disk.open_files_max().map_or(OPEN_FILES_MAX, |max| (max / 2).clamp(16, OPEN_FILES_MAX))
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
            let newest = slots.newest;
            Ok(SetFile { meta: newest, slots: SlotFile::new(disk, path, slots.sequence, slots.next_slot, false) })
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
            write_new_file(disk, dir, "set", &meta::encode_set(&meta, 1)).map_err(io)?;
            Ok(SetFile { meta, slots: SlotFile::new(disk, path, 1, 1, true) })
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
