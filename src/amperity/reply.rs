//! Owns one HTTP answer of the API: decoded, not judged.
//! Never compares a status code.

use std::time::Duration;

use crate::amperity::run::Run;

/// What the body of an answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// The run, where the body is one.
    pub run: Option<Run>,
    /// The message, where the body carries one.
    pub message: Option<String>,
    /// The API's id of the request: its `request_id`, or else its `trace_id`.
    pub request_id: Option<String>,
    /// The integer `status` of an error object.
    pub error_status: Option<u16>,
    /// True where the body is an object with a string `error`, the error object of OAuth 2.
    pub oauth_error: bool,
    /// What kind of body it is.
    pub shape: Shape,
}

/// What kind of body an answer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// HTML, text, or JSON that is no object.
    #[default]
    Other,
    /// Nothing, or white space.
    Empty,
    /// A JSON object.
    Object,
}

/// One HTTP answer, decoded but not judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// What the body says.
    pub body: Body,
    /// The time to wait that `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// Scheme and host that a redirect points to.
    pub location: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was not sent: no connection could be made.
    NotSent(String),
    /// The request was not sent: the right to send it ended before it could be written.
    TooLate,
    /// The request was or may have been sent, and no whole answer came.
    NoAnswer(String),
}
