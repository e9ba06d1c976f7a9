//! Owns the list of what a replica needs to work on resources.
//! Never does anything with it.

use jiff::Timestamp;

use crate::amperity::{budget::Budget, client::Amperity, credentials::CredentialCache, endpoint::Endpoints};
use crate::clock::Clock;
use crate::reconcile::{decide::Rules, status_builder::StepTime, store::Store};
use crate::rng;

/// What a replica needs to work on resources.
pub struct Context {
    /// Reads and writes in Kubernetes.
    pub store: Store,
    /// Calls the API.
    pub amperity: Amperity,
    /// Who may call it when.
    pub budget: Budget,
    /// Keeps tokens, and knows which credentials were refused.
    pub credential_cache: CredentialCache,
    /// Where the API is.
    pub endpoints: Endpoints,
    /// The settings that decisions depend on.
    pub rules: Rules,
    /// The wall clock.
    pub clock: Clock,
}

impl Context {
    /// The date.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The date, and dice for what follows.
    pub fn step_time(&self) -> StepTime {
        StepTime { now: self.now(), jitter: rng::unit(), settle_time: self.rules.settle_time }
    }
}
