//! A queue of jobs as one writes it by hand: a table, a write-ahead log, an index, three statements; a worker that sleeps until a push or the
//! next due time.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jobs_bench::{Any, Seen, Subject, Sync};
use rusqlite::{Connection, OptionalExtension};

fn main() -> ExitCode {
    jobs_bench::child(open)
}

struct Table {
    shared: Arc<(Mutex<Connection>, Condvar)>,
    seen: Seen,
    is_detached: bool,
}

fn open(dir: &Path, sync: Sync) -> Any<Box<dyn Subject>> {
    let connection = Connection::open(dir.join("jobs.db"))?;
    let level = if sync == Sync::Each { "FULL" } else { "NORMAL" };
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {level};
         CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, due INTEGER NOT NULL, running INTEGER NOT NULL DEFAULT 0,
                            attempts INTEGER NOT NULL DEFAULT 0, payload BLOB NOT NULL);
         CREATE INDEX ready ON jobs (running, due, id)",
    ))?;
    let shared = Arc::new((Mutex::new(connection), Condvar::new()));
    Ok(Box::new(Table { shared, seen: Seen::default(), is_detached: false }))
}

/// Microseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as i64)
}

/// One job, if one is due.
fn step(connection: &Connection, seen: &Seen) -> Any<bool> {
    let claimed: Option<(i64, Vec<u8>)> = connection
        .prepare_cached(
            "UPDATE jobs SET running = 1, attempts = attempts + 1
             WHERE id = (SELECT id FROM jobs WHERE running = 0 AND due <= ?1 ORDER BY due, id LIMIT 1) RETURNING id, payload",
        )?
        .query_row([now()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, payload)) = claimed else { return Ok(false) };
    seen.add(u64::from_le_bytes(payload[..].try_into()?));
    connection.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])?;
    Ok(true)
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Table {
    fn push(&mut self, numbers: Range<u64>, delay: Option<Duration>) -> Any<()> {
        let due = now() + delay.map_or(0, |delay| delay.as_micros() as i64);
        let insert = |connection: &Connection, number: u64| -> rusqlite::Result<()> {
            let mut insert = connection.prepare_cached("INSERT INTO jobs (due, payload) VALUES (?1, ?2)")?;
            insert.execute((due, number.to_le_bytes())).map(drop)
        };
        if delay.is_some() {
            let mut connection = self.lock();
            let transaction = connection.transaction()?;
            numbers.into_iter().try_for_each(|number| insert(&transaction, number))?;
            transaction.commit()?;
        } else {
            let connection = self.lock();
            numbers.into_iter().try_for_each(|number| insert(&connection, number))?;
        }
        self.shared.1.notify_one();
        Ok(())
    }

    fn run(&mut self, count: usize) -> Any<Vec<(u64, SystemTime)>> {
        if self.is_detached {
            return self.seen.wait(count);
        }
        let connection = self.lock();
        while self.seen.len() < count && step(&connection, &self.seen)? {}
        Ok(self.seen.take())
    }

    fn left(&mut self) -> Any<u64> {
        Ok(self.lock().query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, i64>(0))? as u64)
    }

    fn detach(&mut self) -> Any<()> {
        self.is_detached = true;
        let (shared, seen) = (Arc::clone(&self.shared), self.seen.clone());
        std::thread::spawn(move || -> Any<()> {
            let mut connection = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                while step(&connection, &seen)? {}
                let next: Option<i64> = connection
                    .prepare_cached("SELECT due FROM jobs WHERE running = 0 ORDER BY due LIMIT 1")?
                    .query_row([], |row| row.get(0))
                    .optional()?;
                connection = match next {
                    None => shared.1.wait(connection).unwrap_or_else(PoisonError::into_inner),
                    Some(due) => {
                        let pause = Duration::from_micros(u64::try_from(due - now()).unwrap_or(0));
                        shared.1.wait_timeout(connection, pause).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
            }
        });
        Ok(())
    }
}
