//! The server: its queues, its state, who may connect, and how it stops.

mod config;
mod connection;
mod figures;
pub(crate) mod protocol;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{Durability, OpenError, Queue, QueueSet};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet, block_in_place};

pub(crate) use config::Config;
use connection::Connection;
use protocol::State;

/// How long a stop waits for replies that are on their way.
const STOP_TIME: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Server {
    set: QueueSet,
    /// Written by `reload` only; `generation` tells connections that it was.
    config: std::sync::RwLock<Config>,
    generation: AtomicU64,
    /// The largest value that is read from a connection.
    value_max: AtomicUsize,
    /// One reload at a time.
    reloading: Mutex<()>,
    state: AtomicU8,
    stop: watch::Sender<bool>,
    started: Instant,
    counters: Counters,
}

#[derive(Debug, Default)]
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

/// A server that serves.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    /// Where it listens: of use when the port was left to the system.
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    accepting: JoinHandle<()>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Running {
    /// Opens the set, binds the addresses, serves. Needs a runtime of several threads.
    pub(crate) async fn start(config: Config) -> Result<Running, AnyError> {
        let mut builder = QueueSet::builder();
        if let Some(bytes) = config.max_disk_bytes {
            builder = builder.max_disk_bytes(bytes);
        }
        let set = builder.open(&config.data)?;
        let listener = TcpListener::bind(config.listen).await?;
        let pages = match config.metrics {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let server = Arc::new(Server {
            set,
            value_max: AtomicUsize::new(config.value_max()),
            config: std::sync::RwLock::new(config),
            generation: AtomicU64::new(0),
            reloading: Mutex::new(()),
            state: AtomicU8::new(State::Up as u8),
            stop: watch::Sender::new(false),
            started: Instant::now(),
            counters: Counters::default(),
        });
        // Wrong options and damage are told now for the queues that the file names, at their first use for the others.
        let named: Vec<String> = server.config(|config| config.named().map(str::to_owned).collect());
        block_in_place(|| named.iter().try_for_each(|name| server.queue(name, true).map(drop)))?;
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
        look(&self.config.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            n if n == State::Quiescent as u8 => State::Quiescent,
            n if n == State::ReadOnly as u8 => State::ReadOnly,
            _ => State::Up,
        }
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What a name on the wire stands for, with the options that the file gives it. Blocks for the device where the queue is
    /// created or recovered.
    fn queue(&self, name: &str, create: bool) -> Result<Option<Queue>, OpenError> {
        let options = self.config(|config| config.options(name));
        let queue = match self.set.get_queue(name)? {
            Some(queue) => queue,
            None if create => self.set.queue_with(name, options.clone())?,
            None => return Ok(None),
        };
        if queue.options() != options {
            queue.set_options(options)?;
        }
        Ok(Some(queue))
    }

    /// Clears the queues; the others too where one cannot be.
    fn clear(&self, names: &[String]) -> Result<(), kestrel_core::Error> {
        let mut result = Ok(0);
        for name in names {
            let queue = self.queue(name, false);
            result = result.and(queue.map_err(Into::into).and_then(|queue| queue.map_or(Ok(0), |queue| queue.clear())));
        }
        result.map(|_| ())
    }

    fn discard_expired(&self, names: &[String]) -> Result<u64, kestrel_core::Error> {
        let mut gone = 0;
        for name in names {
            if let Some(queue) = self.queue(name, false)? {
                gone += queue.discard_expired(usize::MAX)?;
            }
        }
        Ok(gone)
    }

    /// Reads the file again and puts what it says in force for all queues; the first error is answered, and the other queues
    /// have the new options all the same.
    pub(crate) async fn reload(&self) -> Result<(), String> {
        let _one = self.reloading.lock().await;
        block_in_place(|| {
            let config = self.config(Config::reread)?;
            self.value_max.store(config.value_max(), Ordering::Relaxed);
            *self.config.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = config;
            self.generation.fetch_add(1, Ordering::Release);
            let told = |name: &String| self.queue(name, false).err().map(|error| format!("queue {name:?}: {error}"));
            let wrong = self.set.names().iter().filter_map(told).reduce(|first, _| first);
            wrong.map_or(Ok(()), Err)
        })
    }
}

/// The queues that a connection uses, so that a request need not ask the set for its queue.
#[derive(Debug, Default)]
struct Queues {
    known: HashMap<String, Known>,
    generation: u64,
}

#[derive(Debug)]
struct Known {
    queue: Queue,
    /// A put is answered once it is durable.
    syncs: bool,
}

/// More queues than this are not remembered by one connection.
const KNOWN_MAX: usize = 64;

impl Queues {
    fn get(&mut self, server: &Server, name: &str, create: bool) -> Result<Option<&Known>, OpenError> {
        let generation = server.generation.load(Ordering::Acquire);
        if self.generation != generation || self.known.len() > KNOWN_MAX {
            (self.known, self.generation) = (HashMap::new(), generation);
        }
        if !self.known.contains_key(name) {
            let Some(queue) = block_in_place(|| server.queue(name, create))? else {
                return Ok(None);
            };
            let syncs = queue.options().durability == Durability::Sync;
            self.known.insert(name.to_owned(), Known { queue, syncs });
        }
        Ok(self.known.get(name))
    }

    /// The queue was deleted; what has its name now is another one.
    fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept(server: Arc<Server>, listener: TcpListener, pages: Option<TcpListener>) {
    let mut stop = server.stop.subscribe();
    let mut connections = JoinSet::new();
    let most = server.config(|config| config.max_connections);
    let pages = tokio::spawn(figures::serve(Arc::clone(&server), pages));
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
    pages.abort();
    let _ = tokio::time::timeout(STOP_TIME, async { while connections.join_next().await.is_some() {} }).await;
    // Who has not ended by now, because its client does not read, is dropped with all that it holds open.
    connections.shutdown().await;
}
