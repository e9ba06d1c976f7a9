//! Owns random numbers: jitter and ids. A test that must be repeatable sets a seed.
//! Never decides anything.

use std::cell::RefCell;

use rand::{RngExt, SeedableRng, rngs::StdRng};

thread_local! {
    static RNG: RefCell<StdRng> = RefCell::new(rand::make_rng());
}

/// Returns a random number from 0 to 1, excluding 1.
pub fn unit() -> f64 {
    RNG.with_borrow_mut(|rng| rng.random())
}

/// Returns a random number from 0.5 to 1, excluding 1: the jitter for a wait that must not become too short.
pub fn upper_half() -> f64 {
    f64::midpoint(unit(), 1.0)
}

/// Returns a random id of 32 hexadecimal digits, which no other process generates.
pub fn id() -> String {
    format!("{:032x}", RNG.with_borrow_mut(|rng| rng.random::<u128>()))
}

/// Makes the following random numbers of this thread depend on the seed only.
pub fn seed(seed: u64) {
    RNG.set(StdRng::seed_from_u64(seed));
}
