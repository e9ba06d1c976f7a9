//! Owns a reverse proxy in front of the API server that can delay, hold, refuse or drop single requests and responses.
//! Never repeats a request, and never cancels a forwarded one, even if the client disconnects.

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// Idle connections are closed after this time, as by the API server itself.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The purpose of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// A patch that stores a new claim.
    Claim,
    /// A patch of a stop with a claim whose outcome is not stored yet.
    Record,
    /// Any other patch of a stop.
    Patch,
    /// A read of one stop.
    Read,
    /// A read of a Secret.
    Secret,
    /// Everything else: lists, watches, the lease.
    Other,
}

/// A request that the proxy received.
#[derive(Clone, Debug)]
pub struct ProxiedRequest {
    /// Arrival time.
    pub at: Instant,
    /// Purpose of the request.
    pub purpose: Purpose,
    /// Name of the stop; empty for requests that concern no single stop.
    pub name: String,
    /// The API server's status code; `None` until it has responded.
    pub status: Option<u16>,
}

/// The action of the proxy for one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyAction {
    /// Forwards the request and the response.
    Forward,
    /// Forwards the request after this delay.
    DelayRequest(Duration),
    /// Returns the response after this delay.
    DelayResponse(Duration),
    /// Forwards the request when [`ApiserverProxy::release_held`] is called.
    HoldRequest,
    /// Returns the response when [`ApiserverProxy::release_held`] is called.
    HoldResponse,
    /// Forwards the request, and closes the connection without a response.
    DropResponse,
    /// Forwards the request, and returns the first half of the response's body as if it were the whole.
    TruncateResponse,
    /// Responds with 503 and does not forward the request.
    Refuse,
    /// Neither forwards the request nor responds; the connection stays open.
    Blackhole,
}

/// A proxy that serves `http://127.0.0.1:PORT` until it is dropped.
pub struct ApiserverProxy {
    shared: Arc<Shared>,
    kubeconfig: NamedTempFile,
    server: JoinHandle<()>,
}

type Rule = Box<dyn FnMut(&ProxiedRequest) -> ProxyAction + Send>;

struct Shared {
    client: Client,
    rule: Mutex<Rule>,
    /// Ids of all claims so far.
    claims: Mutex<HashSet<String>>,
    /// Stops with a claim whose outcome is not stored yet.
    claimed: Mutex<HashSet<String>>,
    requests: watch::Sender<Vec<ProxiedRequest>>,
    /// Number of releases so far.
    releases: watch::Sender<u64>,
}

/// An error that makes hyper close the connection without a response.
#[derive(Debug)]
struct ConnectionClosed;

impl fmt::Display for ConnectionClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the proxy closed the connection")
    }
}

impl std::error::Error for ConnectionClosed {}

impl ApiserverProxy {
    /// Starts a proxy that forwards all requests with the credentials of this client.
    pub async fn start(client: Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "proxy", "user": {}}],
        });
        let mut kubeconfig = NamedTempFile::new().expect("a temporary file can be written");
        kubeconfig.write_all(config.to_string().as_bytes()).expect("a temporary file can be written");
        let shared = Arc::new(Shared {
            client,
            rule: Mutex::new(Box::new(|_| ProxyAction::Forward)),
            claims: Mutex::default(),
            claimed: Mutex::default(),
            requests: watch::Sender::default(),
            releases: watch::Sender::default(),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { shared, kubeconfig, server }
    }

    /// Returns the path of a kubeconfig for this proxy.
    pub fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// Chooses the action of every later request.
    pub fn set_rule(&self, rule: impl FnMut(&ProxiedRequest) -> ProxyAction + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// Applies this action to later requests with this purpose, and forwards all others.
    pub fn set_rule_for(&self, purpose: Purpose, action: ProxyAction) {
        self.set_rule(move |request| if request.purpose == purpose { action } else { ProxyAction::Forward });
    }

    /// Applies this action to the first later request with this purpose of each stop, and forwards all others.
    pub fn set_rule_for_first(&self, purpose: Purpose, action: ProxyAction) {
        let mut known = HashSet::new();
        self.set_rule(move |request| {
            let first = request.purpose == purpose && known.insert(request.name.clone());
            if first { action } else { ProxyAction::Forward }
        });
    }

    /// Releases all requests and responses that are held now.
    pub fn release_held(&self) {
        self.shared.releases.send_modify(|count| *count += 1);
    }

    /// Returns all requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<ProxiedRequest> {
        self.shared.requests.borrow().clone()
    }

    /// Waits until the requests so far satisfy this condition.
    pub async fn wait_until(&self, mut condition: impl FnMut(&[ProxiedRequest]) -> bool) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|requests| condition(requests)).await.expect("the sender lives as long as self");
    }
}

impl Drop for ApiserverProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Accepting fails only if no file descriptor is free; the loop tries again.
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| handle(request, Arc::clone(&shared)));
    // Errors mean that the client disconnected or that a rule closed the connection.
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn handle(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, ConnectionClosed> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| ConnectionClosed)?.to_bytes();
    let (purpose, name) = shared.classify(head.method.as_str(), head.uri.path(), &body);
    let received = ProxiedRequest { at: Instant::now(), purpose, name, status: None };
    let mut releases = shared.releases.subscribe();
    let action = (lock(&shared.rule))(&received);
    let mut index = 0;
    shared.requests.send_modify(|requests| {
        index = requests.len();
        requests.push(received);
    });
    // The proxy's client has its own credentials and connections.
    for name in [HOST, AUTHORIZATION, CONNECTION, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    let request = Request::from_parts(head, Body::from(body.to_vec()));
    let task = tokio::spawn(async move {
        match action {
            ProxyAction::Refuse => return Ok(service_unavailable()),
            ProxyAction::Blackhole => std::future::pending().await,
            ProxyAction::DelayRequest(time) => sleep(time).await,
            ProxyAction::HoldRequest => drop(releases.changed().await),
            ProxyAction::Forward
            | ProxyAction::DelayResponse(_)
            | ProxyAction::HoldResponse
            | ProxyAction::TruncateResponse
            | ProxyAction::DropResponse => {}
        }
        let response = shared.client.send(request).await.map_err(|_| ConnectionClosed)?;
        let status = response.status().as_u16();
        shared.requests.send_modify(|requests| {
            let received = &mut requests[index];
            received.status = Some(status);
            if (received.purpose, status) == (Purpose::Record, 200) {
                lock(&shared.claimed).remove(&received.name);
            }
        });
        match action {
            ProxyAction::DelayResponse(time) => sleep(time).await,
            ProxyAction::HoldResponse => drop(releases.changed().await),
            ProxyAction::DropResponse => return Err(ConnectionClosed),
            ProxyAction::TruncateResponse => return truncated(response).await,
            ProxyAction::Forward
            | ProxyAction::DelayRequest(_)
            | ProxyAction::HoldRequest
            | ProxyAction::Refuse
            | ProxyAction::Blackhole => {}
        }
        Ok(response)
    });
    task.await.map_err(|_| ConnectionClosed)?
}

async fn truncated(response: Response<Body>) -> Result<Response<Body>, ConnectionClosed> {
    let (mut head, body) = response.into_parts();
    let body = body.collect_bytes().await.map_err(|_| ConnectionClosed)?;
    head.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::from(body.slice(..body.len() / 2))))
}

fn service_unavailable() -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the test proxy", "reason": "ServiceUnavailable", "code": 503,
    });
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a valid header value"));
    response
}

impl Shared {
    fn classify(&self, method: &str, path: &str, body: &[u8]) -> (Purpose, String) {
        let Some((_, rest)) = path.split_once("/workflowrunstops/") else {
            let purpose = if path.contains("/secrets/") { Purpose::Secret } else { Purpose::Other };
            return (purpose, String::new());
        };
        let name = rest.split('/').next().unwrap_or_default().to_owned();
        let purpose = match method {
            "GET" => Purpose::Read,
            "PATCH" => self.purpose_of_patch(&name, &serde_json::from_slice(body).unwrap_or_default()),
            _ => Purpose::Other,
        };
        (purpose, name)
    }

    fn purpose_of_patch(&self, name: &str, operations: &Value) -> Purpose {
        let operations = operations.as_array().map(Vec::as_slice).unwrap_or_default();
        let claim = operations.iter().find_map(|operation| operation["value"]["stopRequest"]["claim"]["id"].as_str());
        if let Some(claim) = claim
            && lock(&self.claims).insert(claim.to_owned())
        {
            lock(&self.claimed).insert(name.to_owned());
            return Purpose::Claim;
        }
        if lock(&self.claimed).contains(name) { Purpose::Record } else { Purpose::Patch }
    }
}
