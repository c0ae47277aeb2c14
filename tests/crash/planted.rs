//! Each planted bug must be caught by the harness that passes the unbroken engine: a harness that cannot fail proves
//! nothing.

use super::everywhere::{Effort, Tally, WORKLOADS, Workload, explore, failed_syncs, random, two_lives};
use super::flips::damage_is_told;
use crate::Durability;
use crate::planted::{Bug, with};

const EFFORT: Effort = Effort { exhaustive: 5, random: 3, depth_2_every: 0, stride: 1 };

/// Searches until something is violated; `None`: the bug was not caught.
fn hunt(bug: Bug) -> Option<String> {
    with(bug, || {
        let mut tally = Tally::default();
        let scenarios: [fn() -> super::oracle::Verdict; 3] = [damage_is_told, || failed_syncs(1), || two_lives(1)];
        for scenario in scenarios {
            if let Err(violation) = scenario() {
                return Some(violation);
            }
        }
        for workload in WORKLOADS {
            if let Err(violation) = explore(workload, 3, EFFORT, &mut tally) {
                return Some(violation);
            }
        }
        for seed in 0..20 {
            let durability = [Durability::Sync, Durability::Os][seed as usize % 2];
            let workload = Workload { name: "random", durability, may_map: true, work: random };
            let effort = Effort { stride: 5, ..EFFORT };
            if let Err(violation) = explore(&workload, seed, effort, &mut tally) {
                return Some(violation);
            }
        }
        None
    })
}

macro_rules! planted {
    ($($name:ident: $bug:ident;)*) => {$(
        #[test]
        fn $name() {
            // A failed assertion of the engine is a catch too.
            let caught = std::panic::catch_unwind(|| hunt(Bug::$bug)).unwrap_or_else(|_| Some("a panic".into()));
            println!("planted: {:?}: {caught:?}", Bug::$bug);
            assert!(caught.is_some(), "{:?} was not caught", Bug::$bug);
        }
    )*};
}

planted! {
    planted_ack_before_sync_is_caught: AckBeforeSync;
    planted_skip_dir_sync_is_caught: SkipDirSync;
    planted_append_to_recovered_segment_is_caught: AppendToRecoveredSegment;
    planted_retry_failed_sync_is_caught: RetryFailedSync;
    planted_ignore_salt_is_caught: IgnoreSalt;
    planted_reuse_id_is_caught: ReuseId;
    planted_lane_without_tag_is_caught: LaneWithoutTag;
    planted_skip_payload_crc_is_caught: SkipPayloadCrc;
    planted_damage_is_torn_is_caught: DamageIsTorn;
    planted_free_before_done_is_caught: FreeBeforeDone;
    planted_free_before_meta_is_caught: FreeBeforeMeta;
    planted_batch_without_end_is_caught: BatchWithoutEnd;
    planted_serve_unproven_is_caught: ServeUnproven;
}

#[test]
fn the_unbroken_engine_passes_the_same_scenarios() {
    for scenario in [damage_is_told as fn() -> super::oracle::Verdict, || failed_syncs(1), || two_lives(1)] {
        if let Err(violation) = scenario() {
            panic!("{violation}");
        }
    }
}
