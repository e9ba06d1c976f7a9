//! Owns what comes before a request: the endpoint, the Secret, read fresh, a token, a slot of the budget.
//! Never claims and never sends a stop.

use std::{pin::pin, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::amperity::{
    answer::{StopAnswer, TokenAnswer},
    budget::Slot,
    credentials::{Admitted, Client, Credentials, CredentialsKey, Refusal, Token},
    endpoint::Endpoint,
    purpose::Purpose,
};
use crate::dice;
use crate::resource::{WorkflowRunStop, conditions::Reason};
use crate::stop::{
    house::House,
    ledger::{LedgerError, Written},
    outcome::{self, Retry},
    subject::Subject,
};

/// After this queueing time, and up to twice as long, the status says `WaitingForBudget`.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is needed to send one request.
pub struct Prepared {
    /// Where it goes.
    pub endpoint: Endpoint,
    /// With which credentials.
    pub pass: Pass,
    /// The right to send it.
    pub slot: Slot,
}

/// The right credentials for one request.
pub struct Pass {
    /// The token to send.
    pub token: Token,
    key: CredentialsKey,
    admitted: Admitted,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The Secret holds it.
    Secret,
    /// It was fetched for this request.
    Fetched,
    /// It was fetched a while ago: where it is refused, a new one may help.
    Kept,
}

/// Why no request is sent now.
pub enum Unprepared {
    /// Something is missing or not allowed.
    Denied(Denied),
    /// What is known of the resource changed.
    Changed,
    /// The API server gave no usable answer.
    Failed(LedgerError),
}

/// What is missing or not allowed.
pub struct Denied {
    /// The reason for the status.
    pub reason: Reason,
    /// More of it.
    pub detail: String,
    /// When to look again.
    pub again: Again,
}

/// When to look again at what is missing or not allowed.
pub enum Again {
    /// When the resource changes: nothing else can mend it.
    OnChange,
    /// After a while, again and again.
    Backoff,
    /// Then.
    At(Instant),
}

impl From<LedgerError> for Unprepared {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error)
    }
}

fn denied(reason: Reason, detail: String, again: Again) -> Unprepared {
    Unprepared::Denied(Denied { reason, detail, again })
}

/// What credentials and slot are asked for with: copied, so that the resource can change while they are waited for.
struct Wanted {
    purpose: Purpose,
    created: Timestamp,
    namespace: String,
    secret: String,
}

impl Wanted {
    fn of(resource: &WorkflowRunStop, purpose: Purpose) -> Self {
        Self {
            purpose,
            created: resource.created(),
            namespace: resource.namespace().to_owned(),
            secret: resource.spec.credentials_secret_ref.name.clone(),
        }
    }
}

impl House {
    /// Gets all that one request needs. A stop that waits long for the rate limit, for its own turn or for that of a token
    /// request, says so in the status, and looks at the Secret again before it goes on.
    ///
    /// # Errors
    /// Where no request can be sent now. Nothing was sent or claimed then.
    pub async fn prepare(&self, subject: &mut Subject, purpose: Purpose) -> Result<Prepared, Unprepared> {
        let spec = &subject.resource.spec;
        let endpoint = self
            .endpoints
            .of(&spec.tenant, spec.base_url.as_deref())
            .map_err(|error| denied(Reason::EndpointNotAllowed, error.to_string(), Again::OnChange))?;
        let key = endpoint.budget_key();
        let wanted = Wanted::of(&subject.resource, purpose);
        let mut ready = pin!(async {
            let pass = self.pass(&wanted, &endpoint).await?;
            let slot = self.budget.acquire(&key, purpose, wanted.created).await;
            Ok::<_, Unprepared>(Prepared { endpoint: endpoint.clone(), pass, slot })
        });
        // Not all that wait are to write at the same moment.
        let patience = PATIENCE.mul_f64(1.0 + dice::unit());
        if let Ok(ready) = timeout(patience, ready.as_mut()).await {
            let prepared = ready?;
            let refused = self.wallet.was_refused_since(&prepared.pass.key, prepared.pass.admitted);
            return if refused { Err(Unprepared::Changed) } else { Ok(prepared) };
        }
        let prepared = loop {
            // It may as well be a slow answer to a token request that is waited for.
            if purpose == Purpose::Stop && self.budget.is_waited_for(&key) {
                let status = outcome::waiting(&subject.resource, Reason::WaitingForBudget, "", self.moment());
                tokio::select! {
                    biased;
                    // The turn does not wait for the writing: others stand behind it.
                    ready = ready.as_mut() => break ready?,
                    written = self.ledger.announce(&subject.resource, status) => match written? {
                        Written::Stored(stored) => subject.resource = *stored,
                        Written::Same => {}
                        written @ (Written::Changed(_) | Written::Gone) => {
                            subject.take(written);
                            return Err(Unprepared::Changed);
                        }
                    },
                }
                break ready.await?;
            }
            if let Ok(ready) = timeout(patience, ready.as_mut()).await {
                break ready?;
            }
        };
        let current = self.is_current(&wanted, &prepared.pass).await?;
        if current { Ok(prepared) } else { Err(Unprepared::Changed) }
    }

    /// Looks up the Secret that the resource names and gets a token with it.
    async fn pass(&self, wanted: &Wanted, endpoint: &Endpoint) -> Result<Pass, Unprepared> {
        let Wanted { purpose, created: _, namespace, secret: name } = wanted;
        let missing = |detail| denied(Reason::CredentialsMissing, detail, Again::Backoff);
        let secret = match self.ledger.secret(namespace, name).await {
            Ok(Some(secret)) => secret,
            Ok(None) => return Err(missing(format!("there is no Secret {name}"))),
            Err(error) if error.is_forbidden() => {
                return Err(missing(format!("the operator is not allowed to read the Secret {name}")));
            }
            Err(error) if error.is_internal() => {
                return Err(missing(format!("the API server cannot read the Secret {name}: {error}")));
            }
            Err(error) => return Err(error.into()),
        };
        let credentials =
            Credentials::parse(&secret.data).map_err(|error| missing(format!("the Secret {name}: {error}")))?;
        let key = CredentialsKey { secret: secret.version, budget: endpoint.budget_key() };
        let admitted = self
            .wallet
            .admit(&key, *purpose)
            .map_err(|resting| denied(reason_of(resting.refusal), resting.detail, Again::At(resting.until)))?;
        match credentials {
            Credentials::Static(token) => Ok(Pass { token, key, admitted, origin: Origin::Secret }),
            Credentials::Client(client) => self.fetched(wanted, endpoint, &client, key, admitted).await,
        }
    }

    async fn fetched(
        &self,
        wanted: &Wanted,
        endpoint: &Endpoint,
        client: &Client,
        key: CredentialsKey,
        admitted: Admitted,
    ) -> Result<Pass, Unprepared> {
        let _turn = self.wallet.turn(&key).await;
        if let Some(token) = self.wallet.token(&key) {
            return Ok(Pass { token, key, admitted, origin: Origin::Kept });
        }
        if self.wallet.was_refused_since(&key, admitted) {
            return Err(Unprepared::Changed);
        }
        let url = match &client.token_url {
            None => endpoint.default_token_url(),
            Some(url) => self.endpoints.token_url(url, endpoint).map_err(|error| {
                let detail = format!("the key tokenUrl of the Secret: {error}");
                denied(Reason::EndpointNotAllowed, detail, Again::Backoff)
            })?,
        };
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Token, wanted.created).await;
        let (refusal, why) = match self.amperity.token(url, endpoint, client, slot).await {
            TokenAnswer::Token(token, valid) => {
                self.wallet.keep(key.clone(), token.clone(), valid);
                return Ok(Pass { token, key, admitted, origin: Origin::Fetched });
            }
            TokenAnswer::Refused(said) => (Refusal::Unauthorized, said.detail()),
            TokenAnswer::RateLimited(said) => (Refusal::RateLimited, said.detail()),
            TokenAnswer::NotSent(why) => (Refusal::Unreachable, why),
            TokenAnswer::Unavailable(why) => (Refusal::Unavailable, why),
        };
        // All that wait for the same token learn of it at once, instead of asking one after the other.
        let detail = format!("the token request: {why}");
        self.wallet.refused(&key, admitted, refusal, &detail);
        Err(denied(reason_of(refusal), detail, Again::Backoff))
    }

    /// True where the Secret and the token are still those of this pass, after a long wait.
    async fn is_current(&self, wanted: &Wanted, pass: &Pass) -> Result<bool, Unprepared> {
        let secret = self.ledger.secret(&wanted.namespace, &wanted.secret).await?;
        let same = secret.is_some_and(|secret| secret.version == pass.key.secret);
        let valid = pass.origin == Origin::Secret || self.wallet.token(&pass.key).as_ref() == Some(&pass.token);
        Ok(same && valid && !self.wallet.was_refused_since(&pass.key, pass.admitted))
    }

    /// Tells all that use the same credentials what the answer to a stop says of them, and the stop how
    /// to go on where they were refused.
    pub fn judge(&self, pass: &Pass, answer: &StopAnswer) -> Retry {
        match answer {
            StopAnswer::Unauthorized(said) => return self.refused(pass, Refusal::Unauthorized, &said.detail()),
            StopAnswer::Forbidden(said) => return self.refused(pass, Refusal::Forbidden, &said.detail()),
            StopAnswer::Accepted(..)
            | StopAnswer::NotFound(_)
            | StopAnswer::Conflict(_)
            | StopAnswer::BadRequest(_)
            | StopAnswer::Rejected(_) => self.wallet.accepted(&pass.key, Purpose::Stop),
            StopAnswer::NotOurRun(_)
            | StopAnswer::RateLimited(..)
            | StopAnswer::Foreign(_)
            | StopAnswer::Redirected(..)
            | StopAnswer::ServerError(..)
            | StopAnswer::NotSent(_)
            | StopAnswer::TooLate
            | StopAnswer::NoAnswer(_) => {}
        }
        Retry::Backoff
    }

    /// Says that a run was read with these credentials, which need not be enough to stop it.
    pub fn may_read(&self, pass: &Pass) {
        self.wallet.accepted(&pass.key, Purpose::Read);
    }

    /// Says that the API refused these credentials, and how.
    pub fn refused(&self, pass: &Pass, refusal: Refusal, detail: &str) -> Retry {
        self.wallet.forget(&pass.key, &pass.token);
        if pass.origin == Origin::Kept && refusal == Refusal::Unauthorized {
            return Retry::AtOnce;
        }
        self.wallet.refused(&pass.key, pass.admitted, refusal, detail);
        Retry::Backoff
    }
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Unauthorized => Reason::Unauthorized,
        Refusal::Forbidden => Reason::Forbidden,
        Refusal::RateLimited => Reason::RateLimited,
        Refusal::Unreachable => Reason::Unreachable,
        Refusal::Unavailable => Reason::Unavailable,
    }
}
