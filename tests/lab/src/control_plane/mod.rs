//! Owns a real control plane for tests and demo: etcd and kube-apiserver, their start, and the clients for them.
//! Never leaves processes or files behind, even if this process is killed.

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

/// Timeout for the API server to become ready; it usually takes 2 s.
const READY_WITHIN: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A running control plane. Dropping it stops it; [`ControlPlane::stop`] also waits for the end.
pub struct ControlPlane {
    access: Access,
    ports: Ports,
    supervisor: Supervisor,
}

impl ControlPlane {
    /// Starts a control plane for this caller only, and waits until it is ready. Fetches its programs first if they are
    /// missing, or builds them (5 minutes, once).
    ///
    /// # Errors
    /// If the programs cannot be built, exit early or are not ready in time; with the last lines of their logs.
    pub async fn start() -> Result<Self, StartError> {
        Self::start_with(&[]).await
    }

    /// As [`ControlPlane::start`], with these flags of kube-apiserver in addition.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_with(flags: &'static [&'static str]) -> Result<Self, StartError> {
        run_isolated(launch(flags)).await
    }

    /// Returns the control plane that all tests of this process share; the first call starts it. Each test uses its
    /// own [`ControlPlane::namespace`].
    ///
    /// # Panics
    /// If it did not start: for every caller, with the reason.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ControlPlane, StartError>> = OnceCell::const_new();
        match SHARED.get_or_init(Self::start).await {
            Ok(shared) => shared,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a new client of the administrator, without retries. It belongs to the caller's tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime, and if a process of the control plane has exited.
    pub fn client(&self) -> Client {
        self.client_for(User::Admin)
    }

    /// Returns a new client of this user, as [`ControlPlane::client`] does.
    ///
    /// # Panics
    /// As [`ControlPlane::client`].
    pub fn client_for(&self, user: User) -> Client {
        if let Some(exit) = self.unexpected_exit() {
            panic!("the control plane has failed: {exit}");
        }
        Client::try_from(self.access.client_config(user)).expect("the configuration is complete")
    }

    /// Returns the configuration of the administrator's clients.
    pub fn client_config(&self) -> Config {
        self.access.client_config(User::Admin)
    }

    /// Returns the path of the administrator's kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.kubeconfig_for(User::Admin)
    }

    /// Returns the path of a user's kubeconfig.
    pub fn kubeconfig_for(&self, user: User) -> PathBuf {
        self.access.kubeconfig_path(user.name())
    }

    /// Writes a kubeconfig with a token of an existing service account, valid for an hour, and returns its path.
    ///
    /// # Panics
    /// If the service account does not exist.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let (config, in_namespace, account) = (self.client_config(), namespace.to_owned(), name.to_owned());
        let response = run_isolated(async move {
            let accounts: Api<ServiceAccount> = Api::namespaced(new_client(config), &in_namespace);
            let request = TokenRequest::default();
            accounts.create_token_request(&account, &PostParams::default(), &request).await
        })
        .await;
        let request = response.unwrap_or_else(|error| panic!("no token for {namespace}/{name}: {error}"));
        let token = request.status.expect("a granted token request has a status").token;
        let file = format!("{namespace}-{name}");
        self.access.write_kubeconfig(&file, &token).expect("the folder exists as long as self")
    }

    /// Returns the API server's URL, `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        self.access.url()
    }

    /// Returns etcd's URL, `http://127.0.0.1:PORT`. It needs no authentication.
    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    /// Creates a namespace with a generated name. Do not delete it: without a controller manager it would stay
    /// Terminating.
    ///
    /// # Panics
    /// If the request fails.
    pub async fn namespace(&self) -> String {
        let config = self.client_config();
        let namespace = Namespace {
            metadata: ObjectMeta { generate_name: Some("test-".to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        let response = run_isolated(async move {
            let namespaces: Api<Namespace> = Api::all(new_client(config));
            namespaces.create(&PostParams::default(), &namespace).await
        })
        .await;
        let created = response.unwrap_or_else(|error| panic!("cannot create a namespace: {error}"));
        created.metadata.name.expect("a created object has a name")
    }

    /// Applies a CustomResourceDefinition, given as YAML, and waits until its resources can be listed. Applying the
    /// same one again is quick and changes nothing.
    ///
    /// # Panics
    /// If the API server rejects it, with the reason, or does not serve it in time.
    pub async fn apply_crd(&self, yaml: &str) {
        let (config, yaml) = (self.client_config(), yaml.to_owned());
        let applied = run_isolated(async move { crd::apply(&new_client(config), &yaml).await }).await;
        applied.unwrap_or_else(|error| panic!("the CRD was not applied: {error}"));
    }

    /// Pauses the API server (SIGSTOP): connections stay open without responses. Never for the shared control plane.
    ///
    /// # Panics
    /// If the control plane has failed.
    pub async fn pause(&self) {
        expect_healthy(self.supervisor.pause_apiserver().await);
    }

    /// Resumes a paused API server. It may not be ready at once, see [`ControlPlane::ready`].
    ///
    /// # Panics
    /// If the control plane has failed.
    pub async fn resume(&self) {
        expect_healthy(self.supervisor.resume_apiserver().await);
    }

    /// Kills the API server, also a paused one: connections are reset and new ones refused. The data stays in etcd.
    /// Never for the shared control plane.
    ///
    /// # Panics
    /// If the control plane has failed.
    pub async fn kill_apiserver(&self) {
        expect_healthy(self.supervisor.kill_apiserver().await);
    }

    /// Starts a killed API server again, with the same port and data, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready in time.
    pub async fn start_apiserver(&self) {
        expect_healthy(self.supervisor.start_apiserver().await);
        self.ready().await;
    }

    /// Waits until `/readyz` of the API server succeeds.
    ///
    /// # Panics
    /// If it does not become ready in time, or has exited.
    pub async fn ready(&self) {
        let config = self.client_config();
        tokio::select! {
            ready = run_isolated(async move { wait_until_ready(config).await }) => expect_healthy(ready),
            exit = self.wait_for_unexpected_exit() => panic!("the control plane has failed: {exit}"),
        }
    }

    /// Returns a description of a process that exited unexpectedly, with the last lines of the logs.
    pub fn unexpected_exit(&self) -> Option<String> {
        self.supervisor.unexpected_exit()
    }

    /// Waits until a process exits unexpectedly, and returns the description of [`ControlPlane::unexpected_exit`].
    pub async fn wait_for_unexpected_exit(&self) -> String {
        self.supervisor.wait_for_unexpected_exit().await
    }

    /// Returns the process ids by program name, `etcd` and `kube-apiserver`.
    pub fn processes(&self) -> BTreeMap<String, u32> {
        self.supervisor.processes()
    }

    /// Stops both processes, removes the folder, and waits until that is done.
    pub async fn stop(self) {
        self.supervisor.close();
        self.supervisor.wait_until_gone().await;
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
            let request = Request::get("/readyz").body(Vec::new()).expect("the request is valid");
            // A paused or starting API server may never respond.
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
fn expect_healthy(result: Result<(), String>) {
    result.unwrap_or_else(|error| panic!("the control plane has failed: {error}"));
}

/// Runs a future on its own thread and runtime: it may block, its clock is never paused, and it does not end with the
/// caller's runtime.
async fn run_isolated<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        // If the caller no longer waits, the result is dropped, which stops a control plane.
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
