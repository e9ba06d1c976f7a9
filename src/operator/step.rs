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
    /// The state of its reports.
    pub report: ResourceReport,
    /// Its result.
    pub result: StepResult,
}

/// The result of a step.
pub struct StepResult {
    /// The resource as it is now; `None` if it could not be read, or after a panic.
    pub resource: Option<Box<WorkflowRunStop>>,
    /// The memory of this process about it.
    pub memory: Memory,
    /// The announcement that its status does not have yet.
    pub unannounced: Option<Announcement>,
    /// The next step.
    pub requeue: Requeue,
}

impl StepResult {
    /// Returns the result of a step that did nothing.
    fn nothing(memory: Memory, requeue: Requeue) -> Self {
        Self { resource: None, memory, unannounced: None, requeue }
    }
}

/// Takes one step. Takes no new work once `stop` is cancelled.
pub async fn take(context: Arc<Context>, reporter: Reporter, stop: CancellationToken, step: Step) -> StepEnd {
    let Step { number, id, resource, memory, mut report, work } = step;
    // In a box, since each wrapper would hold it twice: thousands of bytes for each step in flight.
    let result = caught(Box::pin(async {
        let resource = match resource {
            Some(resource) => resource,
            None => match Box::pin(read(&context, &reporter, &stop, &id, memory.failures)).await {
                Ok(resource) => Box::new(resource),
                Err((failures, requeue)) => return StepResult::nothing(Memory { failures, ..memory }, requeue),
            },
        };
        let tracked = Tracked { resource, memory, unannounced: None };
        reconciled(&context, &reporter, &stop, &mut report, tracked, work).await
    }));
    let result = result.await.unwrap_or_else(|| {
        reporter.panic(&id, REST_AFTER_PANIC);
        StepResult::nothing(Memory::default(), Requeue::At(Instant::now() + REST_AFTER_PANIC))
    });
    StepEnd { number, report, result }
}

/// Reads the resource of a step. Otherwise returns the number of consecutive failures and when to try again.
async fn read(
    context: &Context,
    reporter: &Reporter,
    stop: &CancellationToken,
    id: &ResourceId,
    failures: u32,
) -> Result<WorkflowRunStop, (u32, Requeue)> {
    let found = tokio::select! {
        biased;
        () = stop.cancelled() => return Err((failures, Requeue::Now)),
        found = context.store.get(&id.namespace, &id.name, &id.uid) => found,
    };
    match found {
        Ok(Some(resource)) => Ok(resource),
        // A deleted resource leaves the watch. If it does not, a proxy may have answered for the API server.
        Ok(None) => Err((failures, Requeue::At(Instant::now() + GONE_REQUEUE))),
        Err(error) => {
            reporter.unreadable(id, &error);
            let wait = delay(failures + 1, MAX_CREDENTIALS_DELAY, rng::unit());
            Err((failures + 1, Requeue::At(Instant::now() + wait)))
        }
    }
}

/// Reconciles a resource once, or writes its announcement, and reports that.
async fn reconciled(
    context: &Context,
    reporter: &Reporter,
    stop: &CancellationToken,
    report: &mut ResourceReport,
    mut tracked: Tracked,
    work: Work,
) -> StepResult {
    reporter.observe(report, &tracked.facts(), context.store.holder());
    // Not `name`: in JSON that is the name of the span.
    let (namespace, name) = (tracked.resource.namespace(), tracked.resource.name());
    let span = tracing::debug_span!("reconcile", namespace, resource = name, run = tracked.resource.spec.run_id);
    let stepped = async {
        let stopped = pin!(stop.cancelled());
        match work {
            Work::Announce(announcement, known) => announce(context, &mut tracked, announcement, &known).await,
            Work::Local => reconcile(context, &mut tracked, None, stopped).await,
            Work::Request(slot, _permit) => reconcile(context, &mut tracked, Some(*slot), stopped).await,
        }
    };
    let stepped = Box::pin(stepped).instrument(span.clone()).await;
    span.in_scope(|| reporter.step(report, &tracked.resource, &stepped, context.now()));
    let Tracked { resource, memory, unannounced } = tracked;
    StepResult { resource: Some(resource), memory, unannounced, requeue: stepped.requeue }
}

/// Returns the result of a step; `None` if it panicked.
async fn caught<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::Interrupt;

    #[tokio::test]
    async fn a_panic_in_one_step_is_caught_also_after_it_has_waited() {
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a fault of the operator");
        };
        assert_eq!(caught::<()>(panics).await, None);
        assert_eq!(caught(async { 1 }).await, Some(1));
    }

    fn size_of<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn a_step_in_flight_takes_few_kibibytes_besides_its_resource_and_its_connection() {
        let reconcile =
            |context: &'static Context,
             tracked: &'static mut Tracked,
             slot: Option<Slot>,
             interrupt: Interrupt<'static>| { reconcile(context, tracked, slot, interrupt) };
        let (task, reconcile) = (size_of(take), size_of(reconcile));
        assert!(task <= 2 * 1024 && reconcile <= 4 * 1024, "{task} {reconcile}");
    }
}
