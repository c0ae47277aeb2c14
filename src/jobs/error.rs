//! Why something with jobs did not succeed: [`JobError`].

use std::sync::Arc;

use thiserror::Error;

use crate::error::{CloseError, Error as AnyError, GetError, MoveFault, OpenError, PutError, SyncError};
use crate::jobs::id::JobId;

/// Why something with jobs did not succeed. Unless it says otherwise, nothing was changed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum JobError {
    /// A name that a job queue cannot have.
    #[error("job queue name {name:?} is not usable: {reason}")]
    QueueName {
        /// The name.
        name: String,
        /// The rule.
        reason: &'static str,
    },
    /// The queue of this name was made by other means and holds items, which are no jobs. Use another name, or empty it.
    #[error("queue {queue:?} holds items that are no jobs")]
    NotJobs {
        /// The queue.
        queue: String,
    },
    /// There is no such job queue.
    #[error("there is no job queue {queue:?}")]
    UnknownQueue {
        /// The name.
        queue: String,
    },
    /// A list of patterns with an empty part, or a `!` inside one.
    #[error("pattern {pattern:?} is not usable")]
    Pattern {
        /// The list.
        pattern: String,
    },
    /// A value is out of its range, or contradicts another.
    #[error("option {field}: {reason}")]
    Options {
        /// The field or method.
        field: &'static str,
        /// What it takes.
        reason: &'static str,
    },
    /// The name of a kind or alias is empty or longer than 100 bytes, or two handlers of a worker take the same one.
    #[error("job kind {kind:?}: {reason}")]
    Kind {
        /// The kind.
        kind: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The codec refused the value.
    #[error("job kind {kind:?}: the value could not be encoded")]
    Encode {
        /// The kind.
        kind: &'static str,
        /// The codec's reason.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A key, tag, checkpoint, note or transaction is larger than it may be.
    #[error("{what} of {len} bytes: at most {max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A million delayed jobs, or as many as [`JobsBuilder::max_delayed`](crate::jobs::JobsBuilder::max_delayed) says, are there
    /// already.
    #[error("queue {queue:?} has {max} delayed jobs, and takes no more")]
    TooManyDelayed {
        /// The queue.
        queue: String,
        /// How many it may have.
        max: u64,
    },
    /// A filter without a condition; [`Filter::all`](crate::jobs::Filter::all) says that all are meant.
    #[error("the filter says nothing; Filter::all() means all")]
    EmptyFilter,
    /// The job has ended, or was taken from this handler.
    #[error("job {id} is no longer in this handler's hands")]
    NotRunning {
        /// The job.
        id: JobId,
    },
    /// A queue of the set did not open.
    #[error(transparent)]
    Open(Arc<OpenError>),
    /// A job could not be stored.
    #[error(transparent)]
    Put(#[from] PutError),
    /// A job could not be read.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A job could not be moved; it is where it was.
    #[error("a job was not moved: {reason}")]
    NotMoved {
        /// Why.
        reason: String,
    },
    /// The end of a job could not be marked; it will be started again.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// What was stored could not be made durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] Arc<std::io::Error>),
    /// Anything else that the queues answered.
    #[error(transparent)]
    Queue(Arc<AnyError>),
    /// The set was closed.
    #[error("the set is closed")]
    Closed,
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
}

impl JobError {
    /// A move that did not happen.
    pub(crate) fn of_move(fault: &MoveFault) -> JobError {
        match fault {
            MoveFault::Put(error) => JobError::Put(error.clone()),
            MoveFault::Sync(error) => JobError::Sync(error.clone()),
            MoveFault::Closed => JobError::Closed,
            fault => JobError::NotMoved { reason: fault.to_string() },
        }
    }
}

impl From<OpenError> for JobError {
    fn from(error: OpenError) -> JobError {
        match error {
            OpenError::Closed => JobError::Closed,
            error => JobError::Open(Arc::new(error)),
        }
    }
}

impl From<MoveFault> for JobError {
    fn from(fault: MoveFault) -> JobError {
        JobError::of_move(&fault)
    }
}

impl From<AnyError> for JobError {
    fn from(error: AnyError) -> JobError {
        match error {
            AnyError::Open(error) => error.into(),
            AnyError::Put(error) => error.into(),
            AnyError::Get(error) => error.into(),
            AnyError::Close(error) => error.into(),
            AnyError::Move(fault) => fault.into(),
            AnyError::Sync(error) => error.into(),
            AnyError::Closed => JobError::Closed,
            AnyError::ReadOnly => JobError::ReadOnly,
            error => JobError::Queue(Arc::new(error)),
        }
    }
}
