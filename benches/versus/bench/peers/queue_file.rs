//! queue-file: one file, one owner. Synced on each write by default; without that where no sync is asked for.

use std::path::Path;

use queue_file::QueueFile;

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, every_period, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    let mut file = QueueFile::open(dir.join("queue"))?;
    file.set_sync_writes(wish.sync == Sync::Each);
    let file = Shared::new(file);
    if wish.sync == Sync::Every {
        let file = file.clone();
        every_period(move || Ok(file.lock().sync_all()?));
    }
    Ok(Opened { put: Box::new(file.clone()), take: Box::new(Taker(file, Vec::new())) })
}

impl Put for QueueFile {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.add(payload)?)
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        Ok(self.add_n(payloads)?)
    }

    fn synced(&mut self) -> Any<()> {
        Ok(self.sync_all()?)
    }

    fn append(&mut self, payload: &[u8]) -> Any<()> {
        self.set_sync_writes(false);
        Ok(self.add(payload)?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Err("one owner only".into())
    }
}

struct Taker(Shared<QueueFile>, Vec<u8>);

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let Taker(file, bytes) = self;
        poll(|| {
            // Held from the look to the removal, so that another consumer does not see the same item.
            let mut file = file.lock();
            if !file.peek_into(bytes)? {
                return Ok(None);
            }
            see(bytes);
            file.remove()?;
            Ok(Some(()))
        })
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker(self.0.clone(), Vec::new())))
    }
}
