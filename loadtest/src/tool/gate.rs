//! The gate: compares ratios to floors with the committed ratios. Ratios are comparable between
//! machines; figures are not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arith::ratio;
use super::stage::Better;

/// Largest accepted regression of a ratio.
const WORSE_MAX: f64 = 0.25;

/// An entry of the committed file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure, divided by its floor.
    pub ratio: f64,
    /// Whether a higher or a lower ratio is better.
    pub better: Better,
}

/// Ratios by row name: `deployment / workload / figure`.
pub type Ratios = BTreeMap<String, Ratio>;

/// A figure of a run and its floor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The figure's value.
    pub value: f64,
    /// The floor's value.
    pub floor: f64,
    /// Whether higher or lower values are better.
    pub better: Better,
}

/// Figures with floors by row name.
pub type HeldRows = BTreeMap<String, Held>;

#[derive(Deserialize)]
struct Measured {
    held: HeldRows,
}

/// Compares the ratios of runs with the committed ratios, or with `accept` replaces the latter.
/// Returns whether no ratio regressed too far. The median over the runs is used, so that a short
/// disturbance of one run has no effect.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(json: &[PathBuf], against: &Path, accept: bool) -> Result<bool, String> {
    let runs: Vec<Measured> = json.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let measured = medians(runs.into_iter().map(|run| run.held));

    if accept {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| error.to_string())?;
        std::fs::write(against, text + "\n")
            .map_err(|error| format!("{}: {error}", against.display()))?;
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
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The median ratio of each row over the runs that measured it.
fn medians(runs: impl Iterator<Item = HeldRows>) -> Ratios {
    let mut all: BTreeMap<String, (Better, Vec<f64>)> = BTreeMap::new();
    for (row, Held { value, floor, better }) in runs.flatten() {
        all.entry(row).or_insert((better, Vec::new())).1.push(ratio(value, floor));
    }

    let median = |mut ratios: Vec<f64>| {
        ratios.sort_unstable_by(f64::total_cmp);
        let middle = ratios.len() / 2;
        if ratios.len().is_multiple_of(2) {
            f64::midpoint(ratios[middle - 1], ratios[middle])
        } else {
            ratios[middle]
        }
    };

    all.into_iter()
        .map(|(row, (better, ratios))| (row, Ratio { ratio: median(ratios), better }))
        .collect()
}

/// Describes each row that regressed too far or was not measured.
fn worse(committed: &Ratios, measured: &Ratios) -> Vec<String> {
    let mut worse = Vec::new();
    for (row, Ratio { ratio: was, better }) in committed {
        let Some(Ratio { ratio: is, .. }) = measured.get(row) else {
            worse.push(format!("{row}: was not measured"));
            continue;
        };

        // Regression as a factor: a rate that falls to 4/5 and a cost that grows to 5/4 are both
        // 1.25.
        let times = match better {
            Better::Higher if *is > 0.0 => was / is,
            Better::Lower if *was > 0.0 => is / was,
            Better::Higher => f64::INFINITY,
            Better::Lower => 1.0,
        };
        if times > 1.0 + WORSE_MAX {
            worse.push(format!(
                "{row}: {is:.3} times its floor, was {was:.3}: {times:.2} times worse"
            ));
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
    fn only_regressions_over_a_quarter_are_reported() {
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
    fn of_several_runs_the_median_ratio_counts() {
        let run = |value, floor| {
            let held = Held { value, floor, better: Better::Higher };
            HeldRows::from([("embedded / sends / durable".to_owned(), held)])
        };
        let three = [run(50.0, 100.0), run(10.0, 100.0), run(50.0, 200.0)];
        assert_eq!(medians(three.into_iter()), one(0.25, Better::Higher));
        let two = [run(50.0, 100.0), run(25.0, 100.0)];
        assert_eq!(medians(two.into_iter()), one(0.375, Better::Higher));
    }

    #[test]
    fn a_missing_row_fails_and_a_new_row_does_not() {
        assert_eq!(worse(&one(1.0, Better::Lower), &Ratios::new()).len(), 1);
        assert!(worse(&Ratios::new(), &one(1.0, Better::Lower)).is_empty());
    }
}
