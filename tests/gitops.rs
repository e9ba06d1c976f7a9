//! Holds the states that GitOps tools are shown in tests/gitops: they are what the operator writes.
//! `UPDATE=1 cargo test --test gitops` writes them anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use workflow_run_stop_operator::{
    amperity::answer::{ReadAnswer, ReadFailure, Said, StopAnswer},
    resource::{Claim, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus, conditions::Reason},
    run::{Run, TaskInstance},
    stop::{
        decide::{ActiveRead, Ending},
        draft::Moment,
        outcome::{Retry, claimed, confirmed, finished, followed, stop_answered, waiting},
    },
};

const STATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gitops/states.json");

fn moment() -> Moment {
    Moment { now: Timestamp::from_second(1_800_000_000).unwrap(), jitter: 0.5, settle_time: Duration::from_secs(30) }
}

fn said(status: u16) -> Said {
    Said { status, message: None, request_id: None }
}

fn run(state: &str) -> Box<Run> {
    let tasks: Option<Vec<TaskInstance>> = Some(vec![]);
    Box::new(Run { id: "wf-1".into(), state: state.into(), tasks, ..Run::default() })
}

fn new() -> WorkflowRunStop {
    let mut stop = WorkflowRunStop::new("stop-nightly", WorkflowRunStopSpec::new("wf-1", "acme2-max", "amperity"));
    stop.metadata.namespace = Some("default".into());
    stop.metadata.generation = Some(1);
    // The CRD's default.
    stop.status = Some(WorkflowRunStopStatus { observed_generation: Some(-1), ..WorkflowRunStopStatus::default() });
    stop
}

fn waits(reason: Reason) -> WorkflowRunStop {
    let mut stop = new();
    stop.spec.suspend = reason == Reason::Suspended;
    stop.status = Some(waiting(&stop, reason, "", moment()));
    stop
}

fn called() -> WorkflowRunStop {
    let claim = Claim { id: "c".into(), holder: "pod-1".into(), time: Time(moment().now), ended: None };
    let mut stop = new();
    stop.status = Some(claimed(&stop, claim, "https://app.amperity.com/api/workflow/runs/wf-1/stop".into(), moment()));
    stop
}

fn answered(answer: &StopAnswer) -> WorkflowRunStop {
    let mut stop = called();
    stop.status = Some(stop_answered(&stop, answer, Retry::Backoff, moment()));
    stop
}

fn accepted(state: &str) -> WorkflowRunStop {
    answered(&StopAnswer::Accepted(Some(run(state)), said(200)))
}

fn read(mut stop: WorkflowRunStop, answer: &ReadAnswer) -> WorkflowRunStop {
    stop.status = Some(followed(&stop, answer, moment()));
    stop
}

fn confirms(answer: &ReadAnswer) -> WorkflowRunStop {
    let mut stop = answered(&StopAnswer::NoAnswer("connection reset".into()));
    stop.status = Some(confirmed(&stop, answer, ActiveRead::First, 0, moment()));
    stop
}

fn ends(mut stop: WorkflowRunStop, ending: Ending) -> WorkflowRunStop {
    stop.status = Some(finished(&stop, ending, moment()));
    stop
}

fn states() -> Vec<(&'static str, WorkflowRunStop)> {
    let mut changed = waits(Reason::CredentialsMissing);
    changed.metadata.generation = Some(2);
    let mut deleted = waits(Reason::CredentialsMissing);
    deleted.metadata.deletion_timestamp = Some(Time(moment().now));
    let unavailable = ReadAnswer::Failed(ReadFailure::Unavailable("503".into()));
    vec![
        ("created, not seen by the operator yet", new()),
        ("changed, not seen by the operator yet", changed),
        ("being deleted", deleted),
        ("suspended", waits(Reason::Suspended)),
        ("waits for its turn (WaitingForBudget)", waits(Reason::WaitingForBudget)),
        ("waits for a Secret (CredentialsMissing)", waits(Reason::CredentialsMissing)),
        ("waits for another host (EndpointNotAllowed)", waits(Reason::EndpointNotAllowed)),
        ("the request is on its way (StopRequested)", called()),
        ("refused for now (Unauthorized)", answered(&StopAnswer::Unauthorized(said(401)))),
        ("refused for now (Forbidden)", answered(&StopAnswer::Forbidden(said(403)))),
        ("refused for now (RateLimited)", answered(&StopAnswer::RateLimited(said(429), None))),
        ("not sent (Unreachable)", answered(&StopAnswer::NotSent("no route".into()))),
        ("answered with a 5xx, to be confirmed", answered(&StopAnswer::ServerError(said(503)))),
        ("without an answer, to be confirmed", answered(&StopAnswer::NoAnswer("connection reset".into()))),
        ("without an answer, and confirming fails", confirms(&unavailable)),
        ("accepted, the run is stopping (FollowingRun)", accepted("stopping")),
        ("accepted, and reading fails", read(accepted("stopping"), &unavailable)),
        ("finished: RunStopped", ends(accepted("canceled"), Ending::Ended)),
        ("finished: RunEndedOtherwise", ends(accepted("succeeded"), Ending::Ended)),
        ("finished: RunUnreadable", read(accepted("stopping"), &ReadAnswer::Unreadable(said(403)))),
        ("finished: StopAccepted, not followed", ends(accepted("stopping"), Ending::NotFollowed)),
        ("finished: RunStillActive", ends(accepted("stopping"), Ending::StillActive)),
        ("finished: RunNotFound", answered(&StopAnswer::NotFound(said(404)))),
        ("finished: Rejected", answered(&StopAnswer::Rejected(said(400)))),
        ("finished: UnexpectedAnswer", answered(&StopAnswer::Redirected(said(302), "login.example.com".into()))),
        ("finished: OutcomeUnknown", confirms(&ReadAnswer::Unreadable(said(403)))),
        ("finished: DeadlineExceeded", ends(waits(Reason::CredentialsMissing), Ending::DeadlineExceeded)),
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
