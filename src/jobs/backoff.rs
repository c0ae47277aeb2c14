//! How long a failed job pauses.

use std::time::Duration;

use crate::jobs::envelope::Stored;
use crate::jobs::id::JobId;

const HOUR_MS: u64 = 3_600_000;

/// The pause after the `failures`-th failure, from 1. Chance is drawn from the job's id and the number of the failure, so that jobs
/// differ and a repeated run does not.
pub(crate) fn pause(backoff: Stored, failures: u32, job: JobId) -> Duration {
    let n = u64::from(failures.max(1));
    let ms = match backoff {
        Stored::None => 0,
        Stored::Fixed(pause) => pause,
        Stored::Default => jittered(doubled(1000, HOUR_MS, n), job, n),
        Stored::Exponential(first, max) => jittered(doubled(first, max, n), job, n),
        Stored::Polynomial => {
            let seconds = (n - 1).saturating_pow(4).saturating_add(15);
            seconds.saturating_mul(1000).saturating_add(chance(job, n) % (n.saturating_mul(10_000)))
        }
    };
    Duration::from_millis(ms)
}

fn doubled(first: u64, max: u64, n: u64) -> u64 {
    let factor = 1u64.checked_shl(u32::try_from(n - 1).unwrap_or(u32::MAX)).unwrap_or(u64::MAX);
    first.saturating_mul(factor).min(max)
}

/// Between a half and the whole.
fn jittered(ms: u64, job: JobId, n: u64) -> u64 {
    let half = ms / 2;
    ms - half + if half == 0 { 0 } else { chance(job, n) % (half + 1) }
}

fn chance(job: JobId, n: u64) -> u64 {
    // The finalizer of SplitMix64.
    let mut x = job.item.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from(job.lane) << 32
        ^ n.wrapping_mul(0xD134_2543_DE82_EF95);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(backoff: Stored, failures: u32) -> (u64, u64) {
        let all = (0..2000).map(|item| pause(backoff, failures, JobId { lane: 7, item }).as_millis() as u64);
        let all: Vec<u64> = all.collect();
        (*all.iter().min().expect("some"), *all.iter().max().expect("some"))
    }

    #[test]
    fn pauses_double_and_are_cut_by_up_to_a_half() {
        for (failures, longest) in
            [(1, 1000), (2, 2000), (3, 4000), (12, 2_048_000), (13, HOUR_MS), (40, HOUR_MS), (u32::MAX, HOUR_MS)]
        {
            let (least, most) = range(Stored::Default, failures);
            assert!(least >= longest / 2 && most <= longest, "{failures}: {least} {most}");
            // Spread over the whole of that.
            assert!(least < longest * 52 / 100 && most > longest * 98 / 100, "{failures}: {least} {most}");
        }
        let most: u64 = (1..20).map(|failures| range(Stored::Default, failures).1).sum();
        assert!((29_000_000..=29_295_000).contains(&most), "8.1 hours at most: {most}");
    }

    #[test]
    fn the_other_pauses_are_what_they_say() {
        assert_eq!(range(Stored::None, 9), (0, 0));
        assert_eq!(range(Stored::Fixed(70), 9), (70, 70));
        assert_eq!(range(Stored::Fixed(u64::MAX), 1).1, u64::MAX);
        let (least, most) = range(Stored::Exponential(10, 15), 1);
        assert!(least >= 5 && most <= 10);
        assert!(range(Stored::Exponential(10, 15), 9).1 <= 15);
        for failures in [1u64, 2, 10, 25] {
            let (least, most) = range(Stored::Polynomial, failures as u32);
            let base = ((failures - 1).pow(4) + 15) * 1000;
            assert!(least >= base && most < base + failures * 10_000, "{failures}: {least} {most}");
        }
        range(Stored::Polynomial, u32::MAX);
    }
}
