//! Owns the words of these tests: a call of the plugin, what it said, and how it ended.
//! Never lets a token through: every call is looked at.

use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, api::PostParams};
use lab::control_plane::User;
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

use crate::support::{Place, TENANT, a_stop};

/// Nothing here takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every call needs that is not about something else.
pub const USUAL: [&str; 4] = ["--tenant", TENANT, "--credentials", "amperity"];

/// An empty folder of a test's own, which goes away with the test, also with one that fails.
pub struct Folder(TempDir);

impl Folder {
    pub fn new(name: &str) -> Self {
        Self(tempfile::Builder::new().prefix(name).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file there; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Fails where the exit code is another one, with what was said.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// The name of the one resource that it said was created.
    #[track_caller]
    pub fn created(&self) -> String {
        let names = self.all_created();
        assert_eq!(names.len(), 1, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        names[0].clone()
    }

    pub fn all_created(&self) -> Vec<String> {
        let lines = self.out.lines().filter_map(|line| line.strip_prefix("workflowrunstop.workflow.amperity.com/"));
        lines.filter_map(|line| line.strip_suffix(" created")).map(str::to_owned).collect()
    }
}

/// The plugin with this kubeconfig. Nothing of the test's own environment reaches it.
pub fn plugin(kubeconfig: &Path) -> Command {
    let mut command = Command::new(lab::binary("kubectl-stop_run"));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    command
}

/// A call in the namespace of this place, as the administrator.
pub fn call(place: &Place, args: &[&str]) -> Command {
    let mut command = plugin(&place.cluster.kubeconfig_for(User::Admin));
    command.args(args).args(USUAL).args(["-n", &place.namespace]);
    command
}

/// Makes the call and waits for its end.
pub async fn done(command: Command) -> Ended {
    Running::start(command).ended().await
}

/// Gives a user rights in the namespace, and waits until the API server knows.
pub async fn grant(place: &Place, user: User, verbs: &[&str]) {
    let rule = json!({"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": verbs});
    let role: Role = serde_json::from_value(json!({"metadata": {"name": "plugin"}, "rules": [rule]})).unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "plugin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "plugin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user.name()}],
    }))
    .unwrap();
    let (params, client) = (PostParams::default(), &place.client);
    Api::namespaced(client.clone(), &place.namespace).create(&params, &role).await.unwrap();
    Api::namespaced(client.clone(), &place.namespace).create(&params, &binding).await.unwrap();
    let dry_run = PostParams { dry_run: true, ..params };
    let stops: Api<WorkflowRunStop> = Api::namespaced(place.cluster.client_of(user), &place.namespace);
    let granted = async {
        while let Err(error) = stops.create(&dry_run, &a_stop("wf-1")).await {
            assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, granted).await.expect("the user gets its rights");
}

/// A call that goes on, killed when it is dropped.
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
    pub async fn tells(&self, text: &str) -> String {
        first(self.err.clone(), text).await
    }

    /// Waits until it has said what it created; the name.
    pub async fn created(&self) -> String {
        let line = first(self.out.clone(), " created").await;
        line.strip_suffix(" created").unwrap().split('/').nth(1).unwrap().to_owned()
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub async fn interrupt(&self) {
        Command::new("kill").args(["-INT", &self.child.id().unwrap().to_string()]).status().await.unwrap();
    }

    /// Waits for the end.
    pub async fn ended(mut self) -> Ended {
        let code = match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => panic!("it never ended, but said:\n{}\n{}", text(&self.out), text(&self.err)),
        };
        for reading in &mut self.reading {
            reading.await.unwrap();
        }
        let ended = Ended { code, out: text(&self.out), err: text(&self.err) };
        let tokens = User::ALL.map(User::token).into_iter().chain(["good-token"]);
        for token in tokens {
            assert!(!format!("{ended:?}").contains(token), "a token is shown: {ended:?}");
        }
        ended
    }
}

fn text(lines: &watch::Receiver<Arc<Vec<String>>>) -> String {
    lines.borrow().iter().map(|line| format!("{line}\n")).collect()
}

async fn first(mut lines: watch::Receiver<Arc<Vec<String>>>, text: &str) -> String {
    let line = |lines: &Arc<Vec<String>>| lines.iter().find(|line| line.contains(text)).cloned();
    let found = timeout(PATIENCE, lines.wait_for(|lines| line(lines).is_some())).await;
    let found = found.ok().and_then(|found| line(&*found.ok()?));
    found.unwrap_or_else(|| panic!("it never said '{text}', but:\n{}", lines.borrow().join("\n")))
}

async fn collect(pipe: impl AsyncRead + Unpin, log: watch::Sender<Arc<Vec<String>>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| Arc::make_mut(log).push(line));
    }
}
