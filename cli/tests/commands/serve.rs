//! `fbgemm serve`: as `curl` sees it, and how it starts and ends.

use crate::{PROGRAM, fbgemm, folder};
use fbgemm_encoder::{Encoder, EncoderOptions};
use fbgemm_testkit::process::{stderr, stdout};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

pub fn model(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/golden").join(name).display().to_string()
}

/// A service, ended when this is dropped.
pub struct Served {
    child: Child,
    log: BufReader<ChildStderr>,
    pub url: String,
}

impl Served {
    /// A small model by its name, or one's folder.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", &model(name), "--port", "0", "--log-format", "json"]).args(arguments);
        command.env("FBGEMM_TOKEN", "a-secret").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            log.read_line(&mut line).unwrap();
            (log, line)
        });
        let start = Instant::now();
        while !reader.is_finished() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !reader.is_finished() {
            let _ = child.kill(); // which ends the line
        }
        let (log, line) = reader.join().unwrap();
        let started: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!((&started["message"], &started["token"]), (&json!("listening"), &json!(true)), "{line}");
        Self { child, log, url: started["url"].as_str().unwrap().to_string() }
    }

    /// The status and the answer.
    fn curl(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-w", "\n%{http_code}"]).args(arguments);
        // A second header of the name would count for nothing.
        if !arguments.iter().any(|argument| argument.starts_with("Authorization")) {
            command.args(["-H", "Authorization: Bearer a-secret"]);
        }
        let output = command.arg(format!("{}{path}", self.url)).output().expect("curl");
        let said = stdout(&output);
        let (body, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_string())
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.curl(path, &["--json", body]);
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
    }

    /// A connection of its own, on which a read ends after a while at most.
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// What the process holds in memory.
    pub fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1e3
    }

    fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Sends a signal; the exit code, and what was logged since.
    pub fn end(self, signal: &str) -> (Option<i32>, String) {
        self.signal(signal);
        self.ended()
    }

    /// The exit code, and what was logged since.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn curl_gets_the_vectors_that_embed_prints_alone_and_beside_others() {
    let served = Served::start("bert", &[]);
    let texts = ["the cat", "", "Zürich", "the cat sat on the mat and the dog sat on the cat"];
    let mut command = Command::new(PROGRAM);
    let mut child = command.args(["embed", &model("bert"), "--normalize", "true"]);
    child = child.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(texts.join("\n").as_bytes()).unwrap();
    let expected = stdout(&child.wait_with_output().unwrap());
    let expected: Vec<Vec<f32>> = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let vectors = |body: Value| -> Vec<Vec<f32>> {
        let (status, answer) = served.post("/embed", &body.to_string());
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    };
    assert_eq!(vectors(json!({"inputs": texts})), expected);
    for (text, expected) in texts.iter().zip(&expected) {
        assert_eq!(vectors(json!({"inputs": text})), std::slice::from_ref(expected));
    }
    let (status, answer) = served.post("/v1/embeddings", &json!({"input": texts, "model": "any"}).to_string());
    assert_eq!((status, &answer["object"], &answer["model"]), (200, &json!("list"), &json!("bert")));
    let list = answer["data"].as_array().unwrap();
    let list: Vec<Vec<f32>> = list.iter().map(|x| serde_json::from_value(x["embedding"].clone()).unwrap()).collect();
    assert_eq!(list, expected);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 20);
    let short: Vec<Vec<f32>> = vectors(json!({"inputs": texts, "dimensions": 5, "normalize": true}));
    assert!(short.iter().all(|v| v.len() == 5 && (v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    let (status, metrics) = served.curl("/metrics", &[]);
    assert!(status == 200 && metrics.contains("fbgemm_texts_total") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (code, log) = served.end("-TERM");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("all requests are answered"), "{log}");
}

#[test]
fn what_is_wrong_with_a_request_is_a_clear_4xx() {
    let served = Served::start("bert", &["--max-texts", "2", "--max-body", "1000"]);
    let long = "a ".repeat(200);
    for (path, body, status, said) in [
        ("/embed", "{", 400, "EOF while parsing"),
        ("/embed", r#"{"inputs": 1}"#, 422, "expected a string, a list of strings"),
        ("/embed", r#"{}"#, 422, "missing field `inputs`"),
        ("/embed", r#"{"inputs": []}"#, 400, "`inputs` cannot be empty"),
        ("/embed", r#"{"inputs": ["a", "b", "c"]}"#, 413, "batch size 3 > maximum allowed batch size 2"),
        ("/embed", r#"{"inputs": [999999]}"#, 422, "token 999999"),
        ("/embed", r#"{"inputs": "a", "dimensions": 33}"#, 422, "expected 1 to 32"),
        ("/embed", r#"{"inputs": "a", "prompt_name": "x"}"#, 422, "the model has none"),
        ("/embed", &format!(r#"{{"inputs": "{long}", "truncate": false}}"#), 422, "Given: 202"),
        ("/rerank", r#"{"query": "a", "texts": ["b"]}"#, 424, "not a reranker"),
        ("/predict", r#"{"inputs": "a"}"#, 424, "not a classifier"),
        ("/v1/embeddings", r#"{"input": 1}"#, 400, "expected a string"),
        ("/nothing", "{}", 404, "there is no /nothing"),
        ("/health", "{}", 405, "POST is not for /health"),
    ] {
        let (given, answer) = served.post(path, body);
        let message = if path.starts_with("/v1") { &answer["error"]["message"] } else { &answer["error"] };
        assert!(given == status && message.as_str().unwrap().contains(said), "{path} {body}: {given} {answer}");
    }
    let large = format!(r#"{{"inputs": "{}"}}"#, "a".repeat(2000));
    assert_eq!(served.post("/embed", &large).0, 413);
    assert_eq!(served.curl("/embed", &["-d", r#"{"inputs": "a"}"#]).0, 415);
    assert_eq!(served.curl("/embed", &["--json", r#"{"inputs": "a"}"#, "-H", "Authorization: Bearer a-secreT"]).0, 401);
    assert_eq!(served.curl("/health", &["-H", "Authorization:"]).0, 200);
    assert_eq!(served.post("/embed", r#"{"inputs": "a"}"#).0, 200);
    assert_eq!(served.end("-INT").0, Some(0));
}

#[test]
fn where_it_listens_is_told_at_every_level_and_little_else() {
    for level in ["error", "warn"] {
        let served = Served::start("bert", &["--log", level]); // which reads the line
        assert_eq!(served.post("/embed", r#"{"inputs": "a"}"#).0, 200);
        let (code, log) = served.end("-TERM");
        assert_eq!((code, log.as_str()), (Some(0), ""));
    }
}

#[test]
fn prompts_ids_and_cuts_give_the_vector_of_what_the_model_reads() {
    let folder = folder("prompted");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "modules.json"] {
        std::fs::copy(Path::new(&model("bert")).join(name), folder.join(name)).unwrap();
    }
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    std::fs::copy(Path::new(&model("bert")).join("1_Pooling/config.json"), folder.join("1_Pooling/config.json"))
        .unwrap();
    let prompts = json!({"prompts": {"query": "the cat ", "document": ""}});
    std::fs::write(folder.join("config_sentence_transformers.json"), prompts.to_string()).unwrap();
    let encoder = Encoder::open(&folder, &EncoderOptions::new()).unwrap();
    let served = Served::start(&folder.display().to_string(), &["--max-tokens", "8"]);
    let embed = |body: Value| {
        let (status, answer) = served.post("/embed", &body.to_string());
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    };
    let plain = |text: &str| embed(json!({"inputs": text}));
    assert_eq!(embed(json!({"inputs": "sat", "prompt_name": "query"})), plain("the cat sat"));
    assert_eq!(embed(json!({"inputs": "sat", "prompt_name": "document"})), plain("sat"));
    let ids = |text: &str| encoder.tokenize(&[text]).unwrap().ids(0).to_vec();
    assert_eq!(embed(json!({"inputs": ids("the cat sat")})), plain("the cat sat"));
    let (_, answer) = served.post("/v1/embeddings", &json!({"input": [ids("the"), ids("the cat sat")]}).to_string());
    assert_eq!(json!([answer["data"][1]["embedding"]]), plain("the cat sat"));
    // Eight tokens: the first and the last, and six of the text.
    let long = "the cat sat on the mat and the dog sat on the cat and the mat";
    let all = ids(long);
    let (first, inner, last) = (all[0], &all[1..all.len() - 1], all[all.len() - 1]);
    let cut = |kept: &[u32]| {
        let ids = [&[first], kept, &[last]].concat();
        embed(json!({"inputs": ids}))
    };
    assert!(inner.len() > 8, "{all:?}");
    assert_eq!(plain(long), cut(&inner[..6]));
    let left = json!({"inputs": long, "truncate": true, "truncation_direction": "Left"});
    assert_eq!(embed(left), cut(&inner[inner.len() - 6..]));
    assert_ne!(cut(&inner[..6]), cut(&inner[inner.len() - 6..]));
    // With a default prompt, which stands before all texts for which no other is asked for.
    let prompts = json!({"prompts": {"query": "the cat ", "document": ""}, "default_prompt_name": "query"});
    std::fs::write(folder.join("config_sentence_transformers.json"), prompts.to_string()).unwrap();
    let prompted = Served::start(&folder.display().to_string(), &[]);
    let answer = |path: &str, body: Value| prompted.post(path, &body.to_string()).1;
    assert_eq!(answer("/embed", json!({"inputs": "sat"})), plain("the cat sat"));
    assert_eq!(answer("/embed", json!({"inputs": "sat", "prompt_name": "document"})), plain("sat"));
    let given = answer("/v1/embeddings", json!({"input": "sat"}));
    assert_eq!(json!([given["data"][0]["embedding"]]), plain("the cat sat"));
}

#[test]
fn a_classifier_predicts_labels() {
    let served = Served::start("bert-labels", &[]);
    let (status, answer) = served.post("/predict", r#"{"inputs": "the cat"}"#);
    let predictions = answer.as_array().unwrap();
    let sum: f64 = predictions.iter().map(|prediction| prediction["score"].as_f64().unwrap()).sum();
    assert!(status == 200 && predictions.len() == 3 && (sum - 1.0).abs() < 1e-5, "{answer}");
    // Alone, in a batch, and at the root, it is the same.
    let (_, batch) = served.post("/predict", r#"{"inputs": [["the cat"], ["the cat", "the dog"]]}"#);
    assert_eq!((&batch[0], batch.as_array().unwrap().len()), (&answer, 2));
    assert_eq!(served.post("/", r#"{"inputs": "the cat"}"#).1, answer);
    for (path, body, status, said) in [
        ("/predict", r#"{"inputs": ["a", "b", "c"]}"#, 422, "a pair of strings"),
        ("/predict", r#"{"inputs": []}"#, 400, "`inputs` cannot be empty"),
        ("/embed", r#"{"inputs": "a"}"#, 424, "a classifier, not an embedding model"),
        ("/rerank", r#"{"query": "a", "texts": ["b"]}"#, 424, "a classifier, not a reranker"),
    ] {
        let (given, answer) = served.post(path, body);
        assert!(given == status && answer["error"].as_str().unwrap().contains(said), "{path} {body}: {given} {answer}");
    }
}

#[test]
fn a_reranker_sorts_by_score() {
    let served = Served::start("xlm-roberta-reranker", &["--max-body", "1000"]);
    // A body that is small, and would be read a hundred times over.
    let texts = vec!["a"; 90];
    let (status, answer) = served.post("/rerank", &json!({"query": "b".repeat(100), "texts": texts}).to_string());
    assert!(status == 413 && answer["error"].as_str().unwrap().contains("once for each text"), "{status} {answer}");
    let (status, answer) = served.post("/rerank", r#"{"query": "a", "texts": ["b", "c d"], "return_text": true}"#);
    let ranks = answer.as_array().unwrap();
    let score = |rank: usize| ranks[rank]["score"].as_f64().unwrap();
    assert!(status == 200 && ranks.len() == 2 && score(0) >= score(1) && (0.0..=1.0).contains(&score(0)), "{answer}");
    let text = ["b", "c d"][ranks[0]["index"].as_u64().unwrap() as usize];
    assert_eq!(ranks[0]["text"], text);
    assert_eq!(served.post("/embed", r#"{"inputs": "a"}"#).0, 424);
}

/// A request's head, for a body of so many bytes.
fn head(bytes: usize) -> String {
    format!(
        "POST /embed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-secret\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n"
    )
}

/// All that comes until the service closes the connection.
fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap_or_else(|e| panic!("the connection stays open: {e}"));
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_slow_client_is_cut_off_and_others_are_answered() {
    let served = Served::start("bert", &["--client-timeout", "1"]);
    let [mut in_head, mut in_body, silent] = [served.connect(), served.connect(), served.connect()];
    in_head.write_all(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-").unwrap();
    in_body.write_all((head(1000) + "{\"inputs\": ").as_bytes()).unwrap();
    assert_eq!(served.post("/embed", r#"{"inputs": "a"}"#).0, 200);
    let [in_head, in_body, silent] = [in_head, in_body, silent].map(answer);
    assert!(in_head.is_empty() || in_head.starts_with("HTTP/1.1 408"), "{in_head}");
    assert!(in_body.starts_with("HTTP/1.1 408"), "{in_body}");
    assert_eq!(silent, "");
    assert_eq!(served.post("/embed", r#"{"inputs": "a"}"#).0, 200);
    assert_eq!(served.end("-TERM").0, Some(0));
}

#[test]
fn a_full_queue_answers_429_and_when_to_come_again() {
    let served = Served::start("bert", &["--threads", "1", "--queue", "64", "--batch-tokens", "1"]);
    let body = json!({"inputs": vec!["the cat sat on the mat and the dog sat on the cat"; 64]}).to_string();
    let request = head(body.len()) + &body;
    let (mut full, mut answered) = (0, 0);
    // All but the last byte, so that the ends of all requests arrive at about the same time.
    for _ in 0..5 {
        let mut streams: Vec<TcpStream> = (0..32).map(|_| served.connect()).collect();
        let (start, end) = request.as_bytes().split_at(request.len() - 1);
        streams.iter_mut().for_each(|stream| stream.write_all(start).unwrap());
        streams.iter_mut().for_each(|stream| stream.write_all(end).unwrap());
        for answer in streams.into_iter().map(answer) {
            if answer.starts_with("HTTP/1.1 429") {
                assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
                full += 1;
            } else {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                answered += 1;
            }
        }
        if full > 0 {
            break;
        }
    }
    assert!(full > 0 && answered > 0, "{full} of 429, {answered} of 200");
    assert_eq!(served.post("/embed", &body).0, 200);
}

#[test]
fn a_request_that_is_under_way_at_sigterm_is_answered() {
    let mut served = Served::start("bert", &[]);
    let mut stream = served.connect();
    let body = r#"{"inputs": "the cat"}"#;
    // With this header the service says when it has the head and waits for the body.
    let head = head(body.len()).replace("Host: x", "Host: x\r\nExpect: 100-continue");
    stream.write_all(head.as_bytes()).unwrap();
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body.as_bytes()[..9]).unwrap();
    served.signal("-TERM");
    let mut line = String::new();
    while !line.contains("no more connections are accepted") {
        line.clear();
        assert!(served.log.read_line(&mut line).unwrap() > 0, "it ended");
    }
    assert!(TcpStream::connect(served.url.strip_prefix("http://").unwrap()).is_err());
    stream.write_all(&body.as_bytes()[9..]).unwrap();
    let answer = answer(stream);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("]]"), "{answer}");
    let (code, log) = served.ended();
    assert!(code == Some(0) && log.contains("all requests are answered"), "{log}");
}

#[test]
fn what_can_not_be_served_exits_with_2() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (output, said) in [
        (fbgemm(&["serve", &model("bert"), "--port", &port]), "Address already in use"),
        (fbgemm(&["serve", "no such model", "--port", "0"]), "config.json: No such file"),
        (fbgemm(&["serve", &model("bert"), "--port", "0", "--threads", "0"]), "threads is 0, expected 1 or more"),
    ] {
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}
