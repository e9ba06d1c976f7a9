//! Owns the manifest of a stop: its name, and only those fields that were given on the command line.
//! Never validates a value: the API server does, and its message is printed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use serde_json::{Map, Value, json};
use workflow_run_stop_api::WorkflowRunStop;

use crate::args::Flags;

/// The length in bytes to which the API server truncates a `generateName`.
const MAX_PREFIX: usize = 58;

/// The source of the resource's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The API server appends a random suffix to a prefix, so that each call creates a new resource.
    Generated,
    /// The name is made from the run's id alone: `kubectl apply` does not accept `generateName`.
    Fixed,
}

/// Returns the manifest for one run.
pub fn manifest(run: &str, flags: &Flags, naming: Naming) -> Value {
    let mut metadata = Map::new();
    match (&flags.name, naming) {
        (Some(name), _) => metadata.insert("name".to_owned(), json!(name)),
        (None, Naming::Fixed) => metadata.insert("name".to_owned(), json!(fixed_name(run))),
        (None, Naming::Generated) => metadata.insert("generateName".to_owned(), json!(name_prefix(run))),
    };
    if let Some(namespace) = &flags.namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    json!({
        "apiVersion": WorkflowRunStop::api_version(&()),
        "kind": WorkflowRunStop::kind(&()),
        "metadata": metadata,
        "spec": spec(run, flags),
    })
}

fn spec(run: &str, flags: &Flags) -> Value {
    let mut spec = json!({
        "runId": run,
        "tenant": flags.tenant,
        "credentialsSecretRef": {"name": flags.credentials},
    });
    let optional = [
        ("baseUrl", flags.base_url.as_ref().map(|url| json!(url))),
        ("suspend", flags.suspend.then_some(json!(true))),
        ("stopDeadlineSeconds", flags.stop_deadline.map(|seconds| json!(seconds))),
        ("notAfter", flags.not_after.map(|time| json!(Time(time)))),
        ("reason", flags.reason.as_ref().map(|reason| json!(reason))),
        ("followTimeoutSeconds", flags.follow_timeout.map(|seconds| json!(seconds))),
        ("ttlSecondsAfterFinished", flags.ttl.map(|seconds| json!(seconds))),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            spec[field] = value;
        }
    }
    spec
}

/// Returns `stop-` and the run's id, reduced to lower-case letters, digits and single `-`. At most 133 bytes for a
/// valid id.
fn fixed_name(run: &str) -> String {
    let mut name = "stop".to_owned();
    for part in run.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        name.push('-');
        name.push_str(&part.to_ascii_lowercase());
    }
    name
}

/// Returns the `generateName` for a run.
fn name_prefix(run: &str) -> String {
    let mut name = fixed_name(run);
    name.truncate(MAX_PREFIX - 1);
    format!("{}-", name.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use workflow_run_stop_api::WorkflowRunStopSpec;

    fn flags(args: &str) -> Flags {
        let line = format!("kubectl-stop_run wf-1 --tenant acme --credentials amperity {args}");
        let args: Vec<_> = line.split_whitespace().map(Into::into).collect();
        match Cli::read(&args) {
            Ok(Command::Stop(flags)) => *flags,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_is_valid_and_bounded_for_every_run_id() {
        assert_eq!(fixed_name("wf-20240619-14418-6UhqSe"), "stop-wf-20240619-14418-6uhqse");
        assert_eq!(name_prefix("wf-20240619-14418-6UhqSe"), "stop-wf-20240619-14418-6uhqse-");
        assert_eq!(fixed_name("A._~-9"), "stop-a-9");
        assert_eq!([fixed_name(".."), name_prefix(".."), fixed_name("")], ["stop", "stop-", "stop"]);
        let longest = "a".repeat(128);
        assert_eq!(fixed_name(&longest).len(), 133);
        assert_eq!(name_prefix(&longest).len(), MAX_PREFIX);
        assert_eq!(
            name_prefix(&format!("{}-bcd", "a".repeat(51))),
            format!("stop-{}-", "a".repeat(51)),
            "no two '-' in a row"
        );
        assert_eq!(name_prefix("wf-ä1"), "stop-wf-1-");
    }

    #[test]
    fn a_manifest_has_only_the_fields_that_were_given() {
        assert_eq!(
            manifest("wf-1", &flags(""), Naming::Fixed),
            json!({
                "apiVersion": "workflow.amperity.com/v1alpha1",
                "kind": "WorkflowRunStop",
                "metadata": {"name": "stop-wf-1"},
                "spec": {"runId": "wf-1", "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}},
            })
        );
        let named = manifest("wf-1", &flags("--name mine -n ops"), Naming::Generated);
        assert_eq!(named["metadata"], json!({"name": "mine", "namespace": "ops"}));
    }

    #[test]
    fn every_flag_of_the_spec_sets_its_field() {
        let all = "--base-url https://x.amperity.com/api --suspend --stop-deadline 30m --follow-timeout 2h --ttl 7d \
                   --not-after 2026-11-26T07:00:00.9+01:00 --reason duplicate";
        let spec = manifest("wf-1", &flags(all), Naming::Generated)["spec"].take();
        let wanted = WorkflowRunStopSpec {
            base_url: Some("https://x.amperity.com/api".to_owned()),
            suspend: true,
            stop_deadline_seconds: Some(1800),
            not_after: Some(Time("2026-11-26T06:00:00Z".parse().unwrap())),
            reason: Some("duplicate".to_owned()),
            follow_timeout_seconds: 7200,
            ttl_seconds_after_finished: Some(604_800),
            ..WorkflowRunStopSpec::new("wf-1", "acme", "amperity")
        };
        assert_eq!(serde_json::from_value::<WorkflowRunStopSpec>(spec.clone()).unwrap(), wanted);
        assert_eq!(spec, serde_json::to_value(wanted).unwrap(), "every field belongs to the type");
    }
}
