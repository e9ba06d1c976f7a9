//! Owns the measurement of the operator with very many stops: memory, time to the first request, CPU time, and requests to
//! the API server, with stops that wait for the rate limit and with finished ones; memory with large runs that are followed.
//! Never fails on a slow machine: it prints figures beside their targets.
//!
//! `SCALE=1000,100000` chooses the numbers of stops, `CASES=one,many,finished,followed,reads,answers` the cases, `OPERATOR`
//! another binary to measure, and `LIMIT_MIB=128` a memory cgroup for it. `QUIET=0` leaves out the quiet minute of waiting
//! stops, and `SMALL=1` is for few reads. `BENCH_OUT` names a folder for the result, `scale.md` and `growth.svg`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

#[path = "../shared/apiserver.rs"]
mod apiserver;
mod bare_client;
mod cgroup;
mod finished;
mod followed;
#[path = "../answers/hostile.rs"]
mod hostile;
mod hostile_answers;
mod process;
#[path = "../shared/program.rs"]
mod program;
#[path = "../shared/publish.rs"]
mod publish;
mod reads;
mod report;
mod seed;
#[path = "../shared/settings.rs"]
mod settings;
mod waiting;

use kube::Client;
use lab::control_plane::ControlPlane;

use crate::{reads::Size, report::Report, settings::variable, waiting::Tenants};

/// The numbers of waiting stops.
const SCALE: &str = "1000,10000,100000";

/// The cases: waiting stops of one tenant in one namespace, of a thousand tenants in fifty, and finished ones beside one
/// unfinished; followed runs with very many tasks; many followed runs; and hostile answers.
const CASES: &str = "one,many,finished,followed,reads,answers";

#[tokio::main]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    if std::env::args().nth(1).as_deref() == Some(bare_client::ARGUMENT) {
        return bare_client::list(Client::try_default().await.unwrap()).await;
    }
    let scale: Vec<usize> =
        variable("SCALE", SCALE).split(',').map(|number| number.trim().parse().expect("SCALE has numbers")).collect();
    let cases = variable("CASES", CASES);
    let has = |case| cases.split(',').any(|chosen| chosen.trim() == case);
    let quiet = variable("QUIET", "1") != "0";
    let mut report = Report::default();
    report.idle(waiting::idle(&start().await).await);
    for (case, tenants) in [("one", Tenants::One), ("many", Tenants::Many)] {
        for &count in scale.iter().filter(|_| has(case)) {
            let cluster = start().await;
            report.waiting(tenants, waiting::measure(&cluster, tenants, count, quiet).await);
            cluster.stop().await;
        }
    }
    if has("finished") {
        let cluster = start().await;
        let count = scale.iter().copied().max().unwrap_or_default();
        report.finished(finished::measure(&cluster, count).await);
        cluster.stop().await;
    }
    if has("followed") {
        let cluster = start().await;
        report.followed(followed::measure(&cluster).await);
        cluster.stop().await;
    }
    if has("reads") {
        let cluster = start().await;
        let size = if settings::is_small() { Size::SMALL } else { Size::FULL };
        report.reads(reads::measure(&cluster, &size).await);
        cluster.stop().await;
    }
    if has("answers") {
        let cluster = start().await;
        report.answers(hostile_answers::measure(&cluster).await);
        cluster.stop().await;
    }
    report.publish();
}

/// Starts a control plane, so that nothing of the case before is in the caches of its API server.
async fn start() -> ControlPlane {
    let cluster = ControlPlane::start().await.unwrap();
    cluster.apply_crd(include_str!("../../crds/workflowrunstops.yaml")).await;
    cluster
}
