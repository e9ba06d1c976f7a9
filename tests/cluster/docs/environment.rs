//! Owns the environment in which the commands of one document run: a control plane, the simulated Amperity, a folder with
//! the files of the repository, and the operator, which is started for the chart's Deployment.
//! Never depends on the content of a document.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    runtime::watcher::{Config, Event, watcher},
};
use lab::{
    control_plane::{ControlPlane, kubectl},
    simulator::{Run, Simulator},
    testing::Operator,
};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::markdown::ROOT;

/// The longest time that a script may take.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The tenant in the documents.
const TENANT: &str = "acme2-max";

/// The runs that the documents stop.
const RUNS: [&str; 3] = ["wf-20240619-14418-6UhqSe", "wf-20240620-09112-k3Qm2A", "wf-20240621-11020-pW7xZb"];

/// The token in the manifests of the documents.
const PLACEHOLDER_TOKEN: &str = "...";

/// The environment of one document.
pub struct Environment {
    plane: ControlPlane,
    amperity: Simulator,
    folder: PathBuf,
}

/// The exit status and the output of a script.
pub struct ScriptResult {
    pub status: ExitStatus,
    pub output: String,
}

impl Environment {
    /// Creates an environment with a folder of this name and a new namespace.
    pub async fn new(name: &str) -> Self {
        let plane = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
        let amperity = Simulator::start().await;
        amperity.set_tokens(["good-token", PLACEHOLDER_TOKEN]);
        for run in RUNS {
            amperity.add_run(TENANT, Run::new(run).stops_in(Duration::from_secs(2)).with_tasks(3));
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs").join(name);
        let _ = fs::remove_dir_all(&folder);
        create_folder(&folder);
        let namespace = plane.namespace().await;
        let admin = fs::read_to_string(plane.kubeconfig_path()).unwrap();
        let context = format!("{{namespace: {namespace}, cluster: lab,");
        fs::write(folder.join("home/kubeconfig"), admin.replace("{cluster: lab,", &context)).unwrap();
        Self { plane, amperity, folder }
    }

    /// Applies the CRD of the repository.
    pub async fn apply_crd(&self) {
        self.plane.apply_crd(include_str!("../../../crds/workflowrunstops.yaml")).await;
    }

    /// Runs a script in one shell that exits at the first command that fails.
    pub async fn run(&self, script: &str) -> ScriptResult {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{script}")]);
        let helm = PathBuf::from(std::env::var("HELM").expect("HELM is the path of helm; `make test` sets it"));
        let kubectl = kubectl().unwrap_or_else(|error| panic!("{error}"));
        let plugin = lab::binary("kubectl-stop_run");
        let mut path: Vec<_> = [&kubectl, &helm, &plugin].into_iter().filter_map(|program| program.parent()).collect();
        let inherited = std::env::var("PATH").unwrap();
        path.extend(inherited.split(':').map(Path::new));
        bash.current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("HOME", self.folder.join("home"))
            .env("KUBECONFIG", self.folder.join("home/kubeconfig"))
            .env("AMPERITY_TOKEN", "good-token")
            .env("AMPERITY_CLIENT_ID", "good-client")
            .env("AMPERITY_CLIENT_SECRET", "good-secret");
        bash.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let output = bash.spawn().unwrap().wait_with_output();
        let output = timeout(TIMEOUT, output).await.unwrap_or_else(|_| panic!("timed out:\n{script}")).unwrap();
        ScriptResult { status: output.status, output: String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    /// Runs a program with this input on stdin.
    pub async fn run_with_stdin(&self, program: &str, input: &str) -> ScriptResult {
        let file = self.folder.join("home/stdin");
        let mut stdin = tokio::fs::File::create(&file).await.unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        stdin.flush().await.unwrap();
        self.run(&format!("{program} <home/stdin")).await
    }

    /// Starts the operator whenever its Deployment is created or changed, as a kubelet does: with the arguments and the
    /// service account of its pods. Only the base URL and the HTTP address differ. Never returns.
    pub async fn run_deployments(&self) {
        let deployments: Api<Deployment> = Api::all(self.plane.client());
        let mut events = pin!(watcher(deployments, Config::default()));
        let mut running: Option<(Deployment, Operator)> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(deployment) | Event::InitApply(deployment)) => {
                    let is_new = running.as_ref().is_none_or(|(old, _)| old.spec != deployment.spec);
                    if is_new {
                        if let Some((_, operator)) = running.take() {
                            operator.terminate().await;
                        }
                        let operator = self.start_pod(&deployment).await;
                        running = operator.map(|operator| (deployment, operator));
                    }
                }
                Ok(Event::Delete(_)) => running = None,
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Starts the operator of a Deployment, unless it has no replicas.
    async fn start_pod(&self, deployment: &Deployment) -> Option<Operator> {
        let spec = deployment.spec.as_ref().filter(|spec| spec.replicas != Some(0))?;
        let pod = spec.template.spec.as_ref().unwrap();
        let account = pod.service_account_name.as_deref().unwrap();
        let namespace = deployment.namespace().unwrap();
        let kubeconfig = self.plane.kubeconfig_for_service_account(&namespace, account).await;
        let mut command = Operator::command(&kubeconfig);
        let replaced = ["--amperity-base-url=", "--http-addr="];
        let args = pod.containers[0].args.iter().flatten();
        command.args(args.filter(|arg| !replaced.iter().any(|flag| arg.starts_with(flag))));
        command.env("AMPERITY_BASE_URL", self.amperity.base_url());
        Some(Operator::start(command).await)
    }

    /// Stops the control plane and deletes the folder.
    pub async fn stop(self) {
        self.plane.stop().await;
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Creates a folder with links to the files of the repository, the operator where `make build` puts it, and a home.
fn create_folder(folder: &Path) {
    fs::create_dir_all(folder.join("home")).unwrap();
    fs::create_dir_all(folder.join("target/release")).unwrap();
    for entry in fs::read_dir(ROOT).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "target" {
            symlink(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let operator = env!("CARGO_BIN_EXE_workflow-run-stop-operator");
    symlink(operator, folder.join("target/release/workflow-run-stop-operator")).unwrap();
}
