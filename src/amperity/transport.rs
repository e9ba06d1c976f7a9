//! Owns the way of one request: a connection of its own, the last look before it is written, the answer.
//! Never repeats a request, follows a redirect, or reads more than a bounded body.
//!
//! A request never shares a connection. So the moment when its connection is there is the last one before
//! it is written: then its turn is waited for, its fence is looked at, and it begins to count in the
//! budget. A connection that waited in a pool would bring none of that, and may be dead already, which
//! leaves the outcome of a request unknown.
//!
//! The limit for a request is counted from when it is written. Until then only connecting has a limit of its own:
//! waiting for the rate limit is no failure of the API.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use reqwest::{Certificate, Request, Response, header::HeaderMap};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tower::{BoxError, timeout::TimeoutLayer, util::AndThenLayer};
use workflow_run_stop_common::error::root_cause;

use crate::amperity::{
    budget::Slot,
    reply::{Failure, Reply},
};

use crate::fault_injection::{Fault, is_injected};

/// The largest body that is read, after decompression.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// The limit for connecting, TLS included; shorter than a claim is valid.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that is there waits no longer than this for its turn in the rate limit; it would be closed by the other
/// side some time. It is given up, and made anew when the turn is near.
const MAX_TURN_WAIT: Duration = Duration::from_secs(1);

/// The right to write a request, which ends.
#[derive(Clone)]
pub struct Fence {
    /// By then it is over for sure.
    pub until: Instant,
    /// Says in the last instant whether it is still there.
    pub is_open: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What a request needs when its connection is there.
struct Admission {
    slot: Arc<Slot>,
    fence: Option<Fence>,
}

tokio::task_local! {
    /// The admission of the request that waits for a connection in this task.
    static ADMISSION: Arc<Admission>;
}

#[derive(Debug, Error)]
#[error("the right to send this request was over before it could be written")]
struct TooLate;

#[derive(Debug, Error)]
#[error("the turn of this request in the rate limit is not near any more")]
struct NotYet;

/// Why the client cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// `SSL_CERT_FILE` cannot be used.
    #[error("SSL_CERT_FILE names {0}, which is not a readable file of PEM certificates")]
    Certificates(PathBuf),
    /// The API version cannot be sent as a header.
    #[error("the API version {0:?} cannot be sent as a header")]
    ApiVersion(String),
    /// The HTTP client refuses its settings.
    #[error("the HTTP client cannot be built: {}", root_cause(.0))]
    Http(reqwest::Error),
}

/// Carries requests to the API.
#[derive(Clone)]
pub enum Transport {
    /// Over the network, each on a connection of its own.
    Network(reqwest::Client),
    /// In another way: a simulation of the API.
    Other(Arc<dyn CustomTransport>),
}

/// Another way to carry a request than the network.
pub trait CustomTransport: Send + Sync {
    /// Carries one request and returns its answer. `connected` is to be awaited when the connection is
    /// there; where it fails, nothing may be written.
    fn carry(&self, request: Request, connected: BoxFuture<'static, Result<(), BoxError>>) -> TransportFuture;
}

/// What comes of a request.
pub type TransportFuture = BoxFuture<'static, Result<Response, BoxError>>;

/// Builds the HTTP client. It trusts the system's certificates and those of `SSL_CERT_FILE`, and honours
/// `HTTPS_PROXY` and `NO_PROXY`.
///
/// # Errors
/// Where the certificates cannot be used.
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
        .connector_layer(AndThenLayer::new(admitted))
        .tls_certs_merge(extra_certificates()?)
        .build()
        .map(Transport::Network)
        .map_err(BuildError::Http)
}

/// Lets a request go on, now that its connection is there, when its turn has come and its fence is open.
async fn admitted<C>(connection: C) -> Result<C, BoxError> {
    let Ok(admission) = ADMISSION.try_with(Arc::clone) else {
        return Err("a request without a admission waits for this connection".into());
    };
    match &admission.fence {
        None => timeout(MAX_TURN_WAIT, admission.slot.turn()).await.map_err(|_| BoxError::from(NotYet))?,
        Some(fence) => {
            let turn = timeout_at(fence.until, admission.slot.turn()).await;
            if (turn.is_err() || !(fence.is_open)()) && !is_injected(Fault::NoFence) {
                return Err(Box::new(TooLate));
            }
        }
    }
    admission.slot.send();
    Ok(connection)
}

/// Sends a request, when its connection is there and if the fence allows it then. `limit` is the longest time from its
/// writing to the end of the head of its answer. `head` decodes that head; the budget learns of a 429 before the body is
/// read, which may take its time.
///
/// # Errors
/// Where no answer came.
pub async fn send(
    transport: &Transport,
    request: Request,
    (slot, fence): (Arc<Slot>, Option<Fence>),
    limit: Duration,
    head: impl FnOnce(&Response) -> Reply,
) -> Result<(Reply, Response), Failure> {
    let response = loop {
        // A 429 that came in since the slot was granted is no time to connect.
        match &fence {
            None => slot.near().await,
            Some(fence) => timeout_at(fence.until, slot.near()).await.map_err(|_| Failure::TooLate)?,
        }
        let admission = Arc::new(Admission { slot: slot.clone(), fence: fence.clone() });
        let request = request.try_clone().expect("a body that is no stream can be cloned");
        let answer = ADMISSION.scope(admission.clone(), carry(transport, request, admission));
        let answered = tokio::select! {
            biased;
            answered = answer => answered,
            () = async { sleep_until(slot.written().await + limit).await } => return Err(no_answer_in_time()),
        };
        match answered {
            Err(error) if caused_by::<NotYet>(&*error) => {}
            answered => break answered.map_err(|error| failure(&*error, slot.sent().is_some()))?,
        }
    };
    let head = head(&response);
    if head.is_rate_limited() {
        slot.rate_limited(head.retry_after)
    } else {
        slot.answered()
    }
    Ok((head, response))
}

async fn carry(transport: &Transport, request: Request, admission: Arc<Admission>) -> Result<Response, BoxError> {
    match transport {
        Transport::Network(client) => client.execute(request).await.map_err(BoxError::from),
        Transport::Other(other) => other.carry(request, ADMISSION.scope(admission, admitted(())).boxed()).await,
    }
}

/// Reads the body of an answer until `deadline`.
///
/// # Errors
/// Where it does not come whole, or is too large.
pub async fn body(mut response: Response, deadline: Instant) -> Result<Vec<u8>, Failure> {
    let mut body = vec![];
    let read = async {
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, true))? {
            if MAX_BODY_BYTES < body.len() + chunk.len() {
                return Err(Failure::NoAnswer(format!("the answer is larger than {MAX_BODY_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    };
    timeout_at(deadline, read).await.map_err(|_| no_answer_in_time())??;
    Ok(body)
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
        (false, false) => Failure::NotSent(root_cause(error)),
        (true, _) => Failure::NoAnswer(root_cause(error)),
    }
}

fn caused_by<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|cause| cause.is::<E>())
}

/// Where the common distributions keep the system's certificates in one file.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The certificates to trust beside those that the TLS library finds by itself. It finds the system's,
/// or only those of `SSL_CERT_FILE` where that is set: then the system's are added here.
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
