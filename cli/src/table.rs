//! Tables for the terminal.

/// Rows of cells as text: the first column to the left, the others to the right, a line under the heading and, where
/// the last row is a total, above it.
pub fn aligned(rows: &[Vec<String>], total: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = "-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1));
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let mut cells = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            cells += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        if total && i + 1 == rows.len() {
            text += &format!("{line}\n");
        }
        text += &format!("{}\n", cells.trim_end());
        if i == 0 {
            text += &format!("{line}\n");
        }
    }
    text
}

/// A name or a text from a file as it is safe to print: control characters are escaped.
pub fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}
