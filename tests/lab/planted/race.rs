//! Races on purpose, and a program without one: the layer `sanitizers` must tell them apart before it is believed.

use std::cell::UnsafeCell;
use std::sync::{Arc, Barrier, Mutex};

struct Shared(UnsafeCell<[u64; 8]>);

// SAFETY: none, which is the point.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared(UnsafeCell::new([0; 8]));
static GUARDED: Mutex<u64> = Mutex::new(0);

#[inline(never)]
fn store(value: u64) {
    // SAFETY: in bounds; races with the other thread, on purpose.
    unsafe { std::ptr::copy_nonoverlapping([value; 8].as_ptr(), SHARED.0.get().cast(), 8) };
}

/// Stores when the last owner lets go: code that runs under the drop of an `Arc` must not be excused with it.
struct StoresLast;

impl Drop for StoresLast {
    fn drop(&mut self) {
        store(3);
    }
}

fn main() {
    let what = std::env::args().nth(1).unwrap_or_default();
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for value in 0..2 {
            let (what, barrier) = (what.as_str(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                match what {
                    "race" => store(value),
                    "drop" => drop(Arc::new(StoresLast)),
                    _ => *GUARDED.lock().unwrap() += value,
                }
            });
        }
    });
}
