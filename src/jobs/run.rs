//! A job in somebody's hands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use event_listener::{Event as Bell, EventListener};
use parking_lot::Mutex;

use crate::jobs::Jobs;
use crate::jobs::envelope::{Envelope, at};
use crate::jobs::id::JobId;
use crate::jobs::room::{Part, Room};
use crate::jobs::status::Progress;
use crate::queue::open_item::OpenItem;

/// Its user does not want it any more.
pub(crate) const CANCELLED: u8 = 1;
/// Its time is over.
pub(crate) const TIMED_OUT: u8 = 2;
/// Its worker shuts down.
pub(crate) const STOPPING: u8 = 4;
/// A future of it is to be dropped now.
pub(crate) const DROPPED: u8 = 8;

/// One start of a job.
pub(crate) struct Run {
    pub(crate) jobs: Jobs,
    pub(crate) room: Arc<Room>,
    pub(crate) part: Part,
    pub(crate) id: JobId,
    /// As it was stored.
    pub(crate) envelope: Envelope,
    /// Which start this is.
    pub(crate) attempt: u32,
    pub(crate) pushed_ms: u64,
    pub(crate) since_ms: u64,
    /// The number of the item, for who notes what runs.
    pub(crate) item_id: u64,
    /// Taken out by who ends the start: what comes later comes too late.
    pub(crate) hold: Mutex<Option<OpenItem>>,
    /// Where in the item the value's bytes begin.
    pub(crate) value_at: usize,
    pub(crate) resume: Option<Vec<u8>>,
    pub(crate) has_checkpoint: AtomicBool,
    flags: AtomicU8,
    told: Bell,
    steps: [AtomicU64; 2],
    note: Mutex<String>,
    /// It is the suspect that runs.
    pub(crate) is_suspect: bool,
    /// Its handler is a future, which can be dropped.
    pub(crate) is_async: bool,
    /// It was handed back.
    pub(crate) was_returned: AtomicBool,
}

impl Run {
    #[expect(clippy::too_many_arguments, reason = "called once, by who has just found all of it")]
    pub(crate) fn new(
        jobs: Jobs,
        room: Arc<Room>,
        part: Part,
        id: JobId,
        envelope: Envelope,
        item: OpenItem,
        value_at: usize,
        resume: Option<Vec<u8>>,
        since_ms: u64,
        is_suspect: bool,
        is_async: bool,
    ) -> Run {
        Run {
            attempt: envelope.attempts.saturating_add(item.attempts()),
            pushed_ms: envelope.pushed_ms.unwrap_or_else(|| crate::jobs::envelope::time_ms(item.put_time())),
            item_id: item.id().get(),
            has_checkpoint: AtomicBool::new(resume.is_some()),
            jobs,
            room,
            part,
            id,
            envelope,
            since_ms,
            hold: Mutex::new(Some(item)),
            value_at,
            resume,
            flags: AtomicU8::new(0),
            told: Bell::new(),
            steps: [AtomicU64::new(0), AtomicU64::new(0)],
            note: Mutex::new(String::new()),
            is_suspect,
            is_async,
            was_returned: AtomicBool::new(false),
        }
    }

    /// The envelope as it is to be stored for the next start: this one counts or not.
    pub(crate) fn successor(&self, counts: bool) -> Envelope {
        let mut next = self.envelope.clone();
        next.origin = Some(self.id);
        next.pushed_ms = Some(self.pushed_ms);
        next.attempts = if counts { self.attempt } else { self.attempt.saturating_sub(1) };
        next.due_ms = None;
        next.by_wall = false;
        next.retrying = false;
        next
    }

    pub(crate) fn tell(&self, flag: u8) {
        self.flags.fetch_or(flag, Ordering::AcqRel);
        self.told.notify(usize::MAX);
    }

    pub(crate) fn is_told(&self, flags: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flags != 0
    }

    pub(crate) fn since(&self) -> SystemTime {
        at(self.since_ms)
    }

    pub(crate) fn set_progress(&self, done: u64, total: u64) {
        self.steps[0].store(done, Ordering::Relaxed);
        self.steps[1].store(total, Ordering::Relaxed);
    }

    pub(crate) fn set_note(&self, text: &str) {
        let mut note = self.note.lock();
        note.clear();
        note.push_str(text);
    }

    pub(crate) fn progress(&self) -> Progress {
        let [done, total] = &self.steps;
        Progress {
            done: done.load(Ordering::Relaxed),
            total: total.load(Ordering::Relaxed),
            note: self.note.lock().clone(),
        }
    }

    /// Waits until one of the flags is there.
    pub(crate) fn told(self: &Arc<Self>, flags: u8) -> Told {
        Told { run: Arc::clone(self), flags, listener: None }
    }
}

/// Ready once a run was told one of some flags.
pub(crate) struct Told {
    run: Arc<Run>,
    flags: u8,
    listener: Option<EventListener>,
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.run.is_told(self.flags) {
                return Poll::Ready(());
            }
            match &mut self.listener {
                // Listen, then look again.
                None => self.listener = Some(self.run.told.listen()),
                Some(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
