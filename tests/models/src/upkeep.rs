//! The crate's `upkeep`: the same chores, done by whoever a model lets do them.

use std::collections::VecDeque;
use std::sync::Weak;

use crate::queue::core::{Core, Shared};
use crate::sync::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) enum Chore {
    Arm(Weak<Core>),
    Free(Weak<Core>),
    Thin(Weak<Core>),
    Sync(Weak<Core>),
    Tend(Weak<Core>, u64),
    EndLeases(Weak<Core>, u64),
    Ripen(Weak<Core>, u64),
    Bury(Weak<Core>),
    Age(Weak<Core>, u64),
    Tighten(Weak<Shared>, u64),
    Stop,
}

#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    pub(crate) chores: Mutex<VecDeque<Chore>>,
    pub(crate) rung: Condvar,
    /// What comes by time comes at once. Otherwise it does not come: it may be as late as it likes.
    pub(crate) tends: bool,
}

impl Upkeep {
    pub(crate) fn ring(&self, chore: Chore) {
        if self.tends || !matches!(chore, Chore::Tend(..) | Chore::EndLeases(..) | Chore::Ripen(..)) {
            self.chores.lock().push_back(chore);
            self.rung.notify_one();
        }
    }

    /// Does chores until told to stop, and then what is left.
    pub(crate) fn run(&self) {
        let mut stopping = false;
        loop {
            let chore = {
                let mut chores = self.chores.lock();
                loop {
                    match chores.pop_front() {
                        Some(chore) => break chore,
                        None if stopping => return,
                        None => self.rung.wait(&mut chores),
                    }
                }
            };
            match chore {
                Chore::Arm(core) => core.upgrade().into_iter().for_each(|core| core.arm()),
                Chore::Thin(core) => core.upgrade().into_iter().for_each(|core| core.thin_next()),
                Chore::Tend(core, _) => core.upgrade().into_iter().for_each(|core| _ = core.tend()),
                Chore::EndLeases(core, _) => core.upgrade().into_iter().for_each(|core| _ = core.end_leases()),
                Chore::Ripen(core, _) => core.upgrade().into_iter().for_each(|core| core.ripen()),
                Chore::Bury(core) => core.upgrade().into_iter().for_each(|core| {
                    core.bury();
                    core.move_expired(core.max_expire_sweep());
                }),
                // No model has a queue that grows old, or a set with a state.
                Chore::Age(..) | Chore::Tighten(..) => {}
                Chore::Free(core) => core.upgrade().into_iter().for_each(|core| _ = core.free_spent()),
                Chore::Sync(core) => core.upgrade().into_iter().for_each(|core| core.sync_appended()),
                Chore::Stop => stopping = true,
            }
        }
    }
}
