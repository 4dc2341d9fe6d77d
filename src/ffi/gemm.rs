//! The product of fp32 matrices, by the crate `gemm`: for layers that stay in fp32.

/// y += x·Wᵀ in fp32, on this thread: x m × k, W n × k, y m × n, all row-major.
///
/// # Panics
/// If a length is not what its dimensions say.
pub(crate) fn multiply_add(x: &[f32], weight: &[f32], y: &mut [f32], (m, n, k): (usize, usize, usize)) {
    let fits = |len: usize, rows: usize, columns: usize| rows.checked_mul(columns) == Some(len);
    assert!(fits(x.len(), m, k) && fits(weight.len(), n, k) && fits(y.len(), m, n));
    let (row, wide) = (k as isize, n as isize);
    let (one, add, plain, alone) = (1.0, true, false, gemm::Parallelism::None);
    // SAFETY: the three matrices have the lengths that their dimensions and strides (column's, row's) say, asserted
    // just above.
    unsafe {
        let (x, weight, y) = (x.as_ptr(), weight.as_ptr(), y.as_mut_ptr());
        gemm::gemm(m, n, k, y, 1, wide, add, x, 1, row, weight, row, 1, one, one, plain, plain, plain, alone);
    }
}
