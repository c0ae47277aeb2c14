//! What the models do. Each is one run; `check` tries all of them. A lost wake-up shows as a deadlock, which loom tells.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64 as Plain;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::{Disk, ForkGuard, Map};
use crate::error::GetError;
use crate::format::frame::{self, Frame, Kind, Salt};
use crate::format::header::SegmentHeader;
use crate::format::meta::QueueMeta;
use crate::ids::ItemId;
use crate::journal::commit::Commit;
use crate::journal::files::OpenFiles;
use crate::journal::lane::{self, Lane};
use crate::journal::moves::Moves;
use crate::journal::pool::Pool;
use crate::journal::recovery::Recovery;
use crate::journal::segment::{FRAMES_AT, LEN_MIN, Segment};
use crate::journal::{Context, Journal, MetaFile};
use crate::options::{Durability, PutOptions, QueueOptions, State, WhenFull};
use crate::queue::core::{Core, Patience, Shared};
use crate::queue::fanout::Fanout;
use crate::queue::futures::SyncedFuture;
use crate::queue::put::{New, Room};
use crate::queue::state::States;
use crate::queue::take::{Given, LinePlace, Mode, Took};
use crate::reader::Reader;
use crate::reader::waiters::sleep_any;
use crate::stats::RecoveryReport;
use crate::sync::thread::{self, JoinHandle, block_on, spawn, waker};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock, time};
use crate::upkeep::{Chore, Upkeep};

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("loom ends the model at the first panic")
}

// ---- group commit

/// A device that says who asks it.
struct Device {
    appended: AtomicU64,
    /// What it has.
    durable: AtomicU64,
    busy: AtomicBool,
}

impl Device {
    fn new() -> Arc<Device> {
        Arc::new(Device { appended: AtomicU64::new(0), durable: AtomicU64::new(0), busy: AtomicBool::new(false) })
    }

    fn append(&self) -> u64 {
        self.appended.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn sync(&self) -> io::Result<u64> {
        assert!(!self.busy.swap(true, Ordering::Relaxed), "one leader at a time");
        let covered = self.appended.load(Ordering::Acquire);
        self.durable.fetch_max(covered, Ordering::Relaxed);
        Ok(covered)
    }

    /// The leader is busy until it has published.
    fn publish(&self, durable: u64) {
        assert!(self.durable.load(Ordering::Relaxed) >= durable, "published before the device has it");
        assert!(self.busy.swap(false, Ordering::Relaxed), "one leader at a time");
    }

    fn put(&self, commit: &Commit) {
        let id = self.append();
        commit.wait(id, || self.sync(), |durable| self.publish(durable)).expect("nothing fails");
        // Not by an access that orders: the answer itself must.
        assert!(self.durable.load(Ordering::Relaxed) >= id, "answered before the device has it");
        assert!(commit.durable() >= id, "answered before it is told");
    }
}

/// Every answer is covered by a sync; one leader at a time; nobody waits for ever.
pub fn answers_are_covered(threads: usize) {
    let (commit, device) = (Arc::new(Commit::new(0)), Device::new());
    let others: Vec<_> = (1..threads)
        .map(|_| {
            let (commit, device) = (Arc::clone(&commit), Arc::clone(&device));
            spawn(move || device.put(&commit))
        })
        .collect();
    device.put(&commit);
    others.into_iter().for_each(join);
    assert!(commit.syncs.load(Ordering::Relaxed) <= threads as u64, "a sync that nobody needed");
    assert_eq!(commit.durable(), threads as u64);
}

/// The same beside one who syncs whatever is durable already.
pub fn rounds_lead_too() {
    let (commit, device) = (Arc::new(Commit::new(0)), Device::new());
    let putter = {
        let (commit, device) = (Arc::clone(&commit), Arc::clone(&device));
        spawn(move || device.put(&commit))
    };
    commit.round(|| device.sync(), |durable| device.publish(durable)).expect("nothing fails");
    join(putter);
}

/// The first failure is latched: the device is asked once, and everybody who is not covered hears of the same failure.
pub fn failure_is_told_to_all(threads: usize) {
    let commit = Arc::new(Commit::new(1));
    let asked = Arc::new(Plain::new(0));
    let wait = |commit: Arc<Commit>, asked: Arc<Plain>, id| {
        let sync = || {
            assert_eq!(asked.fetch_add(1, Ordering::Relaxed), 0, "the device is asked again after a failure");
            Err(io::Error::other("device"))
        };
        commit.wait(id, sync, |_| panic!("published what is not durable")).expect_err("the device fails")
    };
    let others: Vec<_> = (1..threads as u64)
        .map(|n| {
            let (commit, asked) = (Arc::clone(&commit), Arc::clone(&asked));
            spawn(move || wait(commit, asked, 2 + n))
        })
        .collect();
    let mine = wait(Arc::clone(&commit), Arc::clone(&asked), 2);
    for error in others.into_iter().map(join) {
        assert!(Arc::ptr_eq(&error, &mine), "two failures told");
    }
    commit.wait(1, || panic!("the device is asked again"), |_| {}).expect("what was durable stays so");
}

/// A failure outside of a sync beside one in a sync: one of them is told, to both.
pub fn two_failures_are_one() {
    let commit = Arc::new(Commit::new(0));
    let other = {
        let commit = Arc::clone(&commit);
        spawn(move || commit.fail(io::Error::other("outside")))
    };
    let mine = commit.wait(1, || Err(io::Error::other("device")), |_| {}).expect_err("one way or the other");
    let theirs = join(other);
    assert!(Arc::ptr_eq(&mine, &theirs), "two failures told");
    assert!(commit.failure().is_some_and(|error| Arc::ptr_eq(&error, &mine)), "two failures told");
}

/// A leader who has seen less than a later one does not take back what is durable.
pub fn durable_never_falls() {
    let (commit, device) = (Arc::new(Commit::new(0)), Device::new());
    let other = {
        let (commit, device) = (Arc::clone(&commit), Arc::clone(&device));
        spawn(move || device.put(&commit))
    };
    let before = commit.durable();
    let after = commit.durable();
    assert!(before <= after);
    // A sync whose snapshot is older than what was told already.
    commit.round(|| Ok(0), |_| {}).expect("nothing fails");
    join(other);
    assert_eq!(commit.durable(), 1, "what is durable was taken back");
}

/// A task that listens, looks and then waits hears the end of the sync.
pub fn a_listener_hears_of_the_sync() {
    let (commit, device) = (Arc::new(Commit::new(0)), Device::new());
    let other = {
        let (commit, device) = (Arc::clone(&commit), Arc::clone(&device));
        spawn(move || device.put(&commit))
    };
    loop {
        let listener = commit.listen();
        if commit.durable() >= 1 {
            break;
        }
        block_on(listener);
    }
    join(other);
}

// ---- segments

const SALT: Salt = Salt(0x0123_4567_89ab_cdef);

fn segment(frame_words: usize) -> Arc<Segment> {
    let header = SegmentHeader {
        set_id: 1,
        queue_id: 1,
        number: 1,
        segment_bytes: LEN_MIN,
        first_id: 1,
        base_ms: 0,
        salt: SALT,
        boot_id: 1,
        previous: None,
    };
    let frames = FRAMES_AT as usize..FRAMES_AT as usize + frame_words * 8;
    let lanes = lane::lane_at(LEN_MIN, 0).expect("it has lanes");
    let segment = Segment::begin(&header, None, Map::watched(LEN_MIN as usize, frames, lanes..lanes + 2));
    let segment = segment.expect("memory");
    segment.begin_lane_block(0).expect("memory");
    Arc::new(segment)
}

/// Two marks beside a seal: somebody sees the segment spent, not both marks do, and who sees it sees all marks.
pub fn somebody_sees_it_spent() {
    let segment = segment(0);
    segment.publish(FRAMES_AT + 64, 2);
    let all_marked = |segment: &Segment| {
        let done = (0..2).filter(|ordinal| segment.lane(*ordinal).expect("memory") == Some(Lane::Done)).count();
        assert_eq!(done, 2, "spent before all marks are there");
    };
    let marks: Vec<_> = (0..2)
        .map(|ordinal| {
            let segment = Arc::clone(&segment);
            spawn(move || {
                let spent = segment.mark_done(ordinal).expect("memory");
                if spent {
                    all_marked(&segment);
                }
                spent
            })
        })
        .collect();
    let sealed = segment.seal();
    if sealed {
        all_marked(&segment);
    }
    let marked = marks.into_iter().map(join).filter(|spent| *spent).count() as u32;
    assert!(sealed || marked > 0, "nobody sees the segment spent");
    assert!(marked <= 1, "two marks were the last");
    assert!(segment.is_spent());
}

/// The gauge of done items orders like the seal does: who reads all done sees all marks.
pub fn done_tells_the_marks() {
    let segment = segment(0);
    segment.publish(FRAMES_AT + 64, 2);
    let other = Arc::clone(&segment);
    let marker = spawn(move || {
        other.mark_done(0).expect("memory");
        other.mark_done(1).expect("memory");
    });
    if segment.done() == 2 {
        for ordinal in 0..2 {
            assert_eq!(segment.lane(ordinal).expect("memory"), Some(Lane::Done), "counted before it is marked");
        }
    }
    join(marker);
}

/// An item comes and the segment is sealed behind it while the one before is marked done: that is not the last one.
pub fn a_seal_tells_the_count() {
    let segment = segment(0);
    segment.publish(FRAMES_AT + 32, 1);
    let other = Arc::clone(&segment);
    let consumer = spawn(move || other.mark_done(0).expect("memory"));
    segment.publish(FRAMES_AT + 64, 2);
    assert!(!segment.seal(), "spent with an item waiting");
    assert!(!join(consumer), "spent with an item waiting");
}

const FRAME_LEN: u32 = 32;

fn write_frame(segment: &Segment, ordinal: u32) {
    let payload = (0x5EED_0000_0000_0000 | u64::from(ordinal)).to_le_bytes();
    let offset = FRAMES_AT + ordinal * FRAME_LEN;
    let frame = Frame {
        kind: Kind::Item,
        payload_len: payload.len() as u32,
        payload_crc: frame::payload_crc(SALT, &payload),
        ordinal,
        time_delta: 0,
        synced_to: 0,
        id: None,
        expiry_ms: None,
        user_flags: 0,
        starts_before: 0,
        origin: None,
        noted: false,
        due_ms: 0,
        only: None,
    };
    assert_eq!(frame.total_len(), FRAME_LEN);
    let mut head = [0; frame::HEADER_BYTES + frame::EXTENSION_MAX];
    let head_len = frame::encode(&frame, SALT, offset, &mut head);
    segment.write_frame(offset, &head[..head_len], &payload).expect("memory");
    segment.publish(offset + FRAME_LEN, ordinal + 1);
}

/// Whatever end a reader sees, all frames before it are whole, and the count covers them.
pub fn frames_before_the_end_are_whole(frames: u32) {
    let segment = segment((frames * FRAME_LEN / 8) as usize);
    let other = Arc::clone(&segment);
    let writer = spawn(move || (0..frames).for_each(|ordinal| write_frame(&other, ordinal)));
    let end = segment.end();
    let count = segment.count();
    let mut offset = FRAMES_AT;
    let mut seen = 0;
    while offset < end {
        let frame = segment.frame_at(offset, end).expect("memory").expect("a frame before the end is not whole");
        assert_eq!(frame.ordinal, seen);
        let payload = segment.payload(offset, frame.head_len(), frame.payload_len, frame.payload_crc).expect("memory");
        assert!(payload.is_some(), "a payload before the end is not whole");
        offset += frame.total_len();
        seen += 1;
    }
    assert!(count >= seen, "the count does not cover the frames");
    join(writer);
}

// ---- queues

/// A queue whose syncs cover what is appended and cost nothing.
fn queue(options: QueueOptions) -> Arc<Core> {
    queue_in(None, options, Upkeep::default())
}

fn queue_in(dir: Option<PathBuf>, options: QueueOptions, upkeep: Upkeep) -> Arc<Core> {
    let disk = Disk::default();
    let pool = Pool::open(disk.clone(), PathBuf::from("pool"), OpenFiles::new(u64::MAX), 1 << 20, u64::MAX, false)
        .expect("nothing there");
    let meta = QueueMeta {
        set_id: 1,
        queue_id: 1,
        create_ms: 0,
        segment_floor: 1,
        segment_last: 0,
        last_end: 0,
        next_id: 1,
        clear_id: 0,
        clean: true,
        boot_id: 1,
        freed: Vec::new(),
        name: "q".into(),
        options: Vec::new(),
    };
    let context = Context {
        disk: disk.clone(),
        pool: Arc::new(pool),
        dir,
        set_id: 1,
        boot_id: 1,
        queue: "q".into(),
        read_only: false,
    };
    let outcome = Recovery::nothing(MetaFile { meta, slots: None, closed: false }, 0);
    let shared = Shared {
        clock: Clock::new(disk.clone()),
        disk,
        fork: ForkGuard,
        upkeep,
        closed: AtomicBool::new(false),
        read_only: false,
        states: States::new(State::Up),
        defaults: RwLock::new(QueueOptions::default()),
        changing_options: Mutex::new(()),
        salvage: false,
        moves: Moves::new(Disk::default(), &PathBuf::from("set"), 1),
        unmarked: AtomicBool::new(false),
        settling: AtomicBool::new(false),
        neighbours: OnceLock::new(),
        archive: None,
    };
    let journal = Arc::new(Journal::new(context, outcome.recovered, LEN_MIN));
    let reader = Reader::new(Arc::clone(&journal.front), None, 0, 0, 0);
    let fanout = Fanout::of_queue(false, BTreeMap::new());
    Core::new("q".into(), Arc::new(shared), journal, reader, options, RecoveryReport::default(), 0, true, fanout)
}

fn os() -> QueueOptions {
    QueueOptions::default().durability(Durability::Os)
}

fn put(core: &Core, text: &str) -> u64 {
    put_within(core, text, Room::ByPolicy, false).expect("there is room and no failure")
}

fn put_within(core: &Core, text: &str, room: Room, no_wait: bool) -> Option<u64> {
    core.put(New::items(&[text.as_bytes()]), &PutOptions::default(), room, no_wait, &mut Vec::new())
        .ok()
        .map(ItemId::get)
}

fn id(given: Option<Given>) -> u64 {
    given.expect("an item").item.id().get()
}

fn get_within(core: &Core, patience: Patience) -> Result<Option<Given>, GetError> {
    let mut given = None;
    core.take_waiting(Mode::Get, patience, &mut given)?;
    Ok(given)
}

fn get(core: &Core) -> u64 {
    id(get_within(core, Patience::Forever).expect("nothing fails"))
}

/// As a future takes: `place` is its place in the line.
fn get_async(core: &Core, place: &mut Option<LinePlace>) -> u64 {
    let given = block_on(poll_fn(|cx| match core.poll_take(Mode::Get, place, cx.waker()) {
        Ok(None) => Poll::Pending,
        Ok(given) => Poll::Ready(given),
        Err(error) => panic!("nothing fails: {error}"),
    }));
    id(given)
}

/// A put beside a get that waits.
pub fn a_put_wakes_a_get() {
    let core = queue(os());
    let other = Arc::clone(&core);
    let consumer = spawn(move || get(&other));
    put(&core, "a");
    assert_eq!(join(consumer), 1);
}

/// A put beside a task that waits.
pub fn a_put_wakes_a_task() {
    let core = queue(os());
    let other = Arc::clone(&core);
    let consumer = spawn(move || get_async(&other, &mut None));
    put(&core, "a");
    assert_eq!(join(consumer), 1);
}

/// Two that stand in line, a thread that is woken first may come last: items go out in the order of the line.
pub fn the_line_is_served_in_order() {
    let core = queue(os());
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let (core, mut place) = (Arc::clone(&core), Some(core.join()));
            spawn(move || get_async(&core, &mut place))
        })
        .collect();
    put(&core, "a");
    put(&core, "b");
    assert_eq!(consumers.into_iter().map(join).collect::<Vec<_>>(), [1, 2], "not first come first served");
}

/// Two gets beside two puts: no item stays while one of them sleeps.
pub fn two_gets_two_puts() {
    let core = queue(os());
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let core = Arc::clone(&core);
            spawn(move || get(&core))
        })
        .collect();
    put(&core, "a");
    put(&core, "b");
    assert_eq!(consumers.into_iter().map(join).sum::<u64>(), 1 + 2);
    assert!(core.reader.lock().line.is_empty(), "a place in line is left behind");
}

/// One that stands in line and one that only looks: who looks finds nothing but what is promised to nobody. It then takes the
/// first item, promised or not: items leave in their order, and the one in line gets the next.
pub fn nobody_overtakes() {
    let core = queue(os());
    let (other, mut place) = (Arc::clone(&core), Some(core.join()));
    let waiting = spawn(move || get_async(&other, &mut place));
    put(&core, "a");
    let look = |core: &Core| match core.take(Mode::Get, None) {
        Ok(Took::Item(given)) => Some(given.item.id().get()),
        _ => None,
    };
    assert_eq!(look(&core), None, "overtaken");
    put(&core, "b");
    let found = look(&core).expect("one is promised to nobody");
    let waited = join(waiting);
    assert_eq!(found + waited, 3, "{found}, {waited}");
}

/// A task that stands first in line is dropped at some moment: what it was promised goes to the next.
pub fn a_dropped_task_passes_its_promise_on() {
    let core = queue(os());
    let mut first = Some(core.join());
    let (other, mut second) = (Arc::clone(&core), Some(core.join()));
    let waiting = spawn(move || get_async(&other, &mut second));
    let other = Arc::clone(&core);
    let dropped = spawn(move || {
        let given = other.poll_take(Mode::Get, &mut first, &waker()).expect("nothing fails");
        drop(first);
        given.map(|given| given.item.id().get())
    });
    put(&core, "a");
    let next = match join(dropped) {
        Some(first) => {
            assert_eq!(first, 1);
            put(&core, "b")
        }
        None => 1,
    };
    assert_eq!(join(waiting), next);
    assert!(core.reader.lock().line.is_empty(), "a place in line is left behind");
}

/// A get with a deadline stands first in line, and its time passes at some moment.
pub fn a_late_get_passes_its_promise_on() {
    let core = queue(os());
    let deadline = time::now() + Duration::from_secs(1);
    let other = Arc::clone(&core);
    let late = spawn(move || get_within(&other, Patience::Until(deadline)).expect("nothing fails"));
    let other = Arc::clone(&core);
    let waiting = spawn(move || get(&other));
    // Before the put, so that the promise may come at the very end of the wait.
    time::pass(Duration::from_secs(2));
    put(&core, "a");
    let late = join(late);
    if late.is_some() {
        put(&core, "b");
    }
    let (late, waiting) = (late.map(|given| given.item.id().get()), join(waiting));
    assert!(matches!((late, waiting), (None, 1) | (Some(1), 2) | (Some(2), 1)), "{late:?}, {waiting}");
    assert!(core.reader.lock().line.is_empty(), "a place in line is left behind");
}

/// The queue is shut beside one who waits.
pub fn a_shut_queue_lets_everybody_go() {
    let core = queue(os());
    let other = Arc::clone(&core);
    let consumer = spawn(move || get_within(&other, Patience::Forever).err());
    core.shut(false);
    assert!(matches!(join(consumer), Some(GetError::Closed)));
}

/// Paused and resumed beside one who waits: what was promised is not forgotten by the pause.
pub fn a_pause_loses_nothing() {
    let core = queue(os());
    let other = Arc::clone(&core);
    let consumer = spawn(move || get(&other));
    put(&core, "a");
    core.set_paused(true);
    core.set_paused(false);
    assert_eq!(join(consumer), 1);
}

/// An item is given back beside one who waits.
pub fn an_abort_wakes_a_get() {
    let core = queue(os());
    put(&core, "a");
    let Ok(Took::Item(given)) = core.take(Mode::Open, None) else { panic!("it is there") };
    let other = Arc::clone(&core);
    let consumer = spawn(move || get(&other));
    assert!(core.abort_item(given.item.id().get(), given.serial));
    assert_eq!(join(consumer), 1);
}

/// The leader shows what the device has before it says so.
fn is_durable(core: &Core, id: u64) -> bool {
    let commit = &core.journal.commit;
    commit.durable() >= id || commit.is_asking() || commit.durable() >= id
}

/// Two putters who wait for the device and one consumer: items come in the order of ids, and none before it is durable.
pub fn hidden_until_durable() {
    let core = queue(QueueOptions::default());
    let putter = Arc::clone(&core);
    let putter = spawn(move || put(&putter, "a"));
    let consumer = Arc::clone(&core);
    let consumer = spawn(move || {
        for expected in 1..=2 {
            assert_eq!(get(&consumer), expected, "not in the order of ids");
            assert!(is_durable(&consumer, expected), "delivered before it is durable");
        }
    });
    put(&core, "b");
    join(putter);
    join(consumer);
}

/// A put that need not wait behind one that does: it is not shown before the other, and the upkeep thread sees to both.
pub fn order_goes_before_speed() {
    let core = queue(QueueOptions::default());
    let other = Arc::clone(&core);
    let consumer = spawn(move || {
        assert_eq!(get(&other), 1, "not in the order of ids");
        assert!(is_durable(&other, 1), "delivered before it is durable");
        assert_eq!(get(&other), 2, "not in the order of ids");
    });
    put_within(&core, "a", Room::ByPolicy, true).expect("nothing fails");
    let quick = PutOptions::default().durability(Durability::Os);
    core.put(New::items(&[b"b"]), &quick, Room::ByPolicy, false, &mut Vec::new()).expect("nothing fails");
    core.sync_appended();
    join(consumer);
}

/// A put that waits for the device beside one that does not, and a consumer: which of them shows the second item is open.
pub fn shown_by_either() {
    let core = queue(QueueOptions::default());
    let putter = Arc::clone(&core);
    let putter = spawn(move || put(&putter, "a"));
    let consumer = Arc::clone(&core);
    let consumer = spawn(move || {
        assert_eq!(get(&consumer), 1, "not in the order of ids");
        assert_eq!(get(&consumer), 2, "not in the order of ids");
    });
    let quick = PutOptions::default().durability(Durability::Os);
    core.put(New::items(&[b"b"]), &quick, Room::ByPolicy, false, &mut Vec::new()).expect("nothing fails");
    core.sync_appended();
    join(putter);
    join(consumer);
}

/// Two putters wait for room in a queue of one item.
pub fn room_is_passed_on() {
    let core = queue(os().max_items(1).when_full(WhenFull::Wait));
    put(&core, "a");
    let putters: Vec<_> = (0..2)
        .map(|_| {
            let core = Arc::clone(&core);
            spawn(move || put(&core, "b"))
        })
        .collect();
    assert_eq!([get(&core), get(&core), get(&core)], [1, 2, 3]);
    putters.into_iter().map(join).for_each(drop);
}

/// The same where the first gives up at some moment.
pub fn a_late_put_passes_its_room_on() {
    let core = queue(os().max_items(1).when_full(WhenFull::Wait));
    put(&core, "a");
    let deadline = time::now() + Duration::from_secs(1);
    let other = Arc::clone(&core);
    let late = spawn(move || put_within(&other, "b", Room::Within(Patience::Until(deadline)), false));
    let other = Arc::clone(&core);
    let waiting = spawn(move || put(&other, "c"));
    time::pass(Duration::from_secs(2));
    assert_eq!([get(&core), get(&core)], [1, 2]);
    if join(late).is_some() {
        assert_eq!(get(&core), 3);
    }
    join(waiting);
    assert!(core.reader.lock().space.is_empty(), "a place in line is left behind");
}

/// A task waits for an item to be durable that nobody else waits for, while the upkeep thread is on an earlier ring whose item
/// somebody else has synced.
pub fn a_synced_task_is_not_forgotten() {
    let core = queue(os());
    put(&core, "a");
    core.ring_sync();
    core.synced(1).expect("nothing fails");
    let other = Arc::clone(&core);
    let upkeep = spawn(move || other.shared.upkeep.run());
    let last = put(&core, "b");
    block_on(SyncedFuture::new(Arc::clone(&core), ItemId::new(last))).expect("nothing fails");
    core.shared.upkeep.ring(Chore::Stop);
    join(upkeep);
}

/// Puts that nobody waits for, beside the upkeep thread: it is rung for the last of them too, and syncs it.
pub fn the_last_put_is_tended() {
    let every = QueueOptions::default().durability(Durability::Every(Duration::from_secs(1)));
    let core = queue_in(Some(PathBuf::from("q")), every, Upkeep { tends: true, ..Upkeep::default() });
    put(&core, "a");
    let other = Arc::clone(&core);
    let upkeep = spawn(move || other.shared.upkeep.run());
    put(&core, "b");
    core.shared.upkeep.ring(Chore::Stop);
    join(upkeep);
    assert_eq!(core.journal.commit.durable(), 2, "nobody syncs the last put");
}

/// A segment that is sealed while its last items are closed is freed in the end, whoever was last.
pub fn a_spent_segment_is_freed() {
    let core = queue_in(Some(PathBuf::from("q")), os(), Upkeep::default());
    put(&core, "a");
    let Ok(Took::Item(given)) = core.take(Mode::Open, None) else { panic!("it is there") };
    let other = Arc::clone(&core);
    let consumer = spawn(move || {
        assert!(other.close_item(given.item.id().get(), given.serial).expect("nothing fails"));
        drop(given);
    });
    // More than is left in the first segment.
    put(&core, &"b".repeat(LEN_MIN as usize - 8192));
    join(consumer);
    core.shared.upkeep.ring(Chore::Stop);
    core.shared.upkeep.run();
    assert_eq!(core.journal.gauges().0, 1, "the spent segment is still there");
}

/// A spent segment is freed while a sync is on its way over it: its file goes back to the pool, and nobody uses it then.
pub fn a_freed_segment_is_gone() {
    let core = queue_in(Some(PathBuf::from("q")), os(), Upkeep::default());
    put(&core, "a");
    assert_eq!(get(&core), 1);
    put(&core, &"b".repeat(LEN_MIN as usize - 8192));
    let other = Arc::clone(&core);
    let upkeep = spawn(move || _ = other.free_spent());
    core.sync().expect("nothing fails");
    join(upkeep);
    // If somebody was in it the first time, as upkeep would do a moment later.
    core.free_spent();
    assert_eq!(core.journal.gauges().0, 1, "the spent segment is still there");
    let disk = &core.shared.disk;
    assert_eq!(disk.ending("new").len() + disk.ending("seg").len(), 1, "a freed segment's file is left behind");
    assert_eq!(disk.ending("spare").len(), 1, "a freed segment's file is lost to the pool");
}

/// The queue is cleared beside one who waits and may have been promised what is gone.
pub fn a_clear_strands_nobody() {
    let core = queue(os());
    let other = Arc::clone(&core);
    let consumer = spawn(move || get(&other));
    put(&core, "a");
    let cleared = core.clear().expect("nothing fails");
    put(&core, "b");
    assert_eq!(join(consumer), 1 + cleared);
}

/// The same where somebody else puts what is cleared, and wakes the one who waits when that one has found nothing already.
pub fn a_late_wake_strands_nobody() {
    let core = queue(os());
    let (other, place) = (Arc::clone(&core), core.join());
    let consumer = spawn(move || {
        loop {
            if let Took::Item(given) = other.take(Mode::Get, Some(&place.ticket)).expect("nothing fails") {
                return given.item.id().get();
            }
            assert!(place.ticket.sleep(None));
        }
    });
    let other = Arc::clone(&core);
    let clearer = spawn(move || {
        other.clear().expect("nothing fails");
        put(&other, "b");
    });
    put(&core, "a");
    assert!([1, 2].contains(&join(consumer)));
    join(clearer);
}

/// The oldest item is dropped for a new one beside two who wait and may have been promised it.
pub fn a_dropped_item_strands_nobody() {
    let core = queue(os().max_items(1).when_full(WhenFull::DropOldest));
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let (core, mut place) = (Arc::clone(&core), Some(core.join()));
            spawn(move || get_async(&core, &mut place))
        })
        .collect();
    put(&core, "a");
    put(&core, "b");
    let mut consumers = consumers.into_iter();
    let first = consumers.next().map(join);
    let dropped = core.stats().discarded;
    assert_eq!(first, Some(1 + dropped));
    if dropped > 0 {
        put(&core, "c");
    }
    assert_eq!(consumers.next().map(join), Some(2 + dropped));
}

/// One item that nobody waits to be durable, in a queue that shows durable items only: the upkeep thread publishes it, also when
/// it is on an earlier ring whose item somebody else has synced.
pub fn an_append_is_published() {
    let core = queue(QueueOptions::default());
    put_within(&core, "a", Room::ByPolicy, true).expect("nothing fails");
    core.synced(1).expect("nothing fails");
    assert_eq!(get(&core), 1);
    let other = Arc::clone(&core);
    let upkeep = spawn(move || other.shared.upkeep.run());
    put_within(&core, "b", Room::ByPolicy, true).expect("nothing fails");
    assert_eq!(get(&core), 2);
    core.shared.upkeep.ring(Chore::Stop);
    join(upkeep);
}

/// One thread waits for two queues at once and is promised an item of both: the one it does not take goes to the next.
pub fn a_place_in_two_lines() {
    let queues = [queue(os()), queue(os())];
    let both = queues.clone();
    let places = [queues[0].join(), queues[1].join()];
    let any = spawn(move || {
        loop {
            for (core, place) in both.iter().zip(&places) {
                if let Took::Item(given) = core.take(Mode::Get, Some(&place.ticket)).expect("nothing fails") {
                    assert_eq!(given.item.id().get(), 1);
                    return;
                }
            }
            assert!(sleep_any(&[&places[0].ticket, &places[1].ticket], None));
        }
    });
    let second = Arc::clone(&queues[1]);
    let next = spawn(move || get(&second));
    put(&queues[1], "b");
    put(&queues[0], "a");
    join(any);
    if queues[0].reader.lock().items() == 1 {
        put(&queues[1], "c");
    }
    join(next);
    assert!(queues.iter().all(|core| core.reader.lock().line.is_empty()), "a place in line is left behind");
}

/// The queue is cleared while a sync is on its way, and what was cleared is freed: one file is left, that of the item after.
pub fn a_cleared_segment_is_gone() {
    let core = queue_in(Some(PathBuf::from("q")), os(), Upkeep::default());
    put(&core, "a");
    let other = Arc::clone(&core);
    let syncer = spawn(move || other.sync().expect("nothing fails"));
    assert_eq!(core.clear().expect("nothing fails"), 1);
    core.free_spent();
    let last = put(&core, "b");
    join(syncer);
    core.free_spent();
    core.synced(last).expect("nothing fails");
    assert_eq!(get(&core), last);
    assert_eq!(core.journal.gauges().0, 1, "the cleared segment is still there");
    let disk = &core.shared.disk;
    assert_eq!((disk.ending("new").len(), disk.ending("seg").len()), (0, 1), "a file is left behind, or not named");
}

/// Two free what is spent at once, as upkeep and a put that needs room on the disk do.
pub fn a_segment_is_freed_once() {
    let core = queue_in(Some(PathBuf::from("q")), os(), Upkeep::default());
    put(&core, "a");
    assert_eq!(get(&core), 1);
    put(&core, &"b".repeat(LEN_MIN as usize - 8192));
    core.reader.lock().let_go();
    let other = Arc::clone(&core);
    let upkeep = spawn(move || other.journal.free_spent(&other.journal.spent()).map(drop).expect("nothing fails"));
    core.journal.free_spent(&core.journal.spent()).map(drop).expect("nothing fails");
    join(upkeep);
    core.free_spent();
    let (spares, spare_bytes, disk_bytes) = core.journal.context.pool.gauges();
    assert_eq!((spares, spare_bytes), (1, u64::from(LEN_MIN)), "a file was given twice");
    assert_eq!(disk_bytes, 3 * u64::from(LEN_MIN), "the pool has lost count");
}

/// A put beside the end of the queue: it is refused, or the item is there and durable once the end is settled.
pub fn the_end_takes_the_last_put_along() {
    let core = queue_in(Some(PathBuf::from("q")), os(), Upkeep::default());
    put(&core, "a");
    let other = Arc::clone(&core);
    let putter = spawn(move || put_within(&other, "b", Room::ByPolicy, false));
    core.shut(true);
    core.settle().expect("nothing fails");
    let last = join(putter).unwrap_or(1);
    assert!(core.journal.commit.durable() >= last, "an answered put is not settled");
}
