//! What a call that waits tells of a stop, and with which exit code it ends.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use lab::{control_plane::User, simulator::Run};
use serde_json::{Value, json};
use workflow_run_stop_api::conditions::StopResult::{
    Accepted, EndedOtherwise, Expired, Failed, StillActive, Stopped, Unknown,
};

use crate::call::{Running, call, done, grant};
use crate::support::{Place, TENANT};

#[tokio::test]
async fn without_wait_it_says_what_it_created_and_how_to_wait_and_ends_with_0() {
    let place = Place::new().await;
    let ended = done(call(&place, &["wf-20240619-14418-6UhqSe"])).await.with(0);
    let name = ended.created();
    assert!(name.starts_with("stop-wf-20240619-14418-6uhqse-"), "{name}");
    assert_eq!(ended.out, format!("workflowrunstop.workflow.amperity.com/{name} created\n"), "and nothing else");
    assert!(ended.err.contains(&format!("kubectl wait wrs {name} -n {}", place.namespace)), "{}", ended.err);
    let stop = place.get(&name).await;
    assert_eq!((stop.spec.run_id.as_str(), stop.spec.tenant.as_str()), ("wf-20240619-14418-6UhqSe", TENANT));
}

#[tokio::test]
async fn a_stopped_run_ends_with_0_and_tells_state_error_and_time() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let _operator = place.operator().await;
    let ended = done(call(&place, &["wf-1", "--wait"])).await.with(0);
    let name = ended.created();
    for wanted in [
        &format!("\n{name}: Stopped (RunStopped): The run is stopped"),
        "\n  run    wf-1, canceled\n",
        "\n  error  Workflow manually stopped (attributed to customer)\n",
        "\n  took   ",
    ] {
        assert!(ended.out.contains(wanted), "{wanted} is missing in:\n{}", ended.out);
    }
    assert_eq!(place.sent("wf-1").0, 1);
}

#[tokio::test]
async fn where_nobody_looks_each_change_is_one_plain_line() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(2)));
    let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.tells(&format!("{name}: waits for the operator")).await;
    let _operator = place.operator().await;
    waiting.tells(&format!("{name}: run stopping, FollowingRun: The stop was accepted")).await;
    let ended = waiting.ended().await.with(0);
    let mut lines: Vec<_> = ended.err.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with(&format!("{name}: "))), "{}", ended.err);
    let said = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), said, "a line is repeated:\n{}", ended.err);
    assert!(!format!("{}{}", ended.out, ended.err).contains(['\u{1b}', '\r']), "{:?}", ended.err);
}

#[tokio::test]
async fn a_run_that_ended_otherwise_ends_with_4_and_a_table_of_its_failed_tasks() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").failing_with_error().with_tasks(4));
    let _operator = place.operator().await;
    let ended = done(call(&place, &["wf-1", "--wait"])).await.with(4);
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

/// Finishes a stop as an operator does.
async fn finish(place: &Place, name: &str, result: Option<&str>, ready: [&str; 2]) {
    let ready = json!({
        "type": "Ready", "status": ready[0], "reason": ready[1], "message": "It is so.",
        "lastTransitionTime": "2026-11-26T06:00:00Z",
    });
    let mut status = json!({"completionTime": "2026-11-26T06:00:00Z", "conditions": [ready]});
    if let Some(result) = result {
        status["result"] = Value::from(result);
    }
    let patch = Patch::Merge(json!({"status": status}));
    place.stops().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn each_result_ends_with_its_exit_code_and_is_named_first() {
    let place = Place::new().await;
    let results =
        [(Stopped, 0), (Accepted, 0), (EndedOtherwise, 4), (Expired, 5), (Unknown, 6), (Failed, 1), (StillActive, 1)];
    for (result, code) in results {
        let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
        let name = waiting.created().await;
        finish(&place, &name, Some(result.as_str()), ["Unknown", "OfAnotherVersion"]).await;
        let ended = waiting.ended().await.with(code);
        let outcome = format!("\n{name}: {} (OfAnotherVersion): It is so.\n", result.as_str());
        assert!(ended.out.contains(&outcome), "{}", ended.out);
    }
}

#[tokio::test]
async fn a_stop_that_an_older_operator_finished_without_a_result_ends_with_the_code_of_its_reason() {
    let place = Place::new().await;
    for (ready, code) in [
        (["True", "RunStopped"], 0),
        (["True", "RunEndedOtherwise"], 4),
        (["False", "OutcomeUnknown"], 6),
        (["False", "Rejected"], 1),
        (["True", "OfAnotherVersion"], 0),
        (["False", "OfAnotherVersion"], 1),
    ] {
        let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
        let name = waiting.created().await;
        finish(&place, &name, None, ready).await;
        waiting.ended().await.with(code);
    }
}

#[tokio::test]
async fn of_several_results_the_worst_exit_code_is_returned() {
    let place = Place::new().await;
    let waiting = Running::start(call(&place, &["wf-1", "wf-2", "wf-3", "--wait"]));
    waiting.tells("stop-wf-3").await;
    for (run, result) in [("wf-1", Unknown), ("wf-2", EndedOtherwise), ("wf-3", Expired)] {
        let stops = place.stops().list(&ListParams::default()).await.unwrap().items;
        let name = stops.iter().find(|stop| stop.spec.run_id == run).unwrap().name();
        finish(&place, name, Some(result.as_str()), ["False", "OutcomeUnknown"]).await;
    }
    waiting.ended().await.with(6);
}

#[tokio::test]
async fn a_stalled_stop_ends_with_1_and_says_what_to_do() {
    let place = Place::new().await;
    let _operator = place.operator().await;
    let ended = done(call(&place, &["wf-unknown", "--wait"])).await.with(1);
    assert!(ended.out.contains("Failed (RunNotFound): Amperity does not know this run"), "{}", ended.out);
    assert!(ended.out.contains("create a new WorkflowRunStop"), "{}", ended.out);
}

#[tokio::test]
async fn create_list_and_watch_are_all_the_rights_that_it_needs() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1"));
    let _operator = place.operator().await;
    grant(&place, User::Stranger, &["create", "list", "watch"]).await;
    let mut command = call(&place, &["wf-1", "--wait"]);
    command.env("KUBECONFIG", place.cluster.kubeconfig_for(User::Stranger));
    assert!(done(command).await.with(0).out.contains(": Stopped (RunStopped)"));
}

#[tokio::test]
async fn of_several_runs_each_is_stopped_and_told_and_the_worst_counts() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1"));
    place.amperity.add_run(TENANT, Run::new("wf-2").stops_in(Duration::from_secs(2)));
    let _operator = place.operator().await;
    let ended = done(call(&place, &["wf-1", "wf-unknown", "wf-2", "--wait"])).await.with(1);
    assert_eq!(ended.all_created().len(), 3, "{}", ended.out);
    assert_eq!(ended.out.matches(": Stopped (RunStopped)").count(), 2, "{}", ended.out);
    assert_eq!(ended.out.matches(": Failed (RunNotFound)").count(), 1, "{}", ended.out);
    assert_eq!([place.sent("wf-1").0, place.sent("wf-2").0], [1, 1]);
}

#[tokio::test]
async fn a_run_that_is_refused_keeps_none_of_the_others_from_being_stopped() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1"));
    let _operator = place.operator().await;
    let ended = done(call(&place, &["cg-1", "wf-1", "--wait"])).await.with(1);
    assert!(ended.err.contains("error: cg-1: the cluster refuses"), "{}", ended.err);
    assert!(ended.out.contains(&format!("{}: Stopped (RunStopped)", ended.created())), "{}", ended.out);
}

#[tokio::test]
async fn a_timeout_ends_with_3_and_leaves_the_stop_and_says_how_to_look_again() {
    let place = Place::new().await;
    let ended = done(call(&place, &["wf-1", "--wait", "--timeout", "1s"])).await.with(3);
    let name = ended.created();
    assert!(ended.err.contains(&format!("{name}: not finished after 1s: waits for the operator")), "{}", ended.err);
    assert!(ended.err.contains(&format!("  kubectl get wrs {name} -n {}\n", place.namespace)), "{}", ended.err);
    assert!(ended.err.contains(&format!("  kubectl describe wrs {name} -n {}\n", place.namespace)), "{}", ended.err);
    assert_eq!(place.get(&name).await.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn ctrl_c_ends_with_130_and_leaves_the_stop_and_says_how_to_look_again() {
    let place = Place::new().await;
    let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.tells("waits for the operator").await;
    waiting.interrupt().await;
    let ended = waiting.ended().await.with(130);
    assert!(ended.err.contains(&format!("  kubectl get wrs {name} -n {}\n", place.namespace)), "{}", ended.err);
    assert!(ended.err.contains(&format!("  kubectl describe wrs {name} -n {}\n", place.namespace)), "{}", ended.err);
    assert_eq!(place.get(&name).await.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn a_stop_that_is_deleted_meanwhile_ends_with_1_and_says_so() {
    let place = Place::new().await;
    let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.tells("waits for the operator").await;
    place.stops().delete(&name, &DeleteParams::default()).await.unwrap();
    let ended = waiting.ended().await.with(1);
    assert!(ended.err.contains(&format!("{name} was deleted before its end was seen")), "{}", ended.err);
}

#[tokio::test]
async fn where_no_operator_looks_at_it_that_is_said() {
    let place = Place::new().await;
    let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
    let said = waiting.tells("no operator has looked at it yet").await;
    assert!(said.contains(&format!("does it watch the namespace {}?", place.namespace)), "{said}");
}

#[tokio::test]
async fn a_wait_goes_on_when_the_api_server_was_away() {
    let place = Place::alone().await;
    place.amperity.add_run(TENANT, Run::new("wf-1"));
    let waiting = Running::start(call(&place, &["wf-1", "--wait"]));
    let name = waiting.created().await;
    waiting.tells("waits for the operator").await;
    place.cluster.kill_apiserver().await;
    waiting.tells(&format!("{name}: the cluster cannot be asked right now, still waiting: ")).await;
    place.cluster.start_apiserver().await;
    let _operator = place.operator().await;
    let ended = waiting.ended().await.with(0);
    assert!(ended.out.contains(&format!("{name}: Stopped (RunStopped)")), "{}", ended.out);
    assert_eq!(place.stops().list(&ListParams::default()).await.unwrap().items.len(), 1, "nothing was created twice");
}
