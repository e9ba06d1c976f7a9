//! The rate limit of a tenant, and the order of its requests.

use std::time::Duration;

use lab::{
    simulator::{Fault, Kind, RecordedRequest, RetryAfter, Run},
    testing::{TENANT, TestEnv, a_stop, condition, ends_at_once, is, ready},
};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

const OTHER_TENANT: &str = "globex";

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("wf-{number:03}")).collect()
}

fn of_tenant(requests: &[RecordedRequest], tenant: &str) -> Vec<RecordedRequest> {
    requests.iter().filter(|request| request.tenant.as_deref() == Some(tenant)).cloned().collect()
}

/// Creates a stop in a later second than this one, because creation timestamps have a resolution of one second.
async fn create_in_later_second(env: &TestEnv, earlier: &WorkflowRunStop, stop: WorkflowRunStop) -> WorkflowRunStop {
    loop {
        let applied = env.create(stop.clone()).await;
        if earlier.metadata.creation_timestamp < applied.metadata.creation_timestamp {
            return applied;
        }
        env.stops().delete(&stop.metadata.name.clone().unwrap(), &Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_stops_are_sent_once_each_within_the_rate_limit() {
    let env = TestEnv::new().await;
    env.amperity.set_rate_limit(Some(10));
    let names = names(100);
    for name in &names {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    env.create_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = env.start_operator().await;
    for name in &names {
        env.wait_finished(name).await;
    }
    let requests = env.amperity.requests();
    assert_eq!(requests.len(), 100, "each stop is sent once, and nothing else is");
    assert!(requests.iter().all(|request| request.kind == Kind::Stop && request.response_status == Some(200)));
    let most = env.amperity.max_in_any_second(TENANT);
    assert!(most <= 10, "{most} requests arrived in one second");
    // The use of the limit depends on timing: tests/budget.rs checks it on paused time, the benchmark measures it.
}

#[tokio::test]
async fn one_tenants_queue_does_not_delay_another_tenant() {
    let env = TestEnv::new().await;
    let names = names(50);
    for name in &names {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    env.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    env.create_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = env.start_operator_with(&["--requests-per-second", "1"]).await;
    env.amperity.wait_until(|requests| !requests.is_empty()).await;
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    env.create(other).await;
    env.wait_finished("wf-other").await;
    let requests = env.amperity.requests();
    let other = of_tenant(&requests, OTHER_TENANT)[0].at;
    let before = of_tenant(&requests, TENANT).iter().filter(|request| request.at < other).count();
    assert!(before < 10, "{before} requests of the first tenant were sent before the only one of the other tenant");
}

#[tokio::test]
async fn older_resources_are_sent_first() {
    let env = TestEnv::new().await;
    // The API server lists by name, which is the reverse order of creation here.
    for name in ["wf-4", "wf-3", "wf-2", "wf-1"] {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    env.amperity.on_stop("wf-4", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(5) }]);
    let mut last = env.create(a_stop("wf-4")).await;
    for name in ["wf-3", "wf-2", "wf-1"] {
        let mut stop = a_stop(name);
        stop.spec.suspend = true;
        last = create_in_later_second(&env, &last, stop).await;
    }
    let _operator = env.start_operator_with(&["--requests-per-second", "2"]).await;
    env.wait_for_reason("wf-4", Reason::RateLimited).await;
    let resume = serde_json::json!({"spec": {"suspend": false}});
    for name in ["wf-1", "wf-2", "wf-3"] {
        env.stops().patch(name, &Default::default(), &kube::api::Patch::Merge(&resume)).await.unwrap();
    }
    for name in ["wf-1", "wf-2", "wf-3"] {
        env.wait_for_reason(name, Reason::WaitingForBudget).await;
    }
    for name in ["wf-1", "wf-2", "wf-3", "wf-4"] {
        env.wait_finished(name).await;
    }
    let order: Vec<_> = env.amperity.requests().into_iter().filter_map(|request| request.run_id).collect();
    assert_eq!(order[..1], ["wf-4"], "the request that was answered with 429");
    let rest: Vec<_> = order[1..].iter().filter(|name| *name != "wf-4").collect();
    assert_eq!(rest, ["wf-3", "wf-2", "wf-1"]);
}

#[tokio::test]
async fn while_stops_wait_reads_get_one_of_five_requests() {
    let env = TestEnv::new().await;
    let names: Vec<String> = (1..=8).map(|number| format!("wf-{number}")).collect();
    env.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
    for name in names.iter().map(String::as_str).chain(["wf-limited"]) {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(5) };
    env.amperity.on_stop("wf-limited", [limited]);
    env.create(a_stop("wf-followed")).await;
    let _operator = env.start_operator_with(&["--requests-per-second", "2"]).await;
    env.wait_for_reason("wf-followed", Reason::FollowingRun).await;
    env.create(a_stop("wf-limited")).await;
    env.wait_for_reason("wf-limited", Reason::RateLimited).await;
    env.amperity.clear_requests();
    env.create_all(names.iter().map(|name| a_stop(name))).await;
    // The read is overdue by then: the first read of a run is due after two seconds.
    for name in &names {
        env.wait_for_reason(name, Reason::WaitingForBudget).await;
    }
    for name in &names {
        env.wait_finished(name).await;
    }
    let requests = env.amperity.requests();
    let last_stop = requests.iter().rposition(|request| request.kind == Kind::Stop).unwrap();
    let reads = requests[..last_stop].iter().filter(|request| request.kind == Kind::Read).count();
    assert!((1..=2).contains(&reads), "{reads} reads among {last_stop} requests");
}

#[tokio::test]
async fn a_resource_that_waits_for_the_budget_reports_it_and_claims_nothing() {
    let env = TestEnv::new().await;
    let names = names(5);
    for name in &names {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    env.create_all(names.iter().map(|name| a_stop(name))).await;
    let _operator = env.start_operator_with(&["--requests-per-second", "1"]).await;
    let waits = |stop: &WorkflowRunStop| ready(stop).1 == Reason::WaitingForBudget.as_str();
    let observed = names.iter().map(|name| {
        Box::pin(env.wait_until(name, "waited for the budget or finished", |stop| waits(stop) || stop.is_finished()))
    });
    let waiting: Vec<_> = futures::future::join_all(observed).await.into_iter().filter(waits).collect();
    assert!(!waiting.is_empty(), "five requests at one per second take four seconds");
    for stop in waiting {
        assert_eq!(ready(&stop), is(ConditionStatus::Unknown, Reason::WaitingForBudget));
        assert_eq!(condition(&stop, ConditionType::Reconciling), is(ConditionStatus::True, Reason::WaitingForBudget));
        assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::False, Reason::WaitingForBudget));
        assert_eq!(stop.status.unwrap().stop_request, None);
    }
    for name in &names {
        env.wait_finished(name).await;
    }
    assert_eq!(env.amperity.max_in_any_second(TENANT), 1);
}

#[tokio::test]
async fn a_429_closes_the_budget_of_its_tenant_and_of_no_other() {
    let pause = Duration::from_secs(4);
    let env = TestEnv::new().await;
    let names = names(5);
    for name in &names {
        env.amperity.add_run(TENANT, ends_at_once(name));
    }
    env.amperity.add_run(TENANT, ends_at_once("wf-first"));
    env.amperity.add_run(OTHER_TENANT, ends_at_once("wf-other"));
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(pause.as_secs()) };
    env.amperity.on_stop("wf-first", [limited]);
    let _operator = env.start_operator().await;
    env.create(a_stop("wf-first")).await;
    env.wait_for_reason("wf-first", Reason::RateLimited).await;
    let mut other = a_stop("wf-other");
    other.spec.tenant = OTHER_TENANT.to_owned();
    env.create_all(names.iter().map(|name| a_stop(name)).chain([other])).await;
    for name in names.iter().map(String::as_str).chain(["wf-first", "wf-other"]) {
        env.wait_finished(name).await;
    }
    let requests = env.amperity.requests();
    let (other, of_tenant) = (of_tenant(&requests, OTHER_TENANT), of_tenant(&requests, TENANT));
    let closed = of_tenant[0].at;
    assert_eq!(of_tenant[0].response_status, Some(429));
    assert_eq!(of_tenant.len(), 7, "the refused stop is sent again, the others once");
    for request in &of_tenant[1..] {
        let after = request.at - closed;
        assert!(pause <= after, "{:?} came {after:?} after the 429", request.run_id);
    }
    assert!(other[0].at - closed < pause, "the other tenant had to wait {:?}", other[0].at - closed);
}

#[tokio::test]
async fn token_requests_count_against_the_budget() {
    let env = TestEnv::new().await;
    env.put_secret("amperity", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator_with(&["--requests-per-second", "1"]).await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    let kinds: Vec<_> = env.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop]);
    assert_eq!(env.amperity.max_in_any_second(TENANT), 1, "the stop came in the same second as the token request");
}
