//! Owns the outer door: one method sends one HTTP request and returns what was answered.
//! Never repeats a request, follows a redirect, or reads more than a bounded body.

pub mod answer;
pub mod budget;
pub mod credentials;
pub mod endpoint;
pub mod wire;

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Certificate, RequestBuilder, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER},
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, util::MapResultLayer};

use crate::amperity::{
    answer::{Failure, ReadAnswer, Reply, StopAnswer, TokenAnswer, read_answer, stop_answer, token_answer},
    budget::Slot,
    credentials::{Client as OauthClient, Token},
    endpoint::Endpoint,
};
use crate::clock::Clock;

/// The largest body that is read, after decompression.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// A connection that was idle for longer is not used again: the gateways on the way close theirs
/// after a minute, and a request that meets such an end has an unknown outcome.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to write a request, which ends.
#[derive(Clone)]
pub struct Fence {
    /// By then it is over for sure.
    pub until: Instant,
    /// Says in the last instant whether it is still there.
    pub is_open: Arc<dyn Fn() -> bool + Send + Sync>,
}

tokio::task_local! {
    /// The fence of the request that waits for a connection in this task.
    static FENCE: Fence;
}

#[derive(Debug, Error)]
#[error("the right to send this request was over before a connection was there")]
struct TooLate;

/// How to reach the API.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The header `api-version`.
    pub api_version: String,
    /// The limit for a request from its start to the end of its answer.
    pub request_timeout: Duration,
}

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
    #[error("the HTTP client cannot be built: {}", reason(.0))]
    Http(reqwest::Error),
}

/// A client of the API for all tenants.
#[derive(Clone)]
pub struct Amperity {
    http: reqwest::Client,
    clock: Clock,
    /// Set when the API announced a removal and the log was told.
    warned: Arc<OnceLock<()>>,
}

const API_VERSION: HeaderName = HeaderName::from_static("api-version");
const TENANT: HeaderName = HeaderName::from_static("amperity-tenant");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");
const TOKEN_TENANT: HeaderName = HeaderName::from_static("x-amperity-tenant");

impl Amperity {
    /// Builds the client. It trusts the system's certificates and those of `SSL_CERT_FILE`, and
    /// honours `HTTPS_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// Where the settings or the certificates cannot be used.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, BuildError> {
        let version = settings.api_version.parse().map_err(|_| BuildError::ApiVersion(settings.api_version.clone()))?;
        let headers = HeaderMap::from_iter([
            (API_VERSION, version),
            // Some routes of the host answer in another format otherwise.
            (ACCEPT, "application/json".parse().expect("a plain text is a header")),
        ]);
        let http = reqwest::Client::builder()
            .user_agent(concat!("workflow-run-stop-operator/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT.min(settings.request_timeout))
            .timeout(settings.request_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .connector_layer(MapResultLayer::new(fenced))
            .tls_certs_merge(extra_certificates()?)
            .build()
            .map_err(BuildError::Http)?;
        Ok(Self { http, clock, warned: Arc::default() })
    }

    /// Asks once to stop a run, if the fence allows it when a connection is there.
    pub async fn stop(&self, endpoint: &Endpoint, run_id: &str, token: &Token, slot: Slot, fence: Fence) -> StopAnswer {
        let request = self
            .http
            .post(endpoint.stop_url(run_id))
            .header(CONTENT_LENGTH, 0)
            .header(AUTHORIZATION, token.header())
            .header(TENANT, endpoint.tenant());
        // A 429 that came in since the slot was granted moves its turn, perhaps beyond the claim.
        if timeout_at(fence.until, slot.turn()).await.is_err() {
            return StopAnswer::TooLate;
        }
        let result = FENCE.scope(fence, self.send(request, slot)).await;
        stop_answer(result.map(|(reply, _)| reply), run_id)
    }

    /// Reads a run once, with its tasks.
    pub async fn read(&self, endpoint: &Endpoint, run_id: &str, token: &Token, slot: Slot) -> ReadAnswer {
        let request = self
            .http
            .get(endpoint.run_url(run_id))
            .header(AUTHORIZATION, token.header())
            .header(TENANT, endpoint.tenant());
        slot.turn().await;
        let result = self.send(request, slot).await;
        read_answer(result.map(|(reply, _)| reply), run_id)
    }

    /// Asks once for a token. The header's name and the form are those of the API's documentation.
    pub async fn token(&self, url: Url, endpoint: &Endpoint, client: &OauthClient, slot: Slot) -> TokenAnswer<Token> {
        let form = [("grant_type", "client_credentials"), ("client_id", &client.id), ("client_secret", &client.secret)];
        let request = self.http.post(url).header(TOKEN_TENANT, endpoint.tenant()).form(&form);
        slot.turn().await;
        let result = self.send(request, slot).await;
        token_answer(result.map(|(reply, body)| {
            let token = wire::access_token(&body);
            (reply, token.and_then(|(token, valid)| Some((Token::bearer(&token)?, valid))))
        }))
    }

    async fn send(&self, request: RequestBuilder, mut slot: Slot) -> Result<(Reply, Vec<u8>), Failure> {
        if matches!(FENCE.try_with(|fence| (fence.is_open)()), Ok(false)) {
            return Err(Failure::TooLate);
        }
        slot.send();
        let response = request.send().await.map_err(|error| failure(&error))?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        // A date is measured by the clock that wrote it, where the answer tells that clock.
        let now = || header(DATE).and_then(wire::http_date).unwrap_or_else(|| (self.clock)());
        let retry_after = header(RETRY_AFTER).and_then(|value| wire::retry_after(value, now()));
        let location = header(LOCATION).and_then(|location| response.url().join(location).ok());
        let location = location.map(|url| url.origin().ascii_serialization());
        // The API announces a removal half a year ahead in these headers.
        if let Some(notice) = header(SUNSET).or_else(|| header(DEPRECATION)) {
            self.warned.get_or_init(|| {
                tracing::warn!(notice, path = response.url().path(), "Amperity announces the end of this API version");
            });
        }
        let bare = Reply { status, retry_after, location, ..Reply::default() };
        // The budget learns of a 429 before the body is read, which may take its time.
        if bare.is_rate_limited() {
            slot.rate_limited(retry_after)
        } else {
            slot.answered()
        }
        match bounded(response).await {
            Ok(body) => Ok((Reply { body: wire::said(&body), ..bare }, body)),
            Err(failure) if bare.needs_body() => Err(failure),
            Err(_) => Ok((bare, vec![])),
        }
    }
}

/// Lets a new connection pass only while the fence of the request that waits for it is open. A
/// connection that no request waits for any more is just kept for later.
fn fenced<C>(connection: Result<C, BoxError>) -> Result<C, BoxError> {
    match FENCE.try_with(|fence| (fence.is_open)()) {
        Ok(false) => Err(Box::new(TooLate)),
        Ok(true) | Err(_) => connection,
    }
}

async fn bounded(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        if MAX_BODY_BYTES < body.len() + chunk.len() {
            return Err(Failure::NoAnswer(format!("the answer is larger than {MAX_BODY_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Not sent only where no connection was made; every other failure may have come after the sending.
fn failure(error: &reqwest::Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<TooLate>() {
            return Failure::TooLate;
        }
        source = cause.source();
    }
    if error.is_connect() || error.is_builder() {
        Failure::NotSent(reason(error))
    } else if error.is_timeout() {
        Failure::NoAnswer("no answer within the request timeout".to_owned())
    } else {
        Failure::NoAnswer(reason(error))
    }
}

/// The innermost cause: the others repeat the URL or say little.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
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
