//! The operator's binary against a real Kubernetes API server and the simulated Amperity API.
#![allow(clippy::unwrap_used, missing_docs)]

mod answers;
mod budget;
mod clock;
mod gateways;
mod gitops;
mod input;
mod network;
mod observability;
mod operator;
mod protocol;
mod rbac;
mod support;
