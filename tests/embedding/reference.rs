//! The same arithmetic in plain Rust, written from the format's description, each float step by itself.

use fbgemm::EmbeddingFormat;
use half::f16;

/// A table with its numbers taken apart.
pub struct Reference {
    format: EmbeddingFormat,
    dimension: usize,
    rows: Vec<Row>,
}

struct Row {
    /// Of floats the values, else the quantized numbers.
    elements: Vec<f32>,
    scale: f32,
    bias: f32,
}

fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

impl Reference {
    /// For values that fp16 holds where the scale or the elements have that type.
    pub fn pack(weight: &[f32], dimension: usize, format: EmbeddingFormat) -> Self {
        let rows = weight.chunks(dimension).map(|row| Row::pack(row, format)).collect();
        Self { format, dimension, rows }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.rows.iter().flat_map(|row| row.bytes(self.format)).collect()
    }

    pub fn unpack(&self) -> Vec<f32> {
        self.rows.iter().flat_map(|row| row.unpack(self.format)).collect()
    }

    /// The sum of these rows, each with its factor.
    pub fn sum(&self, rows: &[(usize, Option<f32>)]) -> Vec<f32> {
        let mut sum = vec![0f32; self.dimension];
        for &(row, factor) in rows {
            let Row { elements, scale, bias } = &self.rows[row];
            for (sum, &x) in sum.iter_mut().zip(elements) {
                *sum = match (self.format, factor) {
                    (EmbeddingFormat::Fp32 | EmbeddingFormat::Fp16, None) => *sum + x,
                    (EmbeddingFormat::Fp32 | EmbeddingFormat::Fp16, Some(factor)) => factor.mul_add(x, *sum),
                    (_, None) => x.mul_add(*scale, *sum + bias),
                    (_, Some(factor)) => x.mul_add(scale * factor, *sum + bias * factor),
                };
            }
        }
        sum
    }
}

impl Row {
    fn pack(row: &[f32], format: EmbeddingFormat) -> Self {
        let low = row.iter().copied().fold(f32::INFINITY, f32::min);
        let high = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let plain = |elements| Self { elements, scale: 1.0, bias: 0.0 };
        match format {
            EmbeddingFormat::Fp32 => plain(row.to_vec()),
            EmbeddingFormat::Fp16 => plain(row.iter().copied().map(half).collect()),
            EmbeddingFormat::Int8 => {
                let range = high - low;
                let steps = 255.0 / (range + 1e-8);
                let elements = row.iter().map(|x| ((x - low) * steps).round_ties_even()).collect();
                Self { elements, scale: range / 255.0, bias: low }
            }
            _ => {
                let most = if format == EmbeddingFormat::Int4 { 15.0 } else { 3.0 };
                let low = half(low);
                let range = high - low;
                let mut scale = half(if range == 0.0 { 1.0 } else { range / most });
                if scale == 0.0 || (1.0 / scale).is_infinite() {
                    scale = 1.0;
                }
                let steps = 1.0 / scale;
                let number = |x: &f32| ((x - low) * steps).round_ties_even().clamp(0.0, most) as u8;
                let elements = row.iter().map(|x| f32::from(number(x))).collect();
                Self { elements, scale, bias: low }
            }
        }
    }

    fn bytes(&self, format: EmbeddingFormat) -> Vec<u8> {
        let mut bytes: Vec<u8> = match format {
            EmbeddingFormat::Fp32 => self.elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
            EmbeddingFormat::Fp16 => self.elements.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            _ => {
                let bits = format.bits();
                let byte = |part: &[f32]| part.iter().rev().fold(0, |byte, &q| byte << (bits % 8) | q as u8);
                self.elements.chunks(8 / bits as usize).map(byte).collect()
            }
        };
        match format {
            EmbeddingFormat::Int8 => bytes.extend([self.scale, self.bias].iter().flat_map(|x| x.to_le_bytes())),
            EmbeddingFormat::Int4 | EmbeddingFormat::Int2 => {
                bytes.extend([self.scale, self.bias].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
            }
            _ => {}
        }
        bytes
    }

    fn unpack(&self, format: EmbeddingFormat) -> Vec<f32> {
        let (scale, bias) = (self.scale, self.bias);
        let vectors = self.elements.len() / 8 * 8;
        let value = |(i, &x): (usize, &f32)| match format {
            EmbeddingFormat::Fp32 | EmbeddingFormat::Fp16 => x,
            // What does not fill a register FBGEMM computes in f64.
            EmbeddingFormat::Int8 if i >= vectors => (f64::from(x) * f64::from(scale) + f64::from(bias)) as f32,
            _ => x.mul_add(scale, bias),
        };
        self.elements.iter().enumerate().map(value).collect()
    }
}
