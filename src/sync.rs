//! What threads meet at: locks, atomics, parking, the bell of the upkeep thread. Everything above `disk` takes them from here,
//! so that `tests/models` can build the same source over schedulers that try every order, or random ones of whole sets.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::thread;

pub(crate) use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
pub(crate) use event_listener::{Event, EventListener};
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Looks for a few microseconds before the caller parks: a partner on another core answers sooner than a sleep and a wake
/// take. Not on one core, where looking keeps the partner from running.
pub(crate) fn spin_until(ready: impl Fn() -> bool) -> bool {
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    if *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from)) < 2 {
        return ready();
    }
    for _ in 0..200 {
        if ready() {
            return true;
        }
        std::hint::spin_loop();
    }
    ready()
}
