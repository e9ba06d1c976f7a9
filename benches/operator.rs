//! Owns the measurements of the rate: how much of the limit the operator uses, with and without another client.
//! Never fails on a slow machine: it prints figures and ratios. `SMALL=1` only shows that it works.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "shared/settings.rs"]
mod settings;

use std::{process::Stdio, time::Duration};

use futures::{StreamExt, stream};
use kube::{Api, api::PostParams};
use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, RecordedRequest, Run, Simulator},
    testing::{namespace_with_secret, other_client},
};
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec};

const TENANT: &str = "acme";

/// The rate limit, in requests a second.
const LIMIT: usize = 10;

/// The numbers of stops: of one tenant, and while another client shares the rate limit.
const STOPS: [usize; 2] = [100, 600];
const FEW_STOPS: [usize; 2] = [20, 30];

#[tokio::main]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let cluster = ControlPlane::start().await.unwrap();
    cluster.apply_crd(include_str!("../crds/workflowrunstops.yaml")).await;
    let [alone, shared] = if settings::is_small() { FEW_STOPS } else { STOPS };
    throughput(&cluster, alone).await;
    throughput_with_other_client(&cluster, shared).await;
    cluster.stop().await;
}

/// Measures stops with a rate limit that the simulator enforces.
async fn throughput(cluster: &ControlPlane, stops: usize) {
    let amperity = Simulator::start().await;
    amperity.set_rate_limit(Some(LIMIT));
    let namespace = namespace_with_secret(cluster).await;
    for index in 0..stops {
        create(cluster, &amperity, &namespace, index).await;
    }
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    amperity
        .wait_until(|requests| requests.iter().filter(|request| request.response_status.is_some()).count() >= stops)
        .await;
    let requests = amperity.requests();
    let after_burst = (requests.last().unwrap().at - requests[LIMIT - 1].at).as_secs_f64();
    let refused = requests.iter().filter(|request| request.response_status == Some(429)).count();
    let max_per_second = amperity.max_in_any_second(TENANT);
    let used = 100.0 * (stops - LIMIT) as f64 / after_burst / LIMIT as f64;
    println!("{stops} stops of one tenant, limit 10/s: {used:.1} % of the rate used after the first burst,");
    println!("  at most {max_per_second} in any second, {refused} responses with 429");
    operator.kill().await;
}

/// Measures stops with the same rate limit, while another client of the tenant sends 5 requests a second.
async fn throughput_with_other_client(cluster: &ControlPlane, stops: usize) {
    let amperity = Simulator::start().await;
    let namespace = namespace_with_secret(cluster).await;
    stream::iter(0..stops)
        .for_each_concurrent(16, async |index| create(cluster, &amperity, &namespace, index).await)
        .await;
    let other = other_client::start(&amperity, TENANT);
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    let accepted =
        |requests: &[RecordedRequest]| stop_requests(requests).filter(|stop| stop.response_status == Some(200)).count();
    amperity.wait_until(|requests| stops <= accepted(requests)).await;
    other.abort();
    let requests = amperity.requests();
    let (first, last) = (stop_requests(&requests).next().unwrap().at, stop_requests(&requests).next_back().unwrap().at);
    let sent = stop_requests(&requests).count();
    let within = |request: &&RecordedRequest| request.kind == Kind::Read && first <= request.at && request.at <= last;
    let (others, refused) =
        (requests.iter().filter(within), |request: &&RecordedRequest| request.response_status == Some(429));
    let (took, others_refused) = ((last - first).as_secs_f64(), others.clone().filter(refused).count());
    println!("{stops} stops while another client sends 5 requests a second, limit 10/s, Retry-After 1 s:");
    println!(
        "  {:.1} % of the remaining rate used,",
        100.0 * stops as f64 / took / (10.0 - others.clone().count() as f64 / took)
    );
    println!(
        "  {:.1} % of the operator's responses are 429, {others_refused} of {} of the other client's",
        100.0 * (sent - stops) as f64 / sent as f64,
        others.count()
    );
    operator.kill().await;
}

fn stop_requests(requests: &[RecordedRequest]) -> impl DoubleEndedIterator<Item = &RecordedRequest> {
    requests.iter().filter(|request| request.kind == Kind::Stop)
}

/// Adds a run and creates a stop of it, with follow timeout 0.
async fn create(cluster: &ControlPlane, amperity: &Simulator, namespace: &str, index: usize) {
    let run = format!("wf-{index}");
    amperity.add_run(TENANT, Run::new(&*run));
    let mut stop = a_stop(&run);
    stop.spec.follow_timeout_seconds = 0;
    Api::namespaced(cluster.client(), namespace).create(&PostParams::default(), &stop).await.unwrap();
}

/// A running operator, built with the release profile.
struct Operator {
    child: Child,
    health: String,
}

impl Operator {
    async fn start(cluster: &ControlPlane, amperity: &Simulator, namespace: &str, per_second: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let health = format!("127.0.0.1:{port}");
        let child = Command::new(env!("CARGO_BIN_EXE_workflow-run-stop-operator"))
            .env_clear()
            .env("KUBECONFIG", cluster.kubeconfig_path())
            .args(["--amperity-base-url", &amperity.base_url(), "--watch-namespaces", namespace])
            .args(["--requests-per-second", per_second, "--http-addr", &health])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let operator = Self { child, health };
        operator.ready().await;
        operator
    }

    async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let http = reqwest::Client::new();
        let ready = async || http.get(format!("http://{}/readyz", self.health)).send().await?.error_for_status();
        while ready().await.is_err() {
            assert!(Instant::now() < deadline, "the operator never became ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn a_stop(run: &str) -> WorkflowRunStop {
    WorkflowRunStop::new(run, WorkflowRunStopSpec::new(run, TENANT, "amperity"))
}
