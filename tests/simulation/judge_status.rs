//! Owns the invariants of every status, checked when it is stored.
//! Never judges by anything but the stored objects, the runs, and the requests that reached Amperity.

use std::time::Duration;

use serde_json::Value;

use crate::{
    judge_requests::{record_claim, time},
    promises::Promise,
    runs::Run,
    world::Inner,
};

/// The time after which an open claim may end with an unknown outcome, less a tolerance for the duration of the write.
const OPEN_CLAIM: Duration = Duration::from_secs(3600 - 30);

/// Returns the status and reason of a condition; empty if it is not set.
pub fn condition<'a>(status: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let all = status["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|one| one["type"] == kind));
    let text = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default();
    (text("status"), text("reason"))
}

/// Checks a replica's patch of a status right before it is stored.
pub fn check_status(inner: &mut Inner, replica: usize, name: &str, before: &Value, after: &Value) {
    let status = &after["status"];
    let (ready, reason) = condition(status, "Ready");
    let request = &status["stopRequest"];
    let claim = request["claim"]["id"].as_str();
    let short = claim.map(|id| &id[..id.len().min(6)]);
    let result = status["result"].as_str();
    inner.log(&format!("replica {replica}: {name} is {reason}, claim {short:?}, result {result:?}"));
    if before["status"]["completionTime"].is_string() && before["status"] != *status {
        inner.fail(Promise::TruthfulStatus, &format!("the status of {name} changed after it had finished"));
    }
    if let Some(claim) = claim
        && before["status"]["stopRequest"]["claim"]["id"] != claim
    {
        record_claim(inner, after["metadata"]["uid"].as_str().unwrap_or_default(), claim);
        let tenant = after["spec"]["tenant"].as_str().unwrap_or_default();
        if inner.is_rate_limited(replica, tenant) {
            let what = format!("replica {replica} claims {name} although a 429 closes its budget");
            inner.fail(Promise::RateLimit, &what);
        }
        if after["spec"]["suspend"] == true {
            inner.fail(Promise::AsSpecified, &format!("{name} is claimed while it is suspended"));
        }
    }
    if request["acceptedTime"].is_string() && reason == "Forbidden" {
        inner.fail(Promise::TruthfulStatus, &format!("the stop of {name} was accepted, and it shows Forbidden"));
    }
    let Some(run) = inner.run(after["spec"]["runId"].as_str().unwrap_or_default()).cloned() else { return };
    if let Some(state) = status["state"].as_str()
        && !run.states.contains(&state)
    {
        inner.fail(
            Promise::TruthfulStatus,
            &format!("the status of {name} says that its run is {state}, and it never was"),
        );
    }
    if condition(status, "StopAccepted").0 == "True" && !run.is_accepted() {
        inner.fail(
            Promise::TruthfulStatus,
            &format!("the status of {name} says that a stop was accepted, and none was"),
        );
    }
    if condition(status, "RunEnded").0 == "True" && !["canceled", "succeeded", "failed"].contains(&run.state) {
        inner.fail(Promise::TruthfulStatus, &format!("the status of {name} says that its run ended, and it did not"));
    }
    if result.is_some() != status["completionTime"].is_string() {
        inner.fail(
            Promise::TruthfulStatus,
            &format!("{name} has the result {result:?} without a completionTime, or the reverse"),
        );
    }
    if let Some(result) = result {
        check_result(inner, replica, name, before, after, &run, result);
    }
    if status["completionTime"].is_string() && ready.is_empty() {
        inner.fail(Promise::TruthfulStatus, &format!("{name} finished without the condition Ready"));
    }
}

/// Checks a result that is about to be stored.
fn check_result(inner: &mut Inner, replica: usize, name: &str, before: &Value, after: &Value, run: &Run, result: &str) {
    let request = &after["status"]["stopRequest"];
    let sent = run.posts.len();
    let is_true = match result {
        "Stopped" => run.state == "canceled",
        "EndedOtherwise" => ["succeeded", "failed"].contains(&run.state),
        "Accepted" | "StillActive" => run.is_accepted(),
        "Expired" => {
            let created = time(&after["metadata"]["creationTimestamp"]);
            sent == 0 && created.zip(time(&after["spec"]["notAfter"])).is_some_and(|(created, end)| end <= created)
        }
        // Without a claim: the run became unreadable before a further request.
        "Unknown" => {
            before["status"]["stopRequest"]["claim"].is_object() || (request["attempts"] != 0 && run.was_unreadable)
        }
        "Failed" => !run.is_readable() || run.was_unreadable || run.effects() == 0,
        _ => false,
    };
    if !is_true {
        let what = format!("{name} has the result {result}; its run is {}, {} effects", run.state, run.effects());
        inner.fail(Promise::TruthfulStatus, &what);
    }
    // A readable run shows the outcome of a request, so Unknown needs a claim that was open for the whole limit.
    let claimed = time(&before["status"]["stopRequest"]["claim"]["time"]);
    let open = claimed.map(|claimed| inner.wall_at_most(replica).duration_since(claimed).unsigned_abs());
    // The time in the claim may be wrong; the replica also counts how long it has observed the claim.
    let stored = inner.claims.get(after["metadata"]["uid"].as_str().unwrap_or_default());
    let observed = stored.is_some_and(|(_, stored)| OPEN_CLAIM <= stored.elapsed());
    let open_for_long = observed || open.is_some_and(|open| OPEN_CLAIM <= open);
    if result == "Unknown" && run.is_readable() && !run.was_unreadable && !open_for_long {
        inner.fail(Promise::NothingLost, &format!("{name} finished as Unknown, and its run can be read"));
    }
    let (_, reason) = condition(&after["status"], "Ready");
    if reason == "RunUnreadable" && run.is_readable() && !run.was_unreadable {
        inner.fail(Promise::NothingLost, &format!("{name} finished as {reason} after a single answer that said so"));
    }
    let incarnation = inner.replica(replica).incarnation;
    let learned = run.posts.iter().any(|post| post.received == Some((replica, incarnation)));
    if learned && !request["acceptedTime"].is_string() {
        inner.fail(
            Promise::NothingLost,
            &format!("{name} finished as {result} by a replica that knew of its acceptance"),
        );
    }
}
