//! Owns the modules of workflow-run-stop-operator, which sends one stop request to Amperity for each
//! `WorkflowRunStop`. The modules stand in reading order, from the outside in.
//! Never holds code.
//!
//! Data flows one way: the API server → [`operator`] watches → [`reconcile`] decides, acts and records →
//! the API server. Imports go down only: operator → observe → reconcile → amperity. The types of the
//! resource are the crate [`workflow_run_stop_api`].
//!
//! Invariants:
//! - No stop request without a stored claim, and no second claim while the first one's request may
//!   have been accepted ([`reconcile::decide`]).
//! - No write to Kubernetes without a guard ([`reconcile::store`]).
//! - No request to Amperity without a slot of the tenant's budget ([`amperity::budget`]).

pub mod config;

pub mod operator;

pub mod observe;

pub mod reconcile;

pub mod amperity;

pub mod json_stream;

pub mod stored_object;

pub mod bounded_map;

pub mod clock;

pub mod fair_queue;

pub mod fair_share;

pub mod turns;

pub mod rng;

pub mod metric_labels;

pub mod fault_injection;
