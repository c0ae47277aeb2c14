//! What the operations mean, case by case; the numbers in the names are those of the semantics document (S, K) and of the
//! fault model (F).

mod common;
mod damage;
mod fanout;
mod futures;
mod moves;
mod order;
mod sets;
mod space;
mod tidy;
mod typed;
mod waiting;
