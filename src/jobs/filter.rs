//! Which jobs are meant: [`Filter`].

use std::time::Duration;

use crate::jobs::id::JobId;
use crate::jobs::status::{DeadReason, JobState};

/// Which jobs are meant: all conditions given must hold.
///
/// ```
/// use kestrel_core::jobs::Filter;
/// use std::time::Duration;
/// let filter = Filter::new().queue("mail").error_contains("timed out").older_than(Duration::from_secs(3600));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    pub(crate) all: bool,
    pub(crate) queue: Option<String>,
    pub(crate) state: Option<JobState>,
    pub(crate) kind: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) reason: Option<DeadReason>,
    pub(crate) older_than: Option<Duration>,
    pub(crate) ids: Option<Vec<JobId>>,
    pub(crate) limit: Option<usize>,
}

impl Filter {
    /// No condition. [`requeue_dead`](crate::jobs::Jobs::requeue_dead) and [`purge_dead`](crate::jobs::Jobs::purge_dead) refuse
    /// such a filter: say [`Filter::all`].
    pub fn new() -> Filter {
        Filter::default()
    }

    /// All jobs, said aloud.
    pub fn all() -> Filter {
        Filter { all: true, ..Filter::default() }
    }

    /// Jobs of this queue.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Filter {
        self.queue = Some(queue.into());
        self
    }

    /// Jobs in this state.
    #[must_use]
    pub fn state(mut self, state: JobState) -> Filter {
        self.state = Some(state);
        self
    }

    /// Jobs of this kind, by the name that is stored.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Filter {
        self.kind = Some(kind.into());
        self
    }

    /// Jobs with exactly this tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Filter {
        self.tag = Some(tag.into());
        self
    }

    /// Jobs whose last error contains this text.
    #[must_use]
    pub fn error_contains(mut self, text: impl Into<String>) -> Filter {
        self.error = Some(text.into());
        self
    }

    /// Jobs that are dead for this reason.
    #[must_use]
    pub fn reason(mut self, reason: DeadReason) -> Filter {
        self.reason = Some(reason);
        self
    }

    /// Dead jobs and records that ended longer ago than this; other jobs that were pushed longer ago.
    #[must_use]
    pub fn older_than(mut self, age: Duration) -> Filter {
        self.older_than = Some(age);
        self
    }

    /// Only these.
    #[must_use]
    pub fn ids(mut self, ids: impl IntoIterator<Item = JobId>) -> Filter {
        self.ids = Some(ids.into_iter().collect());
        self
    }

    /// At most so many, the first in the order of the listing.
    #[must_use]
    pub fn limit(mut self, most: usize) -> Filter {
        self.limit = Some(most);
        self
    }

    /// Whether it says nothing. A limit alone is no condition.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Filter { limit: self.limit, ..Filter::default() }
    }
}
