//! Owns the corridor: look, decide, act, record. The only room that knows both outsides.
//! Never chooses a step itself and never writes what `outcome` did not make.

pub mod access;
pub mod backoff;
pub mod decide;
pub mod ledger;
pub mod outcome;
pub mod report;
pub mod subject;

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};

use crate::amperity::{
    Amperity,
    answer::{ReadAnswer, StopAnswer},
    budget::{Purpose, Slot},
    endpoint::{Endpoint, EndpointError, Endpoints},
};
use crate::clock::Clock;
use crate::resource::{WorkflowRunStop, WorkflowRunStopStatus, conditions::Reason};
use crate::run::Phase;
use crate::stop::{
    access::{Access, Denied, Pass},
    backoff::{MAX_CREDENTIALS_DELAY, delay, next_look},
    decide::{Decision, Ending, Rules, Seen, at_the_latest, decide},
    ledger::{Ledger, LedgerError, Written},
    outcome::{ActiveRead, Moment},
    report::{Did, Next, Report},
    subject::{Memory, Subject},
};

/// Who waits longer for a slot is told so in the status.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a replica needs to work on resources.
#[derive(Clone)]
pub struct House {
    /// Reads and writes in Kubernetes.
    pub ledger: Ledger,
    /// Calls the API.
    pub amperity: Amperity,
    /// Gets tokens.
    pub access: Access,
    /// Where the API is.
    pub endpoints: Endpoints,
    /// The settings that decisions depend on.
    pub rules: Rules,
    /// The wall clock.
    pub clock: Clock,
}

/// Resolves when a step is to give up waiting: the resource changed, or no new work is to be begun.
/// Nothing is given up between a claim and its record.
pub type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Looks at a resource, takes the next step and records what came of it.
pub async fn step(house: &House, subject: &mut Subject, interrupt: Interrupt<'_>) -> Report {
    let seen = subject.seen();
    let decision = decide(&subject.resource, (house.clock)(), &seen, &house.rules);
    let done = match decision {
        Decision::Nothing => Ok((Did::Looked, Next::OnChange)),
        Decision::Wait(wait, _) => Ok((Did::Looked, Next::At(Instant::now() + wait))),
        Decision::Suspended => house.tell(subject, Reason::Suspended, "", Next::OnChange).await,
        Decision::Finish(ending) => house.finish(subject, ending).await,
        // These three wait for a while in large futures: on the heap, a waiting resource stays small.
        Decision::Stop(within) => Box::pin(house.stop(subject, within, interrupt)).await,
        Decision::Confirm => Box::pin(house.confirm(subject, interrupt)).await,
        Decision::Read => Box::pin(house.follow(subject, interrupt)).await,
    };
    let (did, next) = done.unwrap_or_else(|error| {
        subject.memory.failures += 1;
        let wait = delay(subject.memory.failures, MAX_CREDENTIALS_DELAY, jitter());
        (Did::Failed(error), Next::At(Instant::now() + wait))
    });
    let latest = at_the_latest(&subject.resource, (house.clock)()).map(|wait| Instant::now() + wait);
    Report { did, next: next.bounded(latest) }
}

type Done = Result<(Did, Next), LedgerError>;

/// What is needed to send one request.
struct Prepared {
    endpoint: Endpoint,
    pass: Pass,
    slot: Slot,
}

/// Why a request is not sent now.
enum Unprepared {
    NotAllowed(EndpointError),
    Denied(Denied),
    /// What is known of the resource changed.
    LookAgain,
}

impl House {
    /// Endpoint, credentials, slot, claim, request, record.
    async fn stop(&self, subject: &mut Subject, within: Option<Duration>, interrupt: Interrupt<'_>) -> Done {
        let deadline = within.map(|within| Instant::now() + within);
        let prepared = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            () = until(deadline) => return Ok((Did::Looked, Next::Now)),
            prepared = self.prepare(subject, Purpose::Stop) => prepared?,
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
        let answer = self.amperity.stop(&endpoint, run_id, &pass.token, slot, claimed.fence(deadline)).await;
        let mut status = outcome::stop_answered(claimed.resource(), &answer, self.moment());
        if self.judge(&pass, &answer) {
            // A new token is fetched at once; the old one was simply too old.
            if let Some(request) = &mut status.stop_request {
                request.next_attempt_time = None;
            }
        }
        let status = self.with_end(claimed.resource(), status);
        let written = self.ledger.record(claimed, status).await;
        // A run that goes on after its stop is given a moment; one that ended, or that the answer
        // does not describe, is read at once.
        let goes_on = matches!(&answer, StopAnswer::Accepted(Some(run), _) if !Phase::of(&run.state).has_ended());
        subject.memory =
            Memory { next_look: goes_on.then(|| Instant::now() + next_look(0, jitter())), ..Memory::default() };
        let next = subject.take(written);
        Ok((Did::Stopped(answer.class()), next))
    }

    /// Reads the run to learn what became of a request.
    async fn confirm(&self, subject: &mut Subject, interrupt: Interrupt<'_>) -> Done {
        let answer = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            answer = self.read(subject) => answer?,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(unprepared) => return self.unprepared(subject, unprepared).await,
        };
        let claim = subject.resource.claim().map(|claim| claim.id.clone()).unwrap_or_default();
        let now = Instant::now();
        let active = match &subject.memory.active {
            Some((of, since)) if *of == claim && self.rules.settle_time <= now - *since => ActiveRead::Again,
            _ => ActiveRead::First,
        };
        match &answer {
            ReadAnswer::Run(_) => {
                subject.memory.failures = 0;
                subject.memory.next_look = Some(now + next_look(0, jitter()));
                if subject.memory.active.as_ref().is_none_or(|(of, _)| *of != claim) {
                    subject.memory.active = Some((claim, now));
                }
            }
            ReadAnswer::RateLimited(_) | ReadAnswer::Unauthorized(_) | ReadAnswer::Unavailable(_) => {
                subject.memory.failures += 1;
            }
            ReadAnswer::Unreadable(_) => {}
        }
        let failures = subject.memory.failures;
        let status = outcome::confirmed(&subject.resource, &answer, active, failures, self.moment());
        self.write(subject, status, Did::Read).await
    }

    /// Reads a run whose stop was accepted.
    async fn follow(&self, subject: &mut Subject, interrupt: Interrupt<'_>) -> Done {
        let answer = tokio::select! {
            biased;
            () = interrupt => return Ok((Did::Looked, Next::Now)),
            answer = self.read(subject) => answer?,
        };
        subject.memory.looks += 1;
        subject.memory.next_look = Some(Instant::now() + next_look(subject.memory.looks, jitter()));
        match answer {
            Ok(answer) => {
                let status = outcome::followed(&subject.resource, &answer, self.moment());
                self.write(subject, status, Did::Read).await
            }
            Err(unprepared) => self.unprepared(subject, unprepared).await,
        }
    }

    async fn read(&self, subject: &mut Subject) -> Result<Result<ReadAnswer, Unprepared>, LedgerError> {
        let Prepared { endpoint, pass, slot } = match self.prepare(subject, Purpose::Read).await? {
            Ok(prepared) => prepared,
            Err(unprepared) => return Ok(Err(unprepared)),
        };
        let answer = self.amperity.read(&endpoint, &subject.resource.spec.run_id, &pass.token, slot).await;
        match &answer {
            ReadAnswer::Run(_) => self.access.accepted(&pass),
            ReadAnswer::Unauthorized(said) => {
                self.access.refused(&pass, false, &said.detail());
            }
            ReadAnswer::RateLimited(_) | ReadAnswer::Unreadable(_) | ReadAnswer::Unavailable(_) => {}
        }
        Ok(Ok(answer))
    }

    /// Endpoint, credentials and slot. A stop that waits long for its slot says so in the status,
    /// and looks at the Secret again before it goes on.
    async fn prepare(
        &self,
        subject: &mut Subject,
        purpose: Purpose,
    ) -> Result<Result<Prepared, Unprepared>, LedgerError> {
        let spec = &subject.resource.spec;
        let endpoint = match self.endpoints.of(&spec.tenant, spec.base_url.as_deref()) {
            Ok(endpoint) => endpoint,
            Err(error) => return Ok(Err(Unprepared::NotAllowed(error))),
        };
        let pass = match self.access.pass(&subject.resource, &endpoint).await? {
            Ok(pass) => pass,
            Err(denied) => return Ok(Err(Unprepared::Denied(denied))),
        };
        let created = subject.resource.metadata.creation_timestamp.as_ref();
        let created = created.map_or(Timestamp::UNIX_EPOCH, |created| created.0);
        let key = endpoint.budget_key();
        let mut turn = pin!(self.access.budget.acquire(&key, purpose, created));
        // Not all that wait are to write at the same moment.
        if let Ok(slot) = timeout(PATIENCE.mul_f64(1.0 + jitter()), turn.as_mut()).await {
            let good = self.access.is_admitted(&pass);
            return Ok(if good { Ok(Prepared { endpoint, pass, slot }) } else { Err(Unprepared::LookAgain) });
        }
        let slot = if purpose == Purpose::Stop {
            let status = outcome::waiting(&subject.resource, Reason::WaitingForBudget, "", self.moment());
            tokio::select! {
                biased;
                // The turn does not wait for the writing: others stand behind it.
                slot = turn.as_mut() => slot,
                written = self.ledger.update(&subject.resource, status) => match written? {
                    Written::Stored(stored) => {
                        subject.resource = *stored;
                        turn.await
                    }
                    written @ (Written::Changed(_) | Written::Gone) => {
                        subject.take(written);
                        return Ok(Err(Unprepared::LookAgain));
                    }
                },
            }
        } else {
            turn.await
        };
        let good = self.access.is_current(&subject.resource, &pass).await?;
        Ok(if good { Ok(Prepared { endpoint, pass, slot }) } else { Err(Unprepared::LookAgain) })
    }

    /// Tells the others what the answer says of the credentials. True where a new token may help at once.
    fn judge(&self, pass: &Pass, answer: &StopAnswer) -> bool {
        match answer {
            StopAnswer::Unauthorized(said) => return self.access.refused(pass, false, &said.detail()),
            StopAnswer::Forbidden(said) => return self.access.refused(pass, true, &said.detail()),
            StopAnswer::Accepted(..) | StopAnswer::NotFound(_) | StopAnswer::Conflict(_) | StopAnswer::Rejected(_) => {
                self.access.accepted(pass);
            }
            StopAnswer::NotOurRun(_)
            | StopAnswer::RateLimited(..)
            | StopAnswer::Redirected(..)
            | StopAnswer::ServerError(_)
            | StopAnswer::NotSent(_)
            | StopAnswer::TooLate
            | StopAnswer::NoAnswer(_) => {}
        }
        false
    }

    async fn unprepared(&self, subject: &mut Subject, unprepared: Unprepared) -> Done {
        match unprepared {
            Unprepared::LookAgain => Ok((Did::Looked, Next::Now)),
            Unprepared::NotAllowed(error) => {
                self.tell(subject, Reason::EndpointNotAllowed, &error.to_string(), Next::OnChange).await
            }
            Unprepared::Denied(Denied { reason, detail, until }) => {
                subject.memory.failures += 1;
                let wait = delay(subject.memory.failures, MAX_CREDENTIALS_DELAY, jitter());
                let until = until.unwrap_or_else(|| Instant::now() + wait);
                self.tell(subject, reason, &detail, Next::At(until)).await
            }
        }
    }

    /// Writes what is waited for, where it is new.
    async fn tell(&self, subject: &mut Subject, reason: Reason, detail: &str, next: Next) -> Done {
        let status = outcome::waiting(&subject.resource, reason, detail, self.moment());
        if subject.resource.status.as_ref() == Some(&status) {
            return Ok((Did::Looked, next));
        }
        match self.ledger.update(&subject.resource, status).await? {
            Written::Stored(stored) => {
                subject.resource = *stored;
                Ok((Did::Told, next))
            }
            written @ (Written::Changed(_) | Written::Gone) => Ok((Did::Looked, subject.take(written))),
        }
    }

    async fn finish(&self, subject: &mut Subject, ending: Ending) -> Done {
        let status = outcome::finished(&subject.resource, ending, self.moment());
        self.write(subject, status, Did::Told).await
    }

    async fn write(&self, subject: &mut Subject, status: WorkflowRunStopStatus, did: Did) -> Done {
        let status = self.with_end(&subject.resource, status);
        let written = self.ledger.update(&subject.resource, status).await?;
        let next = subject.take(written);
        Ok((if subject.resource.is_finished() { Did::Finished } else { did }, next))
    }

    /// Where the next step is only to write the end, it is written along with this one.
    fn with_end(&self, resource: &WorkflowRunStop, status: WorkflowRunStopStatus) -> WorkflowRunStopStatus {
        let moment = self.moment();
        let after = WorkflowRunStop { status: Some(status), ..resource.clone() };
        match decide(&after, moment.now, &Seen::default(), &self.rules) {
            Decision::Finish(ending) => outcome::finished(&after, ending, moment),
            Decision::Nothing
            | Decision::Suspended
            | Decision::Wait(..)
            | Decision::Stop(_)
            | Decision::Confirm
            | Decision::Read => after.status.unwrap_or_default(),
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: (self.clock)(), jitter: jitter(), settle_time: self.rules.settle_time }
    }
}

impl Subject {
    /// Takes over what a write left behind, and says when to look again.
    fn take(&mut self, written: Written) -> Next {
        match written {
            Written::Stored(now) | Written::Changed(now) => {
                self.resource = *now;
                Next::Now
            }
            Written::Gone => Next::OnChange,
        }
    }
}

fn jitter() -> f64 {
    rand::random()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
