//! Owns the list of the operator's guards that can be disabled, and the tests that each one is needed.
//! Never chooses what happens in a schedule.

use workflow_run_stop_operator::fault_injection::{Fault, inject};

use crate::{assumptions::found_only_by, plans::found_by_plan, promises::Promise, simulate, world::Size};

/// The search that detects a disabled guard.
#[derive(Clone, Copy, PartialEq)]
enum FoundBy {
    Seeds,
    /// Also a plan with two departures. A plan has one resource, so this excludes guards that need two.
    SeedsAndPlans,
}

/// Each guard, the promise that is broken without it, and the search that finds that.
const GUARDS: &[(Fault, Promise, FoundBy)] = &[
    (Fault::NoClaim, Promise::Once, FoundBy::SeedsAndPlans),
    (Fault::ClaimBeforeSlot, Promise::RateLimit, FoundBy::Seeds),
    (Fault::ClaimWithoutVersion, Promise::Once, FoundBy::SeedsAndPlans),
    (Fault::RecordWithoutClaim, Promise::Once, FoundBy::SeedsAndPlans),
    (Fault::ConfirmAfterOneRead, Promise::Once, FoundBy::SeedsAndPlans),
    (Fault::NoFence, Promise::Once, FoundBy::SeedsAndPlans),
    (Fault::NoWallClock, Promise::Once, FoundBy::Seeds),
    (Fault::UnreadableOnce, Promise::TruthfulStatus, FoundBy::Seeds),
    (Fault::ForbiddenBlocksReads, Promise::TruthfulStatus, FoundBy::Seeds),
];

/// Runs `work` with a guard disabled, in this thread only.
fn without<T>(guard: Fault, work: impl FnOnce() -> T) -> T {
    inject(Some(guard));
    let result = work();
    inject(None);
    result
}

#[test]
fn a_disabled_guard_is_detected_within_ten_thousand_seeds() {
    for (guard, promise, _) in GUARDS {
        let found = found_only_by(10_000, *promise, |seed| without(*guard, || simulate(seed, Size::Small, None)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("no seed detected {guard:?}"));
        println!("{guard:?} is detected by seed {seed}: {violation:?}");
    }
}

#[test]
fn a_disabled_guard_is_detected_with_two_departures() {
    for (guard, promise, _) in GUARDS.iter().filter(|(_, _, by)| *by == FoundBy::SeedsAndPlans) {
        let found = without(*guard, || found_by_plan(*promise));
        let (plan, violations) = found.unwrap_or_else(|| panic!("no plan detected {guard:?}"));
        println!("{guard:?} is detected by plan {plan:?}: {violations:?}");
    }
}
