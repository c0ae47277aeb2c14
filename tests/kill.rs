//! Real processes, really killed: a child works on a set with several threads and writes down what it was answered; SIGKILL
//! at a random moment; the parent recovers and compares.
//!
//! `KESTREL_KILLS` rounds (default 60), `KESTREL_SEED`. The child is this very test binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kestrel_core::{Durability, QueueOptions, QueueSet};

const CHILD: &str = "KESTREL_KILL_CHILD";

/// splitmix64
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn options(durability: &str) -> QueueOptions {
    QueueOptions::default().segment_bytes(64 << 10).durability(match durability {
        "sync" => Durability::Sync,
        "every" => Durability::Every(Duration::from_millis(5)),
        _ => Durability::Os,
    })
}

/// Writer, sequence, length, then bytes that follow from both.
fn payload(writer: u64, sequence: u64) -> Vec<u8> {
    let mut seed = writer << 40 | sequence;
    let len = 24 + random(&mut seed) as usize % [40, 300, 5000][sequence as usize % 3];
    let mut bytes = [writer.to_le_bytes(), sequence.to_le_bytes(), (len as u64).to_le_bytes()].concat();
    while bytes.len() < len {
        bytes.extend_from_slice(&random(&mut seed).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u64, u64)> {
    let writer = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == payload(writer, sequence)).then_some((writer, sequence))
}

/// One line of a thread's ledger: what, writer, sequence. Written whole by one `write`, after the answer or before the
/// question, so that what is in it is true whenever the process dies.
fn note(ledger: &mut File, what: u8, writer: u64, sequence: u64) {
    let mut line = [0; 17];
    line[0] = what;
    line[1..9].copy_from_slice(&writer.to_le_bytes());
    line[9..].copy_from_slice(&sequence.to_le_bytes());
    ledger.write_all(&line).expect("the ledger takes it");
}

#[test]
fn child_entry() {
    let Ok(job) = std::env::var(CHILD) else {
        return;
    };
    let mut parts = job.split('|');
    let mut part = || parts.next().expect("five parts").to_owned();
    let (dir, durability, round, threads, seed) = (part(), part(), part(), part(), part());
    let (round, threads, seed): (u64, u64, u64) =
        (round.parse().expect("a number"), threads.parse().expect("a number"), seed.parse().expect("a number"));
    let set = QueueSet::builder().defaults(options(&durability)).open(Path::new(&dir).join("set")).expect("opens");
    let queue = set.queue("q").expect("recovers");
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let queue = queue.clone();
            let path = Path::new(&dir).join(format!("ledger-{round}-{thread}"));
            scope.spawn(move || {
                let mut ledger = OpenOptions::new().create(true).append(true).open(path).expect("a ledger");
                let mut state = seed ^ thread << 32;
                let writer = round << 8 | thread;
                let mut sequence = 0;
                loop {
                    match random(&mut state) % 8 {
                        0..=3 => {
                            note(&mut ledger, b'p', writer, sequence);
                            queue.put(payload(writer, sequence)).expect("room");
                            note(&mut ledger, b'P', writer, sequence);
                            sequence += 1;
                        }
                        4 => {
                            let batch: Vec<Vec<u8>> = (0..3).map(|n| payload(writer, sequence + n)).collect();
                            (0..3).for_each(|n| note(&mut ledger, b'p', writer, sequence + n));
                            queue.put_batch(&batch).expect("room");
                            (0..3).for_each(|n| note(&mut ledger, b'P', writer, sequence + n));
                            sequence += 3;
                        }
                        5 | 6 => {
                            if let Some(item) = queue.try_open().expect("undamaged") {
                                let (from, number) = parse(item.data()).expect("a payload of ours");
                                note(&mut ledger, b'c', from, number);
                                item.close().expect("marked");
                                note(&mut ledger, b'C', from, number);
                            }
                        }
                        _ => drop(queue.try_open().expect("undamaged")),
                    }
                }
            });
        }
        println!("ready");
        std::io::stdout().flush().expect("heard");
    });
}

struct Ledger {
    asked: BTreeSet<(u64, u64)>,
    put: BTreeSet<(u64, u64)>,
    close_asked: BTreeSet<(u64, u64)>,
    closed: BTreeSet<(u64, u64)>,
}

fn read_ledgers(dir: &Path) -> Ledger {
    let mut ledger =
        Ledger { asked: BTreeSet::new(), put: BTreeSet::new(), close_asked: BTreeSet::new(), closed: BTreeSet::new() };
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ledger")) {
            continue;
        }
        let bytes = std::fs::read(path).expect("readable");
        for line in bytes.chunks_exact(17) {
            let key = (
                u64::from_le_bytes(line[1..9].try_into().expect("eight")),
                u64::from_le_bytes(line[9..].try_into().expect("eight")),
            );
            match line[0] {
                b'p' => ledger.asked.insert(key),
                b'P' => ledger.put.insert(key),
                b'c' => ledger.close_asked.insert(key),
                _ => ledger.closed.insert(key),
            };
        }
    }
    ledger
}

static ROUNDS: AtomicU64 = AtomicU64::new(0);

#[test]
fn f01_killed_at_a_random_moment_nothing_answered_is_lost_and_nothing_invented() {
    let rounds: u64 = std::env::var("KESTREL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let seed: u64 = std::env::var("KESTREL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_nanos() as u64
    });
    println!("kill: seed {seed}");
    let mut state = seed;
    let mut acknowledged = 0;
    let mut total_rounds = 0;
    // Several lives on one directory, then a fresh one.
    while total_rounds < rounds {
        let dir = tempfile::tempdir().expect("a directory");
        let durability = ["sync", "os", "every"][random(&mut state) as usize % 3];
        for round in 0..5.min(rounds - total_rounds) {
            life(dir.path(), durability, round, &mut state);
            total_rounds += 1;
            ROUNDS.fetch_add(1, Ordering::Relaxed);
        }
        acknowledged += judge(dir.path(), durability, seed);
    }
    println!("kill: {total_rounds} rounds, {acknowledged} acknowledged, 0 lost, 0 invented");
}

fn life(dir: &Path, durability: &str, round: u64, state: &mut u64) {
    let threads = 1 + random(state) % 8;
    let job = format!("{}|{durability}|{round}|{threads}|{}", dir.display(), random(state));
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "child_entry", "--nocapture", "--test-threads", "1"])
        .env(CHILD, job)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let mut out = child.stdout.take().expect("piped");
    let mut heard = Vec::new();
    let mut byte = [0];
    let start = Instant::now();
    while !heard.ends_with(b"ready") {
        match out.read(&mut byte) {
            Ok(1) => heard.push(byte[0]),
            _ => panic!("the child ended by itself: {}", String::from_utf8_lossy(&heard)),
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the child does not get ready");
    }
    std::thread::sleep(Duration::from_micros(random(state) % 20_000));
    child.kill().expect("killed");
    child.wait().expect("gone");
}

fn judge(dir: &Path, durability: &str, seed: u64) -> u64 {
    let ledger = read_ledgers(dir);
    let path: PathBuf = dir.join("set");
    let open = || QueueSet::builder().defaults(options(durability)).open(&path).expect("opens after a kill");
    let first = {
        let set = open();
        let queue = set.queue("q").expect("recovers");
        assert!(queue.recovery().lost.is_empty(), "seed {seed}: {:?}", queue.recovery());
        (queue.len(), queue.stats().bytes)
    };
    let set = open();
    let queue = set.queue("q").expect("recovers again");
    assert_eq!(first, (queue.len(), queue.stats().bytes), "seed {seed}: two recoveries differ");
    let mut there = BTreeSet::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_id = 0;
    while let Some(item) = queue.try_open().expect("undamaged") {
        let key = parse(item.data()).unwrap_or_else(|| panic!("seed {seed}: a payload that was never put"));
        assert!(there.insert(key), "seed {seed}: {key:?} came twice");
        assert!(ledger.asked.contains(&key), "seed {seed}: {key:?} was never asked for");
        assert!(item.id().get() > last_id, "seed {seed}: ids fall");
        last_id = item.id().get();
        let before = last.insert(key.0, key.1);
        assert!(before.is_none_or(|before| before < key.1), "seed {seed}: writer {} out of order", key.0);
        item.close().expect("marked");
    }
    for key in &ledger.put {
        if !ledger.close_asked.contains(key) {
            assert!(there.contains(key), "seed {seed}, {durability}: {key:?} was answered and is gone");
        }
    }
    for key in &ledger.closed {
        assert!(!there.contains(key), "seed {seed}, {durability}: {key:?} was closed and is back");
    }
    ledger.put.len() as u64
}
