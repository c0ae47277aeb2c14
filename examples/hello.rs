//! The shortest use: put, open, close.

use kestrel_core::QueueSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let set = QueueSet::open(std::env::temp_dir().join("kestrel-hello"))?;
    let jobs = set.queue("jobs")?;
    jobs.put("hello")?;
    let job = jobs.open()?;
    println!("{}: {}", job.id(), String::from_utf8_lossy(job.data()));
    job.close()?;
    Ok(set.close()?)
}
