//! What is measured: one trait for who puts, one for who takes, and a list of subjects with what each of them promises.
//!
//! An adapter is as thin as its queue allows, with the settings that its own documentation gives for a queue. What one call
//! of a peer does is one call here; where a peer has a batch call, a batch uses it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{limits, peers};

pub type Any<T> = Result<T, Box<dyn std::error::Error + Send + std::marker::Sync>>;

pub trait Put: Send {
    fn put(&mut self, payload: &[u8]) -> Any<()>;
    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        payloads.iter().try_for_each(|payload| self.put(payload))
    }
    /// A put that does not wait for the device, to be followed by [`synced`](Put::synced).
    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.put(payload)
    }
    /// Waits until all that was appended is on the device.
    fn synced(&mut self) -> Any<()> {
        Err("it has no such call".into())
    }
    /// The same queue for another thread.
    fn another(&self) -> Any<Box<dyn Put>>;
}

pub trait Take: Send {
    /// Waits for the oldest item, shows it, and then ends it for good: where the subject acknowledges, only after `see`.
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()>;
    /// The same queue for another thread.
    fn another(&self) -> Any<Box<dyn Take>>;
}

pub struct Opened {
    pub put: Box<dyn Put>,
    pub take: Box<dyn Take>,
}

/// When a put is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    No,
    Each,
    /// Synced every 100 ms in the background.
    Every,
}

pub const PERIOD: Duration = Duration::from_millis(100);

/// How a subject is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub sync: Sync,
    /// Bytes of a payload.
    pub size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    /// Keeps its items in files.
    Peer,
    /// Keeps nothing: an upper bound from memory alone.
    Memory,
    /// The least work of that kind.
    Limit,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Peer => "peer",
            Kind::Memory => "memory",
            Kind::Limit => "limit",
        }
    }
}

pub struct Subject {
    pub name: &'static str,
    pub version: &'static str,
    pub kind: Kind,
    /// A reader that dies after it saw an item does not lose it.
    pub acks: bool,
    /// What a put that asks for no sync survives.
    pub keeps: &'static str,
    pub open: fn(&Path, Wish) -> Any<Opened>,
}

impl Subject {
    pub fn survives(&self, sync: Sync) -> &'static str {
        match (self.kind, sync) {
            (Kind::Memory, _) => NOTHING,
            (_, Sync::Each) => POWER,
            (_, Sync::Every) => "process kill; power loss but for 100 ms",
            (_, Sync::No) => self.keeps,
        }
    }
}

const NOTHING: &str = "nothing";
const KILL: &str = "process kill";
const POWER: &str = "power loss";

/// Every subject. The versions are those that the manifest pins.
pub const SUBJECTS: &[Subject] = &[
    subject("kestrel-core", "this tree", Kind::Ours, true, KILL, peers::ours::open),
    subject("yaque", "0.6.6", Kind::Peer, true, KILL, peers::yaque::open),
    subject("queue-file", "2.0.0", Kind::Peer, true, KILL, peers::queue_file::open),
    subject("walrus-rust", "0.2.0", Kind::Peer, false, KILL, peers::walrus::open),
    subject("disk-queue", "0.1.1", Kind::Peer, false, KILL, peers::disk_queue::open),
    subject("disk-chan", "0.3.0", Kind::Peer, false, KILL, peers::disk_chan::open),
    subject("raft-engine", "0.4.2", Kind::Peer, true, KILL, peers::raft_engine::open),
    subject("okaywal", "0.3.1", Kind::Peer, false, POWER, peers::okaywal::open),
    subject("persistent-queue", "0.2.0", Kind::Peer, true, NOTHING, peers::persistent_queue::open),
    subject("fjall", "3.1.13", Kind::Peer, true, KILL, peers::fjall::open),
    subject("redb", "4.4.0", Kind::Peer, true, NOTHING, peers::redb::open),
    subject("sled", "0.34.7", Kind::Peer, true, "process kill but for 500 ms", peers::sled::open),
    subject("sqlite", "rusqlite 0.41.1", Kind::Peer, true, KILL, peers::sqlite::open),
    subject("crossbeam-channel", "0.5.17", Kind::Memory, false, NOTHING, peers::crossbeam::open),
    subject("limit: frames in a map", "", Kind::Limit, false, KILL, limits::mapped::open),
    subject("limit: leader and followers", "", Kind::Limit, false, POWER, limits::leader::open),
    subject("limit: boxes in memory", "", Kind::Memory, false, NOTHING, limits::boxes::open),
];

const fn subject(
    name: &'static str,
    version: &'static str,
    kind: Kind,
    acks: bool,
    keeps: &'static str,
    open: fn(&Path, Wish) -> Any<Opened>,
) -> Subject {
    Subject { name, version, kind, acks, keeps, open }
}

pub fn find(name: &str) -> Any<&'static Subject> {
    SUBJECTS.iter().find(|subject| subject.name == name).ok_or_else(|| format!("no subject {name}").into())
}

/// How long a consumer that polls looks for an item before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// Calls `look` until it has an item: for queues without a blocking call.
pub fn poll<T>(mut look: impl FnMut() -> Any<Option<T>>) -> Any<T> {
    if let Some(found) = look()? {
        return Ok(found);
    }
    let start = Instant::now();
    loop {
        for turn in 0..256 {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if turn < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if start.elapsed() > PATIENCE {
            return Err("an item never came".into());
        }
    }
}

/// A queue with one end for one thread, shared behind a mutex, as its user would have to.
pub struct Shared<T>(pub Arc<Mutex<T>>);

impl<T> Shared<T> {
    pub fn new(inner: T) -> Shared<T> {
        Shared(Arc::new(Mutex::new(inner)))
    }

    pub fn lock(&self) -> std::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(Arc::clone(&self.0))
    }
}

impl<T: Put + 'static> Put for Shared<T> {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.lock().put(payload)
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        self.lock().put_batch(payloads)
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.lock().append(payload)
    }

    fn synced(&mut self) -> Any<()> {
        self.lock().synced()
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

impl<T: Take + 'static> Take for Shared<T> {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        self.lock().take(see)
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(self.clone()))
    }
}

/// Syncs in the background every 100 ms, for subjects that leave that to their user. Ends with the process.
pub fn every_period(mut sync: impl FnMut() -> Any<()> + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            if sync().is_err() {
                return;
            }
        }
    });
}
