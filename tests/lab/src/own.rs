//! The layers that are the crate's own tests: run by cargo, counted from what they print.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::figures::Outcome;

/// What a line of a test's output counts: the number after `before` and before `after`.
pub struct Count {
    name: &'static str,
    starts: &'static str,
    before: &'static str,
    after: &'static str,
}

const STATES: &[Count] = &[
    Count { name: "states", starts: "crash: ", before: "crash: ", after: " states, " },
    Count { name: "recoveries", starts: "crash: ", before: "distinct, ", after: " recoveries" },
];
const KILLS: &[Count] = &[
    Count { name: "kills", starts: "kill: ", before: "kill: ", after: " rounds" },
    Count { name: "answered_puts", starts: "kill: ", before: "rounds, ", after: " acknowledged" },
];
const FLIPS: &[Count] = &[Count { name: "flips", starts: "flips: ", before: "flips: ", after: " of " }];
const PLANTED: &[Count] = &[];

pub fn cargo(words: &[&str], variables: &[(&str, String)], counts: &[Count]) -> Outcome {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new("cargo");
    command.current_dir(crate_dir).args(words).env("CARGO_TERM_COLOR", "never");
    for (name, value) in variables {
        command.env(name, value);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Outcome::skipped(format!("cargo: {error}")),
    };
    let mut outcome = Outcome::default();
    let mut sums: Vec<(&'static str, u64)> = counts.iter().map(|count| (count.name, 0)).collect();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        for (count, sum) in counts.iter().zip(&mut sums) {
            if line.starts_with(count.starts)
                && let Some((_, rest)) = line.split_once(count.before)
                && let Some((number, _)) = rest.split_once(count.after)
                && let Ok(number) = number.trim().parse::<u64>()
            {
                sum.1 += number;
            }
        }
        if let Some(result) = line.strip_prefix("test result: ").or(Some(line).filter(|line| is_end(line))) {
            let number = |word: &str| {
                let before = result.split(word).next().unwrap_or_default();
                before.split_whitespace().next_back().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
            };
            outcome.passed += number(" passed");
            outcome.failed += number(" failed");
        }
        if line.contains("violation") || line.contains("FAILED") {
            println!("{line}");
        }
    }
    if !output.status.success() && outcome.failed == 0 {
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{}", said.get(said.len().saturating_sub(1500)..).unwrap_or(&said));
        outcome.failed += 1;
    }
    outcome.counts = sums;
    outcome
}

/// The closing line of a program of ours.
fn is_end(line: &str) -> bool {
    line.ends_with(" failed") && line.contains(" passed, ")
}

const LIB: [&str; 5] = ["test", "--locked", "--release", "--lib", "--all-features"];

fn lib(filter: &str, variables: &[(&str, String)], counts: &[Count]) -> Outcome {
    cargo(&[&LIB[..], &[filter, "--", "--nocapture"]].concat(), variables, counts)
}

/// `states [STATES [SEED]]`
pub fn states(words: &[String]) -> Outcome {
    let wanted = crate::number(words, 0, 200_000).max(100_000).to_string();
    let seed = crate::number(words, 1, 1).to_string();
    // The others of the harness are layers of their own.
    let others = ["--skip", "planted_", "--skip", "crash::model", "--skip", "crash::flips"];
    let variables = [("KESTREL_CRASH_STATES", wanted), ("KESTREL_SEED", seed)];
    cargo(&[&LIB[..], &["crash::", "--", "--nocapture"], &others].concat(), &variables, STATES)
}

pub fn planted(_: &[String]) -> Outcome {
    let mut outcome = lib("planted_", &[], PLANTED);
    outcome.counts.push(("bugs_caught", outcome.passed));
    outcome
}

/// `model [CASES]`
pub fn model(words: &[String]) -> Outcome {
    let cases = crate::number(words, 0, 2000);
    let mut outcome = lib("crash::model", &[("PROPTEST_CASES", cases.to_string())], &[]);
    outcome.counts.push(("sequences", cases));
    outcome
}

/// `kills [ROUNDS]`
pub fn kills(words: &[String]) -> Outcome {
    let rounds = crate::number(words, 0, 2000).to_string();
    let words = ["test", "--locked", "--release", "--test", "kill", "--", "--nocapture"];
    cargo(&words, &[("KESTREL_KILLS", rounds)], KILLS)
}

pub fn flips(_: &[String]) -> Outcome {
    lib("crash::flips", &[], FLIPS)
}

pub fn golden(_: &[String]) -> Outcome {
    cargo(&["test", "--locked", "--release", "--test", "it", "golden"], &[], &[])
}

pub fn models(_: &[String]) -> Outcome {
    let words = ["run", "--locked", "--release", "--manifest-path", "tests/models/Cargo.toml"];
    cargo(&words, &[], &[Count { name: "orders", starts: "models: ", before: "models: ", after: " orders in all" }])
}

/// `schedules [SECONDS [SEED]]`
pub fn schedules(words: &[String]) -> Outcome {
    let (seconds, seed) = (crate::number(words, 0, 30).to_string(), crate::number(words, 1, 1).to_string());
    let words = ["run", "--locked", "--release", "--manifest-path", "tests/models/schedules/Cargo.toml", "--"];
    let counts = [
        Count { name: "schedules", starts: "schedules: ", before: "schedules: ", after: " schedules, " },
        Count { name: "steps", starts: "schedules: ", before: " schedules, ", after: " steps" },
        Count {
            name: "planted_bugs_found",
            starts: "schedules: ",
            before: "schedules: ",
            after: " planted bugs found",
        },
    ];
    cargo(&[&words[..], &[&seconds, &seed]].concat(), &[], &counts)
}

const TARGETS: &[&str] =
    &["frame_decode", "open_dir", "segment", "queue_name", "options", "operations", "typed", "protocol"];

/// The flags that cargo-fuzz passes, which the stable toolchain takes too.
const FUZZING: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1";

/// `fuzz [SECONDS]`: that long for each target, one on each core at a time.
pub fn fuzz(words: &[String]) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let told = Command::new("rustc").arg("-vV").output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told).into_owned();
    let Some(host) = told.lines().find_map(|line| line.strip_prefix("host: ")) else {
        return Outcome::skipped("rustc does not tell its host");
    };
    let built = Command::new("cargo")
        .current_dir(&root)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FUZZING)
        .args(["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", host])
        .args(["--target-dir", "fuzz/target"])
        .output();
    match built {
        Ok(output) if output.status.success() => {}
        Ok(_) => return Outcome::skipped("the targets do not build: needs a C++ compiler"),
        Err(error) => return Outcome::skipped(format!("cargo: {error}")),
    }
    let seconds = crate::number(words, 0, 30);
    let programs = root.join("fuzz/target").join(host).join("release");
    let corpora = root.join("fuzz/corpus");
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut outcome, mut executions) = (Outcome::default(), 0);
        while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = fuzzed(&programs.join(target), &corpora.join(target), target, seconds);
            outcome.note(found.is_ok());
            match found {
                Ok(done) => executions += done,
                Err(error) => println!("fuzz: {target}: {error}"),
            }
        }
        (outcome, executions)
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let done: Vec<(Outcome, u64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let lost = |_| (Outcome { failed: 1, ..Outcome::default() }, 0);
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(lost)).collect()
    });
    let mut outcome = Outcome::default();
    for (one, _) in &done {
        outcome.passed += one.passed;
        outcome.failed += one.failed;
    }
    outcome.counts.push(("executions", done.iter().map(|(_, executions)| executions).sum()));
    outcome.counts.push(("seconds_of_each_target", seconds));
    outcome.facts.push(("targets", TARGETS.len().to_string()));
    outcome
}

/// How often a target ran in so many seconds; an error tells what it found.
fn fuzzed(program: &Path, corpus: &Path, target: &str, seconds: u64) -> Result<u64, String> {
    let scratch = crate::mounts::Scratch::new(target)?;
    let output = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=2048"])
        .arg(format!("-artifact_prefix={}/", scratch.0.display()))
        .arg(&scratch.0)
        .arg(corpus)
        .output()
        .map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(told.lines().rev().take(30).collect::<Vec<_>>().join("\n"));
    }
    let done = told.lines().find_map(|line| line.strip_prefix('#')?.split_once("\tDONE")?.0.parse::<u64>().ok());
    Ok(done.unwrap_or(0))
}
