//! The story of an open: which jobs there are, which of them ran when the last process died, and what is on its way.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::ids::ItemId;
use crate::jobs::backoff;
use crate::jobs::dying;
use crate::jobs::ending;
use crate::jobs::envelope::{Envelope, at, ms, time_ms};
use crate::jobs::error::JobError;
use crate::jobs::events::{Event, Feed};
use crate::jobs::handler::checkpoint_key;
use crate::jobs::hub::{Attachment, Hub, job_at, keyed_key, pause_key};
use crate::jobs::id::JobId;
use crate::jobs::passing;
use crate::jobs::room::{Part, Room, count};
use crate::jobs::status::{Cause, DeadReason};
use crate::jobs::team::STOPPING_PREFIX;
use crate::queue::open_item::OpenItem;
use crate::set::QueueSet;

/// The one state of the set's jobs, made if there is none.
pub(crate) fn open(set: &QueueSet, max_delayed: u64, feed: Feed) -> Result<Arc<Hub>, JobError> {
    let attachment = set.attached(Attachment::default);
    let mut known = attachment.hub.lock();
    if let Some(hub) = known.upgrade() {
        hub.feed.adopt(&feed);
        return Ok(hub);
    }
    if set.is_read_only() {
        return Err(JobError::ReadOnly);
    }
    let hub = Hub::new(set, max_delayed, feed)?;
    let names = hub.settings.names();
    let mut stopped = HashSet::new();
    for name in names.iter().filter(|name| name.starts_with(STOPPING_PREFIX)) {
        for place in hub.settings.get(name)?.unwrap_or_default().chunks_exact(12) {
            stopped.insert(place.to_vec());
        }
    }
    for name in names.iter().filter_map(|name| std::str::from_utf8(name.strip_prefix(b"queue:")?).ok()) {
        let room = Arc::new(Room::new(name));
        room.load(set)?;
        room.paused.store(hub.settings.contains(&pause_key(name)), Ordering::Release);
        room.has_keys.store(hub.settings.contains(&keyed_key(name)), Ordering::Release);
        hub.claim_numbers(&room)?;
        hub.add_room(&room);
    }
    for room in hub.rooms() {
        if attachment.recovered.lock().contains(&*room.name) {
            // By an earlier state of this process: whatever ran then was handed back since.
        } else {
            recover(&hub, &room, &stopped)?;
            attachment.recovered.lock().insert(room.name.to_string());
        }
        take_stock(&hub, &room)?;
    }
    // What was noted of the last process has been heeded.
    for name in names.iter().filter(|name| name.starts_with(STOPPING_PREFIX)) {
        hub.settings.remove(name)?;
    }
    windows(&hub)?;
    passing::pass_on(&hub, None)?;
    checkpoints(&hub)?;
    *hub.wall_ahead.lock() = hub.wall_ms() as i64 - hub.now_ms() as i64;
    let hub = Arc::new(hub);
    hub.await_end()?;
    *known = Arc::downgrade(&hub);
    Ok(hub)
}

/// Counts the crash of each job that ran when the process died, unless that was about to end in order.
fn recover(hub: &Hub, room: &Arc<Room>, stopped: &HashSet<Vec<u8>>) -> Result<(), JobError> {
    for part in Part::waiting() {
        let Some(queue) = room.part(part) else {
            continue;
        };
        for id in queue.recovery().held {
            let Some(item) = queue.open_id(id)? else {
                continue;
            };
            let mut place = room.number(part).to_le_bytes().to_vec();
            place.extend_from_slice(&id.get().to_le_bytes());
            let starts = item.attempts();
            recover_job(hub, room, part, item, starts, stopped.contains(&place))?;
        }
    }
    Ok(())
}

/// A job that was started `starts` times where it is, and whose last start ended with the process.
pub(crate) fn recover_job(
    hub: &Hub,
    room: &Arc<Room>,
    part: Part,
    item: OpenItem,
    starts: u32,
    was_stopping: bool,
) -> Result<(), JobError> {
    let Some((mut envelope, value_at)) = Envelope::decode(item.data()).filter(|(envelope, _)| !envelope.raw) else {
        // No job, or none that this version knows: whoever takes it decides.
        item.abort();
        return Ok(());
    };
    let id = job_at(room.number(part), item.id(), &envelope);
    let now_ms = hub.now_ms();
    envelope.origin = Some(id);
    envelope.pushed_ms.get_or_insert_with(|| time_ms(item.put_time()));
    let uncounted = u32::from(was_stopping);
    envelope.attempts = envelope.attempts.saturating_add(starts.saturating_sub(uncounted));
    (envelope.due_ms, envelope.by_wall) = (None, false);
    let value = item.data().get(value_at..).unwrap_or_default();
    if was_stopping {
        let bytes = envelope.encode(value);
        return ending::move_to(hub, room, id, item, &bytes, ending::waits_in(&envelope), Duration::ZERO);
    }
    let error = "the process died";
    envelope.crashes = envelope.crashes.saturating_add(1);
    envelope.note_failure(Cause::Crash, now_ms, error);
    count(&room.counters.crashed);
    let crashes = envelope.crashes;
    hub.emit(|| Event::Crashed { id, queue: room.name.to_string(), crashes });
    let reason = match envelope {
        _ if crashes >= envelope.limits.crashes => Some(DeadReason::Crashes),
        _ if envelope.is_worn_out() => Some(DeadReason::Attempts),
        _ => None,
    };
    if let Some(reason) = reason {
        let has_checkpoint = hub.checkpoints.contains(&checkpoint_key(id));
        let error = error.to_owned();
        let buried =
            dying::bury_job(hub, room, id, item, envelope, value_at, reason, error, has_checkpoint, now_ms, None);
        return buried.map(drop);
    }
    let pause = backoff::pause(envelope.backoff, envelope.attempts, id);
    let due_ms = now_ms.saturating_add(ms(pause));
    (envelope.due_ms, envelope.retrying) = (Some(due_ms), true);
    let bytes = envelope.encode(value);
    ending::move_to(hub, room, id, item, &bytes, Part::Suspects, pause)?;
    hub.emit(|| Event::Retrying {
        id,
        queue: room.name.to_string(),
        attempt: envelope.attempts,
        cause: Cause::Crash,
        error: error.to_owned(),
        due: at(due_ms),
    });
    Ok(())
}

/// Finds the jobs that are not where their ids say, and the keys that are taken. Fresh jobs are looked through only where some have
/// keys.
fn take_stock(hub: &Hub, room: &Arc<Room>) -> Result<(), JobError> {
    let has_keys = room.has_keys.load(Ordering::Acquire);
    let now_ms = hub.now_ms();
    for part in Part::all() {
        let Some(queue) = room.part(part).filter(|_| has_keys || !matches!(part, Part::Fresh(_))) else {
            continue;
        };
        for item in queue.browse(ItemId::new(0)) {
            let item = item?;
            let Some((envelope, _)) = Envelope::decode(item.data()) else {
                continue;
            };
            let id = job_at(room.number(part), item.id(), &envelope);
            if envelope.origin.is_some() {
                hub.has_moved(id, room, part, item.id());
            }
            if envelope.by_wall {
                room.has_wall.store(true, Ordering::Release);
            }
            if has_keys && !matches!(part, Part::Dead | Part::Done) {
                let pushed_ms = envelope.pushed_ms.unwrap_or_else(|| time_ms(item.put_time()));
                hub.keys.found(&room.name, &envelope, id, pushed_ms, now_ms);
            }
        }
    }
    Ok(())
}

fn windows(hub: &Hub) -> Result<(), JobError> {
    let now_ms = hub.now_ms();
    for name in hub.windows.names() {
        let value = hub.windows.get(&name)?;
        let read = value.as_deref().and_then(|value| {
            let (id, until) = value.split_at_checked(12)?;
            Some((job_of(id)?, u64::from_le_bytes(until.try_into().ok()?)))
        });
        match read {
            Some((id, until_ms)) if until_ms > now_ms => {
                hub.keys.found_window(name.into_boxed_slice(), id, until_ms);
            }
            _ => drop(hub.windows.remove(&name)?),
        }
    }
    Ok(())
}

/// A checkpoint goes with its job; where the process died between the two, it is found here.
fn checkpoints(hub: &Hub) -> Result<(), JobError> {
    for key in hub.checkpoints.names() {
        let lives = job_of(&key).is_some_and(|id| match hub.queue_at(hub.whereabouts(id)) {
            Some((lane, queue)) if !matches!(lane.part, Part::Dead | Part::Done) => {
                let state = queue.state_of(ItemId::new(hub.whereabouts(id).item));
                // What cannot be told is kept.
                !matches!(state, Ok(crate::queue::browse::ItemState::Gone | crate::queue::browse::ItemState::NeverPut))
            }
            _ => false,
        });
        if !lives {
            hub.checkpoints.remove(&key)?;
        }
    }
    Ok(())
}

fn job_of(key: &[u8]) -> Option<JobId> {
    let (lane, item) = key.split_at_checked(4)?;
    Some(JobId { lane: u32::from_le_bytes(lane.try_into().ok()?), item: u64::from_le_bytes(item.try_into().ok()?) })
}
