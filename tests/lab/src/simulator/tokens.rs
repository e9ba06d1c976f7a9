//! Owns the valid bearer tokens, and issues tokens for client credentials.
//! Never accepts an issued token for another tenant.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Tokens {
    /// Valid for every tenant, without expiry.
    pub(super) fixed: HashSet<String>,
    pub(super) client: (String, String),
    pub(super) expires_in: u64,
    issued: HashMap<String, Issued>,
    count: usize,
}

#[derive(Debug)]
struct Issued {
    tenant: String,
    expires_at: Instant,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Tokens {
            fixed: HashSet::from(["good-token".to_owned()]),
            client: ("good-client".to_owned(), "good-secret".to_owned()),
            expires_in: 3600,
            issued: HashMap::new(),
            count: 0,
        }
    }

    /// Makes these the only valid tokens.
    pub(super) fn replace(&mut self, tokens: HashSet<String>) {
        self.fixed = tokens;
        self.issued.clear();
    }

    /// Issues a token for this tenant.
    pub(super) fn issue(&mut self, tenant: &str, now: Instant) -> String {
        self.count += 1;
        let token = format!("tok-{}", self.count);
        let issued = Issued { tenant: tenant.to_owned(), expires_at: now + Duration::from_secs(self.expires_in) };
        self.issued.insert(token.clone(), issued);
        token
    }

    /// Checks that a token is valid for this tenant.
    pub(super) fn is_valid(&self, token: &str, tenant: &str, now: Instant) -> bool {
        self.fixed.contains(token)
            || self.issued.get(token).is_some_and(|issued| issued.tenant == tenant && now < issued.expires_at)
    }
}

/// Returns the decoded fields of a form body. Credentials may contain any byte.
pub(super) fn form(body: &str) -> HashMap<String, String> {
    body.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
