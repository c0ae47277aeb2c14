//! The story of a push: options, envelope, key, the queue it goes to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::PutError;
use crate::ids::ItemId;
use crate::jobs::envelope::{Envelope, KEY_MAX, KIND_MAX, Key, Limits, TAG_MAX, at, ms, time_ms};
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::hub::{Hub, keyed_key};
use crate::jobs::id::JobId;
use crate::jobs::job::{Job, JobOptions, Unique};
use crate::jobs::push::{OnConflict, Push, Pushed, Transaction, When};
use crate::jobs::room::{Part, Room, count};
use crate::options::{Durability, PutOptions};
use crate::typed::Codec;

/// A job on its way: what is stored, and where.
pub(crate) struct Parcel {
    pub(crate) queue: String,
    pub(crate) envelope: Envelope,
    pub(crate) value: Vec<u8>,
    pub(crate) delay: Duration,
    pub(crate) conflict: OnConflict,
    pub(crate) durability: Option<Durability>,
}

pub(crate) fn check_kind(kind: &str) -> Result<(), JobError> {
    if kind.is_empty() || kind.len() > KIND_MAX {
        return Err(JobError::Kind { kind: kind.to_owned(), reason: "1 to 100 bytes" });
    }
    Ok(())
}

fn bounded(what: &'static str, len: usize, max: usize) -> Result<(), JobError> {
    if len > max { Err(JobError::TooLarge { what, len, max }) } else { Ok(()) }
}

/// What the kind and the push say of a job, beside its value.
fn parcel_of(
    hub: &Hub,
    kind: &str,
    codec: u32,
    options: JobOptions,
    key: Option<Vec<u8>>,
    how: &Push,
) -> Result<Parcel, JobError> {
    let mut options = options;
    if let Some(queue) = &how.queue {
        options.queue.clone_from(queue);
    }
    options.priority = how.priority.unwrap_or(options.priority);
    options.max_attempts = how.max_attempts.unwrap_or(options.max_attempts);
    options.expires_in = how.expires_in.or(options.expires_in);
    options.check()?;
    check_kind(kind)?;
    let key = match (&how.key, options.unique) {
        // Who gives a key wants it to count.
        (Some(key), Unique::No) => Some(Key { unique: Unique::UntilDone, bytes: key.clone() }),
        (Some(key), unique) => Some(Key { unique, bytes: key.clone() }),
        (None, Unique::No) => None,
        (None, unique) => key.map(|bytes| Key { unique, bytes }),
    };
    if let Some(key) = &key {
        bounded("key", key.bytes.len(), KEY_MAX)?;
    }
    bounded("tag", how.tag.as_ref().map_or(0, String::len), TAG_MAX)?;
    let mut envelope = Envelope {
        kind: kind.to_owned(),
        codec,
        priority: options.priority,
        key,
        limits: Limits { attempts: options.max_attempts, crashes: options.max_crashes },
        backoff: (&options.backoff).into(),
        tag: how.tag.clone(),
        keep_done: (options.keep_done.count > 0).then(|| options.keep_done.into()),
        keep_dead: (options.keep_dead != JobOptions::default().keep_dead).then(|| options.keep_dead.into()),
        ..Envelope::default()
    };
    if let Some(time) = options.expires_in {
        envelope.expires_ms = Some(hub.now_ms().saturating_add(ms(time)));
    }
    let delay = match how.when {
        When::Now => Duration::ZERO,
        When::In(delay) if delay.is_zero() => delay,
        When::In(delay) => {
            envelope.due_ms = Some(hub.now_ms().saturating_add(ms(delay)));
            delay
        }
        When::At(time) => {
            let (due_ms, wall_ms) = (time_ms(time), hub.wall_ms());
            if due_ms > wall_ms {
                (envelope.due_ms, envelope.by_wall) = (Some(due_ms), true);
            }
            Duration::from_millis(due_ms.saturating_sub(wall_ms))
        }
    };
    let (conflict, durability) = (how.conflict, how.durability);
    Ok(Parcel { queue: options.queue, envelope, value: Vec::new(), delay, conflict, durability })
}

pub(crate) fn parcel<J: Job>(hub: &Hub, job: &J, how: &Push) -> Result<Parcel, JobError> {
    let codec = J::Codec::default();
    let options = J::options();
    let key = if options.unique == Unique::No || how.key.is_some() { None } else { job.unique_key() };
    let mut parcel = parcel_of(hub, J::KIND, codec.id(), options, key, how)?;
    let encoded = codec.encode(job, &mut parcel.value);
    encoded.map_err(|error| JobError::Encode { kind: J::KIND, source: Arc::new(error) })?;
    Ok(parcel)
}

/// Stores a job.
pub(crate) fn push(hub: &Hub, parcel: &Parcel) -> Result<Pushed, JobError> {
    let room = hub.ensure_room(&parcel.queue)?;
    let reserved = match &parcel.envelope.key {
        None => None,
        Some(key) => {
            note_keyed(hub, &room)?;
            match hub.keys.reserve(&room.name, &parcel.envelope.kind, key, hub.now_ms()) {
                Ok(reserved) => Some(reserved),
                Err(id) => {
                    count(&room.counters.duplicates);
                    if parcel.conflict == OnConflict::Replace {
                        replace(hub, &room, id, parcel)?;
                    }
                    return Ok(Pushed { id, duplicate: true });
                }
            }
        }
    };
    let part = part_for(hub, &room, parcel)?;
    let bytes = parcel.envelope.encode(&parcel.value);
    if matches!(part, Part::Later(_)) {
        let fresh = room.part(Part::Fresh(parcel.envelope.priority));
        let max = fresh.map_or_else(|| hub.set.defaults(), crate::queue::Queue::options).max_item_size;
        if bytes.len() as u64 > u64::from(max) {
            return Err(PutError::TooLarge { len: bytes.len() as u64, max: max.into() }.into());
        }
    }
    let queue = room.make(&hub.set, part)?;
    let mut options = PutOptions::new().delay(parcel.delay);
    if let Some(durability) = parcel.durability {
        options = options.durability(durability);
    }
    let item = queue.put_with(&bytes, &options)?;
    let id = JobId { lane: room.number(part), item: item.get() };
    if let Some(reserved) = reserved {
        reserved.keep(id);
    }
    pushed(hub, &room, id);
    Ok(Pushed { id, duplicate: false })
}

/// That a room has keys is known before the first of them is stored.
pub(crate) fn note_keyed(hub: &Hub, room: &Room) -> Result<(), JobError> {
    if !room.has_keys.load(Ordering::Acquire) {
        hub.settings.put(&hub.set, &keyed_key(&room.name), b"", PutOptions::new().durability(Durability::Sync))?;
        room.has_keys.store(true, Ordering::Release);
    }
    Ok(())
}

/// Where a fresh job goes.
pub(crate) fn part_for(hub: &Hub, room: &Room, parcel: &Parcel) -> Result<Part, JobError> {
    if parcel.delay.is_zero() {
        return Ok(Part::Fresh(parcel.envelope.priority));
    }
    let part = Part::Later(parcel.envelope.priority);
    if let Some(queue) = room.part(part)
        && queue.stats().deferred_items >= hub.max_delayed
    {
        return Err(JobError::TooManyDelayed { queue: room.name.to_string(), max: hub.max_delayed });
    }
    if parcel.envelope.by_wall {
        room.has_wall.store(true, Ordering::Release);
    }
    Ok(part)
}

pub(crate) fn pushed(hub: &Hub, room: &Room, id: JobId) {
    count(&room.counters.pushed);
    hub.emit(|| Event::Pushed { id, queue: room.name.to_string() });
    hub.ring(room);
}

/// Gives a job that waits for its first start another value and time.
pub(crate) fn replace(hub: &Hub, room: &Arc<Room>, id: JobId, parcel: &Parcel) -> Result<(), JobError> {
    let Some((lane, queue)) = hub.queue_at(hub.whereabouts(id)) else {
        return Ok(());
    };
    if matches!(lane.part, Part::Dead | Part::Done) {
        return Ok(());
    }
    let Some(item) = queue.open_id(ItemId::new(hub.whereabouts(id).item))? else {
        return Ok(());
    };
    let Some((old, _)) = Envelope::decode(item.data()) else {
        return Ok(());
    };
    if old.attempts > 0 || item.attempts() > 0 || old.snoozes > 0 {
        return Ok(());
    }
    let mut envelope = parcel.envelope.clone();
    envelope.origin = Some(id);
    envelope.pushed_ms = old.pushed_ms.or_else(|| Some(time_ms(item.put_time())));
    if envelope.by_wall {
        room.has_wall.store(true, Ordering::Release);
    }
    let bytes = envelope.encode(&parcel.value);
    crate::jobs::ending::move_to(hub, room, id, item, &bytes, Part::Later(envelope.priority), parcel.delay)
}

/// Stores jobs of one kind, all or none.
pub(crate) fn push_all<'a, J: Job>(hub: &Hub, jobs: impl IntoIterator<Item = &'a J>) -> Result<Vec<Pushed>, JobError> {
    let how = Push::new();
    let parcels: Vec<Parcel> = jobs.into_iter().map(|job| parcel(hub, job, &how)).collect::<Result<_, _>>()?;
    let Some(first) = parcels.first() else {
        return Ok(Vec::new());
    };
    let room = hub.ensure_room(&first.queue)?;
    let part = part_for(hub, &room, first)?;
    let now_ms = hub.now_ms();
    let mut answers: Vec<Option<JobId>> = Vec::with_capacity(parcels.len());
    let mut reserved = Vec::new();
    let mut bytes = Vec::new();
    let mut twins: Vec<(usize, usize)> = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for (index, parcel) in parcels.iter().enumerate() {
        let Some(key) = &parcel.envelope.key else {
            answers.push(None);
            reserved.push(None);
            bytes.push(parcel.envelope.encode(&parcel.value));
            continue;
        };
        note_keyed(hub, &room)?;
        if let Some(earlier) = seen.get(&key.bytes[..]) {
            // Of the same key in this very call.
            twins.push((index, *earlier));
            answers.push(Some(JobId { lane: 0, item: 0 }));
            continue;
        }
        seen.insert(&key.bytes[..], index);
        match hub.keys.reserve(&room.name, &parcel.envelope.kind, key, now_ms) {
            Ok(taken) => {
                answers.push(None);
                reserved.push(Some(taken));
                bytes.push(parcel.envelope.encode(&parcel.value));
            }
            Err(id) => answers.push(Some(id)),
        }
    }
    let items = room.make(&hub.set, part)?.put_batch(&bytes)?;
    let mut stored = items.iter().zip(reserved);
    let mut all = Vec::with_capacity(answers.len());
    for answer in answers {
        let next = match answer {
            Some(id) => Pushed { id, duplicate: true },
            None => {
                let Some((item, taken)) = stored.next() else { break };
                let id = JobId { lane: room.number(part), item: item.get() };
                if let Some(taken) = taken {
                    taken.keep(id);
                }
                pushed(hub, &room, id);
                Pushed { id, duplicate: false }
            }
        };
        count_duplicate(&room, next);
        all.push(next);
    }
    for (index, earlier) in twins {
        all[index].id = all[earlier].id;
    }
    Ok(all)
}

fn count_duplicate(room: &Room, pushed: Pushed) {
    if pushed.duplicate {
        count(&room.counters.duplicates);
    }
}

/// Adds a job to a transaction.
pub(crate) fn stage(hub: &Hub, tx: &mut Transaction, mut parcel: Parcel) -> Result<(), JobError> {
    parcel.envelope.queue = Some(parcel.queue.clone());
    parcel.envelope.replaces = parcel.conflict == OnConflict::Replace;
    if parcel.envelope.due_ms.is_none() && !parcel.delay.is_zero() {
        parcel.envelope.due_ms = Some(time_ms(at(hub.now_ms().saturating_add(ms(parcel.delay)))));
    }
    let bytes = parcel.envelope.encode(&parcel.value);
    let len = bytes.len();
    tx.staged.push(bytes);
    tx.bytes += len;
    if let Err(error) = tx.check() {
        tx.staged.pop();
        tx.bytes -= len;
        return Err(error);
    }
    Ok(())
}
