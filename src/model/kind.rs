//! What a checkpoint's matrices are, told from what a file says of them: names, shapes, biases and its `config.json`.
//!
//! A checkpoint doesn't say which of its matrices are linear layers. The rules, the first that applies:
//!
//! 1. Only a tensor named `x.weight` can be a layer's, and `x.weight_ih` and `x.weight_hh` (`_l0`, `_l0_reverse`, ... behind
//!    them), the two linear layers of a recurrent one, where their sizes are those of an LSTM, a GRU or an RNN.
//! 2. A bias decides: `x.bias` of as many elements as the matrix has rows belongs to a linear layer; of as many as it
//!    has columns, to one that is stored `[in_features, out_features]`, as GPT-2's are. Where both fit, it is taken to
//!    be stored as those of the same name in other layers are, which the evidence calls an assumption.
//! 3. Without a bias, the name's last part (numbers aside) decides, by whole words: `embed_tokens` is an embedding,
//!    `embed_out` and `embedding_projection` are linear layers: of words that disagree the last one counts. Words of
//!    tables are not believed where other matrices have as many columns as this one has rows, and none as many as it
//!    has columns: it gives what they take in (`x_embedder`).
//! 4. Where the name has no such word, as many rows as the config's vocabulary make an embedding, and so do very many
//!    rows, and the words of the name's other parts. What is left is taken for a linear layer.

use super::names::recurrent_sibling;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One tensor of 2 dimensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Its whole name: `encoder.layer.0.output.dense.weight`.
    pub(crate) name: &'a str,
    /// Rows and columns.
    pub(crate) shape: [usize; 2],
    /// How many elements the bias beside it has, if there is one of 1 dimension.
    pub(crate) bias: Option<usize>,
}

/// What a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A linear layer's weight, `[out_features, in_features]`.
    Linear,
    /// A linear layer's weight, stored `[in_features, out_features]`.
    Transposed,
    /// A table whose rows are looked up.
    Embedding,
    /// No layer's `weight`: a table, an attention's matrix, or a bias.
    Other,
}

/// A kind, and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) kind: Kind,
    pub(crate) evidence: Evidence,
}

/// What speaks for a kind. In words: `its bias has one element for each row`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The bias has as many elements as the matrix has rows.
    BiasOfRows,
    /// The bias has as many elements as the matrix has columns.
    BiasOfColumns,
    /// The same, and as it has columns: the layers of this name that aren't square are stored transposed.
    SquareAsOthers(String),
    /// The same, and no other layer of this name, one of [`TRANSPOSED_IN_GPT2`], tells how it is stored.
    SquareAlone(String),
    /// The bias has this many elements, which neither fits.
    ForeignBias(usize),
    /// This key of the config has as many as there are rows.
    Config(String),
    /// This word of the name.
    Word(String),
    /// Its name has this word of tables, but its rows, and not its columns, are what other layers take in.
    RowsAreInputs(String),
    /// Far more rows than columns, and than most layers have.
    ManyRows,
    /// Nothing tells.
    Nothing,
    /// With the other matrix of the cell, this kind of recurrent layer.
    Recurrent(&'static str),
    /// Named as a recurrent layer's, but the other matrix of the cell is not there, or its sizes fit no kind.
    NotRecurrent,
    /// The name's last part isn't `weight`.
    NotAWeight,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BiasOfRows => f.write_str("its bias has an element for each row"),
            Self::BiasOfColumns => f.write_str("its bias has an element for each column: stored [in, out]"),
            Self::SquareAsOthers(name) => {
                write!(f, "it has a bias; square, and assumed to be stored [in, out] as the others named `{name}` are")
            }
            Self::SquareAlone(name) => {
                write!(f, "it has a bias; square, and assumed to be stored [out, in], unlike `{name}` in GPT-2")
            }
            Self::ForeignBias(length) => write!(f, "its bias has {length} elements, which fits neither dimension"),
            Self::Config(key) => write!(f, "it has a row for each of the config's {key}"),
            Self::Word(word) => write!(f, "`{word}` in its name"),
            Self::RowsAreInputs(word) => {
                write!(f, "`{word}` in its name, but other layers have as many inputs as it has rows")
            }
            Self::ManyRows => f.write_str("it has far more rows than columns, and no bias"),
            Self::Nothing => f.write_str("assumed: no bias, and no word of its name tells"),
            Self::Recurrent(kind) => write!(f, "its name and its sizes are those of {kind}"),
            Self::NotRecurrent => {
                f.write_str("its name is a recurrent layer's, but its sizes, or the other matrix's, are not")
            }
            Self::NotAWeight => f.write_str("its name doesn't end in `weight`"),
        }
    }
}

/// The sizes of tables in a model's `config.json`, nested configs included: of vocabularies and of learned queries.
///
/// Positions are not among them: as many are often a layer's outputs.
#[derive(Debug, Clone, Default)]
pub(crate) struct TableSizes(BTreeMap<usize, String>);

impl TableSizes {
    /// From the file's content; none where it isn't a JSON object.
    pub(crate) fn of(config: &serde_json::Value) -> Self {
        let mut found = Self::default();
        found.collect(config);
        found
    }

    fn collect(&mut self, config: &serde_json::Value) {
        for (key, value) in config.as_object().into_iter().flatten() {
            self.collect(value);
            // That of the types of tokens is too small to say anything.
            if (key.contains("vocab") || key.contains("queries")) && !key.contains("type") {
                let sizes = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                for size in sizes.iter().filter_map(|size| usize::try_from(size.as_u64()?).ok()) {
                    self.0.entry(size).or_insert_with(|| key.clone());
                }
            }
        }
    }
}

/// What each of a file's matrices is. All of them are needed at once: some say what others are.
pub(crate) fn kinds(matrices: &[Matrix], sizes: &TableSizes) -> Vec<Verdict> {
    let parts_stored = |wanted: Evidence| -> BTreeSet<&str> {
        let proven = matrices.iter().filter(|matrix| !is_square(matrix));
        let proven = proven.filter(|matrix| by_bias(matrix).is_some_and(|(_, evidence)| evidence == wanted));
        proven.filter_map(|matrix| last_part(layer(matrix.name)?)).collect()
    };
    let (straight, transposed) = (parts_stored(Evidence::BiasOfRows), parts_stored(Evidence::BiasOfColumns));
    let mut inputs = BTreeMap::new();
    for matrix in matrices {
        *inputs.entry(matrix.shape[1]).or_insert(0) += 1;
    }
    let shapes: BTreeMap<&str, [usize; 2]> = matrices.iter().map(|matrix| (matrix.name, matrix.shape)).collect();
    let verdict = |matrix: &Matrix| {
        if let Some(other) = recurrent_sibling(matrix.name) {
            return match shapes.get(other.as_str()).and_then(|&other| recurrent_kind(matrix, other)) {
                Some(kind) => (Kind::Linear, Evidence::Recurrent(kind)),
                None => (Kind::Other, Evidence::NotRecurrent),
            };
        }
        let Some(layer) = layer(matrix.name) else { return (Kind::Other, Evidence::NotAWeight) };
        let last = last_part(layer).unwrap_or_default();
        match by_bias(matrix) {
            Some((Kind::Linear, _)) if is_square(matrix) => {
                match (straight.contains(last), transposed.contains(last)) {
                    (false, true) => (Kind::Transposed, Evidence::SquareAsOthers(last.to_string())),
                    (true, false) => (Kind::Linear, Evidence::BiasOfRows),
                    _ if has_word(TRANSPOSED_IN_GPT2, last) => (Kind::Linear, Evidence::SquareAlone(last.to_string())),
                    _ => (Kind::Linear, Evidence::BiasOfRows),
                }
            }
            Some(decided) => decided,
            None => by_name(layer, matrix.shape, sizes, &inputs),
        }
    };
    let verdicts = matrices.iter().map(verdict);
    verdicts.map(|(kind, evidence)| Verdict { kind, evidence }).collect()
}

/// The kind of recurrent layer that a matrix is of, with the shape of the cell's other one.
fn recurrent_kind(matrix: &Matrix, other: [usize; 2]) -> Option<&'static str> {
    let [rows, columns] = matrix.shape;
    let hidden = if last_part(matrix.name)?.starts_with("weight_hh") { columns } else { other[1] };
    if other[0] != rows || hidden == 0 || !rows.is_multiple_of(hidden) || matrix.bias.is_some_and(|bias| bias != rows) {
        return None;
    }
    match rows / hidden {
        4 => Some("an LSTM"),
        3 => Some("a GRU"),
        1 => Some("an RNN"),
        _ => None,
    }
}

/// Last parts of names that are stored `[in_features, out_features]` in GPT-2 and those that follow it.
const TRANSPOSED_IN_GPT2: &str = "c_attn c_proj c_fc q_attn";

fn is_square(matrix: &Matrix) -> bool {
    matrix.shape[0] == matrix.shape[1]
}

fn by_bias(matrix: &Matrix) -> Option<(Kind, Evidence)> {
    let ([rows, columns], bias) = (matrix.shape, matrix.bias?);
    Some(if rows == bias {
        (Kind::Linear, Evidence::BiasOfRows)
    } else if columns == bias {
        (Kind::Transposed, Evidence::BiasOfColumns)
    } else {
        (Kind::Other, Evidence::ForeignBias(bias))
    })
}

/// `inputs`: how many matrices have so many columns.
fn by_name(
    layer: &str,
    [rows, columns]: [usize; 2],
    sizes: &TableSizes,
    inputs: &BTreeMap<usize, usize>,
) -> (Kind, Evidence) {
    let mut parts = layer.rsplit('.').filter(|part| !is_number(part));
    let last = parts.next().map(words).unwrap_or_default();
    let before = parts.next().map(words).unwrap_or_default();
    let said = said_by(&last, &before);
    if let Some(key) = sizes.0.get(&rows).filter(|_| !matches!(said, Some((Kind::Linear, _)))) {
        return (Kind::Embedding, Evidence::Config(key.clone()));
    }
    // What a table gives, a row, other layers take in; so they do what a linear layer gives, its outputs.
    let gives_rows = rows != columns && inputs.contains_key(&rows);
    let gives_columns = inputs.get(&columns).is_some_and(|&count| count > 1);
    match said.or_else(|| said_by(&before, &[])) {
        Some((Kind::Embedding, word)) if gives_rows && !gives_columns => (Kind::Linear, Evidence::RowsAreInputs(word)),
        Some((kind, word)) => (kind, Evidence::Word(word)),
        None if !gives_rows && has_many_rows(layer, [rows, columns]) => (Kind::Embedding, Evidence::ManyRows),
        None => (Kind::Linear, Evidence::Nothing),
    }
}

/// More than layers have outputs, but for heads, whose names say so, and those of a stack, which have numbers.
fn has_many_rows(layer: &str, [rows, columns]: [usize; 2]) -> bool {
    rows >= 4096 && rows / 8 >= columns && !layer.split('.').any(is_number)
}

/// Whole words of names; others that begin with `embed` are of tables, too, and with `proj` or `unembed` of layers.
const TABLE_WORDS: &str = "emb embs wte wpe pe token tokens table codebook";
const LAYER_WORDS: &str = "lin linear dense fc ff ffn mlp head heads out output map mapper mapping score logits gate router qkv wq wk wv wkv wqkv wo";
/// Words that say something where they are a whole part of a name: with others, they can be about anything.
const TABLE_PARTS: &str = "shared";
const LAYER_PARTS: &str = "decoder generator classifier cls query key value q k v o w1 w2 w3 wi up down predictions";

fn has_word(words: &str, word: &str) -> bool {
    words.split(' ').any(|each| each == word)
}

/// The kind that a part of a name says, and by which word; `before` is the part before it.
fn said_by(part: &[String], before: &[String]) -> Option<(Kind, String)> {
    let find = |words: &[String], wanted: &str| words.iter().find(|word| has_word(wanted, word)).cloned();
    // Patches of a picture are multiplied; their positions are looked up.
    let patch = "patch patches patchifier";
    let patch = find(part, patch).or_else(|| find(before, patch));
    if let Some(word) = patch.filter(|_| find(part, "pos position row column").is_none()) {
        return Some((Kind::Linear, word));
    }
    // T5's bias for each distance is looked up.
    if let (Some(word), Some(_)) = (find(part, "relative"), find(part, "bias")) {
        return Some((Kind::Embedding, word));
    }
    if let [word] = part {
        if has_word(TABLE_PARTS, word) {
            return Some((Kind::Embedding, word.clone()));
        }
        if has_word(LAYER_PARTS, word) {
            return Some((Kind::Linear, word.clone()));
        }
    }
    part.iter().rev().find_map(|word| Some((kind_of_word(word)?, word.clone())))
}

fn kind_of_word(word: &str) -> Option<Kind> {
    if word.starts_with("unembed") || word.starts_with("proj") || has_word(LAYER_WORDS, word) {
        Some(Kind::Linear)
    } else if word.starts_with("embed") || has_word(TABLE_WORDS, word) {
        Some(Kind::Embedding)
    } else {
        None
    }
}

/// The layer whose weight this is.
fn layer(name: &str) -> Option<&str> {
    if name == "weight" { Some("") } else { name.strip_suffix(".weight") }
}

/// The last part of a layer's name that isn't a number.
fn last_part(layer: &str) -> Option<&str> {
    layer.rsplit('.').find(|part| !is_number(part))
}

fn is_number(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit())
}

/// A part's words in lower case: apart at `_`, `-` and before a capital after a small letter; less the numbers behind
/// them, but for those of single letters (`fc1` is `fc`, `w1` is itself).
fn words(part: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = '_';
    for c in part.chars() {
        if previous.is_lowercase() && c.is_uppercase() || !c.is_alphanumeric() {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
        previous = c;
    }
    for word in &mut words {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        if letters != 1 {
            word.truncate(letters);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/architectures.tsv`, as its script describes it.
    struct Architecture {
        name: String,
        config: Option<serde_json::Value>,
        tensors: Vec<(String, [usize; 2], Option<usize>, Kind)>,
    }

    fn architectures() -> Vec<Architecture> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/architectures.tsv");
        let text = std::fs::read_to_string(path).unwrap();
        let mut found: Vec<Architecture> = Vec::new();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["@", name, _, config] => found.push(Architecture {
                    name: name.to_string(),
                    config: (config != "-").then(|| serde_json::from_str(config).unwrap()),
                    tensors: Vec::new(),
                }),
                [name, rows, columns, bias, kind] => {
                    let kind = match kind {
                        "l" => Kind::Linear,
                        "t" => Kind::Transposed,
                        "e" => Kind::Embedding,
                        "o" => Kind::Other,
                        _ => panic!("{line}"),
                    };
                    let shape = [rows.parse().unwrap(), columns.parse().unwrap()];
                    let bias = (bias != "-").then(|| bias.parse().unwrap());
                    found.last_mut().unwrap().tensors.push((name.to_string(), shape, bias, kind));
                }
                _ => assert!(line.starts_with(['#', '=']), "{line}"),
            }
        }
        found
    }

    /// How many architectures are right in all their tensors, of how many; prints the wrong ones.
    fn right(architectures: &[Architecture], with_config: bool) -> (usize, usize) {
        let (mut right, mut tensors, mut wrong) = (0, 0, 0);
        for architecture in architectures {
            let config = architecture.config.as_ref().filter(|_| with_config);
            let sizes = config.map(TableSizes::of).unwrap_or_default();
            let matrices: Vec<Matrix> = (architecture.tensors.iter())
                .map(|(name, shape, bias, _)| Matrix { name, shape: *shape, bias: *bias })
                .collect();
            let mut all = true;
            for (verdict, (name, shape, bias, kind)) in kinds(&matrices, &sizes).iter().zip(&architecture.tensors) {
                tensors += 1;
                if verdict.kind != *kind {
                    let (said, of) = (&verdict.evidence, &architecture.name);
                    println!("{of}: {name} {shape:?} {bias:?} is {kind:?}, not {:?}: {said}", verdict.kind);
                    wrong += 1;
                    all = false;
                }
            }
            right += usize::from(all);
        }
        println!("config {with_config}: {right} of {} right; {wrong} of {tensors} tensors wrong", architectures.len());
        (right, architectures.len())
    }

    fn kind_of(name: &str, shape: [usize; 2], bias: Option<usize>, config: &str) -> (Kind, String) {
        let name = format!("{name}.weight");
        let config = TableSizes::of(&serde_json::from_str(config).unwrap());
        let verdict = kinds(&[Matrix { name: &name, shape, bias }], &config).remove(0);
        (verdict.kind, verdict.evidence.to_string())
    }

    #[test]
    fn public_architectures_are_told_apart() {
        let all = architectures();
        let (with, of) = right(&all, true);
        let (without, _) = right(&all, false);
        assert!(of >= 400, "{of} architectures");
        assert!(with * 1000 >= of * 985 && without * 1000 >= of * 980, "{with} and {without} of {of}");
    }

    /// From LLMs-from-scratch, g2p-en, VITS, MusicGen, SpeechT5, RWKV, DLRM, x-transformers, and the first version.
    #[test]
    fn embeddings_without_a_config_are_known_by_whole_words() {
        let names = "tok_emb pos_emb emb_g enc_emb dec_emb decoder.embed_tokens.0 embed_positions.pe_k emb emb_l.3 wte
            token_emb.emb_layers.0 token_emb.emb pos_emb.emb wpe shared relative_attention_bias embeddings.word";
        for name in names.split_whitespace() {
            assert_eq!(kind_of(name, [40, 16], None, "{}").0, Kind::Embedding, "{name}");
        }
    }

    #[test]
    fn layers_about_embeddings_are_linear() {
        let names =
            "encoder.embedding_hidden_mapping_in embeddings_project embed_out embed_proj patch_embed.proj unembed
            embeddings.patch_embedding time_embedding.linear_1 token_out fc qkv classifier 0 linear";
        for name in names.split_whitespace() {
            assert_eq!(kind_of(name, [40, 16], None, "{}").0, Kind::Linear, "{name}");
        }
        // A bias, whatever the name.
        assert_eq!(kind_of("time_embed.0", [40, 16], Some(40), "{}").0, Kind::Linear);
    }

    #[test]
    fn what_gives_other_layers_their_inputs_by_rows_is_linear() {
        let of = |name, shape| Matrix { name, shape, bias: None };
        let others = [of("blocks.0.to_q.weight", [64, 48]), of("blocks.0.to_k.weight", [64, 48])];
        let first = |name, shape| kinds(&[of(name, shape), others[0], others[1]], &TableSizes::default()).remove(0);
        let projected = first("x_embedder.weight", [48, 12]);
        assert_eq!(projected.kind, Kind::Linear);
        let words = "`embedder` in its name, but other layers have as many inputs as it has rows";
        assert_eq!(projected.evidence.to_string(), words);
        assert_eq!(first("row_embedder.weight", [12, 48]).kind, Kind::Embedding);
        assert_eq!(first("relative_embedding.weight", [33, 12]).kind, Kind::Embedding);
    }

    #[test]
    fn a_config_tells_what_a_name_does_not() {
        let config = r#"{"text_config": {"vocab_size": 500}, "type_vocab_size": 2, "max_position_embeddings": 64}"#;
        let said = (Kind::Embedding, "it has a row for each of the config's vocab_size".to_string());
        assert_eq!(kind_of("transformer.w", [500, 16], None, config), said);
        assert_eq!(kind_of("transformer.w", [500, 16], None, "{}").0, Kind::Linear);
        // Not a head, nor where another dimension happens to be the same.
        assert_eq!(kind_of("lm_head", [500, 16], None, config).0, Kind::Linear);
        assert_eq!(kind_of("w", [500, 16], Some(500), config).0, Kind::Linear);
        assert_eq!(kind_of("w", [16, 500], None, config).0, Kind::Linear);
        assert_eq!(kind_of("w", [2, 16], None, config).0, Kind::Linear);
    }

    /// GPT-2's layers; nanoGPT's have the same names and are not transposed.
    #[test]
    fn transposed_layers_are_known_by_their_biases() {
        let of = |name, shape, bias| Matrix { name, shape, bias: Some(bias) };
        let said = |matrices: &[Matrix]| {
            let verdicts = kinds(matrices, &TableSizes::default()).into_iter();
            verdicts.map(|verdict| (verdict.kind, verdict.evidence)).collect::<Vec<_>>()
        };
        let square = of("h.0.attn.c_proj.weight", [16, 16], 16);
        let plain = of("h.0.mlp.fc.weight", [16, 16], 16);
        let by_rows = (Kind::Linear, Evidence::BiasOfRows);
        let by_columns = (Kind::Transposed, Evidence::BiasOfColumns);

        let gpt2 =
            [of("h.0.attn.c_attn.weight", [16, 48], 48), square, of("h.1.mlp.c_proj.weight", [64, 16], 16), plain];
        let assumed = (Kind::Transposed, Evidence::SquareAsOthers("c_proj".to_string()));
        assert_eq!(said(&gpt2), [by_columns.clone(), assumed, by_columns, by_rows.clone()]);
        let nano =
            [of("h.0.attn.c_attn.weight", [48, 16], 48), square, of("h.1.mlp.c_proj.weight", [16, 64], 16), plain];
        assert_eq!(said(&nano), [by_rows.clone(), by_rows.clone(), by_rows.clone(), by_rows]);
        let alone = &said(&[square])[0];
        assert_eq!(*alone, (Kind::Linear, Evidence::SquareAlone("c_proj".to_string())));
        let words = "it has a bias; square, and assumed to be stored [out, in], unlike `c_proj` in GPT-2";
        assert_eq!(alone.1.to_string(), words);
    }

    #[test]
    fn what_no_rule_covers_is_said_so() {
        let of = |name, bias| {
            let verdict = kinds(&[Matrix { name, shape: [48, 16], bias }], &TableSizes::default()).remove(0);
            (verdict.kind, verdict.evidence.to_string())
        };
        let unnamed = (Kind::Other, "its name doesn't end in `weight`".to_string());
        for name in ["lstm.weight_hr_l0", "attention.in_proj_weight", "pos_embed", "x.weight_v"] {
            assert_eq!(of(name, None), unnamed, "{name}");
        }
        let foreign = (Kind::Other, "its bias has 5 elements, which fits neither dimension".to_string());
        assert_eq!(of("a.weight", Some(5)), foreign);
        let said = (Kind::Linear, "assumed: no bias, and no word of its name tells".to_string());
        assert_eq!(of("weight", None), said);
    }
}
