//! Owns the parts of a workflow run that the status repeats as Amperity returned them, and what a state means.
//! Never adds anything to what was returned.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a state means for a stop. The API declares new states as non-breaking, so every state that
/// is not known counts as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ended and not about to.
    Active,
    /// A stop was accepted and tasks still run.
    Stopping,
    /// Ended by a stop.
    Stopped,
    /// Ended in another way.
    EndedOtherwise,
}

impl Phase {
    /// Classifies a state; case, spaces, `-` and `_` do not count.
    pub fn of(state: &str) -> Self {
        let folded: String =
            state.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).flat_map(char::to_lowercase).collect();
        match folded.as_str() {
            "canceled" | "cancelled" | "stopped" => Self::Stopped,
            "stopping" | "canceling" | "cancelling" => Self::Stopping,
            "succeeded" | "failed" => Self::EndedOtherwise,
            _ => Self::Active,
        }
    }

    /// True where the run has ended.
    pub fn has_ended(self) -> bool {
        match self {
            Self::Stopped | Self::EndedOtherwise => true,
            Self::Active | Self::Stopping => false,
        }
    }
}

/// An error of a run or of a task, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunError {
    /// Who caused it, for example `customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<String>,
    /// The kind of error, for example `amperity.workflow.workflow.repository.core/cancel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// What happened, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Any JSON that came along; left out where it is larger than 16 KiB or nested deeper than 32 levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub data: Option<Value>,
}

/// One task of the run, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskInstance {
    /// The task's id, for example `wft-...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The run that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The workflow that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// The task's name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The task's state as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How the task is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_type: Option<String>,
    /// The id of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_id: Option<String>,
    /// The type of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_type: Option<String>,
    /// The task's tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The task's time limit in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// When the task was created, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When the task's state last changed, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_changed_at: Option<String>,
    /// When the task ended, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The task's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
}

/// What else the API said of the run, as returned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// The run's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The run's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// When the run was created, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When the run ended, as returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The workflow's version when the run was launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_version: Option<String>,
    /// The workflow's version now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The id of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<String>,
    /// The name of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_name: Option<String>,
    /// The email address of who launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_email: Option<String>,
    /// After how many milliseconds the API warns that the run takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_after_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_classified_whatever_its_case_and_separators() {
        for (state, phase) in [
            ("canceled", Phase::Stopped),
            ("Cancelled", Phase::Stopped),
            ("stopped", Phase::Stopped),
            ("STOPPING", Phase::Stopping),
            ("canceling", Phase::Stopping),
            ("cancelling", Phase::Stopping),
            ("succeeded", Phase::EndedOtherwise),
            ("Failed", Phase::EndedOtherwise),
            ("running-with-failures", Phase::Active),
            ("In progress", Phase::Active),
            ("scheduled", Phase::Active),
            ("something new", Phase::Active),
            ("", Phase::Active),
        ] {
            assert_eq!(Phase::of(state), phase, "{state}");
        }
    }
}
