//! Logarithmic axes: their ticks, and how numbers are written beside them.

/// A logarithmic axis.
pub struct Scale {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Scale {
    /// An axis a little wider than `low` to `high`, a factor of four at least, with ticks by [`log_ticks`].
    pub fn new(low: f64, high: f64, base: f64, between: &[f64], label: fn(f64) -> String) -> Self {
        let span = high / low;
        let room = span.powf(0.05).max((4. / span).sqrt());
        let (low, high) = (low / room, high * room);
        Scale { low, high, ticks: log_ticks(low, high, base, between).into_iter().map(|t| (t, label(t))).collect() }
    }

    /// Where `value` lies, from 0 to 1.
    pub fn at(&self, value: f64) -> f32 {
        ((value / self.low).ln() / (self.high / self.low).ln()) as f32
    }
}

/// Whether a value has a place on a logarithmic axis.
pub fn good(value: f64) -> bool {
    value.is_finite() && value > 0.
}

/// The powers of `base` from `low` to `high`, and, where these are few, their products with `between`.
pub fn log_ticks(low: f64, high: f64, base: f64, between: &[f64]) -> Vec<f64> {
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

/// "0.5×", with three digits.
pub fn ratio(value: f64) -> String {
    let digits = (2. - value.log10().floor()).max(0.) as usize;
    let text = format!("{value:.digits$}");
    format!("{}×", if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text })
}

/// "20 µs".
pub fn seconds(value: f64) -> String {
    let (scale, unit) =
        [(1., "s"), (1e-3, "ms"), (1e-6, "µs")].into_iter().find(|(s, _)| value > s * 0.99).unwrap_or((1e-9, "ns"));
    format!("{} {unit}", (value / scale * 10.).round() / 10.)
}

/// "10⁻³".
pub fn power(value: f64) -> String {
    let digits = format!("{}", value.log10().round());
    let raised = |c| "⁻⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth("-0123456789".find(c).unwrap_or(0)).unwrap_or(c);
    format!("10{}", digits.chars().map(raised).collect::<String>())
}
