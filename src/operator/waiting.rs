//! Owns the next step of a resource that does not run: at once, at a time, or when the rate limit allows its request.
//! Never starts a step.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::{budgets::Step, purpose::Purpose};
use crate::operator::{
    index::{Number, State},
    scheduler::Scheduler,
};
use crate::reconcile::{
    backoff::MAX_DELAY,
    decide::{Decision, at_the_latest, decide},
    tracked::{Announcement, Memory},
};
use crate::rng;

/// The time in the queue after which the status says `WaitingForBudget`. Jitter makes it up to twice as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time in the queue after which an event reports the backlog of the namespace. Jitter adds up to half of it.
const LONG: Duration = Duration::from_secs(120);

/// The shortest interval between two such events of one namespace.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(600);

impl Scheduler {
    pub(super) fn wake_if_waiting(&mut self, number: Number) {
        let Some(entry) = self.index.get_mut(number) else { return };
        match &mut entry.state {
            State::Running(running) => running.wake = true,
            State::Idle | State::Ready | State::Queued { .. } => self.wake(number, None),
        }
    }

    /// Decides what a resource does next. It must not be running.
    pub(super) fn wake(&mut self, number: Number, resource: Option<Box<WorkflowRunStop>>) {
        self.leave_queues(number);
        let (now, wall) = (Instant::now(), self.context.now());
        let rules = self.context.rules;
        let Some(entry) = self.index.get_mut(number) else { return };
        let latest = at_the_latest(&entry.facts, wall).map(|wait| now + wait);
        let decision = entry.with_memory(|memory, facts| decide(facts, wall, &memory.observed(facts), &rules));
        let timer = match decision {
            Decision::Nothing => None,
            Decision::Wait(wait) => Some(earlier(latest, now + wait)),
            Decision::Suspended if entry.facts.announces(Reason::Suspended) => latest,
            Decision::Suspended | Decision::Finish(_) | Decision::Record => {
                self.make_ready(number, resource);
                None
            }
            Decision::Stop(_) if self.index.is_over_limit(number) => {
                self.announce(number, Announcement { reason: Reason::NamespaceLimit, detail: Box::default() });
                latest
            }
            Decision::Stop(_) | Decision::Repeat(..) => self.queue(number, Purpose::Stop, resource, latest),
            Decision::Confirm(_) | Decision::Read(_) => self.queue(number, Purpose::Read, resource, latest),
        };
        self.index.set_timer(number, timer);
    }

    /// Queues a resource for a slot. Returns when to look at it again.
    pub(super) fn queue(
        &mut self,
        number: Number,
        purpose: Purpose,
        resource: Option<Box<WorkflowRunStop>>,
        mut latest: Option<Instant>,
    ) -> Option<Instant> {
        let entry = self.index.get_mut(number)?;
        let Some(key) = entry.budget.clone() else {
            // It counts as a try, so that following also ends in time if no request may be sent. The outcome of a claimed
            // request stays open: a person can allow the host, and then a read shows it.
            if purpose == Purpose::Read && entry.facts.accepted().is_some() {
                entry.with_memory(Memory::tried_to_read);
            } else if latest.is_some_and(|latest| latest <= Instant::now()) {
                // Only a change helps.
                latest = None;
            }
            self.announce(number, Announcement { reason: Reason::EndpointNotAllowed, detail: Box::default() });
            return latest;
        };
        let step = Step { id: number, weight: entry.weight };
        let (key, place) = self.context.budget.enqueue(&key, &entry.requester(purpose), step);
        entry.budget = Some(key);
        let since = Instant::now();
        entry.state = State::Queued { place, purpose, since };
        if let Some(resource) = resource {
            self.index.keep_fresh(number, resource);
        }
        let again = match purpose {
            Purpose::Read => since + self.longest_wait_for_a_read(),
            Purpose::Token | Purpose::Stop => since + PATIENCE.mul_f64(1.0 + rng::unit()),
        };
        Some(earlier(latest, again))
    }

    /// Returns the time after which a read that waits for the rate limit counts as tried.
    pub(super) fn longest_wait_for_a_read(&self) -> Duration {
        MAX_DELAY + self.context.rules.request_timeout
    }

    /// Looks at a resource whose timer is due.
    pub(super) fn timer(&mut self, number: Number) {
        let Some(entry) = self.index.get_mut(number) else { return };
        match &entry.state {
            State::Idle => self.wake(number, None),
            State::Queued { purpose, since, .. } => {
                let (purpose, since) = (*purpose, *since);
                self.still_queued(number, purpose, since);
            }
            State::Ready | State::Running(_) => {}
        }
    }

    /// Looks at a resource that still waits for the rate limit: whether it should go on waiting, and what to report.
    pub(super) fn still_queued(&mut self, number: Number, purpose: Purpose, since: Instant) {
        let (now, wall) = (Instant::now(), self.context.now());
        let (rules, waited, read_limit) = (self.context.rules, now - since, self.longest_wait_for_a_read());
        let Some(entry) = self.index.get_mut(number) else { return };
        let decision = entry.with_memory(|memory, facts| {
            if purpose == Purpose::Read && read_limit <= waited {
                memory.tried_to_read(facts);
            }
            decide(facts, wall, &memory.observed(facts), &rules)
        });
        if decision.purpose() != Some(purpose) {
            return self.wake(number, None);
        }
        let latest = at_the_latest(&entry.facts, wall).map(|wait| now + wait).filter(|latest| now < *latest);
        let again = match purpose {
            Purpose::Read if waited < read_limit => since + read_limit,
            // It was marked as tried, and nothing changes for long.
            Purpose::Read => now + read_limit,
            Purpose::Token | Purpose::Stop => {
                let namespace = entry.id.namespace.clone();
                if entry.unannounced.is_none() {
                    self.announce(number, Announcement { reason: Reason::WaitingForBudget, detail: Box::default() });
                }
                if waited < LONG {
                    since + LONG.mul_f64(1.0 + rng::unit() / 2.0)
                } else {
                    self.report_backlog(&namespace, now);
                    now + BACKLOG_INTERVAL
                }
            }
        };
        self.index.set_timer(number, Some(earlier(latest, again)));
    }

    /// Reports that stops of a namespace wait for long, with one event on the oldest of them.
    pub(super) fn report_backlog(&mut self, namespace: &Arc<str>, now: Instant) {
        let is_recent = |reported: &Instant| now < *reported + BACKLOG_INTERVAL;
        if self.reported_backlogs.get(namespace).is_some_and(is_recent) {
            return;
        }
        self.reported_backlogs.retain(|_, reported| is_recent(reported));
        self.reported_backlogs.insert(namespace.clone(), now);
        let (oldest, count) = self.index.waiting_stops(namespace);
        if let Some(entry) = oldest.and_then(|number| self.index.get_mut(number)) {
            self.reporter.backlog(&entry.id, count);
        }
    }
}

/// Returns the earlier one of two times, of which the first may be absent.
pub(super) fn earlier(first: Option<Instant>, second: Instant) -> Instant {
    first.map_or(second, |first| first.min(second))
}
