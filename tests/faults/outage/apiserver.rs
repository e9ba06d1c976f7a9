//! The API server is unreachable, compacts versions that the operator has not seen, or deletes a namespace.

use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use lab::{
    simulator::{Fault, HoldPoint, Kind, RetryAfter},
    testing::{Operator, TENANT, TestEnv, a_stop, condition, ends_at_once, is, ready, stop_request},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::batch::Batch;

const OTHER_TENANT: &str = "globex";
const OUTAGE: Duration = Duration::from_secs(60);

/// The limit of every wait. A test that waits longer fails.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A stop of another tenant.
fn of_other_tenant(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.tenant = OTHER_TENANT.to_owned();
    stop
}

/// A stop whose Secret does not exist yet.
fn with_late_secret(run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.credentials_secret_ref.name = "late".to_owned();
    stop
}

/// Kills the API server for a minute while thirty requests are in flight and two stops wait for their turn, and checks
/// that all answers are recorded. With leader election the lease is lost in that time; without it only the watch has to
/// recover.
async fn assert_answers_survive_outage(leader_election: bool) {
    let batch = Batch::in_env(TestEnv::with_own_control_plane().await, 30);
    let env = &batch.env;
    let election: &[&str] =
        if leader_election { &["--leader-elect", "--lease-namespace", &env.namespace] } else { &[] };
    for run in ["wf-first", "wf-second"] {
        env.amperity.add_run(OTHER_TENANT, ends_at_once(run));
    }
    let limited = Fault::TooManyRequests { retry_after: RetryAfter::Seconds(OUTAGE.as_secs() / 2) };
    env.amperity.on_stop("wf-first", [limited]);
    let _operator = batch.start_operator(&[&["--request-timeout", "120s"], election].concat()).await;
    env.create(of_other_tenant("wf-first")).await;
    env.wait_for_reason("wf-first", Reason::RateLimited).await;
    env.create(of_other_tenant("wf-second")).await;
    env.wait_for_reason("wf-second", Reason::WaitingForBudget).await;
    let hold = env.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.create_stops().await;
    batch.wait_for_stop_requests(30, |stop| stop.effect).await;

    env.cluster.kill_apiserver().await;
    hold.release();
    batch.wait_for_stop_requests(30, |stop| stop.response_status == Some(200)).await;
    sleep(OUTAGE).await;
    env.cluster.start_apiserver().await;

    batch.assert_one_request_each().await;
    for run in &batch.runs {
        let stop = env.get(run).await;
        assert_eq!(
            condition(&stop, ConditionType::StopAccepted),
            is(ConditionStatus::True, Reason::StopAccepted),
            "{run}"
        );
        assert_eq!(stop_request(&stop).attempts, 1, "{run}");
    }
    for (run, requests) in [("wf-first", 2), ("wf-second", 1)] {
        assert_eq!(ready(&env.wait_finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
        assert_eq!(env.request_counts(run), (requests, 1, 0), "{run}");
    }
    env.amperity.add_run(TENANT, ends_at_once("wf-new"));
    env.create(a_stop("wf-new")).await;
    assert_eq!(ready(&env.wait_finished("wf-new").await), is(ConditionStatus::True, Reason::RunStopped));
}

#[tokio::test]
async fn answers_received_during_an_api_server_outage_are_recorded_and_no_stop_is_lost() {
    assert_answers_survive_outage(false).await;
}

#[tokio::test]
async fn a_leader_that_lost_its_lease_in_an_api_server_outage_records_its_answers() {
    assert_answers_survive_outage(true).await;
}

/// Compacts etcd to its newest revision.
async fn compact_etcd(env: &TestEnv) {
    let http = reqwest::Client::new();
    let ask = async |path: &str, what: Value| {
        let request = http.post(format!("{}/v3/kv/{path}", env.cluster.etcd_url())).body(what.to_string());
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap()
    };
    // The key is one zero byte. Only the revision in the header of the response is used.
    let newest = ask("range", json!({"key": "AA=="})).await["header"]["revision"].clone();
    ask("compaction", json!({"revision": newest, "physical": true})).await;
}

/// Returns the error code of a watch from this resource version, once the cache of the API server is filled.
async fn first_watch_code(env: &TestEnv, version: &str) -> u16 {
    loop {
        let first = async {
            let mut events = Box::pin(env.stops().watch(&WatchParams::default(), version).await?);
            events.try_next().await
        };
        match first.await {
            // The cache of the API server is not filled yet.
            Err(kube::Error::Api(status)) if status.code == 429 => sleep(Duration::from_millis(50)).await,
            Err(kube::Error::Api(status)) => return status.code,
            Ok(Some(WatchEvent::Error(status))) => return status.code,
            other => panic!("no error for a watch from {version}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_watch_whose_resource_version_is_gone_lists_again_and_misses_nothing() {
    let env = TestEnv::with_own_control_plane().await;
    for run in ["wf-resumed", "wf-deleted", "wf-late", "wf-new"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    let operator = env.start_operator().await;
    let mut suspended = a_stop("wf-resumed");
    suspended.spec.suspend = true;
    env.create_all([suspended, with_late_secret("wf-deleted"), with_late_secret("wf-late")]).await;
    env.wait_for_reason("wf-resumed", Reason::Suspended).await;
    for run in ["wf-deleted", "wf-late"] {
        env.wait_for_reason(run, Reason::CredentialsMissing).await;
    }
    let known = env.stops().list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();

    // The operator is paused and sees none of these changes.
    operator.signal("-STOP").await;
    env.patch_spec("wf-resumed", json!({"suspend": false})).await.unwrap();
    env.stops().delete("wf-deleted", &DeleteParams::default()).await.unwrap();
    env.create(a_stop("wf-new")).await;
    compact_etcd(&env).await;
    env.cluster.kill_apiserver().await;
    env.cluster.start_apiserver().await;
    let code = timeout(TIMEOUT, first_watch_code(&env, &known)).await.expect("the API server responds");
    assert_eq!(code, 410, "the resource version {known} still exists");
    operator.signal("-CONT").await;

    operator.wait_for_log("too old resource version").await;
    for run in ["wf-resumed", "wf-new"] {
        assert_eq!(ready(&env.wait_finished(run).await), is(ConditionStatus::True, Reason::RunStopped), "{run}");
        assert_eq!(env.request_counts(run), (1, 1, 0), "{run}");
    }
    env.put_secret("late", &[("token", "good-token")]).await;
    assert_eq!(ready(&env.wait_finished("wf-late").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(operator.terminate().await, Some(0));
    assert_eq!(env.request_counts("wf-deleted"), (0, 0, 0));
}

/// Waits until the metrics of the operator show this number of unfinished resources.
async fn wait_for_unfinished_metric(operator: &Operator, count: usize) {
    let url = format!("http://{}/metrics", operator.http_addr().await);
    let value = |line: &str| {
        line.strip_prefix("workflow_run_stop_operator_unfinished{")?.split_once(' ')?.1.parse::<usize>().ok()
    };
    let reached = async {
        while reqwest::get(&url).await.unwrap().text().await.unwrap().lines().filter_map(value).sum::<usize>() != count
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, reached).await.unwrap_or_else(|_| panic!("never {count} unfinished"));
}

#[tokio::test]
async fn a_namespace_that_is_deleted_during_a_request_delays_no_other_namespace() {
    let (env, other_env) = (TestEnv::new().await, TestEnv::new().await);
    for run in ["wf-in-flight", "wf-waits", "wf-other", "wf-other-2"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    let both = format!("{},{}", env.namespace, other_env.namespace);
    let operator = env.start_operator_with(&["--watch-namespaces", &both, "--request-timeout", "60s"]).await;
    env.create(with_late_secret("wf-waits")).await;
    env.wait_for_reason("wf-waits", Reason::CredentialsMissing).await;
    let hold = env.amperity.hold_stops(HoldPoint::AfterEffect);
    env.create(a_stop("wf-in-flight")).await;
    let is_sent =
        |requests: &[lab::simulator::RecordedRequest]| requests.iter().any(|request| request.kind == Kind::Stop);
    timeout(TIMEOUT, env.amperity.wait_until(is_sent)).await.expect("the stop is sent");
    other_env.create(a_stop("wf-other")).await;

    // The test does the work of the namespace controller.
    let namespaces: Api<Namespace> = Api::all(env.client.clone());
    namespaces.delete(&env.namespace, &DeleteParams::default()).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.namespace);
    secrets.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    env.stops().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let mut ending = namespaces.get(&env.namespace).await.unwrap();
    ending.spec.get_or_insert_default().finalizers = None;
    namespaces.replace_subresource("finalize", &env.namespace, &PostParams::default(), &ending).await.unwrap();
    hold.release();

    assert_eq!(ready(&other_env.wait_finished("wf-other").await), is(ConditionStatus::True, Reason::RunStopped));
    wait_for_unfinished_metric(&operator, 0).await;
    other_env.create(a_stop("wf-other-2")).await;
    assert_eq!(ready(&other_env.wait_finished("wf-other-2").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(env.request_counts("wf-in-flight"), (1, 1, 0));
    assert_eq!(env.request_counts("wf-waits"), (0, 0, 0));
    let log = operator.log();
    assert!(!log.iter().any(|line| line.contains("panic")), "{log:#?}");
    assert_eq!(operator.terminate().await, Some(0));
}
