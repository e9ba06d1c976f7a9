//! Checks tests/gitops/states.json, the input of the health checks in tests/gitops: every state in it is written by the
//! operator's own code, and every reason occurs. `UPDATE=1 cargo test --test pure gitops` writes the file.

use std::{collections::HashSet, fs, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResourceExt;
use serde_json::{Value, json};
use workflow_run_stop_api::{
    Claim, WorkflowRunStop, WorkflowRunStopSpec, conditions::Reason, workflow_run::TaskInstance,
};
use workflow_run_stop_operator::{
    amperity::{
        answer::{ReadAnswer, ReadFailure, ResponseInfo, StopAnswer},
        run::Run,
    },
    reconcile::{
        decide::{Ending, Established},
        outcome::{Retry, claimed, confirmed, finished, followed, stop_answered, waiting},
        status_builder::StepTime,
    },
};

const STATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gitops/states.json");

fn step_time() -> StepTime {
    StepTime { now: Timestamp::from_second(1_800_000_000).unwrap(), jitter: 0.5, settle_time: Duration::from_secs(30) }
}

fn response(status: u16) -> ResponseInfo {
    ResponseInfo { status, message: None, request_id: None, own: true }
}

fn run(state: &str) -> Box<Run> {
    let tasks: Option<Vec<TaskInstance>> = Some(vec![]);
    Box::new(Run { id: "wf-1".into(), state: state.into(), tasks, ..Run::default() })
}

fn new() -> WorkflowRunStop {
    let mut stop = WorkflowRunStop::new("stop-nightly", WorkflowRunStopSpec::new("wf-1", "acme2-max", "amperity"));
    stop.metadata.namespace = Some("default".into());
    stop.metadata.generation = Some(1);
    let crd = serde_json::to_value(WorkflowRunStop::crd()).unwrap();
    let default = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"];
    stop.status = serde_json::from_value(default.clone()).unwrap();
    stop
}

fn waiting_with(reason: Reason) -> WorkflowRunStop {
    let mut stop = new();
    stop.spec.suspend = reason == Reason::Suspended;
    stop.status = Some(waiting(&stop, reason, "", step_time()));
    stop
}

fn requested() -> WorkflowRunStop {
    let claim = Claim { id: "c".into(), holder: "pod-1".into(), time: Time(step_time().now), ended: None };
    let mut stop = new();
    stop.status =
        Some(claimed(&stop, claim, "https://app.amperity.com/api/workflow/runs/wf-1/stop".into(), step_time()));
    stop
}

fn answered(answer: &StopAnswer) -> WorkflowRunStop {
    let mut stop = requested();
    stop.status = Some(stop_answered(&stop, answer, Retry::Backoff, step_time()));
    stop
}

fn accepted(state: &str) -> WorkflowRunStop {
    answered(&StopAnswer::Accepted(Some(run(state)), response(200)))
}

fn read(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    stop.status = Some(followed(&stop, answer, Established::default(), step_time()));
    stop
}

/// Reads the run once more, after the same answer the settle time ago.
fn read_again(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    let established = Established { active: true, unreadable: true };
    stop.status = Some(if stop.claim().is_some() {
        confirmed(&stop, answer, established, 0, step_time())
    } else {
        followed(&stop, answer, established, step_time())
    });
    stop
}

fn confirm(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    stop.status = Some(confirmed(&stop, answer, Established::default(), 0, step_time()));
    stop
}

fn being_deleted(mut stop: WorkflowRunStop) -> WorkflowRunStop {
    stop.metadata.deletion_timestamp = Some(Time(step_time().now));
    stop
}

fn finish(mut stop: WorkflowRunStop, ending: Ending) -> WorkflowRunStop {
    stop.status = Some(finished(&stop, ending, step_time()));
    stop
}

fn states() -> Vec<(&'static str, WorkflowRunStop)> {
    let mut changed = waiting_with(Reason::Suspended);
    changed.spec.suspend = false;
    changed.metadata.generation = Some(2);
    let unavailable = ReadAnswer::Failed(ReadFailure::Unavailable("503".into(), None));
    let unreadable = ReadAnswer::Unreadable(response(403));
    let no_answer = || answered(&StopAnswer::NoAnswer("connection reset".into()));
    let conflict = || answered(&StopAnswer::Conflict(response(409)));
    let redirected = || answered(&StopAnswer::Redirected(response(302), "https://login.example.com".into()));
    let gateway = || answered(&StopAnswer::Foreign(ResponseInfo { own: false, ..response(404) }));
    let is = |state| ReadAnswer::Run(run(state));
    vec![
        ("created, not seen by the operator yet", new()),
        ("changed, not seen by the operator yet", changed),
        ("suspended", waiting_with(Reason::Suspended)),
        ("waits for its turn (WaitingForBudget)", waiting_with(Reason::WaitingForBudget)),
        ("waits for older stops of its namespace (NamespaceLimit)", waiting_with(Reason::NamespaceLimit)),
        ("waits for a Secret (CredentialsMissing)", waiting_with(Reason::CredentialsMissing)),
        ("waits for another host (EndpointNotAllowed)", waiting_with(Reason::EndpointNotAllowed)),
        ("the request is on its way (StopRequested)", requested()),
        ("refused for now (Unauthorized)", answered(&StopAnswer::Unauthorized(response(401)))),
        ("refused for now (Forbidden)", answered(&StopAnswer::Forbidden(response(403)))),
        ("refused for now (RateLimited)", answered(&StopAnswer::RateLimited(response(429), Duration::from_secs(1)))),
        ("refused for now (Conflict)", confirm(conflict(), &is("running"))),
        ("not sent (Unreachable)", answered(&StopAnswer::NotSent("no route".into()))),
        ("answered with a 409, to be confirmed (Conflict)", conflict()),
        ("answered with a 5xx, to be confirmed (Unavailable)", answered(&StopAnswer::ServerError(response(503), None))),
        ("without an answer, to be confirmed (OutcomeUnknown)", no_answer()),
        ("without an answer, and still running (OutcomeUnknown)", confirm(no_answer(), &is("running"))),
        ("without an answer, and confirming fails (Unavailable)", confirm(no_answer(), &unavailable)),
        ("without an answer, and unreadable once (OutcomeUnknown)", confirm(no_answer(), &unreadable)),
        ("answered by a gateway, to be confirmed (OutcomeUnknown)", gateway()),
        ("answered by a gateway, and still running (UnexpectedAnswer)", read_again(gateway(), &is("running"))),
        ("answered with a redirect, to be confirmed (OutcomeUnknown)", redirected()),
        ("confirmed, the run is stopping (FollowingRun)", confirm(no_answer(), &is("stopping"))),
        ("accepted, the run is stopping (FollowingRun)", accepted("stopping")),
        ("accepted, and reading fails (Unavailable)", read(accepted("stopping"), &unavailable)),
        ("accepted, and unreadable once (FollowingRun)", read(accepted("stopping"), &unreadable)),
        ("finished: RunStopped", finish(accepted("canceled"), Ending::Ended)),
        ("finished: RunEndedOtherwise", finish(accepted("succeeded"), Ending::Ended)),
        ("finished: RunUnreadable", read_again(accepted("stopping"), &unreadable)),
        ("finished: StopAccepted, not followed", finish(accepted("stopping"), Ending::NotFollowed)),
        ("finished: Expired", finish(new(), Ending::Expired)),
        ("finished: RunStillActive", finish(accepted("stopping"), Ending::StillActive)),
        ("finished: RunNotFound", answered(&StopAnswer::NotFound(response(404)))),
        ("finished: Rejected", answered(&StopAnswer::Rejected(response(410)))),
        ("finished: UnexpectedAnswer", read_again(redirected(), &is("running"))),
        ("finished: OutcomeUnknown", read_again(no_answer(), &unreadable)),
        ("finished: DeadlineExceeded", finish(waiting_with(Reason::CredentialsMissing), Ending::DeadlineExceeded)),
        ("being deleted, unfinished", being_deleted(accepted("stopping"))),
        ("being deleted, finished", being_deleted(finish(accepted("canceled"), Ending::Ended))),
    ]
}

#[test]
fn the_gitops_states_are_up_to_date_with_the_operator() {
    let states = states().into_iter().map(|(name, resource)| json!({"name": name, "resource": resource}));
    let written = serde_json::to_string_pretty(&states.collect::<Vec<Value>>()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(STATES, &written).unwrap();
    }
    let stored = fs::read_to_string(STATES).unwrap_or_default();
    assert!(stored == written, "tests/gitops/states.json is out of date: run UPDATE=1 cargo test --test pure gitops");
}

#[test]
fn every_reason_of_a_condition_occurs_in_a_gitops_state() {
    let states = states();
    let conditions = states.iter().flat_map(|(_, stop)| &stop.status.as_ref().unwrap().conditions);
    let shown: HashSet<_> = conditions.map(|condition| &*condition.reason).collect();
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Undecodable) {
        assert!(shown.contains(reason.as_str()), "no state has the reason {}", reason.as_str());
    }
}
