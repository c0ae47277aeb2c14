//! The long pages: [`architecture`], [`format`](mod@format), [`durability`], [`reliability`].

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[doc = include_str!("reliability.md")]
pub mod reliability {}
