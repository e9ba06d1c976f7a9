//! Owns what is left to chance: dice from a seed, or a plan that says where things go wrong and how.
//! Never knows what is chosen.

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Where the choices come from.
pub enum Chance {
    /// From a seed; things go wrong so often, from 0 to 1.
    Dice(Box<StdRng>, f64),
    /// Each point of choice goes the usual way, but for those that the plan names.
    Plan(Plan),
}

/// Points of choice, by their order, with the other way that is taken there.
pub type Departures = Vec<(usize, usize)>;

/// A plan and what came up while it was followed.
#[derive(Default)]
pub struct Plan {
    pub departures: Departures,
    /// How many ways there were at each point of choice.
    pub ways: Vec<usize>,
}

impl Chance {
    pub fn rng(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let trouble = [0.0, 0.02, 0.1, 0.3][random.random_range(0..4)];
        Self::Dice(Box::new(random), trouble)
    }

    /// One of so many ways; 0 is the usual one. With dice the others are taken where there is trouble of
    /// this weight.
    pub fn way(&mut self, ways: usize, weight: f64) -> usize {
        match self {
            Self::Dice(random, trouble) => {
                let departs = random.random::<f64>() < *trouble * weight;
                if departs { random.random_range(1..ways) } else { 0 }
            }
            Self::Plan(plan) => {
                let point = plan.ways.len();
                plan.ways.push(ways);
                plan.departures.iter().find(|(at, _)| *at == point).map_or(0, |(_, way)| *way)
            }
        }
    }

    /// A number that tells nothing of trouble. A plan has the last one always.
    pub fn below(&mut self, limit: u64) -> u64 {
        match self {
            Self::Dice(random, _) => random.random_range(0..limit),
            Self::Plan(_) => limit - 1,
        }
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        match self {
            Self::Dice(random, _) => random.random(),
            Self::Plan(_) => 1.0,
        }
    }
}
