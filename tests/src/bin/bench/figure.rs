//! A measured figure, its aim, and how all of them are shown.
//!
//! Depends on nothing. Invariant: the table and the JSON are made from the same figures.

use std::fmt::Write;

use serde::Serialize;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    part: char,
    name: String,
    value: f64,
    unit: &'static str,
    aim: Option<Aim>,
    gated: bool,
    /// What it was made from, or what belongs to it: name and number.
    with: Vec<(String, f64)>,
}

impl Figure {
    pub(crate) fn new(part: char, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { part, name: name.into(), value, unit, aim: None, gated: false, with: Vec::new() }
    }

    pub(crate) fn aim(self, aim: Aim) -> Self {
        Self { aim: Some(aim), ..self }
    }

    /// Missing its aim fails `--gate`.
    pub(crate) fn gated(self) -> Self {
        Self { gated: true, ..self }
    }

    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.with.push((name.to_owned(), value));
        self
    }

    fn met(&self) -> Option<bool> {
        self.aim.map(|aim| match aim {
            Aim::AtMost(limit) => self.value <= limit,
            Aim::AtLeast(limit) => self.value >= limit,
        })
    }

    fn cells(&self) -> [String; 5] {
        let aim = match self.aim {
            Some(Aim::AtMost(limit)) => format!("≤ {} {}", number(limit), self.unit),
            Some(Aim::AtLeast(limit)) => format!("≥ {} {}", number(limit), self.unit),
            None => String::new(),
        };
        let met = match self.met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let with: Vec<String> =
            self.with.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        let value = format!("{} {}", number(self.value), self.unit);
        [format!("{} {}", self.part, self.name), value, aim, met.to_owned(), with.join(", ")]
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kernel: String,
    cpus: usize,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn of_this_machine() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        Self { kernel: kernel.trim().to_owned(), cpus, figures: Vec::new() }
    }

    /// As Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("Linux {}, {} CPUs\n\n", self.kernel, self.cpus);
        let mut rows = vec![["", "measured", "aim", "", "with"].map(str::to_owned)];
        rows.extend(self.figures.iter().map(Figure::cells));
        let width = |column: usize| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(widths);
            let line: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "| {} |", line.join(" | "));
            if number == 0 {
                let rule = widths.map(|width| "-".repeat(width));
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }

    pub(crate) fn missed_gates(&self) -> Vec<String> {
        let missed = self.figures.iter().filter(|f| f.gated && f.met() == Some(false));
        missed.map(|figure| format!("{} {}", figure.part, figure.name)).collect()
    }
}

/// Three figures that say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value that this part of all values is not above; `share` from 0 to 1.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1).min(last)).copied().expect("something was measured")
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!((median(&values), quantile(&values, 0.99)), (100.0, 198.0));
        assert_eq!((quantile(&values, 0.0), quantile(&values, 1.0)), (1.0, 200.0));
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn only_gated_figures_that_miss_their_aim_are_missed() {
        let figure = |value| Figure::new('a', "x", value, "x").aim(Aim::AtMost(15.0));
        let mut report = Report::of_this_machine();
        report.figures = vec![figure(15.0).gated(), figure(15.1), Figure::new('b', "y", 1.0, "ms")];
        assert!(report.missed_gates().is_empty());
        report.figures.push(figure(15.1).gated());
        report.figures.push(Figure::new('c', "z", 9.0, "/s").aim(Aim::AtLeast(10.0)).gated());
        assert_eq!(report.missed_gates(), ["a x", "c z"]);
    }

    #[test]
    fn a_figure_is_one_row_with_its_aim_and_what_belongs_to_it() {
        let figure =
            Figure::new('a', "4 KiB", 13.84, "x").aim(Aim::AtMost(15.0)).with("tmpfs µs", 1.5);
        let report = Report { figures: vec![figure], ..Report::of_this_machine() };
        let table = report.table();
        assert!(table.contains("| a 4 KiB | 13.8 x   | ≤ 15 x | met | tmpfs µs 1.50 |"), "{table}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["figures"][0]["aim"]["at_most"], 15.0);
        assert_eq!(json["figures"][0]["with"][0][0], "tmpfs µs");
    }
}
