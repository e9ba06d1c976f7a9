//! Owns the report of a step: one log line, events and metrics, made from the returned [`StepReport`].
//! Never decides anything and sends no request.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{
    WorkflowRunStop, WorkflowRunStopStatus,
    conditions::{self, ConditionStatus, ConditionType, Reason, StopResult},
};

use crate::observe::{
    backlog::BacklogEntry,
    event_filter::{EventDraft, EventFilter},
    events::{Events, object_reference},
    metrics::Metrics,
};
use crate::reconcile::facts::Facts;
use crate::reconcile::resource_id::ResourceId;
use crate::reconcile::step_report::{Requeue, StepOutcome, StepReport};
use crate::reconcile::store::StoreError;

/// Reports steps to log, metrics and events.
#[derive(Clone)]
pub struct Reporter {
    /// The metrics.
    pub metrics: Metrics,
    /// The queue of events; `None` in tests without events.
    pub events: Option<Events>,
}

/// The state of reporting for one resource.
pub struct ResourceReport {
    event_filter: EventFilter,
    backlog_entry: BacklogEntry,
    /// True if the last step started with a claim of another process.
    foreign_claim: bool,
}

impl Reporter {
    /// Starts reporting for a resource of this tenant.
    pub fn start(&self, tenant: &str, facts: &Facts) -> ResourceReport {
        let backlog_entry = self.metrics.enter(tenant, facts);
        ResourceReport { event_filter: EventFilter::of(facts), backlog_entry, foreign_claim: false }
    }

    /// Observes a resource before its next step; `holder` is this replica.
    pub fn observe(&self, reported: &mut ResourceReport, facts: &Facts, holder: &str) {
        reported.foreign_claim = facts.claim().is_some_and(|claim| claim.holder != holder);
        // The replica that wrote this status has reported it.
        reported.event_filter.observe(facts);
        reported.backlog_entry.update(facts);
    }

    /// Reports that stops of a namespace have waited long for the rate limit, with an event on the oldest of them.
    pub fn backlog(&self, oldest: &ResourceId, count: usize) {
        let ResourceId { namespace, name, uid } = oldest;
        tracing::warn!(
            namespace = &**namespace,
            oldest = &**name,
            count,
            "stops of this namespace have waited long for the rate limit"
        );
        if let Some(events) = &self.events {
            events.emit_about(object_reference(namespace, name, uid), vec![EventDraft::backlog(count)]);
        }
    }

    /// Reports that a resource could not be read before its next step.
    pub fn unreadable(&self, id: &ResourceId, error: &StoreError) {
        self.metrics.failures.inc();
        let ResourceId { namespace, name, uid } = id;
        tracing::warn!(uid = &**uid, namespace = &**namespace, name = &**name, %error, "API server request failed, will retry");
    }

    /// Reports a step that ended at `now`: its decision at debug level and, unless the step changed nothing, one more
    /// log line, its events and metrics.
    pub fn step(&self, reported: &mut ResourceReport, resource: &WorkflowRunStop, report: &StepReport, now: Timestamp) {
        log_decision(resource, report, now);
        reported.backlog_entry.update(&Facts::of(resource));
        let drafts = reported.event_filter.update(resource);
        let (step, answer) = match &report.outcome {
            StepOutcome::Unchanged => return,
            StepOutcome::StopAttempted { class, unstored: Some(unstored), .. } => {
                self.emit(resource, drafts);
                return self.unstored(resource, class, unstored);
            }
            StepOutcome::StopAttempted { class, sent, finished: _, unstored: None } => {
                self.sent(resource, *sent, now);
                ("stop", Some(*class))
            }
            StepOutcome::RunRead => ("read", None),
            StepOutcome::Updated => ("wait", None),
            StepOutcome::Finished => ("finish", None),
            StepOutcome::Failed(error) => {
                self.metrics.failures.inc();
                let (namespace, name) = (resource.namespace(), resource.name());
                let (uid, tenant, run) = (resource.uid(), &resource.spec.tenant, &resource.spec.run_id);
                tracing::warn!(uid, namespace, name, tenant, run, %error, "API server request failed, will retry");
                return;
            }
        };
        self.emit(resource, drafts);
        if matches!(report.outcome, StepOutcome::Finished | StepOutcome::StopAttempted { finished: true, .. }) {
            self.finished(resource);
        }
        if reported.foreign_claim
            && matches!(report.outcome, StepOutcome::RunRead | StepOutcome::Finished)
            && is_cleared_up(resource)
        {
            self.metrics.taken_over.inc();
        }
        log(resource, resource.status.as_ref(), (step, answer));
    }

    /// Reports an answer that came too late to be stored. The status stays as it is.
    fn unstored(&self, resource: &WorkflowRunStop, class: &'static str, unstored: &WorkflowRunStopStatus) {
        let accepted = conditions::find(&unstored.conditions, ConditionType::StopAccepted);
        let accepted = accepted.filter(|accepted| accepted.status != ConditionStatus::Unknown.as_str());
        if let Some((reason, condition)) = accepted.and_then(|accepted| Some((Reason::of(accepted)?, accepted))) {
            let message = format!("A late answer to a stop request, not recorded in the status: {}", condition.message);
            self.emit(resource, vec![EventDraft { warning: true, reason, message }]);
        }
        tracing::warn!(
            uid = resource.uid(),
            namespace = resource.namespace(),
            name = resource.name(),
            "late answer to a stop request not stored: the resource is finished, gone or claimed by another replica"
        );
        log(resource, Some(unstored), ("late_answer", Some(class)));
    }

    /// Reports a panic that was caught while a resource was reconciled.
    pub fn panic(&self, id: &ResourceId, rest: Duration) {
        self.metrics.panics.inc();
        let ResourceId { namespace, name, uid } = id;
        tracing::error!(
            uid = &**uid,
            namespace = &**namespace,
            name = &**name,
            "caught a panic while reconciling this resource, will retry in {} s; this is a bug of the operator, please report it",
            rest.as_secs(),
        );
    }

    fn sent(&self, resource: &WorkflowRunStop, sent: Option<Instant>, now: Timestamp) {
        let first = resource.stop_request().is_some_and(|request| request.attempts == 1);
        if let Some(sent) = sent.filter(|_| first) {
            let age = Duration::try_from(now.duration_since(resource.created())).unwrap_or_default();
            self.metrics.sent(resource, age.saturating_sub(sent.elapsed()));
        }
    }

    fn finished(&self, resource: &WorkflowRunStop) {
        let Some(status) = &resource.status else { return };
        let Some(reason) = conditions::find(&status.conditions, ConditionType::Ready).and_then(Reason::of) else {
            return;
        };
        let accepted = resource.accepted_time();
        let ended = status.state.as_deref().is_some_and(|state| Phase::of(state).has_ended());
        let times = accepted.zip(status.completion_time.as_ref()).filter(|_| ended);
        let after = times.map(|(Time(accepted), Time(ended))| ended.duration_since(*accepted));
        self.metrics.finished(resource, reason, after.map(|after| Duration::try_from(after).unwrap_or_default()));
    }

    fn emit(&self, resource: &WorkflowRunStop, drafts: Vec<EventDraft>) {
        if let Some(events) = &self.events {
            events.emit(resource, drafts);
        }
    }
}

/// Returns true if no claim is open any more. A resource that finished with OutcomeUnknown keeps its claim, but counts
/// as cleared up.
fn is_cleared_up(resource: &WorkflowRunStop) -> bool {
    resource.claim().is_none() || resource.is_finished()
}

/// Logs the decision of a step at debug level, and the time of the next reconciliation if it has one. The fields are
/// computed only if the level is enabled.
fn log_decision(resource: &WorkflowRunStop, report: &StepReport, now: Timestamp) {
    let requeue_at = || match report.requeue {
        Requeue::Now => Some(now),
        Requeue::At(then) => now.checked_add(then.saturating_duration_since(Instant::now())).ok(),
        Requeue::OnChange => None,
    };
    tracing::debug!(
        uid = resource.uid(),
        namespace = resource.namespace(),
        name = resource.name(),
        tenant = resource.spec.tenant,
        run = resource.spec.run_id,
        decision = ?report.decision,
        requeue_at = requeue_at().map(tracing::field::display),
        "reconciled"
    );
}

/// Logs one line with everything that the status says about the stop: the audit trail outlives the resource.
fn log(resource: &WorkflowRunStop, status: Option<&WorkflowRunStopStatus>, (step, answer): (&str, Option<&str>)) {
    let ready = status.and_then(|status| conditions::find(&status.conditions, ConditionType::Ready));
    let request = status.and_then(|status| status.stop_request.as_ref());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                uid = resource.uid(),
                namespace = resource.namespace(),
                name = resource.name(),
                tenant = resource.spec.tenant,
                run = resource.spec.run_id,
                requested_because = resource.spec.reason,
                step,
                answer,
                attempts = request.map(|request| request.attempts),
                http_status = request.and_then(|request| request.http_status),
                request_id = request.and_then(|request| request.request_id.as_deref()),
                state = status.and_then(|status| status.state.as_deref()),
                result = status.and_then(|status| status.result).map(StopResult::as_str),
                reason = ready.map(|ready| ready.reason.as_str()),
                "{}",
                ready.map(|ready| ready.message.as_str()).unwrap_or_default(),
            )
        };
    }
    // A failure, temporary or final, is a warning.
    if ready.is_some_and(|ready| ready.status == ConditionStatus::False.as_str()) { line!(warn) } else { line!(info) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::event_queue::EventQueue;
    use prometheus_client::metrics::family::Family;
    use workflow_run_stop_api::WorkflowRunStopSpec;

    fn limited() -> WorkflowRunStop {
        let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
        let why = (Reason::RateLimited, Reason::RateLimited.message("HTTP 429"));
        let ready = conditions::condition(
            ConditionType::Ready,
            ConditionStatus::False,
            why,
            None,
            &Time(Timestamp::UNIX_EPOCH),
        );
        stop.status = Some(WorkflowRunStopStatus { conditions: vec![ready], ..WorkflowRunStopStatus::default() });
        stop
    }

    fn emitted(queue: &mut EventQueue) -> Vec<Reason> {
        std::iter::from_fn(|| queue.try_next())
            .flat_map(|mut entry| std::mem::take(&mut entry.drafts))
            .map(|drafts| drafts.reason)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_are_written_too_slowly_are_dropped_and_counted() {
        let results = Family::default();
        let (events, mut heard) = Events::channel(results.clone());
        let drafts = || vec![EventDraft { warning: true, reason: Reason::RateLimited, message: String::new() }];
        for _ in 0..10_000 {
            events.emit(&limited(), drafts());
        }
        let heard = emitted(&mut heard).len() as u64;
        let dropped = results.get_or_create(&crate::metric_labels::ResultLabel { result: "dropped" }).get();
        assert!(0 < heard && heard + dropped == 10_000, "{heard} heard, {dropped} dropped");
    }
}
