//! Owns one step of one resource as a task: it gets the whole resource, reconciles it once, and reports the step.
//! Never chooses which step is next. A panic in one step does not affect others.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use workflow_run_stop_api::WorkflowRunStop;

use crate::amperity::budget::{Slot, StepPermit};
use crate::observe::reporter::{Reporter, ResourceReport};
use crate::operator::index::Number;
use crate::reconcile::{
    announce,
    backoff::{MAX_CREDENTIALS_DELAY, delay},
    context::Context,
    facts::Facts,
    reconcile,
    resource_id::ResourceId,
    step_report::Requeue,
    tracked::{Announcement, GONE_REQUEUE, Memory, Tracked},
};
use crate::rng;

/// The delay before a resource is reconciled again after a panic.
const REST_AFTER_PANIC: Duration = Duration::from_secs(10);

/// The work of a step.
pub enum Work {
    /// A step without a request to Amperity: an ending, or a status that could not be stored before.
    Local,
    /// A step with a request to Amperity.
    Request(Box<Slot>, StepPermit),
    /// The announcement is written to the status. It was decided by these facts.
    Announce(Announcement, Facts),
}

/// A step that is about to start.
pub struct Step {
    /// The number of the resource in the index.
    pub number: Number,
    /// The identity of the resource.
    pub id: Arc<ResourceId>,
    /// The resource, if its newest version is known as a whole.
    pub resource: Option<Box<WorkflowRunStop>>,
    /// The memory of this process about it.
    pub memory: Memory,
    /// The state of its reports.
    pub report: ResourceReport,
    /// The work.
    pub work: Work,
}

/// The end of a step.
pub struct StepEnd {
    /// The number of the resource in the index.
    pub number: Number,
    /// The resource as it is now; `None` if it could not be read, or after a panic.
    pub resource: Option<Box<WorkflowRunStop>>,
    /// The memory of this process about it.
    pub memory: Memory,
    /// The state of its reports.
    pub report: ResourceReport,
    /// The announcement that its status does not have yet.
    pub unannounced: Option<Announcement>,
    /// The next step.
    pub requeue: Requeue,
    /// True if the step needed no slot.
    pub local: bool,
}

/// Takes one step. Takes no new work once `stop` is cancelled.
pub async fn take(context: Arc<Context>, reporter: Reporter, stop: CancellationToken, step: Step) -> StepEnd {
    let Step { number, id, resource, mut memory, mut report, work } = step;
    let local = matches!(work, Work::Local | Work::Announce(..));
    let ended = |resource, memory, report, unannounced, requeue| StepEnd {
        number,
        resource,
        memory,
        report,
        unannounced,
        requeue,
        local,
    };
    let resource = match resource {
        Some(resource) => resource,
        None => {
            let found = tokio::select! {
                biased;
                () = stop.cancelled() => return ended(None, memory, report, None, Requeue::Now),
                found = context.store.get(&id.namespace, &id.name, &id.uid) => found,
            };
            match found {
                Ok(Some(resource)) => Box::new(resource),
                // A deleted resource leaves the watch. If it does not, a proxy may have answered for the API server.
                Ok(None) => {
                    let requeue = Requeue::At(Instant::now() + GONE_REQUEUE);
                    return ended(None, memory, report, None, requeue);
                }
                Err(error) => {
                    reporter.unreadable(&id, &error);
                    memory.failures += 1;
                    let wait = delay(memory.failures, MAX_CREDENTIALS_DELAY, rng::unit());
                    return ended(None, memory, report, None, Requeue::At(Instant::now() + wait));
                }
            }
        }
    };
    let mut tracked = Tracked { resource: *resource, memory, unannounced: None };
    reporter.observe(&mut report, &tracked.facts(), context.store.holder());
    // Not `name`: in JSON that is the name of the span.
    let run = &tracked.resource.spec.run_id;
    let span = tracing::debug_span!("reconcile", namespace = &*id.namespace, resource = &*id.name, run);
    let (slot, permit, announcement) = match work {
        Work::Local => (None, None, None),
        Work::Request(slot, permit) => (Some(*slot), Some(permit), None),
        Work::Announce(announcement, known) => (None, None, Some((announcement, known))),
    };
    let reconciled = async {
        let stopped = pin!(stop.cancelled());
        match announcement {
            Some((announcement, known)) => announce(&context, &mut tracked, announcement, &known).await,
            None => reconcile(&context, &mut tracked, slot, stopped).await,
        }
    };
    let Some(stepped) = caught(reconciled.instrument(span.clone())).await else {
        reporter.panic(&tracked.resource, REST_AFTER_PANIC);
        let requeue = Requeue::At(Instant::now() + REST_AFTER_PANIC);
        return ended(None, Memory::default(), report, None, requeue);
    };
    drop(permit);
    span.in_scope(|| reporter.step(&mut report, &tracked.resource, &stepped, context.now()));
    let Tracked { resource, memory, unannounced } = tracked;
    ended(Some(Box::new(resource)), memory, report, unannounced, stepped.requeue)
}

/// Returns the result of a step; `None` if it panicked.
async fn caught<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
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
