//! Owns what goes wrong, and when: one lane of faults at Amperity, one at the API server and the processes.
//! Never leaves anything broken: a lane that is told to end mends what it broke.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use lab::{
    apiserver_proxy::{ApiserverProxy, Fate},
    control_plane::ControlPlane,
    simulator::{ErrorBody, Fault, Kind, RetryAfter, Took},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    load::{CLIENT, Load, TOKEN},
    replica::Replica,
};

/// Longer than a lease lives and is taken over in.
const PAST_THE_LEASE: Duration = Duration::from_secs(22);

/// How often each fault came.
pub type Counts = BTreeMap<&'static str, usize>;

const AMPERITY: [&str; 9] = [
    "answers 429",
    "answers 5xx",
    "connections reset",
    "no answers",
    "slow answers",
    "strange answers",
    "all of these answers",
    "Amperity offline",
    "credentials replaced",
];

const CLUSTER: [&str; 6] = [
    "single requests to the API server",
    "single requests to the API server",
    "API server killed",
    "API server paused",
    "replica asleep for a moment",
    "leader asleep past its lease",
];

const KILLS: [&str; 4] = ["SIGKILL", "SIGKILL to the leader", "SIGTERM", "SIGTERM to the leader"];

/// What comes before anything is drawn where no process is killed.
const FIRST: [&str; 3] = ["API server paused", "leader asleep past its lease", "API server paused"];

/// A lane: when to end, and its own dice.
pub struct Lane {
    pub rng: StdRng,
    pub end: CancellationToken,
}

impl Lane {
    /// Waits, unless the lane is told to end.
    async fn pass(&self, time: Duration) {
        tokio::select! {
            () = self.end.cancelled() => {}
            () = sleep(time) => {}
        }
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from * 1000..=to * 1000))
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.random_range(0..of.len())]
    }
}

/// Faults at Amperity, one after the other.
pub async fn at_amperity(mut lane: Lane, load: &Load) -> Counts {
    let (mut counts, mut version) = (Counts::new(), 0);
    loop {
        let rest = lane.seconds(1, 5);
        lane.pass(rest).await;
        if lane.end.is_cancelled() {
            return counts;
        }
        let what = lane.one(&AMPERITY);
        *counts.entry(what).or_default() += 1;
        let time = lane.seconds(2, 8);
        match what {
            "Amperity offline" => {
                load.amperity.write().await.go_offline().await;
                lane.pass(time).await;
                load.amperity.write().await.go_online().await;
            }
            "credentials replaced" => {
                version += 1;
                let (token, secret) = (format!("token-{version}"), format!("secret-{version}"));
                let amperity = load.amperity.read().await;
                amperity.set_tokens([token.clone()]);
                amperity.set_client("good-client", &secret);
                drop(amperity);
                lane.pass(time).await;
                load.put_secret(TOKEN, &[("token", &token)]).await;
                load.put_secret(CLIENT, &[("clientId", "good-client"), ("clientSecret", &secret)]).await;
            }
            answers => {
                let mut rng = StdRng::from_rng(&mut lane.rng);
                let often = lane.rng.random_range(0.3..1.0);
                let rule = move |kind, _: &str| rng.random_bool(often).then(|| fault(answers, kind, &mut rng));
                load.amperity.read().await.rule(rule);
                lane.pass(time).await;
                load.amperity.read().await.clear_faults();
            }
        }
    }
}

fn fault(answers: &str, kind: Kind, rng: &mut StdRng) -> Fault {
    // Late, and still within the settle time of the operator.
    let late = Took::Late(Duration::from_millis(rng.random_range(0..3000)));
    let took = [Took::Effect, Took::NoEffect, late][rng.random_range(0..3)];
    match answers {
        "answers 429" => {
            let ahead = rng.random_range(1..4);
            let retry_after = [RetryAfter::None, RetryAfter::Seconds(ahead), RetryAfter::Date(2)];
            Fault::TooManyRequests { retry_after: retry_after[rng.random_range(0..3)].clone() }
        }
        "answers 5xx" => {
            let body = [ErrorBody::ErrorJson, ErrorBody::Html, ErrorBody::Empty][rng.random_range(0..3)];
            Fault::Status { code: [408, 499, 500, 502, 503, 504][rng.random_range(0..6)], effect: took, body }
        }
        "connections reset" => Fault::Reset(took),
        "no answers" => Fault::NoAnswer(took),
        // At the most the time for a request and half the time to settle.
        "slow answers" => Fault::Slow(Duration::from_millis(rng.random_range(200..4000))),
        "strange answers" if kind != Kind::Stop => Fault::ManyTasks(rng.random_range(0..300)),
        "strange answers" => match rng.random_range(0..4) {
            0 => Fault::HtmlWith200(took),
            1 => Fault::WrongId(took),
            2 => Fault::Accepted202,
            _ => Fault::ManyTasks(rng.random_range(0..300)),
        },
        _ => fault(AMPERITY[rng.random_range(0..6)], kind, rng),
    }
}

/// The cluster and who works in it.
pub struct House<'a> {
    pub cluster: &'a ControlPlane,
    pub proxy: &'a ApiserverProxy,
    pub load: &'a Load,
    pub replicas: &'a Mutex<Vec<Replica>>,
}

/// Faults at the API server and at the processes, one after the other; some are kills where that is allowed.
pub async fn at_cluster(mut lane: Lane, house: House<'_>, kills: bool) -> Counts {
    let House { cluster, proxy, load, replicas } = house;
    let mut counts = Counts::new();
    // Early in its life each replica leads for a while and has all its connections in use at once, so that what it
    // uses can be compared later on.
    let mut first = (!kills).then_some(FIRST).into_iter().flatten();
    loop {
        let rest = lane.seconds(2, 8);
        lane.pass(rest).await;
        if lane.end.is_cancelled() {
            return counts;
        }
        let drawn = if kills && lane.rng.random_bool(0.5) { lane.one(&KILLS) } else { lane.one(&CLUSTER) };
        let what = first.next().unwrap_or(drawn);
        *counts.entry(what).or_default() += 1;
        let time = lane.seconds(2, 8);
        let index = lane.rng.random_range(0..replicas.lock().unwrap().len());
        let index = if what.contains("leader") { leader(replicas).await.unwrap_or(index) } else { index };
        match what {
            "API server killed" => {
                cluster.kill_apiserver().await;
                lane.pass(time).await;
                cluster.start_apiserver().await;
            }
            "API server paused" => {
                cluster.pause().await;
                lane.pass(time * 2).await;
                cluster.resume().await;
                cluster.ready().await;
            }
            "single requests to the API server" => {
                let mut rng = StdRng::from_rng(&mut lane.rng);
                let often = lane.rng.random_range(0.1..0.7);
                proxy.rule(move |_| if rng.random_bool(often) { fate(&mut rng) } else { Fate::Pass });
                lane.pass(time * 2).await;
                proxy.rule(|_| Fate::Pass);
            }
            "replica asleep for a moment" | "leader asleep past its lease" => {
                replicas.lock().unwrap()[index].signal("-STOP");
                lane.pass(if what.contains("lease") { PAST_THE_LEASE } else { time }).await;
                replicas.lock().unwrap()[index].signal("-CONT");
            }
            _ => {
                let ends = replicas.lock().unwrap().remove(index);
                let settings = ends.settings();
                if what.starts_with("SIGTERM") {
                    ends.signal("-TERM");
                    if !ends.ends_well().await {
                        load.book.broken("the operator did not end well after SIGTERM");
                    }
                } else {
                    drop(ends);
                }
                lane.pass(time / 2).await;
                replicas.lock().unwrap().push(Replica::start(settings));
            }
        }
    }
}

fn fate(rng: &mut StdRng) -> Fate {
    let time = Duration::from_millis(rng.random_range(100..12_000));
    match rng.random_range(0..6) {
        0 => Fate::Late(time),
        1 => Fate::LateAnswer(time),
        2 | 3 => Fate::LoseAnswer,
        4 => Fate::Refuse,
        _ => Fate::Swallow,
    }
}

/// Which replica leads, where one answers that it does.
async fn leader(replicas: &Mutex<Vec<Replica>>) -> Option<usize> {
    let asked: Vec<_> = replicas.lock().unwrap().iter().map(Replica::asked).collect();
    let mut leader = None;
    for (index, http) in asked.into_iter().enumerate() {
        if http.metric("leading").await == Some(1) {
            leader = Some(index);
        }
    }
    leader
}
