//! Owns the unfinished resources and their steps: what waits to start, and what runs.
//! Never reads or writes anything itself: steps do, as tasks. A resource that waits has no task.

use std::{collections::HashMap, sync::Arc};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_api::WorkflowRunStop;

use crate::amperity::budget::Started;
use crate::fair_queue::{FairQueue, Popped};
use crate::observe::reporter::Reporter;
use crate::operator::{
    index::{Index, Number, Running, State},
    step::{self, Step, StepEnd, Work},
};
use crate::reconcile::{
    context::Context,
    tracked::{Announcement, Memory},
};

/// The capacity for steps in flight that send no request to Amperity, such as endings. One namespace gets at most half.
const LOCAL_STEPS: usize = 128;

/// The capacity for announcements in flight. One namespace gets at most half.
const ANNOUNCEMENTS: usize = 16;

/// The unfinished resources and their steps.
pub struct Scheduler {
    pub(super) context: Arc<Context>,
    pub(super) reporter: Reporter,
    pub(super) stop: CancellationToken,
    pub(super) index: Index,
    /// Steps that need no slot and wait to start.
    pub(super) ready: FairQueue<(i64, Number), ()>,
    /// Resources whose status should say what they wait for.
    pub(super) announcing: FairQueue<(i64, Number), ()>,
    /// The namespaces whose backlog was reported lately, and when.
    pub(super) reported_backlogs: HashMap<Arc<str>, Instant>,
    pub(super) tasks: JoinSet<StepEnd>,
}

impl Scheduler {
    /// Creates a scheduler without resources. At most `limit` resources of each namespace are worked on at a time.
    pub fn new(context: Arc<Context>, reporter: Reporter, stop: CancellationToken, limit: Option<usize>) -> Self {
        Self {
            context,
            reporter,
            stop,
            index: Index::new(limit),
            ready: FairQueue::new(LOCAL_STEPS),
            announcing: FairQueue::new(ANNOUNCEMENTS),
            reported_backlogs: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Ends all waits, and returns the steps that are still running.
    pub fn into_tasks(mut self) -> JoinSet<StepEnd> {
        for (key, requester, number, place) in self.index.take_queued() {
            self.context.budget.leave(&key, &requester, number, place);
        }
        self.context.announcements.set_queued(false);
        self.tasks
    }

    /// Removes a resource from the queues in which it waits.
    pub(super) fn leave_queues(&mut self, number: Number) {
        let Some(entry) = self.index.get_mut(number) else { return };
        let position = (entry.facts.created_second(), number);
        self.announcing.remove(&entry.id.namespace, &position);
        self.ready.remove(&entry.id.namespace, &position);
        entry.unannounced = None;
        if let State::Queued { place, purpose, .. } = std::mem::replace(&mut entry.state, State::Idle)
            && let Some(key) = &entry.budget
        {
            self.context.budget.leave(key, &entry.requester(purpose), number, place);
        }
    }

    pub(super) fn make_ready(&mut self, number: Number, resource: Option<Box<WorkflowRunStop>>) {
        let Some(entry) = self.index.get_mut(number) else { return };
        entry.state = State::Ready;
        let (position, weight) = ((entry.facts.created_second(), number), entry.weight);
        self.ready.push(&entry.id.namespace, position, weight.into(), ());
        if let Some(resource) = resource {
            self.index.keep_fresh(number, resource);
        }
    }

    /// Lets the status say what a resource waits for when it is its turn, unless it says so already.
    pub(super) fn announce(&mut self, number: Number, announcement: Announcement) {
        let Some(entry) = self.index.get_mut(number) else { return };
        if announcement.detail.is_empty() && entry.facts.announces(announcement.reason) {
            return;
        }
        entry.unannounced = Some(announcement);
        let (position, weight) = ((entry.facts.created_second(), number), entry.weight);
        self.announcing.push(&entry.id.namespace, position, weight.into(), ());
        self.context.announcements.set_queued(true);
    }

    /// Returns when the next announcement may be written; `None` if none can be started before a step ends.
    pub(super) fn next_announcement(&self) -> Option<Instant> {
        let can_start = self.announcing.can_start();
        can_start.then(|| self.context.announcements.next_at().unwrap_or_else(Instant::now))
    }

    /// Starts the announcements that may be written now.
    pub(super) fn start_announcements(&mut self) {
        while self.announcing.can_start() && self.context.announcements.take_queued(Instant::now()) {
            let Some(Popped { namespace, position: (_, number), item: (), taken }) = self.announcing.pop() else {
                break;
            };
            match self.index.get_mut(number).and_then(|entry| entry.unannounced.take().zip(Some(entry.facts.clone()))) {
                Some((announcement, known)) => self.start(number, Work::Announce(announcement, known), taken),
                None => self.announcing.end(&namespace, taken),
            }
        }
        self.context.announcements.set_queued(!self.announcing.is_empty());
    }

    /// Starts the steps that need no slot.
    pub(super) fn start_ready(&mut self) {
        while let Some(Popped { namespace: _, position: (_, number), item: (), taken }) = self.ready.pop() {
            self.start(number, Work::Local, taken);
        }
    }

    /// Starts a step that was granted a slot.
    pub(super) fn started(&mut self, started: Started) {
        let number = started.id;
        let Some(entry) = self.index.get_mut(number) else { return };
        if let State::Running(running) = &mut entry.state {
            // Its status is being written.
            started.slot.end_start();
            running.queued = None;
            running.started = Some(started);
            return;
        }
        if !matches!(entry.state, State::Queued { .. }) {
            return;
        }
        entry.state = State::Idle;
        self.leave_queues(number);
        self.start(number, Work::Request(Box::new(started.slot), started.permit), 0);
    }

    /// Starts a step, which takes this part of the capacity of its queue.
    pub(super) fn start(&mut self, number: Number, work: Work, taken: usize) {
        let resource = self.index.take_fresh(number);
        let Some(entry) = self.index.get_mut(number) else { return };
        let Some(report) = entry.report.take() else { return };
        let announcing = matches!(work, Work::Announce(..));
        let mut running = Running { announcing, taken, timer: entry.timer, ..Running::default() };
        if let State::Queued { place, purpose, since } = std::mem::replace(&mut entry.state, State::Idle) {
            running.queued = Some((place, purpose, since));
        }
        entry.state = State::Running(Box::new(running));
        let id = entry.id.clone();
        let memory = entry.memory.take().map_or_else(Memory::default, |memory| *memory);
        let step = Step { number, id, resource, memory, report, work };
        self.index.set_timer(number, None);
        self.tasks.spawn(step::take(self.context.clone(), self.reporter.clone(), self.stop.clone(), step));
    }
}
