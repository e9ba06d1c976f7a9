//! Owns the samples: the runs that the simulated Amperity has, the manifests that stop them, and how each must end.
//! Never looks at what came of them.

pub use lab::examples::TENANT;
use lab::{examples, simulator::Simulator};
use serde_json::{Value, json};

/// Applied before any sample.
pub const SECRET: &str = "secret.yaml";

/// A manifest in `examples/`, and how its stop must end.
pub struct Sample {
    pub file: &'static str,
    pub name: &'static str,
    pub run: &'static str,
    pub state: Option<&'static str>,
    /// Every condition, in the order of [`crate::verdict::CONDITIONS`].
    pub conditions: &'static [&'static str],
    pub error: Value,
    /// The states of the tasks; nothing where none were ever told of.
    pub tasks: Option<&'static [&'static str]>,
    /// How many stops reached the run while there was something to stop.
    pub effects: usize,
}

/// The samples that the demo applies.
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

/// The sample whose whole status is shown.
pub const FAILING: &str = "stop-failing";

/// What runs are there beside those of the samples, for who keeps the demo running.
pub const SPARE_RUNS: &str = "  wf-demo-5   takes 20 s to stop        examples/stop-another.yaml
  wf-demo-6   stops at once             examples/stop-suspended.yaml
  wf-demo-7   takes 5 s to stop         examples/stop-with-limits.yaml
  wf-demo-8   takes 5 s to stop         examples/client-credentials.yaml
  wf-demo-9   takes 5 s, has 200 tasks  for a manifest of your own
";

/// An Amperity with every run that a manifest in `examples/` names, but the unknown one.
pub async fn simulated_amperity() -> Simulator {
    let amperity = Simulator::start().await;
    examples::add_to(&amperity);
    amperity
}
