//! fjall: a log-structured tree, keys counted upward. Taking reads on from the last key seen and removes behind it, as a queue
//! over a tree must, so that it does not walk over its own tombstones. Its workers compact in the background.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, every_period, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    let database = Database::builder(dir.join("queue")).open()?;
    let items = database.keyspace("q", KeyspaceCreateOptions::default)?;
    let key = |guard: Option<fjall::Guard>| -> Any<Option<u64>> {
        Ok(guard.map(fjall::Guard::key).transpose()?.and_then(|key| Some(u64::from_be_bytes(*key.first_chunk()?))))
    };
    let first = key(items.first_key_value())?.unwrap_or(0);
    let next = key(items.last_key_value())?.map_or(0, |last| last + 1);
    if wish.sync == Sync::Every {
        let database = database.clone();
        every_period(move || Ok(database.persist(PersistMode::SyncData)?));
    }
    let put = Putter { database, items: items.clone(), next: Arc::new(AtomicU64::new(next)), sync: wish.sync };
    Ok(Opened { put: Box::new(put), take: Box::new(Shared::new(Taker { items, next: first })) })
}

#[derive(Clone)]
struct Putter {
    database: Database,
    items: Keyspace,
    next: Arc<AtomicU64>,
    sync: Sync,
}

impl Putter {
    fn insert(&self, payload: &[u8]) -> Any<()> {
        let key = self.next.fetch_add(1, Ordering::SeqCst);
        Ok(self.items.insert(key.to_be_bytes(), payload)?)
    }
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.insert(payload)?;
        if self.sync == Sync::Each { self.synced() } else { Ok(()) }
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let first = self.next.fetch_add(payloads.len() as u64, Ordering::SeqCst);
        let sync = (self.sync == Sync::Each).then_some(PersistMode::SyncData);
        let mut batch = self.database.batch().durability(sync);
        for (payload, key) in payloads.iter().zip(first..) {
            batch.insert(&self.items, key.to_be_bytes(), *payload);
        }
        Ok(batch.commit()?)
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.insert(payload)
    }

    fn synced(&mut self) -> Any<()> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

struct Taker {
    items: Keyspace,
    next: u64,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let key = self.next.to_be_bytes();
        let value = poll(|| Ok(self.items.get(key)?))?;
        see(&value);
        self.items.remove(key)?;
        self.next += 1;
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("one consumer only".into())
    }
}
