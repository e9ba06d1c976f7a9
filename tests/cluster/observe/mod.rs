//! Owns the tests of metrics, alerts and dashboard with a real Prometheus. They need prometheus and promtool in the folder
//! $PROMETHEUS, which `make test` sets.

mod alerts;
mod dashboard;
mod prometheus;
mod scrape;

use std::fs;

/// Reads a file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

const ALERTS: &str = "charts/workflow-run-stop-operator/files/alerts.yaml";
const DASHBOARD: &str = "charts/workflow-run-stop-operator/files/dashboard.json";
const ALERT_TESTS: &str = "tests/cluster/observe/alerts.test.yaml";
