//! Owns what an outcome makes of the status: answers and endings in, the new status out.
//! Never claims more than was observed, never does IO, reads a clock or throws dice.

use std::time::Duration;

use crate::amperity::answer::{ReadAnswer, ReadFailure, StopAnswer};
use crate::resource::conditions::{self, ConditionType, Reason, Truth};
use crate::resource::{Claim, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};
use crate::run::Phase;
use crate::stop::backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay};
use crate::stop::decide::{ActiveRead, Ending};
use crate::stop::draft::{Draft, Moment, state_detail};

/// The status with a claim: the request is about to be sent.
pub fn claimed(resource: &WorkflowRunStop, claim: Claim, url: String, moment: Moment) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    let attempts = draft.request().attempts.saturating_add(1);
    // What an earlier answer said is not of this request.
    *draft.request() = StopRequest { url: Some(url), attempts, claim: Some(claim), ..StopRequest::default() };
    draft.set(ConditionType::StopAccepted, Truth::Unknown, (Reason::StopRequested, ""));
    draft.going_on(Truth::Unknown, (Reason::StopRequested, ""))
}

/// The status while something has to be waited for before a request may be sent.
pub fn waiting(resource: &WorkflowRunStop, reason: Reason, detail: &str, moment: Moment) -> WorkflowRunStopStatus {
    let in_order = matches!(reason, Reason::Suspended | Reason::WaitingForBudget);
    let ready = if in_order { Truth::Unknown } else { Truth::False };
    Draft::of(resource, moment).going_on(ready, (reason, detail))
}

/// When refused credentials may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once: the token was simply too old, and a new one is fetched.
    AtOnce,
    /// After a while.
    Backoff,
}

/// The status after the answer to the claimed stop request.
pub fn stop_answered(
    resource: &WorkflowRunStop,
    answer: &StopAnswer,
    retry: Retry,
    moment: Moment,
) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    let detail = match answer {
        StopAnswer::Accepted(_, said)
        | StopAnswer::NotOurRun(said)
        | StopAnswer::RateLimited(said, _)
        | StopAnswer::Unauthorized(said)
        | StopAnswer::Forbidden(said)
        | StopAnswer::NotFound(said)
        | StopAnswer::Conflict(said)
        | StopAnswer::Rejected(said)
        | StopAnswer::Redirected(said, _)
        | StopAnswer::ServerError(said) => {
            draft.said(said);
            said.detail()
        }
        StopAnswer::NotSent(why) | StopAnswer::NoAnswer(why) => why.clone(),
        StopAnswer::TooLate => String::new(),
    };
    match answer {
        StopAnswer::Accepted(run, _) => {
            if let Some(run) = run {
                draft.request().answered_state = Some(run.state.clone());
                // Tasks that were read before the stop are not those of its end.
                draft.status.task_instances = None;
                draft.status.task_instances_omitted = None;
                draft.observe((**run).clone());
            }
            draft.accepted(Reason::StopAccepted)
        }
        StopAnswer::RateLimited(_, retry_after) => {
            let wait = retry_after.unwrap_or_else(|| draft.backoff(MAX_DELAY));
            draft.refused(wait, (Reason::RateLimited, &detail))
        }
        StopAnswer::Unauthorized(_) | StopAnswer::Forbidden(_) => {
            let wait = match retry {
                Retry::AtOnce => Duration::ZERO,
                Retry::Backoff => draft.backoff(MAX_CREDENTIALS_DELAY),
            };
            let forbidden = matches!(answer, StopAnswer::Forbidden(_));
            let reason = if forbidden { Reason::Forbidden } else { Reason::Unauthorized };
            draft.refused(wait, (reason, &detail))
        }
        StopAnswer::NotSent(_) => {
            let wait = draft.backoff(MAX_DELAY);
            draft.refused(wait, (Reason::Unreachable, &detail))
        }
        StopAnswer::TooLate => {
            let why =
                (Reason::StopRequested, "it could not be written before its claim was too old, and is made again");
            draft.request().claim = None;
            let wait = draft.backoff(MAX_DELAY);
            draft.next_attempt_in(wait);
            draft.set(ConditionType::StopAccepted, Truth::False, why);
            draft.going_on(Truth::Unknown, why)
        }
        StopAnswer::Conflict(_) => draft.unclear(UnclearAnswer::Conflict, Truth::False, (Reason::Conflict, &detail)),
        StopAnswer::ServerError(_) => {
            draft.unclear(UnclearAnswer::ServerError, Truth::False, (Reason::Unavailable, &detail))
        }
        StopAnswer::NotOurRun(_) => {
            let detail = format!("{detail}, but not with this run");
            draft.unclear(UnclearAnswer::NotOurRun, Truth::Unknown, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::NoAnswer(_) => {
            draft.unclear(UnclearAnswer::NoAnswer, Truth::Unknown, (Reason::OutcomeUnknown, &detail))
        }
        StopAnswer::NotFound(_) => draft.rejected((Reason::RunNotFound, &detail)),
        StopAnswer::Rejected(_) => draft.rejected((Reason::Rejected, &detail)),
        StopAnswer::Redirected(_, to) => {
            let detail = format!("{detail}, a redirect to {to}, which is never followed");
            draft.rejected((Reason::UnexpectedAnswer, &detail))
        }
    }
}

/// The status after reading the run to learn what became of the claim's request.
pub fn confirmed(
    resource: &WorkflowRunStop,
    answer: &ReadAnswer,
    active: ActiveRead,
    failures: u32,
    moment: Moment,
) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    let ended = resource.claim().and_then(|claim| claim.ended.as_ref()).map(|ended| ended.answer);
    match answer {
        ReadAnswer::Run(run) => {
            let phase = Phase::of(&run.state);
            let detail = state_detail(Some(&run.state));
            draft.observe((**run).clone());
            match (phase, ended) {
                (Phase::Stopping | Phase::Stopped, _) => draft.accepted(Reason::ConfirmedByRead),
                (Phase::EndedOtherwise, _) => {
                    draft.request().claim = None;
                    draft.set(ConditionType::StopAccepted, Truth::Unknown, (Reason::RunEndedOtherwise, &detail));
                    draft.finished(true, (Reason::RunEndedOtherwise, &detail))
                }
                (Phase::Active, Some(UnclearAnswer::Conflict)) => {
                    let wait = draft.backoff(MAX_DELAY);
                    draft.refused(wait, (Reason::Conflict, &detail))
                }
                (Phase::Active, _) => match active {
                    ActiveRead::First => {
                        draft.next_attempt_in(moment.settle_time);
                        draft.set(ConditionType::StopAccepted, Truth::Unknown, (Reason::OutcomeUnknown, &detail));
                        draft.going_on(Truth::Unknown, (Reason::OutcomeUnknown, &detail))
                    }
                    ActiveRead::Again => {
                        let detail = format!("the request had no effect, {detail}");
                        let wait = draft.backoff(MAX_DELAY);
                        draft.refused(wait, (Reason::Unavailable, &detail))
                    }
                },
            }
        }
        ReadAnswer::Unreadable(said) => {
            let detail = format!("the run cannot be read to find out more ({})", said.detail());
            match ended {
                Some(UnclearAnswer::Conflict) => draft.rejected((Reason::Rejected, &format!("HTTP 409, and {detail}"))),
                Some(UnclearAnswer::ServerError) => {
                    let wait = draft.backoff(MAX_DELAY);
                    draft.refused(wait, (Reason::Unavailable, &detail))
                }
                Some(UnclearAnswer::NoAnswer | UnclearAnswer::NotOurRun) | None => {
                    draft.set(ConditionType::StopAccepted, Truth::Unknown, (Reason::OutcomeUnknown, &detail));
                    draft.finished(false, (Reason::OutcomeUnknown, &detail))
                }
            }
        }
        ReadAnswer::Failed(failure) => {
            draft.next_attempt_in(delay(failures, MAX_DELAY, moment.jitter));
            let (reason, detail) = read_failure(failure);
            draft.going_on(Truth::False, (reason, &detail))
        }
    }
}

/// The status after reading a run whose stop was accepted.
pub fn followed(resource: &WorkflowRunStop, answer: &ReadAnswer, moment: Moment) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    match answer {
        ReadAnswer::Run(run) => {
            let detail = state_detail(Some(&run.state));
            draft.observe((**run).clone());
            // The verbose view without tasks has none to tell of.
            draft.status.task_instances.get_or_insert_default();
            draft.going_on(Truth::Unknown, (Reason::FollowingRun, &detail))
        }
        ReadAnswer::Unreadable(said) => {
            let ended = draft.status.state.as_deref().map(Phase::of).filter(|phase| phase.has_ended());
            match ended {
                Some(_) => finished(resource, Ending::Ended, moment),
                None => draft.finished(true, (Reason::RunUnreadable, &said.detail())),
            }
        }
        ReadAnswer::Failed(failure) => {
            let (reason, detail) = read_failure(failure);
            draft.going_on(Truth::False, (reason, &detail))
        }
    }
}

fn read_failure(failure: &ReadFailure) -> (Reason, String) {
    match failure {
        ReadFailure::RateLimited(said) => (Reason::RateLimited, said.detail()),
        ReadFailure::Unauthorized(said) => (Reason::Unauthorized, said.detail()),
        ReadFailure::NotSent(why) => (Reason::Unreachable, why.clone()),
        ReadFailure::Unavailable(why) => (Reason::Unavailable, why.clone()),
    }
}

/// The status of the end.
pub fn finished(resource: &WorkflowRunStop, ending: Ending, moment: Moment) -> WorkflowRunStopStatus {
    let draft = Draft::of(resource, moment);
    let state = draft.status.state.clone();
    let detail = state_detail(state.as_deref());
    match ending {
        Ending::Ended => match state.as_deref().map(Phase::of) {
            Some(Phase::EndedOtherwise) => draft.finished(true, (Reason::RunEndedOtherwise, &detail)),
            Some(Phase::Stopped | Phase::Stopping | Phase::Active) | None => {
                draft.finished(true, (Reason::RunStopped, &detail))
            }
        },
        Ending::NotFollowed => draft.finished(true, (Reason::StopAccepted, "the run is not followed")),
        Ending::StillActive => draft.finished(false, (Reason::RunStillActive, &detail)),
        Ending::DeadlineExceeded => {
            let last = conditions::find(&draft.status.conditions, ConditionType::Ready);
            let last = last.map(|ready| format!("the last reason was {}", ready.reason)).unwrap_or_default();
            draft.finished(false, (Reason::DeadlineExceeded, &last))
        }
    }
}
