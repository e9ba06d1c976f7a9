//! Hostile neighbours: whatever one namespace does, the stop of another one is sent and followed in normal time.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Namespace};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use lab::{
    simulator::{ErrorBody, Fault, HoldPoint, Kind, RecordedRequest, RetryAfter, Run, Simulator, StopEffect},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, is, ready},
};
use serde_json::json;
use tokio::{net::TcpListener, process::Command, sync::watch, time::Instant};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, Reason},
};

use crate::{
    network::authority,
    operator::{Replica, metric_sum},
};

/// The time within which the stop of the victim is sent and its run followed to the end, whatever its neighbours do.
/// Without neighbours it takes about three seconds: the first read comes two seconds after the stop.
const NORMAL: Duration = Duration::from_secs(20);

/// Two namespaces with one operator.
struct Neighbours {
    hostile: TestEnv,
    victim: TestEnv,
}

impl Neighbours {
    async fn new() -> Self {
        let hostile = TestEnv::new().await;
        let victim = hostile.neighbour().await;
        Self { hostile, victim }
    }

    /// Returns the command of an operator for both namespaces.
    fn command(&self, requests_per_second: u32) -> Command {
        let mut command = self.victim.operator_command();
        command.env("WATCH_NAMESPACES", format!("{},{}", self.hostile.namespace, self.victim.namespace));
        command.env("REQUESTS_PER_SECOND", requests_per_second.to_string());
        command
    }

    /// Creates this number of hostile stops; `change` makes each of them hostile.
    async fn create_hostile(&self, count: usize, change: impl Fn(usize, &mut WorkflowRunStop)) {
        for first in (0..count).step_by(100) {
            let stops = (first..count.min(first + 100)).map(|number| {
                let run = format!("wf-hostile-{number}");
                let mut stop = a_stop(&run);
                change(number, &mut stop);
                self.hostile.amperity.add_run(&stop.spec.tenant, ends_at_once(&run));
                stop
            });
            self.hostile.create_all(stops).await;
        }
    }

    /// Creates the stop of the victim, and expects that it is sent and followed in normal time. Returns the number of
    /// other requests for its tenant in between.
    async fn victim_is_served(&self) -> usize {
        let run = Run::new("wf-victim").stops_in(Duration::from_secs(1));
        self.victim.amperity.add_run(TENANT, run);
        let before = self.victim.amperity.requests().len();
        let start = Instant::now();
        self.victim.create(a_stop("wf-victim")).await;
        let finished = self.victim.wait_finished("wf-victim").await;
        let took = start.elapsed();
        assert_eq!(ready(&finished), is(ConditionStatus::True, Reason::RunStopped));
        assert_eq!(self.victim.amperity.effects("wf-victim"), 1);
        assert!(took < NORMAL, "it took {took:?}");
        let of_victim = |request: &RecordedRequest| request.run_id.as_deref() == Some("wf-victim");
        let requests = &self.victim.amperity.requests()[before..];
        let sent = requests.iter().position(of_victim).unwrap();
        requests[..sent].iter().filter(|request| request.tenant.as_deref() == Some(TENANT)).count()
    }
}

/// Returns the number of stop requests for hostile runs.
fn hostile_stops(requests: &[RecordedRequest]) -> usize {
    let hostile = |request: &&RecordedRequest| request.run_id.as_deref().is_some_and(|id| id.starts_with("wf-hostile"));
    requests.iter().filter(hostile).filter(|request| request.kind == Kind::Stop).count()
}

#[tokio::test]
async fn three_hundred_waiting_stops_of_one_namespace_delay_the_stop_of_another_by_one_turn() {
    let test = Neighbours::new().await;
    test.create_hostile(300, |_, _| {}).await;
    let _operator = Operator::start(test.command(2)).await;
    test.hostile.amperity.wait_until(|requests| 4 <= hostile_stops(requests)).await;
    let before = test.victim_is_served().await;
    assert!(before <= 6, "{before} requests were sent before the stop of the victim");
    assert!(hostile_stops(&test.hostile.amperity.requests()) < 100, "the others still wait");
}

#[tokio::test]
async fn stops_with_useless_credentials_use_up_no_rate_limit_of_others() {
    let test = Neighbours::new().await;
    for number in 0..40 {
        let client = [("clientId", "thief"), ("clientSecret", "guess")];
        let token = [("token", "guess")];
        let useless: &[(&str, &str)] = if number % 2 == 0 { &client } else { &token };
        test.hostile.put_secret(&format!("useless-{number}"), useless).await;
    }
    test.create_hostile(300, |number, stop| {
        stop.spec.credentials_secret_ref.name = format!("useless-{}", number % 40);
    })
    .await;
    let _operator = Operator::start(test.command(2)).await;
    test.hostile.amperity.wait_until(|requests| 5 <= requests.len()).await;
    let before = test.victim_is_served().await;
    assert!(before <= 12, "{before} requests were sent before the stop of the victim");
}

#[tokio::test]
async fn a_followed_run_is_read_while_stops_of_another_namespace_wait() {
    let test = Neighbours::new().await;
    let _operator = Operator::start(test.command(2)).await;
    let run = Run::new("wf-followed").stops_in(Duration::from_secs(4));
    test.victim.amperity.add_run(TENANT, run);
    test.victim.create(a_stop("wf-followed")).await;
    test.victim.wait_for_reason("wf-followed", Reason::FollowingRun).await;
    test.create_hostile(120, |_, _| {}).await;
    test.victim.wait_finished("wf-followed").await;
    let sent = hostile_stops(&test.hostile.amperity.requests());
    assert!(sent < 60, "{sent} stops were sent before the run was read");
}

#[tokio::test]
async fn stops_whose_secret_is_missing_delay_no_other_namespace() {
    let test = Neighbours::new().await;
    test.create_hostile(400, |number, stop| {
        stop.spec.credentials_secret_ref.name = format!("missing-{number}");
    })
    .await;
    let _operator = Operator::start(test.command(10)).await;
    test.hostile.wait_for_reason("wf-hostile-0", Reason::CredentialsMissing).await;
    test.victim_is_served().await;
    assert_eq!(hostile_stops(&test.hostile.amperity.requests()), 0);
}

#[tokio::test]
async fn large_annotations_and_secrets_of_one_namespace_delay_no_other() {
    let test = Neighbours::new().await;
    let large = "x".repeat(700 * 1024);
    for number in 0..20 {
        test.hostile.put_secret(&format!("large-{number}"), &[("token", "good-token"), ("other", &large)]).await;
    }
    let annotation = "x".repeat(255 * 1024);
    test.create_hostile(60, |number, stop| {
        stop.spec.credentials_secret_ref.name = format!("large-{}", number % 20);
        stop.metadata.annotations = Some(BTreeMap::from([("a".to_owned(), annotation.clone())]));
    })
    .await;
    let _operator = Operator::start(test.command(10)).await;
    test.hostile.amperity.wait_until(|requests| 5 <= hostile_stops(requests)).await;
    test.victim_is_served().await;
}

/// Lets every write of a status in a namespace wait for a webhook that never answers. Returns the number of connections
/// to it.
async fn block_status_writes(env: &TestEnv) -> watch::Receiver<usize> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let (sender, connections) = watch::channel(0);
    tokio::spawn(async move {
        let mut silent = vec![];
        loop {
            silent.push(listener.accept().await.unwrap());
            sender.send_replace(silent.len());
        }
    });
    let labels = Patch::Merge(json!({"metadata": {"labels": {"blocked": env.namespace}}}));
    let namespaces: Api<Namespace> = Api::all(env.client.clone());
    namespaces.patch(&env.namespace, &PatchParams::default(), &labels).await.unwrap();
    let webhook: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": env.namespace},
        "webhooks": [{
            "name": "never.example.com",
            "clientConfig": {"url": url},
            "namespaceSelector": {"matchLabels": {"blocked": env.namespace}},
            "rules": [{
                "apiGroups": ["workflow.amperity.com"], "apiVersions": ["*"], "operations": ["UPDATE"],
                "resources": ["workflowrunstops/status"],
            }],
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 30,
        }],
    }))
    .unwrap();
    Api::all(env.client.clone()).create(&PostParams::default(), &webhook).await.unwrap();
    // The API server learns of a webhook with a delay.
    env.create(a_stop("wf-probe")).await;
    let mut is_called = connections.clone();
    let called = is_called.wait_for(|connections| 1 <= *connections);
    let writes = async {
        for generation in 1.. {
            let status = Patch::Merge(json!({"status": {"observedGeneration": generation}}));
            drop(env.stops().patch_status("wf-probe", &PatchParams::default(), &status).await);
        }
    };
    tokio::select! {
        called = called => drop(called.unwrap()),
        () = writes => {}
    }
    env.stops().delete("wf-probe", &Default::default()).await.unwrap();
    connections
}

#[tokio::test]
async fn a_namespace_whose_status_writes_hang_delays_no_other() {
    let test = Neighbours::new().await;
    test.create_hostile(300, |_, _| {}).await;
    let mut webhook = block_status_writes(&test.hostile).await;
    let before = *webhook.borrow();
    let _operator = Operator::start(test.command(10)).await;
    webhook.wait_for(|connections| before + 5 <= *connections).await.unwrap();
    test.victim_is_served().await;
    assert_eq!(hostile_stops(&test.hostile.amperity.requests()), 0, "no claim is stored");
}

#[tokio::test]
async fn a_thousand_slow_answers_for_four_tenants_delay_no_other_namespace_and_few_files_are_open() {
    let test = Neighbours::new().await;
    let hold = test.hostile.amperity.hold_stops(HoldPoint::AfterEffect);
    test.create_hostile(1000, |number, stop| stop.spec.tenant = format!("slow-{}", number % 4)).await;
    let of_victim = test.command(1000);
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -n 1024 && exec \"$0\"").arg(of_victim.as_std().get_program());
    command.env_clear();
    for (name, value) in of_victim.as_std().get_envs() {
        command.env(name, value.unwrap());
    }
    command.env("REQUEST_TIMEOUT", "120s");
    let operator = Operator::start(command).await;
    test.hostile.amperity.wait_until(|requests| 300 <= hostile_stops(requests)).await;
    test.hostile.amperity.pass_new_stops(&hold);
    test.victim_is_served().await;
    let log = operator.log();
    assert!(!log.iter().any(|line| line.contains("Too many open files")), "{log:?}");
    hold.release();
}

#[tokio::test]
async fn a_namespace_over_its_limit_waits_and_others_do_not() {
    let test = Neighbours::new().await;
    test.create_hostile(10, |number, stop| {
        if number < 5 {
            stop.spec.credentials_secret_ref.name = "missing".to_owned();
        }
    })
    .await;
    let mut command = test.command(10);
    command.args(["--max-unfinished-per-namespace", "5"]);
    let replica = Replica::from_operator(Operator::start(command).await).await;
    let over = |metrics: &str| metrics.contains(r#"waits_for="namespace_limit"} 5"#);
    replica.wait_for_response("/metrics", |_, metrics| over(metrics)).await;
    test.victim_is_served().await;
    let limited = |stop: &WorkflowRunStop| ready(stop).1 == Reason::NamespaceLimit.as_str();
    let stops = test.hostile.stops().list(&Default::default()).await.unwrap().items;
    let limited: Vec<_> = stops.iter().filter(|stop| limited(stop)).collect();
    assert_eq!(limited.len(), 5);
    // Each one that is deleted makes room for the oldest that waits.
    for stop in stops.iter().filter(|stop| ready(stop).1 == Reason::CredentialsMissing.as_str()) {
        test.hostile.stops().delete(stop.metadata.name.as_deref().unwrap(), &Default::default()).await.unwrap();
    }
    for stop in limited.iter().filter(|stop| stop.spec.credentials_secret_ref.name == "amperity") {
        test.hostile.wait_finished(stop.metadata.name.as_deref().unwrap()).await;
    }
    replica.wait_for_response("/metrics", |_, metrics| metric_sum(metrics, "panics_total") == 0).await;
}

#[tokio::test]
async fn a_tenant_that_always_fails_delays_no_other_namespace() {
    let test = Neighbours::new().await;
    test.create_hostile(100, |_, _| {}).await;
    let unavailable = || Fault::Status { code: 503, effect: StopEffect::NoEffect, body: ErrorBody::Html };
    for run in (0..100).map(|number| format!("wf-hostile-{number}")) {
        test.hostile.amperity.always_on_stop(&run, unavailable());
        test.hostile.amperity.always_on_read(&run, unavailable());
    }
    let _operator = Operator::start(test.command(5)).await;
    test.hostile.amperity.wait_until(|requests| 10 <= requests.len()).await;
    test.victim_is_served().await;
}

#[tokio::test]
async fn a_token_endpoint_that_a_secret_names_does_not_close_the_rate_limit_of_the_tenant() {
    let test = Neighbours::new().await;
    let tokens = Simulator::start_tls().await;
    tokens.always_on_token(Fault::TooManyRequests { retry_after: RetryAfter::Seconds(300) });
    let url = format!("{}/token", tokens.origin());
    let client = [("clientId", "c"), ("clientSecret", "s"), ("tokenUrl", &*url)];
    test.hostile.put_secret("elsewhere", &client).await;
    test.create_hostile(20, |_, stop| stop.spec.credentials_secret_ref.name = "elsewhere".to_owned()).await;
    let mut command = test.command(10);
    command.env("SSL_CERT_FILE", authority(&tokens)).args(["--allowed-hosts", "localhost"]);
    let _operator = Operator::start(command).await;
    test.hostile.wait_for_reason("wf-hostile-0", Reason::Unavailable).await;
    test.victim_is_served().await;
    assert!(tokens.requests().len() < 20, "the refused credentials have a backoff");
}

#[tokio::test]
async fn a_namespace_with_a_thousand_tenants_delays_no_other() {
    let test = Neighbours::new().await;
    let hold = test.hostile.amperity.hold_stops(HoldPoint::AfterEffect);
    test.create_hostile(1000, |number, stop| stop.spec.tenant = format!("tenant-{number}")).await;
    let _operator = Operator::start(test.command(10)).await;
    // One namespace has at most half of the steps in flight.
    test.hostile.amperity.wait_until(|requests| 370 <= hostile_stops(requests)).await;
    test.hostile.amperity.pass_new_stops(&hold);
    test.victim_is_served().await;
    hold.release();
}
