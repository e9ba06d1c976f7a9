//! Owns what an outcome makes of the status: answers and endings in, the new status out.
//! Never claims more than was observed, never does IO, reads a clock or throws dice.

use std::time::Duration;

use crate::amperity::answer::{ReadAnswer, ReadFailure, Said, StatusKind, StopAnswer};
use crate::resource::conditions::{self, ConditionType, Reason, Truth};
use crate::resource::{Claim, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};
use crate::run::Phase;
use crate::stop::backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay};
use crate::stop::decide::{Ending, Established};
use crate::stop::draft::{Draft, Moment, state_detail};

/// A stop whose attempt with this number, or a later one, is answered by a gateway instead of Amperity is not tried again.
const MAX_FOREIGN_ATTEMPTS: i32 = 5;

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
        | StopAnswer::BadRequest(said)
        | StopAnswer::Rejected(said)
        | StopAnswer::Foreign(said)
        | StopAnswer::Redirected(said, _)
        | StopAnswer::ServerError(said, _) => {
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
            let why = (Reason::StopRequested, "the claim or the deadline expired before the request could be sent");
            draft.request().claim = None;
            let wait = draft.backoff(MAX_DELAY);
            draft.next_attempt_in(wait);
            draft.set(ConditionType::StopAccepted, Truth::False, why);
            draft.going_on(Truth::Unknown, why)
        }
        // The request was answered: the run is read at once.
        StopAnswer::Conflict(_) => {
            let why = (Truth::False, (Reason::Conflict, detail.as_str()));
            draft.unclear(UnclearAnswer::Conflict, Duration::ZERO, why)
        }
        StopAnswer::BadRequest(_) => {
            let why = (Truth::Unknown, (Reason::OutcomeUnknown, detail.as_str()));
            draft.unclear(UnclearAnswer::Conflict, Duration::ZERO, why)
        }
        StopAnswer::ServerError(_, retry_after) => {
            let wait = moment.settle_time.max(retry_after.unwrap_or_default());
            let why = (Truth::False, (Reason::Unavailable, detail.as_str()));
            draft.unclear(UnclearAnswer::ServerError, wait, why)
        }
        StopAnswer::NotOurRun(_) => {
            let detail = format!("{detail}, but not with this run");
            let why = (Truth::Unknown, (Reason::OutcomeUnknown, detail.as_str()));
            draft.unclear(UnclearAnswer::NotOurRun, moment.settle_time, why)
        }
        StopAnswer::Foreign(_) => {
            let why = (Truth::Unknown, (Reason::OutcomeUnknown, detail.as_str()));
            draft.unclear(UnclearAnswer::NotOurRun, moment.settle_time, why)
        }
        StopAnswer::Redirected(said, to) => {
            // The host is still needed when the run has been read.
            let message = format!("a redirect to {to}, which is never followed");
            let said = Said { message: Some(message), ..said.clone() };
            draft.said(&said);
            let detail = said.detail();
            let why = (Truth::Unknown, (Reason::OutcomeUnknown, detail.as_str()));
            draft.unclear(UnclearAnswer::NotOurRun, moment.settle_time, why)
        }
        StopAnswer::NoAnswer(_) => {
            let why = (Truth::Unknown, (Reason::OutcomeUnknown, detail.as_str()));
            draft.unclear(UnclearAnswer::NoAnswer, moment.settle_time, why)
        }
        StopAnswer::NotFound(_) => draft.rejected((Reason::RunNotFound, &detail)),
        StopAnswer::Rejected(_) => draft.rejected((Reason::Rejected, &detail)),
    }
}

/// The status after reading the run to learn what became of a stop request: of the claim's, or of an earlier one before
/// a further one is sent.
pub fn confirmed(
    resource: &WorkflowRunStop,
    answer: &ReadAnswer,
    established: Established,
    failures: u32,
    moment: Moment,
) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    match answer {
        ReadAnswer::Run(run) => {
            let detail = state_detail(Some(&run.state));
            draft.observe((**run).clone());
            match Phase::of(&run.state) {
                Phase::Stopping | Phase::Stopped => draft.accepted(Reason::ConfirmedByRead),
                Phase::EndedOtherwise => {
                    draft.request().claim = None;
                    draft.set(ConditionType::StopAccepted, Truth::Unknown, (Reason::RunEndedOtherwise, &detail));
                    draft.finished(true, (Reason::RunEndedOtherwise, &detail))
                }
                Phase::Active => match Answered::of(resource) {
                    // Amperity's own word that the stop was not carried out: once is enough.
                    Answered::Conflict => {
                        let wait = draft.backoff(MAX_DELAY);
                        draft.refused(wait, (Reason::Conflict, &detail))
                    }
                    Answered::BadRequest(said) => draft.rejected((Reason::Rejected, &format!("{said}, {detail}"))),
                    _ if !established.active => draft.still_open(&detail),
                    Answered::Redirect(said) => draft.rejected((Reason::UnexpectedAnswer, &said)),
                    Answered::ClientError(said) => {
                        let why = (Reason::UnexpectedAnswer, said.as_str());
                        if MAX_FOREIGN_ATTEMPTS <= draft.request().attempts {
                            return draft.rejected(why);
                        }
                        let wait = draft.backoff(MAX_DELAY);
                        draft.refused(wait, why)
                    }
                    Answered::Otherwise => {
                        let detail = format!("the request had no effect, the run's state is {}", run.state);
                        let wait = draft.backoff(MAX_DELAY);
                        draft.refused(wait, (Reason::Unavailable, &detail))
                    }
                },
            }
        }
        ReadAnswer::Unreadable(said) => {
            let detail = format!("the run cannot be read ({})", said.detail());
            if !established.unreadable {
                return draft.still_open(&detail);
            }
            let same = draft.request().http_status == Some(i32::from(said.status));
            match Answered::of(resource) {
                Answered::Conflict => draft.rejected((Reason::Rejected, &format!("HTTP 409, and {detail}"))),
                Answered::BadRequest(answered) => {
                    draft.rejected((Reason::Rejected, &format!("{answered}, and {detail}")))
                }
                Answered::Redirect(answered) if same => draft.rejected((Reason::UnexpectedAnswer, &answered)),
                Answered::ClientError(answered) if same => {
                    let not_found = StatusKind::of(said.status) == StatusKind::NotFound;
                    let reason = if not_found { Reason::RunNotFound } else { Reason::Rejected };
                    draft.rejected((reason, &format!("{answered}, and {detail}")))
                }
                Answered::Redirect(_) | Answered::ClientError(_) | Answered::Otherwise => draft.unknown(&detail),
            }
        }
        ReadAnswer::Failed(failure) => {
            let wait = delay(failures, MAX_DELAY, moment.jitter).max(failure.retry_after().unwrap_or_default());
            draft.next_attempt_in(wait);
            let (reason, detail) = read_failure(failure);
            draft.going_on(Truth::False, (reason, &detail))
        }
    }
}

/// How the last stop request was answered, as far as the status still tells; with the answer in words.
enum Answered {
    /// Amperity's own 409.
    Conflict,
    /// Amperity's own 400 or 422.
    BadRequest(String),
    /// 3xx.
    Redirect(String),
    /// Any other 4xx, not Amperity's own.
    ClientError(String),
    /// 5xx, a success without the run, or not at all.
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
        // A dropped claim has left its reason behind.
        let own = match resource.claim().map(|claim| claim.ended.as_ref().map(|ended| ended.answer)) {
            Some(answer) => answer == Some(UnclearAnswer::Conflict),
            None => {
                let dropped =
                    status.and_then(|status| conditions::find(&status.conditions, ConditionType::StopAccepted));
                dropped.and_then(Reason::of) == Some(Reason::Conflict)
            }
        };
        let message = request.and_then(|request| request.message.clone());
        let said = Said { status: http, message, request_id: None, own }.detail();
        match StatusKind::of(http) {
            StatusKind::Conflict if own => Self::Conflict,
            StatusKind::ClientError if own => Self::BadRequest(said),
            StatusKind::Redirect => Self::Redirect(said),
            StatusKind::Conflict | StatusKind::NotFound | StatusKind::ClientError => Self::ClientError(said),
            StatusKind::Other => Self::Otherwise,
        }
    }
}

/// The status after reading a run whose stop was accepted.
pub fn followed(
    resource: &WorkflowRunStop,
    answer: &ReadAnswer,
    established: Established,
    moment: Moment,
) -> WorkflowRunStopStatus {
    let mut draft = Draft::of(resource, moment);
    match answer {
        ReadAnswer::Run(run) => {
            let detail = state_detail(Some(&run.state));
            draft.observe((**run).clone());
            // The verbose view without tasks has none to tell of.
            draft.status.task_instances.get_or_insert_default();
            draft.going_on(Truth::Unknown, (Reason::FollowingRun, &detail))
        }
        // A gateway may have answered: only the same again makes it final.
        ReadAnswer::Unreadable(said) if !established.unreadable => {
            let state = draft.status.state.as_deref().map(|state| format!("its last known state is {state}, "));
            let detail = format!("{}the last read was answered {}", state.unwrap_or_default(), said.detail());
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
        ReadFailure::Unavailable(why, _) => (Reason::Unavailable, why.clone()),
    }
}

/// The status of the end.
pub fn finished(resource: &WorkflowRunStop, ending: Ending, moment: Moment) -> WorkflowRunStopStatus {
    let draft = Draft::of(resource, moment);
    let state = draft.status.state.clone();
    let detail = state_detail(state.as_deref());
    let last = conditions::find(&draft.status.conditions, ConditionType::Ready);
    let last = last.map(|ready| format!("the last reason was {}", ready.reason)).unwrap_or_default();
    match ending {
        Ending::Ended => match state.as_deref().map(Phase::of) {
            Some(Phase::EndedOtherwise) => draft.finished(true, (Reason::RunEndedOtherwise, &detail)),
            Some(Phase::Stopped | Phase::Stopping | Phase::Active) | None => {
                draft.finished(true, (Reason::RunStopped, &detail))
            }
        },
        Ending::NotFollowed => draft.finished(true, (Reason::StopAccepted, "the run is not followed")),
        Ending::StillActive => draft.finished(false, (Reason::RunStillActive, &detail)),
        Ending::Expired => draft.finished(true, (Reason::Expired, "")),
        Ending::DeadlineExceeded => draft.finished(false, (Reason::DeadlineExceeded, &last)),
        Ending::OutcomeUnknown => draft.unknown(&format!("reads of the run did not show it in time, {last}")),
    }
}
