//! Owns the rights of the operator as the chart gives them. The integration tests run with these and no others; the
//! chart's own test compares.
//! Never knows to whom they are given.

use serde_json::{Value, json};

/// The name of the Lease where nothing else is said.
pub const LEASE: &str = "workflow-run-stop-operator";

/// In each namespace that is watched.
pub fn of_watched() -> Vec<Value> {
    vec![
        json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": ["get", "list", "watch", "delete"]}),
        json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}),
    ]
}

/// In the namespace of the Lease, with leader election.
pub fn of_lease(name: &str) -> Vec<Value> {
    vec![
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]}),
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [name], "verbs": ["get", "update"]}),
    ]
}
