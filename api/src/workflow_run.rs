//! Owns the parts of a workflow run that the status repeats as Amperity returned them, and the meaning of a state.
//! Never changes a returned value.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The meaning of a run's state for a stop. Amperity treats new states as a non-breaking change, so every unknown state
/// counts as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Neither ended nor stopping.
    Active,
    /// A stop was accepted, and tasks are still running.
    Stopping,
    /// Ended by a stop.
    Stopped,
    /// Ended on its own: succeeded or failed.
    EndedOtherwise,
}

impl Phase {
    /// Classifies a state. Case, spaces, `-` and `_` are ignored.
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

    /// Returns true if the run has ended.
    pub fn has_ended(self) -> bool {
        match self {
            Self::Stopped | Self::EndedOtherwise => true,
            Self::Active | Self::Stopping => false,
        }
    }
}

/// An error of a run or of a task, as Amperity returned it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunError {
    /// The party that caused the error, for example `customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<String>,
    /// The type of the error, for example `amperity.workflow.workflow.repository.core/cancel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The error message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Additional data as JSON. Left out if it is larger than 16 KiB or nested deeper than 32 levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Value>", extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub data: Option<ErrorData>,
}

/// The additional data of an error: any JSON that is nested at most 127 levels deep.
///
/// It is held as text. As a [`Value`], an array of small objects takes up to 90 times as much memory as its text.
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorData(Box<str>);

impl ErrorData {
    /// Returns the data as JSON without white space, with the members of each object in the order of their keys.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Parses the data.
    pub fn to_value(&self) -> Value {
        // Deeper values cannot be parsed. No API server returns one.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<Value> for ErrorData {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl std::fmt::Debug for ErrorData {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Serialize for ErrorData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ErrorData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

/// A task of the run, as Amperity returned it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskInstance {
    /// The ID of the task, for example `wft-20240619-1-9Kx3Qb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The ID of the run that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The ID of the workflow that the task belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// The display name of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The state of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The execution type of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_type: Option<String>,
    /// The ID of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_id: Option<String>,
    /// The type of the task's definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition_type: Option<String>,
    /// The ID of the tenant that owns the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The timeout of the task in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// The time at which the task was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// The time at which the state of the task last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_changed_at: Option<String>,
    /// The time at which the task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The error of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
}

/// Further details of the run, as Amperity returned them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// The name of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The type of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The time at which the run was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// The time at which the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The version of the workflow with which the run was launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_version: Option<String>,
    /// The current version of the workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The ID of the principal that launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<String>,
    /// The name of the principal that launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_name: Option<String>,
    /// The email address of the principal that launched the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_email: Option<String>,
    /// The run time in milliseconds after which Amperity warns that the run takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_after_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_data_of_an_error_is_the_same_json_after_it_was_stored() {
        for value in [json!(7), json!("x\u{0}<"), json!([1.5, null, {"b": [], "a": {"\n": true}}]), json!(1e300)] {
            let error = RunError { data: Some(value.clone().into()), ..RunError::default() };
            let stored = serde_json::to_string(&error).unwrap();
            assert_eq!(stored, json!({"data": value}).to_string());
            let read: RunError = serde_json::from_str(&stored).unwrap();
            assert_eq!(read, error);
            assert_eq!(read.data.unwrap().to_value(), value);
        }
        let [first, second] = [r#"{"data":{"a":1,"b":2}}"#, r#"{"data": {"b":2, "a":1}}"#];
        let of = |json| serde_json::from_str::<RunError>(json).unwrap().data.unwrap();
        assert_eq!(of(first), of(second), "the order of keys does not matter");
        assert_eq!(of(second).as_json(), r#"{"a":1,"b":2}"#);
        assert_eq!(serde_json::from_str::<RunError>(r#"{"data":null}"#).unwrap().data, None);
    }

    #[test]
    fn a_state_is_classified_regardless_of_case_and_separators() {
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

    #[test]
    fn only_a_stopped_run_and_one_that_ended_on_its_own_have_ended() {
        for (phase, ended) in
            [(Phase::Active, false), (Phase::Stopping, false), (Phase::Stopped, true), (Phase::EndedOtherwise, true)]
        {
            assert_eq!(phase.has_ended(), ended, "{phase:?}");
        }
    }
}
