//! A simulated disk: it remembers what was synced and what was not, and can crash, tear, fail and fill at any call.
//!
//! What a power cut leaves is chosen by a [`Fate`]:
//! - *Pages.* Each 4 KiB page of a file that was stored to since the file's last sync is, after the cut, any version it went
//!   through since then, or the synced one, or a mix of two by 512-byte sectors. A large store leaves a half-done version too.
//! - *Length.* A length that was set since the last sync is there or not, whatever became of the pages.
//! - *Names.* Each create, rename, unlink, mkdir, rmdir that no sync of its directory covered is kept or lost by itself; only
//!   the order of changes to one name holds. A rename is kept whole or lost whole; one across directories is durable once
//!   the directory of its target is synced, and no earlier.
//!
//! [`SimDisk::sync_dir`] makes the names *in* a directory durable and not the directory's own name, and a file's sync makes
//! its bytes and length durable and not its name. The death of the process alone ([`SimDisk::kill`]) loses nothing but the
//! locks.
//!
//! A failed sync is one of three kinds seen on real systems (Rebello et al., "Can Applications Recover from fsync Failures?",
//! ATC 2020): see [`SyncFailure`].
//!
//! Everything is decided by seeds: the same calls on a disk of the same seed do the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use super::{Entry, EntryKind, not_regular};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// Versions of one page that are remembered between two syncs; the oldest unsynced ones are thinned out by chance.
const VERSIONS_MAX: usize = 6;

/// What a call does, to aim a fault at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Op {
    /// A file is created.
    Create,
    /// Space is allocated.
    Allocate,
    /// Space is given back in the middle of a file.
    Punch,
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
    /// The lock is taken.
    Lock,
    /// A directory is listed.
    List,
}

/// Where a crash falls relative to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The step does not happen.
    Before,
    /// The first half of a store happens; other steps as `Before`.
    During,
    /// The first bytes of a store happen, so many 64ths of it; other steps as `Before`.
    Part(u8),
    /// The step happens, nothing after it, and its caller is told of a crash.
    After,
}

/// How a sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFailure {
    /// The pages count as clean and keep their new content in memory; the device never gets it (ext4, xfs).
    KeepsContent,
    /// The pages are back to what the device has (btrfs).
    RevertsContent,
    /// As `KeepsContent`, and this sync answers that all is well; the next one of the file tells the error.
    ToldLate,
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
    /// Names and lengths are kept, pages are not.
    Names,
    /// Pages are kept, names and lengths are not.
    Pages,
    /// By chance, with versions in between and mixes of sectors.
    Random(u64),
    /// As `Random`, and a sector of the last store holds garbage: the device lost power while writing it.
    Shorn(u64),
}

/// One call that changed something, or tried to, as [`SimDisk::record`] notes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number, counted from 0.
    pub step: u64,
    /// What it does.
    pub op: Op,
    /// The file's number, the same under all its names; `None` for calls on names that hold no file.
    pub file: Option<u64>,
    /// The name, or where a handle is used, the present name of its file; empty if it has none any more.
    pub path: PathBuf,
    /// The new name of a rename.
    pub to: Option<PathBuf>,
    /// Where a store begins; the new length for an allocation.
    pub offset: u64,
    /// What was stored.
    pub bytes: Vec<u8>,
    /// Whether it was answered with success.
    pub ok: bool,
}

/// A disk in memory; clones are the same disk.
///
/// A handle belongs to one simulated process: after [`restart`](SimDisk::restart) the earlier handles, and files opened
/// through them, answer every call with an error and change nothing.
#[derive(Clone, Debug)]
pub struct SimDisk {
    inner: Arc<Mutex<World>>,
    process: u64,
}

#[derive(Clone, Debug)]
struct World {
    inodes: Vec<Inode>,
    dirs: Vec<Dir>,
    unsynced_names: Vec<NameOp>,
    locks: BTreeSet<usize>,
    process: u64,
    steps: u64,
    stalled: bool,
    crash_at: Option<(u64, When)>,
    crashed: bool,
    faults: Vec<Fault>,
    sync_failure: SyncFailure,
    space: u64,
    mono_ms: u64,
    wall_ms: u64,
    boot: u128,
    /// What the engine draws from, and what rules torn pages.
    random: u64,
    noise: u64,
    may_map: bool,
    last_store: Option<(usize, usize, usize)>,
    log: Option<Vec<Call>>,
}

/// The directory that relative paths start from, and `/`.
const HERE: usize = 0;
const ROOT: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir(usize),
}

/// Names as a process sees them, and as the medium has them.
#[derive(Clone, Debug, Default)]
struct Dir {
    names: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
}

type Name = (usize, String);

/// A change of names that no sync has covered: a name goes, a name comes, or both at once.
#[derive(Clone, Debug)]
struct NameOp {
    gone: Option<Name>,
    come: Option<(Name, Node)>,
}

impl NameOp {
    /// The directory whose sync makes it durable.
    fn home(&self) -> usize {
        match (&self.come, &self.gone) {
            (Some(((dir, _), _)), _) | (None, Some((dir, _))) => *dir,
            (None, None) => HERE,
        }
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        self.gone.iter().chain(self.come.as_ref().map(|(name, _)| name))
    }

    fn apply(&self, dirs: &mut [Dir], table: fn(&mut Dir) -> &mut BTreeMap<String, Node>) {
        if let Some((dir, name)) = &self.gone
            && let Some(dir) = dirs.get_mut(*dir)
        {
            table(dir).remove(name);
        }
        if let Some(((dir, name), node)) = &self.come
            && let Some(dir) = dirs.get_mut(*dir)
        {
            table(dir).insert(name.clone(), *node);
        }
    }
}

#[derive(Clone, Debug)]
enum Aim {
    /// The calls of a kind, after letting so many pass.
    Kind {
        op: Op,
        after: u64,
    },
    Step(u64),
}

#[derive(Clone, Debug)]
struct Fault {
    aim: Aim,
    /// Calls to fail.
    times: u64,
    kind: io::ErrorKind,
}

/// A page's content, never changed, so that clones of a disk share it.
#[derive(Debug)]
struct PageBytes {
    bytes: [u8; PAGE],
    sum: OnceLock<u64>,
}

type Page = Arc<PageBytes>;

fn page_of(bytes: [u8; PAGE]) -> Page {
    Arc::new(PageBytes { bytes, sum: OnceLock::new() })
}

impl PageBytes {
    fn sum(&self) -> u64 {
        *self.sum.get_or_init(|| {
            let mut sum = 0;
            for word in self.bytes.chunks_exact(8) {
                let mut eight = [0; 8];
                eight.copy_from_slice(word);
                sum = mix(sum ^ u64::from_le_bytes(eight));
            }
            sum
        })
    }
}

/// A file's bytes; a page that is not there is zero.
#[derive(Clone, Debug, Default)]
struct Content {
    len: usize,
    pages: BTreeMap<usize, Page>,
}

impl Content {
    fn of(bytes: &[u8]) -> Content {
        let mut content = Content { len: bytes.len(), ..Content::default() };
        for (index, chunk) in bytes.chunks(PAGE).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                let mut page = [0; PAGE];
                page[..chunk.len()].copy_from_slice(chunk);
                content.pages.insert(index, page_of(page));
            }
        }
        content
    }

    fn page(&self, index: usize) -> [u8; PAGE] {
        self.pages.get(&index).map_or([0; PAGE], |page| page.bytes)
    }

    fn set(&mut self, index: usize, page: Option<Page>) {
        match page {
            Some(page) => self.pages.insert(index, page),
            None => self.pages.remove(&index),
        };
    }

    /// Cuts or extends; what is cut off reads as zero when it is extended again.
    fn resize(&mut self, len: usize) {
        if len < self.len {
            self.pages.retain(|index, _| index * PAGE < len);
            let (last, rest) = (len / PAGE, len % PAGE);
            if rest > 0 && self.pages.contains_key(&last) {
                let mut page = self.page(last);
                page[rest..].fill(0);
                self.set(last, Some(page_of(page)));
            }
        }
        self.len = len;
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(end) = offset.checked_add(out.len()).filter(|end| *end <= self.len) else {
            return false;
        };
        let mut at = offset;
        while at < end {
            let (index, from) = (at / PAGE, at % PAGE);
            let count = (PAGE - from).min(end - at);
            let to = &mut out[at - offset..at - offset + count];
            match self.pages.get(&index) {
                Some(page) => to.copy_from_slice(&page.bytes[from..from + count]),
                None => to.fill(0),
            }
            at += count;
        }
        true
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    data: Content,
    durable: Content,
    /// Versions of each page since the last sync, oldest first; the last is the present one.
    dirty: BTreeMap<usize, Vec<Page>>,
    /// A failed sync that is still to be told of.
    untold: Option<io::ErrorKind>,
}

impl Inode {
    fn store(&mut self, offset: usize, bytes: &[u8], noise: &mut u64) {
        let mut at = 0;
        while at < bytes.len() {
            let (index, from) = ((offset + at) / PAGE, (offset + at) % PAGE);
            let count = (PAGE - from).min(bytes.len() - at);
            let mut page = self.data.page(index);
            // A page may be written back while it is half copied.
            if count > 64 {
                let half = (next_random(noise) as usize % (count / 64)) * 64;
                if half > 0 {
                    page[from..from + half].copy_from_slice(&bytes[at..at + half]);
                    self.note(index, page_of(page), noise);
                }
            }
            page[from..from + count].copy_from_slice(&bytes[at..at + count]);
            let page = page_of(page);
            self.data.set(index, Some(Arc::clone(&page)));
            self.note(index, page, noise);
            at += count;
        }
    }

    /// Dirty pages that are, or were in between, other than what the device has.
    fn differing(&self) -> impl Iterator<Item = (usize, &Vec<Page>)> {
        self.dirty.iter().filter_map(|(index, versions)| {
            let old = self.durable.pages.get(index);
            let differs = |page: &Page| match old {
                Some(old) => page.sum() != old.sum() || page.bytes != old.bytes,
                None => page.bytes.iter().any(|byte| *byte != 0),
            };
            versions.iter().any(differs).then_some((*index, versions))
        })
    }

    fn note(&mut self, index: usize, version: Page, noise: &mut u64) {
        let versions = self.dirty.entry(index).or_default();
        if versions.len() >= VERSIONS_MAX {
            versions.remove(next_random(noise) as usize % (VERSIONS_MAX - 1));
        }
        versions.push(version);
    }

    fn sync(&mut self) {
        self.durable.resize(self.data.len);
        for index in std::mem::take(&mut self.dirty).into_keys() {
            self.durable.set(index, self.data.pages.get(&index).cloned());
        }
    }

    /// The pages are clean, and the device has nothing of them.
    fn fail_sync(&mut self, how: SyncFailure) {
        for index in std::mem::take(&mut self.dirty).into_keys() {
            if how == SyncFailure::RevertsContent {
                self.data.set(index, self.durable.pages.get(&index).cloned());
            }
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// splitmix64 (Steele, Lea, Flood 2014).
fn next_random(state: &mut u64) -> u64 {
    let value = mix(*state);
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value
}

/// The names on the way to a path: `/` is a directory like others, so that both kinds of path can be told apart.
fn parts(path: &Path) -> io::Result<(usize, Vec<&str>)> {
    let mut start = HERE;
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir => start = ROOT,
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?);
            }
            Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok((start, names))
}

/// What decides, change by change, what a power cut keeps.
struct Chooser {
    fate: Fate,
    index: usize,
    random: u64,
    /// Chance of a name or length to be kept, of 256.
    chance: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Name,
    Length,
    Page,
}

impl Chooser {
    fn new(fate: Fate) -> Chooser {
        let random = match fate {
            Fate::Random(seed) | Fate::Shorn(seed) => seed,
            _ => 0,
        };
        Chooser {
            fate,
            index: 0,
            random: mix(random),
            // Long rows of names would almost never survive a toss of coins.
            chance: [128, 232, 24, 256][(mix(random ^ 0x77) % 4) as usize],
        }
    }

    fn keep(&mut self, change: Change) -> bool {
        let i = self.index;
        self.index += 1;
        match self.fate {
            Fate::Mask(mask) => mask >> i.min(63) & 1 == 1,
            Fate::None => false,
            Fate::All => true,
            Fate::Single(one) => i == one,
            Fate::AllBut(one) => i != one,
            Fate::Prefix(end) => i < end,
            Fate::Suffix(start) => i >= start,
            Fate::Names => change != Change::Page,
            Fate::Pages => change == Change::Page,
            Fate::Random(_) | Fate::Shorn(_) => next_random(&mut self.random) % 256 < self.chance,
        }
    }

    /// What is left of a page with these versions.
    fn page(&mut self, old: Option<Page>, versions: &[Page]) -> Option<Page> {
        let kept = self.keep(Change::Page);
        if !matches!(self.fate, Fate::Random(_) | Fate::Shorn(_)) {
            return if kept { versions.last().cloned() } else { old };
        }
        let pick = |random: &mut u64| {
            let i = next_random(random) as usize % (versions.len() + 1);
            versions.get(i).cloned().or_else(|| old.clone())
        };
        let one = pick(&mut self.random);
        if next_random(&mut self.random) & 3 != 0 {
            return one;
        }
        let other = pick(&mut self.random);
        let mut bytes = one.map_or([0; PAGE], |page| page.bytes);
        let other = other.map_or([0; PAGE], |page| page.bytes);
        for sector in 0..PAGE / SECTOR {
            if next_random(&mut self.random) & 1 == 0 {
                let at = sector * SECTOR..(sector + 1) * SECTOR;
                bytes[at.clone()].copy_from_slice(&other[at]);
            }
        }
        Some(page_of(bytes))
    }
}

impl World {
    fn error() -> io::Error {
        io::Error::other("simulated crash")
    }

    // ---- names

    fn walk(&self, path: &Path) -> io::Result<Node> {
        let (start, names) = parts(path)?;
        let mut node = Node::Dir(start);
        for name in names {
            let Node::Dir(dir) = node else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            node = *self.dirs.get(dir).and_then(|dir| dir.names.get(name)).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    fn dir(&self, path: &Path) -> io::Result<usize> {
        match self.walk(path)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, path: &Path) -> Option<usize> {
        match self.walk(path) {
            Ok(Node::File(inode)) => Some(inode),
            _ => None,
        }
    }

    /// The directory and the last name of a path.
    fn place(&self, path: &Path) -> io::Result<Name> {
        let (_, names) = parts(path)?;
        let last = names.last().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.dir(path.parent().unwrap_or(Path::new("")))?;
        Ok((dir, (*last).to_owned()))
    }

    fn at(&self, name: &Name) -> Option<Node> {
        self.dirs.get(name.0)?.names.get(&name.1).copied()
    }

    fn change(&mut self, op: NameOp) {
        op.apply(&mut self.dirs, |dir| &mut dir.names);
        self.unsynced_names.push(op);
    }

    /// All files below a directory, with their paths.
    fn visit(&self, dir: usize, path: &Path, found: &mut Vec<(PathBuf, usize)>) {
        for (name, node) in self.dirs.get(dir).into_iter().flat_map(|dir| &dir.names) {
            let path = path.join(name);
            match node {
                Node::File(inode) => found.push((path, *inode)),
                Node::Dir(dir) => self.visit(*dir, &path, found),
            }
        }
    }

    fn files(&self) -> Vec<(PathBuf, usize)> {
        let mut found = Vec::new();
        self.visit(HERE, Path::new(""), &mut found);
        self.visit(ROOT, Path::new("/"), &mut found);
        found.sort();
        found
    }

    // ---- steps and faults

    /// Counts a step. `Ok(when)`: it is to happen, whole if `Before` or `After`, else in part; `Err`: it is not.
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
            let partial = matches!(when, When::During | When::Part(_));
            if when == When::Before || (partial && op != Op::Write) {
                return Err(Self::error());
            }
            return Ok(when);
        }
        self.fault(op, Some(step))?;
        Ok(When::Before)
    }

    fn fault(&mut self, op: Op, step: Option<u64>) -> io::Result<()> {
        if self.crashed {
            return Err(Self::error());
        }
        for fault in &mut self.faults {
            if fault.times == 0 {
                continue;
            }
            let hit = match &mut fault.aim {
                Aim::Step(at) => step == Some(*at),
                Aim::Kind { op: aimed, after } if *aimed == op => {
                    let passes = *after > 0;
                    *after = after.saturating_sub(1);
                    !passes
                }
                Aim::Kind { .. } => false,
            };
            if hit {
                fault.times -= 1;
                return Err(fault.kind.into());
            }
        }
        Ok(())
    }

    /// Whoever asked when the crash came never learns that it happened.
    fn answer(&self) -> io::Result<()> {
        if self.crashed { Err(Self::error()) } else { Ok(()) }
    }

    fn log(&mut self, call: impl FnOnce(&World) -> Call) {
        if self.log.is_some() {
            let call = call(self);
            if let Some(log) = &mut self.log {
                log.push(call);
            }
        }
    }

    fn log_file<T>(&mut self, op: Op, inode: usize, offset: usize, bytes: &[u8], result: &io::Result<T>) {
        let ok = result.is_ok();
        self.log(|world| Call {
            step: world.steps.saturating_sub(1),
            op,
            file: Some(inode as u64),
            path: world.files().into_iter().find(|(_, i)| *i == inode).map(|(path, _)| path).unwrap_or_default(),
            to: None,
            offset: offset as u64,
            bytes: bytes.to_vec(),
            ok,
        });
    }

    fn log_name<T>(&mut self, op: Op, file: Option<usize>, path: &Path, to: Option<&Path>, result: &io::Result<T>) {
        let ok = result.is_ok();
        self.log(|world| Call {
            step: world.steps.saturating_sub(1),
            op,
            file: file.map(|inode| inode as u64),
            path: path.to_owned(),
            to: to.map(Path::to_owned),
            offset: 0,
            bytes: Vec::new(),
            ok,
        });
    }

    // ---- space and bytes

    fn used(&self) -> u64 {
        let linked: BTreeSet<usize> = self.files().into_iter().map(|(_, inode)| inode).collect();
        linked.iter().filter_map(|inode| self.inodes.get(*inode)).map(|inode| inode.data.len as u64).sum()
    }

    fn room(&self, more: u64) -> io::Result<()> {
        if self.space != u64::MAX && self.used().saturating_add(more) > self.space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn inode(&mut self, inode: usize) -> io::Result<&mut Inode> {
        self.inodes.get_mut(inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, inode: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.write_as(Op::Write, inode, offset, bytes)
    }

    fn write_as(&mut self, op: Op, inode: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let when = self.step(op)?;
        let end = offset.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let more = end.saturating_sub(self.inode(inode)?.data.len);
        if more > 0 {
            self.room(more as u64)?;
        }
        let part = match when {
            When::During => bytes.len() / 2,
            When::Part(parts) => bytes.len() * usize::from(parts.min(64)) / 64,
            When::Before | When::After => bytes.len(),
        };
        let mut noise = self.noise;
        let file = self.inode(inode)?;
        if part > 0 && offset + part > file.data.len {
            file.data.resize(offset + part);
        }
        file.store(offset, &bytes[..part], &mut noise);
        self.noise = noise;
        self.last_store = Some((inode, offset, part));
        self.answer()
    }

    fn read(&mut self, inode: usize, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.fault(Op::Read, None)?;
        if self.inode(inode)?.data.read(offset, bytes) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn sync(&mut self, inode: usize) -> io::Result<()> {
        let how = self.sync_failure;
        let result = self.step(Op::Sync);
        let crashed = self.crashed;
        let file = self.inode(inode)?;
        match result {
            Ok(_) => {
                if let Some(kind) = file.untold.take() {
                    // What was stored since goes the same way: nobody knows.
                    file.fail_sync(SyncFailure::KeepsContent);
                    return Err(kind.into());
                }
                file.sync();
                self.answer()
            }
            Err(error) if crashed => Err(error),
            Err(error) => {
                file.fail_sync(how);
                if how == SyncFailure::ToldLate {
                    file.untold = Some(error.kind());
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// Which files have a name, or may have one after a power cut.
    fn nameable(&self) -> BTreeSet<usize> {
        let tables = self.dirs.iter().flat_map(|dir| [&dir.names, &dir.durable]);
        let nodes = tables.flat_map(BTreeMap::values);
        let coming = self.unsynced_names.iter().filter_map(|op| op.come.as_ref());
        nodes
            .chain(coming.map(|(_, node)| node))
            .filter_map(|node| match node {
                Node::File(inode) => Some(*inode),
                Node::Dir(_) => None,
            })
            .collect()
    }

    /// Loses what the fate says, and forgets the difference between what was synced and what was not.
    fn cut(&mut self, fate: Fate) {
        let mut chooser = Chooser::new(fate);
        let nameable = self.nameable();
        // Changes of one name keep their order: what follows a lost one is lost too.
        let mut lost: BTreeSet<Name> = BTreeSet::new();
        for op in std::mem::take(&mut self.unsynced_names) {
            let kept = chooser.keep(Change::Name);
            if kept && !op.names().any(|name| lost.contains(name)) {
                op.apply(&mut self.dirs, |dir| &mut dir.durable);
            } else {
                lost.extend(op.names().cloned());
            }
        }
        for dir in &mut self.dirs {
            dir.names = dir.durable.clone();
        }
        let shorn = match fate {
            Fate::Shorn(_) => self.last_store.filter(|(_, _, len)| *len > 0),
            _ => None,
        };
        for (number, inode) in self.inodes.iter_mut().enumerate() {
            if !nameable.contains(&number) {
                *inode = Inode::default();
                continue;
            }
            let mut after = inode.durable.clone();
            let len =
                if inode.data.len != after.len && chooser.keep(Change::Length) { inode.data.len } else { after.len };
            for (index, versions) in inode.differing() {
                let page = chooser.page(after.pages.get(&index).cloned(), versions);
                after.set(index, page);
            }
            if let Some((_, offset, stored)) = shorn.filter(|(shorn, ..)| *shorn == number) {
                let sectors = offset / SECTOR..(offset + stored).div_ceil(SECTOR);
                let sector = sectors.start + next_random(&mut chooser.random) as usize % sectors.len();
                let index = sector * SECTOR / PAGE;
                if inode.dirty.contains_key(&index) {
                    let mut page = after.page(index);
                    let from = sector * SECTOR % PAGE;
                    for byte in &mut page[from..from + SECTOR] {
                        *byte = next_random(&mut chooser.random) as u8;
                    }
                    after.set(index, Some(page_of(page)));
                }
            }
            // Whatever is behind the end is gone, also if its pages were written.
            after.len = usize::MAX;
            after.resize(len);
            *inode = Inode { data: after.clone(), durable: after, ..Inode::default() };
        }
        self.boot += 1;
        self.last_store = None;
    }

    /// A process ends and another one may begin.
    fn end_process(&mut self) {
        self.process += 1;
        self.locks.clear();
    }
}

impl SimDisk {
    /// An empty disk. The seed rules its randomness.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            process: 0,
            inner: Arc::new(Mutex::new(World {
                inodes: Vec::new(),
                dirs: vec![Dir::default(), Dir::default()],
                unsynced_names: Vec::new(),
                locks: BTreeSet::new(),
                process: 0,
                steps: 0,
                stalled: false,
                crash_at: None,
                crashed: false,
                faults: Vec::new(),
                sync_failure: SyncFailure::KeepsContent,
                space: u64::MAX,
                mono_ms: 1_000,
                wall_ms: 1_700_000_000_000,
                boot: 1,
                random: seed,
                noise: mix(seed),
                may_map: true,
                last_store: None,
                log: None,
            })),
        }
    }

    /// The world, if this handle's process is alive.
    fn world(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.inner.lock();
        if world.crashed || world.process != self.process {
            return Err(World::error());
        }
        Ok(world)
    }

    fn branch(&self, change: impl FnOnce(&mut World)) -> SimDisk {
        let mut world = self.inner.lock().clone();
        world.crash_at = None;
        world.crashed = false;
        world.faults.clear();
        world.steps = 0;
        world.log = None;
        world.end_process();
        change(&mut world);
        SimDisk { process: world.process, inner: Arc::new(Mutex::new(world)) }
    }

    /// A copy of the disk as the death of its process leaves it. This one goes on unharmed.
    #[must_use]
    pub fn kill(&self) -> SimDisk {
        self.branch(|_| {})
    }

    /// A copy of the disk as a power cut leaves it. This one goes on unharmed.
    #[must_use]
    pub fn power_cut(&self, fate: Fate) -> SimDisk {
        self.branch(|world| world.cut(fate))
    }

    /// A deep copy in the very state of this disk: planned crash, failures and locks included.
    #[must_use]
    pub fn clone_state(&self) -> SimDisk {
        SimDisk { inner: Arc::new(Mutex::new(self.inner.lock().clone())), process: self.process }
    }

    /// Ends the process on this very disk and gives the next one's handle: the steps and a planned crash go on. Earlier
    /// handles and files are dead.
    #[must_use]
    pub fn restart(&self) -> SimDisk {
        let mut world = self.inner.lock();
        if world.process == self.process {
            world.end_process();
        }
        SimDisk { process: world.process, inner: Arc::clone(&self.inner) }
    }

    /// As [`restart`](SimDisk::restart), by a power cut. After a crash nothing is lost any more: that is the crash's.
    #[must_use]
    pub fn restart_after_cut(&self, fate: Fate) -> SimDisk {
        {
            let mut world = self.inner.lock();
            if world.process == self.process && !world.crashed {
                world.cut(fate);
            }
        }
        self.restart()
    }

    /// How many independent changes a power cut now would decide about.
    pub fn unsynced_changes(&self) -> usize {
        let world = self.inner.lock();
        let pages: usize = world
            .nameable()
            .into_iter()
            .filter_map(|inode| world.inodes.get(inode))
            .map(|i| i.differing().count() + usize::from(i.data.len != i.durable.len))
            .sum();
        world.unsynced_names.len() + pages
    }

    /// The fates to try: every subset of up to `exhaustive` changes; beyond that none, all, each single one, all but one, the
    /// beginnings, the ends, names without pages and pages without names; and `random` ones by chance, which also take
    /// versions in between.
    pub fn fates(&self, exhaustive: usize, random: u64, seed: u64) -> Vec<Fate> {
        let changes = self.unsynced_changes();
        let mut fates = Vec::new();
        if changes <= exhaustive.min(16) {
            fates.extend((0..1u64 << changes).map(Fate::Mask));
        } else {
            fates.extend([Fate::None, Fate::All, Fate::Names, Fate::Pages]);
            for i in 0..changes {
                fates.extend([Fate::Single(i), Fate::AllBut(i), Fate::Prefix(i), Fate::Suffix(i)]);
            }
        }
        if changes > 0 {
            fates.extend((0..random).map(|i| Fate::Random(seed.wrapping_mul(31).wrapping_add(i))));
        }
        fates
    }

    /// The disks that a power cut now could leave: one for each of [`fates`](SimDisk::fates).
    pub fn power_cuts(&self, exhaustive: usize, random: u64, seed: u64) -> impl Iterator<Item = (Fate, SimDisk)> + '_ {
        self.fates(exhaustive, random, seed).into_iter().map(|fate| (fate, self.power_cut(fate)))
    }

    /// A sum over all names and bytes as a process sees them, and the boot: disks that differ have different ones, but for
    /// odds of 2⁻⁶⁴.
    pub fn fingerprint(&self) -> u64 {
        let world = self.inner.lock();
        let mut sum = mix(world.boot as u64 ^ (world.boot >> 64) as u64);
        let mut add = |value: u64| sum = mix(sum ^ value);
        let mut todo = vec![HERE, ROOT];
        while let Some(dir) = todo.pop() {
            let names = world.dirs.get(dir).map(|dir| &dir.names);
            add(names.map_or(0, |names| names.len() as u64));
            for (name, node) in names.into_iter().flatten() {
                add(name.len() as u64);
                name.bytes().for_each(|byte| add(u64::from(byte)));
                match node {
                    Node::Dir(dir) => todo.push(*dir),
                    Node::File(inode) => {
                        let Some(inode) = world.inodes.get(*inode) else {
                            continue;
                        };
                        add(!(inode.data.len as u64));
                        for (index, page) in &inode.data.pages {
                            add(*index as u64);
                            add(page.sum());
                        }
                    }
                }
            }
        }
        sum
    }

    /// Steps counted so far: the calls that change something, and stores.
    pub fn steps(&self) -> u64 {
        self.inner.lock().steps
    }

    /// Crashes at step `step`, counted from 0: from then on every call fails and changes nothing.
    pub fn crash_at(&self, step: u64, when: When) {
        self.inner.lock().crash_at = Some((step, when));
    }

    /// Whether the crash has happened, or this handle's process has ended.
    pub fn has_crashed(&self) -> bool {
        self.world().is_err()
    }

    /// Fails `times` calls of a kind, after letting `after` of them pass.
    pub fn fail(&self, op: Op, after: u64, times: u64, kind: io::ErrorKind) {
        self.inner.lock().faults.push(Fault { aim: Aim::Kind { op, after }, times, kind });
    }

    /// Fails the step of this number, counted from 0, whatever it does.
    pub fn fail_at(&self, step: u64, kind: io::ErrorKind) {
        self.inner.lock().faults.push(Fault { aim: Aim::Step(step), times: 1, kind });
    }

    /// Ends all planned failures.
    pub fn heal(&self) {
        self.inner.lock().faults.clear();
    }

    /// How syncs fail that fail.
    pub fn set_sync_failure(&self, how: SyncFailure) {
        self.inner.lock().sync_failure = how;
    }

    /// Lets no sync of a file's content begin until this is called with `false`, as a device does that is busy with itself.
    pub fn stall_syncs(&self, stalled: bool) {
        self.inner.lock().stalled = stalled;
    }

    /// Limits the bytes of all files together. Once they are reached, nothing can be created either.
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

    /// Notes every call that changes something, from now on.
    pub fn record(&self) {
        self.inner.lock().log.get_or_insert_default();
    }

    /// The calls noted since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        match &mut self.inner.lock().log {
            Some(log) => std::mem::take(log),
            None => Vec::new(),
        }
    }

    /// All files, sorted.
    pub fn list_files(&self) -> Vec<PathBuf> {
        let files = self.inner.lock().files();
        files.into_iter().map(|(path, _)| path).collect()
    }

    /// A file's bytes.
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.inner.lock();
        let inode = world.file(path)?;
        world.inodes.get(inode).map(|inode| inode.data.bytes())
    }

    /// Gives a file other bytes, durably, creating it and its directories if need be: damage, not a write of the engine.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        let mut world = self.inner.lock();
        let content = Inode { data: Content::of(bytes), durable: Content::of(bytes), ..Inode::default() };
        if let Some(inode) = world.file(path) {
            if let Some(inode) = world.inodes.get_mut(inode) {
                *inode = content;
            }
            return;
        }
        let Ok((mut dir, names)) = parts(path) else {
            return;
        };
        let Some((last, dirs)) = names.split_last() else {
            return;
        };
        for name in dirs {
            let known = world.dirs.get(dir).and_then(|dir| dir.names.get(*name));
            let next = match known {
                Some(Node::Dir(next)) => *next,
                _ => {
                    world.dirs.push(Dir::default());
                    world.dirs.len() - 1
                }
            };
            if let Some(dir) = world.dirs.get_mut(dir) {
                dir.names.insert((*name).to_owned(), Node::Dir(next));
                dir.durable.insert((*name).to_owned(), Node::Dir(next));
            }
            dir = next;
        }
        world.inodes.push(content);
        let node = Node::File(world.inodes.len() - 1);
        if let Some(dir) = world.dirs.get_mut(dir) {
            dir.names.insert((*last).to_owned(), node);
            dir.durable.insert((*last).to_owned(), node);
        }
    }

    /// Removes a file, durably.
    pub fn remove_file(&self, path: &Path) {
        let mut world = self.inner.lock();
        if let Ok((dir, name)) = world.place(path)
            && let Some(dir) = world.dirs.get_mut(dir)
        {
            dir.names.remove(&name);
            dir.durable.remove(&name);
        }
    }

    // ---- the seam

    pub(crate) fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world()?;
        let mut missing: Vec<&Path> = Vec::new();
        for dir in dir.ancestors() {
            match world.walk(dir) {
                Ok(Node::Dir(_)) => break,
                Ok(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(_) => missing.push(dir),
            }
        }
        for dir in missing.into_iter().rev() {
            let result = Self::mkdir(&mut world, dir);
            world.log_name(Op::Mkdir, None, dir, None, &result);
            result?;
        }
        Ok(())
    }

    fn mkdir(world: &mut World, path: &Path) -> io::Result<()> {
        world.step(Op::Mkdir)?;
        world.room(1)?;
        let name = world.place(path)?;
        world.dirs.push(Dir::default());
        let node = Node::Dir(world.dirs.len() - 1);
        world.change(NameOp { gone: None, come: Some((name, node)) });
        world.answer()
    }

    pub(crate) fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut world = self.world()?;
        world.fault(Op::List, None)?;
        let dir = world.dir(dir)?;
        let names = world.dirs.get(dir).into_iter().flat_map(|dir| &dir.names);
        let entries = names.map(|(name, node)| Entry {
            name: name.clone(),
            kind: match node {
                Node::Dir(_) => EntryKind::Dir,
                Node::File(_) => EntryKind::File,
            },
        });
        Ok(entries.collect())
    }

    fn handle(&self, inode: usize, locked: bool) -> SimFile {
        SimFile { disk: self.clone(), inode, locked }
    }

    pub(crate) fn open(&self, path: &Path, _writable: bool) -> io::Result<SimFile> {
        let mut world = self.world()?;
        world.fault(Op::Open, None)?;
        match world.walk(path)? {
            Node::File(inode) => Ok(self.handle(inode, false)),
            Node::Dir(_) => Err(not_regular("a directory")),
        }
    }

    pub(crate) fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut world = self.world()?;
        let result = Self::create_in(&mut world, Op::Create, path);
        let file = result.as_ref().ok().copied();
        world.log_name(Op::Create, file, path, None, &result);
        Ok(self.handle(result?, false))
    }

    fn create_in(world: &mut World, op: Op, path: &Path) -> io::Result<usize> {
        world.step(op)?;
        let name = world.place(path)?;
        if world.at(&name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.room(1)?;
        world.inodes.push(Inode::default());
        let inode = world.inodes.len() - 1;
        world.change(NameOp { gone: None, come: Some((name, Node::File(inode))) });
        world.answer()?;
        Ok(inode)
    }

    pub(crate) fn lock(&self, path: &Path) -> io::Result<SimFile> {
        let mut world = self.world()?;
        let inode = match world.walk(path) {
            Ok(Node::File(inode)) => {
                world.fault(Op::Lock, None)?;
                inode
            }
            Ok(Node::Dir(_)) => return Err(not_regular("a directory")),
            Err(_) => {
                let result = Self::create_in(&mut world, Op::Lock, path);
                let file = result.as_ref().ok().copied();
                world.log_name(Op::Lock, file, path, None, &result);
                result?
            }
        };
        if !world.locks.insert(inode) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(self.handle(inode, true))
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world()?;
        let file = world.file(from);
        let result = Self::rename_in(&mut world, from, to);
        world.log_name(Op::Rename, file, from, Some(to), &result);
        result
    }

    fn rename_in(world: &mut World, from: &Path, to: &Path) -> io::Result<()> {
        world.step(Op::Rename)?;
        let (gone, come) = (world.place(from)?, world.place(to)?);
        let node = world.at(&gone).ok_or(io::ErrorKind::NotFound)?;
        if let Some(Node::Dir(_)) = world.at(&come) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.change(NameOp { gone: Some(gone), come: Some((come, node)) });
        world.answer()
    }

    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world()?;
        let Some(file) = world.file(path) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let result = Self::remove_name(&mut world, path);
        world.log_name(Op::Unlink, Some(file), path, None, &result);
        result
    }

    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world()?;
        let dir = world.dir(path)?;
        if world.dirs.get(dir).is_some_and(|dir| !dir.names.is_empty()) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let result = Self::remove_name(&mut world, path);
        world.log_name(Op::Unlink, None, path, None, &result);
        result
    }

    fn remove_name(world: &mut World, path: &Path) -> io::Result<()> {
        world.step(Op::Unlink)?;
        let name = world.place(path)?;
        world.change(NameOp { gone: Some(name), come: None });
        world.answer()
    }

    /// Makes the names in a directory durable, and what they followed on; not the directory's own name.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world()?;
        let result = Self::sync_names(&mut world, dir);
        world.log_name(Op::SyncDir, None, dir, None, &result);
        result
    }

    fn sync_names(world: &mut World, dir: &Path) -> io::Result<()> {
        world.step(Op::SyncDir)?;
        let dir = world.dir(dir)?;
        let ops = std::mem::take(&mut world.unsynced_names);
        let mut wanted: BTreeSet<Name> = BTreeSet::new();
        let mut synced = vec![false; ops.len()];
        for (i, op) in ops.iter().enumerate().rev() {
            if op.home() == dir || op.names().any(|name| wanted.contains(name)) {
                synced[i] = true;
                wanted.extend(op.names().cloned());
            }
        }
        for (op, synced) in ops.into_iter().zip(synced) {
            if synced {
                op.apply(&mut world.dirs, |dir| &mut dir.durable);
            } else {
                world.unsynced_names.push(op);
            }
        }
        world.answer()
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
    /// The lock is given up when this is dropped.
    locked: bool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.locked {
            let mut world = self.disk.inner.lock();
            if world.process == self.disk.process {
                world.locks.remove(&self.inode);
            }
        }
    }
}

impl SimFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world()?.inode(self.inode)?.data.len as u64)
    }

    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.disk.world()?.read(self.inode, offset as usize, bytes)
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world()?;
        let result = world.write(self.inode, offset as usize, bytes);
        world.log_file(Op::Write, self.inode, offset as usize, bytes, &result);
        result
    }

    pub(crate) fn allocate(&self, len: u64) -> io::Result<bool> {
        let mut world = self.disk.world()?;
        let result = Self::allocate_in(&mut world, self.inode, len as usize);
        world.log_file(Op::Allocate, self.inode, len as usize, &[], &result);
        result
    }

    fn allocate_in(world: &mut World, inode: usize, len: usize) -> io::Result<bool> {
        world.step(Op::Allocate)?;
        let more = len.saturating_sub(world.inode(inode)?.data.len);
        world.room(more as u64)?;
        let data = &mut world.inode(inode)?.data;
        data.len = data.len.max(len);
        world.answer()?;
        Ok(true)
    }

    pub(crate) fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut world = self.disk.world()?;
        let zeros = vec![0; len as usize];
        let result = world.write_as(Op::Punch, self.inode, offset as usize, &zeros);
        world.log_file(Op::Punch, self.inode, offset as usize, &zeros, &result);
        result.map(|()| true)
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        while self.disk.inner.lock().stalled {
            crate::disk::give_way();
        }
        let mut world = self.disk.world()?;
        let result = world.sync(self.inode);
        world.log_file(Op::Sync, self.inode, 0, &[], &result);
        result
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
        let mut world = self.disk.world()?;
        let result = world.write(self.inode, offset, bytes);
        world.log_file(Op::Write, self.inode, offset, bytes, &result);
        result
    }

    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        super::check(offset, bytes.len(), self.len)?;
        self.disk.world()?.read(self.inode, offset, bytes)
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

    /// A file of `pages` pages, durable with its name.
    fn file_of(disk: &SimDisk, path: &Path, pages: u64) -> SimFile {
        let file = disk.create(path).expect("no fault");
        file.allocate(pages * PAGE as u64).expect("room");
        file.sync_data().expect("no fault");
        disk.sync_dir(path.parent().expect("in a directory")).expect("no fault");
        file
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
        for (fate, after) in disk.power_cuts(8, 20, 3) {
            let data = after.read_file(&path).expect("synced name");
            assert_eq!(&data[..6], b"synced", "{fate:?}");
        }
    }

    #[test]
    fn each_page_has_a_fate_of_its_own() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 3);
        for page in 0..3 {
            file.write_at(page * 4096, &[1]).expect("no fault");
        }
        assert_eq!(disk.unsynced_changes(), 3);
        let seen: BTreeSet<Vec<u8>> = disk
            .power_cuts(8, 0, 0)
            .filter_map(|(_, after)| after.read_file(&dir.join("f")))
            .map(|data| data.iter().step_by(4096).copied().collect())
            .collect();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn a_page_may_come_back_in_any_version_or_in_a_mix_of_sectors() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 1);
        for version in 1..=3u8 {
            file.write_at(0, &[version; 4096]).expect("no fault");
        }
        let mut whole = BTreeSet::new();
        let (mut half, mut mixed) = (false, false);
        for seed in 0..400 {
            let data = disk.power_cut(Fate::Random(seed)).read_file(&dir.join("f")).expect("synced name");
            let values: BTreeSet<u8> = data.iter().copied().collect();
            match values.len() {
                1 => whole.extend(values),
                _ => {
                    let torn_at = data.windows(2).position(|w| w[0] != w[1]).expect("differs") + 1;
                    mixed |= torn_at % SECTOR == 0;
                    half |= torn_at % SECTOR != 0 && torn_at % 64 == 0;
                }
            }
        }
        assert_eq!(whole, BTreeSet::from([0, 1, 2, 3]));
        assert!(half && mixed, "half-copied pages and mixes of sectors");
    }

    #[test]
    fn a_length_can_be_lost_whatever_became_of_the_pages() {
        let (disk, dir) = disk();
        let path = dir.join("f");
        let file = disk.create(&path).expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        file.allocate(4096).expect("room");
        file.write_at(0, &[5]).expect("no fault");
        let seen: BTreeSet<(usize, Option<u8>)> = disk
            .power_cuts(8, 0, 0)
            .filter_map(|(_, after)| after.read_file(&path))
            .map(|data| (data.len(), data.first().copied()))
            .collect();
        assert_eq!(seen, BTreeSet::from([(0, None), (4096, Some(0)), (4096, Some(5))]));
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
    fn a_rename_across_directories_is_durable_with_its_target_only() {
        let (disk, dir) = disk();
        let other = PathBuf::from("e");
        disk.create_dir_all(&other).expect("no fault");
        disk.sync_dir(Path::new("")).expect("no fault");
        disk.create(&dir.join("a")).expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        disk.rename(&dir.join("a"), &other.join("b")).expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        let names = |disk: &SimDisk| disk.power_cut(Fate::None).list_files();
        assert_eq!(names(&disk), [dir.join("a")]);
        disk.sync_dir(&other).expect("no fault");
        assert_eq!(names(&disk), [other.join("b")]);
    }

    #[test]
    fn a_directory_needs_the_sync_of_the_one_it_is_in() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/a/b");
        disk.create_dir_all(dir).expect("no fault");
        disk.create(&dir.join("f")).expect("no fault");
        disk.sync_dir(dir).expect("no fault");
        assert!(disk.power_cut(Fate::None).list_files().is_empty());
        disk.sync_dir(Path::new("/a")).expect("no fault");
        assert!(disk.power_cut(Fate::None).list_files().is_empty());
        disk.sync_dir(Path::new("/")).expect("no fault");
        let after = disk.power_cut(Fate::None);
        assert_eq!(after.list_files(), [dir.join("f")]);
        assert!(after.list(Path::new("/a")).is_ok() && after.list(Path::new("a")).is_err());
    }

    #[test]
    fn changes_of_one_name_keep_their_order() {
        let (disk, dir) = disk();
        let path = dir.join("f");
        for content in [1, 2] {
            let file = disk.create(&path).expect("no fault");
            file.write_at(0, &[content]).expect("no fault");
            file.sync_data().expect("no fault");
            disk.rename(&path, &dir.join("g")).expect("no fault");
        }
        for (fate, after) in disk.power_cuts(8, 0, 0) {
            let read = |name: &str| after.read_file(&dir.join(name)).map(|data| data[0]);
            let seen = (read("f"), read("g"));
            let prefixes = [(None, None), (Some(1), None), (None, Some(1)), (Some(2), Some(1)), (None, Some(2))];
            assert!(prefixes.contains(&seen), "{fate:?}: {seen:?}");
        }
    }

    #[test]
    fn a_failed_sync_does_what_real_ones_do() {
        for how in [SyncFailure::KeepsContent, SyncFailure::RevertsContent] {
            let (disk, dir) = disk();
            let path = dir.join("f");
            let file = file_of(&disk, &path, 1);
            disk.set_sync_failure(how);
            disk.fail(Op::Sync, 0, 1, io::ErrorKind::Other);
            file.write_at(0, &[7]).expect("no fault");
            assert!(file.sync_data().is_err());
            assert!(file.sync_data().is_ok(), "the second one succeeds, and means nothing");
            let seen = disk.read_file(&path).expect("there")[0];
            let kept = how == SyncFailure::KeepsContent;
            assert_eq!(seen, if kept { 7 } else { 0 });
            let after = disk.power_cut(Fate::All);
            assert_eq!(after.read_file(&path).expect("there")[0], 0);
        }
    }

    #[test]
    fn a_failed_sync_may_be_told_by_the_next_one() {
        let (disk, dir) = disk();
        let path = dir.join("f");
        let file = file_of(&disk, &path, 1);
        disk.set_sync_failure(SyncFailure::ToldLate);
        disk.fail(Op::Sync, 0, 1, io::ErrorKind::Other);
        file.write_at(0, &[7]).expect("no fault");
        assert!(file.sync_data().is_ok());
        assert_eq!(disk.power_cut(Fate::All).read_file(&path).expect("there")[0], 0);
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
    }

    #[test]
    fn a_shorn_sector_is_one_of_the_last_store() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 2);
        file.write_at(0, &[1; 4096]).expect("no fault");
        file.sync_data().expect("no fault");
        file.write_at(1000, &[2; 100]).expect("no fault");
        let mut garbage = false;
        for seed in 0..50 {
            let data = disk.power_cut(Fate::Shorn(seed)).read_file(&dir.join("f")).expect("there");
            assert!(data[..512].iter().all(|byte| *byte == 1));
            assert!(data[1536..4096].iter().all(|byte| *byte == 1));
            garbage |= data.iter().any(|byte| *byte > 2);
        }
        assert!(garbage);
    }

    #[test]
    fn after_a_crash_nothing_changes() {
        for when in [When::Before, When::During, When::Part(16), When::After] {
            let (disk, dir) = disk();
            let file = file_of(&disk, &dir.join("f"), 1);
            disk.crash_at(disk.steps(), when);
            assert!(file.write_at(0, &[1; 128]).is_err(), "the answer is lost");
            assert!(disk.has_crashed());
            assert!(file.write_at(0, &[2; 128]).is_err());
            assert!(disk.list(&dir).is_err() && disk.create(&dir.join("g")).is_err());
            let data = disk.kill().read_file(&dir.join("f")).expect("there");
            let stored = data.iter().take_while(|byte| **byte == 1).count();
            let expected = match when {
                When::Before => 0,
                When::During => 64,
                When::Part(_) => 32,
                When::After => 128,
            };
            assert_eq!(stored, expected, "{when:?}");
            assert!(data[stored..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_killed_process_loses_its_locks_and_nothing_else() {
        let (disk, dir) = disk();
        let lock = disk.lock(&dir.join("lock")).expect("free");
        let again = |disk: &SimDisk| disk.lock(&dir.join("lock")).map(drop);
        assert_eq!(again(&disk).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        let killed = disk.kill();
        assert!(again(&killed).is_ok());
        assert_eq!(killed.boot_id(), disk.boot_id());
        assert_ne!(disk.power_cut(Fate::All).boot_id(), disk.boot_id());
        drop(lock);
        assert!(again(&disk).is_ok());
    }

    #[test]
    fn the_handles_of_an_ended_process_are_dead() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 1);
        let lock = disk.lock(&dir.join("lock")).expect("free");
        let steps = disk.steps();
        let next = disk.restart();
        assert!(file.write_at(0, &[1]).is_err() && disk.has_crashed());
        let lock_of_next = next.lock(&dir.join("lock")).expect("free again");
        drop(lock);
        assert!(next.lock(&dir.join("lock")).is_err(), "the dead one gives up no lock of the living");
        drop(lock_of_next);
        assert_eq!(next.steps(), steps);
        next.open(&dir.join("f"), true).expect("there").write_at(0, &[2]).expect("alive");
        let third = next.restart_after_cut(Fate::None);
        assert_eq!(third.read_file(&dir.join("f")).expect("there")[0], 0);
    }

    #[test]
    fn a_full_disk_refuses_what_takes_room() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 2);
        disk.set_space(3 * 4096);
        let kind = |result: io::Result<()>| result.expect_err("full").kind();
        assert_eq!(kind(file.allocate(4 * 4096).map(drop)), io::ErrorKind::StorageFull);
        assert!(file.allocate(3 * 4096).is_ok());
        assert_eq!(kind(disk.create(&dir.join("g")).map(drop)), io::ErrorKind::StorageFull);
        assert_eq!(kind(disk.create_dir_all(&dir.join("h"))), io::ErrorKind::StorageFull);
        assert_eq!(kind(file.write_at(3 * 4096, &[1])), io::ErrorKind::StorageFull);
        assert!(file.write_at(2 * 4096, &[1]).is_ok(), "it has that room");
        disk.unlink(&dir.join("f")).expect("needs no room");
        assert!(disk.create(&dir.join("g")).is_ok());
    }

    #[test]
    fn faults_hit_the_step_or_the_call_they_were_aimed_at() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 1);
        disk.fail_at(disk.steps() + 1, io::ErrorKind::StorageFull);
        assert!(file.write_at(0, &[1]).is_ok());
        let error = file.write_at(0, &[2]).expect_err("aimed at");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.fail(Op::Read, 1, 1, io::ErrorKind::Other);
        let mut byte = [0];
        assert!(file.read_at(0, &mut byte).is_ok() && byte == [1]);
        assert!(file.read_at(0, &mut byte).is_err());
        assert!(file.read_at(0, &mut byte).is_ok());
        disk.fail(Op::Write, 0, 9, io::ErrorKind::Other);
        disk.heal();
        assert!(file.write_at(0, &[3]).is_ok());
    }

    #[test]
    fn the_log_tells_what_was_done_to_which_file() {
        let (disk, dir) = disk();
        disk.record();
        let file = disk.create(&dir.join("f")).expect("no fault");
        disk.rename(&dir.join("f"), &dir.join("g")).expect("no fault");
        file.write_at(0, b"x").expect("no fault");
        file.sync_data().expect("no fault");
        let calls = disk.take_calls();
        let told: Vec<(Op, &Path)> = calls.iter().map(|c| (c.op, c.path.as_path())).collect();
        let (f, g) = (dir.join("f"), dir.join("g"));
        assert_eq!(told, [(Op::Create, f.as_path()), (Op::Rename, &f), (Op::Write, &g), (Op::Sync, &g)]);
        assert!(calls.iter().all(|call| call.file == calls[0].file && call.ok));
        assert_eq!(calls[2].bytes, b"x");
        assert!(disk.take_calls().is_empty());
    }

    #[test]
    fn equal_disks_have_equal_fingerprints_and_others_have_not() {
        let (disk, dir) = disk();
        let file = file_of(&disk, &dir.join("f"), 1);
        let before = disk.fingerprint();
        assert_eq!(disk.clone_state().fingerprint(), before);
        file.write_at(9, &[1]).expect("no fault");
        assert_ne!(disk.fingerprint(), before);
        file.write_at(9, &[0]).expect("no fault");
        assert_eq!(disk.clone_state().kill().read_file(&dir.join("f")), { disk.read_file(&dir.join("f")) });
        disk.rename(&dir.join("f"), &dir.join("g")).expect("no fault");
        assert_ne!(disk.fingerprint(), before);
    }

    #[test]
    fn damage_is_durable_and_makes_its_own_directories() {
        let disk = SimDisk::new(1);
        let path = Path::new("/x/y/f");
        disk.write_file(path, b"damaged");
        let after = disk.power_cut(Fate::None);
        assert_eq!(after.read_file(path).as_deref(), Some(&b"damaged"[..]));
        after.remove_file(path);
        assert!(after.power_cut(Fate::All).list_files().is_empty());
    }

    #[test]
    fn a_file_that_lost_all_names_is_no_choice() {
        let (disk, dir) = disk();
        let file = disk.create(&dir.join("f")).expect("no fault");
        file.write_at(0, &[1]).expect("no fault");
        assert_eq!(disk.unsynced_changes(), 3, "the name, the length and the page");
        disk.unlink(&dir.join("f")).expect("no fault");
        disk.sync_dir(&dir).expect("no fault");
        assert_eq!(disk.unsynced_changes(), 0);
    }
}
