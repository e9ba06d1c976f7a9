//! Owns what an outcome makes of the status: answers and endings in, the new status out.
//! Never claims more than was observed, never does IO, reads a clock or throws dice.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::amperity::answer::{ReadAnswer, ReadFailure, Said, StopAnswer};
use crate::resource::conditions::{self, ConditionType, Reason, Truth};
use crate::resource::{Claim, ClaimEnded, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};
use crate::run::{Phase, Run, fit_tasks};
use crate::stop::backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay};
use crate::stop::decide::{ActiveRead, Ending};

/// When an outcome came, and the dice for what follows.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The date.
    pub now: Timestamp,
    /// From 0 up to 1.
    pub jitter: f64,
    /// How long a request without an answer may go on working at the API's side.
    pub settle_time: Duration,
}

/// A new status in the making.
struct Draft {
    status: WorkflowRunStopStatus,
    generation: Option<i64>,
    moment: Moment,
}

impl Draft {
    fn of(resource: &WorkflowRunStop, moment: Moment) -> Self {
        let mut status = resource.status.clone().unwrap_or_default();
        let generation = resource.metadata.generation;
        status.observed_generation = generation;
        Self { status, generation, moment }
    }

    fn now(&self) -> Time {
        Time(rounded(self.moment.now, RoundMode::Trunc))
    }

    fn request(&mut self) -> &mut StopRequest {
        self.status.stop_request.get_or_insert_default()
    }

    /// Not before then: a written time has whole seconds, so it is rounded up.
    fn next_attempt_in(&mut self, wait: Duration) {
        if wait.is_zero() {
            self.request().next_attempt_time = None;
            return;
        }
        let at = self.moment.now.saturating_add(wait).unwrap_or(Timestamp::MAX);
        self.request().next_attempt_time = Some(Time(rounded(at, RoundMode::Ceil)));
    }

    fn backoff(&mut self, max: Duration) -> Duration {
        let attempts = u32::try_from(self.request().attempts).unwrap_or_default();
        delay(attempts, max, self.moment.jitter)
    }

    fn set(&mut self, kind: ConditionType, truth: Truth, (reason, detail): (Reason, &str)) {
        let new = conditions::condition(kind, truth, (reason, reason.message(detail)), self.generation, &self.now());
        conditions::set(&mut self.status.conditions, new);
    }

    /// Work goes on: `Unknown` in progress, `False` while it fails.
    fn going_on(mut self, ready: Truth, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.set(ConditionType::Ready, ready, why);
        self.set(ConditionType::Reconciling, Truth::True, why);
        self.not_sent_by_default(why);
        self.run_ended(why.0);
        self.status
    }

    fn finished(mut self, well: bool, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.set(ConditionType::Ready, if well { Truth::True } else { Truth::False }, why);
        if !well {
            self.set(ConditionType::Stalled, Truth::True, why);
        }
        self.not_sent_by_default(why);
        conditions::remove(&mut self.status.conditions, ConditionType::Reconciling);
        self.run_ended(why.0);
        if let Some(request) = &mut self.status.stop_request {
            request.next_attempt_time = None;
        }
        self.status.completion_time = Some(self.now());
        self.status
    }

    fn not_sent_by_default(&mut self, why: (Reason, &str)) {
        if conditions::find(&self.status.conditions, ConditionType::StopAccepted).is_none() {
            self.set(ConditionType::StopAccepted, Truth::False, why);
        }
    }

    fn run_ended(&mut self, reason: Reason) {
        let state = self.status.state.clone();
        let (truth, reason) = match state.as_deref().map(Phase::of) {
            None => (Truth::Unknown, reason),
            Some(Phase::Stopped) => (Truth::True, Reason::RunStopped),
            Some(Phase::EndedOtherwise) => (Truth::True, Reason::RunEndedOtherwise),
            Some(Phase::Active | Phase::Stopping) => (Truth::False, reason),
        };
        self.set(ConditionType::RunEnded, truth, (reason, &state_detail(state.as_deref())));
    }

    /// Takes over what an answer says of the run. What it does not speak of stays as it was.
    fn observe(&mut self, run: Run) {
        let Run { id: _, state, error, tasks, details } = run;
        self.status.state = Some(state);
        self.status.error = error;
        self.status.run = Some(details);
        if let Some(tasks) = tasks {
            let (kept, omitted) = fit_tasks(tasks);
            self.status.task_instances = Some(kept);
            self.status.task_instances_omitted = i32::try_from(omitted).ok().filter(|omitted| *omitted != 0);
        }
    }

    fn said(&mut self, said: &Said) {
        let Said { status, message, request_id } = said.clone();
        let request = self.request();
        request.http_status = Some(i32::from(status));
        request.message = message;
        request.request_id = request_id;
    }

    fn accepted(mut self, reason: Reason) -> WorkflowRunStopStatus {
        let now = self.now();
        let request = self.request();
        request.claim = None;
        request.next_attempt_time = None;
        request.accepted_time = Some(now);
        self.set(ConditionType::StopAccepted, Truth::True, (reason, ""));
        let detail = state_detail(self.status.state.as_deref());
        self.going_on(Truth::Unknown, (Reason::FollowingRun, &detail))
    }

    /// Surely without effect: the claim is dropped and the request is made again later.
    fn refused(mut self, wait: Duration, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.request().claim = None;
        self.next_attempt_in(wait);
        self.set(ConditionType::StopAccepted, Truth::False, why);
        self.going_on(Truth::False, why)
    }

    fn rejected(mut self, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.request().claim = None;
        self.set(ConditionType::StopAccepted, Truth::False, why);
        self.finished(false, why)
    }

    /// The outcome is open: the claim stays, and reading the run is what comes next.
    fn unclear(mut self, answer: UnclearAnswer, ready: Truth, why: (Reason, &str)) -> WorkflowRunStopStatus {
        let ended = ClaimEnded { time: self.now(), answer };
        if let Some(claim) = &mut self.request().claim {
            claim.ended = Some(ended);
        }
        match answer {
            UnclearAnswer::Conflict => self.request().next_attempt_time = None,
            UnclearAnswer::NoAnswer | UnclearAnswer::ServerError | UnclearAnswer::NotOurRun => {
                self.next_attempt_in(self.moment.settle_time);
            }
        }
        self.set(ConditionType::StopAccepted, Truth::Unknown, why);
        self.going_on(ready, why)
    }
}

fn rounded(at: Timestamp, mode: RoundMode) -> Timestamp {
    at.round(TimestampRound::new().smallest(Unit::Second).mode(mode)).unwrap_or(at)
}

fn state_detail(state: Option<&str>) -> String {
    state.map(|state| format!("its state is {state}")).unwrap_or_default()
}

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
            draft.request().claim = None;
            draft.set(ConditionType::StopAccepted, Truth::False, (Reason::StopRequested, ""));
            draft.going_on(Truth::Unknown, (Reason::StopRequested, ""))
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
