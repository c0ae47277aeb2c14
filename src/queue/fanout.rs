//! Fanout: named readers beside a queue's own, over one journal.
//!
//! ```text
//!   put ──► journal ──┬─► the queue's own reader      Core "q"    (home)
//!                     ├─► reader "a"                  Core "q+a"
//!                     └─► reader "b"                  Core "q+b"
//! ```
//!
//! Each named reader is a [`Core`] of its own, so that every verb works on it as on a queue; all of them share the journal, and
//! items are stored once. A put looks at other readers only where an item is not for all of them, or where one has a limit.
//! What belongs to the journal as a whole (freeing, moves that come here, the archive) is done by the queue: its readers'
//! *home*.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::error::{Error, OpenError, OptionsError};
use crate::ids::{Cursor, ItemId};
use crate::journal::lane::Lane;
use crate::journal::readers::{self, ReaderLanes};
use crate::journal::segment::Segment;
use crate::options::{QueueOptions, ReaderOptions};
use crate::queue::core::Core;
use crate::reader::Reader;
use crate::stats::RecoveryReport;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock};

/// Whom a put is for: see [`crate::journal::NewItem::only`].
pub(super) use crate::journal::NAMED_READERS;

/// A core's part in a fanout.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    /// The queue whose reader this is; `None`: this is the queue.
    pub(crate) home: Option<Weak<Core>>,
    /// A named reader's lanes.
    pub(crate) lanes: Option<Arc<ReaderLanes>>,
    /// A named reader's own options. Held while they or the home's change.
    own: Mutex<ReaderOptions>,
    /// A queue's named readers, also one that is just being created. Lock 2.5: the tail lock comes before it, readers' locks
    /// after it.
    named: RwLock<BTreeMap<String, Arc<Core>>>,
    any: AtomicBool,
    /// It is durable, and may be given out.
    is_shown: AtomicBool,
    /// Held while a reader comes or goes, or options are handed down.
    changing: Mutex<()>,
    /// Items go to named readers only.
    only_named: AtomicBool,
    /// Items put there while there was none.
    unread: AtomicU64,
}

impl Fanout {
    pub(crate) fn of_queue(fanout_only: bool) -> Fanout {
        Fanout { only_named: AtomicBool::new(fanout_only), ..Fanout::default() }
    }

    fn of_reader(home: Weak<Core>, lanes: Arc<ReaderLanes>, own: ReaderOptions, is_shown: bool) -> Fanout {
        Fanout {
            home: Some(home),
            lanes: Some(lanes),
            own: Mutex::new(own),
            is_shown: AtomicBool::new(is_shown),
            ..Fanout::default()
        }
    }

    /// Whether a queue has named readers.
    #[inline]
    pub(super) fn has_named(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn set_only(&self, only_named: bool) {
        self.only_named.store(only_named, Ordering::Release);
    }

    /// Whom a put is for; `None`: for all.
    #[inline]
    pub(super) fn only(&self) -> Option<u64> {
        match &self.lanes {
            Some(lanes) => Some(lanes.id),
            None => self.only_named.load(Ordering::Acquire).then_some(NAMED_READERS),
        }
    }

    /// Whether a queue's own reader gets nothing.
    pub(super) fn is_passed(&self) -> bool {
        self.only_named.load(Ordering::Acquire)
    }

    pub(super) fn count(&self) -> u64 {
        self.named.read().len() as u64
    }

    pub(super) fn unread(&self) -> u64 {
        self.unread.load(Ordering::Relaxed)
    }

    /// Nobody reads what was put; it is not stored. The id names nothing.
    pub(super) fn leave_unread(&self, count: u64) -> ItemId {
        self.unread.fetch_add(count, Ordering::Relaxed);
        ItemId(0)
    }
}

/// Checks a reader's name; the error names the whole.
pub(crate) fn check_name(whole: &str, reader: &str) -> Result<(), OpenError> {
    readers::check_name(reader).map_err(|reason| OpenError::InvalidName { name: whole.to_owned(), reason })
}

impl Core {
    /// The queue whose journal this reads.
    pub(super) fn home(&self) -> Arc<Core> {
        // Both are there as long as anybody has `self`, unless the queue has gone: then nobody asks what is done here.
        let home = self.fanout.home.as_ref().unwrap_or(&self.me);
        home.upgrade()
            .or_else(|| self.me.upgrade())
            .unwrap_or_else(|| unreachable!("a core is not used without its owner"))
    }

    /// Does something with the queue and each of its named readers.
    pub(super) fn each(&self, mut with: impl FnMut(&Core)) {
        match &self.fanout.home {
            None => {
                with(self);
                self.each_named(with);
            }
            Some(home) => match home.upgrade() {
                Some(home) => {
                    with(&home);
                    home.each_named(with);
                }
                None => with(self),
            },
        }
    }

    /// Does something with each named reader of this queue.
    pub(super) fn each_named(&self, mut with: impl FnMut(&Core)) {
        if self.fanout.has_named() {
            self.fanout.named.read().values().for_each(|named| with(named));
        }
    }

    /// All that an item for `only` is not for. Under the tail lock.
    pub(super) fn not_addressed(&self, only: u64) -> Vec<Arc<Core>> {
        let home = self.home();
        let mut others = Vec::new();
        if only != NAMED_READERS {
            let named = home.fanout.named.read();
            let is_other = |named: &&Arc<Core>| named.fanout.lanes.as_ref().is_none_or(|lanes| lanes.id != only);
            others.extend(named.values().filter(is_other).cloned());
        }
        others.push(home);
        others
    }

    /// What the origin of an item says that leaves here for another queue.
    pub(crate) fn origin_id(&self) -> u64 {
        self.fanout.lanes.as_ref().map_or_else(|| self.journal.queue_id(), |lanes| lanes.id)
    }

    pub(super) fn lane(&self, segment: &Segment, ordinal: u32) -> std::io::Result<Option<Lane>> {
        match &self.fanout.lanes {
            None => segment.lane(ordinal),
            Some(lanes) => lanes.lane(segment.first_id + u64::from(ordinal)),
        }
    }

    pub(super) fn mark_done(&self, segment: &Segment, ordinal: u32) -> std::io::Result<bool> {
        match &self.fanout.lanes {
            None => segment.mark_done(ordinal),
            Some(lanes) => lanes.mark_done(segment, ordinal),
        }
    }

    // ---- readers come and go

    pub(crate) fn named(&self, name: &str) -> Option<Arc<Core>> {
        let named = self.fanout.named.read();
        named.get(name).filter(|named| named.fanout.is_shown.load(Ordering::Acquire)).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let named = self.fanout.named.read();
        let shown = named.iter().filter(|(_, named)| named.fanout.is_shown.load(Ordering::Acquire));
        shown.map(|(name, _)| name.clone()).collect()
    }

    /// Finds the readers that an earlier process has left. Called before anybody has the queue.
    pub(crate) fn load_readers(&self) -> Result<(), OpenError> {
        let is_clean = self.report.lock().clean;
        let io = |source| OpenError::Io { path: self.journal.context.dir.clone().unwrap_or_default(), source };
        for lanes in self.journal.load_readers(is_clean)? {
            let tail = self.journal.tail.lock();
            let backlog = self.journal.backlog(&tail, &lanes, !is_clean).map_err(io)?;
            self.journal.give_back(&lanes, &backlog.held);
            let (set, bytes) = lanes.own_options();
            let own = ReaderOptions::from_bytes(set, &bytes).ok_or_else(|| OpenError::Corrupt {
                queue: self.name.clone(),
                path: self.journal.context.dir.clone().unwrap_or_default(),
                segment: None,
                offset: 0,
                what: "options of a reader",
            })?;
            let report = RecoveryReport {
                clean: is_clean,
                items: backlog.items,
                redelivered: backlog.held.len() as u64,
                held: backlog.held.iter().map(|id| ItemId(*id)).collect(),
                ..RecoveryReport::default()
            };
            let end = Cursor::behind(tail.newest());
            let front = Arc::clone(&self.journal.front);
            let first = backlog.first;
            let reader = Reader::beginning(front, Some(Arc::clone(&lanes)), first, end, backlog.items, backlog.bytes);
            self.join_named(lanes, reader, own, report, true);
        }
        Ok(())
    }

    fn join_named(
        &self,
        lanes: Arc<ReaderLanes>,
        reader: Reader,
        own: ReaderOptions,
        report: RecoveryReport,
        is_shown: bool,
    ) -> Arc<Core> {
        let (name, create_ms) = (lanes.name(), lanes.create_ms());
        let options = own.over(&self.options.read());
        let core = Core::new(
            format!("{}+{name}", self.name),
            Arc::clone(&self.shared),
            Arc::clone(&self.journal),
            reader,
            options,
            report,
            create_ms,
            self.has_journal,
            Fanout::of_reader(self.me.clone(), lanes, own, is_shown),
        );
        self.fanout.named.write().insert(name, Arc::clone(&core));
        self.fanout.any.store(true, Ordering::Release);
        core
    }

    pub(crate) fn named_or_new(&self, name: &str, options: &ReaderOptions) -> Result<Arc<Core>, OpenError> {
        let whole = || format!("{}+{name}", self.name);
        if self.fanout.home.is_some() {
            return Err(OpenError::InvalidName { name: whole(), reason: "a reader has no readers" });
        }
        check_name(&whole(), name)?;
        if self.is_forked() {
            return Err(OpenError::Forked);
        }
        if let Some(named) = self.named(name) {
            return Ok(named);
        }
        if self.shared.read_only {
            let path = self.journal.context.dir.clone().unwrap_or_default();
            return Err(OpenError::ReadOnly { path });
        }
        let _changing = self.fanout.changing.lock();
        if let Some(named) = self.named(name) {
            return Ok(named);
        }
        options.over(&self.options.read()).check_for(&whole())?;
        let io = |source: std::io::Error| {
            let path = self.journal.context.dir.clone().unwrap_or_default();
            match crate::journal::is_no_space(&source) {
                true => OpenError::NoSpace { path, source },
                false => OpenError::Io { path, source },
            }
        };
        // It takes its place under the tail lock, which parts all puts in two: those before are none of its. Until it is durable
        // nobody is given it; what comes meanwhile waits for it.
        let (lanes, core) = {
            let tail = self.journal.tail.lock();
            if tail.closed {
                return Err(OpenError::Closed);
            }
            let create_ms = self.shared.clock.exact_ms();
            let journal = &self.journal;
            let lanes =
                journal.begin_reader(&tail, name, options.from_oldest, options.to_bytes(), create_ms).map_err(io)?;
            let backlog = journal.backlog(&tail, &lanes, false);
            let backlog = backlog.inspect_err(|_| journal.drop_reader(&lanes)).map_err(io)?;
            let (front, end) = (Arc::clone(&journal.front), journal.end_of(&tail));
            let (items, bytes) = (backlog.items, backlog.bytes);
            let reader = Reader::beginning(front, Some(Arc::clone(&lanes)), backlog.first, end, items, bytes);
            let report = RecoveryReport { clean: true, items, ..RecoveryReport::default() };
            let core = self.join_named(Arc::clone(&lanes), reader, options.clone(), report, false);
            (lanes, core)
        };
        if let Err(error) = self.journal.store_reader(&lanes) {
            self.forget_named(name);
            self.journal.drop_reader(&lanes);
            self.ring_free();
            return Err(io(error));
        }
        core.fanout.is_shown.store(true, Ordering::Release);
        Ok(core)
    }

    fn forget_named(&self, name: &str) {
        let _tail = self.journal.tail.lock();
        let mut named = self.fanout.named.write();
        named.remove(name);
        self.fanout.any.store(!named.is_empty(), Ordering::Release);
    }

    /// Removes a named reader; `false` if there was none.
    pub(super) fn delete_named(&self, name: &str) -> Result<bool, Error> {
        let core = {
            let _changing = self.fanout.changing.lock();
            let Some(core) = self.named(name) else { return Ok(false) };
            let Some(lanes) = &core.fanout.lanes else { return Ok(false) };
            if self.reader.lock().closed {
                return Err(Error::Closed);
            }
            let path = self.journal.context.dir.clone().unwrap_or_default();
            self.journal.remove_reader(lanes).map_err(|source| Error::Io { path, source })?;
            self.forget_named(name);
            core
        };
        // Under no lock: it wakes who waits.
        core.shut(false);
        self.shared.moves.leave(&core.name);
        // What only it held.
        self.ring_free();
        Ok(true)
    }

    // ---- options

    /// Hands the queue's options down, where its readers have none of their own.
    pub(super) fn hand_down_options(&self) {
        if !self.fanout.has_named() {
            return;
        }
        let _changing = self.fanout.changing.lock();
        let named: Vec<Arc<Core>> = self.fanout.named.read().values().cloned().collect();
        for core in named {
            let own = core.fanout.own.lock();
            let options = own.over(&self.options.read());
            core.apply(options);
        }
    }

    /// Puts other options of a named reader in force; what differs from the queue's is its own from now on.
    pub(super) fn set_own_options(&self, options: QueueOptions) -> Result<(), OptionsError> {
        let Some(lanes) = &self.fanout.lanes else { return Ok(()) };
        let home = self.home();
        let _changing = home.fanout.changing.lock();
        let own = ReaderOptions::difference(&home.options.read(), &options)?;
        let (set, bytes) = own.to_bytes();
        lanes.store_options(set, bytes).map_err(|source| OptionsError::Io {
            path: self.journal.context.dir.clone().unwrap_or_default(),
            source,
        })?;
        *self.fanout.own.lock() = own;
        self.apply(options);
        Ok(())
    }
}
