//! Owns the settings of the Kubernetes client that both programs use.
//! Never chooses a cluster.

use std::time::Duration;

use kube::Config;

/// Disables retries, and limits the time without data on a connection.
///
/// A retry in the client would hide the outcome of the first request, and a write that is sent twice may take effect
/// twice. `read_timeout` ends a request whose response makes no progress. It must be longer than a minute, because an
/// idle watch receives only a bookmark about once a minute.
pub fn harden(config: &mut Config, read_timeout: Duration) {
    config.default_retry = false;
    config.read_timeout = Some(read_timeout);
    config.reset_reader_on_write = true;
}
