//! Taking an item out of its turn.

use std::io;

use super::{Expired, Reader, Rules, Taken};
use crate::ids::Place;
use crate::journal::Journal;
use crate::journal::find::Found;

impl Reader {
    /// Whether an item that waits has expired; one that is open has not.
    pub(crate) fn is_over(&self, place: &Place, rules: Rules<'_>) -> bool {
        self.is_expired(place, rules) && !self.open.contains_key(&place.id)
    }

    /// Has the cursor pass an item, as far as the ring has room for those before it: else what is taken out of its turn in a queue that
    /// nobody takes from in turn would be remembered for ever.
    fn read_up_to(&mut self, journal: &Journal, rules: Rules<'_>, id: u64) {
        while id > self.read_id {
            let before = (self.read_id, self.ring.len());
            // Who takes an item in turn meets the error again.
            let read = self.refill(journal, rules, Expired::Kept);
            if read.is_err() || (self.read_id, self.ring.len()) == before {
                return;
            }
        }
    }

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
        let Some(Found { segment, place }) = journal.find(id, self.lanes.as_ref())? else {
            return Ok(None);
        };
        segment.check_whole(rules.now_ms)?;
        self.read_up_to(journal, rules, id);
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
            } else if !self.deferred.remove(id, place.payload_len) {
                return Ok(None);
            }
        }
        self.gone(&place);
        Ok(Some(Taken { place, segment }))
    }
}
