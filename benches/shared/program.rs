//! Owns a program that is measured: its start, and what it uses of memory and CPU, as Linux counts it.
//! Never judges what it measures.

use std::{ffi::OsStr, fs, process::Stdio};

use lab::control_plane::ControlPlane;
use tokio::process::{Child, Command};

/// The clock ticks of `/proc/PID/stat` in a second. Linux has the same on all common machines.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program.
pub struct Program {
    /// Its process.
    pub child: Child,
}

/// Returns the path of the operator, built with the release profile, or the one in `OPERATOR`.
pub fn operator() -> String {
    std::env::var("OPERATOR").unwrap_or_else(|_| env!("CARGO_BIN_EXE_workflow-run-stop-operator").to_owned())
}

/// Returns a command with the environment of the image.
pub fn command(program: impl AsRef<OsStr>, cluster: &ControlPlane) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("KUBECONFIG", cluster.kubeconfig_path()).env("MALLOC_MMAP_THRESHOLD_", "65536");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Program {
    /// Starts a program.
    pub fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap() }
    }

    /// Returns a size of its memory in MiB: `VmRSS`, or `VmHWM` for the peak.
    pub fn mebibytes(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).expect("the program runs");
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Returns the CPU time that it has used, in seconds.
    pub fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name of the program, in parentheses, is the second field.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
        (ticks(14) + ticks(15)) / TICKS_PER_SECOND
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Kills it.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
