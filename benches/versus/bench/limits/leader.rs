//! A plain leader and its followers over one allocated file: what group commit can do on this device. Whoever finds no sync
//! under way syncs for all that is written; the others wait for the mark.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish, poll};

const FILE_BYTES: i64 = 4 << 30;

struct State {
    at: u64,
    written: u64,
    durable: u64,
    is_led: bool,
    places: VecDeque<(u64, u32, u32)>,
}

struct Shared {
    file: File,
    state: Mutex<State>,
    told: Condvar,
}

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::Each {
        return Err("it syncs each put".into());
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("log"))?;
    // SAFETY: a plain system call on an open file.
    let failed = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, FILE_BYTES) };
    if failed != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    file.sync_all()?;
    let state = State { at: 0, written: 0, durable: 0, is_led: false, places: VecDeque::new() };
    let shared = Arc::new(Shared { file, state: Mutex::new(state), told: Condvar::new() });
    Ok(Opened {
        put: Box::new(Putter { shared: Arc::clone(&shared), bytes: Vec::new() }),
        take: Box::new(Taker { shared, bytes: Vec::new() }),
    })
}

struct Putter {
    shared: Arc<Shared>,
    bytes: Vec<u8>,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.put_batch(&[payload])
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        self.bytes.clear();
        let mut places = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let sum = crc32fast::hash(payload);
            places.push((self.bytes.len() as u64 + 8, payload.len() as u32, sum));
            self.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&sum.to_le_bytes());
            self.bytes.extend_from_slice(payload);
        }
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let at = state.at;
        shared.file.write_all_at(&self.bytes, at)?;
        state.at += self.bytes.len() as u64;
        state.written += 1;
        let mine = state.written;
        state.places.extend(places.into_iter().map(|(offset, len, sum)| (at + offset, len, sum)));
        while state.durable < mine {
            if state.is_led {
                shared.told.wait(&mut state);
                continue;
            }
            state.is_led = true;
            let upto = state.written;
            drop(state);
            shared.file.sync_data()?;
            state = shared.state.lock();
            (state.durable, state.is_led) = (upto, false);
            shared.told.notify_all();
        }
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter { shared: Arc::clone(&self.shared), bytes: Vec::new() }))
    }
}

struct Taker {
    shared: Arc<Shared>,
    bytes: Vec<u8>,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let (at, len, sum) = poll(|| Ok(self.shared.state.lock().places.pop_front()))?;
        self.bytes.resize(len as usize, 0);
        self.shared.file.read_exact_at(&mut self.bytes, at)?;
        if crc32fast::hash(&self.bytes) != sum {
            return Err("a frame is damaged".into());
        }
        see(&self.bytes);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker { shared: Arc::clone(&self.shared), bytes: Vec::new() }))
    }
}
