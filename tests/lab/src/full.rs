//! Full and odd file systems: no space at each allocation, no inodes, a quota, a device that turns read-only, a mount that is
//! read-only, snapshots. Each case runs in a process of its own, so that a signal is seen as what it is.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kestrel_core::{PutError, QueueSet};

use crate::figures::Outcome;
use crate::mounts::{Kind, OtherBoot, Scratch, run, text};
use crate::work::{Cut, Ledger, judge, options, parse, payload};

const EXT4: Kind = Kind { name: "ext4", mkfs: &["mkfs.ext4", "-q", "-m", "0"], options: "", mib: 16 };
const KINDS: &[Kind] = &[
    EXT4,
    Kind { name: "ext4, blocks of 1 KiB", mkfs: &["mkfs.ext4", "-q", "-m", "0", "-b", "1024"], options: "", mib: 16 },
    Kind { name: "ext4, data in the journal", mkfs: &["mkfs.ext4", "-q", "-m", "0"], options: "data=journal", mib: 16 },
    Kind { name: "xfs", mkfs: &["mkfs.xfs", "-q"], options: "", mib: 320 },
    // Freed space comes back with a commit: every second, not every 30.
    Kind { name: "btrfs", mkfs: &["mkfs.btrfs", "-q"], options: "commit=1", mib: 128 },
    Kind { name: "vfat", mkfs: &["mkfs.vfat"], options: "", mib: 16 },
    Kind { name: "tmpfs", mkfs: &[], options: "", mib: 8 },
];
const INODES: Kind = Kind { name: "ext4 with 40 inodes", mkfs: &["mkfs.ext4", "-q", "-m", "0", "-N", "40"], ..EXT4 };
const QUOTA: Kind = Kind {
    name: "ext4 with a quota",
    mkfs: &["mkfs.ext4", "-q", "-m", "0", "-O", "quota"],
    options: "usrquota",
    ..EXT4
};
/// Steps of free space that are tried below the first 800 KiB.
const STEP_KIB: u64 = 32;
const NOBODY: u32 = 65_534;

/// The child: puts until the medium is full, takes most of it back, and must be able to put again.
///
/// `fill DIR LEDGER MODE`
pub fn fill(dir: &Path, ledger: &Path, mode: &str) -> Result<(), String> {
    use std::io::Write;
    let mut ledger =
        std::fs::OpenOptions::new().create(true).append(true).open(ledger).map_err(|e| format!("the ledger: {e}"))?;
    let mut note = |line: String| ledger.write_all(line.as_bytes()).map_err(|e| format!("the ledger: {e}"));
    // A refusal to begin is an answer, too: nothing was promised.
    let Ok(set) = QueueSet::builder().defaults(options(mode)).open(dir.join("set")) else { return Ok(()) };
    let Ok(queue) = set.queue("q") else { return Ok(()) };
    let writer = u64::from(std::process::id());
    let mut sequence = 0;
    let mut refused = None;
    while refused.is_none() && sequence < 400_000 {
        let key = (writer, sequence);
        sequence += 1;
        note(format!("p {} {}\n", key.0, key.1))?;
        let answer = queue.put(payload(key));
        let what = match &answer {
            Ok(_) => 'P',
            Err(PutError::Indeterminate { .. }) => 'I',
            Err(_) => 'R',
        };
        note(format!("{what} {} {}\n", key.0, key.1))?;
        refused = answer.err();
    }
    let Some(refused) = refused else { return Err("the medium never filled up".into()) };
    println!("refused: {refused}");
    let failed = matches!(refused, PutError::Indeterminate { .. } | PutError::Failed { .. });
    let mut left = queue.len() / 4;
    while queue.len() > left {
        let item = match queue.try_open() {
            Ok(Some(item)) => item,
            Ok(None) => break,
            Err(error) => return Err(format!("open on a full medium: {error}")),
        };
        let key = parse(item.data()).ok_or("I4: other bytes")?;
        note(format!("c {} {}\n", key.0, key.1))?;
        match item.close() {
            Ok(()) => note(format!("C {} {}\n", key.0, key.1))?,
            // A mark is a positional write where nothing is mapped, and needs space on some systems.
            Err(error) => {
                println!("close: {error}");
                left = queue.len();
            }
        }
    }
    if failed || sequence == 1 {
        return Ok(());
    }
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let key = (writer, sequence);
        sequence += 1;
        note(format!("p {} {}\n", key.0, key.1))?;
        match queue.put(payload(key)) {
            Ok(_) => return note(format!("P {} {}\n", key.0, key.1)),
            Err(PutError::Indeterminate { .. }) => return note(format!("I {} {}\n", key.0, key.1)),
            Err(PutError::NoSpace { .. }) if Instant::now() < patience => {
                note(format!("R {} {}\n", key.0, key.1))?;
                std::thread::sleep(Duration::from_millis(20));
            }
            // With a few segments in all, the rest may still hold each of them.
            Err(PutError::NoSpace { .. }) if queue.stats().segments <= 2 => return Ok(()),
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                return Err(format!("puts do not go on once items were closed: {error}: {source}"));
            }
        }
    }
}

/// Runs the child. Whether a put met the end of the space, after the set and the queue could be opened.
fn filled(dir: &Path, ledger: &Path, mode: &str, user: Option<u32>) -> Result<bool, String> {
    let _ = std::fs::remove_file(ledger);
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(program);
    child.arg("fill").arg(dir).arg(ledger).arg(mode);
    if let Some(user) = user {
        child.uid(user).gid(user);
    }
    let output = child.output().map_err(|e| e.to_string())?;
    if let Some(signal) = output.status.signal() {
        return Err(format!("killed by signal {signal}"));
    }
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).contains("no space"))
}

/// Whether the file system has turned itself read-only.
fn gave_up(dir: &Path) -> bool {
    matches!(std::fs::write(dir.join("probe"), b""), Err(error) if error.raw_os_error() == Some(libc::EROFS))
}

fn judged(dir: &Path, ledger: &Path, mode: &str, cut: Cut) -> Result<(), String> {
    let mut book = Ledger::default();
    book.read(&std::fs::read_to_string(ledger).unwrap_or_default());
    judge(dir, &book, mode, cut).map(|_| ())
}

fn free_bytes(dir: &Path) -> Result<u64, String> {
    let out = run(&["df", "--output=avail", "-B1", &text(dir)])?;
    out.lines().last().and_then(|line| line.trim().parse().ok()).ok_or_else(|| format!("df says {out:?}"))
}

/// Fills the mount but for `left` bytes.
fn filler(dir: &Path, left: u64) -> Result<(), String> {
    let file = dir.join("filler");
    let _ = std::fs::remove_file(&file);
    let size = free_bytes(dir)?.saturating_sub(left);
    if size == 0 {
        return Ok(());
    }
    let made = run(&["fallocate", "-l", &size.to_string(), &text(&file)]);
    let wanted = std::fs::metadata(&file).map(|m| m.len()).unwrap_or(0);
    match made {
        Ok(_) => Ok(()),
        Err(_) if wanted > 0 => Ok(()),
        Err(_) => {
            let count = (size >> 10).to_string();
            let _ = run(&["dd", "if=/dev/zero", &format!("of={}", text(&file)), "bs=1024", &format!("count={count}")]);
            Ok(())
        }
    }
}

/// No space at each allocation.
fn full(kind: &Kind, steps: u64, tally: &mut Tally) -> Result<(), String> {
    let scratch = Scratch::new("full")?;
    let mut mount = match kind.make(&scratch.0) {
        Ok(mount) => mount,
        Err(why) => {
            tally.skipped.push(format!("{} ({})", kind.name, short(&why)));
            return Ok(());
        }
    };
    let ledger = scratch.0.join("ledger");
    for mode in ["sync", "os"] {
        for step in 0..steps {
            let dir = mount.dir.join("d");
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
            filler(&mount.dir, (step * STEP_KIB) << 10)?;
            let ran = filled(&dir, &ledger, mode, None);
            tally.met += u64::from(matches!(ran, Ok(true)));
            let result = match gave_up(&mount.dir) {
                // Some systems stop writing altogether: then it is as if the power had gone, and what it said by then holds.
                true => {
                    tally.gave_up += 1;
                    let again = mount.again(kind.fs(), kind.options)?;
                    let boot = OtherBoot::begin(&scratch.0)?;
                    let result = judged(&dir, &ledger, mode, Cut::Power);
                    drop((boot, again));
                    mount = kind.make(&scratch.0)?;
                    result
                }
                false => ran.and_then(|_| {
                    let _ = std::fs::remove_file(mount.dir.join("filler"));
                    // Some systems give space back with their next commit only.
                    let _ = run(&["sync", "-f", &text(&mount.dir)]);
                    judged(&dir, &ledger, mode, Cut::Kill)
                }),
            };
            tally.note(&format!("{}, {mode}, {} KiB free", kind.name, step * STEP_KIB), result);
        }
    }
    Ok(())
}

/// The system's own words, without places.
fn short(why: &str) -> &str {
    let line = why.lines().next().unwrap_or_default();
    line.rsplit(": ").next().unwrap_or_default().trim_end_matches('.')
}

/// What was tried, and what could not be.
#[derive(Default)]
struct Tally {
    outcome: Outcome,
    cases: u64,
    met: u64,
    gave_up: u64,
    skipped: Vec<String>,
}

impl Tally {
    fn note(&mut self, name: &str, result: Result<(), String>) {
        self.cases += 1;
        self.outcome.note(result.is_ok());
        if let Err(error) = result {
            println!("full: {name}: {error}");
        }
    }
}

/// Queues until the inodes run out; those that are there go on.
fn inodes() -> Result<(), String> {
    let scratch = Scratch::new("inodes")?;
    let mount = INODES.make(&scratch.0)?;
    let set = QueueSet::open(mount.dir.join("set")).map_err(|e| e.to_string())?;
    let mut made = Vec::new();
    let refused = loop {
        let name = format!("q{}", made.len());
        match set
            .queue(&name)
            .map_err(|e| e.to_string())
            .and_then(|q| q.put(b"x").map(|_| q).map_err(|e| e.to_string()))
        {
            Ok(queue) => made.push(queue),
            Err(error) => break error,
        }
        if made.len() > 1000 {
            return Err("the inodes never ran out".into());
        }
    };
    if made.is_empty() {
        return Err(format!("not one queue: {refused}"));
    }
    for queue in &made {
        match queue.try_get() {
            Ok(Some(item)) if item.data() == b"x" => {}
            other => return Err(format!("after {refused}: {other:?}")),
        }
        queue.put(b"y").map_err(|e| format!("a queue that was there: {e}"))?;
    }
    let names = made.len();
    drop(made);
    set.close().map_err(|e| e.to_string())?;
    let set = QueueSet::open(mount.dir.join("set")).map_err(|e| e.to_string())?;
    for n in 0..names {
        let queue = set.queue(&format!("q{n}")).map_err(|e| e.to_string())?;
        match queue.try_get() {
            Ok(Some(item)) if item.data() == b"y" => {}
            other => return Err(format!("queue {n} after the reopen: {other:?}")),
        }
    }
    Ok(())
}

/// The file system gives up and turns read-only under a running set; then it is mounted again.
fn aborted(mode: &str) -> Result<(), String> {
    let scratch = Scratch::new("abort")?;
    let mount = EXT4.make(&scratch.0)?;
    let mut book = Ledger::default();
    {
        let set = QueueSet::builder().defaults(options(mode)).open(mount.dir.join("set")).map_err(|e| e.to_string())?;
        let queue = set.queue("q").map_err(|e| e.to_string())?;
        for n in 0..600 {
            if n == 300 {
                mount.remount("abort")?;
            }
            let key = (1, n);
            book.asked.insert(key);
            match queue.put(payload(key)) {
                Ok(_) => {
                    if n >= 300 && mode == "sync" {
                        return Err("a put was answered by a device that takes nothing".into());
                    }
                    // What the page cache alone promised goes with the mount.
                    if n < 300 && mode == "sync" {
                        book.put.insert(key);
                    }
                }
                Err(PutError::Indeterminate { .. }) => {}
                Err(_) => {
                    book.refused.insert(key);
                }
            }
        }
    }
    let mount = mount.again("ext4", "")?;
    let _boot = OtherBoot::begin(&scratch.0)?;
    judge(&mount.dir, &book, mode, Cut::Power).map(|_| ())
}

/// F36: a read-only mount.
fn read_only() -> Result<(), String> {
    let scratch = Scratch::new("ro")?;
    let mount = EXT4.make(&scratch.0)?;
    {
        let set = QueueSet::open(mount.dir.join("set")).map_err(|e| e.to_string())?;
        let queue = set.queue("q").map_err(|e| e.to_string())?;
        queue.put(b"one").and_then(|_| queue.put(b"two")).map_err(|e| e.to_string())?;
        set.close().map_err(|e| e.to_string())?;
    }
    let mount = mount.again("ext4", "ro")?;
    let path = mount.dir.join("set");
    if let Ok(_set) = QueueSet::open(&path) {
        return Err("opened for writing on a read-only mount".into());
    }
    let set = QueueSet::open_read_only(&path).map_err(|e| format!("read-only: {e}"))?;
    let queue = set.queue("q").map_err(|e| format!("read-only: {e}"))?;
    match (queue.len(), queue.peek(), queue.put(b"x")) {
        (2, Ok(Some(item)), Err(PutError::ReadOnly)) if item.data() == b"one" => Ok(()),
        other => Err(format!("read-only: {other:?}")),
    }
}

fn quota(tally: &mut Tally) -> Result<(), String> {
    let scratch = Scratch::new("quota")?;
    let mount = match QUOTA.make(&scratch.0) {
        Ok(mount) => mount,
        Err(why) => {
            tally.skipped.push(format!("{} ({})", QUOTA.name, short(&why)));
            return Ok(());
        }
    };
    let open =
        |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string());
    open(&scratch.0)?;
    let dir = mount.dir.join("d");
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    open(&mount.dir)?;
    open(&dir)?;
    run(&["setquota", "-u", &NOBODY.to_string(), "0", "1024", "0", "0", &text(&mount.dir)])?;
    for mode in ["sync", "os"] {
        let ledger = scratch.0.join(format!("ledger-{mode}"));
        let _ = filled(&dir, &ledger, mode, Some(NOBODY))?;
        let told = std::fs::read_to_string(&ledger).unwrap_or_default();
        if !told.contains("\nR ") {
            return Err("the quota was never met".into());
        }
        judged(&dir, &ledger, mode, Cut::Kill)?;
        std::fs::remove_dir_all(dir.join("set")).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn overlay(steps: u64, tally: &mut Tally) -> Result<(), String> {
    let scratch = Scratch::new("overlay")?;
    let below = EXT4.make(&scratch.0)?;
    let [lower, upper, inner, over] = ["lower", "upper", "work", "over"].map(|name| below.dir.join(name));
    for dir in [&lower, &upper, &inner, &over] {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    }
    let options_ = format!("lowerdir={},upperdir={},workdir={}", text(&lower), text(&upper), text(&inner));
    run(&["mount", "-t", "overlay", "-o", &options_, "none", &text(&over)])?;
    let ledger = scratch.0.join("ledger");
    for step in 0..steps {
        let dir = over.join("d");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        filler(&below.dir, (step * STEP_KIB) << 10)?;
        let result = filled(&dir, &ledger, "sync", None).and_then(|met| {
            tally.met += u64::from(met);
            let _ = std::fs::remove_file(below.dir.join("filler"));
            judged(&dir, &ledger, "sync", Cut::Kill)
        });
        tally.note(&format!("overlay, {} KiB free", step * STEP_KIB), result);
    }
    run(&["umount", &text(&over)]).map(|_| ())
}

/// A snapshot of a running set is what a kill at that moment would have left.
fn snapshot(kind: &Kind) -> Result<(), String> {
    let scratch = Scratch::new("snapshot")?;
    let mount = kind.make(&scratch.0)?;
    let live = mount.dir.join("live");
    run(&["btrfs", "subvolume", "create", &text(&live)])?;
    let set = QueueSet::builder().defaults(options("os")).open(live.join("set")).map_err(|e| e.to_string())?;
    let queue = set.queue("q").map_err(|e| e.to_string())?;
    let mut book = Ledger::default();
    for n in 0..1200 {
        let key = (1, n);
        book.asked.insert(key);
        queue.put(payload(key)).map_err(|e| e.to_string())?;
        book.put.insert(key);
        if n % 3 == 0
            && let Ok(Some(item)) = queue.try_open()
        {
            let key = parse(item.data()).ok_or("I4: other bytes")?;
            book.close_asked.insert(key);
            item.close().map_err(|e| e.to_string())?;
            book.closed.insert(key);
        }
        if n % 300 == 299 {
            let shot = mount.dir.join(format!("shot{n}"));
            run(&["btrfs", "subvolume", "snapshot", &text(&live), &text(&shot)])?;
            judge(&shot, &book, "os", Cut::Kill).map_err(|e| format!("the snapshot after {n}: {e}"))?;
        }
    }
    Ok(())
}

/// The layer. `full [STEPS [FILE SYSTEM]]`: steps of free space to try.
pub fn layer(words: &[String]) -> Outcome {
    if !crate::mounts::is_root() {
        return Outcome::skipped("needs root, to mount images");
    }
    let steps = crate::number(words, 0, 25);
    let mut tally = Tally::default();
    let only = words.get(1).map(String::as_str);
    for kind in KINDS.iter().filter(|kind| only.is_none_or(|only| kind.fs() == only)) {
        match kind.missing() {
            Some(why) => tally.skipped.push(format!("{} ({why})", kind.name)),
            None => {
                if let Err(error) = full(kind, steps, &mut tally) {
                    tally.note(kind.name, Err(error));
                }
            }
        }
    }
    if let Err(error) = overlay(steps, &mut tally) {
        tally.note("overlay", Err(error));
    }
    tally.note(INODES.name, inodes());
    for mode in ["sync", "os"] {
        tally.note(&format!("a device that gives up, {mode}"), aborted(mode));
    }
    tally.note("a read-only mount", read_only());
    match run(&["sh", "-c", "command -v setquota"]) {
        Ok(_) => {
            let result = quota(&mut tally);
            if result.is_err() || !tally.skipped.iter().any(|skipped| skipped.starts_with(QUOTA.name)) {
                tally.note(QUOTA.name, result);
            }
        }
        Err(_) => tally.skipped.push("quota (needs setquota)".into()),
    }
    match KINDS.iter().find(|kind| kind.name == "btrfs" && kind.missing().is_none()) {
        Some(kind) => tally.note("btrfs snapshots", snapshot(&Kind { mib: 256, ..*kind })),
        None => tally.skipped.push("snapshots (needs mkfs.btrfs)".into()),
    }
    let mut outcome = tally.outcome;
    outcome.counts.push(("cases", tally.cases));
    outcome.counts.push(("puts_without_space", tally.met));
    outcome.counts.push(("file_systems_that_gave_up", tally.gave_up));
    if !tally.skipped.is_empty() {
        println!("full: not here: {}", tally.skipped.join(", "));
        outcome.facts.push(("not_here", tally.skipped.join(", ")));
    }
    outcome
}
