//! Owns the fixtures of the integration tests: an environment, an operator that runs in it, stops and runs.
//! Never asserts anything about the operator's work.
#![allow(clippy::unwrap_used, reason = "a set-up that fails, fails its test")]

mod operator;
pub mod other_client;
pub mod rbac;
mod stops;

use std::{sync::Arc, time::Duration};

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
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::watch,
    time::{sleep, timeout},
};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

pub use self::operator::Operator;
pub use self::stops::{a_stop, condition, condition_lines, ends_at_once, is, message, ready, stop_request};
use crate::{
    control_plane::{ControlPlane, User},
    simulator::Simulator,
};

/// The limit of every wait. A test that waits longer fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The tenant of all stops.
pub const TENANT: &str = "acme";

/// A namespace with a Secret, and a simulated Amperity.
pub struct TestEnv {
    /// The control plane.
    pub cluster: &'static ControlPlane,
    /// A client with all permissions.
    pub client: Client,
    /// The name of the namespace.
    pub namespace: String,
    /// The simulated Amperity.
    pub amperity: Arc<Simulator>,
}

impl TestEnv {
    /// Creates a namespace with the Secret `amperity`, whose token the simulator accepts.
    pub async fn new() -> Self {
        Self::with_amperity(Simulator::start().await).await
    }

    /// As [`TestEnv::new`], with this simulator.
    pub async fn with_amperity(amperity: Simulator) -> Self {
        Self::at(ControlPlane::shared().await, amperity).await
    }

    /// As [`TestEnv::new`], in a control plane of its own, so that the test may break it. The control plane ends with
    /// this process.
    pub async fn with_own_control_plane() -> Self {
        Self::with_own_control_plane_and_flags(&[]).await
    }

    /// As [`TestEnv::with_own_control_plane`], with these flags of kube-apiserver in addition.
    pub async fn with_own_control_plane_and_flags(flags: &'static [&'static str]) -> Self {
        let cluster = ControlPlane::start_with(flags).await.unwrap_or_else(|error| panic!("{error}"));
        Self::at(Box::leak(Box::new(cluster)), Simulator::start().await).await
    }

    async fn at(cluster: &'static ControlPlane, amperity: Simulator) -> Self {
        cluster.apply_crd(include_str!("../../../../crds/workflowrunstops.yaml")).await;
        Self::in_new_namespace(cluster, amperity.into()).await
    }

    /// Creates another namespace in the same cluster and with the same simulated Amperity.
    pub async fn neighbour(&self) -> Self {
        Self::in_new_namespace(self.cluster, self.amperity.clone()).await
    }

    async fn in_new_namespace(cluster: &'static ControlPlane, amperity: Arc<Simulator>) -> Self {
        let env = Self { cluster, client: cluster.client(), namespace: namespace_with_secret(cluster).await, amperity };
        env.grant_permissions().await;
        env
    }

    /// Grants the operator its permissions in this namespace. It has none in other namespaces.
    async fn grant_permissions(&self) {
        let rules = [rbac::watched_namespace_rules(), rbac::lease_rules(rbac::DEFAULT_LEASE)].concat();
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
        // The API server reads its RBAC rules from a cache, so a new role takes effect with a delay.
        let stops: Api<WorkflowRunStop> = Api::namespaced(self.cluster.client_for(User::Operator), &self.namespace);
        let granted = async {
            while let Err(error) = stops.list(&ListParams::default()).await {
                assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TIMEOUT, granted).await.expect("the operator gets its permissions");
    }

    /// Returns a client with the permissions of the operator.
    pub fn operator_client(&self) -> Client {
        self.cluster.client_for(User::Operator)
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

    /// Returns the API of the namespace's stops, with all permissions.
    pub fn stops(&self) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a stop.
    pub async fn create(&self, stop: WorkflowRunStop) -> WorkflowRunStop {
        self.stops().create(&PostParams::default(), &stop).await.unwrap()
    }

    /// Creates many stops at once.
    pub async fn create_all(&self, stops: impl IntoIterator<Item = WorkflowRunStop>) {
        futures::future::join_all(stops.into_iter().map(|stop| self.create(stop))).await;
    }

    /// Returns a stop as it is stored.
    pub async fn get(&self, name: &str) -> WorkflowRunStop {
        self.stops().get(name).await.unwrap()
    }

    /// Waits until a resource satisfies the predicate. `what` completes "never ..." in the panic message.
    pub async fn wait_until(
        &self,
        name: &str,
        what: &str,
        predicate: impl Fn(&WorkflowRunStop) -> bool,
    ) -> WorkflowRunStop {
        let matches = |found: Option<&WorkflowRunStop>| found.is_some_and(&predicate);
        match timeout(TIMEOUT, await_condition(self.stops(), name, matches)).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => panic!("{name} never {what}; the status is {:#?}", self.get(name).await.status),
        }
    }

    /// Waits until a resource has finished.
    pub async fn wait_finished(&self, name: &str) -> WorkflowRunStop {
        self.wait_until(name, "finished", WorkflowRunStop::is_finished).await
    }

    /// Waits until the condition Ready has this reason.
    pub async fn wait_for_reason(&self, name: &str, reason: Reason) -> WorkflowRunStop {
        let what = format!("had the reason {}", reason.as_str());
        self.wait_until(name, &what, |stop| ready(stop).1 == reason.as_str()).await
    }

    /// Returns the numbers of stop requests, effects and reads of a run.
    pub fn request_counts(&self, run: &str) -> (usize, usize, usize) {
        (self.amperity.stops(run), self.amperity.effects(run), self.amperity.reads(run))
    }

    /// Sends a merge patch of the spec.
    pub async fn patch_spec(&self, name: &str, spec: Value) -> kube::Result<WorkflowRunStop> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.stops().patch(name, &PatchParams::default(), &patch).await
    }

    /// Merges this status into the stored one, as another replica would.
    pub async fn write_status(&self, name: &str, status: &WorkflowRunStopStatus) {
        let patch = Patch::Merge(json!({"status": status}));
        self.stops().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Starts to record every version of every stop of the namespace.
    pub async fn record_history(&self) -> History {
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

    /// Starts the operator for this namespace, with short timeouts.
    pub async fn start_operator(&self) -> Operator {
        self.start_operator_with(&[]).await
    }

    /// As [`TestEnv::start_operator`], with these flags.
    pub async fn start_operator_with(&self, flags: &[&str]) -> Operator {
        let mut command = self.operator_command();
        command.args(flags);
        Operator::start(command).await
    }

    /// Returns the command of an operator for this namespace, with short timeouts. Flags and variables that are added
    /// later override them.
    pub fn operator_command(&self) -> Command {
        let mut command = Operator::command(&self.cluster.kubeconfig_for(User::Operator));
        command.env("AMPERITY_BASE_URL", self.amperity.base_url()).env("WATCH_NAMESPACES", &self.namespace);
        command.env("REQUEST_TIMEOUT", "2s").env("SETTLE_TIME", "1s");
        command
    }
}

/// Creates a namespace with the Secret `amperity`, whose token the simulator accepts.
pub async fn namespace_with_secret(cluster: &ControlPlane) -> String {
    let namespace = cluster.namespace().await;
    let secret = Secret {
        metadata: ObjectMeta { name: Some("amperity".to_owned()), ..ObjectMeta::default() },
        string_data: Some([("token".to_owned(), "good-token".to_owned())].into()),
        ..Secret::default()
    };
    Api::namespaced(cluster.client(), &namespace).create(&PostParams::default(), &secret).await.unwrap();
    namespace
}

/// Every version of every stop of a namespace, from a watch.
pub struct History {
    versions: watch::Receiver<Arc<Vec<WorkflowRunStop>>>,
}

impl History {
    /// Waits for the first version of a stop that satisfies the predicate, and returns all versions up to it.
    pub async fn wait_until(
        &self,
        name: &str,
        what: &str,
        predicate: impl Fn(&WorkflowRunStop) -> bool,
    ) -> Vec<WorkflowRunStop> {
        let of = |versions: &[WorkflowRunStop]| -> Vec<_> {
            versions.iter().filter(|stop| stop.name() == name).cloned().collect()
        };
        let mut versions = self.versions.clone();
        let found = timeout(TIMEOUT, versions.wait_for(|versions| of(versions).iter().any(&predicate))).await;
        let Ok(Ok(versions)) = found.map(|found| found.map(|versions| of(&versions))) else {
            panic!("{name} never {what}; the last version is {:#?}", of(&self.versions.borrow()).last())
        };
        let end = versions.iter().position(&predicate).map_or(0, |last| last + 1);
        versions.into_iter().take(end).collect()
    }
}
