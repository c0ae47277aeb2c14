//! kestrel-core with its default options, but for the durability asked for. Items are opened, seen and closed.

use std::path::Path;

use kestrel_core::{Durability, ItemId, Queue, QueueOptions, QueueSet};

use crate::subject::{Any, Opened, PERIOD, Put, Sync, Take, Wish};

pub fn durability(sync: Sync) -> Durability {
    match sync {
        Sync::No => Durability::Os,
        Sync::Each => Durability::Sync,
        Sync::Every => Durability::Every(PERIOD),
    }
}

pub fn set(dir: &Path, sync: Sync) -> Any<QueueSet> {
    let defaults = QueueOptions::default().durability(durability(sync));
    Ok(QueueSet::builder().defaults(defaults).open(dir.join("set"))?)
}

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    Ok(opened(&set(dir, wish.sync)?.queue("q")?))
}

pub fn opened(queue: &Queue) -> Opened {
    Opened { put: Box::new(Putter { queue: queue.clone(), last: None }), take: Box::new(Taker(queue.clone())) }
}

struct Putter {
    queue: Queue,
    last: Option<ItemId>,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.queue.put(payload).map(drop)?)
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        Ok(self.queue.put_batch(payloads).map(drop)?)
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.last = Some(self.queue.append(payload)?);
        Ok(())
    }

    fn synced(&mut self) -> Any<()> {
        Ok(self.last.map_or(Ok(()), |last| self.queue.synced(last))?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter { queue: self.queue.clone(), last: None }))
    }
}

struct Taker(Queue);

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let item = self.0.open()?;
        see(item.data());
        Ok(item.close()?)
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker(self.0.clone())))
    }
}
