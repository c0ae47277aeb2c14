//! One connection: its requests in order, its open reads by queue, its replies in batches.
//!
//! All requests that have arrived are carried out before their replies are written at once. Before that, the puts among them
//! that promise it are made durable, by one sync as a rule; after that, the items that plain gets took are closed. So an item
//! is given back when its reply could not be written.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kestrel_core::{CloseError, GetError, Item, ItemId, OpenItem, PutError, PutOptions, Queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use super::protocol::{Expiry, Key, Parser, Request, Set, State, Step};
use super::{AnyError, Queues, Server, figures, stopped};

/// Replies are written when they are that long, whatever else has arrived: the bound of a connection's memory, together with
/// the largest item.
const OUT_MAX: usize = 256 << 10;
/// A read asks for so many bytes.
const READ: usize = 16 << 10;
/// What is read ahead while a get waits. More stays in the system's buffers; once these are full too, a client that leaves is
/// noticed only when the wait is over.
const AHEAD_MAX: usize = 64 << 10;
/// The longest wait, so that no sum of times overflows: 1,000 years.
const WAIT_MAX: Duration = Duration::from_secs(1000 * 365 * 86_400);
/// How long, and for how many bytes, a connection that is being closed listens on, so that its last reply is not lost.
const LINGER: (Duration, usize) = (Duration::from_millis(500), 1 << 20);

pub(super) struct Connection {
    server: Arc<Server>,
    stream: TcpStream,
    stop: watch::Receiver<bool>,
    idle: Option<Duration>,
    queues: Queues,
    /// Open reads, oldest first.
    open: HashMap<String, VecDeque<OpenItem>>,
    out: Vec<u8>,
    /// Read while a get waited.
    ahead: Vec<u8>,
    /// Puts that `out` calls stored and that are not known to be durable.
    unsynced: Vec<Unsynced>,
    /// Taken by plain gets, with the reply in `out`.
    taken: Vec<OpenItem>,
}

struct Unsynced {
    queue: Queue,
    id: ItemId,
    /// Where `out` has the reply, if one was asked for.
    reply: Option<usize>,
}

/// The version of Kestrel whose dialect this is. libmemcached refuses a server whose version begins with 0, as the crate's does;
/// that one is in `stats`.
const VERSION: &str = "VERSION 2.4.7";
const STORED: &str = "STORED";
const TOO_LARGE: &str = "SERVER_ERROR object too large for cache";

/// What a request comes to. An error is told to the client, unless it is that the client has gone.
enum Answer {
    Line(&'static str),
    /// All is said.
    Done,
    /// Say this, if anything, and disconnect.
    Leave(&'static str),
}

use Answer::{Done, Leave, Line};

const REFUSED: Answer = Leave("SERVER_ERROR refused by the server's status");

impl Connection {
    pub(super) fn new(server: Arc<Server>, stream: TcpStream) -> Connection {
        Connection {
            stop: server.stop.subscribe(),
            idle: server.config(|config| config.idle_timeout()),
            server,
            stream,
            queues: Queues::default(),
            open: HashMap::new(),
            out: Vec::new(),
            ahead: Vec::new(),
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
            parser.value_max = self.server.value_max.load(Ordering::Relaxed);
            let (mut used, mut leaves) = (0, false);
            while !leaves {
                let (quiet, answer) = match parser.next(&input[used..]) {
                    Step::More => break,
                    Step::Skip(bytes) => {
                        used += bytes;
                        continue;
                    }
                    Step::Request(request, bytes) => {
                        used += bytes;
                        (request.is_quiet(), self.carry_out(request).await)
                    }
                    Step::Broken(reply) => (false, Ok(Leave(reply))),
                };
                match answer {
                    Ok(Line(line)) if !quiet => self.say(line),
                    Ok(Line(_) | Done) => {}
                    Ok(Leave(line)) => {
                        leaves = true;
                        if !line.is_empty() {
                            self.say(line);
                        }
                    }
                    Err(error) if error.is::<io::Error>() => return Err(error),
                    Err(error) if !quiet => {
                        self.say(&format!("SERVER_ERROR {}", error.to_string().replace(['\r', '\n'], " ")));
                    }
                    Err(_) => {}
                }
                if self.out.len() > OUT_MAX {
                    self.flush().await?;
                }
            }
            if leaves || *self.stop.borrow() {
                return self.flush().await;
            }
            input.drain(..used);
            if !self.ahead.is_empty() {
                input.append(&mut self.ahead);
                continue;
            }
            self.flush().await?;
            // Grows with what arrives, not with what a line announces.
            input.shrink_to(OUT_MAX);
            input.reserve(READ.max(input.len()));
            let read = tokio::select! {
                biased;
                read = self.stream.read_buf(&mut input) => read?,
                () = stopped(&mut self.stop) => return Ok(()),
                () = rest(self.idle) => return Ok(()),
            };
            if read == 0 {
                return Ok(());
            }
            count(&self.server.counters.bytes_read, read);
        }
    }

    async fn carry_out(&mut self, request: Request<'_>) -> Result<Answer, AnyError> {
        match &request {
            Request::Set(set) => return self.set(set),
            Request::Get(keys, with_id) => return self.get(keys, *with_id).await,
            _ => self.flush().await?,
        }
        let server = &self.server;
        let changes = matches!(request, Request::Delete(..) | Request::Flush(..) | Request::FlushAll(_));
        if changes && server.state() != State::Up {
            return Ok(REFUSED);
        }
        Ok(match request {
            Request::Set(_) | Request::Get(..) => Done,
            Request::TooLarge(_) => Line(TOO_LARGE),
            Request::Monitor(queue, seconds, most) => self.monitor(queue, seconds, most).await?,
            Request::Confirm(queue, count) => self.confirm(queue, count)?,
            Request::Delete(queue, _) => {
                self.queues.forget(queue);
                block_in_place(|| server.set.delete(queue))?;
                Line("DELETED")
            }
            Request::Flush(queue, _) => {
                block_in_place(|| server.clear(&[queue.to_owned()]))?;
                Line("END")
            }
            Request::FlushAll(_) => {
                block_in_place(|| server.clear(&server.set.names()))?;
                let kestrel = server.config(|config| config.kestrel_flush_all);
                Line(if kestrel { "Flushed all queues." } else { "OK" })
            }
            Request::FlushExpired(queue) => {
                let all = queue.map_or_else(|| server.set.names(), |queue| vec![queue.to_owned()]);
                let gone = block_in_place(|| server.discard_expired(&all))?;
                self.say(&gone.to_string());
                Done
            }
            Request::Stats => {
                block_in_place(|| figures::stats(server, &mut self.out));
                Line("END")
            }
            Request::DumpStats(queues) => {
                block_in_place(|| figures::dump(server, &queues, &mut self.out));
                Line("END")
            }
            Request::DumpConfig(queues) => {
                block_in_place(|| figures::dump_config(server, &queues, &mut self.out));
                Line("END")
            }
            Request::Reload => {
                server.reload().await?;
                Line("Reloaded config.")
            }
            Request::Status(None) => Line(match server.state() {
                State::Up => "UP",
                State::ReadOnly => "READONLY",
                State::Quiescent => "QUIESCENT",
            }),
            Request::Status(Some(state)) => {
                server.set_state(state);
                Line("END")
            }
            Request::Version => Line(VERSION),
            Request::Nothing => Line("MN"),
            Request::Quit => Leave(""),
            Request::Shutdown => {
                server.stop();
                Leave("")
            }
            Request::Binary(opcode, opaque) => {
                // A reply of that protocol: "unknown command".
                let mut reply = [0; 24];
                (reply[0], reply[1], reply[7]) = (0x81, opcode, 0x81);
                reply[12..16].copy_from_slice(&opaque);
                self.out.extend_from_slice(&reply);
                Leave("")
            }
        })
    }

    fn set(&mut self, set: &Set<'_>) -> Result<Answer, AnyError> {
        count(&self.server.counters.cmd_set, 1);
        if self.server.state() != State::Up {
            return Ok(REFUSED);
        }
        // The key of a get ends at a slash: nobody could get it.
        if set.queue.contains('/') {
            return Ok(Line("CLIENT_ERROR a queue's name has no slash"));
        }
        let options = put_options(set);
        // Once more if the queue has been deleted since this connection came to know it.
        for is_last in [false, true] {
            let Some(known) = self.queues.get(&self.server, set.queue, true)? else {
                break;
            };
            match known.queue.append_with(set.data, &options) {
                Err(PutError::Closed) if !is_last => self.queues.forget(set.queue),
                Err(PutError::Full { .. }) => return Ok(Line("NOT_STORED")),
                Err(PutError::TooLarge { .. }) => return Ok(Line(TOO_LARGE)),
                Err(error) => return Err(error.into()),
                Ok(id) if known.syncs => {
                    let reply = (!set.quiet).then_some(self.out.len());
                    self.unsynced.push(Unsynced { queue: known.queue.clone(), id, reply });
                    return Ok(Line(STORED));
                }
                Ok(_) => return Ok(Line(STORED)),
            }
        }
        Err(PutError::Closed.into())
    }

    async fn get(&mut self, keys: &[Key<'_>], with_id: bool) -> Result<Answer, AnyError> {
        if !self.unsynced.is_empty() {
            // What this client has put before is there for it to get.
            self.flush().await?;
        }
        let (bare, open_max) = self.server.config(|config| (config.bare_keys, config.max_open_reads));
        for key in keys {
            let counters = &self.server.counters;
            count(if key.peek { &counters.cmd_peek } else { &counters.cmd_get }, 1);
            if key.close || key.abort {
                self.end_one(key.queue, key.close)?;
                if !key.open {
                    continue;
                }
            }
            if self.server.state() == State::Quiescent {
                return Ok(REFUSED);
            }
            // A plain get has an end of its own, so that nothing may be open beside it.
            if !key.peek && self.opened(key.queue) >= if key.open { open_max } else { 1 } {
                return Ok(Leave("ERROR too many open reads"));
            }
            let echo = if bare { key.queue } else { key.text };
            let found = if key.peek {
                let known = self.queues.get(&self.server, key.queue, false)?;
                let item = known.map_or(Ok(None), |known| known.queue.peek())?;
                item.map(|item| value(&mut self.out, echo, &item, with_id))
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
            let counters = &self.server.counters;
            count(if found.is_some() { &counters.get_hits } else { &counters.get_misses }, 1);
            if self.out.len() > OUT_MAX {
                self.flush().await?;
            }
        }
        Ok(Line("END"))
    }

    /// Opens the next item, waiting for it so long. `None` also if the queue is deleted or the server stops.
    async fn take(&mut self, name: &str, wait: Duration) -> Result<Option<OpenItem>, AnyError> {
        let mut found = None;
        for is_last in [false, true] {
            // A get that does not wait creates nothing.
            let Some(known) = self.queues.get(&self.server, name, !wait.is_zero())? else {
                return Ok(None);
            };
            match known.queue.try_open() {
                Err(GetError::Closed) if !is_last => self.queues.forget(name),
                Ok(None) if !wait.is_zero() => {
                    found = Some(known.queue.clone());
                    break;
                }
                other => return Ok(other?),
            }
        }
        let Some(queue) = found else {
            return Ok(None);
        };
        let mut time = pin!(sleep(wait.min(WAIT_MAX)));
        self.flush().await?;
        let mut opening = pin!(queue.open_async());
        loop {
            tokio::select! {
                biased;
                item = &mut opening => return match item {
                    Err(GetError::Closed) => Ok(None),
                    other => Ok(Some(other?)),
                },
                read = self.stream.read_buf(&mut self.ahead), if self.ahead.len() < AHEAD_MAX => {
                    // A client that has left must not be given an item.
                    let read = read?;
                    if read == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    count(&self.server.counters.bytes_read, read);
                }
                // Nothing more is read, so that only the socket's state can tell that the client has left.
                () = sleep(Duration::from_millis(250)), if self.ahead.len() >= AHEAD_MAX => {
                    if self.stream.ready(Interest::READABLE).await?.is_read_closed() {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
                () = &mut time => return Ok(None),
                () = stopped(&mut self.stop) => return Ok(None),
            }
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

    async fn monitor(&mut self, queue: &str, seconds: u64, most: usize) -> Result<Answer, AnyError> {
        let end = Instant::now() + Duration::from_secs(seconds).min(WAIT_MAX);
        let open_max = self.server.config(|config| config.max_open_reads);
        for _ in 0..most.min(open_max.saturating_sub(self.opened(queue))) {
            if self.server.state() == State::Quiescent {
                return Ok(REFUSED);
            }
            let Some(item) = self.take(queue, end.saturating_duration_since(Instant::now())).await? else {
                break;
            };
            value(&mut self.out, queue, &item, false);
            self.open.entry(queue.to_owned()).or_default().push_back(item);
            if self.out.len() > OUT_MAX {
                self.flush().await?;
            }
        }
        Ok(Line("END"))
    }

    fn confirm(&mut self, queue: &str, count: usize) -> Result<Answer, CloseError> {
        if self.opened(queue) < count {
            return Ok(Line("ERROR fewer reads are open"));
        }
        // All of them, also after one that could not be closed.
        let mut result = Ok(());
        for _ in 0..count {
            result = result.and(self.end_one(queue, true));
        }
        result?;
        Ok(Line("END"))
    }

    fn say(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// Makes durable what is called stored, writes all replies, closes what they gave away.
    async fn flush(&mut self) -> Result<(), AnyError> {
        // The last first: with it all before it are durable, and an answer that changes moves no earlier one.
        for put in std::mem::take(&mut self.unsynced).into_iter().rev() {
            if let (Err(error), Some(at)) = (put.queue.synced_async(put.id).await, put.reply) {
                self.out.splice(at..at + STORED.len(), format!("SERVER_ERROR {error}").into_bytes());
            }
        }
        if !self.out.is_empty() {
            tokio::select! {
                biased;
                written = self.stream.write_all(&self.out) => written?,
                // The client does not read.
                () = rest(self.idle) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
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
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER.1;
        let mut scrap = vec![0; READ];
        let _ = timeout(LINGER.0, async {
            while left > 0 {
                match self.stream.read(&mut scrap).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
        })
        .await;
    }
}

fn value(out: &mut Vec<u8>, key: &str, item: &Item, with_id: bool) {
    out.reserve(key.len() + item.data().len() + 64);
    // Writing into memory does not fail.
    let _ = match with_id {
        false => write!(out, "VALUE {key} {} {}\r\n", item.flags(), item.data().len()),
        true => write!(out, "VALUE {key} {} {} {}\r\n", item.flags(), item.data().len(), item.id()),
    };
    out.extend_from_slice(item.data());
    out.extend_from_slice(b"\r\n");
}

fn put_options(set: &Set<'_>) -> PutOptions {
    let options = PutOptions::new().flags(set.flags);
    match set.expiry {
        Expiry::Never => options,
        Expiry::Gone => options.expires_at(SystemTime::UNIX_EPOCH),
        Expiry::In(seconds) => options.expires_in(Duration::from_secs(seconds)),
        // Later than the clock can say is never.
        Expiry::At(seconds) => match SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
            Some(time) => options.expires_at(time),
            None => options,
        },
    }
}

async fn rest(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
