//! The real disk: thin calls into the standard library and `rustix`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::time::ClockId;

use super::{Entry, EntryKind, not_regular};

#[derive(Clone, Copy, Debug)]
pub(crate) struct RealDisk;

impl RealDisk {
    pub(crate) fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    pub(crate) fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = match entry.file_type()? {
                t if t.is_file() => EntryKind::File,
                t if t.is_dir() => EntryKind::Dir,
                _ => EntryKind::Other,
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, kind });
            }
        }
        Ok(entries)
    }

    pub(crate) fn open(&self, path: &Path, writable: bool) -> io::Result<fs::File> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        self.open_regular(path, access)
    }

    pub(crate) fn create(&self, path: &Path) -> io::Result<fs::File> {
        let file = self.open_regular(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        overwrite_in_place(&file);
        Ok(file)
    }

    pub(crate) fn lock(&self, path: &Path) -> io::Result<fs::File> {
        keep_reserve(&mut RESERVE.lock());
        let file = self.open_regular(path, OFlags::RDWR | OFlags::CREATE)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// `O_NONBLOCK` keeps the open of a FIFO from hanging; the check after it refuses everything but a plain file.
    fn open_regular(&self, path: &Path, flags: OFlags) -> io::Result<fs::File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::LOOP) => return Err(not_regular("a symbolic link")),
            Err(rustix::io::Errno::ISDIR) => return Err(not_regular("a directory")),
            Err(rustix::io::Errno::NXIO) => return Err(not_regular("a FIFO, socket or device")),
            Err(errno) => return Err(errno.into()),
        };
        let file = fs::File::from(fd);
        let meta = file.metadata()?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return Err(not_regular("a directory"));
        }
        if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            return Err(not_regular("a FIFO, socket or device"));
        }
        if meta.nlink() > 1 {
            return Err(not_regular("a file with several names (hard links)"));
        }
        Ok(file)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        with_reserve(|| fs::File::open(dir)?.sync_all())
    }

    /// Only file systems on which a store into a fallocated page was measured never to fail. On btrfs and zfs (copy on
    /// write), nfs and fuse it can, as SIGBUS or as data silently dropped.
    pub(crate) fn may_map(&self, dir: &Path) -> bool {
        #[cfg(target_os = "linux")]
        {
            const EXT: u64 = 0xEF53;
            const XFS: u64 = 0x5846_5342;
            const TMPFS: u64 = 0x0102_1994;
            const OVERLAY: u64 = 0x794c_7630;
            match rustix::fs::statfs(dir) {
                Ok(info) => matches!(info.f_type as u64 & 0xFFFF_FFFF, EXT | XFS | TMPFS | OVERLAY),
                Err(_) => false,
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = dir;
            false
        }
    }

    pub(crate) fn mono_ms(&self) -> u64 {
        #[cfg(target_os = "linux")]
        {
            ms(rustix::time::clock_gettime(ClockId::MonotonicCoarse))
        }
        #[cfg(not(target_os = "linux"))]
        {
            self.mono_exact_ms()
        }
    }

    pub(crate) fn mono_exact_ms(&self) -> u64 {
        ms(rustix::time::clock_gettime(ClockId::Monotonic))
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Linux names each boot; without such a name every open counts as one after a power cut, which only costs time.
    pub(crate) fn boot_id(&self) -> u128 {
        let parsed = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok());
        match parsed {
            Some(id) if id != 0 => id,
            _ => {
                let word = || self.random_u64().unwrap_or_else(|_| self.wall_ms());
                (u128::from(word()) << 64) | u128::from(word()) | 1
            }
        }
    }

    pub(crate) fn random_u64(&self) -> io::Result<u64> {
        let mut bytes = [0u8; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(u64::from_le_bytes(bytes))
    }
}

fn ms(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// A descriptor to let go of, so that a sync that needs one for a moment finds it. Without it a process that has none left could
/// not make the name of a file durable, and would have to take that for a failed device.
static RESERVE: Mutex<Option<fs::File>> = Mutex::new(None);

fn keep_reserve(reserve: &mut Option<fs::File>) {
    if reserve.is_none() {
        *reserve = fs::File::open("/").ok();
    }
}

/// Does what needs a descriptor until it is done. `short` has changed nothing when it finds none.
pub(super) fn with_reserve<T>(short: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let done = short();
    if !done.as_ref().is_err_and(super::is_too_many_files) {
        return done;
    }
    // Others of this process may be faster than we are.
    let mut tries = 10;
    loop {
        let mut reserve = RESERVE.lock();
        *reserve = None;
        let done = short();
        keep_reserve(&mut reserve);
        tries -= 1;
        if tries == 0 || !done.as_ref().is_err_and(super::is_too_many_files) {
            return done;
        }
        drop(reserve);
        super::give_way();
    }
}

/// The soft limit of open files.
pub(crate) fn open_files_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

pub(crate) fn len(file: &fs::File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

pub(crate) fn read_at(file: &fs::File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

pub(crate) fn write_at(file: &fs::File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// Asks a copy-on-write file system to store what is written again where it stands, so that a full medium still takes the marks
/// of items that are done. It must be asked while the file is empty; who does not know the request, or knows better, refuses it.
fn overwrite_in_place(file: &fs::File) {
    #[cfg(target_os = "linux")]
    if rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type as u64 & 0xFFFF_FFFF == 0x9123_683E /* btrfs */)
        && let Ok(flags) = rustix::fs::ioctl_getflags(file)
    {
        let _ = rustix::fs::ioctl_setflags(file, flags | rustix::fs::IFlags::NOCOW);
    }
}

/// Never the C library's fallback of writing a byte into each block, and never a sparse file under a map.
pub(crate) fn allocate(file: &fs::File, len: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    file.set_len(len)?;
    Ok(false)
}

pub(crate) fn punch(file: &fs::File, offset: u64, len: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    loop {
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, hole, offset, len) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let _ = (file, offset, len);
    Ok(false)
}
