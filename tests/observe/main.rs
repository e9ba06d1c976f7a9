//! Owns the tests of metrics, alerts and dashboard with a real Prometheus. They need prometheus and promtool in the folder
//! $PROMETHEUS, which `make test` sets.
#![allow(clippy::unwrap_used, missing_docs)]

mod alerts;
mod dashboard;
mod prometheus;
#[path = "../cluster/rbac.rs"]
mod rbac;
mod scrape;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;

use std::fs;

/// Reads a file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

const ALERTS: &str = "charts/workflow-run-stop-operator/files/alerts.yaml";
const DASHBOARD: &str = "charts/workflow-run-stop-operator/files/dashboard.json";
const ALERT_TESTS: &str = "tests/observe/alerts.test.yaml";
