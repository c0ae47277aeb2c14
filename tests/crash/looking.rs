//! Looking for items by their ids, taking one out of its turn, giving one back uncounted, and moving one into several.

use std::time::Duration;

use super::oracle::open;
use crate::disk::sim::{Fate, SimDisk};
use crate::{Durability, Item, ItemId, ItemState, PutOptions, Queue, QueueSet};

fn set_of(disk: &SimDisk) -> QueueSet {
    open(disk, Durability::Sync).expect("opens")
}

fn text(item: &Item) -> String {
    String::from_utf8_lossy(item.data()).into_owned()
}

fn rest(queue: &Queue) -> Vec<String> {
    std::iter::from_fn(|| queue.try_get().expect("reads")).map(|item| text(&item)).collect()
}

fn seen(queue: &Queue) -> Vec<String> {
    queue.browse(ItemId::new(0)).map(|item| text(&item.expect("reads"))).collect()
}

fn delayed(ms: u64) -> PutOptions {
    PutOptions::new().delay(Duration::from_millis(ms))
}

/// An item is taken out of its turn wherever it is: given back, read ahead, not yet reached, deferred, due.
#[test]
fn an_item_is_opened_by_its_id_wherever_it_waits() {
    for count in [1, 3, 40, 1000] {
        for which in [0, count / 2, count - 1] {
            for prepare in ["", "read ahead", "given back"] {
                for end in ["close", "abort", "drop the set"] {
                    let disk = SimDisk::new(1);
                    let set = set_of(&disk);
                    let queue = set.queue("q").expect("opens");
                    let texts: Vec<String> = (0..count).map(|n| format!("{n}")).collect();
                    let ids = queue.put_batch(&texts).expect("room");
                    match prepare {
                        "read ahead" => assert_eq!(queue.len(), count as u64),
                        "given back" => {
                            let held: Vec<_> = (0..=which).map(|_| queue.try_open().expect("reads")).collect();
                            drop(held);
                        }
                        _ => {}
                    }
                    let item = queue.open_id(ids[which]).expect("reads").expect("waits");
                    assert_eq!((text(&item), item.id()), (texts[which].clone(), ids[which]));
                    assert!(queue.open_id(ids[which]).expect("reads").is_none(), "in one hand at a time");
                    assert_eq!(queue.state_of(ids[which]).expect("reads"), ItemState::Open);
                    assert_eq!(queue.len(), count as u64 - 1);
                    let mut left = texts.clone();
                    match end {
                        "close" => {
                            item.close().expect("closes");
                            assert_eq!(queue.state_of(ids[which]).expect("reads"), ItemState::Gone);
                            left.remove(which);
                            assert_eq!(seen(&queue), left);
                        }
                        "abort" => {
                            item.abort();
                            // What was given back comes first.
                            let back = left.remove(which);
                            let at = if prepare == "given back" { which } else { 0 };
                            left.insert(at, back);
                        }
                        _ => {
                            let queue = set_of(&disk.kill()).queue("q").expect("opens");
                            drop(item);
                            let mut found = rest(&queue);
                            found.sort_by_key(|text| text.parse::<u64>().expect("a number"));
                            assert_eq!(found, left);
                            continue;
                        }
                    }
                    assert_eq!(rest(&queue), left, "{count} {which} {prepare} {end}");
                    assert_eq!((queue.len(), seen(&queue).len()), (0, 0));
                }
            }
        }
    }
}

#[test]
fn a_deferred_item_is_found_taken_and_told_of() {
    let disk = SimDisk::new(1);
    let set = set_of(&disk);
    let queue = set.queue("q").expect("opens");
    let ids: Vec<ItemId> =
        [300, 100, 200].iter().map(|ms| queue.put_with(format!("{ms}"), &delayed(*ms)).expect("room")).collect();
    let start = set.now();
    assert_eq!(queue.next_due(), Some(start + Duration::from_millis(100)));
    assert_eq!(seen(&queue), ["300", "100", "200"]);
    assert_eq!(queue.peek_id(ids[2]).expect("reads").map(|item| text(&item)).as_deref(), Some("200"));
    let item = queue.open_id(ids[1]).expect("reads").expect("deferred");
    assert_eq!(queue.next_due(), Some(start + Duration::from_millis(200)));
    // Given back it waits at once, as any other.
    item.give_back(Duration::ZERO);
    assert_eq!((queue.len(), queue.stats().deferred_items), (1, 2));
    let item = queue.open_id(ids[1]).expect("reads").expect("waits");
    assert_eq!(item.attempts(), 0, "none of these is a start");
    item.close_into_with(&queue, "100", &PutOptions::new()).expect("moves");
    let item = queue.try_open().expect("reads").expect("waits");
    assert_eq!(item.attempts(), 1);
    item.give_back(Duration::ZERO);
    let item = queue.try_open().expect("reads").expect("waits");
    assert_eq!(item.attempts(), 1, "the start before did not count");
    item.give_back(Duration::from_millis(50));
    assert_eq!((queue.len(), queue.next_due()), (0, Some(start + Duration::from_millis(50))));
    disk.advance_ms(250);
    let due = queue.open_id(ids[2]).expect("reads").expect("due, and not yet taken");
    due.close().expect("closes");
    disk.advance_ms(50);
    assert_eq!(rest(&queue), ["100", "300"]);
    assert_eq!((queue.next_due(), queue.stats().deferred_items), (None, 0));
}

#[test]
fn states_by_id_outlive_restarts_and_damage_none() {
    let disk = SimDisk::new(1);
    let queue = set_of(&disk).queue("q").expect("opens");
    let ids: Vec<ItemId> = (0..2000).map(|n| queue.append(format!("{n}")).expect("room")).collect();
    queue.sync().expect("syncs");
    for id in ids.iter().skip(1).step_by(2) {
        queue.open_id(*id).expect("reads").expect("waits").close().expect("closes");
    }
    queue.sync().expect("syncs");
    for after in [disk.kill(), disk.power_cut(Fate::None)] {
        let queue = set_of(&after).queue("q").expect("opens");
        for (n, id) in ids.iter().enumerate() {
            let (state, text) = (queue.state_of(*id).expect("reads"), queue.peek_id(*id).expect("reads"));
            let wanted = if n % 2 == 0 { ItemState::Waiting } else { ItemState::Gone };
            assert_eq!((state, text.is_some()), (wanted, n % 2 == 0), "{n}");
        }
        assert_eq!(queue.state_of(ItemId::new(0)).expect("reads"), ItemState::NeverPut);
        assert_eq!(queue.state_of(ItemId::new(u64::MAX)).expect("reads"), ItemState::NeverPut);
        let from = queue.browse(ids[1501]).next().expect("more").expect("reads");
        assert_eq!(from.id(), ids[1502]);
        assert_eq!(queue.clear().expect("clears"), 1000);
        assert_eq!((queue.state_of(ids[0]).expect("reads"), seen(&queue).len()), (ItemState::Gone, 0));
    }
}

/// Either the old item or all of the new ones, whatever the moment of the crash.
#[test]
fn an_item_moves_into_several_as_one_act() {
    let mut seen_both = [false; 2];
    for step in 0.. {
        let disk = SimDisk::new(7);
        let set = set_of(&disk);
        let (from, into) = (set.queue("from").expect("opens"), set.queue("into").expect("opens"));
        from.put("old").expect("room");
        disk.crash_at(disk.steps() + step, crate::disk::sim::When::Before);
        let answered = match from.try_open() {
            Ok(Some(item)) => item.close_into_batch(&into, ["a", "b", "c"]).is_ok(),
            _ => false,
        };
        if !disk.has_crashed() {
            assert!(answered && step > 5);
            break;
        }
        drop((from, into, set));
        for after in [disk.kill(), disk.power_cut(Fate::None), disk.power_cut(Fate::All)] {
            let set = set_of(&after);
            let old = rest(&set.queue("from").expect("opens"));
            let new = rest(&set.queue("into").expect("opens"));
            match (old.len(), new.len()) {
                (1, 0) => assert!(!answered),
                (0, 3) => assert_eq!(new, ["a", "b", "c"]),
                other => panic!("step {step}: {other:?}"),
            }
            seen_both[new.len() / 3] = true;
        }
    }
    assert_eq!(seen_both, [true, true]);
}
