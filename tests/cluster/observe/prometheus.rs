//! Owns a running Prometheus: its configuration, its data folder and its HTTP API.
//! Never asserts anything about the operator.

use std::{env, fmt::Write, path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use url::Url;

/// The longest time that any wait may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Returns the path of a program of Prometheus.
pub fn program(name: &str) -> PathBuf {
    let folder = env::var_os("PROMETHEUS").map(PathBuf::from).filter(|folder| folder.join(name).is_file());
    let folder = folder.unwrap_or_else(|| {
        panic!(
            "PROMETHEUS is not a folder with {name}: run `make test`, or \
             `export PROMETHEUS=$(sh tests/lab/prometheus/build.sh)` in the root of the repository"
        )
    });
    folder.join(name)
}

/// A running Prometheus, killed when it is dropped.
pub struct Prometheus {
    _child: Child,
    _folder: TempDir,
    url: Url,
}

/// The name of a scrape job and its further settings.
pub type Job = (&'static str, &'static str);

impl Prometheus {
    /// Starts a Prometheus that scrapes this address once for each job and evaluates these rules, every 500 ms.
    pub async fn start(address: &str, jobs: &[Job], rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: [{rules:?}]\nscrape_configs:\n"
        );
        for (job, more) in jobs {
            // With the labels that the Prometheus operator sets.
            let targets = format!("[{{targets: [{address:?}], labels: {{namespace: ops, pod: {job}-0}}}}]");
            writeln!(settings, "- {{job_name: {job}, static_configs: {targets}, {more}}}").unwrap();
        }
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, settings).unwrap();
        let mut child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut log, mut url) = (vec![], None);
        // It listens early, but answers queries only when it logs that it is ready.
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                log.push(line.clone());
                if let Some((_, address)) = line.split_once(" address=").filter(|_| line.contains("\"Listening on\"")) {
                    url = Some(Url::parse(&format!("http://{}/", address.trim())).unwrap());
                }
                if line.contains("Server is ready to receive web requests") {
                    return;
                }
            }
        };
        let _ = timeout(TIMEOUT, started).await;
        let url = url.unwrap_or_else(|| panic!("Prometheus did not start:\n{}", log.join("\n")));
        // Prometheus would block on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _child: child, _folder: folder, url }
    }

    /// Sends a request to the API. Returns `data`, or the response if it has an error or warnings.
    pub async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut url = self.url.join(&format!("api/v1/{path}")).unwrap();
        url.query_pairs_mut().extend_pairs(parameters);
        let answer = reqwest::get(url).await.unwrap().text().await.unwrap();
        let mut answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path}: {answer}"));
        if answer["status"] != "success" || answer.get("warnings").is_some() {
            return Err(answer.to_string());
        }
        Ok(answer["data"].take())
    }

    /// Returns the series of an instant query.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let found = self.get("query", &[("query", query)]).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        found["result"].as_array().unwrap_or_else(|| panic!("{query} does not return series")).clone()
    }

    /// Returns the time of its clock, in seconds.
    pub async fn now(&self) -> String {
        let answer = self.get("query", &[("query", "time()")]).await.unwrap();
        answer["result"][1].as_str().unwrap().to_owned()
    }

    /// Waits until a query returns series.
    pub async fn wait_for_series(&self, query: &str) -> Vec<Value> {
        self.poll(query, async || Some(self.query(query).await).filter(|found| !found.is_empty())).await
    }

    /// Polls until the function returns a value. `what` is its description in the failure.
    pub async fn poll<T>(&self, what: &str, check: impl AsyncFn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = check().await {
                    return found;
                }
                sleep(POLL).await;
            }
        };
        match timeout(TIMEOUT, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("timed out waiting: {what}; the targets: {:#}", self.get("targets", &[]).await.unwrap()),
        }
    }

    /// Returns all values of a label.
    pub async fn values(&self, label: &str) -> Vec<String> {
        serde_json::from_value(self.get(&format!("label/{label}/values"), &[]).await.unwrap()).unwrap()
    }
}
