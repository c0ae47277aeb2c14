//! Every order of two or three threads (up to three preemptions), and every value that a weak memory may show, tried on the
//! crate's own files. Each model is tried again with a bug planted, and must then fail.

#![allow(dead_code)]

#[path = "../../../src/journal/commit.rs"]
mod commit;
#[path = "../../../src/journal/progress.rs"]
mod progress;
mod sync;
#[path = "../../../src/reader/waiters.rs"]
mod waiters;

/// The crate's switch of planted bugs, for a whole model at a time.
mod planted {
    use std::sync::atomic::{AtomicU8, Ordering};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub(crate) enum Bug {
        AckBeforeSync = 1,
        RetryFailedSync,
        ForgetFailure,
        PublishRelaxed,
        SealAfterLook,
        SleepWithoutLook,
    }

    static ON: AtomicU8 = AtomicU8::new(0);

    pub(crate) fn is(bug: Bug) -> bool {
        ON.load(Ordering::SeqCst) == bug as u8
    }

    pub(crate) fn set(bug: Option<Bug>) {
        ON.store(bug.map_or(0, |bug| bug as u8), Ordering::SeqCst);
    }
}

mod disk {
    pub(crate) fn instant_now() -> std::time::Instant {
        std::time::Instant::now()
    }
}

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Plain;

use commit::Commit;
use planted::Bug;
use progress::Progress;
use sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};
use waiters::{Line, Wakes};

/// Every answered sync covers the item that was asked for, and never two ask the device at a time.
fn group_commit() {
    struct World {
        commit: Commit,
        appended: AtomicU64,
        device: AtomicU64,
        asking: AtomicBool,
    }
    let world = Arc::new(World {
        commit: Commit::new(0),
        appended: AtomicU64::new(0),
        device: AtomicU64::new(0),
        asking: AtomicBool::new(false),
    });
    let put = |world: &World| {
        let id = world.appended.fetch_add(1, Ordering::SeqCst) + 1;
        let sync = || {
            assert!(!world.asking.swap(true, Ordering::SeqCst), "two ask the device at a time");
            let all = world.appended.load(Ordering::SeqCst);
            world.device.store(all, Ordering::SeqCst);
            world.asking.store(false, Ordering::SeqCst);
            Ok(all)
        };
        world.commit.wait(id, sync, |_| {}).expect("no failure here");
        assert!(world.device.load(Ordering::SeqCst) >= id, "answered before the device had it");
        assert!(world.commit.durable() >= id);
    };
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || put(&world))
        })
        .collect();
    put(&world);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// The first failure is told to all that it concerns, and the device is never asked again.
fn failure_latch() {
    let commit = Arc::new(Commit::new(0));
    let asked = Arc::new(AtomicU64::new(0));
    let put = |commit: &Commit, asked: &AtomicU64, id: u64| {
        let sync = || {
            assert_eq!(asked.fetch_add(1, Ordering::SeqCst), 0, "the device was asked again");
            Err(io::Error::other("planned"))
        };
        let answer = commit.wait(id, sync, |_| panic!("nothing is durable"));
        assert!(answer.is_err_and(|error| error.to_string() == "planned"));
        assert!(commit.failure().is_some());
    };
    let threads: Vec<_> = (1..3)
        .map(|id| {
            let (commit, asked) = (Arc::clone(&commit), Arc::clone(&asked));
            loom::thread::spawn(move || put(&commit, &asked, id))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert!(commit.wait(9, || panic!("asked again"), |_| {}).is_err());
}

/// Of the last close and the seal, at least one learns that the segment is spent.
fn seal_and_close() {
    let progress = Arc::new(Progress::new(4096, 2, 0));
    let told = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (progress, told) = (Arc::clone(&progress), Arc::clone(&told));
            loom::thread::spawn(move || {
                told.fetch_add(u64::from(progress.done_one()), Ordering::SeqCst);
            })
        })
        .collect();
    told.fetch_add(u64::from(progress.seal()), Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert!(progress.is_spent());
    assert!(told.load(Ordering::SeqCst) >= 1, "spent, and nobody knows");
}

/// Who sees the end sees the frames below it.
fn publish() {
    let progress = Arc::new(Progress::new(4096, 0, 0));
    let frames = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let putter = {
        let (progress, frames) = (Arc::clone(&progress), Arc::clone(&frames));
        loom::thread::spawn(move || {
            for (n, frame) in frames.iter().enumerate() {
                frame.store(7, Ordering::Relaxed);
                progress.publish(4096 + 32 * (n as u32 + 1), n as u32 + 1);
            }
        })
    };
    let seen = (progress.end() - 4096) / 32;
    for frame in &frames[..seen as usize] {
        assert_eq!(frame.load(Ordering::Relaxed), 7, "the end is there before the frame");
    }
    assert!(progress.count() >= seen);
    putter.join().expect("no panic");
}

/// The reader's part of a queue: what waits, and who waits for it.
#[derive(Default)]
struct Counter {
    line: Line,
    items: u64,
    served: Vec<u64>,
}

impl Counter {
    fn room(&mut self, wakes: &mut Wakes) {
        let items = self.items;
        self.line.promise_up_to(items, wakes);
    }
}

fn put_one(queue: &Mutex<Counter>) {
    let mut wakes = Wakes::default();
    {
        let mut counter = queue.lock();
        counter.items += 1;
        counter.room(&mut wakes);
    }
    wakes.wake();
}

/// Waits for an item, in the order of a queue's own `get`.
fn get(queue: &Mutex<Counter>, name: u64) {
    let ticket = {
        let mut counter = queue.lock();
        if counter.items > counter.line.promised() {
            counter.items -= 1;
            return;
        }
        counter.line.join()
    };
    loop {
        ticket.sleep(None);
        let mut wakes = Wakes::default();
        let mut counter = queue.lock();
        if !counter.line.is_called(&ticket) {
            continue;
        }
        let served = counter.items > counter.line.ahead(&ticket) as u64;
        match served {
            true => {
                counter.items -= 1;
                counter.line.leave(&ticket);
                counter.served.push(name);
            }
            false => counter.line.rejoin(&ticket),
        }
        counter.room(&mut wakes);
        drop(counter);
        wakes.wake();
        if served {
            return;
        }
    }
}

/// No item stays while somebody sleeps: otherwise the model ends in a deadlock, which is a failure.
fn waiting() {
    let queue = Arc::new(Mutex::new(Counter::default()));
    let threads: Vec<_> = (0..2)
        .map(|name| {
            let queue = Arc::clone(&queue);
            loom::thread::spawn(move || get(&queue, name))
        })
        .collect();
    put_one(&queue);
    put_one(&queue);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    let counter = queue.lock();
    assert_eq!(counter.items, 0);
    assert!(counter.line.is_empty());
}

/// Who leaves with a promise hands it to the next.
fn cancelling() {
    let queue = Arc::new(Mutex::new(Counter::default()));
    let first = queue.lock().line.join();
    let waits = {
        let queue = Arc::clone(&queue);
        loom::thread::spawn(move || get(&queue, 1))
    };
    let putter = {
        let queue = Arc::clone(&queue);
        loom::thread::spawn(move || put_one(&queue))
    };
    let mut wakes = Wakes::default();
    {
        let mut counter = queue.lock();
        counter.line.forget(&first);
        counter.room(&mut wakes);
    }
    wakes.wake();
    waits.join().expect("no panic");
    putter.join().expect("no panic");
    assert_eq!(queue.lock().items, 0);
}

/// Tries a model in every order; how many there were, or what went wrong.
fn check(model: fn(), bug: Option<Bug>) -> Result<u64, String> {
    let orders = Arc::new(Plain::new(0));
    let count = Arc::clone(&orders);
    planted::set(bug);
    let tried = std::thread::spawn(move || {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 100_000;
        builder.check(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
    });
    let result = tried.join();
    planted::set(None);
    match result {
        Ok(()) => Ok(orders.load(std::sync::atomic::Ordering::Relaxed)),
        Err(panic) => {
            let told = panic.downcast_ref::<String>().cloned();
            Err(told
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "a panic".into()))
        }
    }
}

fn main() -> ExitCode {
    type Model = (&'static str, fn(), &'static [Bug]);
    let models: [Model; 6] = [
        ("group commit", group_commit, &[Bug::AckBeforeSync]),
        ("failure latch", failure_latch, &[Bug::RetryFailedSync, Bug::ForgetFailure]),
        ("seal and close", seal_and_close, &[Bug::SealAfterLook]),
        ("publish", publish, &[Bug::PublishRelaxed]),
        ("waiting", waiting, &[Bug::SleepWithoutLook]),
        ("cancelling", cancelling, &[Bug::SleepWithoutLook]),
    ];
    // What a planted bug breaks is told below, in a line.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut passed, mut failed, mut orders) = (0, 0, 0);
    let mut note = |holds: bool| if holds { passed += 1 } else { failed += 1 };
    for (name, model, bugs) in models {
        let result = check(model, None);
        note(result.is_ok());
        match result {
            Ok(tried) => {
                orders += tried;
                println!("models: {name}: {tried} orders");
            }
            Err(error) => println!("models: {name}: {error}"),
        }
        for bug in bugs {
            let caught = check(model, Some(*bug)).err();
            note(caught.is_some());
            let told = caught.as_deref().map_or("NOT CAUGHT", |told| told.lines().next().unwrap_or("a panic"));
            println!("models: {name}, with {bug:?} planted: {told}");
        }
    }
    println!("models: {orders} orders in all");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
