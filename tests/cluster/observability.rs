//! Events, log lines and metrics.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Api, api::ListParams};
use lab::{
    control_plane,
    simulator::{Fault, RetryAfter, Run, StopResponseTasks},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, rbac},
};
use serde_json::{Value, json};
use tokio::process::Command;
use workflow_run_stop_api::{Claim, StopRequest, WorkflowRunStopStatus, conditions::Reason};

use crate::operator::{Replica, kubeconfig_with_rules, metric_sum};

/// Returns the events that `kubectl describe` shows for a resource: type, reason, age, from and message of each.
async fn describe_events(env: &TestEnv, name: &str) -> Vec<Vec<String>> {
    let mut kubectl = Command::new(control_plane::kubectl().unwrap());
    // The discovery cache goes to the directory for temporary test files.
    kubectl
        .env_clear()
        .env("KUBECONFIG", env.cluster.kubeconfig_path())
        .env("KUBECACHEDIR", env!("CARGO_TARGET_TMPDIR"));
    let output = kubectl.args(["describe", "wrs", name, "--namespace", &env.namespace]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let events = text.split("\nEvents:").nth(1).unwrap_or_else(|| panic!("no events in\n{text}"));
    let columns =
        |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect();
    // The first three lines are the rest of the heading.
    events.lines().skip(3).map(columns).collect()
}

fn types_and_reasons(rows: &[Vec<String>]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect()
}

#[tokio::test]
async fn describe_shows_each_event_once_and_in_order() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(4)).with_tasks(2));
    let operator = env.start_operator().await;
    let mut stop = a_stop("wf-1");
    stop.spec.credentials_secret_ref.name = "late".to_owned();
    env.create(stop).await;
    env.wait_for_reason("wf-1", Reason::CredentialsMissing).await;
    env.put_secret("late", &[("token", "bad-token")]).await;
    // The token is refused several times.
    env.amperity.wait_until(|requests| 3 <= requests.len()).await;
    env.wait_for_reason("wf-1", Reason::Unauthorized).await;
    env.put_secret("late", &[("token", "good-token")]).await;
    env.wait_finished("wf-1").await;
    assert!(1 < env.amperity.reads("wf-1"), "the run is read several times");
    // The operator writes pending events before it exits.
    assert_eq!(operator.terminate().await, Some(0));

    let rows = describe_events(&env, "wf-1").await;
    assert_eq!(
        types_and_reasons(&rows),
        [
            ("Warning", "CredentialsMissing"),
            ("Warning", "Unauthorized"),
            ("Normal", "StopAccepted"),
            ("Normal", "RunStopped")
        ]
    );
    let messages: Vec<_> = rows.iter().map(|row| row.last().unwrap().as_str()).collect();
    assert!(messages[0].starts_with("The credentials cannot be used: there is no Secret late."), "{messages:?}");
    assert!(messages[1].contains("HTTP 401"), "{messages:?}");
    assert_eq!(messages[3], "The run is stopped: state canceled.");
    assert!(rows.iter().all(|row| row[3] == "workflow-run-stop-operator"), "{rows:?}");
    // An `x` in the age column would mean a repeated event.
    assert!(rows.iter().all(|row| !row[2].contains('x')), "{rows:?}");
}

#[tokio::test]
async fn a_failed_stop_emits_a_warning_and_a_stop_that_finishes_with_its_answer_emits_one_event() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-quick"));
    env.amperity.add_run(TENANT, Run::new("wf-unfollowed").stops_in(Duration::from_secs(600)));
    let operator = env.start_operator().await;
    let mut unfollowed = a_stop("wf-unfollowed");
    unfollowed.spec.follow_timeout_seconds = 0;
    env.create_all([a_stop("wf-quick"), unfollowed, a_stop("wf-unknown")]).await;
    for run in ["wf-quick", "wf-unfollowed", "wf-unknown"] {
        env.wait_finished(run).await;
    }
    assert_eq!(operator.terminate().await, Some(0));
    for (name, expected) in [
        ("wf-quick", &[("Normal", "RunStopped")]),
        ("wf-unfollowed", &[("Normal", "StopAccepted")]),
        ("wf-unknown", &[("Warning", "RunNotFound")]),
    ] {
        assert_eq!(types_and_reasons(&describe_events(&env, name).await), expected, "{name}");
    }
}

#[tokio::test]
async fn the_log_line_of_a_stop_is_a_complete_audit_record() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stop_response_tasks(StopResponseTasks::Full));
    let operator = env.start_operator().await;
    let mut wanted = a_stop("wf-1");
    wanted.spec.reason = Some("the wrong file was loaded".to_owned());
    let mut unknown = a_stop("wf-unknown");
    unknown.spec.follow_timeout_seconds = 0;
    let (wanted, unknown) = (env.create(wanted).await, env.create(unknown).await);
    for (stop, expected) in [
        (
            wanted,
            json!({"tenant": TENANT, "run": "wf-1", "requested_because": "the wrong file was loaded", "step": "stop",
                "answer": "accepted", "attempts": 1, "http_status": 200, "state": "canceled", "result": "Stopped",
                "reason": "RunStopped"}),
        ),
        (
            unknown,
            json!({"run": "wf-unknown", "step": "stop", "answer": "not_found", "attempts": 1, "http_status": 404,
                "result": "Failed", "reason": "RunNotFound"}),
        ),
    ] {
        env.wait_finished(stop.name()).await;
        let line: Value = serde_json::from_str(&operator.wait_for_log(stop.uid()).await).unwrap();
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(line[field], *value, "{field}: {line}");
        }
        assert_eq!(line["namespace"], *env.namespace);
        let request_id = env.get(stop.name()).await.status.unwrap().stop_request.unwrap().request_id;
        assert_eq!(line["request_id"].as_str(), request_id.as_deref());
        assert_eq!(request_id.is_some(), stop.name() == "wf-unknown");
    }
    assert_eq!(operator.terminate().await, Some(0));
    let rows = describe_events(&env, "wf-1").await;
    assert!(rows.iter().all(|row| row[4].ends_with("Requested because: the wrong file was loaded")), "{rows:?}");
}

#[tokio::test]
async fn another_replica_that_continues_emits_no_event_twice() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(600)));
    let mut secretless = a_stop("wf-2");
    secretless.spec.credentials_secret_ref.name = "none".to_owned();
    env.create_all([a_stop("wf-1"), secretless]).await;
    for _ in 0..2 {
        let operator = env.start_operator().await;
        env.wait_for_reason("wf-1", Reason::FollowingRun).await;
        env.wait_for_reason("wf-2", Reason::CredentialsMissing).await;
        let reads = env.amperity.reads("wf-1");
        env.amperity.wait_until(|_| reads < env.amperity.reads("wf-1")).await;
        assert_eq!(operator.terminate().await, Some(0));
    }
    assert_eq!(types_and_reasons(&describe_events(&env, "wf-1").await), [("Normal", "StopAccepted")]);
    assert_eq!(types_and_reasons(&describe_events(&env, "wf-2").await), [("Warning", "CredentialsMissing")]);
    let events: Api<Event> = Api::namespaced(env.client.clone(), &env.namespace);
    assert_eq!(events.list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn stops_are_sent_and_recorded_without_permission_to_write_events() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut rules = rbac::watched_namespace_rules();
    rules.retain(|rule| rule["resources"] != json!(["events"]));
    let mut command = env.operator_command();
    command.env("KUBECONFIG", kubeconfig_with_rules(&env, rules.into()).await);
    let replica = Replica::from_operator(Operator::start(command).await).await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    let metrics = replica.wait_for_response("/metrics", |_, body| metric_sum(body, "events_total") == 1).await;
    assert!(metrics.contains("workflow_run_stop_operator_events_total{result=\"failed\"} 1\n"), "{metrics}");
    replica.operator.wait_for_log("failed to write event").await;
}

/// Parses the value of each series, without the buckets of histograms.
fn series(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
    let value = |line: &str| {
        let (series, value) = line.strip_prefix("workflow_run_stop_operator_")?.split_once(' ')?;
        Some((series.replace('"', ""), value.parse().unwrap()))
    };
    lines.filter_map(value).collect()
}

#[tokio::test]
async fn metrics_count_requests_answers_results_and_waiting_resources() {
    let env = TestEnv::new().await;
    for run in ["wf-ended", "wf-limited", "wf-suspended", "wf-secretless"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.amperity.add_run(
        TENANT,
        Run::new("wf-followed").stops_in(Duration::from_secs(600)).stop_response_tasks(StopResponseTasks::Empty),
    );
    env.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(1) }]);
    env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    let replica = Replica::start(&env, &[]).await;
    let mut suspended = a_stop("wf-suspended");
    suspended.spec.suspend = true;
    let mut secretless = a_stop("wf-secretless");
    secretless.spec.credentials_secret_ref.name = "none".to_owned();
    let mut ended = a_stop("wf-ended");
    ended.spec.credentials_secret_ref.name = "client".to_owned();
    env.create_all([suspended, secretless, ended, a_stop("wf-limited"), a_stop("wf-followed"), a_stop("wf-unknown")])
        .await;
    for run in ["wf-ended", "wf-limited", "wf-unknown"] {
        env.wait_finished(run).await;
    }
    env.wait_for_reason("wf-suspended", Reason::Suspended).await;
    env.wait_for_reason("wf-secretless", Reason::CredentialsMissing).await;
    env.wait_for_reason("wf-followed", Reason::FollowingRun).await;
    let waits = |metrics: &str, what: &str| series(metrics)[&format!("unfinished{{tenant=acme,waits_for={what}}}")];
    let settled = |_: u16, metrics: &str| {
        metric_sum(metrics, "unfinished") == 3
            && waits(metrics, "run_end") == 1.0
            && waits(metrics, "credentials") == 1.0
    };
    let metrics = series(&replica.wait_for_response("/metrics", settled).await);
    for (name, expected) in [
        ("requests_total{tenant=acme,purpose=stop,answer=accepted}", 3.0),
        ("requests_total{tenant=acme,purpose=stop,answer=rate_limited}", 1.0),
        ("requests_total{tenant=acme,purpose=stop,answer=not_found}", 1.0),
        ("requests_total{tenant=acme,purpose=stop,answer=no_answer}", 0.0),
        ("requests_total{tenant=acme,purpose=token,answer=token}", 1.0),
        ("request_duration_seconds_count{tenant=acme,purpose=stop}", 5.0),
        ("created_to_sent_seconds_count{tenant=acme}", 4.0),
        ("accepted_to_ended_seconds_count{tenant=acme}", 2.0),
        ("finished_total{tenant=acme,reason=RunStopped}", 2.0),
        ("finished_total{tenant=acme,reason=RunNotFound}", 1.0),
        ("finished_total{tenant=acme,reason=OutcomeUnknown}", 0.0),
        ("unfinished{tenant=acme,waits_for=suspended}", 1.0),
        ("unfinished{tenant=acme,waits_for=credentials}", 1.0),
        ("unfinished{tenant=acme,waits_for=run_end}", 1.0),
        ("unfinished{tenant=acme,waits_for=budget}", 0.0),
        ("budget_limit_requests_per_second", 10.0),
        ("budget_waiting{tenant=acme,purpose=stop}", 0.0),
        ("status_writes_total{result=conflict}", 0.0),
        ("claims_taken_over_total", 0.0),
        ("panics_total", 0.0),
    ] {
        assert_eq!(metrics.get(name), Some(&expected), "{name} of {metrics:#?}");
    }
    assert!(5.0 < metrics["status_writes_total{result=stored}"], "{metrics:#?}");
    // The 429 reduced the rate.
    assert!(metrics["budget_requests_per_second{tenant=acme}"] < 10.0, "{metrics:#?}");
    let oldest = |waits_for: &str| {
        metrics[&format!("oldest_unfinished_created_timestamp_seconds{{tenant=acme,waits_for={waits_for}}}")]
    };
    let created = env.get("wf-suspended").await.created().as_second();
    assert_eq!(oldest("suspended"), created as f64);
    assert_eq!(oldest("budget"), 0.0);
}

#[tokio::test]
async fn a_claim_of_another_process_that_is_resolved_is_counted_as_taken_over() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1").in_state("stopping"));
    let long_ago = Time(Timestamp::from_second(1_700_000_000).unwrap());
    let claim = Claim { id: "another".to_owned(), holder: "gone".to_owned(), time: long_ago, ended: None };
    let request = StopRequest { attempts: 1, claim: Some(claim), ..StopRequest::default() };
    env.create(a_stop("wf-1")).await;
    env.write_status(
        "wf-1",
        &WorkflowRunStopStatus { stop_request: Some(request), ..WorkflowRunStopStatus::default() },
    )
    .await;
    let replica = Replica::start(&env, &[]).await;
    env.wait_until("wf-1", "was accepted", |stop| {
        stop.claim().is_none() && lab::testing::stop_request(stop).accepted_time.is_some()
    })
    .await;
    replica.wait_for_response("/metrics", |_, body| metric_sum(body, "claims_taken_over_total") == 1).await;
    assert_eq!(env.amperity.stops("wf-1"), 0);
}
