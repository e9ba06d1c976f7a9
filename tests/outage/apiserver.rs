//! The API server is away, has forgotten what the operator has not seen yet, or loses a namespace.

use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use lab::simulator::{Fault, HoldPoint, Kind, RetryAfter};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::{
    batch::Batch,
    support::{Operator, Place, TENANT, a_stop, condition, ends_at_once, is, ready, request},
};

const OTHER_TENANT: &str = "globex";
const OUTAGE: Duration = Duration::from_secs(60);

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(90);

/// A stop of another tenant.
fn of_other_tenant(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.tenant = OTHER_TENANT.to_owned();
    stop
}

/// A stop whose Secret comes later.
fn with_late_secret(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.credentials_secret_ref.name = "late".to_owned();
    stop
}

/// The API server dies while thirty calls are in flight and two stops wait for their turn. A lease is lost
/// meanwhile; without leader election the watch alone has to recover.
async fn is_away_in_the_middle_of_calls(elects: bool) {
    let batch = Batch::at(Place::alone().await, 30);
    let place = &batch.place;
    let election: &[&str] = if elects { &["--leader-elect", "--lease-namespace", &place.namespace] } else { &[] };
    for run in ["wf-first", "wf-second"] {
        place.amperity.add_run(OTHER_TENANT, ends_at_once(run));
    }
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(OUTAGE.as_secs() / 2) };
    place.amperity.on_stop("wf-first", [limited]);
    let _operator = batch.operator(&[&["--request-timeout", "120s"], election].concat()).await;
    place.apply(of_other_tenant("wf-first")).await;
    place.reason("wf-first", Reason::RateLimited).await;
    place.apply(of_other_tenant("wf-second")).await;
    place.reason("wf-second", Reason::WaitingForBudget).await;
    let hold = place.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.apply().await;
    batch.posts(30, |stop| stop.effect).await;

    place.cluster.kill_apiserver().await;
    hold.release();
    batch.posts(30, |stop| stop.answered == Some(200)).await;
    sleep(OUTAGE).await;
    place.cluster.start_apiserver().await;

    batch.kept_with_one_request_each().await;
    for run in &batch.runs {
        let stop = place.get(run).await;
        assert_eq!(
            condition(&stop, ConditionType::StopAccepted),
            is(ConditionStatus::True, Reason::StopAccepted),
            "{run}"
        );
        assert_eq!(request(&stop).attempts, 1, "{run}");
    }
    for (run, posts) in [("wf-first", 2), ("wf-second", 1)] {
        assert_eq!(ready(&place.finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
        assert_eq!(place.sent(run), (posts, 1, 0), "{run}");
    }
    place.amperity.add_run(TENANT, ends_at_once("wf-new"));
    place.apply(a_stop("wf-new")).await;
    assert_eq!(ready(&place.finished("wf-new").await), is(ConditionStatus::True, Reason::RunStopped));
}

#[tokio::test]
async fn what_was_learned_while_the_api_server_was_away_is_recorded_and_nobody_is_forgotten() {
    is_away_in_the_middle_of_calls(false).await;
}

#[tokio::test]
async fn a_leader_that_lost_its_lease_meanwhile_records_it_as_well() {
    is_away_in_the_middle_of_calls(true).await;
}

/// Forgets all versions but the newest.
async fn compact(place: &Place) {
    let http = reqwest::Client::new();
    let ask = async |path: &str, what: Value| {
        let request = http.post(format!("{}/v3/kv/{path}", place.cluster.etcd_url())).body(what.to_string());
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap()
    };
    // The key is one zero byte; what counts is the revision that comes along.
    let newest = ask("range", json!({"key": "AA=="})).await["header"]["revision"].clone();
    ask("compaction", json!({"revision": newest, "physical": true})).await;
}

/// What the API server says to a watch from this version, when it has read what is stored.
async fn watched_from(place: &Place, version: &str) -> u16 {
    loop {
        let first = async {
            let mut events = Box::pin(place.stops().watch(&WatchParams::default(), version).await?);
            events.try_next().await
        };
        match first.await {
            // It is not ready to say anything yet.
            Err(kube::Error::Api(status)) if status.code == 429 => sleep(Duration::from_millis(50)).await,
            Err(kube::Error::Api(status)) => return status.code,
            Ok(Some(WatchEvent::Error(status))) => return status.code,
            other => panic!("no answer to a watch from {version}: {other:?}"),
        }
    }
}

async fn signal(operator: &Operator, name: &str) {
    Command::new("kill").args([name, &operator.pid().to_string()]).status().await.unwrap();
}

#[tokio::test]
async fn a_watch_whose_version_is_gone_begins_anew_and_misses_nothing() {
    let place = Place::alone().await;
    for run in ["wf-resumed", "wf-deleted", "wf-late", "wf-new"] {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    let operator = place.operator().await;
    let mut suspended = a_stop("wf-resumed");
    suspended.spec.suspend = true;
    place.apply_all([suspended, with_late_secret("wf-deleted"), with_late_secret("wf-late")]).await;
    place.reason("wf-resumed", Reason::Suspended).await;
    for run in ["wf-deleted", "wf-late"] {
        place.reason(run, Reason::CredentialsMissing).await;
    }
    let known = place.stops().list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();

    // While the operator sees nothing.
    signal(&operator, "-STOP").await;
    place.change("wf-resumed", json!({"suspend": false})).await.unwrap();
    place.stops().delete("wf-deleted", &DeleteParams::default()).await.unwrap();
    place.apply(a_stop("wf-new")).await;
    compact(&place).await;
    place.cluster.kill_apiserver().await;
    place.cluster.start_apiserver().await;
    let code = timeout(PATIENCE, watched_from(&place, &known)).await.expect("it answers");
    assert_eq!(code, 410, "the version {known} is not gone");
    signal(&operator, "-CONT").await;

    operator.says("too old resource version").await;
    for run in ["wf-resumed", "wf-new"] {
        assert_eq!(ready(&place.finished(run).await), is(ConditionStatus::True, Reason::RunStopped), "{run}");
        assert_eq!(place.sent(run), (1, 1, 0), "{run}");
    }
    place.put_secret("late", &[("token", "good-token")]).await;
    assert_eq!(ready(&place.finished("wf-late").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(operator.terminate().await, Some(0));
    assert_eq!(place.sent("wf-deleted"), (0, 0, 0));
}

/// Waits until the operator works on so many resources.
async fn unfinished(operator: &Operator, count: usize) {
    let url = format!("http://{}/metrics", operator.http_addr().await);
    let value = |line: &str| {
        line.strip_prefix("workflow_run_stop_operator_unfinished{")?.split_once(' ')?.1.parse::<usize>().ok()
    };
    let is_so = async {
        while reqwest::get(&url).await.unwrap().text().await.unwrap().lines().filter_map(value).sum::<usize>() != count
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("never {count} unfinished"));
}

#[tokio::test]
async fn a_namespace_that_is_deleted_in_the_middle_is_forgotten_and_holds_up_no_other() {
    let (place, other) = (Place::new().await, Place::new().await);
    for run in ["wf-called", "wf-waits", "wf-other", "wf-other-2"] {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    let both = format!("{},{}", place.namespace, other.namespace);
    let operator = place.operator_with(&["--watch-namespaces", &both, "--request-timeout", "60s"]).await;
    place.apply(with_late_secret("wf-waits")).await;
    place.reason("wf-waits", Reason::CredentialsMissing).await;
    let hold = place.amperity.hold_stops(HoldPoint::AfterEffect);
    place.apply(a_stop("wf-called")).await;
    let called = |requests: &[lab::simulator::Recorded]| requests.iter().any(|request| request.kind == Kind::Stop);
    timeout(PATIENCE, place.amperity.wait_until(called)).await.expect("it is sent");
    other.apply(a_stop("wf-other")).await;

    // As the namespace's controller does it.
    let namespaces: Api<Namespace> = Api::all(place.client.clone());
    namespaces.delete(&place.namespace, &DeleteParams::default()).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(place.client.clone(), &place.namespace);
    secrets.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    place.stops().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let mut ending = namespaces.get(&place.namespace).await.unwrap();
    ending.spec.get_or_insert_default().finalizers = None;
    namespaces.replace_subresource("finalize", &place.namespace, &PostParams::default(), &ending).await.unwrap();
    hold.release();

    assert_eq!(ready(&other.finished("wf-other").await), is(ConditionStatus::True, Reason::RunStopped));
    unfinished(&operator, 0).await;
    other.apply(a_stop("wf-other-2")).await;
    assert_eq!(ready(&other.finished("wf-other-2").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(place.sent("wf-called"), (1, 1, 0));
    assert_eq!(place.sent("wf-waits"), (0, 0, 0));
    let log = operator.log();
    assert!(!log.iter().any(|line| line.contains("panic")), "{log:#?}");
    assert_eq!(operator.terminate().await, Some(0));
}
