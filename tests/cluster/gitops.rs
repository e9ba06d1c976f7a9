//! The statements of docs/gitops.md about the API server and about resources that are created again.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lab::{
    simulator::RepeatedStop,
    testing::{TENANT, TestEnv, a_stop, ready},
};
use serde_json::json;
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

use crate::answers::{Fixture, a_run};

/// Creates a stop and returns it when it has finished.
async fn finished_stop(fixture: &Fixture, run: &str) -> WorkflowRunStop {
    fixture.add_run(a_run(run), run, []);
    fixture.env.create(a_stop(run)).await;
    fixture.wait_finished(run).await.pop().unwrap()
}

#[tokio::test]
async fn a_created_stop_has_only_the_default_status() {
    let env = TestEnv::new().await;
    let mut from_a_backup = a_stop("wf-1");
    from_a_backup.status = Some(WorkflowRunStopStatus {
        state: Some("canceled".to_owned()),
        observed_generation: Some(1),
        completion_time: Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap()),
        ..WorkflowRunStopStatus::default()
    });
    let unseen = WorkflowRunStopStatus { observed_generation: Some(-1), ..WorkflowRunStopStatus::default() };
    assert_eq!(env.create(from_a_backup).await.status, Some(unseen.clone()));
    assert_eq!(env.get("wf-1").await.status, Some(unseen));
}

#[tokio::test]
async fn applying_and_replacing_a_finished_stop_changes_nothing() {
    let fixture = Fixture::new().await;
    let stop = finished_stop(&fixture, "wf-1").await;
    // As in Git: without the fields that the API server fills in.
    let manifest = json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStop",
        "metadata": {"name": "wf-1"},
        "spec": {"runId": "wf-1", "tenant": TENANT, "credentialsSecretRef": {"name": "amperity"}},
    });
    let of_tool = PatchParams::apply("gitops").force();
    let dry = PatchParams { dry_run: true, ..of_tool.clone() };
    let applied = fixture.env.stops().patch("wf-1", &of_tool, &Patch::Apply(&manifest)).await.unwrap();
    let again = fixture.env.stops().patch("wf-1", &dry, &Patch::Apply(&manifest)).await.unwrap();
    assert_eq!(again, applied, "a dry run shows no difference");
    let mut bare: WorkflowRunStop = serde_json::from_value(manifest).unwrap();
    bare.metadata.resource_version = applied.metadata.resource_version.clone();
    let replaced = fixture.env.stops().replace("wf-1", &PostParams::default(), &bare).await.unwrap();
    for after in [applied, replaced] {
        assert_eq!((after.metadata.uid, after.spec), (stop.metadata.uid.clone(), stop.spec.clone()));
        assert_eq!(after.status, stop.status);
    }
    assert_eq!(fixture.env.request_counts("wf-1").0, 1);
    // GitOps tools that may force an update take 422 as the signal to delete and recreate.
    let refused = fixture.env.patch_spec("wf-1", json!({"followTimeoutSeconds": 7})).await;
    assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422), "{refused:?}");
}

#[tokio::test]
async fn a_stop_that_is_deleted_and_created_again_is_a_new_stop() {
    let fixture = Fixture::new().await;
    for (run, again, reason) in [
        ("wf-200", RepeatedStop::Unchanged200, Reason::RunStopped),
        ("wf-409", RepeatedStop::Conflict409, Reason::RunStopped),
        ("wf-400", RepeatedStop::BadRequest400, Reason::RunStopped),
    ] {
        fixture.add_run(a_run(run).on_repeated_stop(again), run, []);
        let first = fixture.env.create(a_stop(run)).await;
        fixture.wait_finished(run).await;
        fixture.env.stops().delete(run, &DeleteParams::default()).await.unwrap();
        let second = fixture.env.create(a_stop(run)).await;
        assert_ne!(first.metadata.uid, second.metadata.uid);
        let end = fixture.env.wait_finished(run).await;
        assert_eq!(ready(&end).1, reason.as_str(), "{run}");
        let (stops, effects, _) = fixture.env.request_counts(run);
        assert_eq!((stops, effects), (2, 1), "{run}");
    }
}

#[tokio::test]
async fn a_stop_whose_status_was_restored_is_not_sent_again() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, a_run("wf-1"));
    env.create(a_stop("wf-1")).await;
    let completion_time = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    env.write_status("wf-1", &WorkflowRunStopStatus { completion_time, ..WorkflowRunStopStatus::default() }).await;
    let fixture = Fixture::with_env(env).await;
    finished_stop(&fixture, "wf-2").await;
    assert_eq!((fixture.env.request_counts("wf-1").0, fixture.env.request_counts("wf-2").0), (0, 1));
}
