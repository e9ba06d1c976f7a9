//! Owns the names of everything that can go wrong with an answer, and which request meets which fault.
//! Never touches a run or a connection: the handler carries a fault out.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::Value;

use super::record::Kind;

/// Whether and when a stop that met a fault takes effect all the same. Of no importance to reads and tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Took {
    /// The run never heard of it.
    NoEffect,
    /// The run was stopped exactly as by a stop that is answered properly.
    Effect,
    /// The run is stopped this long after the stop arrived (a held stop: after it passed `BeforeEffect`), whatever
    /// became of its connection. It counts as an effect from then on, and not at all if the run has ended meanwhile.
    Late(Duration),
}

/// The `Retry-After` of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RetryAfter {
    /// The header is missing.
    None,
    /// A number of seconds.
    Seconds(u64),
    /// An HTTP date (IMF-fixdate) so many seconds ahead of the wall clock; it may lie in the past.
    Date(i64),
    /// Anything else.
    Text(String),
}

/// The body of an error answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorBody {
    /// The documented error object.
    ErrorJson,
    /// A gateway's page.
    Html,
    /// A gateway's JSON object: `{"message": "no Route matched with those values"}`.
    OtherJson,
    /// The error object of OAuth 2: `{"error": "invalid_client"}`. Amperity's own for a token request only.
    OAuthJson,
    /// Nothing.
    Empty,
}

/// What happens to one request instead of the proper answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// 429, without an effect.
    TooManyRequests {
        /// Its `Retry-After`.
        retry_after: RetryAfter,
    },
    /// Some status.
    Status {
        /// The status.
        code: u16,
        /// Whether the stop took effect before.
        effect: Took,
        /// What the answer carries.
        body: ErrorBody,
    },
    /// The connection is reset (TCP RST) without an answer.
    Reset(Took),
    /// No answer ever comes; the connection stays until the client leaves or the simulator ends.
    NoAnswer(Took),
    /// The request waits so long, and then has its effect and its proper answer.
    Slow(Duration),
    /// 200 and a page, as a proxy's login has it.
    HtmlWith200(Took),
    /// 200 and the record of a run with another id.
    WrongId(Took),
    /// A redirect, without an effect.
    Redirect {
        /// The status.
        code: u16,
        /// The header `Location`.
        location: String,
    },
    /// 200 and a JSON string that goes on for ever.
    EndlessBody(Took),
    /// The proper effect, and a proper answer with so many tasks.
    ManyTasks(usize),
    /// 202 without a body, with effect.
    Accepted202,
    /// 200 and any body.
    JsonWith200(Value, Took),
    /// Some status and any bytes, sent as `application/json`.
    Raw {
        /// The status.
        code: u16,
        /// The body.
        body: Vec<u8>,
        /// Whether the stop took effect before.
        effect: Took,
    },
    /// Another fault, with a `Retry-After` on its answer.
    WithRetryAfter(Box<Fault>, RetryAfter),
    /// Another fault, with this header on its answer, in place of one of the same name.
    WithHeader(Box<Fault>, String, String),
}

/// Headers to set on an answer: names and values.
pub(super) type Headers = Vec<(String, String)>;

impl Fault {
    /// The same with a `Retry-After` on its answer, also where that is a 5xx.
    pub fn with_retry_after(self, retry_after: RetryAfter) -> Self {
        Fault::WithRetryAfter(Box::new(self), retry_after)
    }

    /// The same with this header on its answer, in place of one of the same name; the name in lower case.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        Fault::WithHeader(Box::new(self), name.to_owned(), value.to_owned())
    }

    /// The fault without the headers around it, and these headers, the innermost first.
    pub(super) fn unwrapped(self, wall: SystemTime) -> (Self, Headers) {
        let (inner, header) = if let Fault::WithRetryAfter(inner, after) = self {
            (inner, after.header(wall).map(|value| ("retry-after".to_owned(), value)))
        } else if let Fault::WithHeader(inner, name, value) = self {
            (inner, Some((name, value)))
        } else {
            return (self, Headers::new());
        };
        let (fault, mut headers) = inner.unwrapped(wall);
        headers.extend(header);
        (fault, headers)
    }

    /// Whether and when a stop that meets it takes effect.
    pub(super) fn took(&self) -> Took {
        match self {
            Fault::TooManyRequests { .. } | Fault::Redirect { .. } => Took::NoEffect,
            Fault::Slow(_) | Fault::ManyTasks(_) | Fault::Accepted202 => Took::Effect,
            Fault::Status { effect: took, .. }
            | Fault::Reset(took)
            | Fault::NoAnswer(took)
            | Fault::HtmlWith200(took)
            | Fault::WrongId(took)
            | Fault::EndlessBody(took)
            | Fault::JsonWith200(_, took)
            | Fault::Raw { effect: took, .. } => *took,
            Fault::WithRetryAfter(fault, _) | Fault::WithHeader(fault, ..) => fault.took(),
        }
    }
}

impl RetryAfter {
    pub(super) fn header(&self, wall: SystemTime) -> Option<String> {
        match self {
            RetryAfter::None => None,
            RetryAfter::Seconds(seconds) => Some(seconds.to_string()),
            RetryAfter::Date(ahead) => Some(http_date(wall, *ahead)),
            RetryAfter::Text(text) => Some(text.clone()),
        }
    }
}

fn http_date(wall: SystemTime, seconds_ahead: i64) -> String {
    let now = Timestamp::try_from(wall).expect("a wall clock between the years -9999 and 9999");
    let then = now + jiff::SignedDuration::from_secs(seconds_ahead);
    then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

type Choice = dyn FnMut(Kind, &str) -> Option<Fault> + Send;

/// Chooses the fault of a request that no other one waits for.
pub(super) struct Rule(pub(super) Box<Choice>);

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rule")
    }
}

/// The faults that wait for requests, by run; those of tokens have an empty key. A queued one is used up, a standing
/// one is met when none is queued.
#[derive(Debug, Default)]
pub(super) struct Faults {
    queued: HashMap<String, VecDeque<Fault>>,
    standing: HashMap<String, Fault>,
}

impl Faults {
    pub(super) fn queue(&mut self, key: &str, faults: impl IntoIterator<Item = Fault>) {
        self.queued.entry(key.to_owned()).or_default().extend(faults);
    }

    pub(super) fn stand(&mut self, key: &str, fault: Fault) {
        self.standing.insert(key.to_owned(), fault);
    }

    pub(super) fn next(&mut self, key: &str) -> Option<Fault> {
        self.queued.get_mut(key).and_then(VecDeque::pop_front).or_else(|| self.standing.get(key).cloned())
    }

    pub(super) fn clear(&mut self) {
        self.queued.clear();
        self.standing.clear();
    }
}
