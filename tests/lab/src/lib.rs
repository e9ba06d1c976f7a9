//! The environment of the tests and the demo: simulated Amperity, real control plane, proxies.

pub mod api_docs;
pub mod apiserver_proxy;
mod binary;
pub mod control_plane;
pub mod dns;
pub mod examples;
pub mod simulator;
pub mod table;
pub mod testing;

pub use binary::binary;
