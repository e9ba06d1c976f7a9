//! Owns the operator's process, through the shell process that keeps it, and the demo's folder with its log.
//! Never outlives this process, however that ends: the keeper reads a pipe of it.

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

/// The keeper gives the operator 10 s.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// How many of the log's last lines tell what went wrong.
const TAIL_LINES: usize = 40;

/// The running operator.
pub struct Operator {
    keeper: Child,
    /// When it closes, in whatever way, the operator is told to end and the folder goes away.
    pipe: ChildStdin,
    status: watch::Receiver<Option<String>>,
    folder: PathBuf,
}

impl Operator {
    /// Starts the binary that cargo put beside this one.
    pub fn start(kubeconfig: &Path, base_url: &str) -> io::Result<Self> {
        let program = std::env::current_exe()?.with_file_name(PROGRAM);
        if !program.is_file() {
            return Err(io::Error::other(format!("{} is missing: start the demo by `make demo`", program.display())));
        }
        // The keeper removes it from here on, also when this process cannot.
        let folder = tempfile::Builder::new().prefix("demo-").tempdir()?.keep();
        let mut keeper = Command::new("/bin/sh")
            .args(["-c", include_str!("keeper.sh"), "demo-keeper"])
            .arg(&folder)
            .arg(program)
            .args(["--amperity-base-url", base_url, "--log-format", "text"])
            // The port is any free one. What is in flight need not be waited for as long as in a cluster.
            .args(["--http-addr", "127.0.0.1:0", "--drain-timeout", "5s"])
            // Each flag is a variable too, and so is the way to some other cluster: none of the caller's may reach it.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in a terminal reaches this process only, which ends things in their order.
            .process_group(0)
            .spawn()?;
        let pipe = keeper.stdin.take().expect("its stdin is piped");
        let told = keeper.stdout.take().expect("its stdout is piped");
        let (sender, status) = watch::channel(None);
        tokio::spawn(async move {
            let line = BufReader::new(told).lines().next_line().await;
            let status = line.ok().flatten().unwrap_or_else(|| "unknown".to_owned());
            sender.send_replace(Some(status));
            // As long as somebody may ask.
            sender.closed().await;
        });
        Ok(Self { keeper, pipe, status, folder })
    }

    /// Waits until it has ended by itself; its exit status.
    pub async fn ended(&self) -> String {
        let mut status = self.status.clone();
        match status.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "unknown".to_owned(),
        }
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.join("operator.log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Tells it to end and waits for that.
    pub async fn end(mut self) {
        drop(self.pipe);
        if timeout(ENDS_WITHIN, self.keeper.wait()).await.is_err() {
            eprintln!("the operator's keeper (process {:?}) does not end", self.keeper.id());
        }
    }
}
