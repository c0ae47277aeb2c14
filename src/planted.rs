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
    /// A failed sync is told to those who wait, and forgotten.
    ForgetFailure,
    /// Marks of a killed process are taken for synced by the next one's sync.
    MarksOfOthers,
    /// Recovery removes files on the word of a header slot, or a name, that is in the page cache only.
    RemoveBeforeProof,
    /// A header's other slot is overwritten while the newest one is in the page cache only.
    OverwriteUnprovenSlot,
    /// A spare that an earlier process left keeps its old header until the new one reaches the device.
    KeepFoundSpare,
    /// An open leaves no mark, so a crash forgets the start.
    StartNotMarked,
    /// A queue whose creation was interrupted is used without making its names durable.
    UnsyncedNames,
    /// A clear is not stored.
    ClearInMemory,
    /// A sync covers the last segment and not the sealed ones before it.
    SyncTailOnly,
    /// After a power cut ids go on where the files end.
    IdsAfterLoss,
    /// A frame says that everything before it is durable, whether it is or not.
    EagerMark,
    /// What a sync covers ends in the middle of a sector, whatever the options say.
    SectorNotFilled,
    /// A recovery's copy is published without a sync.
    CopyWithoutSync,
    /// A recovery's copy leaves the marks behind.
    CopyWithoutMarks,
    /// A recovery's copy leaves the delays behind.
    CopyWithoutDelay,
    /// Items move between queues without the note that tells the next open to look.
    MoveWithoutRoute,
    /// The old item of a move is marked done before the new one is stored.
    MarkBeforeMoved,
    /// A segment is freed before the marks are durable that its moved items vouch for.
    FreeUnpaid,
    /// Bytes are given back before the marks that allow it are durable.
    PunchBeforeSync,
    /// A segment is thinned out before its sync though an earlier sync has reached some of it.
    ThinSynced,
    /// A segment is thinned out before its sync, and nothing says so to a next process.
    ThinUntold,
    /// A segment that was thinned out before its sync gets its name without a seal that says that it is whole.
    ThinWithoutSeal,
    /// A recovery says where a torn segment ends now before what was torn off is gone.
    SealBeforeTear,
    /// A segment that was closed and is opened again counts as synced to its end.
    WokenAsSynced,
    /// A frame's end is published without the frame (for the models).
    PublishRelaxed,
    /// A seal looks for open items before it is told (for the models).
    SealAfterLook,
    /// A waiter goes to sleep without a last look (for the models).
    SleepWithoutLook,
    /// A segment is freed while a named reader still has items of it.
    FreeBeforeReaders,
    /// A named reader is shown before its header is durable.
    ReaderBeforeHeader,
    /// Pages are given back in which a named reader still has an item.
    PunchUnread,
    /// Bytes are given back before a named reader's marks that allow it are durable.
    PunchBeforeReaderSync,
    /// A reader that begins with the oldest item counts items whose bytes are gone.
    CountPunched,
    /// A rolled segment's successor does not say where it ends.
    RollWithoutExtent,
    /// What a job stages is pushed before its end is stored.
    #[cfg(feature = "jobs")]
    StagedBeforeEnd,
    /// A job that is moved to its next start is closed first.
    #[cfg(feature = "jobs")]
    RetryAfterClose,
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
