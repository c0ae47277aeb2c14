//! The fault laboratory: one command a layer, each with a closing line `N passed, N failed`.
//!
//! `cargo run --release --manifest-path tests/lab/Cargo.toml -- list` tells what there is, what each needs and how long it
//! takes; `-- report` writes the table of the reliability page from the figures that the layers left.

mod errors;
mod figures;
mod full;
mod images;
mod memfs;
mod mounts;
mod mutants;
mod own;
mod report;
mod sanitizers;
mod soak;
mod vm;
mod work;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use figures::Outcome;

/// One layer.
struct Layer {
    name: &'static str,
    what: &'static str,
    needs: &'static str,
    /// Minutes of the usual run on two cores.
    minutes: &'static str,
    /// The words after the name on the command line; a number is how much to try.
    run: fn(&[String]) -> Outcome,
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "states",
        what: "a simulated disk crashed at every call, with every choice of what it kept; every call fails once; recoveries crashed",
        needs: "nothing",
        minutes: "6",
        run: own::states,
    },
    Layer {
        name: "planted",
        what: "bugs planted in the engine on purpose, each of which `states` must catch",
        needs: "nothing",
        minutes: "1",
        run: own::planted,
    },
    Layer {
        name: "model",
        what: "random operations, crashes and reopens against a reference queue",
        needs: "nothing",
        minutes: "1",
        run: own::model,
    },
    Layer {
        name: "kills",
        what: "a child of 1 to 8 threads killed by signal 9 at a random moment",
        needs: "nothing",
        minutes: "1",
        run: own::kills,
    },
    Layer {
        name: "flips",
        what: "each byte of a journal flipped, sectors zeroed and swapped, files cut anywhere",
        needs: "nothing",
        minutes: "1",
        run: own::flips,
    },
    Layer {
        name: "fuzz",
        what: "libFuzzer: frames, segments, directories, names, options, sequences of operations, typed payloads",
        needs: "a C++ compiler",
        minutes: "4",
        run: own::fuzz,
    },
    Layer {
        name: "golden",
        what: "journals of every released format still open",
        needs: "nothing",
        minutes: "1",
        run: own::golden,
    },
    Layer {
        name: "models",
        what: "every order of two or three threads in the commit, the line of waiters, whole queues, their files; with planted bugs",
        needs: "nothing",
        minutes: "1",
        run: own::models,
    },
    Layer {
        name: "schedules",
        what: "whole sets of 3 to 8 threads and tasks in random orders, killed and cut off power, their answers held to the rules; with planted bugs",
        needs: "nothing",
        minutes: "1",
        run: own::schedules,
    },
    Layer {
        name: "sanitizers",
        what: "the tests under the thread sanitizer and the address sanitizer, which first find planted faults",
        needs: "the sanitizers of a Linux toolchain",
        minutes: "8",
        run: sanitizers::layer,
    },
    Layer {
        name: "mutants",
        what: "small changes in the journal, the recovery and the readers, chosen at random: some test must notice each",
        needs: "cargo-mutants",
        minutes: "20",
        run: mutants::layer,
    },
    Layer {
        name: "errors",
        what: "each call of a file system fails with each errno, short, or late; then a kill or a power cut",
        needs: "root, /dev/fuse",
        minutes: "5",
        run: errors::layer,
    },
    Layer {
        name: "images",
        what: "ext4, xfs and btrfs on a recorded device: each flush, and choices of writes behind it, torn at sectors",
        needs: "root, /dev/fuse; mkfs of ext4, xfs, btrfs",
        minutes: "4",
        run: images::layer,
    },
    Layer {
        name: "full",
        what: "full disks at every allocation, inodes, quota, read-only, overlay, tmpfs, snapshots",
        needs: "root; mkfs of ext4, xfs, btrfs, vfat",
        minutes: "3",
        run: full::layer,
    },
    Layer {
        name: "vm",
        what: "power cuts of a guest machine, its answers told over the serial line",
        needs: "root; qemu-system-x86, busybox, cpio, a kernel in /boot",
        minutes: "3",
        run: vm::layer,
    },
    Layer {
        name: "soak",
        what: "mixed work on 40 queues under limits of address space and open files; memory, files, maps and disk must stay as they are",
        needs: "nothing",
        minutes: "2",
        run: soak::layer,
    },
];

fn number(words: &[String], place: usize, default: u64) -> u64 {
    words.get(place).and_then(|word| word.parse().ok()).unwrap_or(default)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("worker") => worker(&words[1..]),
        Some("churn") => match words.get(1..3) {
            Some([dir, seed]) => told(soak::churn(Path::new(dir), seed.parse().unwrap_or(1))),
            _ => ExitCode::from(2),
        },
        Some("report") => {
            let layers: Vec<_> = LAYERS.iter().map(|l| (l.name, l.what, l.needs, l.minutes)).collect();
            told(report::write(&layers, words.get(1).is_some_and(|word| word == "--check")))
        }
        Some("fill") => match words.get(1..4) {
            Some([dir, ledger, mode]) => told(full::fill(Path::new(dir), Path::new(ledger), mode)),
            _ => ExitCode::from(2),
        },
        None | Some("list") => {
            println!("{:<10} {:<8} {:<32} what it does", "layer", "minutes", "needs");
            for layer in LAYERS {
                println!("{:<10} {:<8} {:<32} {}", layer.name, layer.minutes, layer.needs, layer.what);
            }
            ExitCode::SUCCESS
        }
        Some(name) => match LAYERS.iter().find(|layer| layer.name == name) {
            Some(layer) => run(layer, &words[1..]),
            None => {
                eprintln!("no layer of that name; `list` tells them");
                ExitCode::from(2)
            }
        },
    }
}

fn run(layer: &Layer, words: &[String]) -> ExitCode {
    mounts::own_namespace();
    let start = Instant::now();
    let outcome = (layer.run)(words);
    if let Err(error) = figures::add(layer.name, start.elapsed().as_secs_f64(), &outcome) {
        eprintln!("the figures cannot be written: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(why) = &outcome.skipped {
        println!("{}: skipped: {why}", layer.name);
        println!("0 passed, 0 failed, 1 skipped");
        return ExitCode::SUCCESS;
    }
    for (name, count) in &outcome.counts {
        println!("{}: {count} {name}", layer.name);
    }
    println!("{} passed, {} failed", outcome.passed, outcome.failed);
    if outcome.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Standard output, of which everything is on the line before anything else happens: what is asked must be known to whoever
/// reads the line when the power goes.
struct Serial;

impl std::io::Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()?;
        // SAFETY: takes a number; on something that is no terminal it is an error, and there is nothing to wait for.
        unsafe { libc::tcdrain(1) };
        Ok(())
    }
}

/// `worker DIR LEDGER SEED THREADS DURABILITY [LIFE [PUTS]]`
fn worker(words: &[String]) -> ExitCode {
    let [dir, ledger, seed, threads, mode, rest @ ..] = words else {
        eprintln!("worker DIR LEDGER SEED THREADS DURABILITY [LIFE [PUTS]]");
        return ExitCode::from(2);
    };
    let ledger: Box<dyn std::io::Write + Send> = match ledger.as_str() {
        "-" => Box::new(Serial),
        path => match std::fs::OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Box::new(file),
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::FAILURE;
            }
        },
    };
    let (seed, threads) = (seed.parse().unwrap_or(1), threads.parse().unwrap_or(1));
    told(work::worker(Path::new(dir), ledger, seed, threads, mode, number(rest, 0, 0), number(rest, 1, u64::MAX)))
}

fn told(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
