//! Owns the tests of a control plane's start, users and API.
//! Never touches the processes of the shared control plane.

mod ending;
mod programs;

use std::path::Path;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::core::ObjectList;
use serde_json::json;

use super::*;
use crate::table::table;

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: things.lab.example.com
spec:
  group: lab.example.com
  scope: Namespaced
  names: {kind: Thing, listKind: ThingList, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {colour: {type: string}, note: {type: string}}
    additionalPrinterColumns:
    - {name: Colour, type: string, jsonPath: .spec.colour}
    - {name: Note, type: string, jsonPath: .spec.note, priority: 1}
"#;

async fn config_maps(client: Client, namespace: &str) -> Result<ObjectList<ConfigMap>, kube::Error> {
    Api::namespaced(client, namespace).list(&kube::api::ListParams::default()).await
}

async fn client_from(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}

fn code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

#[tokio::test]
async fn each_caller_of_the_shared_control_plane_gets_its_own_namespace() {
    let plane = ControlPlane::shared().await;
    let (first, second) = (plane.namespace().await, plane.namespace().await);
    assert_ne!(first, second);
    assert!(config_maps(plane.client(), &first).await.is_ok());
}

#[test]
fn the_shared_control_plane_outlives_the_runtime_that_started_it() {
    let urls = [(), ()].map(|()| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let plane = ControlPlane::shared().await;
            assert!(plane.client().apiserver_version().await.is_ok());
            plane.namespace().await;
            plane.url().to_owned()
        })
    });
    assert_eq!(urls[0], urls[1]);
}

#[tokio::test]
async fn the_api_server_has_the_pinned_minor_version_and_a_built_one_the_pinned_version() {
    let version = ControlPlane::shared().await.client().apiserver_version().await.unwrap();
    let pinned = include_str!("../../../go/kubernetes/go.mod");
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if !is_set("KUBEBUILDER_ASSETS") {
        assert!(pinned.contains(&format!("k8s.io/kubernetes v{}.{}.", version.major, version.minor)), "{version:?}");
    }
    if is_set("BUILD_CONTROL_PLANE") {
        assert!(pinned.contains(&format!("k8s.io/kubernetes {}", version.git_version)), "{version:?}");
    }
}

#[tokio::test]
async fn a_kubeconfig_authenticates_its_user_and_rbac_authorizes_it() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let admin = client_from(&plane.kubeconfig_path()).await;
    assert!(config_maps(admin, &namespace).await.is_ok());
    let operator = client_from(&plane.kubeconfig_for(User::Operator)).await;
    assert_eq!(code(&config_maps(operator, &namespace).await.unwrap_err()), Some(403));
    assert_eq!(code(&config_maps(plane.client_for(User::Stranger), &namespace).await.unwrap_err()), Some(403));
}

#[tokio::test]
async fn a_kubeconfig_of_a_service_account_authenticates_as_that_account() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client(), &namespace);
    let account = serde_json::from_value(json!({"metadata": {"name": "robot"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let robot = client_from(&plane.kubeconfig_for_service_account(&namespace, "robot").await).await;
    let error = config_maps(robot, &namespace).await.unwrap_err();
    assert!(error.to_string().contains(&format!("system:serviceaccount:{namespace}:robot")), "{error}");
}

#[tokio::test]
async fn resources_of_an_applied_crd_are_listed_as_by_kubectl() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    // Concurrent tests apply the same definition.
    tokio::join!(plane.apply_crd(CRD), plane.apply_crd(CRD), plane.apply_crd(CRD));
    let client = plane.client();
    let path = format!("/apis/lab.example.com/v1/namespaces/{namespace}/things");
    assert_eq!(table(&client, &path, true).await.unwrap(), "");
    for (name, colour) in [("short", "blue"), ("a-longer-name", "green")] {
        let thing: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "lab.example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {"colour": colour, "note": "x"},
        }))
        .unwrap();
        let request = Request::post(&path).body(serde_json::to_vec(&thing).unwrap()).unwrap();
        client.request::<DynamicObject>(request).await.unwrap();
    }
    let narrow = "NAME            COLOUR\na-longer-name   green\nshort           blue\n";
    assert_eq!(table(&client, &path, false).await.unwrap(), narrow);
    let wide = "NAME            COLOUR   NOTE\na-longer-name   green    x\nshort           blue     x\n";
    assert_eq!(table(&client, &path, true).await.unwrap(), wide);
}

#[tokio::test]
#[should_panic(expected = "the CRD was not applied")]
async fn an_invalid_crd_is_rejected_with_the_reason() {
    ControlPlane::shared().await.apply_crd(&CRD.replace("plural: things", "plural: others")).await;
}
