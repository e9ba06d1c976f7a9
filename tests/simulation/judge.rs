//! Owns the invariants of the final state.
//! Never judges by anything but the stored objects and the requests that reached Amperity.

use crate::{
    judge_status::condition,
    promises::Promise,
    world::{Inner, World},
};

/// The reasons with which a resource may finish.
const FINAL_REASONS: [&str; 11] = [
    "RunStopped",
    "RunEndedOtherwise",
    "RunUnreadable",
    "RunStillActive",
    "OutcomeUnknown",
    "DeadlineExceeded",
    "Rejected",
    "RunNotFound",
    "UnexpectedAnswer",
    "StopAccepted",
    "Expired",
];

/// Returns true if every resource is finished.
pub fn all_finished(world: &World) -> bool {
    world.lock().objects.values().all(|object| object["status"]["completionTime"].is_string())
}

/// Returns true if every resource is finished or blocked by a permanent fault.
pub fn all_finished_or_blocked(world: &World) -> bool {
    let mut inner = world.lock();
    let objects = std::mem::take(&mut inner.objects);
    let finished = |object: &serde_json::Value| object["status"]["completionTime"].is_string();
    let all = objects.values().all(|object| finished(object) || !inner.permitted_waits(object).is_empty());
    inner.objects = objects;
    all
}

/// Checks the invariants of the final state.
pub fn judge(world: &World) {
    let mut inner = world.lock();
    // After a violation a schedule is not run to its end.
    let ran_to_its_end = inner.violations.is_empty();
    for (name, object) in inner.objects.clone() {
        if object["status"]["completionTime"].is_string() {
            check_finished(&mut inner, &name, &object);
        } else if ran_to_its_end {
            check_waiting(&mut inner, &name, &object);
        }
    }
    for (id, run) in inner.runs.clone() {
        if 1 < run.effects() {
            inner.fail(Promise::Once, &format!("{id}: {} effects", run.effects()));
        }
    }
}

/// Checks that an unfinished resource is blocked by a permanent fault and shows a reason that fits it.
fn check_waiting(inner: &mut Inner, name: &str, object: &serde_json::Value) {
    let (_, reason) = condition(&object["status"], "Ready");
    let permitted = inner.permitted_waits(object);
    if !permitted.iter().any(|permitted| permitted.is_none_or(|permitted| permitted == reason)) {
        let what = format!("{name} has not finished; it waits with {reason:?}, and may with {permitted:?}");
        inner.fail(Promise::NothingLost, &what);
    }
}

/// Checks that the status of a finished resource agrees with its run.
fn check_finished(inner: &mut Inner, name: &str, object: &serde_json::Value) {
    let status = &object["status"];
    let (ready, reason) = condition(status, "Ready");
    let (accepted, _) = condition(status, "StopAccepted");
    if status["observedGeneration"] != object["metadata"]["generation"] {
        let what = format!("{name} finished without having observed its last generation");
        inner.fail(Promise::TruthfulStatus, &what);
    }
    let run = inner.run(object["spec"]["runId"].as_str().unwrap()).unwrap().clone();
    let attempts = status["stopRequest"]["attempts"].as_u64().unwrap_or_default();
    if attempts < run.posts.len() as u64 {
        inner.fail(Promise::Once, &format!("{name}: {} POSTs and only {attempts} claims", run.posts.len()));
    }
    let readable = run.is_readable() && !run.was_unreadable;
    let known = accepted == "True" || ["RunEndedOtherwise", "OutcomeUnknown"].contains(&reason);
    if 0 < run.effects() && readable && !known {
        let what = format!("{name}: a stop took effect, and it finished as {reason} with StopAccepted {accepted}");
        inner.fail(Promise::TruthfulStatus, &what);
    }
    let pending = run.posts.iter().any(|post| post.pending);
    if ready == "True" && readable && run.state == "running" && !pending && reason != "Expired" {
        inner.fail(Promise::TruthfulStatus, &format!("{name} is ready as {reason}, and its run is still running"));
    }
    if !FINAL_REASONS.contains(&reason) {
        inner.fail(Promise::TruthfulStatus, &format!("{name} finished as {reason}"));
    }
}
