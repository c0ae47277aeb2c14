//! Writes the README's table, that of the speed page and the drawings from the figures on record. `--check` only tells whether they are up to date.
//!
//! `cargo run -p versus --bin table [-- --check]`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use versus::figures::Figures;
use versus::{goals, markdown, plot};

const BEGIN: &str = "<!-- versus: begin (written by `cargo run -p versus --bin table`) -->\n";
const END: &str = "<!-- versus: end -->\n";

const PROFILE_BEGIN: &str = "<!-- profile: begin -->\n";
const PROFILE_END: &str = "<!-- profile: end -->\n";

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
    let mut files = vec![
        (readme, between(&text, &markdown::readme(&figures))?),
        (page, between(&profiled(&words, here)?, &goals::page(&figures))?),
    ];
    files.extend(plot::groups(&figures).into_iter().map(|(name, drawing)| (here.join(name), drawing)));
    let mut is_current = true;
    for (path, wanted) in files {
        is_current &= hold(&path, &wanted, is_check)?;
    }
    Ok(is_current)
}

/// The speed page with the profile on record.
fn profiled(page: &str, here: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let (before, rest) = page.split_once(PROFILE_BEGIN).ok_or("no marker where the profile begins")?;
    let (_, after) = rest.split_once(PROFILE_END).ok_or("no marker where the profile ends")?;
    let profile = std::fs::read_to_string(here.join("profile.txt"))?;
    Ok(format!("{before}{PROFILE_BEGIN}\n```text\n{}\n```\n\n{PROFILE_END}{after}", profile.trim_end()))
}

/// The text with what stands between the markers replaced.
fn between(text: &str, table: &str) -> Result<String, String> {
    let begin = text.find(BEGIN).ok_or("no marker where the table begins")? + BEGIN.len();
    let end = text.find(END).filter(|end| *end >= begin).ok_or("no marker where the table ends")?;
    Ok(format!("{}\n{table}\n{}", &text[..begin], &text[end..]))
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
