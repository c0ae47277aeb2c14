//! Every error: one enum per operation, one umbrella, each with the place where it happened and the cause below it.
//!
//! No error shows a byte of a payload. Queue names are shown escaped.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::ids::ItemId;
use crate::options::State;

/// Why a set or a queue did not open.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another `QueueSet` of this one, has the directory open. Close that one first.
    #[error("{path:?} is locked by {}", match .pid { Some(pid) => format!("process {pid}"), None => "another opener".into() })]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if that could be read.
        pid: Option<u32>,
    },
    /// The directory or its file system cannot be written. [`open_read_only`](crate::QueueSet::open_read_only) may serve.
    #[error("{path:?} is read-only")]
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
    },
    /// The name breaks a rule; nothing was created.
    #[error("queue name {name:?} is not usable: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule.
        reason: &'static str,
    },
    /// The name is an [`Alias`](crate::Alias): one puts to it, and nothing else.
    #[error("{name:?} is an alias")]
    Alias {
        /// The name.
        name: String,
    },
    /// The options contradict themselves or the queue; nothing was created.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The file was written by a later version of this crate. It was not touched.
    #[error("{path:?} has format version {found}, this crate reads up to {supported}")]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The highest version that this crate reads.
        supported: u32,
    },
    /// Bytes that were once durable are no longer what they were. This queue stays closed and untouched, others open;
    /// [`OnDamage::Salvage`](crate::OnDamage::Salvage) opens it without the damaged range.
    #[error("queue {queue:?}: {what} damaged at offset {offset} of {path:?}")]
    Corrupt {
        /// The queue, empty for the set's own header.
        queue: String,
        /// The file.
        path: PathBuf,
        /// The segment, if the file is one.
        segment: Option<u64>,
        /// Where in the file, in bytes.
        offset: u64,
        /// What was expected there.
        what: &'static str,
    },
    /// A segment file is gone, though nothing says that its items were done.
    #[error("queue {queue:?}: segment {segment} is missing from {path:?}")]
    MissingSegment {
        /// The queue.
        queue: String,
        /// The number of the segment.
        segment: u64,
        /// The directory that should hold it.
        path: PathBuf,
    },
    /// A file that stands in the place of a segment belongs elsewhere.
    #[error("queue {queue:?}: {path:?} is not segment {segment} of this queue: {what}")]
    ForeignSegment {
        /// The queue.
        queue: String,
        /// The number that its file name claims.
        segment: u64,
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Something else than a plain file stands in its place: a symbolic link, FIFO, directory, device or hard link.
    #[error("{path:?} is {what}, not a regular file")]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The medium, the quota or the inodes are used up.
    #[error("no space for {path:?}")]
    NoSpace {
        /// What was to be created.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The set's [`State`](crate::State) allows no new queue, and there is none of this name.
    #[error("the set is {state}")]
    State {
        /// The state in force.
        state: State,
    },
    /// The set has been closed.
    #[error("the set is closed")]
    Closed,
    /// This process is a fork of the one that opened the set. Open the set anew after the parent has closed it.
    #[error("the set belongs to the parent process")]
    Forked,
    /// The recovery callback answered `false`.
    #[error("recovery was cancelled")]
    Cancelled,
    /// The system refused.
    #[error("{path:?}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A limit that a put met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// [`QueueOptions::max_items`](crate::QueueOptions::max_items).
    Items,
    /// [`QueueOptions::max_bytes`](crate::QueueOptions::max_bytes).
    Bytes,
    /// [`QueueSetBuilder::max_disk_bytes`](crate::QueueSetBuilder::max_disk_bytes).
    Disk,
}

/// Why a put did not succeed. Except for `Indeterminate`, the item is not in the queue and never will be.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum PutError {
    /// The queue is full, or stayed full for the time given. Nothing was stored.
    #[error("queue {queue:?} is full ({limit:?})")]
    Full {
        /// The queue.
        queue: String,
        /// The limit that it met.
        limit: Limit,
    },
    /// The item, or the batch as a whole, is larger than the queue takes. Nothing was stored.
    #[error("{len} bytes are more than the {max} that the queue takes")]
    TooLarge {
        /// Bytes given.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The medium is full. Nothing was stored; consumers can go on, and puts too once there is space.
    #[error("queue {queue:?}: no space on the medium")]
    NoSpace {
        /// The queue.
        queue: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The device failed while the item was on its way. It is not delivered in this process; after a reopen it may be there
    /// or not. The queue takes no more puts until the set is opened anew.
    #[error("queue {queue:?}: the sync failed, so the item may or may not be there after a reopen")]
    Indeterminate {
        /// The queue.
        queue: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// An earlier sync of this queue failed, so that nothing more can be promised. Nothing was stored. What is durable can
    /// still be read; open the set anew to go on.
    #[error("queue {queue:?}: an earlier sync failed")]
    Failed {
        /// The queue.
        queue: String,
        /// The first failure.
        source: Arc<io::Error>,
    },
    /// The system refused to write. Nothing was stored.
    #[error("queue {queue:?}: writing segment {segment} failed")]
    Io {
        /// The queue.
        queue: String,
        /// The segment that was to be written.
        segment: u64,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// All ids are used up.
    #[error("the queue has no more ids")]
    Exhausted,
    /// The set's [`State`](crate::State) does not allow it. Nothing was changed.
    #[error("the set is {state}")]
    State {
        /// The state in force.
        state: State,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set or queue has been closed, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Why a get, open or peek gave no answer. An empty queue is no error but `Ok(None)`.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum GetError {
    /// The bytes of an item are no longer what was put. It stays at the head, so the error comes again, until the set is
    /// opened with [`OnDamage::Salvage`](crate::OnDamage::Salvage).
    #[error("queue {queue:?}: segment {segment} is damaged at offset {offset}")]
    Corrupt {
        /// The queue.
        queue: String,
        /// The segment.
        segment: u64,
        /// Offset of the damaged frame in bytes.
        offset: u64,
        /// The item, if it is known which.
        id: Option<ItemId>,
    },
    /// The system refused to read. The item stays where it was.
    #[error("queue {queue:?}: reading segment {segment} at offset {offset} failed")]
    Io {
        /// The queue.
        queue: String,
        /// The segment.
        segment: u64,
        /// Offset in bytes.
        offset: u64,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The set's [`State`](crate::State) does not allow it. Nothing was changed.
    #[error("the set is {state}")]
    State {
        /// The state in force.
        state: State,
    },
    /// The set is open for reading only: `peek` works, taking does not.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set or queue has been closed, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Why an open item could not be closed. It is, or will be, delivered again.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The mark could not be stored.
    #[error("queue {queue:?}: marking an item of segment {segment} failed")]
    Io {
        /// The queue.
        queue: String,
        /// The segment.
        segment: u64,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The lease of the item has ended: it was given back, and may be in other hands. Nothing was changed.
    #[error("the lease of the item has ended")]
    LeaseEnded,
    /// The close was stored but could not be made durable ([`close_synced`](crate::OpenItem::close_synced)).
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The set was closed before, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// What stood in the way of a move.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MoveFault {
    /// The new item could not be put. After [`PutError::Indeterminate`] it may be there after a reopen, and then takes the place
    /// of the old one if that still waits.
    #[error(transparent)]
    Put(#[from] PutError),
    /// The dead letters' queue does not open.
    #[error("queue {queue:?} does not open")]
    Open {
        /// The queue.
        queue: String,
        /// Why.
        source: OpenError,
    },
    /// The queue has no [`QueueOptions::dead_letters`](crate::QueueOptions::dead_letters).
    #[error("the queue names no queue for dead letters")]
    NoDeadLetters,
    /// An earlier sync of the item's own queue failed, so that its end could not be made durable. Nothing was stored; open the
    /// set anew to go on.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The other queue keeps no journal, so that a crash would take the item.
    #[error("queue {queue:?} keeps no journal")]
    NoJournal {
        /// The other queue.
        queue: String,
    },
    /// The other queue is of another set.
    #[error("the queues are of different sets")]
    OtherSet,
    /// The lease of the item has ended: it was given back, and may be in other hands.
    #[error("the lease of the item has ended")]
    LeaseEnded,
    /// That items move between these queues could not be noted.
    #[error("queue {queue:?}: noting the move failed")]
    Io {
        /// The queue.
        queue: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The set was closed before, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

impl From<CloseError> for MoveFault {
    fn from(error: CloseError) -> MoveFault {
        match error {
            CloseError::Io { queue, source, .. } => MoveFault::Io { queue, source },
            CloseError::LeaseEnded => MoveFault::LeaseEnded,
            CloseError::Sync(error) => MoveFault::Sync(error),
            CloseError::Closed => MoveFault::Closed,
            CloseError::Forked => MoveFault::Forked,
        }
    }
}

/// Why something could not be made durable.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SyncError {
    /// A sync of this queue failed, now or earlier. Nothing put since the last good sync is known to be durable.
    #[error("queue {queue:?}: the sync failed")]
    Failed {
        /// The queue.
        queue: String,
        /// The first failure.
        source: Arc<io::Error>,
    },
    /// No such item was ever put.
    #[error("item {id} was never put")]
    UnknownId {
        /// The id given.
        id: ItemId,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set or queue has been closed, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Why options were refused. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A value is out of its range.
    #[error("option {field}: {reason}")]
    Invalid {
        /// The field of [`QueueOptions`](crate::QueueOptions).
        field: &'static str,
        /// What it takes.
        reason: &'static str,
    },
    /// Whether a queue has a journal is decided when it is created. Delete the queue, or clear it in a set of its own.
    #[error("queue {queue:?} holds {items} items; `journal` cannot be changed")]
    Journal {
        /// The queue.
        queue: String,
        /// Items waiting in it.
        items: u64,
    },
    /// The options that would be in force in a queue are wrong.
    #[error("queue {queue:?}: {source}")]
    Queue {
        /// The queue.
        queue: String,
        /// What is wrong.
        source: Box<OptionsError>,
    },
    /// The options could not be stored.
    #[error("{path:?}: {source}")]
    Io {
        /// The queue's header file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set or queue has been closed, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Why an alias was not set or removed. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AliasError {
    /// The name of the alias or of a target breaks a rule.
    #[error("queue name {name:?} is not usable: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule.
        reason: &'static str,
    },
    /// There is a queue of this name.
    #[error("{alias:?} is a queue")]
    IsQueue {
        /// The name.
        alias: String,
    },
    /// The alias would stand for itself, at once or through other aliases.
    #[error("alias {alias:?} would stand for itself")]
    Ring {
        /// The alias.
        alias: String,
    },
    /// No queue was named; [`remove_alias`](crate::QueueSet::remove_alias) removes an alias.
    #[error("alias {alias:?} stands for no queue")]
    NoTargets {
        /// The alias.
        alias: String,
    },
    /// An alias would stand for more than 1000 queues, or all of them would take more than 1 MiB.
    #[error("too many queues for alias {alias:?}")]
    TooMany {
        /// The alias.
        alias: String,
    },
    /// The aliases could not be stored.
    #[error("{path:?}: {source}")]
    Io {
        /// The file of aliases.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set has been closed.
    #[error("the set is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Why a put to an alias did not succeed. But for [`PutError::Indeterminate`], nothing was stored in any of its queues.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AliasPutError {
    /// A queue refused the item.
    #[error("alias {alias:?}, queue {queue:?}")]
    Put {
        /// The alias.
        alias: String,
        /// The queue.
        queue: String,
        /// Why. After [`PutError::Indeterminate`] the other queues have the item.
        source: PutError,
    },
    /// A queue does not open.
    #[error("alias {alias:?}, queue {queue:?}")]
    Open {
        /// The alias.
        alias: String,
        /// The queue.
        queue: String,
        /// Why.
        source: Box<OpenError>,
    },
    /// The alias was removed.
    #[error("there is no alias {alias:?}")]
    Gone {
        /// The name.
        alias: String,
    },
}

/// Why the state of a set was not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// A stricter state is on its way already: wait for it, or go back to the present one first, which ends it.
    #[error("the set is {in_force} and is about to be {pending}")]
    Pending {
        /// The state in force.
        in_force: State,
        /// The one to come.
        pending: State,
    },
    /// The state could not be stored.
    #[error("{path:?}: {source}")]
    Io {
        /// The set's header file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set has been closed.
    #[error("the set is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}

/// Any error of this crate, for callers that use `?` across operations; also the error of `clear`, `delete` and
/// `close`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Opening failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A put failed.
    #[error(transparent)]
    Put(#[from] PutError),
    /// A get, open or peek failed.
    #[error(transparent)]
    Get(#[from] GetError),
    /// Closing an item failed.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// Moving an item failed; the item was aborted.
    #[error(transparent)]
    Move(#[from] MoveFault),
    /// A sync failed.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// Options were refused.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The name is an [`Alias`](crate::Alias), which only [`remove_alias`](crate::QueueSet::remove_alias) removes.
    #[error("{name:?} is an alias")]
    Alias {
        /// The name.
        name: String,
    },
    /// An alias was not changed.
    #[error(transparent)]
    ChangeAlias(#[from] AliasError),
    /// A put to an alias failed.
    #[error(transparent)]
    AliasPut(#[from] AliasPutError),
    /// The state of the set was not changed.
    #[error(transparent)]
    ChangeState(#[from] StateError),
    /// The system refused.
    #[error("{path:?}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The set's [`State`](crate::State) does not allow it. Nothing was changed.
    #[error("the set is {state}")]
    State {
        /// The state in force.
        state: State,
    },
    /// The set is open for reading only.
    #[error("the set is open read-only")]
    ReadOnly,
    /// The set or queue has been closed, or the queue deleted.
    #[error("the queue is closed")]
    Closed,
    /// This process is a fork of the one that opened the set.
    #[error("the set belongs to the parent process")]
    Forked,
}
