//! A mutex around a deque of boxes, and a condition variable: the queue that one writes when nothing must be kept. A taker
//! spins for some microseconds before it sleeps, where there is more than one core.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::subject::{Any, Opened, Put, Sync, Take, Wish};

const SPINS: u32 = 2_000;

#[derive(Default)]
struct Shared {
    state: Mutex<(VecDeque<Box<[u8]>>, u32)>,
    filled: Condvar,
}

pub fn open(_: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync != Sync::No {
        return Err("it keeps nothing".into());
    }
    let ends = Ends(Arc::default());
    Ok(Opened { put: Box::new(ends.clone()), take: Box::new(ends) })
}

#[derive(Clone)]
struct Ends(Arc<Shared>);

impl Put for Ends {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        let payload = payload.into();
        let mut state = self.0.state.lock();
        state.0.push_back(payload);
        let is_waited_for = state.1 > 0;
        drop(state);
        if is_waited_for {
            self.0.filled.notify_one();
        }
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Ok(Box::new(self.clone()))
    }
}

impl Ends {
    fn next(&self) -> Box<[u8]> {
        for _ in 0..SPINS {
            if let Some(item) = self.0.state.lock().0.pop_front() {
                return item;
            }
            std::hint::spin_loop();
        }
        let mut state = self.0.state.lock();
        loop {
            if let Some(item) = state.0.pop_front() {
                return item;
            }
            state.1 += 1;
            self.0.filled.wait(&mut state);
            state.1 -= 1;
        }
    }
}

impl Take for Ends {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        see(&self.next());
        Ok(())
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(self.clone()))
    }
}
