//! Owns the way to the cluster: kubeconfig, context, namespace, and the one request that creates a stop.
//! Never sends that request twice, and reads no Secret.

use std::{error::Error, time::Duration};

use kube::{
    Api, Client, Config, Resource,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde_json::Value;
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::{error::chain, kube_client::harden};

use crate::args::Flags;
use crate::refusal::explain;
use crate::words::{Place, one_line, quoted};

/// A connection that is silent for longer is given up. A watch receives a bookmark about once a minute.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// A cluster, and the namespace to work in.
pub struct Cluster {
    client: Client,
    /// The same place in the words of kubectl.
    pub place: Place,
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does; a pod has its service account instead.
    ///
    /// # Errors
    /// Where no cluster is named, or in a way that cannot be used; with what to do.
    pub async fn new(flags: &Flags) -> Result<Self, String> {
        let mut config = config(flags).await?;
        harden(&mut config, READ_TIMEOUT);
        let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let named = [
            flags.context.as_ref().map(|context| format!("--context {}", quoted(context))),
            flags.kubeconfig.as_ref().map(|path| format!("--kubeconfig {}", quoted(&path.display().to_string()))),
        ];
        let place = Place { namespace, cluster: named.into_iter().flatten().collect() };
        let client = Client::try_from(config)
            .map_err(|error| format!("the kubeconfig cannot be used: {}", explained(&error)))?;
        Ok(Self { client, place })
    }

    /// The stops of the namespace.
    pub fn stops(&self) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.place.namespace)
    }

    /// Creates a stop, or with `dry_run` lets the cluster check it.
    ///
    /// # Errors
    /// Why it was not created, or why nobody knows whether it was; with what to do.
    pub async fn create(&self, manifest: &Value, dry_run: bool) -> Result<WorkflowRunStop, String> {
        let refused = |error: kube::Error| self.why_not_created(&error, dry_run);
        let path = WorkflowRunStop::url_path(&(), Some(&self.place.namespace));
        let params = PostParams { dry_run, field_manager: Some("kubectl-stop_run".to_owned()) };
        let body = serde_json::to_vec(manifest).map_err(|error| refused(kube::Error::SerdeError(error)))?;
        let mut request = kube::core::Request::new(path)
            .create(&params, body)
            .map_err(|error| refused(kube::Error::BuildRequest(error)))?;
        // As kubectl does: a field that an older definition does not know is refused, and not dropped.
        let strict = format!("{}&fieldValidation=Strict", request.uri());
        *request.uri_mut() = strict.parse().map_err(|_| format!("{strict} is no path of an API server"))?;
        self.client.request(request).await.map_err(refused)
    }

    fn why_not_created(&self, error: &kube::Error, dry_run: bool) -> String {
        let status = if let kube::Error::Api(status) = error { Some(status) } else { None };
        let reason = status.map_or_else(|| explained(error), |status| explain(status, "create", &self.place.namespace));
        if status.is_some_and(|status| status.code < 500) {
            return reason;
        }
        if was_not_sent(error) {
            return format!(
                "{reason}\nCheck that the cluster runs, and which one is meant: kubectl config view --minify"
            );
        }
        if dry_run {
            return reason;
        }
        // Sending it again might make a second stop.
        format!(
            "{reason}\nIt may have been created all the same. Look before you try again: {}",
            self.place.look_at_all()
        )
    }
}

async fn config(flags: &Flags) -> Result<Config, String> {
    let of_cluster = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
    let read = match &flags.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = match read {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &of_cluster).await,
        Err(error) => Err(error),
    };
    match config {
        Ok(config) => Ok(config),
        Err(error) => {
            let asked = flags.kubeconfig.is_some() || flags.context.is_some();
            let in_cluster = if asked { None } else { Config::incluster().ok() };
            in_cluster.ok_or_else(|| unusable(&error, flags.context.as_deref()))
        }
    }
}

fn unusable(error: &KubeconfigError, context: Option<&str>) -> String {
    let remedy = "Set KUBECONFIG or --kubeconfig to the file of a cluster";
    match (error, context) {
        (KubeconfigError::LoadContext(_), Some(context)) => {
            format!("the kubeconfig has no context {context}: kubectl config get-contexts lists them")
        }
        (KubeconfigError::CurrentContextNotSet | KubeconfigError::LoadContext(_), _) => {
            format!("the kubeconfig names no current context. {remedy}, or choose a context with --context")
        }
        _ => format!("no cluster is known: {}. {remedy}", explained(error)),
    }
}

/// Returns an error and its causes in one line.
pub fn explained(error: &(dyn Error + 'static)) -> String {
    one_line(&chain(error))
}

/// True where it is certain that no request went out: there was no connection to send it on.
fn was_not_sent(error: &kube::Error) -> bool {
    let mut chain: Option<&dyn Error> = Some(error);
    while let Some(link) = chain {
        // The client's own type is not public here. Should its words change, nothing is claimed any more.
        if link.to_string() == "client error (Connect)" {
            return true;
        }
        chain = link.source();
    }
    matches!(error, kube::Error::Auth(_))
}
