//! Holds what an operator's owner looks at: a real Prometheus gets the metrics, the alerts fire when they should, and the
//! dashboard shows something. Needs prometheus and promtool, from the folder $PROMETHEUS; `make test` gets it.
#![allow(clippy::unwrap_used, missing_docs)]

mod alerts;
mod dashboard;
mod prometheus;
#[path = "../cluster/rights.rs"]
mod rights;
mod scraped;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;

use std::fs;

/// A file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

const ALERTS: &str = "charts/workflow-run-stop-operator/files/alerts.yaml";
const DASHBOARD: &str = "charts/workflow-run-stop-operator/files/dashboard.json";
const ALERT_TESTS: &str = "tests/observe/alerts.test.yaml";
