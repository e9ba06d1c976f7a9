//! Owns what an answer of the API means: the one place where HTTP status codes are compared, and where an answer is
//! judged to be Amperity's own or that of a gateway or proxy on the way.
//! Never decides what follows from an answer.
//!
//! An answer is Amperity's own if it has the documented form: the run that was asked for, or an error object whose
//! `status` is the HTTP status and whose `message` is a string. Anything else proves nothing about the run.

use std::time::Duration;

use workflow_run_stop_api::workflow_run::Phase;

use crate::amperity::reply::{Failure, Reply, Shape};
use crate::amperity::run::Run;

/// Status, message and request id of an answer, and whether it is Amperity's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseInfo {
    /// The HTTP status code.
    pub status: u16,
    /// The message.
    pub message: Option<String>,
    /// The API's id of the request.
    pub request_id: Option<String>,
    /// True where the answer is Amperity's own.
    pub own: bool,
}

impl ResponseInfo {
    /// Status and message in one line, and whether the answer lacks the documented form.
    pub fn detail(&self) -> String {
        let form = if 400 <= self.status && !self.own { " (not in Amperity's format)" } else { "" };
        match &self.message {
            Some(message) => format!("HTTP {}{form}, {message}", self.status),
            None => format!("HTTP {}{form}", self.status),
        }
    }
}

/// The answer to a stop request.
#[derive(Clone, Debug, PartialEq)]
pub enum StopAnswer {
    /// 200 with our run, or another 2xx that is empty or a JSON object and not another run: accepted.
    Accepted(Option<Box<Run>>, ResponseInfo),
    /// Any other 2xx: a proxy's page, say, or another run. The outcome is unknown.
    NotOurRun(ResponseInfo),
    /// 429, and the `Retry-After`.
    RateLimited(ResponseInfo, Option<Duration>),
    /// 401.
    Unauthorized(ResponseInfo),
    /// Amperity's own 403.
    Forbidden(ResponseInfo),
    /// Amperity's own 404.
    NotFound(ResponseInfo),
    /// Amperity's own 409. Only reading the run tells why.
    Conflict(ResponseInfo),
    /// Amperity's own 400 or 422. The run may have ended; only reading it tells.
    BadRequest(ResponseInfo),
    /// Amperity's own 405, 410 or another 4xx.
    Rejected(ResponseInfo),
    /// A 4xx that is not Amperity's own. The outcome is unknown.
    Foreign(ResponseInfo),
    /// 3xx, and the host it points to. Never followed. The outcome is unknown.
    Redirected(ResponseInfo, String),
    /// 5xx, 408, 499 and every status that HTTP does not define, and the `Retry-After`. The outcome is unknown.
    ServerError(ResponseInfo, Option<Duration>),
    /// Not sent, and why.
    NotSent(String),
    /// Not sent: the claim was too old, or a deadline had passed.
    TooLate,
    /// Sent or perhaps sent, without a whole answer, and why. The outcome is unknown.
    NoAnswer(String),
}

/// The answer to reading a run.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadAnswer {
    /// The run.
    Run(Box<Run>),
    /// 3xx and every 4xx but 401, 408, 429 and 499, whoever answered.
    Unreadable(ResponseInfo),
    /// Reading again may help.
    Failed(ReadFailure),
}

impl ReadAnswer {
    /// True where the run was read and is neither stopping nor ended.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Run(run) if Phase::of(&run.state) == Phase::Active)
    }
}

/// Why a run was not read this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// 429.
    RateLimited(ResponseInfo),
    /// 401.
    Unauthorized(ResponseInfo),
    /// No connection could be made.
    NotSent(String),
    /// 5xx, no answer, or a success without the run; and the `Retry-After`.
    Unavailable(String, Option<Duration>),
}

impl ReadFailure {
    /// The time to wait that the answer asks for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(_, retry_after) => *retry_after,
            Self::RateLimited(_) | Self::Unauthorized(_) | Self::NotSent(_) => None,
        }
    }
}

/// The answer to a request for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer<T> {
    /// A token, and how long it is valid.
    Token(T, Duration),
    /// 401, or Amperity's own 400, 403 or another 4xx but 404, 409 and 429: the client's id or secret is wrong.
    Refused(ResponseInfo),
    /// 429.
    RateLimited(ResponseInfo),
    /// No connection could be made.
    NotSent(String),
    /// Everything else; asking again may help.
    Unavailable(String),
}

/// The groups into which HTTP sorts the status codes, with those that matter here by name.
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
            // A gateway reports with these that the client or the request took too long: it may have passed it on.
            408 | 499 => Self::ServerError,
            400..=499 => Self::OtherClientError,
            _ => Self::ServerError,
        }
    }
}

/// The kind of an earlier answer of which only the HTTP status is still known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// 3xx.
    Redirect,
    /// 404.
    NotFound,
    /// 409.
    Conflict,
    /// Another 4xx but 408 and 499.
    ClientError,
    /// Everything else.
    Other,
}

impl StatusKind {
    /// The kind of a status.
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
    /// True where the answer says that the tenant's rate limit is used up.
    pub fn is_rate_limited(&self) -> bool {
        matches!(Code::of(self.status), Code::TooManyRequests)
    }

    /// True where the class depends on the body, so that half a body is no answer.
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

    /// True where the body is Amperity's documented error object for this status.
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
        }
    }
}

/// Judges the answer to a request that asked to stop `run_id`.
pub fn stop_answer(result: Result<Reply, Failure>, run_id: &str) -> StopAnswer {
    let reply = match result {
        Ok(reply) => reply,
        Err(Failure::NotSent(why)) => return StopAnswer::NotSent(why),
        Err(Failure::TooLate) => return StopAnswer::TooLate,
        Err(Failure::NoAnswer(why)) => return StopAnswer::NoAnswer(why),
    };
    let own = reply.is_own_error();
    let info = reply.info(own);
    let another = reply.body.run.as_ref().is_some_and(|run| run.id != run_id);
    let ours = reply.body.run.filter(|run| run.id == run_id).map(Box::new);
    match (Code::of(info.status), own) {
        (Code::Ok, _) if ours.is_some() => StopAnswer::Accepted(ours, info),
        (Code::OtherSuccess, _) if !another && reply.body.shape != Shape::Other => StopAnswer::Accepted(ours, info),
        (Code::Ok | Code::OtherSuccess, _) => StopAnswer::NotOurRun(info),
        (Code::Redirect, _) => StopAnswer::Redirected(info, reply.location.unwrap_or_default()),
        (Code::Unauthorized, _) => StopAnswer::Unauthorized(info),
        (Code::TooManyRequests, _) => StopAnswer::RateLimited(info, reply.retry_after),
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

/// Judges the answer to a request that read `run_id`.
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
                let why = format!("{} without this run", info.detail());
                ReadAnswer::Failed(ReadFailure::Unavailable(why, None))
            }
        },
        Code::Unauthorized => ReadAnswer::Failed(ReadFailure::Unauthorized(info)),
        Code::TooManyRequests => ReadAnswer::Failed(ReadFailure::RateLimited(info)),
        Code::Forbidden
        | Code::NotFound
        | Code::Conflict
        | Code::BadRequest
        | Code::OtherClientError
        | Code::Redirect => ReadAnswer::Unreadable(info),
        Code::ServerError => ReadAnswer::Failed(ReadFailure::Unavailable(info.detail(), reply.retry_after)),
    }
}

/// Judges the answer to a request for a token; `token` is what its body carried.
pub fn token_answer<T>(result: Result<(Reply, Option<(T, Duration)>), Failure>) -> TokenAnswer<T> {
    let (reply, token) = match result {
        Ok(answer) => answer,
        Err(Failure::NotSent(why)) => return TokenAnswer::NotSent(why),
        Err(Failure::NoAnswer(why)) => return TokenAnswer::Unavailable(why),
        Err(Failure::TooLate) => return TokenAnswer::NotSent(String::new()),
    };
    let own = reply.is_own_error() || reply.body.oauth_error;
    let info = reply.info(own);
    match (Code::of(info.status), token) {
        (Code::Ok | Code::OtherSuccess, Some((token, valid))) => TokenAnswer::Token(token, valid),
        (Code::Unauthorized, _) => TokenAnswer::Refused(info),
        (Code::BadRequest | Code::Forbidden | Code::OtherClientError, _) if own => TokenAnswer::Refused(info),
        (Code::TooManyRequests, _) => TokenAnswer::RateLimited(info),
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

impl StopAnswer {
    /// Every class.
    pub const CLASSES: [&str; 15] = [
        "accepted",
        "not_our_run",
        "rate_limited",
        "unauthorized",
        "forbidden",
        "not_found",
        "conflict",
        "bad_request",
        "rejected",
        "foreign",
        "redirected",
        "server_error",
        "not_sent",
        "too_late",
        "no_answer",
    ];

    /// The answer's class, as it is written in logs and metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Accepted(..) => "accepted",
            Self::NotOurRun(_) => "not_our_run",
            Self::RateLimited(..) => "rate_limited",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::BadRequest(_) => "bad_request",
            Self::Rejected(_) => "rejected",
            Self::Foreign(_) => "foreign",
            Self::Redirected(..) => "redirected",
            Self::ServerError(..) => "server_error",
            Self::NotSent(_) => "not_sent",
            Self::TooLate => "too_late",
            Self::NoAnswer(_) => "no_answer",
        }
    }
}

impl ReadAnswer {
    /// Every class.
    pub const CLASSES: [&str; 6] = ["run", "unreadable", "rate_limited", "unauthorized", "not_sent", "unavailable"];

    /// The answer's class, as it is written in metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Unreadable(_) => "unreadable",
            Self::Failed(ReadFailure::RateLimited(_)) => "rate_limited",
            Self::Failed(ReadFailure::Unauthorized(_)) => "unauthorized",
            Self::Failed(ReadFailure::NotSent(_)) => "not_sent",
            Self::Failed(ReadFailure::Unavailable(..)) => "unavailable",
        }
    }
}

/// Every class of an answer to a request for a token.
pub const TOKEN_CLASSES: [&str; 5] = ["token", "refused", "rate_limited", "not_sent", "unavailable"];

impl<T> TokenAnswer<T> {
    /// The answer's class, as it stands in metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Token(..) => "token",
            Self::Refused(_) => "refused",
            Self::RateLimited(_) => "rate_limited",
            Self::NotSent(_) => "not_sent",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::reply::Body;

    /// A body, as a row of a table names it.
    #[derive(Clone, Copy, Debug)]
    enum With {
        Nothing,
        Html,
        /// A JSON object that is neither a run nor an error.
        Object,
        Run(&'static str),
        /// The documented error object, with this status in it.
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
    fn every_answer_to_a_stop_has_its_class() {
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
            assert!(StopAnswer::CLASSES.contains(&class));
        }
        assert_eq!(stop_answer(Err(Failure::NotSent(String::new())), "wf-1").class(), "not_sent");
        assert_eq!(stop_answer(Err(Failure::TooLate), "wf-1").class(), "too_late");
        assert_eq!(stop_answer(Err(Failure::NoAnswer(String::new())), "wf-1").class(), "no_answer");
    }

    #[test]
    fn every_answer_to_a_read_has_its_class() {
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
            assert!(ReadAnswer::CLASSES.contains(&class));
        }
    }

    #[test]
    fn every_answer_to_a_token_request_has_its_class() {
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
            assert!(TOKEN_CLASSES.contains(&class));
        }
    }

    #[test]
    fn a_message_says_whether_the_answer_has_the_documented_form() {
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
    fn half_a_body_is_no_answer_where_the_class_depends_on_it() {
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
}
