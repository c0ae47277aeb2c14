//! What a set allows in each of its states.

use std::time::Duration;

use kestrel_core::{
    Error, GetError, MoveFault, OpenError, PutError, Queue, QueueOptions, QueueSet, State, StateError, StateOptions,
    WhenFull,
};

use crate::common::{put_all, text, until, world, world_with};

fn puts(queue: &Queue) -> Result<(), PutError> {
    queue.put("x").map(drop)
}

#[test]
fn k167_read_only_refuses_what_changes_and_lets_take() {
    let world = world();
    let queue = world.queue("q");
    put_all(&queue, &["a", "b", "c", "d"]);
    world.set.set_state(State::ReadOnly).expect("changes");
    assert_eq!(world.set.state(), State::ReadOnly);
    let refused = |answer: Result<(), PutError>| matches!(answer, Err(PutError::State { state: State::ReadOnly }));
    assert!(refused(puts(&queue)) && refused(queue.append("x").map(drop)));
    assert!(refused(queue.put_batch(["x", "y"]).map(drop)));
    assert!(refused(queue.put_timeout("x", Duration::from_millis(1)).map(drop)));
    assert!(matches!(queue.clear(), Err(Error::State { state: State::ReadOnly })));
    assert!(matches!(world.set.delete("q"), Err(Error::State { .. })));
    assert!(matches!(world.set.queue("new"), Err(OpenError::State { .. })));
    assert_eq!((queue.len(), world.set.names()), (4, vec!["q".to_owned()]));
    assert_eq!(queue.peek().expect("reads").map(|item| text(item.data())).as_deref(), Some("a"));
    assert!(queue.try_get().expect("reads").is_some());
    queue.open().expect("there").close().expect("closes");
    let held = queue.open().expect("there");
    assert!(held.extend(Duration::from_secs(60)));
    let error = held.close_into(&queue, "x").expect_err("a put");
    assert!(matches!(error.fault(), MoveFault::Put(PutError::State { .. })));
    error.into_item().expect("still open").abort();
    assert_eq!(queue.len(), 2);
    world.set.set_state(State::Up).expect("loosens");
    puts(&queue).expect("allowed again");
}

#[test]
fn k167_quiescent_refuses_gets_and_lets_open_items_end() {
    let world = world();
    let queue = world.queue("q");
    put_all(&queue, &["a", "b", "c"]);
    let held = queue.open_batch(3, Duration::ZERO).expect("there");
    let [a, b, c] = <[_; 3]>::try_from(held).expect("three");
    world.set.set_state(State::Quiescent).expect("changes");
    a.close().expect("closes");
    assert!(b.extend(Duration::from_secs(60)));
    b.abort();
    let token = c.into_token();
    assert!(queue.extend_token(token, Duration::from_secs(60)) && queue.close_token(token).expect("closes"));
    assert_eq!(queue.len(), 1);
    let refused = |error: GetError| matches!(error, GetError::State { state: State::Quiescent });
    assert!(refused(queue.try_get().expect_err("refused")) && refused(queue.open().expect_err("refused")));
    assert!(refused(queue.peek().expect_err("refused")));
    assert!(refused(world.set.open_any(std::slice::from_ref(&queue), Duration::ZERO).expect_err("refused")));
    assert!(matches!(puts(&queue), Err(PutError::State { state: State::Quiescent })));
    assert_eq!(world.set.queue("q").expect("it is there").stats().items, 1);
    world.set.set_state(State::ReadOnly).expect("loosens");
    assert_eq!(queue.try_get().expect("allowed").map(|item| text(item.data())).as_deref(), Some("b"));
}

#[test]
fn k167_who_waits_is_told_when_the_state_no_longer_allows_it() {
    let full = QueueOptions::default().max_items(1).when_full(WhenFull::Wait);
    let world = world_with(full);
    let (empty, queue) = (world.queue("empty"), world.queue("q"));
    queue.put("a").expect("room");
    std::thread::scope(|scope| {
        let putter = scope.spawn(|| queue.put("b"));
        let getter = scope.spawn(|| empty.get());
        until("both wait", || empty.stats().waiters == 1);
        world.set.set_state(State::ReadOnly).expect("changes");
        assert!(matches!(putter.join().expect("no panic"), Err(PutError::State { .. })));
        assert_eq!(empty.stats().waiters, 1, "gets are allowed");
        world.set.set_state(State::Quiescent).expect("changes");
        assert!(matches!(getter.join().expect("no panic"), Err(GetError::State { .. })));
    });
    assert_eq!((empty.stats().waiters, queue.len()), (0, 1));
}

#[test]
fn k167_a_stricter_state_waits_for_its_time_and_a_second_one_is_refused() {
    let world = world();
    let queue = world.queue("q");
    let hour = StateOptions::new().grace(Duration::from_secs(3600));
    world.set.set_state_with(State::Quiescent, &hour).expect("on its way");
    assert_eq!((world.set.state(), world.set.pending_state()), (State::Up, Some(State::Quiescent)));
    puts(&queue).expect("still allowed");
    for second in [State::ReadOnly, State::Quiescent] {
        let pending = world.set.set_state(second);
        assert!(matches!(pending, Err(StateError::Pending { in_force: State::Up, pending: State::Quiescent })));
    }
    world.set.set_state_with(State::Up, &hour).expect("loosening is at once and ends what was to come");
    assert_eq!(world.set.pending_state(), None);
    world
        .set
        .set_state_with(State::ReadOnly, &StateOptions::new().grace(Duration::from_millis(20)))
        .expect("on its way");
    until("the grace is over", || world.set.state() == State::ReadOnly);
    assert_eq!(world.set.pending_state(), None);
    assert!(matches!(puts(&queue), Err(PutError::State { .. })));
    world.set.set_state_with(State::Up, &hour).expect("loosens");
    puts(&queue).expect("at once");
}

#[test]
fn k167_a_state_is_kept_over_a_reopen_if_asked() {
    let world = world();
    puts(&world.queue("q")).expect("room");
    world.set.set_state(State::ReadOnly).expect("changes");
    let world = world.reopen();
    assert_eq!(world.set.state(), State::Up, "nobody asked for more");
    let stored = StateOptions::new().persist(true).grace(Duration::from_secs(3600));
    world.set.set_state_with(State::Quiescent, &stored).expect("stored");
    let world = world.reopen();
    assert_eq!(world.set.state(), State::Quiescent);
    assert!(matches!(world.queue("q").try_get(), Err(GetError::State { .. })));
    let looking = QueueSet::open_read_only(world.path()).expect("opens");
    assert!(looking.queue("q").expect("opens").peek().expect("who only looks may").is_some());
    assert!(matches!(looking.set_state(State::Up), Err(StateError::ReadOnly)));
    world.set.set_state_with(State::Up, &StateOptions::new().persist(true)).expect("stored");
    let world = world.killed();
    assert_eq!(world.set.state(), State::Up);
    let set = world.set.clone();
    set.clone().close().expect("closes");
    assert!(matches!(set.set_state(State::ReadOnly), Err(StateError::Closed)));
}
