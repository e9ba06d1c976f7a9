//! Owns the status: what was observed, in the words in which it was observed.
//! Never claims more than that, and decides nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::StopResult;
use crate::workflow_run::{RunDetails, RunError, TaskInstance};

/// What is known of the stop and of the run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
// What the operator has not seen yet is not up to date: without this, kstatus would take a new resource for done.
#[schemars(extend("default" = {"observedGeneration": -1}))]
pub struct WorkflowRunStopStatus {
    /// The result in one word, set together with `completionTime` and never before. Resources that finished before this
    /// field existed have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<StopResult>,

    /// The run's state exactly as the API last returned it: `stopping`, `canceled`, `succeeded`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,

    /// The run's error as returned. It does not mean that the run failed: a run that a person
    /// stopped carries one as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,

    /// The run's task instances as returned; absent until an answer carried them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_instances: Option<Vec<TaskInstance>>,

    /// How many task instances did not fit into the status. Unsuccessful and unended ones are kept first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_instances_omitted: Option<i32>,

    /// What else the API said of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunDetails>,

    /// The stop request: how often it was sent and what was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_request: Option<StopRequest>,

    /// Ready, Reconciling, Stalled, StopAccepted and RunEnded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,

    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// When the resource finished, on success and on failure alike. Set once; nothing changes after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

impl WorkflowRunStopStatus {
    /// A status that surely fits and is surely valid: what was learned, without what the run carries along.
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

/// The stop request.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StopRequest {
    /// Where the request goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How many requests were claimed; each claim allows one request at the most.
    #[serde(default)]
    pub attempts: i32,
    /// Present exactly while a request may be in flight or its outcome is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// When it was learned that the API accepted the stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_time: Option<Time>,
    /// The run's state in the answer to the stop request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_state: Option<String>,
    /// The HTTP status of the last answer to a stop request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// The API's `request_id`, or else `trace_id`, of that answer; Amperity support asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The message of that answer; of a redirect, where it points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Nothing is sent for this resource before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
}

/// The right to send one stop request, written before it is sent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The claim's own id, new for each request.
    pub id: String,
    /// The replica that made the claim.
    pub holder: String,
    /// When the claim was made, by its holder's clock.
    pub time: Time,
    /// How the request ended, where no answer told its outcome; absent while it may be in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<ClaimEnded>,
}

/// The end of a request that left its outcome open.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ClaimEnded {
    /// When it ended, by its holder's clock.
    pub time: Time,
    /// What came in place of a clear answer.
    pub answer: UnclearAnswer,
}

/// What came in place of a clear answer to a stop request; `httpStatus` tells more. The list is closed: a replica of an
/// older version could not decode another value.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnclearAnswer {
    /// No whole answer: a timeout or a broken connection.
    NoAnswer,
    /// A server error, which does not tell whether the stop took effect.
    ServerError,
    /// A success whose body is not this run, a redirect, or a 4xx that is not Amperity's own answer.
    NotOurRun,
    /// Amperity's own 409, 400 or 422: the stop was not carried out, and only reading tells why.
    Conflict,
}
