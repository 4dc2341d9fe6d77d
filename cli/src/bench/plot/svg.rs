//! A drawing as SVG, text as text.

use super::marks::{Anchor, Color, Drawing, EDGE, Mark, WIDTH};
use std::fmt::Write as _;

impl Drawing {
    /// The drawing as SVG, text as text.
    pub fn svg(&self) -> String {
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
}
