//! Owns the comparison of a sample's actual result with the expected one.
//! Never changes or waits for anything.

use lab::simulator::Simulator;
use serde_json::Value;

use crate::samples::Sample;

const CONDITIONS: [&str; 5] = ["Ready", "Reconciling", "Stalled", "StopAccepted", "RunEnded"];

/// Returns whether a resource is finished.
pub fn is_finished(resource: &Value) -> bool {
    resource["status"]["completionTime"].is_string()
}

/// Returns the differences from the expected result, one line each.
pub fn differences(sample: &Sample, resource: &Value, amperity: &Simulator) -> Vec<String> {
    let status = &resource["status"];
    let Sample { file: _, name, run, state, conditions, error, tasks, effects } = sample;
    let (sent, had_effect) = (amperity.stops(run), amperity.effects(run));
    let mut differences = Vec::new();
    let mut expect = |what: &str, actual: String, expected: String| {
        if actual != expected {
            differences.push(format!("{name}: {what} is {actual}, expected {expected}"));
        }
    };
    expect("the number of stop requests that Amperity received", sent.to_string(), "1".to_owned());
    expect("the number of requests that took effect", had_effect.to_string(), effects.to_string());
    expect("stopRequest.attempts", status["stopRequest"]["attempts"].to_string(), "1".to_owned());
    expect("state", status["state"].to_string(), Value::from(*state).to_string());
    expect("the list of conditions", list(&conditions_of(status)), list(conditions));
    expect("error", status["error"].to_string(), error.to_string());
    let states = status["taskInstances"].as_array().map(|tasks| {
        let states: Vec<_> = tasks.iter().map(|task| task["state"].as_str().unwrap_or_default()).collect();
        list(&states)
    });
    let text = |states: Option<String>| states.unwrap_or_else(|| "absent".to_owned());
    expect("the list of task states", text(states), text(tasks.map(list)));
    let without_error = failed_tasks(status).filter(|task| !task["error"]["message"].is_string()).count();
    expect("the number of failed tasks without an error", without_error.to_string(), "0".to_owned());
    differences
}

fn list(words: &[impl AsRef<str>]) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    format!("[{}]", words.join(", "))
}

fn conditions_of(status: &Value) -> Vec<String> {
    let all = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let of_type = |kind: &&str| all.iter().find(|condition| condition["type"] == **kind);
    CONDITIONS
        .iter()
        .filter_map(|kind| of_type(kind).map(|found| (kind, text(found, "status"), text(found, "reason"))))
        .map(|(kind, status, reason)| format!("{kind}={status} {reason}"))
        .collect()
}

fn failed_tasks(status: &Value) -> impl Iterator<Item = &Value> {
    status["taskInstances"].as_array().into_iter().flatten().filter(|task| task["state"] == "failed")
}
