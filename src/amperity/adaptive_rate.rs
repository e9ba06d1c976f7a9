//! Owns the adaptive rate: the rate of a tenant's requests after the API answered 429.
//! Never reads a clock, and never allows more than the full rate of the budget.
//!
//! Other clients share the limit, and the API does not report how much of it they use. So the rate is probed as TCP
//! does (CUBIC, RFC 9438): a 429 lowers it; it soon returns to near the rate at which the 429 came, stays there for
//! long, and then rises faster and faster, since the other clients may use less by then.

use std::time::Duration;

use tokio::time::Instant;

/// The factor by which a 429 multiplies the rate.
const DECREASE: f64 = 0.9;

/// The factor after a 429 that shows that the rate is far too high: the first one, and one soon after another.
const LARGE_DECREASE: f64 = 0.5;

/// The approximate number of requests without a 429 until the rate is back at its ceiling.
const RECOVERY_REQUESTS: f64 = 200.0;

/// The longest time until the rate is back at its ceiling.
const MAX_RECOVERY: Duration = Duration::from_secs(60);

/// A 429 within this share of the recovery counts as soon after another.
const SOON: f64 = 0.2;

/// The lowest rate, in requests per second.
const MIN_RATE: f64 = 0.5;

/// The rate of one tenant, in requests per second.
pub struct AdaptiveRate {
    full: f64,
    /// `None` before the first 429.
    learned: Option<LearnedRate>,
}

#[derive(Clone, Copy)]
struct LearnedRate {
    /// The rate at which the last 429 came.
    ceiling: f64,
    /// The rate after that 429.
    floor: f64,
    /// The start of the recovery.
    since: Instant,
}

impl LearnedRate {
    /// Returns the time until the rate is back at its ceiling, in seconds.
    fn recovery_seconds(&self) -> f64 {
        (RECOVERY_REQUESTS / self.ceiling).min(MAX_RECOVERY.as_secs_f64())
    }

    fn rate(&self, now: Instant) -> f64 {
        // -1 at the start of the recovery, 0 at its end.
        let progress = now.saturating_duration_since(self.since).as_secs_f64() / self.recovery_seconds() - 1.0;
        let scale = if progress < 0.0 { self.ceiling - self.floor } else { self.ceiling };
        self.ceiling + scale * progress.powi(3)
    }
}

impl AdaptiveRate {
    /// Creates a rate that is not lowered.
    pub fn new(full: f64) -> Self {
        Self { full, learned: None }
    }

    /// Returns the rate now, in requests per second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.learned.map_or(self.full, |learned| learned.rate(now).min(self.full))
    }

    /// Returns the interval between requests; `None` if the rate is not lowered.
    pub fn interval(&self, now: Instant) -> Option<Duration> {
        let rate = self.rate(now);
        (rate < self.full).then(|| Duration::from_secs_f64(rate.recip()))
    }

    /// Lowers the rate after a 429. The recovery starts at `reopens`, when the budget opens again.
    pub fn slow_down(&mut self, now: Instant, reopens: Instant) {
        let rate = self.rate(now);
        let soon =
            |learned: LearnedRate| now < learned.since + Duration::from_secs_f64(learned.recovery_seconds() * SOON);
        let factor = if self.learned.is_none_or(soon) { LARGE_DECREASE } else { DECREASE };
        // Bounded, so that the ceiling stays above the floor and the rate can recover.
        let ceiling = rate.max(MIN_RATE / factor);
        self.learned = Some(LearnedRate { ceiling, floor: ceiling * factor, since: reopens });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rate(adaptive: &AdaptiveRate, now: Instant) -> f64 {
        adaptive.interval(now).map_or(adaptive.full, |interval| interval.as_secs_f64().recip())
    }

    #[test]
    fn the_first_429_halves_the_rate_and_it_recovers() {
        let mut adaptive = AdaptiveRate::new(10.0);
        let now = Instant::now();
        assert_eq!(adaptive.interval(now), None);
        adaptive.slow_down(now, now + seconds(3));
        assert!((rate(&adaptive, now) - 5.0).abs() < 0.01, "{}", rate(&adaptive, now));
        assert!((rate(&adaptive, now + seconds(3)) - 5.0).abs() < 0.01, "no recovery while the budget is closed");
        assert!((rate(&adaptive, now + seconds(13)) - 9.4).abs() < 0.1, "{}", rate(&adaptive, now + seconds(13)));
        assert_eq!(adaptive.interval(now + seconds(23)), None);
    }

    #[test]
    fn the_rate_stays_near_its_ceiling_and_then_rises_faster_and_faster() {
        let mut adaptive = AdaptiveRate::new(10.0);
        let mut now = Instant::now();
        adaptive.slow_down(now, now);
        adaptive.slow_down(now, now);
        now += seconds(40);
        let ceiling = rate(&adaptive, now);
        adaptive.slow_down(now, now);
        assert!((rate(&adaptive, now) - ceiling * DECREASE).abs() < 0.01, "{}", rate(&adaptive, now));
        let recovery = seconds(200).div_f64(ceiling);
        for share in [0.6, 1.0, 1.2] {
            let rate = rate(&adaptive, now + recovery.mul_f64(share));
            assert!((rate - ceiling).abs() < ceiling * 0.01, "{rate} after {share} of the recovery");
        }
        assert_eq!(adaptive.interval(now + recovery * 3), None);
    }

    #[test]
    fn the_rate_is_never_lower_than_one_request_in_two_seconds() {
        let mut adaptive = AdaptiveRate::new(10.0);
        let now = Instant::now();
        for _ in 0..20 {
            adaptive.slow_down(now, now);
        }
        assert_eq!(adaptive.interval(now), Some(seconds(2)));
        assert_eq!(adaptive.interval(now + seconds(600)), None);
    }
}
