//! Owns the output formats of resources.
//! Never adds anything to them, so that a program can parse the output.

use serde::Serialize;
use serde_json::Value;

use crate::args::Output;
use crate::messages::full_name;

/// Returns a resource in one of the formats. The texts of several resources can be concatenated.
pub fn resource(resource: &impl Serialize, output: Output) -> String {
    let mut resource = serde_json::to_value(resource).unwrap_or_default();
    // kubectl hides the managed fields as well.
    if let Some(metadata) = resource.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    match output {
        Output::Name => format!("{}\n", full_name(resource["metadata"]["name"].as_str().unwrap_or_default())),
        Output::Json => format!("{resource:#}\n"),
        Output::Yaml => format!("---\n{}", serde_yaml_ng::to_string(&resource).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_format_prints_the_resource_without_managed_fields() {
        let stop = json!({"metadata": {"name": "x", "managedFields": [{"manager": "y"}]}, "spec": {"runId": "wf-1"}});
        let bare = json!({"metadata": {"name": "x"}, "spec": {"runId": "wf-1"}});
        assert_eq!(resource(&stop, Output::Name), "workflowrunstop.workflow.amperity.com/x\n");
        assert_eq!(serde_json::from_str::<Value>(&resource(&stop, Output::Json)).unwrap(), bare);
        assert_eq!(serde_yaml_ng::from_str::<Value>(&resource(&stop, Output::Yaml)).unwrap(), bare);
    }

    #[test]
    fn the_texts_of_several_resources_are_separate_documents() {
        let two = |output| resource(&json!({"a": 1}), output) + &resource(&json!({"b": 2}), output);
        let json: Vec<Value> =
            serde_json::Deserializer::from_str(&two(Output::Json)).into_iter().map(Result::unwrap).collect();
        assert_eq!(json, [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(serde_yaml_ng::Deserializer::from_str(&two(Output::Yaml)).count(), 2);
    }
}
