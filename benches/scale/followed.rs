//! Owns the measurement of runs with very many tasks that are followed at the same time, at work and after a restart.
//! Never lets a run end.

use std::time::Duration;

use kube::{Api, api::PostParams};
use lab::{
    control_plane::ControlPlane,
    simulator::{Kind, Run, Simulator},
    testing::namespace_with_secret,
};
use tokio::time::sleep;
use workflow_run_stop_api::WorkflowRunStop;

use crate::{process::Operator, seed::a_stop};

/// The number of runs, and of tasks of each.
const RUNS: usize = 60;
const TASKS: usize = 1600;

const TENANT: &str = "acme";

/// The time for which each operator works: each run is read six times.
const AT_WORK: Duration = Duration::from_secs(60);

/// The measurements with followed runs.
pub struct Followed {
    /// The number of runs, and of tasks of each.
    pub runs: [usize; 2],
    /// The resident memory and its peak, in MiB, after a minute of work.
    pub at_work: [f64; 2],
    /// The same after a restart, and another minute.
    pub restarted: [f64; 2],
}

/// Measures runs that are followed.
pub async fn measure(cluster: &ControlPlane) -> Followed {
    let namespace = namespace_with_secret(cluster).await;
    let amperity = Simulator::start().await;
    let api: Api<WorkflowRunStop> = Api::namespaced(cluster.client(), &namespace);
    for number in 0..RUNS {
        let mut stop = a_stop(&format!("followed-{number}"), TENANT);
        stop.spec.run_id = format!("wf-{number}");
        amperity.add_run(TENANT, Run::new(&*stop.spec.run_id).with_tasks(TASKS).stops_in(Duration::from_secs(3600)));
        api.create(&PostParams::default(), &stop).await.unwrap();
    }
    let at_work = work(cluster, &amperity).await;
    let restarted = work(cluster, &amperity).await;
    Followed { runs: [RUNS, TASKS], at_work, restarted }
}

/// Lets an operator work for a minute from the first read of the last run. Returns its memory and the peak.
async fn work(cluster: &ControlPlane, amperity: &Simulator) -> [f64; 2] {
    let before = amperity.requests().len();
    let operator = Operator::start(cluster, amperity);
    amperity
        .wait_until(|requests| RUNS <= requests[before..].iter().filter(|request| request.kind == Kind::Read).count())
        .await;
    sleep(AT_WORK).await;
    let memory = [operator.mebibytes("VmRSS"), operator.mebibytes("VmHWM")];
    println!("{RUNS} runs of {TASKS} tasks are followed: {:.1} MiB, peak {:.1} MiB", memory[0], memory[1]);
    operator.kill().await;
    memory
}
