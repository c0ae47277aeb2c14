//! The rules of a chain of queues: where each item may be, who may have it, and what comes back after a crash.

use std::collections::{BTreeMap, BTreeSet};

use crate::Durability;
use crate::chain::{BY_HAND, Book, Chain, DEAD, Found, Given, IN, NAMES, OUT, Step, Story, Try, Wipe};
use crate::history::{Answer, Tick};
use crate::work::{DIR, filling};

pub type Verdict = Result<(), String>;

fn never(ended: Option<Tick>) -> Tick {
    ended.unwrap_or(Tick::MAX)
}

pub struct Links<'a> {
    chain: &'a Chain,
    story: Story,
}

/// The id that an operation gave to an item of a queue.
#[derive(Clone, Copy, Debug)]
struct Named {
    queue: usize,
    id: u64,
    began: Tick,
    ended: Tick,
}

impl Given {
    /// What ended it, or was on its way to: a close, a move, or a letter.
    fn ends(&self) -> impl Iterator<Item = &Try> {
        self.tries.iter().filter(|step| matches!(step.step, Step::Close | Step::Move | Step::Letter))
    }

    /// Whether it was the last of its queue that anybody saw of the item, by what was answered.
    fn is_last(&self) -> bool {
        !self.open || self.ends().any(|step| step.ok == Some(true))
    }

    /// The earliest moment at which it may have come back by itself before `tick`, in ms.
    fn due_ms(&self, lease_ms: u64, tick: Tick) -> u64 {
        let mut due_ms = self.began_ms.saturating_add(lease_ms);
        for step in self.tries.iter().filter(|step| step.ok != Some(false) && step.began < tick) {
            if let Step::Extend(lease_ms) = step.step {
                let next_ms = step.began_ms.saturating_add(lease_ms);
                // One that was answered by then counts alone, one that was asked at the same time perhaps.
                due_ms = if never(step.ended) < tick { next_ms } else { due_ms.min(next_ms) };
            }
        }
        due_ms
    }
}

impl<'a> Links<'a> {
    pub fn new(chain: &'a Chain) -> Links<'a> {
        let book: &Book = &chain.book;
        let story = book.write().clone();
        Links { chain, story }
    }

    fn max_attempts(&self, queue: usize) -> u64 {
        self.chain.options[queue].max_attempts.map_or(u64::MAX, u64::from)
    }

    fn of(&self, queue: usize, token: u64) -> impl Iterator<Item = &Given> {
        self.story.given.iter().filter(move |given| given.queue == queue && given.found.token == token)
    }

    /// Moves out of `in` of this kind that were not refused.
    fn moves(&self, token: u64, step: Step) -> impl Iterator<Item = &Try> {
        let all = self.of(IN, token).flat_map(|given| &given.tries);
        all.filter(move |of| of.step == step && of.ok != Some(false))
    }

    /// Everything that can be said while the set is still the one of the story.
    pub fn live(&self) -> Verdict {
        self.ids_rise()?;
        self.story.given.iter().try_for_each(|given| {
            self.has_origin(given.queue, &given.found, given.ended).map_err(|error| format!("{error}: {given:?}"))?;
            self.is_not_wiped(given)?;
            self.is_not_archived(given)
        })?;
        self.story.asked.iter().try_for_each(|asked| self.one_hand(asked.token))
    }

    fn named(&self) -> Vec<Named> {
        let puts = self.story.asked.iter().filter_map(|asked| match asked.answer {
            Answer::Stored(id) => Some(Named { queue: IN, id, began: asked.began, ended: asked.ended? }),
            _ => None,
        });
        let moves = self.story.given.iter().flat_map(|given| &given.tries).filter_map(|step| {
            let queue = if step.step == Step::Move { OUT } else { DEAD };
            Some(Named { queue, id: step.id?, began: step.began, ended: step.ended? })
        });
        puts.chain(moves).collect()
    }

    /// Also over the deletes of a queue.
    fn ids_rise(&self) -> Verdict {
        let named = self.named();
        for (n, a) in named.iter().enumerate() {
            for b in named[n + 1..].iter().filter(|b| b.queue == a.queue) {
                let (first, second) = if a.id < b.id { (a, b) } else { (b, a) };
                if a.id == b.id || second.ended < first.began {
                    return Err(format!("ids do not rise: {a:?}, {b:?}"));
                }
            }
        }
        Ok(())
    }

    /// It was put there, or came there as it was told.
    fn has_origin(&self, queue: usize, found: &Found, tick: Tick) -> Verdict {
        let Some(asked) = self.story.asked.iter().find(|asked| asked.token == found.token && asked.began < tick) else {
            return Err("never put".into());
        };
        let id = match asked.answer {
            Answer::Stored(id) => Some(id),
            Answer::Refused => return Err("refused, and there".into()),
            _ => None,
        };
        let came_by = |step: Step| {
            let mut moves = self.moves(found.token, step);
            moves.any(|of| of.began < tick && of.id.is_none_or(|id| id == found.id))
        };
        match (queue, &found.letter) {
            (IN, None) if id.is_none_or(|id| id == found.id) => Ok(()),
            (OUT, None) if came_by(Step::Move) => Ok(()),
            (DEAD, Some(letter)) if letter.queue == NAMES[IN] && id.is_none_or(|id| id == letter.id.get()) => {
                let attempts = u64::from(letter.attempts);
                let was_given = self.of(IN, found.token).any(|given| given.found.attempts == attempts);
                match letter.reason.as_str() {
                    BY_HAND if was_given && came_by(Step::Letter) => Ok(()),
                    "max_attempts" if was_given && attempts == self.max_attempts(IN) => Ok(()),
                    _ => Err("a letter that nobody wrote".into()),
                }
            }
            _ => Err("it does not belong here".into()),
        }
    }

    /// The moment from which on a wipe of the queue takes the item along, as far as it is known.
    fn came_at(&self, queue: usize, found: &Found) -> Option<Tick> {
        let step = match queue {
            IN => return self.story.asked.iter().find(|asked| asked.token == found.token)?.ended,
            OUT => Step::Move,
            _ => Step::Letter,
        };
        self.moves(found.token, step).find(|of| of.ok == Some(true) && of.id == Some(found.id))?.ended
    }

    fn is_not_wiped(&self, given: &Given) -> Verdict {
        let Some(came) = self.came_at(given.queue, &given.found) else { return Ok(()) };
        let wiped = |wipe: &&Wipe| wipe.queue == given.queue && came < wipe.began && never(wipe.ended) < given.began;
        match self.story.wipes.iter().find(wiped) {
            Some(wipe) => Err(format!("given out after {wipe:?}: {given:?}")),
            None => Ok(()),
        }
    }

    fn is_not_archived(&self, given: &Given) -> Verdict {
        let is_there = |ids: &[u64]| ids.contains(&given.found.id);
        match self
            .story
            .shown
            .iter()
            .find(|shown| shown.queue == given.queue && is_there(&shown.ids) && shown.tick < given.began)
        {
            Some(shown) => Err(format!("given out after the archive took it, {shown:?}: {given:?}")),
            None => Ok(()),
        }
    }

    /// An item is in one hand at a time, comes back when it is given back or its lease is over, and ends once.
    fn one_hand(&self, token: u64) -> Verdict {
        for queue in [IN, OUT, DEAD] {
            let mut all: Vec<&Given> = self.of(queue, token).collect();
            all.sort_by_key(|given| given.found.attempts);
            let lease_ms = self.chain.options[queue].lease_ms();
            for (n, given) in all.iter().enumerate() {
                if given.found.attempts != n as u64 + 1 {
                    return Err(format!("starts are not counted one by one: {all:?}"));
                }
                if given.found.attempts > self.max_attempts(queue) {
                    return Err(format!("one start too many: {given:?}"));
                }
                if given.ends().filter(|step| step.ok == Some(true)).count() > 1 {
                    return Err(format!("ended twice: {given:?}"));
                }
                let Some(next) = all.get(n + 1) else { continue };
                if given.is_last() {
                    return Err(format!("ended, and given out again: {given:?}, {next:?}"));
                }
                let backs = given.tries.iter().filter(|step| step.step == Step::Back);
                let given_back = backs.map(|step| step.began).min().is_some_and(|began| began < next.ended);
                if !given_back && next.ended_ms < given.due_ms(lease_ms, next.ended) {
                    return Err(format!("given out while it is held: {given:?}, {next:?}"));
                }
                let late = given.tries.iter().find(|step| {
                    matches!(step.step, Step::Extend(_)) && step.ok == Some(true) && step.began > next.ended
                });
                if let Some(late) = late {
                    return Err(format!("a lease that was over is extended: {late:?}, {next:?}"));
                }
            }
        }
        let from_in = self.of(IN, token).filter(|given| given.is_last()).count();
        let has_letter = |given: &Given| given.found.letter.as_ref().is_some_and(|letter| letter.reason != BY_HAND);
        let by_itself = usize::from(self.of(DEAD, token).any(has_letter));
        if from_in + by_itself > 1 {
            return Err(format!("{token} left twice: {:?}", self.of(IN, token).collect::<Vec<_>>()));
        }
        Ok(())
    }

    /// Whether a clear or a delete that began before `tick` may have taken it.
    fn may_be_wiped(&self, token: u64, tick: Tick) -> bool {
        let reached = |wipe: &Wipe| match wipe.queue {
            IN => self.story.asked.iter().any(|asked| asked.token == token && asked.began < never(wipe.ended)),
            OUT => self.moves(token, Step::Move).any(|of| of.began < never(wipe.ended)),
            _ => self.of(IN, token).any(|given| given.began < never(wipe.ended)),
        };
        self.story.wipes.iter().any(|wipe| wipe.began < tick && reached(wipe))
    }

    /// Whether somebody may have taken it for good before `tick`.
    fn may_be_done(&self, token: u64, tick: Tick) -> bool {
        self.story.given.iter().filter(|given| given.found.token == token).any(|given| {
            let closes = |step: &Try| step.step == Step::Close && step.ok != Some(false) && step.began < tick;
            (!given.open && given.began < tick) || given.tries.iter().any(closes)
        })
    }

    /// The tick at which it was certainly over with the item in this queue, of all that were; with `power`, also on the device
    /// by `tick`.
    fn is_over(&self, queue: usize, token: u64, tick: Tick, power: bool) -> bool {
        let covered = |done: Tick| {
            self.story.syncs.iter().any(|sync| sync.queue == queue && done < sync.began && sync.ended <= tick)
        };
        let stays = |done: Tick| done <= tick && (!power || covered(done));
        let marks = self.chain.options[queue].durability != Durability::Os;
        self.of(queue, token).any(|given| {
            (!given.open && stays(given.ended))
                || given.ends().filter(|step| step.ok == Some(true)).any(|step| {
                    let done = never(step.ended);
                    // The new item tells of the old one's end, wherever that is durable.
                    let told = step.step != Step::Close && marks;
                    stays(done) || (done <= tick && (step.synced || told))
                })
        })
    }

    /// What is found on a disk, against what was known at that moment.
    pub fn found(&self, found: &[Vec<Found>], tick: Tick, power: bool) -> Verdict {
        let mut tokens = BTreeMap::new();
        for (queue, found) in found.iter().enumerate() {
            if queue != IN && found.windows(2).any(|pair| pair[0].id >= pair[1].id) {
                return Err(format!("not in the order of ids in {queue}: {found:?}"));
            }
            for one in found {
                if let Some(other) = tokens.insert(one.token, queue) {
                    return Err(format!("in {queue} and in {other}: {one:?}"));
                }
                self.has_origin(queue, one, tick).map_err(|error| format!("{error}: {one:?} in {queue}"))?;
                if self.is_over(queue, one.token, tick, power) {
                    return Err(format!("is back in {queue}: {one:?}"));
                }
                if let Some(came) = self.came_at(queue, one)
                    && let Some(wipe) = self
                        .story
                        .wipes
                        .iter()
                        .find(|wipe| wipe.queue == queue && came < wipe.began && never(wipe.ended) <= tick)
                {
                    return Err(format!("is back after {wipe:?}: {one:?}"));
                }
                self.starts(queue, one, tick, power)?;
            }
        }
        for asked in &self.story.asked {
            let Answer::Stored(_) = asked.answer else { continue };
            let is_known = never(asked.ended) <= tick && (!power || self.is_durable(asked.token, tick));
            if is_known
                && !tokens.contains_key(&asked.token)
                && !self.may_be_done(asked.token, tick)
                && !self.may_be_wiped(asked.token, tick)
            {
                return Err(format!("lost: {asked:?}, {:?}", self.of(IN, asked.token).collect::<Vec<_>>()));
            }
        }
        Ok(())
    }

    fn is_durable(&self, token: u64, tick: Tick) -> bool {
        let Some(asked) = self.story.asked.iter().find(|asked| asked.token == token) else { return false };
        let ended = never(asked.ended);
        let is_sync = self.chain.options[IN].durability == Durability::Sync;
        // What left an `Os` queue before that queue was synced is as weak where it is now.
        let may_have_left = |tick: Tick| {
            let moved =
                [Step::Move, Step::Letter].into_iter().any(|step| self.moves(token, step).any(|of| of.began < tick));
            let last = |given: &Given| given.found.attempts >= self.max_attempts(IN) && given.began < tick;
            self.chain.options[IN].durability == Durability::Os && (moved || self.of(IN, token).any(last))
        };
        asked.synced
            // With `Sync` nobody gets what a power cut could still take.
            || (is_sync && self.of(IN, token).any(|given| given.ended <= tick))
            || self.story.syncs.iter().any(|sync| {
                sync.queue == IN && ended < sync.began && sync.ended <= tick && !may_have_left(sync.ended)
            })
    }

    fn starts(&self, queue: usize, found: &Found, tick: Tick, power: bool) -> Verdict {
        let starts = |moment: fn(&Given) -> Tick| {
            self.of(queue, found.token).filter(|given| given.open && moment(given) <= tick).count() as u64
        };
        // The end of the set gives back the starts that it interrupts.
        let may_refund = power || self.story.closing.is_some_and(|closing| closing <= tick);
        let least = if may_refund { 0 } else { starts(|given| given.ended) };
        let most = starts(|given| given.began);
        if !(least + 1..=most + 1).contains(&found.attempts) {
            return Err(format!("{} to {} starts, and not {found:?} in {queue}", least + 1, most + 1));
        }
        if found.attempts > self.max_attempts(queue) {
            return Err(format!("one start too many: {found:?}"));
        }
        Ok(())
    }

    /// What is left when all threads are done, taken out of the living set: each item is in one place.
    pub fn rest(&self, left: &[Vec<Found>]) -> Verdict {
        for (queue, left) in left.iter().enumerate() {
            for one in left {
                self.has_origin(queue, one, Tick::MAX).map_err(|error| format!("{error}: {one:?} in {queue}"))?;
            }
        }
        for asked in &self.story.asked {
            let token = asked.token;
            let places: Vec<usize> = (0..left.len())
                .flat_map(|queue| left[queue].iter().filter(|one| one.token == token).map(move |_| queue))
                .collect();
            let is_stored = matches!(asked.answer, Answer::Stored(_));
            let done = usize::from(self.may_be_done(token, Tick::MAX));
            let wiped = self.may_be_wiped(token, Tick::MAX);
            match places.len() + done {
                0 if !is_stored || wiped => {}
                1 if is_stored => {}
                _ => {
                    let given: Vec<_> = self.story.given.iter().filter(|given| given.found.token == token).collect();
                    return Err(format!("left in {places:?}, done {done}, wiped {wiped}: {asked:?}, {given:?}"));
                }
            }
        }
        Ok(())
    }

    /// After the end of the set: what is in no segment any more was shown to the archive.
    pub fn archived(&self) -> Verdict {
        let shown: BTreeSet<(usize, u64)> =
            self.story.shown.iter().flat_map(|shown| shown.ids.iter().map(|id| (shown.queue, *id))).collect();
        for (queue, name) in NAMES.iter().enumerate().take(2) {
            if self.story.wipes.iter().any(|wipe| wipe.queue == queue && wipe.delete) {
                continue;
            }
            let dir = format!("{DIR}/queues/{name}/");
            let paths = self.chain.disk.list_files();
            let paths = paths.iter().filter(|path| path.to_string_lossy().starts_with(&dir));
            let files: Vec<Vec<u8>> = paths.filter_map(|path| self.chain.disk.read_file(path)).collect();
            let mut stored: Vec<(u64, u64)> = Vec::new();
            for asked in &self.story.asked {
                let id = match (queue, asked.answer) {
                    (IN, Answer::Stored(id)) => Some(id),
                    (OUT, _) => self.moves(asked.token, Step::Move).find_map(|of| of.id),
                    _ => None,
                };
                stored.extend(id.map(|id| (asked.token, id)));
            }
            for (token, id) in stored {
                let mut begins = token.to_le_bytes().to_vec();
                begins.extend([filling(token); 16]);
                let is_there = || files.iter().any(|file| file.windows(begins.len()).any(|bytes| bytes == begins));
                if !shown.contains(&(queue, id)) && !is_there() {
                    return Err(format!("the archive was not shown {id} of {name}: {:?}", self.story.shown));
                }
            }
        }
        Ok(())
    }
}
