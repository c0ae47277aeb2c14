//! The waiting forms for tasks: named futures over the same line and the same group commit as the blocking ones. No
//! executor, no timer: wrap them in your runtime's timeout, they may be dropped at any moment.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{GetError, SyncError};
use crate::ids::ItemId;
use crate::item::Item;
use crate::queue::core::Core;
use crate::queue::open_item::OpenItem;
use crate::queue::take::{Given, LinePlace, Mode};
use crate::sync::EventListener;

/// Waits for the next item: [`Queue::get_async`](crate::Queue::get_async).
#[must_use = "futures do nothing unless polled"]
pub struct GetFuture {
    take: Take,
}

/// Waits for the next item and opens it: [`Queue::open_async`](crate::Queue::open_async).
#[must_use = "futures do nothing unless polled"]
pub struct OpenFuture {
    take: Take,
}

struct Take {
    core: Arc<Core>,
    place: Option<LinePlace>,
}

impl Take {
    fn poll(&mut self, mode: Mode, cx: &mut Context<'_>) -> Poll<Result<Given, GetError>> {
        match self.core.poll_take(mode, &mut self.place, cx.waker()) {
            Ok(Some(given)) => Poll::Ready(Ok(given)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl GetFuture {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        GetFuture { take: Take { core, place: None } }
    }
}

impl Future for GetFuture {
    type Output = Result<Item, GetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.take.poll(Mode::Get, cx).map_ok(|given| given.item)
    }
}

impl OpenFuture {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        OpenFuture { take: Take { core, place: None } }
    }
}

impl Future for OpenFuture {
    type Output = Result<OpenItem, GetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let core = Arc::clone(&self.take.core);
        self.take.poll(Mode::Open, cx).map_ok(|given| OpenItem::new(core, given.item, given.serial))
    }
}

/// Opens item after item: [`Queue::stream`](crate::Queue::stream).
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
#[must_use = "streams do nothing unless polled"]
pub struct OpenStream {
    next: OpenFuture,
}

#[cfg(feature = "async")]
impl OpenStream {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        OpenStream { next: OpenFuture::new(core) }
    }
}

#[cfg(feature = "async")]
impl futures_core::Stream for OpenStream {
    type Item = Result<OpenItem, GetError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match Pin::new(&mut self.next).poll(cx) {
            Poll::Ready(Err(GetError::Closed)) => Poll::Ready(None),
            other => other.map(Some),
        }
    }
}

/// Waits until an item is durable: [`Queue::synced_async`](crate::Queue::synced_async).
#[must_use = "futures do nothing unless polled"]
pub struct SyncedFuture {
    core: Arc<Core>,
    id: ItemId,
    listener: Option<EventListener>,
}

impl SyncedFuture {
    pub(crate) fn new(core: Arc<Core>, id: ItemId) -> Self {
        SyncedFuture { core, id, listener: None }
    }

    fn answer(&self) -> Option<Result<(), SyncError>> {
        if let Err(error) = self.core.may_sync() {
            return Some(Err(error));
        }
        let commit = &self.core.journal.commit;
        if self.id.get() > self.core.journal.appended() {
            return Some(Err(SyncError::UnknownId { id: self.id }));
        }
        if commit.durable() >= self.id.get() {
            return Some(Ok(()));
        }
        commit.failure().map(|source| Err(self.core.sync_error(source)))
    }
}

impl Future for SyncedFuture {
    type Output = Result<(), SyncError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(answer) = self.answer() {
                return Poll::Ready(answer);
            }
            match &mut self.listener {
                // Listen, then look again, then ring: a sync that ends in between is not missed.
                None => {
                    self.listener = Some(self.core.journal.commit.listen());
                    if let Some(answer) = self.answer() {
                        return Poll::Ready(answer);
                    }
                    self.core.ring_sync();
                }
                Some(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

macro_rules! opaque_debug {
    ($($(#[$attribute:meta])* $name:ident),*) => {
        $($(#[$attribute])*
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        })*
    };
}

opaque_debug!(
    GetFuture,
    OpenFuture,
    SyncedFuture,
    #[cfg(feature = "async")]
    OpenStream
);
