//! Owns the transport of one request: its connection, the checks before it is written, its response.
//! Never repeats a request, follows a redirect, or reads a body of unbounded size.
//!
//! Each stop and token request has its own connection: one that was used before may be dead already, which leaves the
//! outcome of a request unknown. Reads of a followed run may use one that an earlier read left. Between the connection and the write, the
//! request waits for its turn, its fence is checked, and it begins to count in the budget.
//!
//! The request timeout runs from the write of the request. Before that, only connecting has a timeout: waiting for the
//! rate limit is not a failure of the API.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{
    HeaderMap, Method,
    header::{HOST, HeaderValue},
    uri::{PathAndQuery, Uri},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::http1;
use thiserror::Error;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tower::BoxError;
use url::Url;
use workflow_run_stop_common::error::root_cause;

use crate::amperity::{
    budget::Slot,
    connector::Connector,
    content::Content,
    kept_connections::{Connected, KeepingBody, KeptConnections},
    reply::{Failure, Reply},
    run::cut,
};
use crate::fault_injection::{Fault, is_injected};

/// The largest body that is read, after decompression.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// The largest part of a body that is processed before other tasks get their turn, in bytes.
const PART_BYTES: usize = 16 * 1024;

/// The timeout for connecting, TLS included; shorter than the validity of a claim.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest time for which an established connection waits for the turn of a request without a fence. After that,
/// the connection is closed, before the server closes it, and the request connects again when its turn is near.
const MAX_TURN_WAIT: Duration = Duration::from_secs(1);

/// The largest buffer of a connection, in bytes, and the largest head of a response. Several are in use while a body is
/// read.
const MAX_BUFFER: usize = 32 * 1024;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The URL.
    pub url: Url,
    /// The headers, besides those that every request has.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// True if the request may use a connection that an earlier one left, and leaves its own.
    pub shares_connections: bool,
}

/// A response.
pub type Response = http::Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The check right before a request is written.
#[derive(Clone)]
pub struct Fence {
    /// The end of the time in which the request may be written.
    pub until: Instant,
    /// Returns false if the request must not be written any more.
    pub is_open: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The checks of a request between its connection and its write.
#[derive(Clone)]
struct Admission {
    slot: Arc<Slot>,
    fence: Option<Fence>,
}

/// The reason why a request is not written on its connection.
#[derive(Debug, Error)]
enum NotAdmitted {
    #[error("the fence closed before this request could be written")]
    TooLate,
    #[error("the turn of this request is no longer near")]
    TurnNotNear,
    #[error("the kept connection was closed before this request could be written")]
    KeptConnectionClosed,
}

/// A kept connection ended before the response: the server closed it at the same moment.
#[derive(Debug, Error)]
#[error("the kept connection ended before the response")]
struct KeptConnectionEnded;

impl Admission {
    /// Waits until the turn of the request has come, and checks that its fence is open.
    async fn wait(&self) -> Result<(), NotAdmitted> {
        match &self.fence {
            None => {
                timeout(MAX_TURN_WAIT, self.slot.wait_for_turn()).await.map_err(|_| NotAdmitted::TurnNotNear)?;
            }
            Some(fence) => {
                let turn = timeout_at(fence.until, self.slot.wait_for_turn()).await;
                if (turn.is_err() || !(fence.is_open)()) && !is_injected(Fault::NoFence) {
                    return Err(NotAdmitted::TooLate);
                }
            }
        }
        Ok(())
    }
}

/// The way in which requests are sent to the API.
#[derive(Clone)]
pub enum Transport {
    /// Over the network.
    Network(Arc<Network>),
    /// To a simulation of the API.
    Custom(Arc<dyn CustomTransport>),
}

/// A replacement for the network.
pub trait CustomTransport: Send + Sync {
    /// Sends one request and returns its response. `connected` must be awaited once the connection is established; if
    /// it fails, nothing may be written.
    fn send(&self, request: Request, connected: BoxFuture<'static, Result<(), BoxError>>) -> TransportFuture;
}

/// The response to a request, or the error that prevented it.
pub type TransportFuture = BoxFuture<'static, Result<Response, BoxError>>;

/// The network.
pub struct Network {
    connector: Connector,
    /// The headers of every request.
    headers: HeaderMap,
    connect_timeout: Duration,
    kept: KeptConnections,
}

impl Network {
    /// Uses this connector. Every request has these headers.
    pub fn new(connector: Connector, headers: HeaderMap, request_timeout: Duration) -> Self {
        let connect_timeout = CONNECT_TIMEOUT.min(request_timeout / 2);
        Self { connector, headers, connect_timeout, kept: KeptConnections::default() }
    }

    /// Connects, or takes a kept connection, waits for the admission, and sends a request on that connection.
    async fn send(&self, request: Request, admission: &Admission) -> Result<Response, BoxError> {
        let Request { method, url, headers, body, shares_connections } = request;
        let origin = shares_connections.then(|| Arc::<str>::from(url.origin().ascii_serialization()));
        let kept = origin.as_ref().and_then(|origin| self.kept.take(origin));
        let is_kept = kept.is_some();
        let mut connected = match kept {
            Some(connected) => connected,
            None => timeout(self.connect_timeout, self.connect(&url))
                .await
                .map_err(|_| "no connection within the connect timeout")??,
        };
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() =
            Uri::from(url[url::Position::BeforePath..url::Position::AfterQuery].parse::<PathAndQuery>()?);
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        request.headers_mut().insert(HOST, HeaderValue::from_str(host)?);
        request.headers_mut().extend(self.headers.clone());
        request.headers_mut().extend(headers);
        if !is_kept {
            admission.slot.end_preparations();
        }
        admission.wait().await?;
        match (connected.sender.is_closed(), is_kept) {
            (true, true) => return Err(NotAdmitted::KeptConnectionClosed.into()),
            (true, false) => return Err("the connection was closed before the request was written".into()),
            (false, _) => {}
        }
        admission.slot.mark_sent();
        let failing = origin.as_deref().filter(|_| is_kept).map(|origin| Failing { kept: &self.kept, origin });
        let response = match connected.sender.send_request(request).await {
            Ok(response) => response,
            Err(error) if is_kept && !error.is_parse() => return Err(KeptConnectionEnded.into()),
            Err(error) => return Err(error.into()),
        };
        // There is a response.
        std::mem::forget(failing);
        Ok(response.map(|body| match origin {
            Some(origin) => {
                KeepingBody::new(body, self.kept.clone(), origin, connected).map_err(BoxError::from).boxed_unsync()
            }
            None => body.map_err(BoxError::from).boxed_unsync(),
        }))
    }

    async fn connect(&self, url: &Url) -> Result<Connected, BoxError> {
        let connection = self.connector.connect(url.as_str().parse()?).await?;
        let (sender, driver) = http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(connection).await?;
        // It ends with the connection: when the last response is read or no longer wanted, and the connection is not kept.
        drop(tokio::spawn(driver));
        Ok(Connected { sender, since: Instant::now() })
    }
}

/// Closes the other kept connections to an origin when it is dropped: a request on one of them got no response.
struct Failing<'a> {
    kept: &'a KeptConnections,
    origin: &'a str,
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.kept.close(self.origin);
    }
}

/// Connects, waits for the turn, and sends a request if its fence is open then. `limit` is the longest time from the
/// write to the end of the response's head. `decode_head` decodes that head, so that a 429 closes the budget before the
/// body is read, which may be slow.
///
/// # Errors
/// If there is no response.
pub async fn send(
    transport: &Transport,
    request: Request,
    (slot, fence): (Arc<Slot>, Option<Fence>),
    limit: Duration,
    decode_head: impl FnOnce(&Response) -> Reply,
) -> Result<(Reply, Response), Failure> {
    slot.end_start();
    let is_of_budget = slot.key().is_of(&request.url);
    let admission = Admission { slot: slot.clone(), fence };
    let response = loop {
        // A 429 since the slot was granted may have postponed the turn.
        match &admission.fence {
            None => slot.wait_until_near_turn().await,
            Some(fence) => timeout_at(fence.until, slot.wait_until_near_turn()).await.map_err(|_| Failure::TooLate)?,
        }
        let result = tokio::select! {
            biased;
            result = execute(transport, request.clone(), &admission) => result,
            () = async { sleep_until(slot.wait_until_sent().await + limit).await } => return Err(no_answer_in_time()),
        };
        match result {
            Ok(response) => break response,
            Err(error) if error.is::<KeptConnectionEnded>() => return Err(Failure::KeptConnectionEnded),
            Err(error) => match error.downcast_ref() {
                Some(NotAdmitted::TurnNotNear | NotAdmitted::KeptConnectionClosed) => {}
                Some(NotAdmitted::TooLate) => return Err(Failure::TooLate),
                None => return Err(failure(&*error, slot.sent_at().is_some())),
            },
        }
    };
    let mut head = decode_head(&response);
    match (is_of_budget, head.is_rate_limited()) {
        // The closure of the budget is the only backoff after a 429.
        (true, true) => head.retry_after = Some(slot.record_rate_limited(head.retry_after)),
        (true, false) => slot.record_answered(),
        // The token endpoint of another origin, which a Secret names, says nothing about the rate limit of the tenant.
        (false, _) => {}
    }
    Ok((head, response))
}

async fn execute(transport: &Transport, request: Request, admission: &Admission) -> Result<Response, BoxError> {
    match transport {
        Transport::Network(network) => network.send(request, admission).await,
        Transport::Custom(custom) => {
            let admission = admission.clone();
            let connected = async move {
                admission.slot.end_preparations();
                admission.wait().await?;
                admission.slot.mark_sent();
                Ok(())
            };
            custom.send(request, connected.boxed()).await
        }
    }
}

/// Reads the body of a response, and calls `each` with each part of it. Other tasks run between two parts. The headers
/// are dropped first: they may be large, and the body slow.
///
/// # Errors
/// If the body is not complete at `deadline`, or larger than 8 MiB.
pub async fn read_body(response: Response, deadline: Instant, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    let (head, mut body) = response.into_parts();
    let mut content = Content::of(&head.headers);
    drop(head);
    let too_large = || Err(Failure::NoAnswer(format!("the answer is larger than {MAX_BODY_BYTES} bytes")));
    let (mut size, mut encoded_size) = (0, 0);
    let mut part = |bytes: &[u8]| {
        size += bytes.len();
        if MAX_BODY_BYTES < size {
            return too_large();
        }
        each(bytes);
        Ok(())
    };
    let broken = |error: &(dyn std::error::Error + 'static)| failure(error, true);
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| broken(&*error))?.into_data() else { continue };
            encoded_size += data.len();
            if MAX_BODY_BYTES < encoded_size {
                return too_large();
            }
            let mut rest = &*data;
            while !rest.is_empty() {
                let (read, decoded) = content.decode(rest).map_err(|error| broken(&error))?;
                for bytes in decoded.chunks(PART_BYTES) {
                    part(bytes)?;
                    yield_now().await;
                }
                // Much of a body may be in memory already, and compressed, also from nothing. Other tasks must not be late
                // because of it.
                yield_now().await;
                rest = &rest[read..];
            }
        }
        part(&content.finish().map_err(|error| broken(&error))?)
    };
    timeout_at(deadline, read).await.map_err(|_| no_answer_in_time())?
}

fn no_answer_in_time() -> Failure {
    Failure::NoAnswer("no answer within the request timeout".to_owned())
}

fn failure(error: &(dyn std::error::Error + 'static), sent: bool) -> Failure {
    // The text may repeat what the server sent, such as the names in its certificate.
    let why = cut(&root_cause(error));
    if sent { Failure::NoAnswer(why) } else { Failure::NotSent(why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn other_tasks_get_their_turn_while_a_large_body_is_read() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::SeqCst);
                yield_now().await;
            }
        });
        let body = Full::from(vec![b' '; MAX_BODY_BYTES]).map_err(BoxError::from).boxed_unsync();
        let response = Response::new(body);
        let (mut parts, mut bytes) = (0, 0);
        let each = |part: &[u8]| {
            assert!(part.len() <= PART_BYTES);
            assert!(parts <= turns.load(Ordering::SeqCst), "a turn after each part");
            parts += 1;
            bytes += part.len();
        };
        read_body(response, Instant::now() + Duration::from_secs(60), each).await.unwrap();
        assert_eq!(bytes, MAX_BODY_BYTES);
        other.abort();
    }
}
