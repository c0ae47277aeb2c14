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
use crate::journal::readers::{self, Backlog, Past, ReaderLanes, View};
use crate::journal::segment::Segment;
use crate::journal::{NAMED_READERS, Tail};
use crate::options::{QueueOptions, QueueOverrides, ReaderOptions};
use crate::queue::core::Core;
use crate::reader::Reader;
use crate::stats::RecoveryReport;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock};

/// Whom a put is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    All,
    /// As [`crate::journal::NewItem::only`] says it.
    Only(u64),
    Nobody,
}

/// A core's part in a fanout.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    /// The queue whose reader this is; `None`: this is the queue.
    pub(crate) home: Option<Weak<Core>>,
    /// A named reader's lanes.
    pub(crate) lanes: Option<Arc<ReaderLanes>>,
    /// What the builder of the set gives the queue's named readers, before what these have stored.
    presets: BTreeMap<String, QueueOverrides>,
    /// A queue's named readers, also one that is just being created. Lock 2.5: the tail lock comes before it, readers' locks
    /// after it.
    named: RwLock<BTreeMap<String, Arc<Core>>>,
    any: AtomicBool,
    /// It is durable, and may be given out.
    is_shown: AtomicBool,
    /// Held while a reader comes or goes.
    changing: Mutex<()>,
    /// Items go to named readers only.
    only_named: AtomicBool,
    /// Items put there while there was none.
    unread: AtomicU64,
}

impl Fanout {
    pub(crate) fn of_queue(fanout_only: bool, presets: BTreeMap<String, QueueOverrides>) -> Fanout {
        Fanout { only_named: AtomicBool::new(fanout_only), presets, ..Fanout::default() }
    }

    fn of_reader(home: Weak<Core>, lanes: Arc<ReaderLanes>, is_shown: bool) -> Fanout {
        Fanout { home: Some(home), lanes: Some(lanes), is_shown: AtomicBool::new(is_shown), ..Fanout::default() }
    }

    /// Whether a queue has named readers.
    #[inline]
    pub(super) fn has_named(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn set_only(&self, only_named: bool) {
        self.only_named.store(only_named, Ordering::Release);
    }

    /// Whether a queue's own reader gets nothing.
    pub(super) fn is_passed(&self) -> bool {
        self.only_named.load(Ordering::Acquire)
    }

    pub(super) fn count(&self) -> u64 {
        self.named.read().len() as u64
    }

    /// The cores of a queue's named readers.
    pub(super) fn all(&self) -> Vec<Arc<Core>> {
        self.named.read().values().cloned().collect()
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
    pub(crate) fn each(&self, mut with: impl FnMut(&Core)) {
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

    /// Does something with a queue and each of its named readers, for who may hold any lock. `false`: not with all of them.
    pub(super) fn try_each(&self, mut with: impl FnMut(&Core)) -> bool {
        with(self);
        if !self.fanout.has_named() {
            return true;
        }
        let Some(named) = self.fanout.named.try_read() else { return false };
        named.values().for_each(|named| with(named));
        true
    }

    /// Does something with each named reader of this queue.
    pub(super) fn each_named(&self, mut with: impl FnMut(&Core)) {
        if self.fanout.has_named() {
            self.fanout.named.read().values().for_each(|named| with(named));
        }
    }

    /// Whom a put is for. Under the tail lock, which keeps readers from coming and going.
    #[inline]
    pub(super) fn goal(&self) -> Goal {
        match &self.fanout.lanes {
            Some(lanes) => Goal::Only(lanes.id),
            None if !self.fanout.is_passed() => Goal::All,
            None if self.fanout.has_named() => Goal::Only(NAMED_READERS),
            None => Goal::Nobody,
        }
    }

    /// Does something with each whom a put is for.
    pub(super) fn each_addressed(&self, mut with: impl FnMut(&Core)) {
        if !self.fanout.is_passed() {
            with(self);
        }
        self.each_named(with);
    }

    /// Marks the last `count` items of the tail, which are for others. Under the tail lock. The queue's own reader has its marks
    /// since before there were frames.
    pub(super) fn pass_by(&self, tail: &Tail, count: u64) {
        if let Some(lanes) = &self.fanout.lanes {
            // A mark that cannot be stored is stored when the reader meets the item, which says for whom it is.
            let _ = self.journal.pass_named(tail, u32::try_from(count).unwrap_or(u32::MAX), lanes);
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

    /// The segment of this number as this reader sees it; `None`: it is gone.
    pub(super) fn view(&self, number: u64) -> std::io::Result<Option<View>> {
        let segment = self.journal.segment(number)?;
        Ok(segment.map(|segment| View::new(segment, self.fanout.lanes.as_ref())))
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

    pub(crate) fn names(&self) -> Vec<String> {
        let named = self.fanout.named.read();
        let shown = named.iter().filter(|(_, named)| named.fanout.is_shown.load(Ordering::Acquire));
        shown.map(|(name, _)| name.clone()).collect()
    }

    /// Finds the readers that an earlier process has left. Called before anybody has the queue.
    pub(crate) fn load_readers(&self) -> Result<(), OpenError> {
        let is_clean = self.report.lock().clean;
        let dir = || self.journal.context.dir.clone().unwrap_or_default();
        let io = |source| OpenError::Io { path: dir(), source };
        for lanes in self.journal.load_readers(is_clean)? {
            let name = lanes.name();
            let stored = QueueOverrides::from_bytes(&lanes.own_options()).ok_or_else(|| OpenError::Corrupt {
                queue: self.name.clone(),
                path: dir(),
                segment: None,
                offset: 0,
                what: "options of a reader",
            })?;
            let own = self.fanout.presets.get(&name).cloned().unwrap_or(stored);
            let (own, options) = self
                .reader_options(own)
                .map_err(|source| OptionsError::Queue { queue: self.name_of(&name), source: Box::new(source) })?;
            let tail = self.journal.tail.lock();
            let past = if is_clean { Past::Closed } else { Past::Died };
            let backlog = self.journal.backlog(&tail, &lanes, past).map_err(io)?;
            self.journal.give_back(&lanes, &backlog.held);
            let report = RecoveryReport {
                clean: is_clean,
                items: backlog.items,
                redelivered: backlog.held.len() as u64,
                held: backlog.held.iter().map(|id| ItemId(*id)).collect(),
                ..RecoveryReport::default()
            };
            self.join_named(lanes, &backlog, Cursor::behind(tail.newest()), (own, options), report, true);
        }
        Ok(())
    }

    /// A reader's core, known to the queue. `end`: where the tail's holder says that the items end.
    fn join_named(
        &self,
        lanes: Arc<ReaderLanes>,
        backlog: &Backlog,
        end: Cursor,
        (own, options): (QueueOverrides, QueueOptions),
        report: RecoveryReport,
        is_shown: bool,
    ) -> Arc<Core> {
        let (name, create_ms) = (lanes.name(), lanes.create_ms());
        let (front, named) = (Arc::clone(&self.journal.front), Some(Arc::clone(&lanes)));
        let core = Core::new(
            self.name_of(&name),
            Arc::clone(&self.shared),
            Arc::clone(&self.journal),
            Reader::beginning(front, named, backlog.first, end, backlog.items, backlog.bytes),
            options,
            report,
            create_ms,
            self.has_journal,
            Fanout::of_reader(self.me.clone(), lanes, is_shown),
        );
        *core.own.lock() = own;
        self.fanout.named.write().insert(name, Arc::clone(&core));
        self.fanout.any.store(true, Ordering::Release);
        core
    }

    fn name_of(&self, reader: &str) -> String {
        format!("{}+{reader}", self.name)
    }

    /// The reader of this name, made if there is none.
    pub(crate) fn named_or_new(&self, name: &str, wanted: &ReaderOptions) -> Result<Arc<Core>, OpenError> {
        if self.fanout.home.is_some() {
            return Err(OpenError::InvalidName { name: self.name_of(name), reason: "a reader has no readers" });
        }
        readers::check_name(name).map_err(|reason| OpenError::InvalidName { name: self.name_of(name), reason })?;
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
        // So that it has the options of its queue that are in force when it is there.
        let _changing_options = self.shared.changing_options.lock();
        let _changing = self.fanout.changing.lock();
        if let Some(named) = self.named(name) {
            return Ok(named);
        }
        let given = wanted.own.clone().for_reader(&self.options.read())?;
        let options = self.reader_options(self.fanout.presets.get(name).unwrap_or(&given).clone())?;
        let io = |source: std::io::Error| {
            let path = self.journal.context.dir.clone().unwrap_or_default();
            match crate::journal::is_no_space(&source) {
                true => OpenError::NoSpace { path, source },
                false => OpenError::Io { path, source },
            }
        };
        let journal = &self.journal;
        // It takes its place under the tail lock, which parts all puts in two: those before are none of its. Until it is durable
        // nobody is given it; what comes meanwhile waits for it.
        let (lanes, core) = {
            let _kept = wanted.from_oldest.then(|| journal.keep());
            let tail = journal.tail.lock();
            if tail.closed {
                return Err(OpenError::Closed);
            }
            self.shared.states.may_put().map_err(|_| OpenError::State { state: self.shared.states.in_force() })?;
            let create_ms = self.shared.clock.exact_ms();
            let lanes = journal.begin_reader(&tail, name, wanted.from_oldest, given.to_bytes(), create_ms);
            let lanes = lanes.map_err(io)?;
            let backlog = journal.backlog(&tail, &lanes, Past::New);
            let backlog = backlog.inspect_err(|_| journal.drop_reader(&lanes)).map_err(io)?;
            let report = RecoveryReport { clean: true, items: backlog.items, ..RecoveryReport::default() };
            let core = self.join_named(Arc::clone(&lanes), &backlog, journal.end_of(&tail), options, report, false);
            (lanes, core)
        };
        if let Err(error) = journal.store_reader(&lanes) {
            self.forget_named(name);
            journal.drop_reader(&lanes);
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
            let states = &self.shared.states;
            states.may_put().map_err(|_| Error::State { state: states.in_force() })?;
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

    /// What a reader of this queue has of its own, and the options that are in force with it.
    fn reader_options(&self, own: QueueOverrides) -> Result<(QueueOverrides, QueueOptions), OptionsError> {
        let queue = self.options.read();
        let own = own.for_reader(&queue)?;
        let options = own.check_over(&queue.for_readers(), &self.name)?;
        Ok((own, options))
    }

    /// Whether other options of the queue are right with what its readers have of their own.
    pub(super) fn check_readers_over(&self, queue: &QueueOptions) -> Result<(), OptionsError> {
        let below = queue.for_readers();
        for core in self.fanout.all() {
            let checked = core.own.lock().check_over(&below, &self.name);
            checked.map_err(|source| OptionsError::Queue { queue: core.name.clone(), source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Hands the queue's options down, where its readers have none of their own.
    pub(super) fn hand_down_options(&self) {
        if !self.fanout.has_named() {
            return;
        }
        let below = self.options.read().for_readers();
        for core in self.fanout.all() {
            let options = core.own.lock().over(&below);
            core.adopt(options);
        }
    }

    /// Puts other options of a named reader in force. The caller keeps all others from changing options.
    pub(super) fn set_reader_overrides(&self, own: QueueOverrides) -> Result<(), OptionsError> {
        let Some(lanes) = &self.fanout.lanes else { return Ok(()) };
        let (own, options) = self.home().reader_options(own)?;
        lanes.store_options(own.to_bytes()).map_err(|source| match self.reader.lock().closed {
            true => OptionsError::Closed,
            false => OptionsError::Io { path: self.journal.context.dir.clone().unwrap_or_default(), source },
        })?;
        *self.own.lock() = own;
        self.apply(options);
        Ok(())
    }
}
