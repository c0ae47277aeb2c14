//! Leases, hand-offs from one queue to another, dead letters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use kestrel_core::{
    CloseError, Durability, Error, Limit, MoveFault, OptionsError, PutError, PutOptions, Queue, QueueOptions, QueueSet,
    WhenFull,
};

use crate::common::{copy_dir, copy_of, drain as texts, until};

fn os() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os).segment_bytes(1 << 16)
}

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(20);

#[test]
fn k34_a_lease_that_ends_gives_the_item_back_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().lease(100 * MS)).unwrap();
    q.put_batch(["1", "2", "3", "4", "5"]).unwrap();
    let held: Vec<_> = (0..3).map(|_| q.open().unwrap()).collect();
    let fourth = q.open().unwrap();
    assert!(fourth.extend(LONG));
    until("it comes", || q.len() == 4);
    let again: Vec<_> = (0..4).map(|_| q.open().unwrap()).collect();
    assert_eq!(again.iter().map(|i| i.data()).collect::<Vec<_>>(), [b"1", b"2", b"3", b"5"]);
    assert_eq!(again[0].attempts(), 2);
    for late in held {
        assert!(!late.extend(LONG));
        assert!(matches!(late.close(), Err(CloseError::LeaseEnded)));
    }
    // The late closes changed nothing for who holds the items now.
    for item in again {
        assert!(item.extend(LONG));
        item.close().unwrap();
    }
    fourth.close().unwrap();
    assert_eq!((q.len(), q.stats().open_items, q.stats().leases_ended, q.stats().canceled_transactions), (0, 0, 3, 3));
}

#[test]
fn k34_an_ended_lease_wakes_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().lease(50 * MS)).unwrap();
    q.put("x").unwrap();
    let leaked = q.open().unwrap().into_token();
    let again = q.open_timeout(LONG).unwrap().expect("back when the lease ended");
    assert_eq!(again.attempts(), 2);
    assert!(!q.close_token(leaked).unwrap() && !q.abort_token(leaked) && !q.extend_token(leaked, LONG));
    again.close().unwrap();
}

#[test]
fn k35_an_extended_lease_lasts_and_one_that_ended_is_not_extended() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().lease(50 * MS)).unwrap();
    q.put_batch(["kept", "lost"]).unwrap();
    let kept = q.open().unwrap();
    assert!(kept.extend(Duration::MAX));
    let lost = q.open().unwrap();
    until("it comes", || q.len() == 1);
    assert!(!lost.extend(LONG));
    assert_eq!(texts(&q), ["lost"]);
    kept.close().unwrap();
    // Also where the queue has no lease of its own.
    q.set_options(os()).unwrap();
    q.put("x").unwrap();
    let item = q.open().unwrap();
    assert!(item.extend(20 * MS));
    until("it comes", || q.len() == 1);
    drop(item);
    assert_eq!((q.len(), q.stats().canceled_transactions), (1, 2));
}

#[test]
fn k38_close_into_the_same_queue_leaves_only_the_new_one_also_after_a_kill() {
    for options in [QueueOptions::default(), os()] {
        let dir = tempfile::tempdir().unwrap();
        let set = QueueSet::open(dir.path()).unwrap();
        let q = set.queue_with("q", options).unwrap();
        q.put("one").unwrap();
        let item = q.open().unwrap();
        let old = item.id();
        let new = item.close_into_with(&q, "two", &PutOptions::new().flags(7)).unwrap();
        assert!(new > old);
        let copy = copy_of(dir.path());
        assert_eq!((q.len(), q.peek().unwrap().unwrap().flags()), (1, 7));
        let set = QueueSet::open(copy.path()).unwrap();
        assert_eq!(texts(&set.queue("q").unwrap()), ["two"]);
    }
}

#[test]
fn s12_close_into_another_queue_moves_once() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let (a, b) = (set.queue_with("a", os()).unwrap(), set.queue("b").unwrap());
    for n in 0..100 {
        a.put(format!("{n}")).unwrap();
    }
    for n in 0..50 {
        let item = a.open().unwrap();
        assert_eq!(item.attempts(), 1);
        item.close_into(&b, format!("new {n}")).unwrap();
    }
    let half_done = a.open().unwrap();
    let copy = copy_of(dir.path());
    half_done.close_into(&b, "last").unwrap();
    assert_eq!((a.len(), b.len(), a.stats().open_items), (49, 51, 0));
    let set = QueueSet::open(copy.path()).unwrap();
    let (a, b) = (set.queue("a").unwrap(), set.queue("b").unwrap());
    assert_eq!((a.len(), b.len()), (50, 50));
    assert_eq!(texts(&a)[0], "50");
    assert!(b.get().unwrap().dead_letter().is_none());
    set.close().unwrap();
    assert!(!copy.path().join("moves").exists(), "a close in good order leaves nothing to settle");
}

#[test]
fn k39_close_into_a_full_queue_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let a = set.queue_with("a", os()).unwrap();
    let full = set.queue_with("full", os().max_items(1)).unwrap();
    full.put("there").unwrap();
    a.put_batch(["x", "y"]).unwrap();
    let error = a.open().unwrap().close_into(&full, "z").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::Put(PutError::Full { limit: Limit::Items, .. })));
    let item = error.into_item().expect("still open");
    assert_eq!((item.data(), a.stats().open_items, a.len(), full.len()), (&b"x"[..], 1, 1, 1));
    item.abort();
    let item = a.open().unwrap();
    assert_eq!((item.data(), item.attempts()), (&b"x"[..], 2));
    let item = item.close_into(&full, "z").unwrap_err().into_item().unwrap();
    item.close().unwrap();
    // The error aborts what it holds when it is dropped.
    drop(a.open().unwrap().close_into(&full, "z"));
    assert_eq!((texts(&a), texts(&full)), (vec!["y".to_owned()], vec!["there".to_owned()]));
}

#[test]
fn a_move_is_refused_where_it_could_lose_or_mistake_the_item() {
    let dir = tempfile::tempdir().unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let other = QueueSet::open(other_dir.path()).unwrap();
    let q = set.queue_with("q", os()).unwrap();
    let memory = set.queue_with("memory", os().journal(false)).unwrap();
    q.put("x").unwrap();
    let error = q.open().unwrap().close_into(&other.queue("q").unwrap(), "y").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::OtherSet));
    let error = error.into_item().unwrap().close_into(&memory, "y").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::NoJournal { queue } if queue == "memory"));
    let error = error.into_item().unwrap().dead_letter("why").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::NoDeadLetters));
    let item = error.into_item().unwrap();
    let big = vec![0; (1 << 20) + 1];
    let error = item.close_into(&q, big).unwrap_err();
    assert!(matches!(error.fault(), MoveFault::Put(PutError::TooLarge { .. })));
    let item = error.into_item().unwrap();
    // From memory to a journal, and within memory, it may.
    memory.put("light").unwrap();
    memory.open().unwrap().close_into(&memory, "lighter").unwrap();
    memory.open().unwrap().close_into(&q, "kept").unwrap();
    assert_eq!((memory.len(), texts(&q)), (0, vec!["kept".to_owned()]));
    assert!(item.extend(MS));
    until("it comes", || q.len() == 1);
    let error = item.close_into(&q, "y").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::LeaseEnded));
    assert!(error.into_item().is_none());
    let item = q.open().unwrap();
    set.close().unwrap();
    let error = item.close_into(&q, "y").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::Closed));
    assert!(matches!(Error::from(error), Error::Move(MoveFault::Closed)));
}

#[test]
fn k37_an_item_whose_attempts_are_used_up_leaves_once_and_the_next_one_is_given() {
    for durability in [Durability::Sync, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let set = QueueSet::open(dir.path()).unwrap();
        let options = os().durability(durability).max_attempts(3).dead_letters("dead");
        let q = set.queue_with("q", options).unwrap();
        let poison = q.put_with("poison", &PutOptions::new().flags(9)).unwrap();
        for _ in 0..2 {
            q.open().unwrap().abort();
        }
        let third = q.open().unwrap();
        assert_eq!(third.attempts(), 3);
        q.put("next").unwrap();
        std::thread::scope(|scope| {
            let next = q.open().unwrap();
            let waiter = scope.spawn(|| q.open().unwrap().data().to_vec());
            until("it comes", || q.stats().waiters == 1);
            third.abort();
            until("it comes", || set.get_queue("dead").unwrap().is_some_and(|dead| dead.len() == 1));
            assert_eq!(q.stats().waiters, 1, "who waits is not given the dead letter");
            next.abort();
            assert_eq!(waiter.join().unwrap(), b"next");
        });
        until("it comes", || q.stats().open_items == 0);
        assert_eq!((q.len(), q.stats().dead_lettered), (1, 1));
        let copy = copy_of(dir.path());
        let letter = set.queue("dead").unwrap().get().unwrap();
        assert_eq!((letter.data(), letter.flags(), letter.attempts()), (&b"poison"[..], 9, 1));
        let why = letter.dead_letter().unwrap();
        assert_eq!((why.queue.as_str(), why.id, why.attempts, why.reason.as_str()), ("q", poison, 3, "max_attempts"));
        let set = QueueSet::open(copy.path()).unwrap();
        assert_eq!(set.queue("dead").unwrap().get().unwrap().dead_letter(), Some(why));
        assert_eq!(texts(&set.queue("q").unwrap()), ["next"]);
    }
}

#[test]
fn k37_starts_that_end_with_the_process_count() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().max_attempts(2).dead_letters("dead")).unwrap();
    q.put_batch(["kills", "fine"]).unwrap();
    q.open().unwrap().abort();
    let _held = q.open().unwrap();
    let copy = copy_of(dir.path());
    let set = QueueSet::open(copy.path()).unwrap();
    let q = set.queue("q").unwrap();
    assert_eq!(q.len(), 2);
    let fine = q.open().unwrap();
    assert_eq!((fine.data(), fine.attempts()), (&b"fine"[..], 1));
    until("it comes", || set.queue("dead").unwrap().len() == 1);
    fine.close().unwrap();
    assert_eq!(set.queue("dead").unwrap().get().unwrap().data(), b"kills");
}

#[test]
fn an_ended_lease_may_be_the_last_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().lease(20 * MS).max_attempts(1).dead_letters("dead")).unwrap();
    q.put("slow").unwrap();
    let slow = q.open().unwrap();
    let letter = set.queue("dead").unwrap().get_timeout(LONG).unwrap().expect("moved");
    assert_eq!(letter.data(), b"slow");
    assert!(matches!(slow.close(), Err(CloseError::LeaseEnded)));
    until("it comes", || q.stats().open_items == 0);
    assert_eq!(q.len(), 0);
}

#[test]
fn a_dead_letter_takes_reason_and_payload_along_whatever_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().dead_letters("dead")).unwrap();
    let largest = vec![b'x'; 1 << 20];
    for (payload, reason) in [(&b""[..], String::new()), (&largest, "é".repeat(5000)), (b"p", "a\0b".into())] {
        q.put(payload).unwrap();
        q.open().unwrap().dead_letter(&reason).unwrap();
        let letter = set.queue("dead").unwrap().get().unwrap();
        assert!(letter.data() == payload);
        let kept = &letter.dead_letter().unwrap().reason;
        assert!(reason.starts_with(kept.as_str()) && (kept.len() == reason.len() || kept.len() >= 4093));
    }
    assert_eq!(q.stats().dead_lettered, 3);
}

#[test]
fn dead_letters_that_find_no_room_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let dead = set.queue_with("dead", os().max_items(1)).unwrap();
    dead.put("full").unwrap();
    let q = set.queue_with("q", os().max_attempts(1).dead_letters("dead")).unwrap();
    q.put("x").unwrap();
    q.open().unwrap().abort();
    let item = q.open_timeout(50 * MS).unwrap();
    assert!(item.is_none(), "it is not given out once more");
    assert_eq!((q.len(), q.stats().open_items), (0, 1));
    dead.get().unwrap();
    assert_eq!(dead.get_timeout(LONG).unwrap().expect("moved once there is room").data(), b"x");
    // A clear takes those on their way, too.
    dead.put("full").unwrap();
    q.put("y").unwrap();
    q.open().unwrap().abort();
    until("it comes", || q.stats().open_items == 1);
    q.clear().unwrap();
    assert_eq!((q.len(), q.stats().open_items), (0, 0));
}

#[test]
fn a_queue_is_not_its_own_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::builder().defaults(os().max_attempts(1).dead_letters("dead")).open(dir.path()).unwrap();
    let dead = set.queue("dead").unwrap();
    dead.put("x").unwrap();
    for _ in 0..3 {
        dead.open().unwrap().abort();
    }
    let error = dead.open().unwrap().dead_letter("again").unwrap_err();
    assert!(matches!(error.fault(), MoveFault::NoDeadLetters));
    drop(error);
    assert_eq!(dead.open().unwrap().attempts(), 5);
    let itself = dead.set_options(os().dead_letters("dead"));
    assert!(matches!(itself, Err(OptionsError::Invalid { field: "dead_letters", .. })));
    assert!(set.queue_with("new", os().dead_letters("new")).is_err());
}

#[test]
fn a_moved_item_may_move_on_and_queues_may_go_away_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let (a, b, c) = (set.queue("a").unwrap(), set.queue("b").unwrap(), set.queue("c").unwrap());
    a.put("1").unwrap();
    a.open().unwrap().close_into(&b, "2").unwrap();
    b.open().unwrap().close_into(&c, "3").unwrap();
    c.open().unwrap().close_into(&a, "4").unwrap();
    a.put("x").unwrap();
    let held = a.open().unwrap();
    assert_eq!(held.data(), b"4");
    set.delete("b").unwrap();
    c.clear().unwrap();
    let copy = copy_of(dir.path());
    assert!(held.close_into(&b, "5").unwrap_err().into_item().is_some(), "the other queue was deleted, this one not");
    let set = QueueSet::open(copy.path()).unwrap();
    assert_eq!(texts(&set.queue("a").unwrap()), ["4", "x"]);
    assert_eq!(set.names(), ["a", "c"]);
    assert!(set.queue("c").unwrap().is_empty());
}

#[test]
fn every_segment_is_shown_to_the_archive_before_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let shown = std::sync::atomic::AtomicU32::new(0);
    let options = os().dead_letters("dead").durability(Durability::Sync);
    let set = QueueSet::builder().defaults(options).archive(move |segment| {
        match shown.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => return Err(std::io::ErrorKind::Other.into()),
            1 => panic!("an archive that fails"),
            _ => {}
        }
        assert_eq!(std::fs::metadata(segment.path()).unwrap().len() % 65536, 0);
        for item in segment.items() {
            let item = item.unwrap();
            let reason = item.dead_letter().map(|why| why.reason.clone());
            let kept = (segment.queue().to_owned(), segment.number(), item.id().get(), item.data().len(), reason);
            tell.send(kept).unwrap();
        }
        Ok(())
    });
    let set = set.open(dir.path()).unwrap();
    let q = set.queue("q").unwrap();
    for size in 0..12 {
        q.put(vec![1; 20_000 + size]).unwrap();
    }
    for _ in 0..11 {
        q.get().unwrap();
    }
    // The failed ones are shown again, by and by, with nobody asking.
    let first: Vec<_> = (0..3).map(|_| told.recv_timeout(LONG).unwrap()).collect();
    assert!(first.iter().all(|(queue, ..)| queue == "q"));
    q.open().unwrap().dead_letter("kept").unwrap();
    set.queue("dead").unwrap().get().unwrap();
    set.delete("q").unwrap();
    set.queue("dead").unwrap().clear().unwrap();
    set.close().unwrap();
    let rest: Vec<_> = told.try_iter().collect();
    assert!(
        rest.iter()
            .any(|(queue, _, _, len, why)| { queue == "dead" && *len == 20_011 && why.as_deref() == Some("kept") })
    );
    let mut sizes: Vec<_> = first.iter().chain(&rest).filter(|k| k.0 == "q").map(|k| (k.2, k.3)).collect();
    sizes.dedup();
    assert!(sizes.len() >= 3 && sizes.iter().all(|(id, len)| *len as u64 == 20_000 + id - 1), "{sizes:?}");
}

/// The mark of a move is lost, as by a power cut, and the open takes long: the upkeep thread looked after the first queue
/// meanwhile, read its items into memory, and gave out what was found to have moved.
#[test]
fn upkeep_waits_until_interrupted_moves_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let options = os().durability(Durability::Every(MS));
    let set = QueueSet::builder().defaults(options.clone()).open(dir.path()).unwrap();
    let (a, b) = (set.queue("a").unwrap(), set.queue("b").unwrap());
    a.put_batch(["old", "other"]).unwrap();
    let item = a.open().unwrap();
    let before = copy_of(dir.path());
    item.close_into(&b, "new").unwrap();
    let after = copy_of(dir.path());
    std::fs::remove_dir_all(after.path().join("queues/a")).unwrap();
    copy_dir(&before.path().join("queues/a"), &after.path().join("queues/a")).unwrap();
    let set = QueueSet::builder()
        .defaults(options)
        .on_recovery(|at| {
            if at.queue == "b" {
                std::thread::sleep(100 * MS);
            }
            true
        })
        .open(after.path())
        .unwrap();
    let (a, b) = (set.queue("a").unwrap(), set.queue("b").unwrap());
    assert_eq!((a.len(), b.len()), (1, 1));
    assert_eq!((texts(&a), texts(&b)), (vec!["other".to_owned()], vec!["new".to_owned()]));
}

/// Nothing is freed that a move on its way could still need; a move into a full set is on its way itself, so it dropped all
/// items of the queue, one by one, and was then refused.
#[test]
fn a_move_that_makes_room_by_dropping_drops_no_more_than_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::builder().defaults(os()).max_disk_bytes(5 << 16).pool_bytes(0).open(dir.path()).unwrap();
    let from = set.queue("from").unwrap();
    let into = set.queue_with("into", os().when_full(WhenFull::DropOldest)).unwrap();
    from.put("x").unwrap();
    // Three to a segment, four segments.
    for _ in 0..12 {
        into.put(vec![1; 18_000]).unwrap();
    }
    assert_eq!(into.len(), 12);
    from.open().unwrap().close_into(&into, vec![2; 18_000]).unwrap();
    assert_eq!((into.len(), into.stats().discarded), (10, 3));
}

/// The items of a doomed queue are cleared while their dead letters' queue is being opened, and it turns out to be full.
#[test]
fn a_clear_beside_a_burial_leaves_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    set.queue_with("dead", os().max_items(1)).unwrap().put("full").unwrap();
    set.close().unwrap();
    let cleared: Arc<OnceLock<Queue>> = Arc::default();
    let queue = Arc::clone(&cleared);
    let set = QueueSet::builder()
        .on_recovery(move |at| {
            if let Some(queue) = queue.get()
                && at.queue == "dead"
            {
                queue.clear().unwrap();
            }
            true
        })
        .open(dir.path())
        .unwrap();
    let q = set.queue_with("q", os().max_attempts(1).dead_letters("dead")).unwrap();
    q.put("x").unwrap();
    let item = q.open().unwrap();
    cleared.set(q.clone()).unwrap();
    item.abort();
    until("the clear takes it along", || q.stats().total_flushes == 1 && q.stats().open_items == 0);
    assert_eq!((q.len(), set.queue("dead").unwrap().len()), (0, 1));
}

#[test]
fn items_that_no_limit_dooms_any_more_wait_again() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    set.queue_with("dead", os().max_items(1)).unwrap().put("full").unwrap();
    let doomed = os().max_attempts(1).dead_letters("dead");
    let q = set.queue_with("q", doomed.clone()).unwrap();
    for free in [os(), doomed.clone().max_attempts(9)] {
        q.set_options(doomed.clone()).unwrap();
        q.put("x").unwrap();
        q.open().unwrap().abort();
        assert!(q.open_timeout(20 * MS).unwrap().is_none());
        q.set_options(free).unwrap();
        let item = q.open_timeout(LONG).unwrap().expect("it may be tried again");
        assert_eq!((item.data(), item.attempts()), (&b"x"[..], 2));
        item.close().unwrap();
        assert_eq!((q.len(), q.stats().open_items), (0, 0));
    }
}

#[test]
fn a_peek_that_meets_a_dead_letter_has_it_moved() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().max_attempts(1).dead_letters("dead")).unwrap();
    q.put("x").unwrap();
    let _held = q.open().unwrap();
    let copy = copy_of(dir.path());
    let set = QueueSet::open(copy.path()).unwrap();
    let q = set.queue("q").unwrap();
    // Upkeep has looked after it twice, and has nothing more to do.
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(q.peek().unwrap().is_none());
    let letter = set.queue("dead").unwrap().get_timeout(LONG).unwrap().expect("moved");
    assert_eq!(letter.data(), b"x");
}

/// What an archive does not take gives no room, however much is dropped for it.
#[test]
fn an_archive_that_fails_costs_one_segment_not_all() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::builder().defaults(os()).max_disk_bytes(4 << 16).pool_bytes(0);
    let set = set.archive(|_| Err(std::io::ErrorKind::Other.into())).open(dir.path()).unwrap();
    let q = set.queue_with("q", os().when_full(WhenFull::DropOldest)).unwrap();
    for _ in 0..12 {
        q.put(vec![1; 18_000]).unwrap();
    }
    assert!(matches!(q.put(vec![2; 18_000]), Err(PutError::Full { limit: Limit::Disk, .. })));
    assert_eq!((q.len(), q.stats().discarded), (9, 3));
}

/// After a clear and the death of the process, recovery removed what was cleared without a word.
#[test]
fn the_archive_is_shown_what_was_cleared_before_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::builder().archive(|_| Err(std::io::ErrorKind::Other.into())).open(dir.path()).unwrap();
    let q = set.queue("q").unwrap();
    q.put("1").unwrap();
    q.clear().unwrap();
    q.put("2").unwrap();
    let copy = copy_of(dir.path());
    let (tell, told) = std::sync::mpsc::channel();
    let set = QueueSet::builder()
        .archive(move |segment| {
            tell.send(segment.items().map(|item| item.unwrap().data().to_vec()).collect::<Vec<_>>()).unwrap();
            Ok(())
        })
        .open(copy.path())
        .unwrap();
    let q = set.queue("q").unwrap();
    assert_eq!(told.recv_timeout(LONG).unwrap(), [b"1"]);
    assert_eq!(texts(&q), ["2"]);
    set.close().unwrap();
}

/// The note of the first move became part of the payload.
#[test]
fn a_dead_letter_that_dies_again_keeps_its_payload() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::open(dir.path()).unwrap();
    let q = set.queue_with("q", os().max_attempts(1).dead_letters("dead")).unwrap();
    let dead = set.queue_with("dead", os().max_attempts(1).dead_letters("grave")).unwrap();
    q.put_with("x", &PutOptions::new().flags(3)).unwrap();
    q.open().unwrap().abort();
    let item = dead.open_timeout(LONG).unwrap().expect("moved");
    let id = item.id();
    item.abort();
    let letter = set.queue("grave").unwrap().get_timeout(LONG).unwrap().expect("moved on");
    assert_eq!((letter.data(), letter.flags()), (&b"x"[..], 3));
    let why = letter.dead_letter().unwrap();
    assert_eq!((why.queue.as_str(), why.id, why.attempts), ("dead", id, 1));
}

/// A waker that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that fails");
    }
}

/// The new item was put, the waker of a task that waited for it panicked, and the old one went back to its queue beside it.
#[test]
fn a_waker_that_panics_does_not_undo_a_move() {
    for durability in [Durability::Sync, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let set = QueueSet::builder().defaults(os().durability(durability)).open(dir.path()).unwrap();
        let (a, b) = (set.queue("a").unwrap(), set.queue("b").unwrap());
        a.put("old").unwrap();
        let item = a.open().unwrap();
        let mut waits = Box::pin(b.open_async());
        assert!(waits.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Panics)))).is_pending());
        let moved = std::panic::catch_unwind(AssertUnwindSafe(|| item.close_into(&b, "new")));
        assert!(moved.is_err(), "the panic is its caller's");
        drop(waits);
        assert_eq!((a.len(), a.stats().open_items, texts(&b)), (0, 0, vec!["new".to_owned()]));
    }
}

/// The burial of the first item of two ended in the panic, and the second was never buried.
#[test]
fn a_waker_that_panics_stops_no_burial() {
    let dir = tempfile::tempdir().unwrap();
    let set = QueueSet::builder().defaults(os()).open(dir.path()).unwrap();
    let q = set.queue_with("q", os().max_attempts(1).dead_letters("dead")).unwrap();
    let dead = set.queue("dead").unwrap();
    q.put_batch(["1", "2", "3"]).unwrap();
    let items = q.open_batch(3, LONG).unwrap();
    let mut waits = Box::pin(dead.open_async());
    assert!(waits.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Panics)))).is_pending());
    // Together, as when their leases end.
    dead.set_options(os().max_items(0)).unwrap();
    drop(items);
    dead.set_options(os()).unwrap();
    until("they are moved", || q.stats().open_items == 0);
    drop(waits);
    assert_eq!(texts(&dead), ["1", "2", "3"]);
}
