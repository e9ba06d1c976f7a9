//! Owns one process of the operator: its start, its signals, and what the kernel and `/metrics` tell of it.
//! Never decides when something happens to it.

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

/// No start and no end takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running operator, built as it is shipped; killed when it is dropped.
pub struct Replica {
    child: Child,
    settings: Settings,
    http: String,
}

/// What a replica runs with.
#[derive(Clone)]
pub struct Settings {
    pub kubeconfig: PathBuf,
    pub amperity: String,
    pub namespaces: Vec<String>,
    pub log: PathBuf,
}

/// The health endpoints of a replica.
pub struct Endpoints(String);

impl Endpoints {
    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        let give_up = Instant::now() + PATIENCE;
        while self.get("readyz").await.is_none() {
            assert!(Instant::now() < give_up, "the operator never became ready");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// One of its metrics; nothing where it does not answer.
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

/// What a process uses at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub mebibytes: f64,
    pub threads: usize,
    /// Connections to Amperity.
    pub calls: usize,
    /// Connections to the API server; some wait for the next request.
    pub connections: usize,
    /// All other file descriptors.
    pub files: usize,
}

impl Replica {
    /// Starts it; what it logs is added to its log.
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

    /// Its health endpoints.
    pub fn asked(&self) -> Endpoints {
        Endpoints(self.http.clone())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "the operator is gone, see {}", self.settings.log.display());
    }

    /// What it runs with, for its successor.
    pub fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().unwrap().map(|status| status.to_string())
    }

    /// Waits for its end; whether all went well.
    pub async fn ends_well(mut self) -> bool {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// What it uses now.
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
        let (mut calls, mut connections, mut files) = (0, 0, 0);
        for file in fs::read_dir(process.join("fd")).unwrap().flatten() {
            let target = fs::read_link(file.path()).unwrap_or_default().to_string_lossy().into_owned();
            let kind = if to_amperity.contains(&target) {
                &mut calls
            } else if to_apiserver.contains(&target) {
                &mut connections
            } else {
                &mut files
            };
            *kind += 1;
        }
        let mebibytes = number("VmRSS:") as f64 / 1024.0;
        Sample { mebibytes, threads: number("Threads:"), calls, connections, files }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // Errors say that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a log that no operator should write.
pub fn bad_lines(log: &Path) -> Vec<String> {
    let lines = BufReader::new(File::open(log).unwrap()).lines().map_while(Result::ok);
    lines.filter(|line| line.contains("panic")).collect()
}

/// The API server's URL in a kubeconfig, which is JSON or YAML.
fn server_of(kubeconfig: &Path) -> String {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    config.clusters[0].cluster.as_ref().unwrap().server.clone().unwrap()
}

/// The sockets that lead to a port, as the links of file descriptors name them.
fn sockets_to(process: &Path, port: u16) -> HashSet<String> {
    let table = fs::read_to_string(process.join("net/tcp")).unwrap();
    let remote = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&remote).then(|| format!("socket:[{}]", fields[9]))
    };
    table.lines().skip(1).filter_map(socket).collect()
}
