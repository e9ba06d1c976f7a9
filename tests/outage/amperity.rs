//! The Amperity API is away, slow, used up by another client, or refuses the old token.

use std::time::Duration;

use lab::simulator::{HoldPoint, Kind, Recorded};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::{
    batch::Batch,
    other_client,
    support::{TENANT, a_stop, condition, ends_at_once, is, ready},
};

const OTHER_TENANT: &str = "globex";

fn stops(requests: &[Recorded]) -> impl Iterator<Item = &Recorded> {
    requests.iter().filter(|request| request.kind == Kind::Stop)
}

fn accepted(requests: &[Recorded]) -> usize {
    stops(requests).filter(|stop| stop.answered == Some(200)).count()
}

#[tokio::test]
async fn an_api_that_is_away_for_a_while_costs_no_stop_and_makes_none_twice() {
    let mut batch = Batch::new(60).await;
    batch.apply().await;
    let _operator = batch.place.operator_with(&["--requests-per-second", "20"]).await;
    batch.posts(20, |_| true).await;
    batch.place.amperity.go_offline().await;
    // Those that were sent before wait for it as well: to be confirmed or followed.
    let unsent = |stop: &WorkflowRunStop| {
        ready(stop) == is(ConditionStatus::False, Reason::Unreachable)
            && condition(stop, ConditionType::StopAccepted) == is(ConditionStatus::False, Reason::Unreachable)
            && stop.claim().is_none()
    };
    batch.until("waited for the API, unsent and without a claim", |stops| stops.values().any(unsent)).await;
    batch.place.amperity.go_online().await;
    batch.kept().await;
}

#[tokio::test]
async fn another_client_that_uses_half_of_the_limit_costs_no_stop_and_makes_none_twice() {
    let batch = Batch::new(60).await;
    let other = other_client::begin(&batch.place.amperity, TENANT);
    batch.apply().await;
    let _operator = batch.place.operator().await;
    let posts = batch.kept().await;
    other.abort();
    let requests = batch.place.amperity.requests();
    let refused: Vec<_> = stops(&requests).filter(|stop| stop.answered == Some(429)).collect();
    assert!(!refused.is_empty(), "the limit was never met");
    assert_eq!(posts.iter().sum::<usize>(), batch.runs.len() + refused.len(), "only what was refused is sent again");
    for (index, stop) in refused.iter().enumerate() {
        let after = stops(&requests).filter(|other| stop.at < other.at && other.at - stop.at < Duration::from_secs(1));
        // What was on its way when the refusal came arrives all the same.
        let on_its_way = after.filter(|other| Duration::from_millis(500) < other.at - stop.at).count();
        assert_eq!(on_its_way, 0, "refusal {index} did not close the budget");
    }
}

#[tokio::test]
async fn two_hundred_slow_answers_hold_up_nobody_else() {
    let batch = Batch::new(200).await;
    let place = &batch.place;
    let hold = place.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.apply().await;
    let _operator = batch.operator(&["--request-timeout", "120s"]).await;
    batch.posts(200, |stop| stop.effect).await;
    place.amperity.pass_others(&hold);
    place.amperity.add_run(TENANT, ends_at_once("wf-same"));
    place.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    place.apply_all([a_stop("wf-same"), other]).await;
    for run in ["wf-same", "wf-other"] {
        assert_eq!(ready(&place.finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
    }
    assert_eq!(accepted(&place.amperity.requests()), 2, "nothing else was answered");
    hold.release();
    batch.kept_with_one_request_each().await;
}

#[tokio::test]
async fn a_secret_that_is_rotated_in_the_middle_costs_no_stop_and_few_refusals() {
    let batch = Batch::new(60).await;
    batch.apply().await;
    let _operator = batch.place.operator_with(&["--requests-per-second", "20"]).await;
    batch.posts(20, |stop| stop.answered == Some(200)).await;
    batch.place.amperity.set_tokens(["new-token"]);
    let waits = |stop: &WorkflowRunStop| ready(stop).1 == Reason::Unauthorized.as_str();
    batch.until("waited for another token", |stops| stops.values().any(waits)).await;
    batch.place.put_secret("amperity", &[("token", "new-token")]).await;
    let posts = batch.kept().await;
    let requests = batch.place.amperity.requests();
    let refused = stops(&requests).filter(|stop| stop.answered == Some(401)).count();
    assert_eq!(posts.iter().sum::<usize>(), batch.runs.len() + refused, "only what was refused is sent again");
    // Those that were sent in the same second, and from then on one trial at a time, ever more rarely.
    assert!(refused <= 20 + 8, "{refused} of 60 were refused");
}
