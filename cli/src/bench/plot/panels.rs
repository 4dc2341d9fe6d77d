//! A page and its panels: axes, lines, labels at their ends, and what stands above and below.

use super::axes::Scale;
use super::labels::{apart, kind, on_threads, shortened, width, wrapped};
use super::marks::{
    AXIS, Anchor, BAND, Color, DOT, Drawing, FOOTER, GAP, GRID, HEADING, INK, LABEL, LEADER, MARGIN, SOFT, SUBTITLE,
    WIDTH, look, middle,
};
use crate::bench::result::{Case, Machine, Run};

/// One panel's lines.
pub struct Panel {
    pub heading: String,
    pub y: Scale,
    pub series: Vec<Series>,
}

/// A line with its name at its end.
pub struct Series {
    pub label: String,
    /// See [`look`].
    pub look: (Color, bool),
    /// Whether it is the one to look at.
    pub main: bool,
    pub points: Vec<Value>,
}

/// A point of a line, with the quartiles.
pub struct Value {
    /// The batch size, or the length of a bag.
    pub batch: usize,
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Value {
    /// One without spread.
    pub fn exact(case: &Case, value: f64) -> Self {
        Value { batch: case.batch, value, low: value, high: value }
    }
}

/// What panels say.
#[derive(Clone, Copy)]
pub struct Words {
    /// The title of the axis upwards.
    pub y: &'static str,
    /// The title of the axis to the right.
    pub x: &'static str,
    /// What is below 1, where that is a loss.
    pub losing: Option<&'static str>,
}

/// With what it was measured.
pub struct Conditions<'a> {
    pub machine: &'a Machine,
    /// Numbers of threads, ascending.
    pub threads: Vec<usize>,
    /// What the caches held.
    pub caches: &'static str,
}

impl<'a> Conditions<'a> {
    /// Those of a run's layers.
    pub fn of(run: &'a Run, cases: &[&Case]) -> Self {
        let mut threads: Vec<usize> = cases.iter().map(|case| case.threads).collect();
        threads.sort_unstable();
        threads.dedup();
        let caches = if run.machine.cold { "weights evicted from caches (cold)" } else { "warm caches" };
        Conditions { machine: &run.machine, threads, caches }
    }
}

/// The most room for a label at a line's end, where there are so many panels.
pub fn label_width(panels: usize) -> f32 {
    if panels > 1 { 180. } else { 300. }
}

impl Drawing {
    /// A page with its title; its height is where its body starts.
    pub fn page(title: &str, subtitle: &str) -> Self {
        let mut page = Drawing { height: MARGIN + 18., marks: Vec::new(), title: title.to_string() };
        page.text((MARGIN, page.height), title, 22., true, INK, Anchor::Start);
        page.height += 6.;
        for line in wrapped(subtitle, " ", SUBTITLE, WIDTH - 2. * MARGIN) {
            page.height += 19.;
            page.text((MARGIN, page.height), &line, SUBTITLE, false, SOFT, Anchor::Start);
        }
        page.height += 16.;
        page
    }

    /// Where and with what it was measured, under all else.
    pub fn footer(&mut self, conditions: &Conditions) {
        let Conditions { machine, threads, caches } = conditions;
        let text = [
            machine.cpu.clone(),
            machine.isa.clone(),
            format!("FBGEMM {}", machine.fbgemm.trim_start_matches("FBGEMM ")),
            format!("crate fbgemm {}", machine.version),
            format!("{} of {}", on_threads(threads), machine.threads),
            caches.to_string(),
            machine.date.clone(),
        ]
        .join(" · ");
        self.line(vec![(MARGIN, self.height), (WIDTH - MARGIN, self.height)], GRID, 1.);
        self.height += 4.;
        for line in wrapped(&text, " · ", FOOTER, WIDTH - 2. * MARGIN) {
            self.height += 17.;
            self.text((MARGIN, self.height), &line, FOOTER, false, SOFT, Anchor::Start);
        }
        self.height = (self.height + 16.).ceil();
    }

    /// The contenders' names beside their dots, in lines.
    pub fn legend(&mut self, contenders: &[(&str, bool)]) {
        let mut at = (MARGIN, self.height + 8.);
        for (i, (name, int8)) in contenders.iter().enumerate() {
            let label = shortened(&kind(name, *int8), LABEL, i == 0, WIDTH / 2.);
            let width = width(&label, LABEL, i == 0);
            if at.0 + 18. + width > WIDTH - MARGIN {
                at = (MARGIN, at.1 + 20.);
            }
            let (color, hollow) = look(i);
            self.dot((at.0 + 6., at.1), DOT, color, hollow);
            self.text((at.0 + 18., middle(at.1, LABEL)), &label, LABEL, i == 0, INK, Anchor::Start);
            at.0 += width + 40.;
        }
        self.height = at.1 + 22.;
    }

    /// Panels in one or two columns, and the footer.
    pub fn panels(mut self, conditions: &Conditions, panels: &[Panel], words: Words) -> Self {
        let columns = panels.len().clamp(1, 2);
        let gutter = 28.;
        let width = (WIDTH - 2. * MARGIN - gutter * (columns - 1) as f32) / columns as f32;
        let most = panels.iter().map(|panel| panel.series.len()).max().unwrap_or(0);
        // All labels of a panel fit beside it, however many there are.
        let height = (if columns == 1 { 380f32 } else { 220. }).max(most as f32 * GAP + 30.);
        let heading = if panels.iter().all(|panel| panel.heading.is_empty()) { 0. } else { 24. };
        let (above, below) = (heading + 22., 44.);
        let row = above + height + below + 28.;
        let top = self.height + 10.;
        for (i, panel) in panels.iter().enumerate() {
            let at = (MARGIN + (i % columns) as f32 * (width + gutter), top + (i / columns) as f32 * row);
            let text = shortened(&panel.heading, HEADING, true, width);
            self.text((at.0, at.1 + 12.), &text, HEADING, true, INK, Anchor::Start);
            self.text((at.0, at.1 + heading + 10.), words.y, LABEL, false, SOFT, Anchor::Start);
            self.panel(panel, (at.0, at.1 + above), (width, height), words);
        }
        self.height = top + panels.len().div_ceil(columns) as f32 * row - 14.;
        self.footer(conditions);
        self
    }

    /// A panel's axes, lines and labels, `size` with all but what stands under the axis.
    fn panel(&mut self, panel: &Panel, at: (f32, f32), size: (f32, f32), words: Words) {
        let (y, losing) = (&panel.y, words.losing);
        let tick = |value: f64, label: &str| match losing {
            Some(_) if value == 1. => format!("fp32  {label}"),
            _ => label.to_string(),
        };
        let ticks: Vec<(f64, String)> = y.ticks.iter().map(|(value, label)| (*value, tick(*value, label))).collect();
        let left = at.0 + ticks.iter().map(|(_, label)| width(label, LABEL, false)).fold(0., f32::max) + 8.;
        let labels = panel.series.iter().map(|series| width(&series.label, LABEL, series.main)).fold(0., f32::max);
        let right = at.0 + size.0 - labels - LEADER - 4.;
        let (top, bottom) = (at.1, at.1 + size.1);
        // Where int8 loses there is a strip under the lowest point, so that the words for it are free of lines.
        let strip = if losing.is_some() { 26. } else { 0. };
        let across = |value: f64| bottom - strip - y.at(value) * (size.1 - strip);

        if let Some(text) = losing {
            self.area((left, across(1.)), (right - left, bottom - across(1.)), BAND);
            self.text((left + 8., middle(bottom - strip / 2., LABEL)), text, LABEL, false, SOFT, Anchor::Start);
        }
        for (value, label) in &ticks {
            let one = losing.is_some() && *value == 1.;
            let (color, width) = if one { (INK, 1.5) } else { (GRID, 1.) };
            self.line(vec![(left, across(*value)), (right, across(*value))], color, width);
            let at = (left - 8., middle(across(*value), LABEL));
            self.text(at, label, LABEL, false, if one { INK } else { SOFT }, Anchor::End);
        }

        let mut batches: Vec<usize> = panel.series.iter().flat_map(|s| &s.points).map(|p| p.batch).collect();
        batches.sort_unstable();
        batches.dedup();
        let (Some(&first), Some(&last)) = (batches.first(), batches.last()) else { return };
        // A single batch size stands to the right, near its labels.
        let (before, after) = match (last as f64 / first as f64).powf(0.03) {
            1. => (8., 1.2),
            room => (room, room),
        };
        let x = Scale { low: first as f64 / before, high: last as f64 * after, ticks: Vec::new() };
        let along = |batch: usize| left + x.at(batch as f64) * (right - left);
        self.line(vec![(left, bottom), (right, bottom)], AXIS, 1.);
        // Batch sizes that would touch the one before, or the last, stay without a label.
        let half = |batch: usize| width(&batch.to_string(), LABEL, false) / 2. + 4.;
        let mut free = f32::NEG_INFINITY;
        for batch in batches {
            let x = along(batch);
            self.line(vec![(x, bottom), (x, bottom + 5.)], AXIS, 1.);
            let fits = x - half(batch) >= free && x + half(batch) <= along(last) - half(last);
            if fits || batch == last {
                self.text((x, bottom + 20.), &batch.to_string(), LABEL, false, SOFT, Anchor::Middle);
                free = x + half(batch);
            }
        }
        let at = ((left + right) / 2., bottom + 40.);
        self.text(at, words.x, LABEL, false, SOFT, Anchor::Middle);

        let mut ends = Vec::new();
        for series in &panel.series {
            let (color, hollow) = series.look;
            let mut points: Vec<&Value> = series.points.iter().collect();
            points.sort_by_key(|point| point.batch);
            let place = |point: &Value| (along(point.batch), across(point.value));
            for point in &points {
                let quartiles = vec![(along(point.batch), across(point.low)), (along(point.batch), across(point.high))];
                self.line(quartiles, color, 1.);
            }
            self.line(points.iter().map(|p| place(p)).collect(), color, if series.main { 4. } else { 2. });
            for point in &points {
                self.dot(place(point), if series.main { DOT + 1. } else { DOT - 0.5 }, color, hollow);
            }
            ends.push(points.last().map_or((right, bottom), |point| place(point)));
        }
        let wanted: Vec<f32> = ends.iter().map(|end| end.1).collect();
        for ((series, end), y) in panel.series.iter().zip(ends).zip(apart(&wanted, GAP, top + 4., bottom - 4.)) {
            let (color, hollow) = series.look;
            let to = (right + LEADER - 10., y);
            self.line(vec![(end.0 + DOT + 2., end.1), (right, end.1), to], color, 1.);
            self.dot(to, DOT - 0.5, color, hollow);
            let at = (right + LEADER, middle(y, LABEL));
            self.text(at, &series.label, LABEL, series.main, INK, Anchor::Start);
        }
    }
}
