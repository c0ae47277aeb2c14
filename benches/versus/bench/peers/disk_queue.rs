//! disk-queue: pages of 4 KiB in one file; an item is gone when it was read. It takes its payloads by value, and has no sync.

use std::path::Path;
use std::sync::Arc;

use disk_queue::DiskQueue;

use crate::subject::{Any, Opened, Put, Sync, Take, Wish, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::No {
        return Err("it has no sync".into());
    }
    let path = dir.join("queue");
    let queue = Ends(Arc::new(DiskQueue::open(path.to_str().ok_or("a path of UTF-8")?)));
    Ok(Opened { put: Box::new(queue.clone()), take: Box::new(queue) })
}

#[derive(Clone)]
struct Ends(Arc<DiskQueue>);

impl Put for Ends {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.0.enqueue(payload.to_vec());
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

impl Take for Ends {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let item = poll(|| Ok(self.0.dequeue()))?;
        see(&item);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(self.clone()))
    }
}
