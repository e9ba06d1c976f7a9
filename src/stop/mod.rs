//! Owns the corridor: look, decide, act, record. The only room that knows both outsides.
//! Never chooses a step itself and never writes what `outcome` did not make.

pub mod backoff;
pub mod decide;
pub mod draft;
pub mod house;
pub mod ledger;
pub mod outcome;
pub mod prepare;
pub mod report;
pub mod subject;

use std::{pin::Pin, time::Duration};

use tokio::time::Instant;

use crate::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer},
    budget::Purpose,
    credentials::Refusal,
};
use crate::clock::until;
use crate::dice;
use crate::resource::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};
use crate::run::Phase;
use crate::stop::{
    backoff::{MAX_CREDENTIALS_DELAY, delay, next_look},
    decide::{ActiveRead, Decision, Ending, Seen, at_the_latest, decide},
    house::House,
    ledger::{LedgerError, Written},
    prepare::{Again, Denied, Prepared, Unprepared},
    report::{Did, Next, Report},
    subject::{Memory, Subject},
};

/// Resolves when a step is to give up waiting: the resource changed, or no new work is to be begun.
/// Nothing is given up between a claim and its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Looks at a resource, takes the next step and records what came of it.
pub async fn step(house: &House, subject: &mut Subject, interrupt: Interrupt<'_>) -> Report {
    let seen = subject.seen();
    let decision = decide(&subject.resource, house.now(), &seen, &house.rules);
    let done = match decision {
        Decision::Nothing => Ok((Did::Looked, Next::OnChange)),
        Decision::Wait(wait) => Ok((Did::Looked, Next::At(Instant::now() + wait))),
        Decision::Suspended => house.tell(subject, Reason::Suspended, "", Next::OnChange).await,
        Decision::Finish(ending) => house.finish(subject, ending).await,
        // These three wait for a while in large futures: on the heap, a waiting resource stays small.
        Decision::Stop(within) => Box::pin(house.stop(subject, within, interrupt)).await,
        Decision::Confirm(active) => Box::pin(house.confirm(subject, active, interrupt)).await,
        Decision::Read => Box::pin(house.follow(subject, interrupt)).await,
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

impl House {
    /// Endpoint, credentials, slot, claim, request, record.
    async fn stop(&self, subject: &mut Subject, within: Option<Duration>, interrupt: Interrupt<'_>) -> Done {
        let deadline = within.map(|within| Instant::now() + within);
        let prepared = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            () = until(deadline) => return Ok((Did::Looked, Next::Now)),
            prepared = self.prepare(subject, Purpose::Stop) => prepared,
        };
        let Prepared { endpoint, pass, slot } = match prepared {
            Ok(prepared) => prepared,
            Err(unprepared) => return self.unprepared(subject, unprepared).await,
        };
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
        let status = outcome::stop_answered(claimed.resource(), &answer, retry, self.moment());
        let status = self.with_end(claimed.resource(), status);
        let written = self.ledger.record(claimed, status).await;
        // A run that goes on after its stop is given a moment; one that ended, or that the answer
        // does not describe, is read at once.
        let goes_on = matches!(&answer, StopAnswer::Accepted(Some(run), _) if !Phase::of(&run.state).has_ended());
        let first_look = goes_on.then(|| Instant::now() + next_look(0, dice::unit()));
        subject.memory = Memory { next_look: first_look, ..Memory::default() };
        let stored = matches!(written, Written::Stored(_));
        let next = subject.take(written);
        let finished = stored && subject.resource.is_finished();
        Ok((Did::Stopped { class: answer.class(), sent, finished }, next))
    }

    /// Reads the run to learn what became of a request.
    async fn confirm(&self, subject: &mut Subject, active: ActiveRead, interrupt: Interrupt<'_>) -> Done {
        let answer = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            answer = self.read(subject) => answer,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(unprepared) => return self.unprepared(subject, unprepared).await,
        };
        match &answer {
            ReadAnswer::Run(_) => subject.read_unconfirmed(Instant::now() + next_look(0, dice::unit())),
            ReadAnswer::Failed(_) => subject.memory.failures += 1,
            ReadAnswer::Unreadable(_) => {}
        }
        let failures = subject.memory.failures;
        let moment = self.moment();
        let status = |resource: &_| outcome::confirmed(resource, &answer, active, failures, moment);
        self.write(subject, status, Did::Read).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, subject: &mut Subject, interrupt: Interrupt<'_>) -> Done {
        let answer = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            answer = self.read(subject) => answer,
        };
        subject.memory.looks += 1;
        subject.memory.next_look = Some(Instant::now() + next_look(subject.memory.looks, dice::unit()));
        match answer {
            Ok(answer) => {
                subject.memory.unrecorded = Some(answer);
                self.record(subject).await
            }
            Err(unprepared) => self.unprepared(subject, unprepared).await,
        }
    }

    /// Stores what was read of a run whose stop was accepted. Where that fails, it is still known.
    async fn record(&self, subject: &mut Subject) -> Done {
        let Some(answer) = subject.memory.unrecorded.take() else { return Ok((Did::Looked, Next::Now)) };
        let moment = self.moment();
        let done = self.write(subject, |resource| outcome::followed(resource, &answer, moment), Did::Read).await;
        if done.is_err() {
            subject.memory.unrecorded = Some(answer);
        }
        done
    }

    async fn read(&self, subject: &mut Subject) -> Result<ReadAnswer, Unprepared> {
        let Prepared { endpoint, pass, slot } = self.prepare(subject, Purpose::Read).await?;
        let answer = self.amperity.read(&endpoint, &subject.resource.spec.run_id, &pass.token, slot).await;
        match &answer {
            ReadAnswer::Run(_) => self.may_read(&pass),
            ReadAnswer::Failed(ReadFailure::Unauthorized(said)) => {
                self.refused(&pass, Refusal::Unauthorized, &said.detail());
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
        let written = loop {
            let known = subject.known();
            let status = self.with_end(&subject.resource, status(&subject.resource));
            match self.ledger.update(&subject.resource, status).await? {
                Written::Changed(now) if !known.is_outdated_by(&now) => subject.resource = *now,
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
    fn with_end(&self, resource: &WorkflowRunStop, status: WorkflowRunStopStatus) -> WorkflowRunStopStatus {
        let moment = self.moment();
        let after = WorkflowRunStop { status: Some(status), ..resource.clone() };
        match decide(&after, moment.now, &Seen::default(), &self.rules) {
            Decision::Finish(ending) => outcome::finished(&after, ending, moment),
            Decision::Nothing
            | Decision::Suspended
            | Decision::Wait(_)
            | Decision::Stop(_)
            | Decision::Confirm(_)
            | Decision::Read
            | Decision::Record => after.status.unwrap_or_default(),
        }
    }
}
