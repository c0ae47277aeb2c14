//! Tasks, polled by hand: dropped futures lose no item and no wake-up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use kestrel_core::{Durability, PutOptions, QueueOptions};

use crate::common::{put_all, text, until, world, world_with};

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn new() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    fn woken(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn s23_a_woken_future_that_is_dropped_wakes_the_next() {
    let w = world();
    let q = w.queue("q");
    let ((a_count, a_waker), (b_count, b_waker)) = (Count::new(), Count::new());
    for _ in 0..200 {
        let (a_before, b_before) = (a_count.woken(), b_count.woken());
        let mut a = Box::pin(q.open_async());
        let mut b = Box::pin(q.open_async());
        assert!(a.as_mut().poll(&mut Context::from_waker(&a_waker)).is_pending());
        assert!(b.as_mut().poll(&mut Context::from_waker(&b_waker)).is_pending());
        q.put("x").expect("room");
        assert_eq!((a_count.woken() - a_before, b_count.woken() - b_before), (1, 0));
        drop(a);
        assert_eq!(b_count.woken() - b_before, 1, "the promise passes on");
        let Poll::Ready(Ok(item)) = b.as_mut().poll(&mut Context::from_waker(&b_waker)) else {
            panic!("the item is there")
        };
        item.close().expect("marked");
    }
    assert_eq!((q.len(), q.stats().waiters, q.stats().open_items), (0, 0, 0));
}

#[test]
fn s23_a_future_dropped_before_or_after_its_wake_loses_no_item() {
    let w = world();
    let q = w.queue("q");
    let (_, waker) = Count::new();
    let mut cx = Context::from_waker(&waker);
    for n in 0..200 {
        let mut parked = Box::pin(q.get_async());
        assert!(parked.as_mut().poll(&mut cx).is_pending());
        if n % 2 == 0 {
            drop(parked);
            q.put("x").expect("room");
        } else {
            q.put("x").expect("room");
            drop(parked);
        }
        assert!(q.try_get().expect("undamaged").is_some());
    }
    let ready = pin!(q.open_async());
    q.put("x").expect("room");
    assert!(matches!(ready.poll(&mut cx), Poll::Ready(Ok(item)) if text(item.data()) == "x"));
    assert_eq!(q.len(), 1, "an output that is dropped is an abort");
}

#[test]
fn s24_threads_and_tasks_stand_in_one_line() {
    let w = world();
    let q = w.queue("q");
    let (count, waker) = Count::new();
    let mut first = Box::pin(q.get_async());
    assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    std::thread::scope(|scope| {
        let second = scope.spawn(|| q.get().expect("undamaged"));
        until("both wait", || q.stats().waiters == 2);
        let mut third = Box::pin(q.get_async());
        assert!(third.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        q.put_batch(["1", "2", "3"]).expect("room");
        assert_eq!(count.woken(), 2);
        let mut cx = Context::from_waker(&waker);
        let Poll::Ready(Ok(three)) = third.as_mut().poll(&mut cx) else { panic!("called") };
        let two = second.join().expect("no panic");
        let Poll::Ready(Ok(one)) = first.as_mut().poll(&mut cx) else { panic!("called") };
        let mut all = [text(one.data()), text(two.data()), text(three.data())];
        all.sort();
        assert_eq!(all, ["1", "2", "3"]);
    });
}

#[test]
fn nobody_overtakes_a_waiter_that_was_promised_the_item() {
    let w = world();
    let q = w.queue("q");
    let (_, waker) = Count::new();
    let mut waiting = Box::pin(q.get_async());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    q.put("x").expect("room");
    assert!(q.try_get().expect("no error").is_none(), "it is promised");
    assert!(matches!(waiting.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(_))));
}

#[test]
fn s22_a_waiter_that_finds_its_item_gone_keeps_its_place() {
    let w = world();
    let q = w.queue("q");
    let ((a_count, a_waker), (b_count, b_waker)) = (Count::new(), Count::new());
    let mut a = Box::pin(q.get_async());
    let mut b = Box::pin(q.get_async());
    assert!(a.as_mut().poll(&mut Context::from_waker(&a_waker)).is_pending());
    assert!(b.as_mut().poll(&mut Context::from_waker(&b_waker)).is_pending());
    q.put("gone").expect("room");
    q.clear().expect("stored");
    assert!(a.as_mut().poll(&mut Context::from_waker(&a_waker)).is_pending(), "the item was cleared");
    q.put("next").expect("room");
    assert_eq!((a_count.woken(), b_count.woken()), (2, 0));
    assert!(matches!(a.as_mut().poll(&mut Context::from_waker(&a_waker)), Poll::Ready(Ok(i)) if i.data() == b"next"));
}

#[test]
fn synced_futures_answer_once_the_device_has_it() {
    let w = world_with(QueueOptions::default().durability(Durability::Sync));
    let q = w.queue("q");
    let id = q.append("x").expect("room");
    let (count, waker) = Count::new();
    let mut synced = Box::pin(q.synced_async(id));
    until("it is synced", || synced.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    assert!(count.woken() <= 100);
    assert_eq!(text(q.get().expect("there").data()), "x");
    let mut unknown = Box::pin(q.synced_async(kestrel_core::ItemId::new(id.get() + 9)));
    assert!(matches!(unknown.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Err(_))));
}

#[cfg(feature = "async")]
#[test]
fn a_stream_gives_item_after_item_and_ends_with_the_queue() {
    use futures_core::Stream;
    let w = world();
    let q = w.queue("q");
    let (_, waker) = Count::new();
    let mut cx = Context::from_waker(&waker);
    let mut stream = Box::pin(q.stream());
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());
    q.put("a").expect("room");
    let Poll::Ready(Some(Ok(item))) = stream.as_mut().poll_next(&mut cx) else { panic!("there") };
    item.close().expect("marked");
    w.set.clone().close().expect("closes");
    assert!(matches!(stream.as_mut().poll_next(&mut cx), Poll::Ready(None)));
}

/// Polls its future on the spot, as executors of one thread may.
struct AtOnce {
    future: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Wake for AtOnce {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let _ = self.future.lock().expect("no panic").as_mut().poll(&mut Context::from_waker(&waker));
    }
}

#[test]
fn a_waker_may_poll_its_future_and_find_nothing() {
    let w = world();
    let q = w.queue("q");
    let (told, ended) = mpsc::channel();
    let consumer = q.clone();
    let task = Arc::new(AtOnce {
        future: Mutex::new(Box::pin(async move {
            let item = consumer.get_async().await.expect("open");
            let _ = told.send(text(item.data()));
        })),
    });
    task.wake();
    std::thread::spawn(move || {
        q.put_with("expired", &PutOptions::new().expires_at(std::time::UNIX_EPOCH)).expect("accepted");
        q.put("alive").expect("room");
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)).expect("it waits for itself"), "alive");
}

#[test]
fn a_waker_may_put_durably() {
    let w = world_with(QueueOptions::default());
    let q = w.queue("q");
    let (told, ended) = mpsc::channel();
    let consumer = q.clone();
    let task = Arc::new(AtOnce {
        future: Mutex::new(Box::pin(async move {
            let item = consumer.get_async().await.expect("open");
            consumer.put("answer").expect("room");
            let _ = told.send(text(item.data()));
        })),
    });
    task.wake();
    std::thread::spawn(move || q.put("question").expect("room"));
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)).expect("it waits for itself"), "question");
}

/// Panics when it is told that its item has come.
#[derive(Default)]
struct Panics(AtomicUsize);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("planned");
    }
}

#[test]
fn f39_a_waker_that_panics_ends_neither_the_chores_nor_the_wakes_of_others() {
    let w = world_with(QueueOptions::default());
    let q = w.queue("q");
    let panics = Arc::new(Panics::default());
    let bad = Waker::from(Arc::clone(&panics));
    let mut first = Box::pin(q.get_async());
    assert!(first.as_mut().poll(&mut Context::from_waker(&bad)).is_pending());
    let (count, waker) = Count::new();
    let mut second = Box::pin(q.get_async());
    assert!(second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    q.pause();
    q.append("a").expect("room");
    let last = q.append("b").expect("room");
    q.synced(last).expect("synced");
    let resumed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| q.resume()));
    assert!(resumed.is_err() && count.woken() == 1);
    drop((first, second));
    assert_eq!((q.get().expect("there").data(), q.get().expect("there").data()), (&b"a"[..], &b"b"[..]));

    let mut third = Box::pin(q.get_async());
    assert!(third.as_mut().poll(&mut Context::from_waker(&bad)).is_pending());
    q.append("c").expect("room");
    until("the background has met the waker", || panics.0.load(Ordering::SeqCst) == 2);
    drop(third);
    assert_eq!(q.get().expect("there").data(), b"c");
    q.append("d").expect("room");
    assert!(q.get_timeout(Duration::from_secs(9)).expect("open").is_some(), "nobody syncs any more");
}

#[test]
fn s01_k09_who_comes_without_waiting_leaves_what_is_promised_to_others() {
    let w = world();
    let q = w.queue("q");
    let mut first = Box::pin(q.open_async());
    let mut second = Box::pin(q.open_async());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
    put_all(&q, &["1", "2", "3", "4"]);
    let Poll::Ready(Ok(two)) = second.as_mut().poll(&mut cx) else { panic!("it was promised one") };
    // The same consumer comes again: were it given what the first one has not fetched yet, it would see 2 before 1.
    assert_eq!(one_more(&q), "3");
    let Poll::Ready(Ok(one)) = first.as_mut().poll(&mut cx) else { panic!("it was promised one") };
    assert_eq!((one.data(), two.data()), (&b"1"[..], &b"2"[..]));
    assert_eq!(one_more(&q), "4");
}

fn one_more(queue: &kestrel_core::Queue) -> String {
    text(queue.try_get().expect("undamaged").expect("one more").data())
}
