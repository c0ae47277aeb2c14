//! What threads meet at: locks, atomics, parking, the bell of the upkeep thread. Everything above `disk` takes them from here,
//! so that `tests/models` can build the same source over schedulers that try every order, or random ones of whole sets.

use std::cell::Cell;
use std::sync::atomic::AtomicUsize;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::thread;

pub(crate) use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
pub(crate) use event_listener::{Event, EventListener};
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// The longest look before the caller parks, and the shortest.
const LOOK_NS: u64 = 10_000;
const GLANCE_NS: u64 = 500;
/// One look in so many is a long one, whatever came of the others: times change.
const TRY_AGAIN: u32 = 16;

thread_local! {
    /// How long this thread looks, as its waits have taught it, and how many of its looks were shorter since.
    static LOOK: Cell<(u64, u32)> = const { Cell::new((LOOK_NS, 0)) };
}

/// Looks for a few microseconds before the caller parks: a partner on another core answers sooner than a sleep and a wake
/// take. Always fewer threads look than there are cores, so that the partner has one to run on; and who looked in vain looks
/// half as long the next time, since a wait for something far is not made shorter by it.
pub(crate) fn spin_until(ready: impl Fn() -> bool) -> bool {
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    static LOOKING: AtomicUsize = AtomicUsize::new(0);
    struct Looking;
    impl Drop for Looking {
        fn drop(&mut self) {
            LOOKING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    if ready() {
        return true;
    }
    let cores = *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
    let others = LOOKING.fetch_add(1, Ordering::Relaxed);
    let _looking = Looking;
    if others + 1 >= cores {
        return ready();
    }
    let (learnt, shorter) = LOOK.get();
    let span = if shorter >= TRY_AGAIN { LOOK_NS } else { learnt };
    let begun = crate::disk::instant_now();
    loop {
        for _ in 0..16 {
            if ready() {
                LOOK.set((LOOK_NS, 0));
                return true;
            }
            std::hint::spin_loop();
        }
        if begun.elapsed().as_nanos() >= span.into() {
            LOOK.set(((learnt / 2).max(GLANCE_NS), if span == LOOK_NS { 0 } else { shorter + 1 }));
            return ready();
        }
    }
}
