//! Owns the decoding of the API's JSON bodies while they arrive, and the memory for the value that is incomplete.
//! Never holds a whole body.

use std::time::Duration;

use serde::de::MapAccess;
use serde_json::Number;

use crate::amperity::{
    answer_memory::{Held, Share},
    body_fields::{BodyFields, NESTED, integer},
    json_part::{MAX_VALUE_BYTES, field},
    lenient_json::{AnyNumber, Fields, WholeText, skip, value},
    reply::{Body, Shape},
};
use crate::json_stream::{Limits, Part, Splitter};

/// The largest key that can be a known one, in bytes of JSON: each character may be escaped.
const MAX_KEY_BYTES: usize = 256;

/// The largest token, in bytes of JSON: no server accepts so large a header.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// The part of an incomplete value that is not counted in the share, in bytes, so that every field that decides about the
/// class of an answer is decoded even if no memory is free.
const UNCOUNTED_VALUE_BYTES: usize = 16 * 1024;

/// The size of the parts in which a chunk is decoded, in bytes: memory is taken for at most one more than is needed.
const CHUNK_BYTES: usize = 16 * 1024;

/// Decodes a body that arrives in chunks, or only its shape if it is not a JSON object. A run needs only `id` and `state`:
/// the other fields vary between <https://docs.amperity.com/api/endpoint_post_workflows_stop.html> and
/// <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html>, and none of them can make the run undecodable.
///
/// A value that is larger than [`MAX_VALUE_BYTES`] or gets no share of the memory is absent, and a task is omitted.
pub struct BodyDecoder {
    splitter: Splitter,
    /// `None` once the text is not a JSON object.
    fields: Option<BodyFields>,
    share: Share,
    /// What the share has for an incomplete value, in bytes.
    value_share: usize,
    /// True while there was only white space.
    blank: bool,
}

impl BodyDecoder {
    /// Creates a decoder that takes memory from this share.
    pub fn new(share: Share) -> Self {
        let limits = Limits { key: MAX_KEY_BYTES, field: MAX_VALUE_BYTES, child: MAX_VALUE_BYTES };
        let (splitter, fields) = (Splitter::new(NESTED, limits), Some(BodyFields::default()));
        Self { splitter, fields, share, value_share: 0, blank: true }
    }

    /// Decodes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        self.blank &= chunk.trim_ascii().is_empty();
        for chunk in chunk.chunks(CHUNK_BYTES) {
            self.push_chunk(chunk);
        }
    }

    fn push_chunk(&mut self, chunk: &[u8]) {
        self.share_value(chunk.len());
        let Self { splitter, fields: Some(fields), share, .. } = self else { return };
        let mut decoded = Ok(());
        let split = splitter.push(chunk, &mut |part| {
            if decoded.is_ok() {
                decoded = fields.add(part, share);
            }
        });
        if split.and(decoded).is_err() {
            *self = Self { fields: None, blank: self.blank, ..Self::new(Share::default()) };
        }
        self.share_value(0);
    }

    /// Takes or returns memory for the incomplete value after so many more bytes.
    fn share_value(&mut self, more: usize) {
        let needed = (self.splitter.held() + more).next_power_of_two().min(MAX_VALUE_BYTES);
        let needed = needed.saturating_sub(UNCOUNTED_VALUE_BYTES);
        if needed <= self.value_share {
            self.share.put_back(self.value_share - needed);
            self.value_share = needed;
        } else if self.share.take(needed - self.value_share) {
            self.value_share = needed;
        }
        self.splitter.hold_at_most(UNCOUNTED_VALUE_BYTES + self.value_share);
    }

    /// Returns the decoded body.
    pub fn finish(mut self) -> Body {
        self.share.put_back(self.value_share);
        let Some(fields) = self.fields.filter(|_| self.splitter.finish().is_ok()) else {
            let shape = if self.blank { Shape::Empty } else { Shape::Other };
            return Body { shape, ..Body::default() };
        };
        fields.into_body(Held::from(self.share))
    }
}

/// Decodes the response of a token endpoint that arrives in chunks.
pub struct TokenDecoder {
    splitter: Splitter,
    /// `None` once the text is not a JSON object.
    fields: Option<TokenResponse>,
}

impl Default for TokenDecoder {
    fn default() -> Self {
        let limits = Limits { key: MAX_KEY_BYTES, field: MAX_TOKEN_BYTES, child: 0 };
        Self { splitter: Splitter::new(&[], limits), fields: Some(TokenResponse::default()) }
    }
}

impl TokenDecoder {
    /// Decodes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { splitter, fields: Some(fields) } = self else { return };
        let mut decoded = Ok(());
        let split = splitter.push(chunk, &mut |part| {
            if let (Ok(()), Part::Field { key, value }) = (decoded, part) {
                decoded = field(fields, key, value);
            }
        });
        if split.and(decoded).is_err() {
            self.fields = None;
        }
    }

    /// Returns the access token and its lifetime: one hour if the response has none, as in the example of
    /// <https://docs.amperity.com/api/authentication.html>.
    pub fn finish(self) -> Option<(String, Duration)> {
        self.splitter.finish().ok()?;
        let TokenResponse { access_token, expires_in } = self.fields?;
        // A token that had to be repaired is not the one that was issued.
        let token = access_token.filter(|token| !token.contains(char::REPLACEMENT_CHARACTER))?;
        let seconds = expires_in.as_ref().map(integer).and_then(|seconds| u64::try_from(seconds).ok());
        // At most a day, so that an absurd number cannot overflow an instant.
        Some((token, Duration::from_secs(seconds.unwrap_or(3600).min(86_400))))
    }
}

/// The fields of a response of the token endpoint.
#[derive(Default)]
struct TokenResponse {
    access_token: Option<String>,
    expires_in: Option<Number>,
}

impl Fields for TokenResponse {
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "access_token" => self.access_token = value(map, WholeText)?,
            "expires_in" => self.expires_in = value(map, AnyNumber)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}
