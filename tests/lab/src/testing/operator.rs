//! Owns the process of an operator, its log and its signals.
//! Never changes what the operator works on.

use std::{path::PathBuf, process::Stdio, sync::Arc};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::TIMEOUT;

/// A running operator. Dropping it kills the process.
pub struct Operator {
    child: Child,
    log: watch::Receiver<Arc<Vec<String>>>,
}

impl Operator {
    /// Returns the command of the binary, with only the variables that every test needs in its environment.
    pub fn command(kubeconfig: &PathBuf) -> Command {
        let mut command = Command::new(crate::binary("workflow-run-stop-operator"));
        command.env_clear().env("KUBECONFIG", kubeconfig).env("HTTP_ADDR", "127.0.0.1:0");
        command
    }

    /// Starts the process and waits until it logs that it started.
    pub async fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (sender, log) = watch::channel(Arc::default());
        tokio::spawn(collect(child.stdout.take().unwrap(), sender.clone()));
        tokio::spawn(collect(child.stderr.take().unwrap(), sender));
        let operator = Self { child, log };
        operator.wait_for_log("started").await;
        operator
    }

    /// Waits for a log line that contains this text, and returns the line.
    pub async fn wait_for_log(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let line = |lines: &Arc<Vec<String>>| lines.iter().find(|line| line.contains(text)).cloned();
        match timeout(TIMEOUT, log.wait_for(|lines| line(lines).is_some())).await {
            Ok(Ok(lines)) => line(&lines).unwrap(),
            _ => panic!("the operator never logged '{text}', but:\n{}", self.log().join("\n")),
        }
    }

    /// Returns the address of the health and metrics endpoints.
    pub async fn http_addr(&self) -> String {
        let started: Value = serde_json::from_str(&self.wait_for_log("started").await).unwrap();
        started["http_addr"].as_str().unwrap().to_owned()
    }

    /// Returns the lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.borrow().to_vec()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends SIGTERM, waits for the exit and returns the exit code.
    pub async fn terminate(self) -> Option<i32> {
        self.send_sigterm().await;
        self.wait_for_exit().await
    }

    /// Sends SIGTERM.
    pub async fn send_sigterm(&self) {
        self.signal("-TERM").await;
    }

    /// Sends a signal such as `-STOP`.
    pub async fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().await.unwrap();
        assert!(sent.success(), "kill {signal}: {sent}");
    }

    /// Waits for the exit and returns the exit code.
    pub async fn wait_for_exit(mut self) -> Option<i32> {
        timeout(TIMEOUT, self.child.wait()).await.expect("the operator exits").unwrap().code()
    }

    /// Sends SIGKILL and waits for the exit.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

async fn collect(pipe: impl AsyncRead + Unpin, log: watch::Sender<Arc<Vec<String>>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| Arc::make_mut(log).push(line));
    }
}
