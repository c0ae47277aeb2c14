//! The rows: which work, which subjects, which figures of it.

use std::path::PathBuf;

use versus::figures::Better;

use crate::task::{Durable, Task, Work};

/// One workload and the rows that it gives.
pub struct Plan {
    pub group: &'static str,
    pub task: Task,
    pub subjects: Vec<&'static str>,
    pub shows: Vec<Show>,
}

/// One row: a figure of the workload, and how it is shown.
pub struct Show {
    pub key: &'static str,
    pub name: String,
    pub unit: &'static str,
    pub better: Better,
    pub factor: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Under two minutes: the subjects that lead a row, shorter times.
    Quick,
    Full,
}

impl Form {
    pub fn name(self) -> &'static str {
        if self == Form::Quick { "quick" } else { "full" }
    }

    pub fn repetitions(self) -> usize {
        if self == Form::Quick { 3 } else { 5 }
    }

    pub fn pick<T>(self, quick: T, full: T) -> T {
        if self == Form::Quick { quick } else { full }
    }
}

const OURS: &str = "kestrel-core";
const MAPPED: &str = "limit: frames in a map";
const LEADER: &str = "limit: leader and followers";
const BOXES: &str = "limit: boxes in memory";
const CHANNEL: &str = "crossbeam-channel";

/// Peers that never lead these rows by the measurements so far, and are slow to be filled: in the full form only.
const STORES: [&str; 6] = ["raft-engine", "persistent-queue", "fjall", "redb", "sled", "sqlite"];
const QUICK_LOGS: [&str; 4] = ["yaque", "queue-file", "disk-queue", "disk-chan"];
const LOGS: [&str; 5] = ["yaque", "queue-file", "walrus-rust", "disk-queue", "disk-chan"];

pub fn bytes(size: usize) -> String {
    if size < 1024 { format!("{size} B") } else { format!("{} KiB", size / 1024) }
}

pub fn task(work: Work, size: usize) -> Task {
    Task {
        work,
        subject: String::new(),
        sync: Durable::No,
        size,
        batch: false,
        threads: 1,
        ms: 0,
        items: 0,
        bytes: 0,
        rate: 0.0,
        dir: PathBuf::new(),
    }
}

fn show(key: &'static str, name: String, unit: &'static str, factor: f64) -> Show {
    Show { key, name, unit, better: Better::Higher, factor }
}

fn less(key: &'static str, name: String, unit: &'static str, factor: f64) -> Show {
    Show { better: Better::Lower, ..show(key, name, unit, factor) }
}

fn subjects(lists: &[&[&'static str]]) -> Vec<&'static str> {
    std::iter::once(OURS).chain(lists.iter().copied().flatten().copied()).collect()
}

pub fn plans(form: Form) -> Vec<Plan> {
    let ms = form.pick(80, 400);
    let stores: &[&'static str] = form.pick(&[], &STORES);
    let logs: &[&'static str] = form.pick(&QUICK_LOGS, &LOGS);
    let mut plans = Vec::new();
    let mut plan = |group, task, subjects, shows| plans.push(Plan { group, task, subjects, shows });
    const MILLION: f64 = 1e-6;
    const THOUSAND: f64 = 1e-3;
    for size in [64, 1024, 8192] {
        let text = bytes(size);
        plan(
            "no sync",
            Task { ms, ..task(Work::Turns, size) },
            subjects(&[logs, stores, &[MAPPED]]),
            vec![
                show("put", format!("put, no sync, {text}, recycled"), "M/s", MILLION),
                show("get", format!("get + close, {text}"), "M/s", MILLION),
            ],
        );
        plan(
            "no sync",
            Task { ms, bytes: form.pick(256 << 20, 2 << 30), ..task(Work::Grow, size) },
            subjects(&[logs, stores, &[MAPPED]]),
            vec![show("put", format!("put, no sync, {text}, first use"), "M/s", MILLION)],
        );
        let with_batches: &[&'static str] = form.pick(
            &["yaque"],
            &["yaque", "queue-file", "walrus-rust", "raft-engine", "fjall", "redb", "sled", "sqlite"],
        );
        plan(
            "no sync",
            Task { ms, batch: true, ..task(Work::Turns, size) },
            subjects(&[with_batches, &[MAPPED]]),
            vec![show("put", format!("batch of 100, no sync, {text}"), "M items/s", MILLION)],
        );
    }
    for pairs in [1, 2] {
        for size in [64, 1024, 8192] {
            let peers: &[&'static str] = form.pick(&["yaque", "disk-queue", "disk-chan"], &LOGS);
            plan(
                "producers and consumers",
                Task { ms, threads: pairs, bytes: form.pick(512 << 20, 4 << 30), ..task(Work::Pairs, size) },
                subjects(&[peers, stores, &[CHANNEL, BOXES, MAPPED]]),
                vec![show("through", format!("{pairs} x {pairs}, {}", bytes(size)), "M/s", MILLION)],
            );
        }
    }
    let syncing: &[&'static str] = form.pick(
        &["okaywal", "raft-engine", "fjall"],
        &["okaywal", "raft-engine", "fjall", "sled", "redb", "persistent-queue", "sqlite", "queue-file", "walrus-rust"],
    );
    let sync_ms = form.pick(150, 800);
    for threads in [1, 16, 64] {
        let name = format!("put, sync each, {threads} threads, 1 KiB").replace(" 1 threads", " 1 thread");
        let mut shows = vec![show("put", name.clone(), "k/s", THOUSAND)];
        if threads == 1 {
            shows.push(less("device", format!("device bytes, {name}"), "KiB/item", 1.0 / 1024.0));
        }
        let task = Task { sync: Durable::Each, ms: sync_ms, threads, ..task(Work::Synced, 1024) };
        plan("sync", task, subjects(&[syncing, &[LEADER]]), shows);
    }
    plan(
        "sync",
        Task { sync: Durable::Each, ms: sync_ms, batch: true, ..task(Work::Synced, 1024) },
        subjects(&[syncing, &[LEADER]]),
        vec![show("put", "batch of 100, sync each, 1 KiB".into(), "k items/s", THOUSAND)],
    );
    for size in [64, 1024] {
        // `append` is a call of queues that sync each put; the limit syncs the same files after a thousand frames.
        let lazy: &[&'static str] =
            form.pick(&["raft-engine", "fjall"], &["raft-engine", "fjall", "sled", "queue-file"]);
        plan(
            "sync",
            Task { ms: sync_ms, bytes: 2 << 30, ..task(Work::Append, size) },
            subjects(&[lazy, &[MAPPED]]),
            vec![show("put", format!("append, synced after 1000, 1 thread, {}", bytes(size)), "M/s", MILLION)],
        );
    }
    plan(
        "sync",
        Task { sync: Durable::Every, ms: form.pick(400, 1500), bytes: 6 << 30, ..task(Work::Grow, 1024) },
        subjects(&[
            form.pick(&["raft-engine"][..], &["raft-engine", "fjall", "sled", "queue-file", "walrus-rust"]),
            &[MAPPED],
        ]),
        vec![show("put", "put, synced every 100 ms, 1 KiB".into(), "M/s", MILLION)],
    );
    plan(
        "sync",
        Task { sync: Durable::Each, ms: sync_ms, threads: 10, ..task(Work::Queues, 1024) },
        subjects(&[
            form.pick(&["okaywal"][..], &["okaywal", "raft-engine", "fjall", "sled", "redb", "sqlite", "queue-file"]),
            &[LEADER],
        ]),
        vec![show("put", "10 queues, sync each, 1 KiB".into(), "k/s", THOUSAND)],
    );
    let waiting = ["yaque", "disk-chan", CHANNEL, BOXES];
    plan(
        "waiting",
        Task { ms: form.pick(200, 2000), ..task(Work::Wake, 64) },
        subjects(&[&waiting]),
        vec![
            less("p50", "wake of a blocked get, p50".into(), "us", 1.0),
            less("p99", "wake of a blocked get, p99".into(), "us", 1.0),
        ],
    );
    plan(
        "waiting",
        Task { ms: form.pick(80, 500), ..task(Work::PingPong, 64) },
        subjects(&[&waiting]),
        vec![less("p50", "ping-pong round trip, p50".into(), "us", 1.0)],
    );
    let backlogs = if form == Form::Quick { vec![1_000_000] } else { vec![1_000_000, 10_000_000] };
    for items in backlogs {
        let peers: &[&'static str] = if form == Form::Quick {
            &["yaque", "disk-queue"]
        } else if items > 1_000_000 {
            &["yaque", "disk-queue", "raft-engine", "fjall"]
        } else {
            &[
                "yaque",
                "queue-file",
                "walrus-rust",
                "disk-queue",
                "disk-chan",
                "raft-engine",
                "fjall",
                "redb",
                "sled",
                "sqlite",
            ]
        };
        let millions = items / 1_000_000;
        for (work, how) in [(Work::Fill, "closed"), (Work::FillKilled, "killed")] {
            plan(
                "reopen",
                Task { items, ..task(work, 64) },
                subjects(&[peers, &[MAPPED]]),
                vec![less("open", format!("reopen, {millions} M of 64 B, {how}"), "ms", THOUSAND)],
            );
        }
    }
    plan(
        "space",
        Task { items: 2_000_000, ..task(Work::Footprint, 64) },
        subjects(&[
            form.pick(
                &["yaque", "disk-queue"][..],
                &[
                    "yaque",
                    "queue-file",
                    "walrus-rust",
                    "disk-queue",
                    "disk-chan",
                    "raft-engine",
                    "fjall",
                    "redb",
                    "sled",
                    "sqlite",
                ],
            ),
            &[MAPPED],
        ]),
        vec![
            less("disk", "disk for an item of 64 B".into(), "bytes", 1.0),
            less("memory", "own memory, 2 M of 64 B waiting".into(), "MB", MILLION),
        ],
    );
    let total = form.pick(512 << 20, 6 << 30);
    let gb = if form == Form::Quick { "0.5 GiB" } else { "6 GiB" };
    for (work, how) in [(Work::KeptUp, "readers keep up"), (Work::Growing, "growing backlog")] {
        if work == Work::Growing && form == Form::Quick {
            continue;
        }
        plan(
            "sustained",
            Task { bytes: total, ..task(work, 8192) },
            subjects(&[form.pick(&["yaque"][..], &["yaque", "queue-file", "disk-chan", "raft-engine"]), &[MAPPED]]),
            vec![
                show("put", format!("{gb} of 8 KiB, {how}"), "k/s", THOUSAND),
                less("device", format!("device bytes per payload byte, {gb}, {how}"), "B/B", 1.0),
            ],
        );
    }
    plans
}

/// The open-loop rows: name, size and subjects.
pub fn latencies(form: Form) -> Vec<(String, Task, Vec<&'static str>)> {
    let sizes: &[usize] = form.pick(&[1024], &[64, 1024, 8192]);
    let peers: &[&'static str] = form.pick(&["yaque"], &["yaque", "disk-queue", "disk-chan", CHANNEL]);
    sizes
        .iter()
        .map(|size| {
            let task =
                Task { ms: form.pick(150, 2000), bytes: form.pick(512 << 20, 4 << 30), ..task(Work::Latency, *size) };
            (format!("no sync, {}", bytes(*size)), task, subjects(&[peers, &[MAPPED]]))
        })
        .collect()
}

/// Name, task and what it shows: this crate alone.
pub fn scales(queues: u64, backlog_gb: u64) -> Vec<(String, Task)> {
    let mut scales = vec![
        (format!("{queues} queues in one set"), Task { items: queues, ..task(Work::ManyQueues, 64) }),
        (
            format!("{backlog_gb} GB of 1 KiB behind a memory budget of 64 MB"),
            Task { bytes: backlog_gb * 1_000_000_000, ..task(Work::BigBacklog, 1024) },
        ),
        (
            "5 GB of 1 KiB through, one item in 1,000 never closed".into(),
            Task { bytes: 5_000_000_000, ..task(Work::Stragglers, 1024) },
        ),
        ("1,000 waiting consumers".into(), Task { threads: 1000, ..task(Work::Waiters, 64) }),
    ];
    for items in [10, 1_000, 100_000, 1_000_000, 10_000_000] {
        scales.push((format!("put and get behind {items} items of 64 B"), Task { items, ..task(Work::Depth, 64) }));
    }
    scales
}
