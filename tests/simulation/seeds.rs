//! Owns the tests by seed: no schedule breaks a promise, and a seed is always the same schedule.
//! Never chooses what happens in a schedule.

use std::collections::BTreeMap;

use crate::{Outcome, number, simulate, world::Size};

/// The number of failed schedules after which a test stops.
const MAX_FAILURES: u64 = 20;

/// Runs the schedules of many seeds, or of one, and prints the violations.
fn no_schedule_breaks(size: Size, seed: &str, seeds: &str, default_seeds: u64) {
    if let Some(number) = number(seed) {
        let outcome = simulate(number, size, None);
        println!("{}", outcome.history.join("\n"));
        assert!(outcome.violations.is_empty(), "{seed}={number}: {:#?}", outcome.violations);
        return;
    }
    let first = number("FIRST_SEED").unwrap_or_default();
    let last = first + number(seeds).unwrap_or(default_seeds);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let max_failures = (number("FAILURES").unwrap_or(MAX_FAILURES) / threads).max(1) as usize;
    let mut failures: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let work: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let seeds = (first + thread..last).step_by(threads as usize);
                    let outcomes = seeds.map(|seed| (seed, simulate(seed, size, None)));
                    outcomes
                        .filter(|(_, outcome)| !outcome.violations.is_empty())
                        .take(max_failures)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        work.into_iter().flat_map(|work| work.join().unwrap()).collect()
    });
    failures.sort_by_key(|(seed, _)| *seed);
    let Some((number, shown)) = failures.first() else { return };
    println!("{}\n{:#?}\nreplay it with {seed}={number}\n", shown.history.join("\n"), shown.violations);
    print_kinds(&failures);
    panic!("{} of the seeds break a promise, the first one is {seed}={number}", failures.len());
}

/// Prints each kind of violation with its number of seeds and the first eight of them.
fn print_kinds(failures: &[(u64, Outcome)]) {
    let mut kinds: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for (seed, outcome) in failures {
        for violation in &outcome.violations {
            kinds.entry(violation.kind()).or_default().push(*seed);
        }
    }
    for ((promise, what), seeds) in kinds {
        println!("{promise:?}: {what}: {} seeds, {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
    }
}

#[test]
fn no_schedule_breaks_the_promises() {
    no_schedule_breaks(Size::Small, "SEED", "SEEDS", 500);
}

#[test]
fn no_large_schedule_breaks_the_promises() {
    no_schedule_breaks(Size::Large, "LARGE_SEED", "LARGE_SEEDS", 20);
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for (size, seeds) in [(Size::Small, 20), (Size::Large, 3)] {
        for seed in 0..seeds {
            let history = || simulate(seed, size, None).history;
            assert_eq!(history(), history(), "seed {seed} of the {size:?} world");
        }
    }
}
