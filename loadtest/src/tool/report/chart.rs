//! Charts as SVG, drawn here so that a page needs nothing else.

use std::fmt::Write;

use super::html::escape;
use crate::tool::arith::{ratio, real_len, shown};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 180.0;
/// Around the drawing: room for the numbers of the axes.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 10.0;
const RIGHT: f64 = 10.0;

/// A line of a chart: its name and its values, a second each.
pub type Line = (String, Vec<f64>);

/// A round number, at least as large as what is shown.
fn top_of(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= most).unwrap_or(most)
}

fn frame(title: &str, top: f64, unit: &str) -> String {
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title),
        escape(title)
    );
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            escape(&format!("{} {unit}", shown(share * top)))
        );
    }
    svg
}

/// Values over time.
pub fn lines(title: &str, unit: &str, lines: &[Line]) -> String {
    let count = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    if count < 2 {
        return String::new();
    }
    let top = top_of(lines.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max));
    let mut svg = frame(title, top, unit);
    let x = |index: usize| LEFT + (WIDTH - LEFT - RIGHT) * real_len(index) / real_len(count - 1);
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * ratio(value, top);
    for (number, (name, values)) in lines.iter().enumerate() {
        let points: Vec<String> =
            values.iter().enumerate().map(|(index, value)| format!("{:.1},{:.1}", x(index), y(*value))).collect();
        let _ = write!(
            svg,
            "<polyline class=\"line s{number}\" points=\"{}\"/><text class=\"name s{number}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            points.join(" "),
            LEFT + 8.0,
            TOP + 12.0 + 14.0 * real_len(number),
            escape(name)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0:.1}\">1 s</text><text x=\"{1:.1}\" y=\"{0:.1}\" text-anchor=\"end\">{count} s</text></svg></figure>",
        HEIGHT - 6.0,
        WIDTH - RIGHT
    );
    svg
}

/// Named values beside each other.
pub fn bars(title: &str, unit: &str, bars: &[(String, f64)]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let top = top_of(bars.iter().map(|(_, value)| *value).fold(0.0, f64::max));
    let mut svg = frame(title, top, unit);
    let slot = (WIDTH - LEFT - RIGHT) / real_len(bars.len());
    for (index, (name, value)) in bars.iter().enumerate() {
        let height = (HEIGHT - BOTTOM - TOP) * ratio(*value, top);
        let x = LEFT + slot * real_len(index);
        let words = format!("{name}: {} {unit}", shown(*value));
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}</title></rect>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x + slot * 0.1,
            HEIGHT - BOTTOM - height,
            slot * 0.8,
            escape(&words),
            x + slot / 2.0,
            HEIGHT - 8.0,
            escape(name)
        );
    }
    svg + "</svg></figure>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_an_axis_is_round_and_above_all_values() {
        for (most, top) in [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.1, 2.0), (37.0, 50.0), (999.0, 1000.0)] {
            assert!((top_of(most) - top).abs() < 1e-9, "{most}: {}", top_of(most));
        }
    }

    #[test]
    fn names_are_escaped_and_points_stay_inside() {
        let svg = lines("a <b>", "/s", &[("x & y".to_owned(), vec![0.0, 5.0, 10.0])]);
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("x &amp; y") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("points=\"64.0,156.0 287.0,83.0 510.0,10.0\""), "{svg}");
        assert_eq!(lines("one value is no line", "", &[(String::new(), vec![1.0])]), "");
        assert!(bars("b", "", &[("<".to_owned(), 0.0)]).contains("&lt;"));
    }
}
