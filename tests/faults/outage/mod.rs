//! Outages, slow responses and changes of the systems that the operator depends on.

mod amperity;
mod apiserver;
mod changes;
