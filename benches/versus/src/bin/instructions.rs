//! Instructions of the hot operations, counted by valgrind's callgrind: a guard against slow decay that no noise of a busy
//! machine disturbs. An operation is run a few times and many times; the difference, divided, is its cost.
//!
//! `cargo run --release -p versus --bin instructions` compares with the counts on record and fails where one has grown by more
//! than the threshold; `-- --bless` writes them anew, and with them `profile.txt`: in which file they are spent, also where they
//! were inlined elsewhere. Without valgrind it says *skipped*.
//!
//! What runs under valgrind is built apart, with the system calls of libc: rustix's own reading of the vDSO dies where valgrind
//! hides that page.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use kestrel_core::{Durability, Queue, QueueOptions, QueueSet};

type Any<T> = Result<T, Box<dyn std::error::Error>>;

/// Growth, in percent, that fails. Another compiler is another count: the record names its compiler.
const THRESHOLD: f64 = 3.0;
const FEW: u64 = 2_000;
const MANY: u64 = 12_000;

/// Files of a profile that are told by name.
const TOLD: usize = 14;

/// Name, what is waiting before, and the operation: `FEW` or `MANY` times.
type Operation = (&'static str, Waiting, fn(&Queue, &[u8], u64) -> Any<()>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    /// An item for each time that the operation will run in the longest run, so that both runs begin alike.
    Enough,
}

const OPERATIONS: [Operation; 10] = [
    ("put 64 B", Waiting::Nothing, |queue, payload, count| put(queue, &payload[..64], count)),
    ("put 1 KiB", Waiting::Nothing, |queue, payload, count| put(queue, &payload[..1024], count)),
    ("put 8 KiB", Waiting::Nothing, |queue, payload, count| put(queue, payload, count)),
    ("put_batch of 100, 64 B, an item", Waiting::Nothing, |queue, payload, count| {
        let batch = [&payload[..64]; 100];
        (0..count / 100).try_for_each(|_| Ok(queue.put_batch(batch).map(drop)?))
    }),
    ("append 64 B", Waiting::Nothing, |queue, payload, count| {
        (0..count).try_for_each(|_| Ok(queue.append(&payload[..64]).map(drop)?))
    }),
    ("try_get 64 B", Waiting::Enough, |queue, _, count| {
        for _ in 0..count {
            black_box(queue.try_get()?.ok_or("empty")?);
        }
        Ok(())
    }),
    ("try_open and close 64 B", Waiting::Enough, |queue, _, count| {
        (0..count).try_for_each(|_| Ok(queue.try_open()?.ok_or("empty")?.close()?))
    }),
    ("try_open and abort 64 B", Waiting::Enough, |queue, _, count| {
        for _ in 0..count {
            queue.try_open()?.ok_or("empty")?.abort();
        }
        Ok(())
    }),
    ("put and get 64 B", Waiting::Nothing, |queue, payload, count| {
        for _ in 0..count {
            queue.put(&payload[..64])?;
            black_box(queue.get()?);
        }
        Ok(())
    }),
    ("try_get of nothing", Waiting::Nothing, |queue, _, count| {
        for _ in 0..count {
            black_box(queue.try_get()?);
        }
        Ok(())
    }),
];

fn put(queue: &Queue, payload: &[u8], count: u64) -> Any<()> {
    (0..count).try_for_each(|_| Ok(queue.put(payload).map(drop)?))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--run", place, count, dir] => work(place, count, Path::new(dir)).map(|()| true),
        [] => compare(false),
        ["--bless"] => compare(true),
        _ => Err("options: --bless".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under callgrind.
fn work(place: &str, count: &str, dir: &Path) -> Any<()> {
    let (_, waiting, operation) = OPERATIONS.get(place.parse::<usize>()?).ok_or("no such operation")?;
    let options = QueueOptions::default().durability(Durability::Os);
    let set = QueueSet::builder().defaults(options).open(dir)?;
    let queue = set.queue("q")?;
    let payload = vec![7; 8192];
    if *waiting == Waiting::Enough {
        put(&queue, &payload[..64], MANY)?;
    }
    operation(&queue, &payload, count.parse()?)?;
    // No close: its cost is not the operation's.
    std::process::exit(0);
}

/// This program again, as valgrind can run it.
fn build() -> Any<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/valgrind");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--quiet", "--release", "-p", "versus", "--bin", "instructions", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .env("RUSTFLAGS", "--cfg rustix_use_libc")
        .status()?;
    if !built.success() {
        return Err("it does not build".into());
    }
    Ok(target.join("release/instructions"))
}

/// Instructions by source file.
type Profile = BTreeMap<String, f64>;

fn count(program: &Path, place: usize, times: u64, scratch: &Path) -> Any<Profile> {
    let dir = scratch.join("set");
    let _ = std::fs::remove_dir_all(&dir);
    let out = scratch.join("callgrind.out");
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(program)
        .args(["--run", &place.to_string(), &times.to_string()])
        .arg(&dir)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        return Err(format!("valgrind: {}", said.lines().next_back().unwrap_or_default()).into());
    }
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).ok_or("callgrind told no count")?;
    let profile = by_file(&std::fs::read_to_string(&out)?);
    // Nothing may be missed, else a profile would say less than there is.
    let (told, sum): (f64, f64) = (collected.1.trim().parse()?, profile.values().sum());
    if told != sum {
        return Err(format!("callgrind told {told} instructions, its file holds {sum}").into());
    }
    Ok(profile)
}

/// What the lines of a callgrind file (its manual, "Callgrind Format Specification") cost by themselves, by source file.
fn by_file(text: &str) -> Profile {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut profile = Profile::new();
    let (mut file, mut is_call) = ("", false);
    for line in text.lines() {
        if let Some((kind @ ("fl" | "fi" | "fe" | "cfi" | "cfl"), name)) = line.split_once('=') {
            // "(number) name" the first time, "(number)" from then on.
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            let known = names.entry(number).or_insert(name);
            if !kind.starts_with('c') {
                file = known;
            }
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // The line behind a call holds what the callee costs, which is told there.
            if !std::mem::take(&mut is_call) {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<f64>().ok()).unwrap_or(0.0);
                *profile.entry(short(file)).or_default() += cost;
            }
        }
    }
    profile
}

/// A file of ours from `src` on, of others its crate or library.
fn short(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ours = root.canonicalize().ok().and_then(|root| Path::new(file).strip_prefix(root).ok().map(Path::to_owned));
    if let Some(ours) = ours {
        return ours.display().to_string();
    }
    if let Some((_, path)) = file.split_once("/registry/src/") {
        return path.split('/').nth(1).unwrap_or(path).to_owned();
    }
    if file.starts_with("/rustc/") {
        return "standard library".to_owned();
    }
    "libc and what has no lines".to_owned()
}

/// What an operation spends in which file.
fn told(name: &str, cost: &Profile) -> String {
    let all: f64 = cost.values().sum();
    let mut files: Vec<(&String, &f64)> = cost.iter().collect();
    files.sort_by(|a, b| b.1.total_cmp(a.1));
    let mut text = format!("{name}: {all:.0}\n");
    for (file, cost) in files.iter().take(TOLD).filter(|(_, cost)| **cost >= 1.0) {
        text += &format!("{cost:9.0}  {:3.0} %  {file}\n", **cost / all * 100.0);
    }
    let rest: f64 = files.iter().skip(TOLD).map(|(_, cost)| **cost).sum();
    text + &format!("{rest:9.0}  {:3.0} %  others\n\n", rest / all * 100.0)
}

fn compare(is_blessing: bool) -> Any<bool> {
    let has_valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !has_valgrind.is_ok_and(|status| status.success()) {
        println!("instructions: skipped: no valgrind here");
        return Ok(true);
    }
    let program = build()?;
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let compiler = String::from_utf8(Command::new("rustc").arg("--version").output()?.stdout)?;
    // Release and date, without what a distributor adds.
    let compiler = compiler.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let scratch = std::env::temp_dir().join(format!("versus-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    let mut profiles = String::from(
        "Instructions of each operation by the source file that they come from, also where they were inlined elsewhere.\n\
         Written by `cargo run --release -p versus --bin instructions -- --bless`.\n\n",
    );
    for (place, (name, ..)) in OPERATIONS.iter().enumerate() {
        let [many, few] = [MANY, FEW].map(|times| count(&program, place, times, &scratch));
        let (mut spent, few) = (many?, few?);
        for (file, cost) in few {
            *spent.entry(file).or_default() -= cost;
        }
        spent.values_mut().for_each(|cost| *cost /= (MANY - FEW) as f64);
        found.insert((*name).to_owned(), (spent.values().sum::<f64>() * 10.0).round() / 10.0);
        profiles += &told(name, &spent);
    }
    let _ = std::fs::remove_dir_all(&scratch);
    let older: Record = match std::fs::read(&record) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Record::default(),
    };
    println!("| operation | instructions | on record | change |\n|---|---|---|---|");
    let mut is_well = true;
    for (name, now) in &found {
        let Some(before) = older.instructions.get(name) else {
            println!("| {name} | {now:.0} | - | new |");
            is_well = false;
            continue;
        };
        let change = (now / before - 1.0) * 100.0;
        let grown = if change > THRESHOLD { " **grown**" } else { "" };
        println!("| {name} | {now:.0} | {before:.0} | {change:+.1} %{grown} |");
        is_well &= change <= THRESHOLD;
    }
    if is_blessing {
        let record_now = Record { compiler, architecture: std::env::consts::ARCH.to_owned(), instructions: found };
        std::fs::write(&record, serde_json::to_string_pretty(&record_now)? + "\n")?;
        std::fs::write(record.with_file_name("profile.txt"), profiles)?;
        println!("\nwritten: instructions.json, profile.txt");
        return Ok(true);
    }
    if (&older.compiler[..], &older.architecture[..]) != (&compiler, std::env::consts::ARCH) {
        println!("\nskipped: the record is of {} on {}, this is {compiler}", older.compiler, older.architecture);
        return Ok(true);
    }
    Ok(is_well)
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Record {
    compiler: String,
    architecture: String,
    instructions: BTreeMap<String, f64>,
}
