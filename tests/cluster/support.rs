//! Owns the words of these tests: a place to work in, an operator that runs there, stops to apply.
//! Never asserts anything about the operator's work.

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::Secret,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::wait::await_condition,
};
use lab::{
    control_plane::{ControlPlane, User},
    simulator::{Run, Simulator, StopAnswerTasks},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};
use workflow_run_stop_api::{
    StopRequest, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::rights;

/// Nothing here takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub const TENANT: &str = "acme";

/// A namespace with a Secret, a simulated API, and an operator where one was started.
pub struct Place {
    pub cluster: &'static ControlPlane,
    pub client: Client,
    pub namespace: String,
    pub amperity: Simulator,
}

impl Place {
    /// A fresh namespace with the Secret `amperity`, whose token the simulator knows.
    pub async fn new() -> Self {
        Self::with(Simulator::start().await).await
    }

    pub async fn with(amperity: Simulator) -> Self {
        Self::at(ControlPlane::shared().await, amperity).await
    }

    // Only some of the programs that share this file break a control plane.
    #[allow(dead_code)]
    /// In a control plane that is no other test's, so that it may be broken. It ends with this process.
    pub async fn alone() -> Self {
        let cluster = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
        Self::at(Box::leak(Box::new(cluster)), Simulator::start().await).await
    }

    async fn at(cluster: &'static ControlPlane, amperity: Simulator) -> Self {
        cluster.apply_crd(include_str!("../../crds/workflowrunstops.yaml")).await;
        let namespace = cluster.namespace().await;
        let place = Self { cluster, client: cluster.client(), namespace, amperity };
        place.grant().await;
        place.put_secret("amperity", &[("token", "good-token")]).await;
        place
    }

    /// Gives the operator its rights in this namespace; it has none elsewhere.
    async fn grant(&self) {
        let rules = [rights::of_watched(), rights::of_lease(rights::LEASE)].concat();
        let role: Role = serde_json::from_value(json!({"metadata": {"name": "operator"}, "rules": rules})).unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": User::Operator.name()}],
        }))
        .unwrap();
        let params = PostParams::default();
        Api::namespaced(self.client.clone(), &self.namespace).create(&params, &role).await.unwrap();
        Api::namespaced(self.client.clone(), &self.namespace).create(&params, &binding).await.unwrap();
        // The API server learns of its own roles by a watch.
        let stops: Api<WorkflowRunStop> = Api::namespaced(self.cluster.client_of(User::Operator), &self.namespace);
        let granted = async {
            while let Err(error) = stops.list(&ListParams::default()).await {
                assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, granted).await.expect("the operator gets its rights");
    }

    /// A client with the operator's rights.
    pub fn operators_client(&self) -> Client {
        self.cluster.client_of(User::Operator)
    }

    /// Creates or replaces a Secret.
    pub async fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secret = Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            string_data: Some(data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
            ..Secret::default()
        };
        match api.get_opt(name).await.unwrap() {
            None => api.create(&PostParams::default(), &secret).await.unwrap(),
            Some(known) => {
                secret.metadata.resource_version = known.resource_version();
                api.replace(name, &PostParams::default(), &secret).await.unwrap()
            }
        };
    }

    pub fn stops(&self) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a stop.
    pub async fn apply(&self, stop: WorkflowRunStop) -> WorkflowRunStop {
        self.stops().create(&PostParams::default(), &stop).await.unwrap()
    }

    /// Creates many stops at once.
    pub async fn apply_all(&self, stops: impl IntoIterator<Item = WorkflowRunStop>) {
        futures::future::join_all(stops.into_iter().map(|stop| self.apply(stop))).await;
    }

    pub async fn get(&self, name: &str) -> WorkflowRunStop {
        self.stops().get(name).await.unwrap()
    }

    /// Waits until a resource is so.
    pub async fn until(&self, name: &str, what: &str, is_so: impl Fn(&WorkflowRunStop) -> bool) -> WorkflowRunStop {
        let so = |found: Option<&WorkflowRunStop>| found.is_some_and(&is_so);
        match timeout(PATIENCE, await_condition(self.stops(), name, so)).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => panic!("{name} never {what}; it is {:#?}", self.get(name).await.status),
        }
    }

    /// Waits until a resource has finished.
    pub async fn finished(&self, name: &str) -> WorkflowRunStop {
        self.until(name, "finished", WorkflowRunStop::is_finished).await
    }

    /// Waits until Ready has a reason.
    pub async fn reason(&self, name: &str, reason: Reason) -> WorkflowRunStop {
        let what = format!("had the reason {}", reason.as_str());
        self.until(name, &what, |stop| ready(stop).1 == reason.as_str()).await
    }

    /// What arrived for a run: its stops, how many of them took effect, and its reads.
    pub fn sent(&self, run: &str) -> (usize, usize, usize) {
        (self.amperity.stops(run), self.amperity.effects(run), self.amperity.reads(run))
    }

    /// Changes the spec as a person does.
    pub async fn change(&self, name: &str, spec: Value) -> kube::Result<WorkflowRunStop> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.stops().patch(name, &PatchParams::default(), &patch).await
    }

    /// Writes a status as another replica would have left it.
    pub async fn put_status(&self, name: &str, status: &WorkflowRunStopStatus) {
        let patch = Patch::Merge(json!({"status": status}));
        self.stops().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Keeps every version of every stop from here on.
    pub async fn history(&self) -> History {
        let params = WatchParams::default().timeout(290);
        let mut events = self.stops().watch(&params, "0").await.unwrap().boxed();
        let (sender, versions) = watch::channel(Arc::default());
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                if let WatchEvent::Added(stop) | WatchEvent::Modified(stop) = event {
                    sender.send_modify(|versions: &mut Arc<Vec<_>>| Arc::make_mut(versions).push(stop));
                }
            }
        });
        History { versions }
    }

    /// Starts the operator's binary for this namespace, with short waits.
    pub async fn operator(&self) -> Operator {
        self.operator_with(&[]).await
    }

    pub async fn operator_with(&self, flags: &[&str]) -> Operator {
        let mut command = self.command();
        command.args(flags);
        Operator::start(command).await
    }

    /// The command of an operator for this namespace, with short waits. A flag or another variable overrides any of it.
    pub fn command(&self) -> Command {
        let mut command = Operator::command(&self.cluster.kubeconfig_for(User::Operator));
        command.env("AMPERITY_BASE_URL", self.amperity.base_url()).env("WATCH_NAMESPACES", &self.namespace);
        command.env("REQUEST_TIMEOUT", "2s").env("SETTLE_TIME", "1s");
        command
    }
}

/// Every version of every stop of a place, as the API server tells them.
pub struct History {
    versions: watch::Receiver<Arc<Vec<WorkflowRunStop>>>,
}

impl History {
    /// The versions of one stop up to the first that is so, which is waited for.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&WorkflowRunStop) -> bool,
    ) -> Vec<WorkflowRunStop> {
        let of = |versions: &[WorkflowRunStop]| -> Vec<_> {
            versions.iter().filter(|stop| stop.name() == name).cloned().collect()
        };
        let mut versions = self.versions.clone();
        let found = timeout(PATIENCE, versions.wait_for(|versions| of(versions).iter().any(&is_so))).await;
        let Ok(Ok(versions)) = found.map(|found| found.map(|versions| of(&versions))) else {
            panic!("{name} never {what}; it was {:#?}", of(&self.versions.borrow()).last())
        };
        let end = versions.iter().position(&is_so).map_or(0, |last| last + 1);
        versions.into_iter().take(end).collect()
    }
}

/// A running operator, killed when it is dropped.
pub struct Operator {
    child: Child,
    log: watch::Receiver<Arc<Vec<String>>>,
}

impl Operator {
    /// The binary with what every test needs. Nothing of the test's own environment reaches it.
    pub fn command(kubeconfig: &PathBuf) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workflow-run-stop-operator"));
        command.env_clear().env("KUBECONFIG", kubeconfig).env("HTTP_ADDR", "127.0.0.1:0");
        command
    }

    /// Starts it and waits until it says so.
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
        operator.says("started").await;
        operator
    }

    /// Waits until the log has a line with this text.
    pub async fn says(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let line = |lines: &Arc<Vec<String>>| lines.iter().find(|line| line.contains(text)).cloned();
        match timeout(PATIENCE, log.wait_for(|lines| line(lines).is_some())).await {
            Ok(Ok(lines)) => line(&lines).unwrap(),
            _ => panic!("the operator never said '{text}', but:\n{}", self.log().join("\n")),
        }
    }

    /// Where its health endpoints and metrics are served.
    pub async fn http_addr(&self) -> String {
        let started: Value = serde_json::from_str(&self.says("started").await).unwrap();
        started["http_addr"].as_str().unwrap().to_owned()
    }

    pub fn log(&self) -> Vec<String> {
        self.log.borrow().to_vec()
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends SIGTERM and waits for the end; the exit code.
    pub async fn terminate(self) -> Option<i32> {
        self.tell_to_end().await;
        self.ended().await
    }

    /// Sends SIGTERM.
    pub async fn tell_to_end(&self) {
        Command::new("kill").arg(self.pid().to_string()).status().await.unwrap();
    }

    /// Waits for the end; the exit code.
    pub async fn ended(mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code()
    }

    /// Sends SIGKILL and waits for the end.
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

/// A stop of this run, with the Secret `amperity`; named after the run.
pub fn a_stop(run: &str) -> WorkflowRunStop {
    WorkflowRunStop::new(&run.to_lowercase(), WorkflowRunStopSpec::new(run, TENANT, "amperity"))
}

/// A run that a stop ends at once and whose stop is answered with its tasks: one request and no more.
pub fn ends_at_once(run: &str) -> Run {
    Run::new(run).stop_answer_tasks(StopAnswerTasks::Empty)
}

/// The message of a condition; empty where it is absent.
pub fn message(stop: &WorkflowRunStop, kind: ConditionType) -> String {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind.as_str());
    found.map(|found| found.message.clone()).unwrap_or_default()
}

/// Status and reason of a condition; empty where it is absent.
pub fn condition(stop: &WorkflowRunStop, kind: ConditionType) -> (String, String) {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind.as_str());
    found.map(|found| (found.status.clone(), found.reason.clone())).unwrap_or_default()
}

pub fn ready(stop: &WorkflowRunStop) -> (String, String) {
    condition(stop, ConditionType::Ready)
}

/// How a condition has to be.
pub fn is(truth: ConditionStatus, reason: Reason) -> (String, String) {
    (truth.as_str().to_owned(), reason.as_str().to_owned())
}

/// Every condition in one line each, in a fixed order.
pub fn told(stop: &WorkflowRunStop) -> Vec<String> {
    use ConditionType::{Ready, Reconciling, RunEnded, Stalled, StopAccepted};
    let line = |kind: ConditionType| match condition(stop, kind) {
        (status, _) if status.is_empty() => None,
        (status, reason) => Some(format!("{}: {status} {reason}", kind.as_str())),
    };
    [Ready, Reconciling, Stalled, StopAccepted, RunEnded].into_iter().filter_map(line).collect()
}

/// What the status says of the request.
pub fn request(stop: &WorkflowRunStop) -> StopRequest {
    stop.status.as_ref().and_then(|status| status.stop_request.clone()).unwrap_or_default()
}
