//! Every call of the file system fails once, with every errno; half reads, half writes, stalls; and after each the power goes.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figures::Outcome;
use crate::memfs::{CALLS, Fault, MemFs, Plan};
use crate::mounts::{OtherBoot, Scratch};
use crate::work::{Cut, Ledger, judge};

const ERRNOS: &[i32] = &[libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EINTR, libc::EROFS, libc::ESTALE];
const PATIENCE: Duration = Duration::from_secs(30);

/// Two lives of the worker on the mount. Its own errors are answers; a signal or a hang is not.
fn lives(dir: &Path, ledger: &Path, mode: &str, puts: u64) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    for life in 0..2u64 {
        let mut child = Command::new(&program)
            .arg("worker")
            .args([dir, ledger])
            .args(["7", "1", mode, &life.to_string(), &puts.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let start = Instant::now();
        let status = loop {
            match child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err("it hangs".into());
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
        }
        if let Some(signal) = status.signal() {
            return Err(format!("killed by signal {signal}: {said}"));
        }
        if said.contains("panicked") {
            return Err(format!("I11: {said}"));
        }
    }
    Ok(())
}

/// One run with one fault. `Ok(false)`: the run had no such call any more.
fn one(fs: &MemFs, mode: &str, plan: Plan, scratch: &Path, puts: u64) -> Result<bool, String> {
    let dir = scratch.join("mnt").join("d");
    let ledger = scratch.join("ledger");
    let _ = std::fs::remove_file(&ledger);
    std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
    // The directory itself is nobody's question.
    let root = std::fs::File::open(scratch.join("mnt")).and_then(|root| root.sync_all());
    root.map_err(|e| e.to_string())?;
    fs.plan(Some(plan));
    let ran = lives(&dir, &ledger, mode, puts);
    let met = fs.plan(None);
    ran?;
    let mut book = Ledger::default();
    book.read(&std::fs::read_to_string(&ledger).unwrap_or_default());
    // Alternately the process only dies, so that what is in the page cache is judged, too.
    if plan.nth.is_multiple_of(2) {
        fs.lose_unsynced();
        let _boot = OtherBoot::begin(scratch)?;
        judge(&dir, &book, mode, Cut::Power).map_err(|e| format!("after a power cut: {e}"))?;
    } else {
        judge(&dir, &book, mode, Cut::Kill)?;
    }
    std::fs::remove_dir_all(&dir).map_err(|e| e.to_string())?;
    Ok(met)
}

/// A rig that cannot fail proves nothing: where syncs are answered and not done, a power cut must be seen to take items.
fn a_lie_is_caught(scratch: &Path, puts: u64) -> Result<bool, String> {
    let fs = MemFs::new();
    let mounted = fs.mount(&scratch.join("mnt")).map_err(|e| format!("FUSE: {e}"))?;
    fs.lie();
    let result = one(&fs, "sync", Plan { call: "fsync", nth: u64::MAX - 1, fault: Fault::Short }, scratch, puts);
    drop(mounted);
    if result.is_ok() {
        println!("errors: a device that lies was not caught");
    }
    Ok(result.is_err())
}

/// The layer. The first word is how many puts each life makes.
pub fn layer(words: &[String]) -> Outcome {
    if !crate::mounts::is_root() || !Path::new("/dev/fuse").exists() {
        return Outcome::skipped("needs root and /dev/fuse");
    }
    let puts = crate::number(words, 0, 20);
    let only = words.get(1).map(String::as_str);
    let mut outcome = Outcome::default();
    let mut pairs = BTreeSet::new();
    let (mut faults, mut cuts) = (0u64, 0u64);
    let scratch = match Scratch::new("errors") {
        Ok(scratch) => scratch,
        Err(why) => return Outcome::skipped(why),
    };
    outcome.note(match a_lie_is_caught(&scratch.0, puts) {
        Ok(caught) => caught,
        Err(why) => return Outcome::skipped(why),
    });
    for mode in ["sync", "os"] {
        for call in CALLS.iter().copied().filter(|call| only.is_none_or(|only| only == *call)) {
            let mut kinds: Vec<Fault> = ERRNOS.iter().map(|errno| Fault::Errno(*errno)).collect();
            kinds.push(Fault::Stall(20));
            if matches!(call, "read" | "write") {
                kinds.push(Fault::Short);
            }
            for fault in kinds {
                let mut nth = 1;
                loop {
                    let plan = Plan { call, nth, fault };
                    let fs = MemFs::new();
                    let mounted = match fs.mount(&scratch.0.join("mnt")) {
                        Ok(mounted) => mounted,
                        Err(error) => return Outcome::skipped(format!("FUSE: {error}")),
                    };
                    let result = one(&fs, mode, plan, &scratch.0, puts);
                    drop(mounted);
                    let met = !matches!(result, Ok(false));
                    if met {
                        faults += 1;
                        cuts += u64::from(nth.is_multiple_of(2));
                        pairs.insert((call, format!("{fault:?}")));
                        outcome.note(result.is_ok());
                    }
                    if let Err(error) = result {
                        println!("errors: {mode}, {call} {nth}, {fault:?}: {error}");
                    }
                    if !met {
                        break;
                    }
                    // Of the many writes and reads most are alike: later ones are sampled.
                    nth += 1 + nth / 12;
                }
            }
        }
    }
    outcome.counts.push(("faults", faults));
    outcome.counts.push(("power_cuts", cuts));
    outcome.facts.push(("pairs_of_call_and_fault", pairs.len().to_string()));
    outcome
}
