//! crossbeam-channel: nothing on disk. What a queue inside one process can do when it keeps nothing.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish};

pub fn open(_: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::No {
        return Err("it keeps nothing".into());
    }
    let (sender, receiver) = crossbeam_channel::unbounded();
    Ok(Opened { put: Box::new(Putter(sender)), take: Box::new(Taker(receiver)) })
}

struct Putter(Sender<Box<[u8]>>);

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.0.send(payload.into()).map_err(|_| "closed")?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter(self.0.clone())))
    }
}

struct Taker(Receiver<Box<[u8]>>);

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        see(&self.0.recv()?);
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker(self.0.clone())))
    }
}
