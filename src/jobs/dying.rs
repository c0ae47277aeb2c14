//! How a job dies: moved to the queue of the dead, whole, with why and when.

use crate::jobs::ending::{TROUBLE_PAUSE, aged, forget, item_into, leave, note_window, or_back, value_of};
use crate::jobs::envelope::Envelope;
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::handler::checkpoint_key;
use crate::jobs::hub::{Hub, job_at};
use crate::jobs::id::JobId;
use crate::jobs::job::JobOptions;
use crate::jobs::room::{Part, Room, count};
use crate::jobs::run::Run;
use crate::jobs::status::{Cause, DeadReason, Outcome, Status};
use crate::queue::open_item::OpenItem;

/// Moves a job to the dead.
#[expect(clippy::too_many_arguments, reason = "what the dead are told of")]
pub(crate) fn bury_job(
    hub: &Hub,
    room: &Room,
    id: JobId,
    mut item: OpenItem,
    mut next: Envelope,
    value_at: usize,
    reason: DeadReason,
    error: String,
    has_checkpoint: bool,
    now_ms: u64,
    run: Option<&Run>,
) -> Result<Status, JobError> {
    if next.key.is_some() {
        (item, ()) = or_back(item, note_window(hub, room, id, &next, now_ms))?;
    }
    next.dead = Some((reason, now_ms));
    let kept = next.keep_dead.unwrap_or_else(|| JobOptions::default().keep_dead.into());
    if kept.count == 0 {
        item.close()?;
        hub.moved.lock().remove(&id);
    } else {
        let bytes = next.encode(value_of(&item, value_at));
        let queue;
        (item, queue) = or_back(item, room.make_keeping(&hub.set, Part::Dead, kept))?;
        match item_into(item, queue, &bytes, &aged(kept)) {
            Ok(new) => hub.has_moved(id, room, Part::Dead, new),
            Err(left) => {
                let (item, error) = *left;
                if let Some(item) = item {
                    item.give_back(TROUBLE_PAUSE);
                }
                return Err(error);
            }
        }
    }
    let kept_envelope = Envelope { origin: None, ..next };
    forget(hub, room, id, &kept_envelope, has_checkpoint);
    count(&room.counters.died);
    hub.tell(id, || run.into_iter().for_each(leave), || Outcome::Dead { reason, error: error.clone() });
    hub.emit(|| Event::Dead { id, queue: room.name.to_string(), reason, error });
    Ok(if reason == DeadReason::Expired { Status::Expired } else { Status::Dead { reason } })
}

/// A job that is dead before a handler has met it: this was no start.
#[expect(clippy::too_many_arguments, reason = "what the dead are told of")]
pub(crate) fn bury_unstarted(
    hub: &Hub,
    room: &Room,
    id: JobId,
    item: OpenItem,
    envelope: &Envelope,
    value_at: usize,
    reason: DeadReason,
    error: &str,
    now_ms: u64,
) -> Result<(), JobError> {
    let mut next = envelope.clone();
    next.origin = Some(id);
    next.pushed_ms.get_or_insert_with(|| crate::jobs::envelope::time_ms(item.put_time()));
    next.attempts = next.attempts.saturating_add(item.attempts().saturating_sub(1));
    if reason != DeadReason::Expired {
        next.note_failure(Cause::Undecodable, now_ms, error);
    }
    let has_checkpoint = hub.checkpoints.contains(&checkpoint_key(id));
    bury_job(hub, room, id, item, next, value_at, reason, error.to_owned(), has_checkpoint, now_ms, None).map(drop)
}

/// An item that is no job goes to the dead as it is.
pub(crate) fn bury_raw(hub: &Hub, room: &Room, part: Part, item: OpenItem, now_ms: u64) -> Result<(), JobError> {
    let mut envelope = Envelope::of_raw();
    let id = job_at(room.number(part), item.id(), &envelope);
    envelope.priority = match part {
        Part::Fresh(priority) | Part::Later(priority) => priority,
        _ => envelope.priority,
    };
    bury_unstarted(hub, room, id, item, &envelope, 0, DeadReason::Undecodable, "it is no job", now_ms)
}
