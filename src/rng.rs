//! Owns chance: jitter and the ids of claims.
//! Never decides anything; a test that has to be repeatable loads the dice with a seed.

use std::cell::RefCell;

use rand::{RngExt, SeedableRng, rngs::StdRng};

thread_local! {
    static RNG: RefCell<StdRng> = RefCell::new(rand::make_rng());
}

/// From 0 up to 1.
pub fn unit() -> f64 {
    RNG.with_borrow_mut(|dice| dice.random())
}

/// From a half up to 1: jitter for a wait that is not to come to nothing.
pub fn upper_half() -> f64 {
    f64::midpoint(unit(), 1.0)
}

/// An id that no other process makes.
pub fn id() -> String {
    format!("{:032x}", RNG.with_borrow_mut(|dice| dice.random::<u128>()))
}

/// Makes all that follows in this thread the same for the same seed.
pub fn seed(seed: u64) {
    RNG.set(StdRng::seed_from_u64(seed));
}
