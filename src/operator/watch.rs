//! Owns the watch of the unfinished resources: one task for each, one step at a time, panics caught.
//! Never looks into a status, and holds no worker while a resource waits.

use std::{
    collections::{HashMap, HashSet},
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
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::operator::report::Metrics;
use crate::resource::{UNFINISHED, WorkflowRunStop};
use crate::stop::{
    house::House,
    report::Next,
    step,
    subject::{Known, Subject},
};

/// How many resources come in one page of a list; a status may have half a MiB.
const PAGE_SIZE: u32 = 50;

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
        let path = api.resource_url().to_owned();
        let events = watcher(api, settings.clone()).default_backoff().filter_map(move |event| {
            let event = event.inspect_err(|error| tell_of(error, &path)).ok();
            std::future::ready(event.map(|event| (number, event)))
        });
        events.boxed()
    }))
}

fn tell_of(error: &watcher::Error, path: &str) {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    };
    match status {
        Some(status) if status.is_not_found() => {
            tracing::error!(path, %error, "the watch failed: install the CustomResourceDefinition; it is tried again");
        }
        Some(status) if status.is_forbidden() => {
            tracing::error!(path, %error, "the watch failed: let the operator list and watch workflowrunstops; it is tried again");
        }
        // A watch ends now and then: its version is too old, a connection breaks.
        Some(_) | None => tracing::warn!(path, %error, "the watch failed and is begun again"),
    }
}

/// Works on the unfinished resources.
pub struct Watch {
    /// What to work with.
    pub house: Arc<House>,
    /// Whom to tell.
    pub metrics: Metrics,
    /// When cancelled, no new work is begun.
    pub stop: CancellationToken,
    /// The tasks at work.
    pub tasks: TaskTracker,
}

type Inbox = watch::Receiver<WorkflowRunStop>;

impl Watch {
    /// Watches until it is told to stop. `synced` is set when the first list is complete.
    pub async fn run(&self, client: &Client, namespaces: &[String], synced: &watch::Sender<bool>) {
        let apis: Vec<Api<WorkflowRunStop>> =
            apis(namespaces, || Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
        let mut listing: HashSet<usize> = (0..apis.len()).collect();
        let mut listed: HashMap<usize, HashSet<String>> = HashMap::new();
        let mut inboxes: HashMap<String, (usize, watch::Sender<WorkflowRunStop>)> = HashMap::new();
        let mut events = pin!(changes(apis, UNFINISHED));
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.next() => event,
            };
            let Some((number, event)) = event else { return };
            match event {
                Event::Init => {
                    listed.insert(number, HashSet::new());
                }
                Event::InitApply(resource) => {
                    listed.entry(number).or_default().insert(resource.uid().to_owned());
                    self.deliver(&mut inboxes, number, resource);
                }
                Event::Apply(resource) => self.deliver(&mut inboxes, number, resource),
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
            self.metrics.set_unfinished(inboxes.len());
        }
    }

    fn deliver(
        &self,
        inboxes: &mut HashMap<String, (usize, watch::Sender<WorkflowRunStop>)>,
        number: usize,
        mut resource: WorkflowRunStop,
    ) {
        // Nobody here reads it, and it is often the largest part.
        resource.metadata.managed_fields = None;
        if let Some((_, inbox)) = inboxes.get(resource.uid()) {
            inbox.send_replace(resource);
            return;
        }
        let uid = resource.uid().to_owned();
        let subject = Subject::new(resource.clone());
        let (sender, inbox) = watch::channel(resource);
        inboxes.insert(uid, (number, sender));
        self.tasks.spawn(tend(self.house.clone(), self.metrics.clone(), self.stop.clone(), subject, inbox));
    }
}

/// Tends one resource until it is no longer among the unfinished, or until no new work is to be begun.
async fn tend(house: Arc<House>, metrics: Metrics, stop: CancellationToken, mut subject: Subject, mut inbox: Inbox) {
    loop {
        subject.refresh(&inbox.borrow_and_update());
        if stop.is_cancelled() || inbox.has_changed().is_err() {
            return;
        }
        let known = subject.known();
        let stepped = {
            let interrupt = pin!(interrupted(&mut inbox, &known, &stop));
            caught(step(&house, &mut subject, interrupt)).await
        };
        let next = match stepped {
            Some(report) => {
                metrics.step(&subject.resource, &report);
                report.next
            }
            None => {
                metrics.panic(&subject.resource, REST_AFTER_PANIC);
                Next::At(Instant::now() + REST_AFTER_PANIC)
            }
        };
        let known = subject.known();
        let changed = interrupted(&mut inbox, &known, &stop);
        match next {
            Next::Now => {}
            Next::OnChange | Next::Never => changed.await,
            Next::At(then) => tokio::select! {
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

/// Resolves when the resource changed in a way that matters, left the watch, or no new work is to be begun.
async fn interrupted(inbox: &mut Inbox, known: &Known, stop: &CancellationToken) {
    loop {
        if known.is_outdated_by(&inbox.borrow()) {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
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
