//! Owns the parsing of durations on a command line.
//! Never bounds a duration: each flag has its own bounds.

use jiff::{SignedDuration, Span, SpanRelativeTo};
use thiserror::Error;

/// The text is not a duration.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not a duration such as 30s, 10m, 1h30m or 7d")]
pub struct NotADuration;

/// Parses a duration such as `90s`, `1h30m`, `2 minutes` or `7d`; a day has 24 hours.
///
/// # Errors
/// If the text is not a duration with units, or the duration has more seconds than 64 bits can hold.
pub fn parse(text: &str) -> Result<SignedDuration, NotADuration> {
    let span: Span = text.parse().map_err(|_| NotADuration)?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| NotADuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_units_and_a_day_has_24_hours() {
        for (text, seconds) in
            [("90s", 90), ("1h30m", 5400), ("1m30s", 90), ("2 minutes", 120), ("7d", 604_800), ("-5s", -5)]
        {
            assert_eq!(parse(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("1.5s"), Ok(SignedDuration::from_millis(1500)));
        for text in ["", "soon", "30", "1 month", "99999999999999999999s"] {
            assert_eq!(parse(text), Err(NotADuration), "{text}");
        }
    }
}
