//! How many requests leave for one tenant, and who goes first.

use std::time::Duration;

use lab::simulator::{Fault, Kind, Recorded, RetryAfter, Run};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::support::{Place, TENANT, a_stop, condition, ends_at_once, is, ready};

const OTHER_TENANT: &str = "globex";

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("wf-{number:03}")).collect()
}

fn of_tenant(requests: &[Recorded], tenant: &str) -> Vec<Recorded> {
    requests.iter().filter(|request| request.tenant.as_deref() == Some(tenant)).cloned().collect()
}

/// Applies a stop in a later second than this one was created in: so fine are the API server's dates.
async fn apply_later_than(place: &Place, earlier: &WorkflowRunStop, stop: WorkflowRunStop) -> WorkflowRunStop {
    loop {
        let applied = place.apply(stop.clone()).await;
        if earlier.metadata.creation_timestamp < applied.metadata.creation_timestamp {
            return applied;
        }
        place.stops().delete(&stop.metadata.name.clone().unwrap(), &Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_stops_are_sent_once_each_and_never_more_than_the_limit() {
    let place = Place::new().await;
    place.amperity.limit(Some(10));
    let names = names(100);
    for name in &names {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    place.apply_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = place.operator().await;
    for name in &names {
        place.finished(name).await;
    }
    let requests = place.amperity.requests();
    assert_eq!(requests.len(), 100, "each stop is sent once, and nothing else is");
    assert!(requests.iter().all(|request| request.kind == Kind::Stop && request.answered == Some(200)));
    let most = place.amperity.max_in_any_second(TENANT);
    assert!(most <= 10, "{most} requests arrived in one second");
    // How much of the limit is used is a matter of time: the budget's own tests hold it on paused time,
    // and the benchmark measures it.
}

#[tokio::test]
async fn one_tenants_queue_does_not_delay_another_tenant() {
    let place = Place::new().await;
    let names = names(50);
    for name in &names {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    place.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    place.apply_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = place.operator_with(&["--requests-per-second", "1"]).await;
    place.amperity.wait_until(|requests| !requests.is_empty()).await;
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    place.apply(other).await;
    place.finished("wf-other").await;
    let requests = place.amperity.requests();
    let other = of_tenant(&requests, OTHER_TENANT)[0].at;
    let before = of_tenant(&requests, TENANT).iter().filter(|request| request.at < other).count();
    assert!(before < 10, "{before} requests of the first tenant went before the other tenant's only one");
}

#[tokio::test]
async fn older_resources_go_first() {
    let place = Place::new().await;
    // The names are sorted the other way round, as the API server lists them.
    for name in ["wf-4", "wf-3", "wf-2", "wf-1"] {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    place.amperity.on_stop("wf-4", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(5) }]);
    let mut last = place.apply(a_stop("wf-4")).await;
    for name in ["wf-3", "wf-2", "wf-1"] {
        let mut stop = a_stop(name);
        stop.spec.suspend = true;
        last = apply_later_than(&place, &last, stop).await;
    }
    let _operator = place.operator_with(&["--requests-per-second", "2"]).await;
    place.reason("wf-4", Reason::RateLimited).await;
    let resume = serde_json::json!({"spec": {"suspend": false}});
    for name in ["wf-1", "wf-2", "wf-3"] {
        place.stops().patch(name, &Default::default(), &kube::api::Patch::Merge(&resume)).await.unwrap();
    }
    for name in ["wf-1", "wf-2", "wf-3"] {
        place.reason(name, Reason::WaitingForBudget).await;
    }
    for name in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        place.finished(name).await;
    }
    let order: Vec<_> = place.amperity.requests().into_iter().filter_map(|request| request.run_id).collect();
    assert_eq!(order[..1], ["wf-4"], "the one that found the limit used up");
    let rest: Vec<_> = order[1..].iter().filter(|name| *name != "wf-4").collect();
    assert_eq!(rest, ["wf-3", "wf-2", "wf-1"]);
}

#[tokio::test]
async fn stops_go_before_reads() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
    for name in ["wf-limited", "wf-1", "wf-2"] {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(5) };
    place.amperity.on_stop("wf-limited", [limited]);
    place.apply(a_stop("wf-followed")).await;
    let _operator = place.operator_with(&["--requests-per-second", "2"]).await;
    place.reason("wf-followed", Reason::FollowingRun).await;
    place.apply(a_stop("wf-limited")).await;
    place.reason("wf-limited", Reason::RateLimited).await;
    place.amperity.forget();
    place.apply_all(["wf-1", "wf-2"].map(a_stop)).await;
    // By then the read has been due for a while: the run is first looked at after two seconds.
    place.reason("wf-1", Reason::WaitingForBudget).await;
    place.reason("wf-2", Reason::WaitingForBudget).await;
    place.amperity.wait_until(|requests| requests.iter().any(|request| request.kind == Kind::Read)).await;
    let requests = place.amperity.requests();
    let read = requests.iter().position(|request| request.kind == Kind::Read).unwrap();
    let before: Vec<_> = requests[..read].iter().filter_map(|request| request.run_id.as_deref()).collect();
    assert!(before.contains(&"wf-1") && before.contains(&"wf-2"), "before the read: {before:?}");
}

#[tokio::test]
async fn a_resource_that_waits_for_its_turn_says_so_and_claims_nothing() {
    let place = Place::new().await;
    let names = names(5);
    for name in &names {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    place.apply_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = place.operator_with(&["--requests-per-second", "1"]).await;
    let waits = |stop: &WorkflowRunStop| ready(stop).1 == Reason::WaitingForBudget.as_str();
    let seen = names.iter().map(|name| {
        Box::pin(place.until(name, "waited for the budget or finished", |stop| waits(stop) || stop.is_finished()))
    });
    let waiting: Vec<_> = futures::future::join_all(seen).await.into_iter().filter(waits).collect();
    assert!(!waiting.is_empty(), "five requests at one a second take four seconds");
    for stop in waiting {
        assert_eq!(ready(&stop), is(ConditionStatus::Unknown, Reason::WaitingForBudget));
        assert_eq!(condition(&stop, ConditionType::Reconciling), is(ConditionStatus::True, Reason::WaitingForBudget));
        assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::False, Reason::WaitingForBudget));
        assert_eq!(stop.status.unwrap().stop_request, None);
    }
    for name in &names {
        place.finished(name).await;
    }
    assert_eq!(place.amperity.max_in_any_second(TENANT), 1);
}

#[tokio::test]
async fn too_many_requests_close_the_budget_of_the_whole_tenant_and_of_no_other() {
    let pause = Duration::from_secs(4);
    let place = Place::new().await;
    let names = names(5);
    for name in &names {
        place.amperity.add_run(TENANT, ends_at_once(name));
    }
    place.amperity.add_run(TENANT, ends_at_once("wf-first"));
    place.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(pause.as_secs()) };
    place.amperity.on_stop("wf-first", [limited]);
    let _operator = place.operator().await;
    place.apply(a_stop("wf-first")).await;
    place.reason("wf-first", Reason::RateLimited).await;
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    place.apply_all(names.iter().map(|name| a_stop(name)).chain([other])).await;
    for name in names.iter().map(String::as_str).chain(["wf-first", "wf-other"]) {
        place.finished(name).await;
    }
    let requests = place.amperity.requests();
    let (other, of_tenant) = (of_tenant(&requests, OTHER_TENANT), of_tenant(&requests, TENANT));
    let closed = of_tenant[0].at;
    assert_eq!(of_tenant[0].answered, Some(429));
    assert_eq!(of_tenant.len(), 7, "the refused one is sent again, the others once");
    for request in &of_tenant[1..] {
        let after = request.at - closed;
        assert!(pause <= after, "{:?} came {after:?} after the 429", request.run_id);
    }
    assert!(other[0].at - closed < pause, "the other tenant had to wait {:?}", other[0].at - closed);
}

#[tokio::test]
async fn token_requests_count() {
    let place = Place::new().await;
    place.put_secret("amperity", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator_with(&["--requests-per-second", "1"]).await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    let kinds: Vec<_> = place.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop]);
    assert_eq!(place.amperity.max_in_any_second(TENANT), 1, "the stop came in the same second as the token request");
}
