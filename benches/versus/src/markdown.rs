//! Figures as Markdown: every row with all its subjects, and the summary that the README shows.

use std::fmt::Write;

use crate::figures::{Figures, Latency, Measured, PERCENTILES, Row};

/// A figure with three digits that count.
pub fn figure(value: f64) -> String {
    let value_abs = value.abs();
    match value_abs {
        _ if value == 0.0 => "0".into(),
        _ if value_abs >= 100.0 => format!("{value:.0}"),
        _ if value_abs >= 10.0 => format!("{value:.1}"),
        _ if value_abs >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn ratio(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{}x", figure(value)))
}

/// One row with all its subjects.
pub fn row(row: &Row) -> String {
    let mut out = format!("### {} ({})\n\n", row.name, row.unit);
    out += "| subject | median | min | max | to the best peer | to the best that acknowledges | to the limit | survives |\n";
    out += "|---|---|---|---|---|---|---|---|\n";
    for subject in &row.subjects {
        let name = format!("{} {}", subject.name, subject.version);
        let name = name.trim_end();
        let Some(median) = subject.median() else {
            let why = subject.failed.as_deref().unwrap_or("not measured").replace('|', "/");
            let _ = writeln!(out, "| {name} | failed: {why} | | | | | | {} |", subject.survives);
            continue;
        };
        let acknowledges = if subject.acknowledges { "; acknowledges" } else { "" };
        let note = subject.note.as_ref().map_or(String::new(), |note| format!("; {note}"));
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {} | {} | {} | {} | {}{acknowledges}{note} |",
            figure(median),
            figure(subject.least()),
            figure(subject.most()),
            ratio(row.ratio(Some(subject), row.best_peer())),
            ratio(row.ratio(Some(subject), row.best_acknowledging())),
            ratio(row.ratio(Some(subject), row.limit())),
            subject.survives,
        );
    }
    out
}

/// The group of rows that show this crate alone.
pub const SCALE: &str = "scale";

/// Ours beside the best peer and the limit, one line a row.
pub fn summary(figures: &Figures) -> String {
    let mut out = String::new();
    out += "| what | ours | best peer | ours to it | best that acknowledges | ours to it | limit | ours to it |\n";
    out += "|---|---|---|---|---|---|---|---|\n";
    let cell = |subject: Option<&Measured>| {
        let shown = subject.and_then(|subject| Some((subject, subject.median()?)));
        shown.map_or("-".into(), |(subject, median)| format!("{} ({})", figure(median), short(&subject.name)))
    };
    for row in figures.rows.iter().filter(|row| row.group != SCALE) {
        let ours = row.ours().map_or("-".into(), |ours| {
            ours.median().map_or_else(
                || format!("failed: {}", ours.failed.as_deref().unwrap_or("not measured")),
                |median| format!("{} [{} to {}]", figure(median), figure(ours.least()), figure(ours.most())),
            )
        });
        let (any, acknowledging, limit) = (row.best_peer(), row.best_acknowledging(), row.limit());
        let _ = writeln!(
            out,
            "| {} ({}) | {ours} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.unit,
            cell(any),
            ratio(row.ratio(row.ours(), any)),
            cell(acknowledging),
            ratio(row.ratio(row.ours(), acknowledging)),
            cell(limit),
            ratio(row.ratio(row.ours(), limit)),
        );
    }
    out
}

fn short(name: &str) -> &str {
    name.strip_prefix("limit: ").unwrap_or(name)
}

/// This crate with much of something.
pub fn scale(figures: &Figures) -> String {
    let mut out = String::from("| with much of something | figure |\n|---|---|\n");
    for row in figures.rows.iter().filter(|row| row.group == SCALE) {
        let value = row.ours().and_then(Measured::median).map_or("failed".into(), figure);
        let _ = writeln!(out, "| {} | {value} |", row.name);
    }
    out
}

/// Latencies in open loop.
pub fn latencies(latencies: &[Latency]) -> String {
    let heads = PERCENTILES.map(|(name, _)| name).join(" / ");
    let mut out =
        format!("| load, of its own peak | subject | items/s | put: {heads} (us) | put to get: {heads} (us) |\n");
    out += "|---|---|---|---|---|\n";
    let list = |values: &[f64]| values.iter().map(|value| figure(*value)).collect::<Vec<_>>().join(" / ");
    for latency in latencies {
        let _ = match &latency.failed {
            Some(why) => {
                writeln!(out, "| {}, {} % | {} | | failed: {why} | |", latency.name, latency.load, latency.subject)
            }
            None => writeln!(
                out,
                "| {}, {} % | {} | {} | {} | {} |",
                latency.name,
                latency.load,
                latency.subject,
                figure(latency.rate),
                list(&latency.put_us),
                list(&latency.through_us),
            ),
        };
    }
    out
}

/// Rows in which somebody else is better: said aloud.
pub fn lost(figures: &Figures) -> Vec<String> {
    let mut lost = Vec::new();
    for row in &figures.rows {
        let Some(behind) = row.ratio(row.ours(), row.best_peer()).filter(|ratio| *ratio < 1.0) else { continue };
        if let Some(peer) = row.best_peer() {
            let what = if peer.acknowledges { "" } else { ", which does not acknowledge" };
            lost.push(format!("{}: {} of {}{what}", row.name, figure(behind), peer.name));
        }
    }
    lost
}

/// What stands in the README between its markers.
pub fn readme(figures: &Figures) -> String {
    let command = "`cargo bench -p versus`";
    if figures.rows.is_empty() {
        return format!(
            "{command} measures it, on the machine at hand, beside twelve other queues and the machine's limits.\n"
        );
    }
    let machine = &figures.machine;
    let mut dates: Vec<&str> = figures.rows.iter().map(|row| &row.date[..]).collect();
    dates.sort_unstable();
    dates.dedup();
    let command =
        if figures.rows.iter().any(|row| row.form == "quick") { "`cargo bench -p versus -- --quick`" } else { command };
    let mut out = summary(figures);
    let _ = writeln!(
        out,
        "\n{command} wrote this table on {}: {} cores, {} GiB, {}, Linux {}. Medians, least and most of at least three runs, the \
         subjects in turns. Absolute figures hold for that machine only. All subjects of every row, with what each survives, are \
         in [benches/versus/figures.json](benches/versus/figures.json); how far each is from its goal and why, and latencies at a \
         fixed rate, in [src/docs/speed.md](src/docs/speed.md).",
        dates.join(", "),
        machine.cores,
        machine.memory_gib,
        machine.file_system,
        machine.kernel,
    );
    for (title, lines) in [
        ("Rows where a peer is ahead", lost(figures)),
        ("Not timed, as items were lost or reordered, or as it failed", failures(figures)),
    ] {
        if !lines.is_empty() {
            let _ = writeln!(out, "\n{title}:\n\n- {}", lines.join("\n- "));
        }
    }
    out
}

/// Peers that gave no figure, each with its rows.
fn failures(figures: &Figures) -> Vec<String> {
    let mut failed: Vec<(String, Vec<&str>)> = Vec::new();
    for row in &figures.rows {
        for subject in row.subjects.iter().filter(|subject| subject.failed.is_some()) {
            let name = format!("{} {}", subject.name, subject.version);
            match failed.iter_mut().find(|(other, _)| *other == name) {
                Some((_, rows)) => rows.push(&row.name),
                None => failed.push((name, vec![&row.name])),
            }
        }
    }
    failed.into_iter().map(|(name, rows)| format!("{name} ({})", rows.join(", "))).collect()
}
