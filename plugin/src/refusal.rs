//! Owns what is said when the cluster refuses something: what is wrong, and what to do.
//! Never shows a raw answer.

use kube::core::Status;

use crate::words::one_line;

/// Where a field of the spec comes from.
const FLAGS: &[(&str, &str)] = &[
    ("spec.runId", "RUN"),
    ("spec.tenant", "--tenant"),
    ("spec.credentialsSecretRef.name", "--credentials"),
    ("spec.baseUrl", "--base-url"),
    ("spec.stopDeadlineSeconds", "--stop-deadline"),
    ("spec.notAfter", "--not-after"),
    ("spec.reason", "--reason"),
    ("spec.followTimeoutSeconds", "--follow-timeout"),
    ("spec.ttlSecondsAfterFinished", "--ttl"),
    ("metadata.name", "--name"),
];

/// Why the cluster refused to do this (`create`, `watch`) in that namespace.
pub fn explain(status: &Status, verb: &str, namespace: &str) -> String {
    let message = one_line(&status.message);
    let details = status.details.as_ref();
    match status.code {
        401 => "the cluster does not know who you are (401 Unauthorized): log in to it again, or check the user in the kubeconfig".to_owned(),
        403 if message.contains(" cannot ") => format!(
            "{message}\nAsk whoever administers the cluster for a Role that lets you {verb} workflowrunstops.workflow.amperity.com in the namespace {namespace}."
        ),
        404 if details.is_some_and(|details| details.kind == "namespaces") => {
            format!("{message}\nCreate it, or name another one with -n.")
        }
        404 => "the cluster knows no WorkflowRunStops: install the CustomResourceDefinition first, which comes with the operator \
                (kubectl apply --server-side -f crds/workflowrunstops.yaml)"
            .to_owned(),
        409 if status.is_already_exists() => {
            format!("{message}\nA stop is a record of its own: choose another --name, or leave it out.")
        }
        400 if message.contains("strict decoding error") => format!(
            "{message}\nThe CustomResourceDefinition in the cluster is not of this plugin's version: upgrade the older one of them."
        ),
        422 => match details.map(|details| &details.causes).filter(|causes| !causes.is_empty()) {
            Some(causes) => {
                let lines: Vec<_> = causes.iter().map(|cause| why(&cause.field, &cause.message)).collect();
                format!("the cluster refuses what is asked for:\n{}", lines.join("\n"))
            }
            None => message,
        },
        _ if message.is_empty() => format!("the cluster answered with status {}", status.code),
        _ => message,
    }
}

/// One reason for a refusal, with the flag that the value came from.
fn why(field: &str, message: &str) -> String {
    let flag = FLAGS.iter().find(|(known, _)| *known == field).map(|(_, flag)| *flag);
    let name = flag.map_or_else(|| field.to_owned(), |flag| format!("{flag} ({field})"));
    one_line(&format!("  {name}: {}", without_value(message)))
}

/// `Invalid value: "x": what is wrong` says nothing by its beginning; for a rule it is only the value's type.
fn without_value(message: &str) -> &str {
    let Some(rest) = message.strip_prefix("Invalid value: ") else { return message };
    // The value is a string in Go's quotes, or a plain number.
    let mut escaped = false;
    let end = match rest.strip_prefix('"') {
        Some(quoted) => quoted.char_indices().find_map(|(index, c)| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes.then_some(index + 2)
        }),
        None => rest.find(": "),
    };
    end.and_then(|end| rest.get(end..)?.strip_prefix(": ")).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(code: u16, reason: &str, message: &str, details: serde_json::Value) -> Status {
        serde_json::from_value(json!({"code": code, "reason": reason, "message": message, "details": details})).unwrap()
    }

    #[test]
    fn a_refused_value_is_told_by_its_flag_in_the_words_of_the_cluster() {
        let causes = json!({"causes": [
            {"field": "spec.runId", "message": "Invalid value: \"cg-1\": runId names a configuration"},
            {"field": "spec.tenant", "message": "Too long: may not be more than 63 bytes"},
            {"field": "spec.ttlSecondsAfterFinished", "message": "Invalid value: -1: should be greater than or equal to 0"},
            {"field": "spec.baseUrl", "message": "Invalid value: \"a\\\": b\": baseUrl must be an https URL"},
            {"field": "<nil>", "message": "Invalid value: null: some validation rules were not checked"},
        ]});
        assert_eq!(
            explain(&status(422, "Invalid", "raw", causes), "create", "ops"),
            "\
the cluster refuses what is asked for:
  RUN (spec.runId): runId names a configuration
  --tenant (spec.tenant): Too long: may not be more than 63 bytes
  --ttl (spec.ttlSecondsAfterFinished): should be greater than or equal to 0
  --base-url (spec.baseUrl): baseUrl must be an https URL
  <nil>: some validation rules were not checked"
        );
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let missing = json!({"kind": "namespaces", "name": "x"});
        for (status, wanted) in [
            (status(401, "Unauthorized", "Unauthorized", json!(null)), "log in to it again"),
            (
                status(403, "Forbidden", "User \"x\" cannot create resource", json!({})),
                "lets you create workflowrunstops",
            ),
            (status(403, "Forbidden", "exceeded quota: pods", json!({})), "exceeded quota"),
            (status(404, "NotFound", "namespaces \"x\" not found", missing), "name another one with -n"),
            (status(404, "NotFound", "the server could not find", json!({})), "install the CustomResourceDefinition"),
            (status(404, "", "404 page not found", json!(null)), "install the CustomResourceDefinition"),
            (status(409, "AlreadyExists", "\"x\" already exists", json!({})), "choose another --name"),
            (status(400, "BadRequest", "strict decoding error: unknown field", json!({})), "upgrade the older one"),
            (status(422, "Invalid", "no causes", json!({})), "no causes"),
            (status(500, "", "", json!({})), "status 500"),
        ] {
            let text = explain(&status, "create", "ops");
            assert!(text.contains(wanted), "{text}");
        }
        let quota = status(403, "Forbidden", "exceeded quota: pods", json!({}));
        assert!(!explain(&quota, "create", "ops").contains("Role"), "a quota is no missing right");
    }

    #[test]
    fn what_cannot_be_taken_apart_is_shown_as_it_is() {
        for message in ["Invalid value: \"open", "Invalid value: 7", "Required value", "Invalid value: \"ä\"x"] {
            assert_eq!(without_value(message), message);
        }
    }
}
