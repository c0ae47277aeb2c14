//! Mixed work for a while under limits of address space and open files, in which memory, files, maps and disk must stay as they
//! are. A limit that is met is an error of the worker, which ends it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kestrel_core::{Durability, QueueOptions, QueueSet};

use crate::figures::Outcome;
use crate::mounts::Scratch;
use crate::work::random;

const QUEUES: usize = 40;
/// The set holds half of them open, which is three for each queue; the other half is for what it may exceed that by.
const OPEN_FILES: u64 = 256;
/// As many segments are 256 MiB; the program, its stacks and one arena of the allocator are the rest.
const ADDRESS_SPACE: u64 = 320 << 20;
/// As many as open files: a map without its file would be one that nobody closes.
const MAPS_MAX: u64 = OPEN_FILES + 64;

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> Result<(), String> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: hands over a structure that lives until the call returns.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(format!("setrlimit: {}", std::io::Error::last_os_error())),
    }
}

/// The child: puts and takes on many queues until killed, keeping each backlog below a thousand items.
pub fn churn(dir: &Path, seed: u64) -> Result<(), String> {
    limit(libc::RLIMIT_NOFILE, OPEN_FILES)?;
    limit(libc::RLIMIT_AS, ADDRESS_SPACE)?;
    let options = QueueOptions::default().durability(Durability::Os).segment_bytes(256 << 10).memory_bytes(64 << 10);
    let set = QueueSet::builder()
        .defaults(options)
        .pool_bytes(8 << 20)
        .open(dir.join("set"))
        .map_err(|e| format!("open: {e}"))?;
    let queues: Result<Vec<_>, _> = (0..QUEUES).map(|n| set.queue(&format!("q{n}"))).collect();
    let queues = queues.map_err(|e| format!("queue: {e}"))?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2u64)
            .map(|thread| {
                let queues = &queues;
                scope.spawn(move || -> Result<(), String> {
                    let mut state = seed ^ thread << 32;
                    let mut held = Vec::new();
                    loop {
                        let queue = &queues[random(&mut state) as usize % QUEUES];
                        let size =
                            16 + random(&mut state) as usize % [100, 1000, 8000][random(&mut state) as usize % 3];
                        match random(&mut state) % 8 {
                            0..=3 if queue.len() < 1000 => {
                                queue.put(vec![7; size]).map_err(|e| format!("put: {e:?}"))?;
                            }
                            0..=4 => {
                                if let Some(item) = queue.try_open().map_err(|e| format!("open: {e}"))? {
                                    item.close().map_err(|e| format!("close: {e}"))?;
                                }
                            }
                            5 => held.extend(queue.try_open().map_err(|e| format!("open: {e}"))?),
                            6 if held.len() > 20 => held.clear(),
                            _ => {
                                queue.try_get().map_err(|e| format!("get: {e}"))?;
                            }
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a panic".to_owned())?)
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    memory_kib: u64,
    space_kib: u64,
    files: u64,
    maps: u64,
    disk_kib: u64,
}

fn sample(process: u32, dir: &Path) -> Option<Sample> {
    let proc = Path::new("/proc").join(process.to_string());
    let status = std::fs::read_to_string(proc.join("status")).ok()?;
    let kib =
        |what: &str| status.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().next()?.parse().ok());
    let disk = crate::mounts::run(&["du", "-sk", &crate::mounts::text(dir)]).ok()?;
    Some(Sample {
        // What is its own: pages of mapped files belong to the page cache.
        memory_kib: kib("RssAnon:")?,
        space_kib: kib("VmSize:")?,
        files: std::fs::read_dir(proc.join("fd")).ok()?.count() as u64,
        maps: std::fs::read_to_string(proc.join("maps")).ok()?.lines().count() as u64,
        disk_kib: disk.split_whitespace().next()?.parse().ok()?,
    })
}

fn highest(samples: &[Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    // Not the single highest: a sample may fall into the middle of a change of segments.
    values.get(values.len() * 9 / 10).or(values.last()).copied().unwrap_or(0)
}

/// The layer. `soak [SECONDS [SEED]]`.
pub fn layer(words: &[String]) -> Outcome {
    let seconds = crate::number(words, 0, 120);
    let seed = crate::number(words, 1, 1);
    let mut outcome = Outcome::default();
    let scratch = match Scratch::new("soak") {
        Ok(scratch) => scratch,
        Err(why) => return Outcome::skipped(why),
    };
    let child = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg("churn")
            .arg(&scratch.0)
            .arg(seed.to_string())
            // An arena for each thread would reserve more than everything else together.
            .env("MALLOC_ARENA_MAX", "1")
            .stdout(Stdio::null())
            .spawn()
    });
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Outcome::skipped(error.to_string()),
    };
    let mut samples = Vec::new();
    let start = Instant::now();
    let every = Duration::from_millis((seconds * 1000 / 150).max(100));
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(every);
        if let Ok(Some(status)) = child.try_wait() {
            println!("soak: the worker ended: {status}");
            outcome.failed += 1;
            return outcome;
        }
        samples.extend(sample(child.id(), &scratch.0));
    }
    let _ = child.kill();
    let _ = child.wait();
    let third = samples.len() / 3;
    let (before, after) = (&samples[third..2 * third], &samples[2 * third..]);
    type Measure = (&'static str, fn(&Sample) -> u64, u64);
    let measures: [Measure; 5] = [
        ("memory_kib", |s| s.memory_kib, 512),
        ("address_space_kib", |s| s.space_kib, 4096),
        ("files", |s| s.files, 4),
        ("maps", |s| s.maps, 8),
        ("disk_kib", |s| s.disk_kib, 2048),
    ];
    for (name, of, slack) in measures {
        let (was, is) = (highest(before, of), highest(after, of));
        // Flat: the last third is no higher than the one before, but for a tenth.
        let flat = is <= was + was / 10 + slack;
        outcome.note(flat);
        println!("soak: {name}: {was}, then {is}");
        if !flat {
            println!("soak: {name} grows");
        }
        outcome.facts.push((name, format!("{was}, then {is}")));
    }
    let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    outcome.note(most(|s| s.maps) <= MAPS_MAX);
    outcome.facts.push(("at_most", format!("{} files, {} maps", most(|s| s.files), most(|s| s.maps))));
    println!("soak: at most {} files, {} maps", most(|s| s.files), most(|s| s.maps));
    outcome.facts.push(("limits", format!("{} MiB of address space, {OPEN_FILES} open files", ADDRESS_SPACE >> 20)));
    outcome.counts.push(("seconds_of_work", seconds));
    outcome
}
