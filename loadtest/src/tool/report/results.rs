//! The results as Markdown, for `loadtest/RESULTS.md`.

use std::fmt::Write;

use super::rows::remarks;
use super::{Report, rows};
use crate::tool::arith::shown;

/// Renders the file.
pub fn markdown(report: &Report) -> String {
    let Report { command, made_at, hardware, versions, load, runs } = report;
    let mut text = format!(
        "# Results\n\nThis file is generated with\n\n```sh\n{command}\n```\n\n\
         - When: {made_at}\n- Hardware: {}. The generator ran on the same cores.\n- Versions: {}\n\
         - Each workload was measured for {} s after {} s of warm-up.\n\n\
         A ratio is a figure divided by its floor. The floor is the result of a bare server with \
         the same generator: the mean of a run right before and a run right after. Higher is \
         better for rates, lower for everything else.\n",
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
