//! Deterministic simulation: the real watch, decisions, ledger, budget and client code against a simulated
//! Kubernetes API server and a simulated Amperity, in virtual time. Replicas crash at any step of their IO,
//! requests and answers get lost, watches lag and break, clocks differ and jump.
//!
//! By seed, everything is left to dice: in a small world of up to three resources, and in a large one of up to fifty,
//! three tenants and three namespaces. By plan, there are one resource and two replicas, and every schedule that departs
//! from the smooth one at no more than so many points is followed, without exception.
//!
//! `make simulate SEEDS=20000 LARGE_SEEDS=1000 DEPARTURES=2` runs all; `make simulate SEED=17`,
//! `make simulate LARGE_SEED=17` and `make simulate PLAN=12:1,40:2` replay one schedule and print its history.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::wildcard_enum_match_arm, missing_docs)]

mod amperity;
mod answers;
mod apiserver;
mod assumptions;
mod chance;
mod faults;
#[cfg(feature = "fault-injection")]
mod guards;
mod judge;
mod judge_requests;
mod judge_status;
mod plans;
mod promises;
mod replica;
mod runs;
mod secrets;
mod seeds;
mod user;
mod watches;
mod world;

use std::{cell::RefCell, panic, sync::Once, time::Duration};

use tokio::time::{Instant, sleep};
use workflow_run_stop_operator::rng;

use crate::{
    assumptions::Assumption,
    chance::Chance,
    judge::{all_ended, all_settled, judge},
    promises::{Promise, Violation},
    replica::{Fortune, live},
    user::use_it,
    world::{Size, TROUBLE, World},
};

/// By then everything has to have come to its end. A claim may be open for an hour and a run may be followed for one,
/// by wall clocks that are up to an hour wrong in either direction.
const HORIZON: Duration = Duration::from_secs(4 * 3600);

/// What waits for something that never comes is given so long to say so.
const PATIENCE: Duration = Duration::from_secs(600);

/// What came of one schedule.
struct Outcome {
    wrong: Vec<Violation>,
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
        PANICS.take().iter().for_each(|panic| inner.fail(Promise::NoPanic, panic));
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
    rng::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

/// Follows the schedule of one seed, in a world that does not keep one assumption, or keeps all.
fn simulate(seed: u64, size: Size, off: Option<Assumption>) -> Outcome {
    in_virtual_time(seed, async {
        let world = World::new(Chance::rng(seed), size, off);
        world.draw_faults();
        let replicas = match off {
            // It takes two to differ.
            Some(Assumption::SameTimeouts) => 2,
            _ => 1 + world.below(3) as usize,
        };
        // One watch for each namespace, or one for all.
        let by_namespace = world.below(2) == 0;
        let namespaces = world.lock().namespaces();
        let namespaces = || namespaces.iter().filter(|_| by_namespace).map(|name| (*name).to_owned()).collect();
        for replica in 0..replicas {
            let skew = world.below(60) as i64 - 30;
            let fortune = Fortune { skew, namespaces: namespaces(), away: Duration::from_secs(20) };
            tokio::spawn(live(world.clone(), replica, fortune));
        }
        let users = match size {
            Size::Small => 3,
            Size::Large => 50,
        };
        for number in 0..=world.below(users) {
            tokio::spawn(use_it(world.clone(), number));
        }
        tokio::spawn(secrets::administer(world.clone()));
        sleep(TROUBLE).await;
        let start = Instant::now();
        loop {
            let patience = match () {
                () if all_ended(&world) => Duration::ZERO,
                // Where something went wrong already, the rest is hardly waited for.
                () if !world.lock().wrong.is_empty() => TROUBLE,
                () if all_settled(&world) => PATIENCE,
                () => HORIZON,
            };
            if patience <= start.elapsed() {
                break;
            }
            sleep(Duration::from_secs(10)).await;
        }
        Outcome::of(&world)
    })
}

/// A number in the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
