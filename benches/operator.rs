//! Owns the measurements of the operator: latency compared with a minimal loop, throughput under the rate limit with and
//! without another client, memory.
//! Never fails on a slow machine: it prints figures and ratios.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::{process::Stdio, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, RecordedRequest, Run, Simulator},
    testing::{namespace_with_secret, other_client},
};
use serde_json::json;
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec};

/// The argument that makes this program run the minimal loop.
const MINIMAL_LOOP: &str = "minimal-loop";

const TENANT: &str = "acme";
/// Number of measured stops of each program.
const ROUNDS: usize = 100;
/// Number of finished resources for the memory measurement.
const FINISHED: usize = 10_000;
/// Number of stops while another client shares the rate limit.
const SHARED_LIMIT_STOPS: usize = 600;

#[tokio::main]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    // The minimal loop runs as a separate process, like the operator.
    let args: Vec<_> = std::env::args().collect();
    if let [_, mode, namespace, base] = &args[..]
        && mode == MINIMAL_LOOP
    {
        return minimal_loop(Client::try_default().await.unwrap(), namespace, base).await;
    }
    let cluster = ControlPlane::start().await.unwrap();
    cluster.apply_crd(include_str!("../crds/workflowrunstops.yaml")).await;
    latency(&cluster).await;
    throughput(&cluster).await;
    throughput_with_other_client(&cluster).await;
    memory(&cluster).await;
    cluster.stop().await;
}

/// Measures the time from the creation of a resource to the arrival of the POST, alternating between operator and
/// minimal loop.
async fn latency(cluster: &ControlPlane) {
    let amperity = Simulator::start().await;
    let (minimal, operated) = (namespace_with_secret(cluster).await, namespace_with_secret(cluster).await);
    let minimal_process = Command::new(std::env::current_exe().unwrap())
        .env("KUBECONFIG", cluster.kubeconfig_path())
        .args([MINIMAL_LOOP, &minimal, &amperity.base_url()])
        .kill_on_drop(true)
        .spawn();
    let operator = Operator::start(cluster, &amperity, &operated, "1000").await;
    let client = cluster.client();
    let (mut minimal_times, mut operator_times) = (vec![], vec![]);
    for round in 0..ROUNDS {
        // The operator caches a Secret for one second. After that it has to read it, as the minimal loop does.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut turns = [(&minimal, &mut minimal_times), (&operated, &mut operator_times)];
        turns.rotate_left(round % 2);
        for (namespace, times) in turns {
            let run = format!("wf-{namespace}-{round}");
            amperity.add_run(TENANT, Run::new(&*run));
            let api: Api<WorkflowRunStop> = Api::namespaced(client.clone(), namespace);
            let start = Instant::now();
            api.create(&PostParams::default(), &a_stop(&run)).await.unwrap();
            let arrived = |kind: Kind, id: &Option<String>| kind == Kind::Stop && id.as_deref() == Some(&run);
            amperity.wait_until(|requests| requests.iter().any(|request| arrived(request.kind, &request.run_id))).await;
            let requests = amperity.requests();
            let request = requests.iter().find(|request| arrived(request.kind, &request.run_id)).unwrap();
            times.push(request.at - start);
            amperity.clear_requests();
        }
    }
    let (minimal_ms, operator_ms) = (median(minimal_times), median(operator_times));
    println!("created -> POST received, median of {ROUNDS}, alternating:");
    println!("  minimal loop {minimal_ms:.2} ms, operator {operator_ms:.2} ms, ratio {:.2}", operator_ms / minimal_ms);
    minimal_process.unwrap().kill().await.unwrap();
    operator.kill().await;
}

/// Runs the minimum of a claim before a request: watch, Secret, claim patch, POST.
async fn minimal_loop(client: Client, namespace: &str, base: &str) {
    let stops: Api<WorkflowRunStop> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let http = reqwest::Client::new();
    let mut events = stops.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    while let Some(event) = events.try_next().await.unwrap() {
        let WatchEvent::Added(stop) = event else { continue };
        let secret = secrets.get("amperity").await.unwrap();
        let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
        let claim = json!({"attempts": 1, "claim": {"id": "x", "holder": "minimal", "time": "2026-01-01T00:00:00Z"}});
        let patch = serde_json::from_value(json!([
            {"op": "test", "path": "/metadata/uid", "value": stop.uid()},
            {"op": "test", "path": "/metadata/resourceVersion", "value": stop.resource_version()},
            {"op": "add", "path": "/status", "value": {"stopRequest": claim}},
        ]));
        let patch = Patch::Json::<()>(patch.unwrap());
        stops.patch_status(stop.name(), &PatchParams::default(), &patch).await.unwrap();
        let request = http.post(format!("{base}/workflow/runs/{}/stop", stop.spec.run_id)).bearer_auth(token);
        let request = request.header("amperity-tenant", TENANT).header("api-version", "2024-04-01");
        request.send().await.unwrap().bytes().await.unwrap();
    }
}

/// Measures 100 stops with a rate limit of 10 requests in any second, enforced by the simulator.
async fn throughput(cluster: &ControlPlane) {
    let amperity = Simulator::start().await;
    amperity.set_rate_limit(Some(10));
    let namespace = namespace_with_secret(cluster).await;
    for index in 0..100 {
        create(cluster, &amperity, &namespace, index).await;
    }
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    amperity
        .wait_until(|requests| requests.iter().filter(|request| request.response_status.is_some()).count() >= 100)
        .await;
    let requests = amperity.requests();
    let after_burst = (requests.last().unwrap().at - requests[9].at).as_secs_f64();
    let refused = requests.iter().filter(|request| request.response_status == Some(429)).count();
    let max_per_second = amperity.max_in_any_second(TENANT);
    let used = 100.0 * 90.0 / after_burst / 10.0;
    println!("100 stops of one tenant, limit 10/s: {used:.1} % of the rate used after the first burst,");
    println!("  at most {max_per_second} in any second, {refused} responses with 429");
    operator.kill().await;
}

/// Measures 600 stops with the same rate limit, while another client of the tenant sends 5 requests a second.
async fn throughput_with_other_client(cluster: &ControlPlane) {
    let amperity = Simulator::start().await;
    let namespace = namespace_with_secret(cluster).await;
    stream::iter(0..SHARED_LIMIT_STOPS)
        .for_each_concurrent(16, async |index| create(cluster, &amperity, &namespace, index).await)
        .await;
    let other = other_client::start(&amperity, TENANT);
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    let accepted =
        |requests: &[RecordedRequest]| stop_requests(requests).filter(|stop| stop.response_status == Some(200)).count();
    amperity.wait_until(|requests| SHARED_LIMIT_STOPS <= accepted(requests)).await;
    other.abort();
    let requests = amperity.requests();
    let (first, last) = (stop_requests(&requests).next().unwrap().at, stop_requests(&requests).next_back().unwrap().at);
    let sent = stop_requests(&requests).count();
    let within = |request: &&RecordedRequest| request.kind == Kind::Read && first <= request.at && request.at <= last;
    let (others, refused) =
        (requests.iter().filter(within), |request: &&RecordedRequest| request.response_status == Some(429));
    let (took, others_refused) = ((last - first).as_secs_f64(), others.clone().filter(refused).count());
    println!("{SHARED_LIMIT_STOPS} stops while another client sends 5 requests a second, limit 10/s, Retry-After 1 s:");
    println!(
        "  {:.1} % of the remaining rate used,",
        100.0 * SHARED_LIMIT_STOPS as f64 / took / (10.0 - others.clone().count() as f64 / took)
    );
    println!(
        "  {:.1} % of the operator's responses are 429, {others_refused} of {} of the other client's",
        100.0 * (sent - SHARED_LIMIT_STOPS) as f64 / sent as f64,
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

/// Measures the resident memory without resources, and with 10,000 finished ones.
async fn memory(cluster: &ControlPlane) {
    let amperity = Simulator::start().await;
    let namespace = namespace_with_secret(cluster).await;
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    operator.ready().await;
    println!("idle memory: {:.1} MiB (peak {:.1})", operator.mebibytes("VmRSS"), operator.mebibytes("VmHWM"));
    operator.kill().await;

    let api: Api<WorkflowRunStop> = Api::namespaced(cluster.client(), &namespace);
    let status = json!({"status": {
        "state": "canceled",
        "completionTime": "2026-01-01T00:00:00Z",
        "taskInstances": [{"id": "wft-1", "state": "succeeded"}],
    }});
    let finished = async |index: usize| {
        let name = format!("wf-{index}");
        api.create(&PostParams::default(), &a_stop(&name)).await.unwrap();
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    };
    stream::iter(0..FINISHED).for_each_concurrent(16, finished).await;
    let operator = Operator::start(cluster, &amperity, &namespace, "10").await;
    operator.ready().await;
    let (now, peak) = (operator.mebibytes("VmRSS"), operator.mebibytes("VmHWM"));
    println!("with {FINISHED} finished resources: {now:.1} MiB (peak {peak:.1})");
    operator.kill().await;
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

    fn mebibytes(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn a_stop(run: &str) -> WorkflowRunStop {
    WorkflowRunStop::new(run, WorkflowRunStopSpec::new(run, TENANT, "amperity"))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
