//! Draws a run: speed-up, time and error, each as SVG and as PNG.
//!
//! A [`Drawing`] is a list of marks that both files are made from. Its text is measured in the font that the PNG is
//! drawn in, which comes from a crate, so that a machine without fonts draws the same.

use super::result::{Case, Run};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, process};
use tiny_skia::{FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, Transform};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

/// A colour's red, green and blue.
type Color = [u8; 3];

/// The colours of Okabe and Ito, which the colour-blind tell apart, but for yellow, which is too light for lines.
const COLORS: [Color; 7] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [0, 0, 0]];
const WHITE: Color = [255; 3];
const INK: Color = [32; 3];
const SOFT: Color = [88; 3];
const AXIS: Color = [140; 3];
const GRID: Color = [222; 3];
const BAND: Color = [241; 3];

// Lengths in points.
const WIDTH: f32 = 1000.;
const MARGIN: f32 = 24.;
const SUBTITLE: f32 = 14.;
const HEADING: f32 = 15.;
const LABEL: f32 = 13.;
const FOOTER: f32 = 12.;
/// From a line's last point to its label.
const LEADER: f32 = 34.;
/// From a label to the next one below.
const GAP: f32 = 17.;
const DOT: f32 = 4.5;
/// The width of a dot's edge.
const EDGE: f32 = 1.5;
/// Pixels of the PNG to a point.
const PIXELS: f32 = 2.;

// More than these are not readable at a glance; what is left out is said.
const MOST_PANELS: usize = 12;
const FEW_PANELS: usize = 6;
const MOST_LINES: usize = 2 * COLORS.len();
const MOST_ROWS: usize = 24;

/// Draws `run` into `folder`, which it makes where there is none, and returns the files.
///
/// `speed-up` needs a contender in fp32; without one only `time` and `error` are drawn.
pub fn draw(run: &Run, folder: &Path) -> Result<Vec<PathBuf>, String> {
    let cases: Vec<&Case> = run.cases.iter().filter(|case| !case.timings.is_empty()).collect();
    if cases.is_empty() {
        return Err("there is nothing to draw: no case was timed".to_string());
    }
    let fonts = Fonts::new()?;
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let drawings = [
        ("speed-up", speed_up(run, &cases, &fonts)),
        ("time", Some(time(run, &cases, &fonts))),
        ("error", Some(error(run, &cases, &fonts))),
    ];
    let mut files = Vec::new();
    for (name, drawing) in drawings {
        let Some(drawing) = drawing else { continue };
        for (extension, content) in [("svg", drawing.svg().into_bytes()), ("png", drawing.png()?)] {
            let file = folder.join(format!("{name}.{extension}"));
            // Renamed when whole, so that nobody ever reads half a picture.
            let part = folder.join(format!(".{name}.{extension}.{}", process::id()));
            let written = fs::write(&part, content).and_then(|()| fs::rename(&part, &file));
            if let Err(e) = written {
                let _ = fs::remove_file(&part); // the first error is the one to tell
                return Err(format!("{}: {e}", file.display()));
            }
            files.push(file);
        }
    }
    Ok(files)
}

// The three drawings

/// Speed-up over the best fp32 contender by batch size: a panel for each source and number of threads, a line for each
/// shape.
fn speed_up(run: &Run, cases: &[&Case], fonts: &Fonts) -> Option<Drawing> {
    let cases: Vec<&Case> = cases.iter().copied().filter(|case| case.speed_up().is_some_and(good)).collect();
    let groups = group(&cases, |case| (case.source.as_str(), case.threads));
    let chosen = spread(&groups, MOST_PANELS);
    let mut note = String::new();
    if chosen.len() < groups.len() {
        note += &format!(" {} of {} panels are shown.", chosen.len(), groups.len());
    }

    let mut panels = Vec::new();
    let names = Names::new(&cases);
    let most = label_width(chosen.len());
    let mut shapes_left_out = false;
    for ((source, threads), cases) in chosen {
        let mut shapes = group(cases, shape);
        shapes.sort_by_key(|(shape, _)| *shape);
        shapes_left_out |= shapes.len() > MOST_LINES;
        let series = spread(&shapes, MOST_LINES).into_iter().enumerate().map(|(i, (_, cases))| Series {
            label: layer_name(cases[0], fonts, most),
            look: look(i),
            main: false,
            points: cases.iter().filter_map(|case| Some(Value::exact(case, case.speed_up()?))).collect(),
        });
        // A source's panels share their scale, so that numbers of threads can be compared.
        let of_source = || groups.iter().filter(|((s, _), _)| s == source).flat_map(|(_, cases)| cases);
        let speed_ups = || of_source().filter_map(|case| case.speed_up());
        let (low, high) = (speed_ups().fold(0.8, f64::min), speed_ups().fold(1.6, f64::max));
        let y = Scale::new(low, high, 2., &[1., 1.5], ratio);
        panels.push(Panel { heading: names.panel(source, *threads), y, series: series.collect() });
    }
    if shapes_left_out {
        note += &format!(" At most {MOST_LINES} layers to a panel, from small to large.");
    }
    let subtitle = format!(
        "Time of the best fp32 ({}) divided by {}'s; higher is better. Layers: inputs→outputs.{note}",
        contenders(&cases, |int8| !int8).iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        cases.first()?.ours().contender,
    );
    let page = Drawing::page("How many times faster int8 is than fp32", &subtitle, fonts);
    let words = Words { y: "speed-up over the best fp32", losing: Some("below 1×: int8 is slower") };
    Some(page.panels(run, &cases, &panels, words))
}

/// Time for a call by batch size: a panel for each shape, a line for each contender.
fn time(run: &Run, cases: &[&Case], fonts: &Fonts) -> Drawing {
    let names = Names::new(cases);
    let mut groups = group(cases, |case| (case.threads, shape(case), case.source.as_str()));
    groups.sort_by_key(|(key, _)| *key);
    // One number of threads at a time is enough of a choice; the speed-up shows the others.
    let single = groups[0].0.0;
    let all = groups.len();
    if all > FEW_PANELS {
        groups.retain(|((threads, ..), _)| *threads == single);
    }
    let chosen = spread(&groups, FEW_PANELS);
    let note = match chosen.len() < all {
        true => format!(" {} of {all} cases are shown, by the layer's size.", chosen.len()),
        false => String::new(),
    };

    let contenders = contenders(cases, |_| true);
    let mut panels = Vec::new();
    let most = label_width(chosen.len());
    for ((threads, _, source), cases) in chosen {
        let mut series: Vec<Series> = Vec::new();
        for (i, (contender, int8)) in contenders.iter().enumerate() {
            let timings = cases.iter().flat_map(|case| case.timings.iter().map(move |timing| (case, timing)));
            let points: Vec<Value> = timings
                .filter(|(_, timing)| timing.contender == *contender && good(timing.median))
                .map(|(case, timing)| Value {
                    batch: case.batch,
                    value: timing.median,
                    low: if good(timing.low) { timing.low } else { timing.median },
                    high: if good(timing.high) { timing.high } else { timing.median },
                })
                .collect();
            if !points.is_empty() {
                let label = fonts.shortened(&kind(contender, *int8), LABEL, i == 0, most);
                series.push(Series { label, look: look(i), main: i == 0, points });
            }
        }
        // Without a single good time there is no range, and nothing to draw in it.
        let points = || series.iter().flat_map(|series| &series.points);
        let low = points().map(|point| point.low).reduce(f64::min).unwrap_or(1e-6);
        let high = points().map(|point| point.high).fold(low, f64::max);
        let y = Scale::new(low, high, 10., &[1., 2., 5.], seconds);
        // Both parts have to be readable, however long.
        let panel = fonts.shortened(&names.panel(source, *threads), HEADING, true, 180.);
        let layer = layer_name(cases[0], fonts, 240.);
        let heading = if panel.is_empty() { layer } else { format!("{panel}: {layer}") };
        // Ours is drawn last, on top.
        series.reverse();
        panels.push(Panel { heading, y, series });
    }
    let scales = if panels.len() > 1 { " Each panel has its own scale." } else { "" };
    let subtitle = format!(
        "Medians, with quartiles as thin upright lines; lower is better.{scales} Layers: inputs→outputs.{note}"
    );
    let page = Drawing::page("Time for one call, by batch size", &subtitle, fonts);
    page.panels(run, cases, &panels, Words { y: "time for a call", losing: None })
}

/// Error against float64: a row for each shape, a dot for each contender.
fn error(run: &Run, cases: &[&Case], fonts: &Fonts) -> Drawing {
    const LANE: f32 = 10.;
    let sources: Vec<&str> = group(cases, |case| case.source.as_str()).into_iter().map(|(source, _)| source).collect();
    let mut rows = group(cases, |case| (case.source.as_str(), shape(case)));
    // Sources stay in their order, in which a table has them too.
    rows.sort_by_key(|((source, shape), _)| (sources.iter().position(|s| s == source), *shape));
    let chosen = spread(&rows, MOST_ROWS);
    let contenders = contenders(cases, |_| true);

    let mut subtitle = "Relative error ‖y − exact‖ / ‖exact‖, exact in float64 from the fp32 weight; further left is \
                        better, 10⁻² is 1 %. Dots: the largest over batch sizes and threads, bars from the smallest. \
                        Layers: inputs→outputs."
        .to_string();
    if chosen.len() < rows.len() {
        subtitle += &format!(" {} of {} layers are shown.", chosen.len(), rows.len());
    }
    let mut page = Drawing::page("How far results are from exact ones", &subtitle, fonts);
    page.legend(&contenders);

    let errors = || cases.iter().flat_map(|case| &case.timings).map(|timing| timing.error).filter(|e| good(*e));
    let x = Scale::new(errors().fold(1e-7, f64::min), errors().fold(1e-2, f64::max), 10., &[1.], power);
    let names: Vec<String> = chosen.iter().map(|(_, cases)| layer_name(cases[0], fonts, 320.)).collect();
    let left = MARGIN + names.iter().map(|name| fonts.width(name, LABEL, false)).fold(0., f32::max) + 24.;
    let right = WIDTH - MARGIN;
    let place = |value: f64| left + x.at(value) * (right - left);
    // int8 and fp32 lie far apart, and share lanes.
    let lanes = |int8: bool| contenders.iter().filter(move |(_, kind)| *kind == int8);
    let height = (lanes(true).count().max(lanes(false).count()) as f32 * LANE + 8.).max(26.);

    let top = page.height;
    let mut middles = Vec::new();
    for (i, (((source, _), _), name)) in chosen.iter().zip(&names).enumerate() {
        if sources.len() > 1 && (i == 0 || *source != chosen[i - 1].0.0) {
            let text = fonts.shortened(source, LABEL, true, left - MARGIN - 8.);
            page.text((MARGIN, page.height + 18.), &text, LABEL, true, INK, Anchor::Start);
            page.height += 26.;
        }
        let y = page.height + height / 2.;
        if i % 2 == 0 {
            page.area((MARGIN, page.height), (right - MARGIN, height), BAND);
        }
        page.text((left - 16., middle(y, LABEL)), name, LABEL, false, INK, Anchor::End);
        middles.push(y);
        page.height += height;
    }
    let bottom = page.height;
    for (value, label) in &x.ticks {
        page.line(vec![(place(*value), top), (place(*value), bottom)], GRID, 1.);
        page.text((place(*value), bottom + 20.), label, LABEL, false, SOFT, Anchor::Middle);
    }
    for ((_, cases), y) in chosen.into_iter().zip(middles) {
        for (i, (contender, int8)) in contenders.iter().enumerate() {
            let lane = lanes(*int8).position(|(name, _)| name == contender).unwrap_or(0);
            let y = y + (lane as f32 - (lanes(*int8).count() - 1) as f32 / 2.) * LANE;
            let timings = cases.iter().flat_map(|case| &case.timings).filter(|timing| timing.contender == *contender);
            let errors: Vec<f64> = timings.map(|timing| timing.error).filter(|e| good(*e)).collect();
            let Some(high) = errors.iter().copied().reduce(f64::max) else { continue };
            let low = errors.iter().copied().fold(high, f64::min);
            let (color, hollow) = look(i);
            page.line(vec![(place(low), y), (place(high), y)], color, 2.);
            page.dot((place(high), y), DOT, color, hollow);
        }
    }
    page.text(((left + right) / 2., bottom + 42.), "relative error", LABEL, false, SOFT, Anchor::Middle);
    page.height = bottom + 58.;
    page.footer(run, cases);
    page
}

// Layout of panels

/// One panel's lines.
struct Panel {
    heading: String,
    y: Scale,
    series: Vec<Series>,
}

/// A line with its name at its end.
struct Series {
    label: String,
    /// See [`look`].
    look: (Color, bool),
    /// Whether it is the one to look at.
    main: bool,
    points: Vec<Value>,
}

/// A point of a line, with the quartiles.
struct Value {
    batch: usize,
    value: f64,
    low: f64,
    high: f64,
}

impl Value {
    /// One without spread.
    fn exact(case: &Case, value: f64) -> Self {
        Value { batch: case.batch, value, low: value, high: value }
    }
}

/// A logarithmic axis.
struct Scale {
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// An axis a little wider than `low` to `high`, a factor of four at least, with ticks by [`log_ticks`].
    fn new(low: f64, high: f64, base: f64, between: &[f64], label: fn(f64) -> String) -> Self {
        let span = high / low;
        let room = span.powf(0.05).max((4. / span).sqrt());
        let (low, high) = (low / room, high * room);
        Scale { low, high, ticks: log_ticks(low, high, base, between).into_iter().map(|t| (t, label(t))).collect() }
    }

    /// Where `value` lies, from 0 to 1.
    fn at(&self, value: f64) -> f32 {
        ((value / self.low).ln() / (self.high / self.low).ln()) as f32
    }
}

/// What panels say.
#[derive(Clone, Copy)]
struct Words {
    /// The title of the axis upwards.
    y: &'static str,
    /// What is below 1, where that is a loss.
    losing: Option<&'static str>,
}

/// The most room for a label at a line's end, where there are so many panels.
fn label_width(panels: usize) -> f32 {
    if panels > 1 { 180. } else { 300. }
}

impl Drawing {
    /// A page with its title; its height is where its body starts.
    fn page(title: &str, subtitle: &str, fonts: &Fonts) -> Self {
        let mut page =
            Drawing { height: MARGIN + 18., marks: Vec::new(), title: title.to_string(), fonts: fonts.clone() };
        page.text((MARGIN, page.height), title, 22., true, INK, Anchor::Start);
        page.height += 6.;
        for line in fonts.wrapped(subtitle, " ", SUBTITLE, WIDTH - 2. * MARGIN) {
            page.height += 19.;
            page.text((MARGIN, page.height), &line, SUBTITLE, false, SOFT, Anchor::Start);
        }
        page.height += 16.;
        page
    }

    /// Where and with what it was measured, under all else.
    fn footer(&mut self, run: &Run, cases: &[&Case]) {
        let machine = &run.machine;
        let mut threads: Vec<usize> = cases.iter().map(|case| case.threads).collect();
        threads.sort_unstable();
        threads.dedup();
        let text = [
            machine.cpu.clone(),
            machine.isa.clone(),
            format!("FBGEMM {}", machine.fbgemm.trim_start_matches("FBGEMM ")),
            format!("crate fbgemm {}", machine.version),
            format!("{} of {}", on_threads(&threads), machine.threads),
            (if machine.cold { "weights evicted from caches (cold)" } else { "warm caches" }).to_string(),
            machine.date.clone(),
        ]
        .join(" · ");
        self.line(vec![(MARGIN, self.height), (WIDTH - MARGIN, self.height)], GRID, 1.);
        self.height += 4.;
        for line in self.fonts.wrapped(&text, " · ", FOOTER, WIDTH - 2. * MARGIN) {
            self.height += 17.;
            self.text((MARGIN, self.height), &line, FOOTER, false, SOFT, Anchor::Start);
        }
        self.height = (self.height + 16.).ceil();
    }

    /// The contenders' names beside their dots, in lines.
    fn legend(&mut self, contenders: &[(&str, bool)]) {
        let mut at = (MARGIN, self.height + 8.);
        for (i, (name, int8)) in contenders.iter().enumerate() {
            let label = self.fonts.shortened(&kind(name, *int8), LABEL, i == 0, WIDTH / 2.);
            let width = self.fonts.width(&label, LABEL, i == 0);
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

    /// Panels by batch size, in one or two columns, and the footer.
    fn panels(mut self, run: &Run, cases: &[&Case], panels: &[Panel], words: Words) -> Self {
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
            let text = self.fonts.shortened(&panel.heading, HEADING, true, width);
            self.text((at.0, at.1 + 12.), &text, HEADING, true, INK, Anchor::Start);
            self.text((at.0, at.1 + heading + 10.), words.y, LABEL, false, SOFT, Anchor::Start);
            self.panel(panel, (at.0, at.1 + above), (width, height), words.losing);
        }
        self.height = top + panels.len().div_ceil(columns) as f32 * row - 14.;
        self.footer(run, cases);
        self
    }

    /// A panel's axes, lines and labels, `size` with all but what stands under the axis.
    fn panel(&mut self, panel: &Panel, at: (f32, f32), size: (f32, f32), losing: Option<&str>) {
        let y = &panel.y;
        let fonts = self.fonts.clone();
        let tick = |value: f64, label: &str| match losing {
            Some(_) if value == 1. => format!("fp32  {label}"),
            _ => label.to_string(),
        };
        let ticks: Vec<(f64, String)> = y.ticks.iter().map(|(value, label)| (*value, tick(*value, label))).collect();
        let left = at.0 + ticks.iter().map(|(_, label)| fonts.width(label, LABEL, false)).fold(0., f32::max) + 8.;
        let labels =
            panel.series.iter().map(|series| fonts.width(&series.label, LABEL, series.main)).fold(0., f32::max);
        let right = at.0 + size.0 - labels - LEADER - 4.;
        let (top, bottom) = (at.1, at.1 + size.1);
        // Where int8 loses there is a strip under the lowest point, so that the words for it are free of lines.
        let strip = if losing.is_some() { 26. } else { 0. };
        let across = |value: f64| bottom - strip - y.at(value) * (size.1 - strip);

        if let Some(words) = losing {
            self.area((left, across(1.)), (right - left, bottom - across(1.)), BAND);
            self.text((left + 8., middle(bottom - strip / 2., LABEL)), words, LABEL, false, SOFT, Anchor::Start);
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
        let half = |batch: usize| fonts.width(&batch.to_string(), LABEL, false) / 2. + 4.;
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
        self.text(at, "batch size (rows of input)", LABEL, false, SOFT, Anchor::Middle);

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

/// Where to put labels that want to be at `wanted`, each at least `gap` from the next, between `low` and `high` where
/// they fit: as near as can be to where they want to be, by least squares.
fn apart(wanted: &[f32], gap: f32, low: f32, high: f32) -> Vec<f32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    // With each label's share of the gaps taken off, they only have to ascend: neighbours that don't take their mean.
    let mut blocks: Vec<(f32, usize)> = Vec::new();
    for (rank, i) in order.iter().enumerate() {
        let (mut sum, mut count) = (wanted[*i] - rank as f32 * gap, 1);
        while let Some((s, c)) = blocks.pop_if(|(s, c)| *s / *c as f32 > sum / count as f32) {
            (sum, count) = (sum + s, count + c);
        }
        blocks.push((sum, count));
    }
    let highest = (high - wanted.len().saturating_sub(1) as f32 * gap).max(low);
    let placed = blocks.iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / *count as f32, *count));
    let mut places = vec![0.; wanted.len()];
    for (rank, (i, place)) in order.into_iter().zip(placed).enumerate() {
        places[i] = place.clamp(low, highest) + rank as f32 * gap;
    }
    places
}

/// The powers of `base` from `low` to `high`, and, where these are few, their products with `between`.
fn log_ticks(low: f64, high: f64, base: f64, between: &[f64]) -> Vec<f64> {
    let steps = (low.ln() / base.ln()).floor() as i32..=(high.ln() / base.ln()).ceil() as i32;
    let inside = |ticks: &[i32]| ticks.iter().filter(|k| (low..=high).contains(&base.powi(**k))).count();
    let all: Vec<i32> = steps.collect();
    // Every second or third power where all would crowd, always with 1.
    let (every, between) = match inside(&all) {
        0..=2 => (1, between),
        many => (many.div_ceil(9) as i32, &[1.][..]),
    };
    let powers = all.into_iter().filter(|k| k % every == 0).map(|k| base.powi(k));
    powers.flat_map(|power| between.iter().map(move |b| b * power)).filter(|t| (low..=high).contains(t)).collect()
}

// What the drawings choose and name

/// Whether a value has a place on a logarithmic axis.
fn good(value: f64) -> bool {
    value.is_finite() && value > 0.
}

/// What tells a source's layers apart, small ones first: its name too, should two of a shape have been given.
fn shape(case: &Case) -> (usize, usize, &str) {
    (case.in_features * case.out_features, case.in_features, &case.layer)
}

/// Groups by `key`, in the order of first appearance.
fn group<'a, K: PartialEq>(cases: &[&'a Case], key: impl Fn(&'a Case) -> K) -> Vec<(K, Vec<&'a Case>)> {
    let mut groups: Vec<(K, Vec<&Case>)> = Vec::new();
    for case in cases {
        let key = key(case);
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, group)) => group.push(case),
            None => groups.push((key, vec![case])),
        }
    }
    groups
}

/// At most `most` of `all`, evenly, the first and the last among them.
fn spread<T>(all: &[T], most: usize) -> Vec<&T> {
    let count = all.len().min(most);
    (0..count).map(|i| &all[i * (all.len() - 1) / (count - 1).max(1)]).collect()
}

/// The contenders that `wanted` says yes to, told whether they are int8, ours first.
fn contenders<'a>(cases: &[&'a Case], wanted: impl Fn(bool) -> bool) -> Vec<(&'a str, bool)> {
    let mut all: Vec<(&str, bool)> = Vec::new();
    for timing in cases.iter().flat_map(|case| &case.timings) {
        if wanted(timing.int8) && !all.iter().any(|(name, _)| *name == timing.contender) {
            all.push((&timing.contender, timing.int8));
        }
    }
    all
}

/// Names of panels: only what differs between them.
struct Names {
    sources: bool,
    threads: bool,
}

impl Names {
    fn new(cases: &[&Case]) -> Self {
        Names {
            sources: cases.iter().any(|case| case.source != cases[0].source),
            threads: cases.iter().any(|case| case.threads != cases[0].threads),
        }
    }

    fn panel(&self, source: &str, threads: usize) -> String {
        let parts = [self.sources.then(|| source.to_string()), self.threads.then(|| on_threads(&[threads]))];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// "1 thread", "1 and 2 threads".
fn on_threads(threads: &[usize]) -> String {
    let texts: Vec<String> = threads.iter().map(usize::to_string).collect();
    match texts.as_slice() {
        [one] if one == "1" => "1 thread".to_string(),
        [but_last @ .., last] if !but_last.is_empty() => format!("{} and {last} threads", but_last.join(", ")),
        all => format!("{} threads", all.join(", ")),
    }
}

/// The colour of the `i`th of lines or contenders, and whether its dots are rings.
fn look(i: usize) -> (Color, bool) {
    (COLORS[i % COLORS.len()], i / COLORS.len() % 2 == 1)
}

/// A contender with its arithmetic.
fn kind(contender: &str, int8: bool) -> String {
    match int8 {
        true if contender.ends_with("fp16") => contender.to_string(),
        true => format!("{contender}, int8"),
        false => format!("{contender}, fp32"),
    }
}

/// A layer's name and shape, the name cut short to fit into `most`.
fn layer_name(case: &Case, fonts: &Fonts, most: f32) -> String {
    let shape = format!("{}→{}", case.in_features, case.out_features);
    let name = format!("{} ", case.layer.trim());
    let room = most - fonts.width(&shape, LABEL, false);
    // A layer that the user gave by its shape has no other name, as "384x1536".
    let by_shape =
        case.layer.split_once(['x', '×']).is_some_and(|(a, b)| [a, b].iter().all(|n| n.parse::<usize>().is_ok()));
    let nameless = by_shape || case.layer.trim().is_empty();
    if nameless || room < 20. { shape } else { fonts.shortened(&name, LABEL, false, room) + &shape }
}

/// "0.5×", with three digits.
fn ratio(value: f64) -> String {
    let digits = (2. - value.log10().floor()).max(0.) as usize;
    let text = format!("{value:.digits$}");
    format!("{}×", if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text })
}

/// "20 µs".
fn seconds(value: f64) -> String {
    let (scale, unit) =
        [(1., "s"), (1e-3, "ms"), (1e-6, "µs")].into_iter().find(|(s, _)| value > s * 0.99).unwrap_or((1e-9, "ns"));
    format!("{} {unit}", (value / scale * 10.).round() / 10.)
}

/// "10⁻³".
fn power(value: f64) -> String {
    let digits = format!("{}", value.log10().round());
    let raised = |c| "⁻⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth("-0123456789".find(c).unwrap_or(0)).unwrap_or(c);
    format!("10{}", digits.chars().map(raised).collect::<String>())
}

// Marks, and the two files

/// Marks on a page `WIDTH` wide, in the order they are drawn.
struct Drawing {
    height: f32,
    title: String,
    marks: Vec<Mark>,
    fonts: Fonts,
}

enum Mark {
    Line { points: Vec<(f32, f32)>, color: Color, width: f32 },
    Area { at: (f32, f32), size: (f32, f32), color: Color },
    Dot { at: (f32, f32), radius: f32, fill: Color, edge: Color },
    Text { at: (f32, f32), text: String, size: f32, bold: bool, color: Color, anchor: Anchor },
}

/// What part of a text lies at its place.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// The baseline of a text whose capitals have their middle at `y`.
fn middle(y: f32, size: f32) -> f32 {
    y + 0.36 * size
}

impl Drawing {
    fn line(&mut self, points: Vec<(f32, f32)>, color: Color, width: f32) {
        self.marks.push(Mark::Line { points, color, width });
    }

    fn area(&mut self, at: (f32, f32), size: (f32, f32), color: Color) {
        self.marks.push(Mark::Area { at, size, color });
    }

    /// A dot with a white edge, which keeps those that touch apart, or a ring.
    fn dot(&mut self, at: (f32, f32), radius: f32, color: Color, hollow: bool) {
        let (fill, edge) = if hollow { (WHITE, color) } else { (color, WHITE) };
        self.marks.push(Mark::Dot { at, radius, fill, edge });
    }

    fn text(&mut self, at: (f32, f32), text: &str, size: f32, bold: bool, color: Color, anchor: Anchor) {
        // XML has no place for control characters, and a checkpoint's names may hold any.
        let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.marks.push(Mark::Text { at, text, size, bold, color, anchor });
    }

    /// The drawing as SVG, text as text.
    fn svg(&self) -> String {
        let color = |[r, g, b]: Color| format!("#{r:02x}{g:02x}{b:02x}");
        let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let (width, height) = (WIDTH, self.height);
        // Fonts that are as wide as the one measured, or narrower, so that texts stay apart.
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"'DejaVu Sans', Verdana, Arial, sans-serif\" \
             stroke-linecap=\"round\" stroke-linejoin=\"round\">\n<title>{}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
            escaped(&self.title)
        );
        for mark in &self.marks {
            // Writing into a string can't fail.
            let _ = match mark {
                Mark::Line { points, color: c, width } => {
                    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                    let (points, c) = (points.join(" "), color(*c));
                    writeln!(
                        svg,
                        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{c}\" stroke-width=\"{width}\"/>"
                    )
                }
                Mark::Area { at: (x, y), size: (w, h), color: c } => {
                    let c = color(*c);
                    writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{c}\"/>")
                }
                Mark::Dot { at: (x, y), radius, fill, edge } => {
                    let (fill, edge) = (color(*fill), color(*edge));
                    writeln!(
                        svg,
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{edge}\" \
                         stroke-width=\"{EDGE}\"/>"
                    )
                }
                Mark::Text { at: (x, y), text, size, bold, color: c, anchor } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    let weight = if *bold { " font-weight=\"bold\"" } else { "" };
                    let (text, c) = (escaped(text), color(*c));
                    writeln!(
                        svg,
                        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\"{weight} fill=\"{c}\" \
                         text-anchor=\"{anchor}\" xml:space=\"preserve\">{text}</text>"
                    )
                }
            };
        }
        svg + "</svg>\n"
    }

    /// The drawing as PNG, two pixels to a point.
    fn png(&self) -> Result<Vec<u8>, String> {
        let wrong = |what: &str| format!("can't draw a PNG: {what}");
        let (width, height) = ((WIDTH * PIXELS) as u32, (self.height * PIXELS) as u32);
        let mut map = Pixmap::new(width, height).ok_or_else(|| wrong("its size"))?;
        map.fill(tiny_skia::Color::WHITE);
        let to_pixels = Transform::from_scale(PIXELS, PIXELS);
        let paint = |[r, g, b]: Color| {
            let mut paint = Paint::default();
            paint.set_color_rgba8(r, g, b, 255);
            paint
        };
        let stroke =
            |width| Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
        for mark in &self.marks {
            // A path of no length is none, and draws nothing.
            match mark {
                Mark::Line { points, color, width } => {
                    let mut path = PathBuilder::new();
                    for (i, (x, y)) in points.iter().enumerate() {
                        if i == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
                    }
                    if let Some(path) = path.finish() {
                        map.stroke_path(&path, &paint(*color), &stroke(*width), to_pixels, None);
                    }
                }
                Mark::Area { at: (x, y), size: (w, h), color } => {
                    if let Some(area) = Rect::from_xywh(*x, *y, *w, *h) {
                        map.fill_rect(area, &paint(*color), to_pixels, None);
                    }
                }
                Mark::Dot { at: (x, y), radius, fill, edge } => {
                    if let Some(path) = PathBuilder::from_circle(*x, *y, *radius) {
                        map.fill_path(&path, &paint(*fill), FillRule::Winding, to_pixels, None);
                        map.stroke_path(&path, &paint(*edge), &stroke(EDGE), to_pixels, None);
                    }
                }
                Mark::Text { at: (x, y), text, size, bold, color, anchor } => {
                    let width = self.fonts.width(text, *size, *bold);
                    let x = match anchor {
                        Anchor::Start => *x,
                        Anchor::Middle => x - width / 2.,
                        Anchor::End => x - width,
                    };
                    if let Some(path) = self.fonts.outline((x, *y), text, *size, *bold) {
                        map.fill_path(&path, &paint(*color), FillRule::Winding, to_pixels, None);
                    }
                }
            }
        }
        map.encode_png().map_err(|e| wrong(&e.to_string()))
    }
}

/// The font, from a crate, in two weights.
#[derive(Clone)]
struct Fonts {
    regular: Face<'static>,
    bold: Face<'static>,
}

impl Fonts {
    fn new() -> Result<Self, String> {
        let face = |bytes| Face::parse(bytes, 0).map_err(|e| format!("the font for plots: {e}"));
        Ok(Fonts { regular: face(dejavu::sans::regular())?, bold: face(dejavu::sans::bold())? })
    }

    /// The glyphs of a text, each with its distance from the start, and the width of all.
    fn glyphs(&self, text: &str, size: f32, bold: bool) -> (Vec<(GlyphId, f32)>, f32) {
        let face = if bold { &self.bold } else { &self.regular };
        let scale = size / f32::from(face.units_per_em());
        let mut width = 0.;
        let glyphs = text.chars().map(|c| {
            let glyph = face.glyph_index(c).unwrap_or_default(); // a box, where the font has no such letter
            let at = width;
            width += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
            (glyph, at)
        });
        (glyphs.collect(), width)
    }

    fn width(&self, text: &str, size: f32, bold: bool) -> f32 {
        self.glyphs(text, size, bold).1
    }

    /// A text's outline, its baseline from `at`.
    fn outline(&self, at: (f32, f32), text: &str, size: f32, bold: bool) -> Option<tiny_skia::Path> {
        let face = if bold { &self.bold } else { &self.regular };
        let mut pen = Pen { path: PathBuilder::new(), at, scale: size / f32::from(face.units_per_em()) };
        for (glyph, x) in self.glyphs(text, size, bold).0 {
            pen.at.0 = at.0 + x;
            face.outline_glyph(glyph, &mut pen);
        }
        pen.path.finish()
    }

    /// The text, its start cut off where it is wider than `most`: of a layer's name the end tells more.
    fn shortened(&self, text: &str, size: f32, bold: bool, most: f32) -> String {
        if self.width(text, size, bold) <= most {
            return text.to_string();
        }
        let cut = text.char_indices().skip(1).map(|(i, _)| format!("…{}", &text[i..]));
        cut.into_iter().find(|text| self.width(text, size, bold) <= most).unwrap_or_else(|| "…".to_string())
    }

    /// The text in lines no wider than `most`, broken at `separator`.
    fn wrapped(&self, text: &str, separator: &str, size: f32, most: f32) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split(separator) {
            let longer = lines.last().map(|line| format!("{line}{separator}{word}"));
            match (longer, lines.last_mut()) {
                (Some(longer), Some(line)) if self.width(&longer, size, false) <= most => *line = longer,
                _ => lines.push(self.shortened(word, size, false, most)),
            }
        }
        lines
    }
}

/// Draws glyphs, whose units and direction are the font's, into a path.
struct Pen {
    path: PathBuilder,
    at: (f32, f32),
    scale: f32,
}

impl Pen {
    fn place(&self, x: f32, y: f32) -> (f32, f32) {
        (self.at.0 + x * self.scale, self.at.1 - y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.place(x1, y1), self.place(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::result::{Limits, Machine, Timing};
    use super::*;

    const CONTENDERS: [&str; 4] = ["fbgemm", "gemm", "matrixmultiply", "OpenBLAS 0.3"];
    const SHAPES: [(&str, usize, usize); 3] = [("query", 384, 384), ("up", 1536, 384), ("down", 384, 1536)];

    /// Times and errors as they may be; shapes are (name, outputs, inputs).
    fn run(
        sources: &[&str],
        shapes: &[(&str, usize, usize)],
        batches: &[usize],
        threads: &[usize],
        contenders: &[&str],
    ) -> Run {
        let mut cases = Vec::new();
        for source in sources {
            for &threads in threads {
                for &(layer, out_features, in_features) in shapes {
                    for &batch in batches {
                        let timing = |(i, name): (usize, &&str)| {
                            let work = (out_features * in_features * (8 + batch)) as f64 / threads as f64;
                            let median = 2e-6 + work * 1e-11 * (i + 1) as f64 + batch as f64 * 1e-6 / (i + 1) as f64;
                            let error = if i == 0 { 8e-3 } else { 2e-7 * i as f64 } * (1. + 1. / batch as f64);
                            Timing {
                                contender: name.to_string(),
                                int8: i == 0,
                                median,
                                low: median * 0.95,
                                high: median * 1.1,
                                error,
                                pack: None,
                            }
                        };
                        cases.push(Case {
                            source: source.to_string(),
                            layer: layer.to_string(),
                            count: 1,
                            out_features,
                            in_features,
                            batch,
                            threads,
                            timings: contenders.iter().enumerate().map(timing).collect(),
                            split: None,
                            limit_share: 0.5,
                            limit: "read",
                        });
                    }
                }
            }
        }
        let machine = Machine {
            cpu: "A CPU of 64 Cores @ 2.70GHz".to_string(),
            isa: "avx2".to_string(),
            fbgemm: "1.3.0 (system)".to_string(),
            version: "0.1.0".to_string(),
            threads: 2,
            date: "2026-11-24".to_string(),
            cold: true,
        };
        Run { machine, limits: Limits { read: Vec::new(), int8_per_second: 1e11, fp32_per_second: 5e10 }, cases }
    }

    /// All drawings of a run.
    fn drawings(run: &Run) -> Vec<Drawing> {
        let (fonts, cases) = (Fonts::new().unwrap(), run.cases.iter().collect::<Vec<_>>());
        let all = [speed_up(run, &cases, &fonts), Some(time(run, &cases, &fonts)), Some(error(run, &cases, &fonts))];
        all.into_iter().flatten().collect()
    }

    /// A folder of the test's own, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("fbgemm-plot-{}-{test}", process::id()));
            let _ = fs::remove_dir_all(&folder);
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn writes_all_drawings() {
        let folder = Folder::new("all");
        let run = run(&["minilm"], &SHAPES, &[1, 8, 32, 128], &[1], &CONTENDERS);
        let nested = folder.0.join("made");
        let files = draw(&run, &nested).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["speed-up.svg", "speed-up.png", "time.svg", "time.png", "error.svg", "error.png"],
            "drawn in this order"
        );
        assert_eq!(fs::read_dir(&nested).unwrap().count(), files.len(), "nothing else is left behind");
        for pair in files.chunks(2) {
            let svg = fs::read_to_string(&pair[0]).unwrap();
            let height: f32 = svg.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            let png = Pixmap::decode_png(&fs::read(&pair[1]).unwrap()).unwrap();
            assert_eq!((png.width(), png.height()), ((WIDTH * PIXELS) as u32, (height * PIXELS) as u32));
            assert!(png.pixels().iter().any(|p| [p.red(), p.green(), p.blue()] == COLORS[0]), "a line or dot");
            for text in ["query 384→384", "up 384→1536", "down 1536→384", "CPU of 64 Cores", "avx2", "1.3.0", "cold"]
            {
                assert!(svg.contains(text), "{text} is missing in {}", pair[0].display());
            }
            for text in ["crate fbgemm 0.1.0", "1 thread of 2", "2026-11-24", "</svg>"] {
                assert!(svg.contains(text), "{text} is missing in {}", pair[0].display());
            }
        }
        // Again, over the first ones.
        assert_eq!(draw(&run, &nested).unwrap(), files);
    }

    #[test]
    fn needs_fp32_for_the_speed_up_only() {
        let folder = Folder::new("alone");
        let files = draw(&run(&["minilm"], &SHAPES, &[1, 8], &[1], &CONTENDERS[..1]), &folder.0).unwrap();
        assert_eq!(files.len(), 4);
        assert!(!folder.0.join("speed-up.svg").exists());
    }

    #[test]
    fn tells_what_it_cannot_draw() {
        let folder = Folder::new("none");
        let empty = run(&[], &SHAPES, &[1], &[1], &CONTENDERS);
        assert!(draw(&empty, &folder.0).unwrap_err().contains("nothing to draw"));
        let untimed = run(&["minilm"], &SHAPES, &[1], &[1], &[]);
        assert!(draw(&untimed, &folder.0).unwrap_err().contains("nothing to draw"));
        assert!(!folder.0.exists());

        fs::write(&folder.0, "a file").unwrap();
        let error = draw(&run(&["minilm"], &SHAPES, &[1], &[1], &CONTENDERS), &folder.0).unwrap_err();
        assert!(error.contains(folder.0.to_str().unwrap()), "{error}");
        fs::remove_file(&folder.0).unwrap();
    }

    #[test]
    fn keeps_texts_apart() {
        let long = "bert.encoder.layer.11.a_name_that_goes_on_and_on_and_on_and_on_and_never_seems_to_end.dense";
        let many: Vec<(String, usize)> = (1..=40).map(|i| (format!("layer {i}"), 64 * i)).collect();
        let many: Vec<(&str, usize, usize)> = many.iter().map(|(name, i)| (name.as_str(), *i, 512)).collect();
        let nine = ["fbgemm", "a", "b", "c", "d", "e", "f", "ONNX Runtime 1.23.2 with a long name", "h"];
        let all_batches = [1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 100, 128, 256, 1000];
        for (what, run) in [
            ("plain", run(&["minilm"], &SHAPES, &[1, 8, 32, 128], &[1], &CONTENDERS)),
            ("presets", run(&["minilm", "bert", "lstm", "dlrm"], &SHAPES, &all_batches, &[1, 2], &nine)),
            ("one point", run(&["minilm"], &SHAPES[..1], &[1], &[1], &CONTENDERS)),
            ("twelve", run(&["shapes"], &many[..12], &[1, 8, 32, 128], &[1], &CONTENDERS)),
            ("forty", run(&["shapes", "again"], &many, &[1, 128], &[1, 2, 4], &CONTENDERS)),
            ("long", run(&[long, &long[1..]], &[(long, 384, 384), (long, 384, 1536)], &[1, 8], &[1, 2], &nine)),
        ] {
            for page in drawings(&run) {
                let boxes = page.marks.iter().filter_map(|mark| match mark {
                    Mark::Text { at: (x, y), text, size, bold, anchor, .. } => {
                        let width = page.fonts.width(text, *size, *bold);
                        let left = match anchor {
                            Anchor::Start => *x,
                            Anchor::Middle => x - width / 2.,
                            Anchor::End => x - width,
                        };
                        Some((text, left, y - 0.76 * size, left + width, y + 0.24 * size))
                    }
                    _ => None,
                });
                let boxes: Vec<_> = boxes.collect();
                for (i, (text, left, top, right, bottom)) in boxes.iter().enumerate() {
                    let inside = *left >= 0. && *top >= 0. && *right <= WIDTH && *bottom <= page.height;
                    assert!(inside, "{what}: {text:?} leaves {:?}", page.title);
                    for (other, l, t, r, b) in &boxes[..i] {
                        let apart = right <= l || r <= left || bottom <= t || b <= top;
                        assert!(apart, "{what}: {text:?} lies on {other:?} in {:?}", page.title);
                    }
                }
            }
        }
    }

    #[test]
    fn draws_what_has_no_place() {
        let mut run = run(&["minilm"], &SHAPES, &[1, 8], &[1], &CONTENDERS);
        for (i, timing) in run.cases.iter_mut().flat_map(|case| &mut case.timings).enumerate() {
            let value = [0., f64::NAN, f64::INFINITY, -1.][i % 4];
            (timing.median, timing.low, timing.high, timing.error) = (value, value, value, value);
        }
        for drawing in drawings(&run) {
            drawing.png().unwrap();
            assert!(!drawing.svg().contains("NaN") && !drawing.svg().contains("inf"));
        }
    }

    #[test]
    fn names_a_shape_once() {
        let run = run(&["yours"], &[("1536x384", 1536, 384), ("x", 64, 64)], &[1], &[1], &CONTENDERS);
        for drawing in drawings(&run) {
            let svg = drawing.svg();
            assert!(svg.contains(">384→1536<") && svg.contains(">x 64→64<") && !svg.contains("1536x384"));
        }
    }

    #[test]
    fn escapes_names() {
        let run = run(&["minilm"], &[("a<b>&\u{7}\"c\"", 64, 64)], &[1, 8], &[1], &CONTENDERS);
        for drawing in drawings(&run) {
            assert!(drawing.svg().contains("a&lt;b&gt;&amp; \"c\" 64→64"));
        }
    }

    #[test]
    fn places_labels_apart_and_near() {
        assert_eq!(apart(&[10., 50., 30.], 15., 0., 100.), [10., 50., 30.], "free ones stay");
        assert_eq!(apart(&[50., 50.], 10., 0., 100.), [45., 55.], "a pair shares the way");
        assert_eq!(apart(&[99., 98., 97.], 10., 0., 100.), [100., 90., 80.], "within the end, in order");
        assert_eq!(apart(&[1., 2.], 10., 0., 100.), [0., 10.], "within the start");
        assert_eq!(apart(&[], 10., 0., 100.), [0f32; 0]);
    }

    #[test]
    fn chooses_ticks() {
        assert_eq!(log_ticks(0.6, 3.9, 2., &[1., 1.5]), [0.75, 1., 1.5, 2., 3.]);
        assert_eq!(log_ticks(0.4, 9., 2., &[1., 1.5]), [0.5, 1., 2., 4., 8.]);
        assert!(log_ticks(1e-12, 1e12, 10., &[1.]).len() < 10);
        let texts = [ratio(0.75), ratio(1.), ratio(20.), ratio(128.), seconds(2e-5), seconds(0.001), power(1e-7)];
        assert_eq!(texts, ["0.75×", "1×", "20×", "128×", "20 µs", "1 ms", "10⁻⁷"]);
    }

    #[test]
    fn chooses_evenly() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&all, 4), [&0, &3, &6, &9]);
        assert_eq!(spread(&all[..2], 4), [&0, &1]);
        assert!(spread(&all[..0], 4).is_empty());
        let texts = [on_threads(&[1]), on_threads(&[2]), on_threads(&[1, 2]), on_threads(&[1, 2, 4])];
        assert_eq!(texts, ["1 thread", "2 threads", "1 and 2 threads", "1, 2 and 4 threads"]);
    }
}
