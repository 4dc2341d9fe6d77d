//! Case files: inputs and exact outputs of PyTorch's operators (format "fbgemm-cases-1").

use crate::files::{EXTENSION, golden, golden_folder, names_in};
use fbgemm::Isa;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The format that this version reads.
pub const FORMAT: &str = "fbgemm-cases-1";

/// Metadata that names a file beside it, which has more of the cases' tensors.
const INPUTS: &str = "inputs";

/// A case file, with what another one holds of its cases.
pub struct CaseFile {
    metadata: HashMap<String, String>,
    /// By name, as "case/name".
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// One case: an operator's name and parameters, and its tensors.
pub struct Case<'a> {
    /// Its name in the file.
    pub name: String,
    /// The operator.
    pub op: String,
    parameters: serde_json::Value,
    tensors: BTreeMap<&'a str, &'a Tensor>,
}

impl CaseFile {
    /// Reads a file and, where its metadata has `inputs`, the file of that name beside it: from there come the tensors,
    /// equal on all kinds of CPU, that cases named in this one's metadata don't have in this one.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn read(path: &Path) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|e| e.to_string());
        let file = Self::parse(&read(path)?)?;
        let Some(name) = file.metadata.get(INPUTS) else { return Ok(file) };
        let about = |e: String| format!("the file of its inputs, {name:?}: {e}");
        if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
            return Err(about("expected the name of a file beside it".into()));
        }
        let shared = read(&path.with_file_name(name)).and_then(|bytes| Self::parse(&bytes)).map_err(about)?;
        file.joined(shared)
    }

    /// A file's bytes, and those of the file of its inputs.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of_bytes(bytes: &[u8], inputs: &[u8]) -> Result<Self, String> {
        Self::parse(bytes)?.joined(Self::parse(inputs)?)
    }

    fn joined(mut self, shared: Self) -> Result<Self, String> {
        for (name, tensor) in shared.tensors {
            let Some((case, _)) = name.rsplit_once('/') else { continue };
            if self.metadata.contains_key(case) && self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!("tensor {name:?} is there twice, in the file and in that of its inputs"));
            }
        }
        Ok(self)
    }

    /// Reads a file's bytes, without what another file holds of its cases.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let not_one = |e| format!("not a safetensors file: {e}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_one)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            other => return Err(format!("its format is {other:?}, expected {FORMAT:?}")),
        }
        let owned = |(name, view): (String, TensorView)| {
            (name, Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() })
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(not_one)?.tensors().into_iter().map(owned).collect();
        Ok(Self { metadata, tensors })
    }

    /// The name of the file beside it that has more of its cases' tensors, if it has one.
    pub fn inputs(&self) -> Option<&str> {
        self.metadata.get(INPUTS).map(String::as_str)
    }

    /// The version of PyTorch that made them, less the part that names its build.
    pub fn torch(&self) -> Option<&str> {
        self.metadata.get("torch")?.split('+').next()
    }

    /// The kind of CPU that the cases were made on: FBGEMM's own word for it where the file has it, else PyTorch's.
    pub fn cpu(&self) -> Option<&str> {
        self.isa().or_else(|| self.metadata.get("cpu").map(String::as_str))
    }

    /// The instruction set that FBGEMM used, as [`Isa::variable`] names it, where the file tells.
    pub fn isa(&self) -> Option<&str> {
        self.metadata.get("fbgemm_isa").map(String::as_str)
    }

    /// Whether a sum of two products that leaves 16 bits was seen to be exact where the cases were made, where the file
    /// records it.
    pub fn recorded_pairs(&self) -> Option<bool> {
        self.metadata.get("sums_pairs_exactly")?.parse().ok()
    }

    /// Whether FBGEMM never clamped sums of two products where the cases were made (`None`: the file doesn't tell, as
    /// PyTorch's "AVX512" is with or without VNNI).
    pub fn pairs_were_exact(&self) -> Option<bool> {
        self.recorded_pairs().or_else(|| match self.isa() {
            Some("AVX512_E1" | "AVX512_E1_256") => Some(true),
            Some("AVX2" | "AVX512" | "AVX512_256") => Some(false),
            _ => (self.metadata.get("cpu")? == "AVX2").then_some(false),
        })
    }

    /// Whether FBGEMM's fp16 kernels added up in the same order there as they do on `isa` (`None`: the file doesn't
    /// tell).
    pub fn fp16_sums_were_ordered_as_on(&self, isa: Isa) -> Option<bool> {
        Some(match self.cpu()? {
            "AVX2" => isa == Isa::Avx2,
            "AVX512" | "AVX512_E1" => matches!(isa, Isa::Avx512 | Isa::Avx512Vnni),
            "AVX512_256" | "AVX512_E1_256" => matches!(isa, Isa::Avx512Ymm | Isa::Avx512VnniYmm),
            _ => return None,
        })
    }

    /// The cases in order of their names.
    ///
    /// # Errors
    /// What is wrong with the metadata.
    pub fn cases(&self) -> Result<Vec<Case<'_>>, String> {
        let mut cases: BTreeMap<&str, Case> = BTreeMap::new();
        for (full, tensor) in &self.tensors {
            let (case, name) =
                full.rsplit_once('/').ok_or_else(|| format!("tensor {full:?} has no case, expected <case>/<name>"))?;
            if !cases.contains_key(case) {
                let about = self.metadata.get(case).ok_or_else(|| format!("case {case:?} has no metadata"))?;
                let parameters: serde_json::Value =
                    serde_json::from_str(about).map_err(|e| format!("case {case:?}: its metadata is no JSON: {e}"))?;
                let op = parameters["op"].as_str().ok_or_else(|| format!("case {case:?} names no op"))?.to_string();
                let new = Case { name: case.to_string(), op, parameters, tensors: BTreeMap::new() };
                cases.insert(case, new);
            }
            cases.get_mut(case).expect("inserted above").tensors.insert(name, tensor);
        }
        Ok(cases.into_values().collect())
    }
}

/// This repository's golden case files by name, but for those that others take their inputs from.
///
/// # Panics
/// Where one can't be read.
pub fn stored() -> Vec<(String, CaseFile)> {
    let read = |name: String| {
        let file = CaseFile::read(&golden(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, file)
    };
    let names = names_in(&golden_folder()).into_iter();
    let names = names.filter_map(|name| Some(name.strip_suffix(EXTENSION)?.to_string()));
    let mut all: Vec<_> = names.map(read).collect();
    let shared: Vec<String> = all.iter().filter_map(|(_, file)| file.inputs().map(String::from)).collect();
    all.retain(|(name, _)| !shared.contains(&format!("{name}{EXTENSION}")));
    all
}

/// A number type that case files store.
pub trait Element: Sized {
    /// Its safetensors type.
    const DTYPE: Dtype;
    /// From little-endian bytes.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($rust:ty = $dtype:ident),*) => {$(
        impl Element for $rust {
            const DTYPE: Dtype = Dtype::$dtype;
            fn read(bytes: &[u8]) -> Self {
                <$rust>::from_le_bytes(bytes.try_into().expect("chunks of the type's size"))
            }
        }
    )*};
}
element!(half::f16 = F16, f32 = F32, f64 = F64, i8 = I8, u8 = U8, i32 = I32, i64 = I64);

impl Case<'_> {
    /// A parameter that is true or false; false where the case doesn't have it.
    pub fn flag(&self, name: &str) -> bool {
        self.parameters[name].as_bool().unwrap_or(false)
    }

    /// Whether the case has this parameter.
    pub fn has_parameter(&self, name: &str) -> bool {
        !self.parameters[name].is_null()
    }

    /// A parameter that is a whole number.
    ///
    /// # Errors
    /// Where the case doesn't have it, or it is none of 32 bits.
    pub fn number(&self, name: &str) -> Result<u32, String> {
        let number = self.parameters[name].as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| format!("case {:?}: parameter {name:?} is no whole number of 32 bits", self.name))
    }

    /// A parameter that is a word; none where the case doesn't have it.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.parameters[name].as_str()
    }

    /// Whether the case has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The weight that is stored quantized, with its scales as PyTorch packs them.
    ///
    /// # Errors
    /// What the case lacks, or what is wrong with it.
    pub fn q_weight(&self) -> Result<fbgemm::Result<fbgemm::QuantizedWeight>, String> {
        let (shape, data) = self.tensor::<i8>("q_weight")?;
        let [n, k] = shape[..] else {
            return Err(format!("case {:?}: q_weight has shape {shape:?}, expected 2 dimensions", self.name));
        };
        let scales: Vec<f32> = self.tensor::<f64>("scale")?.1.iter().map(|&scale| scale as f32).collect();
        let zero_points: Vec<i32> =
            self.tensor::<i64>("zero_point")?.1.iter().map(|&zero_point| zero_point as i32).collect();
        Ok(match (&scales[..], &zero_points[..]) {
            ([scale], [zero_point]) if !self.flag("per_channel") => {
                fbgemm::QuantizedWeight::per_tensor(data, *scale, *zero_point, n, k)
            }
            _ => fbgemm::QuantizedWeight::per_channel(data, scales, zero_points, n, k),
        })
    }

    /// A float bias, where the case has one.
    ///
    /// # Errors
    /// What the case lacks, or what is wrong with it.
    pub fn bias(&self) -> Result<Option<Vec<f32>>, String> {
        if self.has("bias") { Ok(Some(self.tensor("bias")?.1)) } else { Ok(None) }
    }

    /// What the values of the input or output, unsigned 8 bits, stand for.
    ///
    /// # Errors
    /// What the case lacks, or what is wrong with it.
    pub fn u8_params(&self, of: &str) -> Result<fbgemm::Result<fbgemm::U8Params>, String> {
        let (_, scale) = self.tensor::<f64>(&format!("{of}_scale"))?;
        let (_, zero_point) = self.tensor::<i64>(&format!("{of}_zero_point"))?;
        match (&scale[..], &zero_point[..]) {
            ([scale], [zero_point]) => {
                Ok(fbgemm::U8Params::new(*scale as f32, i32::try_from(*zero_point).unwrap_or(i32::MAX)))
            }
            _ => Err(format!("case {:?}: expected one {of}_scale and one {of}_zero_point", self.name)),
        }
    }

    /// A tensor's shape and values.
    ///
    /// # Errors
    /// What the case lacks, or what is wrong with it.
    pub fn tensor<T: Element>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>), String> {
        let tensor = self.tensors.get(name).ok_or_else(|| format!("case {:?} has no tensor {name:?}", self.name))?;
        if tensor.dtype != T::DTYPE {
            let (given, expected) = (tensor.dtype, T::DTYPE);
            return Err(format!("case {:?}: {name} is {given:?}, expected {expected:?}", self.name));
        }
        let values = tensor.data.chunks_exact(size_of::<T>()).map(T::read).collect();
        Ok((tensor.shape.clone(), values))
    }
}
