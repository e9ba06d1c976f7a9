//! Owns the changes of a resource: it is listed, changed, gone or due, or its step has ended.
//! Never decides on the next step: `waiting` does.

use std::sync::Arc;

use tokio::time::Instant;
use workflow_run_stop_api::WorkflowRunStop;

use crate::amperity::endpoint::BudgetKey;
use crate::clock::until;
use crate::operator::{
    index::{Entry, Number, Running, State, weight},
    scheduler::Scheduler,
    step::{StepEnd, StepResult, Work},
    waiting::earlier,
};
use crate::reconcile::{facts::Facts, resource_id::ResourceId, step_report::Requeue};

/// The number of timers that are handled before other tasks get their turn: very many resources may have the same deadline.
const DUE_AT_ONCE: usize = 256;

/// A resource that was listed or has changed.
pub struct Seen {
    /// The resource.
    pub resource: Box<WorkflowRunStop>,
    /// Its size as JSON, in bytes.
    pub size: usize,
}

impl Scheduler {
    /// Waits for the next thing to do, and does it.
    pub async fn advance(&mut self) {
        let announce_at = self.next_announcement();
        let budget = self.context.budget.clone();
        tokio::select! {
            biased;
            Some(ended) = self.tasks.join_next() => {
                // The task catches panics, and nothing aborts it before the end of the term.
                if let Ok(ended) = ended {
                    self.ended(ended);
                }
            }
            started = budget.next_step() => self.started(started),
            () = until(self.index.first_timer()) => {
                let now = Instant::now();
                let due: Vec<Number> = std::iter::from_fn(|| self.index.due(now)).take(DUE_AT_ONCE).collect();
                for number in due {
                    self.timer(number);
                }
            }
            () = until(announce_at) => {}
        }
        self.start_due();
    }

    /// Starts the steps that may start now.
    pub fn start_due(&mut self) {
        self.start_announcements();
        self.start_ready();
    }

    /// Takes over a resource that was listed or has changed.
    pub fn see(&mut self, stream: usize, list: u32, Seen { resource, size }: Seen) {
        let (mut facts, weight) = (Facts::of(&resource), weight(size));
        let Some(number) = self.index.number(resource.uid()) else {
            let entry = self.entry(stream, list, &resource, (facts, weight));
            let (number, displaced) = self.index.insert(entry);
            self.wake(number, Some(resource));
            if let Some(displaced) = displaced.filter(|displaced| *displaced != number) {
                self.wake_if_waiting(displaced);
            }
            return;
        };
        let Some(entry) = self.index.get_mut(number) else { return };
        (entry.stream, entry.list) = (stream, list);
        if let State::Running(running) = &mut entry.state {
            running.gone = false;
            let known = running.seen.as_ref().unwrap_or(&entry.facts);
            if facts.is_newer_than(known) {
                // What it is queued with, besides the step, was weighed before.
                running.wake |= entry.weight < weight;
                entry.weight = weight;
                running.seen = Some(facts);
            }
            return;
        }
        if !facts.is_newer_than(&entry.facts) {
            return;
        }
        let is_queued = matches!(entry.state, State::Queued { .. } | State::Ready);
        let changed = facts.outdate(&entry.facts, false) || (is_queued && entry.weight < weight);
        let namespace = entry.id.namespace.clone();
        self.index.share_secret(&namespace, &mut facts);
        let Some(entry) = self.index.get_mut(number) else { return };
        (entry.facts, entry.weight) = (facts, weight);
        if let Some(report) = &mut entry.report {
            self.reporter.observe(report, &entry.facts, self.context.store.holder());
        }
        if changed {
            self.wake(number, Some(resource));
        }
    }

    fn entry(&self, stream: usize, list: u32, resource: &WorkflowRunStop, (facts, weight): (Facts, u8)) -> Entry {
        let id = ResourceId {
            namespace: self.index.namespace(resource.namespace()),
            name: resource.name().into(),
            uid: resource.uid().into(),
        };
        Entry {
            id: Arc::new(id),
            stream,
            list,
            memory: None,
            budget: self.budget_of(resource),
            weight,
            report: Some(self.reporter.start(&resource.spec.tenant, &facts)),
            facts,
            state: State::Idle,
            timer: None,
            unannounced: None,
        }
    }

    /// Returns the budget that the requests of a resource count in; `None` if none may be sent to its endpoint.
    fn budget_of(&self, resource: &WorkflowRunStop) -> Option<BudgetKey> {
        self.context.endpoint(resource).ok().map(|(endpoint, _)| endpoint.budget_key())
    }

    /// Forgets a resource that left the watch, once its running step has ended.
    pub fn forget(&mut self, uid: &str) {
        if let Some(number) = self.index.number(uid) {
            self.remove(number);
        }
    }

    /// Forgets the resources that are not in the list that ended.
    pub fn list_ended(&mut self, stream: usize, list: u32) {
        for number in self.index.not_in_list(stream, list) {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: Number) {
        let Some(entry) = self.index.get_mut(number) else { return };
        if let State::Running(running) = &mut entry.state {
            running.gone = true;
            return;
        }
        self.leave_queues(number);
        if let Some(admitted) = self.index.remove(number) {
            self.wake_if_waiting(admitted);
        }
    }

    /// Takes over the end of a step.
    fn ended(&mut self, end: StepEnd) {
        let StepEnd { number, report, result: StepResult { resource, memory, unannounced, requeue } } = end;
        let Some(entry) = self.index.get_mut(number) else { return };
        let State::Running(running) = std::mem::replace(&mut entry.state, State::Idle) else { return };
        let Running { queued, started, announcing, taken, timer, seen, gone, wake } = *running;
        let queue = if announcing { &mut self.announcing } else { &mut self.ready };
        queue.end(&entry.id.namespace, taken);
        entry.report = Some(report);
        entry.memory = Some(Box::new(memory)).filter(|memory| !memory.is_empty());
        let before = resource.as_deref().map_or_else(|| entry.facts.clone(), Facts::of);
        let changed = wake || seen.as_ref().is_some_and(|seen| seen.outdate(&before, false));
        let newest = seen.filter(|seen| seen.is_newer_than(&before));
        let resource = resource.filter(|_| newest.is_none());
        let (mut facts, namespace) = (newest.unwrap_or(before), entry.id.namespace.clone());
        self.index.share_secret(&namespace, &mut facts);
        let Some(entry) = self.index.get_mut(number) else { return };
        entry.facts = facts;
        if let Some((place, purpose, since)) = queued {
            entry.state = State::Queued { place, purpose, since };
        }
        if gone {
            drop(started);
            return self.remove(number);
        }
        if changed {
            drop(started);
            return self.wake(number, resource);
        }
        if let Some(started) = started {
            return self.start(number, Work::Request(Box::new(started.slot), started.permit), 0);
        }
        match requeue {
            Requeue::OnChange if announcing => self.index.set_timer(number, timer),
            // The announcement failed, and is tried again then.
            Requeue::At(then) if announcing => self.index.set_timer(number, Some(earlier(timer, then))),
            Requeue::Now => return self.wake(number, resource),
            Requeue::At(then) => self.index.set_timer(number, Some(then)),
            Requeue::OnChange => {}
        }
        if let Some(announcement) = unannounced {
            self.announce(number, announcement);
        }
    }
}
