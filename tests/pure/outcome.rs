//! Tests of the status that each answer leads to: one row for each variant.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use workflow_run_stop_api::{
    Claim, ClaimEnded, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionType, Reason, find},
    workflow_run::TaskInstance,
};
use workflow_run_stop_operator::amperity::answer::{ReadAnswer, ReadFailure, ResponseInfo, StopAnswer};
use workflow_run_stop_operator::amperity::run::Run;
use workflow_run_stop_operator::reconcile::{
    decide::{Ending, Established},
    outcome::{Retry, claimed, confirmed, finished, followed, stop_answered, waiting},
    status_builder::StepTime,
};

const STEP_TIME: fn() -> StepTime = || StepTime {
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

/// Returns a stop whose request was claimed for the third time.
fn a_claimed_stop() -> WorkflowRunStop {
    let mut stop = a_stop();
    for _ in 0..3 {
        stop.status = Some(claimed(&stop, a_claim(), "https://x/stop".into(), STEP_TIME()));
    }
    stop
}

fn accepted() -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    stop.status = Some(stop_answered(&stop, &StopAnswer::Accepted(None, own(202)), Retry::Backoff, STEP_TIME()));
    stop
}

/// Returns an own answer of Amperity.
fn own(status: u16) -> ResponseInfo {
    ResponseInfo { status, message: Some("a message".into()), request_id: Some("r-1".into()), own: true }
}

/// Returns an answer that is not Amperity's own.
fn foreign(status: u16) -> ResponseInfo {
    ResponseInfo { own: false, ..own(status) }
}

fn run(state: &str) -> Box<Run> {
    Box::new(Run { id: "wf-1".into(), state: state.into(), ..Run::default() })
}

/// Formats Ready, StopAccepted and RunEnded, then, if they apply: `claim`, `again@` the seconds until the next attempt,
/// and `end` or `stalled` for a final status.
fn summary(status: &WorkflowRunStopStatus) -> String {
    let of = |kind: ConditionType| {
        find(&status.conditions, kind).map_or("-".into(), |known| format!("{}/{}", known.status, known.reason))
    };
    let request = status.stop_request.clone().unwrap_or_default();
    let mut text = [ConditionType::Ready, ConditionType::StopAccepted, ConditionType::RunEnded].map(of).join(" ");
    if request.claim.is_some() {
        text += " claim";
    }
    if let Some(Time(next)) = &request.next_attempt_time {
        text += &format!(" again@{}", next.as_second() - 1000);
    }
    let stalled = find(&status.conditions, ConditionType::Stalled).is_some();
    let reconciling = find(&status.conditions, ConditionType::Reconciling).is_some();
    assert_eq!(reconciling, status.completion_time.is_none(), "Reconciling is set exactly while unfinished");
    text += match (status.completion_time.is_some(), stalled) {
        (true, true) => " stalled",
        (true, false) => " end",
        (false, false) => "",
        (false, true) => panic!("stalled, but not finished"),
    };
    text
}

#[test]
fn every_answer_to_a_stop_leads_to_one_status() {
    let rows: &[(StopAnswer, &str)] = &[
        (
            StopAnswer::Accepted(Some(run("stopping")), own(200)),
            "Unknown/FollowingRun True/StopAccepted False/FollowingRun",
        ),
        (StopAnswer::Accepted(None, own(202)), "Unknown/FollowingRun True/StopAccepted Unknown/FollowingRun"),
        // When the budget reopens. A written time is rounded up to whole seconds.
        (
            StopAnswer::RateLimited(own(429), Duration::from_secs(7)),
            "False/RateLimited False/RateLimited Unknown/RateLimited again@8",
        ),
        (StopAnswer::RateLimited(own(429), Duration::ZERO), "False/RateLimited False/RateLimited Unknown/RateLimited"),
        // The third delay, 4 s, with full jitter of 0.5 is 2 s.
        (StopAnswer::Unauthorized(own(401)), "False/Unauthorized False/Unauthorized Unknown/Unauthorized again@3"),
        (StopAnswer::Forbidden(own(403)), "False/Forbidden False/Forbidden Unknown/Forbidden again@3"),
        (StopAnswer::NotSent("refused".into()), "False/Unreachable False/Unreachable Unknown/Unreachable again@3"),
        (StopAnswer::TooLate, "Unknown/StopRequested False/StopRequested Unknown/StopRequested again@3"),
        (StopAnswer::Conflict(own(409)), "False/Conflict Unknown/Conflict Unknown/Conflict claim"),
        (
            StopAnswer::ServerError(own(503), None),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@31",
        ),
        (
            StopAnswer::ServerError(own(503), Some(Duration::from_secs(7))),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@31",
        ),
        (
            StopAnswer::ServerError(own(503), Some(Duration::from_secs(120))),
            "False/Unavailable Unknown/Unavailable Unknown/Unavailable claim again@121",
        ),
        (
            StopAnswer::BadRequest(own(400)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim",
        ),
        (
            StopAnswer::Foreign(foreign(404)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
        (
            StopAnswer::NotOurRun(own(200)),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
        (
            StopAnswer::NoAnswer("reset".into()),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
        (StopAnswer::NotFound(own(404)), "False/RunNotFound False/RunNotFound Unknown/RunNotFound stalled"),
        (StopAnswer::Rejected(own(410)), "False/Rejected False/Rejected Unknown/Rejected stalled"),
        (
            StopAnswer::Redirected(own(302), "https://evil.example".into()),
            "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31",
        ),
    ];
    for (answer, expected) in rows {
        let status = stop_answered(&a_claimed_stop(), answer, Retry::Backoff, STEP_TIME());
        assert_eq!(summary(&status), *expected, "{answer:?}");
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.stop_request.unwrap().attempts, 3);
    }
}

const NOTHING: Established = Established { active: false, unreadable: false };
const ACTIVE: Established = Established { active: true, unreadable: false };
const UNREADABLE: Established = Established { active: false, unreadable: true };

/// Returns a stop whose stop request number `attempts` got this answer.
fn answered(attempts: i32, answer: &StopAnswer) -> WorkflowRunStop {
    let mut stop = a_claimed_stop();
    stop.status.as_mut().unwrap().stop_request.as_mut().unwrap().attempts = attempts;
    stop.status = Some(stop_answered(&stop, answer, Retry::Backoff, STEP_TIME()));
    stop
}

/// One row for each pair of an answer that leaves the outcome open and a read after it.
#[test]
fn every_read_after_an_unclear_answer_leads_to_one_status() {
    let crashed = a_claimed_stop;
    let of = |answer: StopAnswer| answered(3, &answer);
    let no_answer = || of(StopAnswer::NoAnswer("reset".into()));
    let server_error = || of(StopAnswer::ServerError(own(504), None));
    let not_our_run = || of(StopAnswer::NotOurRun(own(200)));
    let conflict = || of(StopAnswer::Conflict(own(409)));
    let bad_request = |status| of(StopAnswer::BadRequest(own(status)));
    let redirected = || of(StopAnswer::Redirected(own(302), "https://login.example".into()));
    let gateway = |attempts, status| answered(attempts, &StopAnswer::Foreign(foreign(status)));
    let read = |state| ReadAnswer::Run(run(state));
    let unreadable = |status| ReadAnswer::Unreadable(own(status));
    let confirmed_stopping = "Unknown/FollowingRun True/ConfirmedByRead False/FollowingRun";
    let ended_otherwise = "True/RunEndedOtherwise Unknown/RunEndedOtherwise True/RunEndedOtherwise end";
    let open = "Unknown/OutcomeUnknown Unknown/OutcomeUnknown False/OutcomeUnknown claim again@31";
    let open_unread = "Unknown/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim again@31";
    let unknown = "False/OutcomeUnknown Unknown/OutcomeUnknown Unknown/OutcomeUnknown claim stalled";
    let no_effect = "False/Unavailable False/Unavailable False/Unavailable again@3";
    let rejected = "False/Rejected False/Rejected Unknown/Rejected stalled";
    let mut rows = vec![
        // A 409, 400 or 422 is Amperity's own answer: nothing was stopped.
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
        // The form of the answer decides, not its status.
        (gateway(1, 409), read("running"), NOTHING, open),
        (gateway(1, 422), read("running"), NOTHING, open),
        (gateway(1, 422), unreadable(403), UNREADABLE, unknown),
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
            ReadAnswer::Failed(ReadFailure::Unauthorized(own(401))),
            NOTHING,
            "False/Unauthorized Unknown/OutcomeUnknown Unknown/Unauthorized claim again@1",
        ),
        (
            no_answer(),
            ReadAnswer::Failed(ReadFailure::RateLimited(own(429), Duration::from_secs(7))),
            NOTHING,
            "False/RateLimited Unknown/OutcomeUnknown Unknown/RateLimited claim again@8",
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
        let is_conflict =
            matches!(stop.claim().unwrap().ended, Some(ClaimEnded { answer: UnclearAnswer::Conflict, .. }));
        rows.push((stop.clone(), read("stopping"), NOTHING, confirmed_stopping));
        rows.push((
            stop.clone(),
            read("canceled"),
            ACTIVE,
            "Unknown/FollowingRun True/ConfirmedByRead True/RunStopped",
        ));
        rows.push((stop.clone(), read("succeeded"), UNREADABLE, ended_otherwise));
        rows.push((stop.clone(), unreadable(403), ACTIVE, open_unread));
        if !is_conflict {
            rows.push((stop, read("running"), UNREADABLE, open));
        }
    }
    for (stop, answer, established, expected) in rows {
        let status = confirmed(&stop, &answer, established, 1, STEP_TIME());
        assert_eq!(summary(&status), expected, "{:?}: {answer:?} {established:?}", stop.claim());
    }
}

#[test]
fn the_message_still_names_a_redirect_after_the_run_was_read() {
    let stop = answered(1, &StopAnswer::Redirected(own(302), "https://login.example".into()));
    let status = confirmed(&stop, &ReadAnswer::Run(run("running")), ACTIVE, 0, STEP_TIME());
    let message = &find(&status.conditions, ConditionType::Ready).unwrap().message;
    assert!(message.contains("HTTP 302, a redirect to https://login.example, which is never followed"), "{message}");
}

/// The last request had no effect according to reads, so the run is read once more before the next request.
#[test]
fn every_read_before_a_further_request_leads_to_one_status() {
    let after = |answer: StopAnswer| {
        let mut stop = answered(1, &answer);
        stop.status = Some(confirmed(&stop, &ReadAnswer::Run(run("running")), ACTIVE, 0, STEP_TIME()));
        stop.status.as_mut().unwrap().state = None;
        assert!(stop.claim().is_none() && !stop.is_finished());
        stop
    };
    let no_effect = || after(StopAnswer::ServerError(own(504), None));
    let conflict = || after(StopAnswer::Conflict(own(409)));
    let gateway = || after(StopAnswer::Foreign(foreign(404)));
    let unreadable = |status| ReadAnswer::Unreadable(own(status));
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
        let status = confirmed(&stop, &answer, established, 1, STEP_TIME());
        assert_eq!(summary(&status), expected, "{answer:?} {established:?}");
    }
}

#[test]
fn every_finished_status_has_the_result_of_its_reason_and_no_other_status_has_one() {
    use workflow_run_stop_api::conditions::{Reason, StopResult};
    let finished_with = |stop: &WorkflowRunStop, ending| finished(stop, ending, STEP_TIME());
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
        (answered(1, &StopAnswer::NotFound(own(404))).status.unwrap(), StopResult::Failed),
        (followed(&accepted(), &ReadAnswer::Unreadable(own(403)), UNREADABLE, STEP_TIME()), StopResult::Accepted),
    ];
    for (status, result) in rows {
        assert!(status.completion_time.is_some());
        assert_eq!(status.result, Some(result));
        assert_eq!(status.conditions[0].type_, "Ready");
    }
    assert_eq!(waiting(&a_stop(), Reason::Suspended, "", STEP_TIME()).result, None);
    assert_eq!(accepted().status.unwrap().result, None);
    assert_eq!(a_claimed_stop().status.unwrap().conditions[0].type_, "Ready");
}

#[test]
fn every_read_after_acceptance_leads_to_one_status() {
    let rows: &[(ReadAnswer, &str)] = &[
        (ReadAnswer::Run(run("stopping")), "Unknown/FollowingRun True/StopAccepted False/FollowingRun"),
        (ReadAnswer::Run(run("canceled")), "Unknown/FollowingRun True/StopAccepted True/RunStopped"),
        (ReadAnswer::Unreadable(own(404)), "Unknown/FollowingRun True/StopAccepted Unknown/FollowingRun"),
        (
            ReadAnswer::Failed(ReadFailure::Unauthorized(own(401))),
            "False/Unauthorized True/StopAccepted Unknown/Unauthorized",
        ),
        (
            ReadAnswer::Failed(ReadFailure::RateLimited(own(429), Duration::from_secs(7))),
            "False/RateLimited True/StopAccepted Unknown/RateLimited",
        ),
        (
            ReadAnswer::Failed(ReadFailure::Unavailable("HTTP 502".into(), None)),
            "False/Unavailable True/StopAccepted Unknown/Unavailable",
        ),
    ];
    for (answer, expected) in rows {
        assert_eq!(summary(&followed(&accepted(), answer, NOTHING, STEP_TIME())), *expected, "{answer:?}");
    }
}

#[test]
fn following_ends_when_the_run_is_unreadable_twice_and_the_status_keeps_the_known_state() {
    let unreadable = ReadAnswer::Unreadable(own(404));
    let status = followed(&accepted(), &unreadable, UNREADABLE, STEP_TIME());
    assert_eq!(summary(&status), "True/RunUnreadable True/StopAccepted Unknown/RunUnreadable end");
    let mut ended = accepted();
    ended.status.as_mut().unwrap().state = Some("canceled".into());
    let status = followed(&ended, &unreadable, NOTHING, STEP_TIME());
    assert_eq!(summary(&status), "Unknown/FollowingRun True/StopAccepted True/RunStopped");
    let status = followed(&ended, &unreadable, UNREADABLE, STEP_TIME());
    assert_eq!(summary(&status), "True/RunStopped True/StopAccepted True/RunStopped end");
}

#[test]
fn an_answer_without_tasks_keeps_the_known_tasks() {
    let mut with_tasks = run("stopping");
    with_tasks.tasks = Some(vec![TaskInstance::default()]);
    let mut stop = accepted();
    stop.status = Some(followed(&stop, &ReadAnswer::Run(with_tasks), NOTHING, STEP_TIME()));
    let status = followed(&stop, &ReadAnswer::Run(run("canceled")), NOTHING, STEP_TIME());
    assert_eq!(status.task_instances.unwrap().len(), 1);
}

#[test]
fn a_status_has_the_state_in_its_message_and_the_number_of_omitted_tasks_unless_it_is_zero() {
    for (omitted, stored) in [(0, None), (3, Some(3))] {
        let mut with_tasks = run("stopping");
        (with_tasks.tasks, with_tasks.tasks_omitted) = (Some(vec![]), omitted);
        let status = followed(&accepted(), &ReadAnswer::Run(with_tasks), NOTHING, STEP_TIME());
        assert_eq!(status.task_instances_omitted, stored);
        let ready = find(&status.conditions, ConditionType::Ready).unwrap();
        assert!(ready.message.contains("state stopping"), "{}", ready.message);
    }
}

#[test]
fn the_same_cause_leads_to_the_same_status() {
    use workflow_run_stop_api::conditions::Reason;
    let mut stop = a_stop();
    let first = waiting(&stop, Reason::CredentialsMissing, "there is no Secret amperity", STEP_TIME());
    stop.status = Some(first.clone());
    let later = StepTime { now: Timestamp::from_second(5000).unwrap(), jitter: 0.9, ..STEP_TIME() };
    assert_eq!(waiting(&stop, Reason::CredentialsMissing, "there is no Secret amperity", later), first);
}

#[test]
fn every_ending_leads_to_one_status() {
    let in_state = |state: &str| {
        let mut stop = accepted();
        stop.status.as_mut().unwrap().state = Some(state.into());
        stop
    };
    let rows: &[(WorkflowRunStop, Ending, &str)] = &[
        (a_stop(), Ending::Expired, "True/Expired False/Expired Unknown/Expired end"),
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
        assert_eq!(summary(&finished(stop, *ending, STEP_TIME())), *expected, "{ending:?}");
    }
    let refused = stop_answered(&a_claimed_stop(), &StopAnswer::Forbidden(own(403)), Retry::Backoff, STEP_TIME());
    let stop = WorkflowRunStop { status: Some(refused), ..a_stop() };
    let status = finished(&stop, Ending::DeadlineExceeded, STEP_TIME());
    assert_eq!(summary(&status), "False/DeadlineExceeded False/Forbidden Unknown/DeadlineExceeded stalled");
    let message = &find(&status.conditions, ConditionType::Ready).unwrap().message;
    assert!(message.contains("the last reason was Forbidden"), "{message}");
}

#[test]
fn a_new_token_is_tried_without_backoff() {
    let answer = StopAnswer::Unauthorized(own(401));
    let status = stop_answered(&a_claimed_stop(), &answer, Retry::AtOnce, STEP_TIME());
    assert_eq!(summary(&status), "False/Unauthorized False/Unauthorized Unknown/Unauthorized");
}

#[test]
fn a_status_without_details_keeps_its_conditions_and_counts_the_omitted_tasks() {
    let mut run = run("canceled");
    run.tasks = Some(vec![TaskInstance::default(); 3]);
    let full =
        stop_answered(&a_claimed_stop(), &StopAnswer::Accepted(Some(run), own(200)), Retry::Backoff, STEP_TIME());
    let full = WorkflowRunStopStatus { task_instances_omitted: Some(2), ..full };
    let bare = full.clone().bare();
    assert_eq!((bare.task_instances, bare.task_instances_omitted), (Some(vec![]), Some(5)));
    assert_eq!((bare.conditions, bare.stop_request), (full.conditions, full.stop_request));
}

#[test]
fn a_claim_names_the_url_and_counts_the_attempt() {
    let request = a_claimed_stop().status.unwrap().stop_request.unwrap();
    let expected = StopRequest {
        url: Some("https://x/stop".into()),
        attempts: 3,
        claim: Some(a_claim()),
        ..StopRequest::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn every_wait_before_the_first_request_leads_to_one_status() {
    for (reason, expected) in [
        (Reason::Suspended, "Unknown/Suspended False/Suspended Unknown/Suspended"),
        (Reason::WaitingForBudget, "Unknown/WaitingForBudget False/WaitingForBudget Unknown/WaitingForBudget"),
        (Reason::CredentialsMissing, "False/CredentialsMissing False/CredentialsMissing Unknown/CredentialsMissing"),
        (Reason::EndpointNotAllowed, "False/EndpointNotAllowed False/EndpointNotAllowed Unknown/EndpointNotAllowed"),
    ] {
        assert_eq!(summary(&waiting(&a_stop(), reason, "", STEP_TIME())), expected);
    }
    // After a request, StopAccepted keeps the reason why it was dropped.
    let refused = stop_answered(&a_claimed_stop(), &StopAnswer::Forbidden(own(403)), Retry::Backoff, STEP_TIME());
    let stop = WorkflowRunStop { status: Some(refused), ..a_stop() };
    let status = waiting(&stop, Reason::WaitingForBudget, "", STEP_TIME());
    assert!(summary(&status).starts_with("Unknown/WaitingForBudget False/Forbidden "), "{}", summary(&status));
}

#[test]
fn a_claim_sets_only_ready_on_a_new_resource_and_changes_what_is_set_otherwise() {
    let conditions = |stop: &WorkflowRunStop| {
        let status = claimed(stop, a_claim(), "https://x/stop".into(), STEP_TIME());
        let line = |known: &Condition| format!("{} {} {}", known.type_, known.status, known.reason);
        status.conditions.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(conditions(&a_stop()), ["Ready Unknown StopRequested"]);
    let waited = waiting(&a_stop(), Reason::CredentialsMissing, "", STEP_TIME());
    let waited = WorkflowRunStop { status: Some(waited), ..a_stop() };
    assert_eq!(
        conditions(&waited),
        [
            "Ready Unknown StopRequested",
            "Reconciling True StopRequested",
            "StopAccepted Unknown StopRequested",
            "RunEnded Unknown StopRequested"
        ]
    );
}

#[test]
fn a_wait_with_an_open_claim_never_says_that_no_request_was_sent() {
    let mut stop = a_stop();
    stop.status = Some(claimed(&stop, a_claim(), "https://x/stop".into(), STEP_TIME()));
    for status in [
        waiting(&stop, Reason::CredentialsMissing, "", STEP_TIME()),
        finished(&stop, Ending::OutcomeUnknown, STEP_TIME()),
    ] {
        let accepted = find(&status.conditions, ConditionType::StopAccepted).unwrap();
        assert_eq!(accepted.status, "Unknown", "{status:?}");
    }
}

#[test]
fn a_backoff_counts_from_the_claim_if_the_clock_of_its_replica_is_ahead() {
    let ahead = Claim { time: at(2000), ..a_claim() };
    for (claim, next) in [(ahead, 2001), (Claim { time: at(900), ..a_claim() }, 1001)] {
        let stop =
            WorkflowRunStop { status: Some(claimed(&a_stop(), claim, "https://x".into(), STEP_TIME())), ..a_stop() };
        let status = stop_answered(&stop, &StopAnswer::NotSent("no route".into()), Retry::Backoff, STEP_TIME());
        assert_eq!(status.stop_request.unwrap().next_attempt_time, Some(at(next)));
    }
}
