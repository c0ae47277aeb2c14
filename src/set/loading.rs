//! Queues that are loaded when first used: found, recovered or created, and what must be settled before.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Inner, Slot, check_name, open_error, read_small, store_set_meta};
use crate::disk::File;
use crate::error::{Error, OpenError, OptionsError, SyncError};
use crate::format::header;
use crate::format::meta::{self, QueueMeta, SetMeta};
use crate::format::{Fault, VERSION, name};
use crate::journal::files::Way;
use crate::journal::moves::Route;
use crate::journal::recovery::{Outcome, Recovery, Wishes};
use crate::journal::{Context, Journal, MetaFile, SlotFile, ids_after_loss, write_new_file};
use crate::options::{Durability, QueueOptions, QueueOverrides, ReaderOptions};
use crate::planted::{self, Bug};
use crate::queue::core::Core;
use crate::queue::fanout::Fanout;
use crate::reader::Reader;
use crate::stats::RecoveryProgress;
use crate::sync::Ordering;

#[derive(Clone, Copy)]
pub(super) enum Want<'a> {
    Existing,
    /// By the set itself, in whatever state it is.
    Needed,
    Create(Option<&'a QueueOverrides>),
}

impl Inner {
    /// The queue of this name, or the reader `queue+reader`: the first `+` parts the two.
    pub(super) fn load(&self, name: &str, want: Want<'_>) -> Result<Option<Arc<Core>>, OpenError> {
        check_name(name)?;
        let Some((queue, reader)) = name.split_once('+') else {
            return self.load_queue(name, want);
        };
        let above = if let Want::Create(_) = want { Want::Create(None) } else { want };
        let Some(home) = self.load_queue(queue, above)? else {
            return Ok(None);
        };
        match want {
            Want::Existing => Ok(home.named(reader)),
            Want::Needed => home.named_or_new(reader, &ReaderOptions::new()).map(Some),
            Want::Create(own) => {
                let own = own.cloned().unwrap_or_default();
                home.named_or_new(reader, &ReaderOptions::new().overrides(own)).map(Some)
            }
        }
    }

    /// What the builder says of the readers of a queue, by their names.
    pub(super) fn presets_of_readers(&self, queue: &str) -> BTreeMap<String, QueueOverrides> {
        let of_queue =
            |name: &String| name.split_once('+').filter(|(of, _)| *of == queue).map(|(_, name)| name.to_owned());
        self.overrides.iter().filter_map(|(name, own)| Some((of_queue(name)?, own.clone()))).collect()
    }

    pub(super) fn load_queue(&self, name: &str, want: Want<'_>) -> Result<Option<Arc<Core>>, OpenError> {
        self.check_open().map_err(|error| match error {
            Error::Forked => OpenError::Forked,
            _ => OpenError::Closed,
        })?;
        let (slot, is_new) = {
            let mut registry = self.registry.lock();
            if self.aliases.lock().contains_key(name) {
                return Err(OpenError::Alias { name: name.to_owned() });
            }
            match registry.get(name) {
                Some(slot) => (Arc::clone(slot), false),
                None => match want {
                    Want::Existing => return Ok(None),
                    _ if self.shared.read_only => {
                        return Err(OpenError::ReadOnly { path: self.dir.clone() });
                    }
                    Want::Create(_) if self.shared.states.may_put().is_err() => {
                        return Err(OpenError::State { state: self.shared.states.in_force() });
                    }
                    Want::Create(_) | Want::Needed => {
                        let slot = Arc::new(Slot::default());
                        registry.insert(name.to_owned(), Arc::clone(&slot));
                        (slot, true)
                    }
                },
            }
        };
        let busy = slot.busy.lock();
        if let Some(core) = slot.core.lock().clone() {
            return Ok(Some(core));
        }
        // While we waited for the slot, the queue may have been deleted, or the set closed.
        if !self.registry.lock().get(name).is_some_and(|current| Arc::ptr_eq(current, &slot)) {
            drop(busy);
            return self.load_queue(name, want);
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(OpenError::Closed);
        }
        let given = match want {
            Want::Create(options) => options,
            Want::Existing | Want::Needed => None,
        };
        self.pool.files.make_room();
        let opened = match self.open_queue(name, given) {
            Err(OpenError::TooManyFiles { .. }) => {
                self.pool.files.close_half(Way::AsIs);
                self.open_queue(name, given)
            }
            opened => opened,
        };
        match opened {
            Ok((core, created)) => {
                *slot.core.lock() = Some(Arc::clone(&core));
                // The defaults may have changed while it was being loaded.
                let _changing = self.shared.changing_options.lock();
                let own = core.own.lock().clone();
                let options = core.options_over(&own, &self.shared.defaults.read());
                if let Ok(options) = options
                    && !self.shared.read_only
                {
                    core.adopt(options);
                }
                self.creates.fetch_add(u64::from(created), Ordering::Relaxed);
                Ok(Some(core))
            }
            Err(error) => {
                if is_new {
                    self.registry.lock().remove(name);
                }
                Err(error)
            }
        }
    }

    /// Marks what moved before a crash, and forgets the routes of it. Queues that do not open now are left to the next open of
    /// the set; what is delivered of them meanwhile may be delivered twice.
    pub(super) fn settle_moves(&self) -> io::Result<()> {
        let routes = self.shared.moves.found()?;
        if routes.is_empty() {
            return self.shared.moves.forget();
        }
        self.shared.settling.store(true, Ordering::Release);
        let mut kept = Vec::new();
        // The newest note of a pair counts.
        let newest: BTreeMap<(&str, &str), u64> =
            routes.iter().map(|route| ((route.from.as_str(), route.into.as_str()), route.floor)).collect();
        for ((from, into), floor) in newest {
            match self.settle_route(from, into, floor) {
                Ok(()) => {}
                Err(_) => kept.push(Route { from: from.to_owned(), into: into.to_owned(), floor }),
            }
        }
        for route in &kept {
            // The next open needs the note, and what it leads to.
            self.shared.unmarked.store(true, Ordering::Release);
            if let Ok(Some(into)) = self.load(&route.into, Want::Existing) {
                into.keep_all();
            }
        }
        let done = self.shared.moves.keep(kept);
        self.shared.settling.store(false, Ordering::Release);
        for core in self.loaded() {
            core.ring_free();
        }
        done
    }

    pub(super) fn settle_route(&self, from: &str, into: &str, floor: u64) -> Result<(), Error> {
        let (Some(from), Some(into)) = (self.load(from, Want::Existing)?, self.load(into, Want::Existing)?) else {
            // Whoever deletes a queue first makes the marks durable that it vouches for.
            return Ok(());
        };
        let io = |source| Error::Io { path: self.dir.join("moves"), source };
        let moved = into.successors_of(from.origin_id(), floor).map_err(io)?;
        if !moved.is_empty() {
            // A process that died may have left the new ones in the page cache only: they must not be less durable than the
            // marks of the old ones.
            into.sync_round()?;
        }
        from.forget_moved(&moved).map_err(io)?;
        from.sync_round()?;
        Ok(())
    }

    pub(super) fn queue_dir(&self, name: &str) -> PathBuf {
        let mut dir = self.dir.join("queues");
        dir.extend(name::encode(name));
        dir
    }

    /// Recovers or creates a queue; says whether it was created.
    pub(super) fn open_queue(
        &self,
        name: &str,
        given: Option<&QueueOverrides>,
    ) -> Result<(Arc<Core>, bool), OpenError> {
        let disk = &self.shared.disk;
        let dir = self.queue_dir(name);
        let id_floor = self.meta.lock().meta.id_floor;
        let preset = self.overrides.get(name).or(given);
        let mut meta = match disk.open(&dir.join("meta"), !self.shared.read_only) {
            Ok(file) => Some(self.read_meta(name, &dir, &file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(open_error(&dir.join("meta"), error)),
        };
        if let Some(MetaFile { slots: Some(slots), .. }) = &meta
            && slots.is_first()
            && !self.shared.read_only
            && !planted::is(Bug::UnsyncedNames)
        {
            // Whoever made it may have died, or failed, before its names were durable.
            self.sync_names(&dir).map_err(|error| open_error(&dir, error))?;
        }
        let created = meta.is_none();
        let own = match (&meta, preset) {
            (_, Some(own)) => own.clone(),
            (Some(file), None) => QueueOverrides::from_bytes(&file.meta.options).ok_or_else(|| OpenError::Corrupt {
                queue: name.to_owned(),
                path: dir.join("meta"),
                segment: None,
                offset: 0,
                what: "options",
            })?,
            _ => QueueOverrides::default(),
        };
        let options = own.check_over(&self.shared.defaults.read(), name)?;
        if !created && !options.journal {
            return Err(OptionsError::Journal { queue: name.to_owned(), items: 0 }.into());
        }
        if meta.is_none() && self.shared.read_only {
            return Err(OpenError::Io { path: dir.join("meta"), source: io::ErrorKind::NotFound.into() });
        }
        let meta = match meta.take() {
            Some(meta) => meta,
            None => self.create_meta(name, &dir, given, &options)?,
        };
        let create_ms = meta.meta.create_ms;
        let context = Context {
            disk: disk.clone(),
            pool: Arc::clone(&self.pool),
            dir: options.journal.then(|| dir.clone()),
            set_id: self.set_id,
            boot_id: self.boot_id,
            queue: name.to_owned(),
            read_only: self.shared.read_only,
        };
        let outcome = self.recover(&context, &dir, meta, &options, id_floor)?;
        self.shared.clock.observe(outcome.newest_ms);
        let unproven = !outcome.recovered.unsynced.is_empty();
        let has_segments = !outcome.recovered.entries.is_empty();
        let durability = options.durability;
        let has_journal = options.journal;
        let journal = Arc::new(Journal::new(context, outcome.recovered, options.segment_bytes));
        let front = Arc::clone(&journal.front);
        let reader = Reader::new(front, outcome.first, journal.newest(), outcome.items, outcome.bytes);
        let core = Core::new(
            name.to_owned(),
            Arc::clone(&self.shared),
            journal,
            reader,
            options.clone(),
            outcome.report,
            create_ms,
            has_journal,
            Fanout::of_queue(options.fanout_only, self.presets_of_readers(name)),
        );
        *core.own.lock() = own;
        core.load_readers().inspect_err(|_| {
            let (_, bytes, _) = core.journal.gauges();
            self.pool.forget_bytes(bytes);
        })?;
        if !self.shared.read_only {
            if unproven && durability != Durability::Os && !planted::is(Bug::ServeUnproven) {
                core.sync_round().map_err(|error| {
                    let (_, bytes, _) = core.journal.gauges();
                    self.pool.forget_bytes(bytes);
                    OpenError::Io {
                        path: dir.clone(),
                        source: match error {
                            SyncError::Failed { source, .. } => io::Error::new(source.kind(), source),
                            other => io::Error::other(other),
                        },
                    }
                })?;
            }
            if has_segments {
                core.ring_free();
                core.apply(options);
            }
            core.ring_age();
        }
        Ok((core, created))
    }

    pub(super) fn recover(
        &self,
        context: &Context,
        dir: &Path,
        meta: MetaFile,
        options: &QueueOptions,
        id_floor: u64,
    ) -> Result<Outcome, OpenError> {
        if context.dir.is_none() {
            return Ok(Recovery::nothing(meta, id_floor));
        }
        let progress = |done, total| {
            let Some(callback) = &self.on_recovery else {
                return true;
            };
            callback(&RecoveryProgress { queue: context.queue.clone(), segments_done: done, segments_total: total })
        };
        let wishes = Wishes {
            salvage: self.shared.salvage,
            cache_promised: options.durability == Durability::Os,
            segment_bytes: options.segment_bytes,
            keep_cleared: self.shared.archive.is_some() || self.shared.settling.load(Ordering::Acquire),
            id_floor,
            progress: &progress,
        };
        Recovery::new(context, wishes).run(dir, meta)
    }

    pub(super) fn read_meta(&self, name: &str, dir: &Path, file: &File) -> Result<MetaFile, OpenError> {
        let path = dir.join("meta");
        let corrupt =
            |what| OpenError::Corrupt { queue: name.to_owned(), path: path.clone(), segment: None, offset: 0, what };
        let bytes = read_small(file, meta::FILE_LEN).map_err(|e| open_error(&path, e))?;
        let slots = meta::decode_queue(&bytes).map_err(|fault| match fault {
            Fault::Version(found) => OpenError::UnsupportedVersion { path: path.clone(), found, supported: VERSION },
            Fault::Invalid(what) => corrupt(what),
        })?;
        if slots.newest.set_id != self.set_id {
            return Err(corrupt("queue header (of another set)"));
        }
        if slots.newest.name != name {
            return Err(corrupt("queue header (of another queue)"));
        }
        Ok(MetaFile {
            meta: slots.newest,
            slots: Some(SlotFile::new(&self.shared.disk, path, slots.sequence, slots.next_slot, false)),
            closed: false,
        })
    }

    pub(super) fn create_meta(
        &self,
        name: &str,
        dir: &Path,
        given: Option<&QueueOverrides>,
        options: &QueueOptions,
    ) -> Result<MetaFile, OpenError> {
        let disk = &self.shared.disk;
        let io = |error| open_error(dir, error);
        let meta = QueueMeta {
            set_id: self.set_id,
            queue_id: disk.random_u64().map_err(io)?,
            create_ms: self.shared.clock.exact_ms(),
            segment_floor: 1,
            segment_last: 0,
            next_id: self.meta.lock().meta.id_floor + 1,
            clear_id: 0,
            last_end: 0,
            clean: true,
            boot_id: self.boot_id,
            freed: Vec::new(),
            name: name.to_owned(),
            options: given.map(QueueOverrides::to_bytes).unwrap_or_default(),
        };
        if !options.journal {
            return Ok(MetaFile { meta, slots: None, closed: false });
        }
        disk.create_dir_all(dir).map_err(io)?;
        for entry in disk.list(dir).map_err(io)? {
            if entry.name.ends_with(".seg") {
                return Err(OpenError::Corrupt {
                    queue: name.to_owned(),
                    path: dir.join("meta"),
                    segment: None,
                    offset: 0,
                    what: "queue header (missing)",
                });
            }
        }
        let slot = meta::encode_queue(&meta, 1);
        write_new_file(disk, dir, "meta", &slot).map_err(io)?;
        self.sync_names(dir).map_err(io)?;
        let slots = SlotFile::new(disk, dir.join("meta"), 1, 1, true);
        Ok(MetaFile { meta, slots: Some(slots), closed: false })
    }

    /// Makes the names durable that lead to a queue's files: of its directory, and of those it is nested in; and before them
    /// that an earlier queue of the same name has left.
    pub(super) fn sync_names(&self, dir: &Path) -> io::Result<()> {
        let disk = &self.shared.disk;
        if self.trash_unsynced.load(Ordering::Acquire) {
            disk.sync_dir(&self.dir.join("trash"))?;
            self.trash_unsynced.store(false, Ordering::Release);
        }
        let queues = self.dir.join("queues");
        disk.sync_dir(dir)?;
        for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(&queues)) {
            disk.sync_dir(parent)?;
        }
        Ok(())
    }

    /// The highest id that a queue which is not loaded may have given out; generous where it cannot be read.
    pub(super) fn highest_id(&self, name: &str) -> u64 {
        let disk = &self.shared.disk;
        let dir = self.queue_dir(name);
        let mut highest = 0;
        let mut is_torn = false;
        if let Ok(file) = disk.open(&dir.join("meta"), false)
            && let Ok(bytes) = read_small(&file, meta::FILE_LEN)
            && let Ok(slots) = meta::decode_queue(&bytes)
        {
            highest = slots.newest.next_id.saturating_sub(1);
            is_torn = !slots.newest.clean && slots.newest.boot_id != self.boot_id;
        }
        for entry in disk.list(&dir).unwrap_or_default() {
            let Ok(file) = disk.open(&dir.join(&entry.name), false) else {
                continue;
            };
            if let Ok(page) = read_small(&file, header::PAGE)
                && let Ok(header) = header::decode(&page)
                && header.set_id == self.set_id
            {
                // No segment holds more items than it has bytes.
                highest = highest.max(header.first_id.saturating_add(header.segment_bytes.into()));
            }
        }
        match is_torn {
            // As when it is opened: a power cut may have taken whole segments whose ids were told.
            true => ids_after_loss(highest + 1) - 1,
            false => highest,
        }
    }

    pub(super) fn raise_id_floor(&self, id: u64) -> io::Result<()> {
        let mut file = self.meta.lock();
        if id <= file.meta.id_floor {
            return Ok(());
        }
        let raised = SetMeta { id_floor: id, ..file.meta.clone() };
        store_set_meta(&mut file, raised)
    }
}
