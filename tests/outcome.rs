//! What each answer makes of the status: one row for each variant.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_api::workflow_run::TaskInstance;
use workflow_run_stop_api::{
    Claim, ClaimEnded, UnclearAnswer, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionType, find},
};
use workflow_run_stop_operator::amperity::answer::{ReadAnswer, ReadFailure, ResponseInfo, StopAnswer};
use workflow_run_stop_operator::amperity::run::Run;
use workflow_run_stop_operator::reconcile::{
    decide::{Ending, Established},
    outcome::{Retry, claimed, confirmed, finished, followed, stop_answered, waiting},
    status_builder::StepTime,
};

const MOMENT: fn() -> StepTime = || StepTime {
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

fn accepted() -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    stop.status = Some(stop_answered(&stop, &StopAnswer::Accepted(None, said(202)), Retry::Backoff, MOMENT()));
    stop
}

fn said(status: u16) -> ResponseInfo {
    ResponseInfo { status, message: Some("so they say".into()), request_id: Some("r-1".into()), own: true }
}

/// The same from somebody else.
fn foreign(status: u16) -> ResponseInfo {
    ResponseInfo { own: false, ..said(status) }
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
            StopAnswer::ServerError(said(503), None),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@31",
        ),
        (
            StopAnswer::ServerError(said(503), Some(Duration::from_secs(7))),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@31",
        ),
        (
            StopAnswer::ServerError(said(503), Some(Duration::from_secs(120))),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@121",
        ),
        (
            StopAnswer::BadRequest(said(400)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim",
        ),
        (
            StopAnswer::Foreign(foreign(404)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
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
        (StopAnswer::Rejected(said(410)), "False/Rejected False/Rejected Unknown/Rejected stalled"),
        (
            StopAnswer::Redirected(said(302), "https://evil.example".into()),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
    ];
    for (answer, expected) in rows {
        let status = stop_answered(&a_claimed_stop(), answer, Retry::Backoff, MOMENT());
        assert_eq!(told(&status), *expected, "{answer:?}");
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.stop_request.unwrap().attempts, 3);
    }
}

const NOTHING: Established = Established { active: false, unreadable: false };
const ACTIVE: Established = Established { active: true, unreadable: false };
const UNREADABLE: Established = Established { active: false, unreadable: true };

/// A stop whose request, the `attempts`th, was answered like this.
fn answered(attempts: i32, answer: &StopAnswer) -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    stop.status.as_mut().unwrap().stop_request.as_mut().unwrap().attempts = attempts;
    stop.status = Some(stop_answered(&stop, answer, Retry::Backoff, MOMENT()));
    stop
}

/// Every way from an answer that leaves the outcome open, over what a read shows, to a status.
#[test]
fn every_reading_after_an_unclear_answer_has_its_status() {
    let crashed = a_claimed_stop;
    let of = |answer: StopAnswer| answered(3, &answer);
    let no_answer = || of(StopAnswer::NoAnswer("reset".into()));
    let server_error = || of(StopAnswer::ServerError(said(504), None));
    let not_our_run = || of(StopAnswer::NotOurRun(said(200)));
    let conflict = || of(StopAnswer::Conflict(said(409)));
    let bad_request = |status| of(StopAnswer::BadRequest(said(status)));
    let redirected = || of(StopAnswer::Redirected(said(302), "https://login.example".into()));
    let gateway = |attempts, status| answered(attempts, &StopAnswer::Foreign(foreign(status)));
    let read = |state| ReadAnswer::Run(run(state));
    let unreadable = |status| ReadAnswer::Unreadable(said(status));
    let confirmed_stopping = "Unknown/FollowingRun True/ConfirmedByRead False/FollowingRun";
    let ended_otherwise = "True/RunEndedOtherwise Unknown/RunEndedOtherwise True/RunEndedOtherwise end";
    let open = "Unknown/OutcomeUnknown Unknown/OutcomeUnknown False/OutcomeUnknown claim again@31";
    let open_unread = "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31";
    let unknown = "False/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim stalled";
    let no_effect = "False/Unavailable False/Unavailable False/Unavailable again@3";
    let rejected = "False/Rejected False/Rejected Unknown/Rejected stalled";
    let mut rows = vec![
        // 409: Amperity's own word that nothing was stopped.
        (conflict(), read("running"), NOTHING, "False/Conflict False/Conflict False/Conflict again@3"),
        (conflict(), unreadable(403), NOTHING, open_unread),
        (conflict(), unreadable(403), UNREADABLE, rejected),
        (bad_request(400), read("running"), NOTHING, "False/Rejected False/Rejected False/Rejected stalled"),
        (bad_request(422), read("running"), NOTHING, "False/Rejected False/Rejected False/Rejected stalled"),
        (bad_request(400), unreadable(403), UNREADABLE, rejected),
        (bad_request(422), unreadable(422), UNREADABLE, rejected),
        // Active twice.
        (no_answer(), read("running"), ACTIVE, no_effect),
        (crashed(), read("running"), ACTIVE, no_effect),
        (server_error(), read("running"), ACTIVE, no_effect),
        (not_our_run(), read("running"), ACTIVE, no_effect),
        (
            redirected(),
            read("running"),
            ACTIVE,
            "False/UnexpectedAnswer False/UnexpectedAnswer False/UnexpectedAnswer stalled",
        ),
        (
            gateway(4, 404),
            read("running"),
            ACTIVE,
            "False/UnexpectedAnswer False/UnexpectedAnswer False/UnexpectedAnswer again@5",
        ),
        (
            gateway(5, 404),
            read("running"),
            ACTIVE,
            "False/UnexpectedAnswer False/UnexpectedAnswer False/UnexpectedAnswer stalled",
        ),
        (gateway(5, 404), read("running"), NOTHING, open),
        // Unreadable twice.
        (no_answer(), unreadable(404), UNREADABLE, unknown),
        (crashed(), unreadable(404), UNREADABLE, unknown),
        (server_error(), unreadable(403), UNREADABLE, unknown),
        (not_our_run(), unreadable(403), UNREADABLE, unknown),
        (
            gateway(1, 404),
            unreadable(404),
            UNREADABLE,
            "False/RunNotFound False/RunNotFound Unknown/RunNotFound stalled",
        ),
        (gateway(1, 403), unreadable(403), UNREADABLE, rejected),
        (gateway(1, 409), unreadable(409), UNREADABLE, rejected),
        (gateway(1, 403), unreadable(404), UNREADABLE, unknown),
        (gateway(1, 404), unreadable(403), UNREADABLE, unknown),
        (
            redirected(),
            unreadable(302),
            UNREADABLE,
            "False/UnexpectedAnswer False/UnexpectedAnswer Unknown/UnexpectedAnswer stalled",
        ),
        (redirected(), unreadable(403), UNREADABLE, unknown),
        // Not read this time.
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 503".into(), None)),
            NOTHING,
            "False/Unavailable Unknown/OutcomeUnknown Unknown/Unavailable claim again@1",
        ),
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 503".into(), Some(Duration::from_secs(50)))),
            NOTHING,
            "False/Unavailable Unknown/OutcomeUnknown Unknown/Unavailable claim again@51",
        ),
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::Unauthorized(said(401))),
            NOTHING,
            "False/Unauthorized Unknown/OutcomeUnknown Unknown/Unauthorized claim again@1",
        ),
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::RateLimited(said(429))),
            NOTHING,
            "False/RateLimited Unknown/OutcomeUnknown Unknown/RateLimited claim again@1",
        ),
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::NotSent("refused".into())),
            NOTHING,
            "False/Unreachable Unknown/OutcomeUnknown Unknown/Unreachable claim again@1",
        ),
    ];
    for stop in [
        no_answer(),
        server_error(),
        not_our_run(),
        conflict(),
        redirected(),
        crashed(),
        bad_request(400),
        gateway(1, 404),
        gateway(9, 403),
    ] {
        let asked = matches!(stop.claim().unwrap().ended, Some(ClaimEnded { answer: UnclearAnswer::Conflict, .. }));
        rows.push((stop.clone(), read("stopping"), NOTHING, confirmed_stopping));
        rows.push((
            stop.clone(),
            read("canceled"),
            ACTIVE,
            "Unknown/FollowingRun True/ConfirmedByRead True/RunStopped",
        ));
        rows.push((stop.clone(), read("succeeded"), UNREADABLE, ended_otherwise));
        rows.push((stop.clone(), unreadable(403), ACTIVE, open_unread));
        if !asked {
            rows.push((stop, read("running"), UNREADABLE, open));
        }
    }
    for (stop, answer, established, expected) in rows {
        let status = confirmed(&stop, &answer, established, 1, MOMENT());
        assert_eq!(told(&status), expected, "{:?}: {answer:?} {established:?}", stop.claim());
    }
}

#[test]
fn a_redirect_is_still_named_when_the_run_has_been_read() {
    let stop = answered(1, &StopAnswer::Redirected(said(302), "https://login.example".into()));
    let status = confirmed(&stop, &ReadAnswer::Run(run("running")), ACTIVE, 0, MOMENT());
    let message = &find(&status.conditions, ConditionType::Ready).unwrap().message;
    assert!(message.contains("HTTP 302, a redirect to https://login.example, which is never followed"), "{message}");
}

/// A stop whose last request is known to have had no effect only from reads, and which is read once more.
#[test]
fn every_reading_before_a_further_request_has_its_status() {
    let after = |answer: StopAnswer| {
        let mut stop = answered(1, &answer);
        stop.status = Some(confirmed(&stop, &ReadAnswer::Run(run("running")), ACTIVE, 0, MOMENT()));
        stop.status.as_mut().unwrap().state = None;
        assert!(stop.claim().is_none() && !stop.is_finished());
        stop
    };
    let no_effect = || after(StopAnswer::ServerError(said(504), None));
    let conflict = || after(StopAnswer::Conflict(said(409)));
    let gateway = || after(StopAnswer::Foreign(foreign(404)));
    let unreadable = |status| ReadAnswer::Unreadable(said(status));
    let rows = [
        (
            no_effect(),
            ReadAnswer::Run(run("stopping")),
            NOTHING,
            "Unknown/FollowingRun True/ConfirmedByRead False/FollowingRun",
        ),
        (
            no_effect(),
            ReadAnswer::Run(run("failed")),
            NOTHING,
            "True/RunEndedOtherwise Unknown/RunEndedOtherwise True/RunEndedOtherwise end",
        ),
        (
            no_effect(),
            unreadable(403),
            NOTHING,
            "Unknown/OutcomeUnknown False/Unavailable Unknown/OutcomeUnknown again@31",
        ),
        (
            no_effect(),
            unreadable(403),
            UNREADABLE,
            "False/OutcomeUnknown False/Unavailable Unknown/OutcomeUnknown stalled",
        ),
        (conflict(), unreadable(403), UNREADABLE, "False/Rejected False/Rejected Unknown/Rejected stalled"),
        (gateway(), unreadable(404), UNREADABLE, "False/RunNotFound False/RunNotFound Unknown/RunNotFound stalled"),
        (
            no_effect(),
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 503".into(), None)),
            NOTHING,
            "False/Unavailable False/Unavailable Unknown/Unavailable again@1",
        ),
    ];
    for (stop, answer, established, expected) in rows {
        let status = confirmed(&stop, &answer, established, 1, MOMENT());
        assert_eq!(told(&status), expected, "{answer:?} {established:?}");
    }
}

#[test]
fn every_finished_status_has_the_result_of_its_reason_and_no_other_status_has_one() {
    use workflow_run_stop_api::conditions::{Reason, StopResult};
    let finished_with = |stop: &WorkflowRunStop, ending| finished(stop, ending, MOMENT());
    let ended = |state: &str| {
        let mut stop = accepted();
        stop.status.as_mut().unwrap().state = Some(state.into());
        stop
    };
    let rows = [
        (finished_with(&ended("canceled"), Ending::Ended), StopResult::Stopped),
        (finished_with(&ended("succeeded"), Ending::Ended), StopResult::EndedOtherwise),
        (finished_with(&accepted(), Ending::NotFollowed), StopResult::Accepted),
        (finished_with(&accepted(), Ending::StillActive), StopResult::StillActive),
        (finished_with(&a_stop(), Ending::Expired), StopResult::Expired),
        (finished_with(&a_stop(), Ending::DeadlineExceeded), StopResult::Failed),
        (finished_with(&a_claimed_stop(), Ending::OutcomeUnknown), StopResult::Unknown),
        (answered(1, &StopAnswer::NotFound(said(404))).status.unwrap(), StopResult::Failed),
        (followed(&accepted(), &ReadAnswer::Unreadable(said(403)), UNREADABLE, MOMENT()), StopResult::Accepted),
    ];
    for (status, result) in rows {
        assert!(status.completion_time.is_some());
        assert_eq!(status.result, Some(result));
        assert_eq!(status.conditions[0].type_, "Ready");
    }
    assert_eq!(waiting(&a_stop(), Reason::Suspended, "", MOMENT()).result, None);
    assert_eq!(accepted().status.unwrap().result, None);
    assert_eq!(a_claimed_stop().status.unwrap().conditions[0].type_, "Ready");
}

#[test]
fn every_reading_of_a_stopped_run_has_its_status() {
    let rows: &[(ReadAnswer, &str)] = &[
        (ReadAnswer::Run(run("stopping")), "Unknown/FollowingRun True/StopAccepted False/FollowingRun"),
        (ReadAnswer::Run(run("canceled")), "Unknown/FollowingRun True/StopAccepted True/RunStopped"),
        (ReadAnswer::Unreadable(said(404)), "Unknown/FollowingRun True/StopAccepted Unknown/FollowingRun"),
        (
            ReadAnswer::Failed(ReadFailure::Unauthorized(said(401))),
            "False/Unauthorized True/StopAccepted Unknown/Unauthorized",
        ),
        (
            ReadAnswer::Failed(ReadFailure::RateLimited(said(429))),
            "False/RateLimited True/StopAccepted Unknown/RateLimited",
        ),
        (
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 502".into(), None)),
            "False/Unavailable True/StopAccepted Unknown/Unavailable",
        ),
    ];
    for (answer, expected) in rows {
        assert_eq!(told(&followed(&accepted(), answer, NOTHING, MOMENT())), *expected, "{answer:?}");
    }
}

#[test]
fn a_run_that_is_unreadable_twice_after_acceptance_ends_the_following_and_keeps_what_is_known() {
    let unreadable = ReadAnswer::Unreadable(said(404));
    let status = followed(&accepted(), &unreadable, UNREADABLE, MOMENT());
    assert_eq!(told(&status), "True/RunUnreadable True/StopAccepted Unknown/RunUnreadable end");
    let mut ended = accepted();
    ended.status.as_mut().unwrap().state = Some("canceled".into());
    let status = followed(&ended, &unreadable, NOTHING, MOMENT());
    assert_eq!(told(&status), "Unknown/FollowingRun True/StopAccepted True/RunStopped");
    let status = followed(&ended, &unreadable, UNREADABLE, MOMENT());
    assert_eq!(told(&status), "True/RunStopped True/StopAccepted True/RunStopped end");
}

#[test]
fn an_answer_without_tasks_leaves_those_that_are_known() {
    let mut with_tasks = run("stopping");
    with_tasks.tasks = Some(vec![TaskInstance::default()]);
    let mut stop = accepted();
    stop.status = Some(followed(&stop, &ReadAnswer::Run(with_tasks), NOTHING, MOMENT()));
    let status = followed(&stop, &ReadAnswer::Run(run("canceled")), NOTHING, MOMENT());
    assert_eq!(status.task_instances.unwrap().len(), 1);
}

#[test]
fn the_same_cause_makes_the_same_status() {
    use workflow_run_stop_api::conditions::Reason;
    let mut stop = a_stop();
    let first = waiting(&stop, Reason::CredentialsMissing, "there is no Secret amperity", MOMENT());
    stop.status = Some(first.clone());
    let later = StepTime { now: Timestamp::from_second(5000).unwrap(), jitter: 0.9, ..MOMENT() };
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
