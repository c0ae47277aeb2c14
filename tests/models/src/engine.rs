//! Loom, which tries every order and every value that the memory model lets a load see.

use std::time::Duration;

pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
pub use loom::thread::{ThreadId, yield_now};
pub use loom::thread_local;

pub mod threads {
    pub use loom::thread::{JoinHandle, spawn};
}

pub fn thread_id() -> ThreadId {
    loom::thread::current().id()
}

/// Loom takes SeqCst operations for AcqRel ones; a SeqCst fence before each gives them back their order (the mapping that
/// compilers use on processors with fences only). That may be a little stronger than the language promises where SeqCst meets
/// weaker operations on the same atomic, and is never weaker than the processors are.
pub fn in_order(order: atomic::Ordering) {
    if order == atomic::Ordering::SeqCst {
        atomic::fence(order);
    }
}

/// A model says itself when time passes: one that may pass at any moment has too many orders.
pub const TIME_PASSES: bool = false;

pub fn span(left: Duration) -> Duration {
    left
}
