//! Owns a reverse proxy in front of the API server, which does to single requests what a test wants: it loses their
//! answers, delays, holds, refuses or swallows them.
//! Never repeats a request. What it has passed on takes its course even if the client leaves.

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

/// A connection without a request is closed after so long, as by the API server itself.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// What a request is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// A patch that stores a claim which was never seen before.
    Claim,
    /// A patch of a stop for which a claim went by, and no outcome was stored since.
    Record,
    /// Any other patch of a stop.
    Patch,
    /// A read of one stop.
    Read,
    /// Everything else: lists, watches, Secrets, the lease.
    Other,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it had arrived.
    pub at: Instant,
    /// What it is for.
    pub purpose: Purpose,
    /// The stop that it is about; empty where there is none.
    pub name: String,
    /// What the API server answered; nothing as long as it has not.
    pub status: Option<u16>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is passed on, and so is its answer.
    Pass,
    /// It is passed on so long after it came.
    Late(Duration),
    /// Its answer is passed on so long after it came.
    LateAnswer(Duration),
    /// It is passed on when [`ApiserverProxy::let_go`] is called.
    Hold,
    /// Its answer is passed on when [`ApiserverProxy::let_go`] is called.
    HoldAnswer,
    /// It is passed on, and the connection is closed instead of an answer.
    LoseAnswer,
    /// It is answered with 503 and not passed on.
    Refuse,
    /// It is neither passed on nor answered.
    Swallow,
}

/// Serves `http://127.0.0.1:PORT` until it is dropped.
pub struct ApiserverProxy {
    shared: Arc<Shared>,
    kubeconfig: NamedTempFile,
    serving: JoinHandle<()>,
}

type Rule = Box<dyn FnMut(&Call) -> Fate + Send>;

struct Shared {
    client: Client,
    rule: Mutex<Rule>,
    claims: Mutex<HashSet<String>>,
    /// The stops whose claims wait for an outcome.
    claimed: Mutex<HashSet<String>>,
    calls: watch::Sender<Vec<Call>>,
    /// How often what was held was let go.
    let_go: watch::Sender<u64>,
}

/// Ends a connection without an answer.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the proxy broke the connection")
    }
}

impl std::error::Error for Broken {}

impl ApiserverProxy {
    /// A proxy that passes everything on in the name of this client.
    pub async fn start(client: Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of the loopback can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "proxy", "user": {}}],
        });
        let mut kubeconfig = NamedTempFile::new().expect("there is room for a small file");
        kubeconfig.write_all(config.to_string().as_bytes()).expect("there is room for a small file");
        let shared = Arc::new(Shared {
            client,
            rule: Mutex::new(Box::new(|_| Fate::Pass)),
            claims: Mutex::default(),
            claimed: Mutex::default(),
            calls: watch::Sender::default(),
            let_go: watch::Sender::default(),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { shared, kubeconfig, serving }
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// What becomes of every request from now on.
    pub fn rule(&self, rule: impl FnMut(&Call) -> Fate + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// The requests for this purpose meet this fate from now on, and all others pass.
    pub fn rule_for(&self, purpose: Purpose, fate: Fate) {
        self.rule(move |call| if call.purpose == purpose { fate } else { Fate::Pass });
    }

    /// As [`ApiserverProxy::rule_for`], but only the first such request of each stop meets it.
    pub fn rule_for_first(&self, purpose: Purpose, fate: Fate) {
        let mut known = HashSet::new();
        self.rule(move |call| {
            let first = call.purpose == purpose && known.insert(call.name.clone());
            if first { fate } else { Fate::Pass }
        });
    }

    /// Passes on all that is held now.
    pub fn let_go(&self) {
        self.shared.let_go.send_modify(|times| *times += 1);
    }

    /// Every request so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.borrow().clone()
    }

    /// Waits until the requests so far satisfy this.
    pub async fn wait_until(&self, mut enough: impl FnMut(&[Call]) -> bool) {
        let mut calls = self.shared.calls.subscribe();
        calls.wait_for(|calls| enough(calls)).await.expect("the sender, which is borrowed, lives");
    }
}

impl Drop for ApiserverProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Only out of file descriptors does this fail: the next round tries again.
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
    let service = service_fn(|request| one(request, Arc::clone(&shared)));
    // Errors are the clients that left and the connections broken on purpose.
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn one(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Broken> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let (purpose, name) = shared.asked(head.method.as_str(), head.uri.path(), &body);
    let call = Call { at: Instant::now(), purpose, name, status: None };
    let mut let_go = shared.let_go.subscribe();
    let fate = (lock(&shared.rule))(&call);
    let mut entry = 0;
    shared.calls.send_modify(|calls| {
        entry = calls.len();
        calls.push(call);
    });
    // The client of the test has its own way in, and its own connections.
    for name in [HOST, AUTHORIZATION, CONNECTION, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    let request = Request::from_parts(head, Body::from(body.to_vec()));
    let task = tokio::spawn(async move {
        match fate {
            Fate::Refuse => return Ok(refusal()),
            Fate::Swallow => std::future::pending().await,
            Fate::Late(time) => sleep(time).await,
            Fate::Hold => drop(let_go.changed().await),
            Fate::Pass | Fate::LateAnswer(_) | Fate::HoldAnswer | Fate::LoseAnswer => {}
        }
        let response = shared.client.send(request).await.map_err(|_| Broken)?;
        let status = response.status().as_u16();
        shared.calls.send_modify(|calls| {
            let call = &mut calls[entry];
            call.status = Some(status);
            if (call.purpose, status) == (Purpose::Record, 200) {
                lock(&shared.claimed).remove(&call.name);
            }
        });
        match fate {
            Fate::LateAnswer(time) => sleep(time).await,
            Fate::HoldAnswer => drop(let_go.changed().await),
            Fate::LoseAnswer => return Err(Broken),
            Fate::Pass | Fate::Late(_) | Fate::Hold | Fate::Refuse | Fate::Swallow => {}
        }
        Ok(response)
    });
    task.await.map_err(|_| Broken)?
}

fn refusal() -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "the proxy refuses it", "reason": "ServiceUnavailable", "code": 503,
    });
    let mut answer = Response::new(Body::from(status.to_string().into_bytes()));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a valid value"));
    answer
}

impl Shared {
    fn asked(&self, method: &str, path: &str, body: &[u8]) -> (Purpose, String) {
        let Some((_, rest)) = path.split_once("/workflowrunstops/") else { return (Purpose::Other, String::new()) };
        let name = rest.split('/').next().unwrap_or_default().to_owned();
        let purpose = match method {
            "GET" => Purpose::Read,
            "PATCH" => self.patch(&name, &serde_json::from_slice(body).unwrap_or_default()),
            _ => Purpose::Other,
        };
        (purpose, name)
    }

    fn patch(&self, name: &str, operations: &Value) -> Purpose {
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
