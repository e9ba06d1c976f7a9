//! Owns the choice of the changes that become events: each change that matters becomes one event, and routine changes
//! none.
//! Never publishes anything, and reads no clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{self, ConditionStatus, ConditionType, Reason},
};

use crate::reconcile::facts::Facts;

/// An event to emit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDraft {
    /// True for a warning: a temporary or final failure, or an unknown outcome.
    pub warning: bool,
    /// The reason of the event.
    pub reason: Reason,
    /// The message of the condition: what happened, and what to do.
    pub message: String,
}

/// The events of one resource so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    last: Option<Reason>,
    accepted: bool,
    finished: bool,
}

impl EventFilter {
    /// Creates a filter for a resource whose current status was already reported by the process that wrote it.
    pub fn of(facts: &Facts) -> Self {
        let mut filter = Self::default();
        filter.observe(facts);
        filter
    }

    /// Takes over a status that the process that wrote it has reported.
    pub fn observe(&mut self, facts: &Facts) {
        let Some(ready) = facts.ready else { return };
        if facts.accepted().is_some() && !self.accepted {
            (self.accepted, self.last) = (true, None);
        }
        if facts.finished {
            self.finished = true;
        } else if !ready.is_routine() {
            self.last = Some(ready);
        }
    }

    /// Returns the events for what changed since the last call.
    pub fn update(&mut self, resource: &WorkflowRunStop) -> Vec<EventDraft> {
        let mut drafts = vec![];
        let Some(status) = &resource.status else { return drafts };
        let find = |kind| conditions::find(&status.conditions, kind);
        let Some(ready) = find(ConditionType::Ready) else { return drafts };
        let accepted = resource.accepted_time().is_some();
        if accepted && !self.accepted {
            (self.accepted, self.last) = (true, None);
            let condition = find(ConditionType::StopAccepted)
                .filter(|condition| !(resource.is_finished() && is_implied(condition, ready)));
            drafts.extend(condition.and_then(EventDraft::of));
        }
        if resource.is_finished() {
            if !self.finished {
                self.finished = true;
                drafts.extend(EventDraft::of(ready));
            }
        } else if let Some(reason) = Reason::of(ready).filter(|reason| !reason.is_routine())
            && self.last != Some(reason)
        {
            self.last = Some(reason);
            drafts.extend(EventDraft::of(ready));
        }
        drafts
    }
}

/// Returns true if the final event makes the one about this condition superfluous: a run that was stopped, or that is not
/// followed, had its stop accepted. How else the acceptance became known, such as by a read, is an event of its own.
fn is_implied(accepted: &Condition, ready: &Condition) -> bool {
    Reason::of(accepted) == Some(Reason::StopAccepted)
        && Reason::of(ready).is_some_and(|reason| matches!(reason, Reason::RunStopped | Reason::StopAccepted))
}

impl EventDraft {
    /// Creates the event that reports that `count` stops of one namespace have waited long for the rate limit.
    pub fn backlog(count: usize) -> Self {
        let reason = Reason::WaitingForBudget;
        let waiting = match count {
            1 => "1 stop of this namespace has waited for two minutes or longer.".to_owned(),
            _ => format!("{count} stops of this namespace wait, some of them for two minutes or longer."),
        };
        let message = format!("{} {waiting}", reason.message(""));
        Self { warning: true, reason, message }
    }

    fn of(condition: &Condition) -> Option<Self> {
        let well = condition.status == ConditionStatus::True.as_str();
        let reason = Reason::of(condition)?;
        // Of the states in progress, only an open outcome is a warning.
        let open = condition.status == ConditionStatus::Unknown.as_str() && reason != Reason::OutcomeUnknown;
        Some(Self { warning: !(well || open), reason, message: condition.message.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use workflow_run_stop_api::{StopRequest, WorkflowRunStopSpec, WorkflowRunStopStatus};

    const THEN: Time = Time(Timestamp::UNIX_EPOCH);

    /// Returns a resource whose condition `Ready` has this status and reason.
    fn with_ready(ready: ConditionStatus, reason: Reason) -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        let condition =
            |kind, truth, reason: Reason| conditions::condition(kind, truth, (reason, reason.message("")), None, &THEN);
        let mut status = WorkflowRunStopStatus::default();
        conditions::set(&mut status.conditions, condition(ConditionType::Ready, ready, reason));
        stop.status = Some(status);
        stop
    }

    fn accepted(mut stop: WorkflowRunStop) -> WorkflowRunStop {
        let status = stop.status.as_mut().unwrap();
        status.stop_request = Some(StopRequest { accepted_time: Some(THEN), ..StopRequest::default() });
        let why = (Reason::StopAccepted, Reason::StopAccepted.message(""));
        let condition = conditions::condition(ConditionType::StopAccepted, ConditionStatus::True, why, None, &THEN);
        conditions::set(&mut status.conditions, condition);
        stop
    }

    /// The acceptance became known by a read.
    fn confirmed(mut stop: WorkflowRunStop) -> WorkflowRunStop {
        let why = (Reason::ConfirmedByRead, Reason::ConfirmedByRead.message(""));
        let condition = conditions::condition(ConditionType::StopAccepted, ConditionStatus::True, why, None, &THEN);
        conditions::set(&mut stop.status.as_mut().unwrap().conditions, condition);
        stop
    }

    fn finished(mut stop: WorkflowRunStop) -> WorkflowRunStop {
        stop.status.as_mut().unwrap().completion_time = Some(THEN);
        stop
    }

    /// Returns the events of a resource that goes through these statuses.
    fn emitted(of: &[WorkflowRunStop]) -> Vec<(bool, Reason)> {
        let mut filter = EventFilter::default();
        of.iter().flat_map(|stop| filter.update(stop)).map(|draft| (draft.warning, draft.reason)).collect()
    }

    #[test]
    fn each_change_that_matters_is_emitted_once_and_routine_is_not() {
        use ConditionStatus::{False, True, Unknown};
        use Reason::*;
        let following = || accepted(with_ready(Unknown, FollowingRun));
        for (of, expected) in [
            (vec![with_ready(Unknown, StopRequested), following(), following()], &[(false, StopAccepted)][..]),
            (
                vec![
                    with_ready(Unknown, WaitingForBudget),
                    with_ready(False, RateLimited),
                    with_ready(Unknown, StopRequested),
                ],
                &[],
            ),
            (vec![with_ready(Unknown, Suspended), with_ready(Unknown, Suspended)], &[(false, Suspended)]),
            // Retried again and again.
            (
                vec![
                    with_ready(False, Unavailable),
                    with_ready(Unknown, StopRequested),
                    with_ready(False, Unavailable),
                    with_ready(False, Unreachable),
                ],
                &[(true, Unavailable), (true, Unreachable)],
            ),
            (vec![with_ready(Unknown, OutcomeUnknown), following()], &[(true, OutcomeUnknown), (false, StopAccepted)]),
            // After acceptance the same failure is reported again.
            (
                vec![
                    with_ready(False, Unavailable),
                    following(),
                    accepted(with_ready(False, Unavailable)),
                    following(),
                ],
                &[(true, Unavailable), (false, StopAccepted), (true, Unavailable)],
            ),
            (
                vec![
                    following(),
                    finished(accepted(with_ready(True, RunStopped))),
                    finished(accepted(with_ready(True, RunStopped))),
                ],
                &[(false, StopAccepted), (false, RunStopped)],
            ),
            // The run ended with the answer.
            (vec![finished(accepted(with_ready(True, RunStopped)))], &[(false, RunStopped)]),
            (
                vec![finished(accepted(with_ready(True, RunEndedOtherwise)))],
                &[(false, StopAccepted), (false, RunEndedOtherwise)],
            ),
            (
                vec![finished(confirmed(accepted(with_ready(True, RunStopped))))],
                &[(false, ConfirmedByRead), (false, RunStopped)],
            ),
            (vec![finished(accepted(with_ready(True, StopAccepted)))], &[(false, StopAccepted)]),
            (
                vec![following(), finished(accepted(with_ready(False, RunStillActive)))],
                &[(false, StopAccepted), (true, RunStillActive)],
            ),
            (
                vec![with_ready(False, Forbidden), finished(with_ready(False, DeadlineExceeded))],
                &[(true, Forbidden), (true, DeadlineExceeded)],
            ),
        ] {
            assert_eq!(emitted(&of), expected);
        }
    }

    #[test]
    fn a_status_that_another_process_wrote_is_not_reported_again() {
        let failing = with_ready(ConditionStatus::False, Reason::Unauthorized);
        let mut filter = EventFilter::of(&Facts::of(&failing));
        assert_eq!(filter.update(&failing), []);
        assert_eq!(filter.update(&with_ready(ConditionStatus::False, Reason::Forbidden)).len(), 1);
    }
}
