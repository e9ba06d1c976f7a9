//! What the tests and the demo run against.

pub mod api_docs;
pub mod apiserver_proxy;
pub mod control_plane;
pub mod dns;
pub mod examples;
pub mod table;

pub mod simulator;
