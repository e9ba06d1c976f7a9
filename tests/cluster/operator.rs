//! The process: shutdown, health, leader election, TTL, log and permissions.

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
use lab::{
    simulator::{HoldPoint, Kind, Run, StopResponseTasks},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, is, message, rbac, ready},
};
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

const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Returns a loopback address on which nothing listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An operator and the address of its health and metrics endpoints.
pub struct Replica {
    pub operator: Operator,
    http: SocketAddr,
}

impl Replica {
    pub async fn start(env: &TestEnv, flags: &[&str]) -> Self {
        Self::from_operator(env.start_operator_with(flags).await).await
    }

    pub async fn from_operator(operator: Operator) -> Self {
        let http = operator.http_addr().await.parse().unwrap();
        Self { operator, http }
    }

    /// Sends a GET request and returns the status code and the body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Polls this path until status code and body satisfy the predicate, and returns the body.
    pub async fn wait_for_response(&self, path: &str, predicate: impl Fn(u16, &str) -> bool) -> String {
        let polled = async {
            loop {
                let (status, body) = self.get(path).await;
                if predicate(status, &body) {
                    return body;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(TIMEOUT, polled).await.unwrap_or_else(|_| panic!("{path} never had the expected response"))
    }

    async fn wait_until_leading(&self) {
        self.wait_for_response("/metrics", |_, body| body.contains("workflow_run_stop_operator_leading 1\n")).await;
    }
}

/// Returns true if the metrics show one finished resource and no unfinished one.
fn one_finished_none_left(_: u16, metrics: &str) -> bool {
    metric_sum(metrics, "finished_total") == 1 && metric_sum(metrics, "unfinished") == 0
}

/// Returns the sum of all series of a metric.
pub fn metric_sum(metrics: &str, name: &str) -> u64 {
    let value = |line: &str| {
        let (series, value) = line.strip_prefix("workflow_run_stop_operator_")?.split_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<u64>().unwrap())
    };
    metrics.lines().filter_map(value).sum()
}

/// Returns the resource names in the log lines.
fn logged_names(operator: &Operator) -> Vec<String> {
    let lines = operator.log();
    let names = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("name").cloned());
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:03}")).collect()
}

/// The status of a resource that finished at this Unix time.
fn status_finished_at(second: i64) -> WorkflowRunStopStatus {
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(second).unwrap());
    WorkflowRunStopStatus {
        state: Some("canceled".to_owned()),
        completion_time: Some(time),
        ..WorkflowRunStopStatus::default()
    }
}

/// Waits until this resource is gone.
async fn wait_deleted(env: &TestEnv, stop: &WorkflowRunStop) {
    let gone = await_condition(env.stops(), stop.name(), is_deleted(stop.uid()));
    timeout(TIMEOUT, gone).await.unwrap_or_else(|_| panic!("{} was never deleted", stop.name())).unwrap();
}

/// Creates a service account with only these RBAC rules in the namespace, and returns its kubeconfig.
pub async fn kubeconfig_with_rules(env: &TestEnv, rules: Value) -> PathBuf {
    let namespace = env.namespace.as_str();
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
    Api::namespaced(env.client.clone(), namespace).create(&params, &account).await.unwrap();
    Api::namespaced(env.client.clone(), namespace).create(&params, &role).await.unwrap();
    Api::namespaced(env.client.clone(), namespace).create(&params, &binding).await.unwrap();
    env.cluster.kubeconfig_for_service_account(namespace, "narrow").await
}

#[tokio::test]
async fn sigterm_records_the_requests_in_flight_and_starts_nothing_new() {
    let env = TestEnv::new().await;
    let runs = names("wf", 20);
    for run in &runs {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.create_all(runs.iter().map(|run| a_stop(run))).await;
    let hold = env.amperity.hold_stops(HoldPoint::BeforeEffect);
    let operator = env.start_operator_with(&["--requests-per-second", "5", "--request-timeout", "30s"]).await;
    env.amperity.wait_until(|requests| 5 <= requests.len()).await;
    operator.send_sigterm().await;
    operator.wait_for_log("shutting down").await;
    hold.release();
    assert_eq!(operator.wait_for_exit().await, Some(0));
    let mut sent = 0;
    for run in &runs {
        let stop = env.get(run).await;
        assert_eq!(stop.claim(), None, "{run} still has a claim");
        if env.amperity.stops(run) == 0 {
            assert!(!stop.is_finished());
            assert_eq!(stop.status.and_then(|status| status.stop_request), None, "{run} was not sent");
        } else {
            sent += 1;
            assert_eq!((env.amperity.stops(run), env.amperity.effects(run)), (1, 1));
            assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped), "{run} was sent");
        }
    }
    assert!((5..20).contains(&sent), "{sent} were sent");
}

#[tokio::test]
async fn sigterm_ends_an_idle_operator_within_five_seconds() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
    let mut suspended = a_stop("wf-suspended");
    suspended.spec.suspend = true;
    let operator = env.start_operator().await;
    env.create_all([a_stop("wf-followed"), suspended]).await;
    env.wait_for_reason("wf-followed", Reason::FollowingRun).await;
    env.wait_for_reason("wf-suspended", Reason::Suspended).await;
    let signaled = Instant::now();
    assert_eq!(operator.terminate().await, Some(0));
    let took = signaled.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
}

#[tokio::test]
async fn the_health_and_metrics_endpoints_answer() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let replica = Replica::start(&env, &[]).await;
    assert_eq!(replica.get("/healthz").await.0, 200);
    replica.wait_for_response("/readyz", |status, _| status == 200).await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    let metrics = replica.wait_for_response("/metrics", one_finished_none_left).await;
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
async fn probes_are_answered_while_other_clients_hold_connections_open() {
    let env = TestEnv::new().await;
    let replica = Replica::start(&env, &[]).await;
    replica.wait_for_response("/readyz", |status, _| status == 200).await;
    let mut held = vec![];
    // More than the operator keeps open, and fewer than the files that a process may usually open.
    for number in 0..400 {
        let mut stream = TcpStream::connect(replica.http).await.unwrap();
        // The operator may have closed it already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").await;
        held.push(stream);
        if number % 40 == 0 {
            assert_eq!(replica.get("/healthz").await.0, 200);
        }
    }
    assert_eq!(replica.get("/readyz").await.0, 200);
    assert_eq!(replica.get("/metrics").await.0, 200);
    for mut stream in held {
        // An end or an error: all are closed, the last ones when their time is up.
        let _ = timeout(TIMEOUT, stream.read_to_end(&mut vec![])).await.expect("the operator closes the connection");
    }
}

#[tokio::test]
async fn the_operator_is_not_ready_before_its_first_list() {
    let env = TestEnv::new().await;
    let (nowhere, http) = (free_address(), free_address());
    let kubeconfig = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nowhere-{}", nowhere.port()));
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": format!("https://{nowhere}")}}],
        "users": [{"name": "x", "user": {"token": "x"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let mut command = env.operator_command();
    command.env("KUBECONFIG", &kubeconfig).args(["--http-addr", &http.to_string()]);
    let replica = Replica { operator: Operator::start(command).await, http };
    replica.operator.wait_for_log("watch failed").await;
    assert_eq!(replica.get("/readyz").await.0, 503);
    assert_eq!(replica.get("/healthz").await.0, 200, "a restart would not help");
    assert_eq!(replica.operator.terminate().await, Some(0));
}

#[tokio::test]
async fn only_the_leader_works_and_the_standby_takes_over_soon_after_it_exits() {
    let env = TestEnv::new().await;
    let flags = ["--leader-elect", "--lease-namespace", &env.namespace];
    let first = Replica::start(&env, &flags).await;
    first.wait_until_leading().await;
    let second = Replica::start(&env, &flags).await;
    assert_eq!(second.get("/readyz").await.0, 200, "a standby is ready");
    let runs = names("wf", 10);
    for run in runs.iter().map(String::as_str).chain(["wf-later"]) {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.create_all(runs.iter().map(|run| a_stop(run))).await;
    for run in &runs {
        env.wait_finished(run).await;
    }
    first.operator.wait_for_log(&format!("\"name\":\"{}\"", runs[0])).await;
    assert_eq!(logged_names(&second.operator), Vec::<String>::new());
    let signaled = Instant::now();
    assert_eq!(first.operator.terminate().await, Some(0));
    env.create(a_stop("wf-later")).await;
    env.wait_finished("wf-later").await;
    let took = signaled.elapsed();
    assert!(took < Duration::from_secs(8), "it took {took:?}: the lease was not released but expired");
    assert_eq!(env.amperity.requests().len(), 11);
}

#[tokio::test]
async fn the_standby_takes_over_when_the_leader_is_killed() {
    let env = TestEnv::new().await;
    let flags = ["--leader-elect", "--lease-namespace", &env.namespace];
    let first = Replica::start(&env, &flags).await;
    first.wait_until_leading().await;
    let second = Replica::start(&env, &flags).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let killed = Instant::now();
    first.operator.kill().await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    let took = killed.elapsed();
    // The lease lasts 12 s. A standby checks it every two to three seconds.
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    second.operator.wait_for_log("\"name\":\"wf-1\"").await;
}

#[tokio::test]
async fn two_replicas_without_leader_election_send_each_stop_once() {
    let env = TestEnv::new().await;
    let runs = names("wf", 40);
    for run in &runs {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    let (_first, _second) = (env.start_operator().await, env.start_operator().await);
    env.create_all(runs.iter().map(|run| a_stop(run))).await;
    for run in &runs {
        let stop = env.wait_finished(run).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    }
    let stops = env.amperity.requests().iter().filter(|request| request.kind == Kind::Stop).count();
    assert_eq!(stops, 40);
    for run in &runs {
        assert_eq!((env.amperity.stops(run), env.amperity.effects(run)), (1, 1), "{run}");
    }
}

#[tokio::test]
async fn a_finished_resource_is_deleted_when_its_ttl_expires() {
    let env = TestEnv::new().await;
    let with_ttl = |run: &str, seconds| {
        env.amperity.add_run(TENANT, ends_at_once(run));
        let mut stop = a_stop(run);
        stop.spec.ttl_seconds_after_finished = seconds;
        stop
    };
    let stops = [with_ttl("wf-short", Some(1)), with_ttl("wf-long", Some(3600)), with_ttl("wf-kept", None)];
    let _operator = env.start_operator().await;
    env.create_all(stops).await;
    for name in ["wf-kept", "wf-long"] {
        env.wait_finished(name).await;
    }
    let short = env.stops().get_opt("wf-short").await.unwrap();
    if let Some(short) = short {
        wait_deleted(&env, &short).await;
    }
    assert!(env.get("wf-long").await.is_finished());
    assert!(env.get("wf-kept").await.is_finished());
    assert_eq!(env.amperity.requests().len(), 3);
}

#[tokio::test]
async fn a_resource_that_expired_without_an_operator_is_deleted_at_the_next_start() {
    let env = TestEnv::new().await;
    for (name, seconds) in [("wf-expired", Some(0)), ("wf-kept", None)] {
        let mut stop = a_stop(name);
        stop.spec.ttl_seconds_after_finished = seconds;
        env.create(stop).await;
        env.write_status(name, &status_finished_at(1_700_000_000)).await;
    }
    let mut unfinished = a_stop("wf-unfinished");
    unfinished.spec.ttl_seconds_after_finished = Some(0);
    unfinished.spec.suspend = true;
    env.create(unfinished).await;
    let expired = env.get("wf-expired").await;
    let _operator = env.start_operator().await;
    wait_deleted(&env, &expired).await;
    env.wait_for_reason("wf-unfinished", Reason::Suspended).await;
    assert!(env.get("wf-kept").await.is_finished());
}

#[tokio::test]
async fn a_read_without_changes_writes_no_status() {
    let env = TestEnv::new().await;
    let run = Run::new("wf-1").stops_in(Duration::from_secs(600)).with_tasks(2);
    env.amperity.add_run(TENANT, run.stop_response_tasks(StopResponseTasks::Full));
    let _operator = env.start_operator().await;
    env.create(a_stop("wf-1")).await;
    let before = env.wait_for_reason("wf-1", Reason::FollowingRun).await;
    assert_eq!(env.amperity.reads("wf-1"), 0, "the first read is due two seconds later");
    // When the third read arrives, the operator has processed two.
    env.amperity.wait_until(|_| env.amperity.reads("wf-1") == 3).await;
    let after = env.get("wf-1").await;
    assert_eq!(after.resource_version(), before.resource_version());
}

#[tokio::test]
async fn own_status_writes_cause_no_further_requests_or_writes() {
    let env = TestEnv::new().await;
    let history = env.record_history().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let operator = env.start_operator().await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    assert_eq!(operator.terminate().await, Some(0));
    assert_eq!((env.amperity.stops("wf-1"), env.amperity.requests().len()), (1, 1));
    let last = env.get("wf-1").await;
    let versions = history.wait_until("wf-1", "had the last version", |stop| stop == &last).await;
    let writes: Vec<_> = versions.iter().map(|stop| (stop.claim().is_some(), stop.is_finished())).collect();
    assert_eq!(writes, [(false, false), (true, false), (false, true)], "created, claimed, recorded");
}

#[tokio::test]
async fn finished_resources_are_not_reconciled() {
    let env = TestEnv::new().await;
    let finished = names("wf-finished", 200);
    env.create_all(finished.iter().map(|name| a_stop(name))).await;
    let status = status_finished_at(1_700_000_000);
    join_all(finished.iter().map(|name| env.write_status(name, &status))).await;
    let replica = Replica::start(&env, &[]).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    assert_eq!(env.amperity.requests().len(), 1);
    replica.wait_for_response("/metrics", one_finished_none_left).await;
    let log = replica.operator.log().join("\n");
    assert!(!log.contains("wf-finished"), "{log}");
}

#[tokio::test]
async fn every_log_line_is_json_that_names_the_resource_and_no_secret() {
    let env = TestEnv::new().await;
    env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    for run in ["wf-1", "wf-2"] {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    let mut command = env.operator_command();
    command.env("RUST_LOG", "debug");
    let operator = Operator::start(command).await;
    let mut with_client = a_stop("wf-2");
    with_client.spec.credentials_secret_ref.name = "client".to_owned();
    env.create_all([a_stop("wf-1"), with_client]).await;
    for name in ["wf-1", "wf-2"] {
        env.wait_finished(name).await;
        operator.wait_for_log(&format!("\"run\":\"{name}\",\"step\":\"stop\"")).await;
    }
    let log = operator.log();
    let lines: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let of_stop = |line: &&Value| line["name"] == "wf-1" && line["run"] == "wf-1";
    let line = lines.iter().filter(of_stop).find(|line| line["step"] == "stop").unwrap();
    assert_eq!(line["namespace"], env.namespace);
    assert_eq!(line["tenant"], TENANT);
    assert_eq!(line["reason"], "RunStopped");
    assert_eq!(line["level"], "INFO");
    assert!(line["timestamp"].is_string());
    // At debug level every decision is logged, and library lines carry the resource in their span.
    let decided = lines.iter().filter(of_stop).find(|line| line["message"] == "reconciled").unwrap();
    assert_eq!((&decided["level"], &decided["decision"]), (&"DEBUG".into(), &"Stop(None)".into()), "{decided}");
    assert!(lines.iter().any(|line| line["span"]["resource"] == "wf-1" && line["span"]["run"] == "wf-1"), "no span");
    for secret in ["good-token", "good-secret", "tok-1", "admin-token"] {
        let line = log.iter().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

#[tokio::test]
async fn the_log_is_plain_text_with_log_format_text() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let operator = env.start_operator_with(&["--log-format", "text"]).await;
    env.create(a_stop("wf-1")).await;
    let line = operator.wait_for_log("RunStopped").await;
    assert!(serde_json::from_str::<Value>(&line).is_err(), "{line}");
    assert!(line.contains("INFO") && line.contains("wf-1"), "{line}");
}

#[tokio::test]
async fn the_permissions_of_the_chart_suffice_for_leader_election_and_ttl_deletion() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").with_tasks(1));
    let operator = env.start_operator_with(&["--leader-elect", "--lease-namespace", &env.namespace]).await;
    let mut stop = a_stop("wf-1");
    stop.spec.ttl_seconds_after_finished = Some(0);
    let history = env.record_history().await;
    let stop = env.create(stop).await;
    wait_deleted(&env, &stop).await;
    let versions = history.wait_until("wf-1", "finished", WorkflowRunStop::is_finished).await;
    assert_eq!(ready(versions.last().unwrap()), is(ConditionStatus::True, Reason::RunStopped));
    let log = operator.log().join("\n");
    assert_eq!(operator.terminate().await, Some(0));
    assert!(!log.contains("forbidden") && !log.contains("not permitted"), "{log}");
}

#[tokio::test]
async fn the_operator_has_no_permission_that_it_does_not_need() {
    let env = TestEnv::new().await;
    let elsewhere = env.cluster.namespace().await;
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(env.namespace.clone()) },
        ..SelfSubjectRulesReview::default()
    };
    let reviews: Api<SelfSubjectRulesReview> = Api::all(env.operator_client());
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    let mut actual: Vec<_> =
        status.resource_rules.into_iter().map(|rule| serde_json::to_value(rule).unwrap()).collect();
    // Kubernetes lets every authenticated user review the user's own permissions.
    actual.retain(|rule| {
        !rule["apiGroups"].to_string().contains("authorization.k8s.io")
            && !rule["apiGroups"].to_string().contains("authentication.k8s.io")
    });
    let mut expected = [rbac::watched_namespace_rules(), rbac::lease_rules(rbac::DEFAULT_LEASE)].concat();
    actual.sort_by_key(Value::to_string);
    expected.sort_by_key(Value::to_string);
    assert_eq!(actual, expected);

    let client = env.operator_client();
    let here: Api<Secret> = Api::namespaced(client.clone(), &env.namespace);
    let stops: Api<WorkflowRunStop> = Api::namespaced(client.clone(), &env.namespace);
    let there: Api<Secret> = Api::namespaced(client.clone(), &elsewhere);
    let params = PostParams::default();
    env.create(a_stop("wf-1")).await;
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
async fn an_operator_without_permission_to_read_secrets_reports_it() {
    let env = TestEnv::new().await;
    let rules = json!([
        {"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops"], "verbs": ["get", "list", "watch", "delete"]},
        {"apiGroups": ["workflow.amperity.com"], "resources": ["workflowrunstops/status"], "verbs": ["patch"]},
    ]);
    let mut command = env.operator_command();
    command.env("KUBECONFIG", kubeconfig_with_rules(&env, rules).await);
    let _operator = Operator::start(command).await;
    env.create(a_stop("wf-1")).await;
    let stop = env.wait_for_reason("wf-1", Reason::CredentialsMissing).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::CredentialsMissing));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("not allowed to read the Secret amperity"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(env.amperity.requests().len(), 0);
}
