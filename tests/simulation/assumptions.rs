//! Owns the list of what docs/once.md assumes, each as a switch of the world.
//! Never used by the operator: with a switch off the world does what the operator takes for impossible, and a test
//! shows which promise falls.

use crate::{
    Outcome,
    promises::{Promise, Violation},
    simulate,
    world::Size,
};

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
    /// Each assumption, and a promise that falls without it.
    const NEEDED: [(Self, Promise); 7] = [
        (Self::EffectWithinSettleTime, Promise::Once),
        (Self::OwnRefusalHasNoEffect, Promise::Once),
        (Self::ReadsShowAnEffect, Promise::Once),
        (Self::FailedTestWritesNothing, Promise::Once),
        (Self::GetReturnsWhatIsStored, Promise::NothingLost),
        (Self::SameTimeouts, Promise::Once),
        (Self::NoStopBeforeWrite, Promise::Once),
    ];
}

/// Each assumption of docs/once.md is needed: in a world that does not keep it, a promise falls.
#[test]
fn without_an_assumption_a_promise_falls_within_five_thousand_seeds() {
    for (assumption, promise) in Assumption::NEEDED {
        let without = |seed| simulate(seed, Size::Small, Some(assumption));
        let Some((seed, violation)) = found_only_by(5000, promise, without) else {
            panic!("{promise:?} does not need {assumption:?}");
        };
        println!("without {assumption:?}, seed {seed} breaks {violation:?}");
    }
}

/// The first seed whose schedule breaks this promise in a way in which it does not in the usual world.
pub fn found_only_by(seeds: u64, promise: Promise, follow: impl Fn(u64) -> Outcome) -> Option<(u64, Violation)> {
    (0..seeds).find_map(|seed| {
        let broken = follow(seed).wrong.into_iter().filter(|violation| violation.promise == promise);
        let mut broken = broken.peekable();
        broken.peek()?;
        let usual = simulate(seed, Size::Small, None).wrong;
        let new = broken.find(|violation| usual.iter().all(|known| known.kind() != violation.kind()));
        new.map(|violation| (seed, violation))
    })
}
