//! Owns what Amperity said, in our words: the one place where HTTP status codes are compared.
//! Never decides what follows from an answer.

use std::time::Duration;

use crate::run::Run;

/// What the body of an answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// The run, where the body is one.
    pub run: Option<Run>,
    /// The API's message, where the body carries one.
    pub message: Option<String>,
    /// The API's id of the request.
    pub request_id: Option<String>,
    /// The HTTP status that an error object repeats in its `status`.
    pub error_status: Option<u16>,
    /// True where an object has a text `error`, as an OAuth server answers.
    pub oauth_error: bool,
    /// What the body is.
    pub shape: Shape,
}

/// What a body is, whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Neither blank nor a JSON object.
    #[default]
    Other,
    /// No bytes, or only whitespace.
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
    /// How long to wait, where the answer says so.
    pub retry_after: Option<Duration>,
    /// Where a redirect points to: scheme and host.
    pub location: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was surely not sent: no connection could be made.
    NotSent(String),
    /// The right to send it was over before it could be written; it was not sent.
    TooLate,
    /// The request was or may have been sent, and no whole answer came.
    NoAnswer(String),
}

/// What the API said beside its verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The HTTP status code.
    pub status: u16,
    /// Its message.
    pub message: Option<String>,
    /// Its id of the request.
    pub request_id: Option<String>,
}

impl Said {
    /// Status and message in one line.
    pub fn detail(&self) -> String {
        match &self.message {
            Some(message) => format!("HTTP {}, {message}", self.status),
            None => format!("HTTP {}", self.status),
        }
    }
}

/// The answer to a stop request.
#[derive(Clone, Debug, PartialEq)]
pub enum StopAnswer {
    /// Any 2xx, but a 200 without our run: accepted; with the run where the body was one.
    Accepted(Option<Box<Run>>, Said),
    /// A 200 whose body is no run, or another run: a proxy's page, say. The outcome is unknown.
    NotOurRun(Said),
    /// 429, and how long to wait where it says so.
    RateLimited(Said, Option<Duration>),
    /// 401.
    Unauthorized(Said),
    /// 403.
    Forbidden(Said),
    /// 404.
    NotFound(Said),
    /// 409.
    Conflict(Said),
    /// Another 4xx.
    Rejected(Said),
    /// 3xx, and where it points to. Never followed.
    Redirected(Said, String),
    /// 5xx, 408 and 499, and every status that HTTP does not define. The outcome is unknown.
    ServerError(Said),
    /// Surely not sent, and why.
    NotSent(String),
    /// Not sent, since the claim was too old by then.
    TooLate,
    /// Sent or perhaps sent, without a whole answer, and why. The outcome is unknown.
    NoAnswer(String),
}

/// The answer to reading a run.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadAnswer {
    /// The run.
    Run(Box<Run>),
    /// 403, 404, 405 and every other 4xx and 3xx: this run cannot be read.
    Unreadable(Said),
    /// Reading again may help.
    Failed(ReadFailure),
}

/// Why a run was not read this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// 429.
    RateLimited(Said),
    /// 401.
    Unauthorized(Said),
    /// No connection could be made.
    NotSent(String),
    /// 5xx, no answer, or one that is not of the API.
    Unavailable(String),
}

/// The answer to a request for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer<T> {
    /// A token, and for how long it is valid.
    Token(T, Duration),
    /// 400, 401, 403 and every other 4xx but 404, 409 and 429: the client's id or secret is wrong.
    Refused(Said),
    /// 429.
    RateLimited(Said),
    /// No connection could be made.
    NotSent(String),
    /// Everything else; asking again may help.
    Unavailable(String),
}

/// The groups into which HTTP sorts the status codes, with those that matter here by name.
enum Code {
    Ok,
    OtherSuccess,
    Redirect,
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
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            429 => Self::TooManyRequests,
            // A gateway's word that the client or the request took too long: it may have been passed on.
            408 | 499 => Self::ServerError,
            400..=499 => Self::OtherClientError,
            _ => Self::ServerError,
        }
    }
}

impl Reply {
    /// True where the answer says that the tenant's rate limit is used up.
    pub fn is_rate_limited(&self) -> bool {
        matches!(Code::of(self.status), Code::TooManyRequests)
    }

    /// True where the verdict hangs on the body, so that half a body is no answer.
    pub fn needs_body(&self) -> bool {
        matches!(Code::of(self.status), Code::Ok)
    }

    fn said(&self) -> Said {
        let Body { run: _, message, request_id, error_status: _, oauth_error: _, shape: _ } = self.body.clone();
        Said { status: self.status, message, request_id }
    }
}

impl From<Failure> for ReadFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(why) => Self::NotSent(why),
            Failure::TooLate => Self::NotSent(String::new()),
            Failure::NoAnswer(why) => Self::Unavailable(why),
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
    let said = reply.said();
    let ours = reply.body.run.filter(|run| run.id == run_id).map(Box::new);
    match Code::of(said.status) {
        Code::Ok if ours.is_none() => StopAnswer::NotOurRun(said),
        Code::Ok | Code::OtherSuccess => StopAnswer::Accepted(ours, said),
        Code::Redirect => StopAnswer::Redirected(said, reply.location.unwrap_or_default()),
        Code::Unauthorized => StopAnswer::Unauthorized(said),
        Code::Forbidden => StopAnswer::Forbidden(said),
        Code::NotFound => StopAnswer::NotFound(said),
        Code::Conflict => StopAnswer::Conflict(said),
        Code::TooManyRequests => StopAnswer::RateLimited(said, reply.retry_after),
        Code::OtherClientError => StopAnswer::Rejected(said),
        Code::ServerError => StopAnswer::ServerError(said),
    }
}

/// Judges the answer to a request that read `run_id`.
pub fn read_answer(result: Result<Reply, Failure>, run_id: &str) -> ReadAnswer {
    let reply = match result {
        Ok(reply) => reply,
        Err(failure) => return ReadAnswer::Failed(failure.into()),
    };
    let said = reply.said();
    match Code::of(said.status) {
        Code::Ok | Code::OtherSuccess => match reply.body.run.filter(|run| run.id == run_id) {
            Some(run) => ReadAnswer::Run(Box::new(run)),
            None => ReadAnswer::Failed(ReadFailure::Unavailable(format!("{} without this run", said.detail()))),
        },
        Code::Unauthorized => ReadAnswer::Failed(ReadFailure::Unauthorized(said)),
        Code::TooManyRequests => ReadAnswer::Failed(ReadFailure::RateLimited(said)),
        Code::Forbidden | Code::NotFound | Code::Conflict | Code::OtherClientError | Code::Redirect => {
            ReadAnswer::Unreadable(said)
        }
        Code::ServerError => ReadAnswer::Failed(ReadFailure::Unavailable(said.detail())),
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
    let said = reply.said();
    match (Code::of(said.status), token) {
        (Code::Ok | Code::OtherSuccess, Some((token, valid))) => TokenAnswer::Token(token, valid),
        (Code::Unauthorized | Code::Forbidden | Code::OtherClientError, _) => TokenAnswer::Refused(said),
        (Code::TooManyRequests, _) => TokenAnswer::RateLimited(said),
        (Code::Ok | Code::OtherSuccess | Code::Redirect | Code::NotFound | Code::Conflict | Code::ServerError, _) => {
            TokenAnswer::Unavailable(said.detail())
        }
    }
}

impl StopAnswer {
    /// Every class.
    pub const CLASSES: [&str; 13] = [
        "accepted",
        "not_our_run",
        "rate_limited",
        "unauthorized",
        "forbidden",
        "not_found",
        "conflict",
        "rejected",
        "redirected",
        "server_error",
        "not_sent",
        "too_late",
        "no_answer",
    ];

    /// The answer's class, as it stands in logs and metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Accepted(..) => "accepted",
            Self::NotOurRun(_) => "not_our_run",
            Self::RateLimited(..) => "rate_limited",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::Rejected(_) => "rejected",
            Self::Redirected(..) => "redirected",
            Self::ServerError(_) => "server_error",
            Self::NotSent(_) => "not_sent",
            Self::TooLate => "too_late",
            Self::NoAnswer(_) => "no_answer",
        }
    }
}

impl ReadAnswer {
    /// Every class.
    pub const CLASSES: [&str; 6] = ["run", "unreadable", "rate_limited", "unauthorized", "not_sent", "unavailable"];

    /// The answer's class, as it stands in metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Unreadable(_) => "unreadable",
            Self::Failed(ReadFailure::RateLimited(_)) => "rate_limited",
            Self::Failed(ReadFailure::Unauthorized(_)) => "unauthorized",
            Self::Failed(ReadFailure::NotSent(_)) => "not_sent",
            Self::Failed(ReadFailure::Unavailable(_)) => "unavailable",
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

    fn reply(status: u16, id: Option<&str>) -> Result<Reply, Failure> {
        let run = id.map(|id| Run { id: id.to_owned(), ..Run::default() });
        Ok(Reply { status, body: Body { run, ..Body::default() }, ..Reply::default() })
    }

    #[test]
    fn every_answer_to_a_stop_has_its_class() {
        for (status, id, class) in [
            (200, Some("wf-1"), "accepted"),
            (200, None, "not_our_run"),
            (200, Some("wf-2"), "not_our_run"),
            (202, None, "accepted"),
            (204, None, "accepted"),
            (302, None, "redirected"),
            (400, None, "rejected"),
            (401, None, "unauthorized"),
            (403, None, "forbidden"),
            (404, None, "not_found"),
            (405, None, "rejected"),
            (408, None, "server_error"),
            (409, None, "conflict"),
            (410, None, "rejected"),
            (422, None, "rejected"),
            (429, None, "rate_limited"),
            (500, None, "server_error"),
            (503, Some("wf-1"), "server_error"),
            (999, None, "server_error"),
        ] {
            assert_eq!(stop_answer(reply(status, id), "wf-1").class(), class, "{status} {id:?}");
            assert!(StopAnswer::CLASSES.contains(&class));
        }
        assert_eq!(stop_answer(Err(Failure::NotSent(String::new())), "wf-1").class(), "not_sent");
        assert_eq!(stop_answer(Err(Failure::TooLate), "wf-1").class(), "too_late");
        assert_eq!(stop_answer(Err(Failure::NoAnswer(String::new())), "wf-1").class(), "no_answer");
    }

    #[test]
    fn a_run_that_another_id_answers_for_was_not_read() {
        assert!(matches!(
            read_answer(reply(200, Some("wf-2")), "wf-1"),
            ReadAnswer::Failed(ReadFailure::Unavailable(_))
        ));
        assert!(matches!(read_answer(reply(200, Some("wf-1")), "wf-1"), ReadAnswer::Run(_)));
        for status in [302, 400, 403, 404, 405, 410, 422] {
            assert!(matches!(read_answer(reply(status, None), "wf-1"), ReadAnswer::Unreadable(_)), "{status}");
        }
        assert!(matches!(read_answer(reply(503, None), "wf-1"), ReadAnswer::Failed(ReadFailure::Unavailable(_))));
    }
}
