//! What a report tells of each layer: the worst row, what became 0, and which scheme would lose less.

use crate::{floats, folder, pytorch, quantize, store};
use fbgemm::{CheckpointOptions, Int8Scheme, LinearScheme, QuantizeOptions, QuantizeReport, quantize_weight};
use fbgemm_testkit::random::normal;

const N: usize = 16;
const K: usize = 32;

fn report(name: &str, weight: &[f32], options: &CheckpointOptions) -> QuantizeReport {
    let path = folder(name).join("in.safetensors");
    store(&path, &[floats("x.weight", &[N, K], weight)]);
    quantize(&path, &path.with_file_name("out.safetensors"), options).unwrap()
}

/// ‖w − real‖ / ‖w‖ of each row, by the definition.
fn row_errors(weight: &[f32]) -> Vec<f64> {
    let q = quantize_weight(weight, N, K).unwrap();
    let error = |(weight, data): (&[f32], &[i8])| {
        let (mut error, mut size) = (0.0, 0.0);
        for (&w, &value) in weight.iter().zip(data) {
            let real = f64::from(q.scale()) * f64::from(i32::from(value) - q.zero_point());
            error += (f64::from(w) - real).powi(2);
            size += f64::from(w).powi(2);
        }
        (error / size).sqrt()
    };
    weight.chunks(K).zip(q.data().chunks(K)).map(error).collect()
}

#[test]
fn the_worst_row_and_the_share_that_became_0_are_told() {
    // One row of large weights: all others lie below one step.
    let mut weight = normal(N * K, 1, 1e-4);
    weight[..K].copy_from_slice(&normal(K, 2, 1e2));
    weight[K] = 0.0; // which was 0 before
    let about = report("report-worst", &weight, &pytorch());
    let layer = about.layers[0].outcome.unwrap();
    let worst = row_errors(&weight).into_iter().fold(0.0, f64::max);
    assert!((layer.worst_row_error - worst).abs() < 1e-12, "{} {worst}", layer.worst_row_error);
    assert!(layer.relative_error < 0.01 && worst == 1.0, "{layer:?}");
    let q = quantize_weight(&weight, N, K).unwrap();
    let zeroed = weight.iter().zip(q.data()).filter(|&(&w, &v)| w != 0.0 && i32::from(v) == q.zero_point()).count();
    assert!(zeroed > (N - 2) * K, "{zeroed}");
    assert_eq!(layer.zeroed_share, zeroed as f64 / (N * K - 1) as f64);
}

#[test]
fn a_layer_that_loses_much_names_the_scheme_that_loses_less_with_its_figures() {
    // Rows of very different sizes: a scale for each pays.
    let mut rows = normal(N * K, 1, 1e-2);
    rows[..K].copy_from_slice(&normal(K, 2, 1e4));
    // One column of very large weights: no scale of a row helps, fp16 does.
    let mut column = normal(N * K, 3, 1.0);
    (0..N).for_each(|row| column[row * K] = 1e4);
    let accurate = || CheckpointOptions::new(QuantizeOptions::new(Int8Scheme::accurate()));
    let per_channel = Int8Scheme { weights: Int8Scheme::pytorch().weights.per_channel(), ..Int8Scheme::pytorch() };
    for (weight, options, better) in [
        (&rows, pytorch(), LinearScheme::from(per_channel)),
        (&column, pytorch(), LinearScheme::Fp16),
        (&column, accurate(), LinearScheme::Fp16),
    ] {
        let given = report("report-better", weight, &options);
        let layer = given.layers[0].outcome.unwrap();
        let found = layer.better.unwrap();
        assert_eq!(found.scheme, better);
        // Its figures are those that quantizing so gives.
        let other = report("report-better", weight, &QuantizeOptions::new(better).into()).layers[0].outcome.unwrap();
        assert_eq!((found.relative_error, found.worst_row_error), (other.relative_error, other.worst_row_error));
        let line = format!(
            "x loses much: by {better} its error is {:.5}, of its worst row {:.5}, not {:.5} and {:.5}\n",
            other.relative_error, other.worst_row_error, layer.relative_error, layer.worst_row_error
        );
        assert!(given.to_string().ends_with(&line), "{line}{given}");
        assert!(
            !report("report-better", weight, &QuantizeOptions::new(better).into()).to_string().contains("loses much")
        );
    }
    let usual = report("report-better", &normal(N * K, 1, 1.0), &pytorch());
    assert!(!usual.to_string().contains("loses much"), "{usual}");
    assert_eq!(usual.layers[0].outcome.unwrap().better, None);
}

#[test]
fn names_are_printed_with_their_control_characters_escaped() {
    let path = folder("report-names").join("in.safetensors");
    let name = "a\u{1b}[31m\n\u{85}b\u{7f}";
    store(
        &path,
        &[floats(&format!("{name}.weight"), &[N, K], &normal(N * K, 1, 1.0)), floats("c\r", &[2, 2], &[1.0; 4])],
    );
    let report = quantize(&path, &path.with_file_name("out.safetensors"), &pytorch()).unwrap();
    let said = report.to_string();
    assert!(said.contains(r"a\u{1b}[31m\n\u{85}b\u{7f}") && said.contains(r"c\r"), "{said}");
    assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
    assert_eq!(report.layers[0].name, name);
}
