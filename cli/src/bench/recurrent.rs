//! Recurrent layers, step by step and as sequences: this crate against fp32 by everything that competes, PyTorch's own
//! layers, quantized and not, and ONNX Runtime's.

use super::contender::{Contender, Entry, Layer};
use super::pytorch;
use super::result::{RecurrentCase, RecurrentTiming};
use super::threads::with_crew;
use super::{OURS, blas, fp32};
use crate::table::aligned;
use fbgemm::{
    Activations, Gru, GruCell, InputScheme, Int8Scheme, Linear, LinearScheme, Lstm, LstmCell, QuantizeOptions,
    WeightScheme, quantize_modules,
};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::{calls_in, quartiles, time, turns};
use std::sync::Arc;
use std::time::Duration;

/// Elements of the hidden state, and as many inputs.
const HIDDEN: [usize; 4] = [128, 256, 512, 1024];
const BATCHES: [usize; 2] = [1, 8];
const STEPS: [usize; 3] = [1, 50, 500];
/// What the samples of one contender in one case may take: long sequences have fewer.
const BUDGET: Duration = Duration::from_millis(400);
const SAMPLE: Duration = Duration::from_micros(200);
/// A sample of calls shorter than this has one before it that is not timed.
const WARMED: Duration = Duration::from_millis(5);

/// A kind of layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Lstm,
    Gru,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Lstm => "LSTM",
            Self::Gru => "GRU",
        }
    }

    fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// What was measured, and what was left out, in words.
pub struct Measured {
    pub cases: Vec<RecurrentCase>,
    pub left_out: Vec<String>,
}

/// Measures one kind of layer, on one thread; in a quick run the smallest alone.
pub fn run(kind: Kind, libraries: &[Arc<blas::Blas>], repetitions: usize, quick: bool) -> Result<Measured, String> {
    with_crew(1, |_| {
        let mut entries = fp32::entries();
        entries.extend(blas::entries(libraries).into_iter().filter(|entry| !entry.int8));
        let mut measured = Measured { cases: Vec::new(), left_out: Vec::new() };
        for &hidden in if quick { &HIDDEN[..1] } else { &HIDDEN[..] } {
            for batch in BATCHES {
                for &steps in if quick { &STEPS[..2] } else { &STEPS[..] } {
                    let timings = of_case(kind, &entries, (hidden, batch, steps), repetitions)?;
                    let layer = kind.name().to_string();
                    measured.cases.push(RecurrentCase { layer, hidden, batch, steps, timings });
                }
            }
        }
        in_python(kind, &mut measured, repetitions);
        Ok(measured)
    })?
}

/// One that computes a sequence from a state of zeros, and gives the last state.
type Rival<'a> = Box<dyn FnMut(&mut Vec<f32>) -> Result<(), String> + 'a>;

fn of_case(
    kind: Kind,
    entries: &[Entry],
    (hidden, batch, steps): (usize, usize, usize),
    repetitions: usize,
) -> Result<Vec<RecurrentTiming>, String> {
    let deviation = 1.0 / (hidden as f32).sqrt();
    let outputs = kind.gates() * hidden;
    let [ih, hh] = [1, 2].map(|seed| normal(outputs * hidden, seed, deviation));
    let [bias_ih, bias_hh] = [3, 4].map(|seed| normal(outputs, seed, deviation));
    let of = |weight, bias| Layer { weight, bias, out_features: outputs, in_features: hidden };
    let (of_input, of_hidden) = (of(&ih, &bias_ih), of(&hh, &bias_hh));
    let input = normal(steps * batch * hidden, 5, 1.0);
    let mut rivals: Vec<(String, bool, Rival)> = Vec::new();
    let as_pytorch =
        Int8Scheme { weights: WeightScheme::new(), inputs: InputScheme::new().as_linear_dynamic().reduce_range() };
    let ours: [(&str, LinearScheme); 3] = [
        (OURS, Int8Scheme::accurate().into()),
        ("fbgemm as PyTorch", as_pytorch.into()),
        ("fbgemm fp16", LinearScheme::Fp16),
    ];
    for (name, scheme) in ours {
        let activations = match (name, Activations::as_pytorch()) {
            ("fbgemm as PyTorch", Ok(activations)) => activations,
            _ => Activations::portable(),
        };
        let rival = self::ours(kind, [of_input, of_hidden], scheme, activations, (batch, steps), &input);
        rivals.push((name.to_string(), true, rival.map_err(|e| e.chain())?));
    }
    for entry in entries {
        let made = [(of_input, steps * batch), (of_hidden, batch)].map(|(layer, rows)| (entry.make)(layer, rows, 1));
        let [Ok(Some(ih)), Ok(Some(hh))] = made else { continue };
        let plain = Plain::rival(kind, [ih, hh], (hidden, batch, steps), &input);
        rivals.push((entry.name.clone(), false, Box::new(plain)));
    }
    // Of the same results, nearly.
    let mut states = vec![Vec::new(); rivals.len()];
    let mut least = vec![Duration::MAX; rivals.len()];
    for (i, (_, _, rival)) in rivals.iter_mut().enumerate() {
        for _ in 0..3 {
            let mut done = Ok(());
            least[i] = least[i].min(time(1, || done = rival(&mut states[i])));
            done?;
        }
    }
    let exact = rivals.iter().position(|(_, quantized, _)| !quantized).map_or(0, |first| first);
    for (i, (name, quantized, _)) in rivals.iter().enumerate() {
        let within = if *quantized { 0.25 } else { 1e-3 };
        let furthest = states[i].iter().zip(&states[exact]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if furthest > within || furthest.is_nan() {
            return Err(format!("{name} is {furthest} from {}, expected {within} at most", rivals[exact].0));
        }
    }
    let mut samples = vec![Vec::new(); rivals.len()];
    let most =
        |i: usize| (BUDGET.as_secs_f64() / least[i].max(SAMPLE).as_secs_f64()).clamp(3.0, repetitions.max(3) as f64);
    let most: Vec<usize> = (0..rivals.len()).map(|i| most(i) as usize).collect();
    for i in turns(rivals.len(), repetitions.max(3)) {
        if samples[i].len() < most[i].min(repetitions) {
            let mut done = Ok(());
            if least[i] < WARMED {
                // The others have taken the caches; a service's next step finds its weights there.
                (rivals[i].2)(&mut states[i])?;
            }
            let took = time(calls_in(SAMPLE, least[i]), || {
                if let Err(e) = (rivals[i].2)(&mut states[i]) {
                    done = Err(e);
                }
            });
            done?;
            samples[i].push(took.as_secs_f64());
        }
    }
    let timing = |((contender, quantized, _), samples): ((String, bool, Rival), &mut Vec<f64>)| {
        let [low, median, high] = quartiles(samples);
        RecurrentTiming { contender, quantized, median, low, high }
    };
    Ok(rivals.into_iter().zip(&mut samples).map(timing).collect())
}

fn ours<'a>(
    kind: Kind,
    layers: [Layer; 2],
    scheme: LinearScheme,
    activations: Activations,
    (batch, steps): (usize, usize),
    input: &'a [f32],
) -> fbgemm::Result<Rival<'a>> {
    let linear = |layer: Layer| {
        let Layer { weight, bias, out_features, in_features } = layer;
        Linear::new(weight.to_vec(), Some(bias.to_vec()), out_features, in_features)
    };
    let [ih, hh] = layers.map(linear);
    let options = QuantizeOptions::new(scheme);
    let hidden = layers[0].in_features;
    let mut output = vec![0.0; steps * batch * hidden];
    Ok(match kind {
        Kind::Lstm => {
            let mut lstm = Lstm::new(vec![LstmCell::new(ih?, hh?)?])?.with_activations(activations);
            quantize_modules(&mut lstm, &options)?;
            let mut c = lstm.zero_state(batch)?;
            Box::new(move |h| {
                h.clear();
                h.resize(c.len(), 0.0);
                c.fill(0.0);
                lstm.forward_into(input, h, &mut c, &mut output).map_err(|e| e.chain())
            })
        }
        Kind::Gru => {
            let mut gru = Gru::new(vec![GruCell::new(ih?, hh?)?])?.with_activations(activations);
            quantize_modules(&mut gru, &options)?;
            Box::new(move |h| {
                h.clear();
                h.resize(batch * hidden, 0.0);
                gru.forward_into(input, h, &mut output).map_err(|e| e.chain())
            })
        }
    })
}

/// A layer in fp32 by another library's products, its gates by this crate's own functions, in vectors.
struct Plain<'a> {
    kind: Kind,
    ih: Box<dyn Contender>,
    hh: Box<dyn Contender>,
    input: &'a [f32],
    of_inputs: Vec<f32>,
    of_hidden: Vec<f32>,
    c: Vec<f32>,
    space: Vec<f32>,
    output: Vec<f32>,
    hidden: usize,
}

impl<'a> Plain<'a> {
    fn rival(
        kind: Kind,
        [ih, hh]: [Box<dyn Contender>; 2],
        (hidden, batch, steps): (usize, usize, usize),
        input: &'a [f32],
    ) -> impl FnMut(&mut Vec<f32>) -> Result<(), String> + 'a {
        let (gates, state) = (kind.gates() * hidden * batch, hidden * batch);
        let mut plain = Self {
            kind,
            ih,
            hh,
            input,
            of_inputs: vec![0.0; steps * gates],
            of_hidden: vec![0.0; gates],
            c: vec![0.0; state],
            space: vec![0.0; state],
            output: vec![0.0; steps * state],
            hidden,
        };
        move |h| {
            h.clear();
            h.resize(state, 0.0);
            plain.run(h)
        }
    }

    fn run(&mut self, h: &mut [f32]) -> Result<(), String> {
        let Self { kind, ih, hh, input, of_inputs, of_hidden, c, space, output, hidden } = self;
        c.fill(0.0);
        ih.run(input, of_inputs)?;
        for (of_input, output) in of_inputs.chunks_exact(of_hidden.len()).zip(output.chunks_exact_mut(h.len())) {
            hh.run(h, of_hidden)?;
            step(*kind, *hidden, of_input, of_hidden, h, c, space).map_err(|e| e.chain())?;
            output.copy_from_slice(h);
        }
        Ok(())
    }
}

/// Runs `work` compiled for AVX2, which every CPU that FBGEMM runs on has.
#[inline(always)]
fn wide(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn in_avx2(work: impl FnOnce()) {
            work()
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has both, seen just above.
            return unsafe { in_avx2(work) };
        }
    }
    work()
}

fn step(
    kind: Kind,
    n: usize,
    of_input: &[f32],
    gates: &mut [f32],
    h: &mut [f32],
    c: &mut [f32],
    space: &mut [f32],
) -> fbgemm::Result<()> {
    let activations = Activations::portable();
    let rows = gates.chunks_exact_mut(kind.gates() * n).zip(of_input.chunks_exact(kind.gates() * n));
    for (i, (gates, of_input)) in rows.enumerate() {
        let row = i * n..(i + 1) * n;
        let (h, c, space) = (&mut h[row.clone()], &mut c[row.clone()], &mut space[row]);
        match kind {
            Kind::Lstm => {
                wide(|| gates.iter_mut().zip(of_input).for_each(|(gate, x)| *gate += x));
                activations.sigmoid(&mut gates[..2 * n])?;
                activations.tanh(&mut gates[2 * n..3 * n])?;
                activations.sigmoid(&mut gates[3 * n..])?;
                wide(|| {
                    let (i, f, g) = (&gates[..n], &gates[n..2 * n], &gates[2 * n..3 * n]);
                    for j in 0..n {
                        c[j] = f[j] * c[j] + i[j] * g[j];
                        space[j] = c[j];
                    }
                });
                activations.tanh(space)?;
                wide(|| h.iter_mut().zip(&gates[3 * n..]).zip(&*space).for_each(|((h, o), c)| *h = o * c));
            }
            Kind::Gru => {
                wide(|| gates[..2 * n].iter_mut().zip(of_input).for_each(|(gate, x)| *gate += x));
                activations.sigmoid(&mut gates[..2 * n])?;
                wide(|| {
                    let (reset, of_hidden, of_input) = (&gates[..n], &gates[2 * n..], &of_input[2 * n..]);
                    for j in 0..n {
                        space[j] = of_input[j] + of_hidden[j] * reset[j];
                    }
                });
                activations.tanh(space)?;
                wide(|| {
                    let update = &gates[n..2 * n];
                    for j in 0..n {
                        h[j] = (h[j] - space[j]) * update[j] + space[j];
                    }
                });
            }
        }
    }
    Ok(())
}

/// PyTorch's and ONNX Runtime's own layers, where `python3` has them.
fn in_python(kind: Kind, measured: &mut Measured, repetitions: usize) {
    const SCRIPT: &str = include_str!("recurrent.py");
    let sizes = measured.cases.iter().map(|case| format!("{},{},{}", case.hidden, case.batch, case.steps));
    let head = [kind.name().to_lowercase(), repetitions.to_string(), BUDGET.as_secs_f64().to_string()];
    let arguments: Vec<String> = head.into_iter().chain(sizes).collect();
    let output = match pytorch::python(SCRIPT, &arguments) {
        Ok(output) => output,
        Err(e) => return measured.left_out.push(format!("PyTorch's layers: {e}")),
    };
    for line in output.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["left out", what] => measured.left_out.push(what.to_string()),
            [contender, quantized, case, low, median, high] => {
                let number = |text: &str| text.parse().unwrap_or(f64::NAN);
                let (contender, quantized) = (contender.to_string(), quantized == "quantized");
                let [low, median, high] = [low, median, high].map(number);
                let timing = RecurrentTiming { contender, quantized, median, low, high };
                if let Some(case) = case.parse().ok().and_then(|case: usize| measured.cases.get_mut(case)) {
                    case.timings.push(timing);
                }
            }
            _ => measured.left_out.push(format!("python3 printed {line:?}")),
        }
    }
}

/// For people.
pub fn text(measured: &Measured) -> String {
    let Some(first) = measured.cases.first() else { return String::new() };
    let mut names: Vec<&str> = Vec::new();
    for timing in measured.cases.iter().flat_map(|case| &case.timings) {
        if !names.contains(&timing.contender.as_str()) {
            names.push(&timing.contender);
        }
    }
    let heading = ["hidden", "batch", "steps"].into_iter().chain(names.iter().copied()).chain(["best fp32 / fbgemm"]);
    let mut rows: Vec<Vec<String>> = vec![heading.map(String::from).collect()];
    for case in &measured.cases {
        let mut row = [case.hidden, case.batch, case.steps].map(|size| size.to_string()).to_vec();
        for name in &names {
            let timing = case.timings.iter().find(|timing| timing.contender == *name);
            row.push(
                timing.map_or("-".to_string(), |timing| format!("{:.1}", 1e6 * timing.median / case.steps as f64)),
            );
        }
        row.push(case.speed_up().map_or("-".to_string(), |faster| format!("{faster:.2}")));
        rows.push(row);
    }
    let mut text =
        format!("\n{} of as many inputs as its hidden state has, one thread\n\n{}", first.layer, aligned(&rows, false));
    text += "
Microseconds for a step of all rows of the batch, medians. fbgemm: by channel and row; as PyTorch: what quantize_dynamic
makes of it, bit for bit. Caches are warm. fp32 by a library's products has its gates by this crate's functions; PyTorch and ONNX Runtime
are called from Python, once for a sequence.
";
    for left in &measured.left_out {
        text += &format!("Left out: {left}.\n");
    }
    text
}
