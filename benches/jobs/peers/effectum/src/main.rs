//! effectum, as its page shows it; up to 10 jobs at once. It syncs at checkpoints only and has no setting for more.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use effectum::{Error, Job, JobRunner, Queue, RunningJob, Worker};
use jobs_bench::{Any, Seen, Subject, Sync};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

fn main() -> ExitCode {
    jobs_bench::child(open)
}

#[derive(Debug)]
struct Context {
    seen: Seen,
    more: Notify,
}

struct Effectum {
    runtime: Arc<Runtime>,
    queue: Queue,
    context: Arc<Context>,
    /// Works as long as it is there.
    _worker: Worker,
    is_detached: bool,
}

async fn tick(job: RunningJob, context: Arc<Context>) -> Result<(), Error> {
    context.seen.add(job.json_payload()?);
    context.more.notify_one();
    Ok(())
}

fn open(dir: &Path, sync: Sync) -> Any<Box<dyn Subject>> {
    if sync == Sync::Each {
        return Err("it has no sync at each push".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let context = Arc::new(Context { seen: Seen::default(), more: Notify::new() });
    let (queue, worker) = runtime.block_on(async {
        let queue = Queue::new(&dir.join("jobs.db")).await?;
        let jobs = [JobRunner::builder("tick", tick).build()];
        let worker = Worker::builder(&queue, Arc::clone(&context)).max_concurrency(10).jobs(jobs).build().await?;
        Ok::<_, Error>((queue, worker))
    })?;
    Ok(Box::new(Effectum { runtime: Arc::new(runtime), queue, context, _worker: worker, is_detached: false }))
}

impl Subject for Effectum {
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()> {
        let queue = &self.queue;
        let push = async {
            let Some(delay) = delay else {
                for number in numbers {
                    queue.add_job(Job::builder("tick").json_payload(&number)?.build()).await?;
                }
                return Ok::<_, Error>(());
            };
            let due = time::OffsetDateTime::now_utc() + delay;
            let numbers: Vec<u64> = numbers.collect();
            for numbers in numbers.chunks(1_000) {
                let job = |number| Ok(Job::builder("tick").json_payload(number)?.run_at(due).build());
                queue.add_jobs(numbers.iter().map(job).collect::<Result<_, Error>>()?).await?;
            }
            Ok(())
        };
        Ok(self.runtime.block_on(push)?)
    }

    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        if self.is_detached {
            return self.context.seen.wait(count);
        }
        let all = async {
            while self.context.seen.len() < count {
                self.context.more.notified().await;
            }
        };
        self.runtime.block_on(all);
        Ok(self.context.seen.take())
    }

    fn left(&mut self) -> Any<u64> {
        let active = self.runtime.block_on(self.queue.num_active_jobs())?;
        Ok(active.pending + active.running)
    }

    fn detach(&mut self) -> Any<()> {
        self.is_detached = true;
        let runtime = Arc::clone(&self.runtime);
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Ok(())
    }
}
