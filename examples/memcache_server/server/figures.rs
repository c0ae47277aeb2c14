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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

use Kind::{Counter, Gauge};

type Figure = (&'static str, Kind, u64);

/// A queue's numbers by Kestrel's names where it had one.
fn of_queue(stats: &QueueStats) -> [Figure; 27] {
    [
        ("items", Gauge, stats.items),
        ("bytes", Gauge, stats.bytes),
        ("total_items", Counter, stats.total_items),
        ("put_bytes", Counter, stats.put_bytes),
        ("get_hits", Counter, stats.get_hits),
        ("get_misses", Counter, stats.get_misses),
        ("logsize", Gauge, stats.log_size),
        ("expired_items", Counter, stats.expired_items),
        ("mem_items", Gauge, stats.mem_items),
        ("mem_bytes", Gauge, stats.mem_bytes),
        ("age", Gauge, stats.age_ms),
        ("oldest_age", Gauge, stats.oldest_age_ms),
        ("discarded", Counter, stats.discarded),
        ("waiters", Gauge, stats.waiters),
        ("open_transactions", Gauge, stats.open_items),
        ("transactions", Counter, stats.transactions),
        ("canceled_transactions", Counter, stats.canceled_transactions),
        ("total_flushes", Counter, stats.total_flushes),
        ("create_time", Gauge, stats.create_time_ms / 1000),
        ("segments", Gauge, stats.segments),
        ("redelivered", Counter, stats.redelivered),
        ("unsynced_bytes", Gauge, stats.unsynced_bytes),
        ("syncs", Counter, stats.syncs),
        ("leaked_open_items", Gauge, stats.leaked_open_items),
        ("damaged_items", Counter, stats.damaged_items),
        ("leases_ended", Counter, stats.leases_ended),
        ("dead_lettered", Counter, stats.dead_lettered),
    ]
}

fn of_server(server: &Server) -> Vec<Figure> {
    let set = server.set.stats();
    let counters = &server.counters;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    vec![
        ("uptime", Gauge, server.started.elapsed().as_secs()),
        ("time", Gauge, now),
        ("curr_items", Gauge, set.items),
        ("bytes", Gauge, set.bytes),
        ("queues", Gauge, set.queues),
        ("queue_creates", Counter, set.queue_creates),
        ("queue_deletes", Counter, set.queue_deletes),
        ("pool_segments", Gauge, set.pool_segments),
        ("pool_bytes", Gauge, set.pool_bytes),
        ("disk_bytes", Gauge, set.disk_bytes),
        ("curr_connections", Gauge, of(&counters.curr_connections)),
        ("total_connections", Counter, of(&counters.total_connections)),
        ("refused_connections", Counter, of(&counters.refused_connections)),
        ("cmd_get", Counter, of(&counters.cmd_get)),
        ("cmd_set", Counter, of(&counters.cmd_set)),
        ("cmd_peek", Counter, of(&counters.cmd_peek)),
        ("get_hits", Counter, of(&counters.get_hits)),
        ("get_misses", Counter, of(&counters.get_misses)),
        ("bytes_read", Counter, of(&counters.bytes_read)),
        ("bytes_written", Counter, of(&counters.bytes_written)),
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
    out.extend_from_slice(b"END\r\n");
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
    out.extend_from_slice(b"END\r\n");
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
    let head = |text: &mut String, name: &str, kind: Kind| {
        let kind = if kind == Counter { "counter" } else { "gauge" };
        let _ = writeln!(text, "# TYPE kestrel_{name} {kind}");
    };
    for (name, kind, value) in of_server(server) {
        head(&mut text, name, kind);
        let _ = writeln!(text, "kestrel_{name} {value}");
    }
    // All lines of one name stand together.
    for index in 0..all.first().map_or(0, |(_, figures)| figures.len()) {
        for (at, (queue, figures)) in all.iter().enumerate() {
            let (name, kind, value) = figures[index];
            if at == 0 {
                head(&mut text, &format!("queue_{name}"), kind);
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
