//! kestrel-core beside other queues and beside the machine's limits, measured in turns.
//!
//! `cargo bench -p versus -- --quick` in two minutes, `cargo bench -p versus` in full (an hour). Each subject runs in a process
//! and a fresh directory of its own, A B C A B C; the consumer checks order, length, sequence and bytes of every item, and
//! who loses or reorders is shown as failed. Options:
//!
//! ```text
//! --quick          fewer subjects, shorter times; the figures go to a file below the target directory
//! --row TEXT       only rows whose name contains it (may be given again)
//! --subject TEXT   only these subjects (may be given again)
//! --dir DIR        where to measure: a real disk; by default below the target directory
//! --json FILE      where the figures go; by default benches/versus/figures.json
//! --no-latency     leave the open-loop histograms out
//! --scale          in place of the rows: this crate with much of something (--backlog-gb 20, --queues 100000)
//! --list           the rows
//! ```

mod child;
mod limits;
mod load;
mod machine;
mod peers;
mod plan;
mod scale;
mod subject;
mod task;

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plan::{Form, Plan};
use subject::{Any, Sync};
use task::{Answer, MARK, Task, Work};
use versus::figures::{Better, Figures, Latency, Measured, PERCENTILES, Row, date};
use versus::markdown;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match &words[..] {
        [child, task] if child == "--child" => work(task),
        _ => Options::parse(&words).and_then(|options| options.map_or(Ok(()), |options| run(&options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn work(task: &str) -> Any<()> {
    // SAFETY: a plain system call. A child does not outlive a run that was stopped.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let answer = child::run(&serde_json::from_str(task)?)?;
    println!("{MARK}{}", serde_json::to_string(&answer)?);
    Ok(())
}

struct Options {
    form: Form,
    rows: Vec<String>,
    subjects: Vec<String>,
    dir: PathBuf,
    json: PathBuf,
    latency: bool,
    scale: bool,
    backlog_gb: u64,
    queues: u64,
    list: bool,
}

impl Options {
    /// `None` where there is nothing to measure: `cargo test` runs a benchmark without `--bench`.
    fn parse(words: &[String]) -> Any<Option<Options>> {
        if !words.iter().any(|word| word == "--bench") {
            return Ok(None);
        }
        let form = if words.iter().any(|word| word == "--quick") { Form::Quick } else { Form::Full };
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let json = match form {
            Form::Quick => tmp.join("versus-quick.json"),
            Form::Full => Path::new(env!("CARGO_MANIFEST_DIR")).join("figures.json"),
        };
        let mut options = Options {
            form,
            rows: Vec::new(),
            subjects: Vec::new(),
            dir: tmp.to_owned(),
            json,
            latency: true,
            scale: false,
            backlog_gb: 20,
            queues: 100_000,
            list: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match &word[..] {
                "--bench" | "--quick" => {}
                "--row" => options.rows.push(value()?.clone()),
                "--subject" => options.subjects.push(value()?.clone()),
                "--dir" => options.dir = PathBuf::from(value()?),
                "--json" => options.json = PathBuf::from(value()?),
                "--no-latency" => options.latency = false,
                "--scale" => options.scale = true,
                "--backlog-gb" => options.backlog_gb = value()?.parse()?,
                "--queues" => options.queues = value()?.parse()?,
                "--list" => options.list = true,
                other => return Err(format!("no option {other}; benches/versus/bench/main.rs tells them").into()),
            }
        }
        Ok(Some(options))
    }

    fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| name.contains(&row[..]))
    }

    fn wants_subject(&self, name: &str) -> bool {
        self.subjects.is_empty() || self.subjects.iter().any(|subject| name.contains(&subject[..]))
    }
}

fn run(options: &Options) -> Any<()> {
    let mut plans = plan::plans(options.form);
    plans.retain(|plan| plan.shows.iter().any(|show| options.wants(&show.name)));
    if options.list {
        plans.iter().flat_map(|plan| &plan.shows).for_each(|show| println!("{}", show.name));
        return Ok(());
    }
    std::fs::create_dir_all(&options.dir)?;
    let machine = machine::kind(&options.dir)?;
    if ["tmpfs", "ramfs"].contains(&&machine.file_system[..]) {
        let dir = options.dir.display();
        return Err(format!("{dir} is on a {}, which is no disk: say --dir DIR", machine.file_system).into());
    }
    let start = Instant::now();
    let base = Fresh::new(&options.dir)?;
    if options.scale {
        return scales(options, &base);
    }
    println!(
        "{} cores, {} GiB, {}, Linux {}; {} form\n",
        machine.cores,
        machine.memory_gib,
        machine.file_system,
        machine.kernel,
        options.form.name()
    );
    let mut figures = Figures { machine, ..Figures::default() };
    for plan in &mut plans {
        plan.subjects.retain(|name| options.wants_subject(name));
        if plan.subjects.is_empty() {
            continue;
        }
        for row in measure(plan, options, &base)? {
            if options.wants(&row.name) {
                println!("{}", markdown::row(&row));
                figures.rows.push(row);
            }
        }
    }
    if options.latency && options.wants("latency") {
        figures.latencies = latencies(options, &base)?;
        println!("### Latency in open loop\n\n{}", markdown::latencies(&figures.latencies));
    }
    println!("### All rows\n\n{}", markdown::summary(&figures));
    for lost in markdown::lost(&figures) {
        println!("behind: {lost}");
    }
    // One subject beside nothing is no comparison to keep.
    if options.subjects.is_empty() {
        let mut older = Figures::load(&options.json).unwrap_or_default();
        if options.rows.is_empty() {
            // All rows were measured: what is not among them is a row no more.
            older.rows.retain(|row| row.group == markdown::SCALE);
        }
        older.merge(figures).store(&options.json)?;
        println!("\nwritten: {}", options.json.display());
    }
    println!("{} s", start.elapsed().as_secs());
    Ok(())
}

/// A directory of this run's own, removed at its end.
struct Fresh(PathBuf);

impl Fresh {
    fn new(base: &Path) -> Any<Fresh> {
        let dir = base.join(format!("versus-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(Fresh(dir))
    }

    /// An empty directory of that name.
    fn sub(&self, name: &str) -> Any<PathBuf> {
        let dir = self.0.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    date((seconds / 86_400) as i64)
}

/// Runs a task in a process of its own. The error is what it said last.
fn child(task: &Task, timeout: Duration, base: &Fresh) -> Result<Answer, String> {
    let said = base.0.join("said");
    let error = |error: std::io::Error| error.to_string();
    let mut child = Command::new(std::env::current_exe().map_err(error)?)
        .arg0("versus")
        .args(["--child", &serde_json::to_string(task).map_err(|error| error.to_string())?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&said).map_err(error)?)
        .spawn()
        .map_err(error)?;
    let mut output = child.stdout.take().ok_or("no output")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(error)? {
            break status;
        }
        if start.elapsed() > timeout {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no end within {} s", timeout.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = reader.join().unwrap_or_default();
    if task.work == Work::FillKilled && status.signal() == Some(libc::SIGKILL) {
        return Ok(Answer { told: task::Told::new(), note: None });
    }
    let said = String::from_utf8_lossy(&std::fs::read(&said).unwrap_or_default()).into_owned();
    if !status.success() {
        return Err(reason(&said, status.signal()));
    }
    let answer = output.lines().rev().find_map(|line| line.strip_prefix(MARK)).ok_or("no answer")?;
    serde_json::from_str(answer).map_err(|error| error.to_string())
}

/// The line that tells why, out of what a child wrote.
fn reason(said: &str, signal: Option<i32>) -> String {
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let panic = said.lines().position(|line| line.contains("panicked at"));
    let line = match panic {
        Some(place) => format!("panics: {}", said.lines().nth(place + 1).unwrap_or_default()),
        None => lines.next_back().unwrap_or_default().to_owned(),
    };
    let line: String = line.chars().take(160).collect();
    match signal {
        Some(signal) if line.is_empty() => format!("ended by signal {signal}"),
        _ => line,
    }
}

/// All subjects of a plan in turns; a row for each of its figures.
fn measure(plan: &Plan, options: &Options, base: &Fresh) -> Any<Vec<Row>> {
    let is_reopen = matches!(plan.task.work, Work::Fill | Work::FillKilled);
    // Only work of a fixed size takes long.
    let is_timed = plan.task.items == 0 && !matches!(plan.task.work, Work::KeptUp | Work::Growing);
    let timeout = Duration::from_secs(if is_timed { 20 } else { options.form.pick(20, 240) });
    let mut rows: Vec<Row> = Vec::new();
    for show in &plan.shows {
        let subjects = plan.subjects.iter().map(|name| measured(name, plan.task.sync(), plan.task.work));
        rows.push(Row {
            group: plan.group.into(),
            name: show.name.clone(),
            unit: show.unit.into(),
            better: show.better,
            date: today(),
            form: options.form.name().into(),
            subjects: subjects.collect::<Any<_>>()?,
        });
    }
    let mut left = vec![None; plan.subjects.len()];
    if is_reopen {
        for (place, name) in plan.subjects.iter().enumerate() {
            let dir = base.sub(&format!("left-{place}"))?;
            let task = Task { subject: (*name).into(), dir: dir.clone(), ..plan.task.clone() };
            match child(&task, timeout, base) {
                Ok(_) => left[place] = Some(dir),
                Err(why) => rows.iter_mut().for_each(|row| row.subjects[place].failed = Some(why.clone())),
            }
        }
    }
    for _ in 0..options.form.repetitions() {
        for (place, name) in plan.subjects.iter().enumerate() {
            // Who failed once is not timed.
            if rows[0].subjects[place].failed.is_some() {
                continue;
            }
            let dir = base.sub("dir")?;
            let mut task = Task { subject: (*name).into(), dir: dir.clone(), ..plan.task.clone() };
            if let Some(left) = &left[place] {
                task.work = Work::Reopen;
                copy(left, &dir)?;
            }
            match child(&task, timeout, base) {
                Ok(answer) => {
                    for (row, show) in rows.iter_mut().zip(&plan.shows) {
                        let subject = &mut row.subjects[place];
                        match answer.told.get(show.key) {
                            Some(value) => subject.samples.push(value * show.factor),
                            None => subject.failed = Some("no such counter here".into()),
                        }
                        subject.note.clone_from(&answer.note);
                    }
                }
                Err(why) => rows.iter_mut().for_each(|row| row.subjects[place].failed = Some(why.clone())),
            }
        }
    }
    for place in 0..left.len() {
        base.sub(&format!("left-{place}"))?;
    }
    base.sub("dir")?;
    Ok(rows)
}

fn measured(name: &str, sync: Sync, work: Work) -> Any<Measured> {
    let subject = subject::find(name)?;
    // Synced once for a thousand, and not answered before.
    let sync = if work == Work::Append { Sync::Each } else { sync };
    Ok(Measured {
        name: subject.name.into(),
        version: subject.version.into(),
        kind: subject.kind.name().into(),
        acknowledges: subject.acks,
        survives: subject.survives(sync).into(),
        samples: Vec::new(),
        failed: None,
        note: None,
    })
}

/// A copy of a directory, with its holes.
fn copy(from: &Path, to: &Path) -> Any<()> {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status()?;
    if copied.success() { Ok(()) } else { Err("cp failed".into()) }
}

/// Each subject's peak, then 10, 50 and 90 % of it.
fn latencies(options: &Options, base: &Fresh) -> Any<Vec<Latency>> {
    let mut all = Vec::new();
    let timeout = Duration::from_secs(options.form.pick(15, 60));
    for (name, task, subjects) in plan::latencies(options.form) {
        for subject in subjects.into_iter().filter(|name| options.wants_subject(name)) {
            let at = |rate: f64| -> Any<Result<Answer, String>> {
                let task = Task { subject: subject.into(), dir: base.sub("dir")?, rate, ..task.clone() };
                Ok(child(&task, timeout, base))
            };
            let peak = at(0.0)?.map(|answer| answer.told.get("rate").copied().unwrap_or(0.0));
            for load in [10, 50, 90] {
                let mut latency = Latency {
                    name: name.clone(),
                    subject: subject.into(),
                    kind: subject::find(subject)?.kind.name().into(),
                    date: today(),
                    form: options.form.name().into(),
                    load,
                    rate: 0.0,
                    put_us: Vec::new(),
                    through_us: Vec::new(),
                    failed: None,
                };
                let answer = match &peak {
                    Ok(peak) => {
                        latency.rate = peak * f64::from(load) / 100.0;
                        at(latency.rate)?
                    }
                    Err(why) => Err(why.clone()),
                };
                match answer {
                    Ok(answer) => {
                        let list = |what: &str| {
                            let value = |(name, _)| answer.told.get(&format!("{what} {name}")).copied().unwrap_or(0.0);
                            PERCENTILES.map(value).to_vec()
                        };
                        (latency.put_us, latency.through_us) = (list("put"), list("through"));
                    }
                    Err(why) => latency.failed = Some(why),
                }
                all.push(latency);
            }
        }
    }
    base.sub("dir")?;
    Ok(all)
}

/// This crate alone, with much of something. Its figures are rows of their own group.
fn scales(options: &Options, base: &Fresh) -> Any<()> {
    let mut figures = Figures { machine: machine::kind(&options.dir)?, ..Figures::default() };
    for (name, task) in plan::scales(options.queues, options.backlog_gb) {
        if !options.wants(&name) {
            continue;
        }
        let task = Task { subject: "kestrel-core".into(), dir: base.sub("dir")?, ..task };
        println!("### {name}\n");
        match child(&task, Duration::from_secs(1800), base) {
            Err(why) => println!("failed: {why}\n"),
            Ok(answer) => {
                println!("| figure | value |\n|---|---|");
                for (key, value) in answer.told {
                    println!("| {key} | {} |", markdown::figure(value));
                    let mut ours = measured("kestrel-core", Sync::No, task.work)?;
                    ours.samples.push(value);
                    figures.rows.push(Row {
                        group: markdown::SCALE.into(),
                        name: format!("{name}: {key}"),
                        unit: String::new(),
                        better: if key.contains("/s") { Better::Higher } else { Better::Lower },
                        date: today(),
                        form: options.form.name().into(),
                        subjects: vec![ours],
                    });
                }
                println!();
            }
        }
    }
    base.sub("dir")?;
    let older = Figures::load(&options.json).unwrap_or_default();
    Ok(older.merge(figures).store(&options.json)?)
}
