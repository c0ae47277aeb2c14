//! The table of the reliability page, from the figures: nothing in it is typed by hand.

use std::path::Path;

use serde_json::Value;

use crate::figures;

fn replaced(page: &str, what: &str, table: &str) -> Result<String, String> {
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {what}: {word} -->"));
    let (head, rest) = page.split_once(&begin).ok_or(format!("the page has no place for the {what}"))?;
    let (_, tail) = rest.split_once(&end).ok_or(format!("the page has no end of the {what}"))?;
    Ok(format!("{head}{begin}\n{table}{end}{tail}"))
}

/// What the peers' rig has seen, a row for each.
fn peers() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers/seen.json");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let Ok(Value::Object(all)) = serde_json::from_str(&text) else { return "\nnot run\n\n".into() };
    let mut table = String::from(
        "| queue | version | after kills | after flipped bits | on a full disk | after power cuts, synced at each put |\n\
         |---|---|---|---|---|---|\n",
    );
    for (name, seen) in &all {
        let told = |what: &str| {
            if let Some(Value::String(why)) = seen.get(what) {
                return why.replace('|', "/");
            }
            let counts = seen.get(what).and_then(Value::as_object);
            let counts: Vec<String> = counts
                .into_iter()
                .flatten()
                .filter_map(|(what, count)| Some((what, count.as_u64()?)))
                .filter(|(what, count)| *count > 0 || what.as_str() == "lost")
                .map(|(what, count)| format!("{} {what}", grouped(count)))
                .collect();
            counts.join(", ")
        };
        let text = |what: &str| seen.get(what).and_then(Value::as_str).unwrap_or_default();
        let note = if text("note").is_empty() { String::new() } else { format!(" ({})", text("note")) };
        let cells = ["kill", "flip", "full", "cut"].map(told).join(" | ");
        table.push_str(&format!("| {name}{note} | {} | {cells} |\n", text("version")));
    }
    table
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes the table into the page, or with `check` only says whether it is the same.
pub fn write(layers: &[(&str, &str, &str, &str)], check: bool) -> Result<(), String> {
    let all = figures::read();
    let mut table = String::from(
        "| layer | what it does | needs | tried | passed | failed | last run |\n|---|---|---|---|---|---|---|\n",
    );
    for (name, what, needs, minutes) in layers {
        let entry = all.get(*name).and_then(Value::as_object);
        let number = |key: &str| entry.and_then(|entry| entry.get(key)).and_then(Value::as_u64);
        let skipped = entry.and_then(|entry| entry.get("skipped")).and_then(Value::as_str);
        let mut tried = Vec::new();
        for (key, value) in entry.into_iter().flatten() {
            if ["runs", "seconds", "passed", "failed", "skipped", "last_run"].contains(&key.as_str()) {
                continue;
            }
            let key = key.replace('_', " ");
            match value {
                Value::String(fact) => tried.push(format!("{key}: {fact}")),
                value => tried.extend(value.as_u64().map(|count| format!("{} {key}", grouped(count)))),
            }
        }
        let told = |key: &str| number(key).map_or("-".to_owned(), grouped);
        let tried = match (skipped, tried.is_empty()) {
            (Some(why), _) => format!("skipped: {why}"),
            (None, true) if entry.is_none() => "not run".to_owned(),
            (None, _) => tried.join(", "),
        };
        table.push_str(&format!(
            "| `{name}` ({minutes} min) | {what} | {needs} | {} | {} | {} | {} |\n",
            tried.replace('|', "/"),
            told("passed"),
            told("failed"),
            entry.and_then(|entry| entry.get("last_run")).and_then(Value::as_str).unwrap_or("-"),
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/docs/reliability.md");
    let page = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let new = replaced(&page, "figures", &table)?;
    let new = replaced(&new, "peers", &peers())?;
    match check {
        true if new == page => Ok(()),
        true => Err("the page does not show the figures: run `report`".into()),
        false => std::fs::write(&path, new).map_err(|e| e.to_string()),
    }
}
