//! Owns the credentials of a request: the Secret, a token, and what the answers of the API say about them.
//! Never sends a stop or reads a run.

use jiff::Timestamp;
use tokio::time::Instant;
use workflow_run_stop_api::{WorkflowRunStop, conditions::Reason};

use crate::amperity::{
    answer::{StopAnswer, TokenAnswer},
    credentials::{Credentials, CredentialsKey, OauthClient, Permit, Refusal, Token},
    endpoint::Endpoint,
    purpose::Purpose,
};
use crate::reconcile::{context::Context, outcome::Retry, store::StoreError};

/// The credentials for one request.
pub struct Access {
    /// The token.
    pub token: Token,
    key: CredentialsKey,
    permit: Permit,
    origin: Origin,
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

/// The parts of a resource that preflight needs, copied so that the resource can change during the wait.
pub struct Needs {
    /// The purpose of the request.
    pub purpose: Purpose,
    /// The creation time of the resource: older ones go first.
    pub created: Timestamp,
    namespace: String,
    secret: String,
}

impl Needs {
    /// Copies what a request for this resource needs.
    pub fn of(resource: &WorkflowRunStop, purpose: Purpose) -> Self {
        Self {
            purpose,
            created: resource.created(),
            namespace: resource.namespace().to_owned(),
            secret: resource.spec.credentials_secret_ref.name.clone(),
        }
    }
}

impl Context {
    /// Reads the Secret and gets a token with it.
    ///
    /// # Errors
    /// If there is no usable token now.
    pub async fn access(&self, needs: &Needs, endpoint: &Endpoint) -> Result<Access, Blocked> {
        let Needs { purpose, created: _, namespace, secret: name } = needs;
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
        let permit = self
            .credential_cache
            .admit(&key, *purpose)
            .map_err(|backoff| denied(reason_of(backoff.refusal), backoff.detail, RetryWhen::At(backoff.until)))?;
        match credentials {
            Credentials::Static(token) => Ok(Access { token, key, permit, origin: Origin::Secret }),
            Credentials::Client(client) => self.fetched(needs, endpoint, &client, key, permit).await,
        }
    }

    async fn fetched(
        &self,
        needs: &Needs,
        endpoint: &Endpoint,
        client: &OauthClient,
        key: CredentialsKey,
        permit: Permit,
    ) -> Result<Access, Blocked> {
        let _lock = self.credential_cache.lock_token_fetch(&key).await;
        if let Some(token) = self.credential_cache.token(&key) {
            return Ok(Access { token, key, permit, origin: Origin::Kept });
        }
        if self.credential_cache.was_refused_since(&key, permit) {
            return Err(Blocked::Changed);
        }
        let url = match &client.token_url {
            None => endpoint.default_token_url(),
            Some(url) => self.endpoints.token_url(url, endpoint).map_err(|error| {
                let detail = format!("the key tokenUrl of the Secret: {error}");
                denied(Reason::EndpointNotAllowed, detail, RetryWhen::Backoff)
            })?,
        };
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Token, needs.created).await;
        let failed = |why: &str| format!("the token request failed: {why}");
        let (refusal, why) = match self.amperity.token(url, endpoint, client, slot).await {
            TokenAnswer::Token(token, valid) => {
                self.credential_cache.store_token(key.clone(), token.clone(), valid);
                return Ok(Access { token, key, permit, origin: Origin::Fetched });
            }
            TokenAnswer::Refused(info) => (Refusal::ClientRefused, info.detail()),
            TokenAnswer::RateLimited(info, reopens_in) => {
                // The closure of the budget is the only backoff after a 429.
                let again = RetryWhen::At(Instant::now() + reopens_in);
                return Err(denied(Reason::RateLimited, failed(&info.detail()), again));
            }
            TokenAnswer::NotSent(why) => (Refusal::Unreachable, why),
            TokenAnswer::Unavailable(why) => (Refusal::Unavailable, why),
        };
        // Denies all requests that wait for the same token, instead of sending a token request for each of them.
        let detail = failed(&why);
        self.credential_cache.record_refusal(&key, permit, refusal, &detail);
        Err(denied(reason_of(refusal), detail, RetryWhen::Backoff))
    }

    /// Returns true if, after a long wait, the Secret and the token are unchanged and were not refused.
    ///
    /// # Errors
    /// If the request to the API server fails.
    pub async fn is_current(&self, needs: &Needs, access: &Access) -> Result<bool, Blocked> {
        let secret = self.store.secret(&needs.namespace, &needs.secret).await?;
        let same = secret.is_some_and(|secret| secret.version == access.key.secret);
        let valid =
            access.origin == Origin::Secret || self.credential_cache.token(&access.key).as_ref() == Some(&access.token);
        Ok(same && valid && !self.was_refused(access))
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
                self.credential_cache.record_acceptance(&access.key, Purpose::Read);
                return self.refused(access, Refusal::Forbidden, &info.detail());
            }
            StopAnswer::Accepted(..)
            | StopAnswer::NotFound(_)
            | StopAnswer::Conflict(_)
            | StopAnswer::BadRequest(_)
            | StopAnswer::Rejected(_) => self.credential_cache.record_acceptance(&access.key, Purpose::Stop),
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
        self.credential_cache.record_acceptance(&access.key, Purpose::Read);
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
