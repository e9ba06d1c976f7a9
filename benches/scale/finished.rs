//! Owns the measurement of one unfinished stop beside very many finished ones: the time to its request, compared with the
//! time in which a bare client lists it.
//! Never measures one without the other: they alternate.

use std::time::Duration;

use kube::{Api, api::PostParams};
use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, Run, Simulator},
    testing::namespace_with_secret,
};
use serde_json::json;
use workflow_run_stop_api::WorkflowRunStop;

use crate::{
    bare_client,
    process::Operator,
    seed::{self, Seed, a_stop},
};

/// The number of measurements of each.
const ROUNDS: usize = 7;

const TENANT: &str = "acme";

/// The measurements beside finished stops.
pub struct Finished {
    /// Their number.
    pub stops: usize,
    /// The median time from the start of the operator to its first stop request.
    pub first_stop: Duration,
    /// The median time in which a bare client lists the same.
    pub bare_listed: Duration,
    /// The median of the ratios of both in a round.
    pub ratio: f64,
    /// The resident memory and its peak, in MiB, when the request arrived in the last round.
    pub memory: [f64; 2],
}

/// Measures one unfinished stop beside this number of finished ones.
pub async fn measure(cluster: &ControlPlane, stops: usize) -> Finished {
    let namespace = namespace_with_secret(cluster).await;
    let seed = |index| Seed { namespace: namespace.clone(), tenant: TENANT.to_owned(), index };
    let status = json!({
        "state": "canceled", "completionTime": "2026-01-01T00:00:00Z", "result": "Stopped",
        "taskInstances": [{"id": "wft-20260619-14418-1", "label": "ingest", "state": "succeeded"}],
    });
    seed::store(cluster, (0..stops).map(seed).collect(), Some(status)).await;
    bare_client::wait_for(cluster, 0).await;
    let api: Api<WorkflowRunStop> = Api::namespaced(cluster.client(), &namespace);
    let (mut firsts, mut bares, mut ratios, mut memory) = (vec![], vec![], vec![], [0.0; 2]);
    for round in 0..ROUNDS {
        let amperity = Simulator::start().await;
        let mut stop = a_stop(&format!("unfinished-{round}"), TENANT);
        stop.spec.run_id = format!("wf-{round}");
        stop.spec.follow_timeout_seconds = 0;
        amperity.add_run(TENANT, Run::new(&*stop.spec.run_id));
        api.create(&PostParams::default(), &stop).await.unwrap();
        let bare = bare_client::wait_for(cluster, 1).await;
        let operator = Operator::start(cluster, &amperity);
        amperity.wait_until(|requests| requests.iter().any(|request| request.kind == Kind::Stop)).await;
        let first =
            amperity.requests().iter().find(|request| request.kind == Kind::Stop).unwrap().at - operator.started;
        memory = [operator.mebibytes("VmRSS"), operator.mebibytes("VmHWM")];
        println!("first stop after {:.3} s, a bare client listed in {:.3} s", first.as_secs_f64(), bare.as_secs_f64());
        ratios.push(first.as_secs_f64() / bare.as_secs_f64());
        firsts.push(first);
        bares.push(bare);
        // It finishes, so that the next round has one unfinished stop, too.
        bare_client::wait_for(cluster, 0).await;
        operator.kill().await;
    }
    ratios.sort_unstable_by(f64::total_cmp);
    Finished { stops, first_stop: median(firsts), bare_listed: median(bares), ratio: ratios[ROUNDS / 2], memory }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
