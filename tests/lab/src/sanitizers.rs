//! The crate's tests under the thread sanitizer and the address sanitizer.
//!
//! Where the source of the standard library is there (`rustup component add rust-src`), it is built with them, and nothing is
//! excused. Else: the library that comes with the toolchain is not instrumented, so the thread sanitizer does not see what orders
//! the accesses of two threads where only the library's own code does. [`EXCUSES`] names those places, each with its reason,
//! and they excuse a report only if the access happened inside of the library: code of ours, or of a crate that we use, that
//! the library calls (a `Drop` under the last `Arc`) is not excused. What the address sanitizer does not see is an access
//! outside of a mapped segment that hits other mapped memory; the bounds there are the crate's own checks.

use std::path::Path;
use std::process::Command;

use crate::figures::Outcome;
use crate::mounts::Scratch;

/// Files of the standard library inside of which a reported race is none, and why.
const EXCUSES: &[(&str, &str)] = &[
    // Counting down is a Release; who counts to zero has a fence with Acquire, and the sanitizer does not know fences.
    ("/library/alloc/src/sync.rs:", "the last owner of an Arc frees it behind a fence"),
    // Joining is a futex and atomics in the compiled part of the library.
    ("/library/std/src/thread/", "a thread's result passes through code that is not instrumented"),
    // The harness is compiled without instrumentation, and sends what came of each test through this channel.
    ("/library/std/src/sync/mpmc/", "the test harness sends its results from code that is not instrumented"),
];

/// Where the code of the library, of what it has built in (its hash map), and of the sanitizer itself comes from.
const LIBRARY: &[&str] =
    &["/library/core/", "/library/alloc/", "/library/std/", "/library/test/", "/rust/deps/", "/compiler-rt/"];

/// What takes ten times as long here, and runs in one thread nothing that the other tests do not.
const SWEEPS: [&str; 4] = ["crash::planted", "crash::everywhere", "k54_every_flipped", "fuzz_corpora"];

struct Sanitizer {
    name: &'static str,
    options: &'static str,
    planted: &'static str,
    /// Words for the planted program, and whether it must be found out.
    words: &'static [(&'static str, bool)],
}

const SANITIZERS: &[Sanitizer] = &[
    Sanitizer {
        name: "thread",
        options: "TSAN_OPTIONS",
        planted: "race.rs",
        words: &[("race", true), ("drop", true), ("sound", false)],
    },
    Sanitizer {
        name: "address",
        options: "ASAN_OPTIONS",
        planted: "bounds.rs",
        words: &[("outside", true), ("inside", false)],
    },
];

fn flags(name: &str) -> [String; 2] {
    [format!("-Zsanitizer={name}"), "-Cunsafe-allow-abi-mismatch=sanitizer".to_owned()]
}

/// `sanitizers [KILLS [thread|address]]`: both, if none is named.
pub fn layer(words: &[String]) -> Outcome {
    let told = Command::new("rustc").arg("-vV").output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told).into_owned();
    let Some(host) = told.lines().find_map(|line| line.strip_prefix("host: ")) else {
        return Outcome::skipped("rustc does not tell its host");
    };
    let has_source = has_library_source();
    let kills = crate::number(words, 0, 20).to_string();
    let mut outcome = Outcome::default();
    let (mut reports, mut excused, mut planted) = (0, 0, 0);
    for sanitizer in SANITIZERS.iter().filter(|one| words.get(1).is_none_or(|word| word == one.name)) {
        match shows_what_is_planted(sanitizer) {
            Ok(found) => planted += found,
            Err(Planted::DoesNotBuild(why)) => return Outcome::skipped(format!("{} sanitizer: {why}", sanitizer.name)),
            Err(Planted::NotFound(what)) => {
                println!("sanitizers: {}: {what}", sanitizer.name);
                outcome.note(false);
            }
        }
        let logs = match Scratch::new(sanitizer.name) {
            Ok(logs) => logs,
            Err(error) => return Outcome::skipped(error),
        };
        let target_dir = format!("target/sanitizers/{}", sanitizer.name);
        let mut arguments = vec!["test", "--locked", "--lib", "--test", "it", "--test", "kill"];
        arguments.extend(["--target", host, "--target-dir", &target_dir]);
        if has_source {
            arguments.push("-Zbuild-std");
        }
        arguments.push("--");
        arguments.extend(SWEEPS.iter().flat_map(|sweep| ["--skip", sweep]));
        let variables = [
            ("RUSTC_BOOTSTRAP", "1".to_owned()),
            ("RUSTFLAGS", flags(sanitizer.name).join(" ")),
            ("PROPTEST_CASES", "100".to_owned()),
            ("KESTREL_KILLS", kills.clone()),
            (sanitizer.options, options(&logs.0)),
        ];
        let ran = crate::own::cargo(&arguments, &variables, &[]);
        outcome.passed += ran.passed;
        outcome.failed += ran.failed;
        outcome.counts.push((if sanitizer.name == "thread" { "thread_tests" } else { "address_tests" }, ran.passed));
        for report in reports_in(&logs.0) {
            if !has_source && is_excused(&report) {
                excused += 1;
            } else {
                println!("sanitizers: {}", report.get(..6000).unwrap_or(&report));
                reports += 1;
                outcome.failed += 1;
            }
        }
    }
    outcome.counts.push(("planted_faults_found", planted));
    outcome.counts.push(("reports", reports));
    outcome.counts.push(("reports_inside_of_the_standard_library", excused));
    let library = if has_source { "built with them too" } else { "as it comes, not instrumented" };
    outcome.facts.push(("standard_library", library.into()));
    outcome
}

/// Whether the toolchain has what `-Zbuild-std` needs.
fn has_library_source() -> bool {
    let told =
        Command::new("rustc").args(["--print", "sysroot"]).output().map(|output| output.stdout).unwrap_or_default();
    Path::new(String::from_utf8_lossy(&told).trim()).join("lib/rustlib/src/rust/library/std/Cargo.toml").exists()
}

/// Reports go to files, so that those of children are there too; they are counted there, and not by how a process ended.
fn options(logs: &Path) -> String {
    format!("exitcode=0:log_path={}/report", logs.display())
}

enum Planted {
    DoesNotBuild(String),
    NotFound(String),
}

/// How many planted faults the sanitizer found; an error if it missed one, or found one where there is none.
fn shows_what_is_planted(sanitizer: &Sanitizer) -> Result<u64, Planted> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("planted").join(sanitizer.planted);
    let scratch = Scratch::new("planted").map_err(Planted::DoesNotBuild)?;
    let program = scratch.0.join("program");
    let built = Command::new("rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["--edition", "2024", "-Copt-level=1", "-Cdebuginfo=line-tables-only", "-o"])
        .arg(&program)
        .args(flags(sanitizer.name))
        .arg(source)
        .output();
    match built {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Planted::DoesNotBuild(said.lines().next().unwrap_or("does not build").to_owned()));
        }
        Err(error) => return Err(Planted::DoesNotBuild(error.to_string())),
    }
    let mut found = 0;
    for (word, expected) in sanitizer.words {
        let logs = Scratch::new("planted-logs").map_err(Planted::DoesNotBuild)?;
        let ran = Command::new(&program).arg(word).env(sanitizer.options, options(&logs.0)).output();
        ran.map_err(|error| Planted::DoesNotBuild(error.to_string()))?;
        let told = reports_in(&logs.0).iter().any(|report| !is_excused(report));
        if told != *expected {
            return Err(Planted::NotFound(format!("`{word}` of {}: told: {told}", sanitizer.planted)));
        }
        found += u64::from(told);
    }
    Ok(found)
}

/// All whole reports in a directory. One that a kill cut short says nothing.
fn reports_in(logs: &Path) -> Vec<String> {
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| std::fs::read(file.path()).ok());
    texts.flat_map(|text| reports(&String::from_utf8_lossy(&text))).collect()
}

fn reports(text: &str) -> Vec<String> {
    let begins = |line: &str| line.starts_with("WARNING: ThreadSanitizer") || line.contains("ERROR: ");
    let mut all = Vec::new();
    let mut report: Option<String> = None;
    for line in text.lines() {
        if begins(line) {
            report = Some(String::new());
        }
        if let Some(report) = &mut report {
            report.push_str(line);
            report.push('\n');
        }
        if line.starts_with("SUMMARY: ") {
            all.extend(report.take());
        }
    }
    all
}

/// Whether one of the two accesses of a race is of a kind that [`EXCUSES`] names.
fn is_excused(report: &str) -> bool {
    report.starts_with("WARNING: ThreadSanitizer: data race") && report.split("\n\n").take(2).any(is_inside_of_library)
}

/// Whether the innermost frames of a stack are the library's, and one of those is excused.
fn is_inside_of_library(stack: &str) -> bool {
    let frames = stack.lines().filter(|line| line.trim_start().starts_with('#'));
    let mut inside = frames.take_while(|frame| LIBRARY.iter().any(|file| frame.contains(file)));
    inside.any(|frame| EXCUSES.iter().any(|(file, _)| frame.contains(file)))
}
