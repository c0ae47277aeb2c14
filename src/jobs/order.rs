//! Which queue's turn it is: [`QueueOrder`].

/// From which queues a worker takes jobs, and in which order.
///
/// ```
/// use kestrel_core::jobs::QueueOrder;
/// let order = QueueOrder::weighted([("mail", 3), ("reports", 1)]);
/// let order: QueueOrder = "mail*,!mail.bulk".into();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueOrder {
    /// From the first of these that has a job. What is at the end of the list starves while the first ones are never empty.
    Strict(Vec<String>),
    /// In turns: of jobs that wait in all of them, each queue's share is its weight's. Exact, not by chance. Weights are 1 to
    /// 10,000.
    Weighted(Vec<(String, u32)>),
    /// From all job queues whose names match a list of patterns, `*` standing for any text and a leading `!` excluding: also
    /// from those made later, and in the order of their names, as `Strict`.
    Matching(String),
}

impl Default for QueueOrder {
    /// All job queues of the set.
    fn default() -> Self {
        QueueOrder::Matching("*".to_owned())
    }
}

impl QueueOrder {
    /// [`QueueOrder::Strict`].
    pub fn strict<S: Into<String>>(queues: impl IntoIterator<Item = S>) -> QueueOrder {
        QueueOrder::Strict(queues.into_iter().map(Into::into).collect())
    }

    /// [`QueueOrder::Weighted`].
    pub fn weighted<S: Into<String>>(queues: impl IntoIterator<Item = (S, u32)>) -> QueueOrder {
        QueueOrder::Weighted(queues.into_iter().map(|(name, weight)| (name.into(), weight)).collect())
    }

    /// [`QueueOrder::Matching`].
    pub fn matching(patterns: impl Into<String>) -> QueueOrder {
        QueueOrder::Matching(patterns.into())
    }
}

impl From<&str> for QueueOrder {
    /// A name or patterns: [`QueueOrder::Matching`].
    fn from(patterns: &str) -> QueueOrder {
        QueueOrder::matching(patterns)
    }
}
