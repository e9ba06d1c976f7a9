//! Owns the types of the status: what was observed, as it was observed.
//! Never decides anything.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::StopResult;
use crate::workflow_run::{RunDetails, RunError, TaskInstance};

/// The progress and the outcome of the stop, and the run as Amperity last returned it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
// Without this default, kstatus would report a resource that the operator has not seen yet as current.
#[schemars(extend("default" = {"observedGeneration": -1}))]
pub struct WorkflowRunStopStatus {
    /// The outcome in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<StopResult>,

    /// The run's state exactly as Amperity last returned it, for example `stopping`, `canceled` or `succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,

    /// The run's error as Amperity returned it. It does not mean that the run failed: a run that was stopped has an error
    /// as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,

    /// The run's task instances as Amperity returned them. Absent until an answer contained them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_instances: Option<Vec<TaskInstance>>,

    /// The number of task instances that were left out because the status has a size limit. Failed and unfinished ones
    /// take precedence over successful ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_instances_omitted: Option<i32>,

    /// Further details of the run as Amperity returned them: names, times and the principal that launched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunDetails>,

    /// The record of the stop requests: how many were claimed, and what Amperity answered to the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_request: Option<StopRequest>,

    /// The conditions `Ready`, `Reconciling`, `Stalled`, `StopAccepted` and `RunEnded`. The message of `Ready` says what
    /// happened and what to do. To wait for the end, use
    /// `kubectl wait --for=jsonpath='{.status.result}'`, because `Ready` becomes true only on success.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,

    /// The generation of the spec that this status describes; -1 until the operator has seen the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The time at which the resource finished, with or without success. It is set once; after that neither spec nor status
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

impl WorkflowRunStopStatus {
    /// Returns the status without the error, tasks and details of the run. The rest is always valid and within the size
    /// limit.
    #[must_use]
    pub fn bare(self) -> Self {
        let kept = self.task_instances.as_ref().map_or(0, Vec::len);
        let omitted = i32::try_from(kept).unwrap_or(i32::MAX).saturating_add(self.task_instances_omitted.unwrap_or(0));
        Self {
            error: None,
            run: None,
            task_instances: self.task_instances.map(|_| vec![]),
            task_instances_omitted: Some(omitted).filter(|omitted| *omitted != 0),
            ..self
        }
    }
}

/// The record of the stop requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StopRequest {
    /// The URL of the last stop request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The number of stop requests that were claimed. Each claim allows at most one request.
    #[serde(default)]
    pub attempts: i32,
    /// The right to send one stop request, stored before the request is sent. Present only while the request may be in
    /// flight or its outcome is not known; as long as it is present, no other request is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The time at which the operator learned that Amperity accepted the stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_time: Option<Time>,
    /// The run's state in Amperity's answer to the stop request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_state: Option<String>,
    /// The HTTP status code of the answer to the last stop request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// The `request_id` of the answer to the last stop request, or its `trace_id` if it has none. Amperity support asks
    /// for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The message of the answer to the last stop request, or the host that a redirect points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The time before which the operator sends no stop request, and does not read the run to learn the outcome of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
}

/// The right to send one stop request, stored before the request is sent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The ID of the claim, unique for each request.
    pub id: String,
    /// The replica of the operator that made the claim.
    pub holder: String,
    /// The time at which the claim was made, by the clock of the holder.
    pub time: Time,
    /// The end of the request, if it left the outcome open. Absent while the request may be in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<ClaimEnded>,
}

/// The end of a request that left its outcome open.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ClaimEnded {
    /// The time at which the request ended, by the clock of the holder.
    pub time: Time,
    /// The kind of answer that left the outcome open.
    pub answer: UnclearAnswer,
}

/// The kind of answer that left the outcome of a stop request open; `httpStatus` has its status code. No value is ever
/// added, because a replica of an older version could not decode it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnclearAnswer {
    /// No complete answer: a timeout or a broken connection.
    NoAnswer,
    /// A server error, which leaves open whether the stop took effect.
    ServerError,
    /// A success whose body is not this run, a redirect, or a 4xx that is not Amperity's own answer.
    NotOurRun,
    /// Amperity's own 409, 400 or 422: the stop was not carried out, and the run is read to learn why.
    Conflict,
}
