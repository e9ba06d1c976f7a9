//! Owns the report of resources that cannot be decoded: one log line and one event for each, and a metric.
//! Never repeats content of a resource, and never reports one resource again and again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use workflow_run_stop_api::conditions::Reason;

use crate::bounded_map::BoundedMap;
use crate::observe::{
    event_filter::EventDraft,
    events::{Events, object_reference},
    metrics::Metrics,
};
use crate::stored_object::{ObjectId, Undecodable};

/// The time for which a resource is not reported again, however often it changes.
const REPEATED_AFTER: Duration = Duration::from_secs(600);

/// The number of resources of one namespace that are reported in this time. The metric counts the others as well.
const MOST_OF_NAMESPACE: u32 = 100;

/// The number of resources and namespaces that are remembered.
const MOST_REMEMBERED: usize = 4096;

/// The resources that were reported in the last ten minutes. Anyone who can write resources can make many of them
/// undecodable, and must not be able to flood the log, or to keep those of other namespaces from being reported.
pub struct Reports {
    /// The time of the last report of each resource, by its uid.
    resources: BoundedMap<String, Instant>,
    /// The number of reports of each namespace, and when the count began.
    namespaces: BoundedMap<Arc<str>, (u32, Instant)>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { resources: BoundedMap::new(MOST_REMEMBERED), namespaces: BoundedMap::new(MOST_REMEMBERED) }
    }
}

impl Reports {
    /// Counts a resource that cannot be decoded, and reports it unless that was done lately.
    pub fn report(&mut self, Undecodable { id, why }: &Undecodable, metrics: &Metrics, events: Option<&Events>) {
        metrics.undecodable.inc();
        if !self.is_due(id) {
            return;
        }
        let ObjectId { namespace, name, uid } = id;
        tracing::error!(uid, namespace, name, error = why, "failed to decode a resource, nothing is done for it");
        if let Some(events) = events.filter(|_| !uid.is_empty()) {
            let about = object_reference(namespace, name, uid);
            let reason = Reason::Undecodable;
            events.emit_about(about, vec![EventDraft { warning: true, reason, message: reason.message(why) }]);
        }
    }

    fn is_due(&mut self, ObjectId { namespace, name: _, uid }: &ObjectId) -> bool {
        let now = Instant::now();
        let recent = |since: Instant| now - since < REPEATED_AFTER;
        if self.resources.get(uid).is_some_and(|reported| recent(*reported)) {
            return false;
        }
        let owner: Arc<str> = namespace.as_str().into();
        let counted = self.namespaces.get(&owner).copied().filter(|(_, since)| recent(*since));
        let (count, since) = counted.unwrap_or((0, now));
        if count == MOST_OF_NAMESPACE {
            return false;
        }
        self.namespaces.insert(&owner.clone(), owner.clone(), 1, (count + 1, since));
        self.resources.insert(&owner, uid.clone(), 1, now);
        true
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
        let entry = heard.try_next().unwrap();
        let (about, drafts) = (&entry.about, &entry.drafts);
        assert_eq!((about.name.as_deref(), about.uid.as_deref()), (Some("a"), Some("u-1")));
        assert_eq!(about.kind.as_deref(), Some("WorkflowRunStop"));
        assert!(drafts[0].warning && drafts[0].message.contains("spec.runId"), "{drafts:?}");
        assert!(heard.try_next().is_none());
        assert_eq!(metrics.undecodable.get(), 100);
        tokio::time::advance(REPEATED_AFTER).await;
        reports.report(&undecodable(1), &metrics, Some(&events));
        assert!(heard.try_next().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_can_neither_flood_the_log_nor_keep_others_from_being_reported() {
        let (events, mut heard) = Events::channel(Family::default());
        let (metrics, mut reports) = (Metrics::default(), Reports::default());
        for uid in 0..10_000 {
            reports.report(&undecodable(uid), &metrics, Some(&events));
        }
        let mut others = undecodable(10_000);
        others.id.namespace = "victim".into();
        reports.report(&others, &metrics, Some(&events));
        let heard: Vec<_> =
            std::iter::from_fn(|| heard.try_next()).map(|entry| entry.about.namespace.clone()).collect();
        assert_eq!(heard.len(), MOST_OF_NAMESPACE as usize + 1);
        assert!(heard.contains(&Some("victim".to_owned())));
        assert_eq!(metrics.undecodable.get(), 10_001);
    }
}
