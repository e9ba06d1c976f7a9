//! Owns the comparison: how a sample's stop ended beside how it must end.
//! Never changes or waits for anything.

use lab::simulator::Simulator;
use serde_json::Value;

use crate::samples::Sample;

const CONDITIONS: [&str; 5] = ["Ready", "Reconciling", "Stalled", "StopAccepted", "RunEnded"];

/// Whether a resource has come to its end.
pub fn is_finished(resource: &Value) -> bool {
    resource["status"]["completionTime"].is_string()
}

/// Every difference, in a line each; none where the stop ended as it must.
pub fn differences(sample: &Sample, resource: &Value, amperity: &Simulator) -> Vec<String> {
    let status = &resource["status"];
    let Sample { file: _, name, run, state, conditions, error, tasks, effects } = sample;
    let (posts, had_effect) = (amperity.stops(run), amperity.effects(run));
    let mut all = Vec::new();
    let mut expect = |what: &str, is: String, must: String| {
        if is != must {
            all.push(format!("{name}: {what} must be {must}, but is {is}"));
        }
    };
    expect("the number of stop requests that Amperity received", posts.to_string(), "1".to_owned());
    expect("the number of those that had an effect", had_effect.to_string(), effects.to_string());
    expect("stopRequest.attempts", status["stopRequest"]["attempts"].to_string(), "1".to_owned());
    expect("state", status["state"].to_string(), Value::from(*state).to_string());
    expect("the list of conditions", list(&conditions_of(status)), list(conditions));
    expect("error", status["error"].to_string(), error.to_string());
    let states = status["taskInstances"].as_array().map(|tasks| {
        let states: Vec<_> = tasks.iter().map(|task| task["state"].as_str().unwrap_or_default()).collect();
        list(&states)
    });
    let told = |states: Option<String>| states.unwrap_or_else(|| "absent".to_owned());
    expect("the list of the tasks' states", told(states), told(tasks.map(list)));
    let without_error = failed_tasks(status).filter(|task| !task["error"]["message"].is_string()).count();
    expect("the number of failed tasks without an error", without_error.to_string(), "0".to_owned());
    all
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
