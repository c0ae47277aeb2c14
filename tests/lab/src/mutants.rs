//! Mutation testing: one small change in the source at a time, which some test must notice.
//!
//! Each mutant meets the quick tests first (the unit tests, the short part of the crash harness, `tests/it`); who survives
//! them meets the harness's short hunt and the flipped bytes. One that survives both is a failure, unless [`KNOWN`] says why
//! nothing can notice it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::figures::Outcome;
use crate::mounts::Scratch;

/// What is changed: where a mistake would lose an item.
const ROOMS: [&str; 3] = ["src/journal/**", "src/reader/**", "src/queue/put.rs"];

/// Bugs planted on purpose, and fields that they alone use, which no test meets but their own.
const PLANTED: [&str; 3] = ["by_mistake", "append_to_recovered", "struct Extent expression in Journal::roll"];

/// What takes longer than all other tests together.
const SLOW: [&str; 9] = [
    "planted",
    "crash::everywhere",
    "every_step",
    "k54_every_flipped",
    "k73_an_import",
    "a_set_closes_while",
    "fuzz_corpora",
    "testing::",
    "tidy",
];
/// What survivors meet.
const HUNT: [&str; 3] =
    ["the_unbroken_engine_passes", "k54_every_flipped_byte_of_a_clean", "every_step_of_readers_fails_once"];

/// A mutant that no test can notice.
struct Known {
    file: &'static str,
    /// As the tool tells it, without the place.
    name: &'static str,
    /// The source from the changed place on.
    source: &'static str,
    why: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        file: "src/journal/append.rs",
        name: "replace > with >= in Journal::make_room",
        source: "> u64::from(tail.reach)",
        why: "a reach that is just enough is raised once more: it is only ever an upper bound",
    },
    Known {
        file: "src/journal/free.rs",
        name: "replace + with * in Journal::clear",
        source: "+ 1);",
        why: "the next id comes after the cleared ones anyhow: recovery takes the greater of both",
    },
    Known {
        file: "src/journal/append.rs",
        name: "replace + with * in Journal::make_room",
        source: "+ REACH_STEP",
        why: "a reach beyond the frames is an upper bound all the same, and costs an open the reading of a segment",
    },
    Known {
        file: "src/journal/durable.rs",
        name: "replace Journal::take_unproven_marks -> bool with true",
        source: "self.table.lock().get_mut(&number).is_some_and(",
        why: "marks of this process are stored as they are before the sync that would have covered them",
    },
    Known {
        file: "src/reader/mod.rs",
        name: "delete field offset from struct Cursor expression in Reader::read_next",
        source: "offset: next, ordinal: at.ordinal + 1, ..at }",
        why: "the ordinal says that the frame there is an old one, and the search behind a damaged frame finds the next",
    },
];

/// `mutants [COUNT [SEED [TEXT]]]`: each deleted field, and so many others at random; with a text only those of whose names it is
/// a part, as of a function that was changed.
pub fn layer(words: &[String]) -> Outcome {
    let text = words.get(2).map_or("", String::as_str);
    match run(crate::number(words, 0, 40) as usize, crate::number(words, 1, 1), text) {
        Ok(outcome) => outcome,
        Err(why) => Outcome::skipped(why),
    }
}

fn run(count: usize, seed: u64, text: &str) -> Result<Outcome, String> {
    let told = Command::new("cargo").args(["mutants", "--version"]).output().map_err(|error| error.to_string())?;
    if !told.status.success() {
        return Err("needs cargo-mutants: cargo install cargo-mutants".into());
    }
    let scratch = Scratch::new("mutants")?;
    let source = copied(&scratch.0)?;
    let mut all = listed(&source)?;
    let population = all.len() as u64;
    all.retain(|mutant| mutant.name.contains(text));
    let mut state = seed;
    for i in (1..all.len()).rev() {
        all.swap(i, (crate::work::random(&mut state) % (i as u64 + 1)) as usize);
    }
    // The tool tries deleted fields whatever it is asked for.
    let is_field = |mutant: &Mutant| mutant.name.contains("delete field");
    let (fields, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_field);
    others.truncate(count);
    let all = [fields, others].concat();

    let names: Vec<&str> = all.iter().map(|mutant| mutant.name.as_str()).collect();
    let quick: Vec<&str> = SLOW.iter().flat_map(|test| ["--skip", test]).collect();
    let first = tried(&source, &scratch.0.join("quick"), &names, &quick)?;
    let survivors: Vec<&str> = first.missed.iter().map(String::as_str).collect();
    let second = match survivors.is_empty() {
        true => Tried::default(),
        false => tried(&source, &scratch.0.join("hunt"), &survivors, &HUNT)?,
    };

    let mut outcome = Outcome::default();
    let mut known = 0;
    for survivor in &second.missed {
        match all.iter().find(|mutant| mutant.name == *survivor).and_then(Mutant::known) {
            Some(why) => {
                known += 1;
                println!("mutants: known: {survivor}: {why}");
            }
            None => {
                outcome.failed += 1;
                println!("mutants: survived: {survivor}");
            }
        }
    }
    let caught = first.caught + second.caught;
    let timeouts = first.timeouts + second.timeouts;
    outcome.passed = caught + timeouts + known;
    outcome.counts = vec![
        ("mutants_tried", caught + timeouts + second.missed.len() as u64),
        ("caught", caught),
        ("caught_by_a_hang", timeouts),
        ("that_do_not_build", first.unviable + second.unviable),
        ("that_nothing_can_notice", known),
        ("survivors", outcome.failed),
    ];
    outcome.facts = vec![("possible_mutants", population.to_string())];
    Ok(outcome)
}

/// The crate in a directory of its own, which the tool may change.
fn copied(scratch: &Path) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let to = scratch.join("source");
    std::fs::create_dir_all(&to).map_err(|error| error.to_string())?;
    let names = ["Cargo.toml", "Cargo.lock", "README.md", "src", "tests", "benches", "examples", "fuzz"];
    let words: Vec<String> = ["--exclude=target".to_owned(), "-cf".into(), "-".into(), "-C".into()].into();
    let mut pack = Command::new("tar");
    pack.args(words).arg(root).args(names).stdout(std::process::Stdio::piped());
    let mut packed = pack.spawn().map_err(|error| format!("tar: {error}"))?;
    let out = packed.stdout.take().ok_or("tar tells nothing")?;
    let unpacked = Command::new("tar").arg("-xf").arg("-").arg("-C").arg(&to).stdin(out).status();
    let packed = packed.wait().map_err(|error| error.to_string())?;
    match unpacked {
        Ok(status) if status.success() && packed.success() => Ok(to),
        _ => Err("the source cannot be copied with tar".into()),
    }
}

#[derive(Clone)]
struct Mutant {
    name: String,
    file: String,
    /// The source from the changed place to the end of the line.
    source: String,
}

impl Mutant {
    fn known(&self) -> Option<&'static str> {
        let is = |known: &&Known| {
            self.file == known.file && self.name.ends_with(known.name) && self.source.starts_with(known.source)
        };
        KNOWN.iter().find(is).map(|known| known.why)
    }
}

fn mutants(source: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(source).args(["mutants", "--colors", "never"]);
    for room in ROOMS {
        command.args(["-f", room]);
    }
    for planted in PLANTED {
        command.args(["-E", planted]);
    }
    command
}

fn listed(source: &Path) -> Result<Vec<Mutant>, String> {
    let output = mutants(source).args(["--list", "--json"]).output().map_err(|error| error.to_string())?;
    let list: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for entry in list.as_array().into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let start = |key: &str| Some(entry.get("span")?.get("start")?.get(key)?.as_u64()? as usize - 1);
        let (Some(name), Some(file), Some(line), Some(column)) =
            (text("name"), text("file"), start("line"), start("column"))
        else {
            return Err("the list of mutants is not as expected".into());
        };
        let code = std::fs::read_to_string(source.join(&file)).map_err(|error| error.to_string())?;
        let source = code.lines().nth(line).and_then(|line| line.get(column..)).unwrap_or_default().to_owned();
        all.push(Mutant { name, file, source });
    }
    Ok(all)
}

#[derive(Default)]
struct Tried {
    caught: u64,
    missed: Vec<String>,
    timeouts: u64,
    unviable: u64,
}

/// Tries the mutants of these names against the tests that `tests` leaves or names.
fn tried(source: &Path, out: &Path, names: &[&str], tests: &[&str]) -> Result<Tried, String> {
    std::fs::create_dir_all(out).map_err(|error| error.to_string())?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = mutants(source);
    command
        .env("CARGO_TARGET_DIR", root.join("target/mutants"))
        // Building is what takes the time, and the tests spend theirs in the crates that stay optimised.
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_TEST_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        .env("PROPTEST_CASES", "40")
        // A hang is one only beside how long the tests take that pass, which are run first.
        .args(["--in-place", "--timeout-multiplier", "5", "--minimum-test-timeout", "60", "-o"])
        .arg(out)
        .args(["-C=--locked", "-C=--lib", "-C=--test", "-C=it"])
        .arg("-C=--config=profile.test.package.\"*\".opt-level=2");
    if !names.iter().any(|name| name.contains("delete field")) {
        command.args(["-E", "delete field"]);
    }
    for name in names {
        command.arg("-F").arg(format!("^{}$", escaped(name)));
    }
    command.args(["--", "--"]).args(tests);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = std::fs::read_to_string(out.join("mutants.out/outcomes.json")).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("cargo-mutants: {}", said.lines().last().unwrap_or("says nothing"))
    })?;
    let all: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut tried = Tried::default();
    for one in all.get("outcomes").and_then(Value::as_array).into_iter().flatten() {
        let name = one.pointer("/scenario/Mutant/name").and_then(Value::as_str).unwrap_or_default();
        if !names.contains(&name) {
            continue;
        }
        match one.get("summary").and_then(Value::as_str) {
            Some("CaughtMutant") => tried.caught += 1,
            Some("MissedMutant") => tried.missed.push(name.to_owned()),
            Some("Timeout") => tried.timeouts += 1,
            _ => tried.unviable += 1,
        }
    }
    if tried.caught + tried.timeouts + tried.unviable == 0 && tried.missed.is_empty() {
        return Err("the tests do not pass without a mutant: nothing can be said about any".into());
    }
    Ok(tried)
}

/// A name as a regular expression.
fn escaped(name: &str) -> String {
    name.chars()
        // Escaped, the two that are left out would mean the beginning and the end of a word.
        .flat_map(|c| (c.is_ascii_punctuation() && !"<>".contains(c)).then_some('\\').into_iter().chain([c]))
        .collect()
}
