//! Owns the tests of the Helm chart: it matches the code, and (in `rendered`, with helm) renders its values correctly.

mod rendered;

use std::{collections::BTreeSet, fs};

use clap::CommandFactory;
use serde_json::{Map, Value};
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_operator::config::Cli;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/workflow-run-stop-operator");

fn read(path: &str) -> String {
    fs::read_to_string(format!("{CHART}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The JSON pointer into values.yaml for each flag of the operator; the namespace of the Lease is that of the release.
const FLAGS: &[(&str, Option<&str>)] = &[
    ("allowed-hosts", Some("/amperity/allowedHosts")),
    ("amperity-api-version", Some("/amperity/apiVersion")),
    ("amperity-base-url", Some("/amperity/baseUrl")),
    ("drain-timeout", Some("/drainTimeout")),
    ("http-addr", Some("/httpAddr")),
    ("leader-elect", Some("/leaderElect")),
    ("lease-name", Some("/leaseName")),
    ("lease-namespace", None),
    ("log-format", Some("/logFormat")),
    ("max-unfinished-per-namespace", Some("/maxUnfinishedPerNamespace")),
    ("request-timeout", Some("/requestTimeout")),
    ("requests-per-second", Some("/requestsPerSecond")),
    ("settle-time", Some("/settleTime")),
    ("watch-namespaces", Some("/watchNamespaces")),
];

/// Returns the operator's flags with their defaults, ordered by name.
fn flags() -> Vec<(String, String)> {
    let command = <Cli as CommandFactory>::command();
    let flags = command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
    let default = |arg: &clap::Arg| arg.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
    let mut flags: Vec<_> = flags.map(|arg| (arg.get_long().unwrap().to_owned(), default(arg))).collect();
    flags.sort();
    flags
}

/// Returns the text of a value in a flag.
fn flag_text(value: &Value) -> String {
    match value {
        Value::Array(list) => list.iter().map(flag_text).collect::<Vec<_>>().join(","),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[test]
fn the_chart_has_the_version_of_the_operator() {
    let chart = yaml("Chart.yaml");
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_crd_of_the_chart_is_that_of_the_repository() {
    let crd = include_str!("../../../crds/workflowrunstops.yaml");
    assert_eq!(read("files/crd.yaml"), crd, "`make crd` writes both");
    assert_eq!(crd.matches("\nmetadata:\n").count(), 1, "the template inserts its labels here");
}

#[test]
fn the_example_in_the_annotations_of_the_chart_is_a_valid_resource() {
    let chart = yaml("Chart.yaml");
    let annotation = |name: &str| chart["annotations"][format!("artifacthub.io/{name}")].as_str().unwrap();
    let examples: Vec<WorkflowRunStop> = serde_yaml_ng::from_str(annotation("crdsExamples")).unwrap();
    assert_eq!(examples.len(), 1);
    let crds: Value = serde_yaml_ng::from_str(annotation("crds")).unwrap();
    let crd: Value = serde_yaml_ng::from_str(include_str!("../../../crds/workflowrunstops.yaml")).unwrap();
    assert_eq!(crds[0]["name"], crd["metadata"]["name"]);
    assert_eq!(crds[0]["version"], crd["spec"]["versions"][0]["name"]);
}

#[test]
fn every_flag_of_the_operator_has_a_value_with_the_same_default() {
    let flags = flags();
    let names: Vec<_> = flags.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, FLAGS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let (values, deployment) = (yaml("values.yaml"), read("templates/deployment.yaml"));
    for ((name, default), (_, path)) in flags.iter().zip(FLAGS) {
        assert_eq!(deployment.matches(&format!(" - --{name}=")).count(), 1, "--{name}");
        let Some(path) = path else { continue };
        let value = flag_text(values.pointer(path).unwrap_or_else(|| panic!("{path} of --{name} is missing")));
        match name.as_str() {
            "leader-elect" => assert_eq!(value, "true", "there are several replicas"),
            "lease-name" => assert_eq!(value, "", "the template uses the name of the release"),
            _ => assert_eq!(&value, default, "--{name}"),
        }
    }
}

#[test]
fn the_default_image_is_the_one_that_make_image_builds() {
    let makefile = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile")).unwrap();
    let built = makefile.lines().find_map(|line| line.strip_prefix("IMAGE ?= ")).unwrap();
    assert_eq!(built.split(':').next().unwrap(), yaml("values.yaml")["image"]["repository"]);
}

#[test]
fn every_value_is_in_the_schema_and_every_non_empty_default_is_required() {
    fn keys(object: &Map<String, Value>) -> BTreeSet<&str> {
        object.keys().map(String::as_str).collect()
    }
    fn is_empty(value: &Value) -> bool {
        [Value::Array(vec![]), Value::Object(Map::new()), Value::String(String::new())].contains(value)
    }
    fn compare(path: &str, values: &Value, schema: &Value, root: &Value) {
        let reference = schema["$ref"].as_str().map(|name| root.pointer(name.trim_start_matches('#')).unwrap());
        let schema = reference.unwrap_or(schema);
        let Some(values) = values.as_object() else { return };
        let Some(properties) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        // Objects of the Kubernetes API may have fields that this chart does not set.
        if ["/podSecurityContext", "/securityContext", "/resources"].contains(&path) || values.is_empty() {
            return;
        }
        // Helm and parent charts set these; values.yaml does not have them.
        let mut known = keys(properties);
        if path.is_empty() {
            assert!(known.remove("global") && known.remove("enabled"));
        }
        assert_eq!(keys(values), known, "{path}");
        let required: BTreeSet<_> =
            schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap()).collect();
        let non_empty: BTreeSet<_> =
            values.iter().filter(|(_, value)| !is_empty(value)).map(|(key, _)| key.as_str()).collect();
        assert_eq!(required, non_empty, "{path}: the schema rejects null for these");
        values.iter().for_each(|(key, value)| compare(&format!("{path}/{key}"), value, &properties[key], root));
    }
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    compare("", &yaml("values.yaml"), &schema, &schema);
}

/// helm-docs generates the README. This test finds a stale one without running helm-docs.
#[test]
fn the_readme_of_the_chart_has_every_value_and_its_description() {
    fn paths(path: &str, value: &Value, found: &mut Vec<String>) {
        match value.as_object().filter(|object| !object.is_empty() && !path.ends_with("ecurityContext")) {
            Some(object) if path != "resources" && !path.ends_with(".labels") => {
                object.iter().for_each(|(key, value)| {
                    paths(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, found)
                })
            }
            _ => found.push(path.to_owned()),
        }
    }
    let readme = read("README.md");
    let mut found = vec![];
    paths("", &yaml("values.yaml"), &mut found);
    for path in &found {
        assert!(readme.contains(&format!("\n| {path} | ")), "{path}: `make chart-docs`");
    }
    assert_eq!(readme.split("## Values").nth(1).unwrap().matches("\n| ").count(), found.len() + 1);
    // A description continues up to its value.
    let mut described = false;
    for line in read("values.yaml").lines().map(str::trim) {
        described = line.starts_with("# -- ") || (described && line.starts_with("# "));
        let text = line.trim_start_matches("# ").trim_start_matches("-- ");
        assert!(!described || readme.contains(text), "{text}: `make chart-docs`");
    }
    for line in read("README.md.gotmpl").lines().filter(|line| !line.contains("{{")) {
        assert!(readme.contains(line), "{line}: `make chart-docs`");
    }
}
