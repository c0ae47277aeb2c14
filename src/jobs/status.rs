//! What is known of a job: [`Status`] and [`JobInfo`].

use std::fmt;
use std::time::SystemTime;

use crate::jobs::id::JobId;
use crate::jobs::job::Priority;

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Waits for its time: pushed with a delay or for a moment, or snoozed.
    Scheduled {
        /// When it is due.
        due: SystemTime,
    },
    /// Waits for a worker.
    Waiting,
    /// A handler has it.
    Running {
        /// Which start this is, from 1.
        attempt: u32,
        /// When this start began.
        since: SystemTime,
        /// What the handler told last.
        progress: Progress,
    },
    /// Has failed, and pauses before the next start or waits for it.
    Retrying {
        /// How many starts have failed.
        attempt: u32,
        /// When it is due.
        due: SystemTime,
        /// What the last start failed with.
        error: String,
    },
    /// Ended well; known because [`keep_done`](crate::jobs::JobOptions::keep_done) keeps a record. Else it is `Finished`.
    Done,
    /// Given up, and kept in `<queue>.dead`.
    Dead {
        /// Why.
        reason: DeadReason,
    },
    /// Cancelled; known because `keep_done` keeps a record.
    Cancelled,
    /// Was not started in time: it is among the dead with [`DeadReason::Expired`].
    Expired,
    /// There was such a job, it has ended, and no record of it is kept.
    Finished,
    /// No job ever had this id.
    Unknown,
}

impl Status {
    /// The number that php-resque gives this status: 1 waiting, 2 running, 3 failed, 4 complete. `None` for `Unknown`.
    ///
    /// A job that is due later or was tried before waits, for php-resque. One of which no record is kept is complete.
    pub fn code(&self) -> Option<u8> {
        match self {
            Status::Scheduled { .. } | Status::Waiting | Status::Retrying { .. } => Some(1),
            Status::Running { .. } => Some(2),
            Status::Dead { .. } | Status::Cancelled | Status::Expired => Some(3),
            Status::Done | Status::Finished => Some(4),
            Status::Unknown => None,
        }
    }

    /// Whether the job has ended, or never was.
    pub fn has_ended(&self) -> bool {
        !matches!(self, Status::Scheduled { .. } | Status::Waiting | Status::Running { .. } | Status::Retrying { .. })
    }
}

/// How far a running job is: what [`Ctx::progress`](crate::jobs::Ctx::progress) and [`Ctx::note`](crate::jobs::Ctx::note) told
/// last. Lives in memory only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0: not told.
    pub total: u64,
    /// A line of text; empty: none.
    pub note: String,
}

/// Why a job is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// Its [`max_attempts`](crate::jobs::JobOptions::max_attempts) failed.
    Attempts,
    /// The process died while it ran, [`max_crashes`](crate::jobs::JobOptions::max_crashes) times.
    Crashes,
    /// Its handler said so: [`Fail::reject`](crate::jobs::Fail::reject).
    Rejected,
    /// Its bytes are no value of its kind: they are damaged, of another codec, or no job at all. They are kept as they are.
    Undecodable,
    /// No worker that met it for a day knew its kind.
    UnknownKind,
    /// It was not started in time.
    Expired,
}

impl DeadReason {
    pub(crate) const ALL: [DeadReason; 6] = [
        DeadReason::Attempts,
        DeadReason::Crashes,
        DeadReason::Rejected,
        DeadReason::Undecodable,
        DeadReason::UnknownKind,
        DeadReason::Expired,
    ];
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeadReason::Attempts => "its attempts are used up",
            DeadReason::Crashes => "the process died while it ran",
            DeadReason::Rejected => "rejected",
            DeadReason::Undecodable => "undecodable",
            DeadReason::UnknownKind => "of a kind that no worker knows",
            DeadReason::Expired => "expired",
        })
    }
}

/// What a start failed with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Which start it was, from 1.
    pub attempt: u32,
    /// When it failed.
    pub at: SystemTime,
    /// What kind of failure.
    pub cause: Cause,
    /// The text of the error or panic, up to 1,024 bytes of it.
    pub error: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The handler returned an error.
    Error,
    /// The handler panicked.
    Panic,
    /// The process died.
    Crash,
    /// It took longer than its [`timeout`](crate::jobs::JobOptions::timeout).
    Timeout,
    /// The bytes could not be decoded, or no handler was known.
    Undecodable,
}

/// Which of the lists a job is in: for [`Filter::state`](crate::jobs::Filter::state) and [`JobInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// As [`Status::Scheduled`].
    Scheduled,
    /// As [`Status::Waiting`].
    Waiting,
    /// As [`Status::Running`].
    Running,
    /// As [`Status::Retrying`].
    Retrying,
    /// As [`Status::Dead`] and [`Status::Expired`].
    Dead,
    /// Ended well, with a record.
    Done,
    /// Cancelled, with a record.
    Cancelled,
}

/// All that is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobInfo {
    /// The job.
    pub id: JobId,
    /// The job queue.
    pub queue: String,
    /// The kind it was pushed as; empty for an item that is no job.
    pub kind: String,
    /// Where it is.
    pub state: JobState,
    /// Its priority.
    pub priority: Priority,
    /// The text given with [`Push::tag`](crate::jobs::Push::tag).
    pub tag: Option<String>,
    /// Starts that count: the running one included.
    pub attempts: u32,
    /// Of these, how many ended with the death of the process.
    pub crashes: u32,
    /// How often it was put off by [`Done::Snooze`](crate::jobs::Done::Snooze).
    pub snoozes: u32,
    /// When it was pushed.
    pub pushed: SystemTime,
    /// When it is or was due, if it had to wait.
    pub due: Option<SystemTime>,
    /// When it first failed.
    pub first_failure: Option<SystemTime>,
    /// The last failures, oldest first, three at most.
    pub failures: Vec<Failure>,
    /// Why it is dead, if it is.
    pub dead: Option<DeadReason>,
    /// When it ended, if it has.
    pub ended: Option<SystemTime>,
    /// Bytes of the encoded value.
    pub payload_len: usize,
}

/// How a job ended: [`Jobs::wait`](crate::jobs::Jobs::wait).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Well, with what the handler gave as [`Done::Output`](crate::jobs::Done::Output); empty if it gave none.
    Done(Vec<u8>),
    /// It is dead.
    Dead {
        /// Why.
        reason: DeadReason,
        /// The last error; empty if there was none.
        error: String,
    },
    /// Its handler gave it up without a trace: [`Fail::discard`](crate::jobs::Fail::discard).
    Discarded,
    /// It was cancelled.
    Cancelled,
    /// It ended before this was asked, and no record is kept.
    Finished,
    /// No job ever had this id.
    Unknown,
}

impl fmt::Debug for Outcome {
    /// Without the bytes of an output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(output) => write!(f, "Done({} bytes)", output.len()),
            Outcome::Dead { reason, error } => {
                f.debug_struct("Dead").field("reason", reason).field("error", error).finish()
            }
            Outcome::Discarded => f.write_str("Discarded"),
            Outcome::Cancelled => f.write_str("Cancelled"),
            Outcome::Finished => f.write_str("Finished"),
            Outcome::Unknown => f.write_str("Unknown"),
        }
    }
}

/// What [`Jobs::cancel`](crate::jobs::Jobs::cancel) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cancelled {
    /// The job waited, and is gone.
    Removed,
    /// The job runs: its handler is told. If it then fails it is not tried again.
    Signalled,
    /// The job has ended, or never was.
    TooLate,
}
