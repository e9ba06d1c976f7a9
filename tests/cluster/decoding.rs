//! Objects of any content and size: what the operator cannot decode harms nobody else, and what it does not need harms
//! nobody.

use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::Request,
};
use lab::{
    apiserver_proxy::{ApiserverProxy, ProxyAction, Purpose},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, message, ready},
};
use serde_json::{Value, json};
use workflow_run_stop_api::conditions::{ConditionType, Reason};

use crate::operator::{Replica, metric_sum};

fn path(env: &TestEnv) -> String {
    format!("/apis/workflow.amperity.com/v1alpha1/namespaces/{}/workflowrunstops", env.namespace)
}

/// Stores a status that cannot be decoded: its error is nested too deeply.
async fn make_undecodable(env: &TestEnv, name: &str) {
    let data = r#"{"a":"#.repeat(200) + "1" + &"}".repeat(200);
    let error = format!(r#"{{"attribution":"user","type":"t","message":"hush","data":{data}}}"#);
    let body = format!(r#"[{{"op":"add","path":"/status","value":{{"error":{error}}}}}]"#);
    patch_status(env, name, &body).await;
}

/// Sends a JSON patch of a status, as text: its content may be nested more deeply than `Value` allows.
async fn patch_status(env: &TestEnv, name: &str, body: &str) {
    let patch = Patch::Json::<()>(json_patch::Patch(vec![]));
    let request = Request::new(path(env)).patch_subresource("status", name, &PatchParams::default(), &patch);
    let request = request.unwrap().map(|_| body.as_bytes().to_vec());
    env.client.request_text(request).await.unwrap_or_else(|error| panic!("{body}: {error}"));
}

/// Returns the event that reports that a resource cannot be decoded.
async fn event(env: &TestEnv, name: &str) -> Option<Event> {
    let events: Api<Event> = Api::namespaced(env.client.clone(), &env.namespace);
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let about = |event: &Event| event.regarding.as_ref().and_then(|about| about.name.clone());
    events.into_iter().find(|event| {
        about(event).as_deref() == Some(name) && event.reason.as_deref() == Some(Reason::Undecodable.as_str())
    })
}

/// Creates undecodable resources before and while the operator works, and lets others finish.
/// Expects that the operator also lists this number of other resources.
async fn undecodable_resources_harm_no_other(env: &TestEnv, others: usize) -> Vec<String> {
    for run in ["wf-before", "wf-bad", "wf-1", "wf-2"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.create_all(["wf-before", "wf-bad"].map(a_stop)).await;
    make_undecodable(env, "wf-bad").await;
    let mut command = env.operator_command();
    command.env("RUST_LOG", "debug");
    let replica = Replica::from_operator(Operator::start(command).await).await;
    env.wait_finished("wf-before").await;
    replica.wait_for_response("/readyz", |status, _| status == 200).await;
    let unfinished = |metrics: &str| metric_sum(metrics, "unfinished") == others as u64;
    replica.wait_for_response("/metrics", |_, metrics| unfinished(metrics)).await;
    let count = |metrics: &str| metric_sum(metrics, "undecodable_objects_total");
    replica.wait_for_response("/metrics", |_, metrics| count(metrics) == 1).await;

    // One that is suspended becomes undecodable, is corrected, and finishes.
    let mut changed = a_stop("wf-1");
    changed.spec.suspend = true;
    env.create(changed).await;
    env.wait_for_reason("wf-1", Reason::Suspended).await;
    make_undecodable(env, "wf-1").await;
    replica.wait_for_response("/metrics", |_, metrics| count(metrics) == 2).await;
    env.create(a_stop("wf-2")).await;
    env.wait_finished("wf-2").await;
    assert_eq!(env.request_counts("wf-1"), (0, 0, 0));
    patch_status(env, "wf-1", r#"[{"op": "remove", "path": "/status/error"}]"#).await;
    env.wait_for_reason("wf-1", Reason::Suspended).await;
    env.patch_spec("wf-1", json!({"suspend": false})).await.unwrap();
    env.wait_finished("wf-1").await;

    // Each one is reported once.
    let log = replica.operator.log();
    for name in ["wf-bad", "wf-1"] {
        let lines: Vec<Value> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lines: Vec<_> = lines
            .iter()
            .filter(|line| {
                line["message"] == "failed to decode a resource, nothing is done for it" && line["name"] == name
            })
            .collect();
        let [line] = lines[..] else { panic!("{lines:?}") };
        assert_eq!(line["namespace"], env.namespace);
        assert!(line["uid"].is_string() && line["error"].as_str().unwrap().starts_with("status.error.data "), "{line}");
    }
    assert!(log.iter().all(|line| !line.contains("hush")));
    let failed = log.iter().find(|line| line.contains("watch failed"));
    assert_eq!(failed, None, "no list fails, and no watch");
    env.stops().delete("wf-bad", &DeleteParams::default()).await.unwrap();
    // The operator writes pending events before it exits.
    assert_eq!(replica.operator.terminate().await, Some(0));
    for name in ["wf-bad", "wf-1"] {
        let event = event(env, name).await.unwrap_or_else(|| panic!("{name} has no event"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let note = event.note.unwrap();
        assert!(note.contains("status.error.data") && !note.contains("hush"), "{note}");
    }
    assert_eq!(env.request_counts("wf-bad"), (0, 0, 0));
    log
}

/// More resources than a page of a list has.
const PAGED: usize = 520;

const REFUSED: &str = "the API server refuses a streaming list, will list in pages";

#[tokio::test]
async fn a_resource_that_cannot_be_decoded_is_reported_and_harms_no_other() {
    let log = undecodable_resources_harm_no_other(&TestEnv::new().await, 0).await;
    assert!(!log.iter().any(|line| line.contains(REFUSED)), "this version supports streaming lists");
}

#[tokio::test]
async fn a_resource_that_cannot_be_decoded_harms_no_other_without_streaming_lists() {
    let env = TestEnv::with_own_control_plane_and_flags(&["--feature-gates=WatchList=false"]).await;
    // More than one page.
    let suspended = |number: usize| {
        let mut stop = a_stop(&format!("wf-page-{number}"));
        stop.spec.suspend = true;
        stop
    };
    env.create_all((0..PAGED).map(suspended)).await;
    let log = undecodable_resources_harm_no_other(&env, PAGED).await;
    assert!(log.iter().any(|line| line.contains(REFUSED)), "{}", log.join("\n"));
}

#[tokio::test]
async fn metadata_of_any_content_does_not_keep_a_run_from_being_stopped() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut stop = a_stop("wf-1");
    stop.metadata.annotations = Some([("large".to_owned(), "x".repeat(200_000))].into());
    env.create(stop).await;
    let managed = json!([{
        "manager": "a", "operation": "Update", "apiVersion": "workflow.amperity.com/v1alpha1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:runId": {}}}, "time": "9999-12-31T23:59:59Z",
    }]);
    let patch = Patch::Merge(json!({"metadata": {"managedFields": managed}}));
    let request = Request::new(path(&env)).patch("wf-1", &PatchParams::default(), &patch).unwrap();
    let changed = env.client.request_text(request).await.unwrap();
    assert!(changed.contains("9999-12-31T23:59:59Z"), "{}", changed.replace('x', ""));
    let _operator = env.start_operator().await;
    // A client that decodes all metadata could not read this resource.
    env.amperity.wait_until(|requests| !requests.is_empty()).await;
    let finished = async || {
        let request = Request::new(path(&env)).get("wf-1", &Default::default()).unwrap();
        let stored: Value = serde_json::from_str(&env.client.request_text(request).await.unwrap()).unwrap();
        stored["status"]["result"] == "Stopped"
    };
    while !finished().await {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_secret_may_have_other_keys_of_any_size_and_a_key_that_is_too_large_is_named() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    env.put_secret("large", &[("token", "good-token"), ("ca.crt", &"x".repeat(1_000_000))]).await;
    env.put_secret("wrong", &[("token", &"x".repeat(20_000))]).await;
    let _operator = env.start_operator().await;
    for (run, secret) in [("wf-1", "large"), ("wf-2", "wrong")] {
        let mut stop = a_stop(run);
        stop.spec.credentials_secret_ref.name = secret.to_owned();
        env.create(stop).await;
    }
    env.wait_finished("wf-1").await;
    let waiting = env.wait_for_reason("wf-2", Reason::CredentialsMissing).await;
    let message = message(&waiting, ConditionType::Ready);
    assert!(message.contains("the Secret wrong: its key token is larger than 16 KiB"), "{message}");
}

#[tokio::test]
async fn an_answer_that_is_no_whole_secret_is_retried_and_nothing_of_it_is_logged() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    // The content stands at the beginning, so that it is in the first half.
    env.put_secret("amperity", &[("token", "good-token"), ("z", &"x".repeat(1000))]).await;
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.namespace);
    let stored = serde_json::to_value(secrets.get("amperity").await.unwrap()).unwrap();
    let token = stored["data"]["token"].as_str().unwrap().to_owned();
    let proxy = ApiserverProxy::start(env.operator_client()).await;
    proxy.set_rule_for(Purpose::Secret, ProxyAction::TruncateResponse);
    let mut command = env.operator_command();
    command.env("KUBECONFIG", proxy.kubeconfig()).env("RUST_LOG", "trace");
    let operator = Operator::start(command).await;
    env.create(a_stop("wf-1")).await;
    operator.wait_for_log("the API server's answer is not a complete Secret").await;
    proxy.set_rule(|_| ProxyAction::Forward);
    assert_eq!(ready(&env.wait_finished("wf-1").await).1, Reason::RunStopped.as_str());
    for secret in [token.as_str(), "good-token"] {
        let log = operator.log();
        let line = log.iter().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}
