//! The results as one HTML page, without scripts and without external resources.

use std::fmt::Write;

use super::chart::Time;
use super::rows::Row;
use super::{Report, Run, chart, rows};
use crate::tool::arith::{ratio, real, shown, thousands};
use crate::tool::gate::Ratio;
use crate::tool::load::Outcome;
use crate::tool::meter::{Second, Summary};
use crate::tool::stage::Better;

const STYLE: &str = "
:root {
  color-scheme: light dark;
  --ink: #1c2430; --soft: #56636f; --line: #d9dfe6; --page: #fff; --card: #f5f7f9;
  --a: #1769aa; --b: #c2410c; --good: #1a7f37; --bad: #c62828;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaf0; --soft: #a3b0be; --line: #333d49; --page: #12161c; --card: #1a2028;
    --a: #6cb6f2; --b: #f59e6b; --good: #57c27a; --bad: #ff8a80;
  }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 84rem; margin: 2rem auto; padding: 0 1rem;
}
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { margin-top: 2.5rem; }
pre {
  white-space: pre-wrap; overflow-wrap: anywhere;
  padding: .6rem .8rem; background: var(--card); border-radius: .3rem;
}
.soft { color: var(--soft); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.n, th.n {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 9rem;
}
td.share { width: 40%; }
td.share i { display: block; height: .8rem; background: var(--a); border-radius: .15rem; }
.beside { margin-top: 1.2rem; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1.2rem; margin-top: 1rem;
}
figure { margin: 0; }
figcaption { font-weight: 600; }
figcaption span { color: var(--soft); font-weight: 400; }
figcaption b { margin-left: .8rem; color: var(--a); }
figcaption b.s1 { color: var(--b); }
svg { width: 100%; }
svg text { font-size: 11px; fill: var(--soft); }
rect { fill: var(--a); }
rect.warm { fill: var(--line); opacity: .6; }
.grid { stroke: var(--line); }
.mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--a); stroke-width: 1.8; }
.line.s1 { stroke: var(--b); }
";

/// Escapes a text for HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Renders the page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Starling load test</title>\
         <style>{STYLE}</style></head><body>\
         <h1>Starling load test</h1>{}<p>{}<br>{}<br>{}</p><pre>{}</pre>",
        verdict(report),
        escape(&report.made_at),
        escape(&report.hardware.words()),
        escape(&report.versions.join("; ")),
        escape(&report.command)
    );
    ratios(&mut page, report);
    for run in &report.runs {
        section(&mut page, run);
    }
    page + "</body></html>\n"
}

/// The result of the checks, in one line.
fn verdict(report: &Report) -> String {
    let outcomes = || report.runs.iter().flat_map(|run| &run.outcomes);
    let broken: u64 = outcomes().map(|outcome| outcome.violations).sum();
    if broken > 0 {
        return format!("<p class=\"bad\">Not correct: {} violations</p>", thousands(broken));
    }
    format!("<p class=\"good\">Correct: no violation in {} workloads</p>", outcomes().count())
}

/// Draws the ratios of all figures that have a floor.
fn ratios(page: &mut String, report: &Report) {
    let ratios: Vec<(String, Ratio)> = report.rows().iter().filter_map(Row::ratio).collect();
    if ratios.is_empty() {
        return;
    }

    *page += "<h2>Ratios to floors</h2><p class=\"soft\">1 is the mean result of a bare server, \
              measured right before and right after.</p>";
    let (rates, costs): (Vec<_>, Vec<_>) =
        ratios.into_iter().partition(|(_, it)| it.better == Better::Higher);
    bars(page, "Rates: more is better", &rates, |share| share.min(1.0));
    let most = costs.iter().map(|(_, it)| it.ratio).fold(0.0, f64::max);
    // Logarithmic from half the floor to the largest, because ratios differ by orders of magnitude.
    let length = |times: f64| ratio((times.max(0.5) * 2.0).ln(), (most.max(0.5) * 2.0).ln());
    bars(page, "Latencies, sizes and CPU: less is better (bars are logarithmic)", &costs, length);
}

/// Draws a table with a bar for each ratio.
fn bars(page: &mut String, title: &str, ratios: &[(String, Ratio)], length: impl Fn(f64) -> f64) {
    if ratios.is_empty() {
        return;
    }

    let _ = write!(page, "<h3>{title}</h3><div class=\"wide\"><table>");
    for (name, Ratio { ratio, .. }) in ratios {
        let _ = write!(
            page,
            "<tr><td>{}</td><td class=\"n\">{ratio:.2}</td>\
             <td class=\"share\"><i style=\"width:{:.1}%\"></i></td></tr>",
            escape(name),
            100.0 * length(*ratio)
        );
    }
    *page += "</table></div>";
}

fn section(page: &mut String, run: &Run) {
    let _ = write!(page, "<h2>{}</h2>", escape(&run.site));
    let all: Vec<_> = rows::of(run).collect();
    for outcome in &run.outcomes {
        let word = outcome.workload.word();
        let rows: Vec<_> = all.iter().filter(|row| row.workload == word).collect();
        let with_floors = rows.iter().any(|row| row.floor.is_some());
        let floors =
            if with_floors { "<th class=\"n\">floor</th><th class=\"n\">ratio</th>" } else { "" };

        let _ = write!(page, "<h3>{word}</h3><ul>");
        for (number, remark) in rows::remarks(outcome).into_iter().enumerate() {
            let class = match (number, outcome.violations) {
                (0, 0) => " class=\"good\"",
                (number, 1..) if number <= outcome.sentences.len() => " class=\"bad\"",
                _ => "",
            };
            let _ = write!(page, "<li{class}>{}</li>", escape(&remark));
        }

        let _ = write!(
            page,
            "</ul><div class=\"wide\">\
             <table><tr><th>figure</th><th class=\"n\">value</th>{floors}</tr>"
        );
        for row in rows {
            let _ = write!(page, "<tr><td>{}</td>", escape(&row.figure.name));
            let cells = [row.value_words(), row.floor_words(), row.ratio_words()];
            for cell in cells.iter().take(if with_floors { 3 } else { 1 }) {
                let _ = write!(page, "<td class=\"n\">{}</td>", escape(cell));
            }
            *page += "</tr>";
        }
        *page += "</table></div>";

        if !outcome.floors.rows.is_empty() {
            *page += "<table class=\"beside\"><tr><th>floor</th><th class=\"n\">value</th></tr>";
            for floor in &outcome.floors.rows {
                let value = format!("{} {}", shown(floor.value), floor.unit);
                let _ = write!(
                    page,
                    "<tr><td>{}</td><td class=\"n\">{}</td></tr>",
                    escape(floor.name),
                    escape(&value)
                );
            }
            *page += "</table>";
        }

        let _ = write!(page, "<div class=\"charts\">{}</div>", charts(outcome));
    }
}

fn charts(outcome: &Outcome) -> String {
    let mut charts = String::new();
    for Summary { name, seconds, bars, warm_up_s, marks, .. } in &outcome.meters {
        let during = Time { warm_up_s: *warm_up_s, marks };
        let over_time = |value: fn(&Second) -> f64| seconds.iter().map(value).collect::<Vec<f64>>();
        charts += &chart::lines(
            &format!("{name} a second"),
            "",
            &[(name.clone(), over_time(|it| real(it.count)))],
            during,
        );

        let latency = [
            ("p50".to_owned(), over_time(|it| real(it.p50_us) / 1e3)),
            ("p99".to_owned(), over_time(|it| real(it.p99_us) / 1e3)),
        ];
        charts += &chart::lines(&format!("latency of {name}"), "ms", &latency, during);

        let bars: Vec<(String, f64)> =
            bars.iter().map(|bar| (up_to(bar.up_to_us), real(bar.count))).collect();
        charts += &chart::bars(&format!("{name} by latency"), "each bar up to", &bars);
    }

    let memory: Vec<f64> =
        outcome.spent.memory_bytes.iter().map(|bytes| real(*bytes) / 1_048_576.0).collect();
    if memory.iter().any(|mib| *mib > 0.0) {
        charts += &chart::lines(
            "resident memory of the servers",
            "MiB, shared pages counted in each",
            &[(String::new(), memory)],
            Time::default(),
        );
    }
    charts
}

/// Formats the upper bound of a bar.
fn up_to(us: u64) -> String {
    if us < 1000 { format!("{us} µs") } else { format!("{} ms", thousands(us / 1000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(
            escape("<script>\"a\" & 'b'</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;"
        );
        assert_eq!(escape("ö ≤ 5 ms"), "ö ≤ 5 ms");
    }

    #[test]
    fn a_bar_is_named_by_its_end() {
        assert_eq!(
            (up_to(512), up_to(2048), up_to(4_194_304)),
            ("512 µs".into(), "2 ms".into(), "4,194 ms".into())
        );
    }
}
