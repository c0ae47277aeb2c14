//! Other embeddable queues and this one, on the same rig: a process killed at a moment of chance, and bits flipped in what
//! one left. Only what was seen is told.
//!
//! `cargo run --release --manifest-path tests/peers/Cargo.toml -- [KILLS [FLIPS [SEED]]]`

mod adapters;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const ITEMS: u64 = 120;
const PATIENCE: Duration = Duration::from_secs(20);

/// splitmix64 (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn payload(number: u64) -> Vec<u8> {
    let mut seed = number;
    let len = 24 + random(&mut seed) as usize % 200;
    let mut bytes = number.to_le_bytes().to_vec();
    while bytes.len() < len {
        bytes.extend_from_slice(&random(&mut seed).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == payload(number)).then_some(number)
}

type Any<T> = Result<T, Box<dyn std::error::Error>>;

/// Puts twice for each take until it is killed, and tells each question and answer.
fn work(name: &str, dir: &Path) -> Any<()> {
    let mut peer = adapters::open(name, dir)?;
    let mut out = std::io::stdout();
    for number in 0.. {
        writeln!(out, "p {number}").and_then(|()| out.flush())?;
        peer.put(&payload(number))?;
        writeln!(out, "P {number}").and_then(|()| out.flush())?;
        if number % 2 == 1 {
            writeln!(out, "t").and_then(|()| out.flush())?;
            if let Some(item) = peer.take()? {
                let taken = parse(&item).map_or("x".to_owned(), |number| number.to_string());
                writeln!(out, "T {taken}").and_then(|()| out.flush())?;
            }
        }
    }
    Ok(())
}

fn fill(name: &str, dir: &Path) -> Any<()> {
    let mut peer = adapters::open(name, dir)?;
    (0..ITEMS).try_for_each(|number| peer.put(&payload(number)))
}

/// Takes all that is there and tells each.
fn drain(name: &str, dir: &Path) -> Any<()> {
    let mut peer = adapters::open(name, dir)?;
    let mut out = std::io::stdout();
    let mut count = 0u64;
    while let Some(item) = peer.take()? {
        writeln!(out, "T {}", parse(&item).map_or("x".to_owned(), |number| number.to_string()))?;
        count += 1;
        if count > 1_000_000 {
            return Err("it never ends".into());
        }
    }
    Ok(writeln!(out, "end")?)
}

/// What a child said, and how it ended.
struct Said {
    out: String,
    err: String,
    signal: Option<i32>,
    ok: bool,
    hung: bool,
}

/// Runs a child with its output in a file, until it ends or, with `kill_after`, so long after its first answer.
fn child(words: &[&str], scratch: &Path, kill_after: Option<Duration>) -> Any<Said> {
    let [out, err] = ["out", "err"].map(|name| scratch.join(name));
    let mut child = Command::new(std::env::current_exe()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?)
        .spawn()?;
    let start = Instant::now();
    let mut first = None;
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if first.is_none() && kill_after.is_some() && std::fs::metadata(&out)?.len() > 8 {
            first = Some(Instant::now());
        }
        let due = first.zip(kill_after).is_some_and(|(first, after)| first.elapsed() >= after);
        hung = !due && start.elapsed() > PATIENCE;
        if due || hung {
            let _ = child.kill();
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_micros(300));
    };
    let text = |path: &Path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Said { out: text(&out)?, err: text(&err)?, signal: status.signal(), ok: status.success(), hung })
}

#[derive(Debug, Default)]
struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

fn numbers<'a>(text: &'a str, what: &'a str) -> impl Iterator<Item = u64> + 'a {
    text.lines().filter_map(move |line| line.strip_prefix(what)?.strip_prefix(' ')?.parse().ok())
}

fn kills(name: &str, rounds: u64, seed: u64, scratch: &Path) -> Any<Tally> {
    let mut tally = Tally::default();
    let mut dice = seed;
    for _ in 0..rounds {
        let dir = scratch.join("set");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let place = dir.to_string_lossy().into_owned();
        let after = Duration::from_micros(random(&mut dice) % 20_000);
        let said = child(&["work", name, &place], scratch, Some(after))?;
        if said.signal != Some(9) {
            tally.add("ended by itself", 1);
            continue;
        }
        // A line without its end was being written.
        let told = said.out.rsplit_once('\n').map_or("", |(told, _)| told).to_owned();
        let put: BTreeSet<u64> = numbers(&told, "P").collect();
        let asked: BTreeSet<u64> = numbers(&told, "p").collect();
        let taken: BTreeSet<u64> = numbers(&told, "T").collect();
        // A take under way may have taken one item that nobody heard of.
        let under_way = told.lines().next_back().is_some_and(|line| line == "t");
        let said = child(&["drain", name, &place], scratch, None)?;
        tally.add("kills", 1);
        tally.add("answered puts", put.len() as u64);
        let found: Vec<u64> = numbers(&said.out, "T").collect();
        let there: BTreeSet<u64> = found.iter().copied().collect();
        if said.hung {
            tally.add("hangs after a kill", 1);
            continue;
        }
        if !said.ok {
            // What could not be read is neither lost nor there.
            let panicked = said.err.contains("panicked") || said.signal.is_some();
            tally.add(
                if panicked { "panics or signals after a kill" } else { "refused to open or read after a kill" },
                1,
            );
            continue;
        }
        let mut lost = put.iter().filter(|n| !taken.contains(n) && !there.contains(n)).count() as u64;
        lost = lost.saturating_sub(u64::from(under_way));
        tally.add("lost", lost);
        tally.add("kills that lost something", u64::from(lost > 0));
        tally.add("taken and delivered again", there.intersection(&taken).count() as u64);
        tally.add("delivered twice in one drain", (found.len() - there.len()) as u64);
        tally.add("altered", said.out.lines().filter(|line| *line == "T x").count() as u64);
        tally.add("invented", there.iter().filter(|n| !asked.contains(n)).count() as u64);
        tally.add("out of order", u64::from(!found.is_sorted()));
    }
    Ok(tally)
}

fn files(dir: &Path, all: &mut Vec<PathBuf>) -> Any<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, all)? } else { all.push(path) }
    }
    all.sort();
    Ok(())
}

/// Flips one bit of a byte that is in use, and reads.
fn flips(name: &str, tries: u64, seed: u64, scratch: &Path) -> Any<Tally> {
    let mut tally = Tally::default();
    let [whole, dir] = ["whole", "flipped"].map(|name| scratch.join(name));
    let _ = std::fs::remove_dir_all(&whole);
    std::fs::create_dir_all(&whole)?;
    let filled = child(&["fill", name, &whole.to_string_lossy()], scratch, None)?;
    if !filled.ok {
        return Err(format!("{name} cannot be filled: {}", filled.err).into());
    }
    let mut all = Vec::new();
    files(&whole, &mut all)?;
    let mut used: Vec<(PathBuf, u64)> = Vec::new();
    for path in &all {
        let relative = path.strip_prefix(&whole)?.to_owned();
        let bytes = std::fs::read(path)?;
        used.extend(bytes.iter().enumerate().filter(|(_, b)| **b != 0).map(|(at, _)| (relative.clone(), at as u64)));
    }
    let copy = || {
        let _ = std::fs::remove_dir_all(&dir);
        let copied = Command::new("cp").args(["-r", "--sparse=always"]).arg(&whole).arg(&dir).status()?;
        if copied.success() { Ok(()) } else { Err(std::io::Error::other("cp failed")) }
    };
    // Without a flip all must be there, or the rig measures itself.
    copy()?;
    let said = child(&["drain", name, &dir.to_string_lossy()], scratch, None)?;
    if !(said.ok && numbers(&said.out, "T").eq(0..ITEMS)) {
        return Err(format!(
            "an untouched copy does not read: {} items, {}",
            numbers(&said.out, "T").count(),
            said.err
        )
        .into());
    }
    let mut dice = seed;
    for _ in 0..tries {
        copy()?;
        let (path, at) = &used[random(&mut dice) as usize % used.len()];
        {
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new().read(true).write(true).open(dir.join(path))?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, *at)?;
            byte[0] ^= 1 << (random(&mut dice) % 8);
            file.write_all_at(&byte, *at)?;
        }
        let said = child(&["drain", name, &dir.to_string_lossy()], scratch, None)?;
        let found: Vec<u64> = numbers(&said.out, "T").collect();
        let altered = said.out.lines().any(|line| line == "T x");
        let right = found.iter().copied().eq(0..ITEMS) && !altered;
        let beginning_or_less = found.is_sorted() && found.iter().all(|n| *n < ITEMS);
        tally.add("flips", 1);
        tally.add(
            match () {
                () if said.hung => "hangs",
                () if said.signal.is_some() => "signals",
                () if said.err.contains("panicked") => "panics",
                () if altered || !beginning_or_less => "wrong items, without a word",
                () if !said.ok => "told by an error",
                () if right => "nothing lost",
                () => "items gone, without a word",
            },
            1,
        );
    }
    Ok(tally)
}

fn rig(rounds: u64, tries: u64, seed: u64) -> Any<()> {
    let scratch = std::env::temp_dir().join(format!("kestrel-peers-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let mut all = serde_json::Map::new();
    for (name, version) in adapters::NAMES {
        let mut seen = serde_json::Map::new();
        seen.insert("version".into(), (*version).into());
        for (what, tally) in
            [("kill", kills(name, rounds, seed, &scratch)), ("flip", flips(name, tries, seed, &scratch))]
        {
            match tally {
                Ok(tally) => {
                    println!("{name} {version}: {what}: {:?}", tally.0);
                    seen.insert(what.into(), serde_json::to_value(&tally.0)?);
                }
                Err(error) => println!("{name} {version}: {what}: {error}"),
            }
        }
        all.insert((*name).into(), seen.into());
    }
    let _ = std::fs::remove_dir_all(&scratch);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("seen.json");
    Ok(std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |place: usize, default: u64| words.get(place).and_then(|word| word.parse().ok()).unwrap_or(default);
    let done = match words[..] {
        ["work", name, dir] => work(name, Path::new(dir)),
        ["fill", name, dir] => fill(name, Path::new(dir)),
        ["drain", name, dir] => drain(name, Path::new(dir)),
        _ => rig(number(0, 100), number(1, 200), number(2, 1)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
