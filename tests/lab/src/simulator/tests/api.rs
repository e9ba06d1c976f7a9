//! Owns the tests of the documented behaviour: checks, runs, tokens, rate limit.
//! Never uses a fault.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{RepeatedStop, RetryAfter, Run, Simulator, StopResponseTasks};
use super::{Call, RUN, TENANT, simulator_with};

#[tokio::test]
async fn a_stop_ends_a_run_without_tasks_at_once_with_the_documented_error() {
    let simulator = simulator_with(Run::new(RUN)).await;

    let response = Call::stop().send(&simulator).await;

    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let run = response.json();
    assert_eq!(run["id"], RUN);
    assert_eq!(run["state"], "canceled");
    assert_eq!(run["tenant"], TENANT);
    assert!(run["ended_at"].is_string());
    assert_eq!(
        run["error"],
        json!({
            "attribution": "customer",
            "type": "amperity.workflow.workflow.repository.core/cancel",
            "message": "Workflow manually stopped",
        })
    );
    assert_eq!(run.get("task_instances"), None);
}

#[tokio::test]
async fn every_documented_check_fails_with_its_status_and_an_error_object() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let unknown_run = Call::new("POST", "/api/workflow/runs/wf-unknown/stop");
    let with_query =
        |query: &str| Call::new("POST", format!("/api/workflow/runs/{RUN}/stop?{query}")).without("api-version");
    let refused = [
        (401, "no version", Call::stop().without("api-version")),
        (401, "an invalid version", Call::stop().header("api-version", "newest")),
        (400, "an old version", Call::stop().header("api-version", "2023-01-01")),
        (400, "an old version in the query", with_query("api_version=2023-01-01")),
        (400, "no tenant", Call::stop().without("amperity-tenant")),
        (401, "no token", Call::stop().without("authorization")),
        (401, "a bad token", Call::stop().header("authorization", "Bearer bad")),
        (400, "a body", Call::stop().body("{}")),
        (404, "an unknown run", unknown_run),
        (404, "another tenant's run", Call::stop().header("amperity-tenant", "acme2-sb")),
        (405, "GET on the stop path", Call::new("GET", format!("/api/workflow/runs/{RUN}/stop"))),
        (404, "a slash at the end", Call::new("POST", format!("/api/workflow/runs/{RUN}/stop/"))),
        (400, "an unknown view", Call::new("GET", format!("/api/workflow/runs/{RUN}?view=all"))),
    ];
    for (status, what, call) in refused {
        let response = call.send(&simulator).await;
        assert_eq!(response.status, status, "{what}");
        let error = response.json();
        assert_eq!(error["status"], status, "{what}");
        assert!(error["message"].is_string() && error["request_id"].is_string(), "{what}");
    }
    assert_eq!(simulator.effects(RUN), 0);
    assert_eq!(with_query("api_version=2024-04-01").send(&simulator).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_run_with_tasks_is_stopping_for_its_time_and_then_canceled() {
    let run = Run::new(RUN).with_tasks(4).stops_in(Duration::from_secs(20));
    let simulator = simulator_with(run).await;

    assert_eq!(Call::read().send(&simulator).await.json()["state"], "running");
    assert_eq!(Call::stop().send(&simulator).await.json()["state"], "stopping");
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "stopping");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(Call::read().send(&simulator).await.json()["state"], "canceled");
}

#[tokio::test(start_paused = true)]
async fn a_run_can_end_on_its_own_while_it_is_stopping() {
    let run = Run::new(RUN).stops_in(Duration::from_secs(20)).ends_on_its_own("succeeded", Duration::from_secs(10));
    let simulator = simulator_with(run).await;

    Call::stop().send(&simulator).await;
    tokio::time::sleep(Duration::from_secs(10)).await;

    let run = Call::read().send(&simulator).await.json();
    assert_eq!(run["state"], "succeeded");
    assert_eq!(run.get("error"), None);
}

#[tokio::test]
async fn a_run_that_fails_while_it_stops_has_an_error_with_data_and_failed_tasks() {
    let simulator = simulator_with(Run::new(RUN).with_tasks(3).failing_with_error()).await;

    Call::stop().send(&simulator).await;

    let run = Call::read().send(&simulator).await.json();
    assert_eq!(run["state"], "failed");
    assert!(run["error"]["data"].is_object());
    assert_eq!(run["task_instances"][0]["state"], "succeeded");
    assert_eq!(run["task_instances"][1]["state"], "failed");
    assert!(run["task_instances"][1]["error"]["data"].is_object());
}

#[tokio::test]
async fn tasks_and_details_are_in_the_verbose_view_only() {
    let simulator = simulator_with(Run::new(RUN).with_tasks(2)).await;
    let overview = Call::new("GET", format!("/api/workflow/runs/{RUN}"));

    let overview = overview.send(&simulator).await.json();
    let verbose = Call::read().send(&simulator).await.json();

    let mut names: Vec<_> = overview.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["created_at", "id", "name", "state", "tenant", "type"]);
    let timeouts = verbose["task_instances"].as_array().expect("tasks").iter();
    let timeouts: Vec<_> = timeouts.map(|task| task["timeout_ms"].to_string()).collect();
    assert_eq!(timeouts, ["3600000.0", "7200000"]);
}

#[tokio::test]
async fn the_response_to_a_stop_has_tasks_as_configured() {
    for (tasks, expected) in
        [(StopResponseTasks::Absent, None), (StopResponseTasks::Empty, Some(0)), (StopResponseTasks::Full, Some(2))]
    {
        let run = Run::new(RUN).with_tasks(2).stop_response_tasks(tasks);
        let simulator = simulator_with(run).await;
        let run = Call::stop().send(&simulator).await.json();
        let found = run.get("task_instances").and_then(Value::as_array).map(Vec::len);
        assert_eq!(found, expected, "{tasks:?}");
    }
}

#[tokio::test]
async fn the_response_to_a_second_stop_is_configurable_and_the_stop_counts_as_an_effect() {
    for (repeated, status) in
        [(RepeatedStop::Unchanged200, 200), (RepeatedStop::BadRequest400, 400), (RepeatedStop::Conflict409, 409)]
    {
        let run = Run::new(RUN).stops_in(Duration::from_secs(60)).on_repeated_stop(repeated);
        let simulator = simulator_with(run).await;
        assert_eq!(Call::stop().send(&simulator).await.status, 200);
        assert_eq!(Call::stop().send(&simulator).await.status, status);
        assert_eq!((simulator.stops(RUN), simulator.effects(RUN)), (2, 2));
    }
}

#[tokio::test]
async fn a_stop_of_an_ended_run_has_no_effect() {
    let simulator = simulator_with(Run::new(RUN).ended("succeeded")).await;

    let response = Call::stop().send(&simulator).await;

    assert_eq!((response.status, response.json()["state"].as_str()), (200, Some("succeeded")));
    assert_eq!((simulator.stops(RUN), simulator.effects(RUN)), (1, 0));
}

#[tokio::test]
async fn an_unreadable_run_can_be_stopped_but_not_read() {
    let simulator = simulator_with(Run::new(RUN).unreadable(403)).await;

    assert_eq!(Call::read().send(&simulator).await.status, 403);
    assert_eq!(Call::stop().send(&simulator).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_issued_token_is_valid_for_its_tenant_until_it_expires() {
    let simulator = simulator_with(Run::new(RUN)).await;
    simulator.add_run("socktown", Run::new(RUN));
    simulator.set_expires_in(100);

    let response = Call::token().send(&simulator).await.json();
    assert_eq!(response["access_token"], "tok-1");
    assert_eq!(response["expires_in"], 100);

    let read = Call::read().header("authorization", "Bearer tok-1");
    let elsewhere = read.clone().header("amperity-tenant", "socktown");
    assert_eq!(read.clone().send(&simulator).await.status, 200);
    assert_eq!(elsewhere.send(&simulator).await.status, 401);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(read.send(&simulator).await.status, 401);
}

#[tokio::test]
async fn a_token_is_issued_to_the_valid_client_only_and_ends_when_tokens_are_replaced() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let wrong = "grant_type=client_credentials&client_id=good-client&client_secret=x";

    assert_eq!(Call::token().body(wrong).send(&simulator).await.status, 401);
    assert_eq!(Call::token().body("grant_type=password").send(&simulator).await.status, 400);
    assert_eq!(Call::token().without("x-amperity-tenant").send(&simulator).await.status, 400);
    assert_eq!(Call::token().send(&simulator).await.status, 200);
    simulator.set_client("other", "a b+c");
    let other = "grant_type=client_credentials&client_id=other&client_secret=a+b%2bc";
    assert_eq!(Call::token().body(other).send(&simulator).await.status, 200);

    simulator.set_tokens(["new-token"]);
    for (token, status) in [("tok-1", 401), ("good-token", 401), ("new-token", 200)] {
        let read = Call::read().header("authorization", &format!("Bearer {token}"));
        assert_eq!(read.send(&simulator).await.status, status, "{token}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_counts_all_kinds_of_requests_in_a_sliding_second_except_429s() {
    let simulator = Simulator::start().await;
    simulator.add_run(TENANT, Run::new(RUN));
    simulator.add_run("socktown", Run::new(RUN));
    simulator.set_rate_limit(Some(3));

    let mut statuses = Vec::new();
    for call in [Call::stop(), Call::read(), Call::token(), Call::read(), Call::stop()] {
        statuses.push(call.send(&simulator).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let elsewhere = Call::read().header("amperity-tenant", "socktown");
    assert_eq!(elsewhere.send(&simulator).await.status, 200);

    simulator.set_rate_limit_retry_after(Some(RetryAfter::Seconds(7)));
    assert_eq!(Call::read().send(&simulator).await.header("retry-after"), Some("7"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(Call::read().send(&simulator).await.status, 200);
}
