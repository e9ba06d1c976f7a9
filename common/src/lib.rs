//! Owns what the operator and the kubectl plugin share and what is no part of the API.
//! Never knows a `WorkflowRunStop` or Amperity.

pub mod duration;
pub mod error;
pub mod kube_client;
pub mod name;
pub mod output;
