//! Torn or damaged: the decision at the first invalid frame, as a pure function over what is known there.
//!
//! | below the durable mark | page cache intact | puts promised only the page cache | valid frame follows | verdict |
//! |---|---|---|---|---|
//! | yes | - | - | - | damage: it was durable once |
//! | no | no | - | - | torn: a power cut took an unsynced end |
//! | no | yes | yes | yes | damage: a dead process leaves no hole in a page cache |
//! | no | yes | yes | no | torn: the last frame was being written |
//! | no | yes | no | - | torn: a failed sync may have undone an unsynced end |
//!
//! One ambiguity is left, and no single copy can resolve it: damage to the very last synced items, before anything was
//! written behind them, looks torn. A checkpoint frame follows within a second and ends it.

use crate::planted::{self, Bug};

/// What is known at the first invalid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// A valid frame, a seal or a later segment says that these bytes were durable.
    pub(crate) below_durable_mark: bool,
    /// The machine has not been restarted since the segment was begun.
    pub(crate) same_boot: bool,
    /// The queue's puts were answered from the page cache: durability `Os`.
    pub(crate) cache_promised: bool,
    /// A valid frame, or a later segment, follows.
    pub(crate) valid_follows: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An interrupted write: all from here on was never answered as durable, and is discarded.
    Torn,
    /// Bytes that were promised are not what they were.
    Damage,
}

pub(crate) fn judge(evidence: Evidence) -> Verdict {
    if planted::is(Bug::DamageIsTorn) {
        return Verdict::Torn;
    }
    match evidence {
        Evidence { below_durable_mark: true, .. } => Verdict::Damage,
        Evidence { same_boot: true, cache_promised: true, valid_follows: true, .. } => Verdict::Damage,
        _ => Verdict::Torn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table above, row by row, over every combination.
    #[test]
    fn every_combination_has_the_verdict_of_the_table() {
        for bits in 0..16u8 {
            let [below_durable_mark, same_boot, cache_promised, valid_follows] =
                [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0];
            let expected = match (below_durable_mark, same_boot, cache_promised, valid_follows) {
                (true, _, _, _) => Verdict::Damage,
                (false, false, _, _) => Verdict::Torn,
                (false, true, true, true) => Verdict::Damage,
                (false, true, true, false) => Verdict::Torn,
                (false, true, false, _) => Verdict::Torn,
            };
            let evidence = Evidence { below_durable_mark, same_boot, cache_promised, valid_follows };
            assert_eq!(judge(evidence), expected, "{evidence:?}");
        }
    }
}
