//! Owns the code that the operator and the kubectl plugin share, apart from the types of the resource.
//! Never uses `WorkflowRunStop` or Amperity.

pub mod duration;
pub mod error;
pub mod kube_client;
pub mod name;
pub mod output;
