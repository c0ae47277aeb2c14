//! One small adapter for each queue: open, put, take one for good. Settings are those that its own documentation shows for a
//! queue; what a sync costs is not measured here, so none is asked for where the default does without.

use std::path::Path;

type Any<T> = Result<T, Box<dyn std::error::Error>>;

pub trait Peer {
    fn put(&mut self, payload: &[u8]) -> Any<()>;
    /// Takes the oldest item, for good.
    fn take(&mut self) -> Any<Option<Vec<u8>>>;
}

/// Name as in the table, and the version that the manifest pins.
pub const NAMES: &[(&str, &str)] = &[
    ("kestrel-core", "this tree"),
    ("queue-file", "2.0.0"),
    ("yaque", "0.6.6"),
    ("walrus-rust", "0.2.0"),
    ("fjall", "3.1.13"),
    ("sqlite", "rusqlite 0.41.1"),
];

pub fn open(name: &str, dir: &Path) -> Any<Box<dyn Peer>> {
    Ok(match name {
        "kestrel-core" => Box::new(Ours::open(dir)?),
        "queue-file" => Box::new(queue_file::QueueFile::open(dir.join("queue"))?),
        "yaque" => Box::new(Yaque::open(dir)?),
        "walrus-rust" => Box::new(Walrus::open(dir)?),
        "fjall" => Box::new(Fjall::open(dir)?),
        "sqlite" => Box::new(Sqlite::open(dir)?),
        other => return Err(format!("no queue of the name {other}").into()),
    })
}

struct Ours(kestrel_core::Queue, #[allow(dead_code)] kestrel_core::QueueSet);

impl Ours {
    fn open(dir: &Path) -> Any<Ours> {
        let options = kestrel_core::QueueOptions::default().durability(kestrel_core::Durability::Os);
        let set = kestrel_core::QueueSet::builder().defaults(options).open(dir.join("set"))?;
        Ok(Ours(set.queue("q")?, set))
    }
}

impl Peer for Ours {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.0.put(payload).map(drop)?)
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        Ok(self.0.try_get()?.map(|item| item.data().to_vec()))
    }
}

impl Peer for queue_file::QueueFile {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.add(payload)?)
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        let item = self.peek()?;
        if item.is_some() {
            self.remove()?;
        }
        Ok(item.map(|item| item.to_vec()))
    }
}

struct Yaque(yaque::Sender, yaque::Receiver);

impl Yaque {
    fn open(dir: &Path) -> Any<Yaque> {
        let base = dir.join("queue");
        if base.exists() {
            // What its documentation asks for after a process died.
            yaque::recovery::recover(&base)?;
        }
        let (sender, receiver) = yaque::channel(&base)?;
        Ok(Yaque(sender, receiver))
    }
}

impl Peer for Yaque {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.0.try_send(payload).map_err(|error| format!("{error:?}").into())
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        match self.1.try_recv() {
            Ok(guard) => {
                let item = guard.to_vec();
                guard.commit()?;
                Ok(Some(item))
            }
            Err(yaque::TryRecvError::QueueEmpty) => Ok(None),
            Err(error) => Err(format!("{error:?}").into()),
        }
    }
}

struct Walrus(walrus_rust::Walrus);

impl Walrus {
    fn open(dir: &Path) -> Any<Walrus> {
        // SAFETY: before there are threads.
        unsafe {
            std::env::set_var("WALRUS_DATA_DIR", dir.join("queue"));
            std::env::set_var("WALRUS_QUIET", "1");
        }
        Ok(Walrus(walrus_rust::Walrus::with_consistency(walrus_rust::ReadConsistency::StrictlyAtOnce)?))
    }
}

impl Peer for Walrus {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.0.append_for_topic("q", payload)?)
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        Ok(self.0.read_next("q", true)?.map(|entry| entry.data))
    }
}

struct Fjall {
    _database: fjall::Database,
    items: fjall::Keyspace,
    next: u64,
}

impl Fjall {
    fn open(dir: &Path) -> Any<Fjall> {
        let database = fjall::Database::builder(dir.join("queue")).open()?;
        let items = database.keyspace("q", fjall::KeyspaceCreateOptions::default)?;
        let last = items.last_key_value().map(fjall::Guard::key).transpose()?;
        let next = last.and_then(|key| key[..].try_into().ok().map(u64::from_be_bytes)).map_or(0, |last| last + 1);
        Ok(Fjall { _database: database, items, next })
    }
}

impl Peer for Fjall {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.items.insert(self.next.to_be_bytes(), payload)?;
        self.next += 1;
        Ok(())
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        let Some(first) = self.items.first_key_value() else { return Ok(None) };
        let (key, value) = first.into_inner()?;
        self.items.remove(key)?;
        Ok(Some(value.to_vec()))
    }
}

struct Sqlite(rusqlite::Connection);

impl Sqlite {
    fn open(dir: &Path) -> Any<Sqlite> {
        let connection = rusqlite::Connection::open(dir.join("queue"))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS q (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL)",
        )?;
        Ok(Sqlite(connection))
    }
}

impl Peer for Sqlite {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        Ok(self.0.execute("INSERT INTO q (data) VALUES (?1)", [payload]).map(drop)?)
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        let sql = "DELETE FROM q WHERE id = (SELECT min(id) FROM q) RETURNING data";
        match self.0.query_row(sql, [], |row| row.get(0)) {
            Ok(data) => Ok(Some(data)),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
