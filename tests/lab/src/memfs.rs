//! A file system in memory, behind FUSE, that keeps what was synced apart from what was written: it can fail any call, lose
//! everything that no sync has covered, and tell what a block device on one of its files was asked to do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const ROOT: u64 = 1;
const TTL: Duration = Duration::ZERO;

/// The calls that can be made to fail.
pub const CALLS: &[&str] = &[
    "lookup",
    "getattr",
    "setattr",
    "open",
    "create",
    "read",
    "write",
    "fsync",
    "fsyncdir",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "opendir",
    "readdir",
    "fallocate",
    "statfs",
    "flush",
];

/// What happens at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Errno(i32),
    /// Half of what was asked for.
    Short,
    /// An answer after this many milliseconds.
    Stall(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub call: &'static str,
    /// Counted from 1.
    pub nth: u64,
    pub fault: Fault,
}

/// What a watched file was asked to do, with the length of the ledger when it was.
#[derive(Clone, Debug)]
pub struct Event {
    pub ledger: u64,
    /// `None`: a flush.
    pub write: Option<(u64, Arc<[u8]>)>,
}

#[derive(Debug)]
enum Node {
    File { now: Vec<u8>, synced: Vec<u8>, mode: u16 },
    Dir { now: BTreeMap<OsString, u64>, synced: BTreeMap<OsString, u64>, stamp: u64, mode: u16 },
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    stamp: u64,
    plan: Option<Plan>,
    seen: u64,
    met: bool,
    /// Events of all files are told, and nothing is kept for a power cut.
    watch: Option<PathBuf>,
    events: Vec<Event>,
    lies: bool,
}

#[derive(Clone, Debug)]
pub struct MemFs(Arc<Mutex<State>>);

/// The mount; it ends with this.
#[derive(Debug)]
pub struct Mounted(Option<BackgroundSession>);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            let _ = session.umount_and_join();
        }
    }
}

type Answer<T> = Result<T, Errno>;

impl MemFs {
    pub fn new() -> MemFs {
        let mut state = State { next: ROOT + 1, ..State::default() };
        state.nodes.insert(ROOT, Node::Dir { now: BTreeMap::new(), synced: BTreeMap::new(), stamp: 0, mode: 0o755 });
        MemFs(Arc::new(Mutex::new(state)))
    }

    pub fn mount(&self, at: &Path) -> io::Result<Mounted> {
        std::fs::create_dir_all(at)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("kestrel-lab".into()), MountOption::RW];
        config.acl = fuser::SessionACL::All;
        fuser::spawn_mount(self.clone(), at, &config).map(|session| Mounted(Some(session)))
    }

    /// Sets the fault of the next run, or none; returns whether the last one was met.
    pub fn plan(&self, plan: Option<Plan>) -> bool {
        let mut state = self.state();
        (state.plan, state.seen) = (plan, 0);
        std::mem::take(&mut state.met)
    }

    /// From now on, syncs of files are answered and not done.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    /// From now on, every write and flush is recorded, with the length of the ledger then.
    pub fn watch(&self, ledger: &Path) {
        let mut state = self.state();
        state.watch = Some(ledger.to_owned());
        state.events.clear();
    }

    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    /// The content of a file in the root directory.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let Some(Node::Dir { now, .. }) = state.nodes.get(&ROOT) else { return None };
        match state.nodes.get(now.get(OsStr::new(name))?) {
            Some(Node::File { now, .. }) => Some(now.clone()),
            _ => None,
        }
    }

    /// The power goes: what no sync has covered is lost. A name that was moved is where the last synced directory has it.
    pub fn lose_unsynced(&self) {
        let mut state = self.state();
        let mut dirs: Vec<(u64, u64)> = state
            .nodes
            .iter()
            .filter_map(|(id, node)| match node {
                Node::Dir { stamp, .. } => Some((*stamp, *id)),
                Node::File { .. } => None,
            })
            .collect();
        dirs.sort_unstable_by(|a, b| b.cmp(a));
        let mut placed = HashSet::new();
        for (_, id) in dirs {
            if let Some(Node::Dir { now, synced, .. }) = state.nodes.get_mut(&id) {
                synced.retain(|_, child| placed.insert(*child));
                *now = synced.clone();
            }
        }
        for node in state.nodes.values_mut() {
            if let Node::File { now, synced, .. } = node {
                *now = synced.clone();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts a call; what shall happen to it.
    fn gate(&self, call: &'static str) -> Option<Fault> {
        let fault = {
            let mut state = self.state();
            let plan = state.plan.filter(|plan| plan.call == call)?;
            state.seen += 1;
            if state.seen != plan.nth {
                return None;
            }
            state.met = true;
            plan.fault
        };
        if let Fault::Stall(ms) = fault {
            std::thread::sleep(Duration::from_millis(ms));
            return None;
        }
        Some(fault)
    }

    /// The same for calls that have no half.
    fn pass(&self, call: &'static str) -> Answer<()> {
        match self.gate(call) {
            Some(Fault::Errno(errno)) => Err(Errno::from_i32(errno)),
            _ => Ok(()),
        }
    }
}

impl State {
    fn names(&mut self, dir: u64) -> Answer<&mut BTreeMap<OsString, u64>> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir { now, .. }) => Ok(now),
            Some(Node::File { .. }) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn bytes(&mut self, file: u64) -> Answer<&mut Vec<u8>> {
        match self.nodes.get_mut(&file) {
            Some(Node::File { now, .. }) => Ok(now),
            Some(Node::Dir { .. }) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn find(&mut self, dir: u64, name: &OsStr) -> Answer<u64> {
        self.names(dir)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn add(&mut self, dir: u64, name: &OsStr, node: Node) -> Answer<FileAttr> {
        if self.names(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.names(dir)?.insert(name.to_owned(), id);
        self.attr(id)
    }

    fn attr(&self, id: u64) -> Answer<FileAttr> {
        let (kind, size, perm) = match self.nodes.get(&id).ok_or(Errno::ENOENT)? {
            Node::File { now, mode, .. } => (FileType::RegularFile, now.len() as u64, *mode),
            Node::Dir { mode, .. } => (FileType::Directory, 4096, *mode),
        };
        let epoch = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(id),
            size,
            blocks: size.div_ceil(512),
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn event(&mut self, write: Option<(u64, Arc<[u8]>)>) {
        if let Some(ledger) = &self.watch {
            let ledger = std::fs::metadata(ledger).map(|m| m.len()).unwrap_or(0);
            self.events.push(Event { ledger, write });
        }
    }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $value:ident => $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for MemFs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.pass("lookup").and_then(|()| {
            let mut state = self.state();
            let id = state.find(parent.0, name)?;
            state.attr(id)
        });
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.pass("getattr").and_then(|()| self.state().attr(ino.0));
        answer!(reply, attr, attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = self.pass("setattr").and_then(|()| {
            let mut state = self.state();
            if let Some(size) = size {
                state.bytes(ino.0)?.resize(size as usize, 0);
            }
            if let (Some(mode), Some(Node::File { mode: m, .. } | Node::Dir { mode: m, .. })) =
                (mode, state.nodes.get_mut(&ino.0))
            {
                *m = (mode & 0o7777) as u16;
            }
            state.attr(ino.0)
        });
        answer!(reply, attr, attr => reply.attr(&TTL, &attr));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.pass("mkdir").and_then(|()| {
            let mode = (mode & 0o7777) as u16;
            let node = Node::Dir { now: BTreeMap::new(), synced: BTreeMap::new(), stamp: 0, mode };
            self.state().add(parent.0, name, node)
        });
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.pass("create").and_then(|()| {
            let node = Node::File { now: Vec::new(), synced: Vec::new(), mode: (mode & 0o7777) as u16 };
            self.state().add(parent.0, name, node)
        });
        let flags = FopenFlags::FOPEN_DIRECT_IO;
        answer!(reply, made, attr => reply.created(&TTL, &attr, Generation(0), FileHandle(0), flags));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self.pass("unlink").and_then(|()| self.state().names(parent.0)?.remove(name).ok_or(Errno::ENOENT));
        answer!(reply, gone, _gone => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self.pass("rmdir").and_then(|()| {
            let mut state = self.state();
            let id = state.find(parent.0, name)?;
            if !state.names(id)?.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            state.names(parent.0)?.remove(name);
            Ok(())
        });
        answer!(reply, gone, _gone => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let moved = self.pass("rename").and_then(|()| {
            let mut state = self.state();
            let id = state.find(parent.0, name)?;
            state.names(to.0)?;
            state.names(parent.0)?.remove(name);
            state.names(to.0)?.insert(to_name.to_owned(), id);
            Ok(())
        });
        answer!(reply, moved, _moved => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.pass("open"), _ok => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.pass("opendir"), _ok => reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = match self.gate("read") {
            Some(Fault::Errno(errno)) => return reply.error(Errno::from_i32(errno)),
            Some(Fault::Short) => (size as usize / 2).max(1),
            _ => size as usize,
        };
        let mut state = self.state();
        answer!(reply, state.bytes(ino.0), bytes => {
            let from = (offset as usize).min(bytes.len());
            reply.data(&bytes[from..(from + size).min(bytes.len())]);
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = match self.gate("write") {
            Some(Fault::Errno(errno)) => return reply.error(Errno::from_i32(errno)),
            Some(Fault::Short) => &data[..(data.len() / 2).max(1)],
            _ => data,
        };
        let mut state = self.state();
        if state.watch.is_some() {
            state.event(Some((offset, data.into())));
        }
        answer!(reply, state.bytes(ino.0), bytes => {
            let (from, to) = (offset as usize, offset as usize + data.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(data);
            reply.written(data.len() as u32);
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.pass("flush"), _ok => reply.ok());
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.pass("fsync").map(|()| {
            let mut state = self.state();
            state.event(None);
            let watched = state.watch.is_some() || state.lies;
            if let Some(Node::File { now, synced, .. }) = state.nodes.get_mut(&ino.0)
                && !watched
            {
                synced.clone_from(now);
            }
        });
        answer!(reply, synced, _ok => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.pass("fsyncdir").map(|()| {
            let mut state = self.state();
            state.stamp += 1;
            let next = state.stamp;
            if let Some(Node::Dir { now, synced, stamp, .. }) = state.nodes.get_mut(&ino.0) {
                synced.clone_from(now);
                *stamp = next;
            }
        });
        answer!(reply, synced, _ok => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.state();
        let listed = match offset {
            // Counted once, not once a page.
            0 => {
                drop(state);
                let passed = self.pass("readdir");
                state = self.state();
                passed
            }
            _ => Ok(()),
        };
        let names = listed.and_then(|()| state.names(ino.0).map(|names| names.clone()));
        answer!(reply, names, names => {
            let all = names.iter().map(|(name, id)| (name.clone(), *id));
            let dots = [(OsString::from("."), ino.0), (OsString::from(".."), ROOT)];
            for (at, (name, id)) in dots.into_iter().chain(all).enumerate().skip(offset as usize) {
                let kind = match state.nodes.get(&id) {
                    Some(Node::File { .. }) => FileType::RegularFile,
                    _ => FileType::Directory,
                };
                if reply.add(INodeNo(id), at as u64 + 1, kind, &name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        answer!(reply, self.pass("statfs"), _ok => reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096));
    }

    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        let done = self.pass("fallocate").and_then(|()| {
            let mut state = self.state();
            let bytes = state.bytes(ino.0)?;
            let end = (offset + len) as usize;
            match mode {
                0 if bytes.len() < end => bytes.resize(end, 0),
                m if m & libc::FALLOC_FL_PUNCH_HOLE != 0 || m & libc::FALLOC_FL_ZERO_RANGE != 0 => {
                    let end = end.min(bytes.len());
                    bytes[(offset as usize).min(end)..end].fill(0);
                }
                _ => {}
            }
            Ok(())
        });
        answer!(reply, done, _ok => reply.ok());
    }
}
