//! The crate's `disk` for models: nothing behind it but memory.
//!
//! Files have names, every sync succeeds, and whoever syncs a file that was given away is found out. Maps are plain bytes, except for the words that a
//! model wants watched: those are relaxed atomics, so that a reader whom nothing orders behind the writer may see old bytes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::sync::{AtomicU8, AtomicU64, Ordering, time};

/// Which file has which name. No lock of the model: a call is one step, as it is for the system.
type Names = Arc<Mutex<BTreeMap<PathBuf, u64>>>;

#[derive(Clone, Debug, Default)]
pub struct Disk {
    names: Names,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Dir,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: EntryKind,
}

#[derive(Debug)]
pub struct File {
    number: u64,
    names: Names,
}

#[derive(Debug, Default)]
pub struct ForkGuard;

impl ForkGuard {
    pub fn forked(&self) -> bool {
        false
    }
}

pub fn as_not_regular(_error: &io::Error) -> Option<&'static str> {
    None
}

pub fn is_no_space(_error: &io::Error) -> bool {
    false
}

pub fn is_too_many_files(_error: &io::Error) -> bool {
    false
}

pub fn instant_now() -> Instant {
    time::now()
}

pub fn give_way() {
    crate::engine::yield_now();
}

/// Models begin with an empty directory, so nothing is there to be read.
fn no_files<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Disk {
    fn names(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.names.lock().expect("not poisoned")
    }

    /// All names that end so.
    pub fn ending(&self, ending: &str) -> Vec<PathBuf> {
        self.names().keys().filter(|path| path.extension().is_some_and(|found| found == ending)).cloned().collect()
    }

    pub fn list(&self, _dir: &Path) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }

    pub fn open(&self, path: &Path, _writable: bool) -> io::Result<File> {
        let number = *self.names().get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(File { number, names: Arc::clone(&self.names) })
    }

    pub fn write(&self, path: &Path, offset: u64, bytes: &[u8], sync: bool) -> io::Result<()> {
        let file = self.open(path, true)?;
        file.write_at(offset, bytes)?;
        if sync { file.sync_data() } else { Ok(()) }
    }

    pub fn create(&self, path: &Path) -> io::Result<File> {
        let mut names = self.names();
        let number = names.values().max().map_or(0, |last| last + 1);
        names.insert(path.to_owned(), number);
        Ok(File { number, names: Arc::clone(&self.names) })
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names();
        let number = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), number);
        Ok(())
    }

    pub fn unlink(&self, path: &Path) -> io::Result<()> {
        self.names().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    pub fn may_map(&self, _dir: &Path) -> bool {
        true
    }

    pub fn open_map(&self, _file: &Arc<File>, len: usize, _mapped: bool) -> io::Result<Map> {
        Map::anonymous(len)
    }

    pub fn mono_ms(&self) -> u64 {
        1_000_000
    }

    pub fn mono_exact_ms(&self) -> u64 {
        1_000_000
    }

    pub fn wall_ms(&self) -> u64 {
        1_700_000_000_000
    }

    pub fn random_u64(&self) -> io::Result<u64> {
        Ok(0x9E37_79B9_7F4A_7C15)
    }
}

impl File {
    pub fn len(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    pub fn read_at(&self, _offset: u64, _bytes: &mut [u8]) -> io::Result<()> {
        no_files()
    }

    pub fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    pub fn allocate(&self, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    pub fn punch(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub fn sync_data(&self) -> io::Result<()> {
        let names = self.names.lock().expect("not poisoned");
        let given_away = |path: &Path| path.extension().is_some_and(|ending| ending == "spare");
        assert!(
            !names.iter().any(|(path, number)| *number == self.number && given_away(path)),
            "a file is in use after it was given away"
        );
        Ok(())
    }
}

const WORD: usize = 8;

#[derive(Debug)]
pub struct Map {
    plain: Mutex<Vec<u8>>,
    words: BTreeMap<usize, AtomicU64>,
    lanes: BTreeMap<usize, AtomicU8>,
}

impl Map {
    pub fn anonymous(len: usize) -> io::Result<Map> {
        Ok(Map { plain: Mutex::new(vec![0; len]), words: BTreeMap::new(), lanes: BTreeMap::new() })
    }

    /// Watches the words of `words` and the single bytes of `lanes`.
    pub fn watched(len: usize, words: Range<usize>, lanes: Range<usize>) -> Map {
        Map {
            plain: Mutex::new(vec![0; len]),
            words: words.step_by(WORD).map(|at| (at, AtomicU64::new(0))).collect(),
            lanes: lanes.map(|at| (at, AtomicU8::new(0))).collect(),
        }
    }

    fn check(&self, offset: usize, count: usize) -> io::Result<()> {
        match offset.checked_add(count) {
            Some(end) if end <= self.plain.lock().expect("not poisoned").len() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        self.plain.lock().expect("not poisoned")[offset..offset + bytes.len()].copy_from_slice(bytes);
        for (at, word) in self.words.range(offset & !(WORD - 1)..offset + bytes.len()) {
            let inside = offset <= *at && at + WORD <= offset + bytes.len();
            assert!(inside, "watched words are written whole");
            let value = bytes[at - offset..at - offset + WORD].try_into().expect("eight bytes");
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        for (at, lane) in self.lanes.range(offset..offset + bytes.len()) {
            lane.store(bytes[at - offset], Ordering::Relaxed);
        }
        Ok(())
    }

    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        bytes.copy_from_slice(&self.plain.lock().expect("not poisoned")[offset..offset + bytes.len()]);
        for (at, word) in self.words.range(offset & !(WORD - 1)..offset + bytes.len()) {
            let value = word.load(Ordering::Relaxed).to_le_bytes();
            for (i, byte) in value.into_iter().enumerate() {
                if let Some(into) = (at + i).checked_sub(offset).and_then(|i| bytes.get_mut(i)) {
                    *into = byte;
                }
            }
        }
        for (at, lane) in self.lanes.range(offset..offset + bytes.len()) {
            bytes[at - offset] = lane.load(Ordering::Relaxed);
        }
        Ok(())
    }

    pub fn copy_array<const N: usize>(&self, offset: usize, bytes: &mut [u8; N]) -> io::Result<()> {
        self.copy_out(offset, bytes)
    }

    pub fn prefetch(&self, _offset: usize) {}

    pub fn copy_vec(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy_into(offset, len, &mut bytes)?;
        Ok(bytes)
    }

    pub fn copy_into(&self, offset: usize, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        bytes.resize(len, 0);
        self.copy_out(offset, bytes)
    }

    pub fn store_byte(&self, offset: usize, byte: u8) -> io::Result<()> {
        match self.lanes.get(&offset) {
            Some(lane) => {
                lane.store(byte, Ordering::Release);
                Ok(())
            }
            None => self.copy_in(offset, &[byte]),
        }
    }

    pub fn load_byte(&self, offset: usize) -> io::Result<u8> {
        match self.lanes.get(&offset) {
            Some(lane) => Ok(lane.load(Ordering::Acquire)),
            None => self.copy_vec(offset, 1).map(|bytes| bytes[0]),
        }
    }

    pub fn populate(&self) {}
}
