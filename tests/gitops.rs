//! Holds the states that the judges of tests/gitops are shown: they are what the operator writes, and all it can say.
//! `UPDATE=1 cargo test --test gitops` writes them anew.
#![allow(clippy::unwrap_used, missing_docs)]

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

fn said(status: u16) -> ResponseInfo {
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

fn waits(reason: Reason) -> WorkflowRunStop {
    let mut stop = new();
    stop.spec.suspend = reason == Reason::Suspended;
    stop.status = Some(waiting(&stop, reason, "", step_time()));
    stop
}

fn called() -> WorkflowRunStop {
    let claim = Claim { id: "c".into(), holder: "pod-1".into(), time: Time(step_time().now), ended: None };
    let mut stop = new();
    stop.status =
        Some(claimed(&stop, claim, "https://app.amperity.com/api/workflow/runs/wf-1/stop".into(), step_time()));
    stop
}

fn answered(answer: &StopAnswer) -> WorkflowRunStop {
    let mut stop = called();
    stop.status = Some(stop_answered(&stop, answer, Retry::Backoff, step_time()));
    stop
}

fn accepted(state: &str) -> WorkflowRunStop {
    answered(&StopAnswer::Accepted(Some(run(state)), said(200)))
}

fn read(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    stop.status = Some(followed(&stop, answer, Established::default(), step_time()));
    stop
}

/// The run has been unreadable, or active, for the settle time, and is so again.
fn again(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    let established = Established { active: true, unreadable: true };
    stop.status = Some(if stop.claim().is_some() {
        confirmed(&stop, answer, established, 0, step_time())
    } else {
        followed(&stop, answer, established, step_time())
    });
    stop
}

fn confirms(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    stop.status = Some(confirmed(&stop, answer, Established::default(), 0, step_time()));
    stop
}

fn deleted(mut stop: WorkflowRunStop) -> WorkflowRunStop {
    stop.metadata.deletion_timestamp = Some(Time(step_time().now));
    stop
}

fn ends(mut stop: WorkflowRunStop, ending: Ending) -> WorkflowRunStop {
    stop.status = Some(finished(&stop, ending, step_time()));
    stop
}

fn states() -> Vec<(&'static str, WorkflowRunStop)> {
    let mut changed = waits(Reason::Suspended);
    changed.spec.suspend = false;
    changed.metadata.generation = Some(2);
    let unavailable = ReadAnswer::Failed(ReadFailure::Unavailable("503".into(), None));
    let unreadable = ReadAnswer::Unreadable(said(403));
    let no_answer = || answered(&StopAnswer::NoAnswer("connection reset".into()));
    let conflict = || answered(&StopAnswer::Conflict(said(409)));
    let redirected = || answered(&StopAnswer::Redirected(said(302), "https://login.example.com".into()));
    let gateway = || answered(&StopAnswer::Foreign(ResponseInfo { own: false, ..said(404) }));
    let is = |state| ReadAnswer::Run(run(state));
    vec![
        ("created, not seen by the operator yet", new()),
        ("changed, not seen by the operator yet", changed),
        ("suspended", waits(Reason::Suspended)),
        ("waits for its turn (WaitingForBudget)", waits(Reason::WaitingForBudget)),
        ("waits for a Secret (CredentialsMissing)", waits(Reason::CredentialsMissing)),
        ("waits for another host (EndpointNotAllowed)", waits(Reason::EndpointNotAllowed)),
        ("the request is on its way (StopRequested)", called()),
        ("refused for now (Unauthorized)", answered(&StopAnswer::Unauthorized(said(401)))),
        ("refused for now (Forbidden)", answered(&StopAnswer::Forbidden(said(403)))),
        ("refused for now (RateLimited)", answered(&StopAnswer::RateLimited(said(429), None))),
        ("refused for now (Conflict)", confirms(conflict(), &is("running"))),
        ("not sent (Unreachable)", answered(&StopAnswer::NotSent("no route".into()))),
        ("answered with a 409, to be confirmed (Conflict)", conflict()),
        ("answered with a 5xx, to be confirmed (Unavailable)", answered(&StopAnswer::ServerError(said(503), None))),
        ("without an answer, to be confirmed (OutcomeUnknown)", no_answer()),
        ("without an answer, and still running (OutcomeUnknown)", confirms(no_answer(), &is("running"))),
        ("without an answer, and confirming fails (Unavailable)", confirms(no_answer(), &unavailable)),
        ("without an answer, and unreadable once (OutcomeUnknown)", confirms(no_answer(), &unreadable)),
        ("answered by a gateway, to be confirmed (OutcomeUnknown)", gateway()),
        ("answered by a gateway, and still running (UnexpectedAnswer)", again(gateway(), &is("running"))),
        ("answered with a redirect, to be confirmed (OutcomeUnknown)", redirected()),
        ("confirmed, the run is stopping (FollowingRun)", confirms(no_answer(), &is("stopping"))),
        ("accepted, the run is stopping (FollowingRun)", accepted("stopping")),
        ("accepted, and reading fails (Unavailable)", read(accepted("stopping"), &unavailable)),
        ("accepted, and unreadable once (FollowingRun)", read(accepted("stopping"), &unreadable)),
        ("finished: RunStopped", ends(accepted("canceled"), Ending::Ended)),
        ("finished: RunEndedOtherwise", ends(accepted("succeeded"), Ending::Ended)),
        ("finished: RunUnreadable", again(accepted("stopping"), &unreadable)),
        ("finished: StopAccepted, not followed", ends(accepted("stopping"), Ending::NotFollowed)),
        ("finished: Expired", ends(new(), Ending::Expired)),
        ("finished: RunStillActive", ends(accepted("stopping"), Ending::StillActive)),
        ("finished: RunNotFound", answered(&StopAnswer::NotFound(said(404)))),
        ("finished: Rejected", answered(&StopAnswer::Rejected(said(410)))),
        ("finished: UnexpectedAnswer", again(redirected(), &is("running"))),
        ("finished: OutcomeUnknown", again(no_answer(), &unreadable)),
        ("finished: DeadlineExceeded", ends(waits(Reason::CredentialsMissing), Ending::DeadlineExceeded)),
        ("being deleted, unfinished", deleted(accepted("stopping"))),
        ("being deleted, finished", deleted(ends(accepted("canceled"), Ending::Ended))),
    ]
}

#[test]
fn the_states_that_gitops_tools_are_shown_are_what_the_operator_writes() {
    let states = states().into_iter().map(|(name, resource)| json!({"name": name, "resource": resource}));
    let written = serde_json::to_string_pretty(&states.collect::<Vec<Value>>()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(STATES, &written).unwrap();
    }
    let known = fs::read_to_string(STATES).unwrap_or_default();
    assert!(known == written, "tests/gitops/states.json is out of date: UPDATE=1 cargo test --test gitops");
}

#[test]
fn every_reason_is_shown() {
    let states = states();
    let conditions = states.iter().flat_map(|(_, stop)| &stop.status.as_ref().unwrap().conditions);
    let shown: HashSet<_> = conditions.map(|condition| &*condition.reason).collect();
    for reason in Reason::ALL {
        assert!(shown.contains(reason.as_str()), "no state has the reason {}", reason.as_str());
    }
}
