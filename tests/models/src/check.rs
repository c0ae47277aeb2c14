//! How a model is run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs `scenario` under every schedule with at most `preemptions` switches that nothing forced, and says how many there were.
pub fn check(name: &str, preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&rounds);
    let mut model = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` asks for more, for a night.
    let preemptions = *model.preemption_bound.get_or_insert(preemptions);
    model.max_branches = 20_000;
    let began = Instant::now();
    model.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        crate::sync::time::begin();
        scenario();
    });
    let (rounds, ms) = (rounds.load(Ordering::Relaxed), began.elapsed().as_millis());
    println!("{name}: {rounds} orders, up to {preemptions} preemptions, {ms} ms");
}
