//! Staged jobs on their way from the outbox to their queues: each is moved once, also across a crash, so what was staged together and
//! stored together arrives.

use std::time::Duration;

use crate::ids::ItemId;
use crate::jobs::envelope::Envelope;
use crate::jobs::error::JobError;
use crate::jobs::hub::Hub;
use crate::jobs::id::JobId;
use crate::jobs::names;
use crate::jobs::push::{OnConflict, Pushed, Transaction};
use crate::jobs::pushing::{self, Parcel};
use crate::jobs::records::plain;
use crate::jobs::room::{Part, count};
use crate::options::PutOptions;
use crate::queue::Queue;
use crate::queue::open_item::OpenItem;

/// The queue of staged jobs.
pub(crate) fn outbox(hub: &Hub) -> Result<Queue, JobError> {
    match hub.set.get_queue(names::OUTBOX)? {
        Some(queue) => Ok(queue),
        None => Ok(hub.set.queue_with_overrides(names::OUTBOX, plain())?),
    }
}

/// Pushes what is staged.
pub(crate) fn commit(hub: &Hub, tx: &Transaction) -> Result<Vec<Pushed>, JobError> {
    tx.check()?;
    if tx.is_empty() {
        return Ok(Vec::new());
    }
    let ids = outbox(hub)?.put_batch(&tx.staged)?;
    pass_on(hub, Some(&ids))
}

/// Passes these on, or all that is there.
pub(crate) fn pass_on(hub: &Hub, ids: Option<&[ItemId]>) -> Result<Vec<Pushed>, JobError> {
    let Some(outbox) = hub.set.get_queue(names::OUTBOX)? else {
        return Ok(Vec::new());
    };
    let _passing = hub.passing.lock();
    let mut passed = Vec::new();
    let mut all = Vec::new();
    let ids = match ids {
        Some(ids) => ids,
        None => {
            for item in outbox.browse(ItemId::new(0)) {
                all.push(item?.id());
            }
            &all
        }
    };
    for id in ids {
        if let Some(item) = outbox.open_id(*id)?
            && let Some(pushed) = pass(hub, item)?
        {
            passed.push(pushed);
        }
    }
    Ok(passed)
}

fn pass(hub: &Hub, item: OpenItem) -> Result<Option<Pushed>, JobError> {
    let Some((mut envelope, value_at)) = Envelope::decode(item.data()) else {
        // Nobody but this module puts here.
        item.close()?;
        return Ok(None);
    };
    let room = hub.ensure_room(&envelope.queue.take().unwrap_or_default())?;
    let value = item.data().get(value_at..).unwrap_or_default().to_vec();
    if envelope.ended.is_some() {
        // The record of the job that has staged the others.
        if let (Some(kept), Some(id)) = (envelope.keep_done, envelope.origin) {
            let queue = room.make_keeping(&hub.set, Part::Done, kept)?;
            let mut options = PutOptions::new();
            if kept.age_ms != u64::MAX {
                options = options.expires_in(Duration::from_millis(kept.age_ms));
            }
            let new = into(item, queue, &envelope.encode(&value), &options)?;
            hub.has_moved(id, &room, Part::Done, new);
        }
        return Ok(None);
    }
    let now_ms = if envelope.by_wall { hub.wall_ms() } else { hub.now_ms() };
    let delay = Duration::from_millis(envelope.due_ms.map_or(0, |due_ms| due_ms.saturating_sub(now_ms)));
    if delay.is_zero() {
        (envelope.due_ms, envelope.by_wall) = (None, false);
    }
    let replaces = std::mem::take(&mut envelope.replaces);
    let conflict = if replaces { OnConflict::Replace } else { OnConflict::Keep };
    let parcel = Parcel { queue: room.name.to_string(), envelope, value, delay, conflict, durability: None };
    let reserved = match &parcel.envelope.key {
        None => None,
        Some(key) => {
            pushing::note_keyed(hub, &room)?;
            match hub.keys.reserve(&room.name, &parcel.envelope.kind, key, hub.now_ms()) {
                Ok(reserved) => Some(reserved),
                Err(id) => {
                    count(&room.counters.duplicates);
                    if replaces {
                        // First, so that what is staged comes again after a crash in between, and changes nothing then.
                        pushing::replace(hub, &room, id, &parcel)?;
                    }
                    item.close()?;
                    return Ok(Some(Pushed { id, duplicate: true }));
                }
            }
        }
    };
    let part = match pushing::part_for(hub, &room, &parcel) {
        // It is stored already: it has its place.
        Err(JobError::TooManyDelayed { .. }) => Part::Later(parcel.envelope.priority),
        part => part?,
    };
    let queue = room.make(&hub.set, part)?;
    let bytes = parcel.envelope.encode(&parcel.value);
    let new = into(item, queue, &bytes, &PutOptions::new().delay(delay))?;
    let id = JobId { lane: room.number(part), item: new.get() };
    if let Some(reserved) = reserved {
        reserved.keep(id);
    }
    pushing::pushed(hub, &room, id);
    Ok(Some(Pushed { id, duplicate: false }))
}

fn into(item: OpenItem, queue: &Queue, bytes: &[u8], options: &PutOptions) -> Result<ItemId, JobError> {
    // What is refused stays in the outbox.
    item.close_into_with(queue, bytes, options).map_err(|error| JobError::of_move(error.fault()))
}
