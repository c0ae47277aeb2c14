//! The machine: its kind, the file system under a directory, the bytes that its block device was given.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use versus::figures::Machine;

use crate::subject::Any;

pub fn kind(dir: &Path) -> Any<Machine> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    // Numbers only: what a builder appended names nobody.
    let numbers: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    let memory_kib: u64 = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:");
    Ok(Machine {
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: memory_kib.div_ceil(1 << 20),
        kernel: numbers.join("."),
        file_system: file_system(dir)?,
    })
}

/// The number behind a name, in files like `/proc/meminfo`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn device(dir: &Path) -> Any<String> {
    let device = fs::metadata(dir)?.dev();
    Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
}

/// Type of the file system that holds `dir`.
pub fn file_system(dir: &Path) -> Any<String> {
    let device = device(dir)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        (mount.split_whitespace().nth(2)? == device).then(|| system.split_whitespace().next())?
    });
    Ok(found.unwrap_or("unknown").to_owned())
}

/// Bytes written so far to the block device under `dir`, by anyone; `None` where no such counter is.
pub fn device_bytes(dir: &Path) -> Option<u64> {
    let stat = fs::read_to_string(format!("/sys/dev/block/{}/stat", device(dir).ok()?)).ok()?;
    Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// Bytes of memory that this process has for itself alone; pages of mapped files belong to the page cache.
pub fn own_memory() -> u64 {
    field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "RssAnon:") << 10
}

/// Bytes that the files below `dir` occupy.
pub fn disk_bytes(dir: &Path) -> Any<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { disk_bytes(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}
