//! The results as one page that opens from disk: no script, nothing from elsewhere.

use std::fmt::Write;

use super::{Report, Run, chart, rows};
use crate::tool::arith::{real, shown, thousands};
use crate::tool::load::Outcome;
use crate::tool::meter::{Second, Summary};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe6; --page: #fff; --a: #1769aa; --b: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa7b6; --line: #333d49; --page: #12161c; --a: #6cb6f2; --b: #f59e6b; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 2rem; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; } figure { margin: 0; }
figcaption { font-weight: 600; } svg { width: 100%; } svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); } .line { fill: none; stroke: var(--a); stroke-width: 1.8; } .line.s1 { stroke: var(--b); }
svg text.name { fill: var(--a); } svg text.name.s1 { fill: var(--b); } rect { fill: var(--a); }
.bad { color: var(--b); font-weight: 600; }
";

/// A text inside of a page.
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

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Starling load test</title><style>{STYLE}</style></head><body>\
         <h1>Starling load test</h1><p>{}. {}. {}.</p><pre>{}</pre>",
        escape(&report.made_at),
        escape(&report.hardware.words()),
        escape(&report.versions.join("; ")),
        escape(&report.command)
    );
    let ratios: Vec<(String, f64)> = report
        .rows()
        .iter()
        .filter_map(|row| Some((format!("{}: {}", row.site, row.workload), row.ratio()?.1.ratio)))
        .collect();
    let _ =
        write!(page, "<div class=\"charts\">{}</div>", chart::bars("Ratio of each figure to its floor", "", &ratios));
    for run in &report.runs {
        section(&mut page, run);
    }
    page + "</body></html>\n"
}

fn section(page: &mut String, run: &Run) {
    let _ = write!(page, "<h2>{}</h2>", escape(&run.site));
    if !run.floors.rows.is_empty() {
        *page += "<h3>floors</h3><table><tr><th>what bare servers reached</th><th class=\"n\">value</th></tr>";
        for floor in &run.floors.rows {
            let value = format!("{} {}", shown(floor.value), floor.unit);
            let _ = write!(page, "<tr><td>{}</td><td class=\"n\">{}</td></tr>", escape(floor.name), escape(&value));
        }
        *page += "</table>";
    }
    let all: Vec<_> = rows::of(run).collect();
    for outcome in &run.outcomes {
        let word = outcome.workload.word();
        let _ = write!(
            page,
            "<h3>{word}</h3><div class=\"wide\"><table><tr><th>figure</th><th class=\"n\">value</th><th class=\"n\">floor</th><th class=\"n\">ratio</th></tr>"
        );
        for row in all.iter().filter(|row| row.workload == word) {
            let cells = [row.value_words(), row.floor_words(), row.ratio_words()];
            let _ = write!(page, "<tr><td>{}</td>", escape(&row.figure.name));
            for cell in cells {
                let _ = write!(page, "<td class=\"n\">{}</td>", escape(&cell));
            }
            *page += "</tr>";
        }
        *page += "</table></div><ul>";
        for remark in rows::remarks(outcome) {
            let class = if outcome.violations > 0 { " class=\"bad\"" } else { "" };
            let _ = write!(page, "<li{class}>{}</li>", escape(&remark));
        }
        let _ = write!(page, "</ul><div class=\"charts\">{}</div>", charts(outcome));
    }
}

fn charts(outcome: &Outcome) -> String {
    let mut charts = String::new();
    for Summary { name, seconds, bars, .. } in &outcome.meters {
        let over_time = |value: fn(&Second) -> f64| seconds.iter().map(value).collect::<Vec<f64>>();
        charts += &chart::lines(&format!("{name} a second"), "/s", &[(name.clone(), over_time(|it| real(it.count)))]);
        let latency = [
            ("p50".to_owned(), over_time(|it| real(it.p50_us) / 1e3)),
            ("p99".to_owned(), over_time(|it| real(it.p99_us) / 1e3)),
        ];
        charts += &chart::lines(&format!("latency of {name}"), "ms", &latency);
        let bars: Vec<(String, f64)> = bars.iter().map(|bar| (up_to(bar.up_to_us), real(bar.count))).collect();
        charts += &chart::bars(&format!("latency of {name}: how many took up to"), "", &bars);
    }
    let memory: Vec<f64> = outcome.spent.memory_bytes.iter().map(|bytes| real(*bytes) / 1_048_576.0).collect();
    if memory.iter().any(|mib| *mib > 0.0) {
        charts += &chart::lines("resident memory of the servers", "MiB", &[("memory".to_owned(), memory)]);
    }
    charts
}

/// A latency in the fewest letters.
fn up_to(us: u64) -> String {
    if us < 1000 { format!("{us}us") } else { format!("{}ms", thousands(us / 1000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_become_markup() {
        assert_eq!(
            escape("<script>\"a\" & 'b'</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;"
        );
        assert_eq!(escape("ö ≤ 5 ms"), "ö ≤ 5 ms");
    }

    #[test]
    fn a_bar_is_named_by_its_end() {
        assert_eq!((up_to(512), up_to(2048), up_to(4_194_304)), ("512us".into(), "2ms".into(), "4,194ms".into()));
    }
}
