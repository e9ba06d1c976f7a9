//! Owns the tests of the rendered chart. They need helm, from $HELM or the PATH; `make test` sets $HELM.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use serde::Deserialize;
use serde_json::{Value, json};

use lab::testing::rbac;
use workflow_run_stop_operator::operator::http_server;

use super::{CHART, flags, read};

const NAME: &str = "release-workflow-run-stop-operator";

fn helm(args: &[&str]) -> Output {
    let helm = std::env::var("HELM").unwrap_or_else(|_| "helm".to_owned());
    Command::new(&helm).args(args).output().unwrap_or_else(|error| panic!("{helm}: {error}"))
}

/// Returns the objects that helm renders with these settings, or its error.
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

/// Returns the objects with these settings, which must be valid.
fn all(settings: &[&str]) -> Vec<Value> {
    rendered(settings).unwrap_or_else(|error| panic!("{settings:?}: {error}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Returns the only object of a kind.
fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// Returns the pod spec of the Deployment.
fn pod(objects: &[Value]) -> &Value {
    &only(objects, "Deployment")["spec"]["template"]["spec"]
}

fn container(objects: &[Value]) -> &Value {
    &pod(objects)["containers"][0]
}

fn kinds(settings: &[&str]) -> BTreeSet<String> {
    all(settings).iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn helm_lint_accepts_the_chart() {
    let output = helm(&["lint", "--strict", CHART]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_invalid_value_is_rejected_and_named() {
    let invalid: &[(&[&str], &str)] = &[
        // Unknown values.
        (&["replicas=3"], "'replicas' not allowed"),
        (&["image.repo=\"x\""], "/image': additional properties 'repo' not allowed"),
        (&["crds.installs=true"], "/crds': additional properties 'installs' not allowed"),
        (&["tolerations=[{\"keys\":\"x\"}]"], "/tolerations/0': additional properties 'keys' not allowed"),
        (&["podSecurityContext.runAsUsr=1"], "/podSecurityContext': additional properties 'runAsUsr' not allowed"),
        (&["securityContext.capabilites={}"], "/securityContext': additional properties 'capabilites' not allowed"),
        (&["affinity.podAfinity={}"], "/affinity': additional properties 'podAfinity' not allowed"),
        (&["extraEnv=[{\"name\":\"A\",\"vale\":\"b\"}]"], "/extraEnv/0': additional properties 'vale' not allowed"),
        (&["metrics.alerts={}"], "/metrics': additional properties 'alerts' not allowed"),
        (&["metrics.prometheusRule.rules=[]"], "/metrics/prometheusRule': additional properties 'rules' not allowed"),
        (&["metrics.dashboard.folder=\"a\""], "/metrics/dashboard': additional properties 'folder' not allowed"),
        // Missing values.
        (&["requestTimeout=null"], "missing property 'requestTimeout'"),
        (&["image.repository=null"], "missing property 'repository'"),
        (&["metrics.dashboard.labels=null"], "missing property 'labels'"),
        // Wrong types.
        (&["replicaCount=\"2\""], "/replicaCount': got string, want integer"),
        (&["leaderElect=\"yes\""], "/leaderElect': got string, want boolean"),
        (&["amperity.allowedHosts=\"*.amperity.com\""], "/amperity/allowedHosts': got string, want array"),
        (&["requestTimeout=30"], "/requestTimeout': got number, want string"),
        (&["podAnnotations={\"a\":1}"], "/podAnnotations/a': got number, want string"),
        (&["metrics.prometheusRule.enabled=\"yes\""], "/metrics/prometheusRule/enabled': got string, want boolean"),
        (&["metrics.dashboard.labels={\"grafana_dashboard\":1}"], "/grafana_dashboard': got number, want string"),
        (&["metrics.dashboard.annotations={\"a\":1}"], "/metrics/dashboard/annotations/a': got number, want string"),
        // Invalid formats and ranges.
        (&["replicaCount=-1"], "/replicaCount'"),
        (&["requestsPerSecond=0"], "/requestsPerSecond'"),
        (&["requestsPerSecond=1001"], "/requestsPerSecond'"),
        (&["requestTimeout=\"30\""], "/requestTimeout'"),
        (&["settleTime=\"0s\""], "/settleTime'"),
        (&["drainTimeout=\"soon\""], "/drainTimeout'"),
        (&["amperity.baseUrl=\"app.amperity.com\""], "/amperity/baseUrl'"),
        (&["amperity.allowedHosts=[\"https://a.com\"]"], "/amperity/allowedHosts/0'"),
        (&["watchNamespaces=[\"A\"]"], "/watchNamespaces/0'"),
        (&["watchNamespaces=[\"a\",\"a\"]"], "/watchNamespaces'"),
        (&["httpAddr=\"8080\""], "/httpAddr'"),
        (&["httpAddr=\":8080\""], "/httpAddr'"),
        (&["logFormat=\"xml\""], "/logFormat'"),
        (&["logLevel=\"inof\""], "/logLevel'"),
        (&["image.tag=\"a b\""], "/image/tag'"),
        (&["image.digest=\"sha256:1\""], "/image/digest'"),
        (&["image.pullPolicy=\"Sometimes\""], "/image/pullPolicy'"),
        (&["secrets.names=[\"A_B\"]"], "/secrets/names/0'"),
        (&["resources.limits={\"memory\":\"lots\"}"], "/resources/limits/memory'"),
        (&["networkPolicy.egressPorts=[]"], "/networkPolicy/egressPorts'"),
        (&["commonLabels={\"a\":\"b c\"}"], "/commonLabels/a'"),
        // Conflicts with another value.
        (&["drainTimeout=\"20s\""], "drainTimeout (20s) has to be longer than requestTimeout (30s)"),
        (&["requestTimeout=\"1m\"", "drainTimeout=\"59s\""], "has to be longer"),
        (&["settleTime=\"61m\""], "settleTime (61m) is longer than an hour"),
        (&["leaderElect=false", "leaseName=\"a\""], "there is no Lease"),
        (&["caBundle.configMap=\"a\"", "caBundle.secret=\"b\""], "choose one"),
        (&["podLabels={\"app.kubernetes.io/name\":\"a\"}"], "podLabels: the chart itself sets the label"),
        (&["metrics.serviceMonitor.enabled=true", "metrics.service.enabled=false"], "needs metrics.service.enabled"),
        (&["metrics.serviceMonitor.enabled=true", "metrics.podMonitor.enabled=true"], "scraped twice"),
    ];
    for (settings, message) in invalid {
        match rendered(settings) {
            Ok(_) => panic!("{settings:?} was accepted"),
            Err(error) => assert!(error.contains(message), "{settings:?}: {error}"),
        }
    }
}

#[test]
fn a_cluster_older_than_1_32_is_rejected() {
    let output = helm(&["template", "release", CHART, "--kube-version", "1.31.9"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(">=1.32.0-0"), "{error}");
    // A version of a cloud provider.
    assert!(helm(&["template", "release", CHART, "--kube-version", "1.32.1-eks-1234"]).status.success());
}

#[test]
fn the_chart_installs_the_crd_and_an_uninstall_keeps_it() {
    let objects = all(&["commonLabels={\"team\":\"a\"}"]);
    let installed = only(&objects, "CustomResourceDefinition");
    let expected: Value = serde_yaml_ng::from_str(include_str!("../../../crds/workflowrunstops.yaml")).unwrap();
    assert_eq!(installed["spec"], expected["spec"]);
    assert_eq!(installed["metadata"]["name"], expected["metadata"]["name"]);
    assert_eq!(installed["metadata"]["annotations"], json!({"helm.sh/resource-policy": "keep"}));
    assert_eq!(installed["metadata"]["labels"]["app.kubernetes.io/managed-by"], "Helm");
    assert_eq!(installed["metadata"]["labels"]["team"], "a");
    let not_kept = all(&["crds.keep=false"]);
    assert_eq!(only(&not_kept, "CustomResourceDefinition")["metadata"]["annotations"], Value::Null);
    assert!(!kinds(&["crds.install=false"]).contains("CustomResourceDefinition"));
}

#[test]
fn every_flag_is_passed_to_the_operator() {
    let args = |settings: &[&str]| -> Vec<String> {
        let objects = all(settings);
        let mut args: Vec<_> = texts(&container(&objects)["args"]).into_iter().map(str::to_owned).collect();
        args.sort();
        args
    };
    let defaults = flags().into_iter().map(|(name, default)| match name.as_str() {
        "leader-elect" => "--leader-elect=true".to_owned(),
        "lease-name" => format!("--lease-name={NAME}"),
        "lease-namespace" => "--lease-namespace=ours".to_owned(),
        _ => format!("--{name}={default}"),
    });
    assert_eq!(args(&[]), defaults.collect::<Vec<_>>());
    let port = json!([{"name": "http", "containerPort": http_server::ANY.port()}]);
    for empty in ["httpAddr=\"\"", "httpAddr=null"] {
        assert_eq!(container(&all(&[empty]))["ports"], port);
        assert_eq!(args(&[empty]), args(&[]));
    }
    let other = [
        "amperity={\"baseUrl\":\"http://{tenant}.sim:1/api\",\"apiVersion\":\"v2\",\"allowedHosts\":[\"a.com\",\"*.b.com\"]}",
        "requestsPerSecond=3",
        "maxUnfinishedPerNamespace=7",
        "requestTimeout=\"1m30s\"",
        "settleTime=\"2m\"",
        "drainTimeout=\"95s\"",
        "watchNamespaces=[\"a\",\"b\"]",
        "leaseName=\"ours\"",
        "httpAddr=\"[::]:9090\"",
        "logFormat=\"text\"",
    ];
    let expected = [
        "--allowed-hosts=a.com,*.b.com",
        "--amperity-api-version=v2",
        "--amperity-base-url=http://{tenant}.sim:1/api",
        "--drain-timeout=95s",
        "--http-addr=[::]:9090",
        "--leader-elect=true",
        "--lease-name=ours",
        "--lease-namespace=ours",
        "--log-format=text",
        "--max-unfinished-per-namespace=7",
        "--request-timeout=1m30s",
        "--requests-per-second=3",
        "--settle-time=2m",
        "--watch-namespaces=a,b",
    ];
    assert_eq!(args(&other), expected);
    let objects = all(&other);
    assert_eq!(container(&objects)["ports"], json!([{"name": "http", "containerPort": 9090}]));
    let check = only(&objects, "Pod");
    assert_eq!(check["spec"]["containers"][0]["args"], json!(["check", "--watch-namespaces=a,b"]));
}

#[test]
fn pods_comply_with_pod_security_restricted() {
    let objects = all(&["caBundle.configMap=\"ca\""]);
    for pod in [pod(&objects), &only(&objects, "Pod")["spec"]] {
        let expected = json!({
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(pod["securityContext"], expected);
        assert!(["hostNetwork", "hostPID", "hostIPC", "initContainers"].iter().all(|key| pod[key].is_null()));
        assert_eq!(pod["automountServiceAccountToken"], true);
        for container in pod["containers"].as_array().unwrap() {
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            });
            assert_eq!(container["securityContext"], expected);
            assert!(container["resources"]["limits"]["memory"].is_string());
            assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
        }
    }
    assert_eq!(only(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
    // OpenShift assigns the user.
    let objects = all(&["podSecurityContext={\"runAsUser\":null,\"runAsGroup\":null}"]);
    let expected = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(pod(&objects)["securityContext"], expected);
}

#[test]
fn the_grace_period_of_the_pod_is_20_seconds_longer_than_the_drain_timeout() {
    let grace =
        |drain: &str| pod(&all(&[&format!("drainTimeout=\"{drain}\"")]))["terminationGracePeriodSeconds"].as_u64();
    assert_eq!(
        ["40s", "1m30s", "2m", "60m"].map(grace),
        [Some(40 + 20), Some(90 + 20), Some(120 + 20), Some(3600 + 20)]
    );
}

/// Returns the permissions of each role of the operator, with their scope.
fn permissions(objects: &[Value]) -> Vec<String> {
    let mut permissions = vec![];
    for role in objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole") {
        let meta = &role["metadata"];
        if meta["labels"].as_object().unwrap().keys().any(|label| label.contains("aggregate-to")) {
            continue;
        }
        let scope = meta["namespace"].as_str().map_or("everywhere".to_owned(), |name| format!("in {name}"));
        for rule in role["rules"].as_array().unwrap() {
            let list = |key: &str| texts(&rule[key]).join(",");
            let names =
                rule["resourceNames"].as_array().map_or(String::new(), |_| format!(" named {}", list("resourceNames")));
            let group = rule["apiGroups"][0].as_str().unwrap();
            permissions.push(format!("{scope}: {} {group}/{}{names}", list("verbs"), list("resources")));
        }
    }
    permissions.sort();
    permissions
}

/// Tested with a real API server in tests/cluster/operator.rs
/// (`the_permissions_of_the_chart_suffice_for_leader_election_and_ttl_deletion`).
const EVERYWHERE: [&str; 4] = [
    "everywhere: create,patch events.k8s.io/events",
    "everywhere: get /secrets",
    "everywhere: get,list,watch,delete workflow.amperity.com/workflowrunstops",
    "everywhere: patch workflow.amperity.com/workflowrunstops/status",
];

const LEASE: [&str; 2] = [
    "in ours: create coordination.k8s.io/leases",
    "in ours: get,update coordination.k8s.io/leases named release-workflow-run-stop-operator",
];

#[test]
fn the_operator_has_the_permissions_that_it_needs_and_no_others() {
    assert_eq!(permissions(&all(&[])), [&EVERYWHERE[..], &LEASE].concat());
    assert_eq!(permissions(&all(&["leaderElect=false"])), EVERYWHERE);
    let named = permissions(&all(&["secrets.names=[\"amperity\",\"other\"]", "leaderElect=false"]));
    assert_eq!(named[1], "everywhere: get /secrets named amperity,other");
    assert!(permissions(&all(&["rbac.create=false"])).is_empty());
}

#[test]
fn with_watched_namespaces_the_operator_has_roles_there_and_no_cluster_role() {
    let mut expected = vec![];
    for namespace in ["a", "b"] {
        expected.extend(EVERYWHERE.map(|permission| permission.replace("everywhere", &format!("in {namespace}"))));
    }
    expected.extend(LEASE.map(str::to_owned));
    let objects = all(&["watchNamespaces=[\"a\",\"b\"]"]);
    assert_eq!(permissions(&objects), expected);
    assert!(of_kind(&objects, "ClusterRoleBinding").is_empty());
    // The operator's own namespace may be one of them.
    let own = all(&["watchNamespaces=[\"ours\"]"]);
    let names: BTreeSet<_> =
        of_kind(&own, "Role").iter().map(|role| role["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, [NAME, &format!("{NAME}-lease")].into());
    // With these settings every object is namespaced.
    let objects = all(&["watchNamespaces=[\"a\"]", "crds.install=false", "rbac.aggregate=false"]);
    for object in &objects {
        assert!(object["metadata"]["namespace"].is_string(), "{object}");
    }
}

#[test]
fn every_role_is_bound_to_the_operators_account() {
    for (settings, account) in [
        (&[][..], NAME),
        (&["watchNamespaces=[\"a\"]", "serviceAccount.name=\"named\""], "named"),
        (&["serviceAccount={\"create\":false}"], "default"),
    ] {
        let objects = all(settings);
        assert_eq!(pod(&objects)["serviceAccountName"], account);
        let id = |object: &Value, name: &Value| format!("{}/{name}", object["metadata"]["namespace"]);
        for (role, binding) in [("Role", "RoleBinding"), ("ClusterRole", "ClusterRoleBinding")] {
            let roles = of_kind(&objects, role).into_iter();
            let roles = roles
                .filter(|role| role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"].is_null());
            let roles: Vec<_> = roles.map(|role| id(role, &role["metadata"]["name"])).collect();
            let bindings = of_kind(&objects, binding);
            assert_eq!(roles, bindings.iter().map(|bound| id(bound, &bound["roleRef"]["name"])).collect::<Vec<_>>());
            for bound in bindings {
                assert_eq!(bound["roleRef"]["kind"], role);
                assert_eq!(
                    bound["subjects"],
                    json!([{"kind": "ServiceAccount", "name": account, "namespace": "ours"}])
                );
            }
        }
    }
}

#[test]
fn the_aggregated_roles_never_allow_writes_of_the_status() {
    let objects = all(&[]);
    let aggregated = |suffix: &str| {
        let mut roles = of_kind(&objects, "ClusterRole").into_iter();
        let role = roles.find(|role| role["metadata"]["name"] == format!("{NAME}-{suffix}")).unwrap();
        let labels = role["metadata"]["labels"].as_object().unwrap().iter();
        let to = labels.filter(|(_, value)| *value == "true");
        let to = to.filter_map(|(label, _)| label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-"));
        (to.map(str::to_owned).collect::<BTreeSet<_>>(), role["rules"].clone())
    };
    let rule = |resources: Value, verbs: Value| json!([{"apiGroups": ["workflow.amperity.com"], "resources": resources, "verbs": verbs}]);
    let view = rule(json!(["workflowrunstops", "workflowrunstops/status"]), json!(["get", "list", "watch"]));
    assert_eq!(aggregated("view"), (["view", "edit", "admin"].map(str::to_owned).into(), view));
    let edit = rule(json!(["workflowrunstops"]), json!(["create", "update", "patch", "delete", "deletecollection"]));
    assert_eq!(aggregated("edit"), (["edit", "admin"].map(str::to_owned).into(), edit));
    assert_eq!(of_kind(&all(&["rbac.aggregate=false"]), "ClusterRole").len(), 1);
}

#[test]
fn optional_objects_are_rendered_only_if_enabled() {
    let usual = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Pod", // of `helm test`
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(kinds(&[]), usual.map(str::to_owned).into());
    assert!(!kinds(&["replicaCount=1"]).contains("PodDisruptionBudget"), "it would not protect a single pod");
    assert!(!kinds(&["podDisruptionBudget.enabled=false"]).contains("PodDisruptionBudget"));
    assert!(!kinds(&["metrics.service.enabled=false"]).contains("Service"));
    assert!(!kinds(&["serviceAccount.create=false"]).contains("ServiceAccount"));
    for (setting, kind) in [
        ("networkPolicy.enabled=true", "NetworkPolicy"),
        ("metrics.serviceMonitor.enabled=true", "ServiceMonitor"),
        ("metrics.podMonitor.enabled=true", "PodMonitor"),
        ("metrics.prometheusRule.enabled=true", "PrometheusRule"),
        ("metrics.dashboard.enabled=true", "ConfigMap"),
    ] {
        assert!(kinds(&[setting]).contains(kind), "{kind}");
    }
}

#[test]
fn the_prometheus_rule_has_the_alerts_of_the_file_and_the_configured_labels() {
    let objects = all(&[
        "metrics.prometheusRule={\"enabled\":true,\"labels\":{\"release\":\"prometheus\"}}",
        "commonLabels={\"team\":\"a\"}",
    ]);
    let rule = only(&objects, "PrometheusRule");
    let alerts: Value = serde_yaml_ng::from_str(&read("files/alerts.yaml")).unwrap();
    assert_eq!(rule["spec"], alerts);
    assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(rule["metadata"]["name"], NAME);
    assert_eq!(rule["metadata"]["namespace"], "ours");
    let labels = &rule["metadata"]["labels"];
    assert_eq!(labels["release"], "prometheus");
    assert_eq!(labels["team"], "a");
    assert_eq!(labels["app.kubernetes.io/instance"], "release");
}

#[test]
fn the_dashboard_is_that_of_the_file_with_the_labels_of_the_sidecar() {
    let objects = all(&["metrics.dashboard={\"enabled\":true,\"annotations\":{\"grafana_folder\":\"Amperity\"}}"]);
    let dashboard = only(&objects, "ConfigMap");
    let data = dashboard["data"].as_object().unwrap();
    assert_eq!(data.len(), 1);
    assert_eq!(data["workflow-run-stops.json"], read("files/dashboard.json"));
    assert_eq!(dashboard["metadata"]["name"], format!("{NAME}-dashboard"));
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(dashboard["metadata"]["labels"]["app.kubernetes.io/instance"], "release");
    assert_eq!(dashboard["metadata"]["annotations"], json!({"grafana_folder": "Amperity"}));
    // The label of the sidecar can be replaced.
    let objects =
        all(&["metrics.dashboard={\"enabled\":true,\"labels\":{\"grafana_dashboard\":null,\"dashboards\":\"here\"}}"]);
    let labels = &only(&objects, "ConfigMap")["metadata"]["labels"];
    assert_eq!(labels["dashboards"], "here");
    assert_eq!(labels["grafana_dashboard"], Value::Null);
}

#[test]
fn selectors_match_the_operators_pods_and_the_network_policy_the_test_pod_too() {
    let objects =
        all(&["networkPolicy.enabled=true", "metrics.serviceMonitor.enabled=true", "podLabels={\"a\":\"b\"}"]);
    let matches = |selector: &Value, object: &Value| {
        let labels = object["metadata"]["labels"].as_object().unwrap();
        selector.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let (pod, test) = (&only(&objects, "Deployment")["spec"]["template"], only(&objects, "Pod"));
    assert_eq!(pod["metadata"]["labels"]["a"], "b");
    for (kind, selector, matches_test) in [
        ("Deployment", "/spec/selector/matchLabels", false),
        ("PodDisruptionBudget", "/spec/selector/matchLabels", false),
        ("Service", "/spec/selector", false),
        ("NetworkPolicy", "/spec/podSelector/matchLabels", true),
    ] {
        let selector = only(&objects, kind).pointer(selector).unwrap();
        assert!(matches(selector, pod), "{kind}");
        assert_eq!(matches(selector, test), matches_test, "{kind}");
    }
    let monitor = only(&objects, "ServiceMonitor");
    assert!(matches(&monitor["spec"]["selector"]["matchLabels"], only(&objects, "Service")));
}

#[test]
fn the_network_policy_allows_egress_only_to_dns_the_api_server_and_https() {
    let objects = all(&["networkPolicy={\"enabled\":true,\"metricsFrom\":[{\"podSelector\":{}}]}"]);
    let expected = json!([
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
        {"ports": [{"port": 443}, {"port": 6443}]},
    ]);
    let policy = &only(&objects, "NetworkPolicy")["spec"];
    assert_eq!(policy["egress"], expected);
    assert_eq!(policy["ingress"], json!([{"ports": [{"port": "http"}], "from": [{"podSelector": {}}]}]));
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
}

#[test]
fn image_ca_bundle_proxy_and_environment_are_set_in_the_pods() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let objects = all(&[
        "caBundle={\"secret\":\"ours\",\"key\":\"tls.crt\"}",
        "proxy={\"httpsProxy\":\"http://proxy:3128\",\"noProxy\":\"10.0.0.0/8\"}",
        "extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]",
        "image.repository=\"registry.internal:5000/team/operator\"",
        &format!("image.digest=\"{digest}\""),
        "imagePullSecrets=[{\"name\":\"pull\"}]",
    ]);
    let expected = json!([
        {"name": "RUST_LOG", "value": "info"},
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "NO_PROXY", "value": "10.0.0.0/8"},
        {"name": "SSL_CERT_FILE", "value": "/etc/workflow-run-stop-operator/ca/tls.crt"},
        {"name": "A", "value": "b"},
    ]);
    assert_eq!(container(&objects)["env"], expected);
    assert_eq!(pod(&objects)["volumes"], json!([{"name": "ca", "secret": {"secretName": "ours"}}]));
    let mounted = &container(&objects)["volumeMounts"];
    assert_eq!(mounted, &json!([{"name": "ca", "mountPath": "/etc/workflow-run-stop-operator/ca", "readOnly": true}]));
    for pod in [pod(&objects), &only(&objects, "Pod")["spec"]] {
        assert_eq!(pod["containers"][0]["image"], format!("registry.internal:5000/team/operator@{digest}"));
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    }
    let tagged = all(&["image.tag=\"next\""]);
    assert_eq!(container(&tagged)["image"], "localhost/workflow-run-stop-operator:next");
    let usual = all(&[]);
    let expected = concat!("localhost/workflow-run-stop-operator:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container(&usual)["image"], expected);
    assert_eq!(pod(&usual)["volumes"], Value::Null);
}

#[test]
fn probes_use_the_paths_that_the_operator_serves() {
    let objects = all(&[]);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container(&objects)[probe]["httpGet"], json!({"path": path, "port": "http"}));
        assert!(include_str!("../../../src/operator/health.rs").contains(&format!(".route({path:?}")), "{path}");
    }
}

#[test]
fn the_scheduling_values_are_set_in_the_pods() {
    let objects = all(&[
        "nodeSelector={\"pool\":\"a\"}",
        "tolerations=[{\"key\":\"a\",\"operator\":\"Exists\"}]",
        "affinity={\"nodeAffinity\":{}}",
        "priorityClassName=\"high\"",
    ]);
    for pod in [pod(&objects), &only(&objects, "Pod")["spec"]] {
        assert_eq!(pod["nodeSelector"], json!({"pool": "a"}));
        assert_eq!(pod["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
        assert_eq!(pod["affinity"], json!({"nodeAffinity": {}}));
        assert_eq!(pod["priorityClassName"], "high");
    }
    let spread = &pod(&objects)["topologySpreadConstraints"];
    let labels = &only(&objects, "Deployment")["spec"]["selector"];
    let expected = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": labels,
        "matchLabelKeys": ["pod-template-hash"],
    }]);
    assert_eq!(spread, &expected);
    let by_zone =
        "{\"maxSkew\":1,\"topologyKey\":\"topology.kubernetes.io/zone\",\"whenUnsatisfiable\":\"DoNotSchedule\"}";
    let objects = all(&[&format!("topologySpreadConstraints=[{by_zone}]")]);
    assert_eq!(pod(&objects)["topologySpreadConstraints"], json!([serde_json::from_str::<Value>(by_zone).unwrap()]));
}

#[test]
fn the_chart_works_as_a_subchart() {
    assert_eq!(all(&["global={\"a\":1}", "enabled=true"]), all(&[]));
}

/// Returns the rules of the roles in this namespace; of the operator's ClusterRole if it is `None`.
fn rules(objects: &[Value], namespace: Option<&str>) -> Vec<Value> {
    let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
    let roles = of_kind(objects, kind).into_iter().filter(|role| {
        let name = role["metadata"]["name"].as_str().unwrap();
        role["metadata"]["namespace"].as_str() == namespace && !name.ends_with("-view") && !name.ends_with("-edit")
    });
    roles.flat_map(|role| role["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn the_rules_are_those_with_which_the_integration_tests_run() {
    let objects = all(&[]);
    assert_eq!(rules(&objects, None), rbac::watched_namespace_rules());
    assert_eq!(rules(&objects, Some("ours")), rbac::lease_rules(NAME));
    let objects = all(&["watchNamespaces=[\"a\"]", "leaseName=\"l\""]);
    assert!(rules(&objects, None).is_empty());
    assert_eq!(rules(&objects, Some("a")), rbac::watched_namespace_rules());
    assert_eq!(rules(&objects, Some("ours")), rbac::lease_rules("l"));
}
