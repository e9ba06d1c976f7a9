//! Owns the page docs/api.md: the fields, rules and columns of a CustomResourceDefinition as tables.
//! Never adds text that is not in the definition, except headings and links.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The introduction above the tables.
const HEAD: &str = "\
Generated from the CustomResourceDefinition by `make api-docs`; `kubectl explain wrs --recursive` shows the same. The
conditions are explained in [concepts.md](concepts.md#what-the-status-says), the reasons in [reasons.md](reasons.md).";

/// Returns the page for a definition, given as YAML.
///
/// # Errors
/// If the text is no definition with a schema.
pub fn page(crd: &str) -> Result<String, String> {
    let crd: Value = serde_yaml_ng::from_str(crd).map_err(|error| error.to_string())?;
    let (spec, version) = (&crd["spec"], &crd["spec"]["versions"][0]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let Some(parts) = schema["properties"].as_object() else {
        return Err("the definition has no schema with properties".to_owned());
    };
    let mut text = String::new();
    let kind = text_of(&spec["names"]["kind"]);
    line(&mut text, &format!("# {kind}\n\n{HEAD}\n"));
    let short: Vec<_> = list(&spec["names"]["shortNames"]).map(|name| format!("`{}`", text_of(name))).collect();
    let (group, name) = (text_of(&spec["group"]), text_of(&version["name"]));
    let scope = text_of(&spec["scope"]).to_lowercase();
    line(&mut text, &format!("`{group}/{name}`, {scope}, short name {}. {}", short.join(", "), description(schema)));
    let mut rules = Rules::default();
    rules.collect(kind, schema);
    for (name, part) in parts {
        line(&mut text, &format!("\n## {name}\n\n{}\n", description(part)));
        line(&mut text, "| field | type | limits | description |\n| --- | --- | --- | --- |");
        rules.collect(name, part);
        fields(&mut text, &mut rules, "", part);
    }
    line(
        &mut text,
        "\n## Rules\n\nThe API server rejects a resource that violates one of these rules, with this message.\n",
    );
    line(&mut text, "| field | message | rule |\n| --- | --- | --- |");
    text.push_str(&rules.rows);
    line(
        &mut text,
        "\n## Columns\n\nThe columns of `kubectl get wrs`. Those marked *wide* are shown with `-o wide` only.\n",
    );
    line(&mut text, "| column | value | description |\n| --- | --- | --- |");
    for column in list(&version["additionalPrinterColumns"]) {
        let wide = if column["priority"].as_i64().unwrap_or_default() == 0 { "" } else { ", wide" };
        let path = text_of(&column["jsonPath"]).replace('|', "\\|");
        let (name, what) = (text_of(&column["name"]), description(column));
        line(&mut text, &format!("| {name}{wide} | `{path}` | {what} |"));
    }
    let selectable: Vec<_> =
        list(&version["selectableFields"]).map(|field| format!("`{}`", text_of(&field["jsonPath"]))).collect();
    line(&mut text, &format!("\nField selectors besides name and namespace: {}.", selectable.join(", ")));
    Ok(text)
}

/// The validation rules of all fields, as table rows.
#[derive(Default)]
struct Rules {
    rows: String,
}

impl Rules {
    fn collect(&mut self, path: &str, schema: &Value) {
        for rule in list(&schema["x-kubernetes-validations"]) {
            let (rule, message) = (text_of(&rule["rule"]), text_of(&rule["message"]));
            line(&mut self.rows, &format!("| `{path}` | {} | `{}` |", cell(message), cell(rule)));
        }
    }
}

/// Appends a row for each field and its subfields.
fn fields(text: &mut String, rules: &mut Rules, path: &str, schema: &Value) {
    let none = Map::new();
    let required: Vec<_> = list(&schema["required"]).map(text_of).collect();
    for (name, field) in schema["properties"].as_object().unwrap_or(&none) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        // The fields of a list are those of its items.
        let items = field.get("items");
        let path = if items.is_some() { format!("{path}[]") } else { path };
        let kind = match items {
            Some(items) => format!("list of {}", kind_of(items)),
            None => kind_of(field),
        };
        let mut limits = limits(field);
        if required.contains(&name.as_str()) {
            limits.insert(0, "required".to_owned());
        }
        line(text, &format!("| `{path}` | {kind} | {} | {} |", limits.join("; "), description(field)));
        rules.collect(&path, field);
        fields(text, rules, &path, items.unwrap_or(field));
    }
}

fn kind_of(schema: &Value) -> String {
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("date-time")) => "time".to_owned(),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => "any".to_owned(),
    }
}

fn limits(schema: &Value) -> Vec<String> {
    let number = |key: &str| schema[key].as_f64().map(|number| format!("{number}"));
    let mut limits = vec![];
    for (min, max, unit) in [("minimum", "maximum", ""), ("minLength", "maxLength", " characters")] {
        match (number(min), number(max)) {
            (Some(min), Some(max)) => limits.push(format!("{min} to {max}{unit}")),
            (Some(min), None) => limits.push(format!("at least {min}{unit}")),
            (None, Some(max)) => limits.push(format!("at most {max}{unit}")),
            (None, None) => {}
        }
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        limits.push(format!("`{}`", cell(pattern)));
    }
    let values: Vec<_> = list(&schema["enum"]).filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
    if !values.is_empty() {
        limits.push(values.join(", "));
    }
    if let Some(default) = schema.get("default") {
        limits.push(format!("default `{}`", cell(&default.to_string())));
    }
    let is_immutable = |rule: &Value| rule["rule"] == "self == oldSelf";
    if list(&schema["x-kubernetes-validations"]).any(is_immutable) {
        limits.push("immutable".to_owned());
    }
    limits
}

/// Returns the description in one line.
fn description(schema: &Value) -> String {
    cell(&text_of(&schema["description"]).split_whitespace().collect::<Vec<_>>().join(" "))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_definition_is_an_error() {
        assert!(page("kind: ConfigMap").is_err());
        assert!(page("{").is_err());
    }

    #[test]
    fn a_row_shows_type_limits_and_rules_of_a_field() {
        let page = page(
            "{spec: {group: g, scope: Namespaced, names: {kind: K, shortNames: [k]}, versions: [{name: v1, schema: {openAPIV3Schema: {
              properties: {spec: {required: [a], properties: {
                a: {type: string, minLength: 1, pattern: 'x|y', description: \"One\\ntwo.\", x-kubernetes-validations: [{rule: self == oldSelf, message: no}]},
                b: {type: array, items: {type: object, properties: {c: {type: integer, default: 3, maximum: 9.0}}}}}}}}}}]}}",
        )
        .unwrap();
        for row in [
            r"| `a` | string | required; at least 1 characters; `x\|y`; immutable | One two. |",
            "| `b[]` | list of object |  |  |",
            "| `b[].c` | integer | at most 9; default `3` |  |",
            "| `a` | no | `self == oldSelf` |",
        ] {
            assert!(page.contains(row), "{row} is not in\n{page}");
        }
    }
}
