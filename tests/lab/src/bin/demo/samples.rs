//! Owns the samples: the runs of the simulated Amperity, the manifests that stop them, and the expected results.
//! Never reads the actual results.

pub use lab::examples::TENANT;
use lab::{examples, simulator::Simulator};
use serde_json::{Value, json};

/// The manifest that is applied before the samples.
pub const SECRET: &str = "secret.yaml";

/// A manifest in `examples/`, and the expected result of its stop.
pub struct Sample {
    pub file: &'static str,
    pub name: &'static str,
    pub run: &'static str,
    pub state: Option<&'static str>,
    /// All conditions, in the order of `comparison::CONDITIONS`.
    pub conditions: &'static [&'static str],
    pub error: Value,
    /// The states of the tasks; `None` if the status has no tasks.
    pub tasks: Option<&'static [&'static str]>,
    /// Number of stop requests that took effect.
    pub effects: usize,
}

/// Returns the samples that the demo applies.
pub fn samples() -> [Sample; 4] {
    [
        Sample {
            file: "stop.yaml",
            name: "stop-nightly",
            run: "wf-demo-1",
            state: Some("canceled"),
            conditions: &["Ready=True RunStopped", "StopAccepted=True StopAccepted", "RunEnded=True RunStopped"],
            error: json!({
                "attribution": "customer",
                "type": "amperity.workflow.workflow.repository.core/cancel",
                "message": "Workflow manually stopped",
            }),
            tasks: Some(&["succeeded", "canceled", "canceled"]),
            effects: 1,
        },
        Sample {
            file: "stop-ended.yaml",
            name: "stop-ended",
            run: "wf-demo-2",
            state: Some("succeeded"),
            conditions: &[
                "Ready=True RunEndedOtherwise",
                "StopAccepted=True StopAccepted",
                "RunEnded=True RunEndedOtherwise",
            ],
            error: Value::Null,
            tasks: Some(&["succeeded", "succeeded"]),
            effects: 0,
        },
        Sample {
            file: "stop-failing.yaml",
            name: FAILING,
            run: "wf-demo-3",
            state: Some("failed"),
            conditions: &[
                "Ready=True RunEndedOtherwise",
                "StopAccepted=True StopAccepted",
                "RunEnded=True RunEndedOtherwise",
            ],
            error: json!({
                "attribution": "amperity",
                "type": "amperity.workflow.task/failed",
                "message": "A task of the workflow failed",
                "data": {"failed_task_count": 1, "causes": [{"code": "E-17", "retryable": false}]},
            }),
            tasks: Some(&["succeeded", "failed"]),
            effects: 1,
        },
        Sample {
            file: "stop-unknown.yaml",
            name: "stop-unknown",
            run: "wf-demo-4",
            state: None,
            conditions: &[
                "Ready=False RunNotFound",
                "Stalled=True RunNotFound",
                "StopAccepted=False RunNotFound",
                "RunEnded=Unknown RunNotFound",
            ],
            error: Value::Null,
            tasks: None,
            effects: 0,
        },
    ]
}

/// The sample whose complete status is printed.
pub const FAILING: &str = "stop-failing";

/// Runs that no sample uses, for a demo with `--keep`.
pub const SPARE_RUNS: &str = "  wf-demo-5   takes 20 s to stop        examples/stop-another.yaml
  wf-demo-6   stops at once             examples/stop-suspended.yaml
  wf-demo-7   takes 5 s to stop         examples/stop-with-limits.yaml
  wf-demo-8   takes 5 s to stop         examples/client-credentials.yaml
  wf-demo-9   takes 5 s, has 200 tasks  for your own manifest
";

/// Starts a simulated Amperity with all runs that the manifests in `examples/` name, except the unknown one.
pub async fn simulated_amperity() -> Simulator {
    let amperity = Simulator::start().await;
    examples::set_up(&amperity);
    amperity
}
