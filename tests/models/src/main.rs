//! Runs all models: each on the real source, which must hold, and each planted bug, which must break the model that is there
//! for it, and in the way that it says.
//!
//! `cargo run --release`; the words after it choose models whose name contains one of them.

use std::process::{Command, ExitCode};
use std::sync::Mutex;

use kestrel_models::check::check;
use kestrel_models::{broken, plant, scenarios};

/// A model: its name, most preemptions (three where three threads meet or a run is long, else six), what it runs.
struct Model(&'static str, usize, fn());

/// A planted bug, the model that it breaks, and the words in which that is told.
struct Caught(&'static str, fn(), &'static str);

const MODELS: &[Model] = &{
    use scenarios::*;
    [
        Model("two_answers_are_covered", 6, || answers_are_covered(2)),
        Model("three_answers_are_covered", 3, || answers_are_covered(3)),
        Model("rounds_lead", 6, rounds_lead_too),
        Model("failure_is_told_to_two", 6, || failure_is_told_to_all(2)),
        Model("failure_is_told_to_three", 3, || failure_is_told_to_all(3)),
        Model("failures_are_one", 6, two_failures_are_one),
        Model("durable_stays", 6, durable_never_falls),
        Model("listener_hears", 6, a_listener_hears_of_the_sync),
        Model("done_marks", 6, done_tells_the_marks),
        Model("seal_tells_the_count", 6, a_seal_tells_the_count),
        Model("one_frame", 6, || frames_before_the_end_are_whole(1)),
        Model("two_frames", 6, || frames_before_the_end_are_whole(2)),
        Model("put_wakes_get", 6, a_put_wakes_a_get),
        Model("put_wakes_task", 6, a_put_wakes_a_task),
        Model("line_in_order", 3, the_line_is_served_in_order),
        Model("no_overtaking", 6, nobody_overtakes),
        Model("dropped_task", 3, a_dropped_task_passes_its_promise_on),
        Model("late_get", 3, a_late_get_passes_its_promise_on),
        Model("shut", 6, a_shut_queue_lets_everybody_go),
        Model("pause", 6, a_pause_loses_nothing),
        Model("abort", 6, an_abort_wakes_a_get),
        Model("hidden", 3, hidden_until_durable),
        Model("order_first", 6, order_goes_before_speed),
        Model("shown_by_either", 2, shown_by_either),
        Model("room", 3, room_is_passed_on),
        Model("late_put", 3, a_late_put_passes_its_room_on),
        Model("synced_task", 6, a_synced_task_is_not_forgotten),
        Model("last_put", 3, the_last_put_is_tended),
        Model("spent_segment", 6, a_spent_segment_is_freed),
        Model("freed_segment", 3, a_freed_segment_is_gone),
        Model("cleared_segment", 3, a_cleared_segment_is_gone),
        Model("freed_once", 3, a_segment_is_freed_once),
        Model("end", 6, the_end_takes_the_last_put_along),
        Model("append", 6, an_append_is_published),
        Model("clear", 6, a_clear_strands_nobody),
        Model("late_wake", 3, a_late_wake_strands_nobody),
        Model("dropped_item", 3, a_dropped_item_strands_nobody),
        Model("two_lines", 3, a_place_in_two_lines),
        // Seal and last mark may both see it: a second ring for the upkeep thread is harmless.
        Model("spent_is_seen", 3, somebody_sees_it_spent),
        Model("two_gets_two_puts", 3, two_gets_two_puts),
    ]
};

const CAUGHT: &[Caught] = &{
    use broken::scenarios::*;
    [
        Caught("two leaders", || answers_are_covered(2), "one leader at a time"),
        Caught("two leaders", rounds_lead_too, "one leader at a time"),
        Caught("one follower told", || answers_are_covered(3), "deadlock"),
        Caught("told before the lead is free", || answers_are_covered(2), "deadlock"),
        Caught("AckBeforeSync", || answers_are_covered(2), "before the device has it"),
        Caught("RetryFailedSync", || failure_is_told_to_all(2), "asked again after a failure"),
        Caught("last failure wins", two_failures_are_one, "two failures told"),
        Caught("durable falls", durable_never_falls, "taken back"),
        Caught("tasks are not told", a_listener_hears_of_the_sync, "deadlock"),
        Caught("seal seen too early", somebody_sees_it_spent, "nobody sees the segment spent"),
        Caught("done is looked up again", somebody_sees_it_spent, "two marks were the last"),
        Caught("weak seal", a_seal_tells_the_count, "spent with an item waiting"),
        Caught("weak done", done_tells_the_marks, "counted before it is marked"),
        Caught("seal is not asked", a_spent_segment_is_freed, "still there"),
        Caught("end before count", || frames_before_the_end_are_whole(1), "does not cover"),
        Caught("nobody is woken", a_put_wakes_a_get, "deadlock"),
        Caught("no look after registering", a_put_wakes_a_task, "deadlock"),
        Caught("joins without a look", a_put_wakes_a_get, "deadlock"),
        Caught("looks without the tail", a_put_wakes_a_get, "deadlock"),
        Caught("puts without a look", a_put_wakes_a_get, "deadlock"),
        Caught("rejoins without a look", a_clear_strands_nobody, "deadlock"),
        Caught("waiting is not told", a_clear_strands_nobody, "deadlock"),
        Caught("last come first served", the_line_is_served_in_order, "not first come first served"),
        Caught("a called waiter is not alone", the_line_is_served_in_order, "not first come first served"),
        Caught("promise kept in the grave", a_dropped_task_passes_its_promise_on, "deadlock"),
        Caught("promise kept in the grave", a_late_get_passes_its_promise_on, "deadlock"),
        Caught("promise leaks", a_dropped_task_passes_its_promise_on, "deadlock"),
        Caught("newcomers overtake", nobody_overtakes, "overtaken"),
        Caught("given back in silence", an_abort_wakes_a_get, "deadlock"),
        Caught("published in silence", hidden_until_durable, "deadlock"),
        Caught("shown behind what is hidden", order_goes_before_speed, "delivered before it is durable"),
        Caught("AckBeforeSync", hidden_until_durable, "deadlock"),
        Caught("room is kept", a_late_put_passes_its_room_on, "left behind"),
        Caught("room passes nobody on", room_is_passed_on, "deadlock"),
        Caught("ended in silence", a_shut_queue_lets_everybody_go, "deadlock"),
        Caught("sync ring is lost", a_synced_task_is_not_forgotten, "deadlock"),
        Caught("tended with the bell off", the_last_put_is_tended, "nobody syncs the last put"),
        Caught("resumed in silence", a_pause_loses_nothing, "deadlock"),
        Caught("a promise not kept is the end", a_clear_strands_nobody, "deadlock"),
        Caught("a promise not kept is the end", a_dropped_item_strands_nobody, "deadlock"),
        Caught("promise kept in the grave", a_place_in_two_lines, "deadlock"),
        Caught("sync ring is lost", an_append_is_published, "deadlock"),
        Caught("freed by its old name", a_freed_segment_is_gone, "left behind"),
        Caught("freed twice", a_segment_is_freed_once, "nothing fails"),
        Caught("cleared by half", a_cleared_segment_is_gone, "still there"),
        Caught("settled without a sync", the_end_takes_the_last_put_along, "not settled"),
        Caught("registered once", a_late_wake_strands_nobody, "deadlock"),
        Caught("ForgetFailure", || failure_is_told_to_all(2), "asked again after a failure"),
        Caught("PublishRelaxed", || frames_before_the_end_are_whole(1), "not whole"),
        Caught("SealAfterLook", somebody_sees_it_spent, "nobody sees the segment spent"),
        Caught("SleepWithoutLook", two_gets_two_puts, "deadlock"),
    ]
};

/// What one model came to.
struct Told {
    line: String,
    orders: u64,
    holds: bool,
}

/// Each in a process of its own: where a model ends in the middle, what is dropped after that may abort.
fn child(what: &str, number: usize) -> (bool, String) {
    let run = std::env::current_exe().and_then(|me| Command::new(me).args([what, &number.to_string()]).output());
    match run {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
        Err(error) => (false, error.to_string()),
    }
}

fn real(number: usize, model: &Model) -> Told {
    let (holds, said) = child("real", number);
    let line = said.lines().find(|line| line.starts_with(&format!("{}: ", model.0)));
    let orders = line.and_then(|line| line.split_once(": ")?.1.split_once(" orders")?.0.parse().ok());
    match (holds, line, orders) {
        (true, Some(line), Some(orders)) => Told { line: line.to_owned(), orders, holds },
        _ => Told { line: format!("{}: FAILED\n{said}", model.0), orders: 0, holds: false },
    }
}

fn planted(number: usize, Caught(bug, _, how): &Caught) -> Told {
    let (success, said) = child("broken", number);
    let holds = !success && said.contains(how);
    let line = match holds {
        true => format!("with {bug:?} planted: {how}"),
        false => format!("with {bug:?} planted: NOT CAUGHT by what is there for it\n{said}"),
    };
    Told { line, orders: 0, holds }
}

fn chosen<T>(list: &'static [T], number: &str) -> Option<&'static T> {
    list.get(number.parse::<usize>().ok()?)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [what, number] = &words[..] {
        match what.as_str() {
            "real" => {
                let Some(Model(name, preemptions, run)) = chosen(MODELS, number) else { return ExitCode::from(2) };
                check(name, *preemptions, run);
                return ExitCode::SUCCESS;
            }
            "broken" => {
                let Some(Caught(bug, run, _)) = chosen(CAUGHT, number) else { return ExitCode::from(2) };
                plant::set(bug);
                check(bug, 3, run);
                return ExitCode::SUCCESS;
            }
            _ => {}
        }
    }
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let models = MODELS.iter().enumerate().filter(|(_, model)| wanted(model.0));
    let caught = CAUGHT.iter().enumerate().filter(|(_, caught)| wanted(caught.0));
    let runs: Vec<Box<dyn Fn() -> Told + Send + Sync>> = models
        .map(|(number, model)| Box::new(move || real(number, model)) as Box<dyn Fn() -> Told + Send + Sync>)
        .chain(caught.map(|(number, caught)| Box::new(move || planted(number, caught)) as _))
        .collect();
    let next = Mutex::new((runs.iter(), 0, 0, 0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(run) = next.lock().ok().and_then(|mut state| state.0.next()) else { return };
                    let told = run();
                    let Ok(mut state) = next.lock() else { return };
                    println!("models: {}", told.line);
                    state.1 += told.orders;
                    if told.holds { state.2 += 1 } else { state.3 += 1 }
                }
            });
        }
    });
    // A name that nobody plants would break nothing, and a bug that nobody looks for proves nothing.
    let unknown = broken::BUGS.iter().filter(|bug| !CAUGHT.iter().any(|Caught(caught, ..)| *caught == **bug));
    let unknown: Vec<_> = unknown.collect();
    let Ok((_, orders, passed, mut failed)) = next.into_inner() else { return ExitCode::FAILURE };
    if !unknown.is_empty() {
        println!("models: planted and not caught by any model: {unknown:?}");
        failed += 1;
    }
    println!("models: {orders} orders in all");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
