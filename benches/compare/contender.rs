//! Owns the programs that are compared, and how each of them is started.
//! Never judges what it measures.

use std::{fs::File, path::Path, process::Stdio};

use lab::{control_plane::ControlPlane, simulator::Simulator};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    bare_loop, kopf,
    program::{self, Program},
    ready,
};

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    BareLoop,
    Operator,
    Kopf,
}

impl Contender {
    pub const ALL: [Self; 3] = [Self::BareLoop, Self::Operator, Self::Kopf];

    /// Returns those that can be started on this machine.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|contender| *contender != Self::Kopf || kopf::is_available()).collect()
    }

    /// Starts it for one namespace, and waits until it watches that.
    pub async fn start(self, cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Program {
        match self {
            Self::BareLoop => start_bare_loop(cluster, amperity, namespace).await,
            Self::Operator => start_operator(cluster, amperity, namespace).await,
            Self::Kopf => kopf::start(cluster, amperity, namespace).await,
        }
    }
}

async fn start_bare_loop(cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Program {
    let mut command = program::command(std::env::current_exe().unwrap(), cluster);
    command.args([bare_loop::ARGUMENT, namespace, &amperity.base_url()]).stdout(Stdio::piped());
    let mut program = Program::start(&mut command);
    let mut lines = BufReader::new(program.child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
    program
}

async fn start_operator(cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Program {
    let http = ready::free_address();
    let log = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compared-operator.log")).unwrap();
    let mut command = program::command(program::operator(), cluster);
    command
        .args(["--amperity-base-url", &amperity.base_url(), "--watch-namespaces", namespace, "--http-addr", &http])
        .args(["--requests-per-second", "1000"])
        .stdout(log);
    let mut program = Program::start(&mut command);
    ready::wait_for(&mut program, &format!("http://{http}/readyz")).await;
    program
}
