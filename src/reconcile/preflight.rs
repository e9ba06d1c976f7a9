//! Owns what comes before a request: the endpoint, the Secret, read fresh, a token, a slot of the budget.
//! Never claims and never sends a stop.

use std::{pin::pin, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::{
    answer::{StopAnswer, TokenAnswer},
    budget::Slot,
    credentials::{Admitted, Client, Credentials, CredentialsKey, Refusal, Token},
    endpoint::Endpoint,
    purpose::Purpose,
};
use crate::reconcile::{
    context::Context,
    outcome::{self, Retry},
    store::{StoreError, WriteResult},
    tracked::Tracked,
};
use crate::rng;

/// After this queueing time, and up to twice as long, the status says `WaitingForBudget`.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is needed to send one request.
pub struct Prepared {
    /// Where it goes.
    pub endpoint: Endpoint,
    /// With which credentials.
    pub access: Access,
    /// The right to send it.
    pub slot: Slot,
}

/// The right credentials for one request.
pub struct Access {
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
pub enum Blocked {
    /// Something is missing or not allowed.
    Denied(Denied),
    /// What is known of the resource changed.
    Changed,
    /// The API server gave no usable answer.
    Failed(StoreError),
}

/// What is missing or not allowed.
pub struct Denied {
    /// The reason for the status.
    pub reason: Reason,
    /// More of it.
    pub detail: String,
    /// When to look again.
    pub again: RetryWhen,
}

/// When to look again at what is missing or not allowed.
pub enum RetryWhen {
    /// When the resource changes: nothing else can mend it.
    OnChange,
    /// After a while, again and again.
    Backoff,
    /// Then.
    At(Instant),
}

impl From<StoreError> for Blocked {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

fn denied(reason: Reason, detail: String, again: RetryWhen) -> Blocked {
    Blocked::Denied(Denied { reason, detail, again })
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

impl Context {
    /// Gets all that one request needs. A stop that waits long for the rate limit, for its own turn or for that of a token
    /// request, says so in the status, and looks at the Secret again before it goes on.
    ///
    /// # Errors
    /// Where no request can be sent now. Nothing was sent or claimed then.
    pub async fn preflight(&self, tracked: &mut Tracked, purpose: Purpose) -> Result<Prepared, Blocked> {
        let spec = &tracked.resource.spec;
        let endpoint = self
            .endpoints
            .of(&spec.tenant, spec.base_url.as_deref())
            .map_err(|error| denied(Reason::EndpointNotAllowed, error.to_string(), RetryWhen::OnChange))?;
        let key = endpoint.budget_key();
        let wanted = Wanted::of(&tracked.resource, purpose);
        let mut ready = pin!(async {
            let access = self.access(&wanted, &endpoint).await?;
            let slot = self.budget.acquire(&key, purpose, wanted.created).await;
            Ok::<_, Blocked>(Prepared { endpoint: endpoint.clone(), access, slot })
        });
        // Not all that wait are to write at the same moment.
        let patience = PATIENCE.mul_f64(1.0 + rng::unit());
        if let Ok(ready) = timeout(patience, ready.as_mut()).await {
            let prepared = ready?;
            let refused = self.credential_cache.was_refused_since(&prepared.access.key, prepared.access.admitted);
            return if refused { Err(Blocked::Changed) } else { Ok(prepared) };
        }
        let prepared = loop {
            // It may as well be a slow answer to a token request that is waited for.
            if purpose == Purpose::Stop && self.budget.is_waited_for(&key) {
                let status = outcome::waiting(&tracked.resource, Reason::WaitingForBudget, "", self.step_time());
                tokio::select! {
                    biased;
                    // The turn does not wait for the writing: others stand behind it.
                    ready = ready.as_mut() => break ready?,
                    written = self.store.announce(&tracked.resource, status) => match written? {
                        WriteResult::Stored(stored) => tracked.resource = *stored,
                        WriteResult::Same => {}
                        written @ (WriteResult::Changed(_) | WriteResult::Gone) => {
                            tracked.take(written);
                            return Err(Blocked::Changed);
                        }
                    },
                }
                break ready.await?;
            }
            if let Ok(ready) = timeout(patience, ready.as_mut()).await {
                break ready?;
            }
        };
        let current = self.is_current(&wanted, &prepared.access).await?;
        if current { Ok(prepared) } else { Err(Blocked::Changed) }
    }

    /// Looks up the Secret that the resource names and gets a token with it.
    async fn access(&self, wanted: &Wanted, endpoint: &Endpoint) -> Result<Access, Blocked> {
        let Wanted { purpose, created: _, namespace, secret: name } = wanted;
        let missing = |detail| denied(Reason::CredentialsMissing, detail, RetryWhen::Backoff);
        let secret = match self.store.secret(namespace, name).await {
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
            .credential_cache
            .admit(&key, *purpose)
            .map_err(|resting| denied(reason_of(resting.refusal), resting.detail, RetryWhen::At(resting.until)))?;
        match credentials {
            Credentials::Static(token) => Ok(Access { token, key, admitted, origin: Origin::Secret }),
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
    ) -> Result<Access, Blocked> {
        let _turn = self.credential_cache.turn(&key).await;
        if let Some(token) = self.credential_cache.token(&key) {
            return Ok(Access { token, key, admitted, origin: Origin::Kept });
        }
        if self.credential_cache.was_refused_since(&key, admitted) {
            return Err(Blocked::Changed);
        }
        let url = match &client.token_url {
            None => endpoint.default_token_url(),
            Some(url) => self.endpoints.token_url(url, endpoint).map_err(|error| {
                let detail = format!("the key tokenUrl of the Secret: {error}");
                denied(Reason::EndpointNotAllowed, detail, RetryWhen::Backoff)
            })?,
        };
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Token, wanted.created).await;
        let (refusal, why) = match self.amperity.token(url, endpoint, client, slot).await {
            TokenAnswer::Token(token, valid) => {
                self.credential_cache.keep(key.clone(), token.clone(), valid);
                return Ok(Access { token, key, admitted, origin: Origin::Fetched });
            }
            TokenAnswer::Refused(info) => (Refusal::Unauthorized, info.detail()),
            TokenAnswer::RateLimited(info) => (Refusal::RateLimited, info.detail()),
            TokenAnswer::NotSent(why) => (Refusal::Unreachable, why),
            TokenAnswer::Unavailable(why) => (Refusal::Unavailable, why),
        };
        // All that wait for the same token learn of it at once, instead of asking one after the other.
        let detail = format!("the token request: {why}");
        self.credential_cache.refused(&key, admitted, refusal, &detail);
        Err(denied(reason_of(refusal), detail, RetryWhen::Backoff))
    }

    /// True where the Secret and the token are still those of this access, after a long wait.
    async fn is_current(&self, wanted: &Wanted, access: &Access) -> Result<bool, Blocked> {
        let secret = self.store.secret(&wanted.namespace, &wanted.secret).await?;
        let same = secret.is_some_and(|secret| secret.version == access.key.secret);
        let valid =
            access.origin == Origin::Secret || self.credential_cache.token(&access.key).as_ref() == Some(&access.token);
        Ok(same && valid && !self.credential_cache.was_refused_since(&access.key, access.admitted))
    }

    /// Tells all that use the same credentials what the answer to a stop says of them, and the stop how
    /// to go on where they were refused.
    pub fn judge(&self, access: &Access, answer: &StopAnswer) -> Retry {
        match answer {
            StopAnswer::Unauthorized(info) => return self.refused(access, Refusal::Unauthorized, &info.detail()),
            StopAnswer::Forbidden(info) => return self.refused(access, Refusal::Forbidden, &info.detail()),
            StopAnswer::Accepted(..)
            | StopAnswer::NotFound(_)
            | StopAnswer::Conflict(_)
            | StopAnswer::BadRequest(_)
            | StopAnswer::Rejected(_) => self.credential_cache.accepted(&access.key, Purpose::Stop),
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
    pub fn may_read(&self, access: &Access) {
        self.credential_cache.accepted(&access.key, Purpose::Read);
    }

    /// Says that the API refused these credentials, and how.
    pub fn refused(&self, access: &Access, refusal: Refusal, detail: &str) -> Retry {
        self.credential_cache.forget(&access.key, &access.token);
        if access.origin == Origin::Kept && refusal == Refusal::Unauthorized {
            return Retry::AtOnce;
        }
        self.credential_cache.refused(&access.key, access.admitted, refusal, detail);
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
