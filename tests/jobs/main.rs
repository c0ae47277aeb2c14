//! What the jobs promise, case by case; J and a number in a test's name are those of the jobs document's list of cases.
//!
//! Time is that of a simulated disk, and passes when a test says so. Tests with threads or dying processes work on a real
//! directory; what they wait for has no limit but that of a hang.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod common;
mod crashes;
mod cuts;
mod dead;
mod delays;
mod events;
mod handlers;
mod input;
mod lifecycle;
mod model;
mod orders;
mod processes;
mod retries;
mod runner;
mod steering;
mod stops;
mod unique;
