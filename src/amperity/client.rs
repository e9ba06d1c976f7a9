//! Owns the client of the Amperity API: each method sends one HTTP request and returns its classified answer.
//! Never repeats a request, and never decides what follows from an answer.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, Method,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LOCATION,
        RETRY_AFTER, USER_AGENT,
    },
};
use thiserror::Error;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use crate::amperity::run::cut;
use crate::amperity::{
    answer::{ReadAnswer, StopAnswer, TokenAnswer, read_answer, stop_answer, token_answer},
    answer_memory::AnswerMemory,
    body::{BodyDecoder, TokenDecoder},
    budget::Slot,
    connector::{AGENT, CertificatesError, Connector},
    credentials::{OauthClient, Token},
    decode,
    endpoint::{Endpoint, RunId},
    purpose::Purpose,
    reply::{Failure, Reply},
    request_metrics::RequestMetrics,
    transport::{self, Fence, Network, Request, Response, Transport},
};
use crate::clock::Clock;

const API_VERSION: HeaderName = HeaderName::from_static("api-version");
const TENANT: HeaderName = HeaderName::from_static("amperity-tenant");
const TOKEN_TENANT: HeaderName = HeaderName::from_static("x-amperity-tenant");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// The reason why the client cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The certificates to trust cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The API version cannot be sent as a header.
    #[error("the API version {0:?} cannot be sent as a header")]
    ApiVersion(String),
}

/// The settings of the client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The header `api-version`, see <https://docs.amperity.com/api/versioning.html>.
    pub api_version: String,
    /// The longest time from the write of a request to the end of its response.
    pub request_timeout: Duration,
}

/// A client of the API for all tenants.
#[derive(Clone)]
pub struct Amperity {
    transport: Transport,
    clock: Clock,
    request_timeout: Duration,
    metrics: RequestMetrics,
    memory: AnswerMemory,
    /// Set when a deprecation was logged.
    warned: Arc<OnceLock<()>>,
}

impl Amperity {
    /// Builds the client.
    ///
    /// # Errors
    /// If the settings or the certificates to trust cannot be used.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, BuildError> {
        let version = settings.api_version.parse().map_err(|_| BuildError::ApiVersion(settings.api_version.clone()))?;
        let headers = HeaderMap::from_iter([
            (API_VERSION, version),
            // Without it, some routes answer in another format than JSON.
            (ACCEPT, HeaderValue::from_static("application/json")),
            (ACCEPT_ENCODING, HeaderValue::from_static("gzip")),
            (USER_AGENT, HeaderValue::from_static(AGENT)),
        ]);
        let network = Network::new(Connector::new()?, headers, settings.request_timeout);
        Ok(Self::with_transport(Transport::Network(Arc::new(network)), clock, settings.request_timeout))
    }

    /// Creates a client that sends its requests with this transport.
    pub fn with_transport(transport: Transport, clock: Clock, request_timeout: Duration) -> Self {
        let (metrics, memory) = (RequestMetrics::default(), AnswerMemory::default());
        Self { transport, clock, request_timeout, metrics, memory, warned: Arc::default() }
    }

    /// Returns the metrics of the requests.
    pub fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }

    /// Sends one stop request, if its fence is open when the request can be written. Returns the answer, and the time
    /// of the write; `None` if the request was not sent.
    ///
    /// See <https://docs.amperity.com/api/endpoint_post_workflows_stop.html>.
    pub async fn stop(
        &self,
        endpoint: &Endpoint,
        run_id: &RunId,
        token: &Token,
        slot: Slot,
        fence: Fence,
    ) -> (StopAnswer, Option<Instant>) {
        let mut request = authorized(Method::POST, endpoint.stop_url(run_id), endpoint, token);
        request.headers.insert(CONTENT_LENGTH, 0.into());
        let (result, sent) = self.send(request, endpoint, slot, Some(fence), |_| {}).await;
        let answer = stop_answer(result, run_id.as_str());
        self.metrics.record(endpoint.tenant(), Purpose::Stop, answer.class(), sent);
        (answer, sent)
    }

    /// Sends one request to read a run and its tasks.
    ///
    /// See <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html>.
    pub async fn read(&self, endpoint: &Endpoint, run_id: &RunId, token: &Token, slot: Slot) -> ReadAnswer {
        self.answer_of_read(endpoint, run_id, token, slot, false).await.0
    }

    /// As [`Self::read`], on the connection of an earlier request if there is one. Returns `None` if that connection ended
    /// before the answer: nothing is known, and the request can be repeated with another slot.
    pub async fn read_again(
        &self,
        endpoint: &Endpoint,
        run_id: &RunId,
        token: &Token,
        slot: Slot,
    ) -> Option<ReadAnswer> {
        let (answer, has_ended) = self.answer_of_read(endpoint, run_id, token, slot, true).await;
        (!has_ended).then_some(answer)
    }

    /// Sends one request to read a run. Returns the answer, and true if a kept connection ended before it.
    async fn answer_of_read(
        &self,
        endpoint: &Endpoint,
        run_id: &RunId,
        token: &Token,
        slot: Slot,
        shares_connections: bool,
    ) -> (ReadAnswer, bool) {
        let request = authorized(Method::GET, endpoint.run_url(run_id), endpoint, token);
        let (result, sent) = self.send(Request { shares_connections, ..request }, endpoint, slot, None, |_| {}).await;
        let has_ended = result == Err(Failure::KeptConnectionEnded);
        let answer = read_answer(result, run_id.as_str());
        self.metrics.record(endpoint.tenant(), Purpose::Read, answer.class(), sent);
        (answer, has_ended)
    }

    /// Sends one request for a token.
    ///
    /// See <https://docs.amperity.com/api/authentication.html>, also for the name of the tenant's header.
    pub async fn token(&self, url: Url, endpoint: &Endpoint, client: &OauthClient, slot: Slot) -> TokenAnswer<Token> {
        let form = [("grant_type", "client_credentials"), ("client_id", &client.id), ("client_secret", &client.secret)];
        let headers = HeaderMap::from_iter([
            (TOKEN_TENANT, tenant(endpoint)),
            (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
        ]);
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish().into();
        let request = Request { method: Method::POST, url, headers, body, shares_connections: false };
        let mut decoder = TokenDecoder::default();
        let (result, sent) = self.send(request, endpoint, slot, None, |chunk| decoder.push(chunk)).await;
        let answer = token_answer(result.map(|reply| {
            let token = decoder.finish();
            (reply, token.and_then(|(token, valid)| Some((Token::bearer(&token)?, valid))))
        }));
        self.metrics.record(endpoint.tenant(), Purpose::Token, answer.class(), sent);
        answer
    }

    /// Sends a request. Returns its response and when it was written. Each chunk of the body is also given to `each`.
    async fn send(
        &self,
        request: Request,
        endpoint: &Endpoint,
        slot: Slot,
        fence: Option<Fence>,
        each: impl FnMut(&[u8]),
    ) -> (Result<Reply, Failure>, Option<Instant>) {
        let slot = Arc::new(slot);
        // In a box: it is large, and a step spends most of its time before.
        let result = Box::pin(self.exchange(request, endpoint, (slot.clone(), fence), each)).await;
        (result, slot.sent_at())
    }

    async fn exchange(
        &self,
        request: Request,
        endpoint: &Endpoint,
        (slot, fence): (Arc<Slot>, Option<Fence>),
        mut each: impl FnMut(&[u8]),
    ) -> Result<Reply, Failure> {
        let limit = self.request_timeout;
        let url = request.url.clone();
        let decode_head = |response: &Response| self.decode_head(&url, response);
        let (head, response) =
            transport::send(&self.transport, request, (slot.clone(), fence), limit, decode_head).await?;
        let deadline = slot.sent_at().unwrap_or_else(Instant::now) + limit;
        let mut decoder = BodyDecoder::new(self.memory.share(endpoint.budget_key()));
        let read = transport::read_body(response, deadline, |chunk| {
            decoder.push(chunk);
            each(chunk);
        });
        match read.await {
            Ok(()) => Ok(Reply { body: decoder.finish(), ..head }),
            Err(failure) if head.needs_body() => Err(failure),
            Err(_) => Ok(head),
        }
    }

    /// Decodes status and headers of the response to a request to this URL.
    fn decode_head(&self, url: &Url, response: &Response) -> Reply {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        // Present at least 6 months before a removal, see https://docs.amperity.com/api/versioning.html.
        if let Some(notice) = header(SUNSET).or_else(|| header(DEPRECATION)) {
            self.warned.get_or_init(|| {
                tracing::warn!(
                    notice,
                    path = url.path(),
                    "this version of the Amperity API is deprecated and will be removed"
                );
            });
        }
        // A date in `Retry-After` is compared with the server's `Date`, or with the own clock if the response has none.
        let server_time = || header(DATE).and_then(decode::http_date).unwrap_or_else(|| (self.clock)());
        let location = header(LOCATION).and_then(|location| url.join(location).ok());
        Reply {
            status: response.status().as_u16(),
            retry_after: header(RETRY_AFTER).and_then(|value| decode::retry_after(value, server_time())),
            location: location.map(|url| cut(&url.origin().ascii_serialization())),
            ..Reply::default()
        }
    }
}

fn tenant(endpoint: &Endpoint) -> HeaderValue {
    endpoint.tenant().parse().expect("an endpoint's tenant has only letters, digits, - and _")
}

fn authorized(method: Method, url: Url, endpoint: &Endpoint, token: &Token) -> Request {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, token.header()), (TENANT, tenant(endpoint))]);
    Request { method, url, headers, body: Bytes::new(), shares_connections: false }
}
