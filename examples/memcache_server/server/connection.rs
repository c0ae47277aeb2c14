//! One connection: its requests in order, its open reads by queue, its replies in batches.
//!
//! All requests that have arrived are carried out before their replies are written at once. Before that, the puts among them
//! that promise it are made durable, by one sync as a rule; after that, the items that plain gets took are closed. So an item
//! is given back when its reply could not be written.

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kestrel_core::{
    AliasPutError, CloseError, Durability, Error, GetError, Item, ItemId, OpenError, OpenItem, PutError, PutOptions,
    Queue, State,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use super::protocol::{Key, Parser, Request, Step};
use super::{AnyError, Server, figures, stopped};

/// Replies are written when they are that long, whatever else has arrived: the bound of a connection's memory, together with
/// the largest item.
const OUT_MAX: usize = 256 << 10;
/// More queues than this are not remembered.
const KNOWN_MAX: usize = 1024;
/// The longest wait, so that no sum of times overflows: 1,000 years.
const WAIT_MAX: Duration = Duration::from_secs(1000 * 365 * 86_400);
/// How long, and for how many bytes, a connection that is being closed listens on, so that its last reply is not lost.
const LINGER: (Duration, u64) = (Duration::from_millis(500), 1 << 20);

pub(super) struct Connection {
    server: Arc<Server>,
    stream: TcpStream,
    stop: watch::Receiver<bool>,
    idle: Duration,
    /// Open reads, oldest first.
    open: HashMap<String, VecDeque<OpenItem>>,
    out: Vec<u8>,
    /// The connection ends with the answer to this request.
    leaves: bool,
    /// Puts that `out` calls stored and that are not known to be durable.
    unsynced: Vec<(Queue, ItemId)>,
    /// Taken by plain gets, with the reply in `out`.
    taken: Vec<OpenItem>,
}

/// The version of Kestrel whose dialect this is. libmemcached refuses a server whose version begins with 0, as the crate's does;
/// that one is in `stats`.
const VERSION: &str = "VERSION 2.4.7";
const TOO_LARGE: &str = "SERVER_ERROR object too large for cache";

/// The line that a request is answered by, or nothing, behind what it has written into `out` itself. An error is told to the
/// client, unless it is that the client has gone.
type Answer = Result<&'static str, AnyError>;

impl Connection {
    pub(super) fn new(server: Arc<Server>, stream: TcpStream) -> Connection {
        let idle_ms = server.config(|config| config.idle_timeout_ms);
        Connection {
            stop: server.stop.subscribe(),
            idle: if idle_ms == 0 { WAIT_MAX } else { Duration::from_millis(idle_ms) },
            server,
            stream,
            open: HashMap::new(),
            out: Vec::new(),
            leaves: false,
            unsynced: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// Serves until the client leaves, breaks the protocol or is idle for too long, or the server stops. What is open then
    /// goes back to its queue.
    pub(super) async fn run(mut self) {
        if self.serve().await.is_ok() {
            self.linger().await;
        }
    }

    async fn serve(&mut self) -> Result<(), AnyError> {
        let mut parser = Parser::new(0);
        let mut input = Vec::new();
        loop {
            parser.value_max = self.server.config(|config| config.value_max);
            let mut used = 0;
            while !self.leaves {
                let (quiet, answer) = match parser.next(&input[used..]) {
                    Step::More => break,
                    Step::Skip(bytes) => {
                        used += bytes;
                        continue;
                    }
                    Step::Request(request, quiet, bytes) => {
                        used += bytes;
                        (quiet, self.carry_out(request).await)
                    }
                    Step::Broken(reply) => (false, self.leave(reply)),
                };
                match answer {
                    Ok(line) if !quiet || self.leaves => self.say(line),
                    Ok(_) => {}
                    Err(error) if error.is::<io::Error>() => return Err(error),
                    Err(error) => {
                        self.leaves = is_refusal(&error);
                        if self.leaves || !quiet {
                            self.say(&format!("SERVER_ERROR {}", error.to_string().replace(['\r', '\n'], " ")));
                        }
                    }
                }
                if self.out.len() > OUT_MAX {
                    self.flush().await?;
                }
            }
            self.flush().await?;
            if self.leaves || *self.stop.borrow() {
                return Ok(());
            }
            // Grows with what arrives, not with what a line announces.
            input.drain(..used);
            input.shrink_to(OUT_MAX);
            input.reserve(input.len().max(16 << 10));
            let read = tokio::select! {
                biased;
                read = self.stream.read_buf(&mut input) => read?,
                () = stopped(&mut self.stop) => return Ok(()),
                () = sleep(self.idle) => return Ok(()),
            };
            if read == 0 {
                return Ok(());
            }
            count(&self.server.counters.bytes_read, read);
        }
    }

    async fn carry_out(&mut self, request: Request<'_>) -> Answer {
        match request {
            Request::Set(queue, options, data) => self.set(queue, &options, data),
            Request::TooLarge => Ok(TOO_LARGE),
            Request::Get(keys, with_id) => self.get(&keys, with_id).await,
            Request::Monitor(queue, seconds, most) => self.monitor(queue, seconds, most).await,
            Request::Confirm(queue, count) => self.confirm(queue, count),
            Request::Other(command, words) if command == "quit" && words.is_empty() => self.leave(""),
            Request::Other(command, words) => {
                self.flush().await?;
                block_in_place(|| self.other(&command, &words))
            }
            Request::Binary(opcode, opaque) => {
                // A reply of that protocol: "unknown command".
                self.out.extend([&[0x81, opcode, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 0][..], &opaque, &[0; 8]].concat());
                self.leave("")
            }
        }
    }

    /// Commands that wait for nothing but the disk.
    fn other(&mut self, command: &str, words: &[&str]) -> Answer {
        let server = Arc::clone(&self.server);
        match (command, words) {
            ("delete", [queue] | [queue, "0"]) => match server.set.delete(queue) {
                // Kestrel ignores it for an alias.
                Ok(_) | Err(Error::Alias { .. }) => Ok("DELETED"),
                Err(error) => Err(error.into()),
            },
            ("flush", [queue]) => Ok(server.sum(&[(*queue).to_owned()], Queue::clear).map(|_| "END")?),
            ("flush_all", [] | ["0"]) => {
                server.sum(&server.set.names(), Queue::clear)?;
                let kestrel = server.config(|config| config.kestrel_flush_all);
                Ok(if kestrel { "Flushed all queues." } else { "OK" })
            }
            ("flush_expired", [_]) | ("flush_all_expired", []) => {
                let names = words.first().map_or_else(|| server.set.names(), |queue| vec![(*queue).to_owned()]);
                let gone = server.sum(&names, |queue| queue.discard_expired(usize::MAX))?;
                self.tell(gone, "")
            }
            // Of memcached's kinds of statistics there is one.
            ("stats", _) => self.tell(figures::stats(&server), "END"),
            ("dump_stats", queues) => self.tell(figures::dump_stats(&server, queues), "END"),
            ("dump_config", queues) => self.tell(figures::dump_config(&server, queues), "END"),
            ("reload", []) => Ok(server.reload().map(|()| "Reloaded config.")?),
            ("status", []) => self.tell(kestrels(server.set.state()), ""),
            ("status", [word]) => {
                let mut all = [State::Up, State::ReadOnly, State::Quiescent].into_iter();
                match all.find(|state| kestrels(*state).eq_ignore_ascii_case(word)) {
                    Some(state) => Ok(server.set.set_state(state).map(|()| "END")?),
                    None => self.leave("CLIENT_ERROR unknown status"),
                }
            }
            ("version", []) => Ok(VERSION),
            // A health check of memcached's meta protocol.
            ("mn", []) => Ok("MN"),
            ("shutdown", []) => {
                server.stop();
                self.leave("")
            }
            _ => self.leave("CLIENT_ERROR unknown command, or not with these words"),
        }
    }

    /// What `act` comes to in the queue of this name; in its successor, if it was deleted since it came to be known.
    /// `None`: there is none, or the name is an alias.
    fn at<T, E: StdError + Send + Sync + 'static>(
        &self,
        name: &str,
        create: bool,
        is_closed: fn(&E) -> bool,
        act: impl Fn(&Queue) -> Result<T, E>,
    ) -> Result<Option<T>, AnyError> {
        let known = self.server.known.read().get(name).cloned();
        match known.as_ref().map(&act) {
            Some(Err(error)) if is_closed(&error) => {}
            Some(done) => return Ok(Some(done?)),
            None => {}
        }
        let queue = match block_in_place(|| self.server.queue(name, create)) {
            Ok(Some(queue)) => queue,
            Ok(None) | Err(OpenError::Alias { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let done = act(&queue)?;
        let mut known = self.server.known.write();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), queue);
        Ok(Some(done))
    }

    fn set(&mut self, name: &str, options: &PutOptions, data: &[u8]) -> Answer {
        count(&self.server.counters.cmd_set, 1);
        // The key of a get ends at a slash: nobody could get it.
        if name.contains('/') {
            return Ok("CLIENT_ERROR a queue's name has no slash");
        }
        let append = |queue: &Queue| {
            let syncs = queue.options().durability == Durability::Sync;
            queue.append_with(data, options).map(|id| syncs.then(|| (queue.clone(), id)))
        };
        let mut put = self.at(name, true, |error| matches!(error, PutError::Closed), append);
        if let (Ok(None), Some(alias)) = (&put, self.server.set.get_alias(name)) {
            put = match block_in_place(|| alias.put_with(data, options)) {
                Ok(_) => Ok(Some(None)),
                Err(AliasPutError::Put { source, .. }) => Err(source.into()),
                Err(error) => Err(error.into()),
            };
        }
        match put {
            Ok(put) => self.unsynced.extend(put.ok_or(PutError::Closed)?),
            Err(error) => match error.downcast_ref() {
                Some(PutError::Full { .. }) => return Ok("NOT_STORED"),
                Some(PutError::TooLarge { .. }) => return Ok(TOO_LARGE),
                _ => return Err(error),
            },
        }
        Ok("STORED")
    }

    async fn get(&mut self, keys: &[Key<'_>], with_id: bool) -> Answer {
        if !self.unsynced.is_empty() {
            // What this client has put before is there for it to get.
            self.flush().await?;
        }
        let (bare, open_max) = self.server.config(|config| (config.bare_keys, config.max_open_reads));
        for key in keys {
            let server = Arc::clone(&self.server);
            count(if key.peek { &server.counters.cmd_peek } else { &server.counters.cmd_get }, 1);
            if key.close || key.abort {
                self.end_one(key.queue, key.close)?;
                if !key.open {
                    continue;
                }
            }
            // A plain get has an end of its own, so that nothing may be open beside it.
            if !key.peek && self.opened(key.queue) >= if key.open { open_max } else { 1 } {
                return self.leave("ERROR too many open reads");
            }
            let echo = if bare { key.queue } else { key.text };
            let found = if key.peek {
                let item = self.at(key.queue, false, |error| matches!(error, GetError::Closed), Queue::peek)?;
                item.flatten().map(|item| value(&mut self.out, echo, &item, with_id))
            } else {
                let item = self.take(key.queue, Duration::from_millis(key.wait_ms)).await?;
                item.map(|item| {
                    value(&mut self.out, echo, &item, with_id);
                    match key.open {
                        true => self.open.entry(key.queue.to_owned()).or_default().push_back(item),
                        false => self.taken.push(item),
                    }
                })
            };
            count(if found.is_some() { &server.counters.get_hits } else { &server.counters.get_misses }, 1);
            if self.out.len() > OUT_MAX {
                self.flush().await?;
            }
        }
        Ok("END")
    }

    /// Opens the next item, waiting for it so long. `None` also if the queue is deleted or the server stops.
    async fn take(&mut self, name: &str, wait: Duration) -> Result<Option<OpenItem>, AnyError> {
        // A get that does not wait creates nothing.
        let open = |queue: &Queue| Ok((queue.try_open()?, queue.clone()));
        let queue = match self.at(name, !wait.is_zero(), |error| matches!(error, GetError::Closed), open)? {
            Some((None, queue)) if !wait.is_zero() => queue,
            found => return Ok(found.and_then(|(item, _)| item)),
        };
        self.flush().await?;
        tokio::select! {
            biased;
            // A client that has left must not be given an item.
            gone = left(&self.stream) => Err(gone.into()),
            item = queue.open_async() => match item {
                Err(GetError::Closed) => Ok(None),
                item => Ok(Some(item?)),
            },
            () = sleep(wait.min(WAIT_MAX)) => Ok(None),
            () = stopped(&mut self.stop) => Ok(None),
        }
    }

    fn opened(&self, queue: &str) -> usize {
        self.open.get(queue).map_or(0, VecDeque::len)
    }

    /// Ends the oldest open read of a queue; there may be none.
    fn end_one(&mut self, queue: &str, close: bool) -> Result<(), CloseError> {
        let Some(open) = self.open.get_mut(queue) else {
            return Ok(());
        };
        let item = open.pop_front();
        if open.is_empty() {
            self.open.remove(queue);
        }
        match item {
            Some(item) if close => item.close(),
            // Dropped, which gives it back.
            _ => Ok(()),
        }
    }

    async fn monitor(&mut self, queue: &str, seconds: u64, most: u64) -> Answer {
        let end = Instant::now() + Duration::from_secs(seconds).min(WAIT_MAX);
        let open_max = self.server.config(|config| config.max_open_reads);
        for _ in 0..most.min(open_max.saturating_sub(self.opened(queue)) as u64) {
            let Some(item) = self.take(queue, end.saturating_duration_since(Instant::now())).await? else {
                break;
            };
            value(&mut self.out, queue, &item, false);
            self.open.entry(queue.to_owned()).or_default().push_back(item);
            if self.out.len() > OUT_MAX {
                self.flush().await?;
            }
        }
        Ok("END")
    }

    fn confirm(&mut self, queue: &str, count: u64) -> Answer {
        if (self.opened(queue) as u64) < count {
            return Ok("ERROR fewer reads are open");
        }
        // All of them, also after one that could not be closed.
        (0..count).map(|_| self.end_one(queue, true)).fold(Ok(()), Result::and)?;
        Ok("END")
    }

    fn say(&mut self, line: &str) {
        if !line.is_empty() {
            self.out.extend_from_slice(line.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn tell(&mut self, text: impl Display, line: &'static str) -> Answer {
        self.say(text.to_string().trim_end());
        Ok(line)
    }

    fn leave(&mut self, line: &'static str) -> Answer {
        self.leaves = true;
        Ok(line)
    }

    /// Makes durable what is called stored, writes all replies, closes what they gave away.
    async fn flush(&mut self) -> Result<(), AnyError> {
        // The last first: with it all before it are durable.
        for (queue, id) in std::mem::take(&mut self.unsynced).into_iter().rev() {
            if let Err(error) = queue.synced_async(id).await {
                // Of what has been answered since the last flush nothing can be told any more.
                self.out = format!("SERVER_ERROR {error}\r\n").into_bytes();
                self.stream.write_all(&self.out).await?;
                return Err(io::Error::other(error).into());
            }
        }
        if !self.out.is_empty() {
            tokio::select! {
                biased;
                written = self.stream.write_all(&self.out) => written?,
                // The client does not read.
                () = sleep(self.idle) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
            count(&self.server.counters.bytes_written, self.out.len());
            self.out.clear();
            self.out.shrink_to(2 * OUT_MAX);
        }
        for item in self.taken.drain(..) {
            // One whose lease has ended, or whose queue is gone, is nobody's here any more.
            let _ = item.close();
        }
        Ok(())
    }

    /// Closes so that the client gets what was written: with unread bytes left, the system would throw it away.
    async fn linger(mut self) {
        self.open.clear();
        let ended = async {
            self.stream.shutdown().await?;
            tokio::io::copy(&mut self.stream.take(LINGER.1), &mut tokio::io::sink()).await
        };
        let _ = timeout(LINGER.0, ended).await;
    }
}

fn value(out: &mut Vec<u8>, key: &str, item: &Item, with_id: bool) {
    out.reserve(key.len() + item.data().len() + 64);
    let id = if with_id { format!(" {}", item.id()) } else { String::new() };
    // Writing into memory does not fail.
    let _ = write!(out, "VALUE {key} {} {}{id}\r\n", item.flags(), item.data().len());
    out.extend_from_slice(item.data());
    out.extend_from_slice(b"\r\n");
}

/// Whether the state of the set does not allow it; Kestrel disconnects then.
fn is_refusal(error: &AnyError) -> bool {
    matches!(error.downcast_ref(), Some(OpenError::State { .. }))
        || matches!(error.downcast_ref(), Some(PutError::State { .. }))
        || matches!(error.downcast_ref(), Some(GetError::State { .. }))
        || matches!(error.downcast_ref(), Some(Error::State { .. } | Error::Put(PutError::State { .. })))
}

/// Kestrel's word for a state.
fn kestrels(state: State) -> String {
    state.to_string().to_uppercase().replace('-', "")
}

/// Until the client has left. Where it has sent more than the request that is being carried out, that is seen by looking again.
async fn left(stream: &TcpStream) -> io::Error {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => sleep(Duration::from_millis(250)).await,
            Ok(_) => return io::ErrorKind::UnexpectedEof.into(),
            Err(error) => return error,
        }
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
