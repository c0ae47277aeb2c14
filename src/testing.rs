//! A disk that forgets, tears, fails and fills: for crashing your own code on top of a queue.
//!
//! ```
//! use kestrel_core::QueueSet;
//! use kestrel_core::testing::{Fate, SimDisk};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = SimDisk::new(1);
//! let set = QueueSet::builder().simulated(&disk).open("/set")?;
//! set.queue("jobs")?.put("answered, so durable")?;
//! let after = disk.power_cut(Fate::None);
//! let set = QueueSet::builder().simulated(&after).open("/set")?;
//! assert_eq!(set.queue("jobs")?.len(), 1);
//! # Ok(())
//! # }
//! ```

pub use crate::disk::sim::*;

#[doc(hidden)]
pub mod fuzz;
