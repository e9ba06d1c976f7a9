//! Owns what has to hold at the end.
//! Never judges by anything but the stored objects and what arrived at the API.

use crate::{
    judge_status::condition,
    promises::Promise,
    world::{Inner, World},
};

/// Reasons with which a resource may finish.
const ENDS: [&str; 11] = [
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

/// True if every resource is finished.
pub fn all_ended(world: &World) -> bool {
    world.lock().objects.values().all(|object| object["status"]["completionTime"].is_string())
}

/// True if every resource is finished or waits for something that never comes.
pub fn all_settled(world: &World) -> bool {
    let mut inner = world.lock();
    let objects = std::mem::take(&mut inner.objects);
    let ended = |object: &serde_json::Value| object["status"]["completionTime"].is_string();
    let settled = objects.values().all(|object| ended(object) || !inner.excuses(object).is_empty());
    inner.objects = objects;
    settled
}

/// What has to hold at the end.
pub fn judge(world: &World) {
    let mut inner = world.lock();
    // A schedule that went wrong is not followed to its end.
    let was_followed = inner.wrong.is_empty();
    for (name, object) in inner.objects.clone() {
        if object["status"]["completionTime"].is_string() {
            ended(&mut inner, &name, &object);
        } else if was_followed {
            waits(&mut inner, &name, &object);
        }
    }
    for (id, run) in inner.runs.clone() {
        if 1 < run.effects() {
            inner.fail(Promise::Once, &format!("{id}: {} effects", run.effects()));
        }
    }
}

fn waits(inner: &mut Inner, name: &str, object: &serde_json::Value) {
    let (_, reason) = condition(&object["status"], "Ready");
    let excuses = inner.excuses(object);
    if !excuses.iter().any(|excuse| excuse.is_none_or(|excuse| excuse == reason)) {
        let what = format!("{name} has not ended; it waits for {reason:?}, and may for {excuses:?}");
        inner.fail(Promise::NothingLost, &what);
    }
}

fn ended(inner: &mut Inner, name: &str, object: &serde_json::Value) {
    let status = &object["status"];
    let (ready, reason) = condition(status, "Ready");
    let (accepted, _) = condition(status, "StopAccepted");
    if status["observedGeneration"] != object["metadata"]["generation"] {
        let what = format!("{name} ended without having observed its last generation");
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
        let what = format!("{name}: a stop took effect, and it ended as {reason} with StopAccepted {accepted}");
        inner.fail(Promise::TruthfulStatus, &what);
    }
    let pending = run.posts.iter().any(|post| post.pending);
    if ready == "True" && readable && run.state == "running" && !pending && reason != "Expired" {
        inner.fail(Promise::TruthfulStatus, &format!("{name} is ready as {reason}, and its run goes on"));
    }
    if !ENDS.contains(&reason) {
        inner.fail(Promise::TruthfulStatus, &format!("{name} ended as {reason}"));
    }
}
