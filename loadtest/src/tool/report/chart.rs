//! SVG charts. The page needs no script and no other files.

use std::fmt::Write;

use super::html::escape;
use crate::tool::arith::{ratio, real, real_len, shown, thousands, whole};
use crate::tool::meter::Mark;

/// About the displayed width in pixels, so that font sizes are true.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 190.0;
/// Margins for the labels of the axes.
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 18.0;
const RIGHT: f64 = 12.0;

/// A line of a chart: its name and one value per second.
pub type Line = (String, Vec<f64>);

/// The time axis: warm-up and marks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time<'a> {
    /// Seconds of warm-up at the start.
    pub warm_up_s: u64,
    /// Events to mark.
    pub marks: &'a [Mark],
}

/// The upper end of an axis: a round number that is at least `most` and whose quarters are round.
fn top_of(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|top| *top >= most)
        .unwrap_or(most)
}

/// Formats a label of an axis.
fn tick(value: f64) -> String {
    if value.fract().abs() < 1e-9 { thousands(whole(value)) } else { shown(value) }
}

/// Draws the title with the unit and the line names, and the value axis.
fn frame(title: &str, unit: &str, names: &[&str], top: f64) -> String {
    let unit_words = if unit.is_empty() { String::new() } else { format!(", {unit}") };
    let mut svg =
        format!("<figure><figcaption>{}<span>{}</span>", escape(title), escape(&unit_words));
    for (number, name) in names.iter().enumerate() {
        let _ = write!(svg, "<b class=\"s{number}\">{}</b>", escape(name));
    }

    let _ = write!(
        svg,
        "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
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
            escape(&tick(share * top))
        );
    }
    svg
}

/// The x coordinate of a time in a chart of `count` seconds.
fn x_of(second: f64, count: usize) -> f64 {
    // A value is drawn at the end of its second.
    LEFT + (WIDTH - LEFT - RIGHT) * ratio((second - 1.0).max(0.0), real_len(count - 1))
}

/// Draws the warm-up as a shaded area, and the marks.
fn time(svg: &mut String, time: Time<'_>, count: usize) {
    let height = HEIGHT - BOTTOM - TOP;
    if time.warm_up_s > 1 && real_len(count) > real(time.warm_up_s) {
        let width = x_of(real(time.warm_up_s), count) - LEFT;
        let _ = write!(
            svg,
            "<rect class=\"warm\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{width:.1}\" \
             height=\"{height:.1}\">\
             <title>warm-up</title></rect><text x=\"{:.1}\" y=\"{:.1}\">warm-up</text>",
            LEFT + 3.0,
            HEIGHT - BOTTOM - 5.0
        );
    }

    for Mark { second, word } in time.marks {
        let x = x_of(*second, count).min(WIDTH - RIGHT);
        // The label goes to the wider side.
        let (anchor, at) = if x > WIDTH / 2.0 { ("end", x + 3.0) } else { ("start", x - 3.0) };
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            HEIGHT - BOTTOM,
            TOP - 6.0,
            escape(word)
        );
    }
}

/// Draws a line chart over time.
pub fn lines(title: &str, unit: &str, lines: &[Line], during: Time<'_>) -> String {
    let count = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    if count < 2 {
        return String::new();
    }

    let top = top_of(lines.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max));
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    // A single line needs no name besides the title.
    let mut svg = frame(title, unit, if names.len() > 1 { &names } else { &[] }, top);
    time(&mut svg, during, count);

    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * ratio(value, top);
    for (number, (_, values)) in lines.iter().enumerate() {
        let point = |(index, value): (usize, &f64)| {
            format!("{:.1},{:.1}", x_of(real_len(index + 1), count), y(*value))
        };
        let points: Vec<String> = values.iter().enumerate().map(point).collect();
        let _ = write!(svg, "<polyline class=\"line s{number}\" points=\"{}\"/>", points.join(" "));
    }

    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0:.1}\">1 s</text>\
         <text x=\"{1:.1}\" y=\"{0:.1}\" text-anchor=\"end\">{count} s</text></svg></figure>",
        HEIGHT - 6.0,
        WIDTH - RIGHT
    );
    svg
}

/// Draws a bar chart.
pub fn bars(title: &str, unit: &str, bars: &[(String, f64)]) -> String {
    if bars.is_empty() {
        return String::new();
    }

    let top = top_of(bars.iter().map(|(_, value)| *value).fold(0.0, f64::max));
    let mut svg = frame(title, unit, &[], top);
    let slot = (WIDTH - LEFT - RIGHT) / real_len(bars.len());
    // Only every n-th name is drawn, so that names do not overlap.
    let every = whole((44.0 / slot).ceil()).max(1);

    for (index, (name, value)) in bars.iter().enumerate() {
        let height = (HEIGHT - BOTTOM - TOP) * ratio(*value, top);
        let x = LEFT + slot * real_len(index);
        let words = format!("{name}: {}", tick(*value));
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>{}</title></rect>",
            x + slot * 0.1,
            HEIGHT - BOTTOM - height,
            slot * 0.8,
            escape(&words)
        );

        if (index as u64).is_multiple_of(every) {
            let (x, y) = (x + slot / 2.0, HEIGHT - 8.0);
            let _ = write!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>",
                escape(name)
            );
        }
    }
    svg + "</svg></figure>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_an_axis_is_round_and_above_all_values() {
        for (most, top) in
            [(0.0, 1.0), (0.7, 0.8), (1.0, 1.0), (1.1, 2.0), (37.0, 40.0), (999.0, 1000.0)]
        {
            assert!((top_of(most) - top).abs() < 1e-9, "{most}: {}", top_of(most));
        }
        assert_eq!([0.0, 0.25, 1500.0].map(tick), ["0", "0.25", "1,500"]);
    }

    #[test]
    fn names_are_escaped_and_points_stay_inside() {
        let one = [("x & y".to_owned(), vec![0.0, 5.0, 10.0])];
        let svg = lines("a <b>", "/s", &one, Time::default());
        assert!(
            svg.contains("a &lt;b&gt;") && !svg.contains("<b>") && !svg.contains("x &amp; y"),
            "{svg}"
        );
        assert!(svg.contains("points=\"52.0,166.0 230.0,92.0 408.0,18.0\""), "{svg}");
        let two = [one[0].clone(), ("<z>".to_owned(), vec![1.0])];
        assert!(lines("two", "", &two, Time::default()).contains("<b class=\"s1\">&lt;z&gt;</b>"));
        let nothing =
            lines("one value is no line", "", &[(String::new(), vec![1.0])], Time::default());
        assert_eq!(nothing, "");
        assert!(bars("b", "", &[("<".to_owned(), 0.0)]).contains("&lt;"));
    }

    #[test]
    fn warm_up_and_marks_are_drawn_at_their_times() {
        let marks = [Mark { second: 3.0, word: "sockets dropped".into() }];
        let svg =
            lines("t", "", &[(String::new(), vec![1.0; 5])], Time { warm_up_s: 2, marks: &marks });
        assert!(svg.contains("class=\"warm\" x=\"52\" y=\"18\" width=\"89.0\""), "{svg}");
        assert!(
            svg.contains("class=\"mark\" x1=\"230.0\"") && svg.contains("sockets dropped"),
            "{svg}"
        );
    }
}
