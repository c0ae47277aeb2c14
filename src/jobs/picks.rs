//! Whose turn it is: shares of queues, limits, and starts per time.

use std::sync::Arc;
use std::time::Duration;

use crate::jobs::room::Room;
use crate::jobs::watch::Watches;

/// One job's share of a queue with weight 1.
pub(crate) const STRIDE: u64 = 1 << 40;

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Picks {
    /// How many rooms there were at the last look for new ones.
    pub(crate) seen: u64,
    pub(crate) rooms: Vec<Pick>,
    /// The share at which the last job was taken.
    pub(crate) share: u64,
    pub(crate) watches: Watches,
}

/// A room, and what this team has had of it.
pub(crate) struct Pick {
    pub(crate) room: Arc<Room>,
    pub(crate) limit: usize,
    pub(crate) running: usize,
    pub(crate) bucket: Option<Bucket>,
    pub(crate) stride: u64,
    /// What it has had.
    pub(crate) share: u64,
}

/// Starts that are allowed, in shares of a ms.
pub(crate) struct Bucket {
    per_ms: u64,
    most: u64,
    /// What is in it, times `per_ms`; filled up to `at_ms`.
    level: u64,
    at_ms: u64,
}

impl Bucket {
    pub(crate) fn new(per: Duration, n: u32, now_ms: u64) -> Bucket {
        let per_ms = u64::try_from(per.as_millis()).unwrap_or(u64::MAX).max(1);
        let most = u64::from(n);
        Bucket { per_ms, most, level: most.saturating_mul(per_ms), at_ms: now_ms }
    }

    fn fill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.level =
            self.level.saturating_add(passed.saturating_mul(self.most)).min(self.most.saturating_mul(self.per_ms));
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// In how many ms a start is allowed.
    pub(crate) fn wait_ms(&mut self, now_ms: u64) -> u64 {
        self.fill(now_ms);
        self.per_ms.saturating_sub(self.level).div_ceil(self.most.max(1))
    }

    pub(crate) fn take(&mut self) {
        self.level = self.level.saturating_sub(self.per_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_evenly_and_never_over() {
        let mut bucket = Bucket::new(Duration::from_secs(1), 4, 1_000);
        for _ in 0..4 {
            assert_eq!(bucket.wait_ms(1_000), 0);
            bucket.take();
        }
        assert_eq!(bucket.wait_ms(1_000), 250);
        assert_eq!((bucket.wait_ms(1_249), bucket.wait_ms(1_250)), (1, 0));
        bucket.take();
        // A clock that goes back gives nothing.
        assert_eq!(bucket.wait_ms(900), 250);
        let starts = |bucket: &mut Bucket, now_ms| {
            std::iter::from_fn(|| (bucket.wait_ms(now_ms) == 0).then(|| bucket.take())).count()
        };
        assert_eq!(starts(&mut bucket, 1_000_000), 4);
        let mut odd = Bucket::new(Duration::from_millis(1_000), 3, 0);
        assert_eq!((0..=10_000).map(|now_ms| starts(&mut odd, now_ms)).sum::<usize>(), 33);
    }
}
