//! One connection: its requests in order, its open reads by queue, its replies in batches.
//!
//! All requests that have arrived are carried out before their replies are written at once. Before that, the puts among them
//! that promise it are made durable, by one sync as a rule; after that, the items that plain gets took are closed. So an item
//! is given back when its reply could not be written.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kestrel_core::{Error, GetError, Item, ItemId, OpenItem, PutError, PutOptions, Queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::protocol::{Expiry, Key, Keys, Parser, Request, Set, State, Step};
use super::{Queues, Server, figures, stopped};

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
const DIALECT: &str = "2.4.7";
const STORED: &[u8] = b"STORED\r\n";
const TOO_LARGE: &str = "SERVER_ERROR object too large for cache";

/// `Break`: write what there is to say, then disconnect. An error: the client is gone.
type Flow = io::Result<ControlFlow<()>>;

const GO: Flow = Ok(ControlFlow::Continue(()));
const END: Flow = Ok(ControlFlow::Break(()));

impl Connection {
    pub(super) fn new(server: Arc<Server>, stream: TcpStream) -> Connection {
        let stop = server.stop.subscribe();
        Connection {
            server,
            stream,
            stop,
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

    async fn serve(&mut self) -> io::Result<()> {
        let idle = self.server.config(|config| config.idle_timeout());
        let mut parser = Parser::new(0);
        let mut input = Vec::new();
        loop {
            parser.value_max = self.server.value_max.load(Ordering::Relaxed);
            let (mut used, mut flow) = (0, ControlFlow::Continue(()));
            while flow.is_continue() {
                match parser.next(&input[used..]) {
                    Step::More => break,
                    Step::Skip(bytes) => used += bytes,
                    Step::Request(request, bytes) => {
                        used += bytes;
                        flow = self.carry_out(request).await?;
                    }
                    Step::Broken(reply) => {
                        self.say(reply);
                        flow = ControlFlow::Break(());
                    }
                }
                if self.out.len() > OUT_MAX {
                    self.flush().await?;
                }
            }
            if flow.is_break() || *self.stop.borrow() {
                return self.flush().await;
            }
            input.drain(..used);
            if !self.ahead.is_empty() {
                input.append(&mut self.ahead);
                continue;
            }
            self.flush().await?;
            // Grows with what arrives, not with what a line announces.
            input.reserve(READ.max(input.len()));
            let read = tokio::select! {
                biased;
                read = self.stream.read_buf(&mut input) => read?,
                () = stopped(&mut self.stop) => return Ok(()),
                () = rest(idle) => return Ok(()),
            };
            if read == 0 {
                return Ok(());
            }
            count(&self.server.counters.bytes_read, read);
        }
    }

    async fn carry_out(&mut self, request: Request<'_>) -> Flow {
        match request {
            Request::Set(set) => return self.set(&set),
            Request::Get(keys, with_id) => return self.get(keys, with_id).await,
            _ => self.flush().await?,
        }
        match request {
            Request::Set(_) | Request::Get(..) => {}
            Request::TooLarge(quiet) => self.say_unless(quiet, TOO_LARGE),
            Request::Monitor(queue, seconds, most) => return self.monitor(queue, seconds, most).await,
            Request::Confirm(queue, count) => return self.confirm(queue, count),
            Request::Delete(queue, quiet) => return self.delete(queue, quiet),
            Request::Flush(queue, quiet) => return self.clear(&[queue.to_owned()], quiet, "END"),
            Request::FlushAll(quiet) => {
                let kestrel = self.server.config(|config| config.kestrel_flush_all);
                let answer = if kestrel { "Flushed all queues." } else { "OK" };
                return self.clear(&self.server.set.names(), quiet, answer);
            }
            Request::FlushExpired(queue) => {
                let all = queue.map_or_else(|| self.server.set.names(), |queue| vec![queue.to_owned()]);
                let gone = block_in_place(|| self.server.discard_expired(&all));
                match gone {
                    Ok(gone) => self.say(&gone.to_string()),
                    Err(error) => self.fail(false, &error),
                }
            }
            Request::Stats => block_in_place(|| figures::stats(&self.server, &mut self.out)),
            Request::DumpStats(queues) => block_in_place(|| figures::dump(&self.server, &queues, &mut self.out)),
            Request::DumpConfig(queues) => {
                block_in_place(|| figures::dump_config(&self.server, &queues, &mut self.out))
            }
            Request::Reload => match self.server.reload().await {
                Ok(()) => self.say("Reloaded config."),
                Err(error) => self.fail(false, &error),
            },
            Request::Status(None) => self.say(match self.server.state() {
                State::Up => "UP",
                State::ReadOnly => "READONLY",
                State::Quiescent => "QUIESCENT",
            }),
            Request::Status(Some(state)) => {
                self.server.set_state(state);
                self.say("END");
            }
            Request::Version => self.say(&format!("VERSION {DIALECT}")),
            Request::Nothing => self.say("MN"),
            Request::Quit => return END,
            Request::Shutdown => {
                self.server.stop();
                return END;
            }
            Request::Binary(opcode, opaque) => {
                // A reply of that protocol: "unknown command".
                let mut reply = [0; 24];
                (reply[0], reply[1], reply[7]) = (0x81, opcode, 0x81);
                reply[12..16].copy_from_slice(&opaque);
                self.out.extend_from_slice(&reply);
                return END;
            }
        }
        GO
    }

    fn set(&mut self, set: &Set<'_>) -> Flow {
        count(&self.server.counters.cmd_set, 1);
        if self.server.state() != State::Up {
            return self.refuse();
        }
        // The key of a get ends at a slash: nobody could get it.
        if set.queue.contains('/') {
            self.say_unless(set.quiet, "CLIENT_ERROR a queue's name has no slash");
            return GO;
        }
        let options = put_options(set);
        // Once more if the queue has been deleted since this connection came to know it.
        for is_last in [false, true] {
            let known = match self.queues.get(&self.server, set.queue, true) {
                Ok(Some(known)) => known,
                Ok(None) => break,
                Err(error) => {
                    self.fail(set.quiet, &error);
                    break;
                }
            };
            match known.queue.append_with(set.data, &options) {
                Err(PutError::Closed) if !is_last => {
                    self.queues.forget(set.queue);
                    continue;
                }
                Ok(id) => {
                    if known.syncs {
                        let reply = (!set.quiet).then_some(self.out.len());
                        self.unsynced.push(Unsynced { queue: known.queue.clone(), id, reply });
                    }
                    if !set.quiet {
                        self.out.extend_from_slice(STORED);
                    }
                }
                Err(PutError::Full { .. }) => self.say_unless(set.quiet, "NOT_STORED"),
                Err(PutError::TooLarge { .. }) => self.say_unless(set.quiet, TOO_LARGE),
                Err(error) => self.fail(set.quiet, &error),
            }
            break;
        }
        GO
    }

    async fn get(&mut self, keys: Keys<'_>, with_id: bool) -> Flow {
        if !self.unsynced.is_empty() {
            // What this client has put before is there for it to get.
            self.flush().await?;
        }
        for key in keys {
            let counter = if key.peek { &self.server.counters.cmd_peek } else { &self.server.counters.cmd_get };
            count(counter, 1);
            if key.close || key.abort {
                if let Err(error) = self.end_one(key.queue, key.close) {
                    self.fail(false, &error);
                    return GO;
                }
                if !key.open {
                    continue;
                }
            }
            if self.server.state() == State::Quiescent {
                return self.refuse();
            }
            let open = self.open.get(key.queue).map_or(0, VecDeque::len);
            let is_allowed = match (key.peek, key.open) {
                (true, _) => true,
                (_, true) => open < self.server.config(|config| config.max_open_reads),
                _ => open == 0,
            };
            if !is_allowed {
                self.say("ERROR too many open reads");
                return END;
            }
            let wait = Duration::from_millis(key.wait_ms).min(WAIT_MAX);
            let got = match key.peek {
                true => self.peek(&key),
                false => self.take(key.queue, Instant::now() + wait, wait > Duration::ZERO).await?,
            };
            match got {
                Ok(None) => count(&self.server.counters.get_misses, 1),
                Ok(Some(got)) => {
                    count(&self.server.counters.get_hits, 1);
                    let bare = self.server.config(|config| config.bare_keys);
                    let echo = if bare { key.queue } else { key.text };
                    match &got {
                        Got::Seen(item) => value(&mut self.out, echo, item, with_id),
                        Got::Taken(item) => value(&mut self.out, echo, item, with_id),
                    }
                    match got {
                        Got::Taken(item) if key.open => {
                            self.open.entry(key.queue.to_owned()).or_default().push_back(item);
                        }
                        Got::Taken(item) => self.taken.push(item),
                        Got::Seen(_) => {}
                    }
                }
                Err(error) => {
                    self.fail(false, &error);
                    return GO;
                }
            }
            if self.out.len() > OUT_MAX {
                self.flush().await?;
            }
        }
        self.say("END");
        GO
    }

    fn peek(&mut self, key: &Key<'_>) -> Result<Option<Got>, Error> {
        match self.queues.get(&self.server, key.queue, false)? {
            Some(known) => Ok(known.queue.peek()?.map(Got::Seen)),
            None => Ok(None),
        }
    }

    /// Opens the next item, waiting until `deadline` if `may_wait`. `None` also if the queue is deleted or the server stops.
    async fn take(&mut self, name: &str, deadline: Instant, may_wait: bool) -> io::Result<Result<Option<Got>, Error>> {
        let mut tried = self.try_open(name, may_wait);
        if matches!(tried, Err(Error::Get(GetError::Closed))) {
            self.queues.forget(name);
            tried = self.try_open(name, may_wait);
        }
        let queue = match tried {
            Err(error) => return Ok(Err(error)),
            Ok((_, Some(item))) => return Ok(Ok(Some(Got::Taken(item)))),
            Ok((Some(queue), None)) if may_wait => queue,
            Ok(_) => return Ok(Ok(None)),
        };
        self.flush().await?;
        let mut opening = pin!(queue.open_async());
        let mut time = pin!(sleep_until(deadline));
        loop {
            tokio::select! {
                biased;
                item = &mut opening => return Ok(match item {
                    Ok(item) => Ok(Some(Got::Taken(item))),
                    Err(GetError::Closed) => Ok(None),
                    Err(error) => Err(error.into()),
                }),
                read = self.stream.read_buf(&mut self.ahead), if self.ahead.len() < AHEAD_MAX => {
                    // A client that has left must not be given an item.
                    let read = read?;
                    if read == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    count(&self.server.counters.bytes_read, read);
                }
                // Nothing more is read, so that only the socket's state can tell that the client has left.
                () = sleep(Duration::from_millis(250)), if self.ahead.len() >= AHEAD_MAX => {
                    if self.stream.ready(tokio::io::Interest::READABLE).await?.is_read_closed() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                () = &mut time => return Ok(Ok(None)),
                () = stopped(&mut self.stop) => return Ok(Ok(None)),
            }
        }
    }

    /// An item, if one is there; else the queue to wait at, if `create`.
    fn try_open(&mut self, name: &str, create: bool) -> Result<(Option<Queue>, Option<OpenItem>), Error> {
        let Some(known) = self.queues.get(&self.server, name, create)? else {
            return Ok((None, None));
        };
        match known.queue.try_open()? {
            Some(item) => Ok((None, Some(item))),
            None => Ok((create.then(|| known.queue.clone()), None)),
        }
    }

    /// Ends the oldest open read of a queue; there may be none.
    fn end_one(&mut self, queue: &str, close: bool) -> Result<(), kestrel_core::CloseError> {
        match self.open.get_mut(queue).and_then(VecDeque::pop_front) {
            Some(item) if close => item.close(),
            // Dropped, which gives it back.
            _ => Ok(()),
        }
    }

    async fn monitor(&mut self, queue: &str, seconds: u64, most: usize) -> Flow {
        if self.server.state() == State::Quiescent {
            return self.refuse();
        }
        let deadline = Instant::now() + Duration::from_secs(seconds).min(WAIT_MAX);
        let open_max = self.server.config(|config| config.max_open_reads);
        for _ in 0..most {
            if self.open.get(queue).map_or(0, VecDeque::len) >= open_max || self.server.state() == State::Quiescent {
                break;
            }
            match self.take(queue, deadline, seconds > 0).await? {
                Ok(Some(Got::Taken(item))) => {
                    value(&mut self.out, queue, &item, false);
                    self.open.entry(queue.to_owned()).or_default().push_back(item);
                    if self.out.len() > OUT_MAX {
                        self.flush().await?;
                    }
                }
                Ok(_) => break,
                Err(error) => {
                    self.fail(false, &error);
                    return GO;
                }
            }
        }
        self.say("END");
        GO
    }

    fn confirm(&mut self, queue: &str, count: usize) -> Flow {
        if self.open.get(queue).map_or(0, VecDeque::len) < count {
            self.say("ERROR fewer reads are open");
            return GO;
        }
        let mut result = Ok(());
        for _ in 0..count {
            result = result.and(self.end_one(queue, true));
        }
        match result {
            Ok(()) => self.say("END"),
            Err(error) => self.fail(false, &error),
        }
        GO
    }

    fn delete(&mut self, queue: &str, quiet: bool) -> Flow {
        if self.server.state() != State::Up {
            return self.refuse();
        }
        self.queues.forget(queue);
        match block_in_place(|| self.server.set.delete(queue)) {
            Ok(_) => self.say_unless(quiet, "DELETED"),
            Err(error) => self.fail(quiet, &error),
        }
        GO
    }

    fn clear(&mut self, queues: &[String], quiet: bool, answer: &str) -> Flow {
        if self.server.state() != State::Up {
            return self.refuse();
        }
        let clear = |name: &String| match self.server.queue(name, false)? {
            Some(queue) => queue.clear().map(|_| ()),
            None => Ok(()),
        };
        // The others are cleared also where one cannot be.
        match block_in_place(|| queues.iter().map(clear).fold(Ok(()), Result::and)) {
            Ok(()) => self.say_unless(quiet, answer),
            Err(error) => self.fail(quiet, &error),
        }
        GO
    }

    fn refuse(&mut self) -> Flow {
        self.say("SERVER_ERROR refused by the server's status");
        END
    }

    fn say(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn say_unless(&mut self, quiet: bool, line: &str) {
        if !quiet {
            self.say(line);
        }
    }

    /// An error, on one line.
    fn fail(&mut self, quiet: bool, error: &dyn Display) {
        let text = error.to_string().replace(['\r', '\n'], " ");
        self.say_unless(quiet, &format!("SERVER_ERROR {text}"));
    }

    /// Makes durable what is called stored, writes all replies, closes what they gave away.
    async fn flush(&mut self) -> io::Result<()> {
        // The last first: with it all before it are durable, and an answer that changes moves no earlier one.
        for put in std::mem::take(&mut self.unsynced).into_iter().rev() {
            if let (Err(error), Some(at)) = (put.queue.synced_async(put.id).await, put.reply) {
                let answer = format!("SERVER_ERROR {error}\r\n");
                self.out.splice(at..at + STORED.len(), answer.into_bytes());
            }
        }
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
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

enum Got {
    Seen(Item),
    Taken(OpenItem),
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
