//! Tasks as consumers, under tokio: waiting, a time limit, and a future that is dropped without losing anything.

use std::time::Duration;

use kestrel_core::{Queue, QueueSet};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("kestrel-async-{}", std::process::id()));
    let set = QueueSet::open(&dir)?;
    let jobs = set.queue("jobs")?;

    let consumers: Vec<_> = (0..3).map(|n| tokio::spawn(consume(n, jobs.clone()))).collect();
    let mut last = None;
    for n in 0..30u32 {
        // `append` does not block the executor; `synced_async` waits for the group commit.
        last = Some(jobs.append(format!("job {n}"))?);
    }
    if let Some(id) = last {
        jobs.synced_async(id).await?;
    }

    let mut done = 0;
    for consumer in consumers {
        done += consumer.await??;
    }
    println!("{done} jobs done, {} left", jobs.len());
    let is_whole = done == 30 && jobs.is_empty();
    set.close()?;
    std::fs::remove_dir_all(&dir)?;
    is_whole.then_some(()).ok_or_else(|| "a job was lost, or came twice".into())
}

async fn consume(number: u32, jobs: Queue) -> Result<u32, kestrel_core::Error> {
    let mut done = 0;
    loop {
        // Dropping the future at the time limit is safe: no item is lost, and the next in line is woken.
        match tokio::time::timeout(Duration::from_millis(300), jobs.open_async()).await {
            Err(_) => return Ok(done),
            Ok(job) => {
                let job = job?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                println!("consumer {number}: {}", String::from_utf8_lossy(job.data()));
                job.close()?;
                done += 1;
            }
        }
    }
}
