//! Answers of a gateway or proxy in front of Amperity, which prove nothing about the run.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lab::{
    simulator::{ErrorBody, Fault, Kind, RetryAfter, Run, StopEffect},
    testing::{TENANT, a_stop, condition_lines, ends_at_once, message, ready, stop_request},
};
use serde_json::json;
use workflow_run_stop_api::{
    StopRequest, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{self, ConditionStatus, ConditionType, Reason, StopResult},
};

use crate::answers::{
    CONFIRMED, Fixture, STOPPED, UNEXPECTED_ANSWER, a_run, a_stop_with_client, status, token_requests,
};
use crate::clock::now;

const OUTCOME_UNKNOWN: [&str; 4] = [
    "Ready: False OutcomeUnknown",
    "Stalled: True OutcomeUnknown",
    "StopAccepted: Unknown OutcomeUnknown",
    "RunEnded: Unknown OutcomeUnknown",
];

fn result(stop: &WorkflowRunStop) -> Option<StopResult> {
    stop.status.as_ref().and_then(|status| status.result)
}

/// A status after stop requests that failed for this reason, so that another one is due.
fn retryable_status(reason: Reason, attempts: i32) -> WorkflowRunStopStatus {
    let now = Time(Timestamp::from_second(1_800_000_000).unwrap());
    let why = (reason, reason.message(""));
    let accepted = conditions::condition(ConditionType::StopAccepted, ConditionStatus::False, why, Some(1), &now);
    WorkflowRunStopStatus {
        stop_request: Some(StopRequest { attempts, ..StopRequest::default() }),
        conditions: vec![accepted],
        observed_generation: Some(1),
        ..WorkflowRunStopStatus::default()
    }
}

/// Creates a stop that has this status before the operator processes it.
async fn create_with_status(fixture: &Fixture, mut stop: WorkflowRunStop, status: &WorkflowRunStopStatus) {
    stop.spec.suspend = true;
    let name = fixture.env.create(stop).await.name().to_owned();
    fixture.env.write_status(&name, status).await;
    // Suspending has no effect on an accepted stop, and a change of its spec would interrupt its first read.
    if status.stop_request.as_ref().is_none_or(|request| request.accepted_time.is_none()) {
        fixture.env.patch_spec(&name, json!({"suspend": false})).await.unwrap();
    }
}

#[tokio::test]
async fn no_second_stop_follows_a_gateway_error_if_the_run_cannot_be_read() {
    let fixture = Fixture::new().await;
    let rows = [
        ("wf-1", 504, ErrorBody::Html, StopEffect::Immediate),
        ("wf-2", 502, ErrorBody::Empty, StopEffect::Delayed(Duration::from_millis(700))),
        ("wf-3", 500, ErrorBody::OtherJson, StopEffect::Immediate),
        ("wf-4", 408, ErrorBody::Html, StopEffect::Immediate),
        ("wf-5", 499, ErrorBody::Empty, StopEffect::Immediate),
        ("wf-6", 503, ErrorBody::ErrorJson, StopEffect::NoEffect),
    ];
    for (run, code, body, effect) in rows {
        fixture.env.amperity.add_run(TENANT, a_run(run).unreadable(403));
        fixture.env.amperity.always_on_stop(run, status(code, effect, body));
        fixture.env.create(a_stop(run)).await;
    }
    for (run, code, _, effect) in rows {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), OUTCOME_UNKNOWN, "{code}");
        assert_eq!(result(&stop), Some(StopResult::Unknown));
        let effects = usize::from(effect != StopEffect::NoEffect);
        assert_eq!(fixture.env.request_counts(run), (1, effects, 2), "{code}");
    }
}

#[tokio::test]
async fn the_outcome_of_a_gateway_4xx_is_decided_by_reading_the_run() {
    let fixture = Fixture::new().await;
    let rows = [
        (400, ErrorBody::Html),
        (403, ErrorBody::OtherJson),
        (404, ErrorBody::Empty),
        (404, ErrorBody::Html),
        (405, ErrorBody::Html),
        (409, ErrorBody::Empty),
        (410, ErrorBody::OtherJson),
        (422, ErrorBody::OAuthJson),
        (418, ErrorBody::Html),
    ];
    let runs: Vec<_> = rows.iter().enumerate().map(|(index, row)| (format!("wf-{index}"), row)).collect();
    for (run, (code, body)) in &runs {
        for (run, effect) in [(run.clone(), StopEffect::NoEffect), (format!("{run}x"), StopEffect::Immediate)] {
            fixture.add_run(a_run(&run), &run, [status(*code, effect, *body)]);
            fixture.env.create(a_stop(&run)).await;
        }
    }
    for (run, (code, body)) in &runs {
        let versions = fixture.wait_finished(run).await;
        let stop = versions.last().unwrap();
        assert_eq!(condition_lines(stop), STOPPED, "{code} {body:?}");
        // Two reads of an active run, and one more right before the request is repeated.
        assert_eq!(fixture.env.request_counts(run), (2, 1, 3), "{code} {body:?}");
        let retrying = |stop: &&WorkflowRunStop| ready(stop) == ("False".into(), "UnexpectedAnswer".into());
        let retry = versions.iter().find(retrying).unwrap();
        assert!(message(retry, ConditionType::Ready).contains("not in Amperity's format"));

        let run = format!("{run}x");
        let stop = fixture.wait_finished(&run).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), CONFIRMED, "{code} {body:?}");
        assert_eq!(fixture.env.request_counts(&run), (1, 1, 1), "{code} {body:?}");
    }
}

#[tokio::test]
async fn a_stop_with_a_late_effect_and_stale_reads_is_confirmed_after_a_gateway_504() {
    let fixture = Fixture::new().await;
    let late = StopEffect::Delayed(Duration::from_millis(600));
    let run = a_run("wf-1").stale_reads_for(Duration::from_millis(900));
    fixture.add_run(run, "wf-1", [status(504, late, ErrorBody::Html)]);
    fixture.env.create(a_stop("wf-1")).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), CONFIRMED);
    let (stops, effects, reads) = fixture.env.request_counts("wf-1");
    assert!((stops, effects) == (1, 1) && reads <= 2, "{reads} reads");
}

#[tokio::test]
async fn a_stop_fails_after_five_attempts_that_a_gateway_answered() {
    let fixture = Fixture::new().await;
    fixture.env.amperity.add_run(TENANT, a_run("wf-1"));
    fixture.env.amperity.always_on_stop("wf-1", status(404, StopEffect::NoEffect, ErrorBody::Html));
    create_with_status(&fixture, a_stop("wf-1"), &retryable_status(Reason::UnexpectedAnswer, 4)).await;
    let stop = fixture.env.wait_finished("wf-1").await;
    assert_eq!(condition_lines(&stop), UNEXPECTED_ANSWER);
    assert_eq!((stop_request(&stop).attempts, result(&stop)), (5, Some(StopResult::Failed)));
    assert_eq!(fixture.env.amperity.stops("wf-1"), 1);
}

#[tokio::test]
async fn a_stop_fails_if_a_gateway_answers_it_and_both_reads() {
    let fixture = Fixture::new().await;
    let rows = [
        ("wf-1", 404, 404, Reason::RunNotFound),
        ("wf-2", 403, 403, Reason::Rejected),
        ("wf-3", 409, 409, Reason::Rejected),
        ("wf-4", 404, 403, Reason::OutcomeUnknown),
    ];
    for (run, stopped, read, _) in rows {
        fixture.add_run(a_run(run), run, [status(stopped, StopEffect::NoEffect, ErrorBody::Html)]);
        fixture.env.amperity.always_on_read(run, status(read, StopEffect::NoEffect, ErrorBody::Html));
        fixture.env.create(a_stop(run)).await;
    }
    for (run, stopped, _, reason) in rows {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(ready(&stop), ("False".into(), reason.as_str().into()), "{stopped}");
        assert_eq!(fixture.env.request_counts(run), (1, 0, 2), "{stopped}");
    }
}

#[tokio::test]
async fn a_retry_reads_the_run_first_and_is_sent_only_if_the_run_is_still_active() {
    let fixture = Fixture::new().await;
    let stopping = a_run("wf-1").in_state("stopping").ends_on_its_own("canceled", Duration::from_secs(3));
    fixture.env.amperity.add_run(TENANT, stopping);
    fixture.env.amperity.add_run(TENANT, a_run("wf-2").ended("failed"));
    fixture.env.amperity.add_run(TENANT, a_run("wf-3"));
    fixture.env.amperity.add_run(TENANT, a_run("wf-4").unreadable(404));
    for run in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        create_with_status(&fixture, a_stop(run), &retryable_status(Reason::Unavailable, 1)).await;
    }
    let stop = fixture.env.wait_finished("wf-1").await;
    assert_eq!(
        (condition_lines(&stop), result(&stop)),
        (CONFIRMED.map(str::to_owned).to_vec(), Some(StopResult::Stopped))
    );
    let stop = fixture.env.wait_finished("wf-2").await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!((fixture.env.amperity.stops("wf-1"), fixture.env.amperity.stops("wf-2")), (0, 0));
    let stop = fixture.env.wait_finished("wf-3").await;
    assert_eq!(condition_lines(&stop), STOPPED, "a run that is still active is stopped");
    assert_eq!(fixture.env.request_counts("wf-3"), (1, 1, 1));
    let stop = fixture.env.wait_finished("wf-4").await;
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()), "a run that cannot be read is not stopped");
    assert_eq!(fixture.env.request_counts("wf-4"), (0, 0, 2));
}

#[tokio::test]
async fn a_retry_after_of_a_5xx_delays_only_its_own_resource() {
    let fixture = Fixture::new().await;
    let later = status(503, StopEffect::NoEffect, ErrorBody::Html).with_retry_after(RetryAfter::Seconds(4));
    fixture.add_run(a_run("wf-1"), "wf-1", [later]);
    fixture.add_run(ends_at_once("wf-2"), "wf-2", []);
    fixture.env.create(a_stop("wf-1")).await;
    fixture.env.wait_for_reason("wf-1", Reason::Unavailable).await;
    fixture.env.create(a_stop("wf-2")).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    let requests = fixture.env.amperity.requests();
    let first = |run: &str, kind: Kind| {
        requests.iter().find(|request| request.run_id.as_deref() == Some(run) && request.kind == kind).unwrap().at
    };
    let waited = first("wf-1", Kind::Read) - first("wf-1", Kind::Stop);
    assert!(Duration::from_secs(4) <= waited, "{waited:?}");
    assert!(first("wf-2", Kind::Stop) < first("wf-1", Kind::Read), "wf-2 must not wait for wf-1");
}

#[tokio::test]
async fn following_continues_after_one_gateway_answer_to_a_read() {
    let fixture = Fixture::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 302)] {
        fixture.add_run(a_run(run).stops_in(Duration::from_secs(4)), run, []);
        fixture.env.amperity.on_read(run, [status(code, StopEffect::NoEffect, ErrorBody::Html)]);
        fixture.env.create(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let versions = fixture.wait_finished(run).await;
        let stop = versions.last().unwrap();
        assert_eq!(condition_lines(stop), STOPPED);
        let mentions_read =
            |stop: &WorkflowRunStop| message(stop, ConditionType::Ready).contains("the last read was answered");
        assert!(versions.iter().any(mentions_read), "{run}: {versions:#?}");
    }
}

#[tokio::test]
async fn forbidden_stops_do_not_affect_the_reads_or_the_status_of_an_accepted_stop() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(6)), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    fixture.env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    let before = fixture.env.amperity.reads("wf-1");
    for index in 2..=6 {
        let run = format!("wf-{index}");
        fixture.env.amperity.add_run(TENANT, a_run(&run));
        fixture.env.amperity.always_on_stop(&run, status(403, StopEffect::NoEffect, ErrorBody::ErrorJson));
        fixture.env.create(a_stop(&run)).await;
    }
    fixture.env.wait_for_reason("wf-6", Reason::Forbidden).await;
    let versions = fixture.wait_finished("wf-1").await;
    assert_eq!(condition_lines(versions.last().unwrap()), STOPPED);
    assert!(before < fixture.env.amperity.reads("wf-1"));
    assert!(versions.iter().all(|stop| ready(stop).1 != "Forbidden"), "{versions:#?}");
}

#[tokio::test]
async fn a_read_refused_with_an_old_token_gets_a_new_token_before_the_status_reports_it() {
    let fixture = Fixture::new().await;
    fixture.env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(3)), "wf-1", []);
    fixture.env.create(a_stop_with_client("wf-1")).await;
    fixture.env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    fixture.env.amperity.set_tokens(["good-token"]);
    let versions = fixture.wait_finished("wf-1").await;
    assert_eq!(condition_lines(versions.last().unwrap()), STOPPED);
    assert_eq!(token_requests(&fixture), 2);
    assert!(versions.iter().all(|stop| ready(stop).1 != "Unauthorized"), "{versions:#?}");
}

#[tokio::test]
async fn a_gateway_answer_at_the_token_endpoint_is_not_reported_as_wrong_credentials() {
    let fixture = Fixture::new().await;
    fixture.env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    fixture.env.amperity.on_token([status(403, StopEffect::NoEffect, ErrorBody::Html)]);
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.env.create(a_stop_with_client("wf-1")).await;
    let versions = fixture.wait_finished("wf-1").await;
    assert_eq!(condition_lines(versions.last().unwrap()), STOPPED);
    assert!(versions.iter().any(|stop| ready(stop).1 == "Unavailable"), "{versions:#?}");
    assert!(versions.iter().all(|stop| ready(stop).1 != "Unauthorized"), "{versions:#?}");

    fixture.env.amperity.set_client("another", "good-secret");
    fixture.env.put_secret("wrong", &[("clientId", "good-client"), ("clientSecret", "wrong-secret")]).await;
    fixture.add_run(a_run("wf-2"), "wf-2", []);
    let mut stop = a_stop("wf-2");
    stop.spec.credentials_secret_ref.name = "wrong".to_owned();
    fixture.env.create(stop).await;
    fixture.env.wait_for_reason("wf-2", Reason::Unauthorized).await;
}

#[tokio::test]
async fn an_accepted_stop_is_recorded_even_if_its_answer_holds_invalid_text_or_deep_json() {
    let fixture = Fixture::new().await;
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let run =
        |id: &str, rest: &str| format!(r#"{{"id":"{id}","state":"canceled","task_instances":[],{rest}}}"#).into_bytes();
    let mut invalid = run("wf-1", r#""name":"X""#);
    let at = invalid.iter().position(|byte| *byte == b'X').unwrap();
    invalid[at] = 0xff;
    let rows = [
        ("wf-1", invalid, Some("\u{fffd}")),
        ("wf-2", run("wf-2", r#""name":"a\ud800b""#), Some("a\u{fffd}b")),
        ("wf-3", run("wf-3", "\"name\":\"a\u{1}b\""), Some("a\u{fffd}b")),
        ("wf-4", run("wf-4", r#""name":"a\nb""#), Some("a\nb")),
        ("wf-5", run("wf-5", &format!(r#""name":"n","error":{{"data":{}}}"#, deep(2000))), Some("n")),
        ("wf-6", run("wf-6", &format!(r#""name":"n","error":{{"data":{}}}"#, deep(30))), Some("n")),
        ("wf-7", run("wf-7", r#""name":"n","huge":1e999"#), Some("n")),
        ("wf-8", run("wf-8", &format!(r#""name":{}"#, deep(200))), None),
    ];
    for (id, body, _) in &rows {
        fixture.add_run(a_run(id), id, [Fault::Raw { code: 200, body: body.clone(), effect: StopEffect::Immediate }]);
        fixture.env.create(a_stop(id)).await;
    }
    for (id, _, name) in &rows {
        let stop = fixture.wait_finished(id).await.pop().unwrap();
        assert_eq!(condition_lines(&stop), STOPPED, "{id}");
        assert_eq!(fixture.env.request_counts(id), (1, 1, 0), "{id}");
        assert_eq!(stop.status.unwrap().run.unwrap().name.as_deref(), *name, "{id}");
    }
    // The stored statuses can be deserialized again.
    let listed = fixture.env.stops().list(&Default::default()).await.unwrap();
    assert_eq!(listed.items.len(), rows.len());
}

/// The status of a stop that was accepted two hours ago.
fn status_accepted_two_hours_ago() -> WorkflowRunStopStatus {
    let accepted = now() - Duration::from_secs(7200);
    let mut status = retryable_status(Reason::StopAccepted, 1);
    status.conditions[0].status = ConditionStatus::True.as_str().to_owned();
    status.stop_request.as_mut().unwrap().accepted_time = Some(Time(accepted.round(jiff::Unit::Second).unwrap()));
    status
}

#[tokio::test]
async fn a_follow_timeout_that_expired_without_an_operator_is_followed_by_one_read() {
    let fixture = Fixture::new().await;
    fixture.env.amperity.add_run(TENANT, a_run("wf-1").ended("canceled"));
    fixture.env.amperity.add_run(TENANT, a_run("wf-2").in_state("stopping"));
    fixture.env.amperity.add_run(TENANT, a_run("wf-3").in_state("stopping"));
    fixture.env.amperity.on_read("wf-3", [status(503, StopEffect::NoEffect, ErrorBody::Html)]);
    for run in ["wf-1", "wf-2", "wf-3"] {
        let mut stop = a_stop(run);
        stop.spec.follow_timeout_seconds = 60;
        create_with_status(&fixture, stop, &status_accepted_two_hours_ago()).await;
    }
    let rows = [
        ("wf-1", "True", Reason::RunStopped, StopResult::Stopped),
        ("wf-2", "False", Reason::RunStillActive, StopResult::StillActive),
        ("wf-3", "False", Reason::RunStillActive, StopResult::StillActive),
    ];
    for (run, status, reason, expected) in rows {
        let stop = fixture.env.wait_finished(run).await;
        assert_eq!(ready(&stop), (status.into(), reason.as_str().into()), "{run}");
        assert_eq!(result(&stop), Some(expected));
        assert_eq!(fixture.env.request_counts(run), (0, 0, 1), "{run}");
    }
}

#[tokio::test]
async fn a_late_answer_to_a_stop_that_another_replica_finished_is_reported_and_not_recorded() {
    let fixture = Fixture::new().await;
    let hold = fixture.env.amperity.hold_stops(lab::simulator::HoldPoint::AfterEffect);
    let mut stop = a_stop("wf-1");
    stop.spec.reason = Some("the wrong file was loaded".to_owned());
    fixture.add_run(Run::new("wf-1"), "wf-1", []);
    fixture.env.create(stop).await;
    fixture.env.amperity.wait_until(|requests| !requests.is_empty()).await;
    let claimed = fixture.env.wait_until("wf-1", "was claimed", |stop| stop.claim().is_some()).await;
    let mut ended = claimed.status.unwrap();
    ended.result = Some(StopResult::Unknown);
    ended.completion_time = Some(Time("2026-11-26T00:00:00Z".parse().unwrap()));
    fixture.env.write_status("wf-1", &ended).await;
    hold.release();
    let line = fixture.operator.wait_for_log("late_answer").await;
    for part in ["\"answer\":\"accepted\"", "\"http_status\":200", "\"attempts\":1", "the wrong file was loaded"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let events: kube::Api<k8s_openapi::api::events::v1::Event> =
        kube::Api::namespaced(fixture.env.client.clone(), &fixture.env.namespace);
    let reported = async {
        loop {
            let events = events.list(&Default::default()).await.unwrap().items;
            let note = |event: &k8s_openapi::api::events::v1::Event| event.note.clone().unwrap_or_default();
            if let Some(event) = events.iter().find(|event| note(event).starts_with("A late answer")) {
                return (event.reason.clone(), event.type_.clone(), note(event));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (reason, kind, note) = tokio::time::timeout(Duration::from_secs(30), reported).await.unwrap();
    assert_eq!((reason.as_deref(), kind.as_deref()), (Some("StopAccepted"), Some("Warning")));
    assert!(note.ends_with("Requested because: the wrong file was loaded"), "{note}");
    let stop = fixture.env.get("wf-1").await;
    assert_eq!(stop.status.unwrap(), ended);
    assert_eq!(fixture.env.amperity.stops("wf-1"), 1);
}
