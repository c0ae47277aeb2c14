//! The figures of a run, and what is made of them: Markdown for the terminal and the README, drawings for the eye.
//!
//! The benchmark itself (`bench/`) is a separate target, so that `table` can be built without any peer.

pub mod figures;
pub mod goals;
pub mod markdown;
pub mod plot;
