//! Owns what `kubectl stop-run` says where the API server refuses something.
//! Never repeats a whole answer: only what is wrong and what to do.

use kube::Error;

use crate::amperity::http::reason;

/// What the API server says of the stop of this run, for a person.
pub fn words(error: &Error, run: &str) -> String {
    let Error::Api(status) = error else { return format!("{run}: {}", reason(error)) };
    let unknown_kind = status.code == 404 && !status.message.contains("namespaces \"");
    if unknown_kind {
        return format!(
            "{run}: this cluster knows no WorkflowRunStops; install the operator with its CustomResourceDefinition"
        );
    }
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes: Vec<_> = causes.map(|cause| format!("{}: {}", cause.field, inner(&cause.message))).collect();
    match causes.as_slice() {
        // Forbidden, the namespace is missing, the name is taken: one sentence says it.
        [] => format!("{run}: {}", status.message),
        causes => format!("{run}: {}", causes.join("\n  ")),
    }
}

/// The message of a rule, without what the API server puts before it.
fn inner(message: &str) -> &str {
    message.rsplit_once("\": ").map_or(message, |(_, inner)| inner)
}
