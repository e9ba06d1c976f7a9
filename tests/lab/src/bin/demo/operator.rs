//! Owns the operator's process, which runs under a shell process, and the demo's folder with the log.
//! Never outlives this process: the shell process stops the operator when its stdin closes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
    time::timeout,
};

const PROGRAM: &str = "workflow-run-stop-operator";

/// Longer than the 10 s that supervisor.sh gives the operator.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// Number of lines at the end of the log that an error message quotes.
const TAIL_LINES: usize = 40;

/// The running operator.
pub struct Operator {
    supervisor: Child,
    /// The input of the supervisor. Closing it sends SIGTERM to the operator and removes the folder.
    pipe: ChildStdin,
    status: watch::Receiver<Option<String>>,
    folder: PathBuf,
}

impl Operator {
    /// Starts the binary in the folder of this program.
    pub fn start(kubeconfig: &Path, base_url: &str) -> io::Result<Self> {
        let program = std::env::current_exe()?.with_file_name(PROGRAM);
        if !program.is_file() {
            return Err(io::Error::other(format!("{} is missing: start the demo with `make demo`", program.display())));
        }
        // From here on the supervisor removes the folder, also when this process is killed.
        let folder = tempfile::Builder::new().prefix("demo-").tempdir()?.keep();
        let mut supervisor = Command::new("/bin/sh")
            .args(["-c", include_str!("supervisor.sh"), "demo-supervisor"])
            .arg(&folder)
            .arg(program)
            .args(["--amperity-base-url", base_url, "--log-format", "text"])
            // Any free port, and a shorter drain than in a cluster.
            .args(["--http-addr", "127.0.0.1:0", "--drain-timeout", "5s"])
            // The caller's environment may set flags of the operator or point to another cluster.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Its own process group: Ctrl-C in a terminal reaches this process only, which stops everything in order.
            .process_group(0)
            .spawn()?;
        let pipe = supervisor.stdin.take().expect("its stdin is piped");
        let stdout = supervisor.stdout.take().expect("its stdout is piped");
        let (sender, status) = watch::channel(None);
        tokio::spawn(async move {
            let line = BufReader::new(stdout).lines().next_line().await;
            let status = line.ok().flatten().unwrap_or_else(|| "unknown".to_owned());
            sender.send_replace(Some(status));
            // Keeps the channel open for later readers.
            sender.closed().await;
        });
        Ok(Self { supervisor, pipe, status, folder })
    }

    /// Waits until the operator has exited and returns its exit status.
    pub async fn exited(&self) -> String {
        let mut status = self.status.clone();
        match status.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// Returns the path of the log.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("operator.log")
    }

    /// Returns the last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Stops the operator and waits until it has exited.
    pub async fn stop(mut self) {
        drop(self.pipe);
        if timeout(STOPS_WITHIN, self.supervisor.wait()).await.is_err() {
            eprintln!("the operator's supervisor (process {:?}) does not exit", self.supervisor.id());
        }
    }
}
