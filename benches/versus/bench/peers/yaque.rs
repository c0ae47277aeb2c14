//! yaque: a sender and a receiver, each for one thread; asynchronous when it waits. It never syncs.

use std::path::Path;

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::No {
        return Err("it has no sync".into());
    }
    let base = dir.join("queue");
    if ["send.lock", "recv.lock"].iter().any(|lock| base.join(lock).exists()) {
        // What its documentation asks for after a process died.
        yaque::recovery::recover(&base)?;
    }
    let (sender, receiver) = yaque::channel(&base)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(Opened {
        put: Box::new(Shared::new(Sender(sender))),
        take: Box::new(Shared::new(Receiver { receiver, runtime })),
    })
}

struct Sender(yaque::Sender);

impl Put for Sender {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.0.try_send(payload).map_err(|error| format!("{error:?}").into())
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        self.0.try_send_batch(payloads).map_err(|error| format!("{error:?}").into())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Err("one sender only".into())
    }
}

struct Receiver {
    receiver: yaque::Receiver,
    runtime: tokio::runtime::Runtime,
}

impl Take for Receiver {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        match self.receiver.try_recv() {
            Ok(guard) => {
                see(&guard);
                return Ok(guard.commit()?);
            }
            Err(yaque::TryRecvError::QueueEmpty) => {}
            Err(error) => return Err(format!("{error:?}").into()),
        }
        let guard = self.runtime.block_on(self.receiver.recv())?;
        see(&guard);
        Ok(guard.commit()?)
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Err("one receiver only".into())
    }
}
