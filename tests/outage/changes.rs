//! A stop is deleted, suspended or changed while it waits for its slot and while its call is in flight.

use std::time::Duration;

use lab::simulator::{Fault, HoldPoint, RetryAfter, Run};
use serde_json::json;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::support::{Operator, Place, TENANT, a_stop, condition, ends_at_once, is, ready, request};

/// So long the budget is closed: much longer than it takes to change what waits for it, also on a busy machine.
const CLOSED_SECONDS: u64 = 30;

/// A tenant whose budget a 429 closes for a while, and one stop that waits for it.
async fn waiting() -> (Place, Operator) {
    let place = Place::new().await;
    for run in ["wf-limited", "wf-1", "wf-last"] {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    place.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(CLOSED_SECONDS) }]);
    place.apply(a_stop("wf-limited")).await;
    let operator = place.operator().await;
    place.reason("wf-limited", Reason::RateLimited).await;
    place.apply(a_stop("wf-1")).await;
    place.reason("wf-1", Reason::WaitingForBudget).await;
    (place, operator)
}

/// By then the first one would have been sent as well.
async fn a_later_one_is_finished(place: &Place) {
    place.apply(a_stop("wf-last")).await;
    place.finished("wf-last").await;
    place.finished("wf-limited").await;
}

/// A stop of `wf-1` whose request has had its effect and is not answered, and how to answer it.
async fn in_flight(place: &Place, run: Run, change: impl FnOnce(&mut WorkflowRunStop)) -> (Operator, impl FnOnce()) {
    place.amperity.add_run(TENANT, run);
    let hold = place.amperity.hold_stops(HoldPoint::AfterEffect);
    let operator = place.operator_with(&["--request-timeout", "30s"]).await;
    let mut stop = a_stop("wf-1");
    change(&mut stop);
    place.apply(stop).await;
    place.amperity.wait_until(|requests| !requests.is_empty()).await;
    (operator, move || hold.release())
}

#[tokio::test]
async fn a_stop_that_is_deleted_while_it_waits_for_its_slot_is_never_sent() {
    let (place, _operator) = waiting().await;
    place.stops().delete("wf-1", &Default::default()).await.unwrap();
    a_later_one_is_finished(&place).await;
    assert_eq!(place.sent("wf-1"), (0, 0, 0));
}

#[tokio::test]
async fn a_stop_that_is_suspended_while_it_waits_for_its_slot_is_sent_once_when_it_is_resumed() {
    let (place, _operator) = waiting().await;
    place.change("wf-1", json!({"suspend": true})).await.unwrap();
    let suspended = place.reason("wf-1", Reason::Suspended).await;
    assert_eq!(request(&suspended).attempts, 0, "nothing was claimed");
    a_later_one_is_finished(&place).await;
    assert_eq!(place.sent("wf-1"), (0, 0, 0));
    place.change("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_deadline_that_is_set_while_a_stop_waits_for_its_slot_is_kept() {
    let (place, _operator) = waiting().await;
    place.change("wf-1", json!({"stopDeadlineSeconds": 1})).await.unwrap();
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::False, Reason::DeadlineExceeded));
    a_later_one_is_finished(&place).await;
    assert_eq!(place.sent("wf-1"), (0, 0, 0));
}

#[tokio::test]
async fn the_answer_to_a_stop_that_was_deleted_meanwhile_harms_nobody() {
    let place = Place::new().await;
    let (operator, answer) = in_flight(&place, ends_at_once("wf-1"), |_| ()).await;
    place.stops().delete("wf-1", &Default::default()).await.unwrap();
    answer();
    place.amperity.add_run(TENANT, ends_at_once("wf-2"));
    place.apply(a_stop("wf-2")).await;
    assert_eq!(ready(&place.finished("wf-2").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(place.sent("wf-1"), (1, 1, 0));
    assert_eq!(operator.terminate().await, Some(0), "nothing of it is left to do");
}

#[tokio::test]
async fn the_answer_to_a_stop_that_was_suspended_meanwhile_is_recorded() {
    let place = Place::new().await;
    let (_operator, answer) = in_flight(&place, ends_at_once("wf-1"), |_| ()).await;
    place.change("wf-1", json!({"suspend": true})).await.unwrap();
    answer();
    let stop = place.finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::True, Reason::StopAccepted));
    assert_eq!(stop.status.unwrap().observed_generation, stop.metadata.generation);
    assert_eq!(place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_time_to_follow_that_was_changed_meanwhile_is_kept() {
    let place = Place::new().await;
    let long = Run::new("wf-1").stops_in(Duration::from_secs(600));
    let (_operator, answer) = in_flight(&place, long, |stop| stop.spec.follow_timeout_seconds = 600).await;
    place.change("wf-1", json!({"followTimeoutSeconds": 0})).await.unwrap();
    answer();
    let stop = place.finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::StopAccepted));
    assert_eq!(place.sent("wf-1"), (1, 1, 0), "it is not to be followed any more");
}
