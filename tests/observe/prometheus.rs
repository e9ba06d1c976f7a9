//! Owns a running Prometheus: its settings, its folder, and what it answers.
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

/// Nothing here takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// One of the programs of Prometheus.
pub fn program(name: &str) -> PathBuf {
    let folder = env::var_os("PROMETHEUS").map(PathBuf::from).filter(|folder| folder.join(name).is_file());
    let folder = folder.unwrap_or_else(|| {
        panic!(
            "PROMETHEUS names no folder with {name}: `make test` sets it, and for cargo alone \
             `export PROMETHEUS=$(sh tests/lab/prometheus/build.sh)` does, from the repository's root"
        )
    });
    folder.join(name)
}

/// It is killed when it is dropped.
pub struct Prometheus {
    _child: Child,
    _folder: TempDir,
    url: Url,
}

/// How one job scrapes: its name and further settings.
pub type Job = (&'static str, &'static str);

impl Prometheus {
    /// Starts one that scrapes this address under each of these jobs and evaluates these rules, often.
    pub async fn start(address: &str, jobs: &[Job], rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: [{rules:?}]\nscrape_configs:\n"
        );
        for (job, more) in jobs {
            // With labels as the Prometheus operator gives them.
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
        // It serves from its start, and answers queries when it says that it is ready.
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
        let _ = timeout(PATIENCE, started).await;
        let url = url.unwrap_or_else(|| panic!("Prometheus did not start:\n{}", log.join("\n")));
        // Who does not read holds up who writes.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _child: child, _folder: folder, url }
    }

    /// What its API answers: `data`, or the complaint. Warnings are complaints as well.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut url = self.url.join(&format!("api/v1/{path}")).unwrap();
        url.query_pairs_mut().extend_pairs(parameters);
        let answer = reqwest::get(url).await.unwrap().text().await.unwrap();
        let mut answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path}: {answer}"));
        if answer["status"] != "success" || answer.get("warnings").is_some() {
            return Err(answer.to_string());
        }
        Ok(answer["data"].take())
    }

    /// The series that a query finds now.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let found = self.ask("query", &[("query", query)]).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        found["result"].as_array().unwrap_or_else(|| panic!("{query} finds no series")).clone()
    }

    /// The time of its clock, in seconds.
    pub async fn now(&self) -> String {
        let answer = self.ask("query", &[("query", "time()")]).await.unwrap();
        answer["result"][1].as_str().unwrap().to_owned()
    }

    /// Waits until a query finds something.
    pub async fn finds(&self, query: &str) -> Vec<Value> {
        self.until(query, async || Some(self.query(query).await).filter(|found| !found.is_empty())).await
    }

    /// Waits until there is something.
    pub async fn until<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                sleep(POLL).await;
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("never {what}; the targets: {:#}", self.ask("targets", &[]).await.unwrap()),
        }
    }

    /// All values of a label.
    pub async fn values(&self, label: &str) -> Vec<String> {
        serde_json::from_value(self.ask(&format!("label/{label}/values"), &[]).await.unwrap()).unwrap()
    }
}
