//! Owns the tests of `--wait`: progress, outcome and exit code.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use lab::{
    control_plane::User,
    simulator::Run,
    testing::{TENANT, TestEnv},
};
use serde_json::{Value, json};
use workflow_run_stop_api::conditions::StopResult::{
    Accepted, EndedOtherwise, Expired, Failed, StillActive, Stopped, Unknown,
};

use super::call::{Running, call, execute, grant};

#[tokio::test]
async fn without_wait_it_prints_what_it_created_and_how_to_wait_and_exits_with_0() {
    let env = TestEnv::new().await;
    let ended = execute(call(&env, &["wf-20240619-14418-6UhqSe"])).await.exits_with(0);
    let name = ended.created();
    assert!(name.starts_with("stop-wf-20240619-14418-6uhqse-"), "{name}");
    assert_eq!(ended.out, format!("workflowrunstop.workflow.amperity.com/{name} created\n"), "and nothing else");
    assert!(ended.err.contains(&format!("kubectl wait wrs {name} -n {}", env.namespace)), "{}", ended.err);
    let stop = env.get(&name).await;
    assert_eq!((stop.spec.run_id.as_str(), stop.spec.tenant.as_str()), ("wf-20240619-14418-6UhqSe", TENANT));
}

#[tokio::test]
async fn a_stopped_run_exits_with_0_and_its_state_error_and_time_are_printed() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["wf-1", "--wait"])).await.exits_with(0);
    let name = ended.created();
    for wanted in [
        &format!("\n{name}: Stopped (RunStopped): The run is stopped"),
        "\n  run    wf-1, canceled\n",
        "\n  error  Workflow manually stopped (attributed to customer)\n",
        "\n  took   ",
    ] {
        assert!(ended.out.contains(wanted), "{wanted} is missing in:\n{}", ended.out);
    }
    assert_eq!(env.request_counts("wf-1").0, 1);
}

#[tokio::test]
async fn without_a_terminal_each_change_is_one_plain_line() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(2)));
    let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.prints(&format!("{name}: waiting for the operator")).await;
    let _operator = env.start_operator().await;
    waiting.prints(&format!("{name}: run stopping, FollowingRun: The stop was accepted")).await;
    let ended = waiting.finish().await.exits_with(0);
    let mut lines: Vec<_> = ended.err.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with(&format!("{name}: "))), "{}", ended.err);
    let count = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), count, "a line is repeated:\n{}", ended.err);
    assert!(!format!("{}{}", ended.out, ended.err).contains(['\u{1b}', '\r']), "{:?}", ended.err);
}

#[tokio::test]
async fn a_run_that_ended_on_its_own_exits_with_4_and_its_failed_tasks_are_listed() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").failing_with_error().with_tasks(4));
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["wf-1", "--wait"])).await.exits_with(4);
    for wanted in [
        ": EndedOtherwise (RunEndedOtherwise): ",
        "  run    wf-1, failed\n",
        "  error  A task of the workflow failed (attributed to amperity)\n",
        "    TASK                    STATE    ERROR\n",
        "    Send to destination 1   failed   Destination 1 refused the file (attributed to customer)\n",
        "    Send to destination 2   failed   ",
    ] {
        assert!(ended.out.contains(wanted), "{wanted} is missing in:\n{}", ended.out);
    }
    assert!(!ended.out.contains("Send to destination 0"), "it succeeded:\n{}", ended.out);
}

/// Writes the status of a finished stop, as an operator does.
async fn finish(env: &TestEnv, name: &str, result: Option<&str>, ready: [&str; 2]) {
    let ready = json!({
        "type": "Ready", "status": ready[0], "reason": ready[1], "message": "A message.",
        "lastTransitionTime": "2026-11-26T06:00:00Z",
    });
    let mut status = json!({"completionTime": "2026-11-26T06:00:00Z", "conditions": [ready]});
    if let Some(result) = result {
        status["result"] = Value::from(result);
    }
    let patch = Patch::Merge(json!({"status": status}));
    env.stops().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn each_result_has_its_exit_code_and_starts_the_outcome() {
    let env = TestEnv::new().await;
    let results =
        [(Stopped, 0), (Accepted, 0), (EndedOtherwise, 4), (Expired, 5), (Unknown, 6), (Failed, 1), (StillActive, 1)];
    for (result, code) in results {
        let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
        let name = waiting.created().await;
        finish(&env, &name, Some(result.as_str()), ["Unknown", "OfAnotherVersion"]).await;
        let ended = waiting.finish().await.exits_with(code);
        let outcome = format!("\n{name}: {} (OfAnotherVersion): A message.\n", result.as_str());
        assert!(ended.out.contains(&outcome), "{}", ended.out);
    }
}

#[tokio::test]
async fn without_a_result_the_exit_code_is_derived_from_the_reason() {
    let env = TestEnv::new().await;
    for (ready, code) in [
        (["True", "RunStopped"], 0),
        (["True", "RunEndedOtherwise"], 4),
        (["False", "OutcomeUnknown"], 6),
        (["False", "Rejected"], 1),
        (["True", "OfAnotherVersion"], 0),
        (["False", "OfAnotherVersion"], 1),
    ] {
        let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
        let name = waiting.created().await;
        finish(&env, &name, None, ready).await;
        waiting.finish().await.exits_with(code);
    }
}

#[tokio::test]
async fn of_several_results_the_worst_exit_code_is_returned() {
    let env = TestEnv::new().await;
    let waiting = Running::start(call(&env, &["wf-1", "wf-2", "wf-3", "--wait"]));
    waiting.prints("stop-wf-3").await;
    for (run, result) in [("wf-1", Unknown), ("wf-2", EndedOtherwise), ("wf-3", Expired)] {
        let stops = env.stops().list(&ListParams::default()).await.unwrap().items;
        let name = stops.iter().find(|stop| stop.spec.run_id == run).unwrap().name();
        finish(&env, name, Some(result.as_str()), ["False", "OutcomeUnknown"]).await;
    }
    waiting.finish().await.exits_with(6);
}

#[tokio::test]
async fn a_stalled_stop_exits_with_1_and_its_message_says_what_to_do() {
    let env = TestEnv::new().await;
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["wf-unknown", "--wait"])).await.exits_with(1);
    assert!(ended.out.contains("Failed (RunNotFound): Amperity does not know this run"), "{}", ended.out);
    assert!(ended.out.contains("create a new WorkflowRunStop"), "{}", ended.out);
}

#[tokio::test]
async fn create_list_and_watch_are_the_only_permissions_it_needs() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1"));
    let _operator = env.start_operator().await;
    grant(&env, User::Stranger, &["create", "list", "watch"]).await;
    let mut command = call(&env, &["wf-1", "--wait"]);
    command.env("KUBECONFIG", env.cluster.kubeconfig_for(User::Stranger));
    assert!(execute(command).await.exits_with(0).out.contains(": Stopped (RunStopped)"));
}

#[tokio::test]
async fn of_several_runs_each_is_stopped_and_reported_and_the_worst_exit_code_is_returned() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1"));
    env.amperity.add_run(TENANT, Run::new("wf-2").stops_in(Duration::from_secs(2)));
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["wf-1", "wf-unknown", "wf-2", "--wait"])).await.exits_with(1);
    assert_eq!(ended.all_created().len(), 3, "{}", ended.out);
    assert_eq!(ended.out.matches(": Stopped (RunStopped)").count(), 2, "{}", ended.out);
    assert_eq!(ended.out.matches(": Failed (RunNotFound)").count(), 1, "{}", ended.out);
    assert_eq!([env.request_counts("wf-1").0, env.request_counts("wf-2").0], [1, 1]);
}

#[tokio::test]
async fn a_rejected_run_does_not_keep_the_others_from_being_stopped() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1"));
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["cg-1", "wf-1", "--wait"])).await.exits_with(1);
    assert!(ended.err.contains("error: cg-1: the resource is invalid"), "{}", ended.err);
    assert!(ended.out.contains(&format!("{}: Stopped (RunStopped)", ended.created())), "{}", ended.out);
}

#[tokio::test]
async fn a_timeout_exits_with_3_keeps_the_stop_and_prints_how_to_check_it() {
    let env = TestEnv::new().await;
    let ended = execute(call(&env, &["wf-1", "--wait", "--timeout", "1s"])).await.exits_with(3);
    let name = ended.created();
    assert!(
        ended.err.contains(&format!("{name}: timed out waiting for the result after 1s: waiting for the operator")),
        "{}",
        ended.err
    );
    assert!(ended.err.contains(&format!("  kubectl get wrs {name} -n {}\n", env.namespace)), "{}", ended.err);
    assert!(ended.err.contains(&format!("  kubectl describe wrs {name} -n {}\n", env.namespace)), "{}", ended.err);
    assert_eq!(env.get(&name).await.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn ctrl_c_exits_with_130_keeps_the_stop_and_prints_how_to_check_it() {
    let env = TestEnv::new().await;
    let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.prints("waiting for the operator").await;
    waiting.interrupt().await;
    let ended = waiting.finish().await.exits_with(130);
    assert!(ended.err.contains(&format!("  kubectl get wrs {name} -n {}\n", env.namespace)), "{}", ended.err);
    assert!(ended.err.contains(&format!("  kubectl describe wrs {name} -n {}\n", env.namespace)), "{}", ended.err);
    assert_eq!(env.get(&name).await.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn a_stop_that_is_deleted_during_the_wait_exits_with_1_and_says_so() {
    let env = TestEnv::new().await;
    let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.prints("waiting for the operator").await;
    env.stops().delete(&name, &DeleteParams::default()).await.unwrap();
    let ended = waiting.finish().await.exits_with(1);
    assert!(ended.err.contains(&format!("{name} was deleted before its result was read")), "{}", ended.err);
}

#[tokio::test]
async fn a_stop_that_no_operator_processes_causes_a_warning() {
    let env = TestEnv::new().await;
    let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
    let warning = waiting.prints("warning: no operator has processed it yet").await;
    assert!(warning.contains(&format!("watches the namespace {}", env.namespace)), "{warning}");
}

#[tokio::test]
async fn a_wait_continues_after_an_api_server_restart() {
    let env = TestEnv::with_own_control_plane().await;
    env.amperity.add_run(TENANT, Run::new("wf-1"));
    let waiting = Running::start(call(&env, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.prints("waiting for the operator").await;
    env.cluster.kill_apiserver().await;
    waiting.prints(&format!("{name}: waiting: cannot reach the API server, still retrying: ")).await;
    env.cluster.start_apiserver().await;
    let _operator = env.start_operator().await;
    let ended = waiting.finish().await.exits_with(0);
    assert!(ended.out.contains(&format!("{name}: Stopped (RunStopped)")), "{}", ended.out);
    assert_eq!(env.stops().list(&ListParams::default()).await.unwrap().items.len(), 1, "nothing was created twice");
}
