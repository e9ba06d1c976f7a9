//! Owns the tests of calls that fail: the messages and the exit codes.

use kube::api::ListParams;
use lab::{
    apiserver_proxy::{ApiserverProxy, ProxyAction, Purpose},
    control_plane::{ControlPlane, User},
    testing::TestEnv,
};

use serde_json::Value;

use super::call::{Folder, REQUIRED_FLAGS, Running, call, execute, grant, plugin};

/// Returns the number of stops in the namespace.
async fn stop_count(env: &TestEnv) -> usize {
    env.stops().list(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn an_invalid_value_exits_with_1_and_is_reported_by_its_flag() {
    let env = TestEnv::new().await;
    for (args, wanted) in [
        (
            &["cg-1"][..],
            "RUN (spec.runId): runId names a configuration (cg-, og-, cc-); give the id of its run, which starts with wf-",
        ),
        (&["wf 1"], "RUN (spec.runId): runId may have only letters, digits,"),
        (&["wf-1", "--base-url", "http://x"], "--base-url (spec.baseUrl): baseUrl must be an https URL"),
        (
            &["wf-1", "--stop-deadline", "0s"],
            "--stop-deadline (spec.stopDeadlineSeconds): spec.stopDeadlineSeconds in body should be greater than or equal to 1",
        ),
        (
            &["wf-1", "--follow-timeout", "8d"],
            "--follow-timeout (spec.followTimeoutSeconds): spec.followTimeoutSeconds in body should be less than or equal to 604800",
        ),
        (
            &["wf-1", "--not-after", "1999-12-31T00:00:00Z"],
            "--not-after (spec.notAfter): notAfter must lie between the years 2000 and 2200",
        ),
        (
            &["wf-1", "--reason", "two\nlines"],
            "--reason (spec.reason): reason must be one line without control characters",
        ),
        (&["wf-1", "--name", "Not_A_Name"], "--name (metadata.name): a lowercase RFC 1123 subdomain must consist of"),
    ] {
        for dry_run in [&[][..], &["--dry-run=server"]] {
            let ended = execute(call(&env, &[args, dry_run].concat())).await.exits_with(1);
            assert!(ended.err.contains(wanted), "{args:?}:\n{}", ended.err);
            assert!(ended.err.starts_with(&format!("error: {}: the resource is invalid:\n", args[0])), "{}", ended.err);
            assert_eq!((ended.err.lines().count(), ended.out.as_str()), (2, ""), "{}", ended.err);
        }
    }
    assert_eq!(stop_count(&env).await, 0);
}

#[tokio::test]
async fn invalid_arguments_exit_with_2_and_no_request_is_sent() {
    let env = TestEnv::new().await;
    let proxy = ApiserverProxy::start(env.client.clone()).await;
    for args in [
        &["--tenant", "acme", "--credentials", "amperity"][..],
        &["wf-1", "--tenant", "acme"],
        &["wf-1", "wf-1", "--tenant", "acme", "--credentials", "amperity"],
        &["wf-1", "--ttl", "soon", "--tenant", "acme", "--credentials", "amperity"],
        &["wf-1", "--not-after", "tomorrow", "--tenant", "acme", "--credentials", "amperity"],
        &["wf-1", "--no-such-flag"],
        &[],
    ] {
        let mut command = plugin(proxy.kubeconfig());
        command.args(args);
        let ended = execute(command).await.exits_with(2);
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{ended:?}");
    }
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[tokio::test]
async fn a_missing_permission_to_create_is_named() {
    let env = TestEnv::new().await;
    let mut command = call(&env, &["wf-1"]);
    command.env("KUBECONFIG", env.cluster.kubeconfig_for(User::Stranger));
    let ended = execute(command).await.exits_with(1);
    assert!(ended.err.contains("\"stranger\" cannot create resource \"workflowrunstops\""), "{}", ended.err);
    let remedy =
        format!("allows you to create workflowrunstops.workflow.amperity.com in the namespace {}", env.namespace);
    assert!(ended.err.contains(&remedy), "{}", ended.err);
}

#[tokio::test]
async fn a_missing_permission_to_watch_is_named_and_the_operator_continues() {
    let env = TestEnv::new().await;
    grant(&env, User::Stranger, &["create"]).await;
    let mut command = call(&env, &["wf-1", "--wait"]);
    command.env("KUBECONFIG", env.cluster.kubeconfig_for(User::Stranger));
    let ended = execute(command).await.exits_with(1);
    let name = ended.created();
    assert!(ended.err.contains(&format!("error: {name} was created, but cannot be watched: ")), "{}", ended.err);
    assert!(ended.err.contains("allows you to list and watch workflowrunstops"), "{}", ended.err);
    assert!(
        ended.err.contains(&format!("The operator continues with it. To check:\n  kubectl get wrs {name}")),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn ctrl_c_before_the_response_exits_with_130_and_prints_how_to_check() {
    let env = TestEnv::new().await;
    let proxy = ApiserverProxy::start(env.client.clone()).await;
    proxy.set_rule_for(Purpose::Other, ProxyAction::HoldResponse);
    let mut command = call(&env, &["wf-1"]);
    command.env("KUBECONFIG", proxy.kubeconfig());
    let running = Running::start(command);
    proxy.wait_until(|calls| !calls.is_empty()).await;
    running.interrupt().await;
    let ended = running.finish().await.exits_with(130);
    assert!(
        ended.err.contains(&format!(
            "interrupted; the stop for wf-1 may have been created. To check:\n  kubectl get wrs -n {}",
            env.namespace
        )),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn without_the_crd_the_error_says_what_to_install() {
    let bare = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut command = plugin(&bare.kubeconfig_path());
    command.arg("wf-1").args(REQUIRED_FLAGS);
    let ended = execute(command).await.exits_with(1);
    assert!(ended.err.contains("install the operator's CustomResourceDefinition first"), "{}", ended.err);
    bare.stop().await;
}

#[tokio::test]
async fn a_field_that_an_older_crd_does_not_have_is_rejected_and_not_dropped() {
    let old = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut crd: Value = serde_yaml_ng::from_str(include_str!("../../../crds/workflowrunstops.yaml")).unwrap();
    let version = &mut crd["spec"]["versions"][0];
    let selectable = version["selectableFields"].as_array_mut().unwrap();
    selectable.retain(|field| field["jsonPath"] != ".spec.ttlSecondsAfterFinished");
    let spec = version.pointer_mut("/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    spec.as_object_mut().unwrap().remove("ttlSecondsAfterFinished").unwrap();
    old.apply_crd(&crd.to_string()).await;
    let with = |args: &[&str]| {
        let mut command = plugin(&old.kubeconfig_path());
        command.arg("wf-1").args(REQUIRED_FLAGS).args(args);
        execute(command)
    };
    let ended = with(&["--ttl", "7d"]).await.exits_with(1);
    assert!(ended.err.contains("unknown field \"spec.ttlSecondsAfterFinished\""), "{}", ended.err);
    assert!(ended.err.contains("and this plugin have different versions: upgrade the older one"), "{}", ended.err);
    with(&[]).await.exits_with(0);
    old.stop().await;
}

#[tokio::test]
async fn a_missing_namespace_and_a_taken_name_have_their_own_errors() {
    let env = TestEnv::new().await;
    let mut command = plugin(&env.cluster.kubeconfig_path());
    command.args(["wf-1", "-n", "nowhere"]).args(REQUIRED_FLAGS);
    let ended = execute(command).await.exits_with(1);
    assert!(
        ended.err.contains("namespaces \"nowhere\" not found\nCreate the namespace, or choose another one with -n."),
        "{}",
        ended.err
    );
    execute(call(&env, &["wf-1", "--name", "mine"])).await.exits_with(0);
    let ended = execute(call(&env, &["wf-1", "--name", "mine"])).await.exits_with(1);
    assert!(
        ended.err.contains("\"mine\" already exists\nEach stop needs its own name: choose another --name"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn without_a_kubeconfig_or_a_running_cluster_the_error_says_what_to_check() {
    let folder = Folder::new("no-cluster");
    let nowhere = folder.path().join("kubeconfig");
    let ended = execute(with_required_flags(&nowhere, &[])).await.exits_with(1);
    assert!(
        ended.err.contains("cannot load a kubeconfig: ") && ended.err.contains("Set KUBECONFIG or --kubeconfig"),
        "{}",
        ended.err
    );
    let nobody_listens = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "users": [{"name": "x", "user": {}}],
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}]}"#;
    folder.write("kubeconfig", nobody_listens);
    let ended = execute(with_required_flags(&nowhere, &[])).await.exits_with(1);
    assert!(
        ended.err.contains("Connection refused") && ended.err.contains("kubectl config view --minify"),
        "{}",
        ended.err
    );
    assert!(!ended.err.contains("may have been created"), "no request was sent: {}", ended.err);
    let ended = execute(with_required_flags(&nowhere, &["--context", "y"])).await.exits_with(1);
    assert!(ended.err.contains("has no context y. To list its contexts: kubectl config get-contexts"), "{}", ended.err);
}

#[tokio::test]
async fn after_a_lost_response_nothing_is_created_twice_and_the_error_says_how_to_check() {
    let env = TestEnv::new().await;
    let proxy = ApiserverProxy::start(env.client.clone()).await;
    let check = format!(
        "The stop may have been created nevertheless. Check before you retry: kubectl get wrs -n {}",
        env.namespace
    );
    for (action, stored) in [(ProxyAction::DropResponse, 1), (ProxyAction::Refuse, 1)] {
        proxy.set_rule_for(Purpose::Other, action);
        let before = proxy.requests().len();
        let mut command = call(&env, &["wf-1"]);
        command.env("KUBECONFIG", proxy.kubeconfig());
        let ended = execute(command).await.exits_with(1);
        assert!(ended.err.contains(&check), "{action:?}: {}", ended.err);
        assert_eq!((proxy.requests().len() - before, stop_count(&env).await), (1, stored), "{action:?}");
    }
}

fn with_required_flags(kubeconfig: &std::path::Path, args: &[&str]) -> tokio::process::Command {
    let mut command = plugin(kubeconfig);
    command.arg("wf-1").args(REQUIRED_FLAGS).args(args);
    command
}
