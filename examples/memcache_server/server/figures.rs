//! The server's numbers in their four shapes: `stats`, `dump_stats`, `dump_config`, and a page for Prometheus.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::Queue;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::{Server, config};

/// Longest head of a request for the page, and how long it and the answer may take.
const HEAD_MAX: usize = 8 << 10;
const PAGE_TIME: Duration = Duration::from_secs(5);

/// The numbers that only grow.
const COUNTERS: &str = "total_items put_bytes get_hits get_misses expired_items discarded transactions \
    canceled_transactions total_flushes redelivered syncs damaged_items leases_ended dead_lettered queue_creates \
    queue_deletes queue_expires total_connections refused_connections cmd_get cmd_set cmd_peek bytes_read bytes_written";

/// The numbers of a structure, by Kestrel's names where it had one.
fn numbers(stats: impl Serialize) -> Vec<(String, u64)> {
    let Ok(serde_json::Value::Object(stats)) = serde_json::to_value(stats) else {
        return Vec::new();
    };
    let kestrels = |(name, value): (String, serde_json::Value)| {
        let value = value.as_u64()?;
        Some(match name.as_str() {
            "age_ms" => ("age".to_owned(), value),
            "oldest_age_ms" => ("oldest_age".to_owned(), value),
            "log_size" => ("logsize".to_owned(), value),
            "open_items" => ("open_transactions".to_owned(), value),
            "create_time_ms" => ("create_time".to_owned(), value / 1000),
            _ => (name, value),
        })
    };
    stats.into_iter().filter_map(kestrels).collect()
}

fn of_server(server: &Server) -> Vec<(String, u64)> {
    let mut all = numbers(server.set.stats());
    all.extend(numbers(&server.counters));
    all.push(("uptime".to_owned(), server.started.elapsed().as_secs()));
    all.push(("time".to_owned(), UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()));
    all
}

/// The queues of these names, or all. Those that do not open are left out; a request for one of them says why.
fn queues(server: &Server, names: &[&str]) -> Vec<Queue> {
    let all = if names.is_empty() { server.set.names() } else { names.iter().map(|name| (*name).to_owned()).collect() };
    all.iter().filter_map(|name| server.queue(name, false).ok().flatten()).collect()
}

pub(super) fn stats(server: &Server) -> String {
    let mut text = format!("STAT kestrel_core {}\r\n", env!("CARGO_PKG_VERSION"));
    let queues = queues(server, &[]);
    // Writing into memory does not fail, here and below.
    for (name, value) in of_server(server) {
        let _ = write!(text, "STAT {name} {value}\r\n");
    }
    for queue in queues {
        for (name, value) in numbers(queue.stats()) {
            let _ = write!(text, "STAT queue_{}_{name} {value}\r\n", queue.name());
        }
    }
    text
}

pub(super) fn dump_stats(server: &Server, names: &[&str]) -> String {
    sections(queues(server, names), |queue| numbers(queue.stats()))
}

pub(super) fn dump_config(server: &Server, names: &[&str]) -> String {
    sections(queues(server, names), |queue| config::shown(&queue.options()))
}

fn sections<T: Display>(queues: Vec<Queue>, lines: impl Fn(&Queue) -> Vec<(String, T)>) -> String {
    let mut text = String::new();
    for queue in queues {
        let _ = write!(text, "queue '{}' {{\r\n", queue.name());
        for (name, value) in lines(&queue) {
            let _ = write!(text, "  {name}={value}\r\n");
        }
        text.push_str("}\r\n");
    }
    text
}

/// The page, in the text format of Prometheus.
fn page(server: &Server) -> String {
    let kind = |name: &str| if COUNTERS.split(' ').any(|counter| counter == name) { "counter" } else { "gauge" };
    let named = |queue: &Queue| {
        let name = queue.name().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        (name, numbers(queue.stats()))
    };
    let all: Vec<_> = queues(server, &[]).iter().map(named).collect();
    let mut text = String::new();
    for (name, value) in of_server(server) {
        let _ = writeln!(text, "# TYPE kestrel_{name} {}\nkestrel_{name} {value}", kind(&name));
    }
    // All lines of one name stand together.
    for (index, (name, _)) in all.first().map_or(&[][..], |(_, numbers)| numbers).iter().enumerate() {
        let _ = writeln!(text, "# TYPE kestrel_queue_{name} {}", kind(name));
        for (queue, numbers) in &all {
            let _ = writeln!(text, "kestrel_queue_{name}{{queue=\"{queue}\"}} {}", numbers[index].1);
        }
    }
    text
}

/// Serves the page, to one after the other, until dropped.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(timeout(PAGE_TIME, answer(&server, stream)).await),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn answer(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => ("200 OK", block_in_place(|| page(server))),
        false => ("404 Not Found", "see /metrics\n".to_owned()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    stream.shutdown().await
}
