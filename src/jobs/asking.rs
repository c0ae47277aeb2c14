//! Where a job stands, by its id; what there is, by a filter.

use std::sync::Arc;
use std::time::SystemTime;

use crate::ids::ItemId;
use crate::item::Item;
use crate::jobs::envelope::{Ended, Envelope, at};
use crate::jobs::error::JobError;
use crate::jobs::filter::Filter;
use crate::jobs::hub::{Hub, job_at};
use crate::jobs::id::JobId;
use crate::jobs::room::{Part, Room};
use crate::jobs::run::Run;
use crate::jobs::status::{DeadReason, JobInfo, JobState, Outcome, Status};
use crate::queue::browse::ItemState;

impl Hub {
    fn runs(&self, id: JobId) -> Option<Arc<Run>> {
        self.running.lock().get(&id).cloned()
    }

    pub(crate) fn status_of(&self, id: JobId) -> Status {
        // It may move between two looks: then the second one finds it.
        for _ in 0..3 {
            if let Some(run) = self.runs(id) {
                return Status::Running { attempt: run.attempt, since: run.since(), progress: run.progress() };
            }
            let at_first = self.whereabouts(id);
            let status = self.status_at(id);
            let has_moved = self.whereabouts(id) != at_first || self.runs(id).is_some();
            if !has_moved {
                return status;
            }
        }
        Status::Waiting
    }

    fn status_at(&self, id: JobId) -> Status {
        let place = self.whereabouts(id);
        let Some(lane) = self.lane(place.lane) else {
            return Status::Unknown;
        };
        let Some(queue) = lane.room.part(lane.part) else {
            return Status::Unknown;
        };
        match queue.state_of(ItemId::new(place.item)) {
            Ok(ItemState::NeverPut) => return Status::Unknown,
            Ok(ItemState::Gone) => {
                self.gone(id);
                return Status::Finished;
            }
            // Of a fresh job nothing more is to be known.
            Ok(_) if matches!(lane.part, Part::Fresh(_)) => return Status::Waiting,
            Ok(_) => {}
            Err(_) => return Status::Waiting,
        }
        let item = match queue.peek_id(ItemId::new(place.item)) {
            Ok(Some(item)) => item,
            Ok(None) => return Status::Finished,
            Err(_) => return Status::Waiting,
        };
        match Envelope::decode(item.data()) {
            Some((envelope, _)) => self.status_by(lane.part, &envelope),
            None => Status::Waiting,
        }
    }

    /// Nothing needs to be known any more of where it was.
    fn gone(&self, id: JobId) {
        self.moved.lock().remove(&id);
    }

    fn status_by(&self, part: Part, envelope: &Envelope) -> Status {
        if let Some((reason, _)) = envelope.dead {
            return if reason == DeadReason::Expired { Status::Expired } else { Status::Dead { reason } };
        }
        match envelope.ended {
            Some((Ended::Done, _)) => return Status::Done,
            Some((Ended::Cancelled, _)) => return Status::Cancelled,
            None => {}
        }
        if part == Part::Dead {
            // Put there by other means.
            return Status::Dead { reason: DeadReason::Rejected };
        }
        let due_ms = envelope.due_ms.unwrap_or(0);
        if envelope.retrying {
            let error = envelope.last_error().to_owned();
            return Status::Retrying { attempt: envelope.attempts, due: at(due_ms), error };
        }
        let now_ms = if envelope.by_wall { self.wall_ms() } else { self.now_ms() };
        if due_ms > now_ms { Status::Scheduled { due: at(due_ms) } } else { Status::Waiting }
    }

    pub(crate) fn info_of(&self, id: JobId) -> Option<JobInfo> {
        for _ in 0..3 {
            let place = self.whereabouts(id);
            let (lane, queue) = self.queue_at(place)?;
            if let Ok(Some(item)) = queue.peek_id(ItemId::new(place.item)) {
                return Some(self.info_by(&lane.room, lane.part, &item));
            }
            if self.whereabouts(id) == place {
                return None;
            }
        }
        None
    }

    pub(crate) fn info_by(&self, room: &Room, part: Part, item: &Item) -> JobInfo {
        let (envelope, value_at) = match Envelope::decode(item.data()) {
            Some(found) => found,
            None => (Envelope::of_raw(), 0),
        };
        let id = job_at(room.number(part), item.id(), &envelope);
        let run = self.runs(id).filter(|run| run.item_id == item.id().get());
        let state = match (&run, self.status_by(part, &envelope)) {
            (Some(_), _) => JobState::Running,
            (_, Status::Scheduled { .. }) => JobState::Scheduled,
            (_, Status::Retrying { .. }) => JobState::Retrying,
            (_, Status::Dead { .. } | Status::Expired) => JobState::Dead,
            (_, Status::Done) => JobState::Done,
            (_, Status::Cancelled) => JobState::Cancelled,
            _ => JobState::Waiting,
        };
        let is_over = matches!(state, JobState::Dead | JobState::Done | JobState::Cancelled);
        // Starts since it came to its place; the dead and the records were not started there.
        let starts = if is_over { 0 } else { item.attempts() };
        let ended = envelope.dead.map(|(_, at_ms)| at_ms).or(envelope.ended.map(|(_, at_ms)| at_ms));
        JobInfo {
            id,
            queue: room.name.to_string(),
            state,
            priority: match part {
                Part::Fresh(priority) | Part::Later(priority) => priority,
                _ => envelope.priority,
            },
            attempts: envelope.attempts.saturating_add(starts),
            crashes: envelope.crashes,
            snoozes: envelope.snoozes,
            pushed: envelope.pushed_ms.map_or_else(|| item.put_time(), at),
            due: envelope.due_ms.map(at),
            first_failure: envelope.first_failure_ms.map(at),
            dead: envelope.dead.map(|(reason, _)| reason),
            ended: ended.map(at),
            payload_len: item.data().len().saturating_sub(value_at),
            kind: envelope.kind,
            tag: envelope.tag,
            failures: envelope.failures,
        }
    }

    /// How a job has ended, as far as it is known; `None`: it has not.
    pub(crate) fn outcome_of(&self, id: JobId) -> Option<Outcome> {
        let status = self.status_of(id);
        if !status.has_ended() {
            return None;
        }
        let kept = || {
            let place = self.whereabouts(id);
            let (_, queue) = self.queue_at(place)?;
            let item = queue.peek_id(ItemId::new(place.item)).ok()??;
            let (envelope, value_at) = Envelope::decode(item.data())?;
            Some((envelope, item.data().get(value_at..).unwrap_or_default().to_vec()))
        };
        Some(match status {
            Status::Done => Outcome::Done(kept().map(|(_, output)| output).unwrap_or_default()),
            Status::Dead { reason } => {
                let error = kept().map(|(envelope, _)| envelope.last_error().to_owned()).unwrap_or_default();
                Outcome::Dead { reason, error }
            }
            Status::Expired => Outcome::Dead { reason: DeadReason::Expired, error: String::new() },
            Status::Cancelled => Outcome::Cancelled,
            Status::Unknown => Outcome::Unknown,
            _ => Outcome::Finished,
        })
    }
}

impl Filter {
    /// Whether jobs of a part can be meant at all.
    fn may_mean(&self, part: Part) -> bool {
        match self.state {
            None => true,
            Some(JobState::Dead) => part == Part::Dead,
            Some(JobState::Done | JobState::Cancelled) => part == Part::Done,
            Some(JobState::Scheduled | JobState::Retrying) => matches!(part, Part::Later(_) | Part::Suspects),
            Some(_) => !matches!(part, Part::Dead | Part::Done),
        }
    }

    pub(crate) fn means(&self, info: &JobInfo, now: SystemTime) -> bool {
        let is =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|text| found == Some(text));
        let since = info.ended.unwrap_or(info.pushed);
        is(&self.queue, Some(&info.queue))
            && self.state.is_none_or(|state| state == info.state)
            && is(&self.kind, Some(&info.kind))
            && is(&self.tag, info.tag.as_deref())
            && self.reason.is_none_or(|reason| info.dead == Some(reason))
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&info.id))
            && self
                .error
                .as_deref()
                .is_none_or(|text| info.failures.last().is_some_and(|failure| failure.error.contains(text)))
            && self.older_than.is_none_or(|age| now.duration_since(since).is_ok_and(|passed| passed > age))
    }
}

/// Where a listing is.
pub(crate) struct Walk {
    filter: Filter,
    lanes: Vec<(Arc<Room>, Part)>,
    lane: usize,
    next: ItemId,
    left: usize,
}

impl Walk {
    pub(crate) fn new(hub: &Hub, filter: &Filter) -> Walk {
        let mut lanes = Vec::new();
        for room in hub.rooms() {
            if filter.queue.as_ref().is_some_and(|name| **name != *room.name) {
                continue;
            }
            for part in Part::all().filter(|part| filter.may_mean(*part) && room.part(*part).is_some()) {
                lanes.push((Arc::clone(&room), part));
            }
        }
        let left = filter.limit.unwrap_or(usize::MAX);
        Walk { filter: filter.clone(), lanes, lane: 0, next: ItemId::new(0), left }
    }

    /// The next job that is meant, with the item that it is.
    pub(crate) fn next(&mut self, hub: &Hub) -> Option<Result<(JobInfo, ItemId), JobError>> {
        if self.left == 0 {
            return None;
        }
        let now = hub.set.now();
        while let Some((room, part)) = self.lanes.get(self.lane) {
            let Some(queue) = room.part(*part) else {
                self.lane += 1;
                continue;
            };
            let mut browse = queue.browse(self.next);
            let found = browse.find_map(|item| match item {
                Ok(item) => {
                    self.next = ItemId::new(item.id().get() + 1);
                    let info = hub.info_by(room, *part, &item);
                    self.filter.means(&info, now).then(|| Ok((info, item.id())))
                }
                Err(error) => Some(Err(error.into())),
            });
            match found {
                Some(Ok(found)) => {
                    self.left -= 1;
                    return Some(Ok(found));
                }
                Some(Err(error)) => {
                    // Not met again and again.
                    self.left = 0;
                    return Some(Err(error));
                }
                None => {
                    self.lane += 1;
                    self.next = ItemId::new(0);
                }
            }
        }
        None
    }
}
