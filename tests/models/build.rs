//! Copies the crate's source and plants bugs in the copies. A place that is no longer there is an error: the bug has to be planted
//! anew where the source has moved.
//!
//! Two copies: one as a module beside the real source, for the models; one as the root of a program, for the schedules, in which
//! time is that of the scheduler too.

use std::fs;
use std::path::{Path, PathBuf};

/// Name of the bug, file, what stands there, what stands there instead.
struct Bug(&'static str, &'static str, &'static str, &'static str);

/// In a replacement, `PLANTED` asks whether the bug is switched on.
const BUGS: &[Bug] = &[
    Bug("two leaders", "journal/commit.rs", "state.leading = true;", "state.leading = !PLANTED;"),
    Bug(
        "one follower told",
        "journal/commit.rs",
        "self.told.notify_all();",
        "if PLANTED { self.told.notify_one() } else { self.told.notify_all() }",
    ),
    Bug(
        "told before the lead is free",
        "journal/commit.rs",
        "self.0.state.lock().leading = false;\n                self.0.tell();",
        "if PLANTED { self.0.tell(); self.0.state.lock().leading = false; } else \
         { self.0.state.lock().leading = false; self.0.tell(); }",
    ),
    Bug(
        "tasks are not told",
        "journal/commit.rs",
        "self.ended.notify(usize::MAX);",
        "if !PLANTED { self.ended.notify(usize::MAX); }",
    ),
    Bug(
        "last failure wins",
        "journal/commit.rs",
        "let error = state.failed.get_or_insert_with(",
        "if PLANTED { state.failed = None; }\n        let error = state.failed.get_or_insert_with(",
    ),
    Bug(
        "durable falls",
        "journal/commit.rs",
        "state.durable = state.durable.max(durable);",
        "state.durable = if PLANTED { durable } else { state.durable.max(durable) };",
    ),
    Bug(
        "seal seen too early",
        "journal/progress.rs",
        "let done = self.done.0.fetch_add(1, Ordering::AcqRel) + 1;",
        "if PLANTED && !self.sealed.load(Ordering::SeqCst) { self.done.0.fetch_add(1, Ordering::SeqCst); return false; }\n\
         let done = self.done.0.fetch_add(1, Ordering::AcqRel) + 1;",
    ),
    Bug(
        "done is looked up again",
        "journal/progress.rs",
        "self.sealed.load(Ordering::Acquire) && done >= self.count()",
        "self.sealed.load(Ordering::Acquire) \
         && if PLANTED { self.done.0.load(Ordering::SeqCst) } else { done } >= self.count()",
    ),
    Bug(
        "weak done",
        "journal/progress.rs",
        "self.done.0.load(Ordering::Acquire)",
        "self.done.0.load(if PLANTED { Ordering::Relaxed } else { Ordering::Acquire })",
    ),
    Bug(
        "weak seal",
        "journal/progress.rs",
        "self.sealed.store(true, Ordering::Release);",
        "self.sealed.store(true, if PLANTED { Ordering::Relaxed } else { Ordering::Release });",
    ),
    Bug(
        "seal is not asked",
        "journal/roll.rs",
        "tail.spent |= segment.seal();",
        "tail.spent |= segment.seal() && !PLANTED;",
    ),
    Bug(
        "end before count",
        "journal/progress.rs",
        "self.count.store(count, Ordering::Relaxed);",
        "if PLANTED { self.end.store(end, Ordering::Release); }\n        self.count.store(count, Ordering::Relaxed);",
    ),
    Bug(
        "nobody is woken",
        "reader/waiters.rs",
        "Some(Wake::Thread(thread)) => thread.unpark(),",
        "Some(Wake::Thread(thread)) => if !PLANTED { thread.unpark() },",
    ),
    Bug(
        "no look after registering",
        "reader/waiters.rs",
        "        }\n        self.waiter.called.load(Ordering::Acquire)",
        "        }\n        !PLANTED && self.waiter.called.load(Ordering::Acquire)",
    ),
    Bug(
        "last come first served",
        "reader/waiters.rs",
        "self.waiting.pop_first()",
        "(if PLANTED { self.waiting.pop_last() } else { self.waiting.pop_first() })",
    ),
    Bug(
        "a called waiter is not alone",
        "reader/waiters.rs",
        "self.promised.range(..ticket.number).count()",
        "if PLANTED { 0 } else { self.promised.range(..ticket.number).count() }",
    ),
    Bug(
        "promise kept in the grave",
        "queue/take.rs",
        "reader.line.forget(&self.ticket);\n        reader.promise(&mut wakes);",
        "reader.line.forget(&self.ticket);\n        if !PLANTED { reader.promise(&mut wakes); }",
    ),
    Bug(
        "promise leaks",
        "queue/take.rs",
        "reader.line.forget(&self.ticket);",
        "if !PLANTED { reader.line.forget(&self.ticket); }",
    ),
    Bug(
        "given back in silence",
        "queue/take.rs",
        "reader.return_waiting(held.place);\n            reader.promise(wakes);",
        "reader.return_waiting(held.place);\n            if !PLANTED { reader.promise(wakes); }",
    ),
    Bug(
        "newcomers overtake",
        "queue/take.rs",
        "None if !reader.has_unpromised(rules) => return",
        "None if !PLANTED && !reader.has_unpromised(rules) => return",
    ),
    Bug(
        "newcomers overtake",
        "queue/take.rs",
        "None => usize::try_from(reader.line.promised()).unwrap_or(usize::MAX),",
        "None if PLANTED => 0,\n                None => usize::try_from(reader.line.promised()).unwrap_or(usize::MAX),",
    ),
    Bug(
        "joins without a look",
        "queue/take.rs",
        "self.look_once_more(None);",
        "if !PLANTED { self.look_once_more(None); }",
    ),
    Bug(
        "rejoins without a look",
        "queue/take.rs",
        "self.look_once_more(seen);",
        "if !PLANTED { self.look_once_more(seen); }",
    ),
    Bug(
        "looks without the tail",
        "queue/take.rs",
        "drop(self.journal.tail.lock());",
        "if !PLANTED { drop(self.journal.tail.lock()); }",
    ),
    Bug(
        "puts without a look",
        "queue/put.rs",
        "let is_awaited = is_shown && front.has_waiting();",
        "let is_awaited = is_shown && !PLANTED && front.has_waiting();",
    ),
    Bug(
        "waiting is not told",
        "reader/waiters.rs",
        "self.waiting.insert(ticket.number, Arc::clone(&ticket.waiter));\n            self.tell();",
        "self.waiting.insert(ticket.number, Arc::clone(&ticket.waiter));\n            if !PLANTED { self.tell(); }",
    ),
    Bug(
        "published in silence",
        "queue/core.rs",
        "self.each(|core| core.reader.lock().promise(&mut wakes.borrow_mut()));",
        "if !PLANTED { self.each(|core| core.reader.lock().promise(&mut wakes.borrow_mut())); }",
    ),
    Bug(
        "shown behind what is hidden",
        "journal/front.rs",
        "let is_next = self.visible.load(Ordering::Relaxed) >= before;",
        "let is_next = PLANTED || self.visible.load(Ordering::Relaxed) >= before;",
    ),
    Bug(
        "room is kept",
        "queue/put.rs",
        "reader.space.forget(&self.ticket);",
        "if !PLANTED { reader.space.forget(&self.ticket); }",
    ),
    Bug(
        "room passes nobody on",
        "queue/put.rs",
        "reader.room(&mut wakes);\n        drop(reader);\n        wakes.wake();\n    }",
        "if !PLANTED { reader.room(&mut wakes); }\n        drop(reader);\n        wakes.wake();\n    }",
    ),
    // Once a real one.
    Bug(
        "sync ring is lost",
        "queue/core.rs",
        "self.sync_rung.swap(false, Ordering::AcqRel);",
        "if PLANTED { self.sync_rung.store(false, Ordering::Release) } else { self.sync_rung.swap(false, Ordering::AcqRel); }",
    ),
    Bug(
        "tended with the bell off",
        "queue/core.rs",
        "self.tending.store(false, Ordering::Release);",
        "if !PLANTED { self.tending.store(false, Ordering::Release); }",
    ),
    Bug(
        "tended with the bell off",
        "queue/core.rs",
        "let can_expire = self.reader.lock().can_expire();",
        "if PLANTED { self.tending.store(false, Ordering::Release); }\n        \
         let can_expire = self.reader.lock().can_expire();",
    ),
    Bug("ended in silence", "queue/core.rs", "reader.line.end(wakes);", "if !PLANTED { reader.line.end(wakes); }"),
    Bug(
        "resumed in silence",
        "queue/core.rs",
        "reader.paused = paused;\n        reader.promise(&mut wakes);",
        "reader.paused = paused;\n        if !PLANTED { reader.promise(&mut wakes); }",
    ),
    Bug(
        "a promise not kept is the end",
        "reader/waiters.rs",
        "self.waiting.insert(ticket.number, Arc::clone(&ticket.waiter));",
        "if !PLANTED { self.waiting.insert(ticket.number, Arc::clone(&ticket.waiter)); }",
    ),
    // Once real ones too.
    Bug(
        "registered once",
        "reader/waiters.rs",
        "for ticket in tickets {\n            *ticket.waiter.wake.lock() = Some(Wake::Thread(thread::current()));\n        }",
        "if !PLANTED || !registered {\n            for ticket in tickets {\n                \
         *ticket.waiter.wake.lock() = Some(Wake::Thread(thread::current()));\n            }\n            \
         registered = true;\n        }",
    ),
    Bug(
        "registered once",
        "reader/waiters.rs",
        "let mut look = !planted::is(Bug::SleepWithoutLook);",
        "let (mut look, mut registered) = (!planted::is(Bug::SleepWithoutLook), false);",
    ),
    Bug(
        "freed by its old name",
        "journal/free.rs",
        "let given = self.context.pool.give(&dir.join(file_name(number, entry.named)), len, whole);",
        "let given = self.context.pool.give(&dir.join(file_name(number, entry.named && !PLANTED)), len, whole);",
    ),
    Bug(
        "freed twice",
        "journal/free.rs",
        "if let (Some(entry), Some(dir)) = (entry, &self.context.dir) {",
        "if PLANTED && entry.is_none() && let Some(dir) = &self.context.dir { \
         first_error = first_error.and(self.context.pool.give(&dir.join(file_name(number, false)), len, false)); }\n            \
         if let (Some(entry), Some(dir)) = (entry, &self.context.dir) {",
    ),
    Bug("cleared by half", "journal/free.rs", "entry.cleared = true;", "entry.cleared = !PLANTED;"),
    Bug(
        "settled without a sync",
        "queue/core.rs",
        "self.sync_round()?;\n            let _ = self.free_round",
        "if !PLANTED { self.sync_round()?; }\n            let _ = self.free_round",
    ),
    // The crate's own planted bugs are constants outside of its tests.
    Bug(
        "",
        "planted.rs",
        "pub(crate) const fn is(_bug: Bug) -> bool {\n    false",
        "pub(crate) fn is(bug: Bug) -> bool {\n    crate::plant::is_on() && crate::plant::is(&format!(\"{bug:?}\"))",
    ),
];

/// Bugs that only whole sets can show: planted for the schedules alone.
const BUGS_OF_SETS: &[Bug] = &[
    Bug(
        "a lease ends in a move",
        "queue/handoff.rs",
        "reader.lease(id, serial, ENDLESS);",
        "if !PLANTED { reader.lease(id, serial, ENDLESS); }",
    ),
    // Once a real one.
    Bug(
        "cleared in the middle of a move",
        "queue/handoff.rs",
        "} else if into.journal.cleared() >= ids.last.get() {",
        "} else if !PLANTED && into.journal.cleared() >= ids.last.get() {",
    ),
    Bug(
        "extended in vain",
        "queue/take.rs",
        "!reader.closed && self.begin_lease(&mut reader, id, serial, lease_ms)",
        "!reader.closed && (PLANTED && reader.open.contains_key(&id) || self.begin_lease(&mut reader, id, serial, lease_ms))",
    ),
    Bug(
        "an old opening ends a new one",
        "reader/mod.rs",
        "Entry::Occupied(held) if held.get().serial == serial => {",
        "Entry::Occupied(held) if PLANTED || held.get().serial == serial => {",
    ),
    Bug(
        "the archive is not asked",
        "queue/archive.rs",
        "let kept = archived.contains(&number) ||",
        "let kept = PLANTED || archived.contains(&number) ||",
    ),
    Bug(
        "deleted ids come again",
        "set/loading.rs",
        "if id <= file.meta.id_floor {",
        "if PLANTED || id <= file.meta.id_floor {",
    ),
    // Once real ones.
    Bug(
        "deleted while it is created",
        "set/mod.rs",
        "Err(error) if core.is_none() && error.kind()",
        "Err(error) if !PLANTED && core.is_none() && error.kind()",
    ),
    Bug(
        "a close is denied",
        "queue/open_item.rs",
        "core.sync().map_err(CloseError::Sync)",
        "core.sync().map_err(|error| if PLANTED { CloseError::Closed } else { CloseError::Sync(error) })",
    ),
    Bug(
        "not synced since it was cleared",
        "journal/durable.rs",
        "self.sync_cleared()?;",
        "if !PLANTED { self.sync_cleared()?; }",
    ),
    Bug(
        "deleted before an answer",
        "queue/core.rs",
        "let waits = self.has_journal && self.reader.lock().has_hidden();",
        "let waits = !PLANTED && self.has_journal && self.reader.lock().has_hidden();",
    ),
    Bug(
        "deleted in the middle of a move",
        "set/mod.rs",
        "while core.pay().below != u64::MAX {",
        "while !PLANTED && core.pay().below != u64::MAX {",
    ),
];

/// What the copy for the schedules has otherwise: file, what stands there, what stands there instead.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("disk/mod.rs", "    Instant::now()", "    crate::sync::time::now()"),
    ("disk/mod.rs", "each!(self, _d => true, _s => false)", "true"),
    ("disk/mod.rs", "std::thread::sleep(std::time::Duration::from_micros(200))", "crate::engine::yield_now()"),
    ("disk/sim.rs", "self.inner.lock().mono_ms", "self.inner.lock().mono_ms + crate::sync::time::passed_ms()"),
    ("disk/sim.rs", "self.inner.lock().wall_ms\n", "self.inner.lock().wall_ms + crate::sync::time::passed_ms()\n"),
];
/// Rooms of the crate that the schedules bring themselves, or do without.
const NOT_SCHEDULED: &[&str] = &["crash", "docs", "sync", "testing"];

fn files(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source is there") {
        let path = entry.expect("the source is there").path();
        match path.is_dir() {
            true => files(&path, all),
            false => all.push(path),
        }
    }
}

/// One module down: what was the root is a module now.
fn moved(text: &str) -> String {
    text.replace("crate::", "crate::broken::").replace("crate::broken::plant::", "crate::plant::")
}

fn store(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("below the output")).expect("the output can be written");
    fs::write(path, text).expect("the output can be written");
}

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let crate_src = here.ancestors().map(|dir| dir.join("src")).find(|src| src.join("journal").is_dir());
    let crate_src = crate_src.expect("below the crate");
    let is_scheduled = here.ends_with("schedules");
    println!("cargo::rerun-if-changed=build.rs");
    for dir in [&crate_src, &here.join("src")] {
        println!("cargo::rerun-if-changed={}", dir.display());
    }

    let mut all = Vec::new();
    files(&crate_src, &mut all);
    for Bug(bug, file, ..) in BUGS {
        assert!(crate_src.join(file).is_file(), "{bug:?} is to be planted in {file}, which is not there");
    }
    for path in all {
        let name = path.strip_prefix(&crate_src).expect("below it").to_string_lossy().into_owned();
        let Ok(mut text) = fs::read_to_string(&path) else { continue };
        let of_sets = BUGS_OF_SETS.iter().filter(|_| is_scheduled);
        for Bug(bug, _, old, new) in BUGS.iter().chain(of_sets).filter(|Bug(_, file, ..)| *file == name) {
            assert!(text.contains(old), "{name} has no place for the bug {bug:?}");
            text = text.replace(old, &new.replace("PLANTED", &format!("crate::plant::is({bug:?})")));
        }
        for (_, old, new) in OTHERWISE.iter().filter(|(file, ..)| is_scheduled && *file == name) {
            assert!(text.contains(old), "{name} no longer says {old:?}");
            text = text.replace(old, new);
        }
        store(&out.join("src").join(&name), &if is_scheduled { text } else { moved(&text) });
    }
    let root = if is_scheduled { scheduled(&crate_src, &out) } else { broken(&here, &out) };
    store(&out.join("root.rs"), &root);
    let names: Vec<&str> = BUGS.iter().map(|bug| bug.0).filter(|name| !name.is_empty()).collect();
    store(&out.join("bugs.rs"), &format!("{names:?}"));
}

/// The modules of the copy for the schedules: those of the crate.
fn scheduled(crate_src: &Path, out: &Path) -> String {
    let mut root = String::new();
    let lib = fs::read_to_string(crate_src.join("lib.rs")).expect("the source is there");
    for module in lib.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')) {
        if !NOT_SCHEDULED.contains(&module) {
            let dir = out.join("src").join(module);
            let path = if dir.is_dir() { dir.join("mod.rs") } else { dir.with_extension("rs") };
            root += &format!("#[path = {path:?}]\nmod {module};\n");
        }
    }
    root
}

/// The modules of the copy for the models: those of the models.
fn broken(here: &Path, out: &Path) -> String {
    let mut root = String::new();
    let lib = fs::read_to_string(here.join("src/lib.rs")).expect("the source is there");
    let mut lines = lib.lines();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("#[path = \"../../../src/").and_then(|rest| rest.strip_suffix("\"]")) {
            let module = lines.next().expect("a module behind its path");
            root += &format!("#[path = {:?}]\n{module}\n", out.join("src").join(path));
        }
    }
    for (name, module) in [("queue", "mod"), ("scenarios", "pub mod"), ("upkeep", "mod")] {
        let text = fs::read_to_string(here.join("src").join(name).with_extension("rs")).expect("the source is there");
        let path = out.join(name).with_extension("rs");
        store(&path, &moved(&text.replace("../../../src/", "src/")));
        root += &format!("#[path = {path:?}]\n{module} {name};\n");
    }
    root
}
