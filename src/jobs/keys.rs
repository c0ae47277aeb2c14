//! Which keys are taken, by which job, and for how long.

use std::collections::HashMap;

use parking_lot::{Condvar, Mutex};

use crate::jobs::envelope::{Envelope, Key, ms};
use crate::jobs::id::JobId;
use crate::jobs::job::Unique;

/// Until when a job has its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Started,
    Done,
    Ms(u64),
}

#[derive(Debug)]
enum Hold {
    /// Its job is being stored.
    Pushing,
    By(JobId, Until),
}

/// The keys that are taken. A key is of one queue and one kind.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    taken: Mutex<Taken>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    by_name: HashMap<Box<[u8]>, Hold>,
    /// Looked for keys whose window is over when it grows beyond this.
    sweep_at: usize,
}

/// A key that was reserved for a job on its way; given up when dropped.
pub(crate) struct Reserved<'a> {
    keys: &'a Keys,
    name: Option<Box<[u8]>>,
    until: Until,
}

/// The same key of different queues and kinds has different names.
pub(crate) fn name(queue: &str, kind: &str, key: &[u8]) -> Box<[u8]> {
    let mut name = Vec::with_capacity(queue.len() + kind.len() + key.len() + 2);
    name.extend_from_slice(queue.as_bytes());
    name.push(0);
    name.extend_from_slice(kind.as_bytes());
    name.push(0);
    name.extend_from_slice(key);
    name.into_boxed_slice()
}

fn until(key: &Key, pushed_ms: u64) -> Option<Until> {
    match key.unique {
        Unique::No => None,
        Unique::UntilStarted => Some(Until::Started),
        Unique::UntilDone => Some(Until::Done),
        Unique::Window(window) => Some(Until::Ms(pushed_ms.saturating_add(ms(window)))),
    }
}

impl Keys {
    /// Takes a key for a job that is about to be stored, or tells who has it.
    pub(crate) fn reserve(&self, queue: &str, kind: &str, key: &Key, now_ms: u64) -> Result<Reserved<'_>, JobId> {
        let (name, until) = (name(queue, kind, &key.bytes), until(key, now_ms));
        let Some(until) = until else {
            return Ok(Reserved { keys: self, name: None, until: Until::Started });
        };
        let mut taken = self.taken.lock();
        loop {
            match taken.by_name.get(&name) {
                Some(Hold::Pushing) => self.changed.wait(&mut taken),
                Some(Hold::By(_, Until::Ms(end))) if *end <= now_ms => break,
                Some(Hold::By(id, _)) => return Err(*id),
                None => break,
            }
        }
        if taken.by_name.len() >= taken.sweep_at {
            taken.by_name.retain(|_, hold| !matches!(hold, Hold::By(_, Until::Ms(end)) if *end <= now_ms));
            taken.sweep_at = (taken.by_name.len() * 2).max(1024);
        }
        taken.by_name.insert(name.clone(), Hold::Pushing);
        Ok(Reserved { keys: self, name: Some(name), until })
    }

    /// A job that was found, not pushed. Of two that have one key the first found keeps it.
    pub(crate) fn found(&self, queue: &str, envelope: &Envelope, id: JobId, pushed_ms: u64, now_ms: u64) {
        let Some(key) = &envelope.key else {
            return;
        };
        let until = until(key, pushed_ms);
        let is_free = match until {
            None => true,
            Some(Until::Started) => envelope.attempts > 0,
            Some(Until::Done) => false,
            Some(Until::Ms(end)) => end <= now_ms,
        };
        if let Some(until) = until
            && !is_free
        {
            let name = name(queue, &envelope.kind, &key.bytes);
            self.taken.lock().by_name.entry(name).or_insert(Hold::By(id, until));
        }
    }

    /// A key that outlived its job.
    pub(crate) fn found_window(&self, name: Box<[u8]>, id: JobId, until_ms: u64) {
        self.taken.lock().by_name.insert(name, Hold::By(id, Until::Ms(until_ms)));
    }

    /// The job was started.
    pub(crate) fn started(&self, queue: &str, envelope: &Envelope, id: JobId) {
        self.free(queue, envelope, id, |until| until == Until::Started);
    }

    /// The job has ended. A window goes on.
    pub(crate) fn ended(&self, queue: &str, envelope: &Envelope, id: JobId) {
        self.free(queue, envelope, id, |until| matches!(until, Until::Started | Until::Done));
    }

    /// The name of a key that is the job's for a while, whatever becomes of it, and until when.
    pub(crate) fn window(&self, queue: &str, envelope: &Envelope, id: JobId) -> Option<(Box<[u8]>, u64)> {
        let key = envelope.key.as_ref()?;
        let name = name(queue, &envelope.kind, &key.bytes);
        match self.taken.lock().by_name.get(&name) {
            Some(Hold::By(by, Until::Ms(end))) if *by == id => Some((name, *end)),
            _ => None,
        }
    }

    fn free(&self, queue: &str, envelope: &Envelope, id: JobId, is_over: impl Fn(Until) -> bool) {
        let Some(key) = &envelope.key else {
            return;
        };
        let name = name(queue, &envelope.kind, &key.bytes);
        let mut taken = self.taken.lock();
        if matches!(taken.by_name.get(&name), Some(Hold::By(by, until)) if *by == id && is_over(*until)) {
            taken.by_name.remove(&name);
        }
    }
}

impl Reserved<'_> {
    /// The job is stored.
    pub(crate) fn keep(mut self, id: JobId) {
        if let Some(name) = self.name.take() {
            self.keys.taken.lock().by_name.insert(name, Hold::By(id, self.until));
            self.keys.changed.notify_all();
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.keys.taken.lock().by_name.remove(&name);
            self.keys.changed.notify_all();
        }
    }
}
