//! Owns the table of the comparison.
//! Never measures.

use crate::{contender::Contender, load::Load};

/// A figure of one program in one round, and the largest ratio of the operator to the bare loop; for a rate the smallest.
struct Figure {
    name: &'static str,
    of: fn(&Load) -> f64,
    target: Target,
}

enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// The figures, in the order of the table.
const FIGURES: [Figure; 9] = [
    Figure {
        name: "created → request received, p50, ms",
        of: |load| percentile(load, 50),
        target: Target::AtMost(1.0),
    },
    Figure {
        name: "created → request received, p99, ms",
        of: |load| percentile(load, 99),
        target: Target::AtMost(1.1),
    },
    Figure { name: "CPU time a stop, one every 50 ms, ms", of: |load| load.cpu[0], target: Target::AtMost(1.3) },
    Figure { name: "CPU time a stop, 2,000 of 200 tenants, ms", of: |load| load.cpu[1], target: Target::AtMost(1.4) },
    Figure { name: "stops a second, 2,000 of 200 tenants", of: |load| load.rate, target: Target::AtLeast(0.9) },
    Figure { name: "memory after that, MiB", of: |load| load.memory[1], target: Target::AtMost(1.15) },
    Figure { name: "memory idle, MiB", of: |load| load.memory[0], target: Target::AtMost(1.15) },
    Figure { name: "API requests a stop, one every 50 ms", of: |load| load.requests[0], target: Target::AtMost(1.0) },
    Figure {
        name: "API requests a stop, 2,000 of 200 tenants",
        of: |load| load.requests[1],
        target: Target::AtMost(1.0),
    },
];

/// All results, each with those of the same round.
#[derive(Default)]
pub struct Report {
    bare_loop: Vec<Load>,
    operator: Vec<Load>,
}

fn percentile(load: &Load, percent: usize) -> f64 {
    load.latencies[(load.latencies.len() - 1) * percent / 100]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Report {
    pub fn add(&mut self, contender: Contender, load: Load) {
        match contender {
            Contender::BareLoop => self.bare_loop.push(load),
            Contender::Operator => self.operator.push(load),
        }
    }

    /// Prints the medians, and the median of the ratios of all rounds.
    pub fn print(&self) {
        let rounds = self.operator.len();
        println!(
            "\nMedians of {rounds} rounds; the ratio is the median of the ratios of the rounds; ✗ misses a target.\n"
        );
        println!("| figure | bare loop | operator | ratio | target |\n| --- | ---: | ---: | ---: | ---: |");
        for Figure { name, of, target } in FIGURES {
            let (bare, operator) = (self.bare_loop.iter().map(of), self.operator.iter().map(of));
            let ratio = median(operator.clone().zip(bare.clone()).map(|(operator, bare)| operator / bare).collect());
            let (kept, target) = match target {
                Target::AtMost(most) => (ratio <= most, format!("≤ {most:.2}")),
                Target::AtLeast(least) => (least <= ratio, format!("≥ {least:.2}")),
            };
            let (bare, operator) = (median(bare.collect()), median(operator.collect()));
            let missed = if kept { "" } else { " ✗" };
            println!("| {name} | {bare:.2} | {operator:.2} | {ratio:.2}{missed} | {target} |");
        }
    }
}
