//! A simulated disk: it remembers what was synced and what was not, and can crash, tear, fail and fill at any call.
//!
//! What a power cut leaves is chosen by a [`Fate`]:
//! - *Pages.* Each 4 KiB page of a file that was stored to since the file's last sync is, after the cut, any version it went
//!   through since then, or the synced one, or a mix of two by 512-byte sectors. A large store leaves a half-done version too.
//! - *Length.* A length that was set since the last sync is there or not.
//! - *Names.* Each create, rename, unlink, mkdir, rmdir that no sync of its directory covered is kept or lost by itself; only
//!   the order of changes to one name holds. A rename is kept whole or lost whole.
//!
//! The death of the process alone ([`SimDisk::kill`]) loses nothing but the locks.
//!
//! A failed sync is one of two kinds seen on real systems: the pages are clean afterwards with their new content, which the
//! device never gets; or they are back to what the device has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Entry, EntryKind, not_regular};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// Versions of one page that are remembered between two syncs.
const VERSIONS_MAX: usize = 6;

/// What a call does, to aim a fault at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Op {
    /// A file is created.
    Create,
    /// Space is allocated.
    Allocate,
    /// Bytes are written or stored through a map.
    Write,
    /// Bytes are read.
    Read,
    /// A file is synced.
    Sync,
    /// A directory is synced.
    SyncDir,
    /// A name is changed.
    Rename,
    /// A name is removed.
    Unlink,
    /// A directory is created.
    Mkdir,
    /// A file is opened.
    Open,
}

/// Where a crash falls relative to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The step does not happen.
    Before,
    /// A store happens in part; other steps as `Before`.
    During,
    /// The step happens, and nothing after it.
    After,
}

/// How a sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFailure {
    /// The pages count as clean and keep their new content in memory; the device never gets it.
    KeepsContent,
    /// The pages are back to what the device has.
    RevertsContent,
}

/// What a power cut does with everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Change `i` is kept if bit `i` is set (bit 63 for all from there on).
    Mask(u64),
    /// Nothing unsynced is kept.
    None,
    /// All is kept.
    All,
    /// Only change `i` is kept.
    Single(usize),
    /// All but change `i` is kept.
    AllBut(usize),
    /// The changes before `i` are kept.
    Prefix(usize),
    /// The changes from `i` on are kept.
    Suffix(usize),
    /// By chance, with versions in between and mixes of sectors.
    Random(u64),
}

/// A disk in memory; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    inner: Arc<Mutex<World>>,
}

#[derive(Clone, Debug)]
struct World {
    inodes: Vec<Inode>,
    /// Names as a process sees them, and as the medium has them.
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    unsynced_names: Vec<NameOp>,
    locks: BTreeSet<PathBuf>,
    steps: u64,
    crash_at: Option<(u64, When)>,
    crashed: bool,
    faults: Vec<Fault>,
    sync_failure: SyncFailure,
    space: u64,
    mono_ms: u64,
    wall_ms: u64,
    boot: u128,
    random: u64,
    may_map: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir,
}

#[derive(Clone, Debug)]
enum NameOp {
    Create(PathBuf, usize),
    Mkdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
}

#[derive(Clone, Debug)]
struct Fault {
    op: Op,
    /// Calls of this kind to let pass first.
    after: u64,
    /// Calls to fail then.
    times: u64,
    kind: io::ErrorKind,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of each page since the last sync, oldest first; the last is the present one.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Inode {
    fn page(data: &[u8], page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        let from = page * PAGE;
        if from < data.len() {
            let to = (from + PAGE).min(data.len());
            bytes[..to - from].copy_from_slice(&data[from..to]);
        }
        bytes
    }

    fn set_page(data: &mut [u8], page: usize, bytes: &[u8]) {
        let from = page * PAGE;
        if from < data.len() {
            let to = (from + PAGE).min(data.len());
            data[from..to].copy_from_slice(&bytes[..to - from]);
        }
    }

    fn store(&mut self, offset: usize, bytes: &[u8], random: &mut u64) {
        let mut at = 0;
        while at < bytes.len() {
            let page = (offset + at) / PAGE;
            let in_page = (offset + at) % PAGE;
            let count = (PAGE - in_page).min(bytes.len() - at);
            let from = offset + at;
            // A page may be written back while it is half copied.
            if count > 64 {
                let half = (next_random(random) as usize % (count / 64)) * 64;
                self.data[from..from + half].copy_from_slice(&bytes[at..at + half]);
                self.note(page, random);
            }
            self.data[from..from + count].copy_from_slice(&bytes[at..at + count]);
            self.note(page, random);
            at += count;
        }
    }

    fn note(&mut self, page: usize, random: &mut u64) {
        let version = Self::page(&self.data, page);
        let versions = self.dirty.entry(page).or_default();
        if versions.len() >= VERSIONS_MAX {
            versions.remove(next_random(random) as usize % (VERSIONS_MAX - 1));
        }
        versions.push(version);
    }

    fn sync(&mut self) {
        self.durable.resize(self.data.len(), 0);
        for page in std::mem::take(&mut self.dirty).into_keys() {
            let now = Self::page(&self.data, page);
            Self::set_page(&mut self.durable, page, &now);
        }
    }
}

fn next_random(state: &mut u64) -> u64 {
    // splitmix64 (Steele, Lea, Flood 2014)
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

impl NameOp {
    fn touches(&self, dir: &Path) -> bool {
        match self {
            NameOp::Create(path, _) | NameOp::Mkdir(path) | NameOp::Unlink(path) | NameOp::Rmdir(path) => {
                parent(path) == dir
            }
            NameOp::Rename(from, to) => parent(from) == dir || parent(to) == dir,
        }
    }

    fn paths(&self) -> Vec<&PathBuf> {
        match self {
            NameOp::Create(path, _) | NameOp::Mkdir(path) | NameOp::Unlink(path) | NameOp::Rmdir(path) => vec![path],
            NameOp::Rename(from, to) => vec![from, to],
        }
    }

    /// Does what it can: an operation whose ground is missing is lost too.
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        let has_parent = |names: &BTreeMap<PathBuf, Node>, path: &Path| {
            let dir = parent(path);
            dir.as_os_str().is_empty() || dir == Path::new("/") || names.get(&dir) == Some(&Node::Dir)
        };
        match self {
            NameOp::Create(path, inode) if has_parent(names, path) => {
                names.insert(path.clone(), Node::File(*inode));
            }
            NameOp::Mkdir(path) if has_parent(names, path) => {
                names.insert(path.clone(), Node::Dir);
            }
            NameOp::Rename(from, to) if names.contains_key(from) && has_parent(names, to) => {
                let moved: Vec<PathBuf> = names.keys().filter(|p| p.starts_with(from)).cloned().collect();
                for path in moved {
                    if let (Some(node), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                        let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                        names.insert(target, node);
                    }
                }
            }
            NameOp::Unlink(path) => {
                names.remove(path);
            }
            NameOp::Rmdir(path) if !names.keys().any(|p| p != path && p.starts_with(path)) => {
                names.remove(path);
            }
            _ => {}
        }
    }
}

impl World {
    fn error() -> io::Error {
        io::Error::other("simulated crash")
    }

    /// Counts a step. `Ok(when)`: it is to happen, and with `During` only in part; `Err`: it is not.
    fn step(&mut self, op: Op) -> io::Result<When> {
        if self.crashed {
            return Err(Self::error());
        }
        let step = self.steps;
        self.steps += 1;
        if let Some((at, when)) = self.crash_at
            && at == step
        {
            self.crashed = true;
            if when == When::Before || (when == When::During && op != Op::Write) {
                return Err(Self::error());
            }
            return Ok(when);
        }
        self.fault(op)?;
        Ok(When::Before)
    }

    fn fault(&mut self, op: Op) -> io::Result<()> {
        if self.crashed {
            return Err(Self::error());
        }
        for fault in &mut self.faults {
            if fault.op != op || fault.times == 0 {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else {
                fault.times -= 1;
                return Err(fault.kind.into());
            }
        }
        Ok(())
    }

    fn name(&mut self, op: NameOp) {
        op.apply(&mut self.names);
        self.unsynced_names.push(op);
    }

    fn inode(&self, path: &Path) -> Option<usize> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Some(*inode),
            _ => None,
        }
    }

    fn write(&mut self, inode: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let when = self.step(Op::Write)?;
        let random = &mut self.random;
        let Some(inode) = self.inodes.get_mut(inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let part = if when == When::During { &bytes[..bytes.len() / 2] } else { bytes };
        if offset + bytes.len() > inode.data.len() {
            inode.data.resize(offset + bytes.len(), 0);
        }
        inode.store(offset, part, random);
        // Whoever stored when the crash came never learns of it.
        if self.crashed { Err(Self::error()) } else { Ok(()) }
    }

    fn read(&mut self, inode: usize, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.fault(Op::Read)?;
        let data = &self.inodes.get(inode).ok_or(io::ErrorKind::NotFound)?.data;
        match offset.checked_add(bytes.len()).and_then(|end| data.get(offset..end)) {
            Some(found) => {
                bytes.copy_from_slice(found);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl SimDisk {
    /// An empty disk. The seed rules its randomness.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            inner: Arc::new(Mutex::new(World {
                inodes: Vec::new(),
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                unsynced_names: Vec::new(),
                locks: BTreeSet::new(),
                steps: 0,
                crash_at: None,
                crashed: false,
                faults: Vec::new(),
                sync_failure: SyncFailure::KeepsContent,
                space: u64::MAX,
                mono_ms: 1_000,
                wall_ms: 1_700_000_000_000,
                boot: 1,
                random: seed,
                may_map: true,
            })),
        }
    }

    fn branch(&self, change: impl FnOnce(&mut World)) -> SimDisk {
        let mut world = self.inner.lock().clone();
        world.crash_at = None;
        world.crashed = false;
        world.faults.clear();
        world.locks.clear();
        world.steps = 0;
        change(&mut world);
        SimDisk { inner: Arc::new(Mutex::new(world)) }
    }

    /// The disk as the death of its process leaves it.
    #[must_use]
    pub fn kill(&self) -> SimDisk {
        self.branch(|_| {})
    }

    /// The disk as a power cut leaves it.
    #[must_use]
    pub fn power_cut(&self, fate: Fate) -> SimDisk {
        self.branch(|world| {
            let mut random = match fate {
                Fate::Random(seed) => seed,
                _ => 0,
            };
            let mut index = 0;
            let mut keep = || {
                let i = index;
                index += 1;
                match fate {
                    Fate::Mask(mask) => mask >> i.min(63) & 1 == 1,
                    Fate::None => false,
                    Fate::All => true,
                    Fate::Single(one) => i == one,
                    Fate::AllBut(one) => i != one,
                    Fate::Prefix(end) => i < end,
                    Fate::Suffix(start) => i >= start,
                    Fate::Random(_) => next_random(&mut random) & 1 == 1,
                }
            };
            let mut names = world.durable_names.clone();
            // Changes of one name keep their order: what follows a lost one is lost too.
            let mut lost: BTreeSet<PathBuf> = BTreeSet::new();
            for op in std::mem::take(&mut world.unsynced_names) {
                if keep() && !op.paths().iter().any(|path| lost.contains(*path)) {
                    op.apply(&mut names);
                } else {
                    lost.extend(op.paths().into_iter().cloned());
                }
            }
            let mut mix = match fate {
                Fate::Random(seed) => Some(seed ^ 0x5555),
                _ => None,
            };
            for inode in &mut world.inodes {
                let dirty = std::mem::take(&mut inode.dirty);
                let mut after = inode.durable.clone();
                if inode.data.len() != after.len() && (keep() || !dirty.is_empty()) {
                    after.resize(inode.data.len(), 0);
                }
                for (page, versions) in dirty {
                    let kept = keep();
                    match &mut mix {
                        Some(random) => {
                            let old = Inode::page(&inode.durable, page);
                            let pick = |random: &mut u64| {
                                let i = next_random(random) as usize % (versions.len() + 1);
                                versions.get(i).unwrap_or(&old).clone()
                            };
                            let mut bytes = pick(random);
                            if next_random(random) & 3 == 0 {
                                let other = pick(random);
                                for sector in 0..PAGE / SECTOR {
                                    if next_random(random) & 1 == 0 {
                                        let at = sector * SECTOR..(sector + 1) * SECTOR;
                                        bytes[at.clone()].copy_from_slice(&other[at]);
                                    }
                                }
                            }
                            Inode::set_page(&mut after, page, &bytes);
                        }
                        None => {
                            if kept && let Some(newest) = versions.last() {
                                Inode::set_page(&mut after, page, newest);
                            }
                        }
                    }
                }
                inode.data = after.clone();
                inode.durable = after;
            }
            world.names = names.clone();
            world.durable_names = names;
            world.boot += 1;
        })
    }

    /// How many independent changes a power cut now would decide about.
    pub fn unsynced_changes(&self) -> usize {
        let world = self.inner.lock();
        let pages: usize =
            world.inodes.iter().map(|i| i.dirty.len() + usize::from(i.data.len() != i.durable.len())).sum();
        world.unsynced_names.len() + pages
    }

    /// The fates to try: every subset of up to `exhaustive` changes; beyond that none, all, each single one, all but one, the
    /// beginnings, the ends; and `random` ones by chance.
    pub fn fates(&self, exhaustive: usize, random: u64, seed: u64) -> Vec<Fate> {
        let changes = self.unsynced_changes();
        let mut fates = Vec::new();
        if changes <= exhaustive.min(16) {
            fates.extend((0..1u64 << changes).map(Fate::Mask));
        } else {
            fates.extend([Fate::None, Fate::All]);
            for i in 0..changes {
                fates.extend([Fate::Single(i), Fate::AllBut(i), Fate::Prefix(i), Fate::Suffix(i)]);
            }
        }
        if changes > 0 {
            fates.extend((0..random).map(|i| Fate::Random(seed.wrapping_mul(31).wrapping_add(i))));
        }
        fates
    }

    /// Steps counted so far: the calls that change something, and stores.
    pub fn steps(&self) -> u64 {
        self.inner.lock().steps
    }

    /// Crashes at step `step`, counted from 0: from then on every call fails and changes nothing.
    pub fn crash_at(&self, step: u64, when: When) {
        self.inner.lock().crash_at = Some((step, when));
    }

    /// Whether the crash has happened.
    pub fn has_crashed(&self) -> bool {
        self.inner.lock().crashed
    }

    /// Fails `times` calls of a kind, after letting `after` of them pass.
    pub fn fail(&self, op: Op, after: u64, times: u64, kind: io::ErrorKind) {
        self.inner.lock().faults.push(Fault { op, after, times, kind });
    }

    /// Ends all planned failures.
    pub fn heal(&self) {
        self.inner.lock().faults.clear();
    }

    /// How syncs fail that fail.
    pub fn set_sync_failure(&self, how: SyncFailure) {
        self.inner.lock().sync_failure = how;
    }

    /// Limits the bytes of all files together.
    pub fn set_space(&self, bytes: u64) {
        self.inner.lock().space = bytes;
    }

    /// Whether maps are to be trusted; if not, the engine works with positional reads and writes.
    pub fn set_may_map(&self, may: bool) {
        self.inner.lock().may_map = may;
    }

    /// Lets time pass on both clocks.
    pub fn advance_ms(&self, ms: u64) {
        let mut world = self.inner.lock();
        world.mono_ms += ms;
        world.wall_ms += ms;
    }

    /// Steps the wall clock.
    pub fn set_wall_ms(&self, ms: u64) {
        self.inner.lock().wall_ms = ms;
    }

    /// All files, sorted.
    pub fn list_files(&self) -> Vec<PathBuf> {
        let world = self.inner.lock();
        world.names.iter().filter(|(_, node)| matches!(node, Node::File(_))).map(|(path, _)| path.clone()).collect()
    }

    /// A file's bytes.
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.inner.lock();
        world.inode(path).and_then(|inode| world.inodes.get(inode)).map(|inode| inode.data.clone())
    }

    /// Gives a file other bytes, durably, creating it if need be: damage, not a write of the engine.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        let mut world = self.inner.lock();
        let inode = match world.inode(path) {
            Some(inode) => inode,
            None => {
                world.inodes.push(Inode::default());
                let inode = world.inodes.len() - 1;
                world.names.insert(path.to_owned(), Node::File(inode));
                world.durable_names.insert(path.to_owned(), Node::File(inode));
                inode
            }
        };
        if let Some(inode) = world.inodes.get_mut(inode) {
            *inode = Inode { data: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeMap::new() };
        }
    }

    /// Removes a file, durably.
    pub fn remove_file(&self, path: &Path) {
        let mut world = self.inner.lock();
        world.names.remove(path);
        world.durable_names.remove(path);
    }

    pub(crate) fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.inner.lock();
        let mut missing: Vec<PathBuf> = dir
            .ancestors()
            .filter(|d| !d.as_os_str().is_empty() && *d != Path::new("/") && !world.names.contains_key(*d))
            .map(Path::to_owned)
            .collect();
        while let Some(dir) = missing.pop() {
            world.step(Op::Mkdir)?;
            world.name(NameOp::Mkdir(dir));
        }
        if world.crashed {
            return Err(World::error());
        }
        Ok(())
    }

    pub(crate) fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let world = self.inner.lock();
        if world.crashed {
            return Err(World::error());
        }
        if world.names.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entries = world.names.iter().filter(|(path, _)| parent(path) == dir).filter_map(|(path, node)| {
            let kind = if *node == Node::Dir { EntryKind::Dir } else { EntryKind::File };
            Some(Entry { name: path.file_name()?.to_str()?.to_owned(), kind })
        });
        Ok(entries.collect())
    }

    fn file(&self, inode: usize) -> SimFile {
        SimFile { disk: self.clone(), inode, lock: None }
    }

    pub(crate) fn open(&self, path: &Path, _writable: bool) -> io::Result<SimFile> {
        let mut world = self.inner.lock();
        world.fault(Op::Open)?;
        match world.names.get(path) {
            Some(Node::File(inode)) => Ok(self.file(*inode)),
            Some(Node::Dir) => Err(not_regular("a directory")),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut world = self.inner.lock();
        world.step(Op::Create)?;
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if world.names.get(&parent(path)) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.inodes.push(Inode::default());
        let inode = world.inodes.len() - 1;
        world.name(NameOp::Create(path.to_owned(), inode));
        Ok(self.file(inode))
    }

    pub(crate) fn lock(&self, path: &Path) -> io::Result<SimFile> {
        if self.inner.lock().locks.contains(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = match self.open(path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(path)?,
            other => other?,
        };
        self.inner.lock().locks.insert(path.to_owned());
        let mut file = file;
        file.lock = Some(path.to_owned());
        Ok(file)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.inner.lock();
        world.step(Op::Rename)?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut world = self.inner.lock();
        if world.crashed {
            return Err(World::error());
        }
        if world.inode(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.step(Op::Unlink)?;
        world.name(NameOp::Unlink(path.to_owned()));
        Ok(())
    }

    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.inner.lock();
        world.step(Op::Unlink)?;
        if world.names.get(path) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if world.names.keys().any(|p| parent(p) == path) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        world.name(NameOp::Rmdir(path.to_owned()));
        Ok(())
    }

    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.inner.lock();
        world.step(Op::SyncDir)?;
        // What the directory's own changes stand on becomes durable with them.
        let ops = std::mem::take(&mut world.unsynced_names);
        let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
        let mut synced = vec![false; ops.len()];
        for (i, op) in ops.iter().enumerate().rev() {
            let needed = op.touches(dir) || op.paths().iter().any(|path| wanted.contains(*path));
            if needed {
                synced[i] = true;
                wanted.extend(op.paths().into_iter().cloned());
                wanted.extend(op.paths().into_iter().map(|path| parent(path)));
            }
        }
        for (op, synced) in ops.into_iter().zip(synced) {
            if synced {
                op.apply(&mut world.durable_names);
            } else {
                world.unsynced_names.push(op);
            }
        }
        Ok(())
    }

    pub(crate) fn may_map(&self, _dir: &Path) -> bool {
        self.inner.lock().may_map
    }

    pub(crate) fn mono_ms(&self) -> u64 {
        self.inner.lock().mono_ms
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.inner.lock().wall_ms
    }

    pub(crate) fn boot_id(&self) -> u128 {
        self.inner.lock().boot
    }

    pub(crate) fn random_u64(&self) -> u64 {
        next_random(&mut self.inner.lock().random)
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub(crate) struct SimFile {
    disk: SimDisk,
    inode: usize,
    /// Locked until dropped.
    lock: Option<PathBuf>,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(path) = &self.lock {
            self.disk.inner.lock().locks.remove(path);
        }
    }
}

impl SimFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        let world = self.disk.inner.lock();
        if world.crashed {
            return Err(World::error());
        }
        Ok(world.inodes.get(self.inode).map_or(0, |inode| inode.data.len() as u64))
    }

    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.disk.inner.lock().read(self.inode, offset as usize, bytes)
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.inner.lock().write(self.inode, offset as usize, bytes)
    }

    pub(crate) fn allocate(&self, len: u64) -> io::Result<bool> {
        let mut world = self.disk.inner.lock();
        world.step(Op::Allocate)?;
        let linked: BTreeSet<usize> =
            world.names.values().filter_map(|node| if let Node::File(i) = node { Some(*i) } else { None }).collect();
        let used: u64 =
            world.inodes.iter().enumerate().filter(|(i, _)| linked.contains(i)).map(|(_, i)| i.data.len() as u64).sum();
        let Some(inode) = world.inodes.get(self.inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let more = len.saturating_sub(inode.data.len() as u64);
        if used.saturating_add(more) > world.space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(inode) = world.inodes.get_mut(self.inode)
            && inode.data.len() < len as usize
        {
            inode.data.resize(len as usize, 0);
        }
        Ok(true)
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.inner.lock();
        let result = world.step(Op::Sync);
        let how = world.sync_failure;
        let crashed = world.crashed;
        let Some(inode) = world.inodes.get_mut(self.inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match result {
            Ok(_) => inode.sync(),
            Err(error) => {
                if !crashed {
                    let dirty = std::mem::take(&mut inode.dirty);
                    if how == SyncFailure::RevertsContent {
                        for page in dirty.into_keys() {
                            let old = Inode::page(&inode.durable, page);
                            Inode::set_page(&mut inode.data, page, &old);
                        }
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    pub(crate) fn map(&self, len: usize) -> io::Result<SimMap> {
        Ok(SimMap { disk: self.disk.clone(), inode: self.inode, len })
    }
}

/// A map of a file of a [`SimDisk`].
#[derive(Debug)]
pub(crate) struct SimMap {
    disk: SimDisk,
    inode: usize,
    len: usize,
}

impl SimMap {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        super::check(offset, bytes.len(), self.len)?;
        self.disk.inner.lock().write(self.inode, offset, bytes)
    }

    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        super::check(offset, bytes.len(), self.len)?;
        self.disk.inner.lock().read(self.inode, offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (SimDisk, PathBuf) {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("d")).expect("no fault");
        disk.sync_dir(Path::new("")).expect("no fault");
        (disk, PathBuf::from("d"))
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_go() {
        let (disk, dir) = disk();
        let path = dir.join("f");
        let file = disk.create(&path).expect("no fault");
        file.allocate(8192).expect("room");
        file.write_at(0, b"synced").expect("no fault");
        file.sync_data().expect("no fault");
        assert!(disk.power_cut(Fate::None).read_file(&path).is_none(), "the name was not synced");
        disk.sync_dir(&dir).expect("no fault");
        file.write_at(4096, b"not").expect("no fault");
        let none = disk.power_cut(Fate::None).read_file(&path).expect("synced name");
        assert_eq!((&none[..6], &none[4096..4099]), (&b"synced"[..], &[0; 3][..]));
        let all = disk.power_cut(Fate::All).read_file(&path).expect("synced name");
        assert_eq!(&all[4096..4099], b"not");
        assert_eq!(disk.kill().read_file(&path).expect("kept"), all);
    }

    #[test]
    fn each_page_has_a_fate_of_its_own() {
        let (disk, dir) = disk();
        let file = disk.create(&dir.join("f")).expect("no fault");
        file.allocate(3 * 4096).expect("room");
        file.sync_data().expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        for page in 0..3 {
            file.write_at(page * 4096, &[1]).expect("no fault");
        }
        assert_eq!(disk.unsynced_changes(), 3);
        let seen: BTreeSet<Vec<u8>> = disk
            .fates(8, 0, 0)
            .into_iter()
            .filter_map(|fate| disk.power_cut(fate).read_file(&dir.join("f")))
            .map(|data| data.iter().step_by(4096).copied().collect())
            .collect();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn a_lost_rename_leaves_the_old_name() {
        let (disk, dir) = disk();
        disk.create(&dir.join("a")).expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        disk.rename(&dir.join("a"), &dir.join("b")).expect("no fault");
        let lost = disk.power_cut(Fate::None);
        assert_eq!(lost.list_files(), [dir.join("a")]);
        assert_eq!(disk.power_cut(Fate::All).list_files(), [dir.join("b")]);
    }

    #[test]
    fn a_failed_sync_does_what_real_ones_do() {
        for how in [SyncFailure::KeepsContent, SyncFailure::RevertsContent] {
            let (disk, dir) = disk();
            let path = dir.join("f");
            let file = disk.create(&path).expect("no fault");
            file.allocate(4096).expect("room");
            file.sync_data().expect("no fault");
            disk.sync_dir(&dir).expect("no fault");
            disk.set_sync_failure(how);
            disk.fail(Op::Sync, 0, 1, io::ErrorKind::Other);
            file.write_at(0, &[7]).expect("no fault");
            assert!(file.sync_data().is_err());
            assert!(file.sync_data().is_ok(), "the second one succeeds, and means nothing");
            let seen = disk.read_file(&path).expect("there")[0];
            assert_eq!(seen, if how == SyncFailure::KeepsContent { 7 } else { 0 });
            assert_eq!(disk.power_cut(Fate::All).read_file(&path).expect("there")[0], 0);
        }
    }

    #[test]
    fn after_a_crash_nothing_changes() {
        let (disk, dir) = disk();
        let file = disk.create(&dir.join("f")).expect("no fault");
        file.allocate(4096).expect("room");
        disk.crash_at(disk.steps(), When::Before);
        assert!(file.write_at(0, &[1]).is_err());
        assert!(disk.has_crashed());
        assert!(file.write_at(0, &[1]).is_err());
        assert_eq!(disk.kill().read_file(&dir.join("f")).expect("there")[0], 0);
    }
}
