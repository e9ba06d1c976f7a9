//! Owns the list of what docs/once.md assumes, each as a switch of the world.
//! Never used by the operator: with a switch off, the world does what the operator relies on not to happen, and a test
//! shows which promise is broken.

use crate::{
    Outcome,
    promises::{Promise, Violation},
    simulate,
    world::Size,
};

/// An assumption of the operator about its environment.
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
    /// A GET without a resource version returns the stored object.
    GetReturnsWhatIsStored,
    /// Replicas that run at the same time have the same timeouts.
    SameTimeouts,
    /// A machine does not halt for long between the check of the fence and the writing of the request.
    NoStopBeforeWrite,
}

impl Assumption {
    /// Each assumption, and a promise that is broken without it.
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

#[test]
fn without_an_assumption_a_promise_is_broken_within_five_thousand_seeds() {
    for (assumption, promise) in Assumption::NEEDED {
        let without = |seed| simulate(seed, Size::Small, Some(assumption));
        let Some((seed, violation)) = found_only_by(5000, promise, without) else {
            panic!("{promise:?} does not need {assumption:?}");
        };
        println!("without {assumption:?}, seed {seed} breaks {violation:?}");
    }
}

/// Returns the first seed below `seeds` for which `simulate_changed` breaks this promise with a kind of violation that
/// the unchanged simulation of the same seed does not have.
pub fn found_only_by(
    seeds: u64,
    promise: Promise,
    simulate_changed: impl Fn(u64) -> Outcome,
) -> Option<(u64, Violation)> {
    (0..seeds).find_map(|seed| {
        let broken = simulate_changed(seed).violations.into_iter().filter(|violation| violation.promise == promise);
        let mut broken = broken.peekable();
        broken.peek()?;
        let unchanged = simulate(seed, Size::Small, None).violations;
        let new = broken.find(|violation| unchanged.iter().all(|known| known.kind() != violation.kind()));
        new.map(|violation| (seed, violation))
    })
}
