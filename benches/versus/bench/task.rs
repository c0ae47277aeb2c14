//! What a child process is told to do, and what it tells.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub work: Work,
    pub subject: String,
    pub sync: Durable,
    /// Bytes of a payload.
    pub size: usize,
    /// A hundred items in one call.
    pub batch: bool,
    /// Threads, pairs of threads or queues.
    pub threads: usize,
    /// Measured time in ms, where the work has no fixed size.
    pub ms: u64,
    /// Items, where it has.
    pub items: u64,
    /// Most payload bytes on the disk.
    pub bytes: u64,
    /// Items a second in open loop; 0 for as fast as it goes.
    pub rate: f64,
    pub dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Puts and takes in turns, over and over the same disk space.
    Turns,
    /// Puts into a growing backlog.
    Grow,
    /// Pairs of producers and consumers.
    Pairs,
    /// Threads that each wait for the device.
    Synced,
    /// One thread appends a thousand and then waits once.
    Append,
    /// One thread a queue, each waiting for the device.
    Queues,
    /// A consumer that sleeps when the item comes.
    Wake,
    /// Two threads and two queues.
    PingPong,
    /// Leaves a backlog behind, closed in good order.
    Fill,
    /// Leaves a backlog behind and is killed.
    FillKilled,
    /// Opens what was left.
    Reopen,
    /// Disk and memory of a backlog.
    Footprint,
    /// Many bytes through, the consumer beside the producer.
    KeptUp,
    /// Many bytes in, no consumer.
    Growing,
    /// One producer and one consumer in open loop.
    Latency,
    /// 100,000 queues of one set.
    ManyQueues,
    /// A backlog far beyond the memory budget.
    BigBacklog,
    /// One item in a thousand is never closed.
    Stragglers,
    /// The cost of a put and a get behind a backlog.
    Depth,
    /// Waiting consumers.
    Waiters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durable {
    No,
    Each,
    Every,
}

/// By name; rates in items a second, times in microseconds, sizes in bytes.
pub type Told = BTreeMap<String, f64>;

#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub told: Told,
    #[serde(default)]
    pub note: Option<String>,
}

/// What stands before the answer on a child's output.
pub const MARK: &str = "answer: ";
