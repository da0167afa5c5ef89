//! The results as Markdown, for `loadtest/RESULTS.md`.

use std::fmt::Write;

use super::rows::remarks;
use super::{Report, rows};
use crate::tool::arith::shown;

/// The whole file.
pub fn markdown(report: &Report) -> String {
    let Report { command, made_at, hardware, versions, load, runs } = report;
    let mut text = format!(
        "# Results\n\nWritten by the program, not by hand, with\n\n```sh\n{command}\n```\n\n\
         - When: {made_at}\n- Hardware: {}. The generator ran on the same cores.\n- Versions: {}\n\
         - Each workload was measured for {} s after {} s of warm-up.\n\n\
         A ratio is the figure divided by its floor: what a bare server reached with the same generator, on the mean \
         of right before and right after. For rates more is better, for sizes less.\n",
        hardware.words(),
        versions.join("; "),
        load.seconds,
        load.warm_up
    );
    for run in runs {
        let _ = writeln!(
            text,
            "\n## {}\n\n| workload | figure | value | floor | ratio |\n|---|---|---:|---:|---:|",
            run.site
        );
        for row in rows::of(run) {
            let (name, value) = (&row.figure.name, row.value_words());
            let (floor, ratio) = (row.floor_words(), row.ratio_words());
            let _ = writeln!(text, "| {} | {name} | {value} | {floor} | {ratio} |", row.workload);
        }
        let beside = run
            .outcomes
            .iter()
            .flat_map(|it| it.floors.rows.iter().map(move |floor| (it.workload, floor)));
        for (number, (workload, floor)) in beside.enumerate() {
            if number == 0 {
                text += "\n| beside | floor | value |\n|---|---|---:|\n";
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} {} |",
                workload.word(),
                floor.name,
                shown(floor.value),
                floor.unit
            );
        }
        text.push('\n');
        for outcome in &run.outcomes {
            let _ =
                writeln!(text, "- {}: {}.", outcome.workload.word(), remarks(outcome).join(". "));
        }
    }
    text
}
