//! `fbgemm bench`: what it says and what it refuses. Times are the machine's, and no test looks at them.

use crate::{PROGRAM, fbgemm, folder, stderr, stdout};
use fbgemm_testkit::random::normal;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const SMALL: [&str; 7] = ["bench", "--schemes", "--quick", "--shape", "64x64", "--shape", "96x40"];

fn answer(arguments: &[&str]) -> Value {
    let output = fbgemm(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

#[test]
fn every_contender_is_right_on_every_case() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let threads = if cpus > 1 { "1,2" } else { "1" };
    let run = answer(&[&SMALL[..], &["--threads", threads, "--batch", "1,5"]].concat());
    let cases = run["cases"].as_array().unwrap();
    let kinds: Vec<_> = cases.iter().map(|c| (c["layer"].as_str().unwrap(), c["batch"].as_u64().unwrap())).collect();
    let mut expected = vec![("64x64", 1), ("64x64", 5), ("96x40", 1), ("96x40", 5)];
    expected = expected.into_iter().flat_map(|case| vec![case; cpus.min(2)]).collect();
    assert_eq!(kinds, expected);
    for case in cases {
        let timings = case["timings"].as_array().unwrap();
        let named = |name: &str| timings.iter().any(|t| t["contender"] == name);
        assert!(timings[0]["contender"] == "fbgemm" && named("gemm") && named("gemm transposed"), "{case}");
        let single = case["threads"] == 1;
        assert_eq!((named("matrixmultiply"), case["split"].is_object()), (single, single), "{case}");
        for timing in timings {
            let error = timing["error"].as_f64().unwrap();
            let most = if timing["int8"] == true { 0.05 } else { 1e-6 };
            assert!(error > 0.0 && error < most, "{timing}");
            assert!(["low", "median", "high"].iter().all(|key| positive(&timing[key])), "{timing}");
        }
        assert!(positive(&timings[0]["pack"]) && positive(&case["limit_share"]), "{case}");
        assert!(case["limit"] == "read" || case["limit"] == "int8", "{case}");
        assert!(!single || ["quantize", "multiply", "rest"].iter().all(|key| case["split"][key].is_number()), "{case}");
    }
    let limits = &run["limits"];
    assert!(positive(&limits["int8_per_second"]) && positive(&limits["fp32_per_second"]), "{limits}");
    assert!(limits["read"].as_array().unwrap().iter().all(|read| positive(&read["bytes_per_second"])), "{limits}");
    let machine = &run["machine"];
    assert!(["cpu", "isa", "fbgemm", "version"].iter().all(|key| machine[key] != ""), "{machine}");
    assert!(machine["date"].as_str().unwrap().len() == 10 && machine["cold"] == false, "{machine}");
}

#[test]
fn the_tables_and_the_csv_have_every_case() {
    let output = fbgemm(&[&SMALL[..], &["--cold"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["emptied", "Reading", "fbgemm: quantize", "matrixmultiply", "of limit", "96x40", "A quick run"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(text.matches("\n64x64").count(), 6, "three batch sizes in each table: {text}");

    let output = fbgemm(&[&SMALL[..], &["--csv", "--contender", "transposed"]].concat());
    let text = stdout(&output);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 1 + 2 * 3 * 2, "{text}");
    let column = |name: &str| lines[0].iter().position(|cell| *cell == name).unwrap();
    for (i, line) in lines[1..].iter().enumerate() {
        assert_eq!(line.len(), lines[0].len(), "{line:?}");
        assert_eq!(line[column("contender")], ["fbgemm", "gemm transposed"][i % 2]);
        assert!(["median_us", "error", "speed_up"].iter().all(|name| line[column(name)].parse::<f64>().unwrap() > 0.0));
    }
}

/// Layers a.dense and b.dense of one shape, head of another, and an embedding.
fn checkpoint(path: &Path) -> String {
    let values = |len| normal(len, 1, 0.5).into_iter().flat_map(f32::to_le_bytes).collect();
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = [
        ("a.dense.weight", vec![48, 32]),
        ("a.dense.bias", vec![48]),
        ("b.dense.weight", vec![48, 32]),
        ("embeddings.weight", vec![100, 32]),
        ("head.weight", vec![1, 48]),
        ("norm.weight", vec![48]),
    ]
    .into_iter()
    .map(|(name, shape)| (name, shape.clone(), values(shape.iter().product())))
    .collect();
    let view = |shape: &Vec<usize>, data| TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
    let views = tensors.iter().map(|(name, shape, data)| (*name, view(shape, data)));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    path.display().to_string()
}

#[test]
fn a_checkpoint_gets_advice_on_each_of_its_layers() {
    let file = checkpoint(&folder("bench-model").join("model.safetensors"));
    let run = answer(&["bench", "--quick", "--model", &file, "--batch", "1,4"]);
    let cases = run["cases"].as_array().unwrap();
    let kinds: Vec<_> = cases.iter().map(|c| (c["layer"].as_str().unwrap(), c["count"].as_u64().unwrap())).collect();
    assert_eq!(kinds, [("a.dense", 2), ("a.dense", 2), ("head", 1), ("head", 1)]);
    let layers = run["advice"]["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|l| l["layer"].as_str().unwrap()).collect::<Vec<_>>(), ["a.dense", "b.dense", "head"]);
    assert!(layers.iter().all(|l| l["speed_ups"].as_array().unwrap().len() == 2), "{layers:?}");
    assert!(run["advice"]["exclude"].is_array());

    let output = fbgemm(&["bench", "--quick", "--model", &file]);
    let text = stdout(&output);
    assert!(
        text.contains("\nmodel.safetensors ") && text.contains("\na.dense (x2) ") && text.contains("b.dense"),
        "{text}"
    );
    assert!(text.contains("Leave ") || text.contains("Quantize all 3"), "{text}");
    // Nothing to be compared with, nothing to be advised.
    let alone = answer(&["bench", "--quick", "--model", &file, "--contender", "fbgemm"]);
    assert!(alone["advice"].is_null() && alone["cases"][0]["timings"].as_array().unwrap().len() == 1, "{alone}");
}

#[test]
fn pictures_are_drawn_where_asked() {
    let pictures = folder("bench-plot").join("new");
    let output = fbgemm(&[&SMALL[..], &["--csv", "--plot", pictures.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for name in ["speed-up.svg", "time.svg", "error.svg"] {
        assert!(pictures.join(name).metadata().unwrap().len() > 1000 && stderr(&output).contains(name), "{name}");
    }
}

#[test]
fn what_cannot_be_measured_exits_with_2() {
    let text = folder("bench-refused").join("text.safetensors");
    std::fs::write(&text, "this is no checkpoint, though long enough").unwrap();
    let text = text.to_str().unwrap();
    for (arguments, said) in [
        (&["--shape", "64"][..], "expected OUTxIN"),
        (&["--shape", "64x"], "cannot parse"),
        (&["--shape", "0x64"], "1 to 2147483647 weights"),
        (&["--shape", "65536x65536"], "1 to 2147483647 weights"),
        (&["--preset", "gpt"], "possible values: minilm"),
        (&["--batch", "0"], "0 is not in 1.."),
        (&["--batch", "1048576", "--shape", "4096x8"], "too large"),
        (&["--threads", "1024"], "1024 threads can't be pinned"),
        (&["--contender", "nobody"], "there are fbgemm, gemm"),
        (&["--json", "--csv"], "cannot be used with"),
        (&["--model", text], "text.safetensors: not a usable safetensors file"),
        (&["--model", "/nowhere"], "/nowhere: No such file"),
        (&["--shape", "8x8", "--quick", "--plot", text], "text.safetensors: "),
    ] {
        let output = fbgemm(&[&["bench"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{said} in {}", stderr(&output));
    }
    for library in ["/nowhere.so", "libc.so.6"] {
        let output = Command::new(PROGRAM).args(SMALL).env("FBGEMM_RS_BLAS", library).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
        assert!(stderr(&output).contains(&format!("FBGEMM_RS_BLAS: {library}")), "{}", stderr(&output));
    }
}

/// A BLAS of few lines, right but for what is added to each result.
fn blas(folder: &Path, name: &str, added: &str) -> String {
    const SOURCE: &str = r"
        void cblas_sgemm(int, int, int, int m, int n, int k, float, const float *x, int, const float *w, int, float,
                         float *y, int) {
            for (int i = 0; i < m; ++i)
                for (int j = 0; j < n; ++j)
                    for (int l = 0; l < k; ++l)
                        y[i * n + j] += x[i * k + l] * w[j * k + l] + (ADDED);
        }
        void cblas_sgemv(int, int, int n, int k, float, const float *w, int, const float *x, int, float, float *y, int) {
            cblas_sgemm(0, 0, 0, 1, n, k, 1, x, 0, w, 0, 1, y, 0);
        }
    ";
    let (source, library) = (folder.join(format!("{name}.cc")), folder.join(format!("{name}.so")));
    std::fs::write(&source, format!("#define ADDED {added}\nextern \"C\" {{{SOURCE}}}\n")).unwrap();
    let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".to_string()));
    let made = compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    library.display().to_string()
}

#[test]
fn a_blas_that_is_named_competes_and_a_wrong_one_is_found_out() {
    let folder = folder("bench-blas");
    let run = |library: &str| {
        Command::new(PROGRAM).args(SMALL).arg("--json").env("FBGEMM_RS_BLAS", library).output().unwrap()
    };
    let right = run(&blas(&folder, "right", "0"));
    assert_eq!(right.status.code(), Some(0), "{}", stderr(&right));
    let answer: Value = serde_json::from_slice(&right.stdout).unwrap();
    for case in answer["cases"].as_array().unwrap() {
        let mut timings = case["timings"].as_array().unwrap().iter();
        let error = timings.find(|timing| timing["contender"] == "right.so").unwrap()["error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1e-6, "{case}");
    }
    for (name, added) in [("off", "1e-4f"), ("garbage", "0.f / 0.f")] {
        let wrong = run(&blas(&folder, name, added));
        assert_eq!(wrong.status.code(), Some(1), "{}", stdout(&wrong));
        let said = format!("yours 64x64, batch 1, threads 1: {name}.so is wrong: its error is");
        assert!(stderr(&wrong).contains(&said), "{said} in {}", stderr(&wrong));
    }
}

#[test]
fn dlrm_has_embedding_tables_in_every_format_and_other_presets_have_none() {
    let quick = ["bench", "--quick", "--batch", "1", "--contender", "fbgemm"];
    let run = answer(&[&quick[..], &["--preset", "dlrm"]].concat());
    let tables = run["tables"].as_array().unwrap();
    assert!(["bag", "dimension"].map(|key| tables[0][key].as_u64().unwrap()) == [1, 64] && tables.len() == 6);
    for table in tables {
        let timings = table["timings"].as_array().unwrap();
        let names = timings.iter().map(|timing| timing["contender"].as_str().unwrap());
        // PyTorch's are there where Python has it.
        let (theirs, names): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("PyTorch "));
        assert!([0, 5].contains(&theirs.len()), "{theirs:?}");
        assert_eq!(names, ["fp32, plain loops", "fp32", "fp16", "int8", "int4", "int2"]);
        assert!(timings.iter().all(|t| ["low", "median", "high", "row_bytes"].iter().all(|key| positive(&t[key]))));
    }
    assert!(answer(&[&quick[..], &["--shape", "64x64"]].concat()).get("tables").is_none());
}

#[test]
fn gru_has_whole_layers_by_all_contenders_and_their_results_agree() {
    let run = answer(&["bench", "--quick", "--batch", "1", "--contender", "fbgemm", "--preset", "gru"]);
    let cases = run["recurrent"].as_array().unwrap();
    assert_eq!(cases.len(), 4); // batches of 1 and 8, one step and 50
    for case in cases {
        assert_eq!((case["layer"].as_str(), case["hidden"].as_u64()), (Some("GRU"), Some(128)));
        let timings = case["timings"].as_array().unwrap();
        let names: Vec<&str> = timings.iter().map(|timing| timing["contender"].as_str().unwrap()).collect();
        assert_eq!(names[..4], ["fbgemm", "fbgemm as PyTorch", "fbgemm fp16", "gemm"]);
        assert!(timings.iter().all(|t| ["low", "median", "high"].iter().all(|key| positive(&t[key]))));
    }
}

#[test]
fn encoder_stands_beside_what_peers_printed() {
    let folder = folder("bench-encoder");
    let peers = folder.join("peers.txt");
    fs::write(&peers, "onnx-int8 cosine 0.88 0.92\nonnx-int8 1 64 8 wall_ms 1000 cpu_ms 1000\n").unwrap();
    let quick = ["bench", "--encoder", "--quick", "--peers", peers.to_str().unwrap()];
    let run = answer(&[&quick[..], &["--plot", folder.to_str().unwrap()]].concat());
    let cases = run["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12); // four lengths, three numbers of texts
    assert!(cases.iter().all(|case| positive(&case["timings"][0]["processor"])));
    let beside = cases.iter().find(|case| case["timings"].as_array().unwrap().len() == 2).unwrap();
    assert_eq!(
        (&beside["tokens"], &beside["texts"], &beside["timings"][1]["processor"]),
        (&"64".into(), &8.into(), &1.0.into())
    );
    let svg = fs::read_to_string(folder.join("encoder.svg")).unwrap();
    assert!(svg.contains("64 tokens, 1 thread") && svg.contains("onnx-int8"));

    fs::write(&peers, "Loading the model ...\n").unwrap();
    let refused = fbgemm(&quick);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("peers.txt, line 1: "), "{}", stderr(&refused));
}
