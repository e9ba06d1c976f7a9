//! Owns the soak: `MINUTES` of load and faults drawn from `SEED`, what is measured meanwhile, and the verdict.
//! Never ends well where a promise was broken or something was not given back.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod book;
mod faults;
mod load;
mod replica;

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
    book::Requests,
    faults::{Counts, House, Lane, at_amperity, at_cluster},
    load::{CLIENT, Load, TOKEN},
    replica::{Replica, Sample, Settings, bad_lines},
};

/// How long everything may take to finish when nothing goes wrong any more: the longest backoff and a little more.
const SETTLES_WITHIN: Duration = Duration::from_secs(400);

/// The share of the time in which no process is killed, and the share of that before memory is looked at.
const WITHOUT_KILLS: f64 = 0.8;
const WARM_UP: f64 = 0.2;

/// A quarter of the stretch that is shorter says nothing about memory: the heap still grows to what it needs at most.
const TELLING: usize = 60;

/// How much more memory, files and connections a process may use in the end.
const MORE_MEMORY: f64 = 0.10;
const MORE_FILES: usize = 3;

/// The connections of an idle leader to the API server: two watches in each of two namespaces, and its lease.
const LEADS: usize = 5;

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
    // What it took to start is over by then.
    sleep(Duration::from_secs(5)).await;
    let idle = soak.samples();

    let (mut counts, samples) = soak.stretch(time.mul_f64(WITHOUT_KILLS), false).await;
    soak.settle().await;
    if soak.is_whole() {
        let calm = soak.calm(&idle).await;
        tell_of_processes(&soak.load, &idle, &samples, &calm);
    }
    if soak.is_whole() {
        let (more, _) = soak.stretch(time.mul_f64(1.0 - WITHOUT_KILLS), true).await;
        counts.extend(
            more.into_iter().map(|(what, times)| (what, times + counts.get(what).unwrap_or(&0))).collect::<Counts>(),
        );
        soak.settle().await;
    }
    soak.end(&counts).await
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
            book: book::Book::default(),
            made: 0.into(),
        });
        load.put_secret(TOKEN, &[("token", "token-0")]).await;
        load.put_secret(CLIENT, &[("clientId", "good-client"), ("clientSecret", "secret-0")]).await;
        // One replica's way to the API server loses, delays and refuses single requests, the other's is its own.
        let kubeconfigs = [proxy.kubeconfig().to_owned(), cluster.kubeconfig_path()];
        let (mut replicas, mut logs) = (vec![], vec![]);
        for (index, kubeconfig) in kubeconfigs.into_iter().enumerate() {
            let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-operator-{index}.log"));
            // Errors say that there is none.
            let _ = std::fs::remove_file(&log);
            logs.push(log.clone());
            let (amperity, namespaces) = (base_url.clone(), namespaces.clone());
            let replica = Replica::start(Settings { kubeconfig, amperity, namespaces, log });
            replica.asked().ready().await;
            replicas.push(replica);
        }
        let rng = StdRng::seed_from_u64(seed);
        Self { cluster, proxy, load, replicas: Mutex::new(replicas), logs, rng }
    }

    fn samples(&self) -> Vec<Sample> {
        self.replicas.lock().unwrap().iter().map(Replica::sample).collect()
    }

    fn is_whole(&self) -> bool {
        self.load.book.pages().broken.is_empty()
    }

    /// Load and faults for so long, or until a promise is broken. What each process used, second by second.
    async fn stretch(&mut self, time: Duration, kills: bool) -> (Counts, Vec<Vec<Sample>>) {
        let end = CancellationToken::new();
        let mut lane = || Lane { rng: StdRng::from_rng(&mut self.rng), end: end.clone() };
        let (first, second) = (lane(), lane());
        let stops = tokio::spawn(Arc::clone(&self.load).run(StdRng::from_rng(&mut self.rng), end.clone()));
        let Self { cluster, proxy, load, replicas, .. } = &*self;
        let amperity_side = at_amperity(first, load);
        let cluster_side = at_cluster(second, House { cluster, proxy, load, replicas }, kills);
        let sweeps = async {
            let give_up = Instant::now() + time;
            while Instant::now() < give_up && self.is_whole() {
                sleep(Duration::from_secs(2)).await;
                load.sweep().await;
            }
            end.cancel();
        };
        let sampling = async {
            let (mut samples, mut ticks) = (vec![], interval(Duration::from_secs(1)));
            while !end.is_cancelled() {
                ticks.tick().await;
                // Who is killed on purpose is not there at times.
                if !kills {
                    samples.push(self.samples());
                }
                let ended = replicas.lock().unwrap().iter_mut().find_map(Replica::ended);
                load.book.pages().broken.extend(ended.map(|status| format!("an operator ended: {status}")));
            }
            samples
        };
        let (mut counts, more, (), samples) = tokio::join!(amperity_side, cluster_side, sweeps, sampling);
        counts.extend(more);
        stops.await.unwrap();
        (counts, samples)
    }

    /// Waits until all has finished that is not suspended.
    async fn settle(&self) {
        let settled = timeout(SETTLES_WITHIN, async {
            loop {
                let unfinished = self.load.sweep().await;
                if !self.is_whole() || unfinished.is_some_and(|unfinished| unfinished.is_empty()) {
                    return;
                }
                sleep(Duration::from_secs(2)).await;
            }
        });
        if settled.await.is_err() {
            let unfinished = self.load.sweep().await.unwrap_or_default();
            self.load.book.pages().broken.extend(unfinished.into_iter().map(|stop| format!("never finished: {stop}")));
        }
    }

    /// What each process uses with nothing to do: as soon as that is what it used at first, or in a while.
    async fn calm(&self, idle: &[Sample]) -> Vec<Sample> {
        let give_up = Instant::now() + Duration::from_secs(130);
        loop {
            let samples = self.samples();
            if samples.iter().zip(idle).all(|(now, idle)| given_back(now, idle)) || give_up < Instant::now() {
                return samples;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn end(self, counts: &Counts) -> ExitCode {
        // Who was interrupted because of one broken promise has broken no other one.
        if self.is_whole() {
            self.load.rest().await;
        }
        let asked: Vec<_> = self.replicas.lock().unwrap().iter().map(Replica::asked).collect();
        for asked in asked {
            if asked.metric("panics_total").await != Some(0) {
                self.load.book.broken("an operator caught a panic, or tells no metrics");
            }
        }
        for log in &self.logs {
            self.load.book.pages().broken.extend(bad_lines(log));
        }
        let requests = self.load.book.once(&*self.load.amperity.read().await);
        self.replicas.lock().unwrap().clear();
        let broken = self.tell(counts, &requests);
        self.cluster.stop().await;
        if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn tell(&self, counts: &Counts, requests: &Requests) -> bool {
        let pages = self.load.book.pages();
        println!("\nfaults:");
        counts.iter().for_each(|(what, times)| println!("  {times:5}  {what}"));
        println!("ends:");
        pages.endings.iter().for_each(|(reason, times)| println!("  {times:5}  {reason}"));
        let Requests { stops, effects, most } = requests;
        println!(
            "{} stops of {} runs: {stops} requests, {effects} effects",
            self.load.made.load(Relaxed),
            pages.runs.len()
        );
        println!("  at most {most} requests for one run");
        if pages.broken.is_empty() {
            println!(
                "all promises were kept: no stop was sent after one that had its effect, nothing was lost or left claimed"
            );
            return false;
        }
        println!("\n{} times a promise was broken; the logs are {:?}:", pages.broken.len(), self.logs);
        pages.broken.iter().take(20).for_each(|how| println!("  {how}"));
        true
    }
}

/// Whether a process that is idle again has no more open than when it was idle at first. Its client of the API
/// server keeps connections for the next request.
fn given_back(now: &Sample, idle: &Sample) -> bool {
    now.calls == 0
        && now.files <= idle.files + MORE_FILES
        && now.threads == idle.threads
        && now.connections <= LEADS + MORE_FILES
}

/// Tells what the processes used, and whether they gave it back.
fn tell_of_processes(load: &Load, idle: &[Sample], samples: &[Vec<Sample>], calm: &[Sample]) {
    let warm = &samples[(samples.len() as f64 * WARM_UP) as usize..];
    let quarter = (warm.len() / 4).max(1);
    println!("\n                     replica  idle  first quarter  last quarter  most  idle again");
    for (index, (idle, calm)) in idle.iter().zip(calm).enumerate() {
        let of = |samples: &[Vec<Sample>], what: fn(&Sample) -> f64| -> Vec<f64> {
            samples.iter().map(|sample| what(&sample[index])).collect()
        };
        let row = |name: &str, what: fn(&Sample) -> f64| {
            let mean = |part: &[Vec<Sample>]| of(part, what).iter().sum::<f64>() / part.len() as f64;
            let (first, last) = (mean(&warm[..quarter]), mean(&warm[warm.len() - quarter..]));
            let most = of(samples, what).into_iter().fold(0.0, f64::max);
            println!("{name:20} {index:7} {:5.1} {first:14.1} {last:13.1} {most:5.1} {:11.1}", what(idle), what(calm));
            (first, last)
        };
        let (first, last) = row("memory, MiB", |sample| sample.mebibytes);
        row("threads", |sample| sample.threads as f64);
        row("calls", |sample| sample.calls as f64);
        row("connections", |sample| sample.connections as f64);
        row("other files", |sample| sample.files as f64);
        if quarter < TELLING {
            println!("  (memory is not judged: the time is too short)");
        } else if first * (1.0 + MORE_MEMORY) < last {
            load.book
                .broken(format!("replica {index} uses more memory in the end: {first:.1} MiB, then {last:.1} MiB"));
        }
        if !given_back(calm, idle) {
            load.book.broken(format!("replica {index} was idle as {idle:?} and is idle again as {calm:?}"));
        }
    }
}
