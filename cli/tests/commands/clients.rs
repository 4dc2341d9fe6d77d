//! `fbgemm serve` and clients that others wrote: the packages `openai`, `huggingface_hub` and `prometheus-client` for
//! Python, in a virtual environment of this test's own.

use crate::PROGRAM;
use crate::serve::{Served, model};
use fbgemm_testkit::process::{stderr, stdout};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PACKAGES: [&str; 3] = ["openai==3.57.0", "huggingface_hub==1.33.0", "prometheus-client==0.26.0"];

/// The environment's Python, or what stood in the way.
fn python() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
    let python = venv.join("bin/python");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(venv.join("complete")).is_ok_and(|has| has == wanted) {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&venv);
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}{}", stdout(&output), stderr(&output))),
        Err(e) => Err(format!("{command:?}: {e}")),
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "numpy"];
    run(Command::new(&python).args(pip).args(PACKAGES))?;
    std::fs::write(venv.join("complete"), wanted).unwrap();
    Ok(python)
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
fn python_clients_get_what_embed_prints() {
    let python = match python() {
        Ok(python) => python,
        Err(e) => {
            eprintln!("NOT RUN: python3 with {PACKAGES:?} can't be made: {e}");
            return;
        }
    };
    let texts = "the cat\nZürich is a city\nthe dog sat on the mat";
    let served = Served::start("bert", &["--name", "a-name"]);
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT, &served.url, texts, &embedded(texts)]);
    // The service is on this machine, whatever proxy leads elsewhere.
    command.env("NO_PROXY", "127.0.0.1").env_remove("HF_HUB_OFFLINE").env("HF_HUB_DISABLE_TELEMETRY", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).ends_with("all asserted\n"), "{}", stdout(&output));
}

const SCRIPT: &str = r#"
import json, sys, urllib.request
import numpy as np
import openai
from huggingface_hub import InferenceClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families

url, texts = sys.argv[1], sys.argv[2].split("\n")
expected = np.array([json.loads(line) for line in sys.argv[3].splitlines()], dtype=np.float32)
bits = lambda rows: np.asarray(rows, dtype=np.float32).view(np.uint32).tolist()
assert expected.shape == (3, 32), expected.shape

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
