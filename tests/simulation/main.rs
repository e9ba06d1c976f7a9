//! Deterministic simulation: the operator's own watch, decide, store, budget and client run against a simulated
//! Kubernetes API server and a simulated Amperity, in virtual time. Replicas crash at any step of their IO, requests
//! and responses get lost, watches lag and disconnect, wall clocks differ and jump.
//!
//! By seed, a pseudorandom generator makes every choice: in a small world of up to three resources, and in a large one
//! of up to fifty resources, three tenants and three namespaces. By plan, there are one resource and two replicas, and
//! every schedule is run that departs from the undisturbed one at no more than `DEPARTURES` choice points.
//!
//! `make simulate SEEDS=20000 LARGE_SEEDS=1000 DEPARTURES=2` runs all; `make simulate SEED=17`,
//! `make simulate LARGE_SEED=17` and `make simulate PLAN=74:1,79:1` replay one schedule and print its history.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::wildcard_enum_match_arm, missing_docs)]

mod access;
mod amperity;
mod answers;
mod apiserver;
mod assumptions;
mod choices;
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
mod scenario;
mod secrets;
mod seeds;
mod steps;
mod store;
mod user;
mod waiting;
mod watches;
mod world;

use std::{cell::RefCell, panic, sync::Once, time::Duration};

use tokio::time::{Instant, sleep};
use workflow_run_stop_operator::rng;

use crate::{
    assumptions::Assumption,
    choices::Choices,
    judge::{all_finished, all_finished_or_blocked, judge},
    promises::{Promise, Violation},
    replica::{ReplicaSettings, run_replica},
    user::run_user,
    world::{FAULT_PERIOD, Size, World},
};

/// The time within which every resource has to finish after the fault period. A claim may be open for an hour and a run
/// may be followed for one, by wall clocks that are up to an hour wrong in either direction.
const FINISH_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// The time within which a resource that is blocked for ever has to show the reason in its status.
const BLOCKED_LIMIT: Duration = Duration::from_secs(600);

/// The result of one schedule.
struct Outcome {
    violations: Vec<Violation>,
    history: Vec<String>,
}

thread_local! {
    /// The messages of panics of the operator's code in this thread. The operator catches them and continues.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
}

impl Outcome {
    /// Checks the final state of the world, and takes violations and history out of it.
    fn of(world: &World) -> Self {
        judge(world);
        let mut inner = world.lock();
        PANICS.take().iter().for_each(|panic| inner.fail(Promise::NoPanic, panic));
        Self { violations: std::mem::take(&mut inner.violations), history: std::mem::take(&mut inner.history) }
    }
}

/// Runs a future in virtual time, with the operator's random numbers taken from the seed.
fn in_virtual_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    static PANIC_HOOK: Once = Once::new();
    PANIC_HOOK.call_once(|| {
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

/// Runs the schedule of one seed, in a world that breaks one assumption, or none.
fn simulate(seed: u64, size: Size, off: Option<Assumption>) -> Outcome {
    in_virtual_time(seed, async {
        let world = World::new(Choices::from_seed(seed), size, off);
        world.draw_faults();
        let replicas = match off {
            // Timeouts can differ only between two replicas.
            Some(Assumption::SameTimeouts) => 2,
            _ => 1 + world.below(3) as usize,
        };
        // One watch for each namespace, or one for all.
        let by_namespace = world.below(2) == 0;
        let namespaces = world.lock().namespaces();
        let namespaces = || namespaces.iter().filter(|_| by_namespace).map(|name| (*name).to_owned()).collect();
        for replica in 0..replicas {
            let clock_offset = world.below(60) as i64 - 30;
            let settings =
                ReplicaSettings { clock_offset, namespaces: namespaces(), max_downtime: Duration::from_secs(20) };
            tokio::spawn(run_replica(world.clone(), replica, settings));
        }
        let users = match size {
            Size::Small => 3,
            Size::Large => 50,
        };
        for number in 0..=world.below(users) {
            tokio::spawn(run_user(world.clone(), number));
        }
        tokio::spawn(secrets::change_secrets(world.clone()));
        sleep(FAULT_PERIOD).await;
        let start = Instant::now();
        loop {
            let limit = match () {
                () if all_finished(&world) => Duration::ZERO,
                // After a violation the schedule has failed: waiting for the rest only costs time.
                () if !world.lock().violations.is_empty() => FAULT_PERIOD,
                () if all_finished_or_blocked(&world) => BLOCKED_LIMIT,
                () => FINISH_LIMIT,
            };
            if limit <= start.elapsed() {
                break;
            }
            sleep(Duration::from_secs(10)).await;
        }
        Outcome::of(&world)
    })
}

/// Returns a number from the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
