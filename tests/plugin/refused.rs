//! What a person hears whose call cannot be carried out.

use kube::api::ListParams;
use lab::{
    apiserver_proxy::{ApiserverProxy, Fate, Purpose},
    control_plane::{ControlPlane, User},
};

use serde_json::Value;

use crate::call::{Folder, Running, USUAL, call, done, grant, plugin};
use crate::support::Place;

async fn how_many(place: &Place) -> usize {
    place.stops().list(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn a_value_that_the_cluster_refuses_ends_with_1_in_its_words_and_by_its_flag() {
    let place = Place::new().await;
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
            let ended = done(call(&place, &[args, dry_run].concat())).await.with(1);
            assert!(ended.err.contains(wanted), "{args:?}:\n{}", ended.err);
            assert!(
                ended.err.starts_with(&format!("error: {}: the cluster refuses what is asked for:\n", args[0])),
                "{}",
                ended.err
            );
            assert_eq!((ended.err.lines().count(), ended.out.as_str()), (2, ""), "{}", ended.err);
        }
    }
    assert_eq!(how_many(&place).await, 0);
}

#[tokio::test]
async fn a_command_line_that_makes_no_sense_ends_with_2_and_asks_nothing_of_the_cluster() {
    let place = Place::new().await;
    let proxy = ApiserverProxy::start(place.client.clone()).await;
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
        let ended = done(command).await.with(2);
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{ended:?}");
    }
    assert!(proxy.calls().is_empty(), "{:?}", proxy.calls());
}

#[tokio::test]
async fn who_lacks_a_right_hears_which() {
    let place = Place::new().await;
    let mut command = call(&place, &["wf-1"]);
    command.env("KUBECONFIG", place.cluster.kubeconfig_for(User::Stranger));
    let ended = done(command).await.with(1);
    assert!(ended.err.contains("\"stranger\" cannot create resource \"workflowrunstops\""), "{}", ended.err);
    let remedy = format!("lets you create workflowrunstops.workflow.amperity.com in the namespace {}", place.namespace);
    assert!(ended.err.contains(&remedy), "{}", ended.err);
}

#[tokio::test]
async fn who_may_create_but_not_look_hears_which_right_is_missing_and_that_it_goes_on() {
    let place = Place::new().await;
    grant(&place, User::Stranger, &["create"]).await;
    let mut command = call(&place, &["wf-1", "--wait"]);
    command.env("KUBECONFIG", place.cluster.kubeconfig_for(User::Stranger));
    let ended = done(command).await.with(1);
    let name = ended.created();
    assert!(ended.err.contains(&format!("error: {name} was created, but cannot be watched: ")), "{}", ended.err);
    assert!(ended.err.contains("lets you list and watch workflowrunstops"), "{}", ended.err);
    assert!(
        ended.err.contains(&format!("The operator goes on with it. To look again:\n  kubectl get wrs {name}")),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn ctrl_c_before_the_cluster_answered_ends_with_130_and_says_how_to_look() {
    let place = Place::new().await;
    let proxy = ApiserverProxy::start(place.client.clone()).await;
    proxy.rule_for(Purpose::Other, Fate::HoldAnswer);
    let mut command = call(&place, &["wf-1"]);
    command.env("KUBECONFIG", proxy.kubeconfig());
    let running = Running::start(command);
    proxy.wait_until(|calls| !calls.is_empty()).await;
    running.interrupt().await;
    let ended = running.ended().await.with(130);
    assert!(
        ended.err.contains(&format!(
            "wf-1 may have been asked for all the same. To look:\n  kubectl get wrs -n {}",
            place.namespace
        )),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn where_the_kind_is_unknown_it_is_said_what_to_install() {
    let bare = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut command = plugin(&bare.kubeconfig_path());
    command.arg("wf-1").args(USUAL);
    let ended = done(command).await.with(1);
    assert!(ended.err.contains("install the CustomResourceDefinition first"), "{}", ended.err);
    bare.stop().await;
}

#[tokio::test]
async fn a_field_that_an_older_definition_does_not_know_is_refused_and_not_dropped() {
    let old = ControlPlane::start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut crd: Value = serde_yaml_ng::from_str(include_str!("../../crds/workflowrunstops.yaml")).unwrap();
    let version = &mut crd["spec"]["versions"][0];
    let selectable = version["selectableFields"].as_array_mut().unwrap();
    selectable.retain(|field| field["jsonPath"] != ".spec.ttlSecondsAfterFinished");
    let spec = version.pointer_mut("/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    spec.as_object_mut().unwrap().remove("ttlSecondsAfterFinished").unwrap();
    old.apply_crd(&crd.to_string()).await;
    let with = |args: &[&str]| {
        let mut command = plugin(&old.kubeconfig_path());
        command.arg("wf-1").args(USUAL).args(args);
        done(command)
    };
    let ended = with(&["--ttl", "7d"]).await.with(1);
    assert!(ended.err.contains("unknown field \"spec.ttlSecondsAfterFinished\""), "{}", ended.err);
    assert!(ended.err.contains("is not of this plugin's version: upgrade the older one"), "{}", ended.err);
    with(&[]).await.with(0);
    old.stop().await;
}

#[tokio::test]
async fn a_namespace_that_does_not_exist_and_a_name_that_does_are_told_apart_from_that() {
    let place = Place::new().await;
    let mut command = plugin(&place.cluster.kubeconfig_path());
    command.args(["wf-1", "-n", "nowhere"]).args(USUAL);
    let ended = done(command).await.with(1);
    assert!(
        ended.err.contains("namespaces \"nowhere\" not found\nCreate it, or name another one with -n."),
        "{}",
        ended.err
    );
    done(call(&place, &["wf-1", "--name", "mine"])).await.with(0);
    let ended = done(call(&place, &["wf-1", "--name", "mine"])).await.with(1);
    assert!(
        ended.err.contains("\"mine\" already exists\nA stop is a record of its own: choose another --name"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn where_no_cluster_is_known_or_runs_it_is_said_what_to_set() {
    let folder = Folder::new("no-cluster");
    let nowhere = folder.path().join("kubeconfig");
    let ended = done(with_usual(&nowhere, &[])).await.with(1);
    assert!(
        ended.err.contains("no cluster is known: ") && ended.err.contains("Set KUBECONFIG or --kubeconfig"),
        "{}",
        ended.err
    );
    let nobody_listens = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "users": [{"name": "x", "user": {}}],
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}]}"#;
    folder.write("kubeconfig", nobody_listens);
    let ended = done(with_usual(&nowhere, &[])).await.with(1);
    assert!(
        ended.err.contains("Connection refused") && ended.err.contains("kubectl config view --minify"),
        "{}",
        ended.err
    );
    assert!(!ended.err.contains("may have been created"), "no request went out: {}", ended.err);
    let ended = done(with_usual(&nowhere, &["--context", "y"])).await.with(1);
    assert!(ended.err.contains("has no context y: kubectl config get-contexts lists them"), "{}", ended.err);
}

#[tokio::test]
async fn where_the_answer_is_lost_nothing_is_created_twice_and_it_is_said_how_to_look() {
    let place = Place::new().await;
    let proxy = ApiserverProxy::start(place.client.clone()).await;
    let look = format!(
        "It may have been created all the same. Look before you try again: kubectl get wrs -n {}",
        place.namespace
    );
    for (fate, stored) in [(Fate::LoseAnswer, 1), (Fate::Refuse, 1)] {
        proxy.rule_for(Purpose::Other, fate);
        let before = proxy.calls().len();
        let mut command = call(&place, &["wf-1"]);
        command.env("KUBECONFIG", proxy.kubeconfig());
        let ended = done(command).await.with(1);
        assert!(ended.err.contains(&look), "{fate:?}: {}", ended.err);
        assert_eq!((proxy.calls().len() - before, how_many(&place).await), (1, stored), "{fate:?}");
    }
}

fn with_usual(kubeconfig: &std::path::Path, args: &[&str]) -> tokio::process::Command {
    let mut command = plugin(kubeconfig);
    command.arg("wf-1").args(USUAL).args(args);
    command
}
