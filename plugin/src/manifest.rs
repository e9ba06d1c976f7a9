//! Owns the resource that is created: its name, and just those fields that were asked for.
//! Never checks a value: the cluster does, and has the words for it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use serde_json::{Map, Value, json};
use workflow_run_stop_api::WorkflowRunStop;

use crate::args::Flags;

/// The API server cuts what it generates a name from after so many bytes.
const LONGEST_PREFIX: usize = 58;

/// How the resource gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The cluster adds something to a prefix, so that each call makes a new resource.
    Generated,
    /// The same for the same run, for a manifest that is kept and applied: `kubectl apply` takes no other.
    Fixed,
}

/// The manifest for one run.
pub fn manifest(run: &str, flags: &Flags, naming: Naming) -> Value {
    let mut metadata = Map::new();
    match (&flags.name, naming) {
        (Some(name), _) => metadata.insert("name".to_owned(), json!(name)),
        (None, Naming::Fixed) => metadata.insert("name".to_owned(), json!(readable(run))),
        (None, Naming::Generated) => metadata.insert("generateName".to_owned(), json!(prefix(run))),
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

/// `stop-` and the run's id as far as a name may have it: lower-case letters, digits and single `-`. At most 133 bytes
/// for an id that the cluster takes.
fn readable(run: &str) -> String {
    let mut name = "stop".to_owned();
    for part in run.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        name.push('-');
        name.push_str(&part.to_ascii_lowercase());
    }
    name
}

fn prefix(run: &str) -> String {
    let mut name = readable(run);
    name.truncate(LONGEST_PREFIX - 1);
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
    fn a_name_is_readable_and_valid_and_bounded_whatever_the_run_is_called() {
        assert_eq!(readable("wf-20240619-14418-6UhqSe"), "stop-wf-20240619-14418-6uhqse");
        assert_eq!(prefix("wf-20240619-14418-6UhqSe"), "stop-wf-20240619-14418-6uhqse-");
        assert_eq!(readable("A._~-9"), "stop-a-9");
        assert_eq!([readable(".."), prefix(".."), readable("")], ["stop", "stop-", "stop"]);
        let longest = "a".repeat(128);
        assert_eq!(readable(&longest).len(), 133);
        assert_eq!(prefix(&longest).len(), LONGEST_PREFIX);
        assert_eq!(
            prefix(&format!("{}-bcd", "a".repeat(51))),
            format!("stop-{}-", "a".repeat(51)),
            "no two '-' in a row"
        );
        assert_eq!(prefix("wf-ä1"), "stop-wf-1-");
    }

    #[test]
    fn only_what_was_asked_for_stands_in_the_manifest() {
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
    fn every_flag_of_the_spec_arrives_in_its_field() {
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
        assert_eq!(spec, serde_json::to_value(wanted).unwrap(), "no field that the type does not know");
    }
}
