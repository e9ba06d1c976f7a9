//! Owns the learned rate: how far apart the requests of a tenant are once the API said that they were too many.
//! Never reads a clock, and never allows more than the full rate: that is the budget's own.
//!
//! Other clients share the limit, and nobody says how much of it they use. So the rate is searched for, as
//! TCP does it (CUBIC, RFC 9438): lowered where it was too much, back near that point soon, around it for
//! long, and beyond it ever faster, for what the others use may have changed.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the rate after a 429.
const LOWERED: f64 = 0.9;

/// What is left after a 429 that tells that the rate is far off: the first one, and one that follows soon.
const HALVED: f64 = 0.5;

/// After about so many requests without a 429 the rate is back where it was too much.
const REQUESTS_BACK: f64 = 200.0;

/// It is back by then, however few requests that are.
const MAX_BACK: Duration = Duration::from_secs(60);

/// A 429 within this share of the way back follows soon.
const SOON: f64 = 0.2;

/// The lowest rate, in requests per second.
const MIN_RATE: f64 = 0.5;

/// The rate of one tenant, in requests per second.
pub struct AdaptiveRate {
    full: f64,
    learned: Option<LearnedRate>,
}

#[derive(Clone, Copy)]
struct LearnedRate {
    /// The rate at which there were too many.
    ceiling: f64,
    /// The rate right after that.
    floor: f64,
    /// When that was.
    since: Instant,
}

impl LearnedRate {
    /// How long it takes until the rate is back at its ceiling, in seconds.
    fn back(&self) -> f64 {
        (REQUESTS_BACK / self.ceiling).min(MAX_BACK.as_secs_f64())
    }

    fn rate(&self, now: Instant) -> f64 {
        let way = now.saturating_duration_since(self.since).as_secs_f64() / self.back() - 1.0;
        let scale = if way < 0.0 { self.ceiling - self.floor } else { self.ceiling };
        self.ceiling + scale * way.powi(3)
    }
}

impl AdaptiveRate {
    /// Nothing learned: the full rate.
    pub fn new(full: f64) -> Self {
        Self { full, learned: None }
    }

    /// The rate now, in requests per second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.learned.map_or(self.full, |learned| learned.rate(now).min(self.full))
    }

    /// How far apart requests are; `None` where the full rate is the only limit.
    pub fn interval(&self, now: Instant) -> Option<Duration> {
        let rate = self.rate(now);
        (rate < self.full).then(|| Duration::from_secs_f64(rate.recip()))
    }

    /// There were too many; the budget opens again at `reopens`.
    pub fn slow_down(&mut self, now: Instant, reopens: Instant) {
        let rate = self.learned.map_or(self.full, |learned| learned.rate(now).min(self.full));
        let soon = |learned: LearnedRate| now < learned.since + Duration::from_secs_f64(learned.back() * SOON);
        let left = if self.learned.is_none_or(soon) { HALVED } else { LOWERED };
        // The ceiling is never as low as the floor: from there no way would lead up.
        let ceiling = rate.max(MIN_RATE / left);
        self.learned = Some(LearnedRate { ceiling, floor: ceiling * left, since: reopens });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rate(pace: &AdaptiveRate, now: Instant) -> f64 {
        pace.interval(now).map_or(pace.full, |interval| interval.as_secs_f64().recip())
    }

    #[test]
    fn it_is_halved_by_the_first_429_and_comes_back() {
        let mut pace = AdaptiveRate::new(10.0);
        let now = Instant::now();
        assert_eq!(pace.interval(now), None);
        pace.slow_down(now, now + seconds(3));
        assert!((rate(&pace, now) - 5.0).abs() < 0.01, "{}", rate(&pace, now));
        assert!((rate(&pace, now + seconds(3)) - 5.0).abs() < 0.01, "not while the budget is closed");
        assert!((rate(&pace, now + seconds(13)) - 9.4).abs() < 0.1, "{}", rate(&pace, now + seconds(13)));
        assert_eq!(pace.interval(now + seconds(23)), None);
    }

    #[test]
    fn it_stays_near_the_rate_that_was_too_much_and_then_leaves_it_ever_faster() {
        let mut pace = AdaptiveRate::new(10.0);
        let mut now = Instant::now();
        pace.slow_down(now, now);
        pace.slow_down(now, now);
        now += seconds(40);
        let ceiling = rate(&pace, now);
        pace.slow_down(now, now);
        assert!((rate(&pace, now) - ceiling * LOWERED).abs() < 0.01, "{}", rate(&pace, now));
        let back = seconds(200).div_f64(ceiling);
        for share in [0.6, 1.0, 1.2] {
            let rate = rate(&pace, now + back.mul_f64(share));
            assert!((rate - ceiling).abs() < ceiling * 0.01, "{rate} after {share} of the way");
        }
        assert_eq!(pace.interval(now + back * 3), None);
    }

    #[test]
    fn it_is_never_lower_than_one_request_in_two_seconds() {
        let mut pace = AdaptiveRate::new(10.0);
        let now = Instant::now();
        for _ in 0..20 {
            pace.slow_down(now, now);
        }
        assert_eq!(pace.interval(now), Some(seconds(2)));
        assert_eq!(pace.interval(now + seconds(600)), None);
    }
}
