//! Owns the watch of unfinished resources, and one task for each resource, which reconciles it one step at a time.
//! Never reads a status. A panic in one task does not affect the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use kube::Client;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use workflow_run_stop_api::{UNFINISHED, WorkflowRunStop};

use crate::clock::until;
use crate::observe::{reporter::Reporter, undecodable::Reports};
use crate::operator::list_watch::{Change, changes, paths};
use crate::reconcile::{
    context::Context,
    reconcile,
    step_report::Requeue,
    tracked::{Snapshot, Tracked},
};

/// The delay before a resource is reconciled again after a panic.
const REST_AFTER_PANIC: Duration = Duration::from_secs(10);

/// Reconciles the unfinished resources.
pub struct Watch {
    /// The context of reconciliations.
    pub context: Arc<Context>,
    /// Reports each step.
    pub reporter: Reporter,
    /// Cancelled when no new work may be started.
    pub stop: CancellationToken,
}

type Inbox = watch::Receiver<WorkflowRunStop>;

impl Watch {
    /// Watches until `stop` is cancelled, and returns the tasks that are still running. Sets `synced` when the first
    /// list of each namespace is complete.
    pub async fn run(&self, client: &Client, namespaces: &[String], synced: &watch::Sender<bool>) -> JoinSet<()> {
        let paths = paths(namespaces);
        let mut listing: HashSet<usize> = (0..paths.len()).collect();
        let mut listed: HashMap<usize, HashSet<String>> = HashMap::new();
        let mut inboxes: BTreeMap<String, (usize, watch::Sender<WorkflowRunStop>)> = BTreeMap::new();
        let mut changes = pin!(changes::<WorkflowRunStop>(client, paths, UNFINISHED));
        let (mut tasks, mut undecodable) = (JoinSet::new(), Reports::default());
        loop {
            let change = tokio::select! {
                biased;
                () = self.stop.cancelled() => return tasks,
                Some(_) = tasks.join_next() => continue,
                change = changes.next() => change,
            };
            let Some((number, change)) = change else { return tasks };
            match change {
                Change::ListStarted => {
                    listed.insert(number, HashSet::new());
                }
                Change::Listed(resource) => {
                    listed.entry(number).or_default().insert(resource.uid().to_owned());
                    self.deliver(&mut inboxes, &mut tasks, number, resource);
                }
                Change::Applied(resource) => self.deliver(&mut inboxes, &mut tasks, number, resource),
                Change::Deleted(uid) => {
                    inboxes.remove(&uid);
                }
                // Nothing is done for it until it changes.
                Change::Undecodable(error) => {
                    undecodable.report(&error, &self.reporter.metrics, self.reporter.events.as_ref());
                    inboxes.remove(&error.id.uid);
                }
                Change::ListEnded => {
                    let known = listed.remove(&number).unwrap_or_default();
                    inboxes.retain(|uid, (of, _)| *of != number || known.contains(uid));
                    listing.remove(&number);
                    if listing.is_empty() {
                        synced.send_replace(true);
                    }
                }
            }
        }
    }

    fn deliver(
        &self,
        inboxes: &mut BTreeMap<String, (usize, watch::Sender<WorkflowRunStop>)>,
        tasks: &mut JoinSet<()>,
        number: usize,
        resource: WorkflowRunStop,
    ) {
        // A closed channel means that the task ended by a panic outside of a step.
        if let Some((_, inbox)) = inboxes.get(resource.uid()).filter(|(_, inbox)| !inbox.is_closed()) {
            inbox.send_replace(resource);
            return;
        }
        let uid = resource.uid().to_owned();
        let tracked = Tracked::new(resource.clone());
        let (sender, inbox) = watch::channel(resource);
        inboxes.insert(uid, (number, sender));
        tasks.spawn(run_resource(self.context.clone(), self.reporter.clone(), self.stop.clone(), tracked, inbox));
    }
}

/// Reconciles one resource in a loop until it leaves the watch or `stop` is cancelled.
async fn run_resource(
    context: Arc<Context>,
    reporter: Reporter,
    stop: CancellationToken,
    mut tracked: Tracked,
    mut inbox: Inbox,
) {
    let mut reported = reporter.start(&tracked.resource);
    loop {
        tracked.refresh(&inbox.borrow_and_update());
        if stop.is_cancelled() || inbox.has_changed().is_err() {
            return;
        }
        reporter.observe(&mut reported, &tracked.resource, context.store.holder());
        // Not `name`: in JSON that is the name of the span.
        let (namespace, resource) = (tracked.resource.namespace(), tracked.resource.name());
        let span = tracing::debug_span!("reconcile", namespace, resource, run = tracked.resource.spec.run_id);
        let known = tracked.snapshot();
        let stepped = {
            let interrupt = pin!(interrupted(&mut inbox, &known, &stop, reported.waits_long()));
            caught(reconcile(&context, &mut tracked, interrupt).instrument(span.clone())).await
        };
        let requeue = match stepped {
            Some(report) => {
                span.in_scope(|| reporter.step(&mut reported, &tracked.resource, &report, context.now()));
                report.requeue
            }
            None => {
                reporter.panic(&tracked.resource, REST_AFTER_PANIC);
                Requeue::At(Instant::now() + REST_AFTER_PANIC)
            }
        };
        let known = tracked.snapshot();
        let changed = interrupted(&mut inbox, &known, &stop, reported.waits_long());
        match requeue {
            Requeue::Now => {}
            Requeue::OnChange => changed.await,
            Requeue::At(then) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(then) => {}
                () = changed => {}
            },
        }
    }
}

/// Returns the result of a step; `None` if it panicked.
async fn caught<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
}

/// Resolves when the resource has changed in a part that matters, when it has left the watch, when `stop` is cancelled,
/// or at `at_the_latest`: the time at which a long wait is to be reported.
async fn interrupted(inbox: &mut Inbox, known: &Snapshot, stop: &CancellationToken, at_the_latest: Option<Instant>) {
    loop {
        if known.is_outdated_by(&inbox.borrow(), false) {
            return;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = until(at_the_latest) => return,
            changed = inbox.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_one_step_is_caught_also_after_it_has_waited() {
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a fault of the operator");
        };
        assert_eq!(caught::<()>(panics).await, None);
        assert_eq!(caught(async { 1 }).await, Some(1));
    }
}
