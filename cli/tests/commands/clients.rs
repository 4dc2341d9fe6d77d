//! `fbgemm serve` and clients that others wrote: the packages `openai`, `huggingface_hub`, `tei-client` and
//! `prometheus-client` for Python, in a virtual environment of this test's own.

use crate::PROGRAM;
use crate::serve::{Served, model};
use fbgemm_testkit::process::{stderr, stdout};
use fbgemm_testkit::python::environment;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The environment's Python, made once.
fn python() -> Result<&'static Path, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let make = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
        environment(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands/clients.txt"))
    };
    PYTHON.get_or_init(make).as_deref().map_err(Clone::clone)
}

/// Runs a script with what every one of them needs, against a service on this machine; or says that
/// there is no Python.
fn asserts(script: &str, arguments: &[&str]) {
    let python = match python() {
        Ok(python) => python,
        Err(e) => {
            eprintln!("NOT RUN: Python with the packages of clients.txt can't be made: {e}");
            return;
        }
    };
    let mut command = Command::new(python);
    command.args(["-c", &format!("{COMMON}{script}")]).args(arguments);
    // The service is on this machine, whatever proxy leads elsewhere.
    command.env("NO_PROXY", "127.0.0.1").env_remove("HF_HUB_OFFLINE").env("HF_HUB_DISABLE_TELEMETRY", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).ends_with("all asserted\n"), "{}", stdout(&output));
}

/// What `fbgemm embed` prints for these lines.
fn embedded(texts: &str) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["embed", &model("bert"), "--normalize", "true"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(texts.as_bytes()).unwrap();
    stdout(&child.wait_with_output().unwrap())
}

#[test]
fn openai_s_client_and_the_hub_s_get_what_embed_prints() {
    let texts = "the cat\nZürich is a city\nthe dog sat on the mat";
    let served = Served::start("bert", &["--name", "a-name"]);
    asserts(EMBED, &[&served.url, texts, &embedded(texts)]);
}

#[test]
fn a_client_of_text_embeddings_inference_embeds_ranks_and_classifies() {
    let texts = "the cat\nZürich is a city\nthe dog sat on the mat";
    let golden = |name: &str| std::fs::read_to_string(Path::new(&model(name)).join("golden.json")).unwrap();
    let served = [
        Served::start("bert", &[]),
        Served::start("xlm-roberta-reranker", &["--scheme", "stored"]),
        Served::start("bert-labels", &["--scheme", "stored"]),
    ];
    let [embeds, ranks, classifies] = served.each_ref().map(|served| served.url.as_str());
    let goldens = ["xlm-roberta-reranker", "bert-labels"].map(golden);
    asserts(TEI, &[embeds, texts, &embedded(texts), ranks, &goldens[0], classifies, &goldens[1]]);
}

const COMMON: &str = r#"
import asyncio, json, sys, urllib.request
import numpy as np
bits = lambda rows: np.asarray(rows, dtype=np.float32).view(np.uint32).tolist()
url, texts = sys.argv[1], sys.argv[2].split("\n")
expected = np.array([json.loads(line) for line in sys.argv[3].splitlines()], dtype=np.float32)
assert expected.shape == (3, 32), expected.shape
"#;

const EMBED: &str = r#"
import openai
from huggingface_hub import InferenceClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families

def refused(kind, call):
    try:
        call()
    except kind as e:
        return e
    raise AssertionError(f"no {kind}")

client = openai.OpenAI(base_url=url + "/v1", api_key="a-secret", max_retries=0)
def vectors(**options):
    answer = client.embeddings.create(model="a-name", input=texts, **options)
    assert answer.model == "a-name" and answer.usage.total_tokens == answer.usage.prompt_tokens > 3, answer.usage
    assert [row.index for row in answer.data] == [0, 1, 2]
    return [row.embedding for row in answer.data]
# Left to itself the client asks for base64.
for options in [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]:
    rows = vectors(**options)
    if isinstance(rows[0], str):
        import base64
        rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
    assert bits(rows) == bits(expected), options
short = client.embeddings.create(model="a-name", input=texts[0], dimensions=8).data[0].embedding
assert len(short) == 8 and abs(np.linalg.norm(short) - 1) < 1e-5, short
assert [model.id for model in client.models.list()] == ["a-name"]
stranger = openai.OpenAI(base_url=url + "/v1", api_key="no", max_retries=0)
e = refused(openai.AuthenticationError, lambda: stranger.embeddings.create(model="a-name", input="a"))
assert e.status_code == 401, e
e = refused(openai.BadRequestError, lambda: client.embeddings.create(model="a-name", input=[]))
assert "empty" in e.message, e

hub = InferenceClient(model=url + "/embed", token="a-secret")
for text, row in zip(texts, expected):
    got = hub.feature_extraction(text)
    assert got.dtype == np.float32 and bits(got) == bits([row]), got
got = InferenceClient(model=url, token="a-secret").feature_extraction(texts[0])
assert bits(got) == bits(expected[:1])

request = urllib.request.Request(url + "/metrics", headers={"Authorization": "Bearer a-secret"})
with urllib.request.urlopen(request) as answer:
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(text_string_to_metric_families(answer.read().decode()))
samples = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}
assert samples["fbgemm_requests_total", "/v1/embeddings", "200"] == 4, samples
assert samples["fbgemm_requests_total", "/v1/embeddings", "400"] == 1, samples
assert samples["fbgemm_requests_total", "/embed", "200"] == 3, samples
assert samples["fbgemm_request_duration_seconds_count", "/embed"] == 3, samples
# Three times three texts and a short one of OpenAI's, and four of the hub's.
assert samples["fbgemm_texts_total",] == samples["fbgemm_batch_texts_sum",] == 14, samples
assert samples["fbgemm_tokens_total",] == samples["fbgemm_batch_tokens_sum",] > 42, samples
assert samples["fbgemm_queue_texts",] == samples["fbgemm_panics_total",] == 0, samples
print("all asserted")
"#;

const TEI: &str = r#"
import tei_client

headers = {"Authorization": "Bearer a-secret"}
embeds, ranks, classifies = (tei_client.HttpClient(url, headers=headers) for url in (url, sys.argv[4], sys.argv[6]))
assert embeds.health() and not tei_client.HttpClient(url).health()
info = embeds.info()
assert (info.server_model_id, info.server_model_type.value) == ("bert", "embedding"), info
assert bits(embeds.embed(texts)) == bits(expected)
assert bits(embeds.embed(texts[1], truncate=True)) == bits(expected[1:2])
assert bits(asyncio.run(embeds.async_embed(texts))) == bits(expected)
long = embeds.embed(texts, normalize=False)
assert [abs(np.linalg.norm(row) - 1) > 0.1 for row in long] == [True] * 3, long

# Logits of PyTorch, of texts and of pairs.
def close(a, b):
    return abs(a - b) < 2e-5 * max(1, abs(b))
cases = json.loads(sys.argv[5])
query = "the cat"
assert ranks.info().server_model_type.value == "reranker"
pairs = [(*case["text"], case["vector"][0]) for case in cases if isinstance(case["text"], list)]
assert len(pairs) >= 2, pairs
for first, second, logit in pairs:
    rank, = ranks.rerank(first, [second], raw_scores=True, return_text=True, truncate=True).ranks
    assert close(rank.score, logit) and rank.text == second, (rank, logit)
    rank, = ranks.rerank(first, [second], truncate=True).ranks
    assert close(rank.score, 1 / (1 + np.exp(-logit))) and rank.text is None, (rank, logit)
all = ranks.rerank(query, texts).ranks
assert sorted(rank.index for rank in all) == [0, 1, 2] and all[0].score >= all[1].score >= all[2].score, all

cases = json.loads(sys.argv[7])
kind = classifies.info().server_model_metadata
assert kind.id2label == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} and kind.label2id["LABEL_2"] == 2, kind
inputs = [case["text"] if isinstance(case["text"], list) else [case["text"]] for case in cases]
assert {len(texts) for texts in inputs} == {1, 2}
for raw in [False, True]:
    for case, result in zip(cases, classifies.classify(inputs, raw_scores=raw, truncate=True), strict=True):
        scores = np.array(case["vector"])
        if not raw:
            scores = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        order = np.argsort(-scores)
        assert [score.label for score in result.scores] == [f"LABEL_{i}" for i in order], (case, result)
        assert np.allclose([score.score for score in result.scores], scores[order], rtol=1e-4, atol=1e-5), (case, result)
print("all asserted")
"#;
