//! Kestrel's load programs: each does its work, checks that nothing was lost or came twice, and answers with a row.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};

use crate::client::{Client, Wire};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
    pub(crate) clients: usize,
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) program: &'static str,
    pub(crate) what: String,
    pub(crate) operations: usize,
    pub(crate) time: Duration,
    pub(crate) note: String,
}

/// Operations done, shown on a terminal while they grow.
#[derive(Clone)]
struct Progress {
    name: &'static str,
    done: Rc<Cell<usize>>,
    shown: Rc<Cell<Instant>>,
    all: usize,
}

impl Progress {
    fn new(name: &'static str, all: usize) -> Progress {
        Progress { name, done: Rc::new(Cell::new(0)), shown: Rc::new(Cell::new(Instant::now())), all }
    }

    fn step(&self) {
        self.done.set(self.done.get() + 1);
        if self.done.get().is_multiple_of(256) && self.shown.get().elapsed() > Duration::from_millis(200) {
            self.shown.set(Instant::now());
            if io::stderr().is_terminal() {
                eprint!("\r{}: {} of {} ", self.name, self.done.get(), self.all);
                let _ = io::stderr().flush();
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

/// Runs the programs' tasks on one thread: the server has the rest of the machine.
pub(crate) fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

async fn all(mut tasks: JoinSet<io::Result<()>>) -> io::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

fn check(is_right: bool, what: impl FnOnce() -> String) -> io::Result<()> {
    if is_right { Ok(()) } else { Err(io::Error::other(what())) }
}

/// A payload of this length that tells its number.
fn numbered(number: usize, bytes: usize) -> Vec<u8> {
    let mut data = vec![b'.'; bytes.max(20)];
    data[..20].copy_from_slice(format!("{number:020}").as_bytes());
    data
}

fn number(data: &[u8]) -> Option<usize> {
    std::str::from_utf8(data.get(..20)?).ok()?.parse().ok()
}

/// Which numbers have come, each once.
#[derive(Clone)]
struct Seen(Rc<std::cell::RefCell<Vec<bool>>>);

impl Seen {
    fn new(items: usize) -> Seen {
        Seen(Rc::new(std::cell::RefCell::new(vec![false; items])))
    }

    fn note(&self, data: &[u8]) -> io::Result<()> {
        let mut seen = self.0.borrow_mut();
        let slot = number(data).and_then(|number| seen.get_mut(number));
        let is_new = slot.is_some_and(|slot| !std::mem::replace(slot, true));
        check(is_new, || format!("an item came twice, or was never put: {:?}", number(data)))
    }

    fn all(&self) -> io::Result<()> {
        let missing = self.0.borrow().iter().filter(|seen| !**seen).count();
        check(missing == 0, || format!("{missing} items were lost"))
    }
}

/// Clients that push items, each the next when the one before is answered.
pub(crate) async fn put_many(server: SocketAddr, size: Size) -> io::Result<Row> {
    let progress = Progress::new("put-many", size.items);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..size.clients {
        let progress = progress.clone();
        tasks.spawn_local(async move {
            let mut connection = Client::connect(server, Wire::Kestrel).await?;
            let data = vec![b'x'; size.bytes];
            for _ in (client..size.items).step_by(size.clients) {
                connection.put("spam", &data).await?;
                progress.step();
            }
            Ok(())
        });
    }
    all(tasks).await?;
    let time = begun.elapsed();
    clear(server, "spam").await?;
    let what = format!("{} clients put items of {} B", size.clients, size.bytes);
    Ok(Row { program: "put-many", what, operations: size.items, time, note: String::new() })
}

/// One producer, and many clients that all wait for the next item.
pub(crate) async fn many_clients(server: SocketAddr, size: Size) -> io::Result<Row> {
    let progress = Progress::new("many-clients", size.items);
    let seen = Seen::new(size.items);
    let mut tasks = JoinSet::new();
    let left = Rc::new(Cell::new(size.items));
    let begun = Instant::now();
    for _ in 0..size.clients {
        let (progress, seen, left) = (progress.clone(), seen.clone(), left.clone());
        tasks.spawn_local(async move {
            let mut connection = Client::connect(server, Wire::Kestrel).await?;
            while left.get() > 0 {
                if let Some(data) = connection.get("small/t=500").await? {
                    seen.note(&data)?;
                    left.set(left.get() - 1);
                    progress.step();
                }
            }
            Ok(())
        });
    }
    let mut producer = Client::connect(server, Wire::Kestrel).await?;
    for number in 0..size.items {
        producer.put("small", &numbered(number, size.bytes)).await?;
    }
    // The clients' last waits end by themselves; the time is that of the last item.
    while left.get() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(ended) = tasks.try_join_next() {
            ended.map_err(io::Error::other)??;
        }
    }
    let time = begun.elapsed();
    all(tasks).await?;
    seen.all()?;
    let what = format!("one client puts, {} wait for items of {} B", size.clients, size.bytes);
    Ok(Row { program: "many-clients", what, operations: size.items, time, note: "each item came once".into() })
}

/// A producer and a consumer at full speed on one queue.
pub(crate) async fn flood(server: SocketAddr, size: Size) -> io::Result<Row> {
    let progress = Progress::new("flood", size.items);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn_local(async move {
        let mut producer = Client::connect(server, Wire::Kestrel).await?;
        for number in 0..size.items {
            producer.put("flood", &numbered(number, size.bytes)).await?;
        }
        Ok(())
    });
    let consumer_progress = progress.clone();
    tasks.spawn_local(async move {
        let mut consumer = Client::connect(server, Wire::Kestrel).await?;
        let mut next = 0;
        while next < size.items {
            let data = consumer.get("flood/close/open/t=10000").await?.unwrap_or_default();
            check(number(&data) == Some(next), || format!("{:?} came in place of {next}", number(&data)))?;
            next += 1;
            consumer_progress.step();
        }
        consumer.get("flood/close").await.map(|_| ())
    });
    all(tasks).await?;
    let what = format!("one puts, one opens and closes, {} B", size.bytes);
    Ok(Row {
        program: "flood",
        what,
        operations: 2 * size.items,
        time: begun.elapsed(),
        note: "in order, each once".into(),
    })
}

/// Fills a queue and drains it, again and again: what Kestrel had to pack its journal for. Tells how the files grow.
pub(crate) async fn packing(server: SocketAddr, size: Size) -> io::Result<Row> {
    const CYCLES: usize = 10;
    let progress = Progress::new("packing", 2 * size.items);
    let mut client = Client::connect(server, Wire::Kestrel).await?;
    let begun = Instant::now();
    let (mut put, mut got, mut largest) = (0, 0, 0);
    for cycle in 1..=CYCLES {
        let upto = size.items * cycle / CYCLES;
        while put < upto {
            client.put("packing", &numbered(put, size.bytes)).await?;
            put += 1;
            progress.step();
        }
        largest = largest.max(stat(server, "queue_packing_logsize").await?);
        // A tenth of the cycle stays behind, so that the queue never is empty.
        while got < upto - size.items / CYCLES / 10 {
            let data = client.get("packing").await?.unwrap_or_default();
            check(number(&data) == Some(got), || format!("{:?} came in place of {got}", number(&data)))?;
            got += 1;
            progress.step();
        }
    }
    while let Some(data) = client.get("packing").await? {
        check(number(&data) == Some(got), || format!("{:?} came in place of {got}", number(&data)))?;
        got += 1;
    }
    check(got == size.items, || format!("{got} of {} items came", size.items))?;
    let what = format!("{CYCLES} times fill and drain {} items of {} B", size.items / CYCLES, size.bytes);
    let through = (size.items * size.bytes) >> 20;
    let note = format!("{through} MiB went through files of at most {} MiB", largest >> 20);
    Ok(Row { program: "packing", what, operations: put + got, time: begun.elapsed(), note })
}

/// Readers that give every tenth item back, and every hundredth by dying with it open.
pub(crate) async fn leaky_reader(server: SocketAddr, size: Size) -> io::Result<Row> {
    let progress = Progress::new("leaky-reader", size.items);
    let mut producer = Client::connect(server, Wire::Kestrel).await?;
    for number in 0..size.items {
        producer.put("leaky", &numbered(number, size.bytes)).await?;
    }
    let seen = Seen::new(size.items);
    let given_back = Rc::new(Cell::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..size.clients {
        let (seen, given_back, progress) = (seen.clone(), given_back.clone(), progress.clone());
        tasks.spawn_local(async move {
            let mut reader = Client::connect(server, Wire::Kestrel).await?;
            let mut count = 0;
            // An item that another one holds may come back within the time.
            while let Some(data) = reader.get("leaky/open/t=1000").await? {
                count += 1;
                if count % 100 == 0 {
                    reader = Client::connect(server, Wire::Kestrel).await?;
                } else if count % 10 == 0 {
                    reader.get("leaky/abort").await?;
                } else {
                    reader.get("leaky/close").await?;
                    seen.note(&data)?;
                    progress.step();
                    continue;
                }
                given_back.set(given_back.get() + 1);
            }
            Ok(())
        });
    }
    all(tasks).await?;
    // The readers' last wait for more.
    let time = begun.elapsed().saturating_sub(Duration::from_secs(1));
    seen.all()?;
    let what = format!("{} readers open items of {} B", size.clients, size.bytes);
    let note = format!("{} given back, each ended once", given_back.get());
    Ok(Row { program: "leaky-reader", what, operations: 2 * (size.items + given_back.get()), time, note })
}

/// Connections that put one item each.
pub(crate) async fn short(server: SocketAddr, size: Size) -> io::Result<Row> {
    let begun = Instant::now();
    let progress = Progress::new("short", size.items);
    let mut tasks = JoinSet::new();
    for client in 0..size.clients {
        let progress = progress.clone();
        tasks.spawn_local(async move {
            for _ in (client..size.items).step_by(size.clients) {
                let mut connection = Client::connect(server, Wire::Kestrel).await?;
                connection.put("short", &vec![b'x'; size.bytes]).await?;
                connection.quit().await?;
                progress.step();
            }
            Ok(())
        });
    }
    all(tasks).await?;
    let time = begun.elapsed();
    clear(server, "short").await?;
    let what = format!("connect, put {} B, quit; {} at a time", size.bytes, size.clients);
    Ok(Row { program: "short", what, operations: size.items, time, note: String::new() })
}

pub(crate) async fn clear(server: SocketAddr, queue: &str) -> io::Result<()> {
    Client::connect(server, Wire::Kestrel).await?.command(&format!("flush {queue}")).await.map(|_| ())
}

async fn stat(server: SocketAddr, name: &str) -> io::Result<usize> {
    let lines = Client::connect(server, Wire::Kestrel).await?.command("stats").await?;
    let found = lines.iter().find_map(|line| line.strip_prefix("STAT ")?.strip_prefix(name)?.trim().parse().ok());
    found.ok_or_else(|| io::Error::other(format!("no {name}")))
}
