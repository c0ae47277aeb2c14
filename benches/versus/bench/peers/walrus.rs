//! walrus-rust: a log with one topic and a stored read position. Items are read one at a time, and are gone for the reader when
//! they have been read: its batch read was seen to skip the rest of a block that was closed behind it.

use std::path::Path;
use std::sync::Arc;

use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    // SAFETY: the process has one thread when a subject is opened.
    unsafe {
        std::env::set_var("WALRUS_DATA_DIR", dir.join("queue"));
        std::env::set_var("WALRUS_QUIET", "1");
    }
    let schedule = match wish.sync {
        Sync::No => FsyncSchedule::NoFsync,
        Sync::Each => FsyncSchedule::SyncEach,
        Sync::Every => FsyncSchedule::Milliseconds(100),
    };
    let log = Log(Arc::new(Walrus::with_consistency_and_schedule(ReadConsistency::StrictlyAtOnce, schedule)?));
    Ok(Opened { put: Box::new(log.clone()), take: Box::new(log) })
}

#[derive(Clone)]
struct Log(Arc<Walrus>);

impl Put for Log {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.0.append_for_topic("q", payload)?)
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        Ok(self.0.batch_append_for_topic("q", payloads)?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

impl Take for Log {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let entry = poll(|| Ok(self.0.read_next("q", true)?))?;
        see(&entry.data);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(self.clone()))
    }
}
