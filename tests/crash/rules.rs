//! I12: the rules of the file protocol, held against the recorded calls. R1 and R8 are judged by the oracle, from outside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::oracle::Verdict;
use crate::disk::sim::{Call, Op};
use crate::format::frame::{self, Salt};
use crate::format::{header, meta};

pub(super) fn told(call: &Call) -> String {
    format!(
        "step {}: {:?} {} {:?}, {} bytes at {}, ok: {}",
        call.step,
        call.op,
        call.path.display(),
        call.to,
        call.bytes.len(),
        call.offset,
        call.ok
    )
}

/// A file as the calls so far have made it.
#[derive(Default)]
struct Replica {
    data: Vec<u8>,
    durable: Vec<u8>,
    sync_failed: bool,
    /// The highest durable mark told by a frame of its present use.
    told_durable: u32,
}

impl Replica {
    fn store(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
    }

    fn header(&self) -> Option<header::SegmentHeader> {
        header::decode(self.data.get(..header::PAGE)?).ok()
    }
}

/// Checks the calls of a whole run, from the empty disk on, through any number of lives.
#[derive(Default)]
pub(super) struct Rules {
    files: BTreeMap<u64, Replica>,
    names: BTreeMap<PathBuf, u64>,
    /// Names that came since the last sync of their directory.
    unsynced: Vec<PathBuf>,
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

impl Rules {
    pub(super) fn check(calls: &[Call]) -> Verdict {
        let mut rules = Rules::default();
        for call in calls {
            rules.call(call).map_err(|violation| format!("{violation}: {}", told(call)))?;
        }
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Verdict {
        match call.op {
            Op::Write if call.ok => self.write(call),
            Op::Sync => {
                let Some(file) = call.file.and_then(|file| self.files.get_mut(&file)) else { return Ok(()) };
                if file.sync_failed {
                    return Err("R4: a file is synced again after its sync failed".into());
                }
                match call.ok {
                    true => file.durable = file.data.clone(),
                    false => file.sync_failed = true,
                }
                Ok(())
            }
            _ if !call.ok => Ok(()),
            Op::Create | Op::Lock => {
                let Some(file) = call.file else { return Ok(()) };
                self.files.insert(file, Replica::default());
                self.names.insert(call.path.clone(), file);
                self.unsynced.push(call.path.clone());
                Ok(())
            }
            Op::Allocate => {
                if let Some(file) = call.file.and_then(|file| self.files.get_mut(&file)) {
                    file.data.resize(file.data.len().max(call.offset as usize), 0);
                }
                Ok(())
            }
            Op::SyncDir => {
                self.unsynced.retain(|path| path.parent() != Some(&call.path));
                Ok(())
            }
            Op::Rename => self.rename(call),
            Op::Unlink => {
                self.leaves(&call.path)?;
                self.names.remove(&call.path);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, call: &Call) -> Verdict {
        let Some(file) = call.file.and_then(|file| self.files.get_mut(&file)) else { return Ok(()) };
        let offset = call.offset as usize;
        if offset == 0 && call.bytes.starts_with(b"KESTRSEG") {
            if matches!(ending(&call.path), "seg" | "new") {
                return Err("R5: a segment in use is begun anew".into());
            }
            file.told_durable = 0;
        } else if offset >= header::PAGE
            && let Some(header) = file.header()
            && let Some(found) = decode(&call.bytes, header.salt, offset, header.segment_bytes)
        {
            if file.sync_failed {
                return Err("R4: a frame is written after a failed sync of its file".into());
            }
            if (offset as u32) < file.told_durable {
                return Err("R5: a frame is written below the durable mark".into());
            }
            let told = found.synced_to as usize;
            let same = |range: std::ops::Range<usize>| file.data.get(range.clone()) == file.durable.get(range);
            if told > header::PAGE && !(same(0..header::HEADER_LEN) && same(header::PAGE..told)) {
                return Err("R7: a frame tells a durable mark that is not durable".into());
            }
            file.told_durable = file.told_durable.max(found.synced_to);
        }
        file.store(offset, &call.bytes);
        Ok(())
    }

    fn rename(&mut self, call: &Call) -> Verdict {
        let Some(to) = &call.to else { return Ok(()) };
        let Some(file) = call.file else {
            // A directory: what is below moves along.
            let moved: Vec<PathBuf> = self.names.keys().filter(|p| p.starts_with(&call.path)).cloned().collect();
            for path in moved {
                if let (Some(file), Ok(rest)) = (self.names.remove(&path), path.strip_prefix(&call.path)) {
                    self.names.insert(to.join(rest), file);
                }
            }
            self.unsynced.push(to.clone());
            return Ok(());
        };
        let is_durable = self.files.get(&file).is_some_and(|file| file.data == file.durable);
        let is_final = ending(to) == "seg" || to.extension().is_none();
        if is_final && !is_durable {
            return Err("R3: a file gets its final name before it is durable".into());
        }
        if ending(&call.path) == "new" && ending(to) == "seg" && self.unsynced.contains(&call.path) {
            return Err("R3: a segment gets its final name before its first one is durable".into());
        }
        if ending(to) == "spare" {
            self.leaves(&call.path)?;
        }
        self.names.remove(&call.path);
        self.names.insert(to.clone(), file);
        self.unsynced.push(to.clone());
        Ok(())
    }

    /// R2: a segment leaves its queue only once the queue's header says so durably, or with the queue.
    fn leaves(&self, path: &Path) -> Verdict {
        let Some(dir) = path.parent() else { return Ok(()) };
        if dir.parent().and_then(Path::file_name) == Some(OsStr::new("trash")) {
            return match self.unsynced.iter().any(|unsynced| unsynced == dir) {
                true => Err("R2: a deleted queue's file is removed before the queue is gone durably".into()),
                false => Ok(()),
            };
        }
        if ending(path) != "seg" {
            return Ok(());
        }
        let number = path.file_stem().and_then(OsStr::to_str).and_then(|stem| u64::from_str_radix(stem, 16).ok());
        let header = self.names.get(&dir.join("meta")).and_then(|file| self.files.get(file));
        let known = header.and_then(|file| meta::decode_queue(&file.durable).ok());
        match (number, known) {
            (Some(number), Some(slots)) if slots.newest.is_freed(number) => Ok(()),
            _ => Err("R2: a segment leaves before the queue's header says so durably".into()),
        }
    }
}

fn decode(bytes: &[u8], salt: Salt, offset: usize, limit: u32) -> Option<frame::Frame> {
    frame::decode(bytes, salt, u32::try_from(offset).ok()?, limit)
}
