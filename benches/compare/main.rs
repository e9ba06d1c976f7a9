//! Owns the comparison of the operator with the least work that stops a run once, and with an operator that is written with
//! Kopf: latency, CPU time, rate, memory, and requests to the API server, side by side in one run.
//! Never fails on a slow machine: it prints figures and ratios beside their targets.
//!
//! `ROUNDS=3` chooses the number of rounds, `OPERATOR` another binary to measure. `SMALL=1` is one round with a tenth of the
//! load, which shows that everything works. `BENCH_OUT` names a folder for the result, `compare.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

#[path = "../shared/apiserver.rs"]
mod apiserver;
mod bare_loop;
mod contender;
mod kopf;
mod load;
#[path = "../shared/program.rs"]
mod program;
#[path = "../shared/publish.rs"]
mod publish;
mod ready;
mod report;
#[path = "../shared/settings.rs"]
mod settings;

use lab::{control_plane::ControlPlane, simulator::Simulator};

use crate::{contender::Contender, load::Size, report::Report};

#[tokio::main]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    // The bare loop runs as a process of its own, like the operator.
    let args: Vec<_> = std::env::args().collect();
    if let [_, mode, namespace, base_url] = &args[..]
        && mode == bare_loop::ARGUMENT
    {
        return bare_loop::run(namespace, base_url).await;
    }
    let (size, rounds) = if settings::is_small() { (Size::SMALL, 1) } else { (Size::FULL, 3) };
    let rounds = std::env::var("ROUNDS").map_or(rounds, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let contenders = Contender::available();
    let cluster = ControlPlane::start().await.unwrap();
    cluster.apply_crd(include_str!("../../crds/workflowrunstops.yaml")).await;
    let mut report = Report::new(size, rounds);
    for round in 0..rounds {
        let mut order = contenders.clone();
        order.rotate_left(round % contenders.len());
        for contender in order {
            println!("round {round}, {contender:?}");
            let (amperity, namespace) = (Simulator::start().await, load::namespace(&cluster).await);
            let program = contender.start(&cluster, &amperity, &namespace).await;
            report.add(contender, load::measure(size, &cluster, &amperity, &namespace, &program).await);
            program.kill().await;
        }
    }
    report.publish();
    cluster.stop().await;
}
