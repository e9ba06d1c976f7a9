//! Owns the corridor: look, decide, act, record. The only room that knows both outsides.
//! Never chooses a step itself and never writes what `outcome` did not make.

pub mod backoff;
pub mod context;
pub mod decide;
pub mod outcome;
pub mod preflight;
pub mod status_builder;
pub mod step_report;
pub mod store;
pub mod store_error;
pub mod tracked;

use std::{pin::Pin, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::workflow_run::Phase;
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};

use crate::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer},
    budget::Slot,
    credentials::Refusal,
    endpoint::Endpoint,
    purpose::Purpose,
};
use crate::clock::until;
use crate::reconcile::{
    backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay, next_look},
    context::Context,
    decide::{Decision, Ending, Established, Observed, at_the_latest, decide},
    outcome::Retry,
    preflight::{Access, Blocked, Denied, Prepared, RetryWhen},
    step_report::{Requeue, StepOutcome, StepReport},
    store::{StoreError, WriteResult},
    tracked::{Memory, Tracked},
};
use crate::rng;

/// A read that was to precede a further stop request and is older than this when the request may go is made again: the
/// rate limit was closed in between.
const MAX_READ_AGE: Duration = Duration::from_secs(5);

/// Resolves when a step is to give up waiting: the resource changed, or no new work is to be begun.
/// Nothing is given up between a claim and its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Looks at a resource, takes the next step and records what came of it.
pub async fn reconcile(context: &Context, tracked: &mut Tracked, interrupt: Interrupt<'_>) -> StepReport {
    let done = match context.decide(tracked) {
        Decision::Nothing => Ok((StepOutcome::Unchanged, Requeue::OnChange)),
        Decision::Wait(wait) => Ok((StepOutcome::Unchanged, Requeue::At(Instant::now() + wait))),
        Decision::Suspended => context.announce(tracked, Reason::Suspended, "", Requeue::OnChange).await,
        Decision::Finish(ending) => context.finish(tracked, ending).await,
        // These wait for a while in large futures: on the heap, a waiting resource stays small.
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
        Ok((outcome, requeue)) => StepReport { outcome, requeue: requeue.bounded(latest) },
        Err(error) => {
            // The backoff is kept also where a deadline is over: that is what could not be written.
            tracked.memory.failures += 1;
            let wait = delay(tracked.memory.failures, MAX_CREDENTIALS_DELAY, rng::unit());
            StepReport { outcome: StepOutcome::Failed(error), requeue: Requeue::At(Instant::now() + wait) }
        }
    }
}

type Done = Result<(StepOutcome, Requeue), StoreError>;

/// What comes before a stop request.
enum Readiness {
    /// It may be claimed and sent.
    Ready(Box<Prepared>),
    /// An earlier request made it needless, or nobody can tell: what reading the run showed.
    Answered(ReadAnswer),
}

impl Context {
    fn decide(&self, tracked: &mut Tracked) -> Decision {
        let observed = tracked.observed();
        decide(&tracked.resource, self.now(), &observed, &self.rules)
    }

    /// Endpoint, credentials, slot, claim, request, record. A request that `repeats` another one is preceded by a read.
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
        let Prepared { endpoint, access, slot } = match ready {
            Ok(Readiness::Ready(prepared)) => *prepared,
            Ok(Readiness::Answered(answer)) => {
                return self.record_read_result(tracked, answer, repeats.unwrap_or_default()).await;
            }
            Err(blocked) => return self.blocked(tracked, blocked).await,
        };
        // The wait may have been long, the machine suspended, or its clock set.
        if !matches!(self.decide(tracked), Decision::Stop(_) | Decision::Repeat(..)) {
            return Ok((StepOutcome::Unchanged, Requeue::Now));
        }
        let url = endpoint.stop_url(&tracked.resource.spec.run_id).to_string();
        let step_time = self.step_time();
        let status = |claim| outcome::claimed(&tracked.resource, claim, url, step_time);
        let claimed = match self.store.claim(&tracked.resource, status).await? {
            Ok(claimed) => claimed,
            Err(written) => return Ok((StepOutcome::Unchanged, tracked.take(written))),
        };
        let run_id = &tracked.resource.spec.run_id;
        let fence = claimed.fence(deadline);
        let (answer, sent) = self.amperity.stop(&endpoint, run_id, &access.token, slot, fence).await;
        let retry = self.judge(&access, &answer);
        let step_time = self.step_time();
        let status = |resource: &WorkflowRunStop| {
            self.with_end(resource, outcome::stop_answered(resource, &answer, retry, step_time), None)
        };
        let unstored = status(claimed.resource());
        let written = self.store.record(claimed, status).await;
        // A run that goes on after its stop is given a moment; one that ended, or that the answer
        // does not describe, is read at once.
        let goes_on = matches!(&answer, StopAnswer::Accepted(Some(run), _) if !Phase::of(&run.state).has_ended());
        let first_look = goes_on.then(|| Instant::now() + next_look(0, rng::unit()));
        tracked.memory = Memory { next_look: first_look, ..Memory::default() };
        let stored = matches!(written, WriteResult::Stored(_));
        let requeue = tracked.take(written);
        let finished = stored && tracked.resource.is_finished();
        // Of a request that was not sent there is no answer that could be lost.
        let unstored = (!stored && sent.is_some()).then(|| Box::new(unstored));
        Ok((StepOutcome::StopAttempted { class: answer.class(), sent, finished, unstored }, requeue))
    }

    /// Gets all that a stop request needs. Where it repeats an earlier one, the run is read right before it; the next slot
    /// that the tenant has is then the request's.
    async fn ready_to_stop(&self, tracked: &mut Tracked, repeats: bool) -> Result<Readiness, Blocked> {
        let prepared = self.preflight(tracked, Purpose::Stop).await?;
        if !repeats {
            return Ok(Readiness::Ready(Box::new(prepared)));
        }
        let Prepared { endpoint, access, slot } = prepared;
        let answer = self.read_with((&endpoint, &access), &tracked.resource.spec.run_id, slot).await?;
        if !answer.is_active() {
            return Ok(Readiness::Answered(answer));
        }
        let read_at = Instant::now();
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Stop, Timestamp::MIN).await;
        if MAX_READ_AGE < read_at.elapsed() {
            return Err(Blocked::Changed);
        }
        Ok(Readiness::Ready(Box::new(Prepared { endpoint, access, slot })))
    }

    /// Reads the run to learn what became of a request.
    async fn confirm(&self, tracked: &mut Tracked, established: Established, interrupt: Interrupt<'_>) -> Done {
        match self.read_within(tracked, self.longest_wait_for_a_read(), interrupt).await {
            None => Ok((StepOutcome::Unchanged, Requeue::Now)),
            Some(Ok(answer)) => self.record_read_result(tracked, answer, established).await,
            Some(Err(blocked)) => {
                // The API refused the credentials or the token request. A missing Secret or a host that is not allowed is
                // no try: a person can mend that, and then reading tells the outcome.
                let of_api =
                    |denied: &Denied| !matches!(denied.reason, Reason::CredentialsMissing | Reason::EndpointNotAllowed);
                if matches!(&blocked, Blocked::Denied(denied) if of_api(denied)) {
                    tracked.tried_to_read();
                }
                self.blocked(tracked, blocked).await
            }
        }
    }

    /// Records what a read showed of an earlier stop request.
    async fn record_read_result(&self, tracked: &mut Tracked, answer: ReadAnswer, established: Established) -> Done {
        tracked.read(&answer);
        tracked.memory.next_look = Some(Instant::now() + next_look(0, rng::unit()));
        tracked.reads().unrecorded = Some((answer, established));
        self.record(tracked).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, tracked: &mut Tracked, established: Established, interrupt: Interrupt<'_>) -> Done {
        // The last read of a run that was not read yet has time beyond the end of the following.
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
                tracked.read(&answer);
                tracked.looked(asked);
                tracked.reads().unrecorded = Some((answer, established));
                self.record(tracked).await
            }
            Some(Err(blocked)) => {
                // It counts as a try, so that the following ends in time also without usable credentials.
                if matches!(blocked, Blocked::Denied(_)) {
                    tracked.tried_to_read();
                    tracked.looked(Duration::ZERO);
                }
                self.blocked(tracked, blocked).await
            }
        }
    }

    /// A read that waits for the rate limit and for its answer for longer than this counts as tried.
    fn longest_wait_for_a_read(&self) -> Duration {
        MAX_DELAY + self.rules.request_timeout
    }

    /// Reads the run. `None` where that was given up: the resource changed, or the rate limit let others go first for
    /// longer than `limit`, which counts as a try.
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

    /// Stores what was read. Where that fails, it is still known.
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
        let Prepared { endpoint, access, slot } = self.preflight(tracked, Purpose::Read).await?;
        self.read_with((&endpoint, &access), &tracked.resource.spec.run_id, slot).await
    }

    /// Reads the run once. Where a kept token was refused, a new one is to be fetched before anything is concluded.
    async fn read_with(
        &self,
        (endpoint, access): (&Endpoint, &Access),
        run_id: &str,
        slot: Slot,
    ) -> Result<ReadAnswer, Blocked> {
        let answer = self.amperity.read(endpoint, run_id, &access.token, slot).await;
        match &answer {
            ReadAnswer::Run(_) => self.may_read(access),
            ReadAnswer::Failed(ReadFailure::Unauthorized(said)) => {
                if self.refused(access, Refusal::Unauthorized, &said.detail()) == Retry::AtOnce {
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
            RetryWhen::Backoff => {
                tracked.memory.failures += 1;
                Requeue::At(Instant::now() + delay(tracked.memory.failures, MAX_CREDENTIALS_DELAY, rng::unit()))
            }
        };
        self.announce(tracked, reason, &detail, requeue).await
    }

    /// Writes what is waited for, where it is new.
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

    /// Writes what was learned. A resource that changed in between in nothing that this builds on is
    /// no reason to forget it.
    async fn write(
        &self,
        tracked: &mut Tracked,
        status: impl Fn(&WorkflowRunStop) -> WorkflowRunStopStatus,
        outcome: StepOutcome,
    ) -> Done {
        let is_read = matches!(outcome, StepOutcome::RunRead);
        let tried_for = is_read.then_some(Duration::ZERO);
        let written = loop {
            let known = tracked.known();
            let status = self.with_end(&tracked.resource, status(&tracked.resource), tried_for);
            match self.store.update(&tracked.resource, status).await? {
                // What was read is true of any spec.
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

    /// Where the next step is only to write the end, it is written along with this one.
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
