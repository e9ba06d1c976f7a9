//! Owns one process of the operator: its start, its signals, its metrics and its resource usage.
//! Never chooses when a signal is sent.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Timeout of the start and of the end of a replica.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running operator, built with the release profile; killed when dropped.
pub struct Replica {
    child: Child,
    settings: Settings,
    http: String,
}

/// The settings of a replica.
#[derive(Clone)]
pub struct Settings {
    pub kubeconfig: PathBuf,
    pub amperity: String,
    pub namespaces: Vec<String>,
    pub log: PathBuf,
}

/// The HTTP endpoints of a replica.
pub struct Endpoints(String);

impl Endpoints {
    /// Waits until `/readyz` succeeds.
    pub async fn ready(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.get("readyz").await.is_none() {
            assert!(Instant::now() < deadline, "the operator never became ready");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the value of a metric; `None` if there is no response.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let text = self.get("metrics").await?;
        let value = |line: &str| {
            let (metric, value) = line.strip_prefix("workflow_run_stop_operator_")?.split_once(' ')?;
            (metric == name).then(|| value.parse().ok())?
        };
        text.lines().find_map(value)
    }

    async fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}/{path}", self.0);
        let request = reqwest::Client::new().get(url).timeout(Duration::from_secs(2));
        request.send().await.ok()?.error_for_status().ok()?.text().await.ok()
    }
}

/// The resource usage of a process.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub mebibytes: f64,
    pub threads: usize,
    /// Connections to Amperity.
    pub amperity_connections: usize,
    /// Connections to the API server, including idle ones.
    pub apiserver_connections: usize,
    /// All other file descriptors.
    pub files: usize,
}

impl Replica {
    /// Starts a replica that appends to its log file.
    pub fn start(settings: Settings) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let log = File::options().create(true).append(true).open(&settings.log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_workflow-run-stop-operator"))
            .env_clear()
            .env("KUBECONFIG", &settings.kubeconfig)
            .args(["--amperity-base-url", &settings.amperity, "--watch-namespaces", &settings.namespaces.join(",")])
            .args(["--leader-elect", "--lease-namespace", &settings.namespaces[0], "--http-addr", &http])
            .args(["--requests-per-second", "50", "--request-timeout", "2s", "--settle-time", "4s"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, settings, http }
    }

    /// Returns its HTTP endpoints.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints(self.http.clone())
    }

    /// Sends a signal, e.g. `-TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "the operator has exited, see {}", self.settings.log.display());
    }

    /// Returns its settings, for its successor.
    pub fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Returns its exit status if it has exited.
    pub fn exited(&mut self) -> Option<String> {
        self.child.try_wait().unwrap().map(|status| status.to_string())
    }

    /// Waits until it has exited and returns whether it was successful.
    pub async fn exits_successfully(mut self) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// Returns its current resource usage.
    pub fn sample(&self) -> Sample {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let number = |field: &str| -> usize {
            let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            value.split_whitespace().next().unwrap().parse().unwrap()
        };
        let port = |url: &str| url.rsplit(':').next().and_then(|end| end.split('/').next()?.parse().ok()).unwrap();
        let (amperity, apiserver) = (port(&self.settings.amperity), port(&server_of(&self.settings.kubeconfig)));
        let (to_amperity, to_apiserver) = (sockets_to(&process, amperity), sockets_to(&process, apiserver));
        let (mut amperity_connections, mut apiserver_connections, mut files) = (0, 0, 0);
        for file in fs::read_dir(process.join("fd")).unwrap().flatten() {
            let target = fs::read_link(file.path()).unwrap_or_default().to_string_lossy().into_owned();
            let kind = if to_amperity.contains(&target) {
                &mut amperity_connections
            } else if to_apiserver.contains(&target) {
                &mut apiserver_connections
            } else {
                &mut files
            };
            *kind += 1;
        }
        let mebibytes = number("VmRSS:") as f64 / 1024.0;
        Sample { mebibytes, threads: number("Threads:"), amperity_connections, apiserver_connections, files }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // Errors mean that it has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of a log that report a panic.
pub fn panic_lines(log: &Path) -> Vec<String> {
    let lines = BufReader::new(File::open(log).unwrap()).lines().map_while(Result::ok);
    lines.filter(|line| line.contains("panic")).collect()
}

/// Returns the API server's URL in a kubeconfig, which is JSON or YAML.
fn server_of(kubeconfig: &Path) -> String {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    config.clusters[0].cluster.as_ref().unwrap().server.clone().unwrap()
}

/// Returns the sockets with this remote port, in the format of the links in `/proc/PID/fd`.
fn sockets_to(process: &Path, port: u16) -> HashSet<String> {
    let table = fs::read_to_string(process.join("net/tcp")).unwrap();
    let remote = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&remote).then(|| format!("socket:[{}]", fields[9]))
    };
    table.lines().skip(1).filter_map(socket).collect()
}
