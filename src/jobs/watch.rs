//! Who is told when a delayed job comes due: the workers wait in line for it, as anybody may wait at a queue, so that nobody polls and
//! the set's own clock decides.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::jobs::team::Team;
use crate::queue::Queue;
use crate::queue::futures::OpenFuture;

/// A team's places in the lines of its queues.
#[derive(Default)]
pub(crate) struct Watches {
    by_lane: HashMap<u32, Watch>,
}

struct Watch {
    /// Holds the place, and what is promised to it.
    _place: OpenFuture,
    call: Arc<Call>,
}

struct Call {
    team: Weak<Team>,
    came: AtomicBool,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.came.store(true, Ordering::Release);
        if let Some(team) = self.team.upgrade() {
            team.was_called.store(true, Ordering::Release);
            // All of them: each that finds nothing takes its places anew before it sleeps.
            team.bell.notify(usize::MAX);
        }
    }
}

impl Watches {
    /// Gives up the places that were called, so that whoever looks next gets what was promised to them.
    pub(crate) fn leave_called(&mut self) {
        self.by_lane.retain(|_, watch| !watch.call.came.load(Ordering::Acquire));
    }

    /// Takes a place in the line of a queue, unless there is one. `true`: something is there already.
    pub(crate) fn wait_at(&mut self, team: &Weak<Team>, lane: u32, queue: &Queue) -> bool {
        if self.by_lane.contains_key(&lane) {
            return false;
        }
        let call = Arc::new(Call { team: Weak::clone(team), came: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&call));
        let mut place = queue.open_async();
        match Pin::new(&mut place).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                self.by_lane.insert(lane, Watch { _place: place, call });
                false
            }
            Poll::Ready(Ok(item)) => {
                item.give_back(Duration::ZERO);
                true
            }
            // Whoever takes the next job meets the error.
            Poll::Ready(Err(_)) => false,
        }
    }
}
