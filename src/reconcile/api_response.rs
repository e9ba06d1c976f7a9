//! Owns reading one object from a response of the API server, as a stream: of the metadata, only what the operator uses
//! is held, whatever the object contains.
//! Never sends a request.

use std::pin::pin;

use futures::{AsyncBufRead, AsyncBufReadExt};
use workflow_run_stop_api::WorkflowRunStop;

use crate::json_stream::{Limits, Part, Piece, Splitter};
use crate::reconcile::store_error::StoreError;
use crate::stored_object::{STOP_METADATA, decode};

/// The number of bytes that are split at once.
const CHUNK: usize = 16 * 1024;

/// The limits of what is held of a resource. Its largest field is the status, and etcd stores at most 1.5 MiB by default.
/// The metadata that the operator uses are names, numbers and times.
const STOP_LIMITS: Limits = Limits { key: 1024, field: 4 * 1024 * 1024, child: 1024 };

/// Splits an object while it arrives, and calls `each` with its parts until it returns false. Returns false then, or if
/// the response is not one complete JSON object.
///
/// # Errors
/// If the connection broke.
pub async fn split(
    body: impl AsyncBufRead,
    mut splitter: Splitter,
    mut each: impl FnMut(Part<'_>) -> bool,
) -> Result<bool, kube::Error> {
    let mut body = pin!(body);
    loop {
        let bytes = body.fill_buf().await.map_err(kube::Error::ReadEvents)?;
        if bytes.is_empty() {
            return Ok(splitter.finish().is_ok());
        }
        let bytes = &bytes[..bytes.len().min(CHUNK)];
        let mut goes_on = true;
        if splitter.push(bytes, &mut |part| goes_on = goes_on && each(part)).is_err() || !goes_on {
            return Ok(false);
        }
        let read = bytes.len();
        body.as_mut().consume(read);
    }
}

/// Reads a resource, and decodes only what the operator uses of it: nothing else can make it fail.
///
/// # Errors
/// If the connection broke, or the response is not a resource that can be decoded.
pub async fn stop(body: impl AsyncBufRead) -> Result<WorkflowRunStop, StoreError> {
    let (mut metadata, mut fields) = (vec![], vec![]);
    let each = |part: Part<'_>| {
        let (of, used, key, value) = match part {
            Part::Field { key, value } => (&mut fields, &["spec", "status"][..], key, value),
            Part::Member { field: _, key, value } => (&mut metadata, &STOP_METADATA[..], key, value),
            Part::Start { .. } | Part::Item { .. } => return true,
        };
        let is_used = key.text().is_some_and(|key| used.contains(&&*key));
        match (is_used, key, value) {
            (false, ..) => true,
            (true, Piece::Whole(key), Piece::Whole(value)) => {
                of.extend_from_slice(b",");
                of.extend_from_slice(key);
                of.extend_from_slice(b":");
                of.extend_from_slice(value);
                true
            }
            (true, ..) => false,
        }
    };
    if !split(body, Splitter::new(&["metadata"], STOP_LIMITS), each).await? {
        return Err(StoreError::Undecodable("it is not a complete JSON object, or too large".to_owned()));
    }
    let metadata = metadata.strip_prefix(b",").unwrap_or_default();
    let json = [b"{\"metadata\":{", metadata, b"}", &fields, b"}"].concat();
    decode(&json).map_err(|error| StoreError::Undecodable(error.why))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use futures::{TryStreamExt, executor::block_on, stream};
    use serde_json::{Value, json};

    /// Returns a body that arrives in chunks of this size.
    pub fn in_chunks(text: &str, size: usize) -> impl AsyncBufRead + Send + use<> {
        let chunks: Vec<_> = text.as_bytes().chunks(size).map(|chunk| Ok(chunk.to_vec())).collect();
        stream::iter(chunks).into_async_read()
    }

    fn read(text: &str, size: usize) -> Result<WorkflowRunStop, StoreError> {
        block_on(stop(in_chunks(text, size)))
    }

    fn a_stop(metadata: &Value) -> Value {
        json!({
            "kind": "WorkflowRunStop",
            "metadata": metadata,
            "spec": {"runId": "wf-1", "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}},
            "status": {"state": "running", "taskInstances": [{"id": "t-1"}]},
        })
    }

    #[test]
    fn a_resource_is_read_without_the_metadata_that_is_not_used() {
        let used = json!({
            "namespace": "ops", "name": "a", "uid": "u-1", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-11-26T06:00:00Z",
        });
        let expected: WorkflowRunStop = serde_json::from_value(a_stop(&used)).unwrap();
        let mut all = used.clone();
        all["annotations"] = json!({"large": "x".repeat(2_000_000), "status": {"state": "no"}});
        all["finalizers"] = json!(["x".repeat(2_000_000)]);
        for size in [1000, usize::MAX] {
            assert_eq!(read(&a_stop(&all).to_string(), size).unwrap(), expected, "{size}");
        }
        assert_eq!(read(&a_stop(&used).to_string(), 1).unwrap(), expected);
    }

    #[test]
    fn what_is_no_whole_resource_is_an_error_that_repeats_nothing_of_it() {
        let whole = a_stop(&json!({"name": "hush"})).to_string();
        let (cut, text) = (&whole[..whole.len() - 1], whole.replace(r#""wf-1""#, r#"["hush"]"#));
        let large = whole.replace("running", &"x".repeat(5 * 1024 * 1024));
        for text in ["", "[]", "hush", "<html>hush", "{}", cut, &text, &large] {
            let Err(error) = read(text, 100_000) else { panic!("{text}") };
            assert!(matches!(error, StoreError::Undecodable(_)), "{error}");
            assert!(!format!("{error} {error:?}").contains("hush"));
        }
    }
}
