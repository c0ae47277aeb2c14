//! The crate's `queue`, without its public face.

#[path = "../../../src/queue/core.rs"]
pub(crate) mod core;
#[path = "../../../src/queue/futures.rs"]
pub(crate) mod futures;
#[path = "../../../src/queue/open_item.rs"]
pub(crate) mod open_item;
#[path = "../../../src/queue/put.rs"]
pub(crate) mod put;
#[path = "../../../src/queue/take.rs"]
pub(crate) mod take;
