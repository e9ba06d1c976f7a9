//! Owns the source of every choice in a schedule: a random number generator with a seed, or a plan.
//! Never knows what is chosen.

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The source of the choices.
pub enum Choices {
    /// From a seed. The number is the probability of a fault of weight 1.
    Random(Box<StdRng>, f64),
    /// Option 0 at every choice point, except for the departures of the plan.
    Plan(Plan),
}

/// A choice point, by its position in the schedule, at which another option than 0 is chosen.
#[derive(Clone, Copy)]
pub struct Departure {
    pub point: usize,
    pub option: usize,
}

/// A plan, and the choice points that were met while its schedule ran.
#[derive(Default)]
pub struct Plan {
    pub departures: Vec<Departure>,
    /// The number of options at each choice point.
    pub options: Vec<usize>,
}

impl Choices {
    pub fn from_seed(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let fault_rate = [0.0, 0.02, 0.1, 0.3][random.random_range(0..4)];
        Self::Random(Box::new(random), fault_rate)
    }

    /// Chooses an option; 0 is the one without a fault. With a seed, another option is chosen with the probability
    /// fault rate × `weight`.
    pub fn option(&mut self, options: usize, weight: f64) -> usize {
        match self {
            Self::Random(random, fault_rate) => {
                let departs = random.random::<f64>() < *fault_rate * weight;
                if departs { random.random_range(1..options) } else { 0 }
            }
            Self::Plan(plan) => {
                let point = plan.options.len();
                plan.options.push(options);
                plan.departures.iter().find(|departure| departure.point == point).map_or(0, |found| found.option)
            }
        }
    }

    /// Returns a number below `limit`, for what is no fault. With a plan it is always `limit - 1`.
    pub fn below(&mut self, limit: u64) -> u64 {
        match self {
            Self::Random(random, _) => random.random_range(0..limit),
            Self::Plan(_) => limit - 1,
        }
    }

    /// Returns a number from 0 to 1. With a plan it is always 1.
    pub fn fraction(&mut self) -> f64 {
        match self {
            Self::Random(random, _) => random.random(),
            Self::Plan(_) => 1.0,
        }
    }
}
