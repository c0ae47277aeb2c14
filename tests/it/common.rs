//! A set in a directory of its own, and short words for what tests do.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kestrel_core::{Durability, Queue, QueueOptions, QueueSet, QueueStats};

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) set: QueueSet,
}

pub(crate) fn fast() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os)
}

/// The statistics without what only time changes.
pub(crate) fn timeless(queue: &Queue) -> QueueStats {
    let mut stats = queue.stats();
    (stats.age_ms, stats.oldest_age_ms) = (0, 0);
    stats
}

pub(crate) fn world() -> World {
    world_with(fast())
}

pub(crate) fn world_with(options: QueueOptions) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let set = QueueSet::builder().defaults(options).open(dir.path()).expect("opens");
    World { dir, set }
}

impl World {
    pub(crate) fn queue(&self, name: &str) -> Queue {
        self.set.queue(name).expect("opens")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Closes in good order and opens again.
    pub(crate) fn reopen(self) -> World {
        let World { dir, set } = self;
        set.close().expect("closes");
        let set = QueueSet::builder().defaults(fast()).open(dir.path()).expect("opens again");
        World { dir, set }
    }

    /// Opens a copy of the directory, as a process that died would have left it.
    pub(crate) fn killed(&self) -> World {
        let dir = self.copied();
        let set = QueueSet::builder().defaults(fast()).open(dir.path()).expect("opens after a kill");
        World { dir, set }
    }

    /// The directory as it is at one moment.
    pub(crate) fn copied(&self) -> tempfile::TempDir {
        copy_of(self.path())
    }

    pub(crate) fn segments(&self, queue: &str) -> Vec<PathBuf> {
        segments(self.path(), queue)
    }
}

/// A set's directory as it is at one moment. Upkeep goes on beside the copy: one during which a name came, went or changed its
/// file is made again.
pub(crate) fn copy_of(from: &Path) -> tempfile::TempDir {
    for _ in 0..1_000 {
        let dir = tempfile::tempdir().expect("a directory");
        let before = names(from);
        if before.is_ok() && copy_dir(from, dir.path()).is_ok() && names(from).ok() == before.ok() {
            return dir;
        }
    }
    panic!("the directory never stood still");
}

pub(crate) fn segments(dir: &Path, queue: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir.join("queues").join(queue))
        .expect("the queue's directory")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "seg" || ending == "new"))
        .collect();
    found.sort();
    found
}

pub(crate) fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Every name below a directory with the file that it stands for.
fn names(dir: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        found.push((entry.path(), entry.metadata()?.ino()));
        if entry.file_type()?.is_dir() {
            found.extend(names(&entry.path())?);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn put_all(queue: &Queue, items: &[&str]) {
    for item in items {
        queue.put(item).expect("room");
    }
}

pub(crate) fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// Takes everything that is there.
pub(crate) fn drain(queue: &Queue) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(item) = queue.try_get().expect("undamaged") {
        all.push(text(item.data()));
    }
    all
}

/// Waits until something is so; gives up after a long time, so that a hang is a failure.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
