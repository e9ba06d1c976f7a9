//! Owns the credentials of a request: the Secret, a token, and what the answers of the API say about them.
//! Never sends a stop or reads a run.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use workflow_run_stop_api::conditions::Reason;

use crate::amperity::{
    answer::{StopAnswer, TokenAnswer},
    budget::Slot,
    credentials::{Credentials, CredentialsKey, OauthClient, Permit, Refusal, Token},
    endpoint::Endpoint,
    purpose::Purpose,
    wait_queue::Requester,
};
use crate::reconcile::{context::Context, outcome::Retry, store::StoreError};

/// The longest time for which a step in flight waits for another slot, or for its slot's turn. After that it waits in the
/// queue.
pub const MAX_SLOT_WAIT: Duration = Duration::from_secs(5);

/// The credentials for one request.
pub struct Access {
    /// The token.
    pub token: Token,
    key: CredentialsKey,
    permit: Permit,
    origin: Origin,
    requester: Requester,
}

impl Access {
    /// Returns the key of the credentials.
    pub fn key(&self) -> &CredentialsKey {
        &self.key
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Read from the Secret.
    Secret,
    /// Fetched for this request.
    Fetched,
    /// Taken from the cache: if it is refused, a new one may be accepted.
    Kept,
}

/// The reason why no request can be sent now.
pub enum Blocked {
    /// A prerequisite is missing or not allowed.
    Denied(Denied),
    /// The resource or its credentials changed: reconcile again.
    Changed,
    /// A request to the API server failed.
    Failed(StoreError),
}

/// A prerequisite that is missing or not allowed.
pub struct Denied {
    /// The reason for the conditions.
    pub reason: Reason,
    /// The detail for the message.
    pub detail: String,
    /// The next attempt.
    pub again: RetryWhen,
}

/// The next attempt after a missing prerequisite.
pub enum RetryWhen {
    /// Only when the resource changes: nothing else can correct it.
    OnChange,
    /// With backoff.
    Backoff,
    /// At this time.
    At(Instant),
}

impl From<StoreError> for Blocked {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Returns a missing prerequisite.
pub fn denied(reason: Reason, detail: String, again: RetryWhen) -> Blocked {
    Blocked::Denied(Denied { reason, detail, again })
}

/// Waits until the turn of a slot is near.
///
/// # Errors
/// If that takes long, or a 429 has closed the budget: the step then waits in the queue, without a slot.
pub async fn near_turn(slot: &Slot) -> Result<(), Blocked> {
    if slot.is_closed() {
        return Err(Blocked::Changed);
    }
    timeout(MAX_SLOT_WAIT, slot.wait_until_near_turn()).await.map_err(|_| Blocked::Changed)
}

impl Context {
    /// Reads the Secret and gets a token with it. If that takes a token request, it is sent with the slot, and the step
    /// gets the next one of its namespace.
    ///
    /// # Errors
    /// If there is no usable token now.
    pub async fn access(
        &self,
        requester: &Requester,
        endpoint: &Endpoint,
        slot: Slot,
    ) -> Result<(Access, Slot), Blocked> {
        let Requester { namespace, secret: name, purpose, created: _ } = requester;
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
        let key =
            CredentialsKey { namespace: namespace.clone(), secret: secret.version, budget: endpoint.budget_key() };
        let permit = self
            .credential_cache
            .admit(&key, *purpose)
            .map_err(|backoff| denied(reason_of(backoff.refusal), backoff.detail, RetryWhen::At(backoff.until)))?;
        let requester = requester.clone();
        match credentials {
            Credentials::Static(token) => Ok((Access { token, key, permit, origin: Origin::Secret, requester }, slot)),
            // In a box: it is large, and most credentials are static or cached.
            Credentials::Client(client) => {
                Box::pin(self.fetched(requester, endpoint, &client, (key, permit), slot)).await
            }
        }
    }

    async fn fetched(
        &self,
        requester: Requester,
        endpoint: &Endpoint,
        client: &OauthClient,
        (key, permit): (CredentialsKey, Permit),
        slot: Slot,
    ) -> Result<(Access, Slot), Blocked> {
        if let Some(token) = self.credential_cache.token(&key) {
            return Ok((Access { token, key, permit, origin: Origin::Kept, requester }, slot));
        }
        let Some(_lock) = self.credential_cache.try_lock_token_fetch(&key) else {
            // Another step fetches the token. Its slot is not held meanwhile.
            drop(slot);
            drop(self.credential_cache.lock_token_fetch(&key).await);
            return Err(Blocked::Changed);
        };
        let url = match &client.token_url {
            None => endpoint.default_token_url(),
            Some(url) => self.endpoints.token_url(url, endpoint).map_err(|error| {
                let detail = format!("the key tokenUrl of the Secret: {error}");
                denied(Reason::EndpointNotAllowed, detail, RetryWhen::Backoff)
            })?,
        };
        near_turn(&slot).await?;
        let failed = |why: &str| format!("the token request failed: {why}");
        let is_of_budget = key.budget.is_of(&url);
        let (refusal, why) = match self.amperity.token(url, endpoint, client, slot).await {
            TokenAnswer::Token(token, valid) => {
                self.credential_cache.store_token(key.clone(), token.clone(), valid);
                let next = self.budget.acquire(&key.budget, &requester);
                let slot = timeout(MAX_SLOT_WAIT, next).await.map_err(|_| Blocked::Changed)?;
                return Ok((Access { token, key, permit, origin: Origin::Fetched, requester }, slot));
            }
            TokenAnswer::Refused(info) => (Refusal::ClientRefused, info.detail()),
            TokenAnswer::RateLimited(info, reopens_in) if is_of_budget => {
                // The closure of the budget is the only backoff after a 429.
                let again = RetryWhen::At(Instant::now() + reopens_in);
                return Err(denied(Reason::RateLimited, failed(&info.detail()), again));
            }
            TokenAnswer::RateLimited(info, _) => (Refusal::Unavailable, info.detail()),
            TokenAnswer::NotSent(why) => (Refusal::Unreachable, why),
            TokenAnswer::Unavailable(why) => (Refusal::Unavailable, why),
        };
        // Denies all requests that wait for the same token, instead of sending a token request for each of them.
        let detail = failed(&why);
        self.credential_cache.record_refusal(&key, permit, refusal, &detail);
        Err(denied(reason_of(refusal), detail, RetryWhen::Backoff))
    }

    /// Returns true if the API refused these credentials since their use was permitted.
    pub fn was_refused(&self, access: &Access) -> bool {
        self.credential_cache.was_refused_since(&access.key, access.permit)
    }

    /// Records what the answer to a stop request says about its credentials, for all requests that use them. If they
    /// were refused, the result is the time of the next attempt.
    pub fn judge(&self, access: &Access, answer: &StopAnswer) -> Retry {
        match answer {
            StopAnswer::Unauthorized(info) => return self.refused(access, Refusal::Unauthorized, &info.detail()),
            StopAnswer::Forbidden(info) => {
                // Amperity knows the token: only the right to stop is missing.
                self.accepted(access, Purpose::Read);
                return self.refused(access, Refusal::Forbidden, &info.detail());
            }
            StopAnswer::Accepted(..)
            | StopAnswer::NotFound(_)
            | StopAnswer::Conflict(_)
            | StopAnswer::BadRequest(_)
            | StopAnswer::Rejected(_) => self.accepted(access, Purpose::Stop),
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

    /// Records that a run was read with these credentials, which may still lack the right to stop it.
    pub fn may_read(&self, access: &Access) {
        self.accepted(access, Purpose::Read);
    }

    fn accepted(&self, access: &Access, purpose: Purpose) {
        self.credential_cache.record_acceptance(&access.key, purpose);
        self.budget.accept_credentials(&access.key.budget, &access.requester);
    }

    /// Removes a refused token from the cache. If the token came from the cache and was refused with a 401, returns
    /// [`Retry::AtOnce`], because a new one may be accepted. Otherwise records the refusal and returns
    /// [`Retry::Backoff`].
    pub fn refused(&self, access: &Access, refusal: Refusal, detail: &str) -> Retry {
        self.credential_cache.remove_token(&access.key, &access.token);
        if access.origin == Origin::Kept && refusal == Refusal::Unauthorized {
            return Retry::AtOnce;
        }
        self.credential_cache.record_refusal(&access.key, access.permit, refusal, detail);
        if refusal != Refusal::Forbidden {
            self.budget.refuse_credentials(&access.key.budget, &access.requester);
        }
        Retry::Backoff
    }
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Unauthorized | Refusal::ClientRefused => Reason::Unauthorized,
        Refusal::Forbidden => Reason::Forbidden,
        Refusal::Unreachable => Reason::Unreachable,
        Refusal::Unavailable => Reason::Unavailable,
    }
}
