//! Owns the shapes of answers: JSON, error objects, pages, and bodies that never end.
//! Never decides which of them a request gets.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Response;
use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Answer),
    /// The connection is reset.
    Reset,
    /// Nothing is ever answered.
    Never,
}

/// An answer, before it is an HTTP one.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    payload: Payload,
}

/// A body: some bytes at once, or bytes for ever.
#[derive(Debug)]
pub(super) enum Payload {
    Whole(Option<Bytes>),
    Endless(Option<Bytes>),
}

const JSON: &str = "application/json";
const A_LOT_OF_STRING: &[u8] = &[b'a'; 16 * 1024];

impl Answer {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Answer::with(status, JSON, body.to_string())
    }

    /// The documented error object.
    pub(super) fn error(status: u16, message: &str, request_id: &str) -> Self {
        let body = json!({
            "status": status,
            "message": message,
            "request_id": request_id,
            "trace_id": format!("trace-of-{request_id}"),
        });
        Answer::json(status, &body)
    }

    pub(super) fn page(status: u16) -> Self {
        let page =
            format!("<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>gateway</body></html>");
        Answer::with(status, "text/html", page)
    }

    /// A JSON object as a gateway has it, which is not the documented error object.
    pub(super) fn other_json(status: u16) -> Self {
        Answer::json(status, &json!({"message": "no Route matched with those values"}))
    }

    /// The error object of OAuth 2.
    pub(super) fn oauth_error(status: u16) -> Self {
        Answer::json(status, &json!({"error": "invalid_client"}))
    }

    pub(super) fn raw(status: u16, body: Vec<u8>) -> Self {
        Answer::with(status, JSON, body)
    }

    pub(super) fn empty(status: u16) -> Self {
        Answer { status, headers: Vec::new(), payload: Payload::Whole(None) }
    }

    /// 200, the beginning of a run's record, and a name that goes on for ever.
    pub(super) fn endless(run_id: &str) -> Self {
        let beginning = format!(r#"{{"id":{},"state":"stopping","name":""#, json!(run_id));
        Answer {
            status: 200,
            headers: vec![("content-type".to_owned(), JSON.to_owned())],
            payload: Payload::Endless(Some(Bytes::from(beginning))),
        }
    }

    pub(super) fn header(mut self, name: &str, value: Option<String>) -> Self {
        self.headers.extend(value.map(|value| (name.to_owned(), value)));
        self
    }

    /// Sets a header, in place of one of the same name.
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
        response.body(self.payload).expect("a test gives the simulator only valid statuses and headers")
    }

    fn with(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Answer {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            payload: Payload::Whole(Some(body.into())),
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Reply::Answer(answer)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Payload::Whole(bytes) => bytes.take(),
            // The client's window is what holds this back.
            Payload::Endless(beginning) => Some(beginning.take().unwrap_or(Bytes::from_static(A_LOT_OF_STRING))),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    // Without this, hyper would send an answer that has no body in chunks.
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
