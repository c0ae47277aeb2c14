//! The engine against a reference queue of a few lines, over random sequences of operations with reopen, kill and power cut.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::oracle::{DIR, options};
use crate::disk::Disk;
use crate::disk::sim::{Fate, SimDisk};
use crate::{Durability, OpenItem, PutError, PutOptions, Queue, QueueOptions, QueueSet, WhenFull};

#[derive(Clone, Debug)]
enum Step {
    Put(u16),
    PutExpiring(u16, u16),
    Batch(Vec<u16>),
    Get,
    Open,
    Close(u8),
    Abort(u8),
    Peek,
    Clear,
    Sweep,
    Pass(u16),
    Pause(bool),
    Upkeep,
    Reopen,
    Kill,
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u16..3000).prop_map(Step::Put),
        2 => (0u16..100, 0u16..500).prop_map(|(size, ms)| Step::PutExpiring(size, ms)),
        2 => prop::collection::vec(0u16..900, 1..5).prop_map(Step::Batch),
        4 => Just(Step::Get),
        5 => Just(Step::Open),
        4 => any::<u8>().prop_map(Step::Close),
        3 => any::<u8>().prop_map(Step::Abort),
        2 => Just(Step::Peek),
        1 => Just(Step::Clear),
        1 => Just(Step::Sweep),
        2 => (0u16..300).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Pause),
        2 => Just(Step::Upkeep),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Thing {
    id: u64,
    data: Vec<u8>,
    expires: u64,
    starts: u32,
}

/// The reference: what waits in order, what came back, what is open.
#[derive(Default)]
struct Model {
    waiting: VecDeque<Thing>,
    aborted: BTreeMap<u64, Thing>,
    open: Vec<(Thing, bool)>,
    now: u64,
    paused: bool,
    bytes_put: u64,
    total: u64,
}

impl Model {
    fn expire(&mut self) {
        let now = self.now;
        while let Some((id, _)) = self.aborted.iter().next().filter(|(_, t)| now > t.expires).map(|(id, t)| (*id, t)) {
            self.aborted.remove(&id);
        }
        while self.aborted.is_empty() && self.waiting.front().is_some_and(|thing| now > thing.expires) {
            self.waiting.pop_front();
        }
    }

    fn take(&mut self) -> Option<Thing> {
        if self.paused {
            return None;
        }
        self.expire();
        self.aborted.pop_first().map(|(_, thing)| thing).or_else(|| self.waiting.pop_front())
    }

    fn len(&self) -> u64 {
        (self.waiting.len() + self.aborted.len()) as u64
    }

    fn bytes(&self) -> u64 {
        self.waiting.iter().chain(self.aborted.values()).map(|thing| thing.data.len() as u64).sum()
    }

    /// All open ones come back first, in the order of ids.
    fn restart(&mut self, refund: bool) {
        let mut all: Vec<Thing> = self.aborted.values().cloned().chain(self.waiting.drain(..)).collect();
        for (mut thing, cleared) in self.open.drain(..) {
            if !cleared {
                thing.starts -= u32::from(refund);
                all.push(thing);
            }
        }
        all.sort_by_key(|thing| thing.id);
        self.aborted.clear();
        self.waiting = all.into();
        self.paused = false;
        (self.bytes_put, self.total) = (0, 0);
    }
}

fn run(steps: Vec<Step>, config: (u64, Option<u64>, u8)) -> Result<(), TestCaseError> {
    let (memory, max_items, full) = config;
    let mut settings: QueueOptions = options(Durability::Sync).memory_bytes(memory);
    settings.max_items = max_items;
    settings.when_full = if full == 1 { WhenFull::DropOldest } else { WhenFull::Refuse };
    let start = |disk: &SimDisk| -> (QueueSet, Queue) {
        let set =
            QueueSet::builder().disk(Disk::Sim(disk.clone())).defaults(settings.clone()).open(DIR).expect("opens");
        let queue = set.queue("q").expect("opens");
        (set, queue)
    };
    let mut disk = SimDisk::new(9);
    let (mut set, mut queue) = start(&disk);
    let mut model = Model { now: 1_700_000_000_000, ..Model::default() };
    let mut items: Vec<OpenItem> = Vec::new();
    let mut key = 0u64;
    let mut highest = 0;
    for step in steps {
        let mut puts: Option<(Vec<usize>, u64)> = None;
        match &step {
            Step::Put(size) => puts = Some((vec![*size as usize], u64::MAX)),
            // Expired items beyond the memory budget count until they are read: the reference has no such budget (K140).
            Step::PutExpiring(size, _) if memory < 1 << 20 => puts = Some((vec![*size as usize], u64::MAX)),
            Step::PutExpiring(size, ms) => puts = Some((vec![*size as usize], u64::from(*ms))),
            Step::Batch(sizes) => puts = Some((sizes.iter().map(|s| *s as usize).collect(), u64::MAX)),
            Step::Get => {
                let got = queue.try_get().expect("undamaged");
                let expected = model.take();
                prop_assert_eq!(
                    got.as_ref().map(|i| (i.id().get(), i.data().to_vec(), i.attempts())),
                    expected.map(|t| (t.id, t.data, t.starts + 1))
                );
            }
            Step::Open => {
                let got = queue.try_open().expect("undamaged");
                let expected = model.take();
                prop_assert_eq!(
                    got.as_ref().map(|i| (i.id().get(), i.data().to_vec(), i.attempts())),
                    expected.as_ref().map(|t| (t.id, t.data.clone(), t.starts + 1))
                );
                if let (Some(item), Some(mut thing)) = (got, expected) {
                    thing.starts += 1;
                    items.push(item);
                    model.open.push((thing, false));
                }
            }
            Step::Close(index) => {
                if !items.is_empty() {
                    let index = *index as usize % items.len();
                    items.remove(index).close().expect("marked");
                    model.open.remove(index);
                }
            }
            Step::Abort(index) => {
                if !items.is_empty() {
                    let index = *index as usize % items.len();
                    drop(items.remove(index));
                    let (thing, cleared) = model.open.remove(index);
                    if !cleared {
                        model.aborted.insert(thing.id, thing);
                    }
                }
            }
            Step::Peek => {
                let got = queue.peek().expect("undamaged");
                if !model.paused {
                    model.expire();
                }
                let expected =
                    if model.paused { None } else { model.aborted.values().next().or(model.waiting.front()) };
                prop_assert_eq!(got.map(|i| i.id().get()), expected.map(|t| t.id));
            }
            Step::Clear => {
                queue.clear().expect("stored");
                model.waiting.clear();
                model.aborted.clear();
                model.open.iter_mut().for_each(|(_, cleared)| *cleared = true);
            }
            Step::Sweep => {
                queue.discard_expired(usize::MAX).expect("undamaged");
                let now = model.now;
                // Items beyond memory may keep their place until they are read; compare only what is ready.
                if memory > 1 << 20 {
                    model.waiting.retain(|thing| now <= thing.expires);
                    model.aborted.retain(|_, thing| now <= thing.expires);
                }
            }
            Step::Pass(ms) => {
                disk.advance_ms(u64::from(*ms));
                model.now += u64::from(*ms);
            }
            Step::Pause(pause) => {
                if *pause {
                    queue.pause()
                } else {
                    queue.resume()
                }
                model.paused = *pause;
            }
            Step::Upkeep => {
                set.run_upkeep();
                // A sweep may have been due, or not.
                if queue.len() < model.len() {
                    let now = model.now;
                    model.waiting.retain(|thing| now <= thing.expires);
                    model.aborted.retain(|_, thing| now <= thing.expires);
                }
            }
            Step::Reopen | Step::Kill | Step::PowerCut => {
                if matches!(step, Step::PowerCut) {
                    queue.sync().expect("no fault");
                }
                let next = match step {
                    Step::Reopen => {
                        items.drain(..).for_each(|item| {
                            let _ = item.into_token();
                        });
                        set.clone().close().expect("closed");
                        disk.kill()
                    }
                    Step::Kill => disk.kill(),
                    _ => disk.power_cut(Fate::None),
                };
                items.drain(..).for_each(|item| {
                    let _ = item.into_token();
                });
                disk = next;
                (set, queue) = start(&disk);
                model.restart(matches!(step, Step::Reopen));
            }
        }
        if let Some((sizes, lasting)) = puts {
            let datas: Vec<Vec<u8>> = sizes
                .iter()
                .map(|size| {
                    key += 1;
                    let mut d = key.to_le_bytes().to_vec();
                    d.resize(8 + size, key as u8);
                    d
                })
                .collect();
            let answer = match (&datas[..], lasting) {
                ([one], u64::MAX) => queue.put(one).map(|id| vec![id]),
                ([one], ms) => {
                    queue.put_with(one, &PutOptions::new().expires_in(Duration::from_millis(ms))).map(|id| vec![id])
                }
                (many, _) => queue.put_batch(many),
            };
            let limit = max_items.unwrap_or(u64::MAX);
            let count = datas.len() as u64;
            if model.len() + count > limit && count <= limit {
                let now = model.now;
                model.waiting.retain(|thing| now <= thing.expires);
                model.aborted.retain(|_, thing| now <= thing.expires);
                while full == 1 && model.len() + count > limit && !model.paused {
                    model.take();
                }
                while full == 1 && model.len() + count > limit {
                    model.paused = false;
                    model.take();
                    model.paused = true;
                }
            }
            let fits = model.len() + count <= limit;
            match answer {
                Ok(ids) => {
                    prop_assert!(fits, "accepted over the limit");
                    for (id, data) in ids.iter().zip(datas) {
                        prop_assert!(id.get() > highest);
                        highest = id.get();
                        model.bytes_put += data.len() as u64;
                        model.total += 1;
                        let expires = if lasting == u64::MAX { u64::MAX } else { model.now + lasting };
                        model.waiting.push_back(Thing { id: id.get(), data, expires, starts: 0 });
                    }
                }
                Err(PutError::Full { .. }) =>
                // Expired items beyond memory count until they are read.
                {
                    prop_assert!(!fits || memory < 1 << 20, "refused under the limit")
                }
                Err(error) => prop_assert!(false, "{error:?}"),
            }
        }
        let stats = queue.stats();
        if stats.items < model.len() {
            // Expired items may go before anyone asks for them, all that were read with the one that was asked for.
            let now = model.now;
            model.waiting.retain(|thing| now <= thing.expires);
            model.aborted.retain(|_, thing| now <= thing.expires);
        }
        if memory > 1 << 20 {
            prop_assert_eq!((stats.items, stats.bytes), (model.len(), model.bytes()));
        }
        prop_assert_eq!((stats.total_items, stats.put_bytes), (model.total, model.bytes_put));
        prop_assert_eq!(stats.open_items, model.open.len() as u64);
        prop_assert!(
            stats.mem_bytes <= memory + 4096 * 8 + model.aborted.values().map(|t| t.data.len() as u64).sum::<u64>()
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_reference_does(
        steps in prop::collection::vec(step(), 1..80),
        memory in prop_oneof![Just(1u64 << 30), Just(4096)],
        max_items in prop_oneof![Just(None), (1u64..12).prop_map(Some)],
        full in 0u8..2,
    ) {
        run(steps, (memory, max_items, full))?;
    }
}
