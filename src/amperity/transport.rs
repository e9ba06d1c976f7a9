//! Owns the transport of one request: its connection, the checks before it is written, its response.
//! Never repeats a request, follows a redirect, or reads a body of unbounded size.
//!
//! Each request has its own connection. Between the connection and the write, the request waits for its turn, its fence
//! is checked, and it begins to count in the budget. With a pooled connection nothing can be checked that late, and the
//! connection may be dead already, which leaves the outcome of a request unknown.
//!
//! The request timeout runs from the write of the request. Before that, only connecting has a timeout: waiting for the
//! rate limit is not a failure of the API.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use reqwest::{Certificate, Request, Response, header::HeaderMap};
use thiserror::Error;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tower::{BoxError, timeout::TimeoutLayer, util::AndThenLayer};
use workflow_run_stop_common::error::{causes, root_cause};

use crate::amperity::{
    budget::Slot,
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

/// The check right before a request is written.
#[derive(Clone)]
pub struct Fence {
    /// The end of the time in which the request may be written.
    pub until: Instant,
    /// Returns false if the request must not be written any more.
    pub is_open: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The checks of a request between its connection and its write.
struct Admission {
    slot: Arc<Slot>,
    fence: Option<Fence>,
}

tokio::task_local! {
    /// The admission of the request that connects in this task.
    static ADMISSION: Arc<Admission>;
}

#[derive(Debug, Error)]
#[error("the fence closed before this request could be written")]
struct TooLate;

#[derive(Debug, Error)]
#[error("the turn of this request is no longer near")]
struct TurnNotNear;

/// The reason why the client cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// `SSL_CERT_FILE` cannot be used.
    #[error("SSL_CERT_FILE names {0}, which is not a readable file of PEM certificates")]
    Certificates(PathBuf),
    /// The API version cannot be sent as a header.
    #[error("the API version {0:?} cannot be sent as a header")]
    ApiVersion(String),
    /// The HTTP client rejects its settings.
    #[error("the HTTP client cannot be built: {}", root_cause(.0))]
    Http(reqwest::Error),
}

/// The way in which requests are sent to the API.
#[derive(Clone)]
pub enum Transport {
    /// Over the network, each on a connection of its own.
    Network(reqwest::Client),
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

/// Builds the HTTP client. It trusts the certificates of the system and of `SSL_CERT_FILE`, and honours `HTTPS_PROXY`
/// and `NO_PROXY`.
///
/// # Errors
/// If the certificates cannot be used.
pub fn network(headers: HeaderMap, request_timeout: Duration) -> Result<Transport, BuildError> {
    reqwest::Client::builder()
        .user_agent(concat!("workflow-run-stop-operator/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .pool_max_idle_per_host(0)
        .connector_layer(TimeoutLayer::new(CONNECT_TIMEOUT.min(request_timeout / 2)))
        .connector_layer(AndThenLayer::new(wait_for_admission))
        .tls_certs_merge(extra_certificates()?)
        .build()
        .map(Transport::Network)
        .map_err(BuildError::Http)
}

/// Returns the connection when the turn of its request has come and the fence is open; then the request counts as sent.
async fn wait_for_admission<C>(connection: C) -> Result<C, BoxError> {
    let Ok(admission) = ADMISSION.try_with(Arc::clone) else {
        return Err("this connection belongs to a request without an admission".into());
    };
    match &admission.fence {
        None => {
            timeout(MAX_TURN_WAIT, admission.slot.wait_for_turn()).await.map_err(|_| BoxError::from(TurnNotNear))?;
        }
        Some(fence) => {
            let turn = timeout_at(fence.until, admission.slot.wait_for_turn()).await;
            if (turn.is_err() || !(fence.is_open)()) && !is_injected(Fault::NoFence) {
                return Err(Box::new(TooLate));
            }
        }
    }
    admission.slot.mark_sent();
    Ok(connection)
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
    let is_of_budget = slot.key().is_of(request.url());
    let response = loop {
        // A 429 since the slot was granted may have postponed the turn.
        match &fence {
            None => slot.wait_until_near_turn().await,
            Some(fence) => timeout_at(fence.until, slot.wait_until_near_turn()).await.map_err(|_| Failure::TooLate)?,
        }
        let admission = Arc::new(Admission { slot: slot.clone(), fence: fence.clone() });
        let request = request.try_clone().expect("a body that is not a stream can be cloned");
        let response = ADMISSION.scope(admission.clone(), execute(transport, request, admission));
        let result = tokio::select! {
            biased;
            result = response => result,
            () = async { sleep_until(slot.wait_until_sent().await + limit).await } => return Err(no_answer_in_time()),
        };
        match result {
            Err(error) if caused_by::<TurnNotNear>(&*error) => {}
            result => break result.map_err(|error| failure(&*error, slot.sent_at().is_some()))?,
        }
    };
    let mut head = decode_head(&response);
    // The token endpoint of another origin, which a Secret names, says nothing about the rate limit of the tenant.
    if head.is_rate_limited() && is_of_budget {
        // The closure of the budget is the only backoff after a 429.
        head.retry_after = Some(slot.record_rate_limited(head.retry_after));
    } else {
        slot.record_answered();
    }
    Ok((head, response))
}

async fn execute(transport: &Transport, request: Request, admission: Arc<Admission>) -> Result<Response, BoxError> {
    match transport {
        Transport::Network(client) => client.execute(request).await.map_err(BoxError::from),
        Transport::Custom(custom) => {
            custom.send(request, ADMISSION.scope(admission, wait_for_admission(())).boxed()).await
        }
    }
}

/// Reads the body of a response, and calls `each` with each part of it. Other tasks run between two parts. The headers
/// are dropped first: they may be large, and the body slow.
///
/// # Errors
/// If the body is not complete at `deadline`, or larger than 8 MiB.
pub async fn read_body(mut response: Response, deadline: Instant, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    drop(std::mem::take(response.headers_mut()));
    let mut size = 0;
    let read = async {
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, true))? {
            size += chunk.len();
            if MAX_BODY_BYTES < size {
                return Err(Failure::NoAnswer(format!("the answer is larger than {MAX_BODY_BYTES} bytes")));
            }
            for part in chunk.chunks(PART_BYTES) {
                each(part);
                // Much of a body, or all of it if it is compressed, may be in memory already. Other tasks must not be
                // late because of it.
                yield_now().await;
            }
        }
        Ok(())
    };
    timeout_at(deadline, read).await.map_err(|_| no_answer_in_time())?
}

fn no_answer_in_time() -> Failure {
    Failure::NoAnswer("no answer within the request timeout".to_owned())
}

fn failure(error: &(dyn std::error::Error + 'static), sent: bool) -> Failure {
    if caused_by::<TooLate>(error) {
        return Failure::TooLate;
    }
    let timeout = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout);
    match (sent, timeout) {
        (false, true) => Failure::NotSent("no connection within the connect timeout".to_owned()),
        // The text may repeat what the server sent, such as the names in its certificate.
        (false, false) => Failure::NotSent(cut(&root_cause(error))),
        (true, _) => Failure::NoAnswer(cut(&root_cause(error))),
    }
}

fn caused_by<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<E>())
}

/// The files in which the common distributions keep the certificates of the system.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Returns the certificates to trust in addition to those that the TLS library finds. If `SSL_CERT_FILE` is set, the
/// library finds only the ones in that file: then those of the system are added here.
fn extra_certificates() -> Result<Vec<Certificate>, BuildError> {
    let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from) else { return Ok(vec![]) };
    let named = certificates(&file).ok_or(BuildError::Certificates(file))?;
    let system = SYSTEM_BUNDLES.iter().find_map(|bundle| certificates(Path::new(bundle)));
    Ok(system.into_iter().flatten().chain(named).collect())
}

fn certificates(bundle: &Path) -> Option<Vec<Certificate>> {
    let certificates = Certificate::from_pem_bundle(&std::fs::read(bundle).ok()?).ok()?;
    (!certificates.is_empty()).then_some(certificates)
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
        let response = Response::from(http::Response::new(vec![b' '; MAX_BODY_BYTES]));
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
