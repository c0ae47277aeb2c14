//! A disk that forgets, tears, fails and fills: for crashing your own code on top of a queue.

pub use crate::disk::sim::*;
