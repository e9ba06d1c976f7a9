//! Owns the faults of the simulated API, and the choice of the fault for a request.
//! Never touches a run or a connection: the handler applies a fault.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::Value;

use super::request_log::Kind;

/// Whether and when a stop request with a fault takes effect. Ignored for reads and token requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StopEffect {
    /// The run is not stopped.
    NoEffect,
    /// The run is stopped as without the fault.
    Immediate,
    /// The run is stopped this long after the request arrived (a held request: after it passed `BeforeEffect`), also
    /// if the connection was closed. It counts as an effect from then on, and not at all if the run ended before.
    Delayed(Duration),
}

/// The `Retry-After` header of a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RetryAfter {
    /// No header.
    None,
    /// A number of seconds.
    Seconds(u64),
    /// An HTTP date (IMF-fixdate), in seconds from now by the wall clock; negative values are in the past.
    Date(i64),
    /// Any other value.
    Text(String),
}

/// The body of an error response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorBody {
    /// The documented error object.
    ErrorJson,
    /// A gateway's HTML page.
    Html,
    /// A gateway's JSON object: `{"message": "no Route matched with those values"}`.
    OtherJson,
    /// The error object of OAuth 2, `{"error": "invalid_client"}`. Amperity itself sends it for token requests only.
    OAuthJson,
    /// No body.
    Empty,
}

/// A fault that replaces the normal response to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// 429 without an effect.
    TooManyRequests {
        /// The `Retry-After` header.
        retry_after: RetryAfter,
    },
    /// A status code with a body.
    Status {
        /// The status code.
        code: u16,
        /// The effect of a stop request.
        effect: StopEffect,
        /// The response body.
        body: ErrorBody,
    },
    /// The connection is reset (TCP RST) without a response.
    Reset(StopEffect),
    /// No response; the connection stays open until the client or the simulator closes it.
    NoResponse(StopEffect),
    /// The effect and the normal response come after this delay.
    Slow(Duration),
    /// 200 and an HTML page, like the login page of a proxy.
    HtmlWith200(StopEffect),
    /// 200 and the record of a run with another id.
    WrongId(StopEffect),
    /// A redirect without an effect.
    Redirect {
        /// The status code.
        code: u16,
        /// The `Location` header.
        location: String,
    },
    /// 200 and a JSON string that never ends.
    EndlessBody(StopEffect),
    /// The normal effect, and the normal response with this number of tasks.
    ManyTasks(usize),
    /// 202 without a body; the stop takes effect.
    Accepted202,
    /// 200 and this JSON body.
    JsonWith200(Value, StopEffect),
    /// A status code with any bytes as `application/json`.
    Raw {
        /// The status code.
        code: u16,
        /// The response body.
        body: Vec<u8>,
        /// The effect of a stop request.
        effect: StopEffect,
    },
    /// Another fault with a `Retry-After` header on its response.
    WithRetryAfter(Box<Fault>, RetryAfter),
    /// Another fault with this header on its response, replacing one of the same name.
    WithHeader(Box<Fault>, String, String),
}

/// Names and values of headers to set on a response.
pub(super) type Headers = Vec<(String, String)>;

impl Fault {
    /// Adds a `Retry-After` header to the response, whatever its status code.
    pub fn with_retry_after(self, retry_after: RetryAfter) -> Self {
        Fault::WithRetryAfter(Box::new(self), retry_after)
    }

    /// Adds this header to the response, replacing one of the same name. The name is in lower case.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        Fault::WithHeader(Box::new(self), name.to_owned(), value.to_owned())
    }

    /// Returns the fault without the headers around it, and these headers, the innermost first.
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

    /// Returns whether and when a stop request with this fault takes effect.
    pub(super) fn effect(&self) -> StopEffect {
        match self {
            Fault::TooManyRequests { .. } | Fault::Redirect { .. } => StopEffect::NoEffect,
            Fault::Slow(_) | Fault::ManyTasks(_) | Fault::Accepted202 => StopEffect::Immediate,
            Fault::Status { effect, .. }
            | Fault::Reset(effect)
            | Fault::NoResponse(effect)
            | Fault::HtmlWith200(effect)
            | Fault::WrongId(effect)
            | Fault::EndlessBody(effect)
            | Fault::JsonWith200(_, effect)
            | Fault::Raw { effect, .. } => *effect,
            Fault::WithRetryAfter(fault, _) | Fault::WithHeader(fault, ..) => fault.effect(),
        }
    }
}

impl RetryAfter {
    /// Returns the value of the header, if it is present.
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

type ChooseFault = dyn FnMut(Kind, &str) -> Option<Fault> + Send;

/// A function that chooses the fault of a request without a queued or permanent one.
pub(super) struct FaultRule(pub(super) Box<ChooseFault>);

impl fmt::Debug for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultRule")
    }
}

/// The faults of later requests by run id; token requests have an empty key. A queued fault is used once; the permanent
/// one applies while none is queued.
#[derive(Debug, Default)]
pub(super) struct Faults {
    queued: HashMap<String, VecDeque<Fault>>,
    permanent: HashMap<String, Fault>,
}

impl Faults {
    pub(super) fn queue(&mut self, key: &str, faults: impl IntoIterator<Item = Fault>) {
        self.queued.entry(key.to_owned()).or_default().extend(faults);
    }

    pub(super) fn set_permanent(&mut self, key: &str, fault: Fault) {
        self.permanent.insert(key.to_owned(), fault);
    }

    pub(super) fn next(&mut self, key: &str) -> Option<Fault> {
        self.queued.get_mut(key).and_then(VecDeque::pop_front).or_else(|| self.permanent.get(key).cloned())
    }

    pub(super) fn clear(&mut self) {
        self.queued.clear();
        self.permanent.clear();
    }
}
