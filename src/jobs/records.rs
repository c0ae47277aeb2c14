//! A few durable values by name, on a queue of the set: a newer item of a name takes the place of the older one.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::ids::ItemId;
use crate::jobs::error::JobError;
use crate::options::{PutOptions, QueueOverrides};
use crate::queue::Queue;
use crate::set::QueueSet;

/// The names and what holds their values. Values stay on the disk.
pub(crate) struct Records {
    name: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Made when first needed.
    queue: Option<Queue>,
    items: HashMap<Vec<u8>, ItemId>,
}

impl Records {
    /// Reads the names. Of two items of a name, which a crash may have left, the newer one holds.
    pub(crate) fn open(set: &QueueSet, name: &'static str) -> Result<Records, JobError> {
        let mut state = State { queue: set.get_queue(name)?, items: HashMap::new() };
        if let Some(queue) = &state.queue {
            let mut older = Vec::new();
            for item in queue.browse(ItemId::new(0)) {
                let item = item?;
                if let Some((key, _)) = parse(item.data())
                    && let Some(old) = state.items.insert(key.to_vec(), item.id())
                {
                    older.push(old);
                }
            }
            for id in older {
                close(queue, id)?;
            }
        }
        Ok(Records { name, state: Mutex::new(state) })
    }

    pub(crate) fn names(&self) -> Vec<Vec<u8>> {
        self.state.lock().items.keys().cloned().collect()
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.state.lock().items.contains_key(key)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, JobError> {
        let (queue, id) = {
            let state = self.state.lock();
            match (&state.queue, state.items.get(key)) {
                (Some(queue), Some(id)) => (queue.clone(), *id),
                _ => return Ok(None),
            }
        };
        let item = queue.peek_id(id)?;
        Ok(item.and_then(|item| parse(item.data()).map(|(_, value)| value.to_vec())))
    }

    /// Stores a value.
    pub(crate) fn put(&self, set: &QueueSet, key: &[u8], value: &[u8], options: PutOptions) -> Result<(), JobError> {
        let queue = {
            let mut state = self.state.lock();
            match &state.queue {
                Some(queue) => queue.clone(),
                None => state.queue.insert(set.queue_with_overrides(self.name, plain())?).clone(),
            }
        };
        let mut bytes = Vec::with_capacity(2 + key.len() + value.len());
        bytes.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        let id = queue.put_with(&bytes, &options)?;
        let old = self.state.lock().items.insert(key.to_vec(), id);
        match old {
            // Of two that were put at once the later one holds, here as after a restart.
            Some(old) if old > id => {
                self.state.lock().items.insert(key.to_vec(), old);
                close(&queue, id)
            }
            Some(old) => close(&queue, old),
            None => Ok(()),
        }
    }

    /// Whether there was such a value.
    pub(crate) fn remove(&self, key: &[u8]) -> Result<bool, JobError> {
        let (queue, id) = {
            let mut state = self.state.lock();
            if state.items.is_empty() {
                return Ok(false);
            }
            match (state.queue.clone(), state.items.remove(key)) {
                (Some(queue), Some(id)) => (queue, id),
                _ => return Ok(false),
            }
        };
        close(&queue, id)?;
        Ok(true)
    }

    pub(crate) fn sync(&self) -> Result<(), JobError> {
        let queue = self.state.lock().queue.clone();
        queue.map_or(Ok(()), |queue| queue.sync().map_err(JobError::from))
    }
}

fn close(queue: &Queue, id: ItemId) -> Result<(), JobError> {
    match queue.open_id(id)? {
        Some(item) => item.close().map_err(JobError::from),
        None => Ok(()),
    }
}

fn parse(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_at_checked(2)?;
    rest.split_at_checked(u16::from_le_bytes(len.try_into().ok()?).into())
}

/// Options of a queue that no default of the set may turn into something else: nothing leaves it but by its owner.
pub(crate) fn plain() -> QueueOverrides {
    QueueOverrides::default()
        .max_items(None)
        .max_bytes(None)
        .when_full(crate::options::WhenFull::Refuse)
        .max_age(None)
        .lease(None)
        .max_attempts(None)
        .dead_letters(None)
        .expire_to(None)
        .max_queue_age(None)
        .max_item_size(ITEM_MAX)
}

/// The largest item that a queue can be set to take.
const ITEM_MAX: u32 = 268_427_264;
