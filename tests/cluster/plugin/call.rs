//! Owns calls of the plugin: the command, its output and its exit code.
//! Never accepts an output that contains a token.

use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, api::PostParams};
use lab::{
    control_plane::User,
    testing::{TENANT, TestEnv, a_stop},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use workflow_run_stop_api::WorkflowRunStop;

/// The longest time that any wait may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The flags that every call needs.
pub const REQUIRED_FLAGS: [&str; 4] = ["--tenant", TENANT, "--credentials", "amperity"];

/// An empty folder, deleted when it is dropped.
pub struct Folder(TempDir);

impl Folder {
    pub fn new(name: &str) -> Self {
        Self(tempfile::Builder::new().prefix(name).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into the folder. Returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// The exit code and the output of a call.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// Checks the exit code.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Returns the name of the only resource that was reported as created.
    #[track_caller]
    pub fn created(&self) -> String {
        let names = self.all_created();
        assert_eq!(names.len(), 1, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        names[0].clone()
    }

    /// Returns the names of all resources that were reported as created.
    pub fn all_created(&self) -> Vec<String> {
        let lines = self.out.lines().filter_map(|line| line.strip_prefix("workflowrunstop.workflow.amperity.com/"));
        lines.filter_map(|line| line.strip_suffix(" created")).map(str::to_owned).collect()
    }
}

/// Returns the command of the plugin with this kubeconfig, and with no other environment variable.
pub fn plugin(kubeconfig: &Path) -> Command {
    let mut command = Command::new(lab::binary("kubectl-stop_run"));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    command
}

/// Returns a call in the namespace of the environment, as the administrator.
pub fn call(env: &TestEnv, args: &[&str]) -> Command {
    let mut command = plugin(&env.cluster.kubeconfig_for(User::Admin));
    command.args(args).args(REQUIRED_FLAGS).args(["-n", &env.namespace]);
    command
}

/// Runs a command to its end.
pub async fn execute(command: Command) -> Finished {
    Running::start(command).finish().await
}

/// Grants a user permissions in the namespace, and waits until they take effect.
pub async fn grant(env: &TestEnv, user: User, verbs: &[&str]) {
    let rule = json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": verbs});
    let role: Role = serde_json::from_value(json!({"metadata": {"name": "plugin"}, "rules": [rule]})).unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "plugin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "plugin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user.name()}],
    }))
    .unwrap();
    let (params, client) = (PostParams::default(), &env.client);
    Api::namespaced(client.clone(), &env.namespace).create(&params, &role).await.unwrap();
    Api::namespaced(client.clone(), &env.namespace).create(&params, &binding).await.unwrap();
    let dry_run = PostParams { dry_run: true, ..params };
    let stops: Api<WorkflowRunStop> = Api::namespaced(env.cluster.client_for(user), &env.namespace);
    let granted = async {
        while let Err(error) = stops.create(&dry_run, &a_stop("wf-1")).await {
            assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TIMEOUT, granted).await.expect("the permissions take effect");
}

/// A running call, killed when it is dropped.
pub struct Running {
    child: Child,
    out: watch::Receiver<Arc<Vec<String>>>,
    err: watch::Receiver<Arc<Vec<String>>>,
    reading: [JoinHandle<()>; 2],
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (to_out, out) = watch::channel(Arc::default());
        let (to_err, err) = watch::channel(Arc::default());
        let reading = [
            tokio::spawn(collect(child.stdout.take().unwrap(), to_out)),
            tokio::spawn(collect(child.stderr.take().unwrap(), to_err)),
        ];
        Self { child, out, err, reading }
    }

    /// Waits for a line of stderr with this text.
    pub async fn prints(&self, text: &str) -> String {
        first(self.err.clone(), text).await
    }

    /// Waits until a resource is reported as created. Returns its name.
    pub async fn created(&self) -> String {
        let line = first(self.out.clone(), " created").await;
        line.strip_suffix(" created").unwrap().split('/').nth(1).unwrap().to_owned()
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub async fn interrupt(&self) {
        Command::new("kill").args(["-INT", &self.child.id().unwrap().to_string()]).status().await.unwrap();
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Finished {
        let code = match timeout(TIMEOUT, self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => panic!("no end after the output:\n{}\n{}", text(&self.out), text(&self.err)),
        };
        for reading in &mut self.reading {
            reading.await.unwrap();
        }
        let ended = Finished { code, out: text(&self.out), err: text(&self.err) };
        let tokens = User::ALL.map(User::token).into_iter().chain(["good-token"]);
        for token in tokens {
            assert!(!format!("{ended:?}").contains(token), "the output contains a token: {ended:?}");
        }
        ended
    }
}

fn text(lines: &watch::Receiver<Arc<Vec<String>>>) -> String {
    lines.borrow().iter().map(|line| format!("{line}\n")).collect()
}

async fn first(mut lines: watch::Receiver<Arc<Vec<String>>>, text: &str) -> String {
    let line = |lines: &Arc<Vec<String>>| lines.iter().find(|line| line.contains(text)).cloned();
    let found = timeout(TIMEOUT, lines.wait_for(|lines| line(lines).is_some())).await;
    let found = found.ok().and_then(|found| line(&*found.ok()?));
    found.unwrap_or_else(|| panic!("'{text}' was not printed, but:\n{}", lines.borrow().join("\n")))
}

async fn collect(pipe: impl AsyncRead + Unpin, log: watch::Sender<Arc<Vec<String>>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| Arc::make_mut(log).push(line));
    }
}
