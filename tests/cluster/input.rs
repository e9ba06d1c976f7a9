//! Errors for invalid input: from the API server, in a condition, and on the command line.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
};

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use lab::{
    control_plane::User,
    simulator::Kind,
    table::table,
    testing::{Operator, TENANT, TestEnv, a_stop, condition, ends_at_once, is, message, ready},
};
use serde_json::{Value, json};
use tokio::process::Command;
use workflow_run_stop_api::{
    EXPIRING, UNFINISHED, WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason, StopResult},
};

use crate::clock::now;

const CRD: &str = include_str!("../../crds/workflowrunstops.yaml");

fn path(env: &TestEnv) -> String {
    format!("/apis/workflow.amperity.com/v1alpha1/namespaces/{}/workflowrunstops", env.namespace)
}

/// A manifest with the required fields only.
fn minimal_manifest(name: &str) -> Value {
    json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStop",
        "metadata": {"name": name},
        "spec": {"runId": "wf-20240619-14418-6UhqSe", "tenant": "acme2-max", "credentialsSecretRef": {"name": "amperity"}},
    })
}

/// The minimal manifest with one more field of the spec.
fn manifest_with(name: &str, field: &str, value: Value) -> Value {
    let mut stop = minimal_manifest(name);
    stop["spec"][field] = value;
    stop
}

/// Creates a resource of this manifest with strict field validation, as kubectl does.
async fn create(env: &TestEnv, stop: &Value) -> Result<WorkflowRunStop, String> {
    let body = serde_json::to_vec(stop).unwrap();
    let mut request = kube::core::Request::new(path(env)).create(&PostParams::default(), body).unwrap();
    *request.uri_mut() = format!("{}?fieldValidation=Strict", path(env)).parse().unwrap();
    api_message(env.client.request(request).await)
}

/// Sends a merge patch with strict field validation, as kubectl does.
async fn change(env: &TestEnv, name: &str, patch: &Value) -> Result<WorkflowRunStop, String> {
    let params = PatchParams::default().validation_strict();
    api_message(env.stops().patch(name, &params, &Patch::Merge(patch)).await)
}

/// Turns the error of the API server into its message.
fn api_message(answer: kube::Result<WorkflowRunStop>) -> Result<WorkflowRunStop, String> {
    answer.map_err(|error| {
        let kube::Error::Api(status) = error else { panic!("no response from the API server: {error}") };
        status.message
    })
}

#[track_caller]
fn assert_refused(answer: Result<WorkflowRunStop, String>, why: &str, what: &Value) {
    match answer {
        Ok(_) => panic!("{what} was accepted"),
        Err(message) => assert!(message.contains(why), "{what}\nwas refused with:\n{message}\nexpected:\n{why}"),
    }
}

#[tokio::test]
async fn an_invalid_run_id_is_refused_with_the_cause() {
    let env = TestEnv::new().await;
    let configuration = "runId names a configuration (cg-, og-, cc-); give the id of its run, which starts with wf-";
    let task = "runId names a task (wft-); give the id of the run that the task belongs to, which starts with wf-";
    let pattern = "runId may have only letters, digits, '.', '_', '~' and '-'; give the id of a run, such as wf-";
    let too_long = "a".repeat(129);
    for (run, why) in [
        ("cg-1", configuration),
        ("og-20240619-1", configuration),
        ("cc-abc", configuration),
        ("wft-20240619-1-9Kx3Qb", task),
        (".", "runId must not be '.' or '..'; give the id of a run"),
        ("..", "runId must not be '.' or '..'; give the id of a run"),
        ("", "spec.runId in body should be at least 1 chars long"),
        (&too_long, "spec.runId: Too long: may not be more than 128"),
        ("wf/1", pattern),
        ("wf 1", pattern),
        ("wf-1?x=1", pattern),
        ("wf%2F1", pattern),
        ("wf-1\n", pattern),
        ("wf-ä", pattern),
    ] {
        let stop = manifest_with("wrong", "runId", json!(run));
        assert_refused(create(&env, &stop).await, why, &stop["spec"]);
    }
    let longest = "a".repeat(128);
    for (number, run) in
        ["wf-20240619-14418-6UhqSe", "wf-123456A-78901-2bcd3e", "A._~-9", "cg", &longest].iter().enumerate()
    {
        create(&env, &manifest_with(&format!("right-{number}"), "runId", json!(run))).await.unwrap();
    }
}

#[tokio::test]
async fn invalid_values_of_other_fields_are_refused_with_the_cause() {
    let env = TestEnv::new().await;
    let tenant = "tenant may have only letters, digits, '-' and '_', and must begin and end with a letter or digit";
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
        // A number that the operator cannot deserialize would break its watch for every resource.
        ("stopDeadlineSeconds", json!(2_147_483_648_i64), "spec.stopDeadlineSeconds"),
        ("ttlSecondsAfterFinished", json!(2_147_483_648_i64), "spec.ttlSecondsAfterFinished"),
    ] {
        let stop = manifest_with("wrong", field, value);
        assert_refused(create(&env, &stop).await, why, &stop["spec"]);
    }
}

#[tokio::test]
async fn every_accepted_not_after_and_reason_can_be_read_by_the_operator() {
    let env = TestEnv::new().await;
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
        let stop = create(&env, &manifest_with(&format!("time-{number}"), "notAfter", json!(time))).await.unwrap();
        let expected: jiff::Timestamp = time.parse().unwrap();
        assert_eq!(stop.spec.not_after.unwrap().0, expected, "{time}");
    }
    for (number, reason) in ["x", "Wrong file, see OPS-17 \u{1f6d1}", &"\u{e9}".repeat(256)].iter().enumerate() {
        let stop = create(&env, &manifest_with(&format!("reason-{number}"), "reason", json!(reason))).await.unwrap();
        assert_eq!(stop.spec.reason.as_deref(), Some(*reason));
    }
    assert_eq!(env.stops().list(&ListParams::default()).await.unwrap().items.len(), 10);
}

#[tokio::test]
async fn a_stop_created_after_its_not_after_expires_without_any_request() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut stop = a_stop("wf-1");
    stop.spec.not_after = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    env.create(stop).await;
    let _operator = env.start_operator().await;
    let stop = env.wait_finished("wf-1").await;
    let expired = Reason::Expired;
    assert_eq!(ready(&stop), is(ConditionStatus::True, expired));
    assert_eq!(condition(&stop, ConditionType::Stalled), Default::default());
    assert_eq!(condition(&stop, ConditionType::StopAccepted), is(ConditionStatus::False, expired));
    assert_eq!(stop.status.unwrap().result, Some(StopResult::Expired));
    assert_eq!(env.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_stop_whose_not_after_passes_before_it_is_sent_fails_even_if_it_is_suspended() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator().await;
    let deadline = jiff::Timestamp::from_second(now().as_second() + 3).unwrap();
    for (name, suspend, secret) in [("wf-1", true, "amperity"), ("wf-2", false, "missing")] {
        let mut stop = a_stop(name);
        stop.spec.suspend = suspend;
        stop.spec.credentials_secret_ref.name = secret.to_owned();
        stop.spec.not_after = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(deadline));
        env.create(stop).await;
    }
    for name in ["wf-1", "wf-2"] {
        let stop = env.wait_finished(name).await;
        assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::DeadlineExceeded), "{name}");
        assert_eq!(stop.status.unwrap().result, Some(StopResult::Failed));
    }
    assert!(deadline <= now());
    assert_eq!(env.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_missing_or_unknown_field_is_refused_by_its_name() {
    let env = TestEnv::new().await;
    for field in ["runId", "tenant", "credentialsSecretRef"] {
        let mut stop = minimal_manifest("wrong");
        stop["spec"].as_object_mut().unwrap().remove(field);
        assert_refused(create(&env, &stop).await, &format!("spec.{field}: Required value"), &stop);
    }
    let nameless = manifest_with("wrong", "credentialsSecretRef", json!({}));
    assert_refused(create(&env, &nameless).await, "spec.credentialsSecretRef.name: Required value", &nameless);
    let mut empty = minimal_manifest("wrong");
    empty.as_object_mut().unwrap().remove("spec");
    assert_refused(create(&env, &empty).await, "spec: Required value", &empty);
    let unknown = manifest_with("wrong", "runID", json!("wf-1"));
    assert_refused(create(&env, &unknown).await, "unknown field \"spec.runID\"", &unknown);
    let inner = manifest_with("wrong", "credentialsSecretRef", json!({"name": "amperity", "namespace": "other"}));
    assert_refused(create(&env, &inner).await, "unknown field \"spec.credentialsSecretRef.namespace\"", &inner);
    create(&env, &minimal_manifest("right")).await.unwrap();
    let patch = json!({"spec": {"suspended": true}});
    assert_refused(change(&env, "right", &patch).await, "unknown field \"spec.suspended\"", &patch);
}

#[tokio::test]
async fn omitted_fields_have_their_documented_defaults() {
    let env = TestEnv::new().await;
    let spec = create(&env, &minimal_manifest("plain")).await.unwrap().spec;
    assert!(!spec.suspend);
    assert_eq!(spec.follow_timeout_seconds, 3600);
    assert_eq!((spec.base_url, spec.stop_deadline_seconds, spec.ttl_seconds_after_finished), (None, None, None));
}

#[tokio::test]
async fn run_id_tenant_base_url_not_after_and_reason_are_immutable() {
    let env = TestEnv::new().await;
    create(&env, &minimal_manifest("plain")).await.unwrap();
    let mut named = manifest_with("named", "baseUrl", json!("https://app.amperity.com/api"));
    named["spec"]["notAfter"] = json!("2026-11-26T06:00:00Z");
    named["spec"]["reason"] = json!("because");
    create(&env, &named).await.unwrap();
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
        ("named", "reason", json!("why not"), "reason is immutable; create a new WorkflowRunStop with another reason"),
        (
            "named",
            "baseUrl",
            json!("https://acme.amperity.com/api"),
            "baseUrl is immutable; create a new WorkflowRunStop for another endpoint",
        ),
    ] {
        let patch = json!({"spec": {field: value}});
        assert_refused(change(&env, name, &patch).await, why, &patch);
    }
}

#[tokio::test]
async fn the_spec_of_a_finished_resource_cannot_change_but_its_labels_can() {
    let env = TestEnv::new().await;
    create(&env, &minimal_manifest("wf-1")).await.unwrap();
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
        change(&env, "wf-1", &json!({"spec": spec})).await.unwrap();
    }
    change(&env, "wf-1", &reset).await.unwrap();
    let status = json!({"status": {"completionTime": "2026-01-01T00:00:00Z"}});
    env.stops().patch_status("wf-1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let why = "a finished WorkflowRunStop is a record and its spec cannot change; create a new one to stop a run again";
    for spec in &changes {
        let patch = json!({"spec": spec});
        assert_refused(change(&env, "wf-1", &patch).await, why, &patch);
    }
    let labelled = change(&env, "wf-1", &json!({"metadata": {"labels": {"team": "data"}}})).await.unwrap();
    assert_eq!(labelled.metadata.labels.unwrap()["team"], "data");
}

#[tokio::test]
async fn field_selectors_list_the_matching_resources() {
    let env = TestEnv::new().await;
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
        let mut stop = manifest_with(name, "tenant", json!(tenant));
        stop["spec"]["ttlSecondsAfterFinished"] = json!(seconds);
        create(&env, &stop).await.unwrap();
        if let Some(status) = status {
            env.write_status(name, status).await;
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
        let found = env.stops().list(&ListParams::default().fields(selector)).await.unwrap();
        let found: Vec<_> = found.items.iter().map(WorkflowRunStop::name).collect();
        assert_eq!(found, expected, "{selector}");
    }
    assert_eq!(
        (UNFINISHED, EXPIRING),
        ("status.completionTime=", "status.completionTime!=,spec.ttlSecondsAfterFinished!=")
    );
}

/// Collects the properties without a description and the formats that API servers do not know.
fn collect_schema_gaps(schema: &Value, path: &str, lacking: &mut Vec<String>) {
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
        collect_schema_gaps(property, &path, lacking);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            collect_schema_gaps(&schema[inner], &format!("{path}[]"), lacking);
        }
    }
}

#[test]
fn every_schema_property_has_a_description_and_a_known_format() {
    let crd: Value = serde_yaml_ng::from_str(CRD).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["properties"]["spec"]["properties"]["runId"].is_object());
    let mut lacking = vec![];
    collect_schema_gaps(schema, "", &mut lacking);
    assert_eq!(lacking, Vec::<String>::new());
}

#[tokio::test]
async fn a_list_shows_the_documented_columns() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator().await;
    env.create(a_stop("wf-1")).await;
    env.wait_finished("wf-1").await;
    let lines = async |wide| {
        let text = table(&env.client, &path(&env), wide).await.unwrap();
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect::<Vec<Vec<_>>>()
    };
    let narrow = lines(false).await;
    assert_eq!(narrow[0], ["NAME", "RUN", "TENANT", "STATE", "RESULT", "READY", "REASON", "AGE"]);
    assert_eq!(narrow[1][..7], ["wf-1", "wf-1", TENANT, "canceled", "Stopped", "True", "RunStopped"]);
    let wide = lines(true).await;
    assert_eq!(wide[0][8..], ["ACCEPTED", "ATTEMPTS", "MESSAGE"]);
    assert_eq!(wide[1][9], "1");
    assert_eq!(wide[1][10..].join(" "), "The run is stopped: state canceled.");
}

#[tokio::test]
async fn unusable_credentials_are_reported_and_read_again() {
    let env = TestEnv::new().await;
    env.put_secret("keyless", &[("password", "hush-hush")]).await;
    env.put_secret("half", &[("clientId", "good-client")]).await;
    env.put_secret("unusable", &[("token", "hush hush")]).await;
    let cases = [
        ("missing", "there is no Secret missing"),
        ("keyless", "the Secret keyless: it has neither the key token nor the keys clientId and clientSecret"),
        ("half", "the Secret half: it has neither the key token nor the keys clientId and clientSecret"),
        ("unusable", "the Secret unusable: its key token is empty or has characters that cannot be sent"),
    ];
    let run = |secret: &str| format!("wf-{secret}");
    let _operator = env.start_operator().await;
    for (secret, _) in cases {
        env.amperity.add_run(TENANT, ends_at_once(&run(secret)));
        let mut stop = a_stop(&run(secret));
        stop.spec.credentials_secret_ref.name = secret.to_owned();
        env.create(stop).await;
    }
    for (secret, why) in cases {
        let stop = env.wait_for_reason(&run(secret), Reason::CredentialsMissing).await;
        assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::CredentialsMissing));
        assert_eq!(condition(&stop, ConditionType::Reconciling), is(ConditionStatus::True, Reason::CredentialsMissing));
        assert_eq!(
            condition(&stop, ConditionType::StopAccepted),
            is(ConditionStatus::False, Reason::CredentialsMissing)
        );
        let message = message(&stop, ConditionType::Ready);
        assert!(message.contains(why), "{message}");
        assert!(message.contains("it needs the key token, or the keys clientId and clientSecret"), "{message}");
        assert!(!message.contains("hush"), "{message}");
        assert!(!stop.is_finished());
    }
    assert_eq!(env.amperity.requests().len(), 0);
    for (secret, _) in cases {
        env.put_secret(secret, &[("token", "good-token")]).await;
    }
    for (secret, _) in cases {
        let stop = env.wait_finished(&run(secret)).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
        assert_eq!(env.amperity.stops(&run(secret)), 1);
    }
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_reported_and_gets_no_request() {
    let env = TestEnv::with_amperity(lab::simulator::Simulator::start_tls().await).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    // The administrator chose the operator's default base URL. A resource that names the same host is still checked.
    let _operator = env.start_operator().await;
    let mut stop = a_stop("wf-1");
    stop.spec.base_url = Some(env.amperity.base_url());
    env.create(stop).await;
    let stop = env.wait_for_reason("wf-1", Reason::EndpointNotAllowed).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::EndpointNotAllowed));
    assert_eq!(condition(&stop, ConditionType::Stalled), Default::default());
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("'localhost'") && message.contains("--allowed-hosts"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(stop.status.unwrap().stop_request, None);
    assert_eq!(env.amperity.requests().len(), 0);
}

#[tokio::test]
async fn a_token_url_that_is_not_allowed_is_reported_and_gets_no_client_secret() {
    let env = TestEnv::new().await;
    let elsewhere = lab::simulator::Simulator::start().await;
    let secret = |url: &str| {
        [("clientId", "good-client"), ("clientSecret", "good-secret"), ("tokenUrl", url)]
            .map(|(key, value)| (key, value.to_owned()))
    };
    let put = async |url: &str| {
        let secret = secret(url);
        env.put_secret("amperity", &secret.each_ref().map(|(key, value)| (*key, value.as_str()))).await;
    };
    put(&format!("{}/api/v0/oauth2/token", elsewhere.origin())).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator().await;
    env.create(a_stop("wf-1")).await;
    let stop = env.wait_for_reason("wf-1", Reason::EndpointNotAllowed).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::EndpointNotAllowed));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("tokenUrl of the Secret"), "{message}");
    assert!(!stop.is_finished());
    put(&format!("{}/api/v0/oauth2/token", env.amperity.origin())).await;
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(elsewhere.requests().len(), 0);
    let kinds: Vec<_> = env.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop]);
}

#[tokio::test]
async fn an_unknown_api_version_is_reported_as_unauthorized() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator_with(&["--amperity-api-version", "nonsense"]).await;
    env.create(a_stop("wf-1")).await;
    let stop = env.wait_for_reason("wf-1", Reason::Unauthorized).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Unauthorized));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("Invalid API version identifier"), "{message}");
    assert!(message.contains("check the operator's --amperity-api-version"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(env.amperity.requests()[0].header("api-version"), Some("nonsense"));
    assert_eq!(env.amperity.effects("wf-1"), 0);
}

#[tokio::test]
async fn an_api_version_that_is_no_longer_supported_finishes_the_stop_as_rejected() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = env.start_operator_with(&["--amperity-api-version", "2023-01-01"]).await;
    env.create(a_stop("wf-1")).await;
    let stop = env.wait_finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Rejected));
    assert_eq!(condition(&stop, ConditionType::Stalled), is(ConditionStatus::True, Reason::Rejected));
    let message = message(&stop, ConditionType::Ready);
    assert!(message.contains("API version no longer supported"), "{message}");
    assert_eq!(env.request_counts("wf-1"), (1, 0, 2), "a 400 may mean that the run has ended, so the run is read");
}

/// Runs the binary without a cluster until it exits.
async fn run_binary(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Operator::command(&PathBuf::from("/nowhere/kubeconfig"));
    command.args(args).envs(variables.iter().copied()).kill_on_drop(true);
    run_to_exit(command).await
}

async fn run_to_exit(mut command: Command) -> Output {
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), command.output()).await;
    output.unwrap_or_else(|_| panic!("{command:?} did not exit")).unwrap()
}

/// Checks the exit code and returns the only line on stderr.
#[track_caller]
fn error_line(output: &Output, code: i32, what: &str) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{what}: {stdout}{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    stderr.trim_end().to_owned()
}

#[tokio::test]
async fn an_invalid_flag_or_variable_is_reported_in_one_line_with_exit_code_2() {
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
        let line = error_line(&run_binary(args, &[]).await, 2, &format!("{args:?}"));
        assert!(line.to_lowercase().contains(why), "{args:?}: {line}");
        assert!(!line.contains("hush"), "{line}");
    }
    for (name, value) in [
        ("REQUESTS_PER_SECOND", "0"),
        ("AMPERITY_BASE_URL", "nonsense"),
        ("LOG_FORMAT", "xml"),
        // A word that is no level would be a target, and silence everything else.
        ("RUST_LOG", "inf"),
    ] {
        error_line(&run_binary(&[], &[(name, value)]).await, 2, name);
    }
}

#[tokio::test]
async fn an_api_version_that_is_no_valid_header_value_is_an_invalid_flag() {
    let line = error_line(&run_binary(&["--amperity-api-version", "2024\n04"], &[]).await, 2, "two lines");
    assert!(line.to_lowercase().contains("api version") || line.contains("--amperity-api-version"), "{line}");
}

#[tokio::test]
async fn help_and_version_are_printed_with_exit_code_0() {
    let help = run_binary(&["--help"], &[]).await;
    let text = String::from_utf8(help.stdout).unwrap();
    assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
    for flag in [
        "--amperity-base-url",
        "--amperity-api-version",
        "--allowed-hosts",
        "--requests-per-second",
        "--max-unfinished-per-namespace",
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
    let version = run_binary(&["--version"], &[]).await;
    assert_eq!(version.status.code(), Some(0));
    let expected = concat!("workflow-run-stop-operator ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}

#[tokio::test]
async fn the_printed_crd_is_the_one_in_the_repository() {
    let output = run_binary(&["crd"], &[]).await;
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed == CRD, "crds/workflowrunstops.yaml is out of date: cargo run -- crd > crds/workflowrunstops.yaml");
}

#[tokio::test]
async fn a_missing_cluster_is_reported_with_exit_code_1() {
    let line = error_line(&run_binary(&[], &[]).await, 1, "no cluster");
    assert!(line.contains("no access to a Kubernetes cluster") && line.contains("set KUBECONFIG"), "{line}");
    let mut command = Operator::command(&PathBuf::new());
    command.env_remove("KUBECONFIG").env("HOME", "/nowhere");
    let line = error_line(&run_to_exit(command).await, 1, "no kubeconfig");
    assert!(line.contains("no access to a Kubernetes cluster"), "{line}");
}

#[tokio::test]
async fn an_http_address_in_use_is_reported_with_exit_code_1() {
    let env = TestEnv::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = env.operator_command();
    command.args(["--http-addr", &address]);
    let line = error_line(&run_to_exit(command).await, 1, "an address in use");
    assert!(line.contains(&format!("cannot serve on {address}")), "{line}");
}

#[tokio::test]
async fn check_reports_whether_the_resources_can_be_listed() {
    let env = TestEnv::new().await;
    let mut command = env.operator_command();
    command.arg("check");
    let output = run_to_exit(command).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok: WorkflowRunStops can be listed\n");
    let mut command = env.operator_command();
    command.arg("check").env("KUBECONFIG", env.cluster.kubeconfig_for(User::Stranger));
    let line = error_line(&run_to_exit(command).await, 1, "no permission to list");
    assert!(line.contains("is forbidden") && line.contains("this account may list them"), "{line}");
    assert_eq!(line.matches("forbidden").count(), 1, "{line}");
    let mut command = Operator::command(&PathBuf::from("/nowhere/kubeconfig"));
    command.arg("check");
    error_line(&run_to_exit(command).await, 1, "no cluster");
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_reported_with_exit_code_1() {
    let env = TestEnv::new().await;
    for file in
        [Path::new("/nowhere/authority.pem"), Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").as_path()]
    {
        let mut command = env.operator_command();
        command.env("SSL_CERT_FILE", file);
        let line = error_line(&run_to_exit(command).await, 1, "no certificates");
        assert!(line.contains(&format!("SSL_CERT_FILE names {}", file.display())), "{line}");
    }
}
