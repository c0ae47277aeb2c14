//! Each planted bug must be caught by the harness that passes the unbroken engine: a harness that cannot fail proves
//! nothing.

use super::everywhere::{Effort, Tally, WORKLOADS, explore, failing_steps, spoiled_sectors, two_lives};
use super::flips::damage_is_told;
use super::oracle::Verdict;
use crate::planted::{Bug, with};

const EFFORT: Effort = Effort { exhaustive: 5, random: 3, depth_2_every: 0, stride: 1 };

/// What the hunt tries first, and the unbroken engine must pass.
fn quick(tally: &mut Tally) -> Verdict {
    damage_is_told()?;
    for workload in WORKLOADS {
        failing_steps(workload, 1, true, 5, tally)?;
    }
    for workload in WORKLOADS.iter().filter(|workload| workload.name == "sectors") {
        spoiled_sectors(workload, 1, 3, 2, tally)?;
    }
    let lives = WORKLOADS.iter().filter(|workload| workload.name == "power cuts, os");
    for workload in WORKLOADS[..8].iter().chain(lives) {
        two_lives(workload, 1, 11, tally)?;
    }
    Ok(())
}

/// Everything that the hunt tries; first the workloads made for the bug, if it shows in few of them only.
fn scenarios(bug: Bug, tally: &mut Tally) -> Verdict {
    let made_for_it = match bug {
        Bug::PunchBeforeSync => Some("thin out"),
        Bug::ThinSynced | Bug::ThinUntold => Some("left behind, os"),
        Bug::WokenAsSynced => Some("few files"),
        Bug::CopyWithoutDelay => Some("delays"),
        _ => None,
    };
    if let Some(name) = made_for_it {
        for workload in WORKLOADS.iter().filter(|workload| workload.name.starts_with(name)) {
            failing_steps(workload, 1, true, 5, tally)?;
            explore(workload, 3, EFFORT, tally)?;
        }
    }
    quick(tally)?;
    for workload in WORKLOADS {
        explore(workload, 3, Effort { stride: 5, ..EFFORT }, tally)?;
    }
    for workload in WORKLOADS {
        two_lives(workload, 1, 11, tally)?;
        explore(workload, 3, EFFORT, tally)?;
    }
    Ok(())
}

macro_rules! planted {
    ($($name:ident: $bug:ident;)*) => {$(
        #[test]
        fn $name() {
            let start = std::time::Instant::now();
            let mut tally = Tally::default();
            // A failed assertion of the engine is a catch too.
            let hunt = std::panic::AssertUnwindSafe(|| with(Bug::$bug, || scenarios(Bug::$bug, &mut tally)));
            let caught = std::panic::catch_unwind(hunt).unwrap_or_else(|_| Err("a panic".into()));
            let seconds = start.elapsed().as_secs_f64();
            println!("planted: {:?}: {} states, {seconds:.1} s: {caught:?}", Bug::$bug, tally.states);
            assert!(caught.is_err(), "{:?} was not caught", Bug::$bug);
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
    planted_forget_failure_is_caught: ForgetFailure;
    planted_marks_of_others_is_caught: MarksOfOthers;
    planted_remove_before_proof_is_caught: RemoveBeforeProof;
    planted_overwrite_unproven_slot_is_caught: OverwriteUnprovenSlot;
    planted_keep_found_spare_is_caught: KeepFoundSpare;
    planted_start_not_marked_is_caught: StartNotMarked;
    planted_unsynced_names_is_caught: UnsyncedNames;
    planted_clear_in_memory_is_caught: ClearInMemory;
    planted_sync_tail_only_is_caught: SyncTailOnly;
    planted_ids_after_loss_is_caught: IdsAfterLoss;
    planted_eager_mark_is_caught: EagerMark;
    planted_sector_not_filled_is_caught: SectorNotFilled;
    planted_copy_without_sync_is_caught: CopyWithoutSync;
    planted_copy_without_marks_is_caught: CopyWithoutMarks;
    planted_copy_without_delay_is_caught: CopyWithoutDelay;
    planted_roll_without_extent_is_caught: RollWithoutExtent;
    planted_move_without_route_is_caught: MoveWithoutRoute;
    planted_mark_before_moved_is_caught: MarkBeforeMoved;
    planted_free_unpaid_is_caught: FreeUnpaid;
    planted_punch_before_sync_is_caught: PunchBeforeSync;
    planted_thin_synced_is_caught: ThinSynced;
    planted_thin_untold_is_caught: ThinUntold;
    planted_woken_as_synced_is_caught: WokenAsSynced;
}

#[test]
fn the_unbroken_engine_passes_the_same_scenarios() {
    let mut tally = Tally::default();
    if let Err(violation) = quick(&mut tally) {
        panic!("{violation}");
    }
    println!("planted: none: {} states, {} distinct: nothing found", tally.states, tally.distinct);
}
