//! Owns the decoding of one part of a JSON text on its own: a value, or the value of a field.
//! Never decodes a part that is too large: its value counts as null.

use std::borrow::Cow;

use serde::de::{Deserialize, DeserializeSeed, IgnoredAny, MapAccess};
use serde_json::de::SliceRead;

use crate::amperity::{
    json_repair::repaired_within,
    lenient_json::{self, Fields, LenientVisitor},
};
use crate::json_stream::{Malformed, Piece};

/// The largest value that is decoded on its own, in bytes, before and after its repair.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Decodes a value on its own. Returns `None` if it is too large.
///
/// # Errors
/// If the text is not JSON.
pub fn part<V: LenientVisitor>(json: Piece<'_>, visitor: V) -> Result<Option<V::Value>, Malformed> {
    let Some(json) = repaired_part(json) else { return Ok(None) };
    decode(&json, |deserializer| lenient_json::value(&mut OneValue(deserializer), visitor)).map(Some)
}

/// Decodes the value of a field on its own. A key that is too large counts as unknown, and a value as null.
///
/// # Errors
/// If the text of key or value is not JSON.
pub fn field<T: Fields>(object: &mut T, key: Piece<'_>, json: Piece<'_>) -> Result<(), Malformed> {
    let Some(key) = repaired_part(key) else { return check(json) };
    let key = decode(&key, |deserializer| String::deserialize(deserializer))?;
    let json = repaired_part(json).unwrap_or(Cow::Borrowed(b"null"));
    decode(&json, |deserializer| object.decode_field(&key, &mut OneValue(deserializer)))
}

/// Checks a value that is not used.
///
/// # Errors
/// If the text is not JSON.
pub fn check(json: Piece<'_>) -> Result<(), Malformed> {
    let Some(json) = repaired_part(json) else { return Ok(()) };
    decode(&json, |deserializer| IgnoredAny::deserialize(deserializer).map(drop))
}

/// Returns the repaired text; `None` if it is too large.
fn repaired_part(json: Piece<'_>) -> Option<Cow<'_, [u8]>> {
    repaired_within(json.json()?, MAX_VALUE_BYTES)
}

fn decode<'de, R>(
    json: &'de [u8],
    decode: impl FnOnce(&mut serde_json::Deserializer<SliceRead<'de>>) -> Result<R, serde_json::Error>,
) -> Result<R, Malformed> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let decoded = decode(&mut deserializer).map_err(|_| Malformed)?;
    deserializer.end().map_err(|_| Malformed)?;
    Ok(decoded)
}

/// An object whose next value is the whole text.
struct OneValue<'a, 'de>(&'a mut serde_json::Deserializer<SliceRead<'de>>);

impl<'de> MapAccess<'de> for OneValue<'_, 'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, Self::Error> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(&mut *self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::lenient_json::Text;

    /// Decodes a text: `None` if it is too large, and `Some(None)` for any other value.
    fn text(json: &[u8]) -> Result<Option<Option<String>>, Malformed> {
        part(Piece::Whole(json), Text)
    }

    #[test]
    fn a_part_is_repaired_and_must_be_one_value() {
        assert_eq!(text(b"\"x\""), Ok(Some(Some("x".into()))));
        assert_eq!(text(b"\"\x00\\ud800\""), Ok(Some(Some("\u{FFFD}\u{FFFD}".into()))));
        assert_eq!(text(b"[1e999]"), Ok(Some(None)));
        for json in [&b""[..], b"x", b"\"", b"[", b"1:2", b"\"x\"1", b"{} {}", b"\xEF\xBB\xBF1"] {
            assert_eq!(text(json), Err(Malformed), "{json:?}");
            assert_eq!(check(Piece::Whole(json)), Err(Malformed), "{json:?}");
        }
    }

    #[test]
    fn a_part_of_the_largest_size_is_decoded_and_a_larger_one_is_not() {
        let json = |bad: usize, good: usize| [b"\"", &vec![0; bad][..], &vec![b'x'; good], b"\""].concat();
        for (bad, good) in [(0, MAX_VALUE_BYTES - 2), (1, MAX_VALUE_BYTES - 5), (MAX_VALUE_BYTES / 3 - 1, 1)] {
            assert!(text(&json(bad, good)).unwrap().is_some(), "{bad} {good}");
            assert_eq!(text(&json(bad, good + 3)), Ok(None), "{bad} {good}");
        }
        assert_eq!(part(Piece::TooLarge, Text), Ok(None));
    }
}
