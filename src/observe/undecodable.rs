//! Owns the report of resources that cannot be decoded: one log line and one event for each, and a metric.
//! Never repeats content of a resource, and never reports one resource again and again.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use tokio::time::Instant;
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::observe::{event_filter::EventDraft, events::Events, metrics::Metrics};
use crate::stored_object::{ObjectId, Undecodable};

/// The time for which a resource is not reported again, however often it changes.
const REPEATED_AFTER: Duration = Duration::from_secs(600);

/// The number of resources that are reported in this time. The metric counts the others as well.
const MOST_REPORTED: usize = 1024;

/// The resources that were reported lately. Anyone who can write resources can make many of them undecodable, and must
/// not be able to flood the log or to displace the events of others.
#[derive(Default)]
pub struct Reports(HashMap<String, Instant>);

impl Reports {
    /// Counts a resource that cannot be decoded, and reports it unless that was done lately.
    pub fn report(&mut self, Undecodable { id, why }: &Undecodable, metrics: &Metrics, events: Option<&Events>) {
        metrics.undecodable.inc();
        if !self.is_due(&id.uid) {
            return;
        }
        let ObjectId { namespace, name, uid } = id;
        tracing::error!(uid, namespace, name, error = why, "failed to decode a resource, nothing is done for it");
        if let Some(events) = events.filter(|_| !uid.is_empty()) {
            let kind = WorkflowRunStop::kind(&()).into_owned();
            let about = ObjectReference {
                api_version: Some(WorkflowRunStop::api_version(&()).into_owned()),
                kind: Some(kind),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            };
            let reason = Reason::Undecodable;
            events.emit_about(about, vec![EventDraft { warning: true, reason, message: reason.message(why) }]);
        }
    }

    fn is_due(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        self.0.retain(|_, reported| now - *reported < REPEATED_AFTER);
        let due = self.0.len() < MOST_REPORTED && !self.0.contains_key(uid);
        if due {
            self.0.insert(uid.to_owned(), now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::family::Family;

    fn undecodable(uid: usize) -> Undecodable {
        let id = ObjectId { namespace: "ops".into(), name: "a".into(), uid: format!("u-{uid}") };
        Undecodable { id, why: "spec.runId has another form than expected, at byte 7".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_resource_that_cannot_be_decoded_is_reported_once_in_ten_minutes_and_always_counted() {
        let (events, mut heard) = Events::channel(Family::default());
        let (metrics, mut reports) = (Metrics::default(), Reports::default());
        for _ in 0..100 {
            reports.report(&undecodable(1), &metrics, Some(&events));
        }
        let (about, drafts) = heard.try_recv().unwrap();
        assert_eq!((about.name.as_deref(), about.uid.as_deref()), (Some("a"), Some("u-1")));
        assert_eq!(about.kind.as_deref(), Some("WorkflowRunStop"));
        assert!(drafts[0].warning && drafts[0].message.contains("spec.runId"), "{drafts:?}");
        assert!(heard.try_recv().is_err());
        assert_eq!(metrics.undecodable.get(), 100);
        tokio::time::advance(REPEATED_AFTER).await;
        reports.report(&undecodable(1), &metrics, Some(&events));
        assert!(heard.try_recv().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_resources_that_are_reported_is_bounded() {
        let (events, mut heard) = Events::channel(Family::default());
        let (metrics, mut reports) = (Metrics::default(), Reports::default());
        for uid in 0..10_000 {
            reports.report(&undecodable(uid), &metrics, Some(&events));
        }
        assert_eq!(std::iter::from_fn(|| heard.try_recv().ok()).count(), MOST_REPORTED);
        assert_eq!((metrics.undecodable.get(), reports.0.len()), (10_000, MOST_REPORTED));
    }
}
