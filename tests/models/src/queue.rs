//! The crate's `queue`, without its public face.

use std::sync::Arc;

/// As much of it as an open item needs.
#[derive(Debug)]
pub struct Queue {
    pub(crate) core: Arc<core::Core>,
}

#[path = "../../../src/queue/all.rs"]
pub(crate) mod all;
#[path = "../../../src/queue/archive.rs"]
pub(crate) mod archive;
#[path = "../../../src/queue/core.rs"]
pub(crate) mod core;
#[path = "../../../src/queue/fanout.rs"]
pub(crate) mod fanout;
#[path = "../../../src/queue/futures.rs"]
pub(crate) mod futures;
#[path = "../../../src/queue/handoff.rs"]
pub(crate) mod handoff;
#[path = "../../../src/queue/open_item.rs"]
pub(crate) mod open_item;
#[path = "../../../src/queue/put.rs"]
pub(crate) mod put;
#[path = "../../../src/queue/state.rs"]
pub(crate) mod state;
#[path = "../../../src/queue/take.rs"]
pub(crate) mod take;
