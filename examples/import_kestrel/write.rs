//! Writes what was found into a queue of a set: once, also where a run is ended at any moment and repeated.
//!
//! A queue is first written whole into [`STAGED`], which nobody else uses. When that is durable, [`READY`] says so, and the items
//! move on one by one: `close_into` leaves each in one of the two queues, whatever happens. At the end the note of [`READY`] moves
//! in the same way to [`DONE`]. So a run that finds no note throws away what is staged, of which nothing has moved; one that finds a
//! note goes on where the last one ended; and a queue that is done is left alone.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::{Durability, OpenItem, PutOptions, QueueOptions, QueueSet};

use super::journal::{Found, ITEM_MAX};

type Failed = Box<dyn std::error::Error>;

/// Names that no queue of Kestrel has.
const STAGED: &str = "~import staged";
const READY: &str = "~import ready";
/// One item for each queue that was imported, with what was told of it. Who deletes this queue can import all of them once more.
pub(crate) const DONE: &str = "~imported";

const NEVER_MS: u64 = u64::MAX;

/// What came of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// So many items, of which the first so many had been moved by a run that was ended.
    Imported(u64, u64),
    /// An earlier run has imported so many, and nothing was done.
    Before(u64),
}

/// The queue's name in a set. Kestrel's `queue+reader` were queues of their own; a dot, which no name of Kestrel's has, stands for
/// the plus.
pub(crate) fn name_of(queue: &str) -> String {
    queue.replace('+', ".")
}

/// Puts all items in order, durable when this returns. An item keeps its expiry, also one that is over: it counts as expired in its
/// queue, and goes where that queue's `expire_to` says. Its time of the put is now. `progress` is told of each item twice: staged,
/// and moved.
pub(crate) fn write(set: &QueueSet, name: &str, found: &Found, progress: &mut dyn FnMut(u64)) -> Result<Came, Failed> {
    if let Some(count) = done_before(set, name)? {
        // That run may have been ended before it was rid of these.
        if begun(set)?.is_none() {
            set.delete(STAGED)?;
            set.delete(READY)?;
        }
        return Ok(Came::Before(count));
    }
    let ready = match begun(set)? {
        Some(ready) if note_of(&ready).is_some_and(|(_, of)| of == name) => ready,
        // Of another queue: it comes first.
        Some(ready) => {
            move_on(set, ready, &mut |_| {})?;
            stage(set, name, found, progress)?
        }
        None => stage(set, name, found, progress)?,
    };
    let count = note_of(&ready).map_or(0, |(count, _)| count);
    Ok(Came::Imported(count, count - move_on(set, ready, progress)?))
}

/// How many items an earlier run has imported into this queue.
pub(crate) fn done_before(set: &QueueSet, name: &str) -> Result<Option<u64>, Failed> {
    let Some(done) = set.get_queue(DONE)? else { return Ok(None) };
    // Looked at and given back.
    let notes = done.open_batch(usize::MAX, Duration::ZERO)?;
    Ok(notes.iter().filter_map(note_of).find(|(_, of)| of == name).map(|(count, _)| count))
}

/// The note of a run that was ended while items moved.
fn begun(set: &QueueSet) -> Result<Option<OpenItem>, Failed> {
    Ok(set.get_queue(READY)?.map(|ready| ready.try_open()).transpose()?.flatten())
}

fn note_of(note: &OpenItem) -> Option<(u64, String)> {
    let (count, name) = std::str::from_utf8(note.data()).ok()?.split_once(' ')?;
    Some((count.parse().ok()?, name.to_owned()))
}

/// Writes all items beside their queue, and the note that they are all there.
fn stage(set: &QueueSet, name: &str, found: &Found, progress: &mut dyn FnMut(u64)) -> Result<OpenItem, Failed> {
    set.delete(STAGED)?;
    let staged = set.queue_with(
        STAGED,
        QueueOptions::default().durability(Durability::Os).max_item_size(u32::try_from(ITEM_MAX)? + 8),
    )?;
    let (mut data, mut open) = (Vec::new(), None);
    for item in &found.items {
        let mut file = match open.take() {
            Some((index, file)) if index == item.file => file,
            _ => File::open(&found.files[item.file])?,
        };
        // Its expiry goes ahead of it, so that it does not expire here.
        data.clear();
        data.extend_from_slice(&item.expiry_ms.unwrap_or(NEVER_MS).to_le_bytes());
        data.resize(8 + usize::try_from(item.len)?, 0);
        file.seek(SeekFrom::Start(item.offset))?;
        file.read_exact(&mut data[8..])?;
        open = Some((item.file, file));
        staged.put(&data)?;
        progress(1);
    }
    staged.sync()?;
    let largest = u32::try_from(found.items.iter().map(|item| item.len).max().unwrap_or(0))?;
    let queue = set.queue(name)?;
    if largest > queue.options().max_item_size {
        // Nothing that can be read is refused.
        queue.set_overrides(queue.overrides().max_item_size(largest))?;
    }
    let ready = set.queue_with(READY, QueueOptions::default())?;
    ready.put(format!("{} {name}", found.items.len()))?;
    Ok(ready.open()?)
}

/// Moves what is staged to its queue, and then the note to those that are done. Returns how many items that were.
fn move_on(set: &QueueSet, ready: OpenItem, progress: &mut dyn FnMut(u64)) -> Result<u64, Failed> {
    let (_, name) = note_of(&ready).ok_or("the note of an import is none")?;
    let (staged, queue) = (set.queue(STAGED)?, set.queue(&name)?);
    let mut moved = 0;
    while let Some(item) = staged.try_open()? {
        let data = item.data().to_vec();
        let (expiry_ms, data) = data.split_first_chunk().ok_or("a staged item without its expiry")?;
        let mut options = PutOptions::new().durability(Durability::Os);
        let expiry_ms = Some(u64::from_le_bytes(*expiry_ms)).filter(|ms| *ms != NEVER_MS);
        // A time beyond all clocks is never.
        if let Some(expiry) = expiry_ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms))) {
            options = options.expires_at(expiry);
        }
        item.close_into_with(&queue, data, &options)?;
        moved += 1;
        progress(1);
    }
    queue.sync()?;
    let note = ready.data().to_vec();
    ready.close_into(&set.queue_with(DONE, QueueOptions::default())?, note)?;
    set.delete(STAGED)?;
    set.delete(READY)?;
    Ok(moved)
}
