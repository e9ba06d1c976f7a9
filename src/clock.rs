//! Owns the type of the wall clock, and waiting for an optional deadline of tokio's monotonic clock.
//! Never reads the time: `main` supplies the wall clock.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

/// The wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Waits until the deadline, or forever if there is none.
pub async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
