//! Owns the soak test: `MINUTES` of load and random faults from `SEED`, the measurements, and the exit code.
//! Never succeeds if a promise was broken or resources were not released.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod faults;
mod load;
mod replica;
mod tracker;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use lab::{apiserver_proxy::ApiserverProxy, control_plane::ControlPlane, simulator::Simulator};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::RwLock,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    faults::{Counts, FaultLoop, Targets, inject_at_amperity, inject_at_cluster},
    load::{CLIENT, Load, TOKEN},
    replica::{Replica, Sample, Settings, panic_lines},
    tracker::{Requests, Tracker},
};

/// Timeout for all stops to finish after the last fault, a little longer than the maximum backoff.
const FINISHES_WITHIN: Duration = Duration::from_secs(400);

/// The share of the time without kills.
const WITHOUT_KILLS: f64 = 0.8;

/// The share of the samples without kills that memory checks ignore.
const WARM_UP: f64 = 0.2;

/// Minimum number of samples (one per second) in a quarter of the phase for a memory check. Before that, the heap still
/// grows towards its peak.
const MIN_QUARTER_SAMPLES: usize = 60;

/// Allowed growth of memory, as a ratio.
const MEMORY_GROWTH: f64 = 0.10;

/// Allowed growth of the number of open files, and of connections.
const FILE_GROWTH: usize = 3;

/// The connections of an idle leader to the API server: two watches in each of two namespaces, and its lease.
const IDLE_LEADER_CONNECTIONS: usize = 5;

struct Soak {
    cluster: ControlPlane,
    proxy: ApiserverProxy,
    load: Arc<Load>,
    replicas: Mutex<Vec<Replica>>,
    logs: Vec<PathBuf>,
    rng: StdRng,
}

#[tokio::main]
async fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let number = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let seed = number("SEED").map_or_else(rand::random, |text| text.parse().expect("SEED is a whole number"));
    let minutes: f64 = number("MINUTES").map_or(30.0, |text| text.parse().expect("MINUTES is a number"));
    println!("soak: {minutes} minutes, SEED={seed}");
    let mut soak = Soak::start(seed).await;
    let time = Duration::from_secs_f64(minutes * 60.0);
    // The operators are idle by then.
    sleep(Duration::from_secs(5)).await;
    let idle = soak.samples();

    let (mut counts, samples) = soak.run_phase(time.mul_f64(WITHOUT_KILLS), false).await;
    soak.wait_until_finished().await;
    if soak.has_no_violations() {
        let idle_again = soak.wait_until_idle(&idle).await;
        check_resource_usage(&soak.load, &idle, &samples, &idle_again);
    }
    if soak.has_no_violations() {
        let (more, _) = soak.run_phase(time.mul_f64(1.0 - WITHOUT_KILLS), true).await;
        counts.extend(
            more.into_iter().map(|(fault, count)| (fault, count + counts.get(fault).unwrap_or(&0))).collect::<Counts>(),
        );
        soak.wait_until_finished().await;
    }
    soak.finish(&counts).await
}

impl Soak {
    async fn start(seed: u64) -> Self {
        let cluster = ControlPlane::start().await.unwrap();
        cluster.apply_crd(include_str!("../../crds/workflowrunstops.yaml")).await;
        let namespaces = vec![cluster.namespace().await, cluster.namespace().await];
        let amperity = Simulator::start().await;
        amperity.set_tokens(["token-0"]);
        amperity.set_client("good-client", "secret-0");
        amperity.set_expires_in(20);
        let base_url = amperity.base_url();
        let proxy = ApiserverProxy::start(cluster.client()).await;
        let load = Arc::new(Load {
            client: cluster.client(),
            namespaces: namespaces.clone(),
            amperity: Arc::new(RwLock::new(amperity)),
            tracker: Tracker::default(),
            created: 0.into(),
        });
        load.put_secret(TOKEN, &[("token", "token-0")]).await;
        load.put_secret(CLIENT, &[("clientId", "good-client"), ("clientSecret", "secret-0")]).await;
        // One replica uses the proxy that drops, delays and refuses single requests, the other connects directly.
        let kubeconfigs = [proxy.kubeconfig().to_owned(), cluster.kubeconfig_path()];
        let (mut replicas, mut logs) = (vec![], vec![]);
        for (index, kubeconfig) in kubeconfigs.into_iter().enumerate() {
            let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-operator-{index}.log"));
            // An error means that there is none.
            let _ = std::fs::remove_file(&log);
            logs.push(log.clone());
            let (amperity, namespaces) = (base_url.clone(), namespaces.clone());
            let replica = Replica::start(Settings { kubeconfig, amperity, namespaces, log });
            replica.endpoints().ready().await;
            replicas.push(replica);
        }
        let rng = StdRng::seed_from_u64(seed);
        Self { cluster, proxy, load, replicas: Mutex::new(replicas), logs, rng }
    }

    fn samples(&self) -> Vec<Sample> {
        self.replicas.lock().unwrap().iter().map(Replica::sample).collect()
    }

    fn has_no_violations(&self) -> bool {
        self.load.tracker.lock().violations.is_empty()
    }

    /// Runs load and faults for this time, or until a promise is broken. Returns the number of faults, and samples of the
    /// resource usage every second.
    async fn run_phase(&mut self, time: Duration, kills: bool) -> (Counts, Vec<Vec<Sample>>) {
        let cancel = CancellationToken::new();
        let mut fault_loop = || FaultLoop { rng: StdRng::from_rng(&mut self.rng), cancel: cancel.clone() };
        let (first, second) = (fault_loop(), fault_loop());
        let stops = tokio::spawn(Arc::clone(&self.load).run(StdRng::from_rng(&mut self.rng), cancel.clone()));
        let Self { cluster, proxy, load, replicas, .. } = &*self;
        let amperity_faults = inject_at_amperity(first, load);
        let cluster_faults = inject_at_cluster(second, Targets { cluster, proxy, load, replicas }, kills);
        let sweeps = async {
            let end = Instant::now() + time;
            while Instant::now() < end && self.has_no_violations() {
                sleep(Duration::from_secs(2)).await;
                load.sweep().await;
            }
            cancel.cancel();
        };
        let sampling = async {
            let (mut samples, mut ticks) = (vec![], interval(Duration::from_secs(1)));
            while !cancel.is_cancelled() {
                ticks.tick().await;
                // With kills, a replica may not be running.
                if !kills {
                    samples.push(self.samples());
                }
                let exited = replicas.lock().unwrap().iter_mut().find_map(Replica::exited);
                load.tracker.lock().violations.extend(exited.map(|status| format!("an operator exited: {status}")));
            }
            samples
        };
        let (mut counts, more, (), samples) = tokio::join!(amperity_faults, cluster_faults, sweeps, sampling);
        counts.extend(more);
        stops.await.unwrap();
        (counts, samples)
    }

    /// Waits until all stops that are not suspended have finished.
    async fn wait_until_finished(&self) {
        let finished = timeout(FINISHES_WITHIN, async {
            loop {
                let unfinished = self.load.sweep().await;
                if !self.has_no_violations() || unfinished.is_some_and(|unfinished| unfinished.is_empty()) {
                    return;
                }
                sleep(Duration::from_secs(2)).await;
            }
        });
        if finished.await.is_err() {
            let unfinished = self.load.sweep().await.unwrap_or_default();
            self.load
                .tracker
                .lock()
                .violations
                .extend(unfinished.into_iter().map(|stop| format!("never finished: {stop}")));
        }
    }

    /// Waits until the replicas have released their resources, for at most 130 s, and returns their resource usage.
    async fn wait_until_idle(&self, idle: &[Sample]) -> Vec<Sample> {
        let deadline = Instant::now() + Duration::from_secs(130);
        loop {
            let samples = self.samples();
            if samples.iter().zip(idle).all(|(now, idle)| has_released(now, idle)) || deadline < Instant::now() {
                return samples;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Makes the last checks, prints the results, and stops everything.
    async fn finish(self, counts: &Counts) -> ExitCode {
        // After an early end because of a violation, unfinished stops are expected.
        if self.has_no_violations() {
            self.load.check_remaining().await;
        }
        let endpoints: Vec<_> = self.replicas.lock().unwrap().iter().map(Replica::endpoints).collect();
        for endpoint in endpoints {
            if endpoint.metric("panics_total").await != Some(0) {
                self.load.tracker.record_violation("an operator caught a panic, or its metrics are not available");
            }
        }
        for log in &self.logs {
            self.load.tracker.lock().violations.extend(panic_lines(log));
        }
        let requests = self.load.tracker.check_requests(&*self.load.amperity.read().await);
        self.replicas.lock().unwrap().clear();
        let broken = self.report(counts, &requests);
        self.cluster.stop().await;
        if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Prints the results. Returns whether a promise was broken.
    fn report(&self, counts: &Counts, requests: &Requests) -> bool {
        let state = self.load.tracker.lock();
        println!("\nfaults:");
        counts.iter().for_each(|(fault, count)| println!("  {count:5}  {fault}"));
        println!("reasons of finished stops:");
        state.reasons.iter().for_each(|(reason, count)| println!("  {count:5}  {reason}"));
        let Requests { stops, effects, max_per_run } = requests;
        println!(
            "{} stops of {} runs: {stops} requests, {effects} effects",
            self.load.created.load(Relaxed),
            state.runs.len()
        );
        println!("  at most {max_per_run} requests for one run");
        if state.violations.is_empty() {
            println!(
                "all promises were kept: no stop request was sent after one that took effect, no stop was lost or left claimed"
            );
            return false;
        }
        println!("\n{} promises were broken; the logs are {:?}:", state.violations.len(), self.logs);
        state.violations.iter().take(20).for_each(|violation| println!("  {violation}"));
        true
    }
}

/// Returns whether an idle process has released its resources, compared with its first idle sample. Its Kubernetes
/// client keeps idle connections.
fn has_released(now: &Sample, idle: &Sample) -> bool {
    now.amperity_connections == 0
        && now.files <= idle.files + FILE_GROWTH
        && now.threads == idle.threads
        && now.apiserver_connections <= IDLE_LEADER_CONNECTIONS + FILE_GROWTH
}

/// Prints the resource usage of the replicas, and checks for growth and leaks.
fn check_resource_usage(load: &Load, idle: &[Sample], samples: &[Vec<Sample>], idle_again: &[Sample]) {
    let warm = &samples[(samples.len() as f64 * WARM_UP) as usize..];
    let quarter = (warm.len() / 4).max(1);
    println!("\n                       replica  idle  first quarter  last quarter   max  idle again");
    for (index, (idle, idle_again)) in idle.iter().zip(idle_again).enumerate() {
        let values = |samples: &[Vec<Sample>], field: fn(&Sample) -> f64| -> Vec<f64> {
            samples.iter().map(|sample| field(&sample[index])).collect()
        };
        let row = |name: &str, field: fn(&Sample) -> f64| {
            let mean = |part: &[Vec<Sample>]| values(part, field).iter().sum::<f64>() / part.len() as f64;
            let (first, last) = (mean(&warm[..quarter]), mean(&warm[warm.len() - quarter..]));
            let max = values(samples, field).into_iter().fold(0.0, f64::max);
            println!(
                "{name:22} {index:7} {:5.1} {first:14.1} {last:13.1} {max:5.1} {:11.1}",
                field(idle),
                field(idle_again)
            );
            (first, last)
        };
        let (first, last) = row("memory, MiB", |sample| sample.mebibytes);
        row("threads", |sample| sample.threads as f64);
        row("Amperity connections", |sample| sample.amperity_connections as f64);
        row("API server connections", |sample| sample.apiserver_connections as f64);
        row("other files", |sample| sample.files as f64);
        if quarter < MIN_QUARTER_SAMPLES {
            println!("  (memory is not checked: the time is too short)");
        } else if first * (1.0 + MEMORY_GROWTH) < last {
            load.tracker.record_violation(format!(
                "replica {index} uses more memory at the end: {first:.1} MiB, then {last:.1} MiB"
            ));
        }
        if !has_released(idle_again, idle) {
            load.tracker.record_violation(format!(
                "replica {index} did not release resources: idle {idle:?}, idle again {idle_again:?}"
            ));
        }
    }
}
