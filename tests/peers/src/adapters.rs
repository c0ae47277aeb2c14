//! One small adapter for each queue: open, put, take one for good. Settings are those that its own documentation shows for a
//! queue; what a sync costs is not measured here, so none is asked for where the default does without.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

type Any<T> = Result<T, Box<dyn std::error::Error>>;

pub trait Peer {
    fn put(&mut self, payload: &[u8]) -> Any<()>;
    /// Takes the oldest item, for good.
    fn take(&mut self) -> Any<Option<Vec<u8>>>;
}

/// A queue of the table.
pub struct Row {
    pub name: &'static str,
    /// The package whose version is told.
    package: &'static str,
    /// Whether it can be asked to sync at each put.
    pub syncs: bool,
    /// Whether what is taken stays taken in the next process. Where nothing is remembered, puts alone are judged.
    pub remembers: bool,
}

impl Row {
    /// As the lock file has it.
    pub fn version(&self) -> String {
        let lock = include_str!("../Cargo.lock");
        let begin = format!("name = \"{}\"\nversion = \"", self.package);
        let version = lock.split_once(&begin).and_then(|(_, rest)| rest.split('"').next());
        match (self.name, version) {
            ("kestrel-core", _) => "this tree".into(),
            ("sqlite", Some(version)) => format!("{} by rusqlite {version}", rusqlite::version()),
            (_, version) => version.unwrap_or("unknown").into(),
        }
    }
}

const fn row(name: &'static str, package: &'static str, syncs: bool) -> Row {
    Row { name, package, syncs, remembers: true }
}

pub const ROWS: &[Row] = &[
    row("kestrel-core", "kestrel-core", true),
    row("queue-file", "queue-file", true),
    row("yaque", "yaque", false),
    row("walrus-rust", "walrus-rust", true),
    row("fjall", "fjall", true),
    row("sqlite", "rusqlite", true),
    Row { remembers: false, ..row("okaywal", "okaywal", true) },
];

/// With `synced`, each put is on the device when it returns, as far as the queue says so; else as its default is.
pub fn open(name: &str, dir: &Path, synced: bool) -> Any<Box<dyn Peer>> {
    Ok(match name {
        "kestrel-core" => Box::new(Ours::open(dir, synced)?),
        "queue-file" => {
            let mut file = queue_file::QueueFile::open(dir.join("queue"))?;
            if synced {
                file.set_sync_writes(true);
            }
            Box::new(file)
        }
        "yaque" => Box::new(Yaque::open(dir)?),
        "walrus-rust" => Box::new(Walrus::open(dir, synced)?),
        "fjall" => Box::new(Fjall::open(dir, synced)?),
        "sqlite" => Box::new(Sqlite::open(dir, synced)?),
        "okaywal" => Box::new(Okaywal::open(dir)?),
        other => return Err(format!("no queue of the name {other}").into()),
    })
}

struct Ours(kestrel_core::Queue, #[allow(dead_code)] kestrel_core::QueueSet);

impl Ours {
    fn open(dir: &Path, synced: bool) -> Any<Ours> {
        let durability = if synced { kestrel_core::Durability::Sync } else { kestrel_core::Durability::Os };
        let options = kestrel_core::QueueOptions::default().durability(durability);
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
    fn open(dir: &Path, synced: bool) -> Any<Walrus> {
        // SAFETY: before there are threads.
        unsafe {
            std::env::set_var("WALRUS_DATA_DIR", dir.join("queue"));
            std::env::set_var("WALRUS_QUIET", "1");
        }
        let reads = walrus_rust::ReadConsistency::StrictlyAtOnce;
        Ok(Walrus(match synced {
            true => walrus_rust::Walrus::with_consistency_and_schedule(reads, walrus_rust::FsyncSchedule::SyncEach)?,
            false => walrus_rust::Walrus::with_consistency(reads)?,
        }))
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
    database: fjall::Database,
    items: fjall::Keyspace,
    next: u64,
    synced: bool,
}

impl Fjall {
    fn open(dir: &Path, synced: bool) -> Any<Fjall> {
        let database = fjall::Database::builder(dir.join("queue")).open()?;
        let items = database.keyspace("q", fjall::KeyspaceCreateOptions::default)?;
        let last = items.last_key_value().map(fjall::Guard::key).transpose()?;
        let next = last.and_then(|key| key[..].try_into().ok().map(u64::from_be_bytes)).map_or(0, |last| last + 1);
        Ok(Fjall { database, items, next, synced })
    }
}

impl Peer for Fjall {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.items.insert(self.next.to_be_bytes(), payload)?;
        self.next += 1;
        if self.synced {
            self.database.persist(fjall::PersistMode::SyncAll)?;
        }
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
    fn open(dir: &Path, synced: bool) -> Any<Sqlite> {
        let connection = rusqlite::Connection::open(dir.join("queue"))?;
        let level = if synced { "FULL" } else { "NORMAL" };
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {level};
             CREATE TABLE IF NOT EXISTS q (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL)",
        ))?;
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

/// A log that always syncs and has no consumer. What it recovers, and what was put since, is given out in order, and nothing of
/// that is remembered; it is not told to checkpoint, so that all stays in the log.
struct Okaywal {
    log: okaywal::WriteAheadLog,
    items: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Recovered(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl okaywal::LogManager for Recovered {
    fn recover(&mut self, entry: &mut okaywal::Entry<'_>) -> io::Result<()> {
        // `None`: an entry that was not committed.
        if let Some(chunks) = entry.read_all_chunks()? {
            self.0.lock().map_err(|_| io::Error::other("a panic"))?.extend(chunks);
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: okaywal::EntryId,
        _: &mut okaywal::SegmentReader,
        _: &okaywal::WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

impl Okaywal {
    fn open(dir: &Path) -> Any<Okaywal> {
        let found = Arc::<Mutex<VecDeque<Vec<u8>>>>::default();
        let log = okaywal::Configuration::default_for(dir.join("log")).checkpoint_after_bytes(u64::MAX);
        let log = log.open(Recovered(Arc::clone(&found)))?;
        let items = std::mem::take(&mut *found.lock().map_err(|_| "a panic")?);
        Ok(Okaywal { log, items })
    }
}

impl Peer for Okaywal {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        let mut entry = self.log.begin_entry()?;
        entry.write_chunk(payload)?;
        entry.commit()?;
        Ok(())
    }

    fn take(&mut self) -> Any<Option<Vec<u8>>> {
        Ok(self.items.pop_front())
    }
}
