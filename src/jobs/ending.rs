//! How a start ends: done, again later, dead, given up, handed back.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::ids::ItemId;
use crate::jobs::backoff;
use crate::jobs::dying;
use crate::jobs::envelope::{Ended, Envelope, Kept, at, ms};
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::handler::{Done, Fail, Verdict, checkpoint_key};
use crate::jobs::hub::Hub;
use crate::jobs::id::JobId;
use crate::jobs::job::Backoff;
use crate::jobs::passing;
use crate::jobs::push::Transaction;
use crate::jobs::room::{Part, Room, count};
use crate::jobs::run::{CANCELLED, Run, STOPPING, TIMED_OUT};
use crate::jobs::status::{Cause, DeadReason, Failure, Outcome, Status};
use crate::jobs::team::Handler;
use crate::options::PutOptions;
use crate::planted::{self, Bug};
use crate::queue::open_item::OpenItem;

/// What could not be stored is tried again after this.
pub(crate) const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a text".to_owned(),
    }
}

/// Ends a start as its handler said, unless it was ended before; tells where the job stands then.
pub(crate) fn end(run: &Arc<Run>, handler: &Handler, answer: Result<Done, Fail>) -> Status {
    let hub = &run.jobs.hub;
    let hold = run.hold.lock().take();
    let Some(item) = hold else {
        // It was taken from this handler, and may be in other hands.
        return run.jobs.status(run.id);
    };
    let ended = match answer {
        Ok(Done::Complete) => done(run, item, Vec::new()),
        Ok(Done::Output(output)) => done(run, item, output),
        Ok(Done::Snooze(time)) => snooze(run, item, time),
        Ok(Done::With(next)) => done_with(run, handler, item, next),
        Err(_) if run.is_told(CANCELLED) => cancelled(run, item),
        Err(fail) => match fail.verdict {
            Verdict::Undecodable => die(run, item, DeadReason::Undecodable, &fail),
            Verdict::Reject => die(run, item, DeadReason::Rejected, &fail),
            Verdict::Discard => discard(run, item, fail.error),
            // What it was told to leave is not held against it.
            _ if run.is_told(STOPPING) => {
                hand_back(run, item);
                Ok(Status::Waiting)
            }
            _ => retry(run, handler, item, &fail),
        },
    };
    leave(run);
    ended.unwrap_or_else(|error| {
        hub.emit(|| Event::Trouble { queue: run.room.name.to_string(), error });
        run.jobs.status(run.id)
    })
}

/// Takes a job out of its handler's hands without counting the start. `false`: it has ended before.
pub(crate) fn take_back(run: &Arc<Run>) -> bool {
    let hold = run.hold.lock().take();
    let Some(item) = hold else {
        return false;
    };
    if run.is_told(CANCELLED) {
        if let Err(error) = cancelled(run, item) {
            run.jobs.hub.emit(|| Event::Trouble { queue: run.room.name.to_string(), error });
        }
    } else {
        hand_back(run, item);
    }
    leave(run);
    true
}

fn hand_back(run: &Run, item: OpenItem) {
    run.was_returned.store(true, Ordering::Release);
    item.give_back(Duration::ZERO);
    count(&run.room.counters.returned);
    run.jobs.hub.emit(|| Event::Returned { id: run.id, queue: run.room.name.to_string() });
    run.jobs.hub.ring(&run.room);
}

/// It is no longer among those that run, whatever became of it.
pub(crate) fn leave(run: &Run) {
    if run.has_left.swap(true, Ordering::AcqRel) {
        return;
    }
    let hub = &run.jobs.hub;
    {
        let mut running = hub.running.lock();
        // Its next start may be there already.
        if running.get(&run.id).is_some_and(|known| std::ptr::eq(&**known, run)) {
            running.remove(&run.id);
        }
    }
    run.room.counters.running.fetch_sub(1, Ordering::Relaxed);
    if run.is_suspect {
        hub.after_suspect();
    }
}

/// What belongs to a job that has ended for good.
pub(crate) fn forget(hub: &Hub, room: &Room, id: JobId, envelope: &Envelope, has_checkpoint: bool) {
    if envelope.origin.is_some() {
        hub.moved.lock().remove(&id);
    }
    let mut trouble = Ok(());
    if has_checkpoint {
        trouble = hub.checkpoints.remove(&checkpoint_key(id)).map(drop);
    }
    hub.keys.ended(&room.name, envelope, id);
    if let Err(error) = trouble {
        hub.emit(|| Event::Trouble { queue: room.name.to_string(), error });
    }
}

/// A key that outlives its job is noted before the job is gone.
pub(crate) fn note_window(hub: &Hub, room: &Room, id: JobId, envelope: &Envelope, now_ms: u64) -> Result<(), JobError> {
    let Some((name, until_ms)) = hub.keys.window(&room.name, envelope, id).filter(|(_, until)| *until > now_ms) else {
        return Ok(());
    };
    let mut value = checkpoint_key(id).to_vec();
    value.extend_from_slice(&until_ms.to_le_bytes());
    let left = Duration::from_millis(until_ms - now_ms);
    hub.windows.put(&hub.set, &name, &value, PutOptions::new().expires_in(left))
}

/// The item goes on if all is well; else it waits a moment for another try, and this start does not count.
pub(crate) fn or_back<T>(item: OpenItem, result: Result<T, JobError>) -> Result<(OpenItem, T), JobError> {
    match result {
        Ok(value) => Ok((item, value)),
        Err(error) => {
            item.give_back(TROUBLE_PAUSE);
            Err(error)
        }
    }
}

fn done(run: &Arc<Run>, mut item: OpenItem, output: Vec<u8>) -> Result<Status, JobError> {
    let (hub, room) = (&run.jobs.hub, &run.room);
    let now_ms = hub.now_ms();
    if run.envelope.key.is_some() {
        (item, ()) = or_back(item, note_window(hub, room, run.id, &run.envelope, now_ms))?;
    }
    let recorded = match run.envelope.keep_done {
        Some(_) => close(hub, room, run.id, item, &run.successor(true), Ended::Done, &output, now_ms)?,
        None => {
            item.close()?;
            false
        }
    };
    forget_unless(run, recorded);
    count(&room.counters.done);
    hub.tell(run.id, || leave(run), || Outcome::Done(output));
    hub.emit(|| {
        let took = Duration::from_millis(now_ms.saturating_sub(run.since_ms));
        Event::Done { id: run.id, queue: room.name.to_string(), took }
    });
    Ok(if recorded { Status::Done } else { Status::Finished })
}

fn forget_unless(run: &Run, recorded: bool) {
    let has_checkpoint = run.has_checkpoint.load(Ordering::Acquire);
    let hub = &run.jobs.hub;
    if recorded {
        // Where it is now is known; all else goes.
        let envelope = Envelope { origin: None, ..run.envelope.clone() };
        forget(hub, &run.room, run.id, &envelope, has_checkpoint);
    } else {
        forget(hub, &run.room, run.id, &run.envelope, has_checkpoint);
    }
}

/// Closes an item for good, with a record of it if one is wanted; `true`: there is one.
#[expect(clippy::too_many_arguments, reason = "what a record says")]
pub(crate) fn close(
    hub: &Hub,
    room: &Room,
    id: JobId,
    item: OpenItem,
    next: &Envelope,
    ended: Ended,
    output: &[u8],
    now_ms: u64,
) -> Result<bool, JobError> {
    let Some(kept) = next.keep_done.filter(|kept| kept.count > 0) else {
        item.close()?;
        return Ok(false);
    };
    let bytes = record(next, ended, if kept.output { output } else { &[] }, now_ms);
    let (item, queue) = or_back(item, room.make_keeping(&hub.set, Part::Done, kept))?;
    let moved = item_into(item, queue, &bytes, &aged(kept));
    match moved {
        Ok(new) => {
            hub.has_moved(id, room, Part::Done, new);
            Ok(true)
        }
        Err(left) => {
            let (item, error) = *left;
            // The job is done all the same; only the record is missing.
            hub.emit(|| Event::Trouble { queue: room.name.to_string(), error });
            if let Some(item) = item {
                item.close()?;
            }
            Ok(false)
        }
    }
}

/// The record of a job that has ended.
pub(crate) fn record(next: &Envelope, ended: Ended, output: &[u8], now_ms: u64) -> Vec<u8> {
    let record = Envelope { ended: Some((ended, now_ms)), key: None, ..next.clone() };
    record.encode(output)
}

pub(crate) fn aged(kept: Kept) -> PutOptions {
    match kept.age_ms {
        u64::MAX => PutOptions::new(),
        age_ms => PutOptions::new().expires_in(Duration::from_millis(age_ms)),
    }
}

/// An item that could not be moved, if it is still held, and why.
pub(crate) type Left = Box<(Option<OpenItem>, JobError)>;

pub(crate) fn item_into(
    item: OpenItem,
    queue: &crate::queue::Queue,
    bytes: &[u8],
    options: &PutOptions,
) -> Result<ItemId, Left> {
    item.close_into_with(queue, bytes, options).map_err(|error| {
        let told = JobError::of_move(error.fault());
        Box::new((error.into_item(), told))
    })
}

/// Moves a job to where it waits for its next start. If that cannot be stored, it waits where it is.
pub(crate) fn move_to(
    hub: &Hub,
    room: &Room,
    id: JobId,
    item: OpenItem,
    bytes: &[u8],
    part: Part,
    pause: Duration,
) -> Result<(), JobError> {
    let queue = match room.make(&hub.set, part) {
        Ok(queue) => queue,
        Err(error) => {
            item.give_back(pause.max(TROUBLE_PAUSE));
            return Err(error);
        }
    };
    if planted::is(Bug::RetryAfterClose) {
        item.close()?;
        let new = queue.put_with(bytes, &PutOptions::new().delay(pause))?;
        hub.has_moved(id, room, part, new);
        return Ok(());
    }
    match item_into(item, queue, bytes, &PutOptions::new().delay(pause)) {
        Ok(new) => {
            hub.has_moved(id, room, part, new);
            hub.ring(room);
            Ok(())
        }
        Err(left) => {
            let (item, error) = *left;
            if let Some(item) = item {
                item.give_back(pause.max(TROUBLE_PAUSE));
            }
            Err(error)
        }
    }
}

/// Where a job waits that has been met before.
pub(crate) fn waits_in(envelope: &Envelope) -> Part {
    if envelope.crashes > 0 { Part::Suspects } else { Part::Later(envelope.priority) }
}

/// Puts a job by that this worker does not know: another one may.
#[expect(clippy::too_many_arguments, reason = "what is known of it by then")]
pub(crate) fn put_by(
    hub: &Hub,
    room: &Room,
    id: JobId,
    item: OpenItem,
    envelope: &Envelope,
    value_at: usize,
    now_ms: u64,
    pause: Duration,
) -> Result<(), JobError> {
    let mut next = envelope.clone();
    next.origin = Some(id);
    next.pushed_ms.get_or_insert_with(|| crate::jobs::envelope::time_ms(item.put_time()));
    next.unknown_ms = Some(now_ms);
    let bytes = next.encode(value_of(&item, value_at));
    move_to(hub, room, id, item, &bytes, waits_in(&next), pause)
}

fn snooze(run: &Arc<Run>, item: OpenItem, time: Duration) -> Result<Status, JobError> {
    let (hub, room) = (&run.jobs.hub, &run.room);
    let mut next = run.successor(false);
    next.snoozes = next.snoozes.saturating_add(1);
    let due_ms = hub.now_ms().saturating_add(ms(time));
    next.due_ms = Some(due_ms);
    let bytes = next.encode(value_of(&item, run.value_at));
    move_to(hub, room, run.id, item, &bytes, waits_in(&next), time)?;
    count(&room.counters.snoozed);
    hub.emit(|| Event::Snoozed { id: run.id, queue: room.name.to_string(), due: at(due_ms) });
    Ok(Status::Scheduled { due: at(due_ms) })
}

pub(crate) fn value_of(item: &OpenItem, value_at: usize) -> &[u8] {
    item.data().get(value_at..).unwrap_or_default()
}

fn retry(run: &Arc<Run>, handler: &Handler, item: OpenItem, fail: &Fail) -> Result<Status, JobError> {
    let (hub, room) = (&run.jobs.hub, &run.room);
    let now_ms = hub.now_ms();
    let mut next = run.successor(true);
    let cause = if run.is_told(TIMED_OUT) { Cause::Timeout } else { fail.cause };
    next.note_failure(cause, now_ms, &fail.error);
    count(&room.counters.failed);
    if next.is_worn_out() {
        let error = fail.error.clone();
        return bury(run, item, next, DeadReason::Attempts, error, now_ms);
    }
    let pause = match (fail.verdict, next.failures.last()) {
        (Verdict::RetryIn(pause), _) => pause,
        (_, Some(failure)) => pause_after(handler, &next, failure, run.id),
        _ => Duration::ZERO,
    };
    let due_ms = now_ms.saturating_add(ms(pause));
    (next.due_ms, next.retrying) = (Some(due_ms), true);
    let bytes = next.encode(value_of(&item, run.value_at));
    move_to(hub, room, run.id, item, &bytes, waits_in(&next), pause)?;
    hub.emit(|| Event::Retrying {
        id: run.id,
        queue: room.name.to_string(),
        attempt: run.attempt,
        cause,
        error: next.last_error().to_owned(),
        due: at(due_ms),
    });
    Ok(Status::Retrying { attempt: run.attempt, due: at(due_ms), error: next.last_error().to_owned() })
}

fn pause_after(handler: &Handler, next: &Envelope, failure: &Failure, id: JobId) -> Duration {
    if let Backoff::Custom(custom) = &handler.backoff {
        let told = catch_unwind(AssertUnwindSafe(|| custom(next.attempts, failure)));
        if let Ok(pause) = told {
            return pause;
        }
    }
    backoff::pause(next.backoff, next.attempts, id)
}

fn die(run: &Arc<Run>, item: OpenItem, reason: DeadReason, fail: &Fail) -> Result<Status, JobError> {
    let now_ms = run.jobs.hub.now_ms();
    let mut next = run.successor(true);
    next.note_failure(fail.cause, now_ms, &fail.error);
    count(&run.room.counters.failed);
    bury(run, item, next, reason, fail.error.clone(), now_ms)
}

fn bury(
    run: &Arc<Run>,
    item: OpenItem,
    next: Envelope,
    reason: DeadReason,
    error: String,
    now_ms: u64,
) -> Result<Status, JobError> {
    let has_checkpoint = run.has_checkpoint.load(Ordering::Acquire);
    dying::bury_job(
        &run.jobs.hub,
        &run.room,
        run.id,
        item,
        next,
        run.value_at,
        reason,
        error,
        has_checkpoint,
        now_ms,
        Some(run),
    )
}

fn discard(run: &Arc<Run>, mut item: OpenItem, error: String) -> Result<Status, JobError> {
    let (hub, room) = (&run.jobs.hub, &run.room);
    if run.envelope.key.is_some() {
        (item, ()) = or_back(item, note_window(hub, room, run.id, &run.envelope, hub.now_ms()))?;
    }
    item.close()?;
    forget_unless(run, false);
    count(&room.counters.failed);
    count(&room.counters.discarded);
    hub.tell(run.id, || leave(run), || Outcome::Discarded);
    hub.emit(|| Event::Discarded { id: run.id, queue: room.name.to_string(), error });
    Ok(Status::Finished)
}

fn cancelled(run: &Arc<Run>, item: OpenItem) -> Result<Status, JobError> {
    let has_checkpoint = run.has_checkpoint.load(Ordering::Acquire);
    let next = run.successor(true);
    cancel_item(&run.jobs.hub, &run.room, run.id, item, &next, has_checkpoint, Some(run))
}

/// Ends a job that its user does not want any more.
pub(crate) fn cancel_item(
    hub: &Hub,
    room: &Room,
    id: JobId,
    item: OpenItem,
    next: &Envelope,
    has_checkpoint: bool,
    run: Option<&Run>,
) -> Result<Status, JobError> {
    let recorded = close(hub, room, id, item, next, Ended::Cancelled, &[], hub.now_ms())?;
    if !recorded {
        hub.moved.lock().remove(&id);
    }
    let envelope = Envelope { origin: None, ..next.clone() };
    forget(hub, room, id, &envelope, has_checkpoint);
    count(&room.counters.cancelled);
    hub.tell(id, || run.into_iter().for_each(leave), || Outcome::Cancelled);
    hub.emit(|| Event::Cancelled { id, queue: room.name.to_string() });
    Ok(if recorded { Status::Cancelled } else { Status::Finished })
}

/// The end of a job and what it stages, as one act.
fn done_with(run: &Arc<Run>, handler: &Handler, mut item: OpenItem, mut next: Transaction) -> Result<Status, JobError> {
    let (hub, room) = (&run.jobs.hub, &run.room);
    let output = next.output.take().unwrap_or_default();
    if next.is_empty() {
        return done(run, item, output);
    }
    let now_ms = hub.now_ms();
    if run.envelope.key.is_some() {
        (item, ()) = or_back(item, note_window(hub, room, run.id, &run.envelope, now_ms))?;
    }
    let kept = run.envelope.keep_done.filter(|kept| kept.count > 0);
    if let Some(kept) = kept {
        let told = if kept.output { &output[..] } else { &[] };
        let of_run = Envelope { queue: Some(room.name.to_string()), ..run.successor(true) };
        next.staged.push(record(&of_run, Ended::Done, told, now_ms));
    }
    if planted::is(Bug::StagedBeforeEnd) {
        passing::commit(hub, &next)?;
        return done(run, item, output);
    }
    let ids =
        match or_back(item, passing::outbox(hub)).map(|(item, outbox)| item.close_into_batch(&outbox, &next.staged)) {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => {
                let told = JobError::of_move(error.fault());
                return match error.into_item() {
                    Some(item) => retry(run, handler, item, &Fail::from(told)),
                    None => Err(told),
                };
            }
            Err(error) => return Err(error),
        };
    // Whatever comes now: the job is done, and the others are there.
    forget_unless(run, kept.is_some());
    if let Err(error) = passing::pass_on(hub, Some(&ids)) {
        hub.emit(|| Event::Trouble { queue: room.name.to_string(), error });
    }
    count(&room.counters.done);
    hub.tell(run.id, || leave(run), || Outcome::Done(output));
    hub.emit(|| {
        let took = Duration::from_millis(now_ms.saturating_sub(run.since_ms));
        Event::Done { id: run.id, queue: room.name.to_string(), took }
    });
    Ok(if kept.is_some() { Status::Done } else { Status::Finished })
}
