//! The crate's one error type: a variant per cause, a message with what was given and what was expected.

use crate::isa::Isa;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that this crate refuses. Nothing here is a wrong answer: an operation gives PyTorch's bits or one of
/// these.
///
/// A message tells one cause; where that has a cause of its own, [`source`](std::error::Error::source) gives it, and
/// the message does not repeat it. [`Error::chain`] is all of them in one line.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The crate was built without FBGEMM: for a target that has none, or for documentation alone.
    #[error("this build has no FBGEMM: it was made for {target}, expected x86_64 Linux with glibc and a provider")]
    UnsupportedTarget {
        /// The target's architecture and operating system.
        target: &'static str,
    },

    /// The CPU lacks what FBGEMM's kernels need.
    #[error(
        "FBGEMM does not support this CPU: it lacks {missing}, expected at least AVX2 and FMA; a virtual machine \
         or emulator may hide what the real CPU has (let it pass the host's CPU model through)"
    )]
    UnsupportedCpu {
        /// The first missing feature.
        missing: &'static str,
    },

    /// What FBGEMM reads to learn what the CPU has is not there.
    #[error("FBGEMM can't tell what this CPU has: {path} can't be read, expected it as Linux has it (mount /proc)")]
    UnknownCpu {
        /// What it reads.
        path: &'static str,
    },

    /// FBGEMM uses an instruction set that this crate does not know.
    #[error("FBGEMM chose an instruction set that this crate does not know (number {given}), expected an x86 one")]
    UnknownInstructionSet {
        /// FBGEMM's `inst_set_t` value.
        given: i32,
    },

    /// FBGEMM was told to use another instruction set after the weight was packed.
    #[error("the matrix was packed for {packed}, but FBGEMM now uses {now}: pack it again")]
    InstructionSetChanged {
        /// What the matrix was packed for.
        packed: Isa,
        /// What FBGEMM uses now.
        now: Isa,
    },

    /// A dimension is 0 that must not be.
    #[error("{what} is 0, expected at least 1")]
    ZeroDimension {
        /// The dimension's name.
        what: &'static str,
    },

    /// A slice has another length than its shape says.
    #[error("{what} has {given} elements, expected {expected}")]
    WrongLength {
        /// Which argument.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The length that the shape asks for.
        expected: usize,
    },

    /// The input is not a whole number of rows.
    #[error("input has {given} elements, expected a multiple of in_features, {in_features}")]
    PartialRow {
        /// The input's length.
        given: usize,
        /// The row's length.
        in_features: usize,
    },

    /// A size exceeds FBGEMM's 32-bit addressing (or `usize`).
    #[error("{what} of {rows} by {columns} is too large: FBGEMM addresses at most {limit} elements")]
    TooLarge {
        /// Which matrix.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
        /// The largest number of elements.
        limit: usize,
    },

    /// A weight or an input is NaN or infinite; PyTorch would compute garbage without a word.
    #[error("{what}[{index}] is {value}, expected a finite number")]
    NotFinite {
        /// Which argument.
        what: &'static str,
        /// The first such element.
        index: usize,
        /// Its value.
        value: f32,
    },

    /// A stored scale is not a positive finite number.
    #[error("scale is {given}, expected a positive finite number")]
    InvalidScale {
        /// The scale.
        given: f32,
    },

    /// A stored zero point is outside the range of int8.
    #[error("zero_point is {given}, expected -128 to 127")]
    InvalidZeroPoint {
        /// The zero point.
        given: i32,
    },

    /// Stored column offsets are not those of the weight they came with.
    #[error("col_offsets[{index}] is {given}, expected {expected} for this weight")]
    ForeignColOffsets {
        /// The first output feature that differs.
        index: usize,
        /// The stored offset.
        given: i32,
        /// The weight's offset.
        expected: i32,
    },

    /// The packed matrix was made from another weight than the one it is used with.
    #[error(
        "the packed matrix belongs to another weight: {packed_out}x{packed_in} packed, {weight_out}x{weight_in} \
         given (out_features x in_features; the same shape means other values)"
    )]
    ForeignPackedMatrix {
        /// The packed matrix's `out_features`.
        packed_out: usize,
        /// The packed matrix's `in_features`.
        packed_in: usize,
        /// The weight's `out_features`.
        weight_out: usize,
        /// The weight's `in_features`.
        weight_in: usize,
    },

    /// The rows are so long and their values so large that an int32 sum could wrap around, as PyTorch lets it. Not
    /// below 26,423 in_features.
    #[error(
        "an int32 sum of this weight with this input can reach {bound} in magnitude, expected at most 2147483647: it \
         could wrap around; split in_features over several layers"
    )]
    AccumulatorOverflow {
        /// The largest magnitude that a sum can have.
        bound: u64,
    },

    /// The product of the input's and the weight's scale is not finite, so neither are the outputs.
    #[error("the input's scale {input} times the weight's scale {weight} is not finite: the values are too large")]
    ScaleOverflow {
        /// The input's scale.
        input: f32,
        /// The weight's scale.
        weight: f32,
    },

    /// An input is so many steps of its static scale that FBGEMM, which counts them in 32 bits, would wrap around.
    #[error("the input has {value}, which is {steps:e} steps of the scale {scale}, expected at most 2147483000")]
    InputOverflow {
        /// The input's largest value.
        value: f32,
        /// The scale.
        scale: f32,
        /// `value / scale`.
        steps: f32,
    },

    /// An output could be so large, in steps of its scale, that FBGEMM would wrap it around to the other end of its range.
    #[error(
        "output feature {output} can come to {steps:e} steps of the output's scale, expected at most 2147480000: it could \
         wrap around; the output's scale is too small, or, with a bias, the product of the other two"
    )]
    OutputOverflow {
        /// The first such output feature.
        output: usize,
        /// The largest magnitude that it can have; NaN where the bias is divided by a product of scales that is 0.
        steps: f64,
    },

    /// The number of tasks is outside what one call can be split into.
    #[error("tasks is {given}, expected 1 to {limit}")]
    InvalidTasks {
        /// The number of tasks.
        given: usize,
        /// The largest number.
        limit: usize,
    },

    /// The caller's executor returned before it had run every task: the output is incomplete.
    #[error("the executor ran {ran} of {tasks} tasks, expected all: the output is incomplete")]
    TasksLeft {
        /// How many ran.
        ran: usize,
        /// How many there were.
        tasks: usize,
    },

    /// The zero point of an input or output of unsigned 8 bits is out of their range.
    #[error("zero_point is {given}, expected 0 to 255")]
    InvalidU8ZeroPoint {
        /// The zero point.
        given: i32,
    },

    /// Unknown scheme of a weight, an input or a layer.
    #[error("the {what} scheme is {given:?}, expected {expected}")]
    InvalidScheme {
        /// Of what: `weight`, `input` or `layer`.
        what: &'static str,
        /// The text.
        given: String,
        /// The words that there are.
        expected: &'static str,
    },

    /// A quantile out of range.
    #[error("the quantile is {given}, expected more than 0 and at most 1")]
    InvalidQuantile {
        /// The quantile.
        given: f64,
    },

    /// Parameters were asked of an observer that saw no input.
    #[error("the observer has seen no values, expected at least one")]
    NothingObserved,

    /// A layer's products can saturate, and this CPU lets them.
    #[error("{pairs} pairs of weights can saturate on this CPU without VNNI: quantize with a reduced range instead")]
    CanSaturate {
        /// [`QuantizedWeight::saturating_pairs`](crate::QuantizedWeight::saturating_pairs).
        pairs: u64,
    },

    /// No layer of the model was chosen.
    #[error("{}", nothing_to_quantize(*layers, *already, *transposed))]
    NothingToQuantize {
        /// How many linear layers there are.
        layers: usize,
        /// How many of them are quantized already.
        already: usize,
        /// How many of them are stored `[in_features, out_features]`.
        transposed: usize,
    },

    /// A pattern matches the name of no layer.
    #[error("the pattern {pattern:?} matches no layer's name")]
    UnusedPattern {
        /// The pattern.
        pattern: String,
    },

    /// A pattern that is to match one matrix matches several.
    #[error("the pattern {pattern:?} matches {found}, expected one")]
    AmbiguousPattern {
        /// The pattern.
        pattern: String,
        /// The names that it matches.
        found: String,
    },

    /// There is not enough memory.
    #[error("{bytes} bytes of memory could not be had")]
    OutOfMemory {
        /// How many were asked for.
        bytes: usize,
    },

    /// A model was quantized in part when memory ran out or FBGEMM failed.
    #[error(
        "{quantized} of {chosen} chosen layers were quantized and stay so, the others are as they were: quantizing again \
         goes on with those"
    )]
    PartlyQuantized {
        /// How many were quantized.
        quantized: usize,
        /// How many were to be.
        chosen: usize,
        /// What stopped it.
        source: Box<Error>,
    },

    /// An error about one layer of a model or file.
    #[error("layer {name:?}")]
    InLayer {
        /// The layer's dotted name.
        name: String,
        /// What is wrong with it.
        source: Box<Error>,
    },

    /// An error about one of a model's several files.
    #[error("{file}")]
    InFile {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        source: Box<Error>,
    },

    /// A layer has no weight: it was never loaded, or unloaded.
    #[error("the layer's weight is not loaded, expected it to be loaded from a file first")]
    NotLoaded,

    /// A model's layer has another shape than the file's of the same name.
    #[error(
        "the file has {file_out}x{file_in}, the model expected {model_out}x{model_in} (out_features x in_features)"
    )]
    ShapeMismatch {
        /// The file's `out_features`.
        file_out: usize,
        /// The file's `in_features`.
        file_in: usize,
        /// The model's `out_features`.
        model_out: usize,
        /// The model's `in_features`.
        model_in: usize,
    },

    /// A file has a quantized layer that the model has not.
    #[error("the file has the quantized layer {name:?}, which the model has not")]
    UnexpectedLayer {
        /// The layer's dotted name.
        name: String,
    },

    /// A part of a layer to be quantized would have the name of another tensor.
    #[error(
        "quantizing the layer {layer:?} would store {name:?}, which is the name of another tensor of the file: leave the \
         layer out (`exclude`)"
    )]
    NameTaken {
        /// The layer's dotted name.
        layer: String,
        /// The tensor's name.
        name: String,
    },

    /// A weight that another tool quantized, in a way that this crate does not read: copied or taken for floats it would be
    /// wrong without a word.
    #[error("the weight {name:?} was quantized by another tool: {reason}; leave it as it is with `exclude`")]
    ForeignWeight {
        /// The weight's full name.
        name: String,
        /// What is known of it, and what is missing.
        reason: String,
    },

    /// The caller stopped a long work.
    #[error("stopped before the end: nothing was written")]
    Interrupted,

    /// A file can't be replaced by renaming another one to it, as what it lies in does not let that.
    #[error("{path} can't be replaced: write in place, without the old content's safety, or give another path")]
    CannotReplace {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },

    /// Two layers of a model or tensors of a file have one name.
    #[error("the name {name:?} is there twice, expected once")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// Two tensors of a model's files would have one name.
    #[error("the tensor {name:?} is there twice: {first} and {second}")]
    NameClash {
        /// The name.
        name: String,
        /// Where one of them is, or what it is called in the file.
        first: String,
        /// The same of the other.
        second: String,
    },

    /// A file is not what it should be as a whole: truncated, no safetensors file, a name twice.
    #[error("not a usable safetensors file: {reason}")]
    InvalidFile {
        /// What is wrong.
        reason: String,
    },

    /// A file is of another kind than safetensors, which its first bytes or its name tell.
    #[error("this is {what}, expected a safetensors file: {next}")]
    WrongFormat {
        /// What it is.
        what: &'static str,
        /// What to do with it.
        next: &'static str,
    },

    /// Some of a model's files are not there.
    #[error("of the model's {of} files these are missing: {missing}")]
    MissingShards {
        /// How many files the model has.
        of: usize,
        /// The names of those that are missing.
        missing: String,
    },

    /// One of a model's several files was given as if it were all of it: layers can have parts in others.
    #[error("{path} is one of several files of a model ({says}): give their index or their folder")]
    OneOfShards {
        /// The file.
        path: String,
        /// What tells it.
        says: String,
    },

    /// An input was written to or cut short while it was read.
    #[error("{path} has changed since it was opened")]
    InputChanged {
        /// The input.
        path: String,
    },

    /// A file was written by a newer version of this crate.
    #[error("the file has format version {given:?}, expected at most {known}: read it with a newer version")]
    NewerFormat {
        /// Its version.
        given: String,
        /// The newest version that this one reads.
        known: u32,
    },

    /// A tensor is not there.
    #[error("the file has no tensor {name:?}")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },

    /// A tensor has another type or shape than it must have.
    #[error("tensor {name:?} is {given}, expected {expected}")]
    WrongTensor {
        /// The tensor's name.
        name: String,
        /// Its type and shape.
        given: String,
        /// What they should be.
        expected: String,
    },

    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },

    /// FBGEMM or the C++ runtime threw.
    #[error("FBGEMM failed in {operation}: {message}")]
    Fbgemm {
        /// The operation.
        operation: &'static str,
        /// The exception's text.
        message: String,
    },

    /// PyTorch's sigmoid and tanh were asked for, and this build's FBGEMM is not inside a libtorch that has them.
    #[error(
        "PyTorch's sigmoid and tanh need a build with the provider `libtorch` or `pinned`; this one's, `{provider}`, lacks \
         {missing}: expected that, or `Activations::portable`"
    )]
    NoPytorchMath {
        /// This build's provider.
        provider: &'static str,
        /// What was not found.
        missing: String,
    },

    /// A slice is no whole number of pieces of this size.
    #[error("{what} has {given} elements, expected a multiple of {unit}: {of}")]
    NotAMultiple {
        /// Which argument.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The length of a piece.
        unit: usize,
        /// What a piece is.
        of: &'static str,
    },

    /// The parts of a recurrent layer do not fit together.
    #[error("{what} has {given}, expected {expected}")]
    WrongParts {
        /// Which part.
        what: String,
        /// What it has.
        given: String,
        /// What it should have.
        expected: String,
    },

    /// A row of an embedding table would end within a byte.
    #[error("dimension is {dimension}, expected a multiple of {multiple} for elements of {bits} bits")]
    IndivisibleDimension {
        /// The dimension.
        dimension: usize,
        /// The bits of an element.
        bits: u32,
        /// The number of elements in a byte.
        multiple: usize,
    },

    /// An index is no row's of its table.
    #[error("indices[{position}] is {index}, expected a row of the table, which has {rows}")]
    IndexOutOfRange {
        /// The index.
        index: i64,
        /// Where it is.
        position: usize,
        /// The table's rows.
        rows: usize,
    },

    /// Offsets of bags do not start with 0, descend, or do not end as the indices do.
    #[error(
        "offsets[{position}] is {given}, expected {low} to {high}: offsets begin with 0, never descend and stay within \
         the indices, with whose number the one more at the end is equal"
    )]
    InvalidOffset {
        /// Which.
        position: usize,
        /// The offset.
        given: i64,
        /// The least that it can be.
        low: i64,
        /// The most that it can be.
        high: i64,
    },

    /// A bag has more rows than can be counted.
    #[error("bag {bag} has {given} indices, expected at most {limit}")]
    BagTooLong {
        /// The bag.
        bag: usize,
        /// The number of its indices.
        given: usize,
        /// The largest number.
        limit: usize,
    },

    /// A bag's padding is no row of the table.
    #[error("padding_idx is {given}, expected a row of the table, which has {rows}")]
    InvalidPadding {
        /// The index.
        given: usize,
        /// The table's rows.
        rows: usize,
    },

    /// Weights were given for a mean.
    #[error("per-sample weights were given for a mean, expected none: PyTorch defines them for sums alone")]
    WeightedMean,

    /// A row of a stored embedding table has a scale or bias that is NaN or infinite.
    #[error("row {row} of the table has scale {scale} and bias {bias}, expected finite numbers")]
    InvalidRow {
        /// The row.
        row: usize,
        /// Its scale.
        scale: f32,
        /// Its bias.
        bias: f32,
    },
}

impl Error {
    /// The message and those of all its causes, in one line.
    ///
    /// ```
    /// let mut model = vec![fbgemm::Linear::new(vec![f32::NAN], None, 1, 1)?];
    /// let error = fbgemm::quantize_modules(&mut model, &fbgemm::QuantizeOptions::new(fbgemm::LinearScheme::Fp16)).unwrap_err();
    /// assert_eq!(error.to_string(), "layer \"0\"");
    /// assert_eq!(error.chain(), "layer \"0\": weight[0] is NaN, expected a finite number");
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }

    /// The same error, with the name of the layer that it is about.
    pub(crate) fn in_layer(self, name: &str) -> Self {
        Self::InLayer { name: name.to_string(), source: Box::new(self) }
    }
}

fn nothing_to_quantize(layers: usize, already: usize, transposed: usize) -> String {
    if already > 0 && already == layers {
        return format!("all {layers} layers are quantized already, expected at least one to quantize");
    }
    let mut text = format!("none of the {layers} layers was chosen, expected at least one to quantize");
    if already > 0 {
        text += &format!("; {already} are quantized already");
    }
    if transposed > 0 {
        text += &format!("; {transposed} are stored [in, out]: choose them with `transpose`");
    }
    text
}

/// Two errors are equal that say the same, causes included.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}
