//! Owns the watch of the unfinished resources: one task for each, one step at a time, panics caught.
//! Never looks into a status, and holds no worker while a resource waits.

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

/// How many resources come in one page of a list; a status may have half a MiB.
const PAGE_SIZE: u32 = 50;

/// The longest rest of a watch that fails again and again.
const MAX_WATCH_DELAY: Duration = Duration::from_secs(30);

/// A watch that did not fail for so long counts as mended.
const WELL_AGAIN: Duration = Duration::from_secs(120);

/// How long a resource rests after a panic.
const REST_AFTER_PANIC: Duration = Duration::from_secs(10);

/// The APIs of the namespaces to watch; of all where none is named.
pub fn apis<T>(namespaces: &[String], all: impl Fn() -> Api<T>, one: impl Fn(&str) -> Api<T>) -> Vec<Api<T>> {
    if namespaces.is_empty() { vec![all()] } else { namespaces.iter().map(|name| one(name)).collect() }
}

/// The changes to the resources that a field selector matches, each with the number of its stream.
/// Failures are logged and the watch goes on.
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

/// How long a watch that failed rests.
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
    /// Called for every event, also for the one that says that a list begins, which may fail again.
    fn reset(&mut self) {}
}

fn log_watch_error(error: &watcher::Error, path: &str) {
    let status = watch_status(error);
    let error = root_cause(error);
    match status {
        Some(status) if status.code == 404 => {
            tracing::error!(path, error, "the watch failed: install the CustomResourceDefinition; it is tried again");
        }
        Some(status) if status.is_forbidden() => {
            tracing::error!(path, %error, "the watch failed: let the operator list and watch workflowrunstops; it is tried again");
        }
        // A watch ends now and then: its version is too old, a connection breaks.
        Some(_) | None => tracing::warn!(path, error, "the watch failed and is begun again"),
    }
}

/// Works on the unfinished resources.
pub struct Watch {
    /// What to work with.
    pub context: Arc<Context>,
    /// Whom to tell.
    pub reporter: Reporter,
    /// When cancelled, no new work is begun.
    pub stop: CancellationToken,
}

type Inbox = watch::Receiver<WorkflowRunStop>;

impl Watch {
    /// Watches until it is told to stop, and returns the tasks that have something in flight then.
    /// `synced` is set when the first list is complete.
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
        // Nobody here reads it, and it is often the largest part.
        resource.metadata.managed_fields = None;
        // The task of a closed inbox has ended before its time, by a panic outside of a step.
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

/// Tends one resource until it is no longer among the unfinished, or until no new work is to be begun.
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
        let known = tracked.known();
        let stepped = {
            let interrupt = pin!(interrupted(&mut inbox, &known, &stop, reported.waits_long()));
            caught(reconcile(&context, &mut tracked, interrupt)).await
        };
        let requeue = match stepped {
            Some(report) => {
                reporter.step(&mut reported, &tracked.resource, &report, context.now());
                report.requeue
            }
            None => {
                reporter.panic(&tracked.resource, REST_AFTER_PANIC);
                Requeue::At(Instant::now() + REST_AFTER_PANIC)
            }
        };
        let known = tracked.known();
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

/// What a step returns, or nothing where it panicked: one resource's fault is not another's.
async fn caught<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
}

/// Resolves when the resource changed in a way that matters, left the watch, or no new work is to be begun; also
/// at `at_the_latest`, to tell that it waits.
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
