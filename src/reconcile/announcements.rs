//! Owns the rate at which statuses are written that only say what a resource waits for: five a second in all, so that a
//! hundred thousand waiting resources do not load the API server.
//! Never limits the writes of claims and outcomes, and never chooses whose announcement is next.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The interval between two announcements.
const INTERVAL: Duration = Duration::from_millis(200);

/// The number of announcements that may be written at once after a time without any.
const BURST: u32 = 300;

/// The rate limit of announcements: five a second, and 300 at once.
#[derive(Debug, Default)]
pub struct Announcements {
    /// The time at which the full burst is available again.
    unused_from: Mutex<Option<Instant>>,
    /// True while announcements wait for their turn. Then [`Self::take`] refuses.
    queued: AtomicBool,
}

impl Announcements {
    /// Returns true if an announcement may be written now, and counts it.
    #[must_use]
    pub fn take(&self, now: Instant) -> bool {
        !self.queued.load(Ordering::Relaxed) && self.take_queued(now)
    }

    /// Returns true if the announcement whose turn it is may be written now, and counts it.
    #[must_use]
    pub fn take_queued(&self, now: Instant) -> bool {
        let mut unused_from = self.unused_from.lock().expect("nothing panics while it holds this lock");
        let next = unused_from.map_or(now, |from| from.max(now)) + INTERVAL;
        let available = next <= now + INTERVAL * BURST;
        if available {
            *unused_from = Some(next);
        }
        available
    }

    /// Returns when the next announcement may be written.
    pub fn next_at(&self) -> Option<Instant> {
        let unused_from = self.unused_from.lock().expect("nothing panics while it holds this lock");
        unused_from.and_then(|from| (from + INTERVAL).checked_sub(INTERVAL * BURST))
    }

    /// Sets whether announcements wait for their turn.
    pub fn set_queued(&self, queued: bool) {
        self.queued.store(queued, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_the_first_minute_at_most_six_hundred_are_written() {
        let announcements = Announcements::default();
        let mut written = 0;
        for _ in 0..60_000 {
            written += u32::from(announcements.take(Instant::now()));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((599..=601).contains(&written), "{written}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_may_be_written_when_it_is_said() {
        let announcements = Announcements::default();
        while announcements.take(Instant::now()) {}
        let next = announcements.next_at().unwrap();
        assert_eq!(next, Instant::now() + INTERVAL);
        tokio::time::advance(INTERVAL).await;
        assert!(announcements.take(Instant::now()) && !announcements.take(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_before_those_that_wait_for_their_turn() {
        let announcements = Announcements::default();
        announcements.set_queued(true);
        assert!(!announcements.take(Instant::now()) && announcements.take_queued(Instant::now()));
        announcements.set_queued(false);
        assert!(announcements.take(Instant::now()));
    }
}
