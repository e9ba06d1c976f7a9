//! Claims of other replicas, crashes, deadlines, following, suspending, and a new resource of the same name.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use lab::{
    simulator::{ErrorBody, Fault, HoldPoint, Kind, RecordedRequest, RetryAfter, Run, StopEffect},
    testing::{TENANT, TestEnv, a_stop, condition, condition_lines, ready, stop_request},
};
use serde_json::json;
use tokio::time::Instant;
use workflow_run_stop_api::{
    Claim, StopRequest, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{ConditionType, Reason, StopResult},
};

use crate::answers::{CONFIRMED, FIRST_CLAIM, Fixture, STOPPED, a_run, assert_invariants, had_conditions};
use crate::clock::now;

/// The time for which a foreign claim must be observed: its validity, the request timeout and the settle time.
const QUIET: Duration = Duration::from_secs(5 + 2 + 1);

/// Creates the stop of `wf-1` with a claim of another replica. The claim is `age` older than the resource.
async fn create_with_foreign_claim(env: &TestEnv, age: Duration) {
    let created = env.create(a_stop("wf-1")).await.metadata.creation_timestamp.unwrap().0;
    let time = Time(created.checked_sub(age).unwrap());
    let claim = Claim { id: "of-another".to_owned(), holder: "another".to_owned(), time, ended: None };
    let request = StopRequest { attempts: 1, claim: Some(claim), ..StopRequest::default() };
    env.write_status("wf-1", &WorkflowRunStopStatus { stop_request: Some(request), ..Default::default() }).await;
}

fn kinds(requests: &[RecordedRequest]) -> Vec<Kind> {
    requests.iter().map(|request| request.kind).collect()
}

#[tokio::test]
async fn a_foreign_claim_is_left_alone_until_its_request_can_no_longer_be_in_flight() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1"));
    create_with_foreign_claim(&env, Duration::ZERO).await;
    let before = Instant::now();
    let fixture = Fixture::with_env(env).await;
    let stop = fixture.history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!((stop_request(&stop).attempts, stop_request(&stop).claim), (2, None));
    let requests = fixture.env.amperity.requests();
    assert_eq!(kinds(&requests), [Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
    assert!(QUIET <= requests[0].at - before, "{:?}", requests[0].at - before);
    assert!(Duration::from_secs(1) <= requests[1].at - requests[0].at, "the two reads are the settle time apart");
}

#[tokio::test]
async fn an_old_foreign_claim_is_observed_as_long_as_a_new_one() {
    // A claim can look old because a wall clock jumped ahead.
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1"));
    create_with_foreign_claim(&env, Duration::from_secs(600)).await;
    let before = Instant::now();
    let fixture = Fixture::with_env(env).await;
    fixture.env.amperity.wait_until(|requests| !requests.is_empty()).await;
    assert!(QUIET <= before.elapsed(), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_claim_that_is_open_for_an_hour_finishes_as_unknown_even_if_the_api_is_unreachable() {
    let env = TestEnv::new().await;
    env.amperity.go_offline().await;
    create_with_foreign_claim(&env, Duration::from_secs(3600)).await;
    let fixture = Fixture::with_env(env).await;
    let stop = fixture.history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()));
    assert_eq!(stop.status.as_ref().unwrap().result, Some(StopResult::Unknown));
    assert_eq!(stop_request(&stop).claim.unwrap().id, "of-another");
}

#[tokio::test]
async fn an_old_claim_of_an_active_run_is_not_given_up_before_the_second_read() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1"));
    create_with_foreign_claim(&env, Duration::from_secs(7200)).await;
    let fixture = Fixture::with_env(env).await;
    let stop = fixture.history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(kinds(&fixture.env.amperity.requests()), [Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
}

#[tokio::test]
async fn the_outcome_is_decided_by_the_spec_at_the_time_the_answer_is_stored() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1"));
    env.amperity.on_stop("wf-1", [Fault::TooManyRequests { retry_after: RetryAfter::None }]);
    let hold = env.amperity.hold_stops(HoldPoint::BeforeEffect);
    let mut stop = a_stop("wf-1");
    stop.spec.stop_deadline_seconds = Some(3);
    let created = env.create(stop).await.metadata.creation_timestamp.unwrap().0;
    let _operator = env.start_operator_with(&["--request-timeout", "20s"]).await;
    env.amperity.wait_until(|requests| requests.len() == 1).await;
    // The deadline passes while the request is in flight, and is then extended.
    let left = (created + Duration::from_secs(4)).duration_since(now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    env.patch_spec("wf-1", json!({"stopDeadlineSeconds": 600})).await.unwrap();
    hold.release();
    let stop = env.wait_finished("wf-1").await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(env.request_counts("wf-1"), (2, 1, 0));
}

#[tokio::test]
async fn a_foreign_claim_is_confirmed_without_a_request_if_its_run_is_stopped() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1").ended("canceled"));
    create_with_foreign_claim(&env, Duration::from_secs(600)).await;
    let fixture = Fixture::with_env(env).await;
    let stop = fixture.history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(condition_lines(&stop), CONFIRMED);
    assert_eq!((stop_request(&stop).attempts, stop_request(&stop).claim), (1, None));
    assert_eq!(fixture.env.request_counts("wf-1"), (0, 0, 1));
}

#[tokio::test]
async fn a_foreign_claim_finishes_as_unknown_without_a_request_if_its_run_cannot_be_read() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1").unreadable(404));
    create_with_foreign_claim(&env, Duration::from_secs(600)).await;
    let fixture = Fixture::with_env(env).await;
    let stop = fixture.history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "OutcomeUnknown".into()));
    assert_eq!(condition(&stop, ConditionType::StopAccepted).0, "Unknown");
    assert_eq!(stop_request(&stop).claim.unwrap().id, "of-another");
    assert_eq!(fixture.env.request_counts("wf-1"), (0, 0, 2));
}

#[tokio::test]
async fn reads_are_repeated_until_one_shows_the_outcome_of_the_request() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", [Fault::Reset(StopEffect::Immediate)]);
    let status = |code| Fault::Status { code, effect: StopEffect::NoEffect, body: ErrorBody::ErrorJson };
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(1) };
    let unclear = [status(503), status(401), limited, Fault::Reset(StopEffect::NoEffect)];
    fixture.env.amperity.on_read("wf-1", unclear);
    fixture.env.create(a_stop("wf-1")).await;
    let versions = fixture.wait_finished("wf-1").await;
    let stop = versions.last().unwrap();
    assert_eq!(condition_lines(stop), CONFIRMED);
    assert_eq!((stop_request(stop).attempts, stop_request(stop).claim), (1, None));
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 5));
    for reason in ["Unavailable", "Unauthorized", "RateLimited"] {
        assert!(versions.iter().any(|stop| ready(stop) == ("False".into(), reason.into())), "{reason}: {versions:#?}");
    }
}

/// Kills the operator while its stop request is held at this point, releases the request, and starts another operator.
async fn kill_while_held_at(point: HoldPoint, faults: impl IntoIterator<Item = Fault>) -> (Fixture, WorkflowRunStop) {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", faults);
    let hold = fixture.env.amperity.hold_stops(point);
    fixture.env.create(a_stop("wf-1")).await;
    fixture.env.amperity.wait_until(|requests| requests.len() == 1).await;
    let Fixture { env, operator, history } = fixture;
    operator.kill().await;
    let held = env.get("wf-1").await;
    assert!(stop_request(&held).claim.is_some(), "a request was sent without a stored claim");
    assert_eq!(condition_lines(&held), FIRST_CLAIM);
    hold.release();
    let operator = env.start_operator().await;
    let fixture = Fixture { env, operator, history };
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(fixture.env.amperity.effects("wf-1"), 1);
    assert_eq!(stop_request(&stop).claim, None);
    (fixture, stop)
}

#[tokio::test]
async fn a_stop_is_sent_once_when_the_operator_is_killed_before_its_effect() {
    let (fixture, stop) = kill_while_held_at(HoldPoint::BeforeEffect, []).await;
    assert_eq!(condition_lines(&stop), CONFIRMED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 1));
    assert_eq!(stop_request(&stop).attempts, 1);
}

#[tokio::test]
async fn a_stop_is_sent_once_when_the_operator_is_killed_after_its_effect() {
    let (fixture, stop) = kill_while_held_at(HoldPoint::AfterEffect, []).await;
    assert_eq!(condition_lines(&stop), CONFIRMED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 1));
    assert_eq!(stop_request(&stop).attempts, 1);
}

#[tokio::test]
async fn a_stop_is_sent_again_after_two_reads_if_the_request_of_a_killed_operator_had_no_effect() {
    let (fixture, stop) = kill_while_held_at(HoldPoint::BeforeEffect, [Fault::Reset(StopEffect::NoEffect)]).await;
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(stop_request(&stop).attempts, 2);
    let requests = fixture.env.amperity.requests();
    assert_eq!(kinds(&requests), [Kind::Stop, Kind::Read, Kind::Read, Kind::Read, Kind::Stop]);
    assert!(QUIET <= requests[1].at - requests[0].at, "{:?}", requests[1].at - requests[0].at);
}

#[tokio::test]
async fn the_time_of_the_next_attempt_is_kept_across_a_restart() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(4) }]);
    fixture.env.create(a_stop("wf-1")).await;
    let limited = fixture.env.wait_for_reason("wf-1", Reason::RateLimited).await;
    let next = stop_request(&limited).next_attempt_time.unwrap().0;
    let Fixture { env, operator, history } = fixture;
    operator.kill().await;
    let operator = env.start_operator().await;
    let fixture = Fixture { env, operator, history };
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (2, 1, 0));
    let requests = fixture.env.amperity.requests();
    assert!(SystemTime::from(next) <= requests[1].wall, "sent before {next}: {:?}", requests[1].wall);
    assert!(Duration::from_secs(4) <= requests[1].at - requests[0].at, "{:?}", requests[1].at - requests[0].at);
}

#[tokio::test]
async fn a_followed_run_is_not_stopped_again_after_a_restart() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(6)), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    let following = fixture.env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    let Fixture { env, operator, history } = fixture;
    operator.kill().await;
    let operator = env.start_operator().await;
    let fixture = Fixture { env, operator, history };
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(stop_request(&stop), StopRequest { next_attempt_time: None, ..stop_request(&following) });
    assert_eq!((fixture.env.amperity.stops("wf-1"), fixture.env.amperity.effects("wf-1")), (1, 1));
}

#[tokio::test]
async fn a_run_that_ends_on_its_own_after_the_acceptance_is_reported_as_ended_otherwise() {
    let fixture = Fixture::new().await;
    let run = a_run("wf-1").stops_in(Duration::from_secs(60)).ends_on_its_own("succeeded", Duration::from_secs(3));
    fixture.add_run(run, "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(
        condition_lines(&stop),
        ["Ready: True RunEndedOtherwise", "StopAccepted: True StopAccepted", "RunEnded: True RunEndedOtherwise"]
    );
    assert_eq!(fixture.env.amperity.stops("wf-1"), 1);
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn an_accepted_stop_succeeds_even_if_its_run_cannot_be_read() {
    let fixture = Fixture::new().await;
    for (run, code) in [("wf-1", 403), ("wf-2", 404), ("wf-3", 405)] {
        fixture.add_run(a_run(run).stops_in(Duration::from_secs(60)).unreadable(code), run, []);
        fixture.env.create(a_stop(run)).await;
    }
    for run in ["wf-1", "wf-2", "wf-3"] {
        let stop = fixture.wait_finished(run).await.pop().unwrap();
        assert_eq!(ready(&stop), ("True".into(), "RunUnreadable".into()));
        assert_eq!(condition(&stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()));
        assert_ne!(condition(&stop, ConditionType::RunEnded).0, "True");
        assert_eq!(fixture.env.request_counts(run), (1, 1, 2), "two reads, the settle time apart");
        assert_eq!(stop.status.unwrap().state.as_deref(), Some("stopping"));
    }
}

#[tokio::test]
async fn following_continues_after_failed_reads() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(1)), "wf-1", []);
    let unavailable = |code| Fault::Status { code, effect: StopEffect::NoEffect, body: ErrorBody::Html };
    fixture.env.amperity.on_read("wf-1", [unavailable(503), Fault::Reset(StopEffect::NoEffect)]);
    fixture.env.create(a_stop("wf-1")).await;
    let versions = fixture.wait_finished("wf-1").await;
    assert_eq!(condition_lines(versions.last().unwrap()), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 3));
    let failing = [
        "Ready: False Unavailable",
        "Reconciling: True Unavailable",
        "StopAccepted: True StopAccepted",
        "RunEnded: False Unavailable",
    ];
    assert!(had_conditions(&versions, &failing), "{versions:#?}");
}

#[tokio::test]
async fn a_run_is_never_read_with_a_follow_timeout_of_zero() {
    let fixture = Fixture::new().await;
    fixture.add_run(Run::new("wf-1").stops_in(Duration::from_secs(60)), "wf-1", []);
    fixture.add_run(Run::new("wf-2"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        let mut stop = a_stop(run);
        stop.spec.follow_timeout_seconds = 0;
        fixture.env.create(stop).await;
    }
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(
        condition_lines(&stop),
        ["Ready: True StopAccepted", "StopAccepted: True StopAccepted", "RunEnded: False StopAccepted"]
    );
    assert_eq!(stop.status.unwrap().state.as_deref(), Some("stopping"));
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
    assert_eq!(condition_lines(fixture.wait_finished("wf-2").await.last().unwrap()), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-2"), (1, 1, 0));
}

#[tokio::test]
async fn a_run_that_stays_stopping_is_followed_until_the_follow_timeout() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(600)), "wf-1", []);
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = 4;
    fixture.env.create(stop).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(
        condition_lines(&stop),
        [
            "Ready: False RunStillActive",
            "Stalled: True RunStillActive",
            "StopAccepted: True StopAccepted",
            "RunEnded: False RunStillActive"
        ]
    );
    let (stops, effects, reads) = fixture.env.request_counts("wf-1");
    assert!((stops, effects) == (1, 1) && 1 <= reads, "{stops} stops, {effects} effects, {reads} reads");
    let accepted = stop_request(&stop).accepted_time.unwrap().0;
    let completed = stop.status.unwrap().completion_time.unwrap().0;
    let followed = completed.duration_since(accepted).as_secs();
    assert!((4..8).contains(&followed), "followed for {followed} s");
}

#[tokio::test]
async fn a_deleted_secret_does_not_extend_the_follow_timeout() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(600)), "wf-1", []);
    let mut stop = a_stop("wf-1");
    stop.spec.follow_timeout_seconds = 6;
    fixture.env.create(stop).await;
    fixture.env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    let secrets: Api<Secret> = Api::namespaced(fixture.env.client.clone(), &fixture.env.namespace);
    secrets.delete("amperity", &DeleteParams::default()).await.unwrap();
    let versions = fixture.wait_finished("wf-1").await;
    assert!(versions.iter().any(|stop| ready(stop).1 == "CredentialsMissing"), "{versions:#?}");
    let stop = versions.last().unwrap();
    assert_eq!(ready(stop), ("False".into(), "RunStillActive".into()));
    assert_eq!(condition(stop, ConditionType::StopAccepted), ("True".into(), "StopAccepted".into()));
    let accepted = stop_request(stop).accepted_time.unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let followed = completed.duration_since(accepted).as_secs();
    assert!((6..9).contains(&followed), "followed for {followed} s");
}

#[tokio::test]
async fn a_suspended_stop_is_not_sent_until_it_is_resumed() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.add_run(a_run("wf-2"), "wf-2", []);
    let mut stop = a_stop("wf-1");
    stop.spec.suspend = true;
    fixture.env.create(stop).await;
    let suspended = fixture.env.wait_for_reason("wf-1", Reason::Suspended).await;
    assert_eq!(
        condition_lines(&suspended),
        [
            "Ready: Unknown Suspended",
            "Reconciling: True Suspended",
            "StopAccepted: False Suspended",
            "RunEnded: Unknown Suspended"
        ]
    );
    // An unsuspended stop would have been sent by the time a later one has finished.
    fixture.env.create(a_stop("wf-2")).await;
    fixture.wait_finished("wf-2").await;
    assert_eq!(fixture.env.request_counts("wf-1"), (0, 0, 0));
    fixture.env.patch_spec("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(condition_lines(fixture.wait_finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_stop_that_waits_for_credentials_can_be_suspended() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.add_run(a_run("wf-2"), "wf-2", []);
    for run in ["wf-1", "wf-2"] {
        let mut stop = a_stop(run);
        stop.spec.credentials_secret_ref.name = "later".to_owned();
        fixture.env.create(stop).await;
        let waiting = fixture.env.wait_for_reason(run, Reason::CredentialsMissing).await;
        assert_eq!(
            condition_lines(&waiting),
            [
                "Ready: False CredentialsMissing",
                "Reconciling: True CredentialsMissing",
                "StopAccepted: False CredentialsMissing",
                "RunEnded: Unknown CredentialsMissing"
            ]
        );
    }
    fixture.env.patch_spec("wf-1", json!({"suspend": true})).await.unwrap();
    fixture.env.wait_for_reason("wf-1", Reason::Suspended).await;
    fixture.env.put_secret("later", &[("token", "good-token")]).await;
    assert_eq!(condition_lines(fixture.wait_finished("wf-2").await.last().unwrap()), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (0, 0, 0));
    fixture.env.patch_spec("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(condition_lines(fixture.wait_finished("wf-1").await.last().unwrap()), STOPPED);
    assert_eq!(fixture.env.request_counts("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_sent_stop_is_followed_even_if_it_is_suspended_afterwards() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1").stops_in(Duration::from_secs(3)), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    fixture.env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    fixture.env.patch_spec("wf-1", json!({"suspend": true})).await.unwrap();
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    assert_eq!(condition_lines(&stop), STOPPED);
    assert_eq!(stop.status.unwrap().observed_generation, Some(2));
}

/// Checks that a stop that cannot be sent finishes at its deadline, three seconds after its creation.
async fn assert_deadline_exceeded(fixture: &Fixture, mut stop: WorkflowRunStop, reason: Reason) {
    stop.spec.stop_deadline_seconds = Some(3);
    fixture.env.create(stop).await;
    let versions = fixture.wait_finished("wf-1").await;
    assert!(versions.iter().any(|stop| ready(stop).1 == reason.as_str()), "{versions:#?}");
    let stop = versions.last().unwrap();
    let refused = format!("StopAccepted: False {}", reason.as_str());
    assert_eq!(
        condition_lines(stop),
        [
            "Ready: False DeadlineExceeded",
            "Stalled: True DeadlineExceeded",
            &*refused,
            "RunEnded: Unknown DeadlineExceeded"
        ]
    );
    assert_eq!(stop_request(stop).claim, None);
    let created = stop.metadata.creation_timestamp.as_ref().unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let age = completed.duration_since(created).as_secs();
    assert!((3..6).contains(&age), "it finished {age} s after its creation");
    assert_eq!(fixture.env.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_stop_without_credentials_finishes_at_its_deadline() {
    let fixture = Fixture::new().await;
    let mut stop = a_stop("wf-1");
    stop.spec.credentials_secret_ref.name = "never".to_owned();
    assert_deadline_exceeded(&fixture, stop, Reason::CredentialsMissing).await;
}

#[tokio::test]
async fn a_stop_with_refused_credentials_finishes_at_its_deadline() {
    let fixture = Fixture::new().await;
    for run in ["wf-1", "wf-2"] {
        fixture.add_run(a_run(run), run, []);
    }
    fixture.env.put_secret("amperity", &[("token", "bad-token")]).await;
    fixture.env.create(a_stop("wf-1")).await;
    // After five refusals the backoff of the credentials is at least 8 s.
    let refused =
        |requests: &[RecordedRequest]| requests.iter().filter(|request| request.response_status == Some(401)).count();
    fixture.env.amperity.wait_until(|requests| 5 <= refused(requests)).await;
    let mut stop = a_stop("wf-2");
    stop.spec.stop_deadline_seconds = Some(2);
    fixture.env.create(stop).await;
    let stop = fixture.wait_finished("wf-2").await.pop().unwrap();
    assert_eq!(ready(&stop), ("False".into(), "DeadlineExceeded".into()));
    let created = stop.metadata.creation_timestamp.as_ref().unwrap().0;
    let completed = stop.status.as_ref().unwrap().completion_time.as_ref().unwrap().0;
    let age = completed.duration_since(created).as_secs();
    assert!((2..6).contains(&age), "it finished {age} s after its creation");
    assert_eq!(fixture.env.amperity.effects("wf-2"), 0);
}

#[tokio::test]
async fn a_stop_for_an_endpoint_that_is_not_allowed_finishes_at_its_deadline() {
    let fixture = Fixture::new().await;
    let mut stop = a_stop("wf-1");
    stop.spec.base_url = Some("https://not-allowed.example.com/api".to_owned());
    assert_deadline_exceeded(&fixture, stop, Reason::EndpointNotAllowed).await;
}

#[tokio::test]
async fn a_stop_that_cannot_be_sent_finishes_at_its_deadline() {
    let env = TestEnv::new().await;
    env.amperity.go_offline().await;
    let fixture = Fixture::with_env(env).await;
    assert_deadline_exceeded(&fixture, a_stop("wf-1"), Reason::Unreachable).await;
}

#[tokio::test]
async fn the_answer_to_a_deleted_stop_is_not_recorded_on_a_new_stop_of_the_same_name() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    let hold = fixture.env.amperity.hold_stops(HoldPoint::BeforeEffect);
    let first = fixture.env.create(a_stop("wf-1")).await;
    fixture.env.amperity.wait_until(|requests| requests.len() == 1).await;
    fixture.env.stops().delete("wf-1", &DeleteParams::default()).await.unwrap();
    let second = fixture.env.create(a_stop("wf-1")).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    fixture.env.amperity.wait_until(|requests| requests.len() == 2).await;
    let claim = stop_request(&fixture.env.get("wf-1").await).claim.unwrap();

    hold.release_one();
    fixture.operator.wait_for_log(r#""answer":"accepted""#).await;
    let held = fixture.env.get("wf-1").await;
    assert_eq!((&held.metadata.uid, stop_request(&held).claim), (&second.metadata.uid, Some(claim)));
    assert_eq!(condition_lines(&held), FIRST_CLAIM);

    hold.release();
    let is_end = |stop: &WorkflowRunStop| stop.metadata.uid == second.metadata.uid && stop.is_finished();
    let versions = fixture.history.wait_until("wf-1", "finished", is_end).await;
    let of_second: Vec<_> = versions.into_iter().filter(|stop| stop.metadata.uid == second.metadata.uid).collect();
    assert_invariants(&of_second);
    let stop = of_second.last().unwrap();
    assert_eq!((condition_lines(stop), stop_request(stop).attempts), (STOPPED.map(str::to_owned).to_vec(), 1));
    assert_eq!(fixture.env.amperity.stops("wf-1"), 2);
}

#[tokio::test]
async fn the_spec_of_a_finished_stop_cannot_change_but_its_labels_can() {
    let fixture = Fixture::new().await;
    fixture.add_run(a_run("wf-1"), "wf-1", []);
    fixture.env.create(a_stop("wf-1")).await;
    let stop = fixture.wait_finished("wf-1").await.pop().unwrap();
    let changes = [
        json!({"suspend": true}),
        json!({"credentialsSecretRef": {"name": "another"}}),
        json!({"followTimeoutSeconds": 7}),
        json!({"stopDeadlineSeconds": 7}),
        json!({"ttlSecondsAfterFinished": 7}),
    ];
    for spec in changes {
        let refused = fixture.env.patch_spec("wf-1", spec.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("a finished WorkflowRunStop is a record"), "{spec}: {refused}");
    }
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "data"}}}));
    let labelled = fixture.env.stops().patch("wf-1", &PatchParams::default(), &label).await.unwrap();
    assert_eq!((labelled.spec, labelled.status), (stop.spec, stop.status));
}
