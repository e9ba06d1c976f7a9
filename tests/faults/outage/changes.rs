//! A stop is deleted, suspended or changed while it waits for its slot and while its request is in flight.

use std::time::Duration;

use lab::{
    simulator::{Fault, HoldPoint, RetryAfter, Run},
    testing::{Operator, TENANT, TestEnv, a_stop, condition, ends_at_once, is, ready, stop_request},
};
use serde_json::json;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

/// The time for which a 429 closes the budget. Long enough to change a waiting stop, even on a busy machine.
const CLOSED_SECONDS: u64 = 30;

/// Closes the budget of a tenant with a 429, and creates the stop `wf-1`, which waits for it.
async fn stop_waiting_for_slot() -> (TestEnv, Operator) {
    let env = TestEnv::new().await;
    for run in ["wf-limited", "wf-1", "wf-last"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(CLOSED_SECONDS) }]);
    env.create(a_stop("wf-limited")).await;
    let operator = env.start_operator().await;
    env.wait_for_reason("wf-limited", Reason::RateLimited).await;
    env.create(a_stop("wf-1")).await;
    env.wait_for_reason("wf-1", Reason::WaitingForBudget).await;
    (env, operator)
}

/// Waits until a later stop has finished. An earlier one would have been sent by then.
async fn finish_later_stop(env: &TestEnv) {
    env.create(a_stop("wf-last")).await;
    env.wait_finished("wf-last").await;
    env.wait_finished("wf-limited").await;
}

/// Creates a stop of `wf-1` whose request had its effect and is not answered. Calling the returned function answers it.
async fn in_flight(env: &TestEnv, run: Run, change: impl FnOnce(&mut WorkflowRunStop)) -> (Operator, impl FnOnce()) {
    env.amperity.add_run(TENANT, run);
    let hold = env.amperity.hold_stops(HoldPoint::AfterEffect);
    let operator = env.start_operator_with(&["--request-timeout", "30s"]).await;
    let mut stop = a_stop("wf-1");
    change(&mut stop);
    env.create(stop).await;
    env.amperity.wait_until(|requests| !requests.is_empty()).await;
    (operator, move || hold.release())
}

#[tokio::test]
async fn a_stop_that_is_deleted_while_it_waits_for_its_slot_is_never_sent() {
    let (env, _operator) = stop_waiting_for_slot().await;
    env.stops().delete("wf-1", &Default::default()).await.unwrap();
    finish_later_stop(&env).await;
    assert_eq!(env.request_counts("wf-1"), (0, 0, 0));
}

#[tokio::test]
async fn a_stop_that_is_suspended_while_it_waits_for_its_slot_is_sent_once_when_it_is_resumed() {
    let (env, _operator) = stop_waiting_for_slot().await;
    env.patch_spec("wf-1", json!({"suspend": true})).await.unwrap();
    let suspended = env.wait_for_reason("wf-1", Reason::Suspended).await;
    assert_eq!(stop_request(&suspended).attempts, 0, "no claim was written");
    finish_later_stop(&env).await;
    assert_eq!(env.request_counts("wf-1"), (0, 0, 0));
    env.patch_spec("wf-1", json!({"suspend": false})).await.unwrap();
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(env.request_counts("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_deadline_that_is_set_while_a_stop_waits_for_its_slot_is_respected() {
    let (env, _operator) = stop_waiting_for_slot().await;
    env.patch_spec("wf-1", json!({"stopDeadlineSeconds": 1})).await.unwrap();
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::False, Reason::DeadlineExceeded));
    finish_later_stop(&env).await;
    assert_eq!(env.request_counts("wf-1"), (0, 0, 0));
}

#[tokio::test]
async fn the_answer_to_a_stop_that_was_deleted_in_flight_does_not_affect_other_stops() {
    let env = TestEnv::new().await;
    let (operator, answer) = in_flight(&env, ends_at_once("wf-1"), |_| ()).await;
    env.stops().delete("wf-1", &Default::default()).await.unwrap();
    answer();
    env.amperity.add_run(TENANT, ends_at_once("wf-2"));
    env.create(a_stop("wf-2")).await;
    assert_eq!(ready(&env.wait_finished("wf-2").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(env.request_counts("wf-1"), (1, 1, 0));
    assert_eq!(operator.terminate().await, Some(0), "nothing is left to drain");
}

#[tokio::test]
async fn the_answer_to_a_stop_that_was_suspended_in_flight_is_recorded() {
    let env = TestEnv::new().await;
    let (_operator, answer) = in_flight(&env, ends_at_once("wf-1"), |_| ()).await;
    env.patch_spec("wf-1", json!({"suspend": true})).await.unwrap();
    answer();
    let stop = env.wait_finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::True, Reason::StopAccepted));
    assert_eq!(stop.status.unwrap().observed_generation, stop.metadata.generation);
    assert_eq!(env.request_counts("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_follow_timeout_that_was_changed_in_flight_is_respected() {
    let env = TestEnv::new().await;
    let long = Run::new("wf-1").stops_in(Duration::from_secs(600));
    let (_operator, answer) = in_flight(&env, long, |stop| stop.spec.follow_timeout_seconds = 600).await;
    env.patch_spec("wf-1", json!({"followTimeoutSeconds": 0})).await.unwrap();
    answer();
    let stop = env.wait_finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::StopAccepted));
    assert_eq!(env.request_counts("wf-1"), (1, 1, 0), "the run is not followed any more");
}
