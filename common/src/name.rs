//! Owns the check of names that become part of a request path: namespaces and Leases.
//! Never checks whether an object of that name exists.

use thiserror::Error;

/// The text is not a DNS label.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a DNS label: 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends")]
pub struct NotADnsLabel(String);

/// Checks that a text is a DNS label (RFC 1123), which the name of a namespace or Lease must be.
///
/// # Errors
/// If it is not a DNS label.
pub fn dns_label(text: &str) -> Result<String, NotADnsLabel> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let valid = (1..=63).contains(&text.len())
        && text.bytes().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if valid { Ok(text.to_owned()) } else { Err(NotADnsLabel(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_label_has_lower_case_letters_digits_and_inner_hyphens() {
        for name in ["a", "0", "team-a", &"a".repeat(63)] {
            assert_eq!(dns_label(name).as_deref(), Ok(name));
        }
        for name in ["", "A", "a_b", "a.b", "a/b", "-a", "a-", "\u{e9}", &"a".repeat(64)] {
            assert_eq!(dns_label(name), Err(NotADnsLabel(name.to_owned())));
        }
    }
}
