//! What each answer makes of the status: one row for each variant.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_operator::amperity::answer::{ReadAnswer, ReadFailure, Said, StopAnswer};
use workflow_run_stop_operator::resource::{
    Claim, ClaimEnded, UnclearAnswer, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionType, find},
};
use workflow_run_stop_operator::run::{Run, TaskInstance};
use workflow_run_stop_operator::stop::{
    decide::{ActiveRead, Ending},
    draft::Moment,
    outcome::{Retry, claimed, confirmed, finished, followed, stop_answered, waiting},
};

const MOMENT: fn() -> Moment = || Moment {
    now: Timestamp::from_millisecond(1_000_500).unwrap(),
    jitter: 0.5,
    settle_time: Duration::from_secs(30),
};

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn a_claim() -> Claim {
    Claim { id: "c".into(), holder: "pod-1".into(), time: at(1000), ended: None }
}

fn a_stop() -> WorkflowRunStop {
    let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
    stop.metadata.generation = Some(3);
    stop
}

/// A stop whose request was claimed for the third time.
fn a_claimed_stop() -> WorkflowRunStop {
    let mut stop = a_stop();
    for _ in 0..3 {
        stop.status = Some(claimed(&stop, a_claim(), "https://x/stop".into(), MOMENT()));
    }
    stop
}

fn unclear(answer: UnclearAnswer) -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    let claim = stop.status.as_mut().unwrap().stop_request.as_mut().unwrap().claim.as_mut().unwrap();
    claim.ended = Some(ClaimEnded { time: at(990), answer });
    stop
}

fn accepted() -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    stop.status = Some(stop_answered(&stop, &StopAnswer::Accepted(None, said(202)), Retry::Backoff, MOMENT()));
    stop
}

fn said(status: u16) -> Said {
    Said { status, message: Some("so they say".into()), request_id: Some("r-1".into()) }
}

fn run(state: &str) -> Box<Run> {
    Box::new(Run { id: "wf-1".into(), state: state.into(), ..Run::default() })
}

/// Ready, StopAccepted and RunEnded, then `claim`, `again in` seconds and `end` where they are so.
fn told(status: &WorkflowRunStopStatus) -> String {
    let of = |kind: ConditionType| {
        find(&status.conditions, kind).map_or("-".into(), |known| format!("{}/{}", known.status, known.reason))
    };
    let request = status.stop_request.as_ref().unwrap();
    let mut told = [ConditionType::Ready, ConditionType::StopAccepted, ConditionType::RunEnded].map(of).join(" ");
    if request.claim.is_some() {
        told += " claim";
    }
    if let Some(Time(next)) = &request.next_attempt_time {
        told += &format!(" again@{}", next.as_second() - 1000);
    }
    let stalled = find(&status.conditions, ConditionType::Stalled).is_some();
    let reconciling = find(&status.conditions, ConditionType::Reconciling).is_some();
    assert_eq!(reconciling, status.completion_time.is_none(), "Reconciling is there exactly until the end");
    told += match (status.completion_time.is_some(), stalled) {
        (true, true) => " stalled",
        (true, false) => " end",
        (false, false) => "",
        (false, true) => panic!("stalled before the end"),
    };
    told
}

#[test]
fn every_answer_to_a_stop_has_its_status() {
    let rows: &[(StopAnswer, &str)] = &[
        (
            StopAnswer::Accepted(Some(run("stopping")), said(200)),
            "Unknown/FollowingRun True/StopAccepted False/FollowingRun",
        ),
        (StopAnswer::Accepted(None, said(202)), "Unknown/FollowingRun True/StopAccepted Unknown/FollowingRun"),
        // Full jitter of 0.5: the third of 1, 2, 4 s is 2 s; a written time is rounded up.
        (StopAnswer::RateLimited(said(429), None), "False/RateLimited False/RateLimited Unknown/RateLimited again@3"),
        (
            StopAnswer::RateLimited(said(429), Some(Duration::from_secs(7))),
            "False/RateLimited False/RateLimited Unknown/RateLimited again@8",
        ),
        (StopAnswer::Unauthorized(said(401)), "False/Unauthorized False/Unauthorized Unknown/Unauthorized again@3"),
        (StopAnswer::Forbidden(said(403)), "False/Forbidden False/Forbidden Unknown/Forbidden again@3"),
        (StopAnswer::NotSent("refused".into()), "False/Unreachable False/Unreachable Unknown/Unreachable again@3"),
        (StopAnswer::TooLate, "Unknown/StopRequested False/StopRequested Unknown/StopRequested again@3"),
        (StopAnswer::Conflict(said(409)), "False/Conflict Unknown/Conflict Unknown/Conflict claim"),
        (
            StopAnswer::ServerError(said(503)),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@31",
        ),
        (
            StopAnswer::NotOurRun(said(200)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
        (
            StopAnswer::NoAnswer("reset".into()),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
        (StopAnswer::NotFound(said(404)), "False/RunNotFound False/RunNotFound Unknown/RunNotFound stalled"),
        (StopAnswer::Rejected(said(422)), "False/Rejected False/Rejected Unknown/Rejected stalled"),
        (
            StopAnswer::Redirected(said(302), "https://evil.example".into()),
            "False/UnexpectedAnswer False/UnexpectedAnswer Unknown/UnexpectedAnswer stalled",
        ),
    ];
    for (answer, expected) in rows {
        let status = stop_answered(&a_claimed_stop(), answer, Retry::Backoff, MOMENT());
        assert_eq!(told(&status), *expected, "{answer:?}");
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.stop_request.unwrap().attempts, 3);
    }
}

#[test]
fn every_reading_after_an_unclear_answer_has_its_status() {
    use ActiveRead::{Again, First};
    use UnclearAnswer::{Conflict, NoAnswer, NotOurRun, ServerError};
    let of = |answer: UnclearAnswer| unclear(answer);
    let unreadable = || ReadAnswer::Unreadable(said(403));
    let rows: &[(WorkflowRunStop, ReadAnswer, ActiveRead, &str)] = &[
        (
            of(NoAnswer),
            ReadAnswer::Run(run("stopping")),
            First,
            "Unknown/FollowingRun True/ConfirmedByRead False/FollowingRun",
        ),
        (
            of(ServerError),
            ReadAnswer::Run(run("canceled")),
            First,
            "Unknown/FollowingRun True/ConfirmedByRead True/RunStopped",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Run(run("succeeded")),
            First,
            "True/RunEndedOtherwise Unknown/RunEndedOtherwise True/RunEndedOtherwise end",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Run(run("running")),
            First,
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown False/OutcomeUnknown claim again@31",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Run(run("running")),
            Again,
            "False/Unavailable False/Unavailable False/Unavailable again@3",
        ),
        (of(Conflict), ReadAnswer::Run(run("running")), First, "False/Conflict False/Conflict False/Conflict again@3"),
        (
            of(Conflict),
            ReadAnswer::Run(run("stopping")),
            First,
            "Unknown/FollowingRun True/ConfirmedByRead False/FollowingRun",
        ),
        (of(Conflict), unreadable(), First, "False/Rejected False/Rejected Unknown/Rejected stalled"),
        (of(ServerError), unreadable(), First, "False/Unavailable False/Unavailable Unknown/Unavailable again@3"),
        (
            of(NoAnswer),
            unreadable(),
            First,
            "False/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim stalled",
        ),
        (
            of(NotOurRun),
            unreadable(),
            First,
            "False/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim stalled",
        ),
        (
            a_claimed_stop(),
            unreadable(),
            First,
            "False/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim stalled",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 503".into())),
            First,
            "False/Unavailable Unknown/StopRequested Unknown/Unavailable claim again@1",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Failed(ReadFailure::Unauthorized(said(401))),
            First,
            "False/Unauthorized Unknown/StopRequested Unknown/Unauthorized claim again@1",
        ),
        (
            of(NoAnswer),
            ReadAnswer::Failed(ReadFailure::RateLimited(said(429))),
            First,
            "False/RateLimited Unknown/StopRequested Unknown/RateLimited claim again@1",
        ),
    ];
    for (stop, answer, active, expected) in rows {
        let status = confirmed(stop, answer, *active, 1, MOMENT());
        assert_eq!(told(&status), *expected, "{answer:?} {active:?}");
    }
}

#[test]
fn every_reading_of_a_stopped_run_has_its_status() {
    let rows: &[(ReadAnswer, &str)] = &[
        (ReadAnswer::Run(run("stopping")), "Unknown/FollowingRun True/StopAccepted False/FollowingRun"),
        (ReadAnswer::Run(run("canceled")), "Unknown/FollowingRun True/StopAccepted True/RunStopped"),
        (ReadAnswer::Unreadable(said(404)), "True/RunUnreadable True/StopAccepted Unknown/RunUnreadable end"),
        (
            ReadAnswer::Failed(ReadFailure::Unauthorized(said(401))),
            "False/Unauthorized True/StopAccepted Unknown/Unauthorized",
        ),
        (
            ReadAnswer::Failed(ReadFailure::RateLimited(said(429))),
            "False/RateLimited True/StopAccepted Unknown/RateLimited",
        ),
        (
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 502".into())),
            "False/Unavailable True/StopAccepted Unknown/Unavailable",
        ),
    ];
    for (answer, expected) in rows {
        assert_eq!(told(&followed(&accepted(), answer, MOMENT())), *expected, "{answer:?}");
    }
}

#[test]
fn an_answer_without_tasks_leaves_those_that_are_known() {
    let mut with_tasks = run("stopping");
    with_tasks.tasks = Some(vec![TaskInstance::default()]);
    let mut stop = accepted();
    stop.status = Some(followed(&stop, &ReadAnswer::Run(with_tasks), MOMENT()));
    let status = followed(&stop, &ReadAnswer::Run(run("canceled")), MOMENT());
    assert_eq!(status.task_instances.unwrap().len(), 1);
}

#[test]
fn the_same_cause_makes_the_same_status() {
    use workflow_run_stop_operator::resource::conditions::Reason;
    let mut stop = a_stop();
    let first = waiting(&stop, Reason::CredentialsMissing, "there is no Secret amperity", MOMENT());
    stop.status = Some(first.clone());
    let later = Moment { now: Timestamp::from_second(5000).unwrap(), jitter: 0.9, ..MOMENT() };
    assert_eq!(waiting(&stop, Reason::CredentialsMissing, "there is no Secret amperity", later), first);
}

#[test]
fn every_ending_has_its_status() {
    let in_state = |state: &str| {
        let mut stop = accepted();
        stop.status.as_mut().unwrap().state = Some(state.into());
        stop
    };
    let rows: &[(WorkflowRunStop, Ending, &str)] = &[
        (in_state("canceled"), Ending::Ended, "True/RunStopped True/StopAccepted True/RunStopped end"),
        (in_state("failed"), Ending::Ended, "True/RunEndedOtherwise True/StopAccepted True/RunEndedOtherwise end"),
        (in_state("stopping"), Ending::NotFollowed, "True/StopAccepted True/StopAccepted False/StopAccepted end"),
        (
            in_state("stopping"),
            Ending::StillActive,
            "False/RunStillActive True/StopAccepted False/RunStillActive stalled",
        ),
    ];
    for (stop, ending, expected) in rows {
        assert_eq!(told(&finished(stop, *ending, MOMENT())), *expected, "{ending:?}");
    }
    let refused = stop_answered(&a_claimed_stop(), &StopAnswer::Forbidden(said(403)), Retry::Backoff, MOMENT());
    let stop = WorkflowRunStop { status: Some(refused), ..a_stop() };
    let status = finished(&stop, Ending::DeadlineExceeded, MOMENT());
    assert_eq!(told(&status), "False/DeadlineExceeded False/Forbidden Unknown/DeadlineExceeded stalled");
    let message = &find(&status.conditions, ConditionType::Ready).unwrap().message;
    assert!(message.contains("the last reason was Forbidden"), "{message}");
}

#[test]
fn a_new_token_is_tried_at_once() {
    let answer = StopAnswer::Unauthorized(said(401));
    let status = stop_answered(&a_claimed_stop(), &answer, Retry::AtOnce, MOMENT());
    assert_eq!(told(&status), "False/Unauthorized False/Unauthorized Unknown/Unauthorized");
}

#[test]
fn a_bare_status_keeps_what_was_learned_and_counts_what_it_leaves_out() {
    let mut run = run("canceled");
    run.tasks = Some(vec![TaskInstance::default(); 3]);
    let full = stop_answered(&a_claimed_stop(), &StopAnswer::Accepted(Some(run), said(200)), Retry::Backoff, MOMENT());
    let full = WorkflowRunStopStatus { task_instances_omitted: Some(2), ..full };
    let bare = full.clone().bare();
    assert_eq!((bare.task_instances, bare.task_instances_omitted), (Some(vec![]), Some(5)));
    assert_eq!((bare.conditions, bare.stop_request), (full.conditions, full.stop_request));
}
