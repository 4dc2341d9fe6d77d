//! Matrices of the crate `ndarray` as inputs and outputs: the bits of the same rows as slices, whatever their layout.

use fbgemm::{Element, Error, Int8Scheme, Linear, QuantizeOptions, QuantizedLinear, quantize_modules};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::random::normal;
use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

const N: usize = 24;
const K: usize = 40;

fn layer() -> QuantizedLinear {
    QuantizedLinear::new(&normal(N * K, 1, 0.1), Some(normal(N, 2, 1.0)), N, K, Int8Scheme::accurate()).unwrap()
}

fn matrix(rows: usize) -> Array2<f32> {
    Array2::from_shape_vec((rows, K), normal(rows * K, 3, 4.0)).unwrap()
}

/// The same matrix in every layout that a view can have: standard, column by column, every second element of a larger
/// one, and backwards.
fn layouts(matrix: &Array2<f32>, each: impl Fn(ArrayView2<f32>)) {
    let (rows, columns) = matrix.dim();
    let columns_first = matrix.t().as_standard_layout().into_owned();
    let mut sparse = Array2::from_elem((2 * rows, 2 * columns), f32::NAN);
    sparse.slice_mut(s![..;2, ..;2]).assign(matrix);
    let mut wide = Array2::from_elem((rows, columns + 3), f32::NAN);
    wide.slice_mut(s![.., 1..columns + 1]).assign(matrix);
    let backwards = matrix.slice(s![..;-1, ..;-1]).as_standard_layout().into_owned();
    each(matrix.view());
    each(columns_first.t());
    each(sparse.slice(s![..;2, ..;2]));
    each(wide.slice(s![.., 1..columns + 1]));
    each(backwards.slice(s![..;-1, ..;-1]));
}

#[test]
fn every_layout_gives_the_bits_of_rows_in_a_slice() {
    let layer = layer();
    for rows in [0, 1, 2, 9] {
        let input = matrix(rows);
        let expected = layer.forward(input.as_slice().unwrap()).unwrap();
        layouts(&input, |view| {
            let output = layer.forward_array(view).unwrap();
            assert_eq!(output.dim(), (rows, N));
            assert_eq!(bits(output.as_slice().unwrap()), bits(&expected), "{:?}", view.strides());
            // Outputs in standard layout and not.
            let mut into = Array2::zeros((rows, N));
            layer.forward_array_into(view, into.view_mut()).unwrap();
            assert_eq!(into, output);
            let mut columns_first = Array2::zeros((N, rows));
            layer.forward_array_into(view, columns_first.view_mut().reversed_axes()).unwrap();
            assert_eq!(columns_first.t(), output);
            let mut larger = Array2::from_elem((rows, N + 2), 7.0);
            layer.forward_array_into(view, larger.slice_mut(s![.., 1..N + 1])).unwrap();
            assert_eq!(larger.slice(s![.., 1..N + 1]), output);
            assert!(larger.index_axis(Axis(1), 0).iter().chain(larger.index_axis(Axis(1), N + 1)).all(|&x| x == 7.0));
        });
    }
}

#[test]
fn layers_of_every_kind_take_matrices_of_every_element_type() {
    fn check<T: Element + PartialEq + std::fmt::Debug>(layer: &Linear, values: &[f32], from: impl Fn(f32) -> T) {
        let values: Vec<T> = values.iter().map(|&x| from(x)).collect();
        let output = layer.forward_array(ArrayView2::from_shape((3, K), &values).unwrap()).unwrap();
        assert_eq!(output.as_slice().unwrap(), layer.forward(&values).unwrap());
    }
    let float = Linear::new(normal(N * K, 1, 0.1), None, N, K).unwrap();
    let mut int8 = float.clone();
    quantize_modules(&mut int8, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    let mut fp16 = float.clone();
    quantize_modules(&mut fp16, &QuantizeOptions::new(fbgemm::LinearScheme::Fp16)).unwrap();
    let values = normal(3 * K, 5, 4.0);
    for layer in [float, int8, fp16] {
        check(&layer, &values, |x| x);
        check(&layer, &values, f64::from);
        check(&layer, &values, f16::from_f32);
        check(&layer, &values, bf16::from_f32);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors_and_leave_the_output() {
    let layer = layer();
    let wrong = |what, given, expected| Error::WrongLength { what, given, expected };
    // As many elements as fit, in rows of another length.
    let halves = Array2::from_elem((4, K / 2), 1.0f32);
    assert_eq!(layer.forward_array(halves.view()).unwrap_err(), wrong("a row of the input", K / 2, K));
    let input = matrix(2);
    let refused = |rows, columns, expected: Error| {
        let mut output = vec![7.0f32; rows * columns];
        let view = ArrayViewMut2::from_shape((rows, columns), &mut output).unwrap();
        assert_eq!(layer.forward_array_into(input.view(), view), Err(expected));
        assert!(output.iter().all(|&y| y == 7.0));
    };
    refused(4, N / 2, wrong("a row of the output", N / 2, N));
    refused(3, N, wrong("a column of the output", 3, 2));
    let mut bad = matrix(2);
    bad[[1, 3]] = f32::NAN;
    // The position in the rows one behind the other, also where the columns are.
    let columns_first = bad.t().as_standard_layout().into_owned();
    for view in [bad.view(), columns_first.t()] {
        let error = layer.forward_array(view).unwrap_err();
        assert!(matches!(error, Error::NotFinite { what: "input", index, .. } if index == K + 3), "{error}");
    }
}
