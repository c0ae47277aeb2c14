//! One name that puts to several queues.

use kestrel_core::{
    AliasError, AliasPutError, Durability, Error, Limit, OpenError, PutError, PutOptions, QueueOptions, QueueSet,
    State, WhenFull,
};

use crate::common::{World, drain, fast, put_all, world};

fn counts(world: &World, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| world.queue(name).len()).collect()
}

#[test]
fn k163_a_put_to_an_alias_reaches_each_queue_once() {
    let world = world();
    let inner = world.set.alias("inner", &["b", "c"]).expect("set");
    let all = world.set.alias("all", &["a", "b", "inner", "b"]).expect("set");
    assert_eq!(all.queues().expect("there"), ["a", "b", "c"]);
    let ids = all.put_with("x", &PutOptions::new().flags(7)).expect("room");
    assert_eq!(ids.len(), 3);
    for (name, id) in ["a", "b", "c"].into_iter().zip(ids) {
        let item = world.queue(name).try_get().expect("reads").expect("there");
        assert_eq!((item.data(), item.flags(), item.id()), (&b"x"[..], 7, id));
        assert!(world.queue(name).is_empty(), "once");
    }
    inner.put("y").expect("room");
    assert_eq!(counts(&world, &["a", "b", "c"]), [0, 1, 1]);
    // Also over a reopen, and after a change.
    let world = world.reopen();
    assert_eq!(world.set.aliases(), ["all", "inner"]);
    world.set.alias("inner", &["d"]).expect("replaced");
    world.set.get_alias("all").expect("there").put("z").expect("room");
    assert_eq!(counts(&world, &["a", "b", "c", "d"]), [1, 2, 1, 1]);
    let world = world.killed();
    assert_eq!(world.set.get_alias("inner").expect("there").queues().expect("there"), ["d"]);
    assert!(world.set.remove_alias("inner").expect("stored") && !world.set.remove_alias("inner").expect("stored"));
    let gone = world.set.get_alias("all").expect("there");
    assert_eq!(gone.queues().expect("there"), ["a", "b", "inner"], "now the name of a queue to come");
    world.set.remove_alias("all").expect("stored");
    assert!(matches!(gone.put("x"), Err(AliasPutError::Gone { alias }) if alias == "all"));
}

#[test]
fn k163_waiters_and_all_durabilities_are_served_by_an_alias() {
    let world = world();
    let sync = world.set.queue_with("sync", QueueOptions::default()).expect("opens");
    let memory = world.set.queue_with("memory", fast().journal(false)).expect("opens");
    let all = world.set.alias("all", &["sync", "memory", "os"]).expect("set");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| sync.get().expect("comes"));
        crate::common::until("it waits", || sync.stats().waiters == 1);
        all.put("x").expect("room");
        assert_eq!(waiter.join().expect("no panic").data(), b"x");
    });
    assert_eq!((memory.len(), world.queue("os").len(), sync.stats().syncs > 0), (1, 1, true));
    all.put_with("y", &PutOptions::new().durability(Durability::Os)).expect("room");
    assert_eq!(drain(&sync), ["y"]);
}

#[test]
fn k164_where_one_refuses_nothing_is_stored_anywhere() {
    let world = world();
    let small = world.set.queue_with("small", fast().max_items(1)).expect("opens");
    let all = world.set.alias("all", &["a", "dropping", "small", "z"]).expect("set");
    let dropping = fast().max_items(1).when_full(WhenFull::DropOldest);
    let dropping = world.set.queue_with("dropping", dropping).expect("opens");
    put_all(&dropping, &["old"]);
    all.put("1").expect("room");
    assert_eq!(drain(&dropping), ["1"], "it made room");
    put_all(&dropping, &["kept"]);
    // But for their ages, which grow meanwhile.
    let told = || {
        ["a", "small", "z"].map(|name| {
            let mut stats = world.queue(name).stats();
            stats.oldest_age_ms = 0;
            stats
        })
    };
    let before = told();
    let refused = all.put("2").expect_err("small is full");
    let AliasPutError::Put { alias, queue, source: PutError::Full { limit: Limit::Items, .. } } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((alias.as_str(), queue.as_str()), ("all", "small"));
    assert_eq!(before, told(), "no trace");
    small.set_options(fast().max_items(5).max_item_size(3)).expect("stored");
    let refused = all.put("too long").expect_err("refused");
    assert!(matches!(refused, AliasPutError::Put { source: PutError::TooLarge { len: 8, max: 3 }, .. }));
    small.set_options(fast().max_items(1).when_full(WhenFull::Wait)).expect("stored");
    assert!(matches!(all.put("3"), Err(AliasPutError::Put { source: PutError::Full { .. }, .. })), "never waits");
    world.set.set_state(State::ReadOnly).expect("changes");
    assert!(matches!(all.put("4"), Err(AliasPutError::Put { source: PutError::State { .. }, .. })));
    world.set.set_state(State::Up).expect("changes");
    assert_eq!(drain(&dropping), ["kept"], "nothing was dropped for a put that was refused");
    // Nor is there anything behind the tails that a next process would find.
    let world = world.killed();
    assert_eq!(counts(&world, &["a", "small", "z"]), [1, 1, 1]);
}

#[test]
fn k165_an_alias_of_itself_a_ring_and_the_name_of_a_queue_are_errors() {
    let world = world();
    let alias = |name: &str, targets: &[&str]| world.set.alias(name, targets).map(drop);
    assert!(matches!(alias("self", &["a", "self"]), Err(AliasError::Ring { alias }) if alias == "self"));
    alias("one", &["two"]).expect("set");
    alias("two", &["three", "a"]).expect("set");
    assert!(matches!(alias("three", &["b", "one"]), Err(AliasError::Ring { alias }) if alias == "three"));
    alias("three", &["b"]).expect("no ring");
    world.queue("q");
    assert!(matches!(alias("q", &["a"]), Err(AliasError::IsQueue { alias }) if alias == "q"));
    assert!(matches!(alias("none", &[]), Err(AliasError::NoTargets { .. })));
    for (name, target) in [("", "a"), ("x+y", "a"), ("x", ""), ("x", "a\0")] {
        assert!(matches!(alias(name, &[target]), Err(AliasError::InvalidName { .. })), "{name:?} {target:?}");
    }
    let many: Vec<String> = (0..1001).map(|n| n.to_string()).collect();
    assert!(matches!(world.set.alias("many", &many), Err(AliasError::TooMany { .. })));
    world.set.alias("many", &many[1..]).expect("as many as there may be");
    assert_eq!(world.set.aliases(), ["many", "one", "three", "two"]);
    assert_eq!(world.set.get_alias("one").expect("there").queues().expect("there"), ["b", "a"]);
    // A long chain is no deep stack.
    for n in 0..100 {
        alias(&format!("c{n}"), &[&format!("c{}", n + 1)]).expect("set");
    }
    assert!(matches!(alias("c100", &["c0"]), Err(AliasError::Ring { .. })));
    world.set.get_alias("c0").expect("there").put("x").expect("room");
    assert_eq!(world.queue("c100").len(), 1);
}

#[test]
fn k166_an_alias_is_no_queue() {
    let world = world();
    put_all(&world.queue("masked"), &["old"]);
    let dir = world.copied();
    let world = {
        // A queue of the alias's name, as somebody's copy of a directory may bring it.
        let other = world;
        other.set.delete("masked").expect("gone");
        other.set.alias("masked", &["a"]).expect("set");
        let queues = |at: &std::path::Path| at.join("queues/masked");
        crate::common::copy_dir(&queues(dir.path()), &queues(other.path())).expect("copied");
        other.reopen()
    };
    let is_alias = |error: OpenError| matches!(error, OpenError::Alias { name } if name == "masked");
    assert!(is_alias(world.set.queue("masked").expect_err("no queue")));
    assert!(is_alias(world.set.get_queue("masked").expect_err("no queue")));
    assert!(is_alias(world.set.queue_with("masked", fast()).expect_err("no queue")));
    assert!(matches!(world.set.delete("masked"), Err(Error::Alias { name }) if name == "masked"));
    assert!(!world.set.names().contains(&"masked".to_owned()));
    assert_eq!(world.set.discard_expired(10).expect("passes it over"), 0);
    world.set.get_alias("masked").expect("there").put("new").expect("room");
    assert_eq!(drain(&world.queue("a")), ["new"]);
    world.set.remove_alias("masked").expect("stored");
    assert_eq!(drain(&world.queue("masked")), ["old"], "never touched");
}

#[test]
fn k166_a_damaged_file_of_aliases_is_told() {
    let world = world();
    world.set.alias("all", &["a", "b"]).expect("set");
    let dir = world.copied();
    let path = dir.path().join("aliases");
    let mut bytes = std::fs::read(&path).expect("stored");
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).expect("writable");
    let refused = QueueSet::open(dir.path()).expect_err("damaged");
    assert!(matches!(refused, OpenError::Corrupt { what: "aliases", .. }), "{refused:?}");
}
