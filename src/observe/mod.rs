//! Owns what others see of the operator's work: log lines, events and metrics.
//! Never decides, and writes nothing but events.

pub mod backlog;
pub mod event_filter;
pub mod event_queue;
pub mod events;
pub mod metrics;
pub mod reporter;
pub mod undecodable;
