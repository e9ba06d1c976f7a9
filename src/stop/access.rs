//! Owns the way to a token: the Secret, read fresh, the credentials in it, a fetched token where one is needed.
//! Never sends a stop and never writes to Kubernetes.

use jiff::Timestamp;
use tokio::time::Instant;

use crate::amperity::{
    Amperity,
    answer::TokenAnswer,
    budget::{Budget, Purpose},
    credentials::{Admitted, Client, Credentials, CredentialsKey, Token, Wallet},
    endpoint::{Endpoint, Endpoints},
};
use crate::resource::{WorkflowRunStop, conditions::Reason};
use crate::stop::ledger::{Ledger, LedgerError};

/// The right credentials for one request.
pub struct Pass {
    /// The token to send.
    pub token: Token,
    key: CredentialsKey,
    admitted: Admitted,
    /// True for a token that was fetched with client credentials.
    fetched: bool,
    /// True for a fetched token that was kept for a while: where it is refused, a new one may help.
    kept: bool,
}

/// Why no request can be sent now.
pub struct Denied {
    /// The reason for the status.
    pub reason: Reason,
    /// More of it.
    pub detail: String,
    /// When to look again, where that is known.
    pub until: Option<Instant>,
}

/// What is needed to get a token.
#[derive(Clone)]
pub struct Access {
    /// Reads Secrets.
    pub ledger: Ledger,
    /// Fetches tokens.
    pub amperity: Amperity,
    /// Where tokens may be fetched.
    pub endpoints: Endpoints,
    /// Token requests count.
    pub budget: Budget,
    /// Keeps tokens, and knows which credentials were refused.
    pub wallet: Wallet,
}

impl Access {
    /// Looks up the Secret that the resource names and gets a token with it.
    ///
    /// # Errors
    /// Where the API server gives no answer; `Denied` where the credentials cannot be used now.
    pub async fn pass(
        &self,
        resource: &WorkflowRunStop,
        endpoint: &Endpoint,
    ) -> Result<Result<Pass, Denied>, LedgerError> {
        let name = &resource.spec.credentials_secret_ref.name;
        let missing = |detail| Ok(Err(Denied { reason: Reason::CredentialsMissing, detail, until: None }));
        let secret = match self.ledger.secret(resource.namespace(), name).await {
            Ok(Some(secret)) => secret,
            Ok(None) => return missing(format!("there is no Secret {name}")),
            Err(LedgerError::Kube(kube::Error::Api(status))) if status.is_forbidden() => {
                return missing(format!("the operator is not allowed to read the Secret {name}"));
            }
            Err(error) => return Err(error),
        };
        let credentials = match Credentials::parse(&secret.data) {
            Ok(credentials) => credentials,
            Err(error) => return missing(format!("the Secret {name}: {error}")),
        };
        let key = CredentialsKey { secret: secret.version, budget: endpoint.budget_key() };
        let admitted = match self.wallet.admit(&key) {
            Ok(admitted) => admitted,
            Err(resting) => {
                let reason = if resting.forbidden { Reason::Forbidden } else { Reason::Unauthorized };
                return Ok(Err(Denied { reason, detail: resting.detail, until: Some(resting.until) }));
            }
        };
        let created = resource.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        Ok(match credentials {
            Credentials::Static(token) => Ok(Pass { token, key, admitted, fetched: false, kept: false }),
            Credentials::Client(client) => self.fetched(key, admitted, &client, endpoint, created).await,
        })
    }

    async fn fetched(
        &self,
        key: CredentialsKey,
        admitted: Admitted,
        client: &Client,
        endpoint: &Endpoint,
        created: Timestamp,
    ) -> Result<Pass, Denied> {
        let _turn = self.wallet.turn(&key).await;
        if let Some(token) = self.wallet.token(&key) {
            return Ok(Pass { token, key, admitted, fetched: true, kept: true });
        }
        let url = match &client.token_url {
            None => endpoint.default_token_url(),
            Some(url) => self.endpoints.token_url(url, endpoint).map_err(|error| Denied {
                reason: Reason::EndpointNotAllowed,
                detail: format!("tokenUrl of the Secret: {error}"),
                until: None,
            })?,
        };
        let slot = self.budget.acquire(&endpoint.budget_key(), Purpose::Token, created).await;
        let denied = |reason, detail| Err(Denied { reason, detail: format!("token request: {detail}"), until: None });
        match self.amperity.token(url, endpoint, client, slot).await {
            TokenAnswer::Token(token, valid) => {
                self.wallet.keep(key.clone(), token.clone(), valid);
                Ok(Pass { token, key, admitted, fetched: true, kept: false })
            }
            TokenAnswer::Refused(said) => {
                let detail = format!("token request: {}", said.detail());
                self.wallet.refused(&key, admitted, false, &detail);
                Err(Denied { reason: Reason::Unauthorized, detail, until: None })
            }
            TokenAnswer::RateLimited(said) => denied(Reason::RateLimited, said.detail()),
            TokenAnswer::Unavailable(why) => denied(Reason::Unreachable, why),
        }
    }

    /// True while nobody else learned that the API refuses these credentials.
    pub fn is_admitted(&self, pass: &Pass) -> bool {
        !self.wallet.was_refused_since(&pass.key, pass.admitted)
    }

    /// True where the Secret and the token are still those of this pass, after a long wait.
    ///
    /// # Errors
    /// Where the API server gives no answer.
    pub async fn is_current(&self, resource: &WorkflowRunStop, pass: &Pass) -> Result<bool, LedgerError> {
        let name = &resource.spec.credentials_secret_ref.name;
        let secret = self.ledger.secret(resource.namespace(), name).await?;
        let same = secret.is_some_and(|secret| secret.version == pass.key.secret);
        let valid = !pass.fetched || self.wallet.token(&pass.key).as_ref() == Some(&pass.token);
        Ok(same && valid && self.is_admitted(pass))
    }

    /// Says that the API took the token.
    pub fn accepted(&self, pass: &Pass) {
        self.wallet.accepted(&pass.key);
    }

    /// Says that the API refused the token, and how. True where a newly fetched one may help at once.
    pub fn refused(&self, pass: &Pass, forbidden: bool, detail: &str) -> bool {
        self.wallet.forget(&pass.key, &pass.token);
        if pass.kept && !forbidden {
            return true;
        }
        self.wallet.refused(&pass.key, pass.admitted, forbidden, detail);
        false
    }
}
