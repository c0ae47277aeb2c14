//! What the state of a set allows, and the stricter one that is to come.
//!
//! Whether a put or a get is allowed is looked up under the tail lock or the reader's; who has changed the state takes each of
//! these locks once before it answers. So what begins after the answer meets the new state.

use std::fmt;

use crate::error::{GetError, PutError};
use crate::options::State;
use crate::queue::core::Core;
use crate::reader::waiters::Wakes;
use crate::sync::{AtomicU32, Mutex, Ordering};

/// The state of a set.
pub(crate) struct States {
    in_force: AtomicU32,
    /// Held while the state is changed: the stricter one that waits for its time, by the monotonic clock in ms.
    pub(crate) pending: Mutex<Option<(State, u64)>>,
}

impl States {
    pub(crate) fn new(state: State) -> States {
        States { in_force: AtomicU32::new(u32::from(state.code())), pending: Mutex::new(None) }
    }

    #[inline]
    pub(crate) fn in_force(&self) -> State {
        match self.in_force.load(Ordering::Acquire) {
            0 => State::Up,
            1 => State::ReadOnly,
            _ => State::Quiescent,
        }
    }

    pub(crate) fn enforce(&self, state: State) {
        self.in_force.store(u32::from(state.code()), Ordering::Release);
    }

    #[inline]
    pub(crate) fn may_put(&self) -> Result<(), PutError> {
        match self.in_force() {
            State::Up => Ok(()),
            state => Err(PutError::State { state }),
        }
    }

    #[inline]
    pub(crate) fn may_get(&self) -> Result<(), GetError> {
        match self.in_force() {
            State::Quiescent => Err(GetError::State { state: State::Quiescent }),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_force().fmt(f)
    }
}

impl Core {
    /// The state has changed: whoever waits for what it no longer allows is told.
    pub(crate) fn meet_state(&self, wakes: &mut Wakes) {
        let _tail = self.journal.tail.lock();
        self.each(|core| {
            let mut reader = core.reader.lock();
            if self.shared.states.may_put().is_err() {
                reader.space.end(wakes);
            }
            if self.shared.states.may_get().is_err() {
                reader.line.end(wakes);
            }
        });
    }
}
