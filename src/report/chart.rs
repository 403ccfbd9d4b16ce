//! Charts as SVG, in the page's colours.

use std::fmt::Write;

use super::page::escape;
use crate::picture::{BoxSummary, scatter};

/// Colours of lines and boxes that the page's style has.
const COLOURS: usize = 8;

/// Width of every chart, in the units of its view box. A phone shows it at its natural size.
const WIDTH: f64 = 360.0;

/// More dots than this in one chart are left out, but for outliers.
const MOST_DOTS: usize = 1500;

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Which of the colours; `None` for the colour of text.
    pub colour: Option<usize>,
    /// Whether it stands back behind the others.
    pub faint: bool,
    /// Places and values, places ascending.
    pub points: Vec<(f64, f64)>,
}

/// Lines over the epochs.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// What it shows.
    pub title: String,
    /// What the axis covers from 0 on where values have an end, such as 100 %.
    pub end: Option<f64>,
    /// The lines, the last on top.
    pub lines: Vec<Line>,
}

impl LineChart {
    /// A figure with its legend; nothing where no line has a point.
    pub fn figure(&self) -> String {
        const HEIGHT: f64 = 210.0;
        let (left, right, top, bottom) = (48.0, 8.0, 8.0, 34.0);
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let Some((first, last)) = range(points().map(|p| p.0)) else {
            return String::new();
        };
        let (low, high) = range(points().map(|p| p.1)).unwrap_or((0.0, 1.0));
        let (low, high) = match self.end {
            Some(end) => (low.min(0.0), high.max(end)),
            None => {
                let low = low.min(0.0);
                (low, if high > low { high } else { low + 1.0 })
            }
        };
        let ticks = ticks(low, high, 5);
        let high = ticks.last().copied().unwrap_or(high).max(high);
        // one epoch is a point in the middle
        let (first, last) = if first == last {
            (first - 1.0, last + 1.0)
        } else {
            (first, last)
        };
        let x = |at: f64| left + (at - first) / (last - first) * (WIDTH - left - right);
        let y = |at: f64| HEIGHT - bottom - (at - low) / (high - low) * (HEIGHT - top - bottom);
        let mut svg = open(&self.title, HEIGHT);
        let digits = digits(&ticks);
        for tick in &ticks {
            let at = y(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{tick:.digits$}</text>",
                WIDTH - right,
                left - 6.0,
                at + 4.0
            );
        }
        let epochs = ticks_of_epochs(first, last);
        for epoch in epochs {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{epoch:.0}</text>",
                x(epoch),
                HEIGHT - bottom + 15.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">epoch</text>",
            (left + WIDTH - right) / 2.0,
            HEIGHT - 3.0
        );
        for line in &self.lines {
            let class = line.class();
            let faint = if line.faint { " faint" } else { "" };
            let path: Vec<String> = line
                .points
                .iter()
                .map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b)))
                .collect();
            let _ = write!(
                svg,
                "<polyline class=\"{class}{faint}\" points=\"{}\"/>",
                path.join(" ")
            );
            if line.points.len() > 40 || (line.faint && line.points.len() > 1) {
                continue;
            }
            for (a, b) in &line.points {
                let _ = write!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{}, epoch {a:.0}: {}</title></circle>",
                    x(*a),
                    y(*b),
                    escape(&line.name),
                    number(*b)
                );
            }
        }
        svg += "</svg>";
        let mut legend = String::new();
        if self.lines.len() > 1 {
            for line in &self.lines {
                let faint = if line.faint { " faint" } else { "" };
                let _ = write!(
                    legend,
                    "<li><i class=\"swatch {}{faint}\"></i>{}</li>",
                    line.class(),
                    escape(&line.name)
                );
            }
            legend = format!("<ul class=\"legend\">{legend}</ul>");
        }
        figure(&self.title, &svg, &legend)
    }
}

impl Line {
    fn class(&self) -> String {
        match self.colour {
            Some(colour) => format!("c{}", colour % COLOURS),
            None => "ink".into(),
        }
    }
}

/// A box of a chart.
#[derive(Clone, Debug)]
pub struct Values {
    /// Its name.
    pub name: String,
    /// Which of the colours.
    pub colour: usize,
    /// Each case's name and value; infinite ones are counted beside the box.
    pub values: Vec<(String, f64)>,
}

/// Boxes below each other: quartiles and median, whiskers to the outermost case within 1.5 times the box's length, a dot a case.
#[derive(Clone, Debug)]
pub struct BoxChart {
    /// What it shows, with its unit.
    pub title: String,
    /// What the axis covers: up to this where values have an end, such as 100 %.
    pub end: Option<f64>,
    /// The boxes, in groups of one label each with the label's name, which is empty where a box's own name is enough.
    pub groups: Vec<(String, Vec<Values>)>,
}

impl BoxChart {
    /// A figure; nothing where there is no finite value.
    pub fn figure(&self) -> String {
        const ROW: f64 = 32.0;
        let (left, right, top, bottom) = (104.0, 12.0, 4.0, 24.0);
        let boxes = || self.groups.iter().flat_map(|(_, boxes)| boxes);
        let finite = || {
            boxes()
                .flat_map(|b| &b.values)
                .map(|(_, v)| *v)
                .filter(|v| v.is_finite())
        };
        let Some((lowest, highest)) = range(finite()) else {
            return String::new();
        };
        let (low, high) = match self.end {
            // from the tenth below the lowest dot
            Some(end) => (
                ((lowest / end * 10.0 - 0.2).floor().max(0.0) / 10.0 * end).min(0.9 * end),
                end.max(highest),
            ),
            None => (lowest.min(0.0), if highest > 0.0 { highest * 1.02 } else { 1.0 }),
        };
        let headings = self.groups.iter().filter(|(name, _)| !name.is_empty()).count();
        let rows = boxes().count() + headings;
        let height = top + bottom + ROW * rows as f64;
        let x = |at: f64| left + (at - low) / (high - low) * (WIDTH - left - right);
        let mut svg = open(&self.title, height);
        let ticks = ticks(low, high, 5);
        let digits = digits(&ticks);
        for tick in ticks.iter().filter(|t| (low..=high).contains(*t)) {
            let at = x(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{}\"/><text x=\"{at:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{tick:.digits$}</text>",
                height - bottom,
                height - 8.0
            );
        }
        let all = finite().count();
        let mut middle = top - ROW / 2.0;
        for (heading, boxes) in &self.groups {
            if !heading.is_empty() {
                middle += ROW;
                let _ = write!(
                    svg,
                    "<text class=\"strong\" x=\"0\" y=\"{:.1}\">{}</text>",
                    middle + 7.0,
                    escape(&shortened(heading, 50))
                );
            }
            for of_box in boxes {
                middle += ROW;
                self.draw(&mut svg, of_box, (middle, left - 8.0), x, all <= MOST_DOTS);
            }
        }
        svg += "</svg>";
        figure(&self.title, &svg, "")
    }

    /// Draws a box about a height, its name left of a place.
    fn draw(
        &self,
        svg: &mut String,
        of_box: &Values,
        (middle, left): (f64, f64),
        x: impl Fn(f64) -> f64,
        dots: bool,
    ) {
        let Values { name, colour, values } = of_box;
        let class = format!("c{}", colour % COLOURS);
        let infinite = values.iter().filter(|(_, v)| v.is_infinite()).count();
        let shown = match infinite {
            0 => shortened(name, 17),
            _ => format!("{} +{infinite} ∞", shortened(name, 11)),
        };
        let _ = write!(
            svg,
            "<text x=\"{left}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{}</title></text>",
            middle + 4.0,
            escape(&shown),
            escape(&match infinite {
                0 => name.clone(),
                n => format!("{name}: {n} infinite, not drawn"),
            })
        );
        let finite: Vec<&(String, f64)> = values.iter().filter(|(_, v)| v.is_finite()).collect();
        if finite.is_empty() {
            return;
        }
        let numbers: Vec<f64> = finite.iter().map(|(_, v)| *v).collect();
        let summary = BoxSummary::of(&numbers);
        for (i, (case, value)) in finite.iter().enumerate() {
            let outlier = !(summary.low..=summary.high).contains(value);
            if dots || outlier {
                let _ = write!(
                    svg,
                    "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.7\"><title>{}: {}</title></circle>",
                    x(*value),
                    middle + 44.0 * scatter(i),
                    escape(case),
                    number(*value)
                );
            }
        }
        let (box_left, box_right) = (x(summary.box_low), x(summary.box_high));
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/><rect class=\"{class}\" \
             x=\"{box_left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"18\" rx=\"2\"><title>{}: median {}, quartiles {} and {}</title></rect>",
            x(summary.low),
            x(summary.high),
            middle - 9.0,
            (box_right - box_left).max(1.0),
            escape(name),
            number(summary.median),
            number(summary.box_low),
            number(summary.box_high)
        );
        let at = x(summary.median);
        let _ = write!(
            svg,
            "<line class=\"median\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{}\"/>",
            middle - 10.0,
            middle + 10.0
        );
    }
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

fn figure(title: &str, svg: &str, legend: &str) -> String {
    format!(
        "<figure><figcaption>{}</figcaption>{svg}{legend}</figure>\n",
        escape(title)
    )
}

/// A text of at most so many characters.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).collect::<String>() + "…",
        false => text.to_owned(),
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

/// Round numbers from the one at or below `low` to the one at or above `high`, about so many.
fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let rough = (high - low) / about as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    let (first, last) = (
        (low / step + 1e-9).floor() as i64,
        (high / step - 1e-9).ceil() as i64,
    );
    (first..=last.min(first + 100)).map(|i| i as f64 * step).collect()
}

/// Whole numbers from the first epoch on.
fn ticks_of_epochs(first: f64, last: f64) -> Vec<f64> {
    let mut whole: Vec<f64> = ticks(first, last, 6)
        .into_iter()
        .filter(|t| t.fract() == 0.0 && (first..=last).contains(t))
        .collect();
    if whole.is_empty() {
        whole.push(((first + last) / 2.0).round());
    }
    whole
}

/// Decimals that tell ticks apart.
fn digits(ticks: &[f64]) -> usize {
    let step = ticks.windows(2).map(|t| t[1] - t[0]).next().unwrap_or(1.0);
    (-step.log10().floor()).clamp(0.0, 8.0) as usize
}

/// A number with four digits that count.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        s if !(1e-4..1e6).contains(&s) => format!("{value:.3e}"),
        s => {
            let before = s.log10().floor() as i32;
            format!("{value:.*}", (3 - before).clamp(0, 7) as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 37.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        assert_eq!(ticks(0.0, f64::INFINITY, 5), [0.0]);
        assert_eq!((digits(&ticks(0.0, 0.003, 5)), digits(&[0.0, 20.0])), (3, 0));
        assert_eq!(ticks_of_epochs(1.0, 8.0), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks_of_epochs(0.0, 2.0), [0.0, 1.0, 2.0]);
        let shown = [0.0, 0.87654, 12.3456, 1234.56, 2e-7].map(number);
        assert_eq!(shown, ["0", "0.8765", "12.35", "1235", "2.000e-7"]);
    }

    #[test]
    fn charts_escape_names_and_leave_out_what_is_not_finite() {
        let lines = vec![Line {
            name: "<b>".into(),
            colour: Some(9),
            faint: false,
            points: vec![(1.0, 0.5)],
        }];
        let chart = LineChart {
            title: "a & b".into(),
            end: Some(1.0),
            lines,
        };
        let figure = chart.figure();
        assert!(
            figure.contains("a &amp; b") && figure.contains("&lt;b&gt;, epoch 1: 0.5000"),
            "{figure}"
        );
        assert!(
            figure.contains("class=\"c1\"") && !figure.contains("NaN"),
            "{figure}"
        );
        let nothing = LineChart {
            lines: Vec::new(),
            ..chart
        };
        assert_eq!(nothing.figure(), "");
        let values = Values {
            name: "left".into(),
            colour: 0,
            values: vec![("x".into(), 2.0), ("y".into(), f64::INFINITY)],
        };
        let chart = BoxChart {
            title: "HD".into(),
            end: None,
            groups: vec![(String::new(), vec![values])],
        };
        let figure = chart.figure();
        assert!(
            figure.contains("left +1 ∞") && !figure.contains("inf,"),
            "{figure}"
        );
        assert_eq!(figure.matches("<circle").count(), 1);
        // all values equal, also all of them zero
        for value in [0.0, 3.0] {
            let mut chart = chart.clone();
            chart.groups[0].1[0].values = vec![("x".into(), value)];
            let figure = chart.figure();
            assert!(!figure.contains("NaN") && !figure.contains("inf\""), "{figure}");
        }
    }
}
