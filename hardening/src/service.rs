//! Requests to the service: JSON that clients send, changed, to every endpoint. None may be answered with an error of the
//! server's own.

use crate::encoder::golden;
use crate::mutate;
use arbitrary::{Result, Unstructured};
use axum::body::{Body, to_bytes};
use axum::http::Request;
use fbgemm_serve::{EncoderOptions, Service, ServiceOptions};
use std::sync::OnceLock;
use tower::ServiceExt;

const REQUESTS: [(&str, &str); 9] = [
    ("/embed", r#"{"inputs": "the cat", "truncate": true, "truncation_direction": "Left", "normalize": false}"#),
    ("/embed", r#"{"inputs": ["the cat", "sat on", "the mat"], "dimensions": 4, "prompt_name": null}"#),
    ("/embed", r#"{"inputs": [[5, 6, 7], [8]]}"#),
    ("/", r#"{"inputs": [5, 6, 7]}"#),
    ("/rerank", r#"{"query": "cat", "texts": ["the cat", "the mat"], "raw_scores": true, "return_text": true}"#),
    (
        "/similarity",
        r#"{"inputs": {"source_sentence": "a cat", "sentences": ["the cat"]}, "parameters": {"truncate": true}}"#,
    ),
    ("/v1/embeddings", r#"{"input": "the cat", "model": "bert", "encoding_format": "base64", "dimensions": 3}"#),
    ("/v1/embeddings", r#"{"input": [[5, 6], [7]], "encoding_format": "float", "user": "x"}"#),
    ("/embeddings", r#"{"input": ["the cat", "the mat"]}"#),
];

/// An embedding model and a reranker, each with a runtime's handle to ask it.
fn services() -> &'static [Service; 2] {
    static SERVICES: OnceLock<[Service; 2]> = OnceLock::new();
    SERVICES.get_or_init(|| {
        ["bert-dense", "xlm-roberta-reranker"].map(|name| {
            Service::open(golden(name), &EncoderOptions::new(), ServiceOptions::new()).unwrap_or_else(|e| panic!("{e}"))
        })
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// A changed request.
pub fn service(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut work = || -> Result<()> {
        let service = u.choose(services())?;
        let (path, json) = *u.choose(&REQUESTS)?;
        let body = match u.int_in_range(0..=15)? {
            0 => u.bytes(u.len() / 2)?.to_vec(),
            _ => mutate::json_text(json, &mut u)?,
        };
        let method = *u.choose(&["POST", "POST", "POST", "POST", "POST", "POST", "POST", "GET"])?;
        let kind = *u.choose(&["application/json", "application/json", "application/json", "text/plain", ""])?;
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Body::from(body.clone())).expect("a request of known parts");
        let (status, answer) = runtime().block_on(async {
            let response = service.router().oneshot(request).await.expect("a router answers");
            let status = response.status();
            (status, to_bytes(response.into_body(), 1 << 24).await.expect("an answer that is there"))
        });
        let told = || format!("{method} {path} {}: {status}: {}", show(&body), show(&answer));
        assert!(status.is_success() || status.is_client_error(), "{}", told());
        if status.is_client_error() && method == "POST" {
            let refusal: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
            assert!(refusal.is_object(), "{}", told());
        }
        Ok(())
    };
    let _ = work();
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into()
}
