//! disk-chan: mapped pages of up to 65,535 messages; asynchronous. A page is sized for its messages, as its documentation
//! says. An item is gone when it was read. It has no sync.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use disk_chan::{Consumer, Producer};
use tokio::runtime::{Builder, Runtime};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::No {
        return Err("it has no sync".into());
    }
    // Left by a process that died; the directory is ours alone.
    let _ = std::fs::remove_file(dir.join("channel/.pid.lock"));
    let runtime = Arc::new(Builder::new_multi_thread().worker_threads(1).build()?);
    let page_bytes = u32::try_from((wish.size * 65_535).min(1 << 30))?;
    // More pages than any run fills: beyond them it drops its oldest.
    let producer = runtime.block_on(disk_chan::new(dir.join("channel"), page_bytes, 100_000))?;
    let consumer = runtime.block_on(producer.subscribe(0))?;
    Ok(Opened {
        put: Box::new(Putter { producer, runtime: Arc::clone(&runtime) }),
        take: Box::new(Taker { consumer, runtime }),
    })
}

/// Polls once for nothing, as the future is mostly ready; else waits in the runtime.
fn finish<T>(runtime: &Runtime, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let _entered = runtime.enter();
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => runtime.handle().block_on(future),
    }
}

struct Putter {
    producer: Producer,
    runtime: Arc<Runtime>,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(finish(&self.runtime, self.producer.send(payload))?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(Putter { producer: self.producer.clone(), runtime: Arc::clone(&self.runtime) }))
    }
}

struct Taker {
    consumer: Consumer,
    runtime: Arc<Runtime>,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        loop {
            if let Some(item) = finish(&self.runtime, self.consumer.recv()) {
                see(item);
                return Ok(());
            }
            finish(&self.runtime, self.consumer.next_page())?;
        }
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        let consumer = self.runtime.block_on(self.consumer.try_clone())?;
        Ok(Box::new(Taker { consumer, runtime: Arc::clone(&self.runtime) }))
    }
}
