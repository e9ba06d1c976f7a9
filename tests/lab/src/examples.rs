//! Owns what a simulated Amperity must know so that the manifests in `examples/` meet what they tell of.
//! Never starts one.

use std::time::Duration;

use crate::simulator::{Run, Simulator};

/// The tenant of every manifest.
pub const TENANT: &str = "acme2-max";

/// Adds the credentials, and every run that a manifest names, but the unknown one.
pub fn add_to(amperity: &Simulator) {
    amperity.set_tokens(["demo-token"]);
    amperity.set_client("demo-client", "demo-secret");
    let takes = |run: &str, seconds| Run::new(run).stops_in(Duration::from_secs(seconds)).with_tasks(3);
    for run in [
        takes("wf-demo-1", 4),
        Run::new("wf-demo-2").ended("succeeded").with_tasks(2),
        Run::new("wf-demo-3").stops_in(Duration::from_secs(1)).failing_with_error().with_tasks(2),
        takes("wf-demo-5", 20),
        Run::new("wf-demo-6").with_tasks(3),
        takes("wf-demo-7", 5),
        takes("wf-demo-8", 5),
        takes("wf-demo-9", 5).with_tasks(200),
    ] {
        amperity.add_run(TENANT, run);
    }
}
