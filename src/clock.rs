//! Owns what a clock is. Waiting uses tokio's monotonic clock; this one tells the date.
//! Never reads the time itself: `main` supplies the clock.

use std::sync::Arc;

use jiff::Timestamp;

/// A wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
