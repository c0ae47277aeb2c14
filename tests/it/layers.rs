//! Options in layers: the crate's, the set's, the queue's.

use std::time::Duration;

use kestrel_core::{OpenError, OptionsError, QueueOptions, QueueOverrides, QueueSet, WhenFull};

use crate::common::{fast, put_all, world_with};

fn own() -> QueueOverrides {
    QueueOverrides::default()
}

fn with(mut options: QueueOptions, change: impl FnOnce(&mut QueueOptions)) -> QueueOptions {
    change(&mut options);
    options
}

#[test]
fn k161_a_queue_has_its_own_options_and_the_defaults_for_the_rest() {
    let world = world_with(fast().max_items(100).max_age(Duration::from_secs(60)));
    let plain = world.queue("plain");
    assert_eq!(plain.options(), world.set.defaults());
    let some = own().max_items(None).max_bytes(Some(7));
    let queue = world.set.queue_with_overrides("q", some.clone()).expect("opens");
    let expected = with(world.set.defaults(), |o| (o.max_items, o.max_bytes) = (None, Some(7)));
    assert_eq!((queue.options(), queue.overrides()), (expected, some.clone()));
    let full = world.set.queue_with("full", fast()).expect("opens");
    // A change of the defaults reaches what is not a queue's own, at once.
    world.set.set_defaults(fast().max_items(1).max_item_size(5)).expect("right");
    assert_eq!((plain.options().max_items, plain.options().max_age), (Some(1), None));
    assert_eq!((queue.options().max_items, queue.options().max_bytes), (None, Some(7)));
    assert_eq!((queue.options().max_item_size, queue.options().max_age), (5, None));
    assert_eq!(full.options(), fast());
    put_all(&plain, &["a"]);
    assert!(plain.put("b").is_err() && queue.put("too long").is_err() && full.put("not too long").is_ok());
    // Its own options are kept over a reopen, and the builder brings other defaults.
    let world = world.reopen();
    let queue = world.queue("q");
    assert_eq!(queue.overrides(), some);
    assert_eq!(queue.options(), fast().max_bytes(7));
    assert_eq!(world.queue("full").overrides(), fast().into());
    // A queue that is not loaded has the new defaults when it is.
    world.set.set_defaults(fast().max_items(3)).expect("right");
    assert_eq!(world.queue("plain").options().max_items, Some(3));
    queue.set_overrides(own()).expect("stored");
    assert_eq!(queue.options(), world.set.defaults());
    let world = world.killed();
    assert_eq!(world.queue("q").options(), fast());
}

#[test]
fn k161_the_builder_wins_over_what_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let set = QueueSet::open(dir.path()).expect("opens");
    let stored = own().max_items(Some(1)).when_full(WhenFull::DropOldest);
    set.queue_with_overrides("q", stored.clone()).expect("opens");
    set.close().expect("closes");
    let given = own().max_items(Some(2));
    let set = QueueSet::builder().defaults(fast()).queue_overrides("q", given).open(dir.path()).expect("opens");
    assert_eq!(set.queue("q").expect("opens").options(), fast().max_items(2));
    set.close().expect("closes");
    let set = QueueSet::open(dir.path()).expect("opens");
    assert_eq!(set.queue("q").expect("opens").overrides(), stored);
    // From a file of an odd hand, wrong together with the defaults.
    let wrong = own().max_attempts(Some(3));
    let refused = QueueSet::builder().queue_overrides("q", wrong.clone()).open(dir.path().join("x"));
    assert!(matches!(refused, Err(OpenError::Options(OptionsError::Invalid { field: "dead_letters", .. }))));
    assert!(matches!(set.queue_with_overrides("new", wrong), Err(OpenError::Options(_))));
    assert_eq!(set.names(), ["q"], "nothing was created");
}

#[test]
fn k161_wrong_options_change_nothing_anywhere() {
    let world = world_with(fast().dead_letters("dead"));
    let a = world.queue("a");
    let tries = own().max_attempts(Some(3));
    let b = world.set.queue_with_overrides("b", tries.clone()).expect("the letters come from the defaults");
    let memory = own().journal(false);
    let c = world.set.queue_with_overrides("c", memory).expect("opens");
    let before = [&a, &b, &c].map(|queue| queue.options());
    let out_of_range = world.set.set_defaults(fast().max_expire_sweep(0));
    assert!(matches!(out_of_range, Err(OptionsError::Invalid { field: "max_expire_sweep", .. })));
    let together = world.set.set_defaults(fast().max_items(9)).expect_err("b needs dead letters");
    let text = together.to_string();
    assert!(matches!(&together, OptionsError::Queue { queue, .. } if queue == "b"), "{together:?}");
    assert!(text.contains("\"b\"") && text.contains("dead_letters"), "{text}");
    let journal = world.set.set_defaults(fast().dead_letters("dead").journal(false));
    assert!(matches!(journal, Err(OptionsError::Queue { queue, .. }) if queue == "a"));
    let refused = b.set_overrides(tries.dead_letters(None));
    assert!(matches!(refused, Err(OptionsError::Invalid { field: "dead_letters", .. })));
    assert!(matches!(c.set_overrides(own()), Err(OptionsError::Journal { .. })));
    assert_eq!([&a, &b, &c].map(|queue| queue.options()), before);
    assert_eq!(world.set.defaults(), fast().dead_letters("dead"));
    a.put("x").expect("no limit was put in force");
}

#[test]
fn k161_a_loading_queue_meets_new_defaults() {
    let world = world_with(fast());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                world.queue(&format!("q{n}"));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut n = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            n += 1;
            world.set.set_defaults(fast().max_items(n)).expect("right");
        }
    });
    let expected = world.set.defaults();
    for name in world.set.names() {
        assert_eq!(world.queue(&name).options(), expected, "{name}");
    }
}

#[cfg(feature = "serde")]
mod read {
    use super::*;
    use std::collections::BTreeMap;

    use kestrel_core::Durability;

    /// As somebody's file of settings may look.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        defaults: QueueOptions,
        queues: BTreeMap<String, QueueOverrides>,
    }

    const SETTINGS: &str = r#"{
        "defaults": { "max_items": 1000, "when_full": "drop_oldest", "durability": "os", "max_age_ms": 60000, "lease_ms": "none" },
        "queues": {
            "logs": { "max_items": 5, "max_age_ms": "none", "expire_to": "late", "lease_ms": 1.5 },
            "mail": { "max_items": null, "durability": 1000, "expire_to": "" },
            "plain": {}
        }
    }"#;

    #[test]
    fn k161_options_are_read_from_a_file_of_settings() {
        let settings: Settings = serde_json::from_str(SETTINGS).expect("right");
        let dir = tempfile::tempdir().expect("a directory");
        let mut builder = QueueSet::builder().defaults(settings.defaults.clone());
        for (name, own) in &settings.queues {
            builder = builder.queue_overrides(name, own.clone());
        }
        let set = builder.open(dir.path()).expect("right");
        let options = |name: &str| set.queue(name).expect("opens").options();
        let defaults = QueueOptions::default()
            .max_items(1000)
            .when_full(WhenFull::DropOldest)
            .durability(Durability::Os)
            .max_age(Duration::from_secs(60));
        assert_eq!(options("plain"), defaults);
        assert_eq!(options("other"), defaults);
        let lease = Duration::from_micros(1500);
        let logs = defaults.clone().max_items(5).expire_to("late").lease(lease);
        assert_eq!(options("logs"), with(logs, |o| o.max_age = None));
        let every = Durability::Every(Duration::from_secs(1));
        assert_eq!(options("mail"), with(defaults.durability(every), |o| o.max_items = None));
        assert_eq!(settings.queues["mail"].expire_to, Some(None));
    }

    #[test]
    fn k161_overrides_are_shown_as_they_were_read() {
        let settings: Settings = serde_json::from_str(SETTINGS).expect("right");
        let whole = QueueOverrides::from(settings.defaults.clone());
        let long = QueueOverrides::default().lease(Some(Duration::MAX)).max_age(Some(Duration::from_nanos(1)));
        for own in settings.queues.values().chain([&whole, &long]) {
            let text = serde_json::to_string(own).expect("shown");
            assert_eq!(&serde_json::from_str::<QueueOverrides>(&text).expect("read"), own, "{text}");
        }
        assert_eq!(serde_json::to_string(&settings.queues["plain"]).expect("shown"), "{}");
        let text = serde_json::to_string(&settings.defaults).expect("shown");
        assert_eq!(serde_json::from_str::<QueueOptions>(&text).expect("read"), settings.defaults, "{text}");
        assert!(text.contains(r#""max_age_ms":60000"#) && text.contains(r#""max_bytes":"none""#), "{text}");
    }

    #[test]
    #[cfg(feature = "postcard")]
    fn k161_options_go_through_formats_that_are_not_for_people() {
        let every = Durability::Every(Duration::from_micros(1500));
        let options = QueueOptions::default().max_items(7).lease(Duration::from_nanos(1_000_001)).expire_to("late");
        for options in [QueueOptions::default(), options.clone().durability(Durability::Os), options.durability(every)]
        {
            let bytes = postcard::to_allocvec(&options).expect("written");
            assert_eq!(postcard::from_bytes::<QueueOptions>(&bytes).expect("read"), options);
        }
    }

    #[test]
    fn k161_what_cannot_be_read_is_named() {
        for (text, told) in [
            (r#"{ "max_itemz": 5 }"#, "max_itemz"),
            (r#"{ "max_items": -1 }"#, "-1"),
            (r#"{ "max_items": "lots" }"#, "lots"),
            (r#"{ "max_items": true }"#, "\"none\""),
            (r#"{ "max_attempts": 5000000000 }"#, "5000000000"),
            (r#"{ "when_full": "Burn" }"#, "Burn"),
            (r#"{ "max_age": 5 }"#, "max_age"),
            (r#"{ "max_age_ms": { "secs": 1, "nanos": 0 } }"#, "\"none\""),
            (r#"{ "max_age_ms": -1 }"#, "-1"),
            (r#"{ "lease_ms": -0.5 }"#, "-0.5"),
            (r#"{ "lease_ms": "1 s" }"#, "milliseconds"),
            (r#"{ "durability": "never" }"#, "never"),
            (r#"{ "durability": -5 }"#, "-5"),
            (r#"{ "expire_to": 7 }"#, "7"),
        ] {
            let error = serde_json::from_str::<QueueOverrides>(text).expect_err(text).to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
