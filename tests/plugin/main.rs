//! The kubectl plugin's binary against a real Kubernetes API server, a real operator, the simulated Amperity, the real
//! kubectl and the real krew.
#![allow(clippy::unwrap_used, missing_docs)]

mod call;
mod kubectl;
mod output;
mod packed;
mod refused;
#[path = "../cluster/rights.rs"]
mod rights;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
mod terminal;
mod waiting;
