//! The long pages: [`architecture`], [`format`](mod@format), [`durability`], [`reliability`], [`speed`], and `jobs` with its feature.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[doc = include_str!("reliability.md")]
pub mod reliability {}

#[doc = include_str!("speed.md")]
pub mod speed {}

#[cfg(feature = "jobs")]
#[cfg_attr(docsrs, doc(cfg(feature = "jobs")))]
#[doc = include_str!("jobs.md")]
pub mod jobs {}
