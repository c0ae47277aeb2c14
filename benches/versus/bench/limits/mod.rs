//! The least work of each kind, done by the same loops as the subjects: what no queue of that kind can beat on this machine.

pub mod boxes;
pub mod leader;
pub mod mapped;
