//! Owns the delays before the next attempt and before the next read of a run.
//! Never reads a clock or a random number: the jitter, from 0 up to 1, is a parameter.

use std::time::Duration;

/// The longest wait between two attempts.
pub const MAX_DELAY: Duration = Duration::from_secs(300);

/// The longest wait between two attempts with credentials, which a person may correct at any time.
pub const MAX_CREDENTIALS_DELAY: Duration = Duration::from_secs(60);

/// The shortest delay: full jitter alone could be zero.
const MIN_DELAY: Duration = Duration::from_millis(100);

const FIRST_DELAY: Duration = Duration::from_secs(1);
const FIRST_READ_DELAY: Duration = Duration::from_secs(2);
const MAX_READ_DELAY: Duration = Duration::from_secs(60);

/// Returns the delay after the `failures`th failure in a row: one second, doubling up to `max`, with full jitter.
pub fn delay(failures: u32, max: Duration, jitter: f64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
    doubled.mul_f64(jitter).max(MIN_DELAY)
}

/// Returns the delay before the next read of a followed run, after `reads` reads: two seconds, growing by half
/// up to one minute, plus or minus ten percent.
pub fn read_delay(reads: u32, jitter: f64) -> Duration {
    let grown = FIRST_READ_DELAY.mul_f64(1.5_f64.powi(reads.min(20).cast_signed())).min(MAX_READ_DELAY);
    grown.mul_f64(0.9 + 0.2 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_maximum_and_its_jitter_is_full() {
        let seconds = |failures| delay(failures, MAX_DELAY, 1.0).as_secs();
        assert_eq!([1, 2, 3, 9, 10, 4_000_000].map(seconds), [1, 2, 4, 256, 300, 300]);
        assert_eq!(delay(9, MAX_CREDENTIALS_DELAY, 1.0), MAX_CREDENTIALS_DELAY);
        assert_eq!(delay(9, MAX_DELAY, 0.0), MIN_DELAY);
        assert_eq!(delay(9, MAX_DELAY, 0.5), Duration::from_secs(128));
    }

    #[test]
    fn looks_start_at_two_seconds_and_grow_to_a_minute() {
        let seconds = |reads| read_delay(reads, 0.5).as_secs_f64();
        assert_eq!([0, 1, 2, 9, 4_000_000].map(seconds), [2.0, 3.0, 4.5, 60.0, 60.0]);
        assert!(read_delay(0, 0.0) < read_delay(0, 1.0));
    }
}
