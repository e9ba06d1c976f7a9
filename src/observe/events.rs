//! Owns writing events to the API server; the events of one step in their order.
//! Never blocks a step: if the API server does not keep up, events are dropped and counted.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter as EventReporter},
};
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::time::timeout;
use workflow_run_stop_api::WorkflowRunStop;
use workflow_run_stop_common::error::root_cause;

use crate::metric_labels::ResultLabel;
use crate::observe::event_filter::EventDraft;
use crate::observe::event_queue::{self, AT_ONCE, EventQueue, EventSender};

/// The timeout for writing one event.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The longest message in bytes; the API server rejects longer ones.
const MAX_MESSAGE: usize = 1024;

/// The values of the label `result`.
pub const RESULTS: [&str; 3] = ["published", "failed", "dropped"];

/// The sender of the queue.
#[derive(Clone)]
pub struct Events {
    queue: EventSender,
    results: Family<ResultLabel, Counter>,
}

impl Events {
    /// Creates a queue; returns its sender and its receiver.
    pub fn channel(results: Family<ResultLabel, Counter>) -> (Self, EventQueue) {
        let (queue, receiver) = event_queue::channel();
        (Self { queue, results }, receiver)
    }

    /// Queues events of a resource, with `spec.reason` at the end of each message.
    pub fn emit(&self, resource: &WorkflowRunStop, mut drafts: Vec<EventDraft>) {
        if let Some(reason) = &resource.spec.reason {
            for draft in &mut drafts {
                draft.message = with_reason(&draft.message, reason);
            }
        }
        self.emit_about(resource.object_ref(&()), drafts);
    }

    /// Queues events of an object.
    pub fn emit_about(&self, about: ObjectReference, mut drafts: Vec<EventDraft>) {
        for draft in &mut drafts {
            bound(&mut draft.message);
        }
        let count = u64::try_from(drafts.len()).unwrap_or(u64::MAX);
        if count != 0 && !self.queue.send(about, drafts) {
            self.results.get_or_create(&ResultLabel { result: "dropped" }).inc_by(count);
        }
    }
}

/// Returns a reference to a resource.
pub fn object_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(WorkflowRunStop::api_version(&()).into_owned()),
        kind: Some(WorkflowRunStop::kind(&()).into_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// Writes queued events in the name of a controller's instance, until all senders are dropped.
pub async fn run(client: Client, reporter: EventReporter, queue: EventQueue, results: Family<ResultLabel, Counter>) {
    let (client, reporter, results) = (&client, &reporter, &results);
    let queue = stream::unfold(queue, |mut queue| async move { Some((queue.next().await?, queue)) });
    queue
        .for_each_concurrent(AT_ONCE, |mut entry| async move {
            // One after the other: the name of an event contains the time, and so the order.
            for draft in std::mem::take(&mut entry.drafts) {
                // A new recorder for each event, because a recorder caches events for minutes to count repetitions.
                // There are none: the event filter emits each event once.
                let recorder = Recorder::new(client.clone(), reporter.clone());
                let result = publish(&recorder, &entry.about, draft).await;
                results.get_or_create(&ResultLabel { result }).inc();
            }
        })
        .await;
}

async fn publish(
    recorder: &Recorder,
    about: &ObjectReference,
    EventDraft { warning, reason: why, message }: EventDraft,
) -> &'static str {
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: why.as_str().to_owned(),
        note: Some(message),
        action: "StopWorkflowRun".to_owned(),
        secondary: None,
    };
    let error = match timeout(TIMEOUT, recorder.publish(&event, about)).await {
        Ok(Ok(())) => return "published",
        Ok(Err(error)) => root_cause(&error),
        Err(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
    };
    // For example, the namespace is being deleted, or the right is missing. The status has the same message.
    tracing::warn!(
        namespace = about.namespace,
        name = about.name,
        event = why.as_str(),
        error,
        "failed to write event"
    );
    "failed"
}

/// Appends `spec.reason` to a message, which is shortened so that the reason fits.
fn with_reason(message: &str, reason: &str) -> String {
    let reason = format!(" Requested because: {reason}");
    let mut message = message.to_owned();
    message.truncate(message.floor_char_boundary(MAX_MESSAGE.saturating_sub(reason.len())));
    message + &reason
}

/// Shortens a message to what the API server accepts.
fn bound(message: &mut String) {
    if MAX_MESSAGE < message.len() {
        const MORE: &str = "...";
        message.truncate(message.floor_char_boundary(MAX_MESSAGE - MORE.len()));
        message.push_str(MORE);
        message.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_the_spec_stands_at_the_end_of_an_event_also_of_a_long_one() {
        assert_eq!(with_reason("Stopped.", "wrong file"), "Stopped. Requested because: wrong file");
        let long = with_reason(&"\u{e9}".repeat(2000), &"\u{1f6d1}".repeat(256));
        assert!(long.ends_with(&"\u{1f6d1}".repeat(245)), "{long}");
        let mut bounded = long.clone();
        bound(&mut bounded);
        assert!(bounded.len() <= MAX_MESSAGE);
    }
}
