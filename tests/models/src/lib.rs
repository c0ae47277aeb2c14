//! The crate's own files, built over primitives that try every interleaving, and the scenarios that they must stand.
//!
//! The tree below is the crate's but for `sync`, `disk` and `upkeep`, which are made for models. [`broken`] is a copy of it in
//! which `build.rs` has planted bugs that [`plant`] switches on one at a time. `main.rs` holds the real source to all scenarios,
//! and shows that each planted bug breaks its own.
//!
//! `cargo run --release --manifest-path tests/models/Cargo.toml` runs all; with `LOOM_MAX_PREEMPTIONS` they go deeper.
//!
//! What a model does not show: spurious wake-ups; more threads, items or preemptions than it says; what only a weaker SeqCst
//! than any processor's would allow, see [`engine`]; anything behind the door to the system.

#![allow(dead_code, unused_imports, reason = "a model uses a part of what it includes")]
#![allow(
    clippy::len_without_is_empty,
    clippy::collapsible_match,
    reason = "the crate's names; planted lines are not for reading"
)]

pub mod check;
pub mod disk;
pub mod engine;
pub mod plant;
pub mod sync;

#[path = "../../../src/clock.rs"]
mod clock;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/format/mod.rs"]
mod format;
#[path = "../../../src/ids.rs"]
mod ids;
#[path = "../../../src/item.rs"]
mod item;
#[path = "../../../src/journal/mod.rs"]
mod journal;
#[path = "../../../src/options/mod.rs"]
mod options;
#[path = "../../../src/planted.rs"]
mod planted;
mod queue;
#[path = "../../../src/reader/mod.rs"]
mod reader;
pub mod scenarios;
#[path = "../../../src/stats.rs"]
mod stats;
mod upkeep;

/// The same tree once more, with planted bugs.
pub mod broken {
    pub use crate::{disk, engine, sync};

    /// The names of all.
    pub const BUGS: &[&str] = &include!(concat!(env!("OUT_DIR"), "/bugs.rs"));

    include!(concat!(env!("OUT_DIR"), "/root.rs"));
}
