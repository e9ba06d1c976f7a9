//! Owns the access to the cluster: kubeconfig, context, namespace, and the request that creates a stop.
//! Never sends that request twice. Never reads a Secret.

use std::{error::Error, time::Duration};

use kube::{
    Api, Client, Config, Resource,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde_json::Value;
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::{
    error::{causes, chain},
    kube_client::harden,
};

use crate::api_error;
use crate::args::Flags;
use crate::messages::{KubectlCommands, one_line, shell_quoted};

/// The time without data after which a connection is closed. A watch receives a bookmark about once a minute.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// A cluster and a namespace.
pub struct Cluster {
    client: Client,
    /// The kubectl commands for the same cluster and namespace.
    pub kubectl: KubectlCommands,
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does; without one, a pod uses its service account.
    ///
    /// # Errors
    /// If the kubeconfig is missing or unusable. The message says what to do.
    pub async fn new(flags: &Flags) -> Result<Self, String> {
        let mut config = config(flags).await?;
        harden(&mut config, READ_TIMEOUT);
        let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let cluster_flags = [
            flags.context.as_ref().map(|context| format!("--context {}", shell_quoted(context))),
            flags.kubeconfig.as_ref().map(|path| format!("--kubeconfig {}", shell_quoted(&path.display().to_string()))),
        ];
        let kubectl = KubectlCommands { namespace, cluster_flags: cluster_flags.into_iter().flatten().collect() };
        let client =
            Client::try_from(config).map_err(|error| format!("cannot use the kubeconfig: {}", error_chain(&error)))?;
        Ok(Self { client, kubectl })
    }

    /// Returns the API of the stops in the namespace.
    pub fn stops(&self) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.kubectl.namespace)
    }

    /// Creates a stop, or with `dry_run` lets the API server validate it.
    ///
    /// # Errors
    /// If the stop was not created, or if it is not known whether it was. The message says what to do.
    pub async fn create(&self, manifest: &Value, dry_run: bool) -> Result<WorkflowRunStop, String> {
        let failed = |error: kube::Error| self.creation_error(&error, dry_run);
        let path = WorkflowRunStop::url_path(&(), Some(&self.kubectl.namespace));
        let params = PostParams { dry_run, field_manager: Some("kubectl-stop_run".to_owned()) };
        let body = serde_json::to_vec(manifest).map_err(|error| failed(kube::Error::SerdeError(error)))?;
        let mut request = kube::core::Request::new(path)
            .create(&params, body)
            .map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        // As kubectl does: a field that an older CRD does not have is rejected, not dropped.
        let strict = format!("{}&fieldValidation=Strict", request.uri());
        *request.uri_mut() = strict.parse().map_err(|_| format!("{strict} is not a valid request URI"))?;
        self.client.request(request).await.map_err(failed)
    }

    /// Returns the message for a failed creation.
    fn creation_error(&self, error: &kube::Error, dry_run: bool) -> String {
        let status = if let kube::Error::Api(status) = error { Some(status) } else { None };
        let reason = status
            .map_or_else(|| error_chain(error), |status| api_error::message(status, "create", &self.kubectl.namespace));
        if status.is_some_and(|status| status.code < 500) {
            return reason;
        }
        if was_not_sent(error) {
            return format!(
                "{reason}\nCheck that the cluster is running and that the kubeconfig names the right one: kubectl config view --minify"
            );
        }
        if dry_run {
            return reason;
        }
        // Sending the request again could create a second stop.
        format!(
            "{reason}\nThe stop may have been created nevertheless. Check before you retry: {}",
            self.kubectl.get_all()
        )
    }
}

async fn config(flags: &Flags) -> Result<Config, String> {
    let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
    let read = match &flags.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = match read {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
        Err(error) => Err(error),
    };
    match config {
        Ok(config) => Ok(config),
        Err(error) => {
            let is_explicit = flags.kubeconfig.is_some() || flags.context.is_some();
            let in_cluster = if is_explicit { None } else { Config::incluster().ok() };
            in_cluster.ok_or_else(|| kubeconfig_error(&error, flags.context.as_deref()))
        }
    }
}

/// Returns the message for a kubeconfig that cannot be used.
fn kubeconfig_error(error: &KubeconfigError, context: Option<&str>) -> String {
    let remedy = "Set KUBECONFIG or --kubeconfig to the kubeconfig of a cluster";
    match (error, context) {
        (KubeconfigError::LoadContext(_), Some(context)) => {
            format!("the kubeconfig has no context {context}. To list its contexts: kubectl config get-contexts")
        }
        (KubeconfigError::CurrentContextNotSet | KubeconfigError::LoadContext(_), _) => {
            format!("the kubeconfig has no current context. {remedy}, or choose a context with --context")
        }
        _ => format!("cannot load a kubeconfig: {}. {remedy}", error_chain(error)),
    }
}

/// Returns an error and its causes in one line.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    one_line(&chain(error))
}

/// Returns whether the request is known not to have been sent, because no connection was established or because the
/// credentials could not be obtained.
fn was_not_sent(error: &kube::Error) -> bool {
    // The type of a connection error is not public, so it is recognized by its text. If the text changes, the request
    // counts as possibly sent.
    let not_connected = causes(error).any(|cause| cause.to_string() == "client error (Connect)");
    not_connected || matches!(error, kube::Error::Auth(_))
}
