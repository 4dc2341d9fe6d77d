//! Marks on a page: what a drawing consists of, and the colours and sizes that all share.

/// A colour's red, green and blue.
pub type Color = [u8; 3];

/// The colours of Okabe and Ito, which the colour-blind tell apart, but for yellow, which is too light for lines.
pub const COLORS: [Color; 7] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [0, 0, 0]];
pub const WHITE: Color = [255; 3];
pub const INK: Color = [32; 3];
pub const SOFT: Color = [88; 3];
pub const AXIS: Color = [140; 3];
pub const GRID: Color = [222; 3];
pub const BAND: Color = [241; 3];

// Lengths in points.
pub const WIDTH: f32 = 1000.;
pub const MARGIN: f32 = 24.;
pub const SUBTITLE: f32 = 14.;
pub const HEADING: f32 = 15.;
pub const LABEL: f32 = 13.;
pub const FOOTER: f32 = 12.;
/// From a line's last point to its label.
pub const LEADER: f32 = 34.;
/// From a label to the next one below.
pub const GAP: f32 = 17.;
pub const DOT: f32 = 4.5;
/// The width of a dot's edge.
pub const EDGE: f32 = 1.5;

/// Marks on a page `WIDTH` wide, in the order they are drawn.
pub struct Drawing {
    pub height: f32,
    pub title: String,
    pub marks: Vec<Mark>,
}

pub enum Mark {
    Line { points: Vec<(f32, f32)>, color: Color, width: f32 },
    Area { at: (f32, f32), size: (f32, f32), color: Color },
    Dot { at: (f32, f32), radius: f32, fill: Color, edge: Color },
    Text { at: (f32, f32), text: String, size: f32, bold: bool, color: Color, anchor: Anchor },
}

/// What part of a text lies at its place.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// The baseline of a text whose capitals have their middle at `y`.
pub fn middle(y: f32, size: f32) -> f32 {
    y + 0.36 * size
}

impl Drawing {
    pub fn line(&mut self, points: Vec<(f32, f32)>, color: Color, width: f32) {
        self.marks.push(Mark::Line { points, color, width });
    }

    pub fn area(&mut self, at: (f32, f32), size: (f32, f32), color: Color) {
        self.marks.push(Mark::Area { at, size, color });
    }

    /// A dot with a white edge, which keeps those that touch apart, or a ring.
    pub fn dot(&mut self, at: (f32, f32), radius: f32, color: Color, hollow: bool) {
        let (fill, edge) = if hollow { (WHITE, color) } else { (color, WHITE) };
        self.marks.push(Mark::Dot { at, radius, fill, edge });
    }

    pub fn text(&mut self, at: (f32, f32), text: &str, size: f32, bold: bool, color: Color, anchor: Anchor) {
        // XML has no place for control characters, and a checkpoint's names may hold any.
        let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.marks.push(Mark::Text { at, text, size, bold, color, anchor });
    }
}

/// The colour of the `i`th of lines or contenders, and whether its dots are rings.
pub fn look(i: usize) -> (Color, bool) {
    (COLORS[i % COLORS.len()], i / COLORS.len() % 2 == 1)
}
