//! The Amperity API is unreachable, slow, at its rate limit because of another client, or refuses the old token.

use std::time::Duration;

use lab::{
    simulator::{HoldPoint, Kind, RecordedRequest},
    testing::{TENANT, a_stop, condition, ends_at_once, is, other_client, ready},
};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::batch::Batch;

const OTHER_TENANT: &str = "globex";

fn stops(requests: &[RecordedRequest]) -> impl Iterator<Item = &RecordedRequest> {
    requests.iter().filter(|request| request.kind == Kind::Stop)
}

fn accepted(requests: &[RecordedRequest]) -> usize {
    stops(requests).filter(|stop| stop.response_status == Some(200)).count()
}

#[tokio::test]
async fn no_stop_is_lost_or_takes_effect_twice_when_the_api_is_unreachable_for_a_while() {
    let batch = Batch::new(60).await;
    batch.create_stops().await;
    let _operator = batch.env.start_operator_with(&["--requests-per-second", "20"]).await;
    batch.wait_for_stop_requests(20, |_| true).await;
    batch.env.amperity.go_offline().await;
    // Stops that were sent earlier wait for the API, too, to be confirmed or followed.
    let unsent = |stop: &WorkflowRunStop| {
        ready(stop) == is(ConditionStatus::False, Reason::Unreachable)
            && condition(stop, ConditionType::StopAccepted) == is(ConditionStatus::False, Reason::Unreachable)
            && stop.claim().is_none()
    };
    batch.wait_until("had an unsent stop without a claim", |stops| stops.values().any(unsent)).await;
    batch.env.amperity.go_online().await;
    batch.assert_one_effect_each().await;
}

#[tokio::test]
async fn no_stop_is_lost_or_takes_effect_twice_when_another_client_uses_half_of_the_limit() {
    let batch = Batch::new(60).await;
    let other = other_client::start(&batch.env.amperity, TENANT);
    batch.create_stops().await;
    let _operator = batch.env.start_operator().await;
    let sent = batch.assert_one_effect_each().await;
    other.abort();
    let requests = batch.env.amperity.requests();
    let refused: Vec<_> = stops(&requests).filter(|stop| stop.response_status == Some(429)).collect();
    assert!(!refused.is_empty(), "the rate limit was never reached");
    assert_eq!(sent.iter().sum::<usize>(), batch.runs.len() + refused.len(), "only refused requests are sent again");
    for (index, stop) in refused.iter().enumerate() {
        let after = stops(&requests).filter(|other| stop.at < other.at && other.at - stop.at < Duration::from_secs(1));
        // Requests that were in flight when the 429 was sent still arrive.
        let late = after.filter(|other| Duration::from_millis(500) < other.at - stop.at).count();
        assert_eq!(late, 0, "429 number {index} did not close the budget");
    }
}

#[tokio::test]
async fn two_hundred_slow_answers_delay_no_other_stop() {
    let batch = Batch::new(200).await;
    let env = &batch.env;
    let hold = env.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.create_stops().await;
    let _operator = batch.start_operator(&["--request-timeout", "120s"]).await;
    batch.wait_for_stop_requests(200, |stop| stop.effect).await;
    env.amperity.pass_new_stops(&hold);
    env.amperity.add_run(TENANT, ends_at_once("wf-same"));
    env.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    env.create_all([a_stop("wf-same"), other]).await;
    for run in ["wf-same", "wf-other"] {
        assert_eq!(ready(&env.wait_finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
    }
    assert_eq!(accepted(&env.amperity.requests()), 2, "nothing else was answered");
    hold.release();
    batch.assert_one_request_each().await;
}

#[tokio::test]
async fn no_stop_is_lost_and_few_are_refused_when_the_secret_is_rotated() {
    let batch = Batch::new(60).await;
    batch.create_stops().await;
    let _operator = batch.env.start_operator_with(&["--requests-per-second", "20"]).await;
    batch.wait_for_stop_requests(20, |stop| stop.response_status == Some(200)).await;
    batch.env.amperity.set_tokens(["new-token"]);
    let waits = |stop: &WorkflowRunStop| ready(stop).1 == Reason::Unauthorized.as_str();
    batch.wait_until("waited for another token", |stops| stops.values().any(waits)).await;
    batch.env.put_secret("amperity", &[("token", "new-token")]).await;
    let sent = batch.assert_one_effect_each().await;
    let requests = batch.env.amperity.requests();
    let refused = stops(&requests).filter(|stop| stop.response_status == Some(401)).count();
    assert_eq!(sent.iter().sum::<usize>(), batch.runs.len() + refused, "only refused requests are sent again");
    // The requests of the same second, and then one retry at a time with a growing backoff.
    assert!(refused <= 20 + 8, "{refused} of 60 were refused");
}
