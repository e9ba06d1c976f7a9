//! Owns the watch of unfinished resources, and one task for each resource, which reconciles it one step at a time.
//! Never reads a status. A panic in one task does not affect the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream::select_all};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use workflow_run_stop_api::{UNFINISHED, WorkflowRunStop};
use workflow_run_stop_common::error::{root_cause, watch_status};

use crate::clock::until;
use crate::observe::reporter::Reporter;
use crate::reconcile::{
    backoff::delay,
    context::Context,
    reconcile,
    step_report::Requeue,
    tracked::{Snapshot, Tracked},
};
use crate::rng;

/// The number of resources in one page of a list; a status may have 512 KiB.
const PAGE_SIZE: u32 = 50;

/// The longest delay between two attempts to watch.
const MAX_WATCH_DELAY: Duration = Duration::from_secs(30);

/// The time without a failure after which the backoff of a watch starts anew.
const WELL_AGAIN: Duration = Duration::from_secs(120);

/// The delay before a resource is reconciled again after a panic.
const REST_AFTER_PANIC: Duration = Duration::from_secs(10);

/// Returns the APIs of the namespaces to watch, or the API of all namespaces if there are none.
pub fn apis<T>(namespaces: &[String], all: impl Fn() -> Api<T>, one: impl Fn(&str) -> Api<T>) -> Vec<Api<T>> {
    if namespaces.is_empty() { vec![all()] } else { namespaces.iter().map(|name| one(name)).collect() }
}

/// Returns the changes of the resources that a field selector matches, each with the index of its API in `apis`.
/// Failures are logged and retried.
pub fn changes<T>(apis: Vec<Api<T>>, fields: &str) -> impl Stream<Item = (usize, Event<T>)> + use<T>
where
    T: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let settings = watcher::Config::default().fields(fields).page_size(PAGE_SIZE);
    select_all(apis.into_iter().enumerate().map(|(number, api)| {
        let path = format!("{}?fieldSelector={fields}", api.resource_url());
        let events = watcher(api, settings.clone()).backoff(Backoff::default()).filter_map(move |event| {
            let event = event.inspect_err(|error| log_watch_error(error, &path)).ok();
            std::future::ready(event.map(|event| (number, event)))
        });
        events.boxed()
    }))
}

/// The backoff of a watch.
#[derive(Default)]
struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let well_since = self.last.replace(now).is_none_or(|last| WELL_AGAIN < now - last);
        self.failures = if well_since { 1 } else { self.failures + 1 };
        Some(delay(self.failures, MAX_WATCH_DELAY, rng::upper_half()))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    /// Does nothing. The watcher calls it for every event, even for the start of a list, which may still fail.
    fn reset(&mut self) {}
}

fn log_watch_error(error: &watcher::Error, path: &str) {
    let status = watch_status(error);
    let error = root_cause(error);
    match status {
        Some(status) if status.code == 404 => {
            tracing::error!(path, error, "watch failed, will retry: install the CustomResourceDefinition");
        }
        Some(status) if status.is_forbidden() => {
            tracing::error!(path, %error, "watch failed, will retry: grant the operator list and watch on workflowrunstops");
        }
        // Watches end from time to time: the resource version is too old, or a connection breaks.
        Some(_) | None => tracing::warn!(path, error, "watch failed, will retry"),
    }
}

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
        let apis: Vec<Api<WorkflowRunStop>> =
            apis(namespaces, || Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
        let mut listing: HashSet<usize> = (0..apis.len()).collect();
        let mut listed: HashMap<usize, HashSet<String>> = HashMap::new();
        let mut inboxes: BTreeMap<String, (usize, watch::Sender<WorkflowRunStop>)> = BTreeMap::new();
        let mut events = pin!(changes(apis, UNFINISHED));
        let mut tasks = JoinSet::new();
        loop {
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled() => return tasks,
                Some(_) = tasks.join_next() => continue,
                event = events.next() => event,
            };
            let Some((number, event)) = event else { return tasks };
            match event {
                Event::Init => {
                    listed.insert(number, HashSet::new());
                }
                Event::InitApply(resource) => {
                    listed.entry(number).or_default().insert(resource.uid().to_owned());
                    self.deliver(&mut inboxes, &mut tasks, number, resource);
                }
                Event::Apply(resource) => self.deliver(&mut inboxes, &mut tasks, number, resource),
                Event::Delete(resource) => {
                    inboxes.remove(resource.uid());
                }
                Event::InitDone => {
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
        mut resource: WorkflowRunStop,
    ) {
        // The managed fields are not used, and are often the largest part of a resource.
        resource.metadata.managed_fields = None;
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
