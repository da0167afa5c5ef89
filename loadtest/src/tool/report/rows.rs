//! Table rows: a figure, its floor and the ratio.

use std::fmt::Write;

use crate::tool::arith::{ratio, real, shown, thousands, whole};
use crate::tool::gate::{Held, Ratio};
use crate::tool::load::Outcome;
use crate::tool::stage::{Figure, FloorKind};
use crate::tool::watch::RoleUse;

use super::Run;

/// A figure and its floor.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Name of the deployment.
    pub site: &'a str,
    /// Name of the workload.
    pub workload: &'static str,
    pub figure: &'a Figure,
    /// The floor, if it was measured.
    pub floor: Option<f64>,
}

impl Row<'_> {
    fn name(&self) -> String {
        format!("{} / {} / {}", self.site, self.workload, self.figure.name)
    }

    /// The row name and the ratio to the floor.
    pub fn ratio(&self) -> Option<(String, Ratio)> {
        let floor = self.floor?;
        Some((
            self.name(),
            Ratio { ratio: ratio(self.figure.value, floor), better: self.figure.better },
        ))
    }

    /// The row name, the figure and its floor, if the gate may compare them with those of later
    /// runs.
    pub fn steady(&self) -> Option<(String, Held)> {
        let floor = self.floor.filter(|_| self.figure.floor.is_some_and(FloorKind::is_steady))?;
        Some((self.name(), Held { value: self.figure.value, floor, better: self.figure.better }))
    }

    /// The ratio as text; empty without a floor.
    pub fn ratio_words(&self) -> String {
        self.ratio().map_or_else(String::new, |(_, ratio)| format!("{:.2}", ratio.ratio))
    }

    /// The floor as text; empty without a floor.
    pub fn floor_words(&self) -> String {
        self.floor
            .map_or_else(String::new, |floor| format!("{} {}", shown(floor), self.figure.unit))
    }

    /// The figure as text.
    pub fn value_words(&self) -> String {
        let Figure { value, unit, .. } = self.figure;
        // A figure without a unit is a count.
        if unit.is_empty() { thousands(whole(*value)) } else { format!("{} {unit}", shown(*value)) }
    }
}

/// The rows of a deployment.
pub fn of(run: &Run) -> impl Iterator<Item = Row<'_>> {
    run.outcomes.iter().flat_map(move |outcome| {
        outcome.figures.iter().map(move |figure| Row {
            site: &run.site,
            workload: outcome.workload.word(),
            figure,
            floor: figure.floor.and_then(|kind| outcome.floors.of(kind)),
        })
    })
}

/// Remarks on an outcome, besides its figures.
pub fn remarks(outcome: &Outcome) -> Vec<String> {
    let mut remarks = vec![if outcome.violations == 0 {
        format!("correct: {}", outcome.proven)
    } else {
        format!("NOT CORRECT: {} violations", thousands(outcome.violations))
    }];
    remarks.extend(outcome.sentences.iter().cloned());
    remarks.extend(outcome.notes.iter().cloned());

    if outcome.errors > 0 {
        remarks.push(format!(
            "errors (refused, unanswered, disconnected): {}",
            thousands(outcome.errors)
        ));
    }
    if !outcome.counted.is_empty() {
        remarks.push(format!("growth of the servers' counters: {}", outcome.counted));
    }

    if !outcome.spent.roles.is_empty() {
        let role = |it: &RoleUse| {
            let (cores, mib) = (
                ratio(it.cpu_s, outcome.spent.seconds) * 100.0,
                real(it.memory_bytes) / 1_048_576.0,
            );
            format!("{} {cores:.0} % of a core and {} MiB", it.role, shown(mib))
        };
        let roles: Vec<String> = outcome.spent.roles.iter().map(role).collect();
        remarks.push(format!("CPU, and memory at the end: {}", roles.join(", ")));
    }

    let busy = outcome.spent.machine_busy * 100.0;
    let own = ratio(outcome.spent.generator_cpu_s, outcome.spent.seconds) * 100.0;
    let stolen = outcome.spent.machine_stolen * 100.0;
    remarks.push(format!(
        "the generator used {own:.0} % of a core; all cores were {busy:.0} % busy; other \
         machines took {stolen:.0} %"
    ));
    remarks.extend(outcome.spent.bottleneck.clone());
    remarks
}

/// Renders the table of a deployment.
pub fn table(run: &Run) -> String {
    let rows: Vec<Row<'_>> = of(run).collect();
    let floors = run.outcomes.iter().flat_map(|outcome| &outcome.floors.rows);
    let names =
        rows.iter().map(|row| row.figure.name.as_str()).chain(floors.map(|floor| floor.name));
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);

    let mut table = format!("\n{}\n", run.site);
    for outcome in &run.outcomes {
        let word = outcome.workload.word();
        let _ = writeln!(table, "\n  {word:<width$}  {:>16}  {:>16}  {:>8}", "", "floor", "ratio");
        for row in rows.iter().filter(|row| row.workload == word) {
            let (name, value) = (&row.figure.name, row.value_words());
            let (floor, ratio) = (row.floor_words(), row.ratio_words());
            let line = format!("  {name:<width$}  {value:>16}  {floor:>16}  {ratio:>8}");
            let _ = writeln!(table, "{}", line.trim_end());
        }

        for floor in &outcome.floors.rows {
            let value = format!("{} {}", shown(floor.value), floor.unit);
            let _ = writeln!(table, "  {:<width$}  {:>16}  {value:>16}", floor.name, "");
        }
        for remark in remarks(outcome) {
            let _ = writeln!(table, "  {remark}");
        }
    }
    table
}
