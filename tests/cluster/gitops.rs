//! What docs/gitops.md says of the API server and of resources that come back.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lab::simulator::Again;
use serde_json::json;
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

use crate::answers::{Bench, a_run};
use crate::support::{Place, TENANT, a_stop, ready};

/// A stop that is done, as it stands in a backup.
async fn done(bench: &Bench, run: &str) -> WorkflowRunStop {
    bench.add(a_run(run), run, []);
    bench.place.apply(a_stop(run)).await;
    bench.finished(run).await.pop().unwrap()
}

#[tokio::test]
async fn what_is_created_has_no_status_but_the_one_that_tells_that_nobody_saw_it() {
    let place = Place::new().await;
    let mut from_a_backup = a_stop("wf-1");
    from_a_backup.status = Some(WorkflowRunStopStatus {
        state: Some("canceled".to_owned()),
        observed_generation: Some(1),
        completion_time: Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap()),
        ..WorkflowRunStopStatus::default()
    });
    let unseen = WorkflowRunStopStatus { observed_generation: Some(-1), ..WorkflowRunStopStatus::default() };
    assert_eq!(place.apply(from_a_backup).await.status, Some(unseen.clone()));
    assert_eq!(place.get("wf-1").await.status, Some(unseen));
}

#[tokio::test]
async fn applying_and_replacing_a_finished_stop_changes_nothing() {
    let bench = Bench::new().await;
    let stop = done(&bench, "wf-1").await;
    // As it stands in Git: without what the API server fills in.
    let manifest = json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStop",
        "metadata": {"name": "wf-1"},
        "spec": {"runId": "wf-1", "tenant": TENANT, "credentialsSecretRef": {"name": "amperity"}},
    });
    let of_tool = PatchParams::apply("gitops").force();
    let dry = PatchParams { dry_run: true, ..of_tool.clone() };
    let applied = bench.place.stops().patch("wf-1", &of_tool, &Patch::Apply(&manifest)).await.unwrap();
    let again = bench.place.stops().patch("wf-1", &dry, &Patch::Apply(&manifest)).await.unwrap();
    assert_eq!(again, applied, "a tool that looks for differences finds none");
    let mut bare: WorkflowRunStop = serde_json::from_value(manifest).unwrap();
    bare.metadata.resource_version = applied.metadata.resource_version.clone();
    let replaced = bench.place.stops().replace("wf-1", &PostParams::default(), &bare).await.unwrap();
    for after in [applied, replaced] {
        assert_eq!((after.metadata.uid, after.spec), (stop.metadata.uid.clone(), stop.spec.clone()));
        assert_eq!(after.status, stop.status);
    }
    assert_eq!(bench.place.sent("wf-1").0, 1);
    // By this code tools know what they may delete and create instead, where they are told to force.
    let refused = bench.place.change("wf-1", json!({"followTimeoutSeconds": 7})).await;
    assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422), "{refused:?}");
}

#[tokio::test]
async fn what_is_deleted_and_applied_again_is_a_new_stop() {
    let bench = Bench::new().await;
    for (run, again, reason) in [
        ("wf-200", Again::Unchanged200, Reason::RunStopped),
        ("wf-409", Again::Conflict409, Reason::RunStopped),
        ("wf-400", Again::BadRequest400, Reason::RunStopped),
    ] {
        bench.add(a_run(run).again(again), run, []);
        let first = bench.place.apply(a_stop(run)).await;
        bench.finished(run).await;
        bench.place.stops().delete(run, &DeleteParams::default()).await.unwrap();
        let second = bench.place.apply(a_stop(run)).await;
        assert_ne!(first.metadata.uid, second.metadata.uid);
        let end = bench.place.finished(run).await;
        assert_eq!(ready(&end).1, reason.as_str(), "{run}");
        let (stops, effects, _) = bench.place.sent(run);
        assert_eq!((stops, effects), (2, 1), "{run}");
    }
}

#[tokio::test]
async fn a_status_that_is_put_back_before_the_operator_starts_is_not_asked_for_again() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, a_run("wf-1"));
    place.apply(a_stop("wf-1")).await;
    let completion_time = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    place.put_status("wf-1", &WorkflowRunStopStatus { completion_time, ..WorkflowRunStopStatus::default() }).await;
    let bench = Bench::at(place).await;
    done(&bench, "wf-2").await;
    assert_eq!((bench.place.sent("wf-1").0, bench.place.sent("wf-2").0), (0, 1));
}
