//! What people see without reading a status: events and metrics.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Api, api::ListParams};
use lab::{
    control_plane,
    simulator::{Fault, RetryAfter, Run, StopAnswerTasks},
};
use serde_json::{Value, json};
use tokio::process::Command;
use workflow_run_stop_api::{Claim, StopRequest, WorkflowRunStopStatus, conditions::Reason};

use crate::operator::{Replica, kubeconfig_with, sum};
use crate::rights;
use crate::support::{Operator, Place, TENANT, a_stop, ends_at_once};

/// The events of a resource as `kubectl describe` tells them: type, reason, age, from and message of each.
async fn described(place: &Place, name: &str) -> Vec<Vec<String>> {
    let mut kubectl = Command::new(control_plane::kubectl().unwrap());
    // Its cache goes where nothing is kept.
    kubectl
        .env_clear()
        .env("KUBECONFIG", place.cluster.kubeconfig_path())
        .env("KUBECACHEDIR", env!("CARGO_TARGET_TMPDIR"));
    let output = kubectl.args(["describe", "wrs", name, "--namespace", &place.namespace]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let events = text.split("\nEvents:").nth(1).unwrap_or_else(|| panic!("no events in\n{text}"));
    let columns =
        |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect();
    // Behind the heading and its line.
    events.lines().skip(3).map(columns).collect()
}

fn told(rows: &[Vec<String>]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect()
}

#[tokio::test]
async fn describe_tells_each_thing_that_matters_once_and_in_order() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(4)).with_tasks(2));
    let operator = place.operator().await;
    let mut stop = a_stop("wf-1");
    stop.spec.credentials_secret_ref.name = "late".to_owned();
    place.apply(stop).await;
    place.reason("wf-1", Reason::CredentialsMissing).await;
    place.put_secret("late", &[("token", "bad-token")]).await;
    // Refused again and again.
    place.amperity.wait_until(|requests| 3 <= requests.len()).await;
    place.reason("wf-1", Reason::Unauthorized).await;
    place.put_secret("late", &[("token", "good-token")]).await;
    place.finished("wf-1").await;
    assert!(1 < place.amperity.reads("wf-1"), "the run is looked at several times");
    // What was told is written when it has ended.
    assert_eq!(operator.terminate().await, Some(0));

    let rows = described(&place, "wf-1").await;
    assert_eq!(
        told(&rows),
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
    assert_eq!(messages[3], "The run is stopped: its state is canceled.");
    assert!(rows.iter().all(|row| row[3] == "workflow-run-stop-operator"), "{rows:?}");
    // None stands for more than one.
    assert!(rows.iter().all(|row| !row[2].contains('x')), "{rows:?}");
}

#[tokio::test]
async fn an_end_that_needs_a_person_is_a_warning_and_one_that_is_known_at_once_is_one_event() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-quick"));
    place.amperity.add_run(TENANT, Run::new("wf-unfollowed").stops_in(Duration::from_secs(600)));
    let operator = place.operator().await;
    let mut unfollowed = a_stop("wf-unfollowed");
    unfollowed.spec.follow_timeout_seconds = 0;
    place.apply_all([a_stop("wf-quick"), unfollowed, a_stop("wf-unknown")]).await;
    for run in ["wf-quick", "wf-unfollowed", "wf-unknown"] {
        place.finished(run).await;
    }
    assert_eq!(operator.terminate().await, Some(0));
    for (name, expected) in [
        ("wf-quick", &[("Normal", "StopAccepted"), ("Normal", "RunStopped")][..]),
        ("wf-unfollowed", &[("Normal", "StopAccepted")]),
        ("wf-unknown", &[("Warning", "RunNotFound")]),
    ] {
        assert_eq!(told(&described(&place, name).await), expected, "{name}");
    }
}

#[tokio::test]
async fn the_log_is_an_audit_trail_that_outlives_the_resource() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stop_answer_tasks(StopAnswerTasks::Full));
    let operator = place.operator().await;
    let mut wanted = a_stop("wf-1");
    wanted.spec.reason = Some("the wrong file was loaded".to_owned());
    let mut unknown = a_stop("wf-unknown");
    unknown.spec.follow_timeout_seconds = 0;
    let (wanted, unknown) = (place.apply(wanted).await, place.apply(unknown).await);
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
        place.finished(stop.name()).await;
        let line: Value = serde_json::from_str(&operator.says(stop.uid()).await).unwrap();
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(line[field], *value, "{field}: {line}");
        }
        assert_eq!(line["namespace"], *place.namespace);
        let request_id = place.get(stop.name()).await.status.unwrap().stop_request.unwrap().request_id;
        assert_eq!(line["request_id"].as_str(), request_id.as_deref());
        assert_eq!(request_id.is_some(), stop.name() == "wf-unknown");
    }
    assert_eq!(operator.terminate().await, Some(0));
    let rows = described(&place, "wf-1").await;
    assert!(rows.iter().all(|row| row[4].ends_with("Requested because: the wrong file was loaded")), "{rows:?}");
}

#[tokio::test]
async fn another_replica_that_goes_on_tells_nothing_twice() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(600)));
    let mut secretless = a_stop("wf-2");
    secretless.spec.credentials_secret_ref.name = "none".to_owned();
    place.apply_all([a_stop("wf-1"), secretless]).await;
    for _ in 0..2 {
        let operator = place.operator().await;
        place.reason("wf-1", Reason::FollowingRun).await;
        place.reason("wf-2", Reason::CredentialsMissing).await;
        let reads = place.amperity.reads("wf-1");
        place.amperity.wait_until(|_| reads < place.amperity.reads("wf-1")).await;
        assert_eq!(operator.terminate().await, Some(0));
    }
    assert_eq!(told(&described(&place, "wf-1").await), [("Normal", "StopAccepted")]);
    assert_eq!(told(&described(&place, "wf-2").await), [("Warning", "CredentialsMissing")]);
    let events: Api<Event> = Api::namespaced(place.client.clone(), &place.namespace);
    assert_eq!(events.list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn without_the_right_to_write_events_stops_are_sent_and_recorded_all_the_same() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut rules = rights::of_watched();
    rules.retain(|rule| rule["resources"] != json!(["events"]));
    let mut command = place.command();
    command.env("KUBECONFIG", kubeconfig_with(&place, rules.into()).await);
    let replica = Replica::of(Operator::start(command).await).await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    let metrics = replica.answers("/metrics", |_, body| sum(body, "events_total") == 2).await;
    assert!(metrics.contains("workflow_run_stop_operator_events_total{result=\"failed\"} 2\n"), "{metrics}");
    replica.operator.says("the event is not written").await;
}

/// The value of each series of one tenant, without the histograms' buckets.
fn series(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
    let value = |line: &str| {
        let (series, value) = line.strip_prefix("workflow_run_stop_operator_")?.split_once(' ')?;
        Some((series.replace('"', ""), value.parse().unwrap()))
    };
    lines.filter_map(value).collect()
}

#[tokio::test]
async fn metrics_tell_what_was_sent_what_came_of_it_and_what_is_waited_for() {
    let place = Place::new().await;
    for run in ["wf-ended", "wf-limited", "wf-suspended", "wf-secretless"] {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    place.amperity.add_run(
        TENANT,
        Run::new("wf-followed").stops_in(Duration::from_secs(600)).stop_answer_tasks(StopAnswerTasks::Empty),
    );
    place.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(1) }]);
    place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    let replica = Replica::start(&place, &[]).await;
    let mut suspended = a_stop("wf-suspended");
    suspended.spec.suspend = true;
    let mut secretless = a_stop("wf-secretless");
    secretless.spec.credentials_secret_ref.name = "none".to_owned();
    let mut ended = a_stop("wf-ended");
    ended.spec.credentials_secret_ref.name = "client".to_owned();
    place
        .apply_all([suspended, secretless, ended, a_stop("wf-limited"), a_stop("wf-followed"), a_stop("wf-unknown")])
        .await;
    for run in ["wf-ended", "wf-limited", "wf-unknown"] {
        place.finished(run).await;
    }
    place.reason("wf-suspended", Reason::Suspended).await;
    place.reason("wf-secretless", Reason::CredentialsMissing).await;
    place.reason("wf-followed", Reason::FollowingRun).await;
    let waits = |metrics: &str, what: &str| series(metrics)[&format!("unfinished{{tenant=acme,waits_for={what}}}")];
    let settled = |_: u16, metrics: &str| {
        sum(metrics, "unfinished") == 3 && waits(metrics, "run_end") == 1.0 && waits(metrics, "credentials") == 1.0
    };
    let metrics = series(&replica.answers("/metrics", settled).await);
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
    // Slowed down by the 429.
    assert!(metrics["budget_requests_per_second{tenant=acme}"] < 10.0, "{metrics:#?}");
    let oldest = |waits_for: &str| {
        metrics[&format!("oldest_unfinished_created_timestamp_seconds{{tenant=acme,waits_for={waits_for}}}")]
    };
    let created = place.get("wf-suspended").await.created().as_second();
    assert_eq!(oldest("suspended"), created as f64);
    assert_eq!(oldest("budget"), 0.0);
}

#[tokio::test]
async fn a_claim_of_another_process_that_is_cleared_up_is_counted_as_taken_over() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1").in_state("stopping"));
    let long_ago = Time(Timestamp::from_second(1_700_000_000).unwrap());
    let claim = Claim { id: "another".to_owned(), holder: "gone".to_owned(), time: long_ago, ended: None };
    let request = StopRequest { attempts: 1, claim: Some(claim), ..StopRequest::default() };
    place.apply(a_stop("wf-1")).await;
    place
        .put_status("wf-1", &WorkflowRunStopStatus { stop_request: Some(request), ..WorkflowRunStopStatus::default() })
        .await;
    let replica = Replica::start(&place, &[]).await;
    place
        .until("wf-1", "was accepted", |stop| {
            stop.claim().is_none() && crate::support::request(stop).accepted_time.is_some()
        })
        .await;
    replica.answers("/metrics", |_, body| sum(body, "claims_taken_over_total") == 1).await;
    assert_eq!(place.amperity.stops("wf-1"), 0);
}
