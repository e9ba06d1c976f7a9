//! Owns the floor plan of workflow-run-stop-operator, which asks Amperity once for each
//! `WorkflowRunStop` to stop a workflow run. The modules stand in reading order, from the outside in.
//! Never holds code.
//!
//! Data flows one way: the API server → [`operator`] watches → [`stop`] looks, decides, acts and
//! records → the API server. Imports go down only: operator → stop → amperity, resource → run.
//! Beside it stands [`plugin`], which creates stops and looks at them.
//!
//! What holds everywhere:
//! - No stop request without a stored claim, and no second claim while the first one's request may
//!   have been accepted ([`stop::decide`]).
//! - No write to Kubernetes without a guard ([`stop::ledger`]).
//! - No request to Amperity without a slot of the tenant's budget ([`amperity::budget`]).

pub mod resource;

pub mod run;

pub mod config;

pub mod operator;

pub mod stop;

pub mod amperity;

pub mod plugin;

pub mod clock;

pub mod dice;

pub mod labels;

pub mod sabotage;
