//! persistent-queue over its redb store: many producers, one consumer, reserve and ack. Capacity raised so that nothing waits
//! for room; acks not synced, as ours are not.

use std::path::Path;

use persistent_queue::{Builder, Consumer, Durability, Producer, RedbStore};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    let durability = match wish.sync {
        Sync::No => Durability::None,
        Sync::Each => Durability::Group,
        Sync::Every => return Err("it has no periodic sync".into()),
    };
    let (producer, consumer) = Builder::new(RedbStore::open(dir.join("queue.redb"))?)
        .capacity(1 << 30)
        .durability(durability)
        .durable_acks(false)
        .open()?;
    Ok(Opened { put: Box::new(Putter(producer)), take: Box::new(Shared::new(Taker(consumer))) })
}

struct Putter(Producer<RedbStore>);

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.0.push(payload).map_err(|error| format!("{error:?}").into())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter(self.0.clone())))
    }
}

struct Taker(Consumer<RedbStore>);

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let item = poll(|| Ok(self.0.reserve()?))?;
        see(&item);
        Ok(item.ack()?)
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("one consumer only".into())
    }
}
