//! Owns reading a Secret: its response is decoded as a stream, so that only the keys of the credentials are held, for a
//! second.
//! Never repeats content in an error.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::AsyncBufRead;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Client, Resource, api::GetParams, core::Request};
use tokio::time::Instant;

use crate::amperity::credentials::{MAX_VALUE, SecretData, SecretValue};
use crate::json_stream::{Limits, Part, Piece, Splitter};
use crate::reconcile::{
    api_response,
    store_error::{StoreError, optional, within},
};

/// The content of a Secret that credentials are made of.
#[derive(Clone)]
pub struct SecretContent {
    /// Uid and resource version.
    pub version: (String, String),
    /// The values of the known keys.
    pub data: Arc<SecretData>,
}

/// The limits of what is held at once: the longest key of a Secret has 253 characters, and base64 makes four bytes of
/// three.
const LIMITS: Limits = Limits { key: 1024, field: 0, child: MAX_VALUE.div_ceil(3) * 4 + 2 };

/// The time for which a Secret is cached: a thousand stops with one Secret read it once.
const FRESH: Duration = Duration::from_secs(1);

/// The Secrets that were read lately.
#[derive(Default)]
pub struct SecretCache(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    /// By namespace and name.
    slots: HashMap<(String, String), Slot>,
    /// The time at which outdated ones were removed.
    pruned: Option<Instant>,
}

/// The time at which a Secret was read, and its content; locked while it is read.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Option<SecretContent>)>>>;

impl SecretCache {
    /// Returns a Secret as it was read within the last second, or else with `read`, which also returns the time at which
    /// it began. Others that need the Secret wait meanwhile.
    ///
    /// # Errors
    /// As `read`.
    pub async fn get_or(
        &self,
        namespace: &str,
        name: &str,
        read: impl Future<Output = Result<(Instant, Option<SecretContent>), StoreError>>,
    ) -> Result<Option<SecretContent>, StoreError> {
        let slot = self.0.lock().expect("nothing panics while it holds this lock").slot(namespace, name);
        let mut known = slot.lock().await;
        if let Some((began, content)) = &*known
            && began.elapsed() < FRESH
        {
            return Ok(content.clone());
        }
        let (began, content) = read.await?;
        *known = Some((began, content.clone()));
        Ok(content)
    }
}

impl Slots {
    fn slot(&mut self, namespace: &str, name: &str) -> Slot {
        let now = Instant::now();
        if self.pruned.is_none_or(|pruned| FRESH <= now - pruned) {
            self.pruned = Some(now);
            let fresh = |slot: &Slot| match slot.try_lock() {
                Ok(known) => known.as_ref().is_some_and(|(began, _)| now - *began < FRESH),
                Err(_) => true,
            };
            self.slots.retain(|_, slot| 1 < Arc::strong_count(slot) || fresh(slot));
        }
        self.slots.entry((namespace.to_owned(), name.to_owned())).or_default().clone()
    }
}

/// Returns a Secret as it is stored now; `None` if there is none.
///
/// # Errors
/// If the request to the API server fails, the operator may not read the Secret, or the answer is not a Secret.
pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Option<SecretContent>, StoreError> {
    let secret = within(Box::pin(async {
        let request = Request::new(Secret::url_path(&(), Some(namespace))).get(name, &GetParams::default());
        let body = client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
        decode(body).await
    }));
    optional(secret.await)
}

async fn decode(body: impl AsyncBufRead) -> Result<SecretContent, StoreError> {
    let (mut version, mut data) = ((String::new(), String::new()), SecretData::default());
    let each = |part: Part<'_>| {
        let Part::Member { field, key, value } = part else { return true };
        let Some(key) = key.text() else { return true };
        match (field, &*key) {
            ("metadata", "uid") => version.0 = text(value),
            ("metadata", "resourceVersion") => version.1 = text(value),
            ("data", key) if SecretData::KEYS.contains(&key) => match bytes_of(value) {
                Some(value) => data.insert(key, value),
                None => return false,
            },
            _ => {}
        }
        true
    };
    let is_whole = api_response::split(body, Splitter::new(&["data", "metadata"], LIMITS), each).await?;
    // Without an identity, it is something else that is an object.
    if !is_whole || version.0.is_empty() || version.1.is_empty() {
        return Err(StoreError::NotASecret);
    }
    Ok(SecretContent { version, data: Arc::new(data) })
}

fn text(value: Piece<'_>) -> String {
    value.text().map(Into::into).unwrap_or_default()
}

/// Returns the value of a key; `None` if it is not base64.
fn bytes_of(value: Piece<'_>) -> Option<SecretValue> {
    let Some(json) = value.json() else { return Some(SecretValue::TooLarge) };
    let ByteString(bytes) = serde_json::from_slice(json).ok()?;
    Some(if bytes.len() <= MAX_VALUE { SecretValue::Bytes(bytes) } else { SecretValue::TooLarge })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::credentials::Credentials;
    use crate::reconcile::api_response::tests::in_chunks;
    use futures::executor::block_on;
    use serde_json::{Value, json};

    /// Decodes a text that arrives in chunks of this size.
    fn decoded(text: &str, size: usize) -> Result<SecretContent, StoreError> {
        block_on(decode(in_chunks(text, size)))
    }

    fn base64(text: &str) -> Value {
        serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap()
    }

    fn a_secret(data: &Value) -> Value {
        json!({
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {
                "name": "amperity", "uid": "u-1", "resourceVersion": "7", "annotations": {"uid": "no"},
                "managedFields": [{"time": "9999-12-31T23:59:59Z", "fieldsV1": "x".repeat(300_000)}],
            },
            "data": data,
            "type": "Opaque",
        })
    }

    #[test]
    fn the_known_keys_are_read_from_a_secret_of_any_size_and_content() {
        let ca = base64(&"x".repeat(700_000));
        let data =
            json!({"ca.crt": ca, "clientId": base64("id"), "clientSecret": base64("hush"), "nested": {"token": 1}});
        for size in [1, 100, 16_384, usize::MAX] {
            let SecretContent { version, data } = decoded(&a_secret(&data).to_string(), size).unwrap();
            assert_eq!(version, ("u-1".to_owned(), "7".to_owned()));
            let Ok(Credentials::Client(client)) = Credentials::parse(&data) else { panic!("{size}") };
            assert_eq!((client.id.as_str(), client.secret.as_str(), client.token_url), ("id", "hush", None));
        }
    }

    #[test]
    fn a_value_of_16_kib_is_read_and_a_larger_one_is_refused_by_name() {
        for (length, error) in [(MAX_VALUE, None), (MAX_VALUE + 1, Some("token")), (1_000_000, Some("token"))] {
            let secret = a_secret(&json!({"token": base64(&"x".repeat(length))}));
            for size in [1000, usize::MAX] {
                let data = decoded(&secret.to_string(), size).unwrap().data;
                let refused = Credentials::parse(&data).err().map(|error| error.to_string());
                assert_eq!(refused.is_some(), error.is_some(), "{length}: {refused:?}");
                assert!(refused.is_none_or(|text| text.contains("token") && text.contains("16 KiB")));
            }
        }
    }

    #[test]
    fn a_secret_without_data_has_no_keys() {
        for data in [json!(null), json!({}), json!("hush")] {
            let data = decoded(&a_secret(&data).to_string(), 100).unwrap().data;
            assert!(Credentials::parse(&data).is_err());
        }
    }

    #[test]
    fn what_is_no_whole_secret_is_an_error_that_repeats_nothing_of_it() {
        let whole = a_secret(&json!({"token": base64("hush")})).to_string();
        let (no_uid, no_base64) = (whole.replace("u-1", ""), whole.replace(base64("hush").as_str().unwrap(), "hush!"));
        for text in ["", "[]", "hush", "<html>hush", &whole[..whole.len() - 1], &no_uid, &no_base64] {
            let Err(error) = decoded(text, 100) else { panic!("{text}") };
            assert!(matches!(error, StoreError::NotASecret), "{text}");
            assert!(!format!("{error} {error:?}").contains("hush"));
        }
    }
}
