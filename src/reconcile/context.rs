//! Owns the context of a reconciliation: clients, rate limit, caches, settings and clock of one replica.
//! Never acts by itself.

use jiff::Timestamp;

use crate::amperity::{budget::Budget, client::Amperity, credentials::CredentialCache, endpoint::Endpoints};
use crate::clock::Clock;
use crate::reconcile::{announcements::Announcements, decide::Rules, status_builder::StepTime, store::Store};
use crate::rng;

/// Clients, rate limit, caches, settings and clock of a replica.
pub struct Context {
    /// Reads from and writes to Kubernetes.
    pub store: Store,
    /// The client of the Amperity API.
    pub amperity: Amperity,
    /// The rate limit of each tenant.
    pub budget: Budget,
    /// Fetched tokens and refused credentials.
    pub credential_cache: CredentialCache,
    /// The base URL of the API, and the hosts that are allowed.
    pub endpoints: Endpoints,
    /// The rate at which statuses say what resources wait for.
    pub announcements: Announcements,
    /// The settings that `decide` depends on.
    pub rules: Rules,
    /// The wall clock.
    pub clock: Clock,
}

impl Context {
    /// Returns the time of the wall clock.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Returns the time and the jitter for one step.
    pub fn step_time(&self) -> StepTime {
        StepTime { now: self.now(), jitter: rng::unit(), settle_time: self.rules.settle_time }
    }
}
