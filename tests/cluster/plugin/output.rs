//! Owns the tests of stdout: output for programs, and manifests for Git.

use std::{fs, time::Duration};

use kube::api::ListParams;
use lab::{
    control_plane::User,
    simulator::Run,
    testing::{TENANT, TestEnv},
};
use serde::Deserialize;
use serde_json::Value;
use workflow_run_stop_api::WorkflowRunStop;

use super::call::{Folder, REQUIRED_FLAGS, call, execute, plugin};
use super::kubectl::kubectl;

fn json_documents(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect()
}

fn yaml_documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap()).collect()
}

#[tokio::test]
async fn each_format_prints_only_the_created_resources() {
    let env = TestEnv::new().await;
    let json = execute(call(&env, &["wf-1", "wf-2", "-o", "json"])).await.exits_with(0);
    let yaml = execute(call(&env, &["wf-1", "wf-2", "-o", "yaml"])).await.exits_with(0);
    for stops in [json_documents(&json.out), yaml_documents(&yaml.out)] {
        let runs: Vec<_> = stops.iter().map(|stop| stop["spec"]["runId"].as_str().unwrap()).collect();
        assert_eq!(runs, ["wf-1", "wf-2"]);
        for stop in stops {
            let stored = env.get(stop["metadata"]["name"].as_str().unwrap()).await;
            assert_eq!(stop["metadata"]["uid"], stored.uid());
            assert_eq!(stop["metadata"]["managedFields"], Value::Null);
        }
    }
    let name = execute(call(&env, &["wf-1", "-o", "name"])).await.exits_with(0);
    let short = name.out.strip_prefix("workflowrunstop.workflow.amperity.com/").unwrap().trim_end();
    assert_eq!(env.get(short).await.spec.run_id, "wf-1");
    assert_eq!([json.err, yaml.err, name.err], ["", "", ""]);
}

#[tokio::test]
async fn with_wait_the_finished_resource_is_on_stdout_and_progress_and_outcome_on_stderr() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let _operator = env.start_operator().await;
    let ended = execute(call(&env, &["wf-1", "--wait", "-o", "json"])).await.exits_with(0);
    let [stop] = &json_documents(&ended.out)[..] else { panic!("{}", ended.out) };
    let stop: WorkflowRunStop = serde_json::from_value(stop.clone()).unwrap();
    assert!(stop.is_finished(), "{stop:?}");
    assert!(ended.err.contains("FollowingRun") && ended.err.contains(": Stopped (RunStopped)"), "{}", ended.err);
    let ended = execute(call(&env, &["wf-unknown", "--wait", "-o", "yaml"])).await.exits_with(1);
    assert!(yaml_documents(&ended.out)[0]["status"]["completionTime"].is_string(), "{}", ended.out);
}

#[tokio::test]
async fn with_wait_a_timeout_prints_the_resource_as_last_seen_and_a_name_only_once() {
    let env = TestEnv::new().await;
    let ended = execute(call(&env, &["wf-1", "--wait", "--timeout=1s", "-o", "yaml"])).await.exits_with(3);
    assert_eq!(yaml_documents(&ended.out)[0]["status"]["observedGeneration"], -1);
    let ended = execute(call(&env, &["wf-1", "--wait", "--timeout=1s", "-o", "name"])).await.exits_with(3);
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
}

#[tokio::test]
async fn a_client_dry_run_needs_no_cluster_and_kubectl_applies_its_manifest() {
    let env = TestEnv::new().await;
    let mut command = plugin("/nowhere/kubeconfig".as_ref());
    command
        .args(["wf-20240619-14418-6UhqSe", "--dry-run=client", "-o", "yaml", "--suspend", "--ttl", "7d"])
        .args(["--not-after", "2100-01-01T01:00:00+01:00", "--reason", "a duplicate of wf-2"])
        .args(REQUIRED_FLAGS);
    let manifest = execute(command).await.exits_with(0).out;
    let [written] = &yaml_documents(&manifest)[..] else { panic!("{manifest}") };
    assert_eq!(written["metadata"]["name"], "stop-wf-20240619-14418-6uhqse");
    assert_eq!(written["spec"].as_object().unwrap().len(), 7, "only what was given: {manifest}");
    assert!(written.get("status").is_none() && !manifest.contains("null"), "{manifest}");
    let folder = Folder::new("manifest");
    let file = folder.write("stop.yaml", &manifest);
    for change in ["created", "unchanged"] {
        let mut apply = kubectl(&env.cluster.kubeconfig_for(User::Admin));
        apply.args(["apply", "-n", &env.namespace, "-f", &file]);
        let ended = execute(apply).await.exits_with(0);
        assert_eq!(
            ended.out,
            format!("workflowrunstop.workflow.amperity.com/stop-wf-20240619-14418-6uhqse {change}\n")
        );
    }
    let stop = env.get("stop-wf-20240619-14418-6uhqse").await;
    assert_eq!((stop.spec.suspend, stop.spec.ttl_seconds_after_finished), (true, Some(604_800)));
    assert_eq!(stop.spec.not_after.unwrap().0.to_string(), "2100-01-01T00:00:00Z");
    assert_eq!(stop.spec.reason.as_deref(), Some("a duplicate of wf-2"));
}

#[tokio::test]
async fn a_dry_run_stores_nothing_and_is_reported_as_one() {
    let env = TestEnv::new().await;
    for (kind, text) in [("client", "created (dry run)\n"), ("server", "created (server dry run)\n")] {
        let ended = execute(call(&env, &["wf-1", "--dry-run", kind])).await.exits_with(0);
        assert!(ended.out.ends_with(text) && ended.err.is_empty(), "{ended:?}");
    }
    let ended = execute(call(&env, &["wf-1", "--dry-run=server", "-o", "json"])).await.exits_with(0);
    assert_eq!(json_documents(&ended.out)[0]["status"]["observedGeneration"], -1, "the API server sets the default");
    assert!(env.stops().list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn without_a_namespace_that_of_the_context_is_used() {
    let env = TestEnv::new().await;
    let kubeconfig = fs::read_to_string(env.cluster.kubeconfig_path()).unwrap();
    let lab = "{cluster: lab,";
    let other =
        format!("contexts:\n- name: other\n  context: {{namespace: {}, cluster: lab, user: \"admin\"}}", env.namespace);
    assert!(kubeconfig.contains(lab));
    let folder = Folder::new("contexts");
    let nowhere = kubeconfig.replace(lab, "{namespace: nowhere, cluster: lab,").replace("contexts:", &other);
    let file = folder.write("kubeconfig", &nowhere);
    let with = |args: &[&str]| {
        let mut command = plugin("/nowhere/kubeconfig".as_ref());
        command.args(["wf-1", "--kubeconfig", &file]).args(REQUIRED_FLAGS).args(args);
        command
    };
    let ended = execute(with(&[])).await.exits_with(1);
    assert!(ended.err.contains("namespaces \"nowhere\" not found"), "{}", ended.err);
    let ended = execute(with(&["--context", "other"])).await.exits_with(0);
    env.get(&ended.created()).await;
    let hint = format!("-n {} --context other --kubeconfig {file}", env.namespace);
    assert!(ended.err.contains(&hint), "{}", ended.err);
}
