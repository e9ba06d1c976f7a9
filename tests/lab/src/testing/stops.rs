//! Owns the stops and runs of the tests, and the parts of a status that tests compare.
//! Never sends a request.

use workflow_run_stop_api::{
    StopRequest, WorkflowRunStop, WorkflowRunStopSpec,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use super::TENANT;
use crate::simulator::{Run, StopResponseTasks};

/// A stop of this run with the Secret `amperity`, named after the run.
pub fn a_stop(run: &str) -> WorkflowRunStop {
    WorkflowRunStop::new(&run.to_lowercase(), WorkflowRunStopSpec::new(run, TENANT, "amperity"))
}

/// Returns a run that a stop ends at once. The response to the stop has the field `task_instances`, so that no read is
/// needed.
pub fn ends_at_once(run: &str) -> Run {
    Run::new(run).stop_response_tasks(StopResponseTasks::Empty)
}

/// Returns the message of a condition, empty if it is absent.
pub fn message(stop: &WorkflowRunStop, kind: ConditionType) -> String {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind.as_str());
    found.map(|found| found.message.clone()).unwrap_or_default()
}

/// Returns status and reason of a condition, empty if it is absent.
pub fn condition(stop: &WorkflowRunStop, kind: ConditionType) -> (String, String) {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind.as_str());
    found.map(|found| (found.status.clone(), found.reason.clone())).unwrap_or_default()
}

/// Returns status and reason of the condition Ready.
pub fn ready(stop: &WorkflowRunStop) -> (String, String) {
    condition(stop, ConditionType::Ready)
}

/// The expected status and reason of a condition.
pub fn is(status: ConditionStatus, reason: Reason) -> (String, String) {
    (status.as_str().to_owned(), reason.as_str().to_owned())
}

/// Returns one line, `type: status reason`, for each condition in a fixed order.
pub fn condition_lines(stop: &WorkflowRunStop) -> Vec<String> {
    use ConditionType::{Ready, Reconciling, RunEnded, Stalled, StopAccepted};
    let line = |kind: ConditionType| match condition(stop, kind) {
        (status, _) if status.is_empty() => None,
        (status, reason) => Some(format!("{}: {status} {reason}", kind.as_str())),
    };
    [Ready, Reconciling, Stalled, StopAccepted, RunEnded].into_iter().filter_map(line).collect()
}

/// Returns the stop request of the status.
pub fn stop_request(stop: &WorkflowRunStop) -> StopRequest {
    stop.status.as_ref().and_then(|status| status.stop_request.clone()).unwrap_or_default()
}
