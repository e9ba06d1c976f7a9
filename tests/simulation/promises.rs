//! Owns the names of the promises, and the type of a violation.
//! Never decides whether a promise is broken.

use std::fmt;

/// A promise of docs/once.md or of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// No second stop request while the first one may have been accepted; none without a valid claim.
    Once,
    /// No stop request after a deadline or while suspended, and no more reads than the follow timeout allows.
    AsSpecified,
    /// At most the rate in any second; no claim while a 429 closes the budget.
    RateLimit,
    /// Every resource finishes, and every outcome that a replica learned reaches the status.
    NothingLost,
    /// The status never says more than was observed, and an accepted stop never looks refused.
    TruthfulStatus,
    /// The operator does not panic.
    NoPanic,
}

/// A broken promise, and what broke it.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub what: String,
}

impl Violation {
    /// Returns the part that is the same for every resource and seed: all words without digits.
    pub fn kind(&self) -> (Promise, String) {
        let words = self.what.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
        (self.promise, words.collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}
