//! What a person hears who asks for something wrong: of `kubectl apply`, in a condition, at the command line.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
};

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use lab::{control_plane::User, simulator::Kind, table::table};
use serde_json::{Value, json};
use tokio::process::Command;
use workflow_run_stop_api::{
    EXPIRING, UNFINISHED, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason, StopResult},
};

use crate::clock::now;
use crate::support::{Operator, Place, TENANT, a_stop, condition, ends_at_once, is, message, ready};

const CRD: &str = include_str!("../../crds/workflowrunstops.yaml");

fn path(place: &Place) -> String {
    format!("/apis/workflow.amperity.com/v1alpha1/namespaces/{}/workflowrunstops", place.namespace)
}

/// A stop as a person writes it: only what is required.
fn written(name: &str) -> Value {
    json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStop",
        "metadata": {"name": name},
        "spec": {"runId": "wf-20240619-14418-6UhqSe", "tenant": "acme2-max", "credentialsSecretRef": {"name": "amperity"}},
    })
}

/// The same with one field of the spec set.
fn with(name: &str, field: &str, value: Value) -> Value {
    let mut stop = written(name);
    stop["spec"][field] = value;
    stop
}

/// Creates what is written, with strict validation as kubectl asks for it.
async fn create(place: &Place, stop: &Value) -> Result<WorkflowRunStop, String> {
    let body = serde_json::to_vec(stop).unwrap();
    let mut request = kube::core::Request::new(path(place)).create(&PostParams::default(), body).unwrap();
    *request.uri_mut() = format!("{}?fieldValidation=Strict", path(place)).parse().unwrap();
    said(place.client.request(request).await)
}

/// Merges this into a stored stop, with strict validation as kubectl asks for it.
async fn change(place: &Place, name: &str, patch: &Value) -> Result<WorkflowRunStop, String> {
    let params = PatchParams::default().validation_strict();
    said(place.stops().patch(name, &params, &Patch::Merge(patch)).await)
}

/// What the API server answered instead.
fn said(answer: kube::Result<WorkflowRunStop>) -> Result<WorkflowRunStop, String> {
    answer.map_err(|error| {
        let kube::Error::Api(status) = error else { panic!("no answer of the API server: {error}") };
        status.message
    })
}

#[track_caller]
fn assert_refused(answer: Result<WorkflowRunStop, String>, why: &str, what: &Value) {
    match answer {
        Ok(_) => panic!("{what} was accepted"),
        Err(message) => assert!(message.contains(why), "{what}\nis refused with:\n{message}\nwithout:\n{why}"),
    }
}

#[tokio::test]
async fn apply_says_what_is_wrong_with_a_run_id() {
    let place = Place::new().await;
    let configuration = "runId names a configuration (cg-, og-, cc-); give the id of its run, which starts with wf-";
    let task = "runId names a task (wft-); give the id of the run that the task belongs to, which starts with wf-";
    let pattern = "runId may have only letters, digits, '.', '_', '~' and '-'; give the id of a run, such as wf-";
    let too_long = "a".repeat(129);
    for (run, why) in [
        ("cg-1", configuration),
        ("og-20240619-1", configuration),
        ("cc-abc", configuration),
        ("wft-20240619-1-9Kx3Qb", task),
        (".", "runId must be the id of a run"),
        ("..", "runId must be the id of a run"),
        ("", "spec.runId in body should be at least 1 chars long"),
        (&too_long, "spec.runId: Too long: may not be more than 128"),
        ("wf/1", pattern),
        ("wf 1", pattern),
        ("wf-1?x=1", pattern),
        ("wf%2F1", pattern),
        ("wf-1\n", pattern),
        ("wf-ä", pattern),
    ] {
        let stop = with("wrong", "runId", json!(run));
        assert_refused(create(&place, &stop).await, why, &stop["spec"]);
    }
    let longest = "a".repeat(128);
    for (number, run) in
        ["wf-20240619-14418-6UhqSe", "wf-123456A-78901-2bcd3e", "A._~-9", "cg", &longest].iter().enumerate()
    {
        create(&place, &with(&format!("right-{number}"), "runId", json!(run))).await.unwrap();
    }
}

#[tokio::test]
async fn apply_says_what_is_wrong_with_the_other_fields() {
    let place = Place::new().await;
    let tenant = "tenant may have only letters, digits, '-' and '_', and begins and ends with a letter or digit";
    let base_url = "baseUrl must be an https URL without user, query and fragment, such as https://";
    let (long_tenant, long_url) = ("a".repeat(64), format!("https://app.amperity.com/{}", "a".repeat(1000)));
    for (field, value, why) in [
        ("tenant", json!(""), "spec.tenant in body should be at least 1 chars long"),
        ("tenant", json!(long_tenant), "spec.tenant: Too long: may not be more than 63"),
        ("tenant", json!("-acme"), tenant),
        ("tenant", json!("acme-"), tenant),
        ("tenant", json!("acme.evil"), tenant),
        ("tenant", json!("acme/x"), tenant),
        ("tenant", json!("ac me"), tenant),
        ("baseUrl", json!("http://app.amperity.com/api"), base_url),
        ("baseUrl", json!("app.amperity.com"), base_url),
        ("baseUrl", json!("https://user@app.amperity.com/api"), base_url),
        ("baseUrl", json!("https://app.amperity.com/api?x=1"), base_url),
        ("baseUrl", json!("https://app.amperity.com/api#x"), base_url),
        ("baseUrl", json!(""), base_url),
        ("baseUrl", json!(long_url), "spec.baseUrl: Too long: may not be more than 1024"),
        ("stopDeadlineSeconds", json!(-1), "spec.stopDeadlineSeconds in body should be greater than or equal to 1"),
        ("stopDeadlineSeconds", json!(0), "spec.stopDeadlineSeconds in body should be greater than or equal to 1"),
        ("followTimeoutSeconds", json!(-1), "spec.followTimeoutSeconds in body should be greater than or equal to 0"),
        (
            "followTimeoutSeconds",
            json!(604_801),
            "spec.followTimeoutSeconds in body should be less than or equal to 604800",
        ),
        (
            "ttlSecondsAfterFinished",
            json!(-1),
            "spec.ttlSecondsAfterFinished in body should be greater than or equal to 0",
        ),
        ("followTimeoutSeconds", json!("1h"), "spec.followTimeoutSeconds in body must be of type integer"),
        ("suspend", json!("yes"), "spec.suspend in body must be of type boolean"),
        (
            "credentialsSecretRef",
            json!({"name": ""}),
            "spec.credentialsSecretRef.name in body should be at least 1 chars long",
        ),
        ("credentialsSecretRef", json!({"name": "Not_A_Name"}), "spec.credentialsSecretRef.name in body should match"),
        ("credentialsSecretRef", json!({"name": "a/b"}), "spec.credentialsSecretRef.name in body should match"),
        ("notAfter", json!("tomorrow"), "spec.notAfter"),
        ("notAfter", json!("2026-11-26"), "spec.notAfter"),
        ("notAfter", json!("2026-11-26T06:00:00"), "spec.notAfter"),
        ("notAfter", json!("2026-13-26T06:00:00Z"), "spec.notAfter"),
        ("notAfter", json!("2026-11-26T06:00:60Z"), "spec.notAfter"),
        ("notAfter", json!("2026-11-26t06:00:00z"), "spec.notAfter in body should match"),
        ("notAfter", json!("2026-11-26T06:00:00+0100"), "spec.notAfter"),
        ("notAfter", json!("1999-12-31T23:59:59Z"), "notAfter must lie between the years 2000 and 2200"),
        ("notAfter", json!("2200-01-01T00:00:00Z"), "notAfter must lie between the years 2000 and 2200"),
        ("reason", json!(""), "spec.reason in body should be at least 1 chars long"),
        ("reason", json!("a".repeat(257)), "spec.reason: Too long: may not be more than 256"),
        ("reason", json!("two\nlines"), "reason must be one line without control characters"),
        ("reason", json!("\u{1b}[2J"), "reason must be one line without control characters"),
        ("reason", json!("two\u{2028}lines"), "reason must be one line without control characters"),
        // What no number of the operator can hold would break its watch for every resource.
        ("stopDeadlineSeconds", json!(2_147_483_648_i64), "spec.stopDeadlineSeconds"),
        ("ttlSecondsAfterFinished", json!(2_147_483_648_i64), "spec.ttlSecondsAfterFinished"),
    ] {
        let stop = with("wrong", field, value);
        assert_refused(create(&place, &stop).await, why, &stop["spec"]);
    }
}

#[tokio::test]
async fn every_not_after_and_reason_that_the_cluster_takes_can_be_read_by_the_operator() {
    let place = Place::new().await;
    for (number, time) in [
        "2026-11-26T06:00:00Z",
        "2026-11-26T06:00:00.123456789Z",
        "2026-11-26T06:00:00+05:30",
        "2026-11-26T06:00:00-12:00",
        "2024-02-29T23:59:59Z",
        "2000-01-01T00:00:00Z",
        "2199-12-31T23:59:59Z",
    ]
    .iter()
    .enumerate()
    {
        let stop = create(&place, &with(&format!("time-{number}"), "notAfter", json!(time))).await.unwrap();
        let expected: jiff::Timestamp = time.parse().unwrap();
        assert_eq!(stop.spec.not_after.unwrap().0, expected, "{time}");
    }
    for (number, reason) in ["x", "Wrong file, see OPS-17 \u{1f6d1}", &"\u{e9}".repeat(256)].iter().enumerate() {
        let stop = create(&place, &with(&format!("reason-{number}"), "reason", json!(reason))).await.unwrap();
        assert_eq!(stop.spec.reason.as_deref(), Some(*reason));
    }
    assert_eq!(place.stops().list(&ListParams::default()).await.unwrap().items.len(), 10);
}

#[tokio::test]
async fn a_stop_that_is_created_after_its_not_after_expires_and_asks_for_nothing() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut stop = a_stop("wf-1");
    stop.spec.not_after = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    place.apply(stop).await;
    let _operator = place.operator().await;
    let stop = place.finished("wf-1").await;
    let expired = Reason::Expired;
    assert_eq!(ready(&stop), is(ConditionStatus::True, expired));
    assert_eq!(condition(&stop, ConditionType::Stalled), Default::default());
    assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::False, expired));
    assert_eq!(stop.status.unwrap().result, Some(StopResult::Expired));
    assert_eq!(place.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_stop_whose_not_after_passes_before_it_is_sent_fails_also_while_it_is_suspended() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator().await;
    let soon = jiff::Timestamp::from_second(now().as_second() + 3).unwrap();
    for (name, suspend, secret) in [("wf-1", true, "amperity"), ("wf-2", false, "missing")] {
        let mut stop = a_stop(name);
        stop.spec.suspend = suspend;
        stop.spec.credentials_secret_ref.name = secret.to_owned();
        stop.spec.not_after = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(soon));
        place.apply(stop).await;
    }
    for name in ["wf-1", "wf-2"] {
        let stop = place.finished(name).await;
        assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::DeadlineExceeded), "{name}");
        assert_eq!(stop.status.unwrap().result, Some(StopResult::Failed));
    }
    assert!(soon <= now());
    assert_eq!(place.amperity.requests().len(), 0);
}

#[tokio::test]
async fn apply_says_which_field_is_missing_or_unknown() {
    let place = Place::new().await;
    for field in ["runId", "tenant", "credentialsSecretRef"] {
        let mut stop = written("wrong");
        stop["spec"].as_object_mut().unwrap().remove(field);
        assert_refused(create(&place, &stop).await, &format!("spec.{field}: Required value"), &stop);
    }
    let nameless = with("wrong", "credentialsSecretRef", json!({}));
    assert_refused(create(&place, &nameless).await, "spec.credentialsSecretRef.name: Required value", &nameless);
    let mut empty = written("wrong");
    empty.as_object_mut().unwrap().remove("spec");
    assert_refused(create(&place, &empty).await, "spec: Required value", &empty);
    let unknown = with("wrong", "runID", json!("wf-1"));
    assert_refused(create(&place, &unknown).await, "unknown field \"spec.runID\"", &unknown);
    let inner = with("wrong", "credentialsSecretRef", json!({"name": "amperity", "namespace": "other"}));
    assert_refused(create(&place, &inner).await, "unknown field \"spec.credentialsSecretRef.namespace\"", &inner);
    create(&place, &written("right")).await.unwrap();
    let patch = json!({"spec": {"suspended": true}});
    assert_refused(change(&place, "right", &patch).await, "unknown field \"spec.suspended\"", &patch);
}

#[tokio::test]
async fn what_is_left_out_has_its_documented_default() {
    let place = Place::new().await;
    let spec = create(&place, &written("plain")).await.unwrap().spec;
    assert!(!spec.suspend);
    assert_eq!(spec.follow_timeout_seconds, 3600);
    assert_eq!((spec.base_url, spec.stop_deadline_seconds, spec.ttl_seconds_after_finished), (None, None, None));
}

#[tokio::test]
async fn what_names_the_run_is_immutable() {
    let place = Place::new().await;
    create(&place, &written("plain")).await.unwrap();
    let mut named = with("named", "baseUrl", json!("https://app.amperity.com/api"));
    named["spec"]["notAfter"] = json!("2026-11-26T06:00:00Z");
    named["spec"]["reason"] = json!("because");
    create(&place, &named).await.unwrap();
    let not_after = "notAfter cannot be added or removed; delete this WorkflowRunStop and create a new one";
    let reason = "reason cannot be added or removed; delete this WorkflowRunStop and create a new one";
    let presence = "baseUrl cannot be added or removed; delete this WorkflowRunStop and create a new one";
    for (name, field, value, why) in [
        ("plain", "runId", json!("wf-2"), "runId is immutable; create a new WorkflowRunStop for another run"),
        ("plain", "tenant", json!("globex"), "tenant is immutable; create a new WorkflowRunStop for another tenant"),
        ("plain", "baseUrl", json!("https://app.amperity.com/api"), presence),
        ("named", "baseUrl", json!(null), presence),
        ("plain", "notAfter", json!("2026-11-26T06:00:00Z"), not_after),
        ("named", "notAfter", json!(null), not_after),
        (
            "named",
            "notAfter",
            json!("2026-11-26T07:00:00Z"),
            "notAfter is immutable; create a new WorkflowRunStop with another deadline",
        ),
        ("plain", "reason", json!("because"), reason),
        ("named", "reason", json!(null), reason),
        ("named", "reason", json!("why not"), "reason is immutable; create a new WorkflowRunStop to state another one"),
        (
            "named",
            "baseUrl",
            json!("https://acme.amperity.com/api"),
            "baseUrl is immutable; create a new WorkflowRunStop for another endpoint",
        ),
    ] {
        let patch = json!({"spec": {field: value}});
        assert_refused(change(&place, name, &patch).await, why, &patch);
    }
}

#[tokio::test]
async fn a_finished_resource_is_a_record_whose_labels_alone_can_change() {
    let place = Place::new().await;
    create(&place, &written("wf-1")).await.unwrap();
    let changes = [
        json!({"credentialsSecretRef": {"name": "another"}}),
        json!({"suspend": true}),
        json!({"stopDeadlineSeconds": 60}),
        json!({"followTimeoutSeconds": 60}),
        json!({"ttlSecondsAfterFinished": 60}),
    ];
    let reset = json!({"spec": {"credentialsSecretRef": {"name": "amperity"}, "suspend": false,
        "stopDeadlineSeconds": null, "followTimeoutSeconds": 3600, "ttlSecondsAfterFinished": null}});
    for spec in &changes {
        change(&place, "wf-1", &json!({"spec": spec})).await.unwrap();
    }
    change(&place, "wf-1", &reset).await.unwrap();
    let status = json!({"status": {"completionTime": "2026-01-01T00:00:00Z"}});
    place.stops().patch_status("wf-1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let why = "a finished WorkflowRunStop is a record and its spec cannot change; create a new one to stop a run again";
    for spec in &changes {
        let patch = json!({"spec": spec});
        assert_refused(change(&place, "wf-1", &patch).await, why, &patch);
    }
    let labelled = change(&place, "wf-1", &json!({"metadata": {"labels": {"team": "data"}}})).await.unwrap();
    assert_eq!(labelled.metadata.labels.unwrap()["team"], "data");
}

#[tokio::test]
async fn field_selectors_list_the_right_ones() {
    let place = Place::new().await;
    let finished = WorkflowRunStopStatus {
        completion_time: serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap(),
        result: Some(StopResult::Stopped),
        ..WorkflowRunStopStatus::default()
    };
    let unfinished = WorkflowRunStopStatus { state: Some("running".to_owned()), ..WorkflowRunStopStatus::default() };
    for (name, seconds, tenant, status) in [
        ("new", None, "acme", None),
        ("begun", Some(60), "acme", Some(&unfinished)),
        ("finished", None, "globex", Some(&finished)),
        ("expiring", Some(60), "acme", Some(&finished)),
        ("expired", Some(0), "globex", Some(&finished)),
    ] {
        let mut stop = with(name, "tenant", json!(tenant));
        stop["spec"]["ttlSecondsAfterFinished"] = json!(seconds);
        create(&place, &stop).await.unwrap();
        if let Some(status) = status {
            place.put_status(name, status).await;
        }
    }
    for (selector, expected) in [
        ("status.completionTime=", &["begun", "new"][..]),
        ("status.completionTime!=", &["expired", "expiring", "finished"]),
        ("spec.tenant=globex", &["expired", "finished"]),
        ("status.result=Stopped", &["expired", "expiring", "finished"]),
        ("status.result=Unknown", &[]),
        ("status.completionTime!=,spec.ttlSecondsAfterFinished!=", &["expired", "expiring"]),
    ] {
        let found = place.stops().list(&ListParams::default().fields(selector)).await.unwrap();
        let found: Vec<_> = found.items.iter().map(WorkflowRunStop::name).collect();
        assert_eq!(found, expected, "{selector}");
    }
    assert_eq!(
        (UNFINISHED, EXPIRING),
        ("status.completionTime=", "status.completionTime!=,spec.ttlSecondsAfterFinished!=")
    );
}

/// What a schema lacks: a description of a property, or a format that API servers know.
fn lacks(schema: &Value, path: &str, lacking: &mut Vec<String>) {
    if let Some(format) = schema["format"].as_str()
        && !["int32", "int64", "date-time"].contains(&format)
    {
        lacking.push(format!("{path} has the format {format}"));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if property["description"].as_str().is_none_or(str::is_empty) {
            lacking.push(format!("{path} has no description"));
        }
        lacks(property, &path, lacking);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            lacks(&schema[inner], &format!("{path}[]"), lacking);
        }
    }
}

#[test]
fn every_property_of_the_schema_is_described() {
    let crd: Value = serde_yaml_ng::from_str(CRD).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["properties"]["spec"]["properties"]["runId"].is_object());
    let mut lacking = vec![];
    lacks(schema, "", &mut lacking);
    assert_eq!(lacking, Vec::<String>::new());
}

#[tokio::test]
async fn a_list_shows_the_documented_columns() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    place.finished("wf-1").await;
    let lines = async |wide| {
        let text = table(&place.client, &path(&place), wide).await.unwrap();
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect::<Vec<Vec<_>>>()
    };
    let narrow = lines(false).await;
    assert_eq!(narrow[0], ["NAME", "RUN", "TENANT", "STATE", "RESULT", "READY", "REASON", "AGE"]);
    assert_eq!(narrow[1][..7], ["wf-1", "wf-1", TENANT, "canceled", "Stopped", "True", "RunStopped"]);
    let wide = lines(true).await;
    assert_eq!(wide[0][8..], ["ACCEPTED", "ATTEMPTS", "MESSAGE"]);
    assert_eq!(wide[1][9], "1");
    assert_eq!(wide[1][10..].join(" "), "The run is stopped: its state is canceled.");
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_told_and_looked_up_again() {
    let place = Place::new().await;
    place.put_secret("keyless", &[("password", "hush-hush")]).await;
    place.put_secret("half", &[("clientId", "good-client")]).await;
    place.put_secret("unusable", &[("token", "hush hush")]).await;
    let cases = [
        ("missing", "there is no Secret missing"),
        ("keyless", "the Secret keyless: it has neither the key token nor the keys clientId and clientSecret"),
        ("half", "the Secret half: it has neither the key token nor the keys clientId and clientSecret"),
        ("unusable", "the Secret unusable: its key token is empty or has characters that cannot be sent"),
    ];
    let run = |secret: &str| format!("wf-{secret}");
    let _operator = place.operator().await;
    for (secret, _) in cases {
        place.amperity.add_run(TENANT, ends_at_once(&run(secret)));
        let mut stop = a_stop(&run(secret));
        stop.spec.credentials_secret_ref.name = secret.to_owned();
        place.apply(stop).await;
    }
    for (secret, why) in cases {
        let stop = place.reason(&run(secret), Reason::CredentialsMissing).await;
        assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::CredentialsMissing));
        assert_eq!(condition(&stop, ConditionType::Reconciling), is(ConditionStatus::True, Reason::CredentialsMissing));
        assert_eq!(
            condition(&stop, ConditionType::StopAccepted),
            is(ConditionStatus::False, Reason::CredentialsMissing)
        );
        let message = message(&stop, ConditionType::Ready);
        assert!(message.contains(why), "{message}");
        assert!(
            message.contains(
                "Give the Secret, in the namespace of this resource, the key token, or clientId and clientSecret"
            ),
            "{message}"
        );
        assert!(!message.contains("hush"), "{message}");
        assert!(!stop.is_finished());
    }
    assert_eq!(place.amperity.requests().len(), 0);
    for (secret, _) in cases {
        place.put_secret(secret, &[("token", "good-token")]).await;
    }
    for (secret, _) in cases {
        let stop = place.finished(&run(secret)).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
        assert_eq!(place.amperity.stops(&run(secret)), 1);
    }
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_told_and_gets_nothing() {
    let place = Place::with(lab::simulator::Simulator::start_tls().await).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    // The operator's own base URL is the administrator's choice; a resource that names the same host is not.
    let _operator = place.operator().await;
    let mut stop = a_stop("wf-1");
    stop.spec.base_url = Some(place.amperity.base_url());
    place.apply(stop).await;
    let stop = place.reason("wf-1", Reason::EndpointNotAllowed).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::EndpointNotAllowed));
    assert_eq!(condition(&stop, ConditionType::Stalled), Default::default());
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("'localhost'") && message.contains("--allowed-hosts"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(stop.status.unwrap().stop_request, None);
    assert_eq!(place.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_token_url_that_is_not_allowed_is_told_and_gets_no_secret() {
    let place = Place::new().await;
    let elsewhere = lab::simulator::Simulator::start().await;
    let secret = |url: &str| {
        [("clientId", "good-client"), ("clientSecret", "good-secret"), ("tokenUrl", url)]
            .map(|(key, value)| (key, value.to_owned()))
    };
    let put = async |url: &str| {
        let secret = secret(url);
        place.put_secret("amperity", &secret.each_ref().map(|(key, value)| (*key, value.as_str()))).await;
    };
    put(&format!("{}/api/v0/oauth2/token", elsewhere.origin())).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    let stop = place.reason("wf-1", Reason::EndpointNotAllowed).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::EndpointNotAllowed));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("tokenUrl of the Secret"), "{message}");
    assert!(!stop.is_finished());
    put(&format!("{}/api/v0/oauth2/token", place.amperity.origin())).await;
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(elsewhere.requests().len(), 0);
    let kinds: Vec<_> = place.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop]);
}

#[tokio::test]
async fn an_api_version_that_does_not_exist_looks_like_a_wrong_token() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator_with(&["--amperity-api-version", "nonsense"]).await;
    place.apply(a_stop("wf-1")).await;
    let stop = place.reason("wf-1", Reason::Unauthorized).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Unauthorized));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("Invalid API version identifier"), "{message}");
    assert!(message.contains("check that it belongs to this tenant"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(place.amperity.requests()[0].header("api-version"), Some("nonsense"));
    assert_eq!(place.amperity.effects("wf-1"), 0);
}

#[tokio::test]
async fn an_api_version_that_is_no_longer_supported_is_rejected_for_good() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator_with(&["--amperity-api-version", "2023-01-01"]).await;
    place.apply(a_stop("wf-1")).await;
    let stop = place.finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Rejected));
    assert_eq!(condition(&stop, ConditionType::Stalled), is(ConditionStatus::True, Reason::Rejected));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("API version no longer supported"), "{message}");
    assert_eq!(place.sent("wf-1"), (1, 0, 2), "a 400 may mean that the run has ended, so that it is read");
}

/// Runs the binary to its end, far from any cluster.
async fn outcome(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Operator::command(&PathBuf::from("/nowhere/kubeconfig"));
    command.args(args).envs(variables.iter().copied()).kill_on_drop(true);
    ended(command).await
}

async fn ended(mut command: Command) -> Output {
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), command.output()).await;
    output.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap()
}

/// The one line on stderr of an operator that ended with this code.
#[track_caller]
fn complaint(output: &Output, code: i32, what: &str) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{what}: {stdout}{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    stderr.trim_end().to_owned()
}

#[tokio::test]
async fn a_wrong_flag_or_variable_costs_one_line_and_exit_code_2() {
    for (args, why) in [
        (&["--requests-per-second", "0"][..], "--requests-per-second"),
        (&["--requests-per-second", "1001"], "--requests-per-second"),
        (&["--requests-per-second", "ten"], "--requests-per-second"),
        (&["--request-timeout", "0s"], "--request-timeout"),
        (&["--settle-time", "2h"], "--settle-time"),
        (&["--drain-timeout", "soon"], "--drain-timeout"),
        (&["--amperity-base-url", "nonsense"], "--amperity-base-url"),
        (&["--amperity-base-url", "ftp://app.amperity.com/api"], "--amperity-base-url"),
        (&["--amperity-base-url", "https://app.amperity.com/api?x=1"], "--amperity-base-url"),
        (&["--amperity-base-url", "https://user:hush@app.amperity.com/api"], "--amperity-base-url"),
        (&["--allowed-hosts", "https://app.amperity.com"], "--allowed-hosts"),
        (&["--http-addr", "8080"], "--http-addr"),
        (&["--log-format", "xml"], "--log-format"),
        (&["--leader-elect=maybe"], "--leader-elect"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["stop"], "stop"),
        (&["run", "--settle-time"], "--settle-time"),
    ] {
        let line = complaint(&outcome(args, &[]).await, 2, &format!("{args:?}"));
        assert!(line.to_lowercase().contains(why), "{args:?}: {line}");
        assert!(!line.contains("hush"), "{line}");
    }
    for (name, value) in [("REQUESTS_PER_SECOND", "0"), ("AMPERITY_BASE_URL", "nonsense"), ("LOG_FORMAT", "xml")] {
        complaint(&outcome(&[], &[(name, value)]).await, 2, name);
    }
}

#[tokio::test]
async fn an_api_version_that_no_header_can_carry_is_a_wrong_flag() {
    let line = complaint(&outcome(&["--amperity-api-version", "2024\n04"], &[]).await, 2, "two lines");
    assert!(line.to_lowercase().contains("api version") || line.contains("--amperity-api-version"), "{line}");
}

#[tokio::test]
async fn help_and_version_are_printed_and_end_well() {
    let help = outcome(&["--help"], &[]).await;
    let text = String::from_utf8(help.stdout).unwrap();
    assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
    for flag in [
        "--amperity-base-url",
        "--amperity-api-version",
        "--allowed-hosts",
        "--requests-per-second",
        "--request-timeout",
        "--settle-time",
        "--watch-namespaces",
        "--leader-elect",
        "--lease-name",
        "--lease-namespace",
        "--http-addr",
        "--log-format",
        "--drain-timeout",
    ] {
        let variable = flag.trim_start_matches('-').replace('-', "_").to_uppercase();
        assert!(text.contains(flag) && text.contains(&format!("[env: {variable}=")), "{flag} in\n{text}");
    }
    let version = outcome(&["--version"], &[]).await;
    assert_eq!(version.status.code(), Some(0));
    let expected = concat!("workflow-run-stop-operator ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}

#[tokio::test]
async fn the_printed_crd_is_the_one_in_the_repository() {
    let output = outcome(&["crd"], &[]).await;
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed == CRD, "crds/workflowrunstops.yaml is out of date: cargo run -- crd > crds/workflowrunstops.yaml");
}

#[tokio::test]
async fn without_a_cluster_it_says_so_and_ends() {
    let line = complaint(&outcome(&[], &[]).await, 1, "no cluster");
    assert!(line.contains("no access to a Kubernetes cluster") && line.contains("set KUBECONFIG"), "{line}");
    let mut command = Operator::command(&PathBuf::new());
    command.env_remove("KUBECONFIG").env("HOME", "/nowhere");
    let line = complaint(&ended(command).await, 1, "nothing that names a cluster");
    assert!(line.contains("no access to a Kubernetes cluster"), "{line}");
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let place = Place::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = place.command();
    command.args(["--http-addr", &address]);
    let line = complaint(&ended(command).await, 1, "an address in use");
    assert!(line.contains(&format!("cannot serve on {address}")), "{line}");
}

#[tokio::test]
async fn check_says_whether_the_resources_can_be_listed() {
    let place = Place::new().await;
    let mut command = place.command();
    command.arg("check");
    let output = ended(command).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the API server answers, and WorkflowRunStops can be listed\n");
    let mut command = place.command();
    command.arg("check").env("KUBECONFIG", place.cluster.kubeconfig_for(User::Stranger));
    let line = complaint(&ended(command).await, 1, "no right to list");
    assert!(line.contains("is forbidden") && line.contains("let this account list them"), "{line}");
    assert_eq!(line.matches("forbidden").count(), 1, "{line}");
    let mut command = Operator::command(&PathBuf::from("/nowhere/kubeconfig"));
    command.arg("check");
    complaint(&ended(command).await, 1, "no cluster");
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_told() {
    let place = Place::new().await;
    for file in
        [Path::new("/nowhere/authority.pem"), Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").as_path()]
    {
        let mut command = place.command();
        command.env("SSL_CERT_FILE", file);
        let line = complaint(&ended(command).await, 1, "no certificates");
        assert!(line.contains(&format!("SSL_CERT_FILE names {}", file.display())), "{line}");
    }
}
