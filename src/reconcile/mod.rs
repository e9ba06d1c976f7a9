//! Owns the reconciliation of one resource: observe, decide, act, record. Only here Kubernetes and Amperity meet.
//! Never chooses a step itself, and never writes a status that `outcome` did not make.

pub mod access;
pub mod backoff;
pub mod context;
pub mod decide;
pub mod outcome;
pub mod preflight;
pub mod secret;
pub mod status_builder;
pub mod step_report;
pub mod store;
pub mod store_error;
pub mod tracked;

use std::{pin::Pin, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

use crate::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer},
    budget::Slot,
    credentials::Refusal,
    endpoint::{Endpoint, RunId},
    purpose::Purpose,
};
use crate::clock::until;
use crate::reconcile::{
    access::{Access, Blocked, Denied, RetryWhen},
    backoff::{MAX_DELAY, read_delay},
    context::Context,
    decide::{Decision, Ending, Established, Observed, at_the_latest, decide, first_read_delay},
    outcome::Retry,
    preflight::Prepared,
    step_report::{Requeue, StepOutcome, StepReport},
    store::{ClaimResult, StoreError, WriteResult},
    tracked::{Memory, Tracked},
};
use crate::rng;

/// The longest time between a repeated stop request and the read before it. If the request had to wait longer, because
/// a 429 closed the budget, the run is read again.
const MAX_READ_AGE: Duration = Duration::from_secs(5);

/// Resolves when a step must stop waiting: the resource changed, or the replica is draining. Ignored between a claim and
/// its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Takes the next step for a resource and records its outcome.
pub async fn reconcile(context: &Context, tracked: &mut Tracked, interrupt: Interrupt<'_>) -> StepReport {
    let decision = context.decide(tracked);
    let done = match decision {
        Decision::Nothing => Ok((StepOutcome::Unchanged, Requeue::OnChange)),
        Decision::Wait(wait) => Ok((StepOutcome::Unchanged, Requeue::At(Instant::now() + wait))),
        Decision::Suspended => context.announce(tracked, Reason::Suspended, "", Requeue::OnChange).await,
        Decision::Finish(ending) => context.finish(tracked, ending).await,
        // Boxed, because these futures are large and may wait for long: a waiting resource stays small.
        Decision::Stop(deadline) => Box::pin(context.stop(tracked, deadline, None, interrupt)).await,
        Decision::Repeat(deadline, established) => {
            Box::pin(context.stop(tracked, deadline, Some(established), interrupt)).await
        }
        Decision::Confirm(established) => Box::pin(context.confirm(tracked, established, interrupt)).await,
        Decision::Read(established) => Box::pin(context.follow(tracked, established, interrupt)).await,
        Decision::Record => context.record(tracked).await,
    };
    let latest = at_the_latest(&tracked.resource, context.now()).map(|wait| Instant::now() + wait);
    match done {
        Ok((outcome, requeue)) => StepReport { decision, outcome, requeue: requeue.bounded(latest) },
        Err(error) => {
            // Not bounded by the deadline: if the failed write was due at the deadline, it would be retried without a
            // delay.
            StepReport { decision, outcome: StepOutcome::Failed(error), requeue: tracked.retry_after_failure() }
        }
    }
}

type Done = Result<(StepOutcome, Requeue), StoreError>;

/// The result of preparing a stop request.
enum Readiness {
    /// The request may be claimed and sent.
    Ready(Box<Prepared>),
    /// The read before a repeated request did not show an active run, so that no request is sent.
    Answered(ReadAnswer),
}

impl Context {
    fn decide(&self, tracked: &mut Tracked) -> Decision {
        let observed = tracked.observed();
        decide(&tracked.resource, self.now(), &observed, &self.rules)
    }

    /// Sends a stop request: preflight, claim, request, record. If it `repeats` another one, the run is read first.
    async fn stop(
        &self,
        tracked: &mut Tracked,
        deadline: Option<Timestamp>,
        repeats: Option<Established>,
        interrupt: Interrupt<'_>,
    ) -> Done {
        let latest = at_the_latest(&tracked.resource, self.now()).map(|wait| Instant::now() + wait);
        let ready = tokio::select! {
            biased;
            () = interrupt => return Ok((StepOutcome::Unchanged, Requeue::Now)),
            () = until(latest) => return Ok((StepOutcome::Unchanged, Requeue::Now)),
            ready = self.ready_to_stop(tracked, repeats.is_some()) => ready,
        };
        let Prepared { endpoint, run_id, access, slot } = match ready {
            Ok(Readiness::Ready(prepared)) => *prepared,
            Ok(Readiness::Answered(answer)) => {
                return self.record_confirmation(tracked, answer, repeats.unwrap_or_default()).await;
            }
            Err(blocked) => return self.blocked(tracked, blocked).await,
        };
        // The wait may have been long, the machine suspended, or its clock changed.
        if !matches!(self.decide(tracked), Decision::Stop(_) | Decision::Repeat(..)) {
            return Ok((StepOutcome::Unchanged, Requeue::Now));
        }
        let url = endpoint.stop_url(&run_id).to_string();
        let step_time = self.step_time();
        let status = |claim| outcome::claimed(&tracked.resource, claim, url, step_time);
        let claimed = match self.store.claim(&tracked.resource, status).await? {
            ClaimResult::Claimed(claimed) => *claimed,
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
        let written = self.store.record(claimed, status).await;
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
    async fn ready_to_stop(&self, tracked: &mut Tracked, repeats: bool) -> Result<Readiness, Blocked> {
        let prepared = self.preflight(tracked, Purpose::Stop).await?;
        if !repeats {
            return Ok(Readiness::Ready(Box::new(prepared)));
        }
        let Prepared { endpoint, run_id, access, slot } = prepared;
        let answer = self.read_with((&endpoint, &access), &run_id, slot).await?;
        if !answer.is_active() {
            return Ok(Readiness::Answered(answer));
        }
        let read_at = Instant::now();
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Stop, Timestamp::MIN).await;
        if MAX_READ_AGE < read_at.elapsed() {
            return Err(Blocked::Changed);
        }
        Ok(Readiness::Ready(Box::new(Prepared { endpoint, run_id, access, slot })))
    }

    /// Reads the run to learn the outcome of a claimed request.
    async fn confirm(&self, tracked: &mut Tracked, established: Established, interrupt: Interrupt<'_>) -> Done {
        match self.read_within(tracked, self.longest_wait_for_a_read(), interrupt).await {
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
        tracked.reads().unrecorded = Some((answer, established));
        self.record(tracked).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, tracked: &mut Tracked, established: Established, interrupt: Interrupt<'_>) -> Done {
        // If the run was not read yet, this read may go on after the end of following.
        let left = at_the_latest(&tracked.resource, self.now()).unwrap_or_default();
        let limit =
            if tracked.observed().tried_for.is_some() { left } else { left.max(self.longest_wait_for_a_read()) };
        match self.read_within(tracked, limit, interrupt).await {
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

    /// Returns the time after which a read that waits for the rate limit or for its answer counts as tried.
    fn longest_wait_for_a_read(&self) -> Duration {
        MAX_DELAY + self.rules.request_timeout
    }

    /// Reads the run. Returns `None` if interrupted, or after `limit`, which counts as a try.
    async fn read_within(
        &self,
        tracked: &mut Tracked,
        limit: Duration,
        interrupt: Interrupt<'_>,
    ) -> Option<Result<ReadAnswer, Blocked>> {
        tokio::select! {
            biased;
            () = interrupt => None,
            answer = timeout(limit, self.read(tracked)) => {
                if answer.is_err() {
                    tracked.tried_to_read();
                }
                answer.ok()
            }
        }
    }

    /// Stores the last read. If that fails, the read is kept for the next step.
    async fn record(&self, tracked: &mut Tracked) -> Done {
        let Some((answer, established)) = tracked.reads().unrecorded.take() else {
            return Ok((StepOutcome::Unchanged, Requeue::Now));
        };
        let (step_time, failures) = (self.step_time(), tracked.memory.failures);
        let status = |resource: &WorkflowRunStop| match resource.accepted_time() {
            Some(_) => outcome::followed(resource, &answer, established, step_time),
            None => outcome::confirmed(resource, &answer, established, failures, step_time),
        };
        let done = self.write(tracked, status, StepOutcome::RunRead).await;
        if done.is_err() {
            tracked.reads().unrecorded = Some((answer, established));
        }
        done
    }

    async fn read(&self, tracked: &mut Tracked) -> Result<ReadAnswer, Blocked> {
        let Prepared { endpoint, run_id, access, slot } = self.preflight(tracked, Purpose::Read).await?;
        self.read_with((&endpoint, &access), &run_id, slot).await
    }

    /// Reads the run once. If a cached token was refused, returns `Changed`, so that a new one is fetched first.
    async fn read_with(
        &self,
        (endpoint, access): (&Endpoint, &Access),
        run_id: &RunId,
        slot: Slot,
    ) -> Result<ReadAnswer, Blocked> {
        let answer = self.amperity.read(endpoint, run_id, &access.token, slot).await;
        match &answer {
            ReadAnswer::Run(_) => self.may_read(access),
            ReadAnswer::Failed(ReadFailure::Unauthorized(info)) => {
                if self.refused(access, Refusal::Unauthorized, &info.detail()) == Retry::AtOnce {
                    return Err(Blocked::Changed);
                }
            }
            ReadAnswer::Failed(_) | ReadAnswer::Unreadable(_) => {}
        }
        Ok(answer)
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

    /// Writes what the resource waits for, if that changed.
    async fn announce(&self, tracked: &mut Tracked, reason: Reason, detail: &str, requeue: Requeue) -> Done {
        let status = outcome::waiting(&tracked.resource, reason, detail, self.step_time());
        match self.store.announce(&tracked.resource, status).await? {
            WriteResult::Same => Ok((StepOutcome::Unchanged, requeue)),
            WriteResult::Stored(stored) => {
                tracked.resource = *stored;
                Ok((StepOutcome::Updated, requeue))
            }
            written @ (WriteResult::Changed(_) | WriteResult::Gone) => {
                Ok((StepOutcome::Unchanged, tracked.take(written)))
            }
        }
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
            let known = tracked.snapshot();
            let status = self.with_end(&tracked.resource, status(&tracked.resource), tried_for);
            match self.store.update(&tracked.resource, status).await? {
                // A read is valid for any spec.
                WriteResult::Changed(now) if !known.is_outdated_by(&now, is_read) => tracked.resource = *now,
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
        match decide(&after, step_time.now, &Observed { tried_for, ..Observed::default() }, &self.rules) {
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
