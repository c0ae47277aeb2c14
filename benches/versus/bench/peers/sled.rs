//! sled: a tree, keys counted upward. Default settings: flushed every 500 ms, or after each put where that is asked for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    let period = if wish.sync == Sync::Every { 100 } else { 500 };
    let tree = sled::Config::new().path(dir.join("queue")).flush_every_ms(Some(period)).open()?;
    let number = |entry: Option<(sled::IVec, sled::IVec)>| {
        entry.and_then(|(key, _)| Some(u64::from_be_bytes(*key.first_chunk()?)))
    };
    let next = number(tree.last()?).map_or(0, |last| last + 1);
    let first = number(tree.first()?).unwrap_or(0);
    let put = Putter { tree: tree.clone(), next: Arc::new(AtomicU64::new(next)), sync: wish.sync };
    Ok(Opened { put: Box::new(put), take: Box::new(Shared::new(Taker { tree, next: first })) })
}

#[derive(Clone)]
struct Putter {
    tree: sled::Db,
    next: Arc<AtomicU64>,
    sync: Sync,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.append(payload)?;
        if self.sync == Sync::Each { self.synced() } else { Ok(()) }
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let first = self.next.fetch_add(payloads.len() as u64, Ordering::SeqCst);
        let mut batch = sled::Batch::default();
        for (payload, key) in payloads.iter().zip(first..) {
            batch.insert(&key.to_be_bytes(), *payload);
        }
        self.tree.apply_batch(batch)?;
        if self.sync == Sync::Each { self.synced() } else { Ok(()) }
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        let key = self.next.fetch_add(1, Ordering::SeqCst);
        self.tree.insert(key.to_be_bytes(), payload)?;
        Ok(())
    }

    fn synced(&mut self) -> Any<()> {
        self.tree.flush()?;
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

struct Taker {
    tree: sled::Db,
    next: u64,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let key = self.next.to_be_bytes();
        let value = poll(|| Ok(self.tree.get(key)?))?;
        see(&value);
        self.tree.remove(key)?;
        self.next += 1;
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("one consumer only".into())
    }
}
