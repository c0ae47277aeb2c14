//! Bugs planted in the copy of the source, one at a time.

use std::cell::Cell;

// All threads of a model run on one thread of the system, so this reaches exactly the model that set it.
thread_local!(static ON: Cell<&'static str> = const { Cell::new("") });

/// Asked by the lines that `build.rs` plants.
pub fn is(bug: &str) -> bool {
    ON.get() == bug
}

/// Whether any is on.
pub fn is_on() -> bool {
    !ON.get().is_empty()
}

/// Switches one on for the rest of this thread.
pub fn set(bug: &'static str) {
    ON.set(bug);
}
