//! Owns what has to hold in every status that is stored.
//! Never judges by anything but the stored objects, the runs, and what arrived at the API.

use std::time::Duration;

use serde_json::Value;

use crate::{
    judge_requests::{claim_is_stored, time},
    promises::Promise,
    runs::Run,
    world::Inner,
};

/// An open claim may end without more knowledge after so long, at the earliest. A little less is tolerated, for the
/// time that the write was on its way.
const OPEN_CLAIM: Duration = Duration::from_secs(3600 - 30);

/// One condition's status and reason; empty where it is not set.
pub fn condition<'a>(status: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let all = status["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|one| one["type"] == kind));
    let text = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default();
    (text("status"), text("reason"))
}

/// A replica's patch of a status is about to be stored.
pub fn status_is_stored(inner: &mut Inner, replica: usize, name: &str, before: &Value, after: &Value) {
    let status = &after["status"];
    let (ready, reason) = condition(status, "Ready");
    let request = &status["stopRequest"];
    let claim = request["claim"]["id"].as_str();
    let short = claim.map(|id| &id[..id.len().min(6)]);
    let result = status["result"].as_str();
    inner.tell(&format!("replica {replica}: {name} is {reason}, claim {short:?}, result {result:?}"));
    if before["status"]["completionTime"].is_string() && before["status"] != *status {
        inner.fail(Promise::TruthfulStatus, &format!("the status of {name} changed after its end"));
    }
    if let Some(claim) = claim
        && before["status"]["stopRequest"]["claim"]["id"] != claim
    {
        claim_is_stored(inner, after["metadata"]["uid"].as_str().unwrap_or_default(), claim);
        let tenant = after["spec"]["tenant"].as_str().unwrap_or_default();
        if inner.has_closed_for_long(replica, tenant) {
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
        inner.fail(Promise::TruthfulStatus, &format!("{name} says that its run is {state}, and it never was"));
    }
    if condition(status, "StopAccepted").0 == "True" && !run.is_accepted() {
        inner.fail(Promise::TruthfulStatus, &format!("{name} says that a stop was accepted, and none was"));
    }
    if condition(status, "RunEnded").0 == "True" && !["canceled", "succeeded", "failed"].contains(&run.state) {
        inner.fail(Promise::TruthfulStatus, &format!("{name} says that its run ended, and it did not"));
    }
    if result.is_some() != status["completionTime"].is_string() {
        inner.fail(Promise::TruthfulStatus, &format!("{name} has the result {result:?} at another time than its end"));
    }
    if let Some(result) = result {
        result_is_stored(inner, replica, name, before, after, &run, result);
    }
    if status["completionTime"].is_string() && ready.is_empty() {
        inner.fail(Promise::TruthfulStatus, &format!("{name} ended without the condition Ready"));
    }
}

fn result_is_stored(
    inner: &mut Inner,
    replica: usize,
    name: &str,
    before: &Value,
    after: &Value,
    run: &Run,
    result: &str,
) {
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
        // Also before a further request, when the run cannot be read any more.
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
    // A run that can be read says what became of a request, unless the claim was open for very long.
    let claimed = time(&before["status"]["stopRequest"]["claim"]["time"]);
    let open = claimed.map(|claimed| inner.wall_at_most(replica).duration_since(claimed).unsigned_abs());
    // The replica may have observed it for as long, whatever time stands in it.
    let stored = inner.claims.get(after["metadata"]["uid"].as_str().unwrap_or_default());
    let observed = stored.is_some_and(|(_, stored)| OPEN_CLAIM <= stored.elapsed());
    let open_for_long = observed || open.is_some_and(|open| OPEN_CLAIM <= open);
    if result == "Unknown" && run.is_readable() && !run.was_unreadable && !open_for_long {
        inner.fail(Promise::NothingLost, &format!("{name} ended as Unknown, and its run can be read"));
    }
    let (_, reason) = condition(&after["status"], "Ready");
    if reason == "RunUnreadable" && run.is_readable() && !run.was_unreadable {
        inner.fail(Promise::NothingLost, &format!("{name} ended as {reason} after a single answer that said so"));
    }
    let life = inner.replica(replica).life;
    let learned = run.posts.iter().any(|post| post.received == Some((replica, life)));
    if learned && !request["acceptedTime"].is_string() {
        inner.fail(Promise::NothingLost, &format!("{name} ended as {result} by a replica that knew of its acceptance"));
    }
}
