//! Owns the resource that is asked for, and how it is written down.
//! Never asks a cluster.

use kube::core::ObjectMeta;
use serde_json::{Value, json};

use crate::plugin::flags::{DryRun, Flags};
use crate::resource::{WorkflowRunStop, WorkflowRunStopSpec};

/// The longest readable part of a generated name: the API server adds five characters, and takes 63 at most where
/// a name is also used as a label.
const MAX_NAME: usize = 56;

/// The resource that stops this run.
pub fn stop(flags: &Flags, run: &str) -> WorkflowRunStop {
    let Flags {
        runs: _,
        tenant,
        credentials,
        namespace,
        context: _,
        kubeconfig: _,
        name,
        base_url,
        suspend,
        stop_deadline,
        follow_timeout,
        ttl,
        wait: _,
        timeout: _,
        output: _,
        dry_run,
    } = flags;
    let mut spec = WorkflowRunStopSpec::new(run, tenant, credentials);
    spec.base_url.clone_from(base_url);
    spec.suspend = *suspend;
    spec.stop_deadline_seconds = *stop_deadline;
    spec.follow_timeout_seconds = follow_timeout.unwrap_or(spec.follow_timeout_seconds);
    spec.ttl_seconds_after_finished = *ttl;
    let mut stop = WorkflowRunStop::new("", spec);
    stop.metadata = ObjectMeta { namespace: namespace.clone(), ..ObjectMeta::default() };
    match name {
        Some(name) => stop.metadata.name = Some(name.clone()),
        // For Git: `kubectl apply` takes no generated names, and a new run is a new name.
        None if *dry_run == DryRun::Client => stop.metadata.name = Some(readable(run)),
        None => stop.metadata.generate_name = Some(format!("{}-", readable(run))),
    }
    stop
}

/// A name that is made from a run's id.
fn readable(run: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut name: String = "stop-".chars().chain(run.chars().map(plain)).take(MAX_NAME).collect();
    name.truncate(name.trim_end_matches('-').len());
    name
}

/// The resources as one JSON document.
///
/// # Errors
/// Where they cannot be written; never for what the API server returned.
pub fn json(stops: &[WorkflowRunStop]) -> Result<String, String> {
    let mut documents = stops.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    let document = if documents.len() == 1 {
        documents.remove(0)
    } else {
        json!({"apiVersion": "v1", "kind": "List", "items": documents})
    };
    serde_json::to_string_pretty(&document).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// The resources as YAML documents.
///
/// # Errors
/// As for JSON.
pub fn yaml(stops: &[WorkflowRunStop]) -> Result<String, String> {
    let document = |stop| serde_yaml_ng::to_string(&plain(stop)?).map_err(|error| error.to_string());
    Ok(stops.iter().map(document).collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

/// Without what says nothing: who wrote which field, and defaults that were not asked for.
fn plain(stop: &WorkflowRunStop) -> Result<Value, String> {
    let mut stop = stop.clone();
    stop.metadata.managed_fields = None;
    let new = stop.metadata.uid.is_none();
    let mut value = serde_json::to_value(&stop).map_err(|error| error.to_string())?;
    if let (true, Some(spec)) = (new, value["spec"].as_object_mut()) {
        let defaults = serde_json::to_value(WorkflowRunStopSpec::new("", "", "")).map_err(|error| error.to_string())?;
        spec.retain(|key, value| defaults.get(key) != Some(value));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::flags::Cli;
    use clap::Parser;

    fn flags(more: &[&str]) -> Flags {
        let args =
            ["kubectl-stop_run", "wf-20240619-14418-6UhqSe", "--tenant", "acme2-max", "--credentials", "amperity"];
        Cli::try_parse_from(args.iter().chain(more)).unwrap().stop.unwrap()
    }

    #[test]
    fn a_manifest_for_git_has_a_name_and_nothing_that_was_not_asked_for() {
        let flags = flags(&["--dry-run", "-o", "yaml", "--ttl", "1h"]);
        let yaml = yaml(&[stop(&flags, &flags.runs[0])]).unwrap();
        assert_eq!(
            yaml,
            "apiVersion: workflow.amperity.com/v1alpha1\n\
             kind: WorkflowRunStop\n\
             metadata:\n  name: stop-wf-20240619-14418-6uhqse\n\
             spec:\n  credentialsSecretRef:\n    name: amperity\n  runId: wf-20240619-14418-6UhqSe\n  tenant: acme2-max\n  \
             ttlSecondsAfterFinished: 3600\n"
        );
    }

    #[test]
    fn what_is_created_has_a_name_of_its_own_each_time() {
        let flags = flags(&["--namespace", "pipelines"]);
        let meta = stop(&flags, &flags.runs[0]).metadata;
        assert_eq!(meta.generate_name.as_deref(), Some("stop-wf-20240619-14418-6uhqse-"));
        assert_eq!((meta.name, meta.namespace.as_deref()), (None, Some("pipelines")));
    }

    #[test]
    fn a_name_is_valid_whatever_the_run_is_called() {
        for run in ["wf_1.~X", &"x".repeat(128), "-", "wf-1-", "üß"] {
            let name = readable(run);
            assert!(name.len() <= MAX_NAME && !name.ends_with('-'), "{name}");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{name}"
            );
        }
    }
}
