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
        let accepted = status.stop_request.as_ref().is_some_and(|request| request.accepted_time.is_some());
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
