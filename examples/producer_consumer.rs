//! Threads that produce and consume, and stop in good order: at the end of the work, or on Ctrl-C.
//!
//! `cargo run --release --example producer_consumer [ITEMS]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use kestrel_core::{Error, QueueSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let items: u64 = std::env::args().nth(1).map_or(Ok(2_000), |text| text.parse())?;
    let dir = std::env::temp_dir().join("kestrel-producer-consumer");
    let set = QueueSet::open(&dir)?;
    let queue = set.queue("numbers")?;
    println!("{} left from an earlier run", queue.len());

    let stop = Arc::new(AtomicBool::new(false));
    let handler_stop = Arc::clone(&stop);
    ctrlc::set_handler(move || handler_stop.store(true, Ordering::SeqCst))?;

    // What is still to be put; the consumers go on until the producers are done and nothing is left.
    let budget = AtomicU64::new(items);
    let is_producing = AtomicBool::new(true);
    let consumed = AtomicU64::new(0);
    let start = Instant::now();
    let produce = || -> Result<(), Error> {
        let take = |left: u64| left.checked_sub(1);
        while !stop.load(Ordering::SeqCst) && budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            // On the device when it returns; the four threads share its syncs.
            queue.put(start.elapsed().as_nanos().to_le_bytes())?;
        }
        Ok(())
    };
    let consume = || -> Result<(), Error> {
        loop {
            // Read before the queue is: a put that came before it is then seen.
            let may_come = is_producing.load(Ordering::SeqCst);
            // A consumer that dies with the item open loses nothing: it would come back.
            match queue.open_timeout(Duration::from_millis(50))? {
                Some(item) => item.close()?,
                None if may_come => continue,
                None => return Ok(()),
            }
            consumed.fetch_add(1, Ordering::SeqCst);
        }
    };
    let outcome = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4).map(|_| scope.spawn(produce)).collect();
        let consumers: Vec<_> = (0..2).map(|_| scope.spawn(consume)).collect();
        let produced = join(producers);
        is_producing.store(false, Ordering::SeqCst);
        produced.and(join(consumers))
    });
    println!(
        "{} put, {} consumed in {:?}, {} left",
        items - budget.load(Ordering::SeqCst),
        consumed.load(Ordering::SeqCst),
        start.elapsed(),
        queue.len()
    );
    set.close()?;
    Ok(outcome?)
}

fn join(threads: Vec<ScopedJoinHandle<'_, Result<(), Error>>>) -> Result<(), Error> {
    let ends = threads.into_iter().map(|thread| thread.join().expect("no panic"));
    // All of them, then the first error.
    ends.fold(Ok(()), Result::and)
}
