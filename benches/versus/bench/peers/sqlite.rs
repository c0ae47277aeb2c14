//! SQLite, bundled: a table, a write-ahead log, prepared statements. Synced on each commit where that is asked for.

use std::path::Path;

use rusqlite::Connection;

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, poll};

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync == Sync::Every {
        return Err("it has no periodic sync".into());
    }
    let connection = Connection::open(dir.join("queue.db"))?;
    let level = if wish.sync == Sync::Each { "FULL" } else { "NORMAL" };
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {level};
         CREATE TABLE IF NOT EXISTS q (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL)",
    ))?;
    let shared = Shared::new(Table(connection));
    Ok(Opened { put: Box::new(shared.clone()), take: Box::new(Taker(shared)) })
}

struct Table(Connection);

const INSERT: &str = "INSERT INTO q (data) VALUES (?1)";

impl Put for Table {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.0.prepare_cached(INSERT)?.execute([payload])?;
        Ok(())
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let transaction = self.0.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for payload in payloads {
                insert.execute([payload])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Err("shared behind a mutex".into())
    }
}

struct Taker(Shared<Table>);

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        poll(|| {
            let table = self.0.lock();
            let mut take = table.0.prepare_cached("DELETE FROM q WHERE id = (SELECT min(id) FROM q) RETURNING data")?;
            let mut rows = take.query([])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            see(row.get_ref(0)?.as_blob()?);
            // The statement is done only when it has been asked for all its rows.
            while rows.next()?.is_some() {}
            Ok(Some(()))
        })
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker(self.0.clone())))
    }
}
