//! Owns the RBAC rules of the operator. All integration tests run with exactly these rules; tests/cluster/chart checks
//! that the chart grants the same.
//! Never binds them to a user.

use serde_json::{Value, json};

/// The default name of the Lease.
pub const DEFAULT_LEASE: &str = "workflow-run-stop-operator";

/// Returns the rules for each watched namespace.
pub fn watched_namespace_rules() -> Vec<Value> {
    vec![
        json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": ["get", "list", "watch", "delete"]}),
        json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}),
    ]
}

/// Returns the rules for the namespace of the Lease. Only needed with leader election.
pub fn lease_rules(name: &str) -> Vec<Value> {
    vec![
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]}),
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [name], "verbs": ["get", "update"]}),
    ]
}
