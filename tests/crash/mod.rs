//! The crash harness: workloads on a simulated disk, crashed at every step, under every fate, and judged by one oracle.
//!
//! Compiled into the library's own tests, because it works at the disk seam. `KESTREL_SEED` and `KESTREL_CRASH_STATES` rule
//! seed and effort of the long form; every violation names the workload, the step, the fate and the seed.

mod cases;
mod everywhere;
mod exact;
mod faults;
mod flips;
mod handoffs;
mod looking;
mod model;
mod oracle;
mod planted;
mod rules;
