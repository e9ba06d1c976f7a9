//! Owns what has to hold at the end.
//! Never judges by anything but the stored objects and what arrived at the API.

use crate::world::World;

pub fn all_ended(world: &World) -> bool {
    world.lock().objects.values().all(|object| object["status"]["completionTime"].is_string())
}

/// What has to hold at the end.
pub fn judge(world: &World) {
    let mut inner = world.lock();
    for (name, object) in inner.objects.clone() {
        let status = &object["status"];
        let condition = |kind: &str| {
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.into_iter().find(|one| one["type"] == kind).unwrap_or_default();
            (
                found["status"].as_str().unwrap_or_default().to_owned(),
                found["reason"].as_str().unwrap_or_default().to_owned(),
            )
        };
        let (ready, reason) = condition("Ready");
        if !status["completionTime"].is_string() {
            inner.fail(&format!("{name} has not ended; it waits for {reason:?}"));
            continue;
        }
        if status["observedGeneration"] != object["metadata"]["generation"] {
            inner.fail(&format!("{name} ended without having observed its last generation"));
        }
        let run = inner.runs[object["spec"]["runId"].as_str().unwrap()].clone();
        let effects = run.posts.iter().filter(|post| post.effect).count();
        let attempts = status["stopRequest"]["attempts"].as_u64().unwrap_or_default();
        if attempts < run.posts.len() as u64 {
            inner.fail(&format!("{name}: {} POSTs and only {attempts} claims", run.posts.len()));
        }
        if 1 < effects {
            inner.fail(&format!("{name}: {effects} effects"));
        }
        let (accepted, _) = condition("StopAccepted");
        // A run that had ended or was stopping already is answered with a success as well.
        let success = run.posts.iter().any(|post| post.success);
        if accepted == "True" && effects == 0 && !success && !["stopping", "canceled"].contains(&run.state) {
            inner.fail(&format!("{name} says that a stop was accepted, and none was"));
        }
        if 0 < effects && run.readable && accepted != "True" && reason != "RunEndedOtherwise" {
            inner.fail(&format!("{name}: a stop took effect, and it ended as {reason} with StopAccepted {accepted}"));
        }
        if ready == "True" && run.readable && run.state == "running" {
            inner.fail(&format!("{name} is ready, and its run goes on"));
        }
        let known = [
            "RunStopped",
            "RunEndedOtherwise",
            "RunUnreadable",
            "OutcomeUnknown",
            "DeadlineExceeded",
            "Rejected",
            "StopAccepted",
        ];
        if !known.contains(&reason.as_str()) {
            inner.fail(&format!("{name} ended as {reason}"));
        }
        if reason == "OutcomeUnknown" && run.readable {
            inner.fail(&format!("{name} ended as {reason}, and its run can be read"));
        }
    }
}
