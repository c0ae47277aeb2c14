//! What is done to jobs from outside: cancel, promote, requeue, purge, pause.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::ids::ItemId;
use crate::jobs::asking::Walk;
use crate::jobs::ending;
use crate::jobs::envelope::{Envelope, time_ms};
use crate::jobs::error::JobError;
use crate::jobs::events::Event;
use crate::jobs::filter::Filter;
use crate::jobs::handler::checkpoint_key;
use crate::jobs::hub::{Hub, pause_key};
use crate::jobs::id::JobId;
use crate::jobs::names;
use crate::jobs::room::{Lane, Part};
use crate::jobs::run::CANCELLED;
use crate::jobs::status::{Cancelled, JobState};
use crate::options::{Durability, PutOptions};
use crate::queue::Queue;
use crate::queue::open_item::OpenItem;

impl Hub {
    /// The item of a job that waits, in this caller's hands.
    fn pick(&self, id: JobId) -> Result<Option<(Lane, Queue, OpenItem)>, JobError> {
        let place = self.whereabouts(id);
        let Some((lane, queue)) = self.queue_at(place) else {
            return Ok(None);
        };
        if matches!(lane.part, Part::Dead | Part::Done) {
            return Ok(None);
        }
        Ok(queue.open_id(ItemId::new(place.item))?.map(|item| (lane, queue, item)))
    }

    pub(crate) fn cancel(&self, id: JobId) -> Result<Cancelled, JobError> {
        // Between two looks it may be started, fail, or be handed back.
        for _ in 0..100 {
            if let Some(run) = self.running.lock().get(&id) {
                if run.hold.lock().is_some() {
                    run.tell(CANCELLED);
                    return Ok(Cancelled::Signalled);
                }
                continue;
            }
            if let Some((lane, queue, item)) = self.pick(id)? {
                let mut next = match Envelope::decode(item.data()) {
                    Some((envelope, _)) => envelope,
                    None => Envelope::of_raw(),
                };
                next.attempts = next.attempts.saturating_add(item.attempts());
                next.pushed_ms.get_or_insert_with(|| time_ms(item.put_time()));
                next.origin = Some(id);
                let has_checkpoint = self.checkpoints.contains(&checkpoint_key(id));
                ending::cancel_item(self, &lane.room, id, item, &next, has_checkpoint)?;
                if queue.options().durability == Durability::Sync {
                    queue.sync()?;
                }
                return Ok(Cancelled::Removed);
            }
            if self.status_of(id).has_ended() {
                return Ok(Cancelled::TooLate);
            }
            std::thread::yield_now();
        }
        Ok(Cancelled::TooLate)
    }

    pub(crate) fn promote(&self, id: JobId) -> Result<bool, JobError> {
        let Some((lane, _, item)) = self.pick(id)? else {
            return Ok(false);
        };
        let Some((mut envelope, value_at)) = Envelope::decode(item.data()) else {
            return Ok(false);
        };
        let now_ms = if envelope.by_wall { self.wall_ms() } else { self.now_ms() };
        if envelope.due_ms.is_none_or(|due_ms| due_ms <= now_ms) {
            // Back in its place.
            return Ok(false);
        }
        envelope.origin = Some(id);
        envelope.attempts = envelope.attempts.saturating_add(item.attempts());
        envelope.pushed_ms.get_or_insert_with(|| time_ms(item.put_time()));
        (envelope.due_ms, envelope.by_wall) = (envelope.retrying.then(|| self.now_ms()), false);
        let bytes = envelope.encode(item.data().get(value_at..).unwrap_or_default());
        ending::move_to(self, &lane.room, id, item, &bytes, ending::waits_in(&envelope), Duration::ZERO)?;
        Ok(true)
    }

    /// Does something to each dead job that a filter means.
    fn each_dead(
        &self,
        filter: &Filter,
        mut with: impl FnMut(&Lane, JobId, OpenItem) -> Result<(), JobError>,
    ) -> Result<u64, JobError> {
        if filter.is_empty() {
            return Err(JobError::EmptyFilter);
        }
        let mut count = 0;
        let filter = Filter { state: filter.state.or(Some(JobState::Dead)), ..filter.clone() };
        if filter.state != Some(JobState::Dead) {
            return Ok(0);
        }
        let mut walk = Walk::new(self, &filter);
        while let Some(found) = walk.next(self) {
            let (info, item) = found?;
            let Some(room) = self.room(&info.queue) else {
                continue;
            };
            let lane = Lane { room, part: Part::Dead };
            let Some(queue) = lane.room.part(Part::Dead) else {
                continue;
            };
            if let Some(item) = queue.open_id(item)? {
                with(&lane, info.id, item)?;
                count += 1;
            }
        }
        Ok(count)
    }

    pub(crate) fn requeue_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        self.each_dead(filter, |lane, id, item| {
            let (bytes, part) = match Envelope::decode(item.data()) {
                Some((envelope, value_at)) if envelope.raw => {
                    // As it was met.
                    (item.data().get(value_at..).unwrap_or_default().to_vec(), Part::Later(envelope.priority))
                }
                Some((mut envelope, value_at)) => {
                    (envelope.attempts, envelope.crashes) = (0, 0);
                    (envelope.dead, envelope.due_ms, envelope.expires_ms) = (None, None, None);
                    (envelope.by_wall, envelope.retrying) = (false, false);
                    envelope.origin = Some(id);
                    let pushed_ms = envelope.pushed_ms.unwrap_or_else(|| self.now_ms());
                    self.keys.found(&lane.room.name, &envelope, id, pushed_ms, self.now_ms());
                    let value = item.data().get(value_at..).unwrap_or_default();
                    (envelope.encode(value), Part::Later(envelope.priority))
                }
                None => (item.data().to_vec(), Part::Later(crate::jobs::Priority::Normal)),
            };
            ending::move_to(self, &lane.room, id, item, &bytes, part, Duration::ZERO)?;
            self.emit(|| Event::Requeued { id, queue: lane.room.name.to_string() });
            Ok(())
        })
    }

    pub(crate) fn purge_dead(&self, filter: &Filter) -> Result<u64, JobError> {
        self.each_dead(filter, |_, id, item| {
            item.close()?;
            self.moved.lock().remove(&id);
            Ok(())
        })
    }

    pub(crate) fn pause(&self, queue: &str) -> Result<(), JobError> {
        names::check(queue)?;
        let room = self.ensure_room(queue)?;
        self.settings.put(&self.set, &pause_key(queue), b"", PutOptions::new().durability(Durability::Sync))?;
        room.paused.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn resume(&self, queue: &str) -> Result<(), JobError> {
        names::check(queue)?;
        let room = self.ensure_room(queue)?;
        if self.settings.remove(&pause_key(queue))? {
            self.settings.sync()?;
        }
        room.paused.store(false, Ordering::Release);
        self.ring_all();
        Ok(())
    }
}
