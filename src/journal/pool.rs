//! The set's store of spare segments: allocated, and re-used by rename, so that a put neither makes files nor waits for
//! pages. Pages of a recycled file are in the page cache already: 12 to 22 GB/s against 3 to 4 for new ones.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{self, Disk, EntryKind, File, Map};
use crate::format::header::PAGE;
use crate::journal::files::{Counted, OpenFiles};
use crate::planted::{self, Bug};
use crate::sync::{AtomicBool, Mutex, Ordering};

/// A file that waits to become a segment.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Not yet renamed to its place. `None`: memory only.
    pub(crate) path: Option<PathBuf>,
    pub(crate) file: Option<Arc<File>>,
    pub(crate) map: Map,
    pub(crate) len: u32,
    pub(crate) counted: Option<Counted>,
}

/// Why there is no spare.
#[derive(Debug)]
pub(crate) enum NoSpare {
    /// The cap over all queues.
    Cap,
    Io(io::Error),
}

#[derive(Debug)]
pub(crate) struct Pool {
    disk: Disk,
    dir: PathBuf,
    /// Of all queues of the set.
    pub(crate) files: Arc<OpenFiles>,
    mapped: bool,
    bytes_max: u64,
    disk_max: u64,
    /// The file system has refused to punch a hole.
    cannot_punch: AtomicBool,
    /// Lock 5.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_number: u64,
    spares: Vec<Waiting>,
    spare_bytes: u64,
    /// Bytes of all segments of the set that are known, spares included.
    disk_bytes: u64,
}

/// A spare file that nobody has opened yet.
#[derive(Debug)]
struct Waiting {
    len: u32,
    path: PathBuf,
    /// An earlier process left it. Power may have been lost since it was a segment, and its number may be given out again:
    /// then its new name could reach the device and its new content not, and the old segment would be back.
    found: bool,
    /// Every page is allocated.
    whole: bool,
}

impl Pool {
    /// Adopts what an earlier process left in `dir`.
    pub(crate) fn open(
        disk: Disk,
        dir: PathBuf,
        files: OpenFiles,
        bytes_max: u64,
        disk_max: u64,
        read_only: bool,
    ) -> io::Result<Pool> {
        let mut state = State::default();
        let mapped = disk.may_map(&dir);
        if !read_only {
            let mut found = 0;
            for entry in disk.list(&dir)? {
                let Some(number) = entry.name.strip_suffix(".spare").and_then(|n| u64::from_str_radix(n, 16).ok())
                else {
                    continue;
                };
                state.next_number = state.next_number.max(number.saturating_add(1));
                if entry.kind != EntryKind::File {
                    continue;
                }
                let path = dir.join(&entry.name);
                let Ok(file) = disk.open(&path, false) else {
                    continue;
                };
                let len = file.len()?;
                match u32::try_from(len) {
                    Ok(len) if len.is_power_of_two() && state.spare_bytes + u64::from(len) <= bytes_max => {
                        state.spare_bytes += u64::from(len);
                        state.spares.push(Waiting { len, path, found: true, whole: false });
                        found += 1;
                    }
                    _ => disk.unlink(&path)?,
                }
            }
            state.disk_bytes = state.spare_bytes;
            if found > 0 {
                // The renames that brought them here must be durable before anyone writes to the files.
                disk.sync_dir(&dir)?;
            }
        }
        Ok(Pool {
            disk,
            dir,
            files: Arc::new(files),
            mapped,
            bytes_max,
            disk_max,
            cannot_punch: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn mapped(&self) -> bool {
        self.mapped
    }

    /// A file of exactly `len` bytes with no valid frame for any salt that is still to be drawn.
    pub(crate) fn take(&self, len: u32) -> Result<Spare, NoSpare> {
        let mut state = self.state.lock();
        if let Some(index) = state.spares.iter().position(|spare| spare.len == len) {
            let waiting = state.spares.swap_remove(index);
            state.spare_bytes -= u64::from(len);
            drop(state);
            match self.open_spare(&waiting) {
                Ok(spare) => return Ok(spare),
                Err(error) if disk::is_too_many_files(&error) => {
                    let mut state = self.state.lock();
                    state.spare_bytes += u64::from(len);
                    state.spares.push(waiting);
                    return Err(NoSpare::Io(error));
                }
                // A file of ours that cannot be opened is given up whole, or it would take space that nobody counts.
                // Whatever else stands there now is not ours to use.
                Err(error) => {
                    if disk::as_not_regular(&error).is_none() {
                        let _ = self.disk.unlink(&waiting.path);
                    }
                    self.forget(len);
                    return self.take(len);
                }
            }
        }
        while state.disk_bytes + u64::from(len) > self.disk_max {
            if !self.remove_one(&mut state).map_err(NoSpare::Io)? {
                return Err(NoSpare::Cap);
            }
        }
        state.disk_bytes += u64::from(len);
        let number = state.next_number;
        state.next_number += 1;
        drop(state);
        loop {
            match self.create(number, len) {
                // On a full medium a spare of another length is room for this one.
                Err(error)
                    if disk::is_no_space(&error) && matches!(self.remove_one(&mut self.state.lock()), Ok(true)) => {}
                made => {
                    return made.map_err(|error| {
                        self.forget(len);
                        NoSpare::Io(error)
                    });
                }
            }
        }
    }

    /// Removes a spare for the sake of its space; `false`: there is none.
    fn remove_one(&self, state: &mut State) -> io::Result<bool> {
        let Some(spare) = state.spares.pop() else {
            return Ok(false);
        };
        state.spare_bytes -= u64::from(spare.len);
        state.disk_bytes -= u64::from(spare.len);
        self.disk.unlink(&spare.path).map(|()| true)
    }

    fn open_spare(&self, waiting: &Waiting) -> io::Result<Spare> {
        let len = waiting.len;
        let file = Arc::new(self.disk.open(&waiting.path, true)?);
        if file.len()? != u64::from(len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if waiting.found && !planted::is(Bug::KeepFoundSpare) {
            file.write_at(0, &[0; PAGE])?;
            file.sync_data()?;
        }
        // A spare that was allocated once and not punched stays so; on a file system that is not trusted with that, nothing is
        // mapped.
        if !waiting.whole {
            file.allocate(u64::from(len))?;
        }
        let map = self.disk.open_map(&file, len as usize, self.mapped)?;
        Ok(Spare { path: Some(waiting.path.clone()), file: Some(file), map, len, counted: Some(self.files.count()) })
    }

    fn create(&self, number: u64, len: u32) -> io::Result<Spare> {
        let path = self.dir.join(format!("{number:016x}.spare"));
        let file = Arc::new(self.disk.create(&path)?);
        let made = (|| {
            let reserved = file.allocate(u64::from(len))?;
            let map = self.disk.open_map(&file, len as usize, self.mapped && reserved)?;
            Ok(Spare { path: Some(path.clone()), file: Some(file), map, len, counted: Some(self.files.count()) })
        })();
        if made.is_err() {
            // Half a file is of no use to anyone; if even this fails, the next open removes it.
            let _ = self.disk.unlink(&path);
        }
        made
    }

    /// Whether holes can be punched, as far as is known.
    pub(crate) fn may_punch(&self) -> bool {
        !self.cannot_punch.load(Ordering::Relaxed)
    }

    pub(crate) fn never_punch(&self) {
        self.cannot_punch.store(true, Ordering::Relaxed);
    }

    /// Takes a spent segment's file back, or removes it if the pool is full; `whole`: every page of it is allocated. The queue's header must say durably that the
    /// segment is gone.
    pub(crate) fn give(&self, path: &std::path::Path, len: u32, whole: bool) -> io::Result<()> {
        let mut state = self.state.lock();
        // Where nothing is mapped, the file system writes elsewhere anyhow: a spare would save nothing, and on a full medium keep
        // the space that the next segment needs.
        let fits =
            self.mapped && state.spare_bytes + u64::from(len) <= self.bytes_max && state.disk_bytes <= self.disk_max;
        if !fits {
            state.disk_bytes = state.disk_bytes.saturating_sub(u64::from(len));
            drop(state);
            return self.disk.unlink(path);
        }
        let to = self.dir.join(format!("{:016x}.spare", state.next_number));
        state.next_number += 1;
        state.spare_bytes += u64::from(len);
        drop(state);
        // The name is in nobody's list until the rename is done.
        let renamed = self.disk.rename(path, &to);
        let mut state = self.state.lock();
        match renamed {
            Ok(()) => {
                state.spares.push(Waiting { len, path: to, found: false, whole });
                Ok(())
            }
            Err(error) => {
                state.spare_bytes -= u64::from(len);
                state.disk_bytes = state.disk_bytes.saturating_sub(u64::from(len));
                Err(error)
            }
        }
    }

    /// Puts a spare that was armed but never used back on the list.
    pub(crate) fn put_back(&self, spare: Spare) {
        if let Some(path) = spare.path {
            let mut state = self.state.lock();
            state.spare_bytes += u64::from(spare.len);
            state.spares.push(Waiting { len: spare.len, path, found: false, whole: true });
        }
    }

    /// Counts segments that recovery found.
    pub(crate) fn add_disk_bytes(&self, len: u64) {
        self.state.lock().disk_bytes += len;
    }

    /// A file of `len` bytes is gone.
    pub(crate) fn forget(&self, len: u32) {
        let mut state = self.state.lock();
        state.disk_bytes = state.disk_bytes.saturating_sub(u64::from(len));
    }

    /// Files of so many bytes are gone.
    pub(crate) fn forget_bytes(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.disk_bytes = state.disk_bytes.saturating_sub(bytes);
    }

    /// Spares, their bytes, and the bytes of all known segments.
    pub(crate) fn gauges(&self) -> (u64, u64, u64) {
        let state = self.state.lock();
        (state.spares.len() as u64, state.spare_bytes, state.disk_bytes)
    }
}
