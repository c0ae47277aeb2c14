//! Which queues items move between, so that a crash in the middle of a move leaves one item, not two.
//!
//! ```text
//!   record the route ─► put the new item, naming its origin ─► as durable as the old one ─► mark the old one done
//!        │ once for a pair                                                                      │ lost by a crash
//!        └────────────────── next open: look in the second queue for origins in the first ◄─────┘
//! ```
//!
//! The new frame names queue and item that it takes the place of. That is the truth after a crash; the mark of the old item may
//! not have reached the device. So (1) before the first move between two queues the pair is noted durably in the set's file
//! `moves`; (2) a segment that holds moved items is freed only after the marks that it vouches for are durable; (3) an open that
//! finds the file marks the old ones of all new items that it finds, before anybody gets either. A close in good order
//! removes the file. Each note says from which id on the second journal is to be looked through; it is renewed as the ids
//! rise, so that the next open reads a bounded part.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, File};
use crate::format::moved;
pub(crate) use crate::format::moved::Route;
use crate::planted::{self, Bug};
use crate::sync::Mutex;

/// A route is noted anew after this many ids, and the file grows in steps of this many bytes.
const STRETCH: u64 = 1 << 16;

/// The set's record of routes.
#[derive(Debug)]
pub(crate) struct Moves {
    disk: Disk,
    dir: PathBuf,
    seed: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    end: u64,
    allocated: u64,
    routes: HashMap<(String, String), Known>,
    /// The set was closed: the file may be somebody else's by now.
    closed: bool,
}

#[derive(Debug)]
struct Known {
    floor: u64,
    /// Moves on their way: the lowest id that each may get.
    running: Vec<u64>,
}

/// A move on its way.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    moves: &'a Moves,
    pair: (String, String),
    next_id: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.moves.state.lock().routes.get_mut(&self.pair)
            && let Some(index) = known.running.iter().position(|next_id| *next_id == self.next_id)
        {
            known.running.swap_remove(index);
        }
    }
}

impl Moves {
    pub(crate) fn new(disk: Disk, dir: &Path, set_id: u128) -> Moves {
        Moves { disk, dir: dir.to_owned(), seed: set_id as u32, state: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("moves")
    }

    /// What an earlier process has left, in the order in which it was noted.
    pub(crate) fn found(&self) -> io::Result<Vec<Route>> {
        let file = match self.disk.open(&self.path(), false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX).min(FOUND_MAX)];
        file.read_at(0, &mut bytes)?;
        let (mut routes, mut at) = (Vec::new(), 0);
        // What follows a note that is not whole was not noted: no move has relied on it.
        while let Some((route, len)) = bytes.get(at..).and_then(|bytes| moved::decode_route(bytes, self.seed)) {
            routes.push(route);
            at += len;
        }
        Ok(routes)
    }

    /// Keeps of what was found the routes that could not be settled, and forgets the rest.
    pub(crate) fn keep(&self, routes: Vec<Route>) -> io::Result<()> {
        if routes.is_empty() {
            return self.forget();
        }
        let mut state = self.state.lock();
        self.replace(&mut state, &routes)?;
        for route in routes {
            state.routes.insert((route.from, route.into), Known { floor: route.floor, running: Vec::new() });
        }
        Ok(())
    }

    fn replace(&self, state: &mut State, routes: &[Route]) -> io::Result<()> {
        let tmp = self.dir.join("moves.tmp");
        let (file, end, allocated) = self.write_new(&tmp, routes)?;
        self.disk.rename(&tmp, &self.path())?;
        // Full, as long as its name is not durable: the next note makes it anew.
        (state.file, state.end, state.allocated) = (Some(file), end, end);
        self.disk.sync_dir(&self.dir)?;
        state.allocated = allocated;
        Ok(())
    }

    /// A queue was deleted: no item of it is left, and what had moved there needs no note any more.
    pub(crate) fn leave(&self, name: &str) {
        self.state
            .lock()
            .routes
            .retain(|(from, into), known| (from != name && into != name) || !known.running.is_empty());
    }

    /// Everything is settled: nothing is left to look for.
    pub(crate) fn forget(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        match self.disk.unlink(&self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // If a power cut brings it back, it is looked through in vain.
            _ => *state = State { closed: state.closed, ..State::default() },
        }
        Ok(())
    }

    fn write_new(&self, path: &Path, routes: &[Route]) -> io::Result<(File, u64, u64)> {
        let bytes: Vec<u8> = routes.iter().flat_map(|route| moved::encode_route(route, self.seed)).collect();
        match self.disk.unlink(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(path)?;
        let end = bytes.len() as u64;
        // Room for as many again.
        let allocated = (2 * end).next_multiple_of(STRETCH);
        let written = (|| {
            file.allocate(allocated)?;
            file.write_at(0, &bytes)?;
            file.sync_data()
        })();
        match written {
            Ok(()) => Ok((file, end, allocated)),
            Err(error) => {
                let _ = self.disk.unlink(path);
                Err(error)
            }
        }
    }

    /// Notes durably, if it is not noted yet, that items of `from` move into `into`, whose next id is `next_id`. `settle`
    /// makes the marks of all that moved earlier durable; it is asked for when the note is renewed. `None`: the set is closed.
    pub(crate) fn begin(
        &self,
        from: &str,
        into: &str,
        next_id: u64,
        settle: impl FnOnce() -> bool,
    ) -> io::Result<Option<Running<'_>>> {
        let pair = (from.to_owned(), into.to_owned());
        let is_worn = self
            .state
            .lock()
            .routes
            .get(&pair)
            .is_some_and(|known| next_id.saturating_sub(known.floor) > STRETCH && known.running.is_empty());
        // Without the lock: a sync wakes tasks, and what a waker does may be a move. One that begins meanwhile gets ids from
        // `next_id` on.
        let renew = is_worn && settle();
        let mut state = self.state.lock();
        if state.closed {
            return Ok(None);
        }
        let old = state.routes.get(&pair).map(|known| known.floor);
        let route = Route { from: pair.0.clone(), into: pair.1.clone(), floor: next_id };
        let floor = match old {
            Some(old) if !renew => old,
            _ if planted::is(Bug::MoveWithoutRoute) => next_id,
            _ => match (self.note(&mut state, &route), old) {
                (Ok(()), _) => next_id,
                // The old note serves as well.
                (Err(_), Some(old)) => old,
                (Err(error), None) => return Err(error),
            },
        };
        let known = state.routes.entry(pair.clone()).or_insert(Known { floor, running: Vec::new() });
        known.floor = floor;
        known.running.push(next_id);
        Ok(Some(Running { moves: self, pair, next_id }))
    }

    fn note(&self, state: &mut State, newest: &Route) -> io::Result<()> {
        let bytes = moved::encode_route(newest, self.seed);
        let end = state.end + bytes.len() as u64;
        let Some(file) = &state.file else {
            let (file, end, allocated) = self.write_new(&self.path(), std::slice::from_ref(newest))?;
            self.disk.sync_dir(&self.dir)?;
            (state.file, state.end, state.allocated) = (Some(file), end, allocated);
            return Ok(());
        };
        if end > state.allocated {
            // Not longer and longer: what is renewed or of a queue that was deleted is left out.
            let known = state.routes.iter().map(|((from, into), known)| (from, into, known.floor));
            let route =
                |(from, into, floor): (&String, &String, u64)| Route { from: from.clone(), into: into.clone(), floor };
            let mut routes: Vec<Route> = known.map(route).collect();
            routes.push(newest.clone());
            return self.replace(state, &routes);
        }
        file.write_at(state.end, &bytes)?;
        file.sync_data()?;
        state.end = end;
        Ok(())
    }

    /// Lets no move begin any more. `false`: one is still on its way.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = state.routes.values().all(|known| known.running.is_empty());
        state.closed
    }

    /// The lowest id that the moves between the two may get that are on their way.
    pub(crate) fn first_running(&self, from: &str, into: &str) -> Option<u64> {
        let pair = (from.to_owned(), into.to_owned());
        self.state.lock().routes.get(&pair)?.running.iter().min().copied()
    }
}

/// No file of routes is larger: a hundred thousand pairs of names of ordinary length.
const FOUND_MAX: usize = 64 << 20;
