//! Owns the corridor: look, decide, act, record. The only room that knows both outsides.
//! Never chooses a step itself and never writes what `outcome` did not make.

pub mod backoff;
pub mod decide;
pub mod draft;
pub mod house;
pub mod ledger;
pub mod ledger_error;
pub mod outcome;
pub mod prepare;
pub mod report;
pub mod subject;

use std::{pin::Pin, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer},
    budget::Slot,
    credentials::Refusal,
    endpoint::Endpoint,
    purpose::Purpose,
};
use crate::clock::until;
use crate::dice;
use crate::resource::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};
use crate::run::Phase;
use crate::stop::{
    backoff::{MAX_CREDENTIALS_DELAY, MAX_DELAY, delay, next_look},
    decide::{Decision, Ending, Established, Seen, at_the_latest, decide},
    house::House,
    ledger::{LedgerError, Written},
    outcome::Retry,
    prepare::{Again, Denied, Pass, Prepared, Unprepared},
    report::{Did, Next, Report},
    subject::{Memory, Subject},
};

/// A read that was to precede a further stop request and is older than this when the request may go is made again: the
/// rate limit was closed in between.
const MAX_READ_AGE: Duration = Duration::from_secs(5);

/// Resolves when a step is to give up waiting: the resource changed, or no new work is to be begun.
/// Nothing is given up between a claim and its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Looks at a resource, takes the next step and records what came of it.
pub async fn step(house: &House, subject: &mut Subject, interrupt: Interrupt<'_>) -> Report {
    let done = match house.decide(subject) {
        Decision::Nothing => Ok((Did::Looked, Next::OnChange)),
        Decision::Wait(wait) => Ok((Did::Looked, Next::At(Instant::now() + wait))),
        Decision::Suspended => house.tell(subject, Reason::Suspended, "", Next::OnChange).await,
        Decision::Finish(ending) => house.finish(subject, ending).await,
        // These wait for a while in large futures: on the heap, a waiting resource stays small.
        Decision::Stop(deadline) => Box::pin(house.stop(subject, deadline, None, interrupt)).await,
        Decision::Repeat(deadline, established) => {
            Box::pin(house.stop(subject, deadline, Some(established), interrupt)).await
        }
        Decision::Confirm(established) => Box::pin(house.confirm(subject, established, interrupt)).await,
        Decision::Read(established) => Box::pin(house.follow(subject, established, interrupt)).await,
        Decision::Record => house.record(subject).await,
    };
    let latest = at_the_latest(&subject.resource, house.now()).map(|wait| Instant::now() + wait);
    match done {
        Ok((did, next)) => Report { did, next: next.bounded(latest) },
        Err(error) => {
            // The backoff is kept also where a deadline is over: that is what could not be written.
            subject.memory.failures += 1;
            let wait = delay(subject.memory.failures, MAX_CREDENTIALS_DELAY, dice::unit());
            Report { did: Did::Failed(error), next: Next::At(Instant::now() + wait) }
        }
    }
}

type Done = Result<(Did, Next), LedgerError>;

/// What comes before a stop request.
enum Readiness {
    /// It may be claimed and sent.
    Ready(Box<Prepared>),
    /// An earlier request made it needless, or nobody can tell: what reading the run showed.
    Answered(ReadAnswer),
}

impl House {
    fn decide(&self, subject: &mut Subject) -> Decision {
        let seen = subject.seen();
        decide(&subject.resource, self.now(), &seen, &self.rules)
    }

    /// Endpoint, credentials, slot, claim, request, record. A request that `repeats` another one is preceded by a read.
    async fn stop(
        &self,
        subject: &mut Subject,
        deadline: Option<Timestamp>,
        repeats: Option<Established>,
        interrupt: Interrupt<'_>,
    ) -> Done {
        let latest = at_the_latest(&subject.resource, self.now()).map(|wait| Instant::now() + wait);
        let ready = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            () = until(latest) => return Ok((Did::Looked, Next::Now)),
            ready = self.ready_to_stop(subject, repeats.is_some()) => ready,
        };
        let Prepared { endpoint, pass, slot } = match ready {
            Ok(Readiness::Ready(prepared)) => *prepared,
            Ok(Readiness::Answered(answer)) => {
                return self.learned(subject, answer, repeats.unwrap_or_default()).await;
            }
            Err(unprepared) => return self.unprepared(subject, unprepared).await,
        };
        // The wait may have been long, the machine suspended, or its clock set.
        if !matches!(self.decide(subject), Decision::Stop(_) | Decision::Repeat(..)) {
            return Ok((Did::Looked, Next::Now));
        }
        let url = endpoint.stop_url(&subject.resource.spec.run_id).to_string();
        let moment = self.moment();
        let status = |claim| outcome::claimed(&subject.resource, claim, url, moment);
        let claimed = match self.ledger.claim(&subject.resource, status).await? {
            Ok(claimed) => claimed,
            Err(written) => return Ok((Did::Looked, subject.take(written))),
        };
        let run_id = &subject.resource.spec.run_id;
        let fence = claimed.fence(deadline);
        let (answer, sent) = self.amperity.stop(&endpoint, run_id, &pass.token, slot, fence).await;
        let retry = self.judge(&pass, &answer);
        let moment = self.moment();
        let status = |resource: &WorkflowRunStop| {
            self.with_end(resource, outcome::stop_answered(resource, &answer, retry, moment), None)
        };
        let unstored = status(claimed.resource());
        let written = self.ledger.record(claimed, status).await;
        // A run that goes on after its stop is given a moment; one that ended, or that the answer
        // does not describe, is read at once.
        let goes_on = matches!(&answer, StopAnswer::Accepted(Some(run), _) if !Phase::of(&run.state).has_ended());
        let first_look = goes_on.then(|| Instant::now() + next_look(0, dice::unit()));
        subject.memory = Memory { next_look: first_look, ..Memory::default() };
        let stored = matches!(written, Written::Stored(_));
        let next = subject.take(written);
        let finished = stored && subject.resource.is_finished();
        // Of a request that was not sent there is no answer that could be lost.
        let unstored = (!stored && sent.is_some()).then(|| Box::new(unstored));
        Ok((Did::Stopped { class: answer.class(), sent, finished, unstored }, next))
    }

    /// Gets all that a stop request needs. Where it repeats an earlier one, the run is read right before it; the next slot
    /// that the tenant has is then the request's.
    async fn ready_to_stop(&self, subject: &mut Subject, repeats: bool) -> Result<Readiness, Unprepared> {
        let prepared = self.prepare(subject, Purpose::Stop).await?;
        if !repeats {
            return Ok(Readiness::Ready(Box::new(prepared)));
        }
        let Prepared { endpoint, pass, slot } = prepared;
        let answer = self.read_with((&endpoint, &pass), &subject.resource.spec.run_id, slot).await?;
        if !answer.is_active() {
            return Ok(Readiness::Answered(answer));
        }
        let read_at = Instant::now();
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Stop, Timestamp::MIN).await;
        if MAX_READ_AGE < read_at.elapsed() {
            return Err(Unprepared::Changed);
        }
        Ok(Readiness::Ready(Box::new(Prepared { endpoint, pass, slot })))
    }

    /// Reads the run to learn what became of a request.
    async fn confirm(&self, subject: &mut Subject, established: Established, interrupt: Interrupt<'_>) -> Done {
        match self.read_within(subject, self.longest_wait_for_a_read(), interrupt).await {
            None => Ok((Did::Looked, Next::Now)),
            Some(Ok(answer)) => self.learned(subject, answer, established).await,
            Some(Err(unprepared)) => {
                // The API refused the credentials or the token request. A missing Secret or a host that is not allowed is
                // no try: a person can mend that, and then reading tells the outcome.
                let of_api =
                    |denied: &Denied| !matches!(denied.reason, Reason::CredentialsMissing | Reason::EndpointNotAllowed);
                if matches!(&unprepared, Unprepared::Denied(denied) if of_api(denied)) {
                    subject.tried_to_read();
                }
                self.unprepared(subject, unprepared).await
            }
        }
    }

    /// Records what a read showed of an earlier stop request.
    async fn learned(&self, subject: &mut Subject, answer: ReadAnswer, established: Established) -> Done {
        subject.read(&answer);
        subject.memory.next_look = Some(Instant::now() + next_look(0, dice::unit()));
        subject.reads().unrecorded = Some((answer, established));
        self.record(subject).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, subject: &mut Subject, established: Established, interrupt: Interrupt<'_>) -> Done {
        // The last read of a run that was not read yet has time beyond the end of the following.
        let left = at_the_latest(&subject.resource, self.now()).unwrap_or_default();
        let limit = if subject.seen().tried_for.is_some() { left } else { left.max(self.longest_wait_for_a_read()) };
        match self.read_within(subject, limit, interrupt).await {
            None => Ok((Did::Looked, Next::Now)),
            Some(Ok(answer)) => {
                let asked = match &answer {
                    ReadAnswer::Failed(failure) => failure.retry_after().unwrap_or_default(),
                    ReadAnswer::Run(_) | ReadAnswer::Unreadable(_) => Duration::ZERO,
                };
                subject.read(&answer);
                subject.looked(asked);
                subject.reads().unrecorded = Some((answer, established));
                self.record(subject).await
            }
            Some(Err(unprepared)) => {
                // It counts as a try, so that the following ends in time also without usable credentials.
                if matches!(unprepared, Unprepared::Denied(_)) {
                    subject.tried_to_read();
                    subject.looked(Duration::ZERO);
                }
                self.unprepared(subject, unprepared).await
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
        subject: &mut Subject,
        limit: Duration,
        interrupt: Interrupt<'_>,
    ) -> Option<Result<ReadAnswer, Unprepared>> {
        tokio::select! {
            biased;
            () = interrupt => None,
            answer = timeout(limit, self.read(subject)) => {
                if answer.is_err() {
                    subject.tried_to_read();
                }
                answer.ok()
            }
        }
    }

    /// Stores what was read. Where that fails, it is still known.
    async fn record(&self, subject: &mut Subject) -> Done {
        let Some((answer, established)) = subject.reads().unrecorded.take() else {
            return Ok((Did::Looked, Next::Now));
        };
        let (moment, failures) = (self.moment(), subject.memory.failures);
        let status = |resource: &WorkflowRunStop| match resource.accepted_time() {
            Some(_) => outcome::followed(resource, &answer, established, moment),
            None => outcome::confirmed(resource, &answer, established, failures, moment),
        };
        let done = self.write(subject, status, Did::Read).await;
        if done.is_err() {
            subject.reads().unrecorded = Some((answer, established));
        }
        done
    }

    async fn read(&self, subject: &mut Subject) -> Result<ReadAnswer, Unprepared> {
        let Prepared { endpoint, pass, slot } = self.prepare(subject, Purpose::Read).await?;
        self.read_with((&endpoint, &pass), &subject.resource.spec.run_id, slot).await
    }

    /// Reads the run once. Where a kept token was refused, a new one is to be fetched before anything is concluded.
    async fn read_with(
        &self,
        (endpoint, pass): (&Endpoint, &Pass),
        run_id: &str,
        slot: Slot,
    ) -> Result<ReadAnswer, Unprepared> {
        let answer = self.amperity.read(endpoint, run_id, &pass.token, slot).await;
        match &answer {
            ReadAnswer::Run(_) => self.may_read(pass),
            ReadAnswer::Failed(ReadFailure::Unauthorized(said)) => {
                if self.refused(pass, Refusal::Unauthorized, &said.detail()) == Retry::AtOnce {
                    return Err(Unprepared::Changed);
                }
            }
            ReadAnswer::Failed(_) | ReadAnswer::Unreadable(_) => {}
        }
        Ok(answer)
    }

    async fn unprepared(&self, subject: &mut Subject, unprepared: Unprepared) -> Done {
        let Denied { reason, detail, again } = match unprepared {
            Unprepared::Changed => return Ok((Did::Looked, Next::Now)),
            Unprepared::Failed(error) => return Err(error),
            Unprepared::Denied(denied) => denied,
        };
        let next = match again {
            Again::OnChange => Next::OnChange,
            Again::At(then) => Next::At(then),
            Again::Backoff => {
                subject.memory.failures += 1;
                Next::At(Instant::now() + delay(subject.memory.failures, MAX_CREDENTIALS_DELAY, dice::unit()))
            }
        };
        self.tell(subject, reason, &detail, next).await
    }

    /// Writes what is waited for, where it is new.
    async fn tell(&self, subject: &mut Subject, reason: Reason, detail: &str, next: Next) -> Done {
        let status = outcome::waiting(&subject.resource, reason, detail, self.moment());
        match self.ledger.announce(&subject.resource, status).await? {
            Written::Same => Ok((Did::Looked, next)),
            Written::Stored(stored) => {
                subject.resource = *stored;
                Ok((Did::Told, next))
            }
            written @ (Written::Changed(_) | Written::Gone) => Ok((Did::Looked, subject.take(written))),
        }
    }

    async fn finish(&self, subject: &mut Subject, ending: Ending) -> Done {
        let moment = self.moment();
        self.write(subject, |resource| outcome::finished(resource, ending, moment), Did::Told).await
    }

    /// Writes what was learned. A resource that changed in between in nothing that this builds on is
    /// no reason to forget it.
    async fn write(
        &self,
        subject: &mut Subject,
        status: impl Fn(&WorkflowRunStop) -> WorkflowRunStopStatus,
        did: Did,
    ) -> Done {
        let is_read = matches!(did, Did::Read);
        let tried_for = is_read.then_some(Duration::ZERO);
        let written = loop {
            let known = subject.known();
            let status = self.with_end(&subject.resource, status(&subject.resource), tried_for);
            match self.ledger.update(&subject.resource, status).await? {
                // What was read is true of any spec.
                Written::Changed(now) if !known.is_outdated_by(&now, is_read) => subject.resource = *now,
                written @ (Written::Stored(_) | Written::Same | Written::Changed(_) | Written::Gone) => break written,
            }
        };
        let stored = matches!(written, Written::Stored(_));
        let next = subject.take(written);
        let did = match (stored, subject.resource.is_finished()) {
            (false, _) => Did::Looked,
            (true, true) => Did::Finished,
            (true, false) => did,
        };
        Ok((did, next))
    }

    /// Where the next step is only to write the end, it is written along with this one.
    fn with_end(
        &self,
        resource: &WorkflowRunStop,
        status: WorkflowRunStopStatus,
        tried_for: Option<Duration>,
    ) -> WorkflowRunStopStatus {
        let moment = self.moment();
        let after = WorkflowRunStop { status: Some(status), ..resource.clone() };
        match decide(&after, moment.now, &Seen { tried_for, ..Seen::default() }, &self.rules) {
            Decision::Finish(ending) => outcome::finished(&after, ending, moment),
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
