//! A real Prometheus scrapes a real operator at work, once in text and once with native histograms; it is asked what the
//! alerts and the dashboard ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lab::simulator::{ErrorBody, Fault, RetryAfter, Run, Took};
use serde_json::{Value, json};
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::{
    ALERT_TESTS, ALERTS, alerts,
    dashboard::{self, Query, filled},
    prometheus::{Job, Prometheus},
    read,
    support::{Operator, Place, TENANT, a_stop, ends_at_once, ready},
};

const PREFIX: &str = "workflow_run_stop_operator_";

/// As Prometheus does where nothing else is said, and with native histograms, which it gets as protobuf.
const JOBS: [Job; 2] =
    [("text", "scrape_protocols: [OpenMetricsText1.0.0]"), ("native", "scrape_native_histograms: true")];

const OTHER_TENANT: &str = "globex";

/// What is watched.
struct Scene {
    prometheus: Prometheus,
    begun: String,
    _operator: Operator,
    _place: Place,
}

fn stop_of(tenant: &str, run: &str, secret: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.tenant = tenant.to_owned();
    stop.spec.credentials_secret_ref.name = secret.to_owned();
    stop
}

impl Scene {
    /// An operator that stopped a run, one after a 429 and one for another tenant, had a stop rejected, follows a run,
    /// and has a stop that waits for its Secret; all of it scraped.
    async fn new() -> Self {
        let place = Place::new().await;
        let operator = place.operator_with(&["--log-format", "json"]).await;
        let address = operator.http_addr().await;
        let rules = format!("{}/{ALERTS}", env!("CARGO_MANIFEST_DIR"));
        let prometheus = Prometheus::start(&address, &JOBS, &rules).await;
        let begun = prometheus.now().await;

        // First what waits, so that the counters of the tenants are scraped at zero.
        place.put_secret("client", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
        place
            .apply_all([TENANT, OTHER_TENANT].map(|tenant| stop_of(tenant, &format!("wf-waits-{tenant}"), "none")))
            .await;
        for tenant in [TENANT, OTHER_TENANT] {
            place.reason(&format!("wf-waits-{tenant}"), Reason::CredentialsMissing).await;
        }
        let scraped = format!("count({PREFIX}unfinished{{waits_for=\"credentials\"}} == 1) == {}", 2 * JOBS.len());
        prometheus.finds(&scraped).await;

        place.amperity.add_run(TENANT, Run::new("wf-stopped"));
        place.amperity.add_run(TENANT, ends_at_once("wf-limited"));
        place.amperity.add_run(TENANT, Run::new("wf-rejected"));
        place.amperity.add_run(TENANT, Run::new("wf-followed").stops_in(Duration::from_secs(600)));
        place.amperity.add_run(OTHER_TENANT, Run::new("wf-other"));
        place.amperity.on_stop("wf-limited", [Fault::TooManyRequests { retry_after: RetryAfter::Seconds(3) }]);
        let refusal = Fault::Status { code: 400, effect: Took::NoEffect, body: ErrorBody::ErrorJson };
        place.amperity.on_stop("wf-rejected", [refusal]);
        place.apply(stop_of(TENANT, "wf-followed", "amperity")).await;
        place.reason("wf-followed", Reason::FollowingRun).await;
        place.apply_all([stop_of(TENANT, "wf-limited", "amperity"), stop_of(OTHER_TENANT, "wf-other", "client")]).await;
        place.finished("wf-limited").await;
        place.apply_all(["wf-stopped", "wf-rejected"].map(|run| stop_of(TENANT, run, "client"))).await;
        for (run, reason) in [
            ("wf-limited", Reason::RunStopped),
            ("wf-other", Reason::RunStopped),
            ("wf-stopped", Reason::RunStopped),
            ("wf-rejected", Reason::Rejected),
        ] {
            assert_eq!(ready(&place.finished(run).await).1, reason.as_str(), "{run}");
        }
        for (job, _) in JOBS {
            prometheus.finds(&format!("sum({PREFIX}finished_total{{job={job:?}}}) == 4")).await;
        }
        Self { prometheus, begun, _operator: operator, _place: place }
    }

    /// What a panel of Grafana gets for a query.
    async fn shown(&self, query: &Query, values: &[(&str, &str)]) -> Vec<Value> {
        let expr = filled(&query.expr, values);
        let end = self.prometheus.now().await;
        let answer = if query.instant {
            self.prometheus.ask("query", &[("query", &expr), ("time", &end)]).await
        } else {
            let range = [("query", expr.as_str()), ("start", self.begun.as_str()), ("end", &end), ("step", "1")];
            self.prometheus.ask("query_range", &range).await
        };
        let answer = answer.unwrap_or_else(|error| panic!("{}: {expr}: {error}", query.panel));
        answer["result"].as_array().unwrap().clone()
    }

    /// The greatest value that a panel ever showed in series with these labels; where it shows none, nothing.
    async fn greatest(&self, panel: &str, labels: &Value, values: &[(&str, &str)]) -> Option<f64> {
        let mut greatest: Option<f64> = None;
        for query in dashboard::queries().into_iter().filter(|query| query.panel == panel) {
            for series in self.shown(&Query { instant: false, ..query }, values).await {
                let metric = series["metric"].as_object().unwrap();
                let fits = labels.as_object().unwrap().iter().all(|(label, value)| metric.get(label) == Some(value));
                for point in series["values"].as_array().into_iter().flatten().filter(|_| fits) {
                    let value: f64 = point[1].as_str().unwrap().parse().unwrap();
                    greatest = Some(greatest.map_or(value, |known| known.max(value)));
                }
            }
        }
        greatest
    }
}

/// What Grafana puts in for "All".
const ALL: [(&str, &str); 3] = [("namespace", ".*"), ("job", ".*"), ("tenant", ".*")];

/// The names after the prefix in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let ends = |c: char| !(c.is_ascii_lowercase() || c == '_');
    let names = text.split(PREFIX).skip(1).map(|rest| rest.split(ends).next().unwrap().to_owned());
    names.collect()
}

/// The words that a text compares a label to, or gives it.
fn words_in(text: &str, label: &str) -> BTreeSet<String> {
    let words = text.split(label).skip(1).filter_map(|rest| {
        let operator = rest.chars().take_while(|c| "=!~".contains(*c)).count();
        rest.get(operator..)?.strip_prefix('"').filter(|_| 0 < operator)?.split('"').next()
    });
    words.flat_map(|words| words.split('|')).map(str::to_owned).collect()
}

#[tokio::test]
async fn prometheus_gets_what_alerts_and_dashboard_ask_for() {
    let scene = Scene::new().await;
    let prometheus = &scene.prometheus;

    // Every target is up, and nothing is wrong with what it tells.
    let healthy = async || {
        let targets = prometheus.ask("targets", &[]).await.unwrap()["activeTargets"].as_array().unwrap().clone();
        let up = |target: &Value| target["health"] == "up" && target["lastError"] == "";
        (targets.len() == JOBS.len() && targets.iter().all(up)).then_some(())
    };
    prometheus.until("all targets were up", healthy).await;

    // Native histograms, and nothing but native ones where those were asked for.
    let native = format!("histogram_count({PREFIX}request_duration_seconds{{job=\"native\",purpose=\"stop\"}}) > 0");
    assert_eq!(prometheus.query(&native).await.len(), 2, "of both tenants");
    let buckets = format!("count by (job) ({{__name__=~\"{PREFIX}.*_bucket\"}})");
    let buckets = prometheus.query(&buckets).await;
    assert_eq!(buckets.iter().map(|found| found["metric"]["job"].clone()).collect::<Vec<_>>(), ["text"]);
    for name in ["request_duration_seconds", "created_to_sent_seconds", "accepted_to_ended_seconds"] {
        let count = format!("sum({PREFIX}{name}_count{{job=\"text\"}})");
        let same = format!("{count} == sum(histogram_count({PREFIX}{name}{{job=\"native\"}})) and {count} > 0");
        prometheus.finds(&same).await;
    }

    // The rules are loaded, evaluated and healthy.
    let evaluated = async || {
        let rules = prometheus.ask("rules", &[]).await.unwrap();
        let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
        let rules: Vec<_> = rules.cloned().collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    };
    let rules = prometheus.until("all rules were evaluated", evaluated).await;
    assert_eq!(rules.iter().map(|rule| rule["name"].as_str().unwrap()).collect::<Vec<_>>(), alerts::names());
    for rule in &rules {
        assert_eq!((&rule["health"], &rule["lastError"]), (&json!("ok"), &Value::Null), "{rule:#}");
    }
    // The stops without a Secret are noticed, of each tenant and job by itself; nothing has lasted long enough to fire.
    for (tenant, job) in [TENANT, OTHER_TENANT].into_iter().flat_map(|tenant| JOBS.map(|(job, _)| (tenant, job))) {
        let name = "WorkflowRunStopCredentialsRefused";
        let noticed = format!("ALERTS{{alertname={name:?},tenant={tenant:?},job={job:?},alertstate=\"pending\"}}");
        prometheus.finds(&noticed).await;
    }
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\"}").await, Vec::<Value>::new());

    every_name_is_one_that_the_operator_tells(prometheus).await;
    every_query_shows_something(&scene).await;
    panels_show_what_happened(&scene).await;
}

/// A query for what does not exist finds nothing, without a complaint.
async fn every_name_is_one_that_the_operator_tells(prometheus: &Prometheus) {
    let queries = dashboard::queries().into_iter().map(|query| query.expr).chain(alerts::queries());
    let asked: String = queries.chain([read(ALERT_TESTS)]).collect::<Vec<_>>().join("\n");
    let known = prometheus.values("__name__").await;
    for name in metrics_in(&asked) {
        assert!(known.contains(&format!("{PREFIX}{name}")), "{name} is no metric");
    }
    for label in ["answer", "purpose", "reason", "waits_for", "result"] {
        let known = prometheus.values(label).await;
        let words = words_in(&asked, label);
        for word in &words {
            assert!(known.contains(word), "{label}={word:?} is in no metric; there are {known:?}");
        }
        assert!(!words.is_empty() || ["purpose", "result"].contains(&label), "{label}");
    }
    for (name, metric, label) in dashboard::variables() {
        let metric = filled(&metric, &ALL);
        let values = prometheus.ask(&format!("label/{label}/values"), &[("match[]", &metric)]).await.unwrap();
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

/// Whatever is chosen, and however Prometheus scrapes.
async fn every_query_shows_something(scene: &Scene) {
    let mut queries = BTreeMap::<String, Vec<Query>>::new();
    for query in dashboard::queries() {
        queries.entry(query.id.clone()).or_default().push(query);
    }
    for values in [ALL, of_job("text"), of_job("native")] {
        for (id, queries) in &queries {
            let shows = async || {
                for query in queries {
                    if !scene.shown(query, &values).await.is_empty() {
                        return Some(());
                    }
                }
                None
            };
            scene.prometheus.until(&format!("showed something in {id} with {values:?}"), shows).await;
        }
    }
}

async fn panels_show_what_happened(scene: &Scene) {
    for values in JOBS.map(|(job, _)| of_job(job)) {
        for (panel, labels) in [
            ("Ends by reason", json!({"reason": "RunStopped"})),
            ("Ends by reason", json!({"reason": "Rejected"})),
            ("Ended without success", json!({})),
            ("Requests by answer", json!({"purpose": "stop", "answer": "rate_limited"})),
            ("Requests by answer", json!({"purpose": "token", "answer": "token"})),
            ("Share of 429", json!({"tenant": TENANT})),
            ("Closed for", json!({"tenant": TENANT})),
            ("Requests per second", json!({"tenant": OTHER_TENANT})),
            ("What unfinished stops wait for", json!({"waits_for": "run_end"})),
            ("Oldest not accepted", json!({})),
            ("From creation to the first request", json!({})),
            ("How long requests take, by purpose", json!({"purpose": "read"})),
            ("Status writes per minute", json!({"result": "stored"})),
            ("Kubernetes events per minute", json!({"result": "published"})),
        ] {
            let shows = async || scene.greatest(panel, &labels, &values).await.filter(|value| 0.0 < *value);
            scene.prometheus.until(&format!("showed more than 0 in {panel} of {labels} with {values:?}"), shows).await;
        }
    }
    // Two jobs scrape the same replica, as if there were two installations.
    let credentials = json!({"waits_for": "credentials"});
    for (panel, labels, of_one) in [
        ("Replicas", &json!({}), 1.0),
        ("Leading", &json!({}), 1.0),
        ("Panics", &json!({}), 0.0),
        ("What unfinished stops wait for", &credentials, 2.0),
    ] {
        assert_eq!(scene.greatest(panel, labels, &of_job("text")).await, Some(of_one), "{panel}");
        assert_eq!(scene.greatest(panel, labels, &ALL).await, Some(2.0 * of_one), "{panel}");
    }
}
