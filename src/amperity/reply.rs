//! Owns one HTTP response of the API, decoded but not classified.
//! Never compares a status code.

use std::time::Duration;

use crate::amperity::run::Run;

/// The decoded body of a response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// The run, if the body is one.
    pub run: Option<Run>,
    /// The text in `message`.
    pub message: Option<String>,
    /// The id that Amperity's support asks for: the `request_id`, or else the `trace_id`.
    pub request_id: Option<String>,
    /// The integer in `status`. An error object repeats the HTTP status there.
    pub error_status: Option<u16>,
    /// True if the body is an object with a string `error`: the error object of OAuth 2.
    pub oauth_error: bool,
    /// The kind of the body.
    pub shape: Shape,
}

/// The kind of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// HTML, text, or JSON that is not an object.
    #[default]
    Other,
    /// No bytes, or only white space.
    Empty,
    /// A JSON object.
    Object,
}

/// One HTTP response, decoded but not classified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// The decoded body.
    pub body: Body,
    /// The wait that `Retry-After` asks for. After a 429: the time until the tenant's budget reopens.
    pub retry_after: Option<Duration>,
    /// Scheme and host of the target of a redirect.
    pub location: Option<String>,
}

/// The reason why there is no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was not sent: the connection could not be established.
    NotSent(String),
    /// The request was not sent: its fence closed before it could be written.
    TooLate,
    /// The request was or may have been sent, and no complete response came.
    NoAnswer(String),
    /// The read was sent on a connection that an earlier one had left, and which ended: nothing is known, and a new
    /// connection may answer.
    KeptConnectionEnded,
}
