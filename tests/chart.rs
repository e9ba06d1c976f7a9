//! Holds the Helm chart: what its values let pass, what it makes of them, and that it says the same as the code.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use clap::CommandFactory;
use serde::Deserialize;
use serde_json::{Value, json};
use workflow_run_stop_operator::config::Cli;

#[allow(dead_code)]
#[path = "cluster/rights.rs"]
mod rights;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/workflow-run-stop-operator");

fn read(path: &str) -> String {
    fs::read_to_string(format!("{CHART}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs helm, which `make test` gets.
fn helm(args: &[&str]) -> Output {
    let helm = std::env::var("HELM").unwrap_or_else(|_| "helm".to_owned());
    let ran = Command::new(&helm).args(args).output();
    ran.unwrap_or_else(|error| panic!("{helm}: {error}; `make test` gets helm, or set HELM"))
}

/// The chart's objects with these settings.
fn rendered(settings: &[&str]) -> Result<Vec<Value>, String> {
    let mut args = vec!["template", "release", CHART, "--namespace", "ours", "--kube-version", "1.37.0"];
    settings.iter().for_each(|setting| args.extend(["--set-json", setting]));
    let output = helm(&args);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let documents = serde_yaml_ng::Deserializer::from_slice(&output.stdout);
    let objects = documents.map(|document| Value::deserialize(document).unwrap()).filter(|object| !object.is_null());
    Ok(objects.collect())
}

fn all(settings: &[&str]) -> Vec<Value> {
    rendered(settings).unwrap_or_else(|error| panic!("{settings:?}: {error}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The template of the operator's pods.
fn pod(objects: &[Value]) -> &Value {
    &of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
}

fn args(objects: &[Value]) -> Vec<&str> {
    pod(objects)["containers"][0]["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

#[test]
fn the_chart_has_the_version_of_the_operator() {
    let chart: Value = serde_yaml_ng::from_str(&read("Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_crd_of_the_chart_is_the_one_of_the_repository() {
    let crd = include_str!("../crds/workflowrunstops.yaml");
    assert_eq!(read("files/crd.yaml"), crd, "`make crd` writes both");
    let expected: Value = serde_yaml_ng::from_str(crd).unwrap();
    let objects = all(&[]);
    let installed = of_kind(&objects, "CustomResourceDefinition")[0];
    assert_eq!(installed["spec"], expected["spec"]);
    assert_eq!(installed["metadata"]["annotations"], json!({"helm.sh/resource-policy": "keep"}));
    assert_eq!(installed["metadata"]["labels"]["app.kubernetes.io/managed-by"], "Helm");
}

#[test]
fn the_crd_can_be_left_out_and_can_go_with_the_chart() {
    assert!(of_kind(&all(&["crds.install=false"]), "CustomResourceDefinition").is_empty());
    let objects = all(&["crds.keep=false"]);
    assert_eq!(of_kind(&objects, "CustomResourceDefinition")[0]["metadata"]["annotations"], Value::Null);
}

/// The operator's flags with their defaults.
fn flags() -> Vec<(String, String)> {
    let command = <Cli as CommandFactory>::command();
    let flags = command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
    let default = |arg: &clap::Arg| arg.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
    flags.map(|arg| (arg.get_long().unwrap().to_owned(), default(arg))).collect()
}

#[test]
fn every_flag_of_the_operator_is_set_by_the_chart() {
    let objects = all(&[]);
    let set: BTreeSet<_> =
        args(&objects).into_iter().map(|arg| arg.split_once('=').unwrap().0.trim_start_matches("--")).collect();
    let flags = flags();
    let known: BTreeSet<_> = flags.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(set, known);
}

#[test]
fn the_defaults_are_those_of_the_operator_but_for_the_election() {
    let objects = all(&[]);
    for (name, default) in flags() {
        let value = args(&objects).iter().find_map(|arg| arg.strip_prefix(&format!("--{name}="))).unwrap().to_owned();
        match name.as_str() {
            "leader-elect" => assert_eq!(value, "true"),
            "lease-name" => assert_eq!(value, "release-workflow-run-stop-operator"),
            "lease-namespace" => assert_eq!(value, "ours"),
            _ => assert_eq!(value, default, "--{name}"),
        }
    }
}

#[test]
fn a_value_that_is_wrong_is_named() {
    let wrong: &[(&[&str], &str)] = &[
        (&["replicas=3"], "replicas"),
        (&["image.repo=\"x\""], "repo"),
        (&["replicaCount=\"2\""], "replicaCount"),
        (&["replicaCount=-1"], "replicaCount"),
        (&["requestsPerSecond=0"], "requestsPerSecond"),
        (&["requestsPerSecond=1001"], "requestsPerSecond"),
        (&["requestTimeout=30"], "requestTimeout"),
        (&["requestTimeout=\"30\""], "requestTimeout"),
        (&["drainTimeout=\"soon\""], "drainTimeout"),
        (&["drainTimeout=\"20s\""], "drainTimeout (20s) has to be longer than requestTimeout (30s)"),
        (&["requestTimeout=\"1m\"", "drainTimeout=\"59s\""], "has to be longer"),
        (&["amperity.baseUrl=\"app.amperity.com\""], "baseUrl"),
        (&["allowedHosts=\"*.amperity.com\""], "allowedHosts"),
        (&["watchNamespaces=[\"A\"]"], "watchNamespaces"),
        (&["watchNamespaces=[\"a\",\"a\"]"], "watchNamespaces"),
        (&["logFormat=\"xml\""], "logFormat"),
        (&["image.digest=\"sha256:1\""], "digest"),
        (&["image.pullPolicy=\"Sometimes\""], "pullPolicy"),
        (&["caBundle.configMap=\"a\"", "caBundle.secret=\"b\""], "choose one"),
        (&["metrics.serviceMonitor.enabled=true", "metrics.service.enabled=false"], "needs metrics.service.enabled"),
        (&["networkPolicy.egressPorts=[]"], "egressPorts"),
        (&["crds.installs=true"], "installs"),
        (&["secrets.names=[\"A_B\"]"], "names"),
    ];
    for (settings, named) in wrong {
        match rendered(settings) {
            Ok(_) => panic!("{settings:?} passed"),
            Err(error) => assert!(error.contains(named), "{settings:?}: {error}"),
        }
    }
}

#[test]
fn every_value_is_in_the_schema_with_the_same_keys() {
    fn compare(path: &str, values: &Value, schema: &Value) {
        let (Some(values), Some(properties)) = (values.as_object(), schema["properties"].as_object()) else { return };
        let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<BTreeSet<_>>();
        if schema["additionalProperties"] == json!(false) {
            assert_eq!(keys(values), keys(properties), "in {path}");
        }
        values.iter().for_each(|(key, value)| compare(&format!("{path}.{key}"), value, &properties[key]));
    }
    let values = serde_yaml_ng::from_str(&read("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    compare("", &values, &schema);
}

#[test]
fn a_pod_is_as_pod_security_restricted_wants_it() {
    let objects = all(&["caBundle.configMap=\"ca\""]);
    let check = of_kind(&objects, "Pod")[0]["spec"].clone();
    for pod in [pod(&objects), &check] {
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&json!(65532), &json!(65532)));
        assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}));
        for container in pod["containers"].as_array().unwrap() {
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            });
            assert_eq!(container["securityContext"], expected);
            assert!(container["resources"]["limits"]["memory"].is_string());
        }
    }
}

#[test]
fn the_pod_has_more_time_to_end_than_its_requests() {
    let grace = |settings: &[&str]| pod(&all(settings))["terminationGracePeriodSeconds"].as_u64();
    assert_eq!(grace(&[]), Some(60));
    assert_eq!(grace(&["drainTimeout=\"1m30s\""]), Some(110));
    assert_eq!(grace(&["drainTimeout=\"2m\""]), Some(140));
}

/// Kind, name, and what each rule allows, of every role for the operator.
fn rights(objects: &[Value]) -> Vec<String> {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = vec![];
    for role in objects.iter().filter(|object| ["Role", "ClusterRole"].contains(&object["kind"].as_str().unwrap())) {
        let meta = &role["metadata"];
        if meta["labels"].as_object().unwrap().keys().any(|label| label.contains("aggregate-to")) {
            continue;
        }
        let place = meta["namespace"].as_str().map_or("everywhere".to_owned(), |name| format!("in {name}"));
        for rule in role["rules"].as_array().unwrap() {
            let names = list(&rule["resourceNames"]);
            let names = if names.is_empty() { String::new() } else { format!(" named {}", names.join(",")) };
            rights.push(format!(
                "{place}: {} {}{names}",
                list(&rule["verbs"]).join(","),
                list(&rule["resources"]).join(",")
            ));
        }
    }
    rights.sort();
    rights
}

#[test]
fn the_operator_may_do_what_it_needs_and_no_more() {
    let lease = ["in ours: create leases", "in ours: get,update leases named release-workflow-run-stop-operator"];
    let everywhere = [
        "everywhere: get secrets",
        "everywhere: get,list,watch,delete workflowrunstops",
        "everywhere: patch workflowrunstops/status",
    ];
    assert_eq!(rights(&all(&[])), [&everywhere[..], &lease].concat());
    assert_eq!(rights(&all(&["leaderElect=false"])), everywhere);
    let named = rights(&all(&["secrets.names=[\"amperity\",\"other\"]", "leaderElect=false"]));
    assert_eq!(named[0], "everywhere: get secrets named amperity,other");
    let mut in_two = vec![];
    for namespace in ["a", "b"] {
        in_two.extend(everywhere.map(|right| right.replace("everywhere", &format!("in {namespace}"))));
    }
    in_two.extend(lease.map(str::to_owned));
    let objects = all(&["watchNamespaces=[\"a\",\"b\"]"]);
    assert_eq!(rights(&objects), in_two);
    let bindings = of_kind(&objects, "ClusterRoleBinding");
    assert!(bindings.is_empty(), "{bindings:?}");
    assert!(rights(&all(&["rbac.create=false"])).is_empty());
}

/// All rules of the roles in this namespace, or of the ClusterRole where none is given.
fn rules(objects: &[Value], namespace: Option<&str>) -> Vec<Value> {
    let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
    let roles = of_kind(objects, kind).into_iter().filter(|role| {
        let name = role["metadata"]["name"].as_str().unwrap();
        role["metadata"]["namespace"].as_str() == namespace && !name.ends_with("-view") && !name.ends_with("-edit")
    });
    roles.flat_map(|role| role["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn the_rights_are_those_that_all_integration_tests_run_with() {
    let objects = all(&[]);
    assert_eq!(rules(&objects, None), rights::of_watched());
    assert_eq!(rules(&objects, Some("ours")), rights::of_lease("release-workflow-run-stop-operator"));
    let objects = all(&["watchNamespaces=[\"a\"]", "leaseName=\"l\""]);
    assert!(rules(&objects, None).is_empty());
    assert_eq!(rules(&objects, Some("a")), rights::of_watched());
    assert_eq!(rules(&objects, Some("ours")), rights::of_lease("l"));
}

#[test]
fn people_get_the_rights_of_their_namespace_and_never_the_status() {
    let objects = all(&[]);
    let roles = of_kind(&objects, "ClusterRole").into_iter();
    let aggregated = roles.filter(|role| role["metadata"]["name"].as_str().unwrap().ends_with("-edit"));
    for role in aggregated {
        assert_eq!(role["rules"][0]["resources"], json!(["workflowrunstops"]));
    }
    let none = all(&["rbac.aggregate=false"]);
    assert!(
        of_kind(&none, "ClusterRole")
            .iter()
            .all(|role| role["metadata"]["name"] == "release-workflow-run-stop-operator")
    );
}

#[test]
fn what_is_not_asked_for_is_not_made() {
    let kinds = |settings: &[&str]| -> BTreeSet<String> {
        all(settings).iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
    };
    let usual = kinds(&[]);
    for kind in ["NetworkPolicy", "ServiceMonitor", "PodMonitor"] {
        assert!(!usual.contains(kind), "{kind}");
    }
    assert!(usual.contains("PodDisruptionBudget"));
    assert!(!kinds(&["replicaCount=1"]).contains("PodDisruptionBudget"), "it would only hold up a drain");
    let more = kinds(&[
        "networkPolicy.enabled=true",
        "metrics.serviceMonitor.enabled=true",
        "metrics.podMonitor.enabled=true",
    ]);
    assert!(["NetworkPolicy", "ServiceMonitor", "PodMonitor"].iter().all(|kind| more.contains(*kind)));
}

#[test]
fn certificates_proxy_and_digest_reach_the_pod() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let set_digest = format!("image.digest=\"{digest}\"");
    let objects = all(&[
        "caBundle.secret=\"ours\"",
        "caBundle.key=\"tls.crt\"",
        "proxy.httpsProxy=\"http://proxy:3128\"",
        "proxy.noProxy=\"10.0.0.0/8\"",
        "extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]",
        &set_digest,
    ]);
    let container = &pod(&objects)["containers"][0];
    assert_eq!(container["image"], format!("workflow-run-stop-operator@{digest}"));
    let expected = json!([
        {"name": "RUST_LOG", "value": "info"},
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "NO_PROXY", "value": "10.0.0.0/8"},
        {"name": "SSL_CERT_FILE", "value": "/etc/workflow-run-stop-operator/ca/tls.crt"},
        {"name": "A", "value": "b"},
    ]);
    assert_eq!(container["env"], expected);
    assert_eq!(pod(&objects)["volumes"], json!([{"name": "ca", "secret": {"secretName": "ours"}}]));
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let output = helm(&["lint", "--strict", CHART]);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
