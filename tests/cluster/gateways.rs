//! What a gateway or proxy on the way may answer in the place of Amperity, and what the operator concludes from it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lab::simulator::{ErrorBody, Fault, Kind, RetryAfter, Run, Took};
use serde_json::json;
use workflow_run_stop_api::{
    StopRequest, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{self, ConditionStatus, ConditionType, Reason, StopResult},
};

use crate::answers::{Bench, CONFIRMED, NOT_AMPERITYS_ANSWER, STOPPED, a_run, status, tokens_asked_for, with_client};
use crate::clock::now;
use crate::support::{TENANT, a_stop, ends_at_once, message, ready, request, told};

const OUTCOME_UNKNOWN: [&str; 4] = [
    "Ready: False OutcomeUnknown",
    "Stalled: True OutcomeUnknown",
    "StopAccepted: Unknown OutcomeUnknown",
    "RunEnded: Unknown OutcomeUnknown",
];

fn result(stop: &WorkflowRunStop) -> Option<StopResult> {
    stop.status.as_ref().and_then(|status| status.result)
}

/// A status in which a stop request was dropped for this reason, so that a further one is due.
fn dropped(reason: Reason, attempts: i32) -> WorkflowRunStopStatus {
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

/// Applies a stop that has this status when it may begin.
async fn apply_with_status(bench: &Bench, mut stop: WorkflowRunStop, status: &WorkflowRunStopStatus) {
    stop.spec.suspend = true;
    let name = bench.place.apply(stop).await.name().to_owned();
    bench.place.put_status(&name, status).await;
    bench.place.change(&name, json!({"suspend": false})).await.unwrap();
}

#[tokio::test]
async fn a_gateways_error_for_a_run_that_cannot_be_read_is_never_followed_by_a_second_request() {
    let bench = Bench::new().await;
    let rows = [
        ("wf-1", 504, ErrorBody::Html, Took::Effect),
        ("wf-2", 502, ErrorBody::Empty, Took::Late(Duration::from_millis(700))),
        ("wf-3", 500, ErrorBody::OtherJson, Took::Effect),
        ("wf-4", 408, ErrorBody::Html, Took::Effect),
        ("wf-5", 499, ErrorBody::Empty, Took::Effect),
        ("wf-6", 503, ErrorBody::ErrorJson, Took::NoEffect),
    ];
    for (run, code, body, effect) in rows {
        bench.place.amperity.add_run(TENANT, a_run(run).unreadable(403));
        bench.place.amperity.always_on_stop(run, status(code, effect, body));
        bench.place.apply(a_stop(run)).await;
    }
    for (run, code, _, effect) in rows {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(told(&stop), OUTCOME_UNKNOWN, "{code}");
        assert_eq!(result(&stop), Some(StopResult::Unknown));
        let effects = usize::from(effect != Took::NoEffect);
        assert_eq!(bench.place.sent(run), (1, effects, 2), "{code}");
    }
}

#[tokio::test]
async fn a_gateways_4xx_proves_nothing_and_reading_the_run_decides() {
    let bench = Bench::new().await;
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
        for (run, effect) in [(run.clone(), Took::NoEffect), (format!("{run}x"), Took::Effect)] {
            bench.add(a_run(&run), &run, [status(*code, effect, *body)]);
            bench.place.apply(a_stop(&run)).await;
        }
    }
    for (run, (code, body)) in &runs {
        let versions = bench.finished(run).await;
        let stop = versions.last().unwrap();
        assert_eq!(told(stop), STOPPED, "{code} {body:?}");
        // Active twice, and once more right before the request is repeated.
        assert_eq!(bench.place.sent(run), (2, 1, 3), "{code} {body:?}");
        let tried_again = |stop: &&WorkflowRunStop| ready(stop) == ("False".into(), "UnexpectedAnswer".into());
        let again = versions.iter().find(tried_again).unwrap();
        assert!(message(again, ConditionType::Ready).contains("not in Amperity's format"));

        let run = format!("{run}x");
        let stop = bench.finished(&run).await.pop().unwrap();
        assert_eq!(told(&stop), CONFIRMED, "{code} {body:?}");
        assert_eq!(bench.place.sent(&run), (1, 1, 1), "{code} {body:?}");
    }
}

#[tokio::test]
async fn an_answer_of_a_gateway_that_takes_effect_late_and_is_read_late_is_confirmed() {
    let bench = Bench::new().await;
    let late = Took::Late(Duration::from_millis(600));
    let run = a_run("wf-1").stale_for(Duration::from_millis(900));
    bench.add(run, "wf-1", [status(504, late, ErrorBody::Html)]);
    bench.place.apply(a_stop("wf-1")).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), CONFIRMED);
    let (stops, effects, reads) = bench.place.sent("wf-1");
    assert!((stops, effects) == (1, 1) && reads <= 2, "{reads} reads");
}

#[tokio::test]
async fn what_a_gateway_answers_for_the_fifth_time_is_not_tried_a_sixth_time() {
    let bench = Bench::new().await;
    bench.place.amperity.add_run(TENANT, a_run("wf-1"));
    bench.place.amperity.always_on_stop("wf-1", status(404, Took::NoEffect, ErrorBody::Html));
    apply_with_status(&bench, a_stop("wf-1"), &dropped(Reason::UnexpectedAnswer, 4)).await;
    let stop = bench.place.finished("wf-1").await;
    assert_eq!(told(&stop), NOT_AMPERITYS_ANSWER);
    assert_eq!((request(&stop).attempts, result(&stop)), (5, Some(StopResult::Failed)));
    assert_eq!(bench.place.amperity.stops("wf-1"), 1);
}

#[tokio::test]
async fn what_a_gateway_answers_to_the_stop_and_to_both_reads_is_the_end() {
    let bench = Bench::new().await;
    let rows = [
        ("wf-1", 404, 404, Reason::RunNotFound),
        ("wf-2", 403, 403, Reason::Rejected),
        ("wf-3", 409, 409, Reason::Rejected),
        ("wf-4", 404, 403, Reason::OutcomeUnknown),
    ];
    for (run, stopped, read, _) in rows {
        bench.add(a_run(run), run, [status(stopped, Took::NoEffect, ErrorBody::Html)]);
        bench.place.amperity.always_on_read(run, status(read, Took::NoEffect, ErrorBody::Html));
        bench.place.apply(a_stop(run)).await;
    }
    for (run, stopped, _, reason) in rows {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(ready(&stop), ("False".into(), reason.as_str().into()), "{stopped}");
        assert_eq!(bench.place.sent(run), (1, 0, 2), "{stopped}");
    }
}

#[tokio::test]
async fn a_run_that_came_to_its_stop_since_the_last_request_is_not_asked_to_stop_again() {
    let bench = Bench::new().await;
    let stopping = a_run("wf-1").in_state("stopping").ends_on_its_own("canceled", Duration::from_secs(3));
    bench.place.amperity.add_run(TENANT, stopping);
    bench.place.amperity.add_run(TENANT, a_run("wf-2").ended("failed"));
    bench.place.amperity.add_run(TENANT, a_run("wf-3"));
    bench.place.amperity.add_run(TENANT, a_run("wf-4").unreadable(404));
    for run in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        apply_with_status(&bench, a_stop(run), &dropped(Reason::Unavailable, 1)).await;
    }
    let stop = bench.place.finished("wf-1").await;
    assert_eq!((told(&stop), result(&stop)), (CONFIRMED.map(str::to_owned).to_vec(), Some(StopResult::Stopped)));
    let stop = bench.place.finished("wf-2").await;
    assert_eq!(ready(&stop), ("True".into(), "RunEndedOtherwise".into()));
    assert_eq!((bench.place.amperity.stops("wf-1"), bench.place.amperity.stops("wf-2")), (0, 0));
    let stop = bench.place.finished("wf-3").await;
    assert_eq!(told(&stop), STOPPED, "one that is still active is");
    assert_eq!(bench.place.sent("wf-3"), (1, 1, 1));
    let stop = bench.place.finished("wf-4").await;
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()), "one that cannot be read is not");
    assert_eq!(bench.place.sent("wf-4"), (0, 0, 2));
}

#[tokio::test]
async fn a_retry_after_of_a_5xx_delays_that_resource_and_no_other() {
    let bench = Bench::new().await;
    let later = status(503, Took::NoEffect, ErrorBody::Html).with_retry_after(RetryAfter::Seconds(4));
    bench.add(a_run("wf-1"), "wf-1", [later]);
    bench.add(ends_at_once("wf-2"), "wf-2", []);
    bench.place.apply(a_stop("wf-1")).await;
    bench.place.reason("wf-1", Reason::Unavailable).await;
    bench.place.apply(a_stop("wf-2")).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    let requests = bench.place.amperity.requests();
    let first = |run: &str, kind: Kind| {
        requests.iter().find(|request| request.run_id.as_deref() == Some(run) && request.kind == kind).unwrap().at
    };
    let waited = first("wf-1", Kind::Read) - first("wf-1", Kind::Stop);
    assert!(Duration::from_secs(4) <= waited, "{waited:?}");
    assert!(first("wf-2", Kind::Stop) < first("wf-1", Kind::Read), "the other one did not wait");
}

#[tokio::test]
async fn one_gateways_answer_to_one_read_does_not_end_the_following() {
    let bench = Bench::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 302)] {
        bench.add(a_run(run).stops_in(Duration::from_secs(4)), run, []);
        bench.place.amperity.on_read(run, [status(code, Took::NoEffect, ErrorBody::Html)]);
        bench.place.apply(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let versions = bench.finished(run).await;
        let stop = versions.last().unwrap();
        assert_eq!(told(stop), STOPPED);
        let noted = |stop: &WorkflowRunStop| message(stop, ConditionType::Ready).contains("the last read was answered");
        assert!(versions.iter().any(noted), "{run}: {versions:#?}");
    }
}

#[tokio::test]
async fn forbidden_stops_close_neither_the_reads_nor_the_truth_of_an_accepted_one() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(6)), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    bench.place.reason("wf-1", Reason::FollowingRun).await;
    let before = bench.place.amperity.reads("wf-1");
    for index in 2..=6 {
        let run = format!("wf-{index}");
        bench.place.amperity.add_run(TENANT, a_run(&run));
        bench.place.amperity.always_on_stop(&run, status(403, Took::NoEffect, ErrorBody::ErrorJson));
        bench.place.apply(a_stop(&run)).await;
    }
    bench.place.reason("wf-6", Reason::Forbidden).await;
    let versions = bench.finished("wf-1").await;
    assert_eq!(told(versions.last().unwrap()), STOPPED);
    assert!(before < bench.place.amperity.reads("wf-1"));
    assert!(versions.iter().all(|stop| ready(stop).1 != "Forbidden"), "{versions:#?}");
}

#[tokio::test]
async fn a_read_that_is_refused_with_an_old_token_fetches_a_new_one_before_it_says_anything() {
    let bench = Bench::new().await;
    bench.place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(3)), "wf-1", []);
    bench.place.apply(with_client("wf-1")).await;
    bench.place.reason("wf-1", Reason::FollowingRun).await;
    bench.place.amperity.set_tokens(["good-token"]);
    let versions = bench.finished("wf-1").await;
    assert_eq!(told(versions.last().unwrap()), STOPPED);
    assert_eq!(tokens_asked_for(&bench), 2);
    assert!(versions.iter().all(|stop| ready(stop).1 != "Unauthorized"), "{versions:#?}");
}

#[tokio::test]
async fn a_gateway_before_the_token_endpoint_does_not_make_the_client_wrong() {
    let bench = Bench::new().await;
    bench.place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    bench.place.amperity.on_token([status(403, Took::NoEffect, ErrorBody::Html)]);
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.place.apply(with_client("wf-1")).await;
    let versions = bench.finished("wf-1").await;
    assert_eq!(told(versions.last().unwrap()), STOPPED);
    assert!(versions.iter().any(|stop| ready(stop).1 == "Unavailable"), "{versions:#?}");
    assert!(versions.iter().all(|stop| ready(stop).1 != "Unauthorized"), "{versions:#?}");

    bench.place.amperity.set_client("another", "good-secret");
    bench.place.put_secret("wrong", &[("clientId", "good-client"), ("clientSecret", "wrong-secret")]).await;
    bench.add(a_run("wf-2"), "wf-2", []);
    let mut stop = a_stop("wf-2");
    stop.spec.credentials_secret_ref.name = "wrong".to_owned();
    bench.place.apply(stop).await;
    bench.place.reason("wf-2", Reason::Unauthorized).await;
}

#[tokio::test]
async fn an_accepted_stop_is_not_lost_whatever_else_its_answer_holds() {
    let bench = Bench::new().await;
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
        bench.add(a_run(id), id, [Fault::Raw { code: 200, body: body.clone(), effect: Took::Effect }]);
        bench.place.apply(a_stop(id)).await;
    }
    for (id, _, name) in &rows {
        let stop = bench.finished(id).await.pop().unwrap();
        assert_eq!(told(&stop), STOPPED, "{id}");
        assert_eq!(bench.place.sent(id), (1, 1, 0), "{id}");
        assert_eq!(stop.status.unwrap().run.unwrap().name.as_deref(), *name, "{id}");
    }
    // What is stored can be listed again, by the operator as well.
    let listed = bench.place.stops().list(&Default::default()).await.unwrap();
    assert_eq!(listed.items.len(), rows.len());
}

/// A stop that was accepted two hours ago and was to be followed for a minute.
fn accepted_long_ago() -> WorkflowRunStopStatus {
    let accepted = now() - Duration::from_secs(7200);
    let mut status = dropped(Reason::StopAccepted, 1);
    status.conditions[0].status = ConditionStatus::True.as_str().to_owned();
    status.stop_request.as_mut().unwrap().accepted_time = Some(Time(accepted.round(jiff::Unit::Second).unwrap()));
    status
}

#[tokio::test]
async fn a_follow_timeout_that_passed_while_no_operator_worked_gets_one_last_read() {
    let bench = Bench::new().await;
    bench.place.amperity.add_run(TENANT, a_run("wf-1").ended("canceled"));
    bench.place.amperity.add_run(TENANT, a_run("wf-2").in_state("stopping"));
    bench.place.amperity.add_run(TENANT, a_run("wf-3").in_state("stopping"));
    bench.place.amperity.on_read("wf-3", [status(503, Took::NoEffect, ErrorBody::Html)]);
    for run in ["wf-1", "wf-2", "wf-3"] {
        let mut stop = a_stop(run);
        stop.spec.follow_timeout_seconds = 60;
        apply_with_status(&bench, stop, &accepted_long_ago()).await;
    }
    let rows = [
        ("wf-1", "True", Reason::RunStopped, StopResult::Stopped),
        ("wf-2", "False", Reason::RunStillActive, StopResult::StillActive),
        ("wf-3", "False", Reason::RunStillActive, StopResult::StillActive),
    ];
    for (run, truth, reason, expected) in rows {
        let stop = bench.place.finished(run).await;
        assert_eq!(ready(&stop), (truth.into(), reason.as_str().into()), "{run}");
        assert_eq!(result(&stop), Some(expected));
        assert_eq!(bench.place.sent(run), (0, 0, 1), "{run}");
    }
}

#[tokio::test]
async fn a_late_answer_to_a_stop_that_another_replica_has_ended_is_reported_and_the_record_stays() {
    let bench = Bench::new().await;
    let hold = bench.place.amperity.hold_stops(lab::simulator::HoldPoint::AfterEffect);
    let mut stop = a_stop("wf-1");
    stop.spec.reason = Some("the wrong file was loaded".to_owned());
    bench.add(Run::new("wf-1"), "wf-1", []);
    bench.place.apply(stop).await;
    bench.place.amperity.wait_until(|requests| !requests.is_empty()).await;
    let claimed = bench.place.until("wf-1", "was claimed", |stop| stop.claim().is_some()).await;
    let mut ended = claimed.status.unwrap();
    ended.result = Some(StopResult::Unknown);
    ended.completion_time = Some(Time("2026-11-26T00:00:00Z".parse().unwrap()));
    bench.place.put_status("wf-1", &ended).await;
    hold.release();
    let line = bench.operator.says("late_answer").await;
    for part in ["\"answer\":\"accepted\"", "\"http_status\":200", "\"attempts\":1", "the wrong file was loaded"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let events: kube::Api<k8s_openapi::api::events::v1::Event> =
        kube::Api::namespaced(bench.place.client.clone(), &bench.place.namespace);
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
    let stop = bench.place.get("wf-1").await;
    assert_eq!(stop.status.unwrap(), ended);
    assert_eq!(bench.place.amperity.stops("wf-1"), 1);
}
