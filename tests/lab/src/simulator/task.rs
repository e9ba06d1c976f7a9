//! Owns the JSON of a simulated task instance.
//! Never chooses the state of a run: a task's state is derived from it.

use serde_json::{Value, json};

/// The fields that all tasks of a run share.
pub(super) struct TaskContext<'a> {
    pub(super) run_id: &'a str,
    pub(super) tenant: &'a str,
    pub(super) run_state: &'a str,
    pub(super) created_at: &'a str,
    pub(super) ended_at: Option<&'a str>,
}

impl TaskContext<'_> {
    /// Returns the task with this index. Every third one has succeeded before the stop.
    pub(super) fn task(&self, index: usize) -> Value {
        let done = index.is_multiple_of(3);
        let state = if done { "succeeded" } else { self.run_state };
        let ended_at = if done { Some(self.created_at) } else { self.ended_at };
        // The API sends both forms of a number.
        let timeout_ms = if index.is_multiple_of(2) { json!(3_600_000.0) } else { json!(7_200_000) };
        let mut task = json!({
            "id": format!("wft-20240619-{index}-9Kx3Qb"),
            "run_id": self.run_id,
            "workflow_id": self.run_id,
            "label": format!("Send to destination {index}"),
            "state": state,
            "execution_type": if index.is_multiple_of(2) { "job" } else { "orchestration" },
            "task_definition_id": format!("send-{index}"),
            "task_definition_type": "amperity.courier.task/send",
            "tenant": self.tenant,
            "timeout_ms": timeout_ms,
            "created_at": self.created_at,
            "state_changed_at": ended_at.unwrap_or(self.created_at),
            "unheard_of_field": [index, "added later"],
        });
        // The API omits the field of a task that has not ended, instead of sending null.
        if let Some(ended_at) = ended_at {
            task["ended_at"] = json!(ended_at);
        }
        if state == "failed" {
            task["error"] = json!({
                "attribution": "customer",
                "type": "amperity.courier.destination/refused",
                "message": format!("Destination {index} refused the file"),
                "data": {"destination": index, "code": 550},
            });
        }
        task
    }
}
