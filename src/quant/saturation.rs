//! What the rows of a weight add up to, and how often sums of two products can leave 16 bits.

/// What one row adds up to.
pub(crate) struct RowSums {
    /// Σ q − zero_point · in_features.
    pub(crate) col_offset: i64,
    /// Σ |q − zero_point|.
    pub(crate) reach: u64,
    /// Σ over neighbouring pairs of how far the 16-bit clamp of CPUs without VNNI can move a sum of two products.
    pub(crate) clamp: u64,
    /// How many pairs it can move at all.
    pub(crate) saturating: u64,
}

/// `row` of a weight with this zero point.
pub(crate) fn row_sums(row: &[i8], zero_point: i32) -> RowSums {
    let mut sums = RowSums { col_offset: -i64::from(zero_point) * row.len() as i64, reach: 0, clamp: 0, saturating: 0 };
    // In pieces whose sums fit 32 bits, which vectorize; an even number each, so that no pair is split.
    for piece in row.chunks(1 << 15) {
        sums.col_offset += i64::from(piece.iter().map(|&q| i32::from(q)).sum::<i32>());
        sums.reach += u64::from(piece.iter().map(|&q| (i32::from(q) - zero_point).unsigned_abs()).sum::<u32>());
        let (mut clamp, mut saturating) = (0u32, 0u32);
        for pair in piece.chunks_exact(2) {
            let (a, b) = (i32::from(pair[0]), i32::from(pair[1]));
            let (above, below) = (a.max(0) + b.max(0), a.min(0) + b.min(0));
            // The input's part of a product is at most 255.
            let over = (255 * above - i32::from(i16::MAX)).max(i32::from(i16::MIN) - 255 * below).max(0) as u32;
            clamp += over;
            saturating += u32::from(over > 0);
        }
        sums.clamp += u64::from(clamp);
        sums.saturating += u64::from(saturating);
    }
    sums
}
