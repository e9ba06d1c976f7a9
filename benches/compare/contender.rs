//! Owns the programs that are compared: their start, and what they use of memory and CPU.
//! Never judges what it measures.

use std::{fs::File, net::TcpListener, path::Path, process::Stdio};

use lab::{control_plane::ControlPlane, simulator::Simulator};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Duration, sleep},
};

use crate::{bare_loop, usage};

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    BareLoop,
    Operator,
}

impl Contender {
    pub const ALL: [Self; 2] = [Self::BareLoop, Self::Operator];
}

/// A running program, which stops the runs of one namespace.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a program, and waits until it watches the namespace.
    pub async fn start(contender: Contender, cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Self {
        match contender {
            Contender::BareLoop => Self::start_bare_loop(cluster, amperity, namespace).await,
            Contender::Operator => Self::start_operator(cluster, amperity, namespace).await,
        }
    }

    async fn start_bare_loop(cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([bare_loop::ARGUMENT, namespace, &amperity.base_url()]).stdout(Stdio::piped());
        let mut child = spawn(&mut command, cluster);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        Self { child }
    }

    async fn start_operator(cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let own = env!("CARGO_BIN_EXE_workflow-run-stop-operator");
        let log = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compared-operator.log")).unwrap();
        let mut command = Command::new(std::env::var("OPERATOR").unwrap_or_else(|_| own.to_owned()));
        command
            .args(["--amperity-base-url", &amperity.base_url(), "--watch-namespaces", namespace, "--http-addr", &http])
            .args(["--requests-per-second", "1000"])
            .stdout(log);
        let child = spawn(&mut command, cluster);
        let client = reqwest::Client::new();
        let ready = async || client.get(format!("http://{http}/readyz")).send().await?.error_for_status();
        while ready().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        Self { child }
    }

    /// Returns a size of its memory in MiB, see [`usage::mebibytes`].
    pub fn mebibytes(&self, field: &str) -> f64 {
        usage::mebibytes(self.pid(), field)
    }

    /// Returns the CPU time that it has used, in seconds.
    pub fn cpu(&self) -> f64 {
        usage::cpu(self.pid())
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Kills it.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Starts a program with the environment of the image.
fn spawn(command: &mut Command, cluster: &ControlPlane) -> Child {
    let command =
        command.env_clear().env("KUBECONFIG", cluster.kubeconfig_path()).env("MALLOC_MMAP_THRESHOLD_", "65536");
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}
