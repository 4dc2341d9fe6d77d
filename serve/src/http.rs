//! The router: who may ask, how a body is read, and what is counted and logged of each request.

use crate::metrics;
use crate::model::{Figures, Purpose};
use crate::openai;
use crate::refusal::{Kind, Protocol, Refusal};
use crate::service::Service;
use crate::tei;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use std::time::Instant;
use subtle::ConstantTimeEq;
use tower_http::catch_panic::CatchPanicLayer;

const PAGE: &str = include_str!("page.html");

pub(crate) fn router(service: Service) -> Router {
    // An endpoint of either protocol: an answer, or a refusal in the protocol's words.
    macro_rules! endpoint {
        ($protocol:ident, $handler:path) => {
            post(async |State(service): State<Service>, request: Request| {
                let answer = async { $handler(service.clone(), Body::read(request, &service).await?).await };
                answer.await.map_or_else(|refusal| refusal.response(Protocol::$protocol), IntoResponse::into_response)
            })
        };
    }
    // As in text-embeddings-inference, the root does what the model is for.
    let root = match service.model().purpose() {
        Purpose::Embed => endpoint!(Tei, tei::embed),
        Purpose::Rerank => endpoint!(Tei, tei::rerank),
        Purpose::Classify => endpoint!(Tei, tei::predict),
    };
    let json = |text: String| ([(header::CONTENT_TYPE, "application/json")], text);
    let guarded = Router::new()
        .route("/", root)
        .route("/embed", endpoint!(Tei, tei::embed))
        .route("/rerank", endpoint!(Tei, tei::rerank))
        .route("/predict", endpoint!(Tei, tei::predict))
        .route("/similarity", endpoint!(Tei, tei::similarity))
        .route("/v1/embeddings", endpoint!(OpenAi, openai::embeddings))
        .route("/embeddings", endpoint!(OpenAi, openai::embeddings))
        .route("/info", get(async move |State(service): State<Service>| json(tei::info(&service).to_string())))
        .route(
            "/v1/models",
            get(async move |State(service): State<Service>| json(openai::models(&service).to_string())),
        )
        .route(
            "/metrics",
            get(async |State(service): State<Service>| {
                ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], service.metrics_text())
            }),
        )
        .layer(from_fn_with_state(service.clone(), authorize));
    let open = Router::new().route("/", get(page)).route("/health", get(health)).route("/ping", get(health));
    guarded
        .merge(open)
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(service.clone(), observe))
        .with_state(service)
}

/// What a handler gives.
pub(crate) struct Answered {
    body: Vec<u8>,
    figures: Figures,
    headers: HeaderMap,
}

impl Answered {
    pub(crate) fn new(body: &impl Serialize, figures: Figures, headers: HeaderMap) -> Result<Self, Refusal> {
        let body = serde_json::to_vec(body).map_err(|e| Refusal::new(Kind::Model, e.to_string()))?;
        Ok(Self { body, figures, headers })
    }
}

impl IntoResponse for Answered {
    fn into_response(self) -> Response {
        let mut response = (self.headers, self.body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.extensions_mut().insert(self.figures);
        response
    }
}

/// A request's body, which said that it is JSON.
pub(crate) struct Body(pub Bytes);

impl Body {
    async fn read(request: Request, service: &Service) -> Result<Self, Refusal> {
        let options = service.options();
        let too_large = || {
            let message = format!("the body is larger than {} bytes", options.body_bytes);
            Refusal::new(Kind::TooLarge, message)
        };
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > options.body_bytes as u64) {
            return Err(too_large());
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
            let message = format!("the content-type is `{kind}`, expected `application/json`");
            return Err(Refusal::new(Kind::MediaType, message));
        }
        let body = Limited::new(request.into_body(), options.body_bytes).collect();
        match tokio::time::timeout(options.body_timeout, body).await {
            Err(_) => Err(Refusal::new(Kind::Slow, "the body took too long to arrive")),
            Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(e)) => Err(Refusal::new(Kind::Syntax, format!("the body could not be read: {e}"))),
            Ok(Ok(body)) => Ok(Self(body.to_bytes())),
        }
    }
}

/// Nothing outside, nothing stored, no place in another site's frame.
async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-cache")], Html(PAGE)).into_response()
}

/// Whether all compute threads are there, and more requests may come.
async fn health(State(service): State<Service>) -> Response {
    let (alive, threads) = service.model().alive();
    if service.is_ending() {
        return Refusal::new(Kind::Closed, "the service is about to end").response(Protocol::Tei);
    }
    if alive < threads {
        let message = format!("{alive} of {threads} compute threads are alive");
        return Refusal::new(Kind::Closed, message).response(Protocol::Tei);
    }
    StatusCode::OK.into_response()
}

async fn wrong_method(method: Method, request: Request) -> Response {
    let path = request.uri().path();
    Refusal::new(Kind::Method, format!("{method} is not for {path}")).response(Protocol::of(path))
}

async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    Refusal::new(Kind::NotFound, format!("there is no {path}")).response(Protocol::of(path))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = text, "a request's handler panicked");
    Refusal::new(Kind::Panic, "the service has a fault").response(Protocol::Tei)
}

/// Lets those pass who show the token, if there is one. The comparison's time tells its length at most.
async fn authorize(State(service): State<Service>, request: Request, next: Next) -> Response {
    let Some(token) = &service.options().token else { return next.run(request).await };
    let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let (scheme, shown) = shown.split_at_checked(b"Bearer ".len()).unwrap_or_default();
    if scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(shown.ct_eq(token.as_bytes())) {
        return next.run(request).await;
    }
    let refusal =
        Refusal::new(Kind::Unauthorized, "expected the header `Authorization: Bearer` with the service's token");
    refusal.response(Protocol::of(request.uri().path()))
}

/// Counts and logs a request, also one whose client goes away before the answer.
async fn observe(State(service): State<Service>, request: Request, next: Next) -> Response {
    struct Observed {
        service: Service,
        method: Method,
        path: String,
        start: Instant,
        status: u16,
        figures: Figures,
    }
    impl Drop for Observed {
        fn drop(&mut self) {
            let took = self.start.elapsed();
            self.service.metrics().request(&self.path, self.status, took);
            let (method, path, status) = (self.method.as_str(), self.path.as_str(), self.status);
            let Figures { texts, tokens, queued, computed, .. } = self.figures;
            let [took, queued, computed] = [took, queued, computed].map(|time| time.as_micros() as f64 / 1e3);
            match status {
                500.. => tracing::warn!(method, path, status, took, "request"),
                _ if texts > 0 => {
                    tracing::info!(method, path, status, took, texts, tokens, queued, computed, "request")
                }
                _ => tracing::info!(method, path, status, took, "request"),
            }
        }
    }
    // Not the path as it came: there would be no end of different ones.
    let path = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_string();
    let (method, start) = (request.method().clone(), Instant::now());
    let mut observed = Observed { service, method, path, start, status: 499, figures: Figures::default() };
    let mut response = next.run(request).await;
    observed.status = response.status().as_u16();
    observed.figures = response.extensions().get().copied().unwrap_or_default();
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(HeaderName::from_static("x-content-type-options"), nosniff);
    response
}
