//! Owns the list of the operator's guards that can be taken away, and the tests that each one is needed.
//! Never chooses what happens in a schedule.

use workflow_run_stop_operator::fault_injection::{Fault, inject};

use crate::{assumptions::found_only_by, plans::found_by_plan, promises::Promise, simulate, world::Size};

/// How a guard that is taken away is noticed.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Seeds,
    /// Also by a plan with two departures. That is one resource, so nothing that needs two.
    SeedsAndPlans,
}

/// Each guard, the promise that falls without it, and how that is found.
const GUARDS: &[(Fault, Promise, By)] = &[
    (Fault::NoClaim, Promise::Once, By::SeedsAndPlans),
    (Fault::ClaimBeforeSlot, Promise::RateLimit, By::Seeds),
    (Fault::ClaimWithoutVersion, Promise::Once, By::SeedsAndPlans),
    (Fault::RecordWithoutClaim, Promise::Once, By::SeedsAndPlans),
    (Fault::ConfirmAfterOneRead, Promise::Once, By::SeedsAndPlans),
    (Fault::NoFence, Promise::Once, By::SeedsAndPlans),
    (Fault::NoWallClock, Promise::Once, By::Seeds),
    (Fault::UnreadableOnce, Promise::TruthfulStatus, By::Seeds),
    (Fault::ForbiddenClosesReads, Promise::TruthfulStatus, By::Seeds),
];

/// Runs something without a guard. Guards are taken away in this thread only.
fn without<T>(guard: Fault, work: impl FnOnce() -> T) -> T {
    inject(Some(guard));
    let result = work();
    inject(None);
    result
}

#[test]
fn a_guard_that_is_taken_away_is_noticed_within_ten_thousand_seeds() {
    for (guard, promise, _) in GUARDS {
        let found = found_only_by(10_000, *promise, |seed| without(*guard, || simulate(seed, Size::Small, None)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("nobody noticed that {guard:?}"));
        println!("{guard:?} is noticed by seed {seed}: {violation:?}");
    }
}

#[test]
fn a_guard_that_is_taken_away_is_noticed_with_two_departures() {
    for (guard, promise, _) in GUARDS.iter().filter(|(_, _, by)| *by == By::SeedsAndPlans) {
        let found = without(*guard, || found_by_plan(*promise));
        let (plan, wrong) = found.unwrap_or_else(|| panic!("nobody noticed that {guard:?}"));
        println!("{guard:?} is noticed by plan {plan:?}: {wrong:?}");
    }
}
