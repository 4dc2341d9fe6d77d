//! The drawings: speed-up, time and error of layers, and time of embedding tables, of recurrent layers and of an
//! encoder.

use super::axes::{Scale, good, power, ratio, seconds};
use super::labels::{Names, kind, layer_name, shortened, width};
use super::marks::{Anchor, BAND, COLORS, DOT, Drawing, GRID, HEADING, INK, LABEL, MARGIN, SOFT, WIDTH, look, middle};
use super::panels::{Conditions, Panel, Series, Value, Words, label_width};
use crate::bench::result::{
    Case, EncoderCase, EncoderRun, RecurrentCase, RecurrentTiming, Run, TableCase, TableTiming, table_shape,
};

// More than these are not readable at a glance; what is left out is said.
const MOST_PANELS: usize = 12;
const FEW_PANELS: usize = 6;
const MOST_LINES: usize = 2 * COLORS.len();
const MOST_ROWS: usize = 24;
const BATCH: &str = "batch size (rows of input)";

/// Speed-up over the best fp32 contender by batch size: a panel for each source and number of threads, a line for each
/// shape.
pub fn speed_up(run: &Run, cases: &[&Case]) -> Option<Drawing> {
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
            label: layer_name(cases[0], most),
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
    let page = Drawing::page("How many times faster int8 is than fp32", &subtitle);
    let words = Words { y: "speed-up over the best fp32", x: BATCH, losing: Some("below 1×: int8 is slower") };
    Some(page.panels(&Conditions::of(run, &cases), &panels, words))
}

/// Time for a call by batch size: a panel for each shape, a line for each contender.
pub fn time(run: &Run, cases: &[&Case]) -> Drawing {
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
                let label = shortened(&kind(contender, *int8), LABEL, i == 0, most);
                series.push(Series { label, look: look(i), main: i == 0, points });
            }
        }
        // Without a single good time there is no range, and nothing to draw in it.
        let points = || series.iter().flat_map(|series| &series.points);
        let low = points().map(|point| point.low).reduce(f64::min).unwrap_or(1e-6);
        let high = points().map(|point| point.high).fold(low, f64::max);
        let y = Scale::new(low, high, 10., &[1., 2., 5.], seconds);
        // Both parts have to be readable, however long.
        let panel = shortened(&names.panel(source, *threads), HEADING, true, 180.);
        let layer = layer_name(cases[0], 240.);
        let heading = if panel.is_empty() { layer } else { format!("{panel}: {layer}") };
        // Ours is drawn last, on top.
        series.reverse();
        panels.push(Panel { heading, y, series });
    }
    let scales = if panels.len() > 1 { " Each panel has its own scale." } else { "" };
    let subtitle = format!(
        "Medians, with quartiles as thin upright lines; lower is better.{scales} Layers: inputs→outputs.{note}"
    );
    let page = Drawing::page("Time for one call, by batch size", &subtitle);
    let words = Words { y: "time for a call", x: BATCH, losing: None };
    page.panels(&Conditions::of(run, cases), &panels, words)
}

/// Error against float64: a row for each shape, a dot for each contender.
pub fn error(run: &Run, cases: &[&Case]) -> Drawing {
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
    let mut page = Drawing::page("How far results are from exact ones", &subtitle);
    page.legend(&contenders);

    let errors = || cases.iter().flat_map(|case| &case.timings).map(|timing| timing.error).filter(|e| good(*e));
    let x = Scale::new(errors().fold(1e-7, f64::min), errors().fold(1e-2, f64::max), 10., &[1.], power);
    let names: Vec<String> = chosen.iter().map(|(_, cases)| layer_name(cases[0], 320.)).collect();
    let left = MARGIN + names.iter().map(|name| width(name, LABEL, false)).fold(0., f32::max) + 24.;
    let right = WIDTH - MARGIN;
    let place = |value: f64| left + x.at(value) * (right - left);
    // int8 and fp32 lie far apart, and share lanes.
    let lanes = |int8: bool| contenders.iter().filter(move |(_, kind)| *kind == int8);
    let height = (lanes(true).count().max(lanes(false).count()) as f32 * LANE + 8.).max(26.);

    let top = page.height;
    let mut middles = Vec::new();
    for (i, (((source, _), _), name)) in chosen.iter().zip(&names).enumerate() {
        if sources.len() > 1 && (i == 0 || *source != chosen[i - 1].0.0) {
            let text = shortened(source, LABEL, true, left - MARGIN - 8.);
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
    page.footer(&Conditions::of(run, cases));
    page
}

/// Time for a row by the length of bags: a panel for each table's shape, a line for each contender. PyTorch's have the
/// colours of this crate's, and rings.
pub fn tables(run: &Run) -> Option<Drawing> {
    let timed = || run.tables.iter().flat_map(|case| &case.timings).filter(|timing| good(timing.median));
    let mut names: Vec<&str> = Vec::new();
    for timing in timed() {
        if !names.contains(&timing.contender.as_str()) {
            names.push(&timing.contender);
        }
    }
    // A format is the last word of all names but that of plain loops.
    let format = |name: &str| name.rsplit(' ').next().unwrap_or_default().to_string();
    let ours: Vec<&str> = names.iter().copied().filter(|name| format(name) == *name).collect();
    let color = |name: &str| match ours.iter().position(|ours| format(name) == **ours) {
        Some(i) => (look(i).0, name != ours[i]),
        None => look(ours.len()),
    };
    let low = timed().map(|timing| timing.low).filter(|low| good(*low)).reduce(f64::min)?;
    let high = timed().map(|timing| timing.high).filter(|high| good(*high)).fold(low, f64::max);
    let mut shapes: Vec<(usize, usize)> = run.tables.iter().map(|case| (case.rows, case.dimension)).collect();
    shapes.dedup();
    let most = label_width(shapes.len());
    let panels: Vec<Panel> = shapes
        .iter()
        .map(|shape| {
            let cases = || run.tables.iter().filter(|case| (case.rows, case.dimension) == *shape);
            let value = |case: &TableCase, timing: &TableTiming| Value {
                batch: case.bag,
                value: timing.median,
                low: if good(timing.low) { timing.low } else { timing.median },
                high: if good(timing.high) { timing.high } else { timing.median },
            };
            let series = names.iter().map(|name| {
                let of_name = |timing: &&TableTiming| timing.contender == *name && good(timing.median);
                let points = cases().filter_map(|case| Some(value(case, case.timings.iter().find(of_name)?))).collect();
                let main = ours.contains(name);
                Series { label: shortened(name, LABEL, main, most), look: color(name), main, points }
            });
            Panel {
                heading: table_shape(shape.0, shape.1),
                y: Scale::new(low, high, 10., &[1., 2., 5.], seconds),
                series: series.filter(|series: &Series| !series.points.is_empty()).collect(),
            }
        })
        .collect();
    let subtitle = "Medians, with quartiles as thin upright lines; lower is better. Tables: rows x elements. Formats by their names are this \
                    crate's, rings PyTorch's operators, called from Python. All panels have one scale.";
    let page = Drawing::page("Time to look up a row of an embedding table, by the length of bags", subtitle);
    let conditions = Conditions { machine: &run.machine, threads: vec![1], caches: "random rows" };
    Some(page.panels(&conditions, &panels, Words { y: "time for a row", x: "rows of a bag", losing: None }))
}

/// Time for a step of recurrent layers by the size of their state: a panel for each number of rows and steps. Of what is in
/// fp32 the best alone.
pub fn recurrent(run: &Run) -> Option<Drawing> {
    const BEST: &str = "best fp32";
    type Best<'a> = (&'a str, &'a RecurrentTiming);
    fn chosen(case: &RecurrentCase) -> impl Iterator<Item = Best<'_>> {
        let timed = || case.timings.iter().filter(|timing| good(timing.median));
        let best = timed().filter(|timing| !timing.quantized).min_by(|a, b| a.median.total_cmp(&b.median));
        let quantized = timed().filter(|timing| timing.quantized).map(|timing| (timing.contender.as_str(), timing));
        quantized.chain(best.map(|best| (BEST, best)))
    }
    let cases = || run.recurrent.iter().filter(|case| case.steps > 0);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in cases().flat_map(chosen) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = |case: &RecurrentCase, timing: &RecurrentTiming| {
        let a_step = |seconds: f64| if good(seconds) { seconds } else { timing.median } / case.steps as f64;
        let [value, low, high] = [timing.median, timing.low, timing.high].map(a_step);
        Value { batch: case.hidden, value, low, high }
    };
    let values = || cases().flat_map(|case| chosen(case).map(move |(_, timing)| value(case, timing)));
    let low = values().map(|value| value.low).reduce(f64::min)?;
    let high = values().map(|value| value.high).fold(low, f64::max);
    let mut kinds: Vec<(&str, usize, usize)> = Vec::new();
    for case in cases() {
        let kind = (case.layer.as_str(), case.batch, case.steps);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let most = label_width(kinds.len());
    let panels: Vec<Panel> = kinds
        .into_iter()
        .map(|kind| {
            let of_kind = || cases().filter(|case| (case.layer.as_str(), case.batch, case.steps) == kind);
            let series = names.iter().enumerate().map(|(i, name)| {
                let of_name = |case: &RecurrentCase| {
                    chosen(case).find(|(of, _)| of == name).map(|(_, timing)| value(case, timing))
                };
                let main = name.starts_with(crate::bench::OURS);
                let (label, points) = (shortened(name, LABEL, main, most), of_kind().filter_map(of_name).collect());
                Series { label, look: look(i), main, points }
            });
            let (layer, batch, steps) = kind;
            let [rows, steps] = [(batch, "row"), (steps, "step")]
                .map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
            Panel {
                heading: format!("{layer}, {rows}, {steps}"),
                y: Scale::new(low, high, 10., &[1., 2., 5.], seconds),
                series: series.filter(|series: &Series| !series.points.is_empty()).collect(),
            }
        })
        .collect();
    let subtitle = "Medians, with quartiles as thin upright lines; lower is better. As many inputs as the state has. PyTorch and ONNX \
                    Runtime are called from Python, once for a sequence. All panels have one scale.";
    let page = Drawing::page("Time for a step of a recurrent layer, by the size of its state", subtitle);
    let conditions = Conditions { machine: &run.machine, threads: vec![1], caches: "warm" };
    Some(page.panels(&conditions, &panels, Words { y: "time for a step", x: "hidden state", losing: None }))
}

/// Processor time for a text by the number of texts of a call: a panel for each length and number of threads.
pub fn encoder(run: &EncoderRun) -> Option<Drawing> {
    let names = run.contenders();
    let value = |case: &EncoderCase, name: &str| {
        let of_name = case.timings.iter().find(|timing| timing.contender == name && good(timing.processor))?;
        let value = of_name.processor / case.texts as f64;
        Some(Value { batch: case.texts, value, low: value, high: value })
    };
    let values = || run.cases.iter().flat_map(|case| names.iter().filter_map(move |name| value(case, name)));
    let low = values().map(|value| value.low).reduce(f64::min)?;
    let high = values().map(|value| value.high).fold(low, f64::max);
    let kind = |case: &EncoderCase| (case.threads, case.tokens.clone());
    let mut kinds: Vec<(usize, String)> = run.cases.iter().map(kind).collect();
    kinds.dedup();
    let most = label_width(kinds.len());
    let panels: Vec<Panel> = kinds
        .into_iter()
        .map(|kind| {
            let of_kind = || run.cases.iter().filter(|case| (case.threads, &case.tokens) == (kind.0, &kind.1));
            let series = names.iter().enumerate().map(|(i, name)| {
                let (main, points) = (i == 0, of_kind().filter_map(|case| value(case, name)).collect());
                Series { label: shortened(name, LABEL, main, most), look: look(i), main, points }
            });
            let threads = if kind.0 == 1 { "1 thread".to_string() } else { format!("{} threads", kind.0) };
            let heading = match &*kind.1 {
                "mixed" => format!("8 to 128 tokens, {threads}"),
                tokens => format!("{tokens} tokens, {threads}"),
            };
            let series = series.filter(|series: &Series| !series.points.is_empty()).collect();
            Panel { heading, y: Scale::new(low, high, 10., &[1., 2., 5.], seconds), series }
        })
        .collect();
    let subtitle = "Processor time of all threads, the least of several samples; lower is better. Others run as processes of their \
                    own, on the same tokens. All panels have one scale.";
    let page = Drawing::page("Time to embed a text with all-MiniLM-L6-v2, by the number of texts of a call", subtitle);
    let mut threads: Vec<usize> = run.cases.iter().map(|case| case.threads).collect();
    threads.dedup();
    let conditions = Conditions { machine: &run.machine, threads, caches: "warm" };
    Some(page.panels(
        &conditions,
        &panels,
        Words { y: "processor time for a text", x: "texts of a call", losing: None },
    ))
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
pub fn spread<T>(all: &[T], most: usize) -> Vec<&T> {
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
