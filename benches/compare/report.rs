//! Owns the table of the comparison.
//! Never measures.

use std::fmt::Write;

use crate::{
    contender::Contender,
    load::{CLIENTS, Load, PACE, Size, TENANTS},
    publish::publish,
};

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
    Figure { name: "CPU time a stop, paced, ms", of: |load| load.cpu[0], target: Target::AtMost(1.3) },
    Figure { name: "CPU time a stop, burst, ms", of: |load| load.cpu[1], target: Target::AtMost(1.4) },
    Figure { name: "stops a second, burst", of: |load| load.rate, target: Target::AtLeast(0.9) },
    Figure { name: "memory after the burst, MiB", of: |load| load.memory[1], target: Target::AtMost(1.15) },
    Figure { name: "memory idle, MiB", of: |load| load.memory[0], target: Target::AtMost(1.15) },
    Figure { name: "API requests a stop, paced", of: |load| load.requests[0], target: Target::AtMost(1.0) },
    Figure { name: "API requests a stop, burst", of: |load| load.requests[1], target: Target::AtMost(1.0) },
];

/// All results.
pub struct Report {
    size: Size,
    rounds: usize,
    /// The results of each contender, by round.
    loads: [Vec<Load>; Contender::ALL.len()],
}

fn percentile(load: &Load, percent: usize) -> f64 {
    load.latencies[(load.latencies.len() - 1) * percent / 100]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Report {
    pub fn new(size: Size, rounds: usize) -> Self {
        Self { size, rounds, loads: Default::default() }
    }

    pub fn add(&mut self, contender: Contender, load: Load) {
        self.loads[contender as usize].push(load);
    }

    /// Prints the result, and writes it into the folder `BENCH_OUT` if there is one.
    pub fn publish(&self) {
        publish("compare.md", &self.text());
    }

    fn values(&self, contender: Contender, figure: &Figure) -> Vec<f64> {
        self.loads[contender as usize].iter().map(figure.of).collect()
    }

    /// Returns the section in Markdown, with the medians, and the median of the ratios of all rounds.
    fn text(&self) -> String {
        let (Size { paced, burst }, rounds, pace) = (self.size, self.rounds, PACE.as_millis());
        let mut text = format!(
            "## The operator, a bare loop, and Kopf

Each program stops the runs of one namespace, with a real API server and a simulated Amperity on the same machine:
{paced} stops, one every {pace} ms, then a burst of {burst} stops of {TENANTS} tenants, which {CLIENTS} clients create as fast as
they can. The bare loop does the least work that stops a run once for each resource, with the operator's libraries
(`benches/compare/bare_loop.rs`). Kopf runs a handler that a user could write (`benches/compare/kopf_stop.py`); it stores
nothing before it sends, so a crash can make it send twice. Number of rounds: {rounds}; each figure is the median. The ratio
is that of operator to bare loop; ✗ misses the target.

| figure | bare loop | operator | Kopf 1.45 | ratio | target |
| --- | ---: | ---: | ---: | ---: | ---: |
"
        );
        for figure in &FIGURES {
            let [bare, operator, kopf] = Contender::ALL.map(|contender| self.values(contender, figure));
            let ratio = median(operator.iter().zip(&bare).map(|(operator, bare)| operator / bare).collect());
            let (kept, target) = match figure.target {
                Target::AtMost(most) => (ratio <= most, format!("≤ {most:.2}")),
                Target::AtLeast(least) => (least <= ratio, format!("≥ {least:.2}")),
            };
            let (bare, operator) = (median(bare), median(operator));
            let kopf = if kopf.is_empty() { "–".to_owned() } else { format!("{:.2}", median(kopf)) };
            let (name, missed) = (figure.name, if kept { "" } else { " ✗" });
            writeln!(text, "| {name} | {bare:.2} | {operator:.2} | {kopf} | {ratio:.2}{missed} | {target} |").unwrap();
        }
        text
    }
}
