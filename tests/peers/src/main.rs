//! Other embeddable queues and this one, on the same rig: a process killed at a moment of chance, bits flipped in what one
//! left, a disk that is full, and for those that sync when asked, a loss of power. Only what was seen is told.
//!
//! `cargo run --release --manifest-path tests/peers/Cargo.toml -- [KILLS [FLIPS [CUTS [FULL [SEED]]]]]`; a name behind the
//! numbers runs that queue alone.

mod adapters;
#[path = "../../lab/src/memfs.rs"]
#[allow(dead_code, reason = "the laboratory uses all of it")]
mod memfs;
#[path = "../../lab/src/mounts.rs"]
#[allow(dead_code, reason = "the laboratory uses all of it")]
mod mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use adapters::{ROWS, Row};

const ITEMS: u64 = 120;
const PATIENCE: Duration = Duration::from_secs(20);
const LARGE: usize = 32 << 10;
/// A disk to be filled, and what is on it to make room by.
const DISK: mounts::Kind = mounts::Kind { name: "ext4", mkfs: &["mkfs.ext4", "-q", "-m", "0"], options: "", mib: 256 };
const BALLAST: u64 = 96 << 20;

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

/// One that fills a disk.
fn large(number: u64) -> Vec<u8> {
    let mut seed = number;
    let words = (1..LARGE / 8).flat_map(|_| random(&mut seed).to_le_bytes());
    number.to_le_bytes().into_iter().chain(words).collect()
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let whole = if bytes.len() == LARGE { bytes == large(number) } else { bytes == payload(number) };
    whole.then_some(number)
}

type Any<T> = Result<T, Box<dyn std::error::Error>>;

/// Puts twice for each take until it is killed, and tells each question and answer.
fn work(name: &str, dir: &Path, synced: bool) -> Any<()> {
    let mut peer = adapters::open(name, dir, synced)?;
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
    let mut peer = adapters::open(name, dir, false)?;
    (0..ITEMS).try_for_each(|number| peer.put(&payload(number)))
}

/// Puts until a put fails, makes room, and puts three more; tells each question and answer.
fn fill_up(name: &str, dir: &Path, ballast: &Path) -> Any<()> {
    let mut peer = adapters::open(name, dir, false)?;
    let mut out = std::io::stdout();
    let mut put = |number: u64, answer: &str| -> Any<bool> {
        writeln!(out, "p {number}").and_then(|()| out.flush())?;
        let put = peer.put(&large(number));
        match &put {
            Ok(()) => writeln!(out, "P {number}\n{answer}")?,
            Err(error) => writeln!(out, "E {}", error.to_string().replace('\n', " "))?,
        }
        out.flush()?;
        Ok(put.is_ok())
    };
    let mut number = 0;
    // Far more than the disk holds.
    while number < 4 * (DISK.mib << 20) / LARGE as u64 && put(number, "")? {
        number += 1;
    }
    std::fs::remove_file(ballast)?;
    for more in 1..=3 {
        put(number + more, "on")?;
    }
    Ok(())
}

/// Takes all that is there and tells each.
fn drain(name: &str, dir: &Path) -> Any<()> {
    let mut peer = adapters::open(name, dir, false)?;
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
fn child(words: &[&str], scratch: &Path, kill_after: Option<Duration>, patience: Duration) -> Any<Said> {
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
        hung = !due && start.elapsed() > patience;
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

/// What was told by a process that is gone.
struct Ledger {
    put: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    taken: BTreeSet<u64>,
    /// A take was under way, which may have taken one item that nobody heard of.
    taking: bool,
}

impl Ledger {
    fn of(row: &Row, out: &str) -> Ledger {
        // A line without its end was being written.
        let told = out.rsplit_once('\n').map_or("", |(told, _)| told);
        let [put, asked, mut taken] = ["P", "p", "T"].map(|what| numbers(told, what).collect::<BTreeSet<u64>>());
        let taking = row.remembers && told.lines().next_back().is_some_and(|line| line == "t");
        if !row.remembers {
            taken.clear();
        }
        Ledger { put, asked, taken, taking }
    }
}

/// Drains what is there and holds it against the ledger.
fn judge(row: &Row, place: &str, ledger: &Ledger, scratch: &Path, tally: &mut Tally) -> Any<()> {
    let said = child(&["drain", row.name, place], scratch, None, 6 * PATIENCE)?;
    tally.add("answered puts", ledger.put.len() as u64);
    let found: Vec<u64> = numbers(&said.out, "T").collect();
    let there: BTreeSet<u64> = found.iter().copied().collect();
    if said.hung {
        tally.add("hangs afterwards", 1);
        return Ok(());
    }
    if !said.ok {
        // What could not be read is neither lost nor there.
        let panicked = said.err.contains("panicked") || said.signal.is_some();
        println!("{}: afterwards, signal {:?}: {}", row.name, said.signal, said.err.trim());
        tally.add(if panicked { "panics or signals afterwards" } else { "refused to open or read afterwards" }, 1);
        return Ok(());
    }
    let gone = ledger.put.iter().filter(|n| !ledger.taken.contains(n) && !there.contains(n)).count() as u64;
    let lost = gone.saturating_sub(u64::from(ledger.taking));
    tally.add("lost", lost);
    tally.add("rounds that lost something", u64::from(lost > 0));
    tally.add("taken and delivered again", there.intersection(&ledger.taken).count() as u64);
    tally.add("delivered twice in one drain", (found.len() - there.len()) as u64);
    tally.add("altered", said.out.lines().filter(|line| *line == "T x").count() as u64);
    tally.add("invented", there.iter().filter(|n| !ledger.asked.contains(n)).count() as u64);
    tally.add("out of order", u64::from(!found.is_sorted()));
    Ok(())
}

fn kills(row: &Row, rounds: u64, seed: u64, scratch: &Path) -> Any<Tally> {
    let mut tally = Tally::default();
    let mut dice = seed;
    for _ in 0..rounds {
        let dir = scratch.join("set");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let place = dir.to_string_lossy().into_owned();
        let after = Duration::from_micros(random(&mut dice) % 20_000);
        let said = child(&["work", row.name, &place, "default"], scratch, Some(after), PATIENCE)?;
        if said.signal != Some(9) {
            tally.add("ended by itself", 1);
            continue;
        }
        tally.add("kills", 1);
        judge(row, &place, &Ledger::of(row, &said.out), scratch, &mut tally)?;
    }
    Ok(tally)
}

/// Why what needs a file system of our own cannot be had here.
fn missing(needs_fuse: bool) -> Option<String> {
    if needs_fuse && !Path::new("/dev/fuse").exists() {
        return Some("needs /dev/fuse".into());
    }
    DISK.missing()
}

/// What a device holds that lost all writes behind its last flush.
fn flushed(base: &[u8], events: &[memfs::Event]) -> Vec<u8> {
    let mut base = base.to_vec();
    let end = events.iter().rposition(|event| event.write.is_none()).unwrap_or(0);
    for (offset, data) in events[..end].iter().filter_map(|event| event.write.as_ref()) {
        let offset = *offset as usize;
        base[offset..offset + data.len()].copy_from_slice(data);
    }
    base
}

/// Writes an image with holes where it is empty.
fn store(path: &Path, image: &[u8]) -> Any<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path)?;
    file.set_len(image.len() as u64)?;
    for (i, chunk) in image.chunks(64 << 10).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        file.write_all_at(chunk, (i as u64) << 16)?;
    }
    Ok(())
}

/// A process on ext4 is killed, and the device below loses everything that it was not asked to flush.
fn cuts(row: &Row, rounds: u64, seed: u64, scratch: &Path) -> Any<Tally> {
    let mut tally = Tally::default();
    let mut dice = seed;
    for round in 0..rounds {
        let fs = memfs::MemFs::new();
        let device = scratch.join("device");
        let mounted = fs.mount(&device)?;
        let file = device.join("disk");
        std::fs::File::create(&file)?.set_len(DISK.mib << 20)?;
        mounts::run(&[DISK.mkfs, &[&mounts::text(&file)]].concat())?;
        let mount = mounts::Mount::of(&file, DISK.fs(), DISK.options, &scratch.join("mnt"))?;
        let dir = mount.dir.join("set");
        std::fs::create_dir(&dir)?;
        mounts::run(&["sync", "-f", &mounts::text(&mount.dir)])?;
        let base = fs.content("disk").ok_or("the device is gone")?;
        fs.watch(&scratch.join("out"));
        let after = Duration::from_micros(random(&mut dice) % 60_000);
        let place = mounts::text(&dir);
        let said = child(&["work", row.name, &place, "synced"], scratch, Some(after), PATIENCE)?;
        let events = fs.events();
        drop(mount);
        drop(mounted);
        if said.signal != Some(9) {
            let why = said.err.lines().next().unwrap_or_default();
            return Err(format!("it ended by itself: {why}").into());
        }
        let _boot = mounts::OtherBoot::begin(scratch)?;
        let after = |image: &[u8], tally: &mut Tally| -> Any<()> {
            let path = scratch.join("image");
            store(&path, image)?;
            let again = mounts::Mount::of(&path, DISK.fs(), DISK.options, &scratch.join("again"))?;
            judge(row, &mounts::text(&again.dir.join("set")), &Ledger::of(row, &said.out), scratch, tally)
        };
        if round == 0 {
            // A rig that cannot fail proves nothing: a device that forgot half of what it had flushed must be found out.
            let mut lie = Tally::default();
            after(&flushed(&base, &events[..events.len() / 2]), &mut lie)?;
            let faults = ["lost", "refused to open or read afterwards", "panics or signals afterwards"];
            if said.out.matches("\nP ").count() > 2 && !faults.iter().any(|fault| lie.0.get(fault) > Some(&0)) {
                return Err("a device that lies was not found out".into());
            }
        }
        tally.add("power cuts", 1);
        after(&flushed(&base, &events), &mut tally)?;
    }
    Ok(tally)
}

/// Puts until the disk is full, then looks what is there, and whether puts go on once there is room.
fn full(row: &Row, rounds: u64, scratch: &Path) -> Any<Tally> {
    let mut tally = Tally::default();
    for _ in 0..rounds {
        let mount = DISK.make(scratch)?;
        let (dir, ballast) = (mount.dir.join("set"), mount.dir.join("ballast"));
        std::fs::create_dir(&dir)?;
        mounts::run(&["fallocate", "-l", &BALLAST.to_string(), &ballast.to_string_lossy()])?;
        let place = dir.to_string_lossy().into_owned();
        let words = ["fill-up", row.name, &place, &ballast.to_string_lossy()];
        let said = child(&words, scratch, None, 6 * PATIENCE)?;
        // Where the process could not do that.
        let _ = std::fs::remove_file(&ballast);
        let has_failed = said.out.lines().any(|line| line.starts_with("E "));
        tally.add("full disks", 1);
        tally.add(
            match () {
                () if said.hung => "hangs",
                () if said.signal.is_some() => "killed by a signal",
                () if said.err.contains("panicked") => "panics",
                () if has_failed => "told by an error",
                () if !said.ok => "ended by itself",
                () => "put after put on a full disk, without a word",
            },
            1,
        );
        if has_failed && said.ok {
            let on = said.out.lines().any(|line| line == "on") && said.out.lines().next_back() == Some("on");
            tally.add(if on { "went on once there was room" } else { "did not go on once there was room" }, 1);
        }
        judge(row, &place, &Ledger::of(row, &said.out), scratch, &mut tally)?;
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
    let filled = child(&["fill", name, &whole.to_string_lossy()], scratch, None, PATIENCE)?;
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
    let said = child(&["drain", name, &dir.to_string_lossy()], scratch, None, PATIENCE)?;
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
        let said = child(&["drain", name, &dir.to_string_lossy()], scratch, None, PATIENCE)?;
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

struct Effort {
    kills: u64,
    flips: u64,
    cuts: u64,
    full: u64,
    seed: u64,
}

fn rig(effort: &Effort, only: Option<&str>) -> Any<()> {
    mounts::own_namespace();
    let scratch = std::env::temp_dir().join(format!("kestrel-peers-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("seen.json");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let mut all: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap_or_default();
    all.retain(|name, _| ROWS.iter().any(|row| row.name == name));
    for row in ROWS.iter().filter(|row| only.is_none_or(|only| only == row.name)) {
        let mut seen = serde_json::Map::new();
        seen.insert("version".into(), row.version().into());
        if !row.remembers {
            seen.insert("note".into(), "keeps no place of a consumer: its puts alone are judged".into());
        }
        let unless = |why: Option<String>, run: &dyn Fn() -> Any<Tally>| match why {
            Some(why) => Err(why.into()),
            None => run(),
        };
        let no_sync = (!row.syncs).then(|| "has no sync".to_owned());
        let cuts = || cuts(row, effort.cuts, effort.seed, &scratch);
        for (what, tally) in [
            ("kill", kills(row, effort.kills, effort.seed, &scratch)),
            ("flip", flips(row.name, effort.flips, effort.seed, &scratch)),
            ("full", unless(missing(false), &|| full(row, effort.full, &scratch))),
            ("cut", unless(no_sync.or_else(|| missing(true)), &cuts)),
        ] {
            let told = match tally {
                Ok(tally) => serde_json::to_value(&tally.0)?,
                Err(error) => format!("not run: {error}").into(),
            };
            println!("{} {}: {what}: {told}", row.name, row.version());
            seen.insert(what.into(), told);
        }
        all.insert(row.name.into(), seen.into());
    }
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |place: usize, default: u64| words.get(place).and_then(|word| word.parse().ok()).unwrap_or(default);
    let done = match words[..] {
        ["work", name, dir, how] => work(name, Path::new(dir), how == "synced"),
        ["fill", name, dir] => fill(name, Path::new(dir)),
        ["fill-up", name, dir, ballast] => fill_up(name, Path::new(dir), Path::new(ballast)),
        ["drain", name, dir] => drain(name, Path::new(dir)),
        _ => {
            let [kills, flips, cuts, full] = [number(0, 100), number(1, 200), number(2, 50), number(3, 2)];
            rig(&Effort { kills, flips, cuts, full, seed: number(4, 1) }, words.get(5).copied())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
