//! Owns the credentials and runs that the manifests in `examples/` need in a simulated Amperity.
//! Never starts a simulator.

use std::time::Duration;

use crate::simulator::{Run, Simulator};

/// The tenant of all manifests.
pub const TENANT: &str = "acme2-max";

/// Adds the credentials and all runs that the manifests name, except the unknown one.
pub fn set_up(amperity: &Simulator) {
    amperity.set_tokens(["demo-token"]);
    amperity.set_client("demo-client", "demo-secret");
    let stops_after = |run: &str, seconds| Run::new(run).stops_in(Duration::from_secs(seconds)).with_tasks(3);
    for run in [
        stops_after("wf-demo-1", 4),
        Run::new("wf-demo-2").ended("succeeded").with_tasks(2),
        Run::new("wf-demo-3").stops_in(Duration::from_secs(1)).failing_with_error().with_tasks(2),
        stops_after("wf-demo-5", 20),
        Run::new("wf-demo-6").with_tasks(3),
        stops_after("wf-demo-7", 5),
        stops_after("wf-demo-8", 5),
        stops_after("wf-demo-9", 5).with_tasks(200),
    ] {
        amperity.add_run(TENANT, run);
    }
}
