//! Owns the load: stops that are created one after the other, or as fast as eight clients can.
//! Never measures a program alone: each round has all of them, and the order alternates.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, RecordedRequest, Run, Simulator},
    testing::namespace_with_secret,
};
use tokio::time::{Instant, interval, sleep, timeout};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec};

use crate::{apiserver::Counts, program::Program};

/// The number of stops that are created one after the other, and the time between two.
const PACED: usize = 400;
const PACE: Duration = Duration::from_millis(50);

/// The number of Secrets that they use in turn: each is used once in 1.25 s, so that the operator, which shares a Secret for
/// one second, has to read it for each stop.
const SECRETS: usize = 25;

/// The number of stops that are created as fast as this number of clients can, and of their tenants.
const BURST: usize = 2000;
const CLIENTS: usize = 8;
const TENANTS: usize = 200;

/// The time after which a program is idle.
const REST: Duration = Duration::from_secs(3);

/// The longest time until all requests of a phase have arrived.
const MOST: Duration = Duration::from_secs(120);

/// The measurements of one program in one round.
pub struct Load {
    /// The times from the creation of a stop to the arrival of its request, with paced stops, in ms; sorted.
    pub latencies: Vec<f64>,
    /// CPU time for each stop, in ms: of paced stops, and of the burst.
    pub cpu: [f64; 2],
    /// Requests to the API server for each stop: of paced stops, and of the burst. The watch is not counted.
    pub requests: [f64; 2],
    /// Stops a second in the burst, from the first creation to the last request.
    pub rate: f64,
    /// Memory in MiB: before all stops, and after the burst.
    pub memory: [f64; 2],
}

/// Prepares a namespace with its Secrets.
pub async fn namespace(cluster: &ControlPlane) -> String {
    let namespace = namespace_with_secret(cluster).await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), &namespace);
    let secret = secrets.get("amperity").await.unwrap();
    for index in 0..SECRETS {
        let metadata = ObjectMeta { name: Some(secret_name(index)), ..ObjectMeta::default() };
        let secret = Secret { metadata, ..secret.clone() };
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    }
    namespace
}

fn secret_name(index: usize) -> String {
    format!("amperity-{}", index % SECRETS)
}

/// Measures a program that has just started.
pub async fn measure(cluster: &ControlPlane, amperity: &Simulator, namespace: &str, program: &Program) -> Load {
    let client = cluster.client();
    sleep(REST).await;
    let idle = program.mebibytes("VmRSS");
    let paced = Phase::begin(cluster, program).await;
    let mut created = HashMap::new();
    let mut ticks = interval(PACE);
    for index in 0..PACED {
        ticks.tick().await;
        let run = format!("paced-{index}");
        created.insert(run.clone(), Instant::now());
        create(&client, amperity, namespace, &run, (0, index)).await;
    }
    all_arrived(amperity, PACED).await;
    let (paced_cpu, paced_requests) = paced.end(cluster, program, PACED).await;
    let latency = |request: &RecordedRequest| {
        let created = created.get(request.run_id.as_deref()?)?;
        Some((request.at - *created).as_secs_f64() * 1000.0)
    };
    let mut latencies: Vec<f64> = amperity.requests().iter().filter_map(latency).collect();
    assert_eq!(latencies.len(), PACED, "one request for each stop");
    latencies.sort_unstable_by(f64::total_cmp);
    amperity.clear_requests();

    let burst = Phase::begin(cluster, program).await;
    let start = Instant::now();
    let create = async |index: usize| {
        create(&client, amperity, namespace, &format!("burst-{index}"), (index % TENANTS, index)).await;
    };
    stream::iter(0..BURST).for_each_concurrent(CLIENTS, create).await;
    all_arrived(amperity, BURST).await;
    let last = amperity.requests().iter().map(|request| request.at).max().unwrap();
    let (burst_cpu, burst_requests) = burst.end(cluster, program, BURST).await;
    Load {
        latencies,
        cpu: [paced_cpu, burst_cpu],
        requests: [paced_requests, burst_requests],
        rate: BURST as f64 / (last - start).as_secs_f64(),
        memory: [idle, program.mebibytes("VmRSS")],
    }
}

/// Creates a stop of a run, which ends at once and is not followed.
async fn create(client: &Client, amperity: &Simulator, namespace: &str, run: &str, (tenant, secret): (usize, usize)) {
    let tenant = format!("tenant-{tenant}");
    amperity.add_run(&tenant, Run::new(run));
    let mut stop = WorkflowRunStop::new(run, WorkflowRunStopSpec::new(run, &tenant, &secret_name(secret)));
    stop.spec.follow_timeout_seconds = 0;
    Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &stop).await.unwrap();
}

/// Waits until this number of stop requests has arrived.
async fn all_arrived(amperity: &Simulator, count: usize) {
    let all = amperity.wait_until(|requests| {
        count
            <= requests.iter().filter(|request| request.kind == Kind::Stop && request.response_status.is_some()).count()
    });
    timeout(MOST, all).await.expect("all stops are sent");
}

/// The usage of a program at the start of a phase.
struct Phase {
    cpu: f64,
    requests: Counts,
}

impl Phase {
    async fn begin(cluster: &ControlPlane, program: &Program) -> Self {
        Self { cpu: program.cpu(), requests: Counts::now(cluster).await }
    }

    /// Returns CPU time in ms and requests for each stop, once the program rests.
    async fn end(self, cluster: &ControlPlane, program: &Program, stops: usize) -> (f64, f64) {
        sleep(REST).await;
        let requests = Counts::now(cluster).await.since(&self.requests);
        println!("  {}", requests.text());
        let keys = ["secrets GET", "workflowrunstops GET", "workflowrunstops/status PATCH"];
        let own = requests.events() + keys.map(|key| requests.of(key)).iter().sum::<u64>();
        ((program.cpu() - self.cpu) * 1000.0 / stops as f64, own as f64 / stops as f64)
    }
}
