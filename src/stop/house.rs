//! Owns the list of what a replica needs to work on resources.
//! Never does anything with it.

use jiff::Timestamp;

use crate::amperity::{Amperity, budget::Budget, credentials::Wallet, endpoint::Endpoints};
use crate::clock::Clock;
use crate::dice;
use crate::stop::{decide::Rules, draft::Moment, ledger::Ledger};

/// What a replica needs to work on resources.
pub struct House {
    /// Reads and writes in Kubernetes.
    pub ledger: Ledger,
    /// Calls the API.
    pub amperity: Amperity,
    /// Who may call it when.
    pub budget: Budget,
    /// Keeps tokens, and knows which credentials were refused.
    pub wallet: Wallet,
    /// Where the API is.
    pub endpoints: Endpoints,
    /// The settings that decisions depend on.
    pub rules: Rules,
    /// The wall clock.
    pub clock: Clock,
}

impl House {
    /// The date.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The date, and dice for what follows.
    pub fn moment(&self) -> Moment {
        Moment { now: self.now(), jitter: dice::unit(), settle_time: self.rules.settle_time }
    }
}
