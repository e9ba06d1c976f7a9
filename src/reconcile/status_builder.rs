//! Owns the transitions of a status: accepted, refused, unclear, finished and so on.
//! Never does IO, and reads no clock or random number.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use workflow_run_stop_api::conditions::{self, ConditionStatus, ConditionType, Reason};
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{Claim, ClaimEnded, StopRequest, UnclearAnswer, WorkflowRunStop, WorkflowRunStopStatus};

use crate::amperity::answer::ResponseInfo;
use crate::amperity::run::{MAX_STATUS_BYTES, Run, omit_tasks, stored_bytes};
use crate::reconcile::backoff::delay;

/// Time, jitter and settle time for one step.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// The time of the wall clock.
    pub now: Timestamp,
    /// The jitter for delays, from 0 up to 1.
    pub jitter: f64,
    /// The time after which a request without a clear answer can no longer take effect.
    pub settle_time: Duration,
}

/// Builds a new status from the current one.
pub struct StatusBuilder {
    /// The status so far.
    pub status: WorkflowRunStopStatus,
    generation: Option<i64>,
    step_time: StepTime,
    /// The base of the next attempt: now, or the time of the claim if that is later.
    base: Timestamp,
}

impl StatusBuilder {
    /// Starts from the current status of a resource.
    pub fn of(resource: &WorkflowRunStop, step_time: StepTime) -> Self {
        let mut status = resource.status.clone().unwrap_or_default();
        let generation = resource.metadata.generation;
        status.observed_generation = generation;
        // The base is not before the time of the claim, which is by the clock of the replica that sent the request. If
        // that clock is ahead, a time by this replica's clock would be in the past for that replica, and it would retry
        // without backoff.
        let base =
            resource.claim().map_or(step_time.now, |Claim { time: Time(claimed), .. }| step_time.now.max(*claimed));
        Self { status, generation, step_time, base }
    }

    fn now(&self) -> Time {
        Time(rounded(self.step_time.now, RoundMode::Trunc))
    }

    /// Returns the stop request, which is created if absent.
    pub fn request(&mut self) -> &mut StopRequest {
        self.status.stop_request.get_or_insert_default()
    }

    /// Sets the earliest time of the next attempt, rounded up, since a status has whole seconds. Removes it if `wait`
    /// is zero.
    pub fn next_attempt_in(&mut self, wait: Duration) {
        if wait.is_zero() {
            self.request().next_attempt_time = None;
            return;
        }
        let at = self.base.saturating_add(wait).unwrap_or(Timestamp::MAX);
        self.request().next_attempt_time = Some(Time(rounded(at, RoundMode::Ceil)));
    }

    /// Returns the backoff after the attempts so far.
    pub fn backoff(&mut self, max: Duration) -> Duration {
        let attempts = u32::try_from(self.request().attempts).unwrap_or_default();
        delay(attempts, max, self.step_time.jitter)
    }

    /// Sets one condition.
    pub fn set(&mut self, kind: ConditionType, truth: ConditionStatus, (reason, detail): (Reason, &str)) {
        let new = conditions::condition(kind, truth, (reason, reason.message(detail)), self.generation, &self.now());
        conditions::set(&mut self.status.conditions, new);
    }

    /// Returns the status with a claim. A new resource gets the other conditions with the answer: with all of them, the
    /// API server takes a third longer for the claim, which the request waits for.
    pub fn requested(mut self) -> WorkflowRunStopStatus {
        let why = (Reason::StopRequested, "");
        self.set(ConditionType::Ready, ConditionStatus::Unknown, why);
        if self.has(ConditionType::Reconciling) {
            self.set(ConditionType::Reconciling, ConditionStatus::True, why);
        }
        if self.has(ConditionType::StopAccepted) {
            self.set(ConditionType::StopAccepted, ConditionStatus::Unknown, why);
        }
        if self.has(ConditionType::RunEnded) {
            self.run_ended(why.0);
        }
        self.fitted()
    }

    fn has(&self, kind: ConditionType) -> bool {
        conditions::find(&self.status.conditions, kind).is_some()
    }

    /// Returns an unfinished status.
    pub fn going_on(mut self, why: (Reason, &str)) -> WorkflowRunStopStatus {
        let ready = if why.0.is_in_progress() { ConditionStatus::Unknown } else { ConditionStatus::False };
        self.set(ConditionType::Ready, ready, why);
        self.set(ConditionType::Reconciling, ConditionStatus::True, why);
        // Before the first request, `StopAccepted` has the reason of `Ready`.
        if self.status.stop_request.as_ref().is_none_or(|request| request.attempts == 0) {
            self.set(ConditionType::StopAccepted, ConditionStatus::False, why);
        }
        self.open_by_default();
        self.run_ended(why.0);
        self.fitted()
    }

    /// Returns a final status, with or without success.
    pub fn finished(mut self, well: bool, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.set(ConditionType::Ready, if well { ConditionStatus::True } else { ConditionStatus::False }, why);
        if !well {
            self.set(ConditionType::Stalled, ConditionStatus::True, why);
        }
        self.not_sent_by_default(why);
        conditions::remove(&mut self.status.conditions, ConditionType::Reconciling);
        self.run_ended(why.0);
        if let Some(request) = &mut self.status.stop_request {
            request.next_attempt_time = None;
        }
        self.status.result = why.0.result();
        self.status.completion_time = Some(self.now());
        self.fitted()
    }

    /// Returns the status without the tasks for which it has no room.
    fn fitted(mut self) -> WorkflowRunStopStatus {
        let Some(tasks) = self.status.task_instances.as_mut().filter(|tasks| !tasks.is_empty()) else {
            return self.status;
        };
        let mut taken = std::mem::take(tasks);
        // The number of omitted tasks takes at most this many bytes more.
        let size = stored_bytes(&self.status) + stored_bytes(&taken) + "\"taskInstancesOmitted\":2147483647,".len();
        let omitted = omit_tasks(&mut taken, size.saturating_sub(MAX_STATUS_BYTES));
        if let Ok(omitted @ 1..) = i32::try_from(omitted) {
            let before = self.status.task_instances_omitted.unwrap_or_default();
            self.status.task_instances_omitted = Some(before.saturating_add(omitted));
        }
        self.status.task_instances = Some(taken);
        self.status
    }

    /// Sets `StopAccepted` to `Unknown` if there is a claim and the condition is absent.
    fn open_by_default(&mut self) {
        let is_open = self.status.stop_request.as_ref().is_some_and(|request| request.claim.is_some());
        if is_open && !self.has(ConditionType::StopAccepted) {
            self.set(ConditionType::StopAccepted, ConditionStatus::Unknown, (Reason::StopRequested, ""));
        }
    }

    /// Sets `StopAccepted` to `False`, unless a request or a wait has set it before.
    fn not_sent_by_default(&mut self, why: (Reason, &str)) {
        self.open_by_default();
        if !self.has(ConditionType::StopAccepted) {
            self.set(ConditionType::StopAccepted, ConditionStatus::False, why);
        }
    }

    fn run_ended(&mut self, reason: Reason) {
        let state = self.status.state.clone();
        let (truth, reason) = match state.as_deref().map(Phase::of) {
            None => (ConditionStatus::Unknown, reason),
            Some(Phase::Stopped) => (ConditionStatus::True, Reason::RunStopped),
            Some(Phase::EndedOtherwise) => (ConditionStatus::True, Reason::RunEndedOtherwise),
            Some(Phase::Active | Phase::Stopping) => (ConditionStatus::False, reason),
        };
        self.set(ConditionType::RunEnded, truth, (reason, &state_detail(state.as_deref())));
    }

    /// Takes over the run of an answer. Tasks stay as they are if the answer has none.
    pub fn observe(&mut self, run: Run) {
        let Run { id: _, state, error, tasks, tasks_omitted, details, memory: _ } = run;
        self.status.state = Some(state);
        self.status.error = error;
        self.status.run = Some(details);
        if let Some(tasks) = tasks {
            self.status.task_instances = Some(tasks);
            self.status.task_instances_omitted = i32::try_from(tasks_omitted).ok().filter(|omitted| *omitted != 0);
        }
    }

    /// Takes over HTTP status, message and request id of an answer.
    pub fn info(&mut self, info: &ResponseInfo) {
        let ResponseInfo { status, message, request_id, own: _ } = info.clone();
        let request = self.request();
        request.http_status = Some(i32::from(status));
        request.message = message;
        request.request_id = request_id;
    }

    /// Returns the status of an accepted stop.
    pub fn accepted(mut self, reason: Reason) -> WorkflowRunStopStatus {
        let now = self.now();
        let request = self.request();
        request.claim = None;
        request.next_attempt_time = None;
        request.accepted_time = Some(now);
        self.set(ConditionType::StopAccepted, ConditionStatus::True, (reason, ""));
        let detail = state_detail(self.status.state.as_deref());
        self.going_on((Reason::FollowingRun, &detail))
    }

    /// Returns the status after a request without effect: the claim is dropped and the request repeated after `wait`.
    pub fn refused(mut self, wait: Duration, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.request().claim = None;
        self.next_attempt_in(wait);
        self.set(ConditionType::StopAccepted, ConditionStatus::False, why);
        self.going_on(why)
    }

    /// Returns the final status of a rejected stop.
    pub fn rejected(mut self, why: (Reason, &str)) -> WorkflowRunStopStatus {
        self.request().claim = None;
        self.set(ConditionType::StopAccepted, ConditionStatus::False, why);
        self.finished(false, why)
    }

    /// Returns the status while the outcome is open: the run is read again after the settle time.
    pub fn still_open(mut self, detail: &str) -> WorkflowRunStopStatus {
        let why = (Reason::OutcomeUnknown, detail);
        self.next_attempt_in(self.step_time.settle_time);
        self.open_if_claimed(why);
        self.going_on(why)
    }

    /// Returns the final status of a stop whose outcome is unknown. The claim stays.
    pub fn unknown(mut self, detail: &str) -> WorkflowRunStopStatus {
        let why = (Reason::OutcomeUnknown, detail);
        self.open_if_claimed(why);
        self.finished(false, why)
    }

    /// Sets `StopAccepted` to `Unknown` if there is a claim. Otherwise the condition keeps the reason why the last
    /// claim was dropped.
    fn open_if_claimed(&mut self, why: (Reason, &str)) {
        if self.request().claim.is_some() {
            self.set(ConditionType::StopAccepted, ConditionStatus::Unknown, why);
        }
    }

    /// Returns the status after an unclear answer: the claim stays, and the run is read after `wait` at the earliest.
    pub fn unclear(mut self, answer: UnclearAnswer, wait: Duration, why: (Reason, &str)) -> WorkflowRunStopStatus {
        let ended = ClaimEnded { time: self.now(), answer };
        if let Some(claim) = &mut self.request().claim {
            claim.ended = Some(ended);
        }
        self.next_attempt_in(wait);
        self.set(ConditionType::StopAccepted, ConditionStatus::Unknown, why);
        self.going_on(why)
    }
}

fn rounded(at: Timestamp, mode: RoundMode) -> Timestamp {
    at.round(TimestampRound::new().smallest(Unit::Second).mode(mode)).unwrap_or(at)
}

/// Returns the state as a detail of a message; empty if none is known.
pub fn state_detail(state: Option<&str>) -> String {
    state.map(|state| format!("state {state}")).unwrap_or_default()
}
