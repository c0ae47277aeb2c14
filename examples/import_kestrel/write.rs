//! Writes what was found into a queue of a set.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::{Durability, PutOptions, QueueSet};

use super::journal::Found;

/// The queue's name in a set. Kestrel's `queue+reader` were queues of their own; a dot, which no name of Kestrel's has, stands for
/// the plus.
pub(crate) fn name_of(queue: &str) -> String {
    queue.replace('+', ".")
}

/// Puts all items in order, as durable as one sync at the end makes them; returns how many. An item keeps its expiry, also one that
/// is over: it counts as expired here, and goes where the queue's `expire_to` says. Its time of the put is now.
pub(crate) fn write(
    set: &QueueSet,
    name: &str,
    found: &Found,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Box<dyn std::error::Error>> {
    let queue = set.queue(name)?;
    let largest = found.items.iter().map(|item| item.len).max().unwrap_or(0);
    if largest > queue.options().max_item_size.into() {
        // Nothing that can be read is refused.
        queue.set_overrides(queue.overrides().max_item_size(u32::try_from(largest)?))?;
    }
    let (mut data, mut open) = (Vec::new(), None);
    for item in &found.items {
        let mut file = match open.take() {
            Some((index, file)) if index == item.file => file,
            _ => File::open(&found.files[item.file])?,
        };
        data.resize(usize::try_from(item.len)?, 0);
        file.seek(SeekFrom::Start(item.offset))?;
        file.read_exact(&mut data)?;
        open = Some((item.file, file));
        let mut options = PutOptions::new().durability(Durability::Os);
        if let Some(expiry_ms) = item.expiry_ms {
            // A time beyond all clocks is never.
            if let Some(expiry) = UNIX_EPOCH.checked_add(Duration::from_millis(expiry_ms)) {
                options = options.expires_at(expiry);
            }
        }
        queue.put_with(&data, &options)?;
        progress(1);
    }
    queue.sync()?;
    Ok(found.items.len() as u64)
}
