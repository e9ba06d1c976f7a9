//! Owns the splitting of a JSON object that arrives in chunks: into its fields, and some fields into their children.
//! Never holds more than one key and one value, recurses, or checks what is inside of a value.
//!
//! Only the structure of the outer two levels is checked. Who decodes a value has to validate it: if the structure and
//! every value are valid, the whole text is valid JSON. A value that is too large is not validated at all.

use std::borrow::Cow;

use thiserror::Error;

/// The largest buffer that is kept for the next value, in bytes.
const KEPT_CAPACITY: usize = 4096;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The largest sizes of what is held, in bytes of JSON, including quotes and escapes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A key.
    pub key: usize,
    /// The value of a field of the object.
    pub field: usize,
    /// A child of a field: an item of an array or the value of a member.
    pub child: usize,
}

/// A part of the object. Parts come in the order of the text, and a duplicate key gives a part each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A field, except one that is split.
    Field {
        /// The key, which is a JSON string.
        key: Piece<'a>,
        /// The value.
        value: Piece<'a>,
    },
    /// The start of a field that is split: an array or an object that may be empty. Its children follow.
    Start {
        /// The name of the field.
        field: &'static str,
        /// The type of its value.
        container: Container,
    },
    /// An item of an array that is split.
    Item {
        /// The name of the field.
        field: &'static str,
        /// The item.
        value: Piece<'a>,
    },
    /// A member of an object that is split.
    Member {
        /// The name of the field.
        field: &'static str,
        /// The key, which is a JSON string.
        key: Piece<'a>,
        /// The value.
        value: Piece<'a>,
    },
}

/// A key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The complete JSON text without white space around it. It may be invalid inside.
    Whole(&'a [u8]),
    /// It is larger than its limit, and its bytes were skipped.
    TooLarge,
}

impl<'a> Piece<'a> {
    /// Returns the JSON text; `None` if it was too large.
    pub fn json(self) -> Option<&'a [u8]> {
        match self {
            Self::Whole(json) => Some(json),
            Self::TooLarge => None,
        }
    }

    /// Decodes a JSON string, such as a key. Returns `None` if it was too large, or is not a valid string.
    pub fn text(self) -> Option<Cow<'a, str>> {
        let json = self.json()?;
        // Without an escape, nothing is copied.
        match serde_json::from_slice::<&str>(json) {
            Ok(text) => Some(text.into()),
            Err(_) => serde_json::from_slice::<String>(json).ok().map(Cow::Owned),
        }
    }
}

/// The type of a value that has children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

/// The text is not a JSON object.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the text is not a JSON object")]
pub struct Malformed;

/// Splits a JSON object that arrives in chunks. A byte order mark before it is skipped.
pub struct Splitter {
    /// The fields that are split into their children, if their value is an array or an object.
    nested: &'static [&'static str],
    limits: Limits,
    state: State,
    /// The field that is being split.
    inside: Option<(&'static str, Container)>,
    key: Token,
    value: Token,
}

#[derive(Clone, Copy)]
enum State {
    /// Before the object, after this number of bytes of a byte order mark.
    Before(usize),
    /// After an opening bracket: a child or the closing bracket.
    First,
    /// After a comma: a child.
    Next,
    /// In a key.
    Key,
    /// After a key.
    Colon,
    /// Before the value of a key.
    BeforeValue,
    /// In a value.
    Value,
    /// After a value: a comma or the closing bracket.
    After,
    /// After the object.
    End,
}

impl Splitter {
    /// Creates a splitter. The values of the fields in `nested` are split into their children.
    pub fn new(nested: &'static [&'static str], limits: Limits) -> Self {
        let state = State::Before(0);
        Self { nested, limits, state, inside: None, key: Token::default(), value: Token::default() }
    }

    /// Takes the next bytes, and calls `emit` for each part that is complete.
    ///
    /// # Errors
    /// If the text is not an object. Then nothing more may be pushed.
    pub fn push(&mut self, chunk: &[u8], emit: &mut impl FnMut(Part<'_>)) -> Result<(), Malformed> {
        let mut rest = chunk;
        while let Some((byte, after)) = rest.split_first() {
            rest = match self.state {
                State::Key => self.in_key(rest),
                State::Value => self.in_value(rest, emit)?,
                // These start a token, which includes this byte.
                State::BeforeValue | State::First | State::Next if !is_space(*byte) => {
                    if self.starts_token(*byte, emit)? { rest } else { after }
                }
                State::Before(_)
                | State::First
                | State::Next
                | State::Colon
                | State::BeforeValue
                | State::After
                | State::End => {
                    self.between(*byte)?;
                    after
                }
            };
        }
        Ok(())
    }

    /// Returns the number of bytes of an incomplete value that are held. The buffer for them is at most as large as the
    /// next power of two.
    pub fn held(&self) -> usize {
        self.value.held.len()
    }

    /// Changes the limit of all values, also of the incomplete one.
    pub fn limit_values(&mut self, bytes: usize) {
        self.limits = Limits { key: self.limits.key, field: bytes, child: bytes };
        self.value.limit = bytes;
    }

    /// Ends the text.
    ///
    /// # Errors
    /// If the object is not complete, or there was none.
    pub fn finish(self) -> Result<(), Malformed> {
        if matches!(self.state, State::End) { Ok(()) } else { Err(Malformed) }
    }

    /// Returns the type of the array or object whose children come next.
    fn container(&self) -> Container {
        self.inside.map_or(Container::Object, |(_, container)| container)
    }

    /// Takes a byte between tokens.
    fn between(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match (self.state, byte) {
            (State::Before(marks), byte) if BYTE_ORDER_MARK.get(marks) == Some(&byte) => State::Before(marks + 1),
            // A part of a mark is not followed by anything else.
            (State::Before(0 | 3), b'{') => State::First,
            (State::Before(0 | 3), byte) if is_space(byte) => State::Before(BYTE_ORDER_MARK.len()),
            (State::Colon, b':') => State::BeforeValue,
            (State::After, b',') => State::Next,
            (State::After, byte) if !is_space(byte) => return self.close(byte),
            (State::Colon | State::First | State::Next | State::BeforeValue | State::After | State::End, byte)
                if is_space(byte) =>
            {
                return Ok(());
            }
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), Malformed> {
        match (self.container(), byte) {
            (Container::Array, b']') | (Container::Object, b'}') => {
                self.state = if self.inside.take().is_some() { State::After } else { State::End };
                Ok(())
            }
            _ => Err(Malformed),
        }
    }

    /// Starts the key or value that begins with this byte. Returns false if it is a bracket instead.
    fn starts_token(&mut self, byte: u8, emit: &mut impl FnMut(Part<'_>)) -> Result<bool, Malformed> {
        let is_value = matches!(self.state, State::BeforeValue) || self.container() == Container::Array;
        match byte {
            b']' | b'}' if matches!(self.state, State::First) => self.close(byte).map(|()| false),
            b']' | b'}' | b',' | b':' => Err(Malformed),
            b'[' | b'{' if is_value && self.enters(byte, emit) => Ok(false),
            _ if is_value => {
                self.value.start(if self.inside.is_some() { self.limits.child } else { self.limits.field });
                self.state = State::Value;
                Ok(true)
            }
            b'"' => {
                self.key.start(self.limits.key);
                self.state = State::Key;
                Ok(true)
            }
            _ => Err(Malformed),
        }
    }

    /// Enters the array or object that opens with this byte, if its field is split.
    fn enters(&mut self, byte: u8, emit: &mut impl FnMut(Part<'_>)) -> bool {
        if self.inside.is_some() {
            return false;
        }
        let key = self.key.whole().text();
        let Some(field) = self.nested.iter().copied().find(|field| key.as_deref() == Some(*field)) else {
            return false;
        };
        let container = if byte == b'[' { Container::Array } else { Container::Object };
        emit(Part::Start { field, container });
        self.inside = Some((field, container));
        self.state = State::First;
        true
    }

    fn in_key<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = self.key.end_in(bytes);
        let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        // A key is held until its value is complete.
        self.key.hold(part);
        if end.is_some() {
            self.state = State::Colon;
        }
        rest
    }

    fn in_value<'a>(&mut self, bytes: &'a [u8], emit: &mut impl FnMut(Part<'_>)) -> Result<&'a [u8], Malformed> {
        let Some(end) = self.value.end_in(bytes) else {
            self.value.hold(bytes);
            return Ok(&[]);
        };
        let (part, rest) = bytes.split_at(end);
        let (key, value) = (self.key.whole(), self.value.complete(part));
        emit(match self.inside {
            None => Part::Field { key, value },
            Some((field, Container::Array)) => Part::Item { field, value },
            Some((field, Container::Object)) => Part::Member { field, key, value },
        });
        self.value.release();
        self.state = State::After;
        Ok(rest)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// A key or value that may arrive in several chunks.
#[derive(Default)]
struct Token {
    limit: usize,
    /// The bytes so far; none if there are too many.
    held: Vec<u8>,
    too_large: bool,
    /// The number of open brackets.
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Token {
    fn start(&mut self, limit: usize) {
        let mut held = std::mem::take(&mut self.held);
        held.clear();
        *self = Self { limit, held, ..Self::default() };
    }

    fn release(&mut self) {
        if KEPT_CAPACITY < self.held.capacity() {
            self.held = vec![];
        }
        self.held.clear();
    }

    /// Returns the position of the token's end; `None` if it is not in these bytes.
    fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_text = false;
                        if self.depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'[' | b'{' => self.depth += 1,
                // Ends a number or word; the byte is not a part of it.
                b']' | b'}' | b',' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => return Some(at),
                b']' | b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Holds the next bytes, unless they are too many.
    fn hold(&mut self, bytes: &[u8]) {
        let all = self.held.len() + bytes.len();
        self.too_large |= self.limit < all;
        if self.too_large {
            self.held = vec![];
            return;
        }
        if self.held.capacity() < all {
            self.held.reserve_exact(all.next_power_of_two().min(self.limit) - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Returns the token whose last bytes are these. Copies nothing if they are the only ones.
    fn complete<'a>(&'a mut self, last: &'a [u8]) -> Piece<'a> {
        if self.held.is_empty() && !self.too_large && last.len() <= self.limit {
            return Piece::Whole(last);
        }
        self.hold(last);
        self.whole()
    }

    fn whole(&self) -> Piece<'_> {
        if self.too_large { Piece::TooLarge } else { Piece::Whole(&self.held) }
    }
}
