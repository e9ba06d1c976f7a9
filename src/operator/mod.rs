//! Owns turning the house on and off: what is started in which order, the drain, the lease's release.
//! Never handles a resource.

pub mod health;
pub mod leader_election;
pub mod ttl;
pub mod watch;

use std::{net::SocketAddr, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::FutureExt;

use kube::{Api, Client, api::ListParams, config::Kubeconfig, runtime::events::Reporter as EventReporter};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch::channel, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::{error::root_cause, kube_client::harden};

use crate::amperity::{
    budget::Budget,
    client::{Amperity, Settings},
    credentials::CredentialCache,
    endpoint::Endpoints,
    transport::BuildError,
};
use crate::clock::Clock;
use crate::observe::{
    events::{self, Events},
    metrics::Metrics,
    reporter::Reporter,
};
use crate::operator::watch::Watch;
use crate::reconcile::{context::Context, decide::Rules, store::Store};

/// Longest wait at the end for the lease to be released.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait at the end for events that are not written yet.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to the API server that is silent for longer is given up. A watch is renewed more often than that.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The name in which events are written.
const CONTROLLER: &str = "workflow-run-stop-operator";

/// What the operator runs with.
pub struct Setup {
    /// How to reach the API.
    pub amperity: Settings,
    /// Where the API is.
    pub endpoints: Endpoints,
    /// Most requests for one tenant in any second.
    pub requests_per_second: u32,
    /// How long a request without an answer may go on working at the API's side.
    pub settle_time: Duration,
    /// The namespaces to watch; none stands for all.
    pub namespaces: Vec<String>,
    /// The lease to compete for, where one replica of several is to work.
    pub lease: Option<LeaseName>,
    /// Where the health endpoints are served.
    pub http_addr: SocketAddr,
    /// Longest wait at the end for requests in flight.
    pub drain_timeout: Duration,
    /// The wall clock.
    pub clock: Clock,
    /// This process, unlike any other.
    pub identity: String,
}

/// Names a lease.
pub struct LeaseName {
    /// Its namespace; the operator's own where it is not given.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// Why the operator cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No way to a cluster was found.
    #[error("no access to a Kubernetes cluster: {0}; set KUBECONFIG or run in a pod")]
    Config(#[from] kube::config::InferConfigError),
    /// The client refuses its settings.
    #[error("the Kubernetes client cannot be built: {0}")]
    Client(#[from] kube::Error),
    /// The API server cannot be reached, does not know the resource, or does not let it be listed.
    #[error(
        "WorkflowRunStops cannot be listed: {}; install the CustomResourceDefinition, and let this account list them",
        root_cause(.0)
    )]
    List(kube::Error),
    /// The HTTP client refuses its settings.
    #[error(transparent)]
    Amperity(#[from] BuildError),
    /// The address is in use, say.
    #[error("cannot serve on {0}: {1}; choose another --http-addr")]
    Listen(SocketAddr, std::io::Error),
}

/// Runs until `shutdown` is cancelled and what was begun is recorded.
///
/// # Errors
/// Where it cannot start.
pub async fn run(setup: Setup, shutdown: CancellationToken) -> Result<(), StartError> {
    let Setup {
        amperity,
        endpoints,
        requests_per_second,
        settle_time,
        namespaces,
        lease,
        http_addr,
        drain_timeout,
        clock,
        identity,
    } = setup;
    let (client, own_namespace) = client().await?;
    let listener = TcpListener::bind(http_addr).await.map_err(|error| StartError::Listen(http_addr, error))?;

    let http_addr = listener.local_addr().unwrap_or(http_addr);
    let rules = Rules { request_timeout: amperity.request_timeout, settle_time };
    let amperity = Amperity::new(&amperity, clock.clone())?;
    let store = Store::new(client.clone(), &identity, clock.clone());
    let (budget, credential_cache) = (Budget::new(requests_per_second), CredentialCache::default());
    let metrics = Metrics::new(amperity.metrics(), &store.writes, &budget, &clock);
    let context = Arc::new(Context { store, amperity, budget, credential_cache, endpoints, rules, clock });
    let (events, told) = Events::channel(metrics.events.clone());
    let reporter = EventReporter { controller: CONTROLLER.to_owned(), instance: Some(identity.clone()) };
    let publishing = events::run(client.clone(), reporter, told, metrics.events.clone());
    let mut publishing = tokio::spawn(publishing);
    let reporter = Reporter { metrics: metrics.clone(), events: Some(events) };

    let (ready, is_ready) = channel(false);
    let _health = AbortOnDropHandle::new(tokio::spawn(health::serve(listener, metrics.clone(), is_ready)));
    let (leads, mut leading) = channel(lease.is_none());
    let election = lease.map(|LeaseName { namespace, name }| {
        let namespace = namespace.unwrap_or(own_namespace);
        leader_election::election(client.clone(), &namespace, &name, &identity)
    });
    let competing = election.as_ref().map(|election| {
        // Who waits for the lease is as ready as can be.
        ready.send_replace(true);
        let competing = leader_election::compete(election.clone(), leads.clone());
        let shutdown = shutdown.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Without it this replica would wait for ever and look well.
            let _ = AssertUnwindSafe(competing).catch_unwind().await;
            shutdown.cancel();
        }))
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity, %http_addr, "started");

    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = leading.wait_for(|leading| *leading) => {}
        }
        metrics.set_leading(true);
        let stop = CancellationToken::new();
        let watch = Watch { context: context.clone(), reporter: reporter.clone(), stop: stop.clone() };
        let expiry = ttl::run(client.clone(), namespaces.clone(), context.clock.clone());
        let _expiry = AbortOnDropHandle::new(tokio::spawn(expiry));
        let mut watching = pin!(watch.run(&client, &namespaces, &ready));
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            _ = leading.wait_for(|leading| !*leading) => {
                tracing::warn!("the lease is lost: no new work is begun");
                None
            }
            tasks = &mut watching => Some(tasks),
        };
        stop.cancel();
        metrics.set_leading(false);
        let tasks = match ended {
            Some(tasks) => tasks,
            None => watching.await,
        };
        drain(tasks, drain_timeout).await;
    }
    ready.send_replace(false);
    // What was told is written, before the lease is given away. A request that is still in flight keeps it open.
    drop(reporter);
    if timeout(EVENTS_TIMEOUT, &mut publishing).await.is_err() {
        publishing.abort();
    }
    drop(competing);
    if let Some(election) = election
        && timeout(RELEASE_TIMEOUT, election.release()).await.is_err()
    {
        tracing::warn!("the lease is not released: the API server does not answer; it will expire");
    }
    tracing::info!("ended");
    Ok(())
}

/// Says whether the API server can be reached and the resources in these namespaces be listed; in all where none is
/// named.
///
/// # Errors
/// Where not.
pub async fn check(namespaces: &[String]) -> Result<(), StartError> {
    let (client, _) = client().await?;
    let one = |name: &str| Api::<WorkflowRunStop>::namespaced(client.clone(), name);
    for stops in watch::apis(namespaces, || Api::all(client.clone()), one) {
        stops.list(&ListParams::default().limit(1)).await.map_err(StartError::List)?;
    }
    Ok(())
}

/// A client of the cluster, and the namespace that this process belongs to.
async fn client() -> Result<(Client, String), StartError> {
    let mut config = kube::Config::infer().await?;
    harden(&mut config, READ_TIMEOUT);
    // HTTPS_PROXY is the way to Amperity. To the cluster only its own entry in the kubeconfig names a proxy.
    if config.proxy_url.is_some() && !kubeconfig_names_a_proxy() {
        config.proxy_url = None;
    }
    let own_namespace = config.default_namespace.clone();
    Ok((Client::try_from(config)?, own_namespace))
}

fn kubeconfig_names_a_proxy() -> bool {
    let Ok(Kubeconfig { clusters, contexts, current_context, .. }) = Kubeconfig::read() else { return false };
    let context = contexts.into_iter().find(|context| Some(&context.name) == current_context.as_ref());
    let name = context.and_then(|context| context.context).map(|context| context.cluster);
    let cluster = clusters.into_iter().find(|cluster| Some(&cluster.name) == name.as_ref());
    cluster.and_then(|cluster| cluster.cluster).is_some_and(|cluster| cluster.proxy_url.is_some())
}

/// Waits until all requests that were begun are answered and recorded, at most so long. What is left goes
/// on as long as the process does.
async fn drain(mut tasks: JoinSet<()>, limit: Duration) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(limit, all).await.is_err() {
        let left = tasks.len();
        tracing::error!(left, "requests are still in flight; their claims are confirmed by the next replica");
        tasks.detach_all();
    }
}
