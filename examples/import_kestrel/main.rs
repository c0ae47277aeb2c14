//! Imports the queues of a Kestrel (or Starling) into a set: `import_kestrel [--dedup] <Kestrel's queue directory> <set>`.
//!
//! Stop Kestrel first. Its files are only read. Everything that can be read is imported; what could not is told, with file and
//! offset, and the exit code is 1 then. A run that was ended, by whatever, is repeated: it goes on where the last one was, imports
//! each item once, and leaves alone what is done. The queue `~imported` of the set keeps what was done; delete it to import anew.

mod journal;
mod write;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kestrel_core::QueueSet;
use write::Came;

/// A line on a terminal that shows how far the import has come.
struct Bar {
    is_shown: bool,
    what: String,
    done: u64,
    total: u64,
    shown: u64,
}

impl Bar {
    fn new(what: String, total: u64) -> Bar {
        Bar { is_shown: std::io::stderr().is_terminal(), what, done: 0, total, shown: u64::MAX }
    }

    fn add(&mut self, count: u64) {
        self.done += count;
        let percent = (self.done.min(self.total) * 100).checked_div(self.total).unwrap_or(100);
        if self.is_shown && percent != self.shown {
            self.shown = percent;
            let filled = percent as usize * 40 / 100;
            let mut line = format!("\r{} [{:<40}] {percent:3} %", self.what, "#".repeat(filled));
            if percent == 100 {
                line.push('\n');
            }
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn run(from: &Path, into: &Path, dedup: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let queues = journal::queues(from)?;
    let set = QueueSet::open(into)?;
    let mut all_read = true;
    for (queue, files) in &queues {
        let name = write::name_of(queue);
        if let Some(count) = write::done_before(&set, &name)? {
            println!("{queue}: left alone: an earlier run has put its {count} items into {name:?}");
            continue;
        }
        let bytes = files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
        let mut bar = Bar::new(format!("{queue}: reading"), bytes);
        let found = journal::replay(files, dedup, &mut |bytes| bar.add(bytes));
        let mut bar = Bar::new(format!("{queue}: writing"), 2 * found.items.len() as u64);
        match write::write(&set, &name, &found, &mut |items| bar.add(items))? {
            Came::Imported(count, 0) => println!("{queue}: {count} items into {name:?}"),
            Came::Imported(count, before) => {
                println!("{queue}: {count} items into {name:?}, {before} of them by a run that was ended");
            }
            Came::Before(count) => {
                println!("{queue}: left alone: an earlier run has put its {count} items into {name:?}")
            }
        }
        for note in &found.notes {
            println!("  {note}");
        }
        all_read &= found.notes.is_empty();
    }
    set.close()?;
    Ok(all_read)
}

fn main() -> ExitCode {
    let mut dirs: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let before = dirs.len();
    dirs.retain(|arg| arg != Path::new("--dedup"));
    let dedup = dirs.len() < before;
    let [from, into] = &dirs[..] else {
        eprintln!("import_kestrel [--dedup] <Kestrel's queue directory> <set>");
        return ExitCode::from(2);
    };
    match run(from, into, dedup) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("import_kestrel: {error}");
            ExitCode::from(3)
        }
    }
}
