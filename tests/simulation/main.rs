//! Deterministic simulation: the real watch, decisions, ledger, budget and client code against a simulated
//! Kubernetes API server and a simulated Amperity, in virtual time, from a seed. Replicas crash at any step
//! of their IO, requests and answers get lost, watches lag and break, clocks differ.
//!
//! `make simulate SEEDS=20000` runs so many seeds; `make simulate SEED=17` replays one and prints its history.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod amperity;
mod apiserver;
mod world;

use std::{sync::Arc, time::Duration};

use kube::Client;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_operator::{
    amperity::{
        Amperity,
        budget::Budget,
        credentials::Wallet,
        endpoint::{AllowedHosts, Endpoints},
        http::Carrier,
    },
    dice,
    operator::{report::Metrics, watch::Watch},
    stop::{decide::Rules, house::House, ledger::Ledger},
};

use crate::world::{REQUEST_TIMEOUT, Run, SETTLE_TIME, TROUBLE, World};

/// By then all has to have come to its end.
const HORIZON: Duration = Duration::from_secs(3600);

/// What came of one seed.
struct Outcome {
    wrong: Vec<String>,
    history: Vec<String>,
}

fn simulate(seed: u64) -> Outcome {
    dice::load(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(seed);
        let replicas = 1 + world.below(3) as usize;
        for replica in 0..replicas {
            tokio::spawn(live(world.clone(), replica));
        }
        for number in 0..=world.below(3) {
            tokio::spawn(use_it(world.clone(), number));
        }
        sleep(TROUBLE).await;
        let end = Instant::now() + HORIZON;
        while Instant::now() < end && !all_ended(&world) {
            sleep(Duration::from_secs(10)).await;
        }
        judge(&world);
        let mut inner = world.lock();
        Outcome { wrong: std::mem::take(&mut inner.wrong), history: std::mem::take(&mut inner.history) }
    })
}

/// One replica: it works until it crashes or is told to end, and is started again.
async fn live(world: World, replica: usize) {
    let skew = world.below(60) as i64 - 30;
    loop {
        let crash = Arc::new(Notify::new());
        if world.trouble(5.0) {
            let steps = world.below(60) as u32;
            world.lock().fuses.insert(replica, (steps, crash.clone()));
        } else {
            world.lock().fuses.remove(&replica);
        }
        world.tell(format!("replica {replica} starts"));
        let clock: workflow_run_stop_operator::clock::Clock = {
            let world = world.clone();
            Arc::new(move || world.date(skew))
        };
        let client = Client::new(apiserver::ApiServer { world: world.clone(), replica }, "sim");
        let carrier = Carrier::Other(Arc::new(amperity::Amperity { world: world.clone(), replica }));
        let hosts = AllowedHosts::parse("").unwrap();
        let house = House {
            ledger: Ledger::new(client.clone(), &format!("replica-{replica}"), clock.clone()),
            amperity: Amperity::over(carrier, clock.clone()),
            budget: Budget::new(10),
            wallet: Wallet::default(),
            endpoints: Endpoints::new("https://app.amperity.com/api", hosts).unwrap(),
            rules: Rules { request_timeout: REQUEST_TIMEOUT, settle_time: SETTLE_TIME },
            clock,
        };
        let stop = CancellationToken::new();
        let watching = Watch { house: Arc::new(house), metrics: Metrics::default(), stop: stop.clone() };
        let (synced, _) = watch::channel(false);
        let told = async {
            // The lease is lost, or it is told to end: what is in flight is recorded all the same.
            if world.trouble(3.0) {
                sleep(Duration::from_secs(world.below(120))).await;
                world.tell(format!("replica {replica} is told to end"));
                stop.cancel();
            }
            std::future::pending::<()>().await;
        };
        let work = async {
            let mut tasks = watching.run(&client, &["sim".to_owned()], &synced).await;
            while tasks.join_next().await.is_some() {}
        };
        tokio::select! {
            biased;
            () = crash.notified() => world.tell(format!("replica {replica} crashes")),
            () = work => world.tell(format!("replica {replica} has ended")),
            () = told => {}
        }
        sleep(Duration::from_millis(1 + world.below(20_000))).await;
    }
}

/// Somebody who creates a stop, and changes, deletes and creates it again.
async fn use_it(world: World, number: u64) {
    let name = format!("stop-{number}");
    for life in 0..=world.below(2) {
        sleep(Duration::from_millis(world.below(60_000))).await;
        let (uid, run) = (format!("uid-{number}-{life}"), format!("wf-{number}-{life}"));
        let ends = (world.below(4) == 0).then(|| Instant::now() + Duration::from_secs(world.below(200)));
        let ended = ["succeeded", "failed"][world.below(2) as usize];
        let readable = world.below(8) != 0;
        let state = Run {
            uid: uid.clone(),
            readable,
            state: "running",
            ends: ends.map(|at| (at, ended)),
            posts: vec![],
            hidden: None,
        };
        let suspended = world.below(6) == 0;
        let deadline = (world.below(5) == 0).then(|| world.below(120) + 1);
        let mut spec =
            json!({"runId": run, "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}, "suspend": suspended});
        if let Some(deadline) = deadline {
            spec["stopDeadlineSeconds"] = json!(deadline);
        }
        let created = world.date(0).round(jiff::Unit::Second).unwrap();
        let object = json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {"name": name, "namespace": "sim", "uid": uid, "generation": 1, "creationTimestamp": created.to_string()},
            "spec": spec,
        });
        {
            let mut inner = world.lock();
            inner.tell(&format!("{name} is created for {run}{}", if suspended { ", suspended" } else { "" }));
            inner.runs.insert(run, state);
            inner.put(&name, Some(object));
        }
        for _ in 0..world.below(3) {
            sleep(Duration::from_millis(world.below(40_000))).await;
            change(&world, &name, |object| object["metadata"]["labels"]["touched"] = json!("yes"));
        }
        if suspended {
            sleep(Duration::from_millis(world.below(40_000))).await;
            change(&world, &name, |object| {
                object["spec"]["suspend"] = json!(false);
                object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_u64().unwrap() + 1);
            });
        }
        if life == 0 && world.below(2) == 0 {
            sleep(Duration::from_millis(world.below(60_000))).await;
            world.tell(format!("{name} is deleted"));
            world.lock().put(&name, None);
        } else {
            return;
        }
    }
}

fn change(world: &World, name: &str, how: impl FnOnce(&mut Value)) {
    let mut inner = world.lock();
    if let Some(mut object) = inner.objects.get(name).cloned()
        && !object["status"]["completionTime"].is_string()
    {
        how(&mut object);
        inner.tell(&format!("{name} is changed"));
        inner.put(name, Some(object));
    }
}

fn all_ended(world: &World) -> bool {
    world.lock().objects.values().all(|object| object["status"]["completionTime"].is_string())
}

/// What has to hold at the end.
fn judge(world: &World) {
    let mut inner = world.lock();
    for (name, object) in inner.objects.clone() {
        let status = &object["status"];
        let condition = |kind: &str| {
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.into_iter().find(|one| one["type"] == kind).unwrap_or_default();
            (
                found["status"].as_str().unwrap_or_default().to_owned(),
                found["reason"].as_str().unwrap_or_default().to_owned(),
            )
        };
        let (ready, reason) = condition("Ready");
        if !status["completionTime"].is_string() {
            inner.fail(&format!("{name} has not ended; it waits for {reason:?}"));
            continue;
        }
        if status["observedGeneration"] != object["metadata"]["generation"] {
            inner.fail(&format!("{name} ended without having observed its last generation"));
        }
        let run = inner.runs[object["spec"]["runId"].as_str().unwrap()].clone();
        let effects = run.posts.iter().filter(|post| post.effect).count();
        let attempts = status["stopRequest"]["attempts"].as_u64().unwrap_or_default();
        if attempts < run.posts.len() as u64 {
            inner.fail(&format!("{name}: {} POSTs and only {attempts} claims", run.posts.len()));
        }
        if 1 < effects {
            inner.fail(&format!("{name}: {effects} effects"));
        }
        let (accepted, _) = condition("StopAccepted");
        // A run that had ended or was stopping already is answered with a success as well.
        let success = run.posts.iter().any(|post| post.success);
        if accepted == "True" && effects == 0 && !success && !["stopping", "canceled"].contains(&run.state) {
            inner.fail(&format!("{name} says that a stop was accepted, and none was"));
        }
        if 0 < effects && run.readable && accepted != "True" && reason != "RunEndedOtherwise" {
            inner.fail(&format!("{name}: a stop took effect, and it ended as {reason} with StopAccepted {accepted}"));
        }
        if ready == "True" && run.readable && run.state == "running" {
            inner.fail(&format!("{name} is ready, and its run goes on"));
        }
        let known = [
            "RunStopped",
            "RunEndedOtherwise",
            "RunUnreadable",
            "OutcomeUnknown",
            "DeadlineExceeded",
            "Rejected",
            "StopAccepted",
        ];
        if !known.contains(&reason.as_str()) {
            inner.fail(&format!("{name} ended as {reason}"));
        }
        if reason == "OutcomeUnknown" && run.readable {
            inner.fail(&format!("{name} ended as {reason}, and its run can be read"));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_schedule_breaks_the_promises() {
    if let Some(seed) = number("SEED") {
        let outcome = simulate(seed);
        println!("{}", outcome.history.join("\n"));
        assert!(outcome.wrong.is_empty(), "seed {seed}: {:?}", outcome.wrong);
        return;
    }
    let first = number("FIRST_SEED").unwrap_or_default();
    let last = first + number("SEEDS").unwrap_or(500);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let failures: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let work: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let seeds = (first + thread..last).step_by(threads as usize);
                    seeds.map(|seed| (seed, simulate(seed))).find(|(_, outcome)| !outcome.wrong.is_empty())
                })
            })
            .collect();
        work.into_iter().filter_map(|work| work.join().unwrap()).collect()
    });
    for (seed, outcome) in &failures {
        println!("seed {seed}:\n{}\n{:?}\nreplay it with SEED={seed}", outcome.history.join("\n"), outcome.wrong);
    }
    assert!(failures.is_empty(), "seeds {:?}", failures.iter().map(|(seed, _)| seed).collect::<Vec<_>>());
}

/// Each guard is needed: without it the simulation finds a broken promise.
#[cfg(feature = "sabotage")]
#[test]
fn a_guard_that_is_taken_away_is_noticed_within_a_thousand_seeds() {
    use workflow_run_stop_operator::sabotage::{Break, take_away};
    for guard in [
        Break::NoClaim,
        Break::ClaimWithoutVersion,
        Break::RecordWithoutClaim,
        Break::ConfirmAfterOneRead,
        Break::NoFence,
    ] {
        take_away(Some(guard));
        let found = (0..1000).map(|seed| (seed, simulate(seed))).find(|(_, outcome)| !outcome.wrong.is_empty());
        take_away(None);
        let (seed, outcome) = found.unwrap_or_else(|| panic!("nobody noticed that {guard:?}"));
        println!("{guard:?} is noticed by seed {seed}: {:?}", outcome.wrong);
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for seed in 0..20 {
        assert_eq!(simulate(seed).history, simulate(seed).history, "seed {seed}");
    }
}
