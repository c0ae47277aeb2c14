//! The server's numbers in their four shapes: `stats`, `dump_stats`, `dump_config`, and a page for Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::{Queue, QueueStats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

use super::{Server, config};

/// Longest head of a request for the page, and how long it may take; how many are served at a time.
const HEAD_MAX: usize = 8 << 10;
const HEAD_TIME: Duration = Duration::from_secs(5);
const PAGES_MAX: usize = 16;

/// A number's name, kind and value.
type Figure = (&'static str, &'static str, u64);
const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// A queue's numbers by Kestrel's names where it had one.
fn of_queue(stats: &QueueStats) -> [Figure; 27] {
    [
        ("items", GAUGE, stats.items),
        ("bytes", GAUGE, stats.bytes),
        ("total_items", COUNTER, stats.total_items),
        ("put_bytes", COUNTER, stats.put_bytes),
        ("get_hits", COUNTER, stats.get_hits),
        ("get_misses", COUNTER, stats.get_misses),
        ("logsize", GAUGE, stats.log_size),
        ("expired_items", COUNTER, stats.expired_items),
        ("mem_items", GAUGE, stats.mem_items),
        ("mem_bytes", GAUGE, stats.mem_bytes),
        ("age", GAUGE, stats.age_ms),
        ("oldest_age", GAUGE, stats.oldest_age_ms),
        ("discarded", COUNTER, stats.discarded),
        ("waiters", GAUGE, stats.waiters),
        ("open_transactions", GAUGE, stats.open_items),
        ("transactions", COUNTER, stats.transactions),
        ("canceled_transactions", COUNTER, stats.canceled_transactions),
        ("total_flushes", COUNTER, stats.total_flushes),
        ("create_time", GAUGE, stats.create_time_ms / 1000),
        ("segments", GAUGE, stats.segments),
        ("redelivered", COUNTER, stats.redelivered),
        ("unsynced_bytes", GAUGE, stats.unsynced_bytes),
        ("syncs", COUNTER, stats.syncs),
        ("leaked_open_items", GAUGE, stats.leaked_open_items),
        ("damaged_items", COUNTER, stats.damaged_items),
        ("leases_ended", COUNTER, stats.leases_ended),
        ("dead_lettered", COUNTER, stats.dead_lettered),
    ]
}

fn of_server(server: &Server) -> Vec<Figure> {
    let set = server.set.stats();
    let counters = &server.counters;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    vec![
        ("uptime", GAUGE, server.started.elapsed().as_secs()),
        ("time", GAUGE, now),
        ("curr_items", GAUGE, set.curr_items),
        ("bytes", GAUGE, set.bytes),
        ("queues", GAUGE, set.queues),
        ("queue_creates", COUNTER, set.queue_creates),
        ("queue_deletes", COUNTER, set.queue_deletes),
        ("pool_segments", GAUGE, set.pool_segments),
        ("pool_bytes", GAUGE, set.pool_bytes),
        ("disk_bytes", GAUGE, set.disk_bytes),
        ("curr_connections", GAUGE, of(&counters.curr_connections)),
        ("total_connections", COUNTER, of(&counters.total_connections)),
        ("refused_connections", COUNTER, of(&counters.refused_connections)),
        ("cmd_get", COUNTER, of(&counters.cmd_get)),
        ("cmd_set", COUNTER, of(&counters.cmd_set)),
        ("cmd_peek", COUNTER, of(&counters.cmd_peek)),
        ("get_hits", COUNTER, of(&counters.get_hits)),
        ("get_misses", COUNTER, of(&counters.get_misses)),
        ("bytes_read", COUNTER, of(&counters.bytes_read)),
        ("bytes_written", COUNTER, of(&counters.bytes_written)),
    ]
}

/// The queues of these names, or all. Those that do not open are left out; a request for one of them says why.
fn queues(server: &Server, names: &[&str]) -> Vec<Queue> {
    let open = |name: &str| server.queue(name, false).ok().flatten();
    match names {
        [] => server.set.names().iter().filter_map(|name| open(name)).collect(),
        some => some.iter().filter_map(|name| open(name)).collect(),
    }
}

pub(super) fn stats(server: &Server, out: &mut Vec<u8>) {
    let mut text = format!("STAT kestrel_core {}\r\n", env!("CARGO_PKG_VERSION"));
    let queues = queues(server, &[]);
    // Writing into memory does not fail, here and below.
    for (name, _, value) in of_server(server) {
        let _ = write!(text, "STAT {name} {value}\r\n");
    }
    for queue in queues {
        for (name, _, value) in of_queue(&queue.stats()) {
            let _ = write!(text, "STAT queue_{}_{name} {value}\r\n", queue.name());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn dump(server: &Server, names: &[&str], out: &mut Vec<u8>) {
    sections(queues(server, names), out, |queue| {
        of_queue(&queue.stats()).iter().map(|(name, _, value)| (*name, value.to_string())).collect()
    });
}

pub(super) fn dump_config(server: &Server, names: &[&str], out: &mut Vec<u8>) {
    sections(queues(server, names), out, |queue| config::shown(&queue.options()));
}

fn sections(queues: Vec<Queue>, out: &mut Vec<u8>, lines: impl Fn(&Queue) -> Vec<(&'static str, String)>) {
    let mut text = String::new();
    for queue in queues {
        let _ = write!(text, "queue '{}' {{\r\n", queue.name());
        for (name, value) in lines(&queue) {
            let _ = write!(text, "  {name}={value}\r\n");
        }
        text.push_str("}\r\n");
    }
    out.extend_from_slice(text.as_bytes());
}

/// The page, in the text format of Prometheus.
fn page(server: &Server) -> String {
    let all: Vec<(String, [Figure; 27])> = queues(server, &[])
        .iter()
        .map(|queue| {
            let name = queue.name().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            (name, of_queue(&queue.stats()))
        })
        .collect();
    let mut text = String::new();
    for (name, kind, value) in of_server(server) {
        let _ = writeln!(text, "# TYPE kestrel_{name} {kind}\nkestrel_{name} {value}");
    }
    // All lines of one name stand together.
    for index in 0..all.first().map_or(0, |(_, figures)| figures.len()) {
        for (at, (queue, figures)) in all.iter().enumerate() {
            let (name, kind, value) = figures[index];
            if at == 0 {
                let _ = writeln!(text, "# TYPE kestrel_queue_{name} {kind}");
            }
            let _ = writeln!(text, "kestrel_queue_{name}{{queue=\"{queue}\"}} {value}");
        }
    }
    text
}

/// Serves the page, if a port was given for it, until dropped.
pub(super) async fn serve(server: Arc<Server>, listener: Option<TcpListener>) {
    let Some(listener) = listener else {
        return;
    };
    let mut clients = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                clients.spawn(timeout(HEAD_TIME, answer(Arc::clone(&server), stream)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while clients.len() >= PAGES_MAX || clients.try_join_next().is_some() {
            if clients.len() >= PAGES_MAX {
                clients.join_next().await;
            }
        }
    }
}

async fn answer(server: Arc<Server>, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => ("200 OK", block_in_place(|| page(&server))),
        false => ("404 Not Found", "see /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
