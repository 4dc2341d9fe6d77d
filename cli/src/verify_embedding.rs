//! Cases of embedding tables: packing, unpacking, bags and single rows, compared bit for bit.

use crate::verify::{Bits, Outcome, same};
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingIndex, EmbeddingTable};
use fbgemm_testkit::cases::{Case, Element};
use half::f16;

/// A case of `quantized::embedding_bag_*` or, for tables of floats, `F.embedding_bag`.
pub fn embedding_bag(case: &Case) -> Outcome {
    if !["packed", "unpacked", "output"].iter().any(|name| case.has(name)) {
        return Ok(None);
    }
    let format = format_of(case)?;
    let (shape, weight) = weight(case)?;
    let [rows, dimension] = shape;
    let compare = || -> Compared {
        let table = fbgemm::pack_embedding(&weight, rows, dimension, format)?;
        let packed_shape = [rows, table.bytes().len() / rows.max(1)];
        let packed = same(case, "packed", &packed_shape, table.bytes());
        let unpacked = same(case, "unpacked", &shape, &table.unpack()?);
        Ok(packed.and(unpacked).and(if !case.has("output") {
            Ok(())
        } else if case.word("index") == Some("i32") {
            bags::<i32>(case, &table)?
        } else {
            bags::<i64>(case, &table)?
        }))
    };
    outcome(compare())
}

fn bags<I: EmbeddingIndex + Element>(case: &Case, table: &EmbeddingTable) -> Compared {
    let (_, indices) = case.tensor::<I>("indices")?;
    let (_, offsets) = case.tensor::<I>("offsets")?;
    let weights = if case.flag("weighted") { Some(case.tensor::<f32>("per_sample_weights")?.1) } else { None };
    let mut options = BagOptions::new();
    if let Some(weights) = &weights {
        options = options.per_sample_weights(weights);
    }
    if case.flag("include_last_offset") {
        options = options.include_last_offset();
    }
    match case.word("mode") {
        None | Some("sum") => {}
        Some("mean") => options = options.mean(),
        Some(other) => {
            return Err(format!("case {:?}: mode is {other:?}, expected sum or mean", case.name).into());
        }
    }
    if case.has_parameter("padding_idx") {
        options = options.padding_idx(case.number("padding_idx")? as usize);
    }
    let count = offsets.len().saturating_sub(usize::from(case.flag("include_last_offset")));
    let shape = [count, table.dimension()];
    if table.format() == EmbeddingFormat::Fp16 {
        let mut output = vec![f16::ZERO; count * table.dimension()];
        fbgemm::embedding_bag_into(table, &indices, &offsets, options, &mut output)?;
        Ok(same(case, "output", &shape, &output))
    } else {
        let output = fbgemm::embedding_bag(table, &indices, &offsets, options)?;
        Ok(same(case, "output", &shape, &output))
    }
}

/// A case of `quantized::embedding_byte`, `embedding_4bit` or, for tables of floats, `F.embedding`.
pub fn embedding(case: &Case) -> Outcome {
    if !case.has("output") {
        return Ok(None);
    }
    let format = format_of(case)?;
    let dimension = case.number("dim")? as usize;
    let table = if case.has("packed") {
        let (shape, packed) = case.tensor::<u8>("packed")?;
        EmbeddingTable::from_bytes(packed, format, shape.first().copied().unwrap_or(0), dimension)
    } else {
        let ([rows, _], weight) = weight(case)?;
        fbgemm::pack_embedding(&weight, rows, dimension, format)
    };
    outcome(table.map_err(Stop::from).and_then(|table| {
        if case.word("index") == Some("i32") { rows::<i32>(case, &table) } else { rows::<i64>(case, &table) }
    }))
}

fn rows<I: EmbeddingIndex + Element>(case: &Case, table: &EmbeddingTable) -> Compared {
    let (_, indices) = case.tensor::<I>("indices")?;
    let shape = [indices.len(), table.dimension()];
    if table.format() == EmbeddingFormat::Fp16 {
        let mut output = vec![f16::ZERO; indices.len() * table.dimension()];
        fbgemm::embedding_into(table, &indices, &mut output)?;
        Ok(same(case, "output", &shape, &output))
    } else {
        Ok(same(case, "output", &shape, &fbgemm::embedding(table, &indices)?))
    }
}

fn format_of(case: &Case) -> Result<EmbeddingFormat, String> {
    let bits = case.number("bits")?;
    let formats = [
        EmbeddingFormat::Fp32,
        EmbeddingFormat::Fp16,
        EmbeddingFormat::Int8,
        EmbeddingFormat::Int4,
        EmbeddingFormat::Int2,
    ];
    let format = formats.into_iter().find(|format| format.bits() == bits);
    format.ok_or_else(|| format!("case {:?}: bits is {bits}, expected 32, 16, 8, 4 or 2", case.name))
}

/// The weight and its shape; of a table in fp16 it is stored so, and widened here.
fn weight(case: &Case) -> Result<([usize; 2], Vec<f32>), String> {
    let (shape, weight) = if format_of(case)? == EmbeddingFormat::Fp16 {
        let (shape, weight) = case.tensor::<f16>("weight")?;
        (shape, weight.into_iter().map(f16::to_f32).collect())
    } else {
        case.tensor::<f32>("weight")?
    };
    let shape = shape.try_into();
    let shape = shape.map_err(|shape| format!("case {:?}: weight has shape {shape:?}, expected 2", case.name))?;
    Ok((shape, weight))
}

impl Bits for f16 {
    fn bits(&self) -> u64 {
        self.to_bits().into()
    }
}

/// The first difference, if there is one.
type Compared = Result<Result<(), String>, Stop>;

/// Why there is nothing to compare.
enum Stop {
    /// The case is not as it should be.
    BadCase(String),
    /// This crate gave an error where PyTorch gave an output: a difference.
    Refused(fbgemm::Error),
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::BadCase(reason)
    }
}

impl From<fbgemm::Error> for Stop {
    fn from(error: fbgemm::Error) -> Self {
        Self::Refused(error)
    }
}

fn outcome(compared: Compared) -> Outcome {
    match compared {
        Ok(difference) => Ok(Some(difference)),
        Err(Stop::Refused(error)) => Ok(Some(Err(format!("this crate refused: {error}")))),
        Err(Stop::BadCase(reason)) => Err(reason),
    }
}
