//! Owns the new status after each outcome: an answer to a stop request, a read, or an ending.
//! Never claims more than was observed. Never does IO, and reads no clock or random number.

use std::time::Duration;

use workflow_run_stop_api::conditions::{self, ConditionStatus, ConditionType, Reason};
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{Claim, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};

use crate::amperity::answer::{ReadAnswer, ReadFailure, ResponseInfo, StatusKind, StopAnswer};
use crate::reconcile::backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay};
use crate::reconcile::decide::{Ending, Established};
use crate::reconcile::status_builder::{StatusBuilder, StepTime, state_detail};

/// The largest number of attempts at a stop that a gateway answers.
const MAX_FOREIGN_ATTEMPTS: i32 = 5;

/// Returns the status with a claim, for a request that is about to be sent.
pub fn claimed(resource: &WorkflowRunStop, claim: Claim, url: String, step_time: StepTime) -> WorkflowRunStopStatus {
    let mut builder = StatusBuilder::of(resource, step_time);
    let attempts = builder.request().attempts.saturating_add(1);
    // The answer to an earlier request does not belong to this one.
    *builder.request() = StopRequest { url: Some(url), attempts, claim: Some(claim), ..StopRequest::default() };
    builder.requested()
}

/// Returns the status while the stop waits for something before a request may be sent.
pub fn waiting(resource: &WorkflowRunStop, reason: Reason, detail: &str, step_time: StepTime) -> WorkflowRunStopStatus {
    StatusBuilder::of(resource, step_time).going_on((reason, detail))
}

/// The time at which a stop whose credentials were refused is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once, with a new token: the cached one may have expired.
    AtOnce,
    /// With backoff.
    Backoff,
}

/// Returns the status after the answer to the claimed stop request.
pub fn stop_answered(
    resource: &WorkflowRunStop,
    answer: &StopAnswer,
    retry: Retry,
    step_time: StepTime,
) -> WorkflowRunStopStatus {
    let mut builder = StatusBuilder::of(resource, step_time);
    let detail = match answer {
        StopAnswer::Accepted(_, info)
        | StopAnswer::NotOurRun(info)
        | StopAnswer::RateLimited(info, _)
        | StopAnswer::Unauthorized(info)
        | StopAnswer::Forbidden(info)
        | StopAnswer::NotFound(info)
        | StopAnswer::Conflict(info)
        | StopAnswer::BadRequest(info)
        | StopAnswer::Rejected(info)
        | StopAnswer::Foreign(info)
        | StopAnswer::Redirected(info, _)
        | StopAnswer::ServerError(info, _) => {
            builder.info(info);
            info.detail()
        }
        StopAnswer::NotSent(why) | StopAnswer::NoAnswer(why) => why.clone(),
        StopAnswer::TooLate => String::new(),
    };
    match answer {
        StopAnswer::Accepted(run, _) => {
            if let Some(run) = run {
                builder.request().answered_state = Some(run.state.clone());
                // Tasks that were read before the stop are outdated.
                builder.status.task_instances = None;
                builder.status.task_instances_omitted = None;
                builder.observe((**run).clone());
            }
            builder.accepted(Reason::StopAccepted)
        }
        StopAnswer::RateLimited(_, reopens_in) => builder.refused(*reopens_in, (Reason::RateLimited, &detail)),
        StopAnswer::Unauthorized(_) | StopAnswer::Forbidden(_) => {
            let wait = match retry {
                Retry::AtOnce => Duration::ZERO,
                Retry::Backoff => builder.backoff(MAX_CREDENTIALS_DELAY),
            };
            let forbidden = matches!(answer, StopAnswer::Forbidden(_));
            let reason = if forbidden { Reason::Forbidden } else { Reason::Unauthorized };
            builder.refused(wait, (reason, &detail))
        }
        StopAnswer::NotSent(_) => {
            let wait = builder.backoff(MAX_DELAY);
            builder.refused(wait, (Reason::Unreachable, &detail))
        }
        StopAnswer::TooLate => {
            let why = "the previous attempt was not sent because its claim or the deadline expired first";
            let wait = builder.backoff(MAX_DELAY);
            builder.refused(wait, (Reason::StopRequested, why))
        }
        // Amperity answered: the run is read at once.
        StopAnswer::Conflict(_) => {
            builder.unclear(UnclearAnswer::Conflict, Duration::ZERO, (Reason::Conflict, &detail))
        }
        StopAnswer::BadRequest(_) => {
            builder.unclear(UnclearAnswer::Conflict, Duration::ZERO, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::ServerError(_, retry_after) => {
            let wait = step_time.settle_time.max(retry_after.unwrap_or_default());
            builder.unclear(UnclearAnswer::ServerError, wait, (Reason::Unavailable, &detail))
        }
        StopAnswer::NotOurRun(_) => {
            let detail = format!("{detail}, but the body is not this run");
            builder.unclear(UnclearAnswer::NotOurRun, step_time.settle_time, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::Foreign(_) => {
            builder.unclear(UnclearAnswer::NotOurRun, step_time.settle_time, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::Redirected(info, to) => {
            // Kept for the message after the run has been read.
            let message = format!("a redirect to {to}, which is never followed");
            let info = ResponseInfo { message: Some(message), ..info.clone() };
            builder.info(&info);
            builder.unclear(UnclearAnswer::NotOurRun, step_time.settle_time, (Reason::OutcomeUnknown, &info.detail()))
        }
        StopAnswer::NoAnswer(_) => {
            builder.unclear(UnclearAnswer::NoAnswer, step_time.settle_time, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::NotFound(_) => builder.rejected((Reason::RunNotFound, &detail)),
        StopAnswer::Rejected(_) => builder.rejected((Reason::Rejected, &detail)),
    }
}

/// Returns the status after reading the run to learn the outcome of the claimed request, or of the last one before it is
/// repeated.
pub fn confirmed(
    resource: &WorkflowRunStop,
    answer: &ReadAnswer,
    established: Established,
    failures: u32,
    step_time: StepTime,
) -> WorkflowRunStopStatus {
    let mut builder = StatusBuilder::of(resource, step_time);
    match answer {
        ReadAnswer::Run(run) => {
            let detail = state_detail(Some(&run.state));
            builder.observe((**run).clone());
            match Phase::of(&run.state) {
                Phase::Stopping | Phase::Stopped => builder.accepted(Reason::ConfirmedByRead),
                Phase::EndedOtherwise => {
                    builder.request().claim = None;
                    builder.set(
                        ConditionType::StopAccepted,
                        ConditionStatus::Unknown,
                        (Reason::RunEndedOtherwise, &detail),
                    );
                    builder.finished(true, (Reason::RunEndedOtherwise, &detail))
                }
                Phase::Active => match Answered::of(resource) {
                    // Amperity itself said that the stop was not carried out: one read is enough.
                    Answered::Conflict => {
                        let wait = builder.backoff(MAX_DELAY);
                        builder.refused(wait, (Reason::Conflict, &detail))
                    }
                    Answered::BadRequest(info) => {
                        builder.rejected((Reason::Rejected, &format!("{info}, and the run is in {detail}")))
                    }
                    _ if !established.active => builder.still_open(&detail),
                    Answered::Redirect(info) => builder.rejected((Reason::UnexpectedAnswer, &info)),
                    Answered::ClientError(info) => {
                        let why = (Reason::UnexpectedAnswer, info.as_str());
                        if MAX_FOREIGN_ATTEMPTS <= builder.request().attempts {
                            return builder.rejected(why);
                        }
                        let wait = builder.backoff(MAX_DELAY);
                        builder.refused(wait, why)
                    }
                    Answered::Otherwise => {
                        let detail = format!("the request had no effect, state {}", run.state);
                        let wait = builder.backoff(MAX_DELAY);
                        builder.refused(wait, (Reason::Unavailable, &detail))
                    }
                },
            }
        }
        ReadAnswer::Unreadable(info) => {
            let detail = format!("the run cannot be read ({})", info.detail());
            if !established.unreadable {
                return builder.still_open(&detail);
            }
            let same = builder.request().http_status == Some(i32::from(info.status));
            match Answered::of(resource) {
                Answered::Conflict => builder.rejected((Reason::Rejected, &format!("HTTP 409, and {detail}"))),
                Answered::BadRequest(answered) => {
                    builder.rejected((Reason::Rejected, &format!("{answered}, and {detail}")))
                }
                Answered::Redirect(answered) if same => builder.rejected((Reason::UnexpectedAnswer, &answered)),
                Answered::ClientError(answered) if same => {
                    let not_found = StatusKind::of(info.status) == StatusKind::NotFound;
                    let reason = if not_found { Reason::RunNotFound } else { Reason::Rejected };
                    builder.rejected((reason, &format!("{answered}, and {detail}")))
                }
                Answered::Redirect(_) | Answered::ClientError(_) | Answered::Otherwise => builder.unknown(&detail),
            }
        }
        ReadAnswer::Failed(failure) => {
            let wait = match failure {
                ReadFailure::RateLimited(_, reopens_in) => *reopens_in,
                ReadFailure::Unauthorized(_) | ReadFailure::NotSent(_) | ReadFailure::Unavailable(..) => {
                    delay(failures, MAX_DELAY, step_time.jitter).max(failure.retry_after().unwrap_or_default())
                }
            };
            builder.next_attempt_in(wait);
            let (reason, detail) = read_failure(failure);
            builder.going_on((reason, &detail))
        }
    }
}

/// The answer to the last stop request, as far as the status still has it, with its text.
enum Answered {
    /// Amperity's own 409.
    Conflict,
    /// Amperity's own 400 or 422.
    BadRequest(String),
    /// 3xx.
    Redirect(String),
    /// Any other 4xx, not Amperity's own.
    ClientError(String),
    /// 5xx, a success without the run, or no answer.
    Otherwise,
}

impl Answered {
    fn of(resource: &WorkflowRunStop) -> Self {
        let status = resource.status.as_ref();
        let request = resource.stop_request();
        let Some(http) = request.and_then(|request| request.http_status).and_then(|http| u16::try_from(http).ok())
        else {
            return Self::Otherwise;
        };
        // After the claim is dropped, the condition `StopAccepted` still has the reason of the answer.
        let own = match resource.claim().map(|claim| claim.ended.as_ref().map(|ended| ended.answer)) {
            Some(answer) => answer == Some(UnclearAnswer::Conflict),
            None => {
                let dropped =
                    status.and_then(|status| conditions::find(&status.conditions, ConditionType::StopAccepted));
                dropped.and_then(Reason::of) == Some(Reason::Conflict)
            }
        };
        let message = request.and_then(|request| request.message.clone());
        let info = ResponseInfo { status: http, message, request_id: None, own }.detail();
        match StatusKind::of(http) {
            StatusKind::Conflict if own => Self::Conflict,
            StatusKind::ClientError if own => Self::BadRequest(info),
            StatusKind::Redirect => Self::Redirect(info),
            StatusKind::Conflict | StatusKind::NotFound | StatusKind::ClientError => Self::ClientError(info),
            StatusKind::Other => Self::Otherwise,
        }
    }
}

/// Returns the status after reading a run whose stop was accepted.
pub fn followed(
    resource: &WorkflowRunStop,
    answer: &ReadAnswer,
    established: Established,
    step_time: StepTime,
) -> WorkflowRunStopStatus {
    let mut builder = StatusBuilder::of(resource, step_time);
    match answer {
        ReadAnswer::Run(run) => {
            let detail = state_detail(Some(&run.state));
            builder.observe((**run).clone());
            // A verbose view without the field has no tasks.
            builder.status.task_instances.get_or_insert_default();
            builder.going_on((Reason::FollowingRun, &detail))
        }
        // A gateway may have answered: only a second unreadable read is final.
        ReadAnswer::Unreadable(info) if !established.unreadable => {
            let state = builder.status.state.as_deref().map(|state| format!("last known state {state}, "));
            let detail = format!("{}the last read was answered with {}", state.unwrap_or_default(), info.detail());
            builder.going_on((Reason::FollowingRun, &detail))
        }
        ReadAnswer::Unreadable(info) => {
            let ended = builder.status.state.as_deref().map(Phase::of).filter(|phase| phase.has_ended());
            match ended {
                Some(_) => finished(resource, Ending::Ended, step_time),
                None => builder.finished(true, (Reason::RunUnreadable, &info.detail())),
            }
        }
        ReadAnswer::Failed(failure) => {
            let (reason, detail) = read_failure(failure);
            builder.going_on((reason, &detail))
        }
    }
}

fn read_failure(failure: &ReadFailure) -> (Reason, String) {
    match failure {
        ReadFailure::RateLimited(info, _) => (Reason::RateLimited, info.detail()),
        ReadFailure::Unauthorized(info) => (Reason::Unauthorized, info.detail()),
        ReadFailure::NotSent(why) => (Reason::Unreachable, why.clone()),
        ReadFailure::Unavailable(why, _) => (Reason::Unavailable, why.clone()),
    }
}

/// Returns the final status.
pub fn finished(resource: &WorkflowRunStop, ending: Ending, step_time: StepTime) -> WorkflowRunStopStatus {
    let builder = StatusBuilder::of(resource, step_time);
    let state = builder.status.state.clone();
    let detail = state_detail(state.as_deref());
    let last = conditions::find(&builder.status.conditions, ConditionType::Ready);
    let last = last.map(|ready| format!("the last reason was {}", ready.reason)).unwrap_or_default();
    match ending {
        Ending::Ended => match state.as_deref().map(Phase::of) {
            Some(Phase::EndedOtherwise) => builder.finished(true, (Reason::RunEndedOtherwise, &detail)),
            Some(Phase::Stopped | Phase::Stopping | Phase::Active) | None => {
                builder.finished(true, (Reason::RunStopped, &detail))
            }
        },
        Ending::NotFollowed => {
            builder.finished(true, (Reason::StopAccepted, "the run is not followed because followTimeoutSeconds is 0"))
        }
        Ending::StillActive => builder.finished(false, (Reason::RunStillActive, &detail)),
        Ending::Expired => builder.finished(true, (Reason::Expired, "")),
        Ending::DeadlineExceeded => builder.finished(false, (Reason::DeadlineExceeded, &last)),
        Ending::OutcomeUnknown => {
            builder.unknown(&format!("reads of the run did not show the outcome in time, {last}"))
        }
    }
}
