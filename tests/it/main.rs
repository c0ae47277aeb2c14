//! What the operations mean, case by case; the numbers in the names are those of the semantics document (S, K) and of the
//! fault model (F).

mod aliases;
mod cases;
mod common;
mod damage;
#[cfg(feature = "testing")]
mod expiry;
mod fanout;
#[cfg(feature = "testing")]
mod fanout_clock;
mod futures;
mod import;
mod layers;
mod moves;
mod order;
mod sets;
mod space;
mod states;
#[cfg(feature = "testing")]
mod stats;
mod tidy;
mod typed;
mod waiting;
