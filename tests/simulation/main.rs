//! Deterministic simulation: the real watch, decisions, ledger, budget and client code against a simulated
//! Kubernetes API server and a simulated Amperity, in virtual time. Replicas crash at any step of their IO,
//! requests and answers get lost, watches lag and break, clocks differ.
//!
//! Two ways lead through it. By seed: everything is left to dice. By plan: one resource and two replicas,
//! and every schedule that departs from the smooth one at no more than so many points, without exception.
//!
//! `make simulate SEEDS=20000 DEPARTURES=2` runs both; `make simulate SEED=17` and
//! `make simulate PLAN=12:1,40:2` replay one schedule and print its history.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod amperity;
mod apiserver;
mod chance;
mod judge;
mod plans;
mod replica;
mod user;
mod world;

use std::{cell::RefCell, panic, sync::Once, time::Duration};

use tokio::time::{Instant, sleep};
use workflow_run_stop_operator::dice;

use crate::{
    chance::Chance,
    judge::{all_ended, judge},
    replica::{Fortune, live},
    user::use_it,
    world::{TROUBLE, World},
};

/// By then all has to have come to its end.
const HORIZON: Duration = Duration::from_secs(3600);

/// What came of one schedule.
struct Outcome {
    wrong: Vec<String>,
    history: Vec<String>,
}

thread_local! {
    /// What the operator's code panicked with in this thread; it catches that, and goes on.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
}

impl Outcome {
    fn of(world: &World) -> Self {
        judge(world);
        let mut inner = world.lock();
        PANICS.take().iter().for_each(|panic| inner.fail(panic));
        Self { wrong: std::mem::take(&mut inner.wrong), history: std::mem::take(&mut inner.history) }
    }
}

/// Runs in virtual time, with nothing left to chance but what the seed says.
fn in_virtual_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    static PANICS_ARE_KEPT: Once = Once::new();
    PANICS_ARE_KEPT.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            print(panic);
        }));
    });
    dice::load(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

fn simulate(seed: u64) -> Outcome {
    in_virtual_time(seed, async {
        let world = World::new(Chance::dice(seed));
        for replica in 0..=world.below(3) as usize {
            let fortune = Fortune { skew: world.below(60) as i64 - 30, away: Duration::from_secs(20) };
            tokio::spawn(live(world.clone(), replica, fortune));
        }
        for number in 0..=world.below(3) {
            tokio::spawn(use_it(world.clone(), number));
        }
        sleep(TROUBLE).await;
        let end = Instant::now() + HORIZON;
        while Instant::now() < end && !all_ended(&world) {
            sleep(Duration::from_secs(10)).await;
        }
        Outcome::of(&world)
    })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_schedule_breaks_the_promises() {
    if let Some(seed) = number("SEED") {
        let outcome = simulate(seed);
        println!("{}", outcome.history.join("\n"));
        assert!(outcome.wrong.is_empty(), "seed {seed}: {:?}", outcome.wrong);
        return;
    }
    let first = number("FIRST_SEED").unwrap_or_default();
    let last = first + number("SEEDS").unwrap_or(500);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let failures: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let work: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let seeds = (first + thread..last).step_by(threads as usize);
                    seeds.map(|seed| (seed, simulate(seed))).find(|(_, outcome)| !outcome.wrong.is_empty())
                })
            })
            .collect();
        work.into_iter().filter_map(|work| work.join().unwrap()).collect()
    });
    for (seed, outcome) in &failures {
        println!("seed {seed}:\n{}\n{:?}\nreplay it with SEED={seed}", outcome.history.join("\n"), outcome.wrong);
    }
    assert!(failures.is_empty(), "seeds {:?}", failures.iter().map(|(seed, _)| seed).collect::<Vec<_>>());
}

/// Each guard is needed: without it the simulation finds a broken promise.
#[cfg(feature = "sabotage")]
#[test]
fn a_guard_that_is_taken_away_is_noticed_within_a_thousand_seeds() {
    use workflow_run_stop_operator::sabotage::{Break, take_away};
    for guard in [
        Break::NoClaim,
        Break::ClaimBeforeSlot,
        Break::ClaimWithoutVersion,
        Break::RecordWithoutClaim,
        Break::ConfirmAfterOneRead,
        Break::NoFence,
    ] {
        take_away(Some(guard));
        let found = (0..1000).map(|seed| (seed, simulate(seed))).find(|(_, outcome)| !outcome.wrong.is_empty());
        take_away(None);
        let (seed, outcome) = found.unwrap_or_else(|| panic!("nobody noticed that {guard:?}"));
        println!("{guard:?} is noticed by seed {seed}: {:?}", outcome.wrong);
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for seed in 0..20 {
        assert_eq!(simulate(seed).history, simulate(seed).history, "seed {seed}");
    }
}
