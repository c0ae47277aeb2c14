//! The tree keeps its shape: layers call down, the system is touched behind its door, unsafe code stays in its room.

use std::path::{Path, PathBuf};

/// What each room may use of the crate, beside plain data. A room is the first part of a path below `src`.
const LAYERS: &[(&str, &[&str])] = &[
    ("disk", &[]),
    ("format", &["planted", "journal"]),
    ("clock", &["disk"]),
    ("journal", &["disk", "format", "planted"]),
    ("reader", &["disk", "format", "journal", "clock", "planted"]),
    ("upkeep", &["disk", "queue"]),
    ("queue", &["disk", "journal", "reader", "clock", "upkeep", "planted", "typed", "set"]),
    ("set", &["disk", "format", "journal", "reader", "queue", "clock", "upkeep", "planted", "testing"]),
    ("typed", &["queue"]),
    // On the public API only: no room below the queue's and the set's.
    ("jobs", &["queue", "set", "typed", "planted"]),
];
/// Where the public types of the queue live.
const PUBLIC: &[&str] =
    &["queue::Queue", "queue::open_item::OpenItem", "queue::browse::ItemState", "queue::futures::OpenFuture"];
const PLAIN: &[&str] = &["error", "ids", "item", "options", "stats", "sync"];
/// Rooms that the models compile too: threads meet there only by what `sync` offers.
const MODELLED: &[&str] = &["clock", "journal", "queue", "reader", "set", "upkeep"];
const SYNC_WORDS: &[&str] = &["parking_lot", "event_listener", "crossbeam_channel", "std::sync::atomic", "std::thread"];
/// Words that mean the system, and the rooms that may say them.
const DOORS: &[(&str, &str)] = &[
    ("std::fs", "disk/"),
    ("fs::File", "disk/"),
    ("memmap2", "disk/map.rs"),
    ("rustix::", "disk/"),
    ("Instant::now", "disk/"),
    ("SystemTime::now", "disk/"),
    ("thread::sleep", "disk/"),
    ("unsafe {", "disk/map.rs"),
];

fn files(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files(&path, all);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all.push(path);
        }
    }
}

/// The code of a file: without comments and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn violations(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") && name != "lib.rs" {
        found.push(format!("{name} does not say what it is for"));
    }
    let code = code(text);
    for (word, room) in DOORS {
        if code.contains(word) && !name.starts_with(room) {
            found.push(format!("{name} says {word}, which belongs to {room}"));
        }
    }
    let room = name.split(['/', '.']).next().unwrap_or(name);
    for word in SYNC_WORDS.iter().filter(|word| MODELLED.contains(&room) && code.contains(**word)) {
        found.push(format!("{name} says {word}, which it should take from sync"));
    }
    if let Some((_, may)) = LAYERS.iter().find(|(layer, _)| *layer == room) {
        for part in code.split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if room == "jobs" && part.starts_with("queue::") && !PUBLIC.iter().any(|door| part.starts_with(door)) {
                found.push(format!("{name} uses a room of the queue that is not public"));
            }
            if !used.is_empty() && used != room && !PLAIN.contains(&used.as_str()) && !may.contains(&used.as_str()) {
                found.push(format!("{name} uses {used}"));
            }
        }
    }
    found
}

#[test]
fn the_tree_keeps_its_shape() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    assert!(all.len() > 20);
    let mut found = Vec::new();
    for path in all {
        let name = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
        found.extend(violations(&name, &std::fs::read_to_string(&path).expect("readable")));
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn each_rule_catches_its_planted_violation() {
    for (name, text) in [
        ("queue/mod.rs", "//! x\nuse std::fs;"),
        ("journal/mod.rs", "//! x\nlet now = Instant::now();"),
        ("reader/mod.rs", "//! x\nunsafe { *p }"),
        ("disk/real.rs", "//! x\nuse crate::journal::Journal;"),
        ("journal/pool.rs", "//! x\nuse crate::queue::Queue;"),
        ("reader/mod.rs", "use crate::ids::Place;"),
        ("journal/commit.rs", "//! x\nuse parking_lot::Mutex;"),
        ("jobs/team.rs", "//! x\nuse crate::reader::Reader;"),
        ("jobs/team.rs", "//! x\nuse crate::queue::core::Core;"),
        ("queue/mod.rs", "//! x\nuse crate::jobs::Jobs;"),
    ] {
        assert_eq!(violations(name, text).len(), 1, "{name}: {text}");
    }
}
