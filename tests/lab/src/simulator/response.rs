//! Owns the forms of responses: JSON, error objects, HTML pages, and endless bodies.
//! Never chooses the response to a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Response;
use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};

/// The reaction to a request.
#[derive(Debug)]
pub(super) enum Reply {
    Response(ResponseSpec),
    /// Resets the connection.
    Reset,
    /// Never responds.
    Never,
}

/// A response before its conversion to `hyper::Response`.
#[derive(Debug)]
pub(super) struct ResponseSpec {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    payload: Payload,
}

/// A response body: one chunk, or an endless stream.
#[derive(Debug)]
pub(super) enum Payload {
    Whole(Option<Bytes>),
    Endless(Option<Bytes>),
}

const JSON: &str = "application/json";
const ENDLESS_CHUNK: &[u8] = &[b'a'; 16 * 1024];

impl ResponseSpec {
    /// Creates a response with a JSON body.
    pub(super) fn json(status: u16, body: &Value) -> Self {
        ResponseSpec::with(status, JSON, body.to_string())
    }

    /// Creates a response with the documented error object.
    pub(super) fn error(status: u16, message: &str, request_id: &str) -> Self {
        let body = json!({
            "status": status,
            "message": message,
            "request_id": request_id,
            "trace_id": format!("trace-of-{request_id}"),
        });
        ResponseSpec::json(status, &body)
    }

    /// Creates a response with the HTML page of a gateway.
    pub(super) fn page(status: u16) -> Self {
        let page =
            format!("<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>gateway</body></html>");
        ResponseSpec::with(status, "text/html", page)
    }

    /// Creates a response with a gateway's JSON object, which is not the documented error object.
    pub(super) fn other_json(status: u16) -> Self {
        ResponseSpec::json(status, &json!({"message": "no Route matched with those values"}))
    }

    /// Creates a response with an OAuth 2 error object.
    pub(super) fn oauth_error(status: u16) -> Self {
        ResponseSpec::json(status, &json!({"error": "invalid_client"}))
    }

    /// Creates a response with these bytes as `application/json`.
    pub(super) fn raw(status: u16, body: Vec<u8>) -> Self {
        ResponseSpec::with(status, JSON, body)
    }

    /// Creates a response without a body.
    pub(super) fn empty(status: u16) -> Self {
        ResponseSpec { status, headers: Vec::new(), payload: Payload::Whole(None) }
    }

    /// Creates a response with status 200 and a run's record whose name never ends.
    pub(super) fn endless(run_id: &str) -> Self {
        let beginning = format!(r#"{{"id":{},"state":"stopping","name":""#, json!(run_id));
        ResponseSpec {
            status: 200,
            headers: vec![("content-type".to_owned(), JSON.to_owned())],
            payload: Payload::Endless(Some(Bytes::from(beginning))),
        }
    }

    /// Adds a header if there is a value.
    pub(super) fn header(mut self, name: &str, value: Option<String>) -> Self {
        self.headers.extend(value.map(|value| (name.to_owned(), value)));
        self
    }

    /// Sets a header, and replaces one of the same name.
    pub(super) fn set_header(mut self, name: String, value: String) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
        self
    }

    pub(super) fn into_response(self) -> Response<Payload> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(self.payload).expect("tests use valid statuses and headers only")
    }

    fn with(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        ResponseSpec {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            payload: Payload::Whole(Some(body.into())),
        }
    }
}

impl From<ResponseSpec> for Reply {
    fn from(response: ResponseSpec) -> Self {
        Reply::Response(response)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Payload::Whole(bytes) => bytes.take(),
            // The TCP window limits how fast this is sent.
            Payload::Endless(beginning) => Some(beginning.take().unwrap_or(Bytes::from_static(ENDLESS_CHUNK))),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    // Without this, hyper would use chunked encoding for an empty body.
    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Payload::Whole(bytes) => hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Payload::Endless(_) => hyper::body::SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole(None))
    }
}
