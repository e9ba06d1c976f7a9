//! Owns the list of what docs/once.md assumes, each as a switch of the world.
//! Never used by the operator: with a switch off the world does what the operator takes for impossible, and a test
//! shows which promise falls.

/// What the operator assumes of the world around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// A request takes effect within the settle time after its end, or never.
    EffectWithinSettleTime,
    /// Amperity's own 4xx means that the request had no effect.
    OwnRefusalHasNoEffect,
    /// Of two reads that are the settle time apart, at least one shows an effect.
    ReadsShowAnEffect,
    /// The API server writes nothing of a patch whose test fails.
    FailedTestWritesNothing,
    /// A GET without a version returns what is stored.
    GetReturnsWhatIsStored,
    /// Replicas that run side by side have the same timeouts.
    SameTimeouts,
    /// A machine does not stop for long between the last look at the claim and the writing of the request.
    NoStopBeforeWrite,
}

impl Assumption {
    pub const ALL: [Self; 7] = [
        Self::EffectWithinSettleTime,
        Self::OwnRefusalHasNoEffect,
        Self::ReadsShowAnEffect,
        Self::FailedTestWritesNothing,
        Self::GetReturnsWhatIsStored,
        Self::SameTimeouts,
        Self::NoStopBeforeWrite,
    ];
}
