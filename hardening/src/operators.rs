//! Every operator with any lengths, sizes and values, right or wrong.

use arbitrary::{Result, Unstructured};
use fbgemm::{
    Activations, BagOptions, EmbeddingFormat, EmbeddingTable, Fp16Linear, Gru, GruCell, InputObserver, InputScheme,
    Int8Scheme, Linear, Lstm, LstmCell, PortableLinear, QuantizedInput, QuantizedLinear, QuantizedWeight, U8Params,
    WeightScheme,
};

/// A size: mostly small, now and then one that no memory has.
fn size(u: &mut Unstructured) -> Result<usize> {
    Ok(match u.int_in_range(0..=15)? {
        0 => 0,
        1 => *u.choose(&[usize::MAX, usize::MAX / 2 + 1, 1 << 62, 1 << 32, (1 << 31) - 1, 1 << 31, 1 << 20])?,
        2 => *u.choose(&[31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513])?,
        _ => u.int_in_range(1..=24)?,
    })
}

/// The length that sizes ask for, or another one.
fn length(sizes: &[usize], u: &mut Unstructured) -> Result<usize> {
    let right = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size)).filter(|&all| all <= 1 << 16);
    let right = right.unwrap_or(24);
    Ok(match u.int_in_range(0..=15)? {
        0 => u.int_in_range(0..=100)?,
        1 => right + 1,
        2 => right.saturating_sub(1),
        _ => right,
    })
}

fn value(u: &mut Unstructured) -> Result<f32> {
    Ok(match u.int_in_range(0..=23)? {
        0 => f32::from_bits(u.arbitrary()?),
        1 => *u.choose(&[f32::MAX, f32::MIN, 1e38, -1e38, f32::MIN_POSITIVE, 1e-45, -0.0, 65504.0, 65520.0])?,
        2..=5 => 0.0,
        _ => f32::from(u.arbitrary::<i8>()?) / 16.0,
    })
}

/// So many values: a few of the fuzzer's own, again and again.
fn values(len: usize, u: &mut Unstructured) -> Result<Vec<f32>> {
    let own: Vec<f32> = (0..u.int_in_range(1..=12)?).map(|_| value(u)).collect::<Result<_>>()?;
    let scale = *u.choose(&[1.0f32, 1.0, 1.0, 1e-6, 1e6, 1e-38])?;
    // A single odd one among many.
    let odd = if u.ratio(1, 16)? { Some((u.int_in_range(0..=len)?, value(u)?)) } else { None };
    let of = |i: usize| odd.filter(|&(at, _)| at == i).map_or(own[i % own.len()] * scale, |(_, value)| value);
    Ok((0..len).map(of).collect())
}

fn bias(n: usize, u: &mut Unstructured) -> Result<Option<Vec<f32>>> {
    if u.arbitrary()? { Ok(Some(values(length(&[n], u)?, u)?)) } else { Ok(None) }
}

/// One operator, or what layers make of it.
pub fn operators(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let u = &mut u;
    let work = [int8, statics, layers, fp16, tables, bags, recurrent, numbers];
    let _ = u.choose_index(work.len()).and_then(|one| work[one](u));
}

fn weight_scheme(u: &mut Unstructured) -> Result<WeightScheme> {
    let mut scheme = WeightScheme::new();
    if u.arbitrary()? {
        scheme = scheme.per_channel();
    }
    if u.ratio(1, 4)? {
        scheme = scheme.symmetric();
    }
    Ok(if u.ratio(1, 4)? { scheme.reduce_range() } else { scheme })
}

fn quantized(u: &mut Unstructured) -> Result<Option<QuantizedWeight>> {
    let (n, k) = (size(u)?, size(u)?);
    let len = length(&[n, k], u)?;
    Ok(if u.ratio(2, 3)? {
        let scheme = weight_scheme(u)?;
        fbgemm::quantize_weight_as(&values(len, u)?, n, k, scheme).ok()
    } else {
        let data: Vec<i8> = (0..len).map(|i| (i * 31 % 251) as u8 as i8).collect();
        if u.arbitrary()? {
            QuantizedWeight::per_tensor(data, value(u)?, u.arbitrary()?, n, k).ok()
        } else {
            let channels = length(&[n], u)?;
            let zero_points = (0..length(&[n], u)?).map(|i| (i % 300) as i32 - 150).collect();
            QuantizedWeight::per_channel(data, values(channels, u)?, zero_points, n, k).ok()
        }
    })
}

fn int8(u: &mut Unstructured) -> Result<()> {
    let (Some(q), Some(other)) = (quantized(u)?, quantized(u)?) else { return Ok(()) };
    // Now and then a matrix of another weight.
    let Ok(packed) = (if u.ratio(1, 8)? { &other } else { &q }).pack() else { return Ok(()) };
    let rows = u.int_in_range(0..=5)?;
    let input = values(length(&[rows, q.in_features()], u)?, u)?;
    let bias = bias(q.out_features(), u)?;
    let mut output = vec![f32::NAN; length(&[rows, q.out_features()], u)?];
    let relu = u.arbitrary()?;
    let done = match (u.int_in_range(0..=1)?, relu) {
        (0, _) => fbgemm::linear_int8_weight_into(&input, &q, &packed, bias.as_deref(), &mut output),
        (_, true) => fbgemm::linear_relu_dynamic_into(&input, &q, &packed, bias.as_deref(), true, &mut output),
        _ => fbgemm::linear_dynamic_into(&input, &q, &packed, bias.as_deref(), false, &mut output),
    };
    if done.is_ok() {
        assert_eq!(output.len() * q.in_features(), input.len() * q.out_features());
        let finite = bias.is_none_or(|bias| bias.iter().all(|x| x.is_finite()));
        assert!(!finite || output.iter().all(|y| !y.is_nan()), "NaN from finite numbers");
    }
    Ok(())
}

fn u8_params(u: &mut Unstructured) -> Result<Option<U8Params>> {
    let scale = if u.ratio(3, 4)? { 0.05 } else { value(u)? };
    Ok(U8Params::new(scale, u.int_in_range(-1..=256)?).ok())
}

fn statics(u: &mut Unstructured) -> Result<()> {
    let Some(q) = quantized(u)? else { return Ok(()) };
    let (Ok(packed), Some(from), Some(to)) = (q.pack(), u8_params(u)?, u8_params(u)?) else { return Ok(()) };
    let rows = u.int_in_range(0..=5)?;
    let input: Vec<u8> = (0..length(&[rows, q.in_features()], u)?).map(|i| (i * 31 % 251) as u8).collect();
    let bias = bias(q.out_features(), u)?;
    let mut output = vec![0; length(&[rows, q.out_features()], u)?];
    let _ = if u.arbitrary()? {
        fbgemm::linear_static_into(&input, from, &q, &packed, bias.as_deref(), to, &mut output)
    } else {
        fbgemm::linear_relu_static_into(&input, from, &q, &packed, bias.as_deref(), to, &mut output)
    };
    Ok(())
}

fn layers(u: &mut Unstructured) -> Result<()> {
    let Some(q) = quantized(u)? else { return Ok(()) };
    let (n, k) = (q.out_features(), q.in_features());
    let Ok(layer) = PortableLinear::new(q, bias(n, u)?).and_then(PortableLinear::pack) else { return Ok(()) };
    let scheme = match u.int_in_range(0..=3)? {
        0 => InputScheme::new(),
        1 => InputScheme::new().per_row(),
        2 => InputScheme::new().as_linear_dynamic().reduce_range(),
        _ => InputScheme::new().static_params(value(u)?, u.int_in_range(-2..=260)?).unwrap_or_default(),
    };
    let layer = layer.with_input(scheme);
    let rows = u.int_in_range(0..=5)?;
    let input = values(length(&[rows, k], u)?, u)?;
    let tasks = *u.choose(&[0, 1, 2, 3, 7, 1024, 1025, usize::MAX])?;
    let mut output = vec![0.0; length(&[rows, n], u)?];
    // Not every number is given, some twice, some that there are not.
    let (left_out, twice) = (u.arbitrary::<u8>()? as usize, u.arbitrary::<bool>()?);
    let _ = layer.forward_tasks(&input, &mut output, tasks, |task| {
        for i in (0..tasks.min(1026)).filter(|&i| i != left_out) {
            task(i);
            if twice {
                task(i);
            }
        }
        task(usize::MAX);
    });
    let halves: Vec<half::f16> = input.iter().map(|&x| half::f16::from_f32(x)).collect();
    let wide: Vec<f64> = input.iter().map(|&x| f64::from(x) * 1e30).collect();
    let _ = (layer.forward(&halves), layer.forward(&wide));
    let mut quantized = QuantizedInput::new(k);
    let _ = quantized.extend(&input, scheme);
    let _ = quantized.extend(&input, InputScheme::new().per_row());
    let _ = layer.forward_quantized(&quantized, &mut output);
    let _ = layer.forward_rows(&quantized, |_, row| {
        assert_eq!(row.len(), n);
        Ok(())
    });
    let _ = QuantizedLinear::concat(&[&layer, &layer]).and_then(|both| both.forward(&input));
    let _ = layer.strict().and_then(|layer| layer.forward(&input));
    Ok(())
}

fn fp16(u: &mut Unstructured) -> Result<()> {
    let (n, k) = (size(u)?, size(u)?);
    let weight = values(length(&[n, k], u)?, u)?;
    let bias = bias(n, u)?;
    let rows = u.int_in_range(0..=5)?;
    if let Ok(packed) = fbgemm::pack_matrix_fp16(&weight, n, k) {
        assert_eq!(packed.unpack().map(|weight| weight.len()), Ok(n * k));
        let input = values(length(&[rows, k], u)?, u)?;
        let mut output = vec![0.0; length(&[rows, n], u)?];
        let _ = fbgemm::linear_fp16_weight_into(&input, &packed, bias.as_deref(), &mut output);
    }
    let layers = [Fp16Linear::new(&weight, bias.clone(), n, k).map(Linear::from), Linear::new(weight, bias, n, k)];
    let input = values(length(&[rows, k], u)?, u)?;
    for layer in layers.into_iter().flatten() {
        let _ = layer.forward(&input);
    }
    Ok(())
}

fn table(u: &mut Unstructured) -> Result<Option<EmbeddingTable<'static>>> {
    let formats = [
        EmbeddingFormat::Fp32,
        EmbeddingFormat::Fp16,
        EmbeddingFormat::Int8,
        EmbeddingFormat::Int4,
        EmbeddingFormat::Int2,
    ];
    let format = *u.choose(&formats)?;
    let (rows, dimension) = (size(u)?, size(u)?);
    if u.arbitrary()? {
        let weight = values(length(&[rows, dimension], u)?, u)?;
        return Ok(fbgemm::pack_embedding(&weight, rows, dimension, format).ok());
    }
    let width = format.row_bytes(dimension).unwrap_or(dimension);
    let own: Vec<u8> = u.bytes(u.len().min(40))?.to_vec();
    let bytes: Vec<u8> = (0..length(&[rows, width], u)?).map(|i| own.get(i % 41).copied().unwrap_or(60)).collect();
    Ok(EmbeddingTable::from_bytes(bytes, format, rows, dimension).ok())
}

fn tables(u: &mut Unstructured) -> Result<()> {
    let Some(table) = table(u)? else { return Ok(()) };
    let _ = table.check_rows();
    if let Ok(values) = table.unpack() {
        assert_eq!(values.len(), table.rows() * table.dimension());
    }
    let (start, end) = (u.int_in_range(0..=table.rows() + 1)?, u.int_in_range(0..=table.rows() + 1)?);
    let mut rows = vec![0.0; length(&[end.saturating_sub(start), table.dimension()], u)?];
    let _ = table.unpack_rows_into(start..end, &mut rows);
    let indices = indices(table.rows(), u)?;
    let mut output = vec![0.0; length(&[indices.len(), table.dimension()], u)?];
    let _ = fbgemm::embedding_into(&table, &indices, &mut output);
    let narrow: Vec<i32> = indices.iter().map(|&i| i as i32).collect();
    let mut halves = vec![half::f16::ZERO; length(&[indices.len(), table.dimension()], u)?];
    let _ = fbgemm::embedding_into(&table, &narrow, &mut halves);
    Ok(())
}

/// Of rows that there are, mostly.
fn indices(rows: usize, u: &mut Unstructured) -> Result<Vec<i64>> {
    let odd = [-1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, (1 << 32) + 1, rows as i64];
    (0..u.int_in_range(0..=20)?)
        .map(|_| match u.ratio(1, 32)? {
            true => Ok(*u.choose(&odd)?),
            false => Ok(u.int_in_range(0..=rows.saturating_sub(1) as i64)?),
        })
        .collect()
}

fn bags(u: &mut Unstructured) -> Result<()> {
    let Some(table) = table(u)? else { return Ok(()) };
    let indices = indices(table.rows(), u)?;
    let mut offsets = Vec::new();
    let mut at = 0i32;
    for _ in 0..u.int_in_range(0..=6)? {
        offsets.push(at);
        at = if u.ratio(1, 16)? { u.arbitrary()? } else { (at + u.int_in_range(0..=6)?).min(indices.len() as i32) };
    }
    let weights = values(length(&[indices.len()], u)?, u)?;
    let mut options = BagOptions::new();
    if u.ratio(1, 3)? {
        options = options.mean();
    }
    if u.ratio(1, 3)? {
        options = options.per_sample_weights(&weights);
    }
    if u.ratio(1, 3)? {
        options = options.include_last_offset();
        offsets.push(indices.len() as i32);
    }
    if u.ratio(1, 3)? {
        options = options.padding_idx(u.int_in_range(0..=table.rows())?);
    }
    let bags = offsets.len();
    let mut output = vec![0.0f32; length(&[bags, table.dimension()], u)?];
    let tasks = *u.choose(&[1, 2, 3, 1024, 1025])?;
    let each = |task: &(dyn Fn(usize) + Sync)| (0..tasks).for_each(task);
    let _ = fbgemm::embedding_bag_tasks(&table, &indices, &offsets, options, &mut output, tasks, each);
    let narrow: Vec<i32> = indices.iter().map(|&i| i as i32).collect();
    let wide: Vec<i64> = offsets.iter().map(|&o| o.into()).collect();
    let _ = fbgemm::embedding_bag(&table, &narrow, &wide, options);
    Ok(())
}

fn recurrent(u: &mut Unstructured) -> Result<()> {
    let (width, hidden) = (u.int_in_range(1..=12)?, u.int_in_range(1..=12)?);
    let mut linear = |gates: usize, k: usize| -> Result<Option<Linear>> {
        let n = if u.ratio(1, 16)? { gates * hidden + 1 } else { gates * hidden };
        let (weight, bias) = (values(n * k, u)?, bias(n, u)?);
        Ok(match u.int_in_range(0..=2)? {
            0 => QuantizedLinear::new(&weight, bias, n, k, Int8Scheme::pytorch()).ok().map(Linear::from),
            1 => Fp16Linear::new(&weight, bias, n, k).ok().map(Linear::from),
            _ => Linear::new(weight, bias, n, k).ok(),
        })
    };
    let parts = [linear(4, width)?, linear(4, hidden)?, linear(3, width)?, linear(3, hidden)?];
    let [Some(ih), Some(hh), Some(gru_ih), Some(gru_hh)] = parts else { return Ok(()) };
    let (time, batch) = (u.int_in_range(0..=3)?, u.int_in_range(0..=3)?);
    let activations =
        if u.arbitrary()? { Activations::portable() } else { Activations::as_pytorch().unwrap_or_default() };
    let input = values(length(&[time, batch, width], u)?, u)?;
    let mut states = [values(length(&[batch, hidden], u)?, u)?, values(length(&[batch, hidden], u)?, u)?];
    let [h, c] = &mut states;
    if let Ok(lstm) = LstmCell::new(ih, hh).and_then(|cell| Lstm::new(vec![cell])) {
        let _ = lstm.with_activations(activations).forward(&input, h, c);
    }
    if let Ok(gru) = GruCell::new(gru_ih, gru_hh).and_then(|cell| Gru::new(vec![cell])) {
        let _ = gru.with_activations(activations).with_batch_first().forward(&input, h);
    }
    Ok(())
}

/// What works on numbers alone.
fn numbers(u: &mut Unstructured) -> Result<()> {
    let input = values(u.int_in_range(0..=200)?, u)?;
    let mut observer = InputObserver::new();
    let _ = (observer.observe(&input), observer.scheme(), observer.quantile_scheme(u.arbitrary()?));
    for activations in [Ok(Activations::portable()), Activations::as_pytorch()].into_iter().flatten() {
        for f in [Activations::sigmoid, Activations::tanh] {
            let mut output = input.clone();
            let _ = f(activations, &mut output);
            for (x, y) in input.iter().zip(&output) {
                assert!(x.is_nan() || y.abs() <= 1.0, "{x} to {y}");
            }
        }
    }
    Ok(())
}
