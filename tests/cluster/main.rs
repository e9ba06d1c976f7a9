//! Owns the tests of the programs against a real Kubernetes API server and the simulated Amperity: the operator, the plugin, the
//! chart, the documents, and the metrics with a real Prometheus.
#![allow(clippy::unwrap_used, missing_docs)]

mod answers;
mod budget;
mod chart;
mod clock;
mod decoding;
mod docs;
mod gateways;
mod gitops;
mod input;
mod neighbours;
mod network;
mod observability;
mod observe;
mod operator;
mod plugin;
mod protocol;
