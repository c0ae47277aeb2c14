//! A disk that forgets, tears, fails and fills: for crashing your own code on top of a queue.
//!
//! ```
//! use kestrel_core::QueueSet;
//! use kestrel_core::testing::{Fate, SimDisk};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = SimDisk::new(1);
//! let set = QueueSet::builder().simulated(&disk).open("/set")?;
//! set.queue("jobs")?.put("answered, so durable")?;
//! let after = disk.power_cut(Fate::None);
//! let set = QueueSet::builder().simulated(&after).open("/set")?;
//! assert_eq!(set.queue("jobs")?.len(), 1);
//! # Ok(())
//! # }
//! ```

use std::sync::OnceLock;

pub use crate::disk::sim::*;

use crate::disk::Disk;
use crate::format::frame::{self, Salt};
use crate::{OnDamage, QueueSet};

/// Fuzzes the decoding of one frame: what decodes must encode to the same bytes.
///
/// # Panics
/// On a bug.
pub fn fuzz_frame(data: &[u8]) {
    let salt = Salt(0x1234_5678_9abc_def0);
    let Some(decoded) = frame::decode(data, salt, 4096, 1 << 30) else {
        return;
    };
    let mut out = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let len = frame::encode(&decoded, salt, 4096, &mut out);
    assert_eq!(data.get(..len), Some(&out[..len]), "a frame decodes from other bytes than it encodes to");
}

const ITEMS: u8 = 40;

/// A small set with two queues, some items done, closed in good order or not.
fn small_set(clean: bool) -> SimDisk {
    let disk = SimDisk::new(1);
    let set = QueueSet::builder().disk(Disk::Sim(disk.clone())).open("/s");
    if let Ok(set) = set {
        for name in ["a", "b"] {
            if let Ok(queue) = set.queue(name) {
                for n in 0..ITEMS {
                    let _ = queue.append(vec![n; 20 + usize::from(n) * 9]);
                }
                let _ = queue.sync();
                let _ = queue.try_get();
            }
        }
        if !clean {
            return disk.kill();
        }
        let _ = set.close();
    }
    disk
}

/// Fuzzes the opening of a directory: `data` damages the files of a small set; whatever opens must hold only what was put.
///
/// The first byte chooses how the set was left and how it is opened; each five bytes after it choose a file, an offset, and
/// what is done there: another byte, a cut, zeros, bytes of another place.
///
/// # Panics
/// On a bug.
pub fn fuzz_open_dir(data: &[u8]) {
    let Some((&how, edits)) = data.split_first() else {
        return;
    };
    // Written once: the branches of a disk are independent.
    static SETS: OnceLock<[SimDisk; 2]> = OnceLock::new();
    let sets = SETS.get_or_init(|| [small_set(true), small_set(false)]);
    let disk = sets[usize::from(how & 1)].kill();
    let files = disk.list_files();
    for edit in edits.chunks_exact(5).take(64) {
        let Some(path) = files.get(usize::from(edit[0] >> 2) % files.len().max(1)) else {
            return;
        };
        let mut bytes = disk.read_file(path).unwrap_or_default();
        let at = (usize::from(edit[1]) << 8 | usize::from(edit[2])) % bytes.len().max(1);
        match edit[0] & 3 {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= edit[3];
                }
            }
            1 => bytes.truncate(at),
            2 => bytes.iter_mut().skip(at).take(usize::from(edit[3]) * 8).for_each(|byte| *byte = 0),
            _ => {
                let from = usize::from(edit[3]) << 8 | usize::from(edit[4]);
                let copied: Vec<u8> = bytes.iter().skip(from).take(64).copied().collect();
                bytes.iter_mut().skip(at).zip(copied).for_each(|(byte, copy)| *byte = copy);
            }
        }
        disk.write_file(path, &bytes);
    }
    let choice = if how & 2 == 0 { OnDamage::Refuse } else { OnDamage::Salvage };
    let Ok(set) = QueueSet::builder().disk(Disk::Sim(disk.clone())).on_damage(choice).open("/s") else {
        return;
    };
    for name in set.names() {
        let Ok(queue) = set.queue(&name) else {
            continue;
        };
        let mut last = None;
        for _ in 0..u32::from(ITEMS) + 2 {
            let Ok(Some(item)) = queue.try_open() else {
                break;
            };
            let n = item.data().first().copied().unwrap_or(u8::MAX);
            assert_eq!(item.data(), vec![n; 20 + usize::from(n) * 9], "a payload that was never put");
            assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
            last = Some(n);
            let _ = item.close();
        }
        let _ = queue.put("alive");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpora of the fuzz targets, and a few thousand inputs by chance.
    #[test]
    fn fuzz_corpora_find_nothing() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in [("frame_decode", fuzz_frame as fn(&[u8])), ("open_dir", fuzz_open_dir)] {
            let mut count = 0;
            for entry in std::fs::read_dir(root.join(name)).expect("the corpus") {
                target(&std::fs::read(entry.expect("readable").path()).expect("readable"));
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            for round in 0..1_500 {
                let mut input = Vec::new();
                for _ in 0..1 + round % 40 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    input.extend_from_slice(&state.to_le_bytes()[..5]);
                }
                target(&input);
            }
        }
    }
}
