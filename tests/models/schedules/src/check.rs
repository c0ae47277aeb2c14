//! The rules that a history must keep. Each answers with what it found against it.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Covers, Got, History, Put, Take, Tick};
use crate::work::{Cut, Kind, World};
use crate::{Durability, QueueOptions, WhenFull};

pub type Verdict = Result<(), String>;

fn never(ended: Option<Tick>) -> Tick {
    ended.unwrap_or(Tick::MAX)
}

/// An execution's history, and its items by token.
pub struct Judge<'a> {
    world: &'a World,
    history: History,
    puts: BTreeMap<u64, usize>,
}

impl<'a> Judge<'a> {
    pub fn new(world: &'a World) -> Judge<'a> {
        let history = world.log.write().clone();
        let puts = history.puts.iter().enumerate().map(|(number, put)| (put.token, number)).collect();
        Judge { world, history, puts }
    }

    fn put(&self, token: u64) -> Option<&Put> {
        self.history.puts.get(*self.puts.get(&token)?)
    }

    fn takes_of(&self, token: u64) -> impl Iterator<Item = &Take> {
        self.history.takes.iter().filter(move |take| take.got.is_some_and(|got| got.token == token))
    }

    fn drops_oldest(&self, queue: usize) -> bool {
        let options = &self.world.options[queue];
        options.max_items.is_some() && options.when_full == WhenFull::DropOldest
    }

    /// Everything that can be said while the set is still the one of the history.
    pub fn live(&self) -> Verdict {
        self.ids_rise()?;
        self.given_once()?;
        self.first_in_first_out()?;
        self.line_in_order()
    }

    fn ids_rise(&self) -> Verdict {
        let mut stored: Vec<_> = Vec::new();
        for put in &self.history.puts {
            if let Answer::Stored(id) = put.answer {
                stored.push((put, id));
            }
        }
        for (n, (a, id_a)) in stored.iter().enumerate() {
            for (b, id_b) in &stored[n + 1..] {
                if a.queue != b.queue {
                    continue;
                }
                if id_a == id_b {
                    return Err(format!("one id twice: {a:?}, {b:?}"));
                }
                let (first, second) = if id_a < id_b { (a, b) } else { (b, a) };
                if never(second.ended) < first.began {
                    return Err(format!("ids do not rise: {second:?} ended before {first:?} began"));
                }
            }
            let of_batch = |other: &&(&Put, u64)| other.0.batch == a.batch && other.1 < *id_a;
            let before = stored.iter().filter(of_batch).count() as u64;
            if a.token & 0xFF != before || (before > 0 && !stored.iter().any(|(_, id)| id + 1 == *id_a)) {
                return Err(format!("a batch is not in one piece: {a:?}"));
            }
        }
        Ok(())
    }

    /// Only what was put, whole and under its id; again only after it was given back.
    fn given_once(&self) -> Verdict {
        for take in &self.history.takes {
            let Some(got) = take.got else { continue };
            let Some(put) = self.put(got.token) else { return Err(format!("never put: {take:?}")) };
            let known = match put.answer {
                Answer::Stored(id) => id == got.id,
                Answer::Refused => false,
                Answer::None | Answer::Unknown => true,
            };
            if !known || put.queue != got.queue || put.began > never(take.ended) {
                return Err(format!("not as it was put: {take:?}, {put:?}"));
            }
            if let Some(clear) = self.history.clears.iter().find(|clear| {
                clear.queue == put.queue && never(put.ended) < clear.began && never(clear.ended) < take.began
            }) {
                return Err(format!("given out after a clear: {take:?}, {clear:?}"));
            }
        }
        for token in self.puts.keys() {
            let mut takes: Vec<&Take> = self.takes_of(*token).collect();
            // A failed sync may take back the mark of a start.
            let counts = self.world.kind != Kind::Failing;
            takes.sort_by_key(|take| if counts { take.got.map_or(0, |got| got.attempts) } else { never(take.ended) });
            for (n, take) in takes.iter().enumerate() {
                let attempts = take.got.map_or(0, |got| got.attempts);
                if counts && attempts != n as u64 + 1 {
                    return Err(format!("starts are not counted one by one: {takes:?}"));
                }
                let Some(next) = takes.get(n + 1) else { continue };
                let given_back = take.end.filter(|end| !end.close).map(|end| end.began);
                if !take.open || given_back.is_none_or(|began| began > never(next.ended)) {
                    return Err(format!("given out twice: {take:?}, {next:?}"));
                }
            }
        }
        Ok(())
    }

    /// While an item waits, nobody gets a younger one, unless a consumer that was there first will have the older one.
    fn first_in_first_out(&self) -> Verdict {
        for younger in &self.history.takes {
            let (Some(got), Some(ended)) = (younger.got, younger.ended) else { continue };
            let others = self.history.takes.iter().filter(|other| {
                !std::ptr::eq(*other, younger) && other.queues.contains(&got.queue) && other.overlaps(younger)
            });
            if self.drops_oldest(got.queue) {
                continue;
            }
            for put in self.history.puts.iter().filter(|put| put.queue == got.queue && !put.expires) {
                let Answer::Stored(id) = put.answer else { continue };
                if id >= got.id || never(put.ended) >= younger.began {
                    continue;
                }
                let was_there = self.takes_of(put.token).all(|take| {
                    let back = take.end.filter(|end| !end.close).map_or(Tick::MAX, |end| never(end.ended));
                    take.began > ended || (take.open && back < younger.began)
                });
                let cleared = self
                    .history
                    .clears
                    .iter()
                    .any(|clear| clear.queue == put.queue && never(clear.ended) > put.began && clear.began < ended);
                // Whoever was promised the older item may have left, or found another one: one given back, or a younger one
                // because somebody who came later took the oldest there was.
                let has_older = |take: &Take| {
                    let older = |got: Got| got.attempts == 1 && got.id < id;
                    take.queues.len() == 1 && take.got.is_some_and(older)
                };
                if was_there && !cleared && others.clone().all(has_older) {
                    return Err(format!("overtaken: {put:?} waits while {younger:?}"));
                }
            }
        }
        Ok(())
    }

    /// Of two who stood in line, the first gets the older item.
    fn line_in_order(&self) -> Verdict {
        let first_time = |take: &Take| take.got.filter(|got| take.queues.len() == 1 && got.attempts == 1);
        for a in &self.history.takes {
            let (Some(got_a), Some(in_line)) = (first_time(a), a.in_line) else { continue };
            if self.drops_oldest(got_a.queue)
                || self.history.puts.iter().any(|put| put.queue == got_a.queue && put.expires)
            {
                continue;
            }
            // Whoever finds an item that is promised to nobody takes the oldest one, and the line goes on with the next; and
            // what was left for one who then gave up goes to a later one.
            let passed_by = self.history.takes.iter().any(|take| {
                let stays = take.queues.len() == 1 && take.got.is_some() && take.in_line.is_some();
                take.queues.contains(&got_a.queue) && !stays && take.overlaps(a)
            });
            if passed_by {
                continue;
            }
            for b in &self.history.takes {
                let Some(got_b) = first_time(b).filter(|got| got.queue == got_a.queue) else { continue };
                if b.in_line.is_none() || b.began < in_line || never(a.ended) < b.began || got_a.id < got_b.id {
                    continue;
                }
                let put_began = |got: Got| self.put(got.token).map_or(0, |put| put.began);
                let cleared = self.history.clears.iter().any(|clear| {
                    clear.queue == got_a.queue && never(clear.ended) > put_began(got_a).min(put_began(got_b))
                });
                if !cleared {
                    return Err(format!("not served in the order of the line: {a:?}, {b:?}"));
                }
            }
        }
        Ok(())
    }

    /// Whether somebody may have taken the item for good before `tick`.
    fn may_be_gone(&self, put: &Put, tick: Tick) -> bool {
        put.expires
            || self.drops_oldest(put.queue)
            || self.takes_of(put.token).any(|take| match take.end {
                _ if !take.open => take.began < tick,
                Some(end) => end.close && end.began < tick,
                None => false,
            })
            || self
                .history
                .clears
                .iter()
                .any(|clear| clear.queue == put.queue && clear.began < tick && never(clear.ended) > put.began)
    }

    /// Whether it was taken for good before `tick`, and for a loss of power, a sync has covered that.
    fn is_gone(&self, put: &Put, tick: Tick, power: bool) -> bool {
        let stays = |done: Tick| {
            done <= tick
                && (!power
                    || self.history.syncs.iter().any(|sync| {
                        sync.queue == put.queue
                            && sync.ended <= tick
                            && matches!(sync.covers, Covers::Before(before) if done <= before)
                    }))
        };
        self.takes_of(put.token).any(|take| match take.end {
            _ if !take.open => stays(never(take.ended)),
            Some(end) if end.close => stays(never(end.ended)) || end.synced.is_some_and(|synced| synced <= tick),
            _ => false,
        }) || self
            .history
            .clears
            .iter()
            .any(|clear| clear.queue == put.queue && never(clear.ended) <= tick && never(put.ended) <= clear.began)
    }

    /// Whether an answer before `tick` says that the device has it.
    fn is_durable(&self, put: &Put, id: u64, tick: Tick) -> bool {
        if never(put.ended) <= tick && put.synced {
            return true;
        }
        // With `Sync` nobody gets what a power cut could still take.
        let is_sync = self.world.options[put.queue].durability == Durability::Sync;
        (is_sync && self.takes_of(put.token).any(|take| never(take.ended) <= tick))
            || self.history.syncs.iter().any(|sync| {
                sync.queue == put.queue
                    && sync.ended <= tick
                    && match sync.covers {
                        Covers::Id(covered) => id <= covered,
                        Covers::Before(before) => never(put.ended) <= before,
                    }
            })
    }

    /// What is found after a kill or a power cut, against what was known at that moment.
    fn found(&self, queue: usize, found: &[Got], tick: Tick, power: bool) -> Verdict {
        let by_token: BTreeMap<u64, &Got> = found.iter().map(|got| (got.token, got)).collect();
        if by_token.len() != found.len() || found.windows(2).any(|pair| pair[0].id >= pair[1].id) {
            return Err(format!("twice, or not in the order of ids: {found:?}"));
        }
        for got in found {
            let Some(put) = self.put(got.token) else { return Err(format!("never put: {got:?}")) };
            let as_put = match put.answer {
                Answer::Stored(id) => id == got.id,
                Answer::Refused => false,
                Answer::None | Answer::Unknown => true,
            };
            if !as_put || put.queue != queue || put.began > tick {
                return Err(format!("not as it was put: {got:?}, {put:?}"));
            }
            if self.is_gone(put, tick, power) {
                return Err(format!("is back: {got:?}, {put:?}"));
            }
            let starts = |moment: fn(&Take) -> Tick| {
                self.takes_of(got.token).filter(|take| take.open && moment(take) <= tick).count() as u64
            };
            let (least, most) = (starts(|take| never(take.ended)), starts(|take| take.began));
            // The end of the set gives back the starts that it interrupts.
            let may_refund = power || self.history.closing.is_some_and(|closing| closing <= tick);
            let least = if may_refund { 0 } else { least };
            if !(least + 1..=most + 1).contains(&got.attempts) {
                return Err(format!("{} to {} starts, and not {got:?}", least + 1, most + 1));
            }
        }
        let highest = found.last().map_or(0, |got| got.id);
        let batches: BTreeSet<u64> =
            by_token.keys().filter_map(|token| self.put(*token)).map(|put| put.batch).collect();
        for put in self.history.puts.iter().filter(|put| put.queue == queue) {
            let Answer::Stored(id) = put.answer else { continue };
            if by_token.contains_key(&put.token) || self.may_be_gone(put, tick) {
                continue;
            }
            let answered = never(put.ended) <= tick;
            if (answered && !power) || self.is_durable(put, id, tick) {
                return Err(format!("lost: {put:?}"));
            }
            if id < highest {
                return Err(format!("a hole: {put:?} is not there, and {highest} is"));
            }
            if batches.contains(&put.batch) {
                return Err(format!("a part of a batch: {put:?} is not there"));
            }
        }
        Ok(())
    }

    /// Opens a copy of the disk and looks what is there.
    pub fn cut(&self, cut: &Cut) -> Verdict {
        let may_be_damaged = self.world.kind == Kind::Failing && !cut.power;
        let weak = |options: &QueueOptions| options.durability != Durability::Sync;
        if may_be_damaged && self.world.options.iter().any(weak) {
            // What was promised from the page cache alone, and taken back by the sync that failed, is told as damage.
            return Ok(());
        }
        let (set, queues) = self.world.reopened(&cut.disk)?;
        let found = self.world.drain(&queues);
        let mut highest = self.world.highest(cut.tick);
        if may_be_damaged {
            // A sync that fails may drop what it was to cover, and the process die before it has noted that: then an id that was
            // told and never durable is given out again, as the crate's page on durability says.
            highest.clear();
            for put in self.history.puts.iter().filter(|put| never(put.ended) <= cut.tick) {
                if let Answer::Stored(id) = put.answer
                    && self.is_durable(put, id, cut.tick)
                {
                    let known = highest.entry(put.queue).or_insert(0);
                    *known = id.max(*known);
                }
            }
        }
        // A sync that fails may drop what was stored since the last one, as a loss of power does.
        let power = cut.power || self.world.kind == Kind::Failing;
        for (queue, found) in found.iter().enumerate() {
            self.found(queue, found, cut.tick, power).map_err(|error| {
                format!("in {queue}, cut at {} (power {}, {:?}): {error}", cut.tick, cut.power, cut.fate)
            })?;
            let id = queues[queue].put("alive").map_err(|error| format!("not alive: {error}"))?.get();
            if highest.get(&queue).is_some_and(|known| *known >= id) {
                return Err(format!(
                    "in {queue}, cut at {} (power {}, {:?}): the id {id} is given out twice",
                    cut.tick, cut.power, cut.fate
                ));
            }
        }
        drop(queues);
        set.close().map_err(|error| format!("no close: {error}"))
    }

    /// What is left when all threads are done, taken out of the living set.
    pub fn rest(&self, left: &[Vec<Got>]) -> Verdict {
        for (queue, left) in left.iter().enumerate() {
            // By ids, but for items given back, which come before younger and older ones alike. (An older one that was left
            // for somebody ahead in the line stands among them.)
            for (n, first) in left.iter().enumerate() {
                let is_early = |next: &Got| next.id < first.id && (first.attempts == 1 || next.attempts > 1);
                if let Some(next) = left[n + 1..].iter().find(|next| is_early(next)) {
                    return Err(format!("not given back ones first, then by ids: {first:?}, {next:?}"));
                }
            }
            let tokens: BTreeSet<u64> = left.iter().map(|got| got.token).collect();
            let mut missing = 0;
            let mut cleared = false;
            for put in self.history.puts.iter().filter(|put| put.queue == queue) {
                let Answer::Stored(_) = put.answer else {
                    if put.answer == Answer::Refused && tokens.contains(&put.token) {
                        return Err(format!("refused, and there: {put:?}"));
                    }
                    continue;
                };
                let done = self.takes_of(put.token).any(|take| !take.open || take.end.is_some_and(|end| end.close));
                if done == tokens.contains(&put.token) {
                    let swept = self.history.clears.iter().any(|c| c.queue == queue && never(c.ended) > put.began);
                    cleared |= swept;
                    if done {
                        return Err(format!("done, and there: {put:?}"));
                    }
                    missing += u64::from(!swept);
                }
            }
            let stats = self.world.queues[queue].stats();
            let let_go = stats.expired_items + stats.discarded;
            if missing > let_go || (!cleared && missing < let_go) {
                return Err(format!("{missing} items are not there, and {let_go} expired or were dropped"));
            }
            if (stats.items, stats.open_items, stats.waiters) != (0, 0, 0) {
                return Err(format!("something is left behind: {stats:?}"));
            }
        }
        Ok(())
    }

    /// What an open after the end of the set finds, all of it in good order.
    pub fn reopened(&self, closed: Tick) -> Verdict {
        self.world.disk.heal();
        let (set, queues) = self.world.reopened(&self.world.disk.restart())?;
        let found = self.world.drain(&queues);
        for (queue, found) in found.iter().enumerate() {
            self.found(queue, found, closed, false)
                .map_err(|error| format!("in {queue}, closed and opened again: {error}"))?;
        }
        drop(queues);
        set.close().map_err(|error| format!("no close: {error}"))
    }
}
