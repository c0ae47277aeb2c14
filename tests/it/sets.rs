//! The set: names, locks, hostile files, read-only, fork, isolation.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use kestrel_core::{Durability, Error, GetError, OpenError, PutError, PutOptions, QueueOptions, QueueSet, SyncError};

use crate::common::{drain, fast, put_all, until, world, world_with};

#[test]
fn f33_k60_names_of_every_kind_are_refused_or_come_back_and_never_share_a_file() {
    let w = world();
    let long = "x".repeat(200);
    let emoji = "💥".repeat(50);
    let names = [
        "../x",
        "a/b",
        ".",
        "..",
        "CON",
        "Orders",
        "orders",
        "\u{202e}abc",
        "e\u{301}",
        "\u{e9}",
        "tilde~",
        " ",
        "a b",
        "%41",
        "-",
        "_",
        "a.tmp",
        &long,
        &emoji,
    ];
    for name in names {
        w.queue(name).put(name).expect("room");
    }
    for bad in ["", "a\0b", "q+", "+r", "+", &"x".repeat(201), &"x".repeat(10_000)] {
        assert!(matches!(w.set.queue(bad), Err(OpenError::InvalidName { .. })), "{bad:?}");
        assert!(matches!(w.set.get_queue(bad), Err(OpenError::InvalidName { .. })));
    }
    let w = w.reopen();
    let mut sorted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    sorted.sort();
    assert_eq!(w.set.names(), sorted);
    for name in names {
        assert_eq!(drain(&w.queue(name)), [name]);
    }
    for name in names {
        assert!(w.set.delete(name).expect("removed"));
    }
    assert_eq!(std::fs::read_dir(w.path().join("queues")).expect("there").count(), 0);
}

#[test]
fn f35_k62_a_second_opener_is_told_at_once() {
    let w = world();
    assert!(matches!(
        QueueSet::open(w.path()),
        Err(OpenError::Locked { pid: Some(pid), .. }) if pid == std::process::id()
    ));
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    QueueSet::open(&path).expect("free again");
}

#[test]
fn k61_a_missing_directory_is_created_and_a_file_in_its_place_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let deep = dir.path().join("a/b/c");
    QueueSet::open(&deep).expect("created").queue("q").expect("opens").put("x").expect("room");
    assert_eq!(deep.metadata().expect("there").permissions().mode() & 0o777, 0o700);
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("written");
    assert!(QueueSet::open(&file).is_err());
    assert_eq!(std::fs::read(&file).expect("there"), b"x");
    let missing = dir.path().join("missing");
    assert!(matches!(QueueSet::open_read_only(&missing), Err(OpenError::Io { .. })));
    assert!(!missing.exists());
}

#[test]
fn f36_read_only_shows_without_changing_anything() {
    let w = world();
    put_all(&w.queue("q"), &["a", "b"]);
    let held = w.queue("q").open().expect("there");
    let copy = w.copied();
    let before = snapshot(copy.path());
    let set = QueueSet::open_read_only(copy.path()).expect("opens");
    assert_eq!(set.names(), ["q"]);
    let q = set.queue("q").expect("opens");
    assert_eq!((q.len(), q.peek().expect("undamaged").expect("there").data().to_vec()), (2, b"a".to_vec()));
    assert!(matches!(q.put("x"), Err(PutError::ReadOnly)));
    assert!(matches!(q.try_get(), Err(GetError::ReadOnly)));
    assert!(matches!(q.clear(), Err(Error::ReadOnly)));
    assert!(matches!(set.delete("q"), Err(Error::ReadOnly)));
    assert!(matches!(set.queue("new"), Err(OpenError::ReadOnly { .. })));
    set.close().expect("closes");
    assert_eq!(snapshot(copy.path()), before);
    held.close().expect("marked");
}

fn snapshot(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            all.extend(snapshot(&path));
        } else {
            all.push((path.clone(), std::fs::read(&path).expect("readable")));
        }
    }
    all.sort();
    all
}

#[test]
fn f34_links_fifos_and_directories_in_place_of_files_are_typed_errors_and_not_followed() {
    for what in ["symlink", "fifo", "directory", "hard link"] {
        for place in ["segment", "meta", "set", "lock"] {
            let w = world();
            w.queue("q").put("x").expect("room");
            let dir = w.copied();
            let path = match place {
                "segment" => crate::common::segments(dir.path(), "q").remove(0),
                "meta" => dir.path().join("queues/q/meta"),
                other => dir.path().join(other),
            };
            let target = dir.path().join("elsewhere");
            std::fs::rename(&path, &target).expect("moved");
            let before = std::fs::read(&target).expect("readable");
            match what {
                "symlink" => std::os::unix::fs::symlink(&target, &path).expect("linked"),
                "hard link" => std::fs::hard_link(&target, &path).expect("linked"),
                "directory" => std::fs::create_dir(&path).expect("made"),
                _ => {
                    let name = std::ffi::CString::new(path.to_str().expect("utf-8")).expect("no nul");
                    // SAFETY: a valid C string; tests may make a FIFO.
                    #[allow(unsafe_code)]
                    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
                    assert_eq!(made, 0);
                }
            }
            let answer = QueueSet::open(dir.path()).and_then(|set| set.queue("q").map(|_| ()));
            assert!(matches!(answer, Err(OpenError::NotRegular { .. })), "{what} for {place}: {answer:?}");
            assert_eq!(std::fs::read(&target).expect("readable"), before);
        }
    }
}

#[test]
fn f27_a_damaged_queue_stays_closed_and_others_open() {
    let w = world();
    w.queue("bad").put("x").expect("room");
    w.queue("good").put("y").expect("room");
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    std::fs::write(path.join("queues/bad/meta"), vec![0xFF; 8192]).expect("damaged");
    let set = QueueSet::open(&path).expect("opens");
    assert!(matches!(set.queue("bad"), Err(OpenError::Corrupt { ref queue, .. }) if queue == "bad"));
    assert_eq!(drain(&set.queue("good").expect("opens")), ["y"]);
    assert!(set.delete("bad").expect("a damaged queue can be removed"));
    set.queue("bad").expect("made anew").put("z").expect("room");
}

#[test]
fn f25_a_forked_child_can_do_nothing_and_harms_nothing() {
    let w = world();
    let q = w.queue("q");
    q.put("a").expect("room");
    let held = q.open().expect("there");
    // SAFETY: the child only calls into this crate, which touches no lock that another thread could hold, and exits.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let refused = matches!(q.put("b"), Err(PutError::Forked))
            && matches!(q.try_get(), Err(GetError::Forked))
            && matches!(w.set.queue("other"), Err(OpenError::Forked))
            && matches!(w.set.sync(), Err(kestrel_core::SyncError::Forked));
        drop(held);
        drop(q);
        drop(w.set.clone());
        // SAFETY: ends the child without running the parent's exit handlers.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(if refused { 0 } else { 1 })
        };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0));
    assert_eq!(q.stats().open_items, 1);
    held.close().expect("the parent goes on");
    q.put("c").expect("room");
    assert!(matches!(QueueSet::open(w.path()), Err(OpenError::Locked { .. })));
}

/// A process that is being started, or a forked child that lives on, has the lock file open as well. Once this was a set that
/// could not be opened again at once, when another thread of the process had started a program meanwhile.
#[test]
fn f25_a_close_gives_up_the_lock_that_a_child_has_inherited() {
    let w = world();
    w.queue("q").put("a").expect("room");
    // SAFETY: the child only waits to be killed.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        loop {
            // SAFETY: waits for a signal.
            #[allow(unsafe_code)]
            unsafe {
                libc::pause()
            };
        }
    }
    w.set.clone().close().expect("closes");
    let again = QueueSet::open(w.path());
    // SAFETY: the child made above, which nobody has waited for.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(pid, libc::SIGKILL)
    };
    // SAFETY: its end is awaited, and its status is not asked for.
    #[allow(unsafe_code)]
    unsafe {
        libc::waitpid(pid, std::ptr::null_mut(), 0)
    };
    assert_eq!(drain(&again.expect("not locked").queue("q").expect("opens")), ["a"]);
}

#[test]
fn f39_panics_in_user_code_leave_the_queue_usable() {
    struct Bad;
    impl AsRef<[u8]> for Bad {
        fn as_ref(&self) -> &[u8] {
            panic!("planted")
        }
    }
    let w = world();
    let q = w.queue("q");
    assert!(std::panic::catch_unwind(|| q.put(Bad)).is_err());
    assert!(std::panic::catch_unwind(|| q.put_batch([Bad])).is_err());
    let iterator = (0..3).map(|n| if n == 2 { panic!("planted") } else { "x" });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| q.put_batch(iterator))).is_err());
    q.put("y").expect("room");
    assert_eq!(drain(&w.killed().queue("q")), ["y"]);
}

#[test]
fn errors_and_debug_output_never_show_a_payload() {
    let w = world();
    let q = w.set.queue_with("q", fast().max_items(1)).expect("opens");
    q.put("CANARY-PAYLOAD").expect("room");
    let item = q.open().expect("there");
    let full = q.set_options(fast().max_item_size(4)).map(|()| q.put("CANARY-PAYLOAD"));
    let seen = format!("{item:?} {:?} {q:?} {:?} {full:?} {:?}", *item, w.set, q.stats());
    assert!(!seen.contains("CANARY") && !seen.contains("67, 65, 78"), "{seen}");
}

#[test]
fn every_sync_survives_in_the_background() {
    let w = world();
    let every = QueueOptions::default().durability(Durability::Every(Duration::from_millis(5)));
    let q = w.set.queue_with("q", every).expect("opens");
    q.put("x").expect("room");
    crate::common::until("the background syncs", || q.stats().unsynced_bytes == 0);
    assert!(q.stats().syncs >= 1);
}

#[test]
fn a_queue_keeps_its_set_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let q = QueueSet::open(dir.path()).expect("opens").queue("q").expect("opens");
    q.put("x").expect("the set is still open");
    drop(q);
    QueueSet::open(dir.path()).expect("and closes with its last queue");
}

#[test]
fn recovery_tells_its_progress_and_can_be_cancelled() {
    let w = world();
    w.queue("q").put("x").expect("room");
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    let set = QueueSet::builder().on_recovery(|progress| progress.queue != "q").open(&path).expect("opens");
    assert!(matches!(set.queue("q"), Err(OpenError::Cancelled)));
    drop(set);
    assert_eq!(QueueSet::open(&path).expect("opens").queue("q").expect("opens").len(), 1);
}

#[test]
fn f36_read_only_passes_over_what_has_expired() {
    let w = world();
    let q = w.queue("q");
    q.put_with("old", &PutOptions::new().expires_at(std::time::UNIX_EPOCH)).expect("accepted");
    q.put("new").expect("room");
    let copy = w.copied();
    let before = snapshot(copy.path());
    let set = QueueSet::open_read_only(copy.path()).expect("opens");
    let seen = set.queue("q").expect("opens").peek().expect("no error").expect("there");
    assert_eq!(seen.data(), b"new");
    set.close().expect("closes");
    assert_eq!(snapshot(copy.path()), before);
}

#[test]
fn k119_of_two_deletes_at_once_one_finds_nothing_and_the_next_queue_of_the_name_lives() {
    let w = world();
    w.queue("q").put("old").expect("room");
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    let (go_on, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let set = QueueSet::builder()
        .on_recovery(move |_| {
            let _ = gate.lock().expect("no panic").recv_timeout(Duration::from_secs(20));
            true
        })
        .open(&path)
        .expect("opens");
    std::thread::scope(|scope| {
        scope.spawn(|| set.queue("q").map(drop));
        std::thread::sleep(Duration::from_millis(100));
        // Both have found the queue, and wait until it is open.
        let again = || {
            let gone = set.delete("q");
            // The other one may be late, and take this queue too, which then says so.
            let put = set.queue("q").expect("opens").put("new");
            assert!(matches!(put, Ok(_) | Err(PutError::Closed)), "{put:?}");
            gone
        };
        let both = [scope.spawn(|| set.delete("q")), scope.spawn(again)];
        std::thread::sleep(Duration::from_millis(100));
        drop(go_on);
        for delete in both {
            delete.join().expect("no panic").expect("nothing that failed");
        }
    });
    let left = set.get_queue("q").expect("opens").map_or(0, |queue| queue.len());
    set.close().expect("closes");
    let set = QueueSet::open(&path).expect("opens");
    assert_eq!(set.get_queue("q").expect("opens").map_or(0, |queue| queue.len()), left);
}

/// The files left while a sync was on its way, which then did not find them: the put was told of a device that failed.
#[test]
fn k90_a_put_that_waits_for_the_device_while_its_queue_is_deleted_is_stored_or_told_closed() {
    let w = world();
    let set = &w.set;
    for round in 0..100u64 {
        let queue = w.queue("q");
        std::thread::scope(|scope| {
            let puts = scope.spawn(|| {
                loop {
                    match queue.put("x") {
                        Ok(_) => {}
                        Err(PutError::Closed) => return,
                        Err(error) => panic!("round {round}: {error:?}"),
                    }
                }
            });
            let syncs = scope.spawn(|| {
                loop {
                    match queue.sync() {
                        Ok(()) => {}
                        Err(SyncError::Closed) => return,
                        Err(error) => panic!("round {round}: {error:?}"),
                    }
                }
            });
            std::thread::sleep(Duration::from_micros(round % 10 * 300));
            assert!(set.delete("q").expect("goes"));
            puts.join().expect("stored or closed");
            syncs.join().expect("synced or closed");
        });
    }
}

#[test]
fn the_recovery_callback_may_ask_the_set() {
    let w = world();
    w.queue("q").put("x").expect("room");
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    let (told, asked) = mpsc::channel();
    std::thread::spawn(move || {
        let known: Arc<OnceLock<QueueSet>> = Arc::default();
        let seen = Arc::clone(&known);
        let set = QueueSet::builder()
            .on_recovery(move |_| {
                seen.get().is_some_and(|set| set.stats().open_queues == 0 && set.sync().is_ok() && set.names() == ["q"])
            })
            .open(path)
            .expect("opens");
        assert!(known.set(set.clone()).is_ok());
        let opened = set.queue("q").map(|queue| queue.len());
        let _ = told.send(matches!(opened, Ok(1)));
    });
    assert!(asked.recv_timeout(Duration::from_secs(20)).expect("it waits for itself"));
}

#[test]
fn a_get_is_over_before_its_set_has_closed() {
    let w = world_with(fast().max_item_size(128 << 20).segment_bytes(256 << 20));
    let q = w.queue("q");
    q.put(vec![7; 120 << 20]).expect("room");
    q.sync().expect("syncs");
    let get = std::thread::spawn(move || q.get().map(|item| item.data().len()));
    // It has been taken out, and is being copied.
    until("it is taken", || w.queue("q").is_empty());
    let path = w.path().to_owned();
    w.set.clone().close().expect("closes");
    let set = QueueSet::builder().defaults(fast()).open(path).expect("opens");
    let left = set.queue("q").expect("opens").len();
    let got = get.join().expect("no panic");
    assert_eq!(left, u64::from(got.is_err()), "delivered here and there: {got:?}");
}
