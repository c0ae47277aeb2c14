//! The server: its queues, its state, who may connect, and how it stops.

mod config;
mod connection;
mod figures;
pub(crate) mod protocol;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{Error, OpenError, Queue, QueueSet};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet, block_in_place};

pub(crate) use config::Config;
use connection::Connection;

/// How long a stop waits for replies that are on their way.
const STOP_TIME: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Server {
    set: QueueSet,
    /// Queues that requests have used, so that a request need not ask the set, which may block.
    known: RwLock<HashMap<String, Queue>>,
    /// Written by `reload` only.
    config: RwLock<Config>,
    reloading: Mutex<()>,
    stop: watch::Sender<bool>,
    started: Instant,
    counters: Counters,
}

/// Shown by these names.
#[derive(Debug, Default, Serialize)]
struct Counters {
    curr_connections: AtomicU64,
    total_connections: AtomicU64,
    refused_connections: AtomicU64,
    cmd_get: AtomicU64,
    cmd_set: AtomicU64,
    cmd_peek: AtomicU64,
    get_hits: AtomicU64,
    get_misses: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    /// Where it listens: of use when the port was left to the system.
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    accepting: JoinHandle<()>,
}

pub(crate) type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Running {
    /// Opens the set, binds the addresses, serves. Needs a runtime of several threads.
    pub(crate) async fn start(config: Config) -> Result<Running, AnyError> {
        let builder = QueueSet::builder().defaults(config.defaults.clone());
        let set = builder.max_disk_bytes(config.max_disk_bytes.unwrap_or(u64::MAX)).open(&config.data)?;
        let listener = TcpListener::bind(config.listen).await?;
        let pages = match config.metrics {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let server = Arc::new(Server {
            set,
            known: RwLock::default(),
            config: RwLock::new(config),
            reloading: Mutex::new(()),
            stop: watch::Sender::new(false),
            started: Instant::now(),
            counters: Counters::default(),
        });
        // Wrong options and damage are told now for the queues that the file names, at their first use for the others.
        let named: Vec<String> = server.config(|config| config.queues.keys().cloned().collect());
        block_in_place(|| {
            server.name_aliases().and_then(|()| {
                named.iter().try_for_each(|name| server.queue(name, true).map(drop).map_err(Error::from))
            })
        })?;
        let address = listener.local_addr()?;
        let metrics = pages.as_ref().map(TcpListener::local_addr).transpose()?;
        let accepting = tokio::spawn(accept(Arc::clone(&server), listener, pages));
        Ok(Running { server, address, metrics, accepting })
    }

    /// Serves until somebody says stop; then ends the connections, which gives back what they hold open, and closes the set.
    pub(crate) async fn finish(self) -> Result<(), AnyError> {
        self.accepting.await?;
        Ok(block_in_place(|| self.server.set.clone().close())?)
    }
}

impl Server {
    /// Ends the server; everybody who waits gets `END`.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn config<T>(&self, look: impl FnOnce(&Config) -> T) -> T {
        look(&self.config.read())
    }

    /// What a name on the wire stands for, with the options that the file gives it. Blocks for the device where the queue is
    /// created or recovered.
    fn queue(&self, name: &str, create: bool) -> Result<Option<Queue>, OpenError> {
        let own = self.config(|config| config.queues.get(name).cloned());
        let found = match (self.set.get_queue(name)?, &own) {
            (None, _) if !create => return Ok(None),
            (None, Some(own)) => self.set.queue_with_overrides(name, own.clone())?,
            (None, None) => self.set.queue(name)?,
            (Some(queue), _) => queue,
        };
        let own = own.unwrap_or_default();
        if found.overrides() != own {
            found.set_overrides(own)?;
        }
        Ok(Some(found))
    }

    /// Makes the aliases those of the file.
    fn name_aliases(&self) -> Result<(), Error> {
        let aliases = self.config(|config| config.aliases.clone());
        for name in self.set.aliases().iter().filter(|name| !aliases.contains_key(*name)) {
            self.set.remove_alias(name)?;
        }
        aliases.iter().try_for_each(|(name, queues)| self.set.alias(name, queues).map(drop).map_err(Error::from))
    }

    /// What `act` comes to in these queues, in sum; those that are not there, and aliases, are left out. The others have their
    /// turn also where one fails.
    fn sum(&self, names: &[String], act: impl Fn(&Queue) -> Result<u64, Error>) -> Result<u64, Error> {
        let mut sum = Ok(0);
        for name in names {
            match self.queue(name, false) {
                Ok(Some(queue)) => sum = act(&queue).and_then(|count| Ok(sum? + count)),
                Ok(None) | Err(OpenError::Alias { .. }) => {}
                Err(error) => sum = sum.and(Err(error.into())),
            }
        }
        sum
    }

    /// Reads the file again and puts what it says in force for all queues; the first error is answered, and the other queues
    /// have the new options all the same.
    pub(crate) fn reload(&self) -> Result<(), AnyError> {
        block_in_place(|| {
            let _one = self.reloading.lock();
            let config = self.config(Config::reread)?;
            self.set.set_defaults(config.defaults.clone())?;
            *self.config.write() = config;
            self.name_aliases()?;
            let wrong = |name: &String| self.queue(name, false).err().map(|error| format!("queue {name:?}: {error}"));
            let wrong = self.set.names().iter().filter_map(wrong).reduce(|first, _| first);
            wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
        })
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept(server: Arc<Server>, listener: TcpListener, pages: Option<TcpListener>) {
    let mut stop = server.stop.subscribe();
    let mut connections = JoinSet::new();
    let most = server.config(|config| config.max_connections);
    let pages = pages.map(|listener| tokio::spawn(figures::serve(Arc::clone(&server), listener)));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut stream, _)) if connections.len() >= most => {
                    server.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
                    // Into an empty buffer of the system: it does not wait.
                    let _ = stream.write_all(b"SERVER_ERROR too many connections\r\n").await;
                }
                Ok((stream, _)) => {
                    server.counters.total_connections.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.set_nodelay(true);
                    connections.spawn(Connection::new(Arc::clone(&server), stream).run());
                }
                // Out of descriptors, most likely: others will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
        server.counters.curr_connections.store(connections.len() as u64, Ordering::Relaxed);
    }
    drop(listener);
    pages.inspect(JoinHandle::abort);
    let _ = tokio::time::timeout(STOP_TIME, async { while connections.join_next().await.is_some() {} }).await;
    // Who has not ended by now, because its client does not read, is dropped with all that it holds open.
    connections.shutdown().await;
}
