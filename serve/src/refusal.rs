//! Why a request is not answered, in the words of both protocols.

use crate::gather::Failure;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Whose errors a client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tei,
    OpenAi,
}

impl Protocol {
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/") || path == "/embeddings" { Self::OpenAi } else { Self::Tei }
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No JSON at all.
    Syntax,
    /// No texts.
    Empty,
    /// A field of the wrong type, or a value that can't be.
    Invalid,
    /// Too many texts.
    TooMany,
    /// Too many bytes.
    TooLarge,
    MediaType,
    Slow,
    Unauthorized,
    NotFound,
    Method,
    /// The model does not do this, or failed.
    Model,
    Full,
    Late,
    Closed,
    Panic,
}

#[derive(Debug)]
pub(crate) struct Refusal {
    pub kind: Kind,
    pub message: String,
    /// The field that is wrong.
    pub field: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None }
    }

    pub(crate) fn field(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    pub(crate) fn json(error: &serde_json::Error) -> Self {
        let kind = if error.is_data() { Kind::Invalid } else { Kind::Syntax };
        Self::new(kind, format!("the body: {error}"))
    }

    /// The answer, as text-embeddings-inference or OpenAI has it.
    pub(crate) fn response(&self, protocol: Protocol) -> Response {
        let status = self.status(protocol);
        let body = match protocol {
            Protocol::Tei => json!({"error": self.message, "error_type": self.tei_type()}),
            Protocol::OpenAi => json!({"error": {
                "message": self.message,
                "type": self.openai_type(),
                "param": self.field,
                "code": self.openai_code(),
            }}),
        };
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        let headers = response.headers_mut();
        match self.kind {
            Kind::Full | Kind::Late => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
            Kind::Closed => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"))),
            Kind::Unauthorized => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            // What is left of the body is not read.
            Kind::Slow | Kind::TooLarge => drop(headers.insert(header::CONNECTION, HeaderValue::from_static("close"))),
            _ => (),
        }
        response
    }

    fn status(&self, protocol: Protocol) -> StatusCode {
        match self.kind {
            Kind::Syntax | Kind::Empty => StatusCode::BAD_REQUEST,
            Kind::Invalid | Kind::TooMany | Kind::Model if protocol == Protocol::OpenAi => StatusCode::BAD_REQUEST,
            Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::TooMany | Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Slow => StatusCode::REQUEST_TIMEOUT,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Model => StatusCode::FAILED_DEPENDENCY,
            Kind::Full => StatusCode::TOO_MANY_REQUESTS,
            Kind::Late | Kind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Panic => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn tei_type(&self) -> &'static str {
        match self.kind {
            Kind::Empty => "Empty",
            Kind::Model | Kind::Panic => "Backend",
            Kind::Full | Kind::Late => "Overloaded",
            Kind::Closed => "Unhealthy",
            _ => "Validation",
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.kind {
            Kind::Full => "rate_limit_error",
            Kind::Late | Kind::Closed | Kind::Panic => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn openai_code(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Unauthorized => Some("invalid_api_key"),
            Kind::Full => Some("rate_limit_exceeded"),
            _ => None,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Full => Self::new(Kind::Full, "the service is overloaded: its queue is full"),
            Failure::Late => Self::new(Kind::Late, "the service is overloaded: the request waited too long"),
            Failure::Closed => Self::new(Kind::Closed, "the service is about to end"),
            Failure::Model(message) => Self::new(Kind::Model, message),
        }
    }
}
