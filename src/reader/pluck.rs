//! Taking an item out of its turn.

use std::io;

use super::{Reader, Rules, Taken};
use crate::journal::Journal;
use crate::journal::find::Found;

impl Reader {
    /// Takes the item with this id, wherever among the waiting and deferred ones it is. `None`: it is not among these.
    pub(crate) fn pluck(&mut self, journal: &Journal, rules: Rules<'_>, id: u64) -> io::Result<Option<Taken>> {
        if id > self.visible_id()
            || id <= self.cleared_id
            || self.ahead.contains(&id)
            || self.open.contains_key(&id)
            || self.aside.contains_key(&id)
        {
            return Ok(None);
        }
        let Some(Found { segment, place }) = journal.find(id)? else {
            return Ok(None);
        };
        segment.check_whole(rules.now_ms)?;
        if self.is_expired(&place, rules) {
            return Ok(None);
        }
        if self.aborted.remove(&id).is_none() {
            if id > self.read_id {
                // The cursor is told to pass it.
                self.ahead.insert(id);
            } else if let Ok(at) = self.ring.binary_search_by_key(&id, |place| place.id) {
                self.ring.remove(at);
                self.pop_from_ring(&place);
            } else if !self.deferred.remove(id) {
                return Ok(None);
            }
        }
        self.gone(&place);
        Ok(Some(Taken { place, segment }))
    }
}
