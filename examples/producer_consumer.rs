//! Threads that produce and consume, and stop in good order: at the end of the work, or on Ctrl-C.
//!
//! `cargo run --release --example producer_consumer [ITEMS]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{GetError, PutError, QueueSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let items: u64 = std::env::args().nth(1).map_or(Ok(2_000), |text| text.parse())?;
    let dir = std::env::temp_dir().join("kestrel-producer-consumer");
    let set = QueueSet::open(&dir)?;
    let queue = set.queue("numbers")?;
    println!("{} left from an earlier run", queue.len());

    let stop = Arc::new(AtomicBool::new(false));
    let handler_stop = Arc::clone(&stop);
    ctrlc::set_handler(move || handler_stop.store(true, Ordering::SeqCst))?;

    let produced = AtomicU64::new(0);
    let consumed = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<(), PutError> {
                    // Each put is on the device when it returns; the four threads share its syncs.
                    while !stop.load(Ordering::SeqCst) && produced.fetch_add(1, Ordering::SeqCst) < items {
                        queue.put(start.elapsed().as_nanos().to_le_bytes())?;
                    }
                    Ok(())
                })
            })
            .collect();
        let done = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let (done, queue, consumed) = (Arc::clone(&done), queue.clone(), &consumed);
            scope.spawn(move || -> Result<(), GetError> {
                loop {
                    // A worker that dies with the item open loses nothing: it would come back.
                    if let Some(item) = queue.open_timeout(Duration::from_millis(50))? {
                        if item.close().is_ok() {
                            consumed.fetch_add(1, Ordering::SeqCst);
                        }
                    } else if done.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                }
            });
        }
        for producer in producers {
            if let Ok(Err(error)) = producer.join() {
                eprintln!("a producer stopped: {error}");
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    println!("{} consumed in {:?}, {} left", consumed.load(Ordering::SeqCst), start.elapsed(), queue.len());
    set.close()?;
    Ok(())
}
