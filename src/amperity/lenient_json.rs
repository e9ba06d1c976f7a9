//! Owns tolerant JSON decoding: an object is decoded field by field into bounded types.
//! Never knows what a field means, and never allocates memory for a value that is skipped.
//!
//! `json_repair` first replaces what JSON forbids in strings and numbers. `serde_json` skips values without recursion,
//! so that their depth has no limit.

use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::amperity::json_repair::repaired;
use crate::amperity::run::{cut, stored_bytes};

/// From this on, the API server writes doubles with an exponent.
const MIN_EXPONENT: f64 = 1e21;

/// A type that is filled from the fields of an object.
pub trait Fields: Default {
    /// Decodes the value of the field `key`: takes exactly one value from `map`. Called again for a duplicate key, so
    /// that the last value wins.
    ///
    /// # Errors
    /// If the text is not JSON.
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Decodes a JSON object. Returns `None` if the text is anything else.
pub fn object<T: Fields>(json: &[u8]) -> Option<T> {
    let json = repaired(json);
    let mut deserializer = serde_json::Deserializer::from_slice(&json);
    let decoded = VisitorAdapter(Object(PhantomData)).deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    decoded
}

/// Decodes the next value of an object.
pub fn value<'de, A: MapAccess<'de>, V: LenientVisitor>(map: &mut A, visitor: V) -> Result<V::Value, A::Error> {
    map.next_value_seed(VisitorAdapter(visitor))
}

/// Decodes the next item of an array. Returns `None` at its end.
pub fn item<'de, A: SeqAccess<'de>, V: LenientVisitor>(
    items: &mut A,
    visitor: V,
) -> Result<Option<V::Value>, A::Error> {
    items.next_element_seed(VisitorAdapter(visitor))
}

/// Skips a value of any depth.
pub fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// A visitor of a JSON value that accepts some types and treats all others as absent.
pub trait LenientVisitor: Sized {
    /// The decoded type.
    type Value: Default;

    /// Returns the value for null and for every type that is not accepted.
    fn absent(self) -> Self::Value {
        Self::Value::default()
    }

    /// Decodes a boolean.
    fn boolean(self, _: bool) -> Self::Value {
        self.absent()
    }

    /// Decodes a number.
    fn number(self, _: Number) -> Self::Value {
        self.absent()
    }

    /// Decodes a text.
    fn text(self, _: &str) -> Self::Value {
        self.absent()
    }

    /// Decodes an array.
    ///
    /// # Errors
    /// If the text is not JSON.
    fn array<'de, A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        skip_items(&mut items)?;
        Ok(self.absent())
    }

    /// Decodes an object.
    ///
    /// # Errors
    /// If the text is not JSON.
    fn object<'de, A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        skip_fields(&mut fields)?;
        Ok(self.absent())
    }
}

/// A text, cut at `MAX_TEXT_BYTES`.
pub struct Text;

impl LenientVisitor for Text {
    type Value = Option<String>;

    fn text(self, text: &str) -> Self::Value {
        Some(cut(text))
    }
}

/// A text as [`Text`], or the digits of a number.
pub struct TextOrNumber;

impl LenientVisitor for TextOrNumber {
    type Value = Option<String>;

    fn number(self, number: Number) -> Self::Value {
        Some(number.to_string())
    }

    fn text(self, text: &str) -> Self::Value {
        Some(cut(text))
    }
}

/// A text of any length.
pub struct WholeText;

impl LenientVisitor for WholeText {
    type Value = Option<String>;

    fn text(self, text: &str) -> Self::Value {
        Some(text.to_owned())
    }
}

/// A number.
pub struct AnyNumber;

impl LenientVisitor for AnyNumber {
    type Value = Option<Number>;

    fn number(self, number: Number) -> Self::Value {
        Some(number)
    }
}

/// An object.
pub struct Object<T>(pub PhantomData<T>);

impl<T: Fields> LenientVisitor for Object<T> {
    type Value = Option<T>;

    fn object<'de, A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut object = T::default();
        while let Some(key) = fields.next_key::<String>()? {
            object.decode_field(&key, &mut fields)?;
        }
        Ok(Some(object))
    }
}

/// An array of objects: each `T` is added to the collection `C` as soon as it is decoded. Items of other types are
/// skipped.
pub struct Objects<T, C>(pub PhantomData<(T, C)>);

impl<T: Fields, C: Default + Extend<T>> LenientVisitor for Objects<T, C> {
    type Value = Option<C>;

    fn array<'de, A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut objects = C::default();
        while let Some(next) = item(&mut items, Object(PhantomData))? {
            objects.extend(next);
        }
        Ok(Some(objects))
    }
}

/// Any JSON within bounds; `None` if it exceeds them, and for null.
pub struct Bounded {
    /// The largest size in bytes, as [`stored_bytes`] counts them. Duplicate keys count as well.
    pub bytes: usize,
    /// The largest depth of nested arrays and objects.
    pub depth: usize,
}

impl LenientVisitor for Bounded {
    type Value = Option<Value>;

    fn boolean(mut self, value: bool) -> Self::Value {
        self.as_part().boolean(value)
    }

    fn number(mut self, number: Number) -> Self::Value {
        self.as_part().number(number)
    }

    fn text(mut self, text: &str) -> Self::Value {
        self.as_part().text(text)
    }

    fn array<'de, A: SeqAccess<'de>>(mut self, items: A) -> Result<Self::Value, A::Error> {
        self.as_part().array(items)
    }

    fn object<'de, A: MapAccess<'de>>(mut self, fields: A) -> Result<Self::Value, A::Error> {
        self.as_part().object(fields)
    }
}

impl Bounded {
    fn as_part(&mut self) -> BoundedPart<'_> {
        BoundedPart { bytes_left: &mut self.bytes, depth: self.depth }
    }
}

/// A value inside of a [`Bounded`] one. `None` if it does not fit; then the whole does not fit either.
struct BoundedPart<'a> {
    bytes_left: &'a mut usize,
    depth: usize,
}

impl BoundedPart<'_> {
    fn inner(&mut self) -> BoundedPart<'_> {
        BoundedPart { bytes_left: self.bytes_left, depth: self.depth - 1 }
    }

    #[must_use]
    fn reserve(&mut self, bytes: usize) -> Option<()> {
        *self.bytes_left = self.bytes_left.checked_sub(bytes)?;
        Some(())
    }

    fn scalar(mut self, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        self.reserve(stored_bytes(&value))?;
        Some(value)
    }
}

impl LenientVisitor for BoundedPart<'_> {
    type Value = Option<Value>;

    fn absent(self) -> Self::Value {
        self.scalar(Value::Null)
    }

    fn boolean(self, value: bool) -> Self::Value {
        self.scalar(value)
    }

    fn number(self, number: Number) -> Self::Value {
        self.scalar(as_stored(number))
    }

    fn text(self, text: &str) -> Self::Value {
        // A text that is too large even without quotes and escapes is not copied.
        if *self.bytes_left < text.len() { None } else { self.scalar(text) }
    }

    fn array<'de, A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut array = vec![];
        let mut fits = self.depth != 0 && self.reserve("[]".len()).is_some();
        while fits {
            let Some(next) = item(&mut items, self.inner())? else { return Ok(Some(array.into())) };
            let comma = if array.is_empty() { 0 } else { ",".len() };
            match next.filter(|_| self.reserve(comma).is_some()) {
                Some(next) => array.push(next),
                None => fits = false,
            }
        }
        skip_items(&mut items)?;
        Ok(None)
    }

    fn object<'de, A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        let mut fits = self.depth != 0 && self.reserve("{}".len()).is_some();
        while fits {
            let Some(key) = fields.next_key::<String>()? else { return Ok(Some(object.into())) };
            let comma = if object.is_empty() { 0 } else { ",".len() };
            let inner = value(&mut fields, self.inner())?;
            match inner.filter(|_| self.reserve(stored_bytes(&key) + ":".len() + comma).is_some()) {
                Some(inner) => drop(object.insert(key, inner)),
                None => fits = false,
            }
        }
        skip_fields(&mut fields)?;
        Ok(None)
    }
}

/// Returns the number as the API server stores it. It turns 1.0 into 1 and 1e18 into 1000000000000000000, and keeps only
/// the first 17 digits of an integer that is larger than an `i64`. Otherwise the stored status would differ from the one
/// that an equal answer gives later.
fn as_stored(number: Number) -> Number {
    match number.as_f64().filter(|double| !number.is_i64() && double.fract() == 0.0) {
        Some(0.0) => Number::from(0),
        Some(double) if double.abs() < MIN_EXPONENT => double.to_string().parse().unwrap_or(number),
        Some(_) | None => number,
    }
}

/// Skips the remaining items.
pub fn skip_items<'de, A: SeqAccess<'de>>(items: &mut A) -> Result<(), A::Error> {
    while items.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_fields<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<(), A::Error> {
    while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

/// Adapts a [`LenientVisitor`] to serde.
struct VisitorAdapter<V>(V);

impl<'de, V: LenientVisitor> DeserializeSeed<'de> for VisitorAdapter<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, V: LenientVisitor> Visitor<'de> for VisitorAdapter<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.0.absent())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.0.boolean(value))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.0.number(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.0.number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(match Number::from_f64(number) {
            Some(number) => self.0.number(number),
            None => self.0.absent(),
        })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        self.0.array(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        self.0.object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Decodes `data` with bounds and `name`, and skips all other fields.
    #[derive(Default)]
    struct Sample {
        data: Option<Value>,
        name: Option<String>,
    }

    const BYTES: usize = 100;
    const DEPTH: usize = 3;

    impl Fields for Sample {
        fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
            match key {
                "data" => self.data = value(map, Bounded { bytes: BYTES, depth: DEPTH })?,
                "name" => self.name = value(map, Text)?,
                _ => skip(map)?,
            }
            Ok(())
        }
    }

    fn data(json: &str) -> Option<Value> {
        let sample: Sample = object(format!(r#"{{"data":{json},"name":"after"}}"#).as_bytes()).unwrap();
        assert_eq!(sample.name.as_deref(), Some("after"), "the fields after `data` are decoded: {json}");
        sample.data
    }

    #[test]
    fn only_a_complete_object_is_decoded() {
        for json in ["", "[]", "1", "null", "{", "{\"name\":", "{} x", "{\"a\":1e}", "<html>"] {
            assert!(object::<Sample>(json.as_bytes()).is_none(), "{json}");
        }
        assert!(object::<Sample>(b" {} ").is_some());
    }

    #[test]
    fn data_of_the_largest_depth_is_kept_and_deeper_data_is_left_out() {
        assert_eq!(data(r#"[[["x"], {"k": [1]}]]"#), None);
        assert_eq!(data(r#"[[["x"], {"k": 1}]]"#), Some(json!([[["x"], {"k": 1}]])));
        assert_eq!(data(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), None);
        assert_eq!(data(&format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000))), None);
    }

    #[test]
    fn data_is_any_json_value() {
        for json in ["true", "false", "7", "-1.5", "\"text\"", "[]", "{}"] {
            assert_eq!(data(json), Some(serde_json::from_str(json).unwrap()));
        }
        assert_eq!(data("null"), None);
    }

    #[test]
    fn data_of_the_largest_size_is_kept_and_larger_data_is_left_out() {
        for shape in [
            |pad: &str| json!(pad),
            |pad: &str| json!({"flags": [true, false], "pad": pad}),
            |pad: &str| json!([pad, null, true, 1.5, -7]),
            |pad: &str| json!({"a": pad, "\n": {"b": [1]}, "c": {}}),
            |pad: &str| json!({pad: 1, "<": "&", "\u{2028}": false}),
        ] {
            let pad = |missing: usize| "x".repeat(BYTES - stored_bytes(&shape("")) - missing);
            let largest = shape(&pad(0));
            assert_eq!(stored_bytes(&largest), BYTES);
            assert_eq!(data(&largest.to_string()), Some(largest));
            let larger = shape(&(pad(0) + "x"));
            assert_eq!(data(&larger.to_string()), None, "{larger}");
        }
    }

    #[test]
    fn of_duplicate_keys_the_last_one_wins() {
        assert_eq!(data(r#"{"a":1,"a":[2]}"#), Some(json!({"a": [2]})));
        let sample: Sample = object(br#"{"name":"first","name":"last"}"#).unwrap();
        assert_eq!(sample.name.as_deref(), Some("last"));
        let sample: Sample = object(br#"{"name":"first","name":[]}"#).unwrap();
        assert_eq!(sample.name, None);
    }

    #[test]
    fn a_number_in_data_equals_the_one_that_the_api_server_stores() {
        assert_eq!(
            data("[1.0, -0.0, 1e3, 1.5, 18446744073709551615]"),
            Some(json!([1, 0, 1000, 1.5, u64::MAX as f64]))
        );
        assert_eq!(
            data("[12345678901234567890, 9007199254740993]"),
            Some(json!([12345678901234567000_u64, 9007199254740993_u64]))
        );
        assert_eq!(data("1e300"), Some(json!(1e300)));
        assert_eq!(data("[-1e17, 1e19, 1e20, 1e21]"), Some(json!([-10_i64.pow(17), 10_u64.pow(19), 1e20, 1e21])));
        assert_eq!(data("[1e999]"), Some(json!([null])));
    }

    #[test]
    fn a_skipped_value_can_be_nested_to_any_depth() {
        for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
            let (open, close) = (open.repeat(100_000), close.repeat(100_000));
            let json = format!(r#"{{"other":{open}1{close},"name":{open}1{close},"name":"n"}}"#);
            assert_eq!(object::<Sample>(json.as_bytes()).unwrap().name.as_deref(), Some("n"));
        }
    }
}
