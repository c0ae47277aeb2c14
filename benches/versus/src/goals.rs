//! What each row was to reach, and the table that says how far it is.
//!
//! The absolute goals were set beforehand, from what the peers and the limits gave on one machine; on another one the two
//! ratios tell more: ahead of every peer, and at least half of the limit.

use std::fmt::Write;

use crate::figures::{Better, Figures, Row};
use crate::markdown::figure;

/// A row's name, and the figure to reach in the row's unit.
const GOALS: [(&str, f64); 40] = [
    ("put, no sync, 64 B, recycled", 16.0),
    ("put, no sync, 64 B, first use", 16.0),
    ("put, no sync, 1 KiB, recycled", 6.0),
    ("put, no sync, 1 KiB, first use", 2.5),
    ("put, no sync, 8 KiB, recycled", 0.7),
    ("put, no sync, 8 KiB, first use", 0.35),
    ("batch of 100, no sync, 64 B", 24.0),
    ("batch of 100, no sync, 1 KiB", 4.0),
    ("batch of 100, no sync, 8 KiB", 0.5),
    ("get + close, 64 B", 20.0),
    ("get + close, 1 KiB", 9.0),
    ("get + close, 8 KiB", 2.4),
    ("1 x 1, 64 B", 7.0),
    ("1 x 1, 1 KiB", 1.5),
    ("1 x 1, 8 KiB", 0.3),
    ("2 x 2, 64 B", 6.0),
    ("2 x 2, 1 KiB", 1.3),
    ("2 x 2, 8 KiB", 0.3),
    ("put, sync each, 1 thread, 1 KiB", 10.5),
    ("put, sync each, 16 threads, 1 KiB", 60.0),
    ("put, sync each, 64 threads, 1 KiB", 85.0),
    ("batch of 100, sync each, 1 KiB", 600.0),
    ("append, synced after 1000, 1 thread, 64 B", 2.0),
    ("append, synced after 1000, 1 thread, 1 KiB", 1.0),
    ("put, synced every 100 ms, 1 KiB", 2.0),
    ("10 queues, sync each, 1 KiB", 35.0),
    ("wake of a blocked get, p50", 4.0),
    ("wake of a blocked get, p99", 20.0),
    ("ping-pong round trip, p50", 2.0),
    ("reopen, 1 M of 64 B, closed", 2.0),
    ("reopen, 1 M of 64 B, killed", 30.0),
    ("disk for an item of 64 B", 96.0),
    ("6 GiB of 8 KiB, readers keep up", 400.0),
    ("6 GiB of 8 KiB, growing backlog", 150.0),
    ("device bytes per payload byte, 6 GiB, readers keep up", 0.1),
    ("0.5 GiB of 8 KiB, readers keep up", 400.0),
    ("device bytes per payload byte, 0.5 GiB, readers keep up", 0.1),
    ("100000 queues in one set: open the set ms", 1000.0),
    ("100000 queues in one set: memory of the set MB", 64.0),
    ("5 GB of 1 KiB through, one item in 1,000 never closed: disk without the pool to live", 2.0),
];

fn goal(row: &Row) -> Option<f64> {
    GOALS.iter().find(|(name, _)| row.name == *name).map(|(_, goal)| *goal)
}

/// How many times the goal is reached.
fn reached(row: &Row) -> Option<f64> {
    let (ours, goal) = (row.ours()?.median()?, goal(row)?);
    let part = if row.better == Better::Higher { ours / goal } else { goal / ours };
    part.is_finite().then_some(part)
}

/// The best sample of ours: what the machine gave once.
fn best(row: &Row) -> Option<f64> {
    let ours = row.ours().filter(|ours| ours.median().is_some())?;
    Some(if row.better == Better::Higher { ours.most() } else { ours.least() })
}

/// Every row with its goal: how far, and by which of the three measures it is met.
fn table(figures: &Figures) -> String {
    let mut out =
        String::from("| row | ours, median (best) | goal | of the goal | of the best peer | of the limit | met |\n");
    out += "|---|---|---|---|---|---|---|\n";
    let times = |value: Option<f64>| value.map_or("-".into(), figure);
    for row in &figures.rows {
        let Some(ours) = row.ours().and_then(|ours| ours.median()) else { continue };
        let (to_peer, to_limit) = (row.ratio(row.ours(), row.best_peer()), row.ratio(row.ours(), row.limit()));
        if goal(row).is_none() && to_peer.is_none() && to_limit.is_none() {
            continue;
        }
        let mut met = Vec::new();
        for (part, least, name) in [(reached(row), 1.0, "goal"), (to_peer, 1.0, "peers"), (to_limit, 0.5, "limit")] {
            if part.is_some_and(|part| part >= least) {
                met.push(name);
            }
        }
        let met = if met.is_empty() { "no".into() } else { met.join(", ") };
        let sign = if row.better == Better::Higher { ">=" } else { "<=" };
        let wanted = goal(row).map_or("-".into(), |goal| format!("{sign} {}", figure(goal)));
        let _ = writeln!(
            out,
            "| {} ({}) | {} ({}) | {wanted} | {} | {} | {} | {met} |",
            row.name,
            row.unit,
            figure(ours),
            times(best(row)),
            times(reached(row)),
            times(to_peer),
            times(to_limit),
        );
    }
    out
}

/// What stands on the speed page between its markers.
pub fn page(figures: &Figures) -> String {
    let mut out = table(figures);
    let scale = crate::markdown::scale(figures);
    if scale.lines().count() > 2 {
        let _ = write!(out, "\n{scale}");
    }
    if !figures.latencies.is_empty() {
        let table = crate::markdown::latencies(&figures.latencies);
        let _ = write!(out, "\nLatency at a fixed rate, from when a put was due:\n\n{table}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Measured;

    fn row(name: &str, better: Better, ours: f64, peer: f64, limit: f64) -> Row {
        let one = |kind: &str, sample: f64| Measured {
            name: kind.into(),
            version: String::new(),
            kind: kind.into(),
            acknowledges: true,
            survives: String::new(),
            samples: vec![sample],
            failed: None,
            note: None,
        };
        Row {
            group: String::new(),
            name: name.into(),
            unit: "u".into(),
            better,
            date: String::new(),
            form: String::new(),
            subjects: vec![one("ours", ours), one("peer", peer), one("limit", limit)],
        }
    }

    #[test]
    fn a_row_is_met_by_each_measure_on_its_own() {
        let rows = vec![
            row("2 x 2, 1 KiB", Better::Higher, 1.4, 1.5, 4.0),
            row("wake of a blocked get, p50", Better::Lower, 8.0, 4.0, 5.0),
            row("without a goal", Better::Higher, 1.0, 2.0, 3.0),
        ];
        let table = table(&Figures { rows, ..Figures::default() });
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines[0], "| 2 x 2, 1 KiB (u) | 1.40 (1.40) | >= 1.30 | 1.08 | 0.933 | 0.350 | goal |");
        assert_eq!(
            lines[1],
            "| wake of a blocked get, p50 (u) | 8.00 (8.00) | <= 4.00 | 0.500 | 0.500 | 0.625 | limit |"
        );
        assert!(lines[2].ends_with("| - | - | 0.500 | 0.333 | no |"), "{}", lines[2]);
    }
}
