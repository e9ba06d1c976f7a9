//! Owns the repair of nearly valid JSON: replaces the characters and numbers that JSON, UTF-8 or a double do not allow.
//! Never changes the structure: brackets, commas and colons stay as they are, even if they are wrong.

use std::{borrow::Cow, ops::Range, str};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The replacement of a character that is not allowed.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The longest UTF-8 character, in bytes.
const MAX_CHARACTER_BYTES: usize = 4;

/// Returns the text without a byte order mark. In strings, each raw control character, lone surrogate, invalid UTF-8
/// sequence and backslash without a known escape becomes U+FFFD. Each number out of a double's range becomes null.
///
/// Copies the text only if something changes.
pub fn repaired(json: &[u8]) -> Cow<'_, [u8]> {
    let source = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
    repaired_within(source, usize::MAX).expect("no text is longer than the longest one")
}

/// As [`repaired`], for a part of a text, which has no byte order mark. Returns `None` if the result would be longer than
/// `limit` bytes: a replacement is up to three times as long as what it replaces.
pub fn repaired_within(source: &[u8], limit: usize) -> Option<Cow<'_, [u8]>> {
    let mut repair = Repair { source, limit, copied: 0, out: vec![] };
    let mut at = 0;
    while repair.out.len() <= limit
        && let Some(byte) = source.get(at)
    {
        at = match byte {
            b'"' => repair.string(at + 1),
            b'-' | b'0'..=b'9' => repair.number(at),
            _ => at + 1,
        };
    }
    if limit < repair.out.len() + source.len() - repair.copied {
        return None;
    }
    if repair.out.is_empty() {
        return Some(Cow::Borrowed(source));
    }
    repair.copy_until(source.len());
    Some(Cow::Owned(repair.out))
}

struct Repair<'a> {
    source: &'a [u8],
    /// The repair ends early when `out` is longer than this.
    limit: usize,
    /// The part of the source that is in `out`, in bytes: 0 before the first change.
    copied: usize,
    out: Vec<u8>,
}

impl Repair<'_> {
    fn copy_until(&mut self, end: usize) {
        self.out.extend_from_slice(&self.source[self.copied..end]);
        self.copied = end;
    }

    /// Replaces a range of the source. Returns the end of the range.
    fn replace(&mut self, range: Range<usize>, with: &[u8]) -> usize {
        self.copy_until(range.start);
        self.out.extend_from_slice(with);
        self.copied = range.end;
        range.end
    }

    /// Repairs the content of a string. Returns the position after its end.
    fn string(&mut self, mut at: usize) -> usize {
        while self.out.len() <= self.limit
            && let Some(byte) = self.source.get(at)
        {
            at = match byte {
                b'"' => return at + 1,
                b'\\' => self.escape(at),
                0x00..0x20 => self.replace(at..at + 1, REPLACEMENT),
                0x20..0x80 => at + 1,
                0x80.. => self.non_ascii(at),
            };
        }
        at
    }

    /// Repairs an escape sequence. Returns the position after it.
    fn escape(&mut self, at: usize) -> usize {
        match self.source.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at + 2,
            Some(b'u') => match (self.code_unit(at), self.code_unit(at + 6)) {
                (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => at + 12,
                (Some(0xD800..0xE000), _) => self.replace(at..at + 6, REPLACEMENT),
                (Some(_), _) => at + 6,
                (None, _) => self.replace(at..at + 1, REPLACEMENT),
            },
            Some(_) | None => self.replace(at..at + 1, REPLACEMENT),
        }
    }

    /// Returns the UTF-16 code unit of an escape such as `\u00e9`.
    fn code_unit(&self, at: usize) -> Option<u16> {
        let digits = self.source.get(at..at + 6)?.strip_prefix(b"\\u")?;
        // `from_str_radix` would accept a sign.
        let digits = str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u16::from_str_radix(digits, 16).ok()
    }

    /// Repairs a character that is not ASCII. Returns the position after it.
    fn non_ascii(&mut self, at: usize) -> usize {
        let rest = &self.source[at..];
        let prefix = &rest[..rest.len().min(MAX_CHARACTER_BYTES)];
        let chunk = prefix.utf8_chunks().next();
        match chunk.as_ref().and_then(|chunk| chunk.valid().chars().next()) {
            Some(character) => at + character.len_utf8(),
            None => self.replace(at..at + chunk.map_or(1, |chunk| chunk.invalid().len()), REPLACEMENT),
        }
    }

    /// Replaces a number if it is out of the range of a double. Returns the position after it.
    fn number(&mut self, at: usize) -> usize {
        let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let length = self.source[at..].iter().take_while(|b| is_part(b)).count();
        let number = str::from_utf8(&self.source[at..at + length]).ok().and_then(|number| number.parse::<f64>().ok());
        match number {
            Some(number) if number.is_infinite() => self.replace(at..at + length, b"null"),
            Some(_) | None => at + length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &[u8]) -> String {
        String::from_utf8(repaired(json).into_owned()).unwrap()
    }

    #[test]
    fn valid_json_is_neither_changed_nor_copied() {
        for json in [
            "",
            "null",
            r#"{"k":["é€😀 \u00e9 \ud83d\ude00 \n\u0000 \\\" \/\b\f\r\t",-1.5e+3,1.7976931348623157e308,0]}"#,
            "\t{\r\n} ",
        ] {
            assert!(matches!(repaired(json.as_bytes()), Cow::Borrowed(same) if same == json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_dropped_without_a_copy() {
        assert!(matches!(repaired(b"\xEF\xBB\xBF{}"), Cow::Borrowed(b"{}")));
        assert_eq!(text(b"\xEF\xBB\xBF\"\x01\""), "\"\u{FFFD}\"");
    }

    #[test]
    fn raw_control_characters_in_a_string_are_replaced_and_escaped_ones_stay() {
        assert_eq!(
            text(b"{\"a\x00\n\":\"\x1f\x7f\\n\\u0000\"\n}"),
            "{\"a\u{FFFD}\u{FFFD}\":\"\u{FFFD}\x7f\\n\\u0000\"\n}"
        );
    }

    #[test]
    fn lone_surrogates_are_replaced() {
        for (json, repaired) in [
            (r#""\ud800""#, "\"\u{FFFD}\""),
            (r#""\uDFFFx""#, "\"\u{FFFD}x\""),
            (r#""\ud800\ud800\udc00""#, "\"\u{FFFD}\\ud800\\udc00\""),
            (r#""\udc00\ud800""#, "\"\u{FFFD}\u{FFFD}\""),
            (r#""\ud800\n""#, "\"\u{FFFD}\\n\""),
            (r#""\ud800\u0041""#, "\"\u{FFFD}\\u0041\""),
            (r#""\\ud800""#, r#""\\ud800""#),
            // Valid escapes are skipped as a whole, wherever they are.
            ("\"text \\ud83d\\ude00\u{0}\"", "\"text \\ud83d\\ude00\u{FFFD}\""),
            ("\"text \\u0041\u{0}\"", "\"text \\u0041\u{FFFD}\""),
        ] {
            assert_eq!(text(json.as_bytes()), repaired, "{json}");
        }
    }

    #[test]
    fn a_backslash_without_a_known_escape_is_replaced() {
        for (json, repaired) in [
            (r#""\x41""#, "\"\u{FFFD}x41\""),
            (r#""\u12""#, "\"\u{FFFD}u12\""),
            (r#""\u+123""#, "\"\u{FFFD}u+123\""),
            (r#""\u12"34""#, "\"\u{FFFD}u12\"34\""),
            ("\"\\\n\"", "\"\u{FFFD}\u{FFFD}\""),
            (r#""\"#, "\"\u{FFFD}"),
        ] {
            assert_eq!(text(json.as_bytes()), repaired, "{json}");
        }
    }

    #[test]
    fn invalid_utf8_is_replaced_as_the_standard_library_does() {
        for bytes in [
            &b"\xff"[..],
            b"a\xc3",
            b"\xe2\x82x",
            b"\xf0\x9f\x98",
            b"\xf0\x9f\x98\x80\x80",
            b"\xed\xa0\x80",
            b"\xc3\xa9\xc3",
            b"\xc0\xaf",
            b"\xf5\x80\x80\x80",
        ] {
            let json = [b"\"", bytes, b"\""].concat();
            assert_eq!(text(&json), String::from_utf8_lossy(&json), "{bytes:?}");
        }
    }

    #[test]
    fn a_repaired_text_of_the_largest_size_is_returned_and_a_longer_one_is_not() {
        for (json, repaired) in [(&b"{}"[..], 2), (b"\"\x01\x01\"", 8), (b"[1e999,\"\xff\"]", 12)] {
            assert_eq!(repaired_within(json, repaired).map(|json| json.len()), Some(repaired));
            assert_eq!(repaired_within(json, repaired - 1), None);
        }
        let huge = [b"\"", &[0; 1_000_000][..], b"\""].concat();
        assert_eq!(repaired_within(&huge, 1_000_002), None);
    }

    #[test]
    fn numbers_out_of_range_become_null_and_others_stay() {
        let digits = "9".repeat(400);
        let json = format!(r#"[1e999,-1E+999,{digits},1e-999,0.{digits},1e,"1e999",308]"#);
        assert_eq!(text(json.as_bytes()), format!(r#"[null,null,null,1e-999,0.{digits},1e,"1e999",308]"#));
    }
}
