//! Owns the content of a response's body: gzip is decoded while it arrives.
//! Never holds more than a small part of it.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header::CONTENT_ENCODING};

/// Decodes the content of one body.
pub enum Content {
    /// It is not encoded, or in a way that was not asked for.
    Plain,
    /// It is compressed. There is no decoder before the first bytes: a body may be empty nevertheless.
    Gzip(Option<Box<MultiGzDecoder<Vec<u8>>>>),
}

impl Content {
    /// Returns the decoder for a response with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
        match encoding {
            Some(b"gzip" | b"x-gzip") => Self::Gzip(None),
            Some(_) | None => Self::Plain,
        }
    }

    /// Decodes the next bytes, or some of them. Returns how many, and the content that they are: 32 KiB or less if it was
    /// compressed.
    ///
    /// # Errors
    /// If they are not of the compressed format.
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> io::Result<(usize, Cow<'a, [u8]>)> {
        match self {
            Self::Plain => Ok((bytes.len(), Cow::Borrowed(bytes))),
            Self::Gzip(decoder) => {
                let decoder = decoder.get_or_insert_with(|| Box::new(MultiGzDecoder::new(vec![])));
                let read = decoder.write(bytes)?;
                if read == 0 && !bytes.is_empty() {
                    return Err(io::Error::other("the compressed content does not go on"));
                }
                Ok((read, Cow::Owned(std::mem::take(decoder.get_mut()))))
            }
        }
    }

    /// Ends the content. Returns the rest of it.
    ///
    /// # Errors
    /// If it is not complete.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain | Self::Gzip(None) => Ok(vec![]),
            Self::Gzip(Some(decoder)) => decoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn compressed() -> Content {
        Content::of(&HeaderMap::from_iter([(CONTENT_ENCODING, "gzip".parse().unwrap())]))
    }

    /// Decodes content that arrives in chunks of this size. Returns it with the size of the largest part.
    fn decoded(mut content: Content, bytes: &[u8], size: usize) -> io::Result<(Vec<u8>, usize)> {
        let (mut all, mut largest) = (vec![], 0);
        for mut chunk in bytes.chunks(size) {
            while !chunk.is_empty() {
                let (read, part) = content.decode(chunk)?;
                largest = largest.max(part.len());
                all.extend_from_slice(&part);
                chunk = &chunk[read..];
            }
        }
        all.extend(content.finish()?);
        Ok((all, largest))
    }

    #[test]
    fn gzip_is_decoded_in_small_parts_wherever_the_chunks_end() {
        let text = b"0123456789".repeat(1_000_000);
        for size in [1, 1000, usize::MAX] {
            let (all, largest) = decoded(compressed(), &gzip(&text), size).unwrap();
            assert!(all == text && largest <= 64 * 1024, "{size}: {largest}");
        }
        assert_eq!(decoded(compressed(), b"", 1).unwrap().0, b"");
        let twice = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(decoded(compressed(), &twice, 7).unwrap().0, b"ab");
    }

    #[test]
    fn gzip_that_is_damaged_or_breaks_off_is_an_error() {
        let whole = gzip(&b"0123456789".repeat(1000));
        assert!(decoded(compressed(), &whole[..whole.len() - 9], 100).is_err());
        assert!(decoded(compressed(), b"<html>", 100).is_err());
    }

    #[test]
    fn other_content_stays_as_it_is() {
        let other = HeaderMap::from_iter([(CONTENT_ENCODING, "br".parse().unwrap())]);
        for headers in [HeaderMap::new(), other] {
            assert_eq!(decoded(Content::of(&headers), b"abc", 2).unwrap().0, b"abc");
        }
    }
}
