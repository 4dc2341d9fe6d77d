//! Texts: how wide they are, what is cut off or wrapped, and where labels go that would lie on each other.

use super::marks::LABEL;
use crate::bench::result::Case;

/// The widths of the characters from the space to the tilde in DejaVu Sans, in units of which an em has [`EM`]. Other
/// fonts that may be used instead are as wide or narrower. A table, so that a machine without fonts draws the same.
const REGULAR: [u16; 95] = [
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651, 690, 1303, 1303, 1303, 1303, 1303,
    1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087, 2048, 1401, 1405, 1430, 1577, 1294, 1178, 1587,
    1540, 604, 604, 1343, 1141, 1767, 1532, 1612, 1235, 1612, 1423, 1300, 1251, 1499, 1401, 2025, 1403, 1251, 1403,
    799, 690, 799, 1716, 1024, 1024, 1255, 1300, 1126, 1300, 1260, 721, 1300, 1298, 569, 569, 1186, 569, 1995, 1298,
    1253, 1300, 1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075, 1303, 690, 1303, 1716,
];
/// As above, bold.
const BOLD: [u16; 95] = [
    713, 934, 1067, 1716, 1425, 2052, 1786, 627, 936, 936, 1071, 1716, 778, 850, 778, 748, 1425, 1425, 1425, 1425,
    1425, 1425, 1425, 1425, 1425, 1425, 819, 819, 1716, 1716, 1716, 1188, 2048, 1585, 1561, 1503, 1700, 1399, 1399,
    1681, 1714, 762, 762, 1587, 1305, 2038, 1714, 1741, 1501, 1741, 1577, 1475, 1397, 1663, 1585, 2259, 1579, 1483,
    1485, 936, 748, 936, 1716, 1024, 1024, 1382, 1466, 1214, 1466, 1389, 891, 1466, 1458, 702, 702, 1362, 702, 2134,
    1458, 1407, 1466, 1466, 1010, 1219, 979, 1458, 1335, 1892, 1321, 1335, 1192, 1458, 748, 1458, 1716,
];
const EM: f32 = 2048.;

/// How wide a text is.
pub fn width(text: &str, size: f32, bold: bool) -> f32 {
    let of = |c: char| match (c, (c as usize).checked_sub(' ' as usize)) {
        (_, Some(i @ 0..95)) => {
            if bold {
                BOLD[i]
            } else {
                REGULAR[i]
            }
        }
        ('µ', _) => {
            if bold {
                1507
            } else {
                1303
            }
        }
        ('·', _) => {
            if bold {
                778
            } else {
                651
            }
        }
        ('→' | '×' | '−', _) => 1716,
        ('⁻' | '¹' | '²' | '³' | '⁰' | '⁴'..='⁹', _) => 1081,
        _ => 2048, // nothing is wider
    };
    text.chars().map(|c| f32::from(of(c)) * size / EM).sum()
}

/// The text, its start cut off where it is wider than `most`: of a layer's name the end tells more.
pub fn shortened(text: &str, size: f32, bold: bool, most: f32) -> String {
    if width(text, size, bold) <= most {
        return text.to_string();
    }
    let cut = text.char_indices().skip(1).map(|(i, _)| format!("…{}", &text[i..]));
    cut.into_iter().find(|text| width(text, size, bold) <= most).unwrap_or_else(|| "…".to_string())
}

/// The text in lines no wider than `most`, broken at `separator`.
pub fn wrapped(text: &str, separator: &str, size: f32, most: f32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(separator) {
        let longer = lines.last().map(|line| format!("{line}{separator}{word}"));
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) if width(&longer, size, false) <= most => *line = longer,
            _ => lines.push(shortened(word, size, false, most)),
        }
    }
    lines
}

/// A contender with its arithmetic.
pub fn kind(contender: &str, int8: bool) -> String {
    match int8 {
        true if contender.ends_with("fp16") => contender.to_string(),
        true => format!("{contender}, int8"),
        false => format!("{contender}, fp32"),
    }
}

/// A layer's name and shape, the name cut short to fit into `most`.
pub fn layer_name(case: &Case, most: f32) -> String {
    let shape = format!("{}→{}", case.in_features, case.out_features);
    let name = format!("{} ", case.layer.trim());
    let room = most - width(&shape, LABEL, false);
    // A layer that the user gave by its shape has no other name, as "384x1536".
    let by_shape =
        case.layer.split_once(['x', '×']).is_some_and(|(a, b)| [a, b].iter().all(|n| n.parse::<usize>().is_ok()));
    let nameless = by_shape || case.layer.trim().is_empty();
    if nameless || room < 20. { shape } else { shortened(&name, LABEL, false, room) + &shape }
}

/// Names of panels: only what differs between them.
pub struct Names {
    pub sources: bool,
    pub threads: bool,
}

impl Names {
    pub fn new(cases: &[&Case]) -> Self {
        Names {
            sources: cases.iter().any(|case| case.source != cases[0].source),
            threads: cases.iter().any(|case| case.threads != cases[0].threads),
        }
    }

    pub fn panel(&self, source: &str, threads: usize) -> String {
        let parts = [self.sources.then(|| source.to_string()), self.threads.then(|| on_threads(&[threads]))];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// "1 thread", "1 and 2 threads".
pub fn on_threads(threads: &[usize]) -> String {
    let texts: Vec<String> = threads.iter().map(usize::to_string).collect();
    match texts.as_slice() {
        [one] if one == "1" => "1 thread".to_string(),
        [but_last @ .., last] if !but_last.is_empty() => format!("{} and {last} threads", but_last.join(", ")),
        all => format!("{} threads", all.join(", ")),
    }
}

/// Where to put labels that want to be at `wanted`, each at least `gap` from the next, between `low` and `high` where
/// they fit: as near as can be to where they want to be, by least squares.
pub fn apart(wanted: &[f32], gap: f32, low: f32, high: f32) -> Vec<f32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    // With each label's share of the gaps taken off, they only have to ascend: neighbours that don't take their mean.
    let mut blocks: Vec<(f32, usize)> = Vec::new();
    for (rank, i) in order.iter().enumerate() {
        let (mut sum, mut count) = (wanted[*i] - rank as f32 * gap, 1);
        while let Some((s, c)) = blocks.pop_if(|(s, c)| *s / *c as f32 > sum / count as f32) {
            (sum, count) = (sum + s, count + c);
        }
        blocks.push((sum, count));
    }
    let highest = (high - wanted.len().saturating_sub(1) as f32 * gap).max(low);
    let placed = blocks.iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / *count as f32, *count));
    let mut places = vec![0.; wanted.len()];
    for (rank, (i, place)) in order.into_iter().zip(placed).enumerate() {
        places[i] = place.clamp(low, highest) + rank as f32 * gap;
    }
    places
}
