//! The results as a picture: for each test a group of bars, relative to node to node, with a line for the middle half.

use std::fmt::Write;

use crate::table::short;
use crate::{Results, Spread, TESTS};

const WIDTH: f64 = 1000.0;
const BAR: f64 = 18.0;
const COLORS: [&str; 5] = ["#9aa5b1", "#2f6fbb", "#1b9e4b", "#d98c21", "#c0504d"];
/// Left edge of the bars, and the width of a bar as high as node to node, on each half.
const LEFT: f64 = 190.0;
const FULL: f64 = 200.0;

/// Returns the picture in SVG: rates on the left, processor time on the right.
pub(crate) fn svg(results: &[Results]) -> String {
    let mut body = String::new();
    let mut y = 40.0;
    for (number, test) in TESTS.iter().enumerate() {
        label(&mut body, 10.0, y, test.name, "bold");
        for (x, unit) in [(LEFT, test.units[0]), (LEFT + WIDTH / 2.0, test.units[1])] {
            label(&mut body, x, y, unit, "normal");
        }
        y += 8.0;
        for (place, contender) in results.iter().enumerate() {
            let color = COLORS[place % COLORS.len()];
            let base = &results[0];
            label(&mut body, 10.0, y + BAR - 5.0, contender.name, "normal");
            let rate = (contender.rate(number), base.rate(number).median);
            bar(&mut body, LEFT, y, color, rate);
            let cost = (contender.cost(number), base.cost(number).median);
            bar(&mut body, LEFT + WIDTH / 2.0, y, color, cost);
            y += BAR + 3.0;
        }
        y += 28.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">rate: longer is better</text>\n\
         <text x=\"{}\" y=\"16\" font-weight=\"bold\">processor time: shorter is better</text>\n{body}</svg>\n",
        LEFT + WIDTH / 2.0
    )
}

fn label(body: &mut String, x: f64, y: f64, text: &str, weight: &str) {
    let text = format!("<text x=\"{x}\" y=\"{y}\" font-weight=\"{weight}\">{text}</text>");
    writeln!(body, "{text}").expect("a String takes everything");
}

/// A bar of the median, a line for the middle half of the values, and the number.
fn bar(body: &mut String, x: f64, y: f64, color: &str, (value, base): (Spread, f64)) {
    let long = |value: f64| (value / base * FULL / 1.6).min(FULL);
    let (width, middle) = (long(value.median), y + BAR / 2.0);
    let (from, to) = (x + long(value.from), x + long(value.to));
    let text = format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\
         <line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        to + 6.0,
        y + BAR - 5.0,
        short(value.median)
    );
    writeln!(body, "{text}").expect("a String takes everything");
}
