//! What a program run measured: a table in the terminal, JSON, a page, Markdown.

mod chart;
mod hardware;
mod html;
mod results;
mod rows;

use serde::Serialize;

use super::cli::{Load, Output};
use super::gate::HeldRows;
use super::load::Outcome;
use hardware::Hardware;
use rows::Row;

/// One deployment's measurements.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Which deployment.
    pub site: String,
    /// What each workload measured.
    pub outcomes: Vec<Outcome>,
}

/// Everything that one call of the program measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command that made it.
    pub command: String,
    /// When, in UTC.
    pub made_at: String,
    /// On what.
    pub hardware: Hardware,
    /// Of what.
    pub versions: Vec<String>,
    /// How.
    pub load: Load,
    /// The measurements, a deployment each.
    pub runs: Vec<Run>,
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// For the gate.
    held: HeldRows,
}

impl Report {
    /// An empty report of the program's present call.
    pub fn new(load: &Load, versions: Vec<String>) -> Self {
        let mut args = std::env::args().skip(1).peekable();
        let mut command = "starling-loadtest".to_owned();
        while let Some(arg) = args.next() {
            command = format!("{command} {arg}");
            if ["--accounts", "--starling", "--json", "--report"].contains(&arg.as_str()) {
                // Where the operator keeps things is of no use to a reader.
                args.next();
                command += " …";
            }
        }
        Self {
            command,
            made_at: hardware::now(),
            hardware: Hardware::look(),
            versions,
            load: load.clone(),
            runs: Vec::new(),
        }
    }

    /// Prints the table, and writes the files that were asked for. Whether every promise was kept.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn finish(&self, output: &Output) -> Result<bool, String> {
        for run in &self.runs {
            print!("{}", rows::table(run));
        }
        let write = |path: &std::path::Path, text: String| {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        if let Some(path) = &output.json {
            let held = self.runs.iter().flat_map(rows::of).filter_map(|row| row.steady()).collect();
            let whole = Whole { report: self, held };
            write(
                path,
                serde_json::to_string_pretty(&whole).map_err(|error| error.to_string())? + "\n",
            )?;
        }
        if let Some(path) = &output.report {
            write(path, html::page(self))?;
        }
        if let Some(path) = &output.results {
            write(path, results::markdown(self))?;
        }
        Ok(self.runs.iter().flat_map(|run| &run.outcomes).all(|outcome| outcome.violations == 0))
    }

    /// The figures of all runs.
    fn rows(&self) -> Vec<Row<'_>> {
        self.runs.iter().flat_map(rows::of).collect()
    }
}
