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

/// The time between two stops that are created one after the other.
pub const PACE: Duration = Duration::from_millis(50);

/// The number of Secrets that they use in turn: each is used once in 1.25 s, so that the operator, which shares a Secret for
/// one second, has to read it for each stop.
const SECRETS: usize = 25;

/// The number of clients that create the stops of a burst, and of their tenants.
pub const CLIENTS: usize = 8;
pub const TENANTS: usize = 200;

/// A program that sends no request to the API server for this time is idle.
const REST: Duration = Duration::from_secs(3);

/// The longest time until all requests of a phase have arrived.
const MOST: Duration = Duration::from_secs(120);

/// The requests to the API server that are counted, in addition to events: those of a program, and not those that create its
/// load.
const COUNTED: [&str; 6] = [
    "secrets GET",
    "workflowrunstops GET",
    "workflowrunstops PATCH",
    "workflowrunstops PUT",
    "workflowrunstops/status PATCH",
    "workflowrunstops/status PUT",
];

/// The numbers of stops.
#[derive(Clone, Copy)]
pub struct Size {
    /// Created one after the other.
    pub paced: usize,
    /// Created as fast as all clients can.
    pub burst: usize,
}

impl Size {
    pub const FULL: Self = Self { paced: 400, burst: 2000 };
    /// Enough to see that everything works.
    pub const SMALL: Self = Self { paced: 40, burst: 200 };
}

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
pub async fn measure(
    size: Size,
    cluster: &ControlPlane,
    amperity: &Simulator,
    namespace: &str,
    program: &Program,
) -> Load {
    let client = cluster.client();
    sleep(REST).await;
    let idle = program.mebibytes("VmRSS");
    let paced = Phase::begin(cluster, program).await;
    let mut created = HashMap::new();
    let mut ticks = interval(PACE);
    for index in 0..size.paced {
        ticks.tick().await;
        let run = format!("paced-{index}");
        created.insert(run.clone(), Instant::now());
        create(&client, amperity, namespace, &run, (0, index)).await;
    }
    all_arrived(amperity, size.paced).await;
    let (paced_cpu, paced_requests) = paced.end(cluster, program, size.paced).await;
    let latency = |request: &RecordedRequest| {
        let created = created.get(request.run_id.as_deref()?)?;
        Some((request.at - *created).as_secs_f64() * 1000.0)
    };
    let mut latencies: Vec<f64> = amperity.requests().iter().filter_map(latency).collect();
    assert_eq!(latencies.len(), size.paced, "one request for each stop");
    latencies.sort_unstable_by(f64::total_cmp);
    amperity.clear_requests();

    let burst = Phase::begin(cluster, program).await;
    let start = Instant::now();
    let create = async |index: usize| {
        create(&client, amperity, namespace, &format!("burst-{index}"), (index % TENANTS, index)).await;
    };
    stream::iter(0..size.burst).for_each_concurrent(CLIENTS, create).await;
    all_arrived(amperity, size.burst).await;
    let last = amperity.requests().iter().map(|request| request.at).max().unwrap();
    let (burst_cpu, burst_requests) = burst.end(cluster, program, size.burst).await;
    Load {
        latencies,
        cpu: [paced_cpu, burst_cpu],
        requests: [paced_requests, burst_requests],
        rate: size.burst as f64 / (last - start).as_secs_f64(),
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

    /// Returns CPU time in ms and requests for each stop, once the program is idle: it may write long after it has sent.
    async fn end(self, cluster: &ControlPlane, program: &Program, stops: usize) -> (f64, f64) {
        let mut sent = None;
        let requests = loop {
            sleep(REST).await;
            let requests = Counts::now(cluster).await.since(&self.requests);
            let counted = requests.events() + COUNTED.map(|key| requests.of(key)).iter().sum::<u64>();
            if sent.replace(counted) == Some(counted) {
                println!("  {}", requests.text());
                break counted;
            }
        };
        ((program.cpu() - self.cpu) * 1000.0 / stops as f64, requests as f64 / stops as f64)
    }
}
