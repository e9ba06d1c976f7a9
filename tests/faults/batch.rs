//! Owns a batch of stops, waits for their progress, and the checks that hold when they have finished.
//! Never ends a process.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use lab::{
    apiserver_proxy::{ApiserverProxy, ProxiedRequest, Purpose},
    simulator::{Kind, RecordedRequest},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, ready, stop_request},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use workflow_run_stop_api::WorkflowRunStop;

/// The limit of every wait. A test that waits longer fails.
const TIMEOUT: Duration = Duration::from_secs(90);

type Stops = BTreeMap<String, WorkflowRunStop>;

/// A number of runs and their stops.
pub struct Batch {
    pub env: TestEnv,
    pub runs: Vec<String>,
    observed: watch::Receiver<Stops>,
}

impl Batch {
    /// Adds this number of runs. Creates no stops yet.
    pub async fn new(count: usize) -> Self {
        Self::in_env(TestEnv::new().await, count)
    }

    /// As [`Batch::new`], in this environment.
    pub fn in_env(env: TestEnv, count: usize) -> Self {
        let runs: Vec<_> = (0..count).map(|number| format!("wf-{number:03}")).collect();
        for run in &runs {
            // The run stays stopping for a while, because a second stop in that time counts as an effect.
            env.amperity.add_run(TENANT, ends_at_once(run).stops_in(Duration::from_secs(3)));
        }
        let observed = watch_stops(&env);
        Self { env, runs, observed }
    }

    /// Creates a stop of each run.
    pub async fn create_stops(&self) {
        self.env.create_all(self.runs.iter().map(|run| a_stop(run))).await;
    }

    /// Starts an operator with a high rate limit and these flags.
    pub async fn start_operator(&self, flags: &[&str]) -> Operator {
        self.env.start_operator_with(&[&["--requests-per-second", "1000"], flags].concat()).await
    }

    /// As [`Batch::start_operator`], with its Kubernetes requests through this proxy.
    pub async fn start_operator_behind(&self, proxy: &ApiserverProxy, flags: &[&str]) -> Operator {
        let mut command = self.env.operator_command();
        command.env("KUBECONFIG", proxy.kubeconfig()).args(["--requests-per-second", "1000"]).args(flags);
        Operator::start(command).await
    }

    /// Starts a proxy in front of the API server.
    pub async fn start_proxy(&self) -> ApiserverProxy {
        ApiserverProxy::start(self.env.operator_client()).await
    }

    /// Waits until the observed stops satisfy the predicate. `what` completes "never ..." in the panic message.
    pub async fn wait_until(&self, what: &str, predicate: impl Fn(&Stops) -> bool) {
        let mut observed = self.observed.clone();
        if !matches!(timeout(TIMEOUT, observed.wait_for(|stops| predicate(stops))).await, Ok(Ok(_))) {
            let stops = self.observed.borrow();
            let unfinished: Vec<_> = stops.values().filter(|stop| !stop.is_finished()).collect();
            panic!("never {what}; {} of {} are unfinished: {unfinished:#?}", unfinished.len(), stops.len());
        }
    }

    /// Waits until this number of stop requests that satisfy the predicate arrived at the simulator.
    pub async fn wait_for_stop_requests(&self, count: usize, predicate: impl Fn(&RecordedRequest) -> bool) {
        let enough = |requests: &[RecordedRequest]| {
            count <= requests.iter().filter(|request| request.kind == Kind::Stop && predicate(request)).count()
        };
        let waited = timeout(TIMEOUT, self.env.amperity.wait_until(enough)).await;
        assert!(waited.is_ok(), "expected {count} such requests; {} stop requests arrived", self.stop_request_count());
    }

    /// Returns the number of stop requests that have arrived.
    pub fn stop_request_count(&self) -> usize {
        self.env.amperity.requests().iter().filter(|request| request.kind == Kind::Stop).count()
    }

    /// Waits until all stops have finished.
    pub async fn wait_finished(&self) {
        self.wait_until("all finished", |stops| {
            self.runs.len() <= stops.len() && stops.values().all(WorkflowRunStop::is_finished)
        })
        .await;
    }

    /// Waits until all stops have finished, and checks each one: one effect, no request after the effect, a reason, no
    /// claim. Returns the number of stop requests of each run, in order.
    pub async fn assert_one_effect_each(&self) -> Vec<usize> {
        self.wait_finished().await;
        let mut requests = vec![];
        for run in &self.runs {
            let stop = self.env.get(run).await;
            assert!(stop.is_finished(), "{run}");
            let (status, reason) = ready(&stop);
            assert_eq!(status, "True", "{run}: {reason}");
            assert!(!reason.is_empty(), "{run}");
            assert_eq!(stop_request(&stop).claim, None, "{run}: {reason}");
            assert_eq!(self.env.amperity.effects(run), 1, "{run}: effects");
            requests.push(self.assert_nothing_follows_an_effect(run));
        }
        requests
    }

    /// As [`Batch::assert_one_effect_each`], and checks that each run got exactly one stop request.
    pub async fn assert_one_request_each(&self) {
        let requests = self.assert_one_effect_each().await;
        assert!(requests.iter().all(|count| *count == 1), "requests per run: {requests:?}");
    }

    fn assert_nothing_follows_an_effect(&self, run: &str) -> usize {
        let requests = self.env.amperity.requests();
        let of_run = requests.iter().filter(|request| request.run_id.as_deref() == Some(run));
        let stops: Vec<_> = of_run.filter(|request| request.kind == Kind::Stop).collect();
        let effects: Vec<_> = stops.iter().map(|request| request.effect).collect();
        let last = effects.len().saturating_sub(1);
        assert!(!effects[..last].contains(&true), "{run}: a request was sent after an effect: {effects:?}");
        stops.len()
    }
}

/// Watches the newest version of every stop of the namespace. Watches again if the API server ends the watch of a slow
/// reader.
fn watch_stops(env: &TestEnv) -> watch::Receiver<Stops> {
    let mut events = watcher(env.stops(), watcher::Config::default()).boxed();
    let (sender, observed) = watch::channel(Stops::new());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(stop) | Event::Apply(stop)) => {
                    sender.send_modify(|stops| drop(stops.insert(stop.name().to_owned(), stop)));
                }
                Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
                // A backoff that grows could be longer than a test waits after an outage.
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    });
    observed
}

/// Waits until the proxy received this number of requests for this purpose.
pub async fn wait_received(proxy: &ApiserverProxy, purpose: Purpose, count: usize) {
    wait_proxied(proxy, count, |request| request.purpose == purpose).await;
}

/// Waits until the API server stored this number of requests for this purpose.
pub async fn wait_stored(proxy: &ApiserverProxy, purpose: Purpose, count: usize) {
    wait_proxied(proxy, count, |request| request.purpose == purpose && request.status == Some(200)).await;
}

async fn wait_proxied(proxy: &ApiserverProxy, count: usize, predicate: impl Fn(&ProxiedRequest) -> bool) {
    let enough = |requests: &[ProxiedRequest]| count <= requests.iter().filter(|request| predicate(request)).count();
    let waited = timeout(TIMEOUT, proxy.wait_until(enough)).await;
    assert!(waited.is_ok(), "expected {count} such requests; the last one is {:#?}", proxy.requests().last());
}
