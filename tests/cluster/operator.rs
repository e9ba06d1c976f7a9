//! The process: how it starts, ends, shares the work with others, tells what it does, and what it may do.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::{
    api::{
        authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
        core::v1::{Secret, ServiceAccount},
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use lab::simulator::{HoldPoint, Kind, Run, StopAnswerTasks};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use workflow_run_stop_api::{
    WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::rights;
use crate::support::{Operator, Place, TENANT, a_stop, ends_at_once, is, message, ready};

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// An address of the loopback where nobody listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An operator whose health endpoints a test looks at.
pub struct Replica {
    pub operator: Operator,
    http: SocketAddr,
}

impl Replica {
    pub async fn start(place: &Place, flags: &[&str]) -> Self {
        Self::of(place.operator_with(flags).await).await
    }

    pub async fn of(operator: Operator) -> Self {
        let http = operator.http_addr().await.parse().unwrap();
        Self { operator, http }
    }

    /// The status and the body of the answer at that path.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Waits until the answer at that path is so, and returns its body.
    pub async fn answers(&self, path: &str, is_so: impl Fn(u16, &str) -> bool) -> String {
        let so = async {
            loop {
                let (status, body) = self.get(path).await;
                if is_so(status, &body) {
                    return body;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("{path} never answered so"))
    }

    async fn leads(&self) {
        self.answers("/metrics", |_, body| body.contains("workflow_run_stop_operator_leading 1\n")).await;
    }
}

/// Whether the metrics tell of one resource that finished and of none that is left.
fn is_done(_: u16, metrics: &str) -> bool {
    sum(metrics, "finished_total") == 1 && sum(metrics, "unfinished") == 0
}

/// What all series of a metric come to.
pub fn sum(metrics: &str, name: &str) -> u64 {
    let value = |line: &str| {
        let (series, value) = line.strip_prefix("workflow_run_stop_operator_")?.split_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<u64>().unwrap())
    };
    metrics.lines().filter_map(value).sum()
}

/// The names in the lines of the log that tell of a resource.
fn told_of(operator: &Operator) -> Vec<String> {
    let lines = operator.log();
    let names = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("name").cloned());
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:03}")).collect()
}

/// The status of a resource that finished at that second.
fn finished_at(second: i64) -> WorkflowRunStopStatus {
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(second).unwrap());
    WorkflowRunStopStatus {
        state: Some("canceled".to_owned()),
        completion_time: Some(time),
        ..WorkflowRunStopStatus::default()
    }
}

async fn deleted(place: &Place, stop: &WorkflowRunStop) {
    let gone = await_condition(place.stops(), stop.name(), is_deleted(stop.uid()));
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{} was never deleted", stop.name())).unwrap();
}

/// A kubeconfig of a service account with these rights in the place's namespace and no other.
pub async fn kubeconfig_with(place: &Place, rules: Value) -> PathBuf {
    let namespace = place.namespace.as_str();
    let metadata = || ObjectMeta { name: Some("narrow".to_owned()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata: metadata(), ..ServiceAccount::default() };
    let role = Role { metadata: metadata(), rules: serde_json::from_value(rules).unwrap() };
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "narrow"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "narrow"},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": "narrow"}],
    }))
    .unwrap();
    let params = PostParams::default();
    Api::namespaced(place.client.clone(), namespace).create(&params, &account).await.unwrap();
    Api::namespaced(place.client.clone(), namespace).create(&params, &role).await.unwrap();
    Api::namespaced(place.client.clone(), namespace).create(&params, &binding).await.unwrap();
    place.cluster.kubeconfig_for_service_account(namespace, "narrow").await
}

#[tokio::test]
async fn sigterm_records_what_is_in_flight_and_begins_nothing_new() {
    let place = Place::new().await;
    let runs = names("wf", 20);
    for run in &runs {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    place.apply_all(runs.iter().map(|run| a_stop(run))).await;
    let hold = place.amperity.hold_stops(HoldPoint::BeforeEffect);
    let operator = place.operator_with(&["--requests-per-second", "5", "--request-timeout", "30s"]).await;
    place.amperity.wait_until(|requests| 5 <= requests.len()).await;
    operator.tell_to_end().await;
    operator.says("told to end").await;
    hold.release();
    assert_eq!(operator.ended().await, Some(0));
    let mut sent = 0;
    for run in &runs {
        let stop = place.get(run).await;
        assert_eq!(stop.claim(), None, "{run} keeps a claim");
        if place.amperity.stops(run) == 0 {
            assert!(!stop.is_finished());
            assert_eq!(stop.status.and_then(|status| status.stop_request), None, "{run} was not sent");
        } else {
            sent += 1;
            assert_eq!((place.amperity.stops(run), place.amperity.effects(run)), (1, 1));
            assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped), "{run} was sent");
        }
    }
    assert!((5..20).contains(&sent), "{sent} were sent");
}

#[tokio::test]
async fn sigterm_ends_an_idle_operator_quickly() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
    let mut suspended = a_stop("wf-suspended");
    suspended.spec.suspend = true;
    let operator = place.operator().await;
    place.apply_all([a_stop("wf-followed"), suspended]).await;
    place.reason("wf-followed", Reason::FollowingRun).await;
    place.reason("wf-suspended", Reason::Suspended).await;
    let told = Instant::now();
    assert_eq!(operator.terminate().await, Some(0));
    let took = told.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
}

#[tokio::test]
async fn the_health_endpoints_answer() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let replica = Replica::start(&place, &[]).await;
    assert_eq!(replica.get("/healthz").await.0, 200);
    replica.answers("/readyz", |status, _| status == 200).await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    let metrics = replica.answers("/metrics", is_done).await;
    for line in [
        "workflow_run_stop_operator_requests_total{tenant=\"acme\",purpose=\"stop\",answer=\"accepted\"} 1",
        "workflow_run_stop_operator_finished_total{tenant=\"acme\",reason=\"RunStopped\"} 1",
        "workflow_run_stop_operator_panics_total 0",
        "workflow_run_stop_operator_leading 1",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("wf-1"), "a label names a resource:\n{metrics}");
    assert_eq!(replica.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn it_is_not_ready_before_the_first_list() {
    let place = Place::new().await;
    let (nowhere, http) = (free_address(), free_address());
    let kubeconfig = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nowhere-{}", nowhere.port()));
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": format!("https://{nowhere}")}}],
        "users": [{"name": "x", "user": {"token": "x"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let mut command = place.command();
    command.env("KUBECONFIG", &kubeconfig).args(["--http-addr", &http.to_string()]);
    let replica = Replica { operator: Operator::start(command).await, http };
    replica.operator.says("the watch failed").await;
    assert_eq!(replica.get("/readyz").await.0, 503);
    assert_eq!(replica.get("/healthz").await.0, 200, "a restart would not help");
    assert_eq!(replica.operator.terminate().await, Some(0));
}

#[tokio::test]
async fn one_of_two_replicas_works_and_the_other_takes_over_at_once_when_it_ends() {
    let place = Place::new().await;
    let flags = ["--leader-elect", "--lease-namespace", &place.namespace];
    let first = Replica::start(&place, &flags).await;
    first.leads().await;
    let second = Replica::start(&place, &flags).await;
    assert_eq!(second.get("/readyz").await.0, 200, "who waits for the lease is as ready as can be");
    let runs = names("wf", 10);
    for run in runs.iter().map(String::as_str).chain(["wf-later"]) {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    place.apply_all(runs.iter().map(|run| a_stop(run))).await;
    for run in &runs {
        place.finished(run).await;
    }
    first.operator.says(&format!("\"name\":\"{}\"", runs[0])).await;
    assert_eq!(told_of(&second.operator), Vec::<String>::new());
    let told = Instant::now();
    assert_eq!(first.operator.terminate().await, Some(0));
    place.apply(a_stop("wf-later")).await;
    place.finished("wf-later").await;
    let took = told.elapsed();
    assert!(took < Duration::from_secs(8), "it took {took:?}: the lease was not released, but ran out");
    assert_eq!(place.amperity.requests().len(), 11);
}

#[tokio::test]
async fn another_replica_takes_over_when_the_leader_is_killed() {
    let place = Place::new().await;
    let flags = ["--leader-elect", "--lease-namespace", &place.namespace];
    let first = Replica::start(&place, &flags).await;
    first.leads().await;
    let second = Replica::start(&place, &flags).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let killed = Instant::now();
    first.operator.kill().await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    let took = killed.elapsed();
    // The lease is good for 12 s; whoever waits looks at it every two to three seconds.
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    second.operator.says("\"name\":\"wf-1\"").await;
}

#[tokio::test]
async fn two_replicas_without_leader_election_send_each_stop_once() {
    let place = Place::new().await;
    let runs = names("wf", 40);
    for run in &runs {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    let (_first, _second) = (place.operator().await, place.operator().await);
    place.apply_all(runs.iter().map(|run| a_stop(run))).await;
    for run in &runs {
        let stop = place.finished(run).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    }
    let stops = place.amperity.requests().iter().filter(|request| request.kind == Kind::Stop).count();
    assert_eq!(stops, 40);
    for run in &runs {
        assert_eq!((place.amperity.stops(run), place.amperity.effects(run)), (1, 1), "{run}");
    }
}

#[tokio::test]
async fn a_resource_is_deleted_when_its_time_after_finishing_is_over() {
    let place = Place::new().await;
    let with_ttl = |run: &str, seconds| {
        place.amperity.add_run(TENANT, ends_at_once(run));
        let mut stop = a_stop(run);
        stop.spec.ttl_seconds_after_finished = seconds;
        stop
    };
    let stops = [with_ttl("wf-short", Some(1)), with_ttl("wf-long", Some(3600)), with_ttl("wf-kept", None)];
    let _operator = place.operator().await;
    place.apply_all(stops).await;
    for name in ["wf-kept", "wf-long"] {
        place.finished(name).await;
    }
    let short = place.stops().get_opt("wf-short").await.unwrap();
    if let Some(short) = short {
        deleted(&place, &short).await;
    }
    assert!(place.get("wf-long").await.is_finished());
    assert!(place.get("wf-kept").await.is_finished());
    assert_eq!(place.amperity.requests().len(), 3);
}

#[tokio::test]
async fn what_expired_while_no_operator_ran_is_deleted_at_its_start() {
    let place = Place::new().await;
    for (name, seconds) in [("wf-expired", Some(0)), ("wf-kept", None)] {
        let mut stop = a_stop(name);
        stop.spec.ttl_seconds_after_finished = seconds;
        place.apply(stop).await;
        place.put_status(name, &finished_at(1_700_000_000)).await;
    }
    let mut unfinished = a_stop("wf-unfinished");
    unfinished.spec.ttl_seconds_after_finished = Some(0);
    unfinished.spec.suspend = true;
    place.apply(unfinished).await;
    let expired = place.get("wf-expired").await;
    let _operator = place.operator().await;
    deleted(&place, &expired).await;
    place.reason("wf-unfinished", Reason::Suspended).await;
    assert!(place.get("wf-kept").await.is_finished());
}

#[tokio::test]
async fn a_run_that_is_read_without_news_costs_no_status_write() {
    let place = Place::new().await;
    let run = Run::new("wf-1").stops_in(Duration::from_secs(600)).with_tasks(2);
    place.amperity.add_run(TENANT, run.stop_answer_tasks(StopAnswerTasks::Full));
    let _operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    let before = place.reason("wf-1", Reason::FollowingRun).await;
    assert_eq!(place.amperity.reads("wf-1"), 0, "the first read comes two seconds later");
    // When the third read arrives, the operator is done with two.
    place.amperity.wait_until(|_| place.amperity.reads("wf-1") == 3).await;
    let after = place.get("wf-1").await;
    assert_eq!(after.resource_version(), before.resource_version());
}

#[tokio::test]
async fn own_status_writes_cause_no_further_round() {
    let place = Place::new().await;
    let history = place.history().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    assert_eq!(operator.terminate().await, Some(0));
    assert_eq!((place.amperity.stops("wf-1"), place.amperity.requests().len()), (1, 1));
    let last = place.get("wf-1").await;
    let versions = history.until("wf-1", "was as it is at the end", |stop| stop == &last).await;
    let writes: Vec<_> = versions.iter().map(|stop| (stop.claim().is_some(), stop.is_finished())).collect();
    assert_eq!(writes, [(false, false), (true, false), (false, true)], "created, claimed, recorded");
}

#[tokio::test]
async fn finished_resources_are_not_looked_at() {
    let place = Place::new().await;
    let finished = names("wf-finished", 200);
    place.apply_all(finished.iter().map(|name| a_stop(name))).await;
    let status = finished_at(1_700_000_000);
    join_all(finished.iter().map(|name| place.put_status(name, &status))).await;
    let replica = Replica::start(&place, &[]).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    assert_eq!(place.amperity.requests().len(), 1);
    replica.answers("/metrics", is_done).await;
    let log = replica.operator.log().join("\n");
    assert!(!log.contains("wf-finished"), "{log}");
}

#[tokio::test]
async fn every_log_line_is_json_that_names_the_resource_and_no_secret() {
    let place = Place::new().await;
    place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    for run in ["wf-1", "wf-2"] {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    let mut command = place.command();
    command.env("RUST_LOG", "debug");
    let operator = Operator::start(command).await;
    let mut with_client = a_stop("wf-2");
    with_client.spec.credentials_secret_ref.name = "client".to_owned();
    place.apply_all([a_stop("wf-1"), with_client]).await;
    for name in ["wf-1", "wf-2"] {
        place.finished(name).await;
        operator.says(&format!("\"run\":\"{name}\"")).await;
    }
    let log = operator.log();
    let lines: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let told = lines.iter().find(|line| line["name"] == "wf-1" && line["run"] == "wf-1").unwrap();
    assert_eq!(told["namespace"], place.namespace);
    assert_eq!(told["tenant"], TENANT);
    assert_eq!(told["reason"], "RunStopped");
    assert_eq!(told["level"], "INFO");
    assert!(told["timestamp"].is_string());
    for secret in ["good-token", "good-secret", "tok-1", "admin-token"] {
        let line = log.iter().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

#[tokio::test]
async fn the_log_is_text_for_people_where_that_is_asked_for() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let operator = place.operator_with(&["--log-format", "text"]).await;
    place.apply(a_stop("wf-1")).await;
    let line = operator.says("RunStopped").await;
    assert!(serde_json::from_str::<Value>(&line).is_err(), "{line}");
    assert!(line.contains("INFO") && line.contains("wf-1"), "{line}");
}

#[tokio::test]
async fn the_rights_of_the_chart_are_enough_for_a_leader_and_for_what_expires() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").with_tasks(1));
    let operator = place.operator_with(&["--leader-elect", "--lease-namespace", &place.namespace]).await;
    let mut stop = a_stop("wf-1");
    stop.spec.ttl_seconds_after_finished = Some(0);
    let history = place.history().await;
    let stop = place.apply(stop).await;
    deleted(&place, &stop).await;
    let versions = history.until("wf-1", "finished", WorkflowRunStop::is_finished).await;
    assert_eq!(ready(versions.last().unwrap()), is(ConditionStatus::True, Reason::RunStopped));
    let log = operator.log().join("\n");
    assert_eq!(operator.terminate().await, Some(0));
    assert!(!log.contains("forbidden") && !log.contains("not permitted"), "{log}");
}

#[tokio::test]
async fn the_operator_has_no_right_that_it_does_not_need() {
    let place = Place::new().await;
    let elsewhere = place.cluster.namespace().await;
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(place.namespace.clone()) },
        ..SelfSubjectRulesReview::default()
    };
    let reviews: Api<SelfSubjectRulesReview> = Api::all(place.operators_client());
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    let mut has: Vec<_> = status.resource_rules.into_iter().map(|rule| serde_json::to_value(rule).unwrap()).collect();
    // Whoever is known to the API server may ask what he may do.
    has.retain(|rule| {
        !rule["apiGroups"].to_string().contains("authorization.k8s.io")
            && !rule["apiGroups"].to_string().contains("authentication.k8s.io")
    });
    let mut given = [rights::of_watched(), rights::of_lease(rights::LEASE)].concat();
    has.sort_by_key(Value::to_string);
    given.sort_by_key(Value::to_string);
    assert_eq!(has, given);

    let client = place.operators_client();
    let here: Api<Secret> = Api::namespaced(client.clone(), &place.namespace);
    let stops: Api<WorkflowRunStop> = Api::namespaced(client.clone(), &place.namespace);
    let there: Api<Secret> = Api::namespaced(client.clone(), &elsewhere);
    let params = PostParams::default();
    place.apply(a_stop("wf-1")).await;
    let spec = Patch::Merge(json!({"spec": {"suspend": true}}));
    let refused = [
        ("list Secrets", here.list(&ListParams::default()).await.map(drop)),
        ("read Secrets of another namespace", there.get("amperity").await.map(drop)),
        (
            "list stops of all namespaces",
            Api::<WorkflowRunStop>::all(client).list(&ListParams::default()).await.map(drop),
        ),
        ("create stops", stops.create(&params, &a_stop("wf-2")).await.map(drop)),
        ("change a spec", stops.patch("wf-1", &PatchParams::default(), &spec).await.map(drop)),
    ];
    for (what, answer) in refused {
        let Err(kube::Error::Api(status)) = answer else { panic!("it may {what}: {answer:?}") };
        assert_eq!(status.code, 403, "{what}: {status:?}");
    }
}

#[tokio::test]
async fn an_operator_that_may_not_read_secrets_says_so() {
    let place = Place::new().await;
    let rules = json!([
        {"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": ["get", "list", "watch", "delete"]},
        {"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops/status"], "verbs": ["patch"]},
    ]);
    let mut command = place.command();
    command.env("KUBECONFIG", kubeconfig_with(&place, rules).await);
    let _operator = Operator::start(command).await;
    place.apply(a_stop("wf-1")).await;
    let stop = place.reason("wf-1", Reason::CredentialsMissing).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::CredentialsMissing));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("not allowed to read the Secret amperity"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(place.amperity.requests().len(), 0);
}
