//! What a run leaves behind: one file of JSON, from which every table and drawing is made.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub machine: Machine,
    pub rows: Vec<Row>,
    #[serde(default)]
    pub latencies: Vec<Latency>,
}

/// The kind of machine. No names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub file_system: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub group: String,
    pub name: String,
    pub unit: String,
    pub better: Better,
    /// Day of the run, and how much of it was done: `quick` or `full`.
    pub date: String,
    pub form: String,
    pub subjects: Vec<Measured>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    pub version: String,
    /// `ours`, `peer`, `memory` or `limit`.
    pub kind: String,
    /// A reader that dies after it saw an item does not lose it.
    pub acknowledges: bool,
    pub survives: String,
    /// One a repetition, in the row's unit.
    pub samples: Vec<f64>,
    /// Why there is no figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Percentiles in microseconds, at a fixed rate in open loop: from when a put was due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub name: String,
    pub subject: String,
    pub kind: String,
    pub date: String,
    pub form: String,
    /// Percent of the subject's own peak.
    pub load: u32,
    /// Items a second.
    pub rate: f64,
    #[serde(default)]
    pub put_us: Vec<f64>,
    #[serde(default)]
    pub through_us: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What the two lists of a [`Latency`] hold.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

impl Measured {
    pub fn median(&self) -> Option<f64> {
        if self.failed.is_some() || self.samples.is_empty() {
            return None;
        }
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        Some(samples[samples.len() / 2])
    }

    pub fn least(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn most(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

impl Row {
    pub fn ours(&self) -> Option<&Measured> {
        self.subjects.iter().find(|subject| subject.kind == "ours")
    }

    /// The best subject of those that `is_one` names.
    pub fn best(&self, is_one: impl Fn(&Measured) -> bool) -> Option<&Measured> {
        let figures = self.subjects.iter().filter(|subject| is_one(subject) && subject.median().is_some());
        let key = |subject: &&Measured| subject.median().unwrap_or(0.0);
        match self.better {
            Better::Higher => figures.max_by(|a, b| key(a).total_cmp(&key(b))),
            Better::Lower => figures.min_by(|a, b| key(a).total_cmp(&key(b))),
        }
    }

    pub fn best_peer(&self) -> Option<&Measured> {
        self.best(|subject| subject.kind == "peer")
    }

    pub fn best_acknowledging(&self) -> Option<&Measured> {
        self.best(|subject| subject.kind == "peer" && subject.acknowledges)
    }

    pub fn limit(&self) -> Option<&Measured> {
        self.best(|subject| subject.kind == "limit").or_else(|| self.best(|subject| subject.kind == "memory"))
    }

    /// How many times as good the first is as the second.
    pub fn ratio(&self, of: Option<&Measured>, to: Option<&Measured>) -> Option<f64> {
        let (of, to) = (of?.median()?, to?.median()?);
        let ratio = match self.better {
            Better::Higher => of / to,
            Better::Lower => to / of,
        };
        ratio.is_finite().then_some(ratio)
    }
}

impl Figures {
    pub fn load(path: &Path) -> io::Result<Figures> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    pub fn store(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Takes over what a newer run measured; rows that it left out stay, with their own date. Figures of another machine do
    /// not stand beside these.
    pub fn merge(mut self, newer: Figures) -> Figures {
        if self.machine != newer.machine {
            return newer;
        }
        for row in newer.rows {
            match self.rows.iter_mut().find(|old| old.name == row.name) {
                Some(old) => *old = row,
                None => self.rows.push(row),
            }
        }
        for new in newer.latencies {
            let is_same = |old: &Latency| (&old.name, &old.subject, old.load) == (&new.name, &new.subject, new.load);
            match self.latencies.iter_mut().find(|old| is_same(old)) {
                Some(old) => *old = new,
                None => self.latencies.push(new),
            }
        }
        self
    }
}

/// Days since 1970 as a date (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub fn date(days: i64) -> String {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, kind: &str, acknowledges: bool, samples: &[f64]) -> Measured {
        Measured {
            name: name.into(),
            version: String::new(),
            kind: kind.into(),
            acknowledges,
            survives: String::new(),
            samples: samples.to_vec(),
            failed: None,
            note: None,
        }
    }

    fn row(better: Better, subjects: Vec<Measured>) -> Row {
        let text = String::new;
        Row { group: text(), name: "r".into(), unit: text(), better, date: text(), form: text(), subjects }
    }

    #[test]
    fn a_failed_peer_is_never_the_best() {
        let mut fast = measured("fast", "peer", false, &[9.0]);
        fast.failed = Some("lost items".into());
        let row = row(
            Better::Higher,
            vec![
                measured("ours", "ours", true, &[1.0, 6.0, 3.0]),
                fast,
                measured("b", "peer", false, &[2.0]),
                measured("a", "peer", true, &[1.5]),
            ],
        );
        assert_eq!(row.best_peer().map(|peer| &peer.name[..]), Some("b"));
        assert_eq!(row.ratio(row.ours(), row.best_peer()), Some(1.5));
        assert_eq!(row.ratio(row.ours(), row.best_acknowledging()), Some(2.0));
    }

    #[test]
    fn where_less_is_better_the_ratio_turns() {
        let row = row(Better::Lower, vec![measured("ours", "ours", true, &[2.0]), measured("b", "peer", true, &[8.0])]);
        assert_eq!(row.ratio(row.ours(), row.best_peer()), Some(4.0));
    }

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_089), "2025-01-01");
    }

    #[test]
    fn a_newer_row_replaces_the_older_one_alone() {
        let old = Figures { rows: vec![row(Better::Higher, vec![])], ..Figures::default() };
        let mut newer = old.clone();
        newer.rows[0].date = "2".into();
        let merged = old.merge(newer);
        assert_eq!((merged.rows.len(), &merged.rows[0].date[..]), (1, "2"));
    }
}
