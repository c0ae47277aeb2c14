//! The only door to the system: files, maps, directories, locks, clock, randomness.
//!
//! Everything the engine does to the outside goes through [`Disk`], [`File`] and [`Map`]. There are two disks: the real
//! one, and (in tests, or with the feature `testing`) a simulated one that forgets what was not synced, tears, fails and
//! fills up. The choice is an `enum` with one variant in a release build, so the seam costs nothing there.
//!
//! What the layer above may rely on:
//! - `File::allocate` returns `true` only if later stores into the range cannot fail for want of space; only then may
//!   the file be mapped. `Disk::open_map` picks positional access where that is not so.
//! - `File::sync_data` covers stores made through a [`Map`] of the same file.
//! - A new name (create, rename) is durable only after `sync_dir` of its directory.
//! - `Map` never hands out a reference into mapped memory: bytes are copied in and out, bounds-checked.

pub(crate) mod map;
pub(crate) mod real;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod sim;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use map::ForkGuard;

/// The system a set lives on.
#[derive(Clone, Debug)]
pub(crate) enum Disk {
    Real(real::RealDisk),
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimDisk),
}

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Dir,
    Other,
}

/// One entry of a directory listing; names that are not UTF-8 are never ours and are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: EntryKind,
}

/// An open file. Reads and writes are positional and whole: short I/O and EINTR are retried below.
#[derive(Debug)]
pub(crate) enum File {
    Real(std::fs::File),
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimFile),
}

/// Bytes of a segment: mapped, positional, anonymous or simulated.
#[derive(Debug)]
pub(crate) enum Map {
    Mapped(map::Mapped),
    Positional {
        file: Arc<File>,
        len: usize,
    },
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimMap),
}

/// Marks an `io::Error` for something that is not a plain file of ours (symbolic link, FIFO, directory, hard link).
#[derive(Debug, thiserror::Error)]
#[error("not a regular file of this set: {0}")]
pub(crate) struct NotRegular(pub(crate) &'static str);

pub(crate) fn not_regular(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, NotRegular(what))
}

/// The reason if `error` says that a path holds something else than a regular file.
pub(crate) fn as_not_regular(error: &io::Error) -> Option<&'static str> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<NotRegular>()).map(|n| n.0)
}

/// Whether `error` means that the medium, the quota or the inodes are used up.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether `error` means that the process, or the system, has no descriptor or map to spare.
pub(crate) fn is_too_many_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let too_many = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| too_many.iter().any(|errno| errno.raw_os_error() == code))
}

/// Now, for deadlines of blocked threads. Item times come from [`Disk::wall_ms`] and [`Disk::mono_ms`].
pub(crate) fn instant_now() -> Instant {
    Instant::now()
}

/// Lets other threads get on for a moment.
pub(crate) fn give_way() {
    std::thread::sleep(std::time::Duration::from_micros(200));
}

macro_rules! each {
    ($self:expr, $inner:ident => $real:expr, $sim_inner:ident => $sim:expr) => {
        match $self {
            Self::Real($inner) => $real,
            #[cfg(any(test, feature = "testing"))]
            Self::Sim($sim_inner) => $sim,
        }
    };
}

impl Disk {
    pub(crate) fn real() -> Self {
        Disk::Real(real::RealDisk)
    }

    /// Creates a directory (mode 0700) and its parents; an existing one is fine.
    pub(crate) fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        each!(self, d => d.create_dir_all(dir), s => s.create_dir_all(dir))
    }

    /// Lists a directory, unsorted.
    pub(crate) fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        each!(self, d => d.list(dir), s => s.list(dir))
    }

    /// Opens an existing regular file; never follows a link, never blocks on a FIFO.
    pub(crate) fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        each!(self, d => d.open(path, writable).map(File::Real), s => s.open(path, writable).map(File::Sim))
    }

    /// Writes into an existing file that is not kept open for it, and makes that durable if `sync`.
    pub(crate) fn write(&self, path: &Path, offset: u64, bytes: &[u8], sync: bool) -> io::Result<()> {
        let write = || {
            let file = self.open(path, true)?;
            file.write_at(offset, bytes)?;
            if sync { file.sync_data() } else { Ok(()) }
        };
        each!(self, _d => real::with_reserve(write), _s => write())
    }

    /// Creates a file (mode 0600); fails if the name is taken.
    pub(crate) fn create(&self, path: &Path) -> io::Result<File> {
        each!(self, d => d.create(path).map(File::Real), s => s.create(path).map(File::Sim))
    }

    /// Opens or creates the lock file and locks it; `WouldBlock` if somebody else holds it. Held until dropped.
    pub(crate) fn lock(&self, path: &Path) -> io::Result<File> {
        each!(self, d => d.lock(path).map(File::Real), s => s.lock(path).map(File::Sim))
    }

    /// Renames a file or directory, replacing a file of the target name.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        each!(self, d => d.rename(from, to), s => s.rename(from, to))
    }

    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        each!(self, d => d.unlink(path), s => s.unlink(path))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        each!(self, d => d.remove_dir(path), s => s.remove_dir(path))
    }

    /// Makes the names in `dir` durable.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        each!(self, d => d.sync_dir(dir), s => s.sync_dir(dir))
    }

    /// Whether a store into an allocated page of a file below `dir` can be trusted not to fail.
    pub(crate) fn may_map(&self, dir: &Path) -> bool {
        each!(self, d => d.may_map(dir), s => s.may_map(dir))
    }

    /// Opens `file` for byte access: mapped if `mapped`, else positional.
    pub(crate) fn open_map(&self, file: &Arc<File>, len: usize, mapped: bool) -> io::Result<Map> {
        match &**file {
            File::Real(real) if mapped => map::Mapped::of_file(real, len).map(Map::Mapped),
            #[cfg(any(test, feature = "testing"))]
            File::Sim(sim) if mapped => sim.map(len).map(Map::Sim),
            _ => Ok(Map::Positional { file: Arc::clone(file), len }),
        }
    }

    /// Milliseconds of a clock that never steps; coarse (a few ms), a few nanoseconds to read.
    pub(crate) fn mono_ms(&self) -> u64 {
        each!(self, d => d.mono_ms(), s => s.mono_ms())
    }

    /// The same clock, exact to the millisecond.
    pub(crate) fn mono_exact_ms(&self) -> u64 {
        each!(self, d => d.mono_exact_ms(), s => s.mono_ms())
    }

    /// Milliseconds since 1970 by the wall clock, which may step.
    pub(crate) fn wall_ms(&self) -> u64 {
        each!(self, d => d.wall_ms(), s => s.wall_ms())
    }

    /// Names this boot of the machine: equal ids mean that the page cache outlived the last process.
    pub(crate) fn boot_id(&self) -> u128 {
        each!(self, d => d.boot_id(), s => s.boot_id())
    }

    pub(crate) fn random_u64(&self) -> io::Result<u64> {
        each!(self, d => d.random_u64(), s => Ok(s.random_u64()))
    }

    /// How many files this process may have open; `None`: no limit is known.
    pub(crate) fn open_files_max(&self) -> Option<u64> {
        each!(self, _d => real::open_files_max(), _s => None)
    }

    /// Whether background chores run on a thread of their own; a simulation runs them when told to.
    pub(crate) fn has_threads(&self) -> bool {
        each!(self, _d => true, _s => false)
    }
}

impl File {
    pub(crate) fn len(&self) -> io::Result<u64> {
        each!(self, f => real::len(f), s => s.len())
    }

    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        each!(self, f => real::read_at(f, offset, bytes), s => s.read_at(offset, bytes))
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        each!(self, f => real::write_at(f, offset, bytes), s => s.write_at(offset, bytes))
    }

    /// Reserves `len` bytes of space and sets the length. `true`: stores into the range cannot run out of space.
    pub(crate) fn allocate(&self, len: u64) -> io::Result<bool> {
        each!(self, f => real::allocate(f, len), s => s.allocate(len))
    }

    /// Gives the space of whole pages back; they read as zeros then. `false`: this file system cannot.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        each!(self, f => real::punch(f, offset, len), s => s.punch(offset, len))
    }

    /// Gives a lock up, also for those who have inherited the descriptor: a child that is on its way to another program.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        each!(self, f => f.unlock(), _s => Ok(()))
    }

    /// Makes the file's bytes, also those stored through a map, and its length durable.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        each!(self, f => f.sync_data(), s => s.sync_data())
    }
}

impl Map {
    /// `len` zero bytes that belong to no file.
    pub(crate) fn anonymous(len: usize) -> io::Result<Map> {
        map::Mapped::anonymous(len).map(Map::Mapped)
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Map::Mapped(m) => m.len(),
            Map::Positional { len, .. } => *len,
            #[cfg(any(test, feature = "testing"))]
            Map::Sim(s) => s.len(),
        }
    }

    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        match self {
            Map::Mapped(m) => m.copy_in(offset, bytes),
            Map::Positional { file, len } => {
                check(offset, bytes.len(), *len)?;
                file.write_at(offset as u64, bytes)
            }
            #[cfg(any(test, feature = "testing"))]
            Map::Sim(s) => s.copy_in(offset, bytes),
        }
    }

    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Map::Mapped(m) => m.copy_out(offset, bytes),
            Map::Positional { file, len } => {
                check(offset, bytes.len(), *len)?;
                file.read_at(offset as u64, bytes)
            }
            #[cfg(any(test, feature = "testing"))]
            Map::Sim(s) => s.copy_out(offset, bytes),
        }
    }

    /// Copies out a few bytes whose number is known beforehand.
    #[inline]
    pub(crate) fn copy_array<const N: usize>(&self, offset: usize, bytes: &mut [u8; N]) -> io::Result<()> {
        match self {
            Map::Mapped(m) => m.copy_array(offset, bytes),
            _ => self.copy_out(offset, bytes),
        }
    }

    /// Says that the bytes there are soon to be read; it may point anywhere.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize) {
        if let Map::Mapped(m) = self {
            m.prefetch(offset);
        }
    }

    /// Copies `len` bytes out into a fresh vector.
    pub(crate) fn copy_vec(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy_into(offset, len, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies `len` bytes out, in place of what the vector has held.
    #[inline]
    pub(crate) fn copy_into(&self, offset: usize, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Map::Mapped(m) => m.copy_into(offset, len, bytes),
            _ => {
                check(offset, len, self.len())?;
                bytes.clear();
                bytes.resize(len, 0);
                self.copy_out(offset, bytes)
            }
        }
    }

    #[inline]
    pub(crate) fn store_byte(&self, offset: usize, byte: u8) -> io::Result<()> {
        match self {
            Map::Mapped(m) => m.store_byte(offset, byte),
            _ => self.copy_in(offset, &[byte]),
        }
    }

    #[inline]
    pub(crate) fn load_byte(&self, offset: usize) -> io::Result<u8> {
        match self {
            Map::Mapped(m) => m.load_byte(offset),
            _ => {
                let mut byte = [0];
                self.copy_out(offset, &mut byte)?;
                Ok(byte[0])
            }
        }
    }

    /// Faults all pages in for writing, ahead of use; an error only means that the first stores will be slower.
    pub(crate) fn populate(&self) {
        if let Map::Mapped(m) = self {
            m.populate();
        }
    }
}

/// The bounds check of every access that does not go through `map.rs`.
fn check(offset: usize, count: usize, len: usize) -> io::Result<()> {
    match offset.checked_add(count) {
        Some(end) if end <= len => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "access outside of the segment")),
    }
}
