//! Owns the names of the promises, and the record of a broken one.
//! Never decides whether one is broken.

use std::fmt;

/// What docs/once.md and the status promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// No second stop request while the first one may have been accepted; none without a valid claim.
    Once,
    /// No stop request after a deadline, while suspended, or more reads than the follow timeout allows.
    AsSpecified,
    /// At most the rate in any second; nothing while a 429 closes the budget.
    RateLimit,
    /// Everything finishes, and every outcome that was learned reaches the status.
    NothingLost,
    /// The status never says more than was observed, and an accepted stop never looks refused.
    TruthfulStatus,
    /// The operator does not panic.
    NoPanic,
}

/// A promise that was broken, and by what.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub what: String,
}

impl Violation {
    /// What is the same for every resource and every seed: all but names and numbers.
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
