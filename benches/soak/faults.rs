//! Owns the injected faults: one loop for faults of Amperity, one for the API server and the replicas.
//! Never leaves a fault active: a loop that is cancelled first ends its current fault.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use lab::{
    apiserver_proxy::{ApiserverProxy, ProxyAction},
    control_plane::ControlPlane,
    simulator::{ErrorBody, Fault, Kind, RetryAfter, StopEffect},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    load::{CLIENT, Load, TOKEN},
    replica::Replica,
};

/// Longer than it takes until the lease expires and another replica takes over.
const PAST_THE_LEASE: Duration = Duration::from_secs(22);

/// Number of injections of each fault.
pub type Counts = BTreeMap<&'static str, usize>;

/// Faults of Amperity. The first six replace responses, the seventh mixes them.
const AMPERITY: [&str; 9] = [
    "429 responses",
    "5xx responses",
    "connections reset",
    "no responses",
    "slow responses",
    "unexpected responses",
    "mixed responses",
    "Amperity offline",
    "credentials replaced",
];

/// Faults of the API server and of the replicas, without kills.
const CLUSTER: [&str; 6] = [
    "single API server requests",
    "single API server requests",
    "API server killed",
    "API server paused",
    "replica paused",
    "leader paused past its lease",
];

/// Kills of replicas.
const KILLS: [&str; 4] = ["SIGKILL", "SIGKILL to the leader", "SIGTERM", "SIGTERM to the leader"];

/// The first faults of the phase without kills, before random ones.
const FIRST: [&str; 3] = ["API server paused", "leader paused past its lease", "API server paused"];

/// The random numbers and the cancellation of a fault loop.
pub struct FaultLoop {
    pub rng: StdRng,
    pub cancel: CancellationToken,
}

impl FaultLoop {
    /// Waits for this time or until cancelled.
    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = sleep(time) => {}
        }
    }

    /// Returns a random duration in this range of seconds.
    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from * 1000..=to * 1000))
    }

    /// Returns a random item.
    fn choose<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.rng.random_range(0..items.len())]
    }
}

/// Injects faults of Amperity, one after the other.
pub async fn inject_at_amperity(mut faults: FaultLoop, load: &Load) -> Counts {
    let (mut counts, mut version) = (Counts::new(), 0);
    loop {
        let pause = faults.seconds(1, 5);
        faults.wait(pause).await;
        if faults.cancel.is_cancelled() {
            return counts;
        }
        let name = faults.choose(&AMPERITY);
        *counts.entry(name).or_default() += 1;
        let time = faults.seconds(2, 8);
        match name {
            "Amperity offline" => {
                load.amperity.write().await.go_offline().await;
                faults.wait(time).await;
                load.amperity.write().await.go_online().await;
            }
            "credentials replaced" => {
                version += 1;
                let (token, secret) = (format!("token-{version}"), format!("secret-{version}"));
                let amperity = load.amperity.read().await;
                amperity.set_tokens([token.clone()]);
                amperity.set_client("good-client", &secret);
                drop(amperity);
                faults.wait(time).await;
                load.put_secret(TOKEN, &[("token", &token)]).await;
                load.put_secret(CLIENT, &[("clientId", "good-client"), ("clientSecret", &secret)]).await;
            }
            responses => {
                let mut rng = StdRng::from_rng(&mut faults.rng);
                let probability = faults.rng.random_range(0.3..1.0);
                let rule = move |kind, _: &str| rng.random_bool(probability).then(|| fault(responses, kind, &mut rng));
                load.amperity.read().await.set_fault_rule(rule);
                faults.wait(time).await;
                load.amperity.read().await.clear_faults();
            }
        }
    }
}

/// Returns a random fault of this name for one request.
fn fault(responses: &str, kind: Kind, rng: &mut StdRng) -> Fault {
    // Within the settle time of the operator.
    let delayed = StopEffect::Delayed(Duration::from_millis(rng.random_range(0..3000)));
    let effect = [StopEffect::Immediate, StopEffect::NoEffect, delayed][rng.random_range(0..3)];
    match responses {
        "429 responses" => {
            let seconds = rng.random_range(1..4);
            let retry_after = [RetryAfter::None, RetryAfter::Seconds(seconds), RetryAfter::Date(2)];
            Fault::TooManyRequests { retry_after: retry_after[rng.random_range(0..3)].clone() }
        }
        "5xx responses" => {
            let body = [ErrorBody::ErrorJson, ErrorBody::Html, ErrorBody::Empty][rng.random_range(0..3)];
            Fault::Status { code: [408, 499, 500, 502, 503, 504][rng.random_range(0..6)], effect, body }
        }
        "connections reset" => Fault::Reset(effect),
        "no responses" => Fault::NoResponse(effect),
        // At most the request timeout plus half the settle time.
        "slow responses" => Fault::Slow(Duration::from_millis(rng.random_range(200..4000))),
        "unexpected responses" if kind != Kind::Stop => Fault::ManyTasks(rng.random_range(0..300)),
        "unexpected responses" => match rng.random_range(0..4) {
            0 => Fault::HtmlWith200(effect),
            1 => Fault::WrongId(effect),
            2 => Fault::Accepted202,
            _ => Fault::ManyTasks(rng.random_range(0..300)),
        },
        _ => fault(AMPERITY[rng.random_range(0..6)], kind, rng),
    }
}

/// The components for faults of the API server and the replicas.
pub struct Targets<'a> {
    pub cluster: &'a ControlPlane,
    pub proxy: &'a ApiserverProxy,
    pub load: &'a Load,
    pub replicas: &'a Mutex<Vec<Replica>>,
}

/// Injects faults of the API server and the replicas, one after the other; with `kills`, half of them are kills.
pub async fn inject_at_cluster(mut faults: FaultLoop, targets: Targets<'_>, kills: bool) -> Counts {
    let Targets { cluster, proxy, load, replicas } = targets;
    let mut counts = Counts::new();
    // Early on, each replica leads for a while and uses all its connections at once, so that its resource usage can be
    // compared later.
    let mut first = (!kills).then_some(FIRST).into_iter().flatten();
    loop {
        let pause = faults.seconds(2, 8);
        faults.wait(pause).await;
        if faults.cancel.is_cancelled() {
            return counts;
        }
        let chosen = if kills && faults.rng.random_bool(0.5) { faults.choose(&KILLS) } else { faults.choose(&CLUSTER) };
        let name = first.next().unwrap_or(chosen);
        *counts.entry(name).or_default() += 1;
        let time = faults.seconds(2, 8);
        let index = faults.rng.random_range(0..replicas.lock().unwrap().len());
        let index = if name.contains("leader") { leader(replicas).await.unwrap_or(index) } else { index };
        match name {
            "API server killed" => {
                cluster.kill_apiserver().await;
                faults.wait(time).await;
                cluster.start_apiserver().await;
            }
            "API server paused" => {
                cluster.pause().await;
                faults.wait(time * 2).await;
                cluster.resume().await;
                cluster.ready().await;
            }
            "single API server requests" => {
                let mut rng = StdRng::from_rng(&mut faults.rng);
                let probability = faults.rng.random_range(0.1..0.7);
                proxy.set_rule(move |_| {
                    if rng.random_bool(probability) { random_action(&mut rng) } else { ProxyAction::Forward }
                });
                faults.wait(time * 2).await;
                proxy.set_rule(|_| ProxyAction::Forward);
            }
            "replica paused" | "leader paused past its lease" => {
                replicas.lock().unwrap()[index].signal("-STOP");
                faults.wait(if name.contains("lease") { PAST_THE_LEASE } else { time }).await;
                replicas.lock().unwrap()[index].signal("-CONT");
            }
            _ => {
                let replica = replicas.lock().unwrap().remove(index);
                let settings = replica.settings();
                if name.starts_with("SIGTERM") {
                    replica.signal("-TERM");
                    if !replica.exits_successfully().await {
                        load.tracker.record_violation("the operator did not exit successfully after SIGTERM");
                    }
                } else {
                    drop(replica);
                }
                faults.wait(time / 2).await;
                replicas.lock().unwrap().push(Replica::start(settings));
            }
        }
    }
}

fn random_action(rng: &mut StdRng) -> ProxyAction {
    let time = Duration::from_millis(rng.random_range(100..12_000));
    match rng.random_range(0..6) {
        0 => ProxyAction::DelayRequest(time),
        1 => ProxyAction::DelayResponse(time),
        2 | 3 => ProxyAction::DropResponse,
        4 => ProxyAction::Refuse,
        _ => ProxyAction::Blackhole,
    }
}

/// Returns the index of the leader, if a replica reports that it leads.
async fn leader(replicas: &Mutex<Vec<Replica>>) -> Option<usize> {
    let endpoints: Vec<_> = replicas.lock().unwrap().iter().map(Replica::endpoints).collect();
    let mut leader = None;
    for (index, http) in endpoints.into_iter().enumerate() {
        if http.metric("leading").await == Some(1) {
            leader = Some(index);
        }
    }
    leader
}
