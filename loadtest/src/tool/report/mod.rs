//! The report of a program run: a table in the terminal, JSON, an HTML page, Markdown.

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

/// The measurements of one deployment.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Name of the deployment.
    pub site: String,
    /// Results of the workloads.
    pub outcomes: Vec<Outcome>,
}

/// All measurements of a program run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command line, without file paths.
    pub command: String,
    /// Time of the run in UTC.
    pub made_at: String,
    pub hardware: Hardware,
    /// Versions of the server, Postgres and Redis.
    pub versions: Vec<String>,
    /// Size and pace of the load.
    pub load: Load,
    /// Measurements by deployment.
    pub runs: Vec<Run>,
}

/// The JSON file.
#[derive(Serialize)]
struct JsonReport<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// Input of the gate.
    held: HeldRows,
}

impl Report {
    /// Creates an empty report of this program run.
    pub fn new(load: &Load, versions: Vec<String>) -> Self {
        let mut args = std::env::args().skip(1).peekable();
        let mut command = "starling-loadtest".to_owned();
        while let Some(arg) = args.next() {
            command = format!("{command} {arg}");
            if ["--accounts", "--starling", "--json", "--report"].contains(&arg.as_str()) {
                // Paths on the operator's machine do not belong in a report.
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

    /// Prints the table and writes the output files. Returns whether there was no violation.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish(&self, output: &Output) -> Result<bool, String> {
        for run in &self.runs {
            print!("{}", rows::table(run));
        }

        let write = |path: &std::path::Path, text: String| {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };

        if let Some(path) = &output.json {
            let held = self.runs.iter().flat_map(rows::of).filter_map(|row| row.steady()).collect();
            let json = JsonReport { report: self, held };
            write(
                path,
                serde_json::to_string_pretty(&json).map_err(|error| error.to_string())? + "\n",
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

    /// The figures of all deployments.
    fn rows(&self) -> Vec<Row<'_>> {
        self.runs.iter().flat_map(rows::of).collect()
    }
}
