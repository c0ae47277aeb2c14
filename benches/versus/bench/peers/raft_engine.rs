//! raft-engine: many logs in one engine. Each producer has a log of its own, as one log takes its entries in order; the
//! consumer reads ahead by 64 entries and compacts behind each. Recycling and prefill on, no compression, old files purged.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, every_period, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    let config = Config {
        dir: dir.join("engine").to_string_lossy().into_owned(),
        batch_compression_threshold: ReadableSize(0),
        purge_threshold: ReadableSize::mb(512),
        enable_log_recycle: true,
        prefill_for_recycle: true,
        prefill_limit: Some(ReadableSize::mb(256)),
        ..Config::default()
    };
    let shared = Arc::new(Shared_ { engine: Engine::open(config)?, logs: AtomicU64::new(0) });
    if wish.sync == Sync::Every {
        let shared = Arc::clone(&shared);
        every_period(move || Ok(shared.engine.sync()?));
    }
    let first = shared.engine.raft_groups().into_iter().max().unwrap_or(0);
    shared.logs.store(first.saturating_sub(1), Ordering::SeqCst);
    Ok(Opened {
        put: Box::new(Putter::new(Arc::clone(&shared), wish.sync == Sync::Each)),
        take: Box::new(Shared::new(Taker { shared, ready: VecDeque::new(), next: Vec::new(), turn: 0, taken: 0 })),
    })
}

struct Shared_ {
    engine: Engine,
    /// The logs are numbered from 1.
    logs: AtomicU64,
}

#[derive(Clone)]
struct Payload;

impl MessageExt for Payload {
    type Entry = BytesValue;

    /// The entry's number stands before the payload.
    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().map_or(0, |number| u64::from_le_bytes(*number))
    }
}

struct Putter {
    shared: Arc<Shared_>,
    log: u64,
    next: u64,
    sync: bool,
    batch: LogBatch,
}

impl Putter {
    fn new(shared: Arc<Shared_>, sync: bool) -> Putter {
        let log = shared.logs.fetch_add(1, Ordering::SeqCst) + 1;
        let next = shared.engine.last_index(log).map_or(1, |last| last + 1);
        Putter { shared, log, next, sync, batch: LogBatch::default() }
    }

    fn write(&mut self, payloads: &[&[u8]], sync: bool) -> Any<()> {
        let entries: Vec<BytesValue> = payloads
            .iter()
            .zip(self.next..)
            .map(|(payload, number)| {
                let mut value = Vec::with_capacity(8 + payload.len());
                value.extend_from_slice(&number.to_le_bytes());
                value.extend_from_slice(payload);
                let mut entry = BytesValue::new();
                entry.set_value(value);
                entry
            })
            .collect();
        self.batch.add_entries::<Payload>(self.log, &entries)?;
        self.shared.engine.write(&mut self.batch, sync)?;
        self.next += payloads.len() as u64;
        Ok(())
    }
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.write(&[payload], self.sync)
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        self.write(payloads, self.sync)
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.write(&[payload], false)
    }

    fn synced(&mut self) -> Any<()> {
        Ok(self.shared.engine.sync()?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter::new(Arc::clone(&self.shared), self.sync)))
    }
}

struct Taker {
    shared: Arc<Shared_>,
    ready: VecDeque<(u64, BytesValue)>,
    /// By log, from 1: the next entry to be read.
    next: Vec<u64>,
    turn: u64,
    taken: u64,
}

impl Taker {
    fn fill(&mut self) -> Any<Option<()>> {
        let logs = self.shared.logs.load(Ordering::SeqCst);
        for _ in 0..logs {
            self.turn = self.turn % logs + 1;
            let log = self.turn;
            let place = log as usize;
            if self.next.len() <= place {
                self.next.resize(place + 1, 0);
            }
            let Some(last) = self.shared.engine.last_index(log) else { continue };
            let begin = self.next[place].max(self.shared.engine.first_index(log).unwrap_or(1));
            if begin <= last {
                let end = (begin + 64).min(last + 1);
                let mut entries = Vec::new();
                self.shared.engine.fetch_entries_to::<Payload>(log, begin, end, None, &mut entries)?;
                self.next[place] = end;
                self.ready.extend(entries.into_iter().map(|entry| (log, entry)));
                return Ok(Some(()));
            }
        }
        Ok(None)
    }
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        if self.ready.is_empty() {
            poll(|| self.fill())?;
        }
        let (log, entry) = self.ready.pop_front().ok_or("nothing was read")?;
        see(entry.value.get(8..).unwrap_or_default());
        self.shared.engine.compact_to(log, Payload::index(&entry) + 1);
        self.taken += 1;
        if self.taken.is_multiple_of(100_000) {
            self.shared.engine.purge_expired_files()?;
        }
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("one reader a log".into())
    }
}
