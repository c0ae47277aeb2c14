//! One small adapter for each queue.

pub mod crossbeam;
pub mod disk_chan;
pub mod disk_queue;
pub mod fjall;
pub mod okaywal;
pub mod ours;
pub mod persistent_queue;
pub mod queue_file;
pub mod raft_engine;
pub mod redb;
pub mod sled;
pub mod sqlite;
pub mod walrus;
pub mod yaque;
