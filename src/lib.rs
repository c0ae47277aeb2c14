#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("kestrel-core needs a Unix system");

mod clock;
#[cfg(test)]
#[path = "../tests/crash/mod.rs"]
mod crash;
mod disk;
pub mod docs;
mod error;
mod format;
mod ids;
mod item;
#[cfg(feature = "jobs")]
#[cfg_attr(docsrs, doc(cfg(feature = "jobs")))]
pub mod jobs;
mod journal;
mod options;
mod planted;
mod queue;
mod reader;
mod set;
mod stats;
mod sync;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod typed;
mod upkeep;

pub use error::{
    AliasError, AliasPutError, CloseError, Error, GetError, Limit, MoveFault, OpenError, OptionsError, PutError,
    StateError, SyncError,
};
pub use ids::ItemId;
pub use item::{DeadLetter, Item};
pub use options::{Durability, OnDamage, PutOptions, QueueOptions, QueueOverrides, State, StateOptions, WhenFull};
pub use queue::archive::RetiredSegment;
pub use queue::browse::{Browse, ItemState};
#[cfg(feature = "async")]
pub use queue::futures::OpenStream;
pub use queue::futures::{GetFuture, OpenFuture, SyncedFuture};
pub use queue::open_item::{MoveError, OpenItem, OpenToken};
pub use queue::{Iter, Queue, TryIter};
pub use set::{Alias, QueueSet, QueueSetBuilder};
pub use stats::{LostRange, QueueStats, RecoveryProgress, RecoveryReport, SetStats};
#[cfg(feature = "postcard")]
pub use typed::Postcard;
#[cfg(feature = "bincode")]
pub use typed::{Bincode, BincodeError};
pub use typed::{Codec, DecodeError, TypedGetError, TypedOpenItem, TypedPutError, TypedQueue};

/// What users may rely on about threads and unwinding, checked by the compiler. A panic cannot leave a lock's content half
/// changed: no user code runs under a lock.
const _: () = {
    const fn shareable<T: Send + Sync + 'static>() {}
    const fn sendable<T: Send + 'static>() {}
    shareable::<QueueSet>();
    shareable::<Queue>();
    shareable::<Item>();
    shareable::<OpenItem>();
    sendable::<GetFuture>();
    sendable::<OpenFuture>();
    sendable::<SyncedFuture>();
};

impl std::panic::UnwindSafe for QueueSet {}
impl std::panic::RefUnwindSafe for QueueSet {}
impl std::panic::UnwindSafe for Queue {}
impl std::panic::RefUnwindSafe for Queue {}
impl std::panic::UnwindSafe for OpenItem {}
impl std::panic::RefUnwindSafe for OpenItem {}
