//! Owns applying a CustomResourceDefinition and waiting until it is served.
//! Never returns before a list of its resources succeeded.

use std::error::Error;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};
use serde_json::Value;

const SERVED_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Applies the definition and waits until each of its versions is served.
pub(super) async fn apply(client: &Client, yaml: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    // Not through the Rust type, which would drop unknown fields.
    let wanted: Value = serde_yaml_ng::from_str(yaml)?;
    let name = wanted["metadata"]["name"].as_str().ok_or("the manifest has no metadata.name")?;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("lab").force();
    let crd = crds.patch(name, &params, &Patch::Apply(&wanted)).await?;
    tokio::time::timeout(SERVED_WITHIN, async {
        await_condition(crds, name, conditions::is_crd_established()).await?;
        for version in crd.spec.versions.iter().filter(|version| version.served) {
            while !is_served(client, &crd, &version.name).await {
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    })
    .await
    .map_err(|_| format!("{} is not served after {} s", crd.name_any(), SERVED_WITHIN.as_secs()))?
}

/// Checks that resources can be listed and discovered. Both start to work a moment after the condition
/// `Established`, and kubectl needs discovery.
async fn is_served(client: &Client, crd: &CustomResourceDefinition, version: &str) -> bool {
    let names = &crd.spec.names;
    let kind = GroupVersionKind::gvk(&crd.spec.group, version, &names.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &names.plural);
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let listed = all.list(&ListParams::default().limit(1)).await.is_ok();
    let discovered = client.list_api_group_resources(&resource.api_version).await;
    listed && discovered.is_ok_and(|found| found.resources.iter().any(|known| known.name == names.plural))
}
