//! Owns the test in which a real Prometheus scrapes a real operator, as text and with native histograms, and evaluates the
//! queries of the alerts and the dashboard.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lab::{
    simulator::{ErrorBody, Fault, RetryAfter, Run, StopEffect},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, ready},
};
use serde_json::{Value, json};
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use super::{
    ALERT_TESTS, ALERTS, alerts,
    dashboard::{self, Query, interpolated},
    prometheus::{Job, Prometheus},
    read,
};

const PREFIX: &str = "workflow_run_stop_operator_";

/// One job scrapes the text format, the other one native histograms, which need protobuf.
const JOBS: [Job; 2] =
    [("text", "scrape_protocols: [OpenMetricsText1.0.0]"), ("native", "scrape_native_histograms: true")];

const OTHER_TENANT: &str = "globex";

/// An operator after some work, scraped by Prometheus.
struct Fixture {
    prometheus: Prometheus,
    started: String,
    _operator: Operator,
    _env: TestEnv,
}

fn stop_of(tenant: &str, run: &str, secret: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.tenant = tenant.to_owned();
    stop.spec.credentials_secret_ref.name = secret.to_owned();
    stop
}

impl Fixture {
    /// Starts an operator that stops runs, one of them after a 429 and one for another tenant, has a stop rejected, follows
    /// a run and has stops that wait for their Secret. Waits until all of that was scraped.
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let operator = env.start_operator_with(&["--log-format", "json"]).await;
        let address = operator.http_addr().await;
        let rules = format!("{}/{ALERTS}", env!("CARGO_MANIFEST_DIR"));
        let prometheus = Prometheus::start(&address, &JOBS, &rules).await;
        let started = prometheus.now().await;

        // The waiting stops come first, so that the counters of the tenants are scraped at zero.
        env.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
        env.create_all([TENANT, OTHER_TENANT].map(|tenant| stop_of(tenant, &format!("wf-waiting-{tenant}"), "none")))
            .await;
        for tenant in [TENANT, OTHER_TENANT] {
            env.wait_for_reason(&format!("wf-waiting-{tenant}"), Reason::CredentialsMissing).await;
        }
        let scraped = format!("count({PREFIX}unfinished{{waits_for=\"credentials\"}} == 1) == {}", 2 * JOBS.len());
        prometheus.wait_for_series(&scraped).await;

        env.amperity.add_run(TENANT, Run::new("wf-stopped"));
        env.amperity.add_run(TENANT, ends_at_once("wf-limited"));
        env.amperity.add_run(TENANT, Run::new("wf-rejected"));
        env.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
        env.amperity.add_run(OTHER_TENANT, Run::new("wf-other"));
        env.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(3) }]);
        let refusal = Fault::Status { code: 400, effect: StopEffect::NoEffect, body: ErrorBody::ErrorJson };
        env.amperity.on_stop("wf-rejected", [refusal]);
        env.create(stop_of(TENANT, "wf-followed", "amperity")).await;
        env.wait_for_reason("wf-followed", Reason::FollowingRun).await;
        env.create_all([stop_of(TENANT, "wf-limited", "amperity"), stop_of(OTHER_TENANT, "wf-other", "client")]).await;
        env.wait_finished("wf-limited").await;
        env.create_all(["wf-stopped", "wf-rejected"].map(|run| stop_of(TENANT, run, "client"))).await;
        for (run, reason) in [
            ("wf-limited", Reason::RunStopped),
            ("wf-other", Reason::RunStopped),
            ("wf-stopped", Reason::RunStopped),
            ("wf-rejected", Reason::Rejected),
        ] {
            assert_eq!(ready(&env.wait_finished(run).await).1, reason.as_str(), "{run}");
        }
        for (job, _) in JOBS {
            prometheus.wait_for_series(&format!("sum({PREFIX}finished_total{{job={job:?}}}) == 4")).await;
        }
        Self { prometheus, started, _operator: operator, _env: env }
    }

    /// Returns the series that Grafana gets for a query.
    async fn panel_series(&self, query: &Query, values: &[(&str, &str)]) -> Vec<Value> {
        let expr = interpolated(&query.expr, values);
        let end = self.prometheus.now().await;
        let answer = if query.instant {
            self.prometheus.get("query", &[("query", &expr), ("time", &end)]).await
        } else {
            let range = [("query", expr.as_str()), ("start", self.started.as_str()), ("end", &end), ("step", "1")];
            self.prometheus.get("query_range", &range).await
        };
        let answer = answer.unwrap_or_else(|error| panic!("{}: {expr}: {error}", query.panel));
        answer["result"].as_array().unwrap().clone()
    }

    /// Returns the maximum over time of a panel's series with these labels; `None` if there is no such series.
    async fn maximum(&self, panel: &str, labels: &Value, values: &[(&str, &str)]) -> Option<f64> {
        let mut maximum: Option<f64> = None;
        for query in dashboard::queries().into_iter().filter(|query| query.panel == panel) {
            for series in self.panel_series(&Query { instant: false, ..query }, values).await {
                let metric = series["metric"].as_object().unwrap();
                let matches = labels.as_object().unwrap().iter().all(|(label, value)| metric.get(label) == Some(value));
                for point in series["values"].as_array().into_iter().flatten().filter(|_| matches) {
                    let value: f64 = point[1].as_str().unwrap().parse().unwrap();
                    maximum = Some(maximum.map_or(value, |known| known.max(value)));
                }
            }
        }
        maximum
    }
}

/// The values that Grafana uses for "All".
const ALL: [(&str, &str); 3] = [("namespace", ".*"), ("job", ".*"), ("tenant", ".*")];

/// Returns the metric names in a text, without the prefix.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let ends = |c: char| !(c.is_ascii_lowercase() || c == '_');
    let names = text.split(PREFIX).skip(1).map(|rest| rest.split(ends).next().unwrap().to_owned());
    names.collect()
}

/// Returns the values to which a text compares or sets a label.
fn label_values_in(text: &str, label: &str) -> BTreeSet<String> {
    let values = text.split(label).skip(1).filter_map(|rest| {
        let operator = rest.chars().take_while(|c| "=!~".contains(*c)).count();
        rest.get(operator..)?.strip_prefix('"').filter(|_| 0 < operator)?.split('"').next()
    });
    values.flat_map(|values| values.split('|')).map(str::to_owned).collect()
}

#[tokio::test]
async fn prometheus_scrapes_every_series_that_alerts_and_dashboard_query() {
    let fixture = Fixture::new().await;
    let prometheus = &fixture.prometheus;

    // Every target is up and its metrics are valid.
    let healthy = async || {
        let targets = prometheus.get("targets", &[]).await.unwrap()["activeTargets"].as_array().unwrap().clone();
        let up = |target: &Value| target["health"] == "up" && target["lastError"] == "";
        (targets.len() == JOBS.len() && targets.iter().all(up)).then_some(())
    };
    prometheus.poll("all targets are up", healthy).await;

    // The job "native" has native histograms and no others.
    let native = format!("histogram_count({PREFIX}request_duration_seconds{{job=\"native\",purpose=\"stop\"}}) > 0");
    assert_eq!(prometheus.query(&native).await.len(), 2, "one series for each tenant");
    let buckets = format!("count by (job) ({{__name__=~\"{PREFIX}.*_bucket\"}})");
    let buckets = prometheus.query(&buckets).await;
    assert_eq!(buckets.iter().map(|found| found["metric"]["job"].clone()).collect::<Vec<_>>(), ["text"]);
    for name in ["request_duration_seconds", "created_to_sent_seconds", "accepted_to_ended_seconds"] {
        let count = format!("sum({PREFIX}{name}_count{{job=\"text\"}})");
        let same = format!("{count} == sum(histogram_count({PREFIX}{name}{{job=\"native\"}})) and {count} > 0");
        prometheus.wait_for_series(&same).await;
    }

    // The rules are loaded, evaluated and healthy.
    let evaluated = async || {
        let rules = prometheus.get("rules", &[]).await.unwrap();
        let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
        let rules: Vec<_> = rules.cloned().collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    };
    let rules = prometheus.poll("all rules are evaluated", evaluated).await;
    assert_eq!(rules.iter().map(|rule| rule["name"].as_str().unwrap()).collect::<Vec<_>>(), alerts::names());
    for rule in &rules {
        assert_eq!((&rule["health"], &rule["lastError"]), (&json!("ok"), &Value::Null), "{rule:#}");
    }
    // The alert for stops without a Secret is pending for each tenant and job; no alert fires yet.
    for (tenant, job) in [TENANT, OTHER_TENANT].into_iter().flat_map(|tenant| JOBS.map(|(job, _)| (tenant, job))) {
        let name = "WorkflowRunStopCredentialsRefused";
        let pending = format!("ALERTS{{alertname={name:?},tenant={tenant:?},job={job:?},alertstate=\"pending\"}}");
        prometheus.wait_for_series(&pending).await;
    }
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\"}").await, Vec::<Value>::new());

    every_queried_metric_and_label_value_exists(prometheus).await;
    every_query_returns_series(&fixture).await;
    panels_show_the_work_of_the_operator(&fixture).await;
}

/// Prometheus reports no error for a query of a metric that does not exist.
async fn every_queried_metric_and_label_value_exists(prometheus: &Prometheus) {
    let queries = dashboard::queries().into_iter().map(|query| query.expr).chain(alerts::queries());
    let queried: String = queries.chain([read(ALERT_TESTS)]).collect::<Vec<_>>().join("\n");
    let known = prometheus.values("__name__").await;
    for name in metrics_in(&queried) {
        assert!(known.contains(&format!("{PREFIX}{name}")), "there is no metric {name}");
    }
    for label in ["answer", "purpose", "reason", "waits_for", "result"] {
        let known = prometheus.values(label).await;
        let values = label_values_in(&queried, label);
        for value in &values {
            assert!(known.contains(value), "no metric has {label}={value:?}, only {known:?}");
        }
        assert!(!values.is_empty() || ["purpose", "result"].contains(&label), "{label}");
    }
    for (name, metric, label) in dashboard::variables() {
        let metric = interpolated(&metric, &ALL);
        let values = prometheus.get(&format!("label/{label}/values"), &[("match[]", &metric)]).await.unwrap();
        let expected = match name.as_str() {
            "namespace" => json!(["ops"]),
            "job" => json!(["native", "text"]),
            _ => json!([TENANT, OTHER_TENANT]),
        };
        assert_eq!(values, expected, "{name}");
    }
}

fn of_job(job: &'static str) -> [(&'static str, &'static str); 3] {
    [("namespace", "ops"), ("job", job), ("tenant", "(acme|globex)")]
}

/// Checks all queries with each selection of the variables and each kind of scrape.
async fn every_query_returns_series(fixture: &Fixture) {
    let mut queries = BTreeMap::<String, Vec<Query>>::new();
    for query in dashboard::queries() {
        queries.entry(query.id.clone()).or_default().push(query);
    }
    for values in [ALL, of_job("text"), of_job("native")] {
        for (id, queries) in &queries {
            let has_series = async || {
                for query in queries {
                    if !fixture.panel_series(query, &values).await.is_empty() {
                        return Some(());
                    }
                }
                None
            };
            fixture.prometheus.poll(&format!("series of {id} with {values:?}"), has_series).await;
        }
    }
}

async fn panels_show_the_work_of_the_operator(fixture: &Fixture) {
    for values in JOBS.map(|(job, _)| of_job(job)) {
        for (panel, labels) in [
            ("Finished stops by reason", json!({"reason": "RunStopped"})),
            ("Finished stops by reason", json!({"reason": "Rejected"})),
            ("Finished without success", json!({})),
            ("Requests by answer", json!({"purpose": "stop", "answer": "rate_limited"})),
            ("Requests by answer", json!({"purpose": "token", "answer": "token"})),
            ("Share of 429 answers", json!({"tenant": TENANT})),
            ("Budget closed for", json!({"tenant": TENANT})),
            ("Requests per second", json!({"tenant": OTHER_TENANT})),
            ("What unfinished stops wait for", json!({"waits_for": "run_end"})),
            ("Oldest stop not accepted", json!({})),
            ("From creation to the first request", json!({})),
            ("Request duration by purpose", json!({"purpose": "read"})),
            ("Status writes per minute", json!({"result": "stored"})),
            ("Kubernetes events per minute", json!({"result": "published"})),
        ] {
            let is_positive = async || fixture.maximum(panel, &labels, &values).await.filter(|value| 0.0 < *value);
            fixture.prometheus.poll(&format!("more than 0 in {panel} for {labels} with {values:?}"), is_positive).await;
        }
    }
    // Two jobs scrape the same replica, so it counts as two installations.
    let credentials = json!({"waits_for": "credentials"});
    for (panel, labels, expected) in [
        ("Replicas", &json!({}), 1.0),
        ("Leaders", &json!({}), 1.0),
        ("Panics", &json!({}), 0.0),
        ("What unfinished stops wait for", &credentials, 2.0),
    ] {
        assert_eq!(fixture.maximum(panel, labels, &of_job("text")).await, Some(expected), "{panel}");
        assert_eq!(fixture.maximum(panel, labels, &ALL).await, Some(2.0 * expected), "{panel}");
    }
}
