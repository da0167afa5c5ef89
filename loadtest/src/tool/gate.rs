//! The gate: ratios to floors, against those that were committed. Ratios and not figures, so that another machine's are
//! comparable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arith::ratio;
use super::stage::Better;

/// How much worse a ratio may get.
const WORSE_MAX: f64 = 0.25;

/// A row of the committed file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure, divided by its floor.
    pub ratio: f64,
    /// Which way it is good.
    pub better: Better,
}

/// Ratios by their row: deployment, workload, figure.
pub type Ratios = BTreeMap<String, Ratio>;

/// A figure of a run and its floor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The figure.
    pub value: f64,
    /// What it is held against.
    pub floor: f64,
    /// Which way both are good.
    pub better: Better,
}

/// The same for each row of a run.
pub type HeldRows = BTreeMap<String, Held>;

#[derive(Deserialize)]
struct Measured {
    held: HeldRows,
}

/// Compares what runs wrote with what is committed, or commits it. Whether nothing got too much worse. Of several runs
/// the best of each figure counts, and the best of each floor: what else the machine does only ever makes one of the two
/// worse, and a regression makes all runs' figures worse.
///
/// # Errors
/// If a file can't be read or written.
pub fn run(json: &[PathBuf], against: &Path, accept: bool) -> Result<bool, String> {
    let mut best = HeldRows::new();
    for path in json {
        let one: Measured = read(path)?;
        keep_the_best(&mut best, one.held);
    }
    let of = |(row, Held { value, floor, better })| (row, Ratio { ratio: ratio(value, floor), better });
    let measured: Ratios = best.into_iter().map(of).collect();
    if accept {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| error.to_string())?;
        std::fs::write(against, text + "\n").map_err(|error| format!("{}: {error}", against.display()))?;
        println!("{} ratios are written to {}", measured.len(), against.display());
        return Ok(true);
    }
    let committed: Ratios = read(against)?;
    let worse = worse(&committed, &measured);
    for sentence in &worse {
        println!("{sentence}");
    }
    if worse.is_empty() {
        println!("{} ratios hold within {:.0} %", committed.len(), WORSE_MAX * 100.0);
    }
    Ok(worse.is_empty())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn keep_the_best(best: &mut HeldRows, run: HeldRows) {
    for (row, new) in run {
        let better = match new.better {
            Better::Higher => f64::max,
            Better::Lower => f64::min,
        };
        let old = best.entry(row).or_insert(new);
        (old.value, old.floor) = (better(old.value, new.value), better(old.floor, new.floor));
    }
}

/// What is more than a quarter worse, or was not measured, in sentences that name the row.
fn worse(committed: &Ratios, measured: &Ratios) -> Vec<String> {
    let mut worse = Vec::new();
    for (row, Ratio { ratio: was, better }) in committed {
        let Some(Ratio { ratio: is, .. }) = measured.get(row) else {
            worse.push(format!("{row}: was not measured"));
            continue;
        };
        // How many times worse: a rate that falls to four fifths and a cost that grows by a quarter weigh the same.
        let times = match better {
            Better::Higher if *is > 0.0 => was / is,
            Better::Lower if *was > 0.0 => is / was,
            Better::Higher => f64::INFINITY,
            Better::Lower => 1.0,
        };
        if times > 1.0 + WORSE_MAX {
            worse.push(format!("{row}: {is:.3} times its floor, was {was:.3}: {times:.2} times worse"));
        }
    }
    worse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(ratio: f64, better: Better) -> Ratios {
        Ratios::from([("embedded / sends / durable".to_owned(), Ratio { ratio, better })])
    }

    #[test]
    fn a_quarter_is_let_through_and_more_is_named() {
        for (was, is, better, fine) in [
            (0.5, 0.41, Better::Higher, true),
            (0.5, 0.39, Better::Higher, false),
            (0.5, 0.9, Better::Higher, true),
            (0.5, 0.0, Better::Higher, false),
            (2.0, 2.4, Better::Lower, true),
            (2.0, 2.6, Better::Lower, false),
            (2.0, 0.1, Better::Lower, true),
        ] {
            let found = worse(&one(was, better), &one(is, better));
            assert_eq!(found.is_empty(), fine, "{was} {is} {better:?}: {found:?}");
            assert!(found.iter().all(|it| it.starts_with("embedded / sends / durable: ")));
        }
    }

    #[test]
    fn of_several_runs_the_best_figure_counts_and_the_best_floor() {
        let rates = ([(40.0, 100.0), (50.0, 20.0), (30.0, 90.0)], Better::Higher, (50.0, 100.0));
        let costs = ([(2.0, 1.0), (1.5, 3.0), (1.7, 0.8)], Better::Lower, (1.5, 0.8));
        for (runs, better, (value, floor)) in [rates, costs] {
            let mut kept = HeldRows::new();
            for (value, floor) in runs {
                keep_the_best(&mut kept, HeldRows::from([("a row".to_owned(), Held { value, floor, better })]));
            }
            assert_eq!(kept["a row"], Held { value, floor, better });
        }
    }

    #[test]
    fn a_row_that_was_not_measured_fails_and_a_new_one_does_not() {
        assert_eq!(worse(&one(1.0, Better::Lower), &Ratios::new()).len(), 1);
        assert!(worse(&Ratios::new(), &one(1.0, Better::Lower)).is_empty());
    }
}
