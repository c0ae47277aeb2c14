//! The least work of a queue in mapped files: checksum, copy into the map and one entry of a ring under a lock; one checked
//! copy out. Files of 64 MiB, allocated ahead by `fallocate`, used again once all in them has been taken. No ids, no states,
//! no limits, no recovery but a scan of what is there.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memmap2::{MmapMut, MmapOptions};
use parking_lot::{Condvar, Mutex};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish, every_period};

const SEGMENT_BYTES: usize = 64 << 20;
/// Length and checksum before each payload.
const HEAD_BYTES: usize = 8;
/// How often a taker looks before it sleeps.
const SPINS: u32 = 2_000;

struct Segment {
    file: File,
    start: *mut u8,
    _map: MmapMut,
    put: AtomicU32,
    done: AtomicU32,
    /// Holds no more puts until it is used again.
    sealed: AtomicBool,
    dirty: AtomicBool,
}

// SAFETY: the memory behind `start` is written only under the lock of the state and before its place is in the ring, and
// read only after the place has left the ring; the map lives as long as the process.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl std::marker::Sync for Segment {}

struct Place {
    segment: &'static Segment,
    at: u32,
}

struct State {
    ring: VecDeque<Place>,
    segments: Vec<&'static Segment>,
    tail: Option<&'static Segment>,
    at: usize,
    waiting: u32,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    filled: Condvar,
}

impl Shared {
    /// The next segment: one that is all taken, or a new one.
    fn roll(&self, state: &mut State) -> Any<&'static Segment> {
        if let Some(tail) = state.tail {
            tail.sealed.store(true, Ordering::Release);
        }
        let is_free = |segment: &&&'static Segment| {
            segment.sealed.load(Ordering::Acquire)
                && segment.put.load(Ordering::Acquire) == segment.done.load(Ordering::Acquire)
        };
        let segment = match state.segments.iter().find(is_free) {
            Some(segment) => segment,
            None => {
                let path = self.dir.join(format!("{:08}", state.segments.len()));
                let segment = map(&path)?;
                state.segments.push(segment);
                segment
            }
        };
        segment.put.store(0, Ordering::Relaxed);
        segment.done.store(0, Ordering::Relaxed);
        segment.sealed.store(false, Ordering::Release);
        state.tail = Some(segment);
        state.at = 0;
        Ok(segment)
    }

    fn write(&self, state: &mut State, payload: &[u8], sum: u32) -> Any<()> {
        let step = (HEAD_BYTES + payload.len()).next_multiple_of(8);
        let segment = match state.tail {
            // Room for the zero length that ends a segment.
            Some(tail) if state.at + step + HEAD_BYTES <= SEGMENT_BYTES => tail,
            _ => self.roll(state)?,
        };
        let at = state.at;
        let head = (payload.len() as u64 | u64::from(sum) << 32).to_le_bytes();
        // SAFETY: `at + step` is within the segment, which only the holder of the state writes.
        unsafe {
            let to = segment.start.add(at);
            to.copy_from_nonoverlapping(head.as_ptr(), HEAD_BYTES);
            to.add(HEAD_BYTES).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        }
        segment.put.fetch_add(1, Ordering::Relaxed);
        segment.dirty.store(true, Ordering::Relaxed);
        state.at += step;
        state.ring.push_back(Place { segment, at: at as u32 });
        Ok(())
    }

    fn sync(&self) -> Any<()> {
        let dirty: Vec<_> = {
            let state = self.state.lock();
            state.segments.iter().copied().filter(|segment| segment.dirty.swap(false, Ordering::Relaxed)).collect()
        };
        dirty.iter().try_for_each(|segment| Ok(segment.file.sync_data()?))
    }
}

fn map(path: &Path) -> Any<&'static Segment> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() == 0 {
        // SAFETY: a plain system call on an open file.
        let failed = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, SEGMENT_BYTES as libc::off_t) };
        if failed != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    // SAFETY: the file belongs to this benchmark, and nobody truncates it.
    let mut map = unsafe { MmapOptions::new().len(SEGMENT_BYTES).map_mut(&file)? };
    let start = map.as_mut_ptr();
    let [put, done] = [AtomicU32::new(0), AtomicU32::new(0)];
    let (sealed, dirty) = (AtomicBool::new(false), AtomicBool::new(false));
    // The process is short, and its places may then name their segment without counting.
    Ok(Box::leak(Box::new(Segment { file, start, _map: map, put, done, sealed, dirty })))
}

/// What stands at a place: length and checksum.
fn head(segment: &Segment, at: usize) -> (usize, u32) {
    let mut head = [0; HEAD_BYTES];
    // SAFETY: callers stay `HEAD_BYTES` within the segment.
    unsafe { head.as_mut_ptr().copy_from_nonoverlapping(segment.start.add(at), HEAD_BYTES) };
    let head = u64::from_le_bytes(head);
    ((head & 0xFFFF_FFFF) as usize, (head >> 32) as u32)
}

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync == Sync::Each {
        return Err("the leader and its followers do that".into());
    }
    let dir = dir.join("frames");
    fs::create_dir_all(&dir)?;
    let mut state =
        State { ring: VecDeque::with_capacity(1 << 16), segments: Vec::new(), tail: None, at: 0, waiting: 0 };
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Any<_>>()?;
    paths.sort();
    for path in paths {
        scan(map(&path)?, &mut state);
    }
    let shared = Arc::new(Shared { dir, state: Mutex::new(state), filled: Condvar::new() });
    if wish.sync == Sync::Every {
        let shared = Arc::clone(&shared);
        every_period(move || shared.sync());
    }
    Ok(Opened { put: Box::new(Putter(Arc::clone(&shared))), take: Box::new(Taker { shared, bytes: Vec::new() }) })
}

/// Checks every frame of a segment that an earlier process left.
fn scan(segment: &'static Segment, state: &mut State) {
    let mut at = 0;
    while at + HEAD_BYTES <= SEGMENT_BYTES {
        let (len, sum) = head(segment, at);
        if len == 0 || at + HEAD_BYTES + len > SEGMENT_BYTES {
            break;
        }
        // SAFETY: within the segment by the check above, and nobody writes while a queue opens.
        let payload = unsafe { std::slice::from_raw_parts(segment.start.add(at + HEAD_BYTES), len) };
        if crc32fast::hash(payload) != sum {
            break;
        }
        state.ring.push_back(Place { segment, at: at as u32 });
        segment.put.fetch_add(1, Ordering::Relaxed);
        at += (HEAD_BYTES + len).next_multiple_of(8);
    }
    segment.sealed.store(true, Ordering::Release);
    state.segments.push(segment);
}

struct Putter(Arc<Shared>);

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        let sum = crc32fast::hash(payload);
        let mut state = self.0.state.lock();
        self.0.write(&mut state, payload, sum)?;
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.0.filled.notify_one();
        }
        Ok(())
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let mut state = self.0.state.lock();
        for payload in payloads {
            self.0.write(&mut state, payload, crc32fast::hash(payload))?;
        }
        if state.waiting > 0 {
            self.0.filled.notify_all();
        }
        Ok(())
    }

    fn synced(&mut self) -> Any<()> {
        self.0.sync()
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter(Arc::clone(&self.0))))
    }
}

struct Taker {
    shared: Arc<Shared>,
    bytes: Vec<u8>,
}

impl Taker {
    fn place(&self) -> Place {
        for _ in 0..SPINS {
            if let Some(place) = self.shared.state.lock().ring.pop_front() {
                return place;
            }
            std::hint::spin_loop();
        }
        let mut state = self.shared.state.lock();
        loop {
            if let Some(place) = state.ring.pop_front() {
                return place;
            }
            state.waiting += 1;
            self.shared.filled.wait(&mut state);
            state.waiting -= 1;
        }
    }
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let Place { segment, at } = self.place();
        let (len, sum) = head(segment, at as usize);
        self.bytes.resize(len, 0);
        // SAFETY: the frame was written before its place was in the ring, and its segment is not used again before `done`.
        unsafe {
            self.bytes.as_mut_ptr().copy_from_nonoverlapping(segment.start.add(at as usize + HEAD_BYTES), len);
        }
        if crc32fast::hash(&self.bytes) != sum {
            return Err("a frame is damaged".into());
        }
        see(&self.bytes);
        segment.done.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker { shared: Arc::clone(&self.shared), bytes: Vec::new() }))
    }
}
