//! Owns a real control plane for tests and demo: etcd and kube-apiserver, how they start, and how a
//! caller reaches them.
//! Never leaves anything behind: processes and folder go away when this process ends, however it ends.

mod access;
mod crd;
mod launch;
mod supervisor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hyper::Request;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use tokio::sync::{OnceCell, oneshot};

use self::access::Access;
pub use self::access::User;
use self::launch::launch;
pub use self::launch::{StartError, kubectl};
use self::supervisor::{Ports, Supervisor};

/// How long an API server may take until it is ready; 2 s are usual.
const READY_WITHIN: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A running control plane. Dropping it ends it; [`ControlPlane::stop`] also waits for that.
pub struct ControlPlane {
    access: Access,
    ports: Ports,
    supervisor: Supervisor,
}

impl ControlPlane {
    /// Starts a control plane of the caller's own, after building its programs if that was never
    /// done (5 minutes, once), and waits until it is ready.
    ///
    /// # Errors
    /// The programs could not be built, or ended early, or were not ready in time; with the last
    /// lines of their logs.
    pub async fn start() -> Result<Self, StartError> {
        aside(launch()).await
    }

    /// The one control plane that all tests of this process share, started at the first call. A
    /// test keeps to a [`ControlPlane::namespace`] of its own.
    ///
    /// # Panics
    /// When it did not start, then for each caller, with the reason.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ControlPlane, StartError>> = OnceCell::const_new();
        match SHARED.get_or_init(Self::start).await {
            Ok(shared) => shared,
            Err(error) => panic!("{error}"),
        }
    }

    /// A new client of the administrator that retries nothing. It belongs to the runtime of the caller.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when a process of the control plane has ended.
    pub fn client(&self) -> Client {
        self.client_of(User::Admin)
    }

    /// As [`ControlPlane::client`], for another user.
    ///
    /// # Panics
    /// As [`ControlPlane::client`].
    pub fn client_of(&self, user: User) -> Client {
        if let Some(fault) = self.fault() {
            panic!("the control plane is broken: {fault}");
        }
        Client::try_from(self.access.client_config(user)).expect("the configuration is complete")
    }

    /// What the administrator's clients are made from.
    pub fn client_config(&self) -> Config {
        self.access.client_config(User::Admin)
    }

    /// The administrator's kubeconfig file, for kubectl and for a program under test.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.kubeconfig_for(User::Admin)
    }

    /// A user's kubeconfig file.
    pub fn kubeconfig_for(&self, user: User) -> PathBuf {
        self.access.kubeconfig_path(user.name())
    }

    /// A kubeconfig file with a token for an existing service account, good for an hour.
    ///
    /// # Panics
    /// When the service account does not exist.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let (config, at, account) = (self.client_config(), namespace.to_owned(), name.to_owned());
        let answer = aside(async move {
            let accounts: Api<ServiceAccount> = Api::namespaced(new_client(config), &at);
            let request = TokenRequest::default();
            accounts.create_token_request(&account, &PostParams::default(), &request).await
        })
        .await;
        let request = answer.unwrap_or_else(|error| panic!("no token for {namespace}/{name}: {error}"));
        let token = request.status.expect("a granted request has a status").token;
        let file = format!("{namespace}-{name}");
        self.access.write_kubeconfig(&file, &token).expect("the folder is there while self is")
    }

    /// The API server, `https://127.0.0.1:…`.
    pub fn url(&self) -> &str {
        self.access.url()
    }

    /// etcd, `http://127.0.0.1:…`, without authentication.
    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    /// Creates a namespace with a name of its own. Delete none: without a controller manager it
    /// would stay Terminating.
    ///
    /// # Panics
    /// When the API server refuses or is away.
    pub async fn namespace(&self) -> String {
        let config = self.client_config();
        let namespace = Namespace {
            metadata: ObjectMeta { generate_name: Some("test-".to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        let answer = aside(async move {
            let namespaces: Api<Namespace> = Api::all(new_client(config));
            namespaces.create(&PostParams::default(), &namespace).await
        })
        .await;
        let created = answer.unwrap_or_else(|error| panic!("no new namespace: {error}"));
        created.metadata.name.expect("what was created has a name")
    }

    /// Applies a CustomResourceDefinition, given as YAML, and waits until its resources can be
    /// listed. Applying the same one again is quick and changes nothing.
    ///
    /// # Panics
    /// When the API server refuses it, with the reason, or does not serve it in time.
    pub async fn apply_crd(&self, yaml: &str) {
        let (config, yaml) = (self.client_config(), yaml.to_owned());
        let applied = aside(async move { crd::apply(&new_client(config), &yaml).await }).await;
        applied.unwrap_or_else(|error| panic!("the CRD was not applied: {error}"));
    }

    /// Stops the API server where it is: connections stay open, and nothing is answered. For a
    /// control plane of one's own, never for the shared one.
    ///
    /// # Panics
    /// When the control plane is broken.
    pub async fn pause(&self) {
        expect_obeyed(self.supervisor.pause_apiserver().await);
    }

    /// Lets a paused API server go on. It may need a moment: [`ControlPlane::ready`].
    ///
    /// # Panics
    /// When the control plane is broken.
    pub async fn resume(&self) {
        expect_obeyed(self.supervisor.resume_apiserver().await);
    }

    /// Kills the API server, also a paused one: connections are reset and new ones refused. What is
    /// stored stays in etcd. Never for the shared one.
    ///
    /// # Panics
    /// When the control plane is broken.
    pub async fn kill_apiserver(&self) {
        expect_obeyed(self.supervisor.kill_apiserver().await);
    }

    /// Starts a killed API server again, on the same port and with the same data, and waits until
    /// it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn start_apiserver(&self) {
        expect_obeyed(self.supervisor.start_apiserver().await);
        self.ready().await;
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Panics
    /// When it does not get ready in time, or has ended.
    pub async fn ready(&self) {
        let config = self.client_config();
        tokio::select! {
            ready = aside(async move { wait_until_ready(config).await }) => expect_obeyed(ready),
            fault = self.failed() => panic!("the control plane is broken: {fault}"),
        }
    }

    /// Which process ended without being asked to, with the last lines of the logs.
    pub fn fault(&self) -> Option<String> {
        self.supervisor.fault()
    }

    /// Waits for a [`ControlPlane::fault`].
    pub async fn failed(&self) -> String {
        self.supervisor.failed().await
    }

    /// Its processes by the names of their programs, `etcd` and `kube-apiserver`.
    pub fn processes(&self) -> BTreeMap<String, u32> {
        self.supervisor.processes()
    }

    /// Ends both processes, removes the folder, and waits for that.
    pub async fn stop(self) {
        self.supervisor.close();
        self.supervisor.gone().await;
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("url", &self.url())
            .field("folder", &self.access.folder())
            .finish_non_exhaustive()
    }
}

async fn wait_until_ready(config: Config) -> Result<(), String> {
    let client = new_client(config);
    let ready = async {
        loop {
            let request = Request::get("/readyz").body(Vec::new()).expect("a path and no body");
            // An answer may never come while the API server is paused or only half up.
            match tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await {
                Ok(Ok(_)) => return,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    };
    tokio::time::timeout(READY_WITHIN, ready)
        .await
        .map_err(|_| format!("kube-apiserver was not ready within {} s", READY_WITHIN.as_secs()))
}

fn new_client(config: Config) -> Client {
    Client::try_from(config).expect("the configuration is complete")
}

#[track_caller]
fn expect_obeyed(result: Result<(), String>) {
    result.unwrap_or_else(|error| panic!("the control plane is broken: {error}"));
}

/// Does the work on a thread and a runtime of its own: it may block, its clock is never paused, and
/// it does not end with the runtime of a caller that shares its result.
async fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        // The caller may have given up waiting; then the result is dropped, which ends a control plane.
        drop(done.send(runtime.block_on(work)));
    });
    match result.await {
        Ok(result) => result,
        Err(_) => match thread.join() {
            Err(panic) => resume_unwind(panic),
            Ok(()) => unreachable!("the thread sends before it ends"),
        },
    }
}
