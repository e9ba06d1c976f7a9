//! Owns the messages for errors of the API server: what is wrong, and what to do.
//! Never shows a raw response.

use kube::core::Status;

use crate::messages::one_line;

/// The flag that sets a field.
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

/// Returns the message for an error of a request, whose verb is `create` or `list and watch`.
pub fn message(status: &Status, verb: &str, namespace: &str) -> String {
    let message = one_line(&status.message);
    let details = status.details.as_ref();
    match status.code {
        401 => "the API server does not accept your credentials (401 Unauthorized): log in again, or check the user in the kubeconfig".to_owned(),
        403 if message.contains(" cannot ") => format!(
            "{message}\nAsk a cluster administrator for a Role that allows you to {verb} workflowrunstops.workflow.amperity.com in the namespace {namespace}."
        ),
        404 if details.is_some_and(|details| details.kind == "namespaces") => {
            format!("{message}\nCreate the namespace, or choose another one with -n.")
        }
        404 => "the API server has no resource type \"workflowrunstops\": install the operator's CustomResourceDefinition first \
                (kubectl apply --server-side -f crds/workflowrunstops.yaml)"
            .to_owned(),
        409 if status.is_already_exists() => {
            format!("{message}\nEach stop needs its own name: choose another --name, or omit it.")
        }
        400 if message.contains("strict decoding error") => format!(
            "{message}\nThe CustomResourceDefinition in the cluster and this plugin have different versions: upgrade the older one."
        ),
        422 => match details.map(|details| &details.causes).filter(|causes| !causes.is_empty()) {
            Some(causes) => {
                let lines: Vec<_> = causes.iter().map(|cause| cause_line(&cause.field, &cause.message)).collect();
                format!("the resource is invalid:\n{}", lines.join("\n"))
            }
            None => message,
        },
        _ if message.is_empty() => format!("the API server returned status {}", status.code),
        _ => message,
    }
}

/// Returns one cause of a validation error, with the flag that set the value.
fn cause_line(field: &str, message: &str) -> String {
    let flag = FLAGS.iter().find(|(known, _)| *known == field).map(|(_, flag)| *flag);
    let name = flag.map_or_else(|| field.to_owned(), |flag| format!("{flag} ({field})"));
    one_line(&format!("  {name}: {}", without_value(message)))
}

/// Returns a message such as `Invalid value: "x": must be ...` without the part before `must be`. That part does not
/// help: for a validation rule, `x` is only the type of the value.
fn without_value(message: &str) -> &str {
    let Some(rest) = message.strip_prefix("Invalid value: ") else { return message };
    // The value is a quoted Go string or a number.
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
    fn an_invalid_value_is_reported_by_its_flag_with_the_message_of_the_api_server() {
        let causes = json!({"causes": [
            {"field": "spec.runId", "message": "Invalid value: \"cg-1\": runId names a configuration"},
            {"field": "spec.tenant", "message": "Too long: may not be more than 63 bytes"},
            {"field": "spec.ttlSecondsAfterFinished", "message": "Invalid value: -1: should be greater than or equal to 0"},
            {"field": "spec.baseUrl", "message": "Invalid value: \"a\\\": b\": baseUrl must be an https URL"},
            {"field": "<nil>", "message": "Invalid value: null: some validation rules were not checked"},
        ]});
        assert_eq!(
            message(&status(422, "Invalid", "raw", causes), "create", "ops"),
            "\
the resource is invalid:
  RUN (spec.runId): runId names a configuration
  --tenant (spec.tenant): Too long: may not be more than 63 bytes
  --ttl (spec.ttlSecondsAfterFinished): should be greater than or equal to 0
  --base-url (spec.baseUrl): baseUrl must be an https URL
  <nil>: some validation rules were not checked"
        );
    }

    #[test]
    fn each_error_says_what_to_do() {
        let missing = json!({"kind": "namespaces", "name": "x"});
        for (status, wanted) in [
            (status(401, "Unauthorized", "Unauthorized", json!(null)), "log in again"),
            (
                status(403, "Forbidden", "User \"x\" cannot create resource", json!({})),
                "allows you to create workflowrunstops",
            ),
            (status(403, "Forbidden", "exceeded quota: pods", json!({})), "exceeded quota"),
            (status(404, "NotFound", "namespaces \"x\" not found", missing), "choose another one with -n"),
            (
                status(404, "NotFound", "the server could not find", json!({})),
                "install the operator's CustomResourceDefinition",
            ),
            (status(404, "", "404 page not found", json!(null)), "install the operator's CustomResourceDefinition"),
            (status(409, "AlreadyExists", "\"x\" already exists", json!({})), "choose another --name"),
            (status(400, "BadRequest", "strict decoding error: unknown field", json!({})), "upgrade the older one"),
            (status(422, "Invalid", "no causes", json!({})), "no causes"),
            (status(500, "", "", json!({})), "status 500"),
        ] {
            let text = message(&status, "create", "ops");
            assert!(text.contains(wanted), "{text}");
        }
        let quota = status(403, "Forbidden", "exceeded quota: pods", json!({}));
        assert!(!message(&quota, "create", "ops").contains("Role"), "an exceeded quota is no missing permission");
    }

    #[test]
    fn a_message_of_another_form_is_shown_unchanged() {
        for message in ["Invalid value: \"open", "Invalid value: 7", "Required value", "Invalid value: \"ä\"x"] {
            assert_eq!(without_value(message), message);
        }
    }
}
