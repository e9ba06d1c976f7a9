//! Owns the decode of one stored object: its identity, the parts that the operator uses, and the place of an error.
//! Never repeats content of an object in an error, and never decodes what the operator does not use.

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus};

/// The number of keys in the name of a place: down to it, all keys are field names of the schema. Below it, they may be
/// content.
const MAX_PLACE_DEPTH: usize = 3;

/// A type that is decoded from the JSON of one object.
pub trait Decode: Sized {
    /// Decodes an object. Only the fields that are needed are decoded, so that no other one can make it fail.
    ///
    /// # Errors
    /// If a needed field is missing or has another form. The error may contain content: [`decode`] returns one that does not.
    fn decode(json: &[u8]) -> Result<Self, serde_json::Error>;
}

/// The identity of an object. A part that is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectId {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
}

/// Returns identity and resource version of an object, also of one that cannot be decoded otherwise. What is missing is
/// empty.
pub fn identify(json: &[u8]) -> (ObjectId, String) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Envelope {
        metadata: Identity,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Identity {
        namespace: String,
        name: String,
        uid: String,
        resource_version: String,
    }
    let Envelope { metadata } = serde_json::from_slice(json).unwrap_or_default();
    let Identity { namespace, name, uid, resource_version } = metadata;
    (ObjectId { namespace, name, uid }, resource_version)
}

/// The metadata that the operator uses of a resource: the fields that [`WorkflowRunStop::decode`] decodes.
pub const STOP_METADATA: [&str; 7] =
    ["namespace", "name", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"];

impl Decode for WorkflowRunStop {
    /// Decodes a resource without the metadata that the operator does not use: annotations, labels, owners and managed
    /// fields may have any content and size.
    fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Stored {
            metadata: Metadata,
            spec: WorkflowRunStopSpec,
            status: Option<WorkflowRunStopStatus>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            namespace: Option<String>,
            name: Option<String>,
            uid: Option<String>,
            resource_version: Option<String>,
            generation: Option<i64>,
            creation_timestamp: Option<Time>,
            deletion_timestamp: Option<Time>,
        }
        let Stored { metadata, spec, status } = serde_json::from_slice(json)?;
        let Metadata { namespace, name, uid, resource_version, generation, creation_timestamp, deletion_timestamp } =
            metadata;
        let metadata = ObjectMeta {
            namespace,
            name,
            uid,
            resource_version,
            generation,
            creation_timestamp,
            deletion_timestamp,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, spec, status })
    }
}

/// An object that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// The object.
    pub id: ObjectId,
    /// The cause, without content of the object.
    pub why: String,
}

/// Decodes an object.
///
/// # Errors
/// If it cannot be decoded; the error contains no content of the object.
pub fn decode<T: Decode>(json: &[u8]) -> Result<T, Undecodable> {
    T::decode(json).map_err(|error| Undecodable { id: identify(json).0, why: why(json, &error) })
}

/// Returns why an object cannot be decoded: the field and the position of the error. It contains no content, unlike the
/// error itself.
fn why(json: &[u8], error: &serde_json::Error) -> String {
    let what = if error.is_data() { "has another form than expected" } else { "is not valid or nested too deeply" };
    match place(json, error) {
        place if place.is_empty() => format!("the JSON {what}, at byte {}", offset(json, error)),
        place => format!("{place} {what}, at byte {}", offset(json, error)),
    }
}

/// Returns the number of bytes before the place of an error.
fn offset(json: &[u8], error: &serde_json::Error) -> usize {
    let lines = json.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + error.column()).min(json.len())
}

/// Returns the field in which an error occurred, such as `status.error.data`; empty for the object itself.
fn place(json: &[u8], error: &serde_json::Error) -> String {
    let mut path = vec![];
    let (mut depth, mut string, mut last) = (0_usize, None, &[][..]);
    let read = &json[..offset(json, error)];
    let mut bytes = read.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (string, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(start), b'"') => (last, string) = (&read[start..at], None),
            (Some(_), _) => {}
            (None, b'"') => string = Some(at + 1),
            // The last string was a key.
            (None, b':') if depth <= MAX_PLACE_DEPTH => {
                path.truncate(depth.saturating_sub(1));
                path.push(last);
            }
            (None, b'{' | b'[') => depth += 1,
            (None, b'}' | b']') => {
                depth = depth.saturating_sub(1);
                path.truncate(depth);
            }
            (None, _) => {}
        }
    }
    let mut place = String::new();
    for key in path {
        let dot = if place.is_empty() { "" } else { "." };
        write!(place, "{dot}{}", String::from_utf8_lossy(key)).expect("writing to a string does not fail");
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn a_stop() -> Value {
        json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {
                "namespace": "ops", "name": "a", "uid": "u-1", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-11-26T06:00:00Z",
            },
            "spec": {"runId": "wf-1", "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}},
            "status": {"state": "running", "taskInstances": [{"id": "t-1"}]},
        })
    }

    /// Stands for a deeply nested value, which `Value` itself could not hold.
    const NESTED: &str = "nested";

    /// Returns the JSON of an object, with deeply nested arrays in place of [`NESTED`].
    fn text(object: &Value, depth: usize) -> String {
        let nested = format!("{}\"secret\"{}", "[".repeat(depth), "]".repeat(depth));
        object.to_string().replace(&format!("{NESTED:?}"), &nested)
    }

    fn decoded(object: &Value) -> Result<WorkflowRunStop, Undecodable> {
        decode(text(object, 10_000).as_bytes())
    }

    #[test]
    fn a_resource_is_decoded_as_by_the_api_crate_without_the_metadata_that_is_not_used() {
        let expected: WorkflowRunStop = serde_json::from_value(a_stop()).unwrap();
        let mut object = a_stop();
        object["metadata"]["labels"] = json!({"a": "b"});
        object["metadata"]["annotations"] = json!(NESTED);
        object["metadata"]["ownerReferences"] = json!("not a list");
        object["metadata"]["managedFields"] = json!([{"time": "9999-12-31T23:59:59Z", "fieldsV1": NESTED}]);
        assert_eq!(decoded(&object), Ok(expected));
    }

    #[test]
    fn an_object_that_cannot_be_decoded_is_identified_and_its_error_names_the_field_and_no_content() {
        let id = ObjectId { namespace: "ops".into(), name: "a".into(), uid: "u-1".into() };
        for (pointer, value, place) in [
            ("/status/error", json!({"data": NESTED}), "status.error.data is not valid or nested too deeply"),
            ("/status/taskInstances/0/id", json!(["secret"]), "status.taskInstances has another form than expected"),
            ("/spec/suspend", json!("secret"), "spec.suspend has another form than expected"),
            ("/spec/notAfter", json!("9999-12-31T23:59:59Z"), "spec.notAfter has another form than expected"),
            ("/spec/credentialsSecretRef", json!({"secret": 1}), "spec.credentialsSecretRef has another form"),
            ("/metadata/creationTimestamp", json!("secret"), "metadata.creationTimestamp has another form"),
            ("/metadata/generation", json!("secret"), "metadata.generation has another form than expected"),
            ("/spec", json!(null), "spec has another form than expected"),
        ] {
            let mut object = a_stop();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = object.pointer_mut(parent).unwrap();
            match parent.as_array_mut() {
                Some(_) => parent[0] = value,
                None => parent[key] = value,
            }
            let error = decoded(&object).unwrap_err();
            assert_eq!(error.id, id, "{pointer}");
            assert!(error.why.contains(place) && !error.why.contains("secret"), "{pointer}: {}", error.why);
            let lines = text(&object, 10_000).replace(',', ",\n");
            let lines = decode::<WorkflowRunStop>(lines.as_bytes());
            assert!(lines.unwrap_err().why.contains(place), "{pointer}");
        }
    }

    #[test]
    fn what_is_no_object_of_the_api_server_has_no_identity() {
        for json in ["", "[]", "{}", "<html>", r#"{"metadata": {"uid": 3}}"#, r#"{"metadata": null, "spec": {}}"#] {
            let error = decode::<WorkflowRunStop>(json.as_bytes()).unwrap_err();
            assert_eq!(error.id, ObjectId::default(), "{json}");
            assert!(error.why.contains("at byte"), "{json}: {}", error.why);
        }
    }

    #[test]
    fn identity_and_version_are_read_from_an_object_of_any_depth() {
        let mut object = a_stop();
        object["status"]["error"] = json!({"data": NESTED});
        let (id, version) = identify(text(&object, 10_000).as_bytes());
        assert_eq!((id.name.as_str(), version.as_str()), ("a", "7"));
    }
}
