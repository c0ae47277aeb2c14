//! The jobs of kestrel-core beside effectum, apalis-sqlite and a queue of jobs in SQLite as one writes it by hand, measured in turns.
//!
//! `cargo run --release --manifest-path benches/jobs/Cargo.toml -- --quick`, without `--quick` in full. Each measurement runs in a process
//! and a fresh directory of its own, A B C A B C; the numbers that the jobs carry are checked. Options:
//!
//! ```text
//! --quick          shorter times, 50,000 delayed jobs in place of a million
//! --row TEXT       only rows whose name contains it
//! --dir DIR        where to measure: a real disk; by default below the target directory
//! --page           measures nothing: writes the table of `src/docs/jobs.md` from the figures
//! ```
//!
//! A run leaves its rows in `figures.json`, beside those of earlier runs that it left out, and writes the table of the page.
//!
//! What the rows are:
//! - *push, run and complete*: rounds of 1,000 jobs that do nothing, each pushed by a call of its own. effectum and apalis-sqlite run them on a
//!   runtime of one thread, beside the threads that they start themselves; the others on the thread that pushed.
//! - *delayed jobs*: how much anonymous memory grows by that many jobs which are due in an hour.
//! - *due to start*: a worker with nothing else to do; how far off the start is from the due time, to either side.
//! - *idle*: voluntary context switches of all threads but the one that measures.

mod ours;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jobs_bench::{Any, MARK, Sync, Task, Told, Work};
use versus::figures::{Better, Figures, Machine, Measured, Row, date};
use versus::markdown::{self, figure};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--ours") => return jobs_bench::child(ours::jobs),
        Some("--engine") => return jobs_bench::child(ours::engine),
        _ => {}
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Subject {
    name: &'static str,
    version: &'static str,
    kind: &'static str,
    /// What starts a child, or why there is none.
    command: Result<Vec<PathBuf>, String>,
    /// What a push that asks for no sync survives.
    keeps: &'static str,
}

/// One measurement, shown as one row or more.
struct Plan {
    work: Work,
    sync: Sync,
    /// How often each subject is measured.
    rounds: usize,
    /// Name, unit, key of the answer, goal.
    shows: Vec<(String, &'static str, &'static str, Goal)>,
}

enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Of what the queue alone reaches.
    OfTheQueue(f64),
}

fn plans(is_quick: bool) -> Vec<Plan> {
    let (ms, jobs, times, idle) = if is_quick { (1_000, 50_000, 5, 3_000) } else { (5_000, 1_000_000, 40, 10_000) };
    let through = |name: &str, sync, goal| Plan {
        work: Work::Through { ms, round: 1_000 },
        sync,
        rounds: if is_quick { 3 } else { 5 },
        shows: vec![(format!("push, run and complete, {name}"), "jobs/s", "jobs/s", goal)],
    };
    vec![
        through("no sync", Sync::No, Goal::AtLeast(500_000.0)),
        through("sync each", Sync::Each, Goal::OfTheQueue(0.9)),
        Plan {
            work: Work::Delayed { jobs },
            sync: Sync::No,
            // Memory is no time: once is enough, and takes minutes.
            rounds: 1,
            shows: vec![(format!("memory of {jobs} delayed jobs"), "MB", "MB", Goal::AtMost(jobs as f64 * 64e-6))],
        },
        Plan {
            work: Work::Due { times },
            sync: Sync::No,
            rounds: 3,
            shows: vec![
                ("due to start, median".into(), "ms", "ms", Goal::AtMost(5.0)),
                ("due to start, worst".into(), "ms", "worst ms", Goal::AtMost(5.0)),
            ],
        },
        Plan {
            work: Work::Idle { ms: idle },
            sync: Sync::No,
            rounds: 3,
            shows: vec![("idle worker".into(), "wake-ups/s", "wake-ups/s", Goal::AtMost(0.0))],
        },
    ]
}

fn run(words: &[String]) -> Any<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut is_quick, mut wanted, mut dir) = (false, String::new(), here.join("target/measured"));
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match &word[..] {
            "--quick" => is_quick = true,
            "--row" => wanted.clone_from(value()?),
            "--dir" => dir = PathBuf::from(value()?),
            "--page" => return page(&Figures::load(&here.join(FIGURES))?),
            other => return Err(format!("no option {other}; benches/jobs/src/main.rs tells them").into()),
        }
    }
    let exe = std::env::current_exe()?;
    let peer = |name: &str| built(&here.join("peers").join(name), name);
    let subjects = [
        Subject {
            name: "kestrel-core jobs",
            version: "this tree",
            kind: "ours",
            command: Ok(vec![exe.clone(), "--ours".into()]),
            keeps: "process kill",
        },
        Subject {
            name: "sqlite by hand",
            version: "rusqlite 0.41.1",
            kind: "peer",
            command: peer("sqlite"),
            keeps: "process kill",
        },
        Subject { name: "effectum", version: "0.7.0", kind: "peer", command: peer("effectum"), keeps: "process kill" },
        Subject {
            name: "apalis-sqlite",
            version: "1.0.0",
            kind: "peer",
            command: peer("apalis"),
            keeps: "process kill",
        },
        Subject {
            name: "the queue alone",
            version: "",
            kind: "limit",
            command: Ok(vec![exe, "--engine".into()]),
            keeps: "process kill",
        },
    ];
    let start = Instant::now();
    println!("{} cores; {} form\n", std::thread::available_parallelism()?, if is_quick { "quick" } else { "full" });
    let mut goals = String::from("| what | goal | ours | |\n|---|---|---|---|\n");
    let mut figures = Figures { machine: machine()?, ..Figures::default() };
    for plan in plans(is_quick).iter().filter(|plan| plan.shows.iter().any(|show| show.0.contains(&wanted))) {
        for (row, (.., goal)) in measure(plan, &subjects, &dir, is_quick)?.iter().zip(&plan.shows) {
            println!("{}", markdown::row(row));
            goals += &judged(row, goal);
            figures.rows.push(row.clone());
        }
    }
    println!("### Goals\n\n{goals}");
    println!("{} s", start.elapsed().as_secs());
    if is_quick {
        println!("Figures of the quick form are not kept.");
        return Ok(());
    }
    let file = here.join(FIGURES);
    let figures = Figures::load(&file).unwrap_or_default().merge(figures);
    figures.store(&file)?;
    page(&figures)
}

/// What runs leave behind, beside the manifest.
const FIGURES: &str = "figures.json";

fn machine() -> Any<Machine> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    Ok(Machine {
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: (kib + (1 << 19)) >> 20,
        kernel: kernel.trim().split('.').take(2).collect::<Vec<_>>().join("."),
        file_system: String::new(),
    })
}

/// Writes the table of the page: a line a row, a column a subject.
fn page(figures: &Figures) -> Any<()> {
    const BEGIN: &str =
        "<!-- jobs: begin (written by `cargo run --release --manifest-path benches/jobs/Cargo.toml`) -->\n";
    const END: &str = "<!-- jobs: end -->";
    let mut names: Vec<(String, String)> = Vec::new();
    for subject in figures.rows.iter().flat_map(|row| &row.subjects) {
        if !names.iter().any(|(name, _)| *name == subject.name) {
            names.push((subject.name.clone(), subject.version.clone()));
        }
    }
    let heads: Vec<String> =
        names.iter().map(|(name, version)| format!("{name} {version}").trim_end().into()).collect();
    let mut table = format!("| what | goal | {} | |\n|---|---|{}---|\n", heads.join(" | "), "---|".repeat(heads.len()));
    let plans = plans(false);
    let mut failures = Vec::new();
    for (name, .., goal) in plans.iter().flat_map(|plan| &plan.shows) {
        let Some(row) = figures.rows.iter().find(|row| row.name == *name) else { continue };
        let cells = names.iter().map(|(name, _)| {
            let subject = row.subjects.iter().find(|subject| subject.name == *name);
            let Some(subject) = subject else { return "-".to_owned() };
            if let Some(why) = &subject.failed {
                failures.push(format!("{name}, {}: {}.", row.name, why.trim_end_matches('.')));
                return "failed".into();
            }
            let note = subject.note.as_ref().map_or(String::new(), |note| format!(", {note}"));
            subject.median().map_or("-".into(), |median| {
                format!("{} [{} to {}]{note}", figure(median), figure(subject.least()), figure(subject.most()))
            })
        });
        let cells: Vec<String> = cells.collect();
        let (wanted, _, verdict) = verdict(row, goal);
        table += &format!("| {} ({}) | {wanted} | {} | {verdict} |\n", row.name, row.unit, cells.join(" | "));
    }
    let Machine { cores, memory_gib, kernel, .. } = &figures.machine;
    let day = figures.rows.iter().map(|row| &row.date).max().cloned().unwrap_or_default();
    let text = format!(
        "{table}\nMedian, least and most; {cores} cores, {memory_gib} GiB, Linux {kernel}; {day}. {}\n",
        failures.join(" ").replace('|', "/")
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/docs/jobs.md");
    let page = std::fs::read_to_string(&path)?;
    let (head, rest) = page.split_once(BEGIN).ok_or("the page has no place for the table")?;
    let (_, tail) = rest.split_once(END).ok_or("the page has no end of the table")?;
    Ok(std::fs::write(&path, format!("{head}{BEGIN}\n{text}\n{END}{tail}"))?)
}

/// Builds a peer: it has a lock file of its own, as each links another SQLite.
fn built(dir: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
        .arg(dir.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let why = said.lines().find(|line| line.starts_with("error")).unwrap_or("no reason told");
        return Err(format!("does not build: {why}"));
    }
    Ok(vec![target.join("release").join(format!("jobs-{name}"))])
}

fn measure(plan: &Plan, subjects: &[Subject], base: &Path, is_quick: bool) -> Any<Vec<Row>> {
    let measured = |subject: &Subject| Measured {
        name: subject.name.into(),
        version: subject.version.into(),
        kind: subject.kind.into(),
        acknowledges: true,
        survives: if plan.sync == Sync::Each { "power loss" } else { subject.keeps }.into(),
        samples: Vec::new(),
        failed: subject.command.as_ref().err().cloned(),
        note: None,
    };
    let is_through = matches!(plan.work, Work::Through { .. });
    let subjects: Vec<&Subject> = subjects.iter().filter(|subject| is_through || subject.kind != "limit").collect();
    let today = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    let row = |(name, unit, key, _): &(String, &'static str, &'static str, Goal)| Row {
        group: "jobs".into(),
        name: name.clone(),
        unit: (*unit).into(),
        better: if *key == "jobs/s" { Better::Higher } else { Better::Lower },
        date: date(today as i64),
        form: if is_quick { "quick" } else { "full" }.into(),
        subjects: subjects.iter().copied().map(measured).collect(),
    };
    let mut rows: Vec<Row> = plan.shows.iter().map(row).collect();
    for _ in 0..plan.rounds {
        for (place, subject) in subjects.iter().enumerate() {
            // Who failed once is not asked again.
            let Ok(command) = &subject.command else { continue };
            if rows[0].subjects[place].failed.is_some() {
                continue;
            }
            let dir = base.join(format!("jobs-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir)?;
            let answer = child(command, &Task { work: plan.work, sync: plan.sync, dir: dir.clone() });
            let _ = std::fs::remove_dir_all(&dir);
            for (row, (_, _, key, _)) in rows.iter_mut().zip(&plan.shows) {
                let subject = &mut row.subjects[place];
                match &answer {
                    Ok(told) => {
                        subject.samples.push(told.get(*key).copied().unwrap_or(f64::NAN));
                        if told.get("early").is_some_and(|early| *early > 0.0) {
                            subject.note = Some("also before its time".into());
                        }
                        if told.get("in order").is_some_and(|in_order| *in_order == 0.0) {
                            subject.note = Some("not in the order of the pushes".into());
                        }
                    }
                    Err(why) => subject.failed = Some(why.clone()),
                }
            }
        }
    }
    Ok(rows)
}

fn child(command: &[PathBuf], task: &Task) -> Result<Told, String> {
    let error = |error: std::io::Error| error.to_string();
    let task = serde_json::to_string(task).map_err(|error| error.to_string())?;
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .arg(task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(error)?;
    let start = Instant::now();
    // An answer is one line, which a pipe holds.
    while child.try_wait().map_err(error)?.is_none() {
        if start.elapsed() > Duration::from_secs(600) {
            let _ = child.kill();
            let _ = child.wait();
            return Err("no end within ten minutes".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(error)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
        return Err(last.chars().take(160).collect());
    }
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = told.lines().rev().find_map(|line| line.strip_prefix(MARK)).ok_or("no answer")?;
    serde_json::from_str(answer).map_err(|error| error.to_string())
}

/// A line of the table of goals.
fn judged(row: &Row, goal: &Goal) -> String {
    let (wanted, ours, verdict) = verdict(row, goal);
    format!("| {} ({}) | {wanted} | {ours} | {verdict} |\n", row.name, row.unit)
}

/// What is wanted, what we have, and whether that is enough.
fn verdict(row: &Row, goal: &Goal) -> (String, String, &'static str) {
    let ours = row.ours().and_then(Measured::median);
    let (wanted, is_reached) = match goal {
        Goal::AtLeast(least) => (format!("at least {}", figure(*least)), ours.map(|ours| ours >= *least)),
        Goal::AtMost(most) => (format!("at most {}", figure(*most)), ours.map(|ours| ours <= *most)),
        Goal::OfTheQueue(share) => {
            let queue = row.limit().and_then(Measured::median);
            let wanted = format!("{share} of the queue alone");
            (wanted, ours.zip(queue).map(|(ours, queue)| ours >= queue * share))
        }
    };
    let verdict = match is_reached {
        Some(true) => "reached",
        Some(false) => "missed",
        None => "not measured",
    };
    (wanted, ours.map_or("-".into(), figure), verdict)
}
