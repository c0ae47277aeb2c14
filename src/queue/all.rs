//! The story of a put into several queues at once: all of them take the item, or none does.

use std::sync::Arc;

use crate::error::{Limit, PutError};
use crate::ids::{ItemId, NEVER_MS};
use crate::journal::{Journal, NewItem};
use crate::options::{PutOptions, WhenFull};
use crate::queue::core::{Core, OS};
use crate::queue::fanout::Goal;
use crate::queue::put::{due_ms, expiry_ms};
use crate::sync::Ordering;
use crate::upkeep::Chore;

/// Stores one item in each of several queues, and waits until it is as durable as each of them says. An error comes with the
/// index of its queue; but for [`PutError::Indeterminate`], nothing was stored anywhere.
pub(crate) fn put_to_all(
    cores: &[Arc<Core>],
    payload: &[u8],
    options: &PutOptions,
) -> Result<Vec<ItemId>, (usize, PutError)> {
    for (index, core) in cores.iter().enumerate() {
        if core.is_forked() {
            return Err((index, PutError::Forked));
        }
        if core.shared.read_only {
            return Err((index, PutError::ReadOnly));
        }
    }
    let mut relieved = false;
    let ids = loop {
        match try_put_to_all(cores, payload, options) {
            Err((index, PutError::Full { limit: Limit::Disk, .. }))
                if cores[index].free_drained() || cores[index].make_disk_room() => {}
            Err((index, PutError::NoSpace { .. })) if cores[index].free_drained() => {}
            Err((index, PutError::TooManyFiles { .. })) if !std::mem::replace(&mut relieved, true) => {
                cores[index].relieve_all();
            }
            stored => break stored?,
        }
    };
    for (index, (core, id)) in cores.iter().zip(&ids).enumerate() {
        if core.must_sync(options.durability) {
            core.wait_durable(id.0).map_err(|error| (index, error))?;
        }
    }
    Ok(ids)
}

fn try_put_to_all(cores: &[Arc<Core>], payload: &[u8], options: &PutOptions) -> Result<Vec<ItemId>, (usize, PutError)> {
    // Nobody else holds two tails; those who come here take them in one order.
    let mut order: Vec<usize> = (0..cores.len()).collect();
    order.sort_by_key(|&index| cores[index].life);
    let tails: Vec<_> = order.iter().map(|&index| cores[index].journal.tail.lock()).collect();

    let len = payload.len() as u64;
    let mut crowded = Vec::new();
    for (&index, tail) in order.iter().zip(&tails) {
        let told = |error| (index, error);
        let core = &cores[index];
        let limits = *core.limits.read();
        if len > u64::from(limits.max_item_size) {
            return Err(told(PutError::TooLarge { len, max: limits.max_item_size.into() }));
        }
        if tail.closed {
            return Err(told(PutError::Closed));
        }
        core.shared.states.may_put().map_err(told)?;
        if let Some(source) = core.journal.commit.failure() {
            return Err(told(PutError::Failed { queue: core.name.clone(), source }));
        }
        if !limits.bounded {
            continue;
        }
        let full = |limit| told(PutError::Full { queue: core.name.clone(), limit });
        if let Some(limit) = limits.hopeless(1, len) {
            return Err(full(limit));
        }
        let mut reader = core.reader.lock();
        if limits.broken(&reader, 1, len).is_some() {
            let _ = reader.sweep(&core.journal, core.rules(), u64::MAX);
            core.ring_for(reader.finds());
        }
        match limits.broken(&reader, 1, len) {
            None => {}
            Some(_) if limits.when_full == WhenFull::DropOldest => crowded.push(index),
            Some(limit) => return Err(full(limit)),
        }
    }
    // Only now that all the others take it: what is dropped does not come back.
    for index in crowded {
        let core = &cores[index];
        let limits = *core.limits.read();
        let mut reader = core.reader.lock();
        while let Some(limit) = limits.broken(&reader, 1, len) {
            if !matches!(reader.drop_oldest(&core.journal, core.rules()), Ok(true)) {
                return Err((index, PutError::Full { queue: core.name.clone(), limit }));
            }
        }
        core.ring_for(reader.finds());
    }

    let Some(first) = cores.first() else {
        return Ok(Vec::new());
    };
    let put_ms = first.shared.clock.now_ms();
    let due_ms = if options.delay.is_zero() { 0 } else { due_ms(options.delay, &first.shared.clock) };
    // Who only passes on, and has nobody to pass on to, stores nothing.
    let (mut takers, mut unread) = (Vec::with_capacity(cores.len()), Vec::new());
    for (index, tail) in order.into_iter().zip(tails) {
        let core = &cores[index];
        let only = match core.goal() {
            Goal::All => None,
            Goal::Only(readers) => Some(readers),
            Goal::Nobody => {
                unread.push(core);
                continue;
            }
        };
        let mut max_age_ms = core.limits.read().max_age_ms;
        if core.fanout.has_named() {
            core.make_way(1, len);
            max_age_ms = core.longest_age_ms();
        }
        let expiry_ms = expiry_ms(options.expiry, put_ms, max_age_ms, &core.shared.clock);
        takers.push((
            index,
            tail,
            NewItem { payload, expiry_ms, due_ms, user_flags: options.flags, moved: None, only },
        ));
    }
    // Held over the append, so that nobody counts what is not for him.
    let mut passed: Vec<_> =
        takers.iter().map(|(index, _, item)| item.only.map(|_| cores[*index].reader.lock())).collect();
    let mut targets: Vec<_> =
        takers.iter_mut().map(|(index, tail, item)| (&*cores[*index].journal, &mut **tail, *item)).collect();
    let stored = Journal::append_to_all(&mut targets, put_ms);
    drop(targets);
    let last = stored.map_err(|(at, error)| (takers[at].0, cores[takers[at].0].append_error(error)))?;
    let mut ids = vec![ItemId(0); cores.len()];
    let mut awaited = Vec::new();
    let mut is_crowded = false;
    for (((index, tail, item), passed), id) in takers.iter_mut().zip(&mut passed).zip(last) {
        let core = &cores[*index];
        if let Some(reader) = passed {
            reader.leave_to_others(id, item.intake());
        }
        let must_sync = core.must_sync(options.durability);
        let is_shown = !must_sync && core.journal.front.show_next(id - 1, id);
        if is_shown && core.journal.front.has_waiting() {
            awaited.push(core);
        }
        ids[*index] = ItemId(id);
        if core.journal.wants_spare(tail) {
            core.shared.upkeep.ring(Chore::Arm(core.me.clone()));
        }
        if std::mem::take(&mut tail.spent) {
            core.ring_free();
        }
        is_crowded |= std::mem::take(&mut tail.crowded);
        if !is_shown && !must_sync {
            // It came behind an item that waits for a sync which is not its own.
            core.ring_sync();
        }
        if item.expiry_ms != NEVER_MS || core.durability.load(Ordering::Relaxed) != OS {
            core.ring_tend();
        }
        core.each_named(|named| named.ring_expiry(item.expiry_ms));
    }
    drop(passed);
    let takers: Vec<usize> = takers.into_iter().map(|(index, ..)| index).collect();
    if is_crowded {
        first.relieve();
    }
    for core in unread {
        core.fanout.leave_unread(1);
    }
    for index in takers.into_iter().filter(|_| due_ms != 0) {
        cores[index].each_addressed(|core| core.ring_due(due_ms));
    }
    for core in awaited.into_iter().filter(|_| due_ms == 0) {
        core.announce();
    }
    Ok(ids)
}
