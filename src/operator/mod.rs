//! Owns start and shutdown: the order in which the parts start, draining, and releasing the lease.
//! Never handles a resource.

pub mod changes;
pub mod health;
pub mod http_server;
pub mod index;
pub mod leader_election;
pub mod list_watch;
pub mod response_stream;
pub mod scheduler;
pub mod step;
pub mod ttl;
pub mod waiting;
pub mod watch;

use std::{net::SocketAddr, num::NonZeroUsize, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::FutureExt;

use kube::{Client, api::ListParams, config::Kubeconfig, core::Request, runtime::events::Reporter as EventReporter};
use thiserror::Error;
use tokio::{
    sync::watch::channel,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use workflow_run_stop_common::{error::root_cause, kube_client::harden};

use crate::amperity::{
    budget::Budget,
    client::{Amperity, BuildError, Settings},
    credentials::CredentialCache,
    endpoint::Endpoints,
};
use crate::clock::Clock;
use crate::observe::{
    events::{self, Events},
    metrics::Metrics,
    reporter::Reporter,
};
use crate::operator::{step::StepEnd, watch::Watch};
use crate::reconcile::{announcements::Announcements, context::Context, decide::Rules, store::Store};

/// The timeout at shutdown for releasing the lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout at shutdown for writing queued events.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(3);

/// The time between the first list and that of finished resources, which may be long. It is not urgent, and must not
/// delay the first stops.
const EXPIRY_DELAY: Duration = Duration::from_secs(1);

/// The time without data after which a connection to the API server is closed. A watch is renewed more often than that.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The reporting controller of events.
const CONTROLLER: &str = "workflow-run-stop-operator";

/// The configuration of the operator.
pub struct Setup {
    /// The settings of the API client.
    pub amperity: Settings,
    /// The base URL of the API, and the hosts that are allowed.
    pub endpoints: Endpoints,
    /// The highest number of requests for one tenant in any second.
    pub requests_per_second: u32,
    /// The time after which a request without a clear answer can no longer take effect.
    pub settle_time: Duration,
    /// The largest number of unfinished resources of one namespace that are worked on at a time; `None` without a limit.
    pub max_unfinished_per_namespace: Option<NonZeroUsize>,
    /// The namespaces to watch; all if empty.
    pub namespaces: Vec<String>,
    /// The Lease for leader election; `None` without it.
    pub lease: Option<LeaseName>,
    /// The address of the health server; `None` for the default.
    pub http_addr: Option<SocketAddr>,
    /// The timeout at shutdown for requests in flight.
    pub drain_timeout: Duration,
    /// The wall clock.
    pub clock: Clock,
    /// The identity of this process, unique among replicas.
    pub identity: String,
}

/// The name of a Lease.
pub struct LeaseName {
    /// The namespace; the operator's own if `None`.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// An error at start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No kubeconfig and no service account was found.
    #[error("no access to a Kubernetes cluster: {0}; set KUBECONFIG or run in a pod")]
    Config(#[from] kube::config::InferConfigError),
    /// The Kubernetes client rejected its configuration.
    #[error("the Kubernetes client cannot be built: {0}")]
    Client(#[from] kube::Error),
    /// The resources could not be listed.
    #[error(
        "cannot list WorkflowRunStops: {}; check that the CustomResourceDefinition is installed and that this account may list them",
        root_cause(.0)
    )]
    List(kube::Error),
    /// The HTTP client rejected its configuration.
    #[error(transparent)]
    Amperity(#[from] BuildError),
    /// The address of the health server cannot be used.
    #[error("cannot serve on {0}: {1}; choose another --http-addr")]
    Listen(SocketAddr, std::io::Error),
}

/// Runs until `shutdown` is cancelled, and then until all requests in flight are recorded or the drain timeout has
/// passed.
///
/// # Errors
/// If it cannot start.
pub async fn run(setup: Setup, shutdown: CancellationToken) -> Result<(), StartError> {
    let Setup {
        amperity,
        endpoints,
        requests_per_second,
        settle_time,
        max_unfinished_per_namespace,
        namespaces,
        lease,
        http_addr,
        drain_timeout,
        clock,
        identity,
    } = setup;
    let (client, own_namespace) = client().await?;
    let (listener, http_addr) =
        http_server::bind(http_addr).await.map_err(|(address, error)| StartError::Listen(address, error))?;
    let rules = Rules { request_timeout: amperity.request_timeout, settle_time };
    let amperity = Amperity::new(&amperity, clock.clone())?;
    let store = Store::new(client.clone(), &identity, clock.clone());
    let (budget, credential_cache) = (Budget::new(requests_per_second), CredentialCache::default());
    let metrics = Metrics::new(amperity.metrics(), &store.writes, &budget, &clock);
    let context = Context {
        store,
        amperity,
        budget,
        credential_cache,
        endpoints,
        announcements: Announcements::default(),
        rules,
        clock,
    };
    let context = Arc::new(context);
    let (events, queue) = Events::channel(metrics.events.clone());
    let reporter = EventReporter { controller: CONTROLLER.to_owned(), instance: Some(identity.clone()) };
    let publishing = events::run(client.clone(), reporter, queue, metrics.events.clone());
    let mut publishing = tokio::spawn(publishing);
    let reporter = Reporter { metrics: metrics.clone(), events: Some(events) };

    let (ready, is_ready) = channel(false);
    let health = http_server::serve(listener, health::routes(metrics.clone(), is_ready));
    let _health = AbortOnDropHandle::new(tokio::spawn(health));
    let (leads, mut leading) = channel(lease.is_none());
    let election = lease.map(|LeaseName { namespace, name }| {
        let namespace = namespace.unwrap_or(own_namespace);
        leader_election::election(client.clone(), &namespace, &name, &identity)
    });
    let competing = election.as_ref().map(|election| {
        // A standby is ready.
        ready.send_replace(true);
        let competing = leader_election::compete(election.clone(), leads.clone());
        let shutdown = shutdown.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            // After a panic in the election, this replica would be a standby forever without being noticed.
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
        let watch = Watch {
            context: context.clone(),
            reporter: reporter.clone(),
            stop: stop.clone(),
            limit: max_unfinished_per_namespace.map(NonZeroUsize::get),
        };
        let (synced, mut is_synced) = channel(false);
        let expiry = ttl::run(client.clone(), namespaces.clone(), context.clock.clone(), reporter.clone());
        let ready = ready.clone();
        let after_list = async move {
            if is_synced.wait_for(|synced| *synced).await.is_ok() {
                ready.send_replace(true);
                sleep(EXPIRY_DELAY).await;
                expiry.await;
            }
        };
        let _after_list = AbortOnDropHandle::new(tokio::spawn(after_list));
        let mut watching = pin!(watch.run(&client, &namespaces, &synced));
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            _ = leading.wait_for(|leading| !*leading) => {
                tracing::warn!("lost the lease: no new work is started");
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
    // Queued events are written before the lease is released. A request that is still in flight keeps the queue open.
    drop(reporter);
    if timeout(EVENTS_TIMEOUT, &mut publishing).await.is_err() {
        publishing.abort();
    }
    drop(competing);
    if let Some(election) = election
        && timeout(RELEASE_TIMEOUT, election.release()).await.is_err()
    {
        tracing::warn!("failed to release the lease: the API server does not answer; the lease will expire");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Checks that the resources of these namespaces, or of all if there are none, can be listed.
///
/// # Errors
/// If they cannot be listed.
pub async fn check(namespaces: &[String]) -> Result<(), StartError> {
    let (client, _) = client().await?;
    for path in list_watch::paths(namespaces) {
        let request = Request::new(path).list(&ListParams::default().limit(1)).map_err(kube::Error::BuildRequest)?;
        // What the resource contains does not matter.
        client.request_text(request).await.map_err(StartError::List)?;
    }
    Ok(())
}

/// Creates a client of the cluster, and returns the namespace of this process.
async fn client() -> Result<(Client, String), StartError> {
    let mut config = kube::Config::infer().await?;
    harden(&mut config, READ_TIMEOUT);
    // HTTPS_PROXY is for Amperity. The API server is reached through a proxy only if the kubeconfig has one.
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

/// Waits until all requests in flight are answered and recorded, at most for `limit`. Tasks that are left go on until the
/// process exits.
async fn drain(mut tasks: JoinSet<StepEnd>, limit: Duration) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(limit, all).await.is_err() {
        let left = tasks.len();
        tracing::error!(
            left,
            "requests still in flight after the drain timeout: the next replica confirms their claims"
        );
        tasks.detach_all();
    }
}
