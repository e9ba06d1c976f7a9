//! Owns what a person is told of a resource in events: each change that matters, once, and nothing of routine.
//! Never publishes anything, and reads no clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::resource::{
    WorkflowRunStop,
    conditions::{self, ConditionType, Reason, Truth},
};

/// What is told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether it is worth a look: something fails, now or for good.
    pub warning: bool,
    /// Why.
    pub reason: Reason,
    /// What happened, and what to do.
    pub message: String,
}

/// What was told of one resource so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Story {
    last: Option<Reason>,
    accepted: bool,
    finished: bool,
    waits_long: bool,
}

impl Story {
    /// Goes on from here: what the status says was told by whoever wrote it.
    pub fn of(resource: &WorkflowRunStop) -> Self {
        let mut story = Self::default();
        drop(story.go_on(resource));
        story
    }

    /// What is new.
    pub fn go_on(&mut self, resource: &WorkflowRunStop) -> Vec<News> {
        let mut news = vec![];
        let Some(status) = &resource.status else { return news };
        let find = |kind| conditions::find(&status.conditions, kind);
        let Some(ready) = find(ConditionType::Ready) else { return news };
        let accepted = resource.accepted_time().is_some();
        if accepted && !self.accepted {
            (self.accepted, self.last) = (true, None);
            // Where the run is not followed, the end says the same.
            let told =
                find(ConditionType::StopAccepted).filter(|told| !resource.is_finished() || told.reason != ready.reason);
            news.extend(told.and_then(News::of));
        }
        if resource.is_finished() {
            if !self.finished {
                self.finished = true;
                news.extend(News::of(ready));
            }
        } else if let Some(reason) = Reason::of(ready).filter(|reason| !is_routine(*reason))
            && self.last != Some(reason)
        {
            self.last = Some(reason);
            news.extend(News::of(ready));
        }
        news
    }

    /// True until it was told that the resource waits for its turn for long.
    pub fn may_wait_long(&self) -> bool {
        !self.waits_long
    }

    /// Tells, once, that the resource has waited for its turn for long.
    pub fn waits_long(&mut self, resource: &WorkflowRunStop) -> Option<News> {
        if std::mem::replace(&mut self.waits_long, true) {
            return None;
        }
        let status = resource.status.as_ref()?;
        let news = News::of(conditions::find(&status.conditions, ConditionType::Ready)?)?;
        matches!(news.reason, Reason::WaitingForBudget | Reason::RateLimited).then_some(News { warning: true, ..news })
    }
}

/// What every resource goes through; where it lasts, that is told by itself.
fn is_routine(reason: Reason) -> bool {
    matches!(reason, Reason::StopRequested | Reason::FollowingRun | Reason::WaitingForBudget | Reason::RateLimited)
}

impl News {
    fn of(condition: &Condition) -> Option<Self> {
        let well = condition.status == Truth::True.as_str();
        let reason = Reason::of(condition)?;
        // In progress, only a request whose outcome is open is worth a look.
        let open = condition.status == Truth::Unknown.as_str() && reason != Reason::OutcomeUnknown;
        Some(Self { warning: !(well || open), reason, message: condition.message.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{StopRequest, WorkflowRunStopSpec, WorkflowRunStopStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    const THEN: Time = Time(Timestamp::UNIX_EPOCH);

    /// A resource whose `Ready` is so.
    fn so(ready: Truth, reason: Reason) -> WorkflowRunStop {
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
        let told = conditions::condition(ConditionType::StopAccepted, Truth::True, why, None, &THEN);
        conditions::set(&mut status.conditions, told);
        stop
    }

    fn finished(mut stop: WorkflowRunStop) -> WorkflowRunStop {
        stop.status.as_mut().unwrap().completion_time = Some(THEN);
        stop
    }

    /// What is told while a resource goes through all of these.
    fn told(of: &[WorkflowRunStop]) -> Vec<(bool, Reason)> {
        let mut story = Story::default();
        of.iter().flat_map(|stop| story.go_on(stop)).map(|news| (news.warning, news.reason)).collect()
    }

    #[test]
    fn each_change_that_matters_is_told_once_and_routine_is_not() {
        use Reason::*;
        use Truth::{False, True, Unknown};
        let following = || accepted(so(Unknown, FollowingRun));
        for (of, expected) in [
            (vec![so(Unknown, StopRequested), following(), following()], &[(false, StopAccepted)][..]),
            (vec![so(Unknown, WaitingForBudget), so(False, RateLimited), so(Unknown, StopRequested)], &[]),
            (vec![so(Unknown, Suspended), so(Unknown, Suspended)], &[(false, Suspended)]),
            // Tried again and again.
            (
                vec![
                    so(False, Unavailable),
                    so(Unknown, StopRequested),
                    so(False, Unavailable),
                    so(False, Unreachable),
                ],
                &[(true, Unavailable), (true, Unreachable)],
            ),
            (vec![so(Unknown, OutcomeUnknown), following()], &[(true, OutcomeUnknown), (false, StopAccepted)]),
            // The same trouble as before the acceptance is another one after it.
            (
                vec![so(False, Unavailable), following(), accepted(so(False, Unavailable)), following()],
                &[(true, Unavailable), (false, StopAccepted), (true, Unavailable)],
            ),
            (
                vec![following(), finished(accepted(so(True, RunStopped))), finished(accepted(so(True, RunStopped)))],
                &[(false, StopAccepted), (false, RunStopped)],
            ),
            (vec![finished(accepted(so(True, RunStopped)))], &[(false, StopAccepted), (false, RunStopped)]),
            (vec![finished(accepted(so(True, StopAccepted)))], &[(false, StopAccepted)]),
            (
                vec![following(), finished(accepted(so(False, RunStillActive)))],
                &[(false, StopAccepted), (true, RunStillActive)],
            ),
            (
                vec![so(False, Forbidden), finished(so(False, DeadlineExceeded))],
                &[(true, Forbidden), (true, DeadlineExceeded)],
            ),
        ] {
            assert_eq!(told(&of), expected);
        }
    }

    #[test]
    fn what_stands_there_at_the_beginning_was_told_by_who_wrote_it() {
        let failing = so(Truth::False, Reason::Unauthorized);
        let mut story = Story::of(&failing);
        assert_eq!(story.go_on(&failing), []);
        assert_eq!(story.go_on(&so(Truth::False, Reason::Forbidden)).len(), 1);
    }
}
