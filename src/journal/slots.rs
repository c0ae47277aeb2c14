//! Headers of two slots in place: of a queue (`meta`), and of a named reader.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::format::meta::{self, QueueMeta};
use crate::planted::{self, Bug};

/// A queue's header in memory, and the file behind it.
#[derive(Debug)]
pub(crate) struct MetaFile {
    pub(crate) meta: QueueMeta,
    /// `None`: memory only.
    pub(crate) slots: Option<SlotFile>,
    /// The set was closed: the file may be somebody else's by now.
    pub(crate) closed: bool,
}

/// A small header file that is there whole or not at all.
pub(crate) fn write_new_file(disk: &Disk, dir: &Path, name: &str, slot: &[u8]) -> io::Result<()> {
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
    Ok(())
}

/// A file of two slots, written in turn; open only while it is written, since there is one for each queue.
#[derive(Debug)]
pub(crate) struct SlotFile {
    disk: Disk,
    path: PathBuf,
    sequence: u64,
    next_slot: usize,
    /// The newest slot is durable. One that an earlier process wrote may be in the page cache only.
    proven: bool,
}

impl SlotFile {
    pub(crate) fn new(disk: &Disk, path: PathBuf, sequence: u64, next_slot: usize, proven: bool) -> SlotFile {
        SlotFile { disk: disk.clone(), path, sequence, next_slot, proven }
    }

    /// Nothing was stored in it since it was made.
    pub(crate) fn is_first(&self) -> bool {
        self.sequence == 1
    }

    /// Makes the newest slot durable by writing it again where it stands: until then the other slot must stay as it is, or
    /// a power cut could leave neither.
    pub(crate) fn prove(&mut self, newest: impl FnOnce(u64) -> [u8; meta::SLOT]) -> io::Result<()> {
        if !self.proven && !planted::is(Bug::OverwriteUnprovenSlot) {
            self.write(1 - self.next_slot, &newest(self.sequence))?;
            self.proven = true;
        }
        Ok(())
    }

    /// Writes the next content, durably.
    pub(crate) fn store(&mut self, slot: impl FnOnce(u64) -> [u8; meta::SLOT]) -> io::Result<()> {
        debug_assert!(
            self.proven || planted::is(Bug::OverwriteUnprovenSlot),
            "the newest slot is proven before the other is overwritten"
        );
        self.write(self.next_slot, &slot(self.sequence + 1))?;
        self.sequence += 1;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }

    fn write(&self, index: usize, slot: &[u8; meta::SLOT]) -> io::Result<()> {
        self.disk.write(&self.path, (index * meta::SLOT) as u64, slot, !planted::is(Bug::FreeBeforeMeta))
    }
}

impl MetaFile {
    /// Applies `change` and makes it durable; on an error nothing is changed. Needs no space on the medium.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut QueueMeta)) -> io::Result<()> {
        let mut meta = self.meta.clone();
        change(&mut meta);
        if meta == self.meta {
            return Ok(());
        }
        if self.closed {
            return Err(io::Error::other("the set is closed"));
        }
        self.prove()?;
        if let Some(slots) = &mut self.slots {
            slots.store(|sequence| meta::encode_queue(&meta, sequence))?;
        }
        self.meta = meta;
        Ok(())
    }

    /// Makes the present content durable.
    pub(crate) fn prove(&mut self) -> io::Result<()> {
        match &mut self.slots {
            Some(slots) => slots.prove(|sequence| meta::encode_queue(&self.meta, sequence)),
            None => Ok(()),
        }
    }
}
