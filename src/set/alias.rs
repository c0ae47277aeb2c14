//! Names that stand for several queues: [`Alias`].

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Inner, QueueSet, Want, check_name, open_error, read_small};
use crate::disk::Disk;
use crate::error::{AliasError, AliasPutError, Error, OpenError};
use crate::format::alias::{self, Aliases};
use crate::format::{Fault, VERSION, name};
use crate::ids::ItemId;
use crate::options::PutOptions;
use crate::queue::all::put_to_all;
use crate::queue::core::Core;

/// Most queues that one alias stands for.
const QUEUES_MAX: usize = 1000;

/// One name that puts to several queues: [`QueueSet::alias`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let set = kestrel_core::QueueSet::open(dir.path())?;
/// let orders = set.alias("orders", &["billing", "shipping"])?;
/// orders.put("order 17")?;
/// assert_eq!((set.queue("billing")?.len(), set.queue("shipping")?.len()), (1, 1));
/// assert!(set.queue("orders").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Alias {
    set: QueueSet,
    name: String,
}

impl Alias {
    /// The alias's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queues that it stands for now, aliases among its targets resolved, each once.
    ///
    /// # Errors
    /// [`AliasPutError::Gone`] if it was removed.
    pub fn queues(&self) -> Result<Vec<String>, AliasPutError> {
        let aliases = self.set.inner.aliases.lock();
        if !aliases.contains_key(&self.name) {
            return Err(AliasPutError::Gone { alias: self.name.clone() });
        }
        Ok(resolve(&aliases, &self.name))
    }

    /// Puts an item at the end of each queue, or of none. Returns its ids in the order of [`queues`](Alias::queues). Queues that
    /// are not there are created. Never waits for room: under [`WhenFull::Wait`](crate::WhenFull::Wait) a full queue refuses.
    ///
    /// # Durability
    /// When this returns, the item is in each queue as durable as that queue says. A crash before that may leave it in some of
    /// the queues and not in others, as it may leave a single put that was not answered or not: nothing ties the queues together
    /// on disk.
    ///
    /// # Errors
    /// [`AliasPutError`] names the queue that refused. Nothing was stored in any queue then, except after
    /// [`PutError::Indeterminate`](crate::PutError::Indeterminate): the other queues have the item.
    pub fn put(&self, data: impl AsRef<[u8]>) -> Result<Vec<ItemId>, AliasPutError> {
        self.put_with(data, &PutOptions::new())
    }

    /// As [`put`](Alias::put), with an expiry, a durability or flags of the item's own.
    ///
    /// # Errors
    /// As `put`.
    pub fn put_with(&self, data: impl AsRef<[u8]>, options: &PutOptions) -> Result<Vec<ItemId>, AliasPutError> {
        let names = self.queues()?;
        let alias = || self.name.clone();
        let mut cores: Vec<Arc<Core>> = Vec::with_capacity(names.len());
        for queue in &names {
            let opened = self.set.inner.load(queue, Want::Create(None));
            let opened = opened.and_then(|core| core.ok_or(OpenError::Closed));
            cores.push(opened.map_err(|source| AliasPutError::Open {
                alias: alias(),
                queue: queue.clone(),
                source: Box::new(source),
            })?);
        }
        put_to_all(&cores, data.as_ref(), options).map_err(|(index, source)| AliasPutError::Put {
            alias: alias(),
            queue: names[index].clone(),
            source,
        })
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alias").field("name", &self.name).finish_non_exhaustive()
    }
}

impl QueueSet {
    /// Makes `name` stand for `targets`, now and after a restart: what is put to it is put to each of them. Replaces what the
    /// alias stood for before. A target is a queue, which need not be there yet, or another alias; a reader of a queue is none,
    /// since the queue's own name puts to all of its readers.
    ///
    /// An alias is no queue: [`queue`](QueueSet::queue), and with it every get and clear, answers [`OpenError::Alias`], and
    /// [`delete`](QueueSet::delete) [`Error::Alias`]. One alias stands for at most 1000 queues; all of them together
    /// fit 1 MiB of names.
    ///
    /// # Errors
    /// [`AliasError::IsQueue`] if there is a queue of this name, [`AliasError::Ring`] if it would stand for itself,
    /// [`AliasError::InvalidName`], [`AliasError::NoTargets`], [`AliasError::TooMany`], [`AliasError::Io`] if it could not be
    /// stored, …. Nothing is changed then.
    pub fn alias(&self, name: &str, targets: &[impl AsRef<str>]) -> Result<Alias, AliasError> {
        let mut list: Vec<String> = Vec::new();
        for target in std::iter::once(name).chain(targets.iter().map(AsRef::as_ref)) {
            if let Err(reason) = name::check(target) {
                return Err(AliasError::InvalidName { name: target.to_owned(), reason });
            }
            if !list.iter().any(|known| known == target) {
                list.push(target.to_owned());
            }
        }
        list.remove(0);
        if targets.iter().any(|target| target.as_ref() == name) {
            return Err(AliasError::Ring { alias: name.to_owned() });
        }
        if list.is_empty() {
            return Err(AliasError::NoTargets { alias: name.to_owned() });
        }
        self.inner.change_aliases(|aliases| {
            aliases.insert(name.to_owned(), list);
            name
        })?;
        Ok(Alias { set: self.clone(), name: name.to_owned() })
    }

    /// The alias of this name, if there is one.
    pub fn get_alias(&self, name: &str) -> Option<Alias> {
        let is_there = self.inner.aliases.lock().contains_key(name);
        is_there.then(|| Alias { set: self.clone(), name: name.to_owned() })
    }

    /// The names of all aliases, sorted.
    pub fn aliases(&self) -> Vec<String> {
        self.inner.aliases.lock().keys().cloned().collect()
    }

    /// Removes an alias, and nothing of the queues that it stood for; `false` if there was none.
    ///
    /// # Errors
    /// [`AliasError::Io`] if that could not be stored, ….
    pub fn remove_alias(&self, name: &str) -> Result<bool, AliasError> {
        let mut was_there = false;
        self.inner.change_aliases(|aliases| {
            was_there = aliases.remove(name).is_some();
            ""
        })?;
        Ok(was_there)
    }
}

impl Inner {
    /// Changes the aliases if what comes out is right and could be stored; `change` names the one that it has set.
    fn change_aliases<'a>(&self, change: impl FnOnce(&mut Aliases) -> &'a str) -> Result<(), AliasError> {
        let check = || match self.check_open() {
            Err(Error::Forked) => Err(AliasError::Forked),
            Err(_) => Err(AliasError::Closed),
            Ok(()) if self.shared.read_only => Err(AliasError::ReadOnly),
            Ok(()) => Ok(()),
        };
        check()?;
        let _changing = self.changing_aliases.lock();
        check()?;
        let old = self.aliases.lock().clone();
        let mut new = old.clone();
        let set = change(&mut new);
        if new == old {
            return Ok(());
        }
        for alias in new.keys() {
            let queues = resolve(&new, alias);
            if queues.len() > QUEUES_MAX {
                return Err(AliasError::TooMany { alias: alias.clone() });
            }
        }
        if new.contains_key(set) && leads_back(&new, set) {
            return Err(AliasError::Ring { alias: set.to_owned() });
        }
        let bytes = alias::encode(&new, self.set_id as u32);
        if bytes.len() > alias::FILE_MAX {
            return Err(AliasError::TooMany { alias: set.to_owned() });
        }
        {
            // From here on no queue of this name is created.
            let registry = self.registry.lock();
            if new.contains_key(set) && !old.contains_key(set) && registry.contains_key(set) {
                return Err(AliasError::IsQueue { alias: set.to_owned() });
            }
            *self.aliases.lock() = new;
        }
        store(&self.shared.disk, &self.dir, &bytes).map_err(|source| {
            *self.aliases.lock() = old;
            AliasError::Io { path: self.dir.join("aliases"), source }
        })
    }
}

/// The queues that an alias stands for, each once, in the order in which they are named. Ends also where aliases stand for each
/// other.
fn resolve(aliases: &Aliases, alias: &str) -> Vec<String> {
    let (mut queues, mut seen) = (Vec::new(), BTreeSet::new());
    let mut left = vec![alias];
    while let Some(name) = left.pop() {
        if !seen.insert(name) {
            continue;
        }
        match aliases.get(name) {
            Some(targets) => left.extend(targets.iter().rev().map(String::as_str)),
            None => queues.push(name.to_owned()),
        }
    }
    queues
}

fn leads_back(aliases: &Aliases, alias: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut left = vec![alias];
    while let Some(name) = left.pop() {
        for target in aliases.get(name).into_iter().flatten() {
            if target == alias {
                return true;
            }
            if seen.insert(target) {
                left.push(target);
            }
        }
    }
    false
}

/// Replaces the file as a whole: after a crash there is the old one or the new one.
fn store(disk: &Disk, dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = dir.join("aliases.tmp");
    match disk.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&tmp)?;
    let written = (|| {
        file.allocate(bytes.len() as u64)?;
        file.write_at(0, bytes)?;
        file.sync_data()?;
        disk.rename(&tmp, &dir.join("aliases"))
    })();
    if let Err(error) = written {
        let _ = disk.unlink(&tmp);
        return Err(error);
    }
    disk.sync_dir(dir)
}

/// What an earlier process has stored.
pub(super) fn load(disk: &Disk, dir: &Path, set_id: u128) -> Result<Aliases, OpenError> {
    let path = dir.join("aliases");
    let file = match disk.open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Aliases::new()),
        Err(error) => return Err(open_error(&path, error)),
    };
    let bytes = read_small(&file, alias::FILE_MAX + 1).map_err(|error| open_error(&path, error))?;
    let aliases = alias::decode(&bytes, set_id as u32).map_err(|fault| match fault {
        Fault::Version(found) => OpenError::UnsupportedVersion { path: path.clone(), found, supported: VERSION },
        Fault::Invalid(what) => {
            OpenError::Corrupt { queue: String::new(), path: path.clone(), segment: None, offset: 0, what }
        }
    })?;
    for name in aliases.iter().flat_map(|(name, targets)| std::iter::once(name).chain(targets)) {
        check_name(name)?;
    }
    Ok(aliases)
}
