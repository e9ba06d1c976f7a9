//! Owns the reconciliation of one resource: observe, decide, act, record. Only here Kubernetes and Amperity meet.
//! Never chooses a step itself, and never writes a status that `outcome` did not make.

pub mod access;
pub mod announce;
pub mod announcements;
pub mod api_response;
pub mod api_turns;
pub mod backoff;
pub mod context;
pub mod decide;
pub mod facts;
pub mod outcome;
pub mod preflight;
pub mod reading;
pub mod resource_id;
pub mod secret;
pub mod status_builder;
pub mod step_report;
pub mod store;
pub mod store_error;
pub mod tracked;

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

use crate::amperity::{
    answer::{ReadAnswer, StopAnswer},
    budget::Slot,
};
pub use crate::reconcile::reading::Interrupt;
use crate::reconcile::{
    access::{Blocked, Denied, RetryWhen},
    api_turns::ApiTurn,
    backoff::read_delay,
    context::Context,
    decide::{Decision, Ending, Established, Observed, at_the_latest, decide, first_read_delay},
    facts::Facts,
    preflight::Prepared,
    reading::Reading,
    step_report::{Done, Requeue, StepOutcome, StepReport},
    store::{ClaimResult, WriteResult},
    tracked::{Announcement, Memory, Tracked},
};
use crate::rng;

/// The longest time between a repeated stop request's claim and the read before it. If the claim had to wait longer, for
/// the rate limit or for the API server, the run is read again.
const MAX_READ_AGE: Duration = Duration::from_secs(5);

/// Takes the next step for a resource and records its outcome. A step that sends a request needs a slot for it; without
/// one, it is requeued at once, to wait for a slot.
pub async fn reconcile(
    context: &Context,
    tracked: &mut Tracked,
    slot: Option<Slot>,
    interrupt: Interrupt<'_>,
) -> StepReport {
    let decision = context.decide(tracked);
    // The resource may have changed since the slot was granted: the slot is for another request then.
    let slot = slot.filter(|slot| decision.purpose() == Some(slot.requester().purpose));
    let done = match (decision, slot) {
        (Decision::Nothing, _) => Ok((StepOutcome::Unchanged, Requeue::OnChange)),
        (Decision::Wait(wait), _) => Ok((StepOutcome::Unchanged, Requeue::At(Instant::now() + wait))),
        (Decision::Suspended, _) => context.announce(tracked, Reason::Suspended, "", Requeue::OnChange).await,
        (Decision::Finish(ending), _) => context.finish(tracked, ending).await,
        (Decision::Record, _) => context.record(tracked).await,
        (Decision::Stop(_) | Decision::Repeat(..) | Decision::Confirm(_) | Decision::Read(_), None) => {
            Ok((StepOutcome::Unchanged, Requeue::Now))
        }
        (Decision::Stop(deadline), Some(slot)) => context.stop(tracked, deadline, None, (slot, interrupt)).await,
        (Decision::Repeat(deadline, known), Some(slot)) => {
            context.stop(tracked, deadline, Some(known), (slot, interrupt)).await
        }
        (Decision::Confirm(known), Some(slot)) => context.confirm(tracked, known, (slot, interrupt)).await,
        (Decision::Read(known), Some(slot)) => context.follow(tracked, known, (slot, interrupt)).await,
    };
    report(context, tracked, decision, done)
}

/// Writes what a resource waits for, unless it changed since `known` in a part that matters. Then it is requeued at once,
/// and otherwise it goes on waiting as before.
pub async fn announce(
    context: &Context,
    tracked: &mut Tracked,
    Announcement { reason, detail }: Announcement,
    known: &Facts,
) -> StepReport {
    let decision = context.decide(tracked);
    // Why the endpoint is not allowed is not kept while the resource waits.
    let endpoint = context.endpoint(&tracked.resource).err().filter(|_| reason == Reason::EndpointNotAllowed);
    let detail = endpoint.map_or_else(|| detail.into(), |error| error.to_string());
    let done = if tracked.facts().outdate(known, false) {
        Ok((StepOutcome::Unchanged, Requeue::Now))
    } else {
        context.write_announcement(tracked, reason, &detail, Requeue::OnChange).await
    };
    report(context, tracked, decision, done)
}

fn report(context: &Context, tracked: &mut Tracked, decision: Decision, done: Done) -> StepReport {
    let latest = at_the_latest(&tracked.facts(), context.now()).map(|wait| Instant::now() + wait);
    match done {
        Ok((outcome, requeue)) => StepReport { decision, outcome, requeue: requeue.bounded(latest) },
        Err(error) => {
            // Not bounded by the deadline: if the failed write was due at the deadline, it would be retried without a
            // delay.
            StepReport { decision, outcome: StepOutcome::Failed(error), requeue: tracked.retry_after_failure() }
        }
    }
}

/// The result of preparing a stop request.
enum Readiness {
    /// The request may be claimed, at once, and sent.
    Ready(Box<Prepared>, ApiTurn),
    /// The read before a repeated request did not show an active run, so that no request is sent.
    Answered(ReadAnswer),
}

impl Context {
    fn decide(&self, tracked: &mut Tracked) -> Decision {
        let (facts, observed) = (tracked.facts(), tracked.observed());
        decide(&facts, self.now(), &observed, &self.rules)
    }

    /// Sends a stop request: preflight, claim, request, record. If it `repeats` another one, the run is read first.
    async fn stop(
        &self,
        tracked: &mut Tracked,
        deadline: Option<Timestamp>,
        repeats: Option<Established>,
        (slot, interrupt): (Slot, Interrupt<'_>),
    ) -> Done {
        let ready = tokio::select! {
            biased;
            () = interrupt => return Ok((StepOutcome::Unchanged, Requeue::Now)),
            ready = Box::pin(self.ready_to_stop(&tracked.resource, slot, repeats.is_some())) => ready,
        };
        let (Prepared { endpoint, run_id, access, slot }, turn) = match ready {
            Ok(Readiness::Ready(prepared, turn)) => (*prepared, turn),
            Ok(Readiness::Answered(answer)) => {
                return self.record_confirmation(tracked, answer, repeats.unwrap_or_default()).await;
            }
            Err(blocked) => return self.blocked(tracked, blocked).await,
        };
        // The preparations may have been long, the machine suspended, or its clock changed.
        if !matches!(self.decide(tracked), Decision::Stop(_) | Decision::Repeat(..)) {
            return Ok((StepOutcome::Unchanged, Requeue::Now));
        }
        let url = endpoint.stop_url(&run_id).to_string();
        let step_time = self.step_time();
        let status = |claim| outcome::claimed(&tracked.resource, claim, url, step_time);
        let claimed = match Box::pin(self.store.claim(turn, &tracked.resource, status)).await? {
            ClaimResult::Claimed(claimed) => claimed,
            ClaimResult::NotClaimed(written) => return Ok((StepOutcome::Unchanged, tracked.take(written))),
        };
        let fence = claimed.fence(deadline);
        let (answer, sent) = self.amperity.stop(&endpoint, &run_id, &access.token, slot, fence).await;
        let retry = self.judge(&access, &answer);
        let step_time = self.step_time();
        let status = |resource: &WorkflowRunStop| {
            self.with_end(resource, outcome::stop_answered(resource, &answer, retry, step_time), None)
        };
        let unstored = status(claimed.resource());
        let written = Box::pin(self.store.record(*claimed, status)).await;
        tracked.memory = Memory::default();
        if let StopAnswer::Accepted(run, _) = &answer {
            let state = run.as_ref().map(|run| run.state.as_str());
            tracked.schedule_first_read(first_read_delay(state, rng::unit()));
        }
        let stored = matches!(written, WriteResult::Stored(_));
        let requeue = tracked.take(written);
        let finished = stored && tracked.resource.is_finished();
        // A request that was not sent has no answer that could be lost.
        let unstored = (!stored && sent.is_some()).then(|| Box::new(unstored));
        Ok((StepOutcome::StopAttempted { class: answer.class(), sent, finished, unstored }, requeue))
    }

    /// Gets everything that a stop request needs. If the request repeats an earlier one, the run is read first, with
    /// the slot of the preflight, and the request gets the tenant's next slot.
    async fn ready_to_stop(&self, resource: &WorkflowRunStop, slot: Slot, repeats: bool) -> Result<Readiness, Blocked> {
        let prepared = self.preflight(resource, slot).await?;
        if !repeats {
            return self.turn_to_claim(resource, prepared).await;
        }
        let Prepared { endpoint, run_id, access, slot } = prepared;
        let requester = slot.requester().clone();
        let answer = self.read_with((&endpoint, &access), &run_id, (slot, Reading::ToDecide)).await?;
        if !answer.is_active() {
            return Ok(Readiness::Answered(answer));
        }
        let budget = access.key().budget.clone();
        let next = async {
            let slot = self.budget.acquire(&budget, &requester).await;
            self.turn_to_claim(resource, Prepared { endpoint, run_id, access, slot }).await
        };
        timeout(MAX_READ_AGE, next).await.map_err(|_| Blocked::Changed)?
    }

    /// Waits until the request may be claimed. A 429 that closed the budget meanwhile leaves nothing to claim.
    async fn turn_to_claim(&self, resource: &WorkflowRunStop, prepared: Prepared) -> Result<Readiness, Blocked> {
        let turn = self.store.turn_to_claim(resource).await;
        if prepared.slot.is_closed() { Err(Blocked::Changed) } else { Ok(Readiness::Ready(Box::new(prepared), turn)) }
    }

    /// Reads the run to learn the outcome of a claimed request.
    async fn confirm(&self, tracked: &mut Tracked, established: Established, means: (Slot, Interrupt<'_>)) -> Done {
        match self.read(tracked, means, Reading::ToDecide).await {
            None => Ok((StepOutcome::Unchanged, Requeue::Now)),
            Some(Ok(answer)) => self.record_confirmation(tracked, answer, established).await,
            Some(Err(blocked)) => {
                // Refused credentials count as a try to read the run. A missing Secret or a host that is not allowed do
                // not: a person can correct them, and then a read shows the outcome.
                let of_api =
                    |denied: &Denied| !matches!(denied.reason, Reason::CredentialsMissing | Reason::EndpointNotAllowed);
                if matches!(&blocked, Blocked::Denied(denied) if of_api(denied)) {
                    tracked.tried_to_read();
                }
                self.blocked(tracked, blocked).await
            }
        }
    }

    /// Records what a read showed about an earlier stop request, which may turn out to be accepted.
    async fn record_confirmation(&self, tracked: &mut Tracked, answer: ReadAnswer, established: Established) -> Done {
        tracked.schedule_first_read(read_delay(0, rng::unit()));
        self.record_read_result(tracked, answer, established).await
    }

    async fn record_read_result(&self, tracked: &mut Tracked, answer: ReadAnswer, established: Established) -> Done {
        tracked.read(&answer);
        tracked.reads().unrecorded = Some(Box::new((answer, established)));
        self.record(tracked).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, tracked: &mut Tracked, established: Established, means: (Slot, Interrupt<'_>)) -> Done {
        match self.read(tracked, means, Reading::ToFollow).await {
            None => Ok((StepOutcome::Unchanged, Requeue::Now)),
            Some(Ok(answer)) => {
                let asked = match &answer {
                    ReadAnswer::Failed(failure) => failure.retry_after().unwrap_or_default(),
                    ReadAnswer::Run(_) | ReadAnswer::Unreadable(_) => Duration::ZERO,
                };
                tracked.schedule_next_read(asked);
                self.record_read_result(tracked, answer, established).await
            }
            Some(Err(blocked)) => {
                // A denied read counts as a try, so that following also ends in time without usable credentials.
                if matches!(blocked, Blocked::Denied(_)) {
                    tracked.tried_to_read();
                    tracked.schedule_next_read(Duration::ZERO);
                }
                self.blocked(tracked, blocked).await
            }
        }
    }

    /// Stores the last read. If that fails, the read is kept for the next step.
    async fn record(&self, tracked: &mut Tracked) -> Done {
        let Some(read) = tracked.reads().unrecorded.take() else {
            return Ok((StepOutcome::Unchanged, Requeue::Now));
        };
        let (answer, established) = *read;
        let (step_time, failures) = (self.step_time(), tracked.memory.failures);
        let status = |resource: &WorkflowRunStop| match resource.accepted_time() {
            Some(_) => outcome::followed(resource, &answer, established, step_time),
            None => outcome::confirmed(resource, &answer, established, failures, step_time),
        };
        let done = self.write(tracked, status, StepOutcome::RunRead).await;
        if done.is_err() {
            tracked.reads().unrecorded = Some(Box::new((answer, established)));
        }
        done
    }

    async fn blocked(&self, tracked: &mut Tracked, blocked: Blocked) -> Done {
        let Denied { reason, detail, again } = match blocked {
            Blocked::Changed => return Ok((StepOutcome::Unchanged, Requeue::Now)),
            Blocked::Failed(error) => return Err(error),
            Blocked::Denied(denied) => denied,
        };
        let requeue = match again {
            RetryWhen::OnChange => Requeue::OnChange,
            RetryWhen::At(then) => Requeue::At(then),
            RetryWhen::Backoff => tracked.retry_after_failure(),
        };
        self.announce(tracked, reason, &detail, requeue).await
    }

    async fn finish(&self, tracked: &mut Tracked, ending: Ending) -> Done {
        let step_time = self.step_time();
        self.write(tracked, |resource| outcome::finished(resource, ending, step_time), StepOutcome::Updated).await
    }

    /// Writes a new status. Retries at once if the resource changed in the meantime, but in no part that the status
    /// depends on.
    async fn write(
        &self,
        tracked: &mut Tracked,
        status: impl Fn(&WorkflowRunStop) -> WorkflowRunStopStatus,
        outcome: StepOutcome,
    ) -> Done {
        let is_read = matches!(outcome, StepOutcome::RunRead);
        let tried_for = is_read.then_some(Duration::ZERO);
        let written = loop {
            let known = tracked.facts();
            let status = self.with_end(&tracked.resource, status(&tracked.resource), tried_for);
            match Box::pin(self.store.update(&tracked.resource, status)).await? {
                // A read is valid for any spec.
                WriteResult::Changed(now) if !Facts::of(&now).outdate(&known, is_read) => tracked.resource = now,
                written
                @ (WriteResult::Stored(_) | WriteResult::Same | WriteResult::Changed(_) | WriteResult::Gone) => {
                    break written;
                }
            }
        };
        let stored = matches!(written, WriteResult::Stored(_));
        let requeue = tracked.take(written);
        let outcome = match (stored, tracked.resource.is_finished()) {
            (false, _) => StepOutcome::Unchanged,
            (true, true) => StepOutcome::Finished,
            (true, false) => outcome,
        };
        Ok((outcome, requeue))
    }

    /// Returns the final status instead of `status` if the next step would only write the final status.
    fn with_end(
        &self,
        resource: &WorkflowRunStop,
        status: WorkflowRunStopStatus,
        tried_for: Option<Duration>,
    ) -> WorkflowRunStopStatus {
        let step_time = self.step_time();
        let after = WorkflowRunStop { status: Some(status), ..resource.clone() };
        match decide(&Facts::of(&after), step_time.now, &Observed { tried_for, ..Observed::default() }, &self.rules) {
            Decision::Finish(ending) => outcome::finished(&after, ending, step_time),
            Decision::Nothing
            | Decision::Suspended
            | Decision::Wait(_)
            | Decision::Stop(_)
            | Decision::Repeat(..)
            | Decision::Confirm(_)
            | Decision::Read(_)
            | Decision::Record => after.status.unwrap_or_default(),
        }
    }
}
