//! The table of the reliability page, from the figures: nothing in it is typed by hand.

use std::path::Path;

use serde_json::Value;

use crate::figures;

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

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
    let mut table =
        String::from("| layer | what it does | needs | tried | passed | failed |\n|---|---|---|---|---|---|\n");
    for (name, what, needs, minutes) in layers {
        let entry = all.get(*name).and_then(Value::as_object);
        let number = |key: &str| entry.and_then(|entry| entry.get(key)).and_then(Value::as_u64);
        let skipped = entry.and_then(|entry| entry.get("skipped")).and_then(Value::as_str);
        let mut tried = Vec::new();
        for (key, value) in entry.into_iter().flatten() {
            if ["runs", "seconds", "passed", "failed", "skipped"].contains(&key.as_str()) {
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
            "| `{name}` ({minutes} min) | {what} | {needs} | {} | {} | {} |\n",
            tried.replace('|', "/"),
            told("passed"),
            told("failed")
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/docs/reliability.md");
    let page = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (head, rest) = page.split_once(BEGIN).ok_or("the page has no place for the figures")?;
    let (_, tail) = rest.split_once(END).ok_or("the page has no end of the figures")?;
    let new = format!("{head}{BEGIN}\n{table}{END}{tail}");
    match check {
        true if new == page => Ok(()),
        true => Err("the page does not show the figures: run `report`".into()),
        false => std::fs::write(&path, new).map_err(|e| e.to_string()),
    }
}
