//! A process with few descriptors: typed errors, nothing lost, and work goes on when some are freed.

use std::fs::File;
use std::process::Command;

use kestrel_core::{Durability, GetError, OpenError, PutError, Queue, QueueOptions, QueueSet};

const CHILD: &str = "KESTREL_LIMITS_CHILD";

/// Runs in a child that may have 64 descriptors.
#[test]
fn child_entry() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let options = QueueOptions::default().durability(Durability::Os);
    let set = QueueSet::builder().defaults(options).open(dir).expect("opens");
    let this = std::env::current_exe().expect("this binary");
    let others: Vec<File> = (0..8).map(|_| File::open(&this).expect("a file of somebody else's")).collect();
    // Twice each, so that each one's last segment was closed in between.
    let queues: Vec<Queue> = (0..300)
        .map(|n| {
            let queue = set.queue(&format!("q{n}")).expect("whatever the number of queues");
            queue.put(queue.name()).expect("room");
            queue
        })
        .collect();
    for queue in &queues {
        queue.put("again").expect("room");
    }
    let (open, files) = (set.stats().open_files, open_now());
    assert!(open <= 34, "{open} segments are open");
    assert!(files <= 34 + 8 + 16, "{files} files are open");

    // Somebody else takes all that is left: what needs another file says so, and the rest goes on.
    let taken: Vec<File> = std::iter::from_fn(|| File::open(&this).ok()).collect();
    assert!(!taken.is_empty());
    let new = set.queue("new").map(|_| ());
    assert!(matches!(new, Err(OpenError::TooManyFiles { .. })), "{new:?}");
    let mut refused = 0;
    let mut next = vec![0; queues.len()];
    for (queue, next) in queues.iter().zip(&mut next) {
        match queue.put("third") {
            Ok(_) => *next = 1,
            Err(PutError::TooManyFiles { queue: name, .. }) => {
                assert_eq!(name, queue.name());
                refused += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
        // What could not be read is still there afterwards.
        match queue.peek() {
            Ok(Some(item)) => assert_eq!(item.data(), queue.name().as_bytes()),
            Err(GetError::TooManyFiles { queue: name, .. }) => assert_eq!(name, queue.name()),
            other => panic!("{other:?}"),
        }
    }
    assert!(refused < queues.len(), "closed segments make room for others");
    drop((others, taken));
    for (queue, third) in queues.iter().zip(next) {
        let expected = [queue.name(), "again", "third"];
        for expected in &expected[..2 + third] {
            assert_eq!(queue.get().expect("there").data(), expected.as_bytes());
        }
        assert_eq!(queue.len(), 0);
    }
    let queue = set.queue("late").expect("room again");
    queue.put("late").expect("room again");
    assert_eq!(queue.get().expect("there").data(), b"late");
    set.close().expect("closes");
}

/// The descriptors of this process.
fn open_now() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[cfg(unix)]
#[test]
fn f37_f38_few_descriptors_serve_many_queues_and_none_left_is_a_typed_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact child_entry --nocapture --test-threads 1"])
        .arg(std::env::current_exe().expect("this binary"))
        .env(CHILD, dir.path())
        .output()
        .expect("a child");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let set = QueueSet::open(dir.path()).expect("opens with all descriptors");
    assert_eq!(set.names().len(), 301, "what was refused left nothing");
}

const LONG: &str = "KESTREL_LIMITS_LONG";

/// Runs in a child that may have 64 descriptors.
#[test]
fn long_entry() {
    let Ok(dir) = std::env::var(LONG) else {
        return;
    };
    let set = QueueSet::open(dir).expect("opens");
    let queue = set.queue("q").expect("whatever the number of its segments");
    queue.sync().expect("syncs");
    let mut next = 1u32;
    while next <= 200 {
        // Upkeep closes what was read, in its own time.
        let Ok(item) = queue.get() else { continue };
        assert_eq!(item.data()[..4], next.to_le_bytes());
        next += if next % 3 == 2 { 2 } else { 1 };
    }
    drop(queue);
    set.close().expect("closes");
}

#[cfg(unix)]
#[test]
fn f37_a_queue_of_more_segments_than_descriptors_opens() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = QueueOptions::default().durability(Durability::Os).segment_bytes(64 << 10);
    let set = QueueSet::open(dir.path()).expect("opens");
    let queue = set.queue_with("q", options).expect("opens");
    // Three to a segment, of which the last is done.
    for n in 1..=200u32 {
        queue.put([n.to_le_bytes().to_vec(), vec![7; 18_000]].concat()).expect("room");
    }
    let mut held = Vec::new();
    for n in 1..=200u32 {
        let item = queue.open().expect("there");
        if n % 3 == 0 { item.close().expect("marked") } else { held.push(item) }
    }
    // As a process that died would have left it.
    std::mem::forget((held, queue));
    let copy = tempfile::tempdir().expect("a directory");
    let status = Command::new("cp").arg("-a").arg(dir.path().join(".")).arg(copy.path()).status().expect("runs");
    assert!(status.success());
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact long_entry --nocapture --test-threads 1"])
        .arg(std::env::current_exe().expect("this binary"))
        .env(LONG, copy.path())
        .output()
        .expect("a child");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}

/// Runs in a child that may have 64 descriptors.
#[test]
fn moved_entry() {
    let Ok(dir) = std::env::var(MOVED) else {
        return;
    };
    let set = QueueSet::open(dir).expect("opens");
    assert_eq!((set.queue("from").expect("opens").len(), set.queue("into").expect("opens").len()), (199, 1));
}

const MOVED: &str = "KESTREL_LIMITS_MOVED";

/// The journal is looked through for what moved: each segment stayed open, until there were too many, and the old item came
/// beside the new one.
#[cfg(unix)]
#[test]
fn f37_a_move_is_settled_in_a_queue_of_more_segments_than_descriptors() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = QueueOptions::default().durability(Durability::Os).segment_bytes(64 << 10);
    let set = QueueSet::builder().defaults(options).open(dir.path()).expect("opens");
    let (from, into) = (set.queue("from").expect("opens"), set.queue("into").expect("opens"));
    for _ in 0..200 {
        from.put(vec![7; 18_000]).expect("room");
    }
    let copy = tempfile::tempdir().expect("a directory");
    let copied = |what: &str| {
        let status = Command::new("cp").arg("-a").arg(dir.path().join(what)).arg(copy.path()).status().expect("runs");
        assert!(status.success());
    };
    let item = from.open().expect("there");
    copied(".");
    item.close_into(&into, "new").expect("moves");
    // As a power cut that takes the mark would have left it.
    copied("moves");
    std::fs::remove_dir_all(copy.path().join("queues/into")).expect("there");
    let into = dir.path().join("queues/into");
    let status = Command::new("cp").arg("-a").arg(into).arg(copy.path().join("queues")).status().expect("runs");
    assert!(status.success());
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact moved_entry --nocapture --test-threads 1"])
        .arg(std::env::current_exe().expect("this binary"))
        .env(MOVED, copy.path())
        .output()
        .expect("a child");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}
