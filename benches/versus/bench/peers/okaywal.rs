//! okaywal: a log that always syncs. It has no consumer: what was put is read back by position, to be checked.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use okaywal::{Configuration, Entry, EntryId, LogManager, LogPosition, SegmentReader, WriteAheadLog};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::Each {
        return Err("it always syncs".into());
    }
    // Segments of 64 MiB, as ours, in place of 1 MiB; nothing is checkpointed, so that all can be read back.
    let log = Configuration::default_for(dir.join("log"))
        .preallocate_bytes(64 << 20)
        .checkpoint_after_bytes(u64::MAX)
        .buffer_bytes(64 << 10)
        .open(Keep)?;
    let places = Shared::new(VecDeque::new());
    Ok(Opened {
        put: Box::new(Putter { log: log.clone(), places: places.clone() }),
        take: Box::new(Taker { log, places }),
    })
}

#[derive(Debug)]
struct Keep;

impl LogManager for Keep {
    fn recover(&mut self, _: &mut Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(&mut self, _: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> io::Result<()> {
        Ok(())
    }
}

struct Putter {
    log: WriteAheadLog,
    places: Shared<VecDeque<LogPosition>>,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.put_batch(&[payload])
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let mut entry = self.log.begin_entry()?;
        {
            // The log is locked while an entry is written, so that this is the order of the log.
            let mut places = self.places.lock();
            for payload in payloads {
                places.push_back(entry.write_chunk(payload)?.position);
            }
        }
        entry.commit()?;
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter { log: self.log.clone(), places: self.places.clone() }))
    }
}

struct Taker {
    log: WriteAheadLog,
    places: Shared<VecDeque<LogPosition>>,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        let place = self.places.lock().pop_front().ok_or("nothing was put")?;
        let mut reader = self.log.read_at(place)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut reader, &mut bytes)?;
        see(&bytes);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("it has no consumer".into())
    }
}
