//! Bugs that the crash harness must catch, planted on purpose and switched on one at a time, in tests only.
//!
//! Outside of tests [`is`] is a constant `false`, so each planted branch disappears.

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// `put` answers before the device has the item.
    AckBeforeSync,
    /// The name of a new segment is not made durable before the first answer.
    SkipDirSync,
    /// After recovery, puts go on in the recovered segment.
    AppendToRecoveredSegment,
    /// A failed sync is tried again, and believed.
    RetryFailedSync,
    /// Checksums are not seeded, so that frames of a file's earlier use pass.
    IgnoreSalt,
    /// The next id comes from what is found, not from what may have been given out.
    ReuseId,
    /// A lane block's tag is not checked, so that marks of a file's earlier use count.
    LaneWithoutTag,
    /// A payload is not checked when read.
    SkipPayloadCrc,
    /// Damage below the durable mark is taken for a torn tail.
    DamageIsTorn,
    /// A segment is freed while one of its items is still waiting or open.
    FreeBeforeDone,
    /// A segment is recycled before the queue's header says so durably.
    FreeBeforeMeta,
    /// Recovery accepts a batch whose end is missing.
    BatchWithoutEnd,
    /// An unproven tail is served from where it stands, without being made durable.
    ServeUnproven,
}

#[cfg(test)]
pub(crate) use switch::{is, with};

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local!(static ON: Cell<Option<Bug>> = const { Cell::new(None) });

    pub(crate) fn is(bug: Bug) -> bool {
        ON.get() == Some(bug)
    }

    /// Runs `work` with `bug` switched on for this thread.
    pub(crate) fn with<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
        struct Off;
        impl Drop for Off {
            fn drop(&mut self) {
                ON.set(None);
            }
        }
        ON.set(Some(bug));
        let _off = Off;
        work()
    }
}
