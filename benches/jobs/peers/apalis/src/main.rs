//! apalis-sqlite: batches of 100, looking for jobs every 100 ms when it has none. Its own set-up turns syncs off for one connection
//! of the pool; the pool that is measured syncs as asked.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apalis_core::backend::TaskSink;
use apalis_core::backend::ext::BackendExt;
use apalis_core::backend::ext::poll_strategy::Strategy;
use apalis_core::error::BoxDynError;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_sqlite::{Config, SqlitePool, SqliteStorage};
use futures_util::stream::{self, StreamExt};
use jobs_bench::{Any, Seen, Subject, Sync};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

fn main() -> ExitCode {
    jobs_bench::child(open)
}

#[derive(Clone, Debug, Default)]
struct Watch {
    seen: Seen,
    more: Arc<Notify>,
}

struct Apalis {
    runtime: Arc<Runtime>,
    pool: SqlitePool,
    storage: SqliteStorage<u64>,
    watch: Watch,
    is_detached: bool,
}

async fn tick(number: u64, watch: Data<Watch>) -> Result<(), BoxDynError> {
    watch.seen.add(number);
    watch.more.notify_one();
    Ok(())
}

fn open(dir: &Path, sync: Sync) -> Any<Box<dyn Subject>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = SqliteConnectOptions::new()
        .filename(dir.join("jobs.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if sync == Sync::Each { SqliteSynchronous::Full } else { SqliteSynchronous::Normal });
    let watch = Watch::default();
    let (pool, storage) = runtime.block_on(async {
        let pool = SqlitePool::connect_with(options.clone()).await?;
        SqliteStorage::setup(&pool).await?;
        pool.close().await;
        let pool = SqlitePool::connect_with(options).await?;
        let storage = SqliteStorage::<u64>::new(&pool).with_config(Config::default().queue("tick").batch_size(100));
        let every = Strategy::new().interval(Duration::from_millis(100));
        let backend = storage.clone().poll_with_strategy(every);
        let worker = WorkerBuilder::new("ticker").backend(backend).data(watch.clone()).build(tick);
        tokio::spawn(worker.run());
        Any::Ok((pool, storage))
    })?;
    Ok(Box::new(Apalis { runtime: Arc::new(runtime), pool, storage, watch, is_detached: false }))
}

impl Subject for Apalis {
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()> {
        let storage = &mut self.storage;
        let push = async {
            match delay {
                None => {
                    for number in numbers {
                        storage.push(number).await?;
                    }
                }
                Some(delay) => {
                    let task = |number| TaskBuilder::new(number).run_after(delay).build();
                    let numbers: Vec<u64> = numbers.collect();
                    for numbers in numbers.chunks(1_000) {
                        storage.push_all(stream::iter(numbers.to_vec()).map(task)).await?;
                    }
                }
            }
            Any::Ok(())
        };
        self.runtime.block_on(push)
    }

    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        if self.is_detached {
            return self.watch.seen.wait(count);
        }
        let all = async {
            while self.watch.seen.len() < count {
                self.watch.more.notified().await;
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await })?;
        Ok(self.watch.seen.take())
    }

    fn left(&mut self) -> Any<u64> {
        let count =
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM Jobs WHERE status <> 'Done'").fetch_one(&self.pool);
        Ok(self.runtime.block_on(count)? as u64)
    }

    fn detach(&mut self) -> Any<()> {
        self.is_detached = true;
        let runtime = Arc::clone(&self.runtime);
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Ok(())
    }
}
