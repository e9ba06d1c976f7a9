//! Owns the classification of responses: the only place where HTTP status codes are compared.
//! Never decides what follows from an answer.
//!
//! Amperity's own answers have the form of <https://docs.amperity.com/api/responses.html>: the requested run, or an
//! error object with the HTTP status in `status` and a string in `message`. Others may come from a gateway or proxy.

use std::time::Duration;

use workflow_run_stop_api::workflow_run::Phase;

use crate::amperity::reply::{Failure, Reply, Shape};
use crate::amperity::run::Run;

/// The parts of a response that are reported to the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseInfo {
    /// The HTTP status code.
    pub status: u16,
    /// The message.
    pub message: Option<String>,
    /// The API's id of the request.
    pub request_id: Option<String>,
    /// True if the answer is Amperity's own.
    pub own: bool,
}

impl ResponseInfo {
    /// Returns status and message in one line, with a note if an error does not have the documented form.
    pub fn detail(&self) -> String {
        let form = if 400 <= self.status && !self.own { " (not in Amperity's format)" } else { "" };
        match &self.message {
            Some(message) => format!("HTTP {}{form}, {message}", self.status),
            None => format!("HTTP {}{form}", self.status),
        }
    }
}

/// The reason if a kept connection ended.
const NO_ANSWER: &str = "the connection ended before the answer";

/// The answer to a stop request.
#[derive(Clone, Debug, PartialEq)]
pub enum StopAnswer {
    /// 200 with this run, or another 2xx whose body is empty or a JSON object, unless it is another run.
    Accepted(Option<Box<Run>>, ResponseInfo),
    /// Any other 2xx, such as the page of a proxy, or another run. The outcome is unknown.
    NotOurRun(ResponseInfo),
    /// 429, with the time until the tenant's budget reopens.
    RateLimited(ResponseInfo, Duration),
    /// 401, for a bad or expired token or an invalid API version.
    Unauthorized(ResponseInfo),
    /// Amperity's own 403.
    Forbidden(ResponseInfo),
    /// Amperity's own 404.
    NotFound(ResponseInfo),
    /// Amperity's own 409. A read of the run shows the cause.
    Conflict(ResponseInfo),
    /// Amperity's own 400 or 422. The run may have ended; a read shows whether it has.
    BadRequest(ResponseInfo),
    /// Amperity's own 405, 410 or another 4xx.
    Rejected(ResponseInfo),
    /// A 4xx that is not Amperity's own. The outcome is unknown.
    Foreign(ResponseInfo),
    /// 3xx, with the scheme and host of its target. Never followed. The outcome is unknown.
    Redirected(ResponseInfo, String),
    /// 5xx, 408, 499 and every status that HTTP does not define, with the `Retry-After`. The outcome is unknown.
    ServerError(ResponseInfo, Option<Duration>),
    /// Not sent, with the reason.
    NotSent(String),
    /// Not sent: the fence closed, because the claim was too old or a deadline had passed.
    TooLate,
    /// Sent or possibly sent, without a complete response, with the reason. The outcome is unknown.
    NoAnswer(String),
}

/// The answer to a request that reads a run.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadAnswer {
    /// The run.
    Run(Box<Run>),
    /// 3xx and every 4xx except 401, 408, 429 and 499, Amperity's own or not.
    Unreadable(ResponseInfo),
    /// No usable answer; a retry may succeed.
    Failed(ReadFailure),
}

impl ReadAnswer {
    /// Returns true if the run was read and is neither stopping nor ended.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Run(run) if Phase::of(&run.state) == Phase::Active)
    }
}

/// The reason why a run was not read this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// 429, with the time until the tenant's budget reopens.
    RateLimited(ResponseInfo, Duration),
    /// 401.
    Unauthorized(ResponseInfo),
    /// The connection could not be established.
    NotSent(String),
    /// 5xx, no response, or a 2xx without the run, with the `Retry-After`.
    Unavailable(String, Option<Duration>),
}

impl ReadFailure {
    /// Returns the shortest wait before the next read: until the budget reopens, or for `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(_, reopens_in) => Some(*reopens_in),
            Self::Unavailable(_, retry_after) => *retry_after,
            Self::Unauthorized(_) | Self::NotSent(_) => None,
        }
    }
}

/// The answer to a request for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer<T> {
    /// A token, with its lifetime.
    Token(T, Duration),
    /// 401, or Amperity's own 4xx except 404, 408, 409, 429 and 499: the client's id or secret is wrong.
    Refused(ResponseInfo),
    /// 429, with the time until the tenant's budget reopens.
    RateLimited(ResponseInfo, Duration),
    /// The connection could not be established.
    NotSent(String),
    /// Everything else; a retry may succeed.
    Unavailable(String),
}

/// The class of an HTTP status code, with separate variants for the codes that matter here.
#[derive(Clone, Copy)]
enum Code {
    Ok,
    OtherSuccess,
    Redirect,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    TooManyRequests,
    OtherClientError,
    ServerError,
}

impl Code {
    fn of(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            201..=299 => Self::OtherSuccess,
            300..=399 => Self::Redirect,
            400 | 422 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            429 => Self::TooManyRequests,
            // A gateway answers with these when the client or the request timed out. It may have forwarded the request.
            408 | 499 => Self::ServerError,
            400..=499 => Self::OtherClientError,
            _ => Self::ServerError,
        }
    }
}

/// The kind of an earlier answer of which only the HTTP status is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// 3xx.
    Redirect,
    /// 404.
    NotFound,
    /// 409.
    Conflict,
    /// Another 4xx except 408 and 499.
    ClientError,
    /// Everything else.
    Other,
}

impl StatusKind {
    /// Returns the kind of a status.
    pub fn of(status: u16) -> Self {
        match Code::of(status) {
            Code::Redirect => Self::Redirect,
            Code::NotFound => Self::NotFound,
            Code::Conflict => Self::Conflict,
            Code::BadRequest
            | Code::Unauthorized
            | Code::Forbidden
            | Code::TooManyRequests
            | Code::OtherClientError => Self::ClientError,
            Code::Ok | Code::OtherSuccess | Code::ServerError => Self::Other,
        }
    }
}

impl Reply {
    /// Returns true if the rate limit of the tenant is exceeded.
    pub fn is_rate_limited(&self) -> bool {
        matches!(Code::of(self.status), Code::TooManyRequests)
    }

    /// Returns true if the class depends on the body, so that an incomplete body is no answer.
    pub fn needs_body(&self) -> bool {
        match Code::of(self.status) {
            Code::Ok
            | Code::OtherSuccess
            | Code::BadRequest
            | Code::Forbidden
            | Code::NotFound
            | Code::Conflict
            | Code::OtherClientError => true,
            Code::Redirect | Code::Unauthorized | Code::TooManyRequests | Code::ServerError => false,
        }
    }

    /// Returns true if the body is the documented error object for this status.
    fn is_own_error(&self) -> bool {
        self.body.error_status == Some(self.status) && self.body.message.is_some()
    }

    fn info(&self, own: bool) -> ResponseInfo {
        let (message, request_id) = (self.body.message.clone(), self.body.request_id.clone());
        ResponseInfo { status: self.status, message, request_id, own }
    }
}

impl From<Failure> for ReadFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(why) => Self::NotSent(why),
            Failure::TooLate => Self::NotSent(String::new()),
            Failure::NoAnswer(why) => Self::Unavailable(why, None),
            Failure::KeptConnectionEnded => Self::Unavailable(NO_ANSWER.to_owned(), None),
        }
    }
}

/// Classifies the response to a request to stop `run_id`.
pub fn stop_answer(result: Result<Reply, Failure>, run_id: &str) -> StopAnswer {
    let reply = match result {
        Ok(reply) => reply,
        Err(Failure::NotSent(why)) => return StopAnswer::NotSent(why),
        Err(Failure::TooLate) => return StopAnswer::TooLate,
        Err(Failure::NoAnswer(why)) => return StopAnswer::NoAnswer(why),
        Err(Failure::KeptConnectionEnded) => return StopAnswer::NoAnswer(NO_ANSWER.to_owned()),
    };
    let own = reply.is_own_error();
    let info = reply.info(own);
    let is_other_run = reply.body.run.as_ref().is_some_and(|run| run.id != run_id);
    let run = reply.body.run.filter(|run| run.id == run_id).map(Box::new);
    match (Code::of(info.status), own) {
        (Code::Ok, _) if run.is_some() => StopAnswer::Accepted(run, info),
        (Code::OtherSuccess, _) if !is_other_run && reply.body.shape != Shape::Other => StopAnswer::Accepted(run, info),
        (Code::Ok | Code::OtherSuccess, _) => StopAnswer::NotOurRun(info),
        (Code::Redirect, _) => StopAnswer::Redirected(info, reply.location.unwrap_or_default()),
        (Code::Unauthorized, _) => StopAnswer::Unauthorized(info),
        (Code::TooManyRequests, _) => StopAnswer::RateLimited(info, reply.retry_after.unwrap_or_default()),
        (Code::ServerError, _) => StopAnswer::ServerError(info, reply.retry_after),
        (Code::Forbidden, true) => StopAnswer::Forbidden(info),
        (Code::NotFound, true) => StopAnswer::NotFound(info),
        (Code::Conflict, true) => StopAnswer::Conflict(info),
        (Code::BadRequest, true) => StopAnswer::BadRequest(info),
        (Code::OtherClientError, true) => StopAnswer::Rejected(info),
        (Code::Forbidden | Code::NotFound | Code::Conflict | Code::BadRequest | Code::OtherClientError, false) => {
            StopAnswer::Foreign(info)
        }
    }
}

/// Classifies the response to a request to read `run_id`.
pub fn read_answer(result: Result<Reply, Failure>, run_id: &str) -> ReadAnswer {
    let reply = match result {
        Ok(reply) => reply,
        Err(failure) => return ReadAnswer::Failed(failure.into()),
    };
    let info = reply.info(reply.is_own_error());
    match Code::of(info.status) {
        Code::Ok | Code::OtherSuccess => match reply.body.run.filter(|run| run.id == run_id) {
            Some(run) => ReadAnswer::Run(Box::new(run)),
            None => {
                let why = format!("{}, but the body is not this run", info.detail());
                ReadAnswer::Failed(ReadFailure::Unavailable(why, None))
            }
        },
        Code::Unauthorized => ReadAnswer::Failed(ReadFailure::Unauthorized(info)),
        Code::TooManyRequests => {
            ReadAnswer::Failed(ReadFailure::RateLimited(info, reply.retry_after.unwrap_or_default()))
        }
        Code::Forbidden
        | Code::NotFound
        | Code::Conflict
        | Code::BadRequest
        | Code::OtherClientError
        | Code::Redirect => ReadAnswer::Unreadable(info),
        Code::ServerError => ReadAnswer::Failed(ReadFailure::Unavailable(info.detail(), reply.retry_after)),
    }
}

/// Classifies the response to a request for a token. It is given together with the token and the lifetime from its
/// body, if the body has them.
pub fn token_answer<T>(result: Result<(Reply, Option<(T, Duration)>), Failure>) -> TokenAnswer<T> {
    let (reply, token) = match result {
        Ok(answer) => answer,
        Err(Failure::NotSent(why)) => return TokenAnswer::NotSent(why),
        Err(Failure::NoAnswer(why)) => return TokenAnswer::Unavailable(why),
        Err(Failure::TooLate) => return TokenAnswer::NotSent(String::new()),
        Err(Failure::KeptConnectionEnded) => return TokenAnswer::Unavailable(NO_ANSWER.to_owned()),
    };
    let own = reply.is_own_error() || reply.body.oauth_error;
    let info = reply.info(own);
    match (Code::of(info.status), token) {
        (Code::Ok | Code::OtherSuccess, Some((token, valid))) => TokenAnswer::Token(token, valid),
        (Code::Unauthorized, _) => TokenAnswer::Refused(info),
        (Code::BadRequest | Code::Forbidden | Code::OtherClientError, _) if own => TokenAnswer::Refused(info),
        (Code::TooManyRequests, _) => TokenAnswer::RateLimited(info, reply.retry_after.unwrap_or_default()),
        (
            Code::Ok
            | Code::OtherSuccess
            | Code::Redirect
            | Code::BadRequest
            | Code::Forbidden
            | Code::NotFound
            | Code::Conflict
            | Code::OtherClientError
            | Code::ServerError,
            _,
        ) => TokenAnswer::Unavailable(info.detail()),
    }
}

/// Defines the class of each variant, as it is written in logs and metrics, and the list of all classes.
macro_rules! classes {
    ($(#[$doc:meta])* $classes:ident, $answer:ty $(, $parameter:ident)?: $($pattern:pat => $class:literal,)*) => {
        $(#[$doc])*
        pub const $classes: &[&str] = &[$($class),*];

        impl$(<$parameter>)? $answer {
            /// Returns the class of the answer, as it is written in logs and metrics.
            pub fn class(&self) -> &'static str {
                match self {
                    $($pattern => $class,)*
                }
            }
        }
    };
}

classes! {
    /// Every class of an answer to a stop request.
    STOP_CLASSES, StopAnswer:
    StopAnswer::Accepted(..) => "accepted",
    StopAnswer::NotOurRun(_) => "not_our_run",
    StopAnswer::RateLimited(..) => "rate_limited",
    StopAnswer::Unauthorized(_) => "unauthorized",
    StopAnswer::Forbidden(_) => "forbidden",
    StopAnswer::NotFound(_) => "not_found",
    StopAnswer::Conflict(_) => "conflict",
    StopAnswer::BadRequest(_) => "bad_request",
    StopAnswer::Rejected(_) => "rejected",
    StopAnswer::Foreign(_) => "foreign",
    StopAnswer::Redirected(..) => "redirected",
    StopAnswer::ServerError(..) => "server_error",
    StopAnswer::NotSent(_) => "not_sent",
    StopAnswer::TooLate => "too_late",
    StopAnswer::NoAnswer(_) => "no_answer",
}

classes! {
    /// Every class of an answer to reading a run.
    READ_CLASSES, ReadAnswer:
    ReadAnswer::Run(_) => "run",
    ReadAnswer::Unreadable(_) => "unreadable",
    ReadAnswer::Failed(ReadFailure::RateLimited(..)) => "rate_limited",
    ReadAnswer::Failed(ReadFailure::Unauthorized(_)) => "unauthorized",
    ReadAnswer::Failed(ReadFailure::NotSent(_)) => "not_sent",
    ReadAnswer::Failed(ReadFailure::Unavailable(..)) => "unavailable",
}

classes! {
    /// Every class of an answer to a token request.
    TOKEN_CLASSES, TokenAnswer<T>, T:
    TokenAnswer::Token(..) => "token",
    TokenAnswer::Refused(_) => "refused",
    TokenAnswer::RateLimited(..) => "rate_limited",
    TokenAnswer::NotSent(_) => "not_sent",
    TokenAnswer::Unavailable(_) => "unavailable",
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::reply::Body;

    /// The body of a response in a row of a table.
    #[derive(Clone, Copy, Debug)]
    enum With {
        Nothing,
        Html,
        /// A JSON object that is neither a run nor an error.
        Object,
        Run(&'static str),
        /// The documented error object, with this `status`.
        Error(u16),
        Oauth,
    }

    fn reply(status: u16, with: With) -> Result<Reply, Failure> {
        let run = |id: &str| Run { id: id.to_owned(), state: "running".to_owned(), ..Run::default() };
        let body = match with {
            With::Nothing => Body { shape: Shape::Empty, ..Body::default() },
            With::Html => Body::default(),
            With::Object => Body { shape: Shape::Object, message: Some("no route".to_owned()), ..Body::default() },
            With::Run(id) => Body { shape: Shape::Object, run: Some(run(id)), ..Body::default() },
            With::Error(inner) => Body {
                shape: Shape::Object,
                error_status: Some(inner),
                message: Some("so it is".to_owned()),
                ..Body::default()
            },
            With::Oauth => Body { shape: Shape::Object, oauth_error: true, ..Body::default() },
        };
        Ok(Reply { status, body, ..Reply::default() })
    }

    #[test]
    fn every_response_to_a_stop_has_its_class() {
        use With::{Error, Html, Nothing, Oauth, Object, Run};
        for (status, with, class) in [
            (200, Run("wf-1"), "accepted"),
            (200, Nothing, "not_our_run"),
            (200, Html, "not_our_run"),
            (200, Object, "not_our_run"),
            (200, Run("wf-2"), "not_our_run"),
            (202, Nothing, "accepted"),
            (202, Object, "accepted"),
            (202, Run("wf-1"), "accepted"),
            (202, Run("wf-2"), "not_our_run"),
            (202, Html, "not_our_run"),
            (204, Nothing, "accepted"),
            (302, Html, "redirected"),
            (308, Error(308), "redirected"),
            (400, Error(400), "bad_request"),
            (400, Html, "foreign"),
            (401, Nothing, "unauthorized"),
            (401, Error(401), "unauthorized"),
            (403, Error(403), "forbidden"),
            (403, Error(404), "foreign"),
            (403, Object, "foreign"),
            (403, Oauth, "foreign"),
            (404, Error(404), "not_found"),
            (404, Nothing, "foreign"),
            (405, Error(405), "rejected"),
            (405, Nothing, "foreign"),
            (408, Error(408), "server_error"),
            (409, Error(409), "conflict"),
            (409, Object, "foreign"),
            (410, Error(410), "rejected"),
            (410, Html, "foreign"),
            (418, Error(418), "rejected"),
            (418, Html, "foreign"),
            (422, Error(422), "bad_request"),
            (422, Object, "foreign"),
            (429, Html, "rate_limited"),
            (429, Error(429), "rate_limited"),
            (499, Nothing, "server_error"),
            (500, Error(500), "server_error"),
            (503, Run("wf-1"), "server_error"),
            (504, Html, "server_error"),
            (999, Nothing, "server_error"),
        ] {
            assert_eq!(stop_answer(reply(status, with), "wf-1").class(), class, "{status} {with:?}");
        }
        assert_eq!(stop_answer(Err(Failure::NotSent(String::new())), "wf-1").class(), "not_sent");
        assert_eq!(stop_answer(Err(Failure::TooLate), "wf-1").class(), "too_late");
        assert_eq!(stop_answer(Err(Failure::NoAnswer(String::new())), "wf-1").class(), "no_answer");
    }

    #[test]
    fn every_response_to_a_read_has_its_class() {
        use With::{Error, Html, Nothing, Object, Run};
        for (status, with, class) in [
            (200, Run("wf-1"), "run"),
            (206, Run("wf-1"), "run"),
            (200, Run("wf-2"), "unavailable"),
            (200, Html, "unavailable"),
            (204, Nothing, "unavailable"),
            (302, Html, "unreadable"),
            (400, Object, "unreadable"),
            (401, Html, "unauthorized"),
            (403, Error(403), "unreadable"),
            (403, Html, "unreadable"),
            (404, Nothing, "unreadable"),
            (405, Nothing, "unreadable"),
            (408, Nothing, "unavailable"),
            (409, Nothing, "unreadable"),
            (410, Nothing, "unreadable"),
            (422, Nothing, "unreadable"),
            (429, Html, "rate_limited"),
            (499, Nothing, "unavailable"),
            (503, Error(503), "unavailable"),
        ] {
            assert_eq!(read_answer(reply(status, with), "wf-1").class(), class, "{status} {with:?}");
        }
    }

    #[test]
    fn every_response_to_a_token_request_has_its_class() {
        use With::{Error, Html, Nothing, Oauth, Object};
        for (status, with, token, class) in [
            (200, Object, true, "token"),
            (201, Object, true, "token"),
            (200, Object, false, "unavailable"),
            (200, Html, false, "unavailable"),
            (302, Html, false, "unavailable"),
            (400, Oauth, false, "refused"),
            (400, Error(400), false, "refused"),
            (400, Html, false, "unavailable"),
            (401, Nothing, false, "refused"),
            (403, Error(403), false, "refused"),
            (403, Html, false, "unavailable"),
            (404, Error(404), false, "unavailable"),
            (409, Error(409), false, "unavailable"),
            (418, Oauth, false, "refused"),
            (422, Object, false, "unavailable"),
            (429, Html, false, "rate_limited"),
            (429, Object, true, "rate_limited"),
            (500, Oauth, false, "unavailable"),
        ] {
            let token = token.then_some(((), Duration::from_secs(60)));
            let answer = token_answer(reply(status, with).map(|reply| (reply, token)));
            assert_eq!(answer.class(), class, "{status} {with:?}");
        }
    }

    #[test]
    fn the_detail_says_if_an_error_does_not_have_the_documented_form() {
        let detail = |status, with| {
            let answer = stop_answer(reply(status, with), "wf-1");
            let (StopAnswer::Foreign(info) | StopAnswer::Forbidden(info) | StopAnswer::NotOurRun(info)) = answer else {
                panic!("{answer:?}")
            };
            info.detail()
        };
        assert_eq!(detail(403, With::Error(403)), "HTTP 403, so it is");
        assert_eq!(detail(403, With::Object), "HTTP 403 (not in Amperity's format), no route");
        assert_eq!(detail(404, With::Html), "HTTP 404 (not in Amperity's format)");
        assert_eq!(detail(200, With::Html), "HTTP 200");
    }

    #[test]
    fn an_incomplete_body_is_no_answer_if_the_class_depends_on_the_body() {
        let needs = |status| Reply { status, ..Reply::default() }.needs_body();
        assert!([200, 202, 400, 403, 404, 405, 409, 410, 418, 422].into_iter().all(needs));
        assert!(![302, 401, 408, 429, 499, 500, 504].into_iter().any(needs));
    }

    #[test]
    fn a_stored_status_has_its_kind() {
        use StatusKind::{ClientError, Conflict, NotFound, Other, Redirect};
        for (status, kind) in [
            (200, Other),
            (302, Redirect),
            (400, ClientError),
            (403, ClientError),
            (404, NotFound),
            (408, Other),
            (409, Conflict),
            (410, ClientError),
            (422, ClientError),
            (504, Other),
        ] {
            assert_eq!(StatusKind::of(status), kind, "{status}");
        }
    }

    #[test]
    fn only_a_429_is_a_rate_limit() {
        let is_rate_limited = |status| Reply { status, ..Reply::default() }.is_rate_limited();
        assert!(is_rate_limited(429));
        assert!(![200, 403, 408, 428, 430, 503].into_iter().any(is_rate_limited));
    }

    #[test]
    fn only_a_run_that_neither_ended_nor_stops_is_active() {
        let read = |state: &str| ReadAnswer::Run(Box::new(Run { state: state.to_owned(), ..Run::default() }));
        for (answer, active) in [
            (read("running"), true),
            (read("queued"), true),
            (read("stopping"), false),
            (read("canceled"), false),
            (read("succeeded"), false),
            (ReadAnswer::Unreadable(ResponseInfo::default()), false),
            (ReadAnswer::Failed(ReadFailure::NotSent(String::new())), false),
        ] {
            assert_eq!(answer.is_active(), active, "{answer:?}");
        }
    }

    #[test]
    fn a_429_or_an_unavailable_endpoint_asks_a_read_to_wait() {
        let wait = Some(Duration::from_secs(7));
        for (status, asked) in [(503, wait), (429, wait), (401, None)] {
            let reply = Reply { status, retry_after: wait, ..Reply::default() };
            let ReadAnswer::Failed(failure) = read_answer(Ok(reply), "wf-1") else { panic!("{status} is a failure") };
            assert_eq!(failure.retry_after(), asked, "{status}");
        }
        assert_eq!(ReadFailure::NotSent(String::new()).retry_after(), None);
    }
}
