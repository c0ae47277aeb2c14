//! The figures of all layers, in one JSON file: what each layer tried, found and skipped. Nothing in it is typed by hand.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// What one run of a layer came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Cases that held, and that did not.
    pub passed: u64,
    pub failed: u64,
    /// Counted things, such as kills or images; runs of the same layer add up.
    pub counts: Vec<(&'static str, u64)>,
    /// Facts of the last run, such as a version.
    pub facts: Vec<(&'static str, String)>,
    /// The layer could not run here, and why. It never counts as passed.
    pub skipped: Option<String>,
}

impl Outcome {
    pub fn skipped(why: impl Into<String>) -> Outcome {
        Outcome { skipped: Some(why.into()), ..Outcome::default() }
    }

    pub fn note(&mut self, holds: bool) {
        if holds { self.passed += 1 } else { self.failed += 1 }
    }
}

pub fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("figures.json")
}

pub fn read() -> Map<String, Value> {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Adds a run to the file, to the counts of earlier runs of the same layer.
pub fn add(layer: &str, seconds: f64, outcome: &Outcome) -> std::io::Result<()> {
    let mut all = read();
    let entry = all.entry(layer).or_insert_with(|| json!({}));
    let old = entry.as_object().cloned().unwrap_or_default();
    let was = |name: &str| old.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let mut new = old.clone();
    match &outcome.skipped {
        Some(why) => {
            new.insert("skipped".into(), json!(why));
        }
        None => {
            new.remove("skipped");
            new.insert("last_run".into(), json!(today()));
            new.insert("runs".into(), json!((was("runs") + 1.0) as u64));
            new.insert("seconds".into(), json!((was("seconds") + seconds).round() as u64));
            new.insert("passed".into(), json!(was("passed") as u64 + outcome.passed));
            new.insert("failed".into(), json!(was("failed") as u64 + outcome.failed));
            for (name, count) in &outcome.counts {
                new.insert((*name).into(), json!(was(name) as u64 + count));
            }
            for (name, fact) in &outcome.facts {
                new.insert((*name).into(), json!(fact));
            }
        }
    }
    *entry = Value::Object(new);
    let text = serde_json::to_string_pretty(&Value::Object(all)).map_err(std::io::Error::other)?;
    std::fs::write(file(), text + "\n")
}

/// The day in UTC, as year, month and day.
fn today() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut days = now.as_secs() / 86_400;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
