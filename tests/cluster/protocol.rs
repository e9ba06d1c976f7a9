//! The protocol around the answer: claims of others, crashes, deadlines, following, suspending, and a name used twice.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use lab::simulator::{ErrorBody, Fault, HoldPoint, Kind, Recorded, RetryAfter, Run, Took};
use serde_json::json;
use tokio::time::Instant;
use workflow_run_stop_api::{
    Claim, StopRequest, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{ConditionType, Reason, StopResult},
};

use crate::answers::{Bench, CONFIRMED, STOPPED, a_run, assert_sound, was_told};
use crate::clock::now;
use crate::support::{Place, TENANT, a_stop, condition, ready, request, told};

/// How long a claim of somebody else has to be observed: its validity, the request timeout, the settle time.
const QUIET: Duration = Duration::from_secs(5 + 2 + 1);

/// Creates the stop of `wf-1` and gives it a claim of another replica, made so long after the creation.
async fn claimed_by_another(place: &Place, ago: Duration) {
    let created = place.apply(a_stop("wf-1")).await.metadata.creation_timestamp.unwrap().0;
    let time = Time(created.checked_sub(ago).unwrap());
    let claim = Claim { id: "of-another".to_owned(), holder: "another".to_owned(), time, ended: None };
    let request = StopRequest { attempts: 1, claim: Some(claim), ..StopRequest::default() };
    place.put_status("wf-1", &WorkflowRunStopStatus { stop_request: Some(request), ..Default::default() }).await;
}

fn kinds(requests: &[Recorded]) -> Vec<Kind> {
    requests.iter().map(|request| request.kind).collect()
}

#[tokio::test]
async fn a_claim_of_another_is_left_alone_until_its_request_has_surely_had_its_time() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1"));
    claimed_by_another(&place, Duration::ZERO).await;
    let before = Instant::now();
    let bench = Bench::at(place).await;
    let stop = bench.history.until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!((request(&stop).attempts, request(&stop).claim), (2, None));
    let requests = bench.place.amperity.requests();
    assert_eq!(kinds(&requests), [Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
    assert!(QUIET <= requests[0].at - before, "{:?}", requests[0].at - before);
    assert!(Duration::from_secs(1) <= requests[1].at - requests[0].at, "the settle time lies between the two reads");
}

#[tokio::test]
async fn a_claim_that_looks_old_is_observed_as_long_as_any_other() {
    // A wall clock that jumped ahead makes a fresh claim look like this.
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1"));
    claimed_by_another(&place, Duration::from_secs(600)).await;
    let before = Instant::now();
    let bench = Bench::at(place).await;
    bench.place.amperity.wait_until(|requests| !requests.is_empty()).await;
    assert!(QUIET <= before.elapsed(), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_claim_that_stays_open_for_an_hour_ends_as_unknown_although_the_api_is_away() {
    let mut place = Place::new().await;
    place.amperity.go_offline().await;
    claimed_by_another(&place, Duration::from_secs(3600)).await;
    let bench = Bench::at(place).await;
    let stop = bench.history.until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()));
    assert_eq!(stop.status.as_ref().unwrap().result, Some(StopResult::Unknown));
    assert_eq!(request(&stop).claim.unwrap().id, "of-another");
}

#[tokio::test]
async fn a_claim_of_long_ago_whose_run_is_active_is_not_given_up_before_the_second_read() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1"));
    claimed_by_another(&place, Duration::from_secs(7200)).await;
    let bench = Bench::at(place).await;
    let stop = bench.history.until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(kinds(&bench.place.amperity.requests()), [Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
}

#[tokio::test]
async fn an_end_is_decided_by_the_spec_as_it_is_when_the_answer_is_stored() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1"));
    place.amperity.on_stop("wf-1", [Fault::TooManyRequests { retry_after: RetryAfter::None }]);
    let hold = place.amperity.hold_stops(HoldPoint::BeforeEffect);
    let mut stop = a_stop("wf-1");
    stop.spec.stop_deadline_seconds = Some(3);
    let created = place.apply(stop).await.metadata.creation_timestamp.unwrap().0;
    let _operator = place.operator_with(&["--request-timeout", "20s"]).await;
    place.amperity.wait_until(|requests| requests.len() == 1).await;
    // The deadline passes while the request is in flight, and is raised.
    let left = (created + Duration::from_secs(4)).duration_since(now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    place.change("wf-1", json!({"stopDeadlineSeconds": 600})).await.unwrap();
    hold.release();
    let stop = place.finished("wf-1").await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(place.sent("wf-1"), (2, 1, 0));
}

#[tokio::test]
async fn a_claim_of_another_whose_run_is_stopped_needs_no_request_of_our_own() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1").ended("canceled"));
    claimed_by_another(&place, Duration::from_secs(600)).await;
    let bench = Bench::at(place).await;
    let stop = bench.history.until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(told(&stop), CONFIRMED);
    assert_eq!((request(&stop).attempts, request(&stop).claim), (1, None));
    assert_eq!(bench.place.sent("wf-1"), (0, 0, 1));
}

#[tokio::test]
async fn a_claim_of_another_whose_run_cannot_be_read_ends_as_unknown_and_nothing_is_sent() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1").unreadable(404));
    claimed_by_another(&place, Duration::from_secs(600)).await;
    let bench = Bench::at(place).await;
    let stop = bench.history.until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()));
    assert_eq!(condition(&stop, ConditionType::StopAccepted).0, "Unknown");
    assert_eq!(request(&stop).claim.unwrap().id, "of-another");
    assert_eq!(bench.place.sent("wf-1"), (0, 0, 2));
}

#[tokio::test]
async fn reading_is_repeated_until_it_tells_what_became_of_the_request() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", [Fault::Reset(Took::Effect)]);
    let status = |code| Fault::Status { code, effect: Took::NoEffect, body: ErrorBody::ErrorJson };
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(1) };
    let unclear = [status(503), status(401), limited, Fault::Reset(Took::NoEffect)];
    bench.place.amperity.on_read("wf-1", unclear);
    bench.place.apply(a_stop("wf-1")).await;
    let versions = bench.finished("wf-1").await;
    let stop = versions.last().unwrap();
    assert_eq!(told(stop), CONFIRMED);
    assert_eq!((request(stop).attempts, request(stop).claim), (1, None));
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 5));
    for reason in ["Unavailable", "Unauthorized", "RateLimited"] {
        assert!(versions.iter().any(|stop| ready(stop) == ("False".into(), reason.into())), "{reason}: {versions:#?}");
    }
}

/// The operator is killed while its stop is held at this point; what has arrived takes its course, and another
/// process goes on.
async fn killed_while_held_at(point: HoldPoint, faults: impl IntoIterator<Item = Fault>) -> (Bench, WorkflowRunStop) {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", faults);
    let hold = bench.place.amperity.hold_stops(point);
    bench.place.apply(a_stop("wf-1")).await;
    bench.place.amperity.wait_until(|requests| requests.len() == 1).await;
    let Bench { place, operator, history } = bench;
    operator.kill().await;
    let held = place.get("wf-1").await;
    assert!(request(&held).claim.is_some(), "no request without a stored claim");
    assert_eq!(condition(&held, ConditionType::StopAccepted).0, "Unknown");
    hold.release();
    let operator = place.operator().await;
    let bench = Bench { place, operator, history };
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(bench.place.amperity.effects("wf-1"), 1);
    assert_eq!(request(&stop).claim, None);
    (bench, stop)
}

#[tokio::test]
async fn a_kill_before_the_effect_leaves_one_request_and_one_effect() {
    let (bench, stop) = killed_while_held_at(HoldPoint::BeforeEffect, []).await;
    assert_eq!(told(&stop), CONFIRMED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 1));
    assert_eq!(request(&stop).attempts, 1);
}

#[tokio::test]
async fn a_kill_after_the_effect_leaves_one_request_and_one_effect() {
    let (bench, stop) = killed_while_held_at(HoldPoint::AfterEffect, []).await;
    assert_eq!(told(&stop), CONFIRMED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 1));
    assert_eq!(request(&stop).attempts, 1);
}

#[tokio::test]
async fn a_kill_whose_request_has_no_effect_is_made_good_after_two_reads() {
    let (bench, stop) = killed_while_held_at(HoldPoint::BeforeEffect, [Fault::Reset(Took::NoEffect)]).await;
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(request(&stop).attempts, 2);
    let requests = bench.place.amperity.requests();
    assert_eq!(kinds(&requests), [Kind::Stop, Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
    assert!(QUIET <= requests[1].at - requests[0].at, "{:?}", requests[1].at - requests[0].at);
}

#[tokio::test]
async fn a_wait_for_the_next_attempt_outlives_a_restart() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(4) }]);
    bench.place.apply(a_stop("wf-1")).await;
    let limited = bench.place.reason("wf-1", Reason::RateLimited).await;
    let next = request(&limited).next_attempt_time.unwrap().0;
    let Bench { place, operator, history } = bench;
    operator.kill().await;
    let operator = place.operator().await;
    let bench = Bench { place, operator, history };
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (2, 1, 0));
    let requests = bench.place.amperity.requests();
    assert!(SystemTime::from(next) <= requests[1].wall, "{next} was not waited for: {:?}", requests[1].wall);
    assert!(Duration::from_secs(4) <= requests[1].at - requests[0].at, "{:?}", requests[1].at - requests[0].at);
}

#[tokio::test]
async fn a_followed_run_is_not_stopped_again_after_a_restart() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(6)), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    let following = bench.place.reason("wf-1", Reason::FollowingRun).await;
    let Bench { place, operator, history } = bench;
    operator.kill().await;
    let operator = place.operator().await;
    let bench = Bench { place, operator, history };
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(request(&stop), StopRequest { next_attempt_time: None, ..request(&following) });
    assert_eq!((bench.place.amperity.stops("wf-1"), bench.place.amperity.effects("wf-1")), (1, 1));
}

#[tokio::test]
async fn a_run_that_ends_by_itself_after_the_acceptance_is_told_as_such() {
    let bench = Bench::new().await;
    let run = a_run("wf-1").stops_in(Duration::from_secs(60)).ends_on_its_own("succeeded", Duration::from_secs(3));
    bench.add(run, "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(
        told(&stop),
        ["Ready: True RunEndedOtherwise", "StopAccepted: True StopAccepted", "RunEnded: True RunEndedOtherwise"]
    );
    assert_eq!(bench.place.amperity.stops("wf-1"), 1);
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn a_run_that_cannot_be_read_after_the_acceptance_is_stopped_all_the_same() {
    let bench = Bench::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 405)] {
        bench.add(a_run(run).stops_in(Duration::from_secs(60)).unreadable(code), run, []);
        bench.place.apply(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let stop = bench.finished(run).await.pop().unwrap();
        assert_eq!(ready(&stop), ("True".into(), "RunUnreadable".into()));
        assert_eq!(condition(&stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()));
        assert_ne!(condition(&stop, ConditionType::RunEnded).0, "True");
        assert_eq!(bench.place.sent(run), (1, 1, 2), "unreadable twice, the settle time apart");
        assert_eq!(stop.status.unwrap().state.as_deref(), Some("stopping"));
    }
}

#[tokio::test]
async fn a_read_that_fails_for_a_while_does_not_end_the_following() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(1)), "wf-1", []);
    let unavailable = |code| Fault::Status { code, effect: Took::NoEffect, body: ErrorBody::Html };
    bench.place.amperity.on_read("wf-1", [unavailable(503), Fault::Reset(Took::NoEffect)]);
    bench.place.apply(a_stop("wf-1")).await;
    let versions = bench.finished("wf-1").await;
    assert_eq!(told(versions.last().unwrap()), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 3));
    let failing = [
        "Ready: False Unavailable",
        "Reconciling: True Unavailable",
        "StopAccepted: True StopAccepted",
        "RunEnded: False Unavailable",
    ];
    assert!(was_told(&versions, &failing), "{versions:#?}");
}

#[tokio::test]
async fn a_run_that_is_not_to_be_followed_is_never_read() {
    let bench = Bench::new().await;
    bench.add(Run::new("wf-1").stops_in(Duration::from_secs(60)), "wf-1", []);
    bench.add(Run::new("wf-2"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        let mut stop = a_stop(run);
        stop.spec.follow_timeout_seconds = 0;
        bench.place.apply(stop).await;
    }
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(
        told(&stop),
        ["Ready: True StopAccepted", "StopAccepted: True StopAccepted", "RunEnded: False StopAccepted"]
    );
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("stopping"));
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
    assert_eq!(told(bench.finished("wf-2").await.last().unwrap()), STOPPED);
    assert_eq!(bench.place.sent("wf-2"), (1, 1, 0));
}

#[tokio::test]
async fn a_run_that_stays_stopping_is_followed_until_the_time_is_over() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(600)), "wf-1", []);
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = 4;
    bench.place.apply(stop).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(
        told(&stop),
        [
            "Ready: False RunStillActive",
            "Stalled: True RunStillActive",
            "StopAccepted: True StopAccepted",
            "RunEnded: False RunStillActive"
        ]
    );
    let (stops, effects, reads) = bench.place.sent("wf-1");
    assert!((stops, effects) == (1, 1) && 1 <= reads, "{stops} stops, {effects} effects, {reads} reads");
    let accepted = request(&stop).accepted_time.unwrap().0;
    let completed = stop.status.unwrap().completion_time.unwrap().0;
    let followed = completed.duration_since(accepted).as_secs();
    assert!((4..8).contains(&followed), "it was followed for {followed} s");
}

#[tokio::test]
async fn a_secret_that_is_gone_does_not_prolong_the_following() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(600)), "wf-1", []);
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = 6;
    bench.place.apply(stop).await;
    bench.place.reason("wf-1", Reason::FollowingRun).await;
    let secrets: Api<Secret> = Api::namespaced(bench.place.client.clone(), &bench.place.namespace);
    secrets.delete("amperity", &DeleteParams::default()).await.unwrap();
    let versions = bench.finished("wf-1").await;
    assert!(versions.iter().any(|stop| ready(stop).1 == "CredentialsMissing"), "{versions:#?}");
    let stop = versions.last().unwrap();
    assert_eq!(ready(stop), ("False".into(), "RunStillActive".into()));
    assert_eq!(condition(stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()));
    let accepted = request(stop).accepted_time.unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let followed = completed.duration_since(accepted).as_secs();
    assert!((6..9).contains(&followed), "it was followed for {followed} s");
}

#[tokio::test]
async fn nothing_is_sent_while_suspended() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.add(a_run("wf-2"), "wf-2", []);
    let mut stop = a_stop("wf-1");
    stop.spec.suspend = true;
    bench.place.apply(stop).await;
    let suspended = bench.place.reason("wf-1", Reason::Suspended).await;
    assert_eq!(
        told(&suspended),
        [
            "Ready: Unknown Suspended",
            "Reconciling: True Suspended",
            "StopAccepted: False Suspended",
            "RunEnded: Unknown Suspended"
        ]
    );
    // By the end of another one, this one would have been sent.
    bench.place.apply(a_stop("wf-2")).await;
    bench.finished("wf-2").await;
    assert_eq!(bench.place.sent("wf-1"), (0, 0, 0));
    bench.place.change("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(told(bench.finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn what_waits_for_credentials_can_be_suspended() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.add(a_run("wf-2"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        let mut stop = a_stop(run);
        stop.spec.credentials_secret_ref.name = "later".to_owned();
        bench.place.apply(stop).await;
        let waiting = bench.place.reason(run, Reason::CredentialsMissing).await;
        assert_eq!(
            told(&waiting),
            [
                "Ready: False CredentialsMissing",
                "Reconciling: True CredentialsMissing",
                "StopAccepted: False CredentialsMissing",
                "RunEnded: Unknown CredentialsMissing"
            ]
        );
    }
    bench.place.change("wf-1", json!({"suspend": true})).await.unwrap();
    bench.place.reason("wf-1", Reason::Suspended).await;
    bench.place.put_secret("later", &[("token", "good-token")]).await;
    assert_eq!(told(bench.finished("wf-2").await.last().unwrap()), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (0, 0, 0));
    bench.place.change("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(told(bench.finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(bench.place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn what_was_sent_is_followed_although_it_was_suspended_since() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1").stops_in(Duration::from_secs(3)), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    bench.place.reason("wf-1", Reason::FollowingRun).await;
    bench.place.change("wf-1", json!({"suspend": true})).await.unwrap();
    let stop = bench.finished("wf-1").await.pop().unwrap();
    assert_eq!(told(&stop), STOPPED);
    assert_eq!(stop.status.unwrap().observed_generation, Some(2));
}

/// The end of a stop that cannot be sent, with a deadline three seconds after its creation.
async fn deadline_exceeded(bench: &Bench, mut stop: WorkflowRunStop, meanwhile: Reason) {
    stop.spec.stop_deadline_seconds = Some(3);
    bench.place.apply(stop).await;
    let versions = bench.finished("wf-1").await;
    assert!(versions.iter().any(|stop| ready(stop).1 == meanwhile.as_str()), "{versions:#?}");
    let stop = versions.last().unwrap();
    let refused = format!("StopAccepted: False {}", meanwhile.as_str());
    assert_eq!(
        told(stop),
        [
            "Ready: False DeadlineExceeded",
            "Stalled: True DeadlineExceeded",
            &*refused,
            "RunEnded: Unknown DeadlineExceeded"
        ]
    );
    assert_eq!(request(stop).claim, None);
    let created = stop.metadata.creation_timestamp.as_ref().unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let lived = completed.duration_since(created).as_secs();
    assert!((3..6).contains(&lived), "it finished {lived} s after its creation");
    assert_eq!(bench.place.amperity.requests().len(), 0);
}

#[tokio::test]
async fn what_waits_for_credentials_finishes_at_its_deadline() {
    let bench = Bench::new().await;
    let mut stop = a_stop("wf-1");
    stop.spec.credentials_secret_ref.name = "never".to_owned();
    deadline_exceeded(&bench, stop, Reason::CredentialsMissing).await;
}

#[tokio::test]
async fn what_waits_for_refused_credentials_finishes_at_its_deadline() {
    let bench = Bench::new().await;
    for run in ["wf-1", "wf-2"] {
        bench.add(a_run(run), run, []);
    }
    bench.place.put_secret("amperity", &[("token", "bad-token")]).await;
    bench.place.apply(a_stop("wf-1")).await;
    // After so many refusals the credentials rest for at least 8 s.
    let refused = |requests: &[Recorded]| requests.iter().filter(|request| request.answered == Some(401)).count();
    bench.place.amperity.wait_until(|requests| 5 <= refused(requests)).await;
    let mut stop = a_stop("wf-2");
    stop.spec.stop_deadline_seconds = Some(2);
    bench.place.apply(stop).await;
    let stop = bench.finished("wf-2").await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "DeadlineExceeded".into()));
    let created = stop.metadata.creation_timestamp.as_ref().unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let lived = completed.duration_since(created).as_secs();
    assert!((2..6).contains(&lived), "it finished {lived} s after its creation");
    assert_eq!(bench.place.amperity.effects("wf-2"), 0);
}

#[tokio::test]
async fn what_waits_for_an_allowed_endpoint_finishes_at_its_deadline() {
    let bench = Bench::new().await;
    let mut stop = a_stop("wf-1");
    stop.spec.base_url = Some("https://not-allowed.example.com/api".to_owned());
    deadline_exceeded(&bench, stop, Reason::EndpointNotAllowed).await;
}

#[tokio::test]
async fn what_cannot_be_sent_finishes_at_its_deadline() {
    let mut place = Place::new().await;
    place.amperity.go_offline().await;
    let bench = Bench::at(place).await;
    deadline_exceeded(&bench, a_stop("wf-1"), Reason::Unreachable).await;
}

#[tokio::test]
async fn the_answer_to_a_deleted_stop_does_not_land_on_a_new_one_of_its_name() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", []);
    let hold = bench.place.amperity.hold_stops(HoldPoint::BeforeEffect);
    let first = bench.place.apply(a_stop("wf-1")).await;
    bench.place.amperity.wait_until(|requests| requests.len() == 1).await;
    bench.place.stops().delete("wf-1", &DeleteParams::default()).await.unwrap();
    let second = bench.place.apply(a_stop("wf-1")).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    bench.place.amperity.wait_until(|requests| requests.len() == 2).await;
    let claim = request(&bench.place.get("wf-1").await).claim.unwrap();

    hold.release_one();
    bench.operator.says(r#""answer":"accepted""#).await;
    let held = bench.place.get("wf-1").await;
    assert_eq!((&held.metadata.uid, request(&held).claim), (&second.metadata.uid, Some(claim)));
    assert_eq!(condition(&held, ConditionType::StopAccepted).0, "Unknown");

    hold.release();
    let is_end = |stop: &WorkflowRunStop| stop.metadata.uid == second.metadata.uid && stop.is_finished();
    let versions = bench.history.until("wf-1", "finished", is_end).await;
    let of_second: Vec<_> = versions.into_iter().filter(|stop| stop.metadata.uid == second.metadata.uid).collect();
    assert_sound(&of_second);
    let stop = of_second.last().unwrap();
    assert_eq!((told(stop), request(stop).attempts), (STOPPED.map(str::to_owned).to_vec(), 1));
    assert_eq!(bench.place.amperity.stops("wf-1"), 2);
}

#[tokio::test]
async fn the_spec_of_a_finished_stop_cannot_change_and_its_labels_can() {
    let bench = Bench::new().await;
    bench.add(a_run("wf-1"), "wf-1", []);
    bench.place.apply(a_stop("wf-1")).await;
    let stop = bench.finished("wf-1").await.pop().unwrap();
    let changes = [
        json!({"suspend": true}),
        json!({"credentialsSecretRef": {"name": "another"}}),
        json!({"followTimeoutSeconds": 7}),
        json!({"stopDeadlineSeconds": 7}),
        json!({"ttlSecondsAfterFinished": 7}),
    ];
    for spec in changes {
        let refused = bench.place.change("wf-1", spec.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("a finished WorkflowRunStop is a record"), "{spec}: {refused}");
    }
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "data"}}}));
    let labelled = bench.place.stops().patch("wf-1", &PatchParams::default(), &label).await.unwrap();
    assert_eq!((labelled.spec, labelled.status), (stop.spec, stop.status));
}
