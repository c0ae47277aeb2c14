//! Bars: one drawing a group of rows, each row scaled by its own best figure.

use std::fmt::Write;

use crate::figures::{Better, Figures, Row};
use crate::markdown::{SCALE, figure};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 210.0;
const BAR: f64 = 400.0;
const LINE: f64 = 17.0;

/// File name and drawing of each group.
pub fn groups(figures: &Figures) -> Vec<(String, String)> {
    let mut groups: Vec<&str> = Vec::new();
    for row in figures.rows.iter().filter(|row| row.group != SCALE) {
        if !groups.contains(&&row.group[..]) {
            groups.push(&row.group);
        }
    }
    groups
        .into_iter()
        .map(|group| {
            let rows: Vec<&Row> = figures.rows.iter().filter(|row| row.group == group).collect();
            let name: String = group.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            (format!("{name}.svg"), drawing(&rows))
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn drawing(rows: &[&Row]) -> String {
    let lines: usize = rows.iter().map(|row| row.subjects.len() + 2).sum();
    let height = LINE * lines as f64 + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let mut y = 5.0;
    for row in rows {
        y += LINE;
        let better = if row.better == Better::Lower { ", less is better" } else { "" };
        let title = escape(&format!("{} ({}{better})", row.name, row.unit));
        let _ = writeln!(out, "<text x=\"5\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>", y - 4.0);
        let most = row.subjects.iter().filter_map(|subject| subject.median()).fold(0.0, f64::max);
        for subject in &row.subjects {
            y += LINE;
            let name = escape(&subject.name);
            let _ =
                writeln!(out, "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>", LABEL - 6.0, y - 4.0);
            let colour = match &subject.kind[..] {
                "ours" => "#1f6fb2",
                "limit" | "memory" => "#c9c9c9",
                _ if subject.acknowledges => "#7a9e5f",
                _ => "#cf9a55",
            };
            let (width, text) = match subject.median() {
                Some(median) if most > 0.0 => (BAR * median / most, figure(median)),
                Some(median) => (0.0, figure(median)),
                None => (0.0, "failed".into()),
            };
            let _ = writeln!(
                out,
                "<rect x=\"{LABEL}\" y=\"{:.0}\" width=\"{width:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{text}</text>",
                y - LINE + 2.0,
                LINE - 4.0,
                LABEL + width + 5.0,
                y - 4.0,
            );
        }
        y += LINE;
    }
    out += "</svg>\n";
    out
}
