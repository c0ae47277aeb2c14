//! Writes the README's table, the tables of the speed page and the drawings from what is on record. `--check` only tells whether
//! they are up to date.
//!
//! `cargo run -p versus --bin table [-- --check]`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use versus::figures::Figures;
use versus::{goals, markdown, plot};

/// What stands around something written.
type Markers = [&'static str; 2];

const FIGURES: Markers =
    ["<!-- versus: begin (written by `cargo run -p versus --bin table`) -->\n", "<!-- versus: end -->\n"];
const PROFILE: Markers = ["<!-- profile: begin -->\n", "<!-- profile: end -->\n"];

fn main() -> ExitCode {
    let is_check = std::env::args().any(|word| word == "--check");
    match run(is_check) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(is_check: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stored = here.join("figures.json");
    let figures = if stored.exists() { Figures::load(&stored)? } else { Figures::default() };
    let readme = here.join("../../README.md");
    let text = std::fs::read_to_string(&readme)?;
    let page = here.join("../../src/docs/speed.md");
    let words = std::fs::read_to_string(&page)?;
    let profile = format!("```text\n{}\n```\n", std::fs::read_to_string(here.join("profile.txt"))?.trim_end());
    let mut files = vec![
        (readme, between(&text, FIGURES, &markdown::readme(&figures))?),
        (page, between(&between(&words, FIGURES, &goals::page(&figures))?, PROFILE, &profile)?),
    ];
    files.extend(plot::groups(&figures).into_iter().map(|(name, drawing)| (here.join(name), drawing)));
    let mut is_current = true;
    for (path, wanted) in files {
        is_current &= hold(&path, &wanted, is_check)?;
    }
    Ok(is_current)
}

/// The text with what stands between the markers replaced.
fn between(text: &str, [begin, end]: Markers, new: &str) -> Result<String, String> {
    let (before, rest) = text.split_once(begin).ok_or_else(|| format!("no marker {begin}"))?;
    let (_, after) = rest.split_once(end).ok_or_else(|| format!("no marker {end}"))?;
    Ok(format!("{before}{begin}\n{new}\n{end}{after}"))
}

/// Makes the file what it should be, or tells that it is not. The answer is whether all is well.
fn hold(path: &PathBuf, wanted: &str, is_check: bool) -> std::io::Result<bool> {
    if std::fs::read_to_string(path).is_ok_and(|found| found == wanted) {
        return Ok(true);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_check {
        println!("{name} is not what the figures say: cargo run -p versus --bin table");
        return Ok(false);
    }
    println!("{name} written");
    std::fs::write(path, wanted)?;
    Ok(true)
}
