//! Owns what a clock is, and waiting until a time that there may not be. Waiting uses tokio's monotonic clock; the
//! other one tells the date.
//! Never reads the time itself: `main` supplies the clock.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

/// A wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Resolves at the deadline; never where there is none.
pub async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
