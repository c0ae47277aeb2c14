//! Kestrel's load programs against the example server, and the tables of its README.
//!
//! ```sh
//! cargo run --release --example load -- all        # every program, one table
//! cargo run --release --example load -- published  # Kestrel's published test: 500,000 items by one client
//! cargo run --release --example load -- beside     # beside beanstalkd, redis-server and memcached, where installed
//! ```
//!
//! One program: `put-many`, `many-clients`, `flood`, `packing`, `leaky-reader` or `short`, each with `--items N --bytes N
//! --clients N`. `--to ADDRESS:PORT` uses a server that runs; else this program starts one on a new directory and removes it
//! again. `--quick` does a tenth.

mod client;
mod programs;
#[allow(dead_code)]
#[path = "../memcache_server/server/mod.rs"]
mod server;

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use client::{Client, Wire};
use kestrel_core::{Durability, QueueOptions, QueueSet};
use programs::{Row, Size, block_on};
use server::{Config, Running};
use tempfile::TempDir;
use tokio::task::JoinSet;

const PROGRAMS: &[(&str, Size)] = &[
    ("put-many", Size { items: 100_000, bytes: 1024, clients: 100 }),
    ("many-clients", Size { items: 50_000, bytes: 64, clients: 100 }),
    ("flood", Size { items: 100_000, bytes: 1024, clients: 2 }),
    ("packing", Size { items: 100_000, bytes: 1024, clients: 1 }),
    ("leaky-reader", Size { items: 20_000, bytes: 256, clients: 10 }),
    ("short", Size { items: 1_000, bytes: 64, clients: 10 }),
];

/// A server of our own, which ends with this value.
struct Served {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Before anything is pinned to one of them.
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let before = load_average();
    let done = match words.first().map(String::as_str) {
        Some("serve") => serve(&words[1..]),
        Some("published") => published(&words),
        Some("beside") => beside(&words),
        Some(name) if name == "all" || PROGRAMS.iter().any(|(program, _)| *program == name) => run(name, &words),
        _ => Err(io::Error::other(
            "all | published | beside | put-many | many-clients | flood | packing | leaky-reader | short",
        )),
    };
    match done {
        Ok(()) => {
            // The hidden server prints nothing but its address.
            if words.first().is_some_and(|word| word != "serve") {
                conditions(cores, &before);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What stands below a table: figures of a busy machine tell of its other work.
fn conditions(cores: usize, before: &str) {
    println!("\nOn {cores} cores; load average {before} before, {} after (this run is in the latter).", load_average());
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|first| !first.is_empty()).unwrap_or("unknown").to_owned()
}

fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

fn is_quick(words: &[String]) -> bool {
    words.iter().any(|word| word == "--quick")
}

fn number(words: &[String], name: &str, default: usize) -> io::Result<usize> {
    option(words, name)
        .map_or(Ok(default), |text| text.parse().map_err(|_| io::Error::other(format!("{name} {text}?"))))
}

/// Hidden: the example server in a process of its own, until its standard input ends.
fn serve(words: &[String]) -> io::Result<()> {
    let [data, settings] = words else {
        return Err(io::Error::other("serve DIR SETTINGS"));
    };
    let mut config = Config::parse(settings).map_err(io::Error::other)?;
    config.data = data.into();
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let threads = config.threads();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let running =
            tokio::spawn(Running::start(config)).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        println!("{}", running.address);
        let server = running.server.clone();
        std::thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            server.stop();
        });
        tokio::spawn(running.finish()).await.map_err(io::Error::other)?.map_err(io::Error::other)
    })
}

/// Starts a server with these defaults for its queues, on a directory below the current one: a real disk, as a rule.
fn start(defaults: &str, core: Option<usize>) -> io::Result<Served> {
    let dir = scratch()?;
    let settings = format!("max_open_reads = 10\n[defaults]\n{defaults}\n");
    let mut child = on_core(std::env::current_exe()?.as_os_str(), core)
        .arg("serve")
        .arg(dir.path())
        .arg(settings)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let address = line.trim().parse().map_err(|_| io::Error::other("the server did not start"))?;
    Ok(Served { child, address, _dir: dir })
}

/// A command that runs on this core alone.
fn on_core(binary: &OsStr, core: Option<usize>) -> Command {
    let Some(core) = core else {
        return Command::new(binary);
    };
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(binary);
    command
}

fn scratch() -> io::Result<TempDir> {
    std::fs::create_dir_all("target")?;
    tempfile::Builder::new().prefix("load-").tempdir_in("target")
}

fn run(name: &str, words: &[String]) -> io::Result<()> {
    let durability = option(words, "--durability").unwrap_or("os");
    let mut rows = Vec::new();
    for (program, default) in PROGRAMS.iter().filter(|(program, _)| name == "all" || name == *program) {
        let part = if is_quick(words) { 10 } else { 1 };
        let size = Size {
            items: number(words, "--items", default.items / part)?,
            bytes: number(words, "--bytes", default.bytes)?,
            clients: number(words, "--clients", default.clients)?,
        };
        let served = match option(words, "--to") {
            Some(_) => None,
            None => Some(start(&format!("durability = \"{durability}\""), None)?),
        };
        let address = match (&served, option(words, "--to")) {
            (Some(served), _) => served.address,
            (None, to) => to.unwrap_or_default().parse().map_err(|_| io::Error::other("--to ADDRESS:PORT"))?,
        };
        rows.push(block_on(async {
            match *program {
                "put-many" => programs::put_many(address, size).await,
                "many-clients" => programs::many_clients(address, size).await,
                "flood" => programs::flood(address, size).await,
                "packing" => programs::packing(address, size).await,
                "leaky-reader" => programs::leaky_reader(address, size).await,
                _ => programs::short(address, size).await,
            }
        })?);
    }
    println!("| program | what | operations | s | operations/s | note |");
    println!("|---|---|---|---|---|---|");
    for Row { program, what, operations, time, note } in rows {
        let seconds = time.as_secs_f64();
        println!("| {program} | {what} | {operations} | {seconds:.2} | {} | {note} |", rate(operations, time));
    }
    Ok(())
}

fn rate(operations: usize, time: Duration) -> String {
    thousands(operations as f64 / time.as_secs_f64().max(1e-9))
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    groups.join(",")
}

/// One client pushes 500,000 items of four sizes, with the journal on and off; and the same without a socket.
fn published(words: &[String]) -> io::Result<()> {
    let items = number(words, "--items", if is_quick(words) { 50_000 } else { 500_000 })?;
    println!("| item | journal | server, puts/s | library, puts/s |");
    println!("|---|---|---|---|");
    for journal in [true, false] {
        for bytes in [256, 1024, 4096, 8192] {
            let served = start(&format!("durability = \"os\"\njournal = {journal}"), None)?;
            let row = block_on(programs::put_many(served.address, Size { items, bytes, clients: 1 }))?;
            drop(served);
            let alone = library(items, bytes, journal)?;
            let state = if journal { "on" } else { "off" };
            println!("| {bytes} B | {state} | {} | {} |", rate(items, row.time), rate(items, alone));
        }
    }
    Ok(())
}

fn library(items: usize, bytes: usize, journal: bool) -> io::Result<Duration> {
    let dir = scratch()?;
    let options = QueueOptions::default().durability(Durability::Os).journal(journal);
    let set = QueueSet::builder().defaults(options).open(dir.path()).map_err(io::Error::other)?;
    let queue = set.queue("spam").map_err(io::Error::other)?;
    let data = vec![b'x'; bytes];
    let begun = Instant::now();
    for _ in 0..items {
        queue.put(&data).map_err(io::Error::other)?;
    }
    Ok(begun.elapsed())
}

/// Another server on a port of its own.
struct Other {
    name: &'static str,
    wire: Wire,
    address: SocketAddr,
    child: Option<Child>,
    _own: Option<Served>,
    _dir: TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts a server that is installed, on a fresh directory, journaling as ours does: no sync for each put.
fn other(name: &'static str, core: Option<usize>) -> io::Result<Other> {
    let dir = scratch()?;
    if let Some(durability) = name.strip_prefix("ours, ") {
        let own = start(&format!("durability = {durability}"), core)?;
        return Ok(Other { name, wire: Wire::Kestrel, address: own.address, child: None, _own: Some(own), _dir: dir });
    }
    let port = free_port()?;
    let (wire, binary, args) = match name {
        "beanstalkd -b" => {
            (Wire::Beanstalkd, "beanstalkd", format!("-l 127.0.0.1 -p {port} -F -b {}", dir.path().display()))
        }
        "redis, AOF" => {
            let rest = "--save --appendonly yes --appendfsync everysec --loglevel warning";
            (
                Wire::Redis,
                "redis-server",
                format!("--bind 127.0.0.1 --port {port} --dir {} {rest}", dir.path().display()),
            )
        }
        _ => (Wire::Memcached, "memcached", format!("-l 127.0.0.1 -p {port} -U 0 -u nobody -m 1024")),
    };
    // An empty argument, as a shell would give it.
    let args = args.split(' ').flat_map(|word| if word == "--save" { vec![word, ""] } else { vec![word] });
    let child = on_core(OsStr::new(binary), core).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let other = Other { name, wire, address, child: Some(child), _own: None, _dir: dir };
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(other);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Err(io::Error::other(format!("{name} does not listen")))
}

const SERVERS: &[&str] = &["ours, \"os\"", "ours, \"sync\"", "redis, AOF", "beanstalkd -b", "memcached"];
const BYTES: usize = 1024;

/// Each cell: what is done, by how many clients, in batches of how many.
const CELLS: &[(&str, usize, usize)] = &[
    ("put", 1, 1),
    ("put", 10, 1),
    ("put", 100, 1),
    ("reliable get", 1, 1),
    ("reliable get", 10, 1),
    ("reliable get", 100, 1),
    ("put", 10, 16),
    ("connect, put, quit", 1, 1),
];

/// Where server and clients run decides more than the server does: a wake-up on another, idle core costs several times one on
/// the same core, and the scheduler chooses now this, now that. So each table holds one placement, the same for all servers.
fn beside(words: &[String]) -> io::Result<()> {
    let can_pin = Command::new("taskset").arg("--version").stdout(Stdio::null()).status().is_ok();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    if !can_pin || cores < 2 {
        println!("Server and clients where the scheduler puts them (no taskset, or one core).\n");
        return compare(words, None);
    }
    for (title, server, clients) in [("A core each", 0, 1), ("On one core", 0, 0)] {
        let me = std::process::id().to_string();
        let pinned = Command::new("taskset").args(["-cp", &clients.to_string(), &me]).stdout(Stdio::null()).status()?;
        if !pinned.success() {
            return Err(io::Error::other("taskset does not pin"));
        }
        println!("{title}, server and clients:\n");
        compare(words, Some(server))?;
        println!();
    }
    Ok(())
}

fn compare(words: &[String], core: Option<usize>) -> io::Result<()> {
    // Never one round: without a spread nobody sees that the machine was busy.
    let (rounds, time) = if is_quick(words) { (3, 200) } else { (3, 1000) };
    let mut found: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); CELLS.len()]; SERVERS.len()];
    let mut missing = Vec::new();
    for round in 1..=rounds {
        for (server, name) in SERVERS.iter().enumerate() {
            let other = match other(name, core) {
                Ok(other) => other,
                Err(error) => {
                    missing.push(format!("{name} ({error})"));
                    continue;
                }
            };
            eprintln!("round {round} of {rounds}: {}", other.name);
            for (cell, (what, clients, batch)) in CELLS.iter().enumerate() {
                let time = Duration::from_millis(time);
                found[server][cell].push(block_on(measure(&other, what, *clients, *batch, time))?);
            }
        }
    }
    println!("| thousands per second, 1 KiB items | {} |", SERVERS.join(" | ").replace('"', ""));
    println!("|---|{}", "---|".repeat(SERVERS.len()));
    for (cell, (what, clients, batch)) in CELLS.iter().enumerate() {
        let pipeline = if *batch > 1 { format!(", {batch} at a time") } else { String::new() };
        let cells: Vec<String> = found.iter_mut().map(|server| spread(&mut server[cell])).collect();
        println!("| {what}, {clients} clients{pipeline} | {} |", cells.join(" | "));
    }
    missing.sort();
    missing.dedup();
    missing.iter().for_each(|what| println!("\nNot measured: {what}."));
    Ok(())
}

/// Thousands per second: the median, and the least and most where they differ.
fn spread(rates: &mut [f64]) -> String {
    rates.sort_by(f64::total_cmp);
    let show = |rate: &f64| format!("{:.1}", rate / 1000.0);
    match &*rates {
        [] => "-".to_owned(),
        [only] => show(only),
        [least, .., most] => format!("{} ({} to {})", show(&rates[rates.len() / 2]), show(least), show(most)),
    }
}

/// Operations per second.
async fn measure(other: &Other, what: &'static str, clients: usize, batch: usize, time: Duration) -> io::Result<f64> {
    let (address, wire) = (other.address, other.wire);
    let queue = "queue";
    let data = vec![b'x'; BYTES];
    if what == "reliable get" {
        // Enough for the time; what is left is taken by the next cell.
        let items = if wire == Wire::Memcached { 250 } else { 160_000 * time.as_millis() as usize / 1000 };
        let mut filler = Client::connect(address, wire).await?;
        for _ in 0..items / 250 {
            filler.puts(queue, &data, 250).await?;
        }
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let data = data.clone();
        tasks.spawn_local(async move {
            let mut count = 0;
            let mut client = Client::connect(address, wire).await?;
            let mut before = None;
            while begun.elapsed() < time {
                match what {
                    "put" => client.puts(queue, &data, batch).await?,
                    "reliable get" if !client.next(queue, &mut before).await? => break,
                    "reliable get" => {}
                    _ => {
                        let mut short = Client::connect(address, wire).await?;
                        short.put(queue, &data).await?;
                        short.quit().await?;
                    }
                }
                count += batch;
            }
            Ok::<_, io::Error>((count, begun.elapsed()))
        });
    }
    let (mut operations, mut last) = (0, Duration::ZERO);
    while let Some(ended) = tasks.join_next().await {
        let (count, time) = ended.map_err(io::Error::other)??;
        (operations, last) = (operations + count, last.max(time));
    }
    // A reliable get of a put before: what was put is taken away again, so that no cell grows without end.
    if wire == Wire::Kestrel && what != "reliable get" {
        programs::clear(address, queue).await?;
    }
    Ok(operations as f64 / last.as_secs_f64())
}
