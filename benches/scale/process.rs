//! Owns one process of the operator: its start, its health, and what it uses of memory and CPU.
//! Never judges what it measures.

use std::{fs::File, net::TcpListener, path::Path, time::Duration};

use lab::{control_plane::ControlPlane, simulator::Simulator};
use tokio::time::{Instant, sleep};

use crate::{
    cgroup::Cgroup,
    program::{self, Program},
};

/// The time within which the list must have ended.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// A running operator, built with the release profile.
pub struct Operator {
    program: Program,
    http: String,
    /// The time of its start.
    pub started: Instant,
    /// Its memory limit, if it has one.
    pub cgroup: Option<Cgroup>,
}

impl Operator {
    /// Starts the operator for all namespaces, with the environment of the image.
    pub fn start(cluster: &ControlPlane, amperity: &Simulator) -> Self {
        Self::start_with(cluster, &amperity.base_url(), &[])
    }

    /// Starts the operator with this base URL of the API, and further variables of its environment.
    pub fn start_with(cluster: &ControlPlane, base_url: &str, variables: &[(&str, &Path)]) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let binary = program::operator();
        let cgroup = Cgroup::create();
        let mut command = match &cgroup {
            None => program::command(binary, cluster),
            Some(cgroup) => {
                let mut shell = program::command("/bin/sh", cluster);
                shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(cgroup.members()).arg(binary);
                shell
            }
        };
        let log = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("scale-operator.log")).unwrap();
        command
            .envs(variables.iter().copied())
            .args(["--amperity-base-url", base_url, "--http-addr", &http])
            .stdout(log);
        // An allocator setting to compare.
        for name in [
            "MALLOC_ARENA_MAX",
            "MALLOC_TRIM_THRESHOLD_",
            "MALLOC_MMAP_THRESHOLD_",
            "GLIBC_TUNABLES",
            "TOKIO_WORKER_THREADS",
        ] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let started = Instant::now();
        Self { program: Program::start(&mut command), http, started, cgroup }
    }

    /// Waits until its first list has ended. Returns the time since its start.
    pub async fn listed(&mut self) -> Duration {
        while self.get("readyz").await.is_none() {
            let exited = self.program.child.try_wait().unwrap();
            assert!(exited.is_none(), "the operator exited while listing: {}", exited.unwrap_or_default());
            assert!(self.started.elapsed() < READY_WITHIN, "the operator never became ready");
            sleep(Duration::from_millis(100)).await;
        }
        self.started.elapsed()
    }

    /// Returns a size of its memory in MiB: `VmRSS`, or `VmHWM` for the peak.
    pub fn mebibytes(&self, field: &str) -> f64 {
        self.program.mebibytes(field)
    }

    /// Returns the CPU time that it has used, in seconds.
    pub fn cpu(&self) -> f64 {
        self.program.cpu()
    }

    /// Returns the sum of a metric over its labels, of those lines that contain this text.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("metrics").await.unwrap_or_default();
        let lines =
            text.lines().filter_map(|line| line.strip_prefix("workflow_run_stop_operator_")?.strip_prefix(name));
        let lines = lines.filter(|line| line.starts_with(['{', ' ']) && line.contains(labels));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    async fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}/{path}", self.http);
        let request = reqwest::Client::new().get(url).timeout(Duration::from_secs(10));
        request.send().await.ok()?.error_for_status().ok()?.text().await.ok()
    }

    /// Kills it.
    pub async fn kill(self) {
        self.program.kill().await;
    }
}
