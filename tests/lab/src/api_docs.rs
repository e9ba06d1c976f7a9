//! Owns the page docs/api.md: what a CustomResourceDefinition says of its fields, as tables.
//! Never adds what does not stand in it, but for the headings and where to read on.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Before the tables.
const HEAD: &str = "\
Written from the CustomResourceDefinition by `make api-docs`; `kubectl explain wrs --recursive` tells the same. What the
conditions mean stands in [concepts.md](concepts.md#what-the-status-says), and every reason in [reasons.md](reasons.md).";

/// The page for a definition, given as YAML.
///
/// # Errors
/// Where it is no definition with a schema.
pub fn page(crd: &str) -> Result<String, String> {
    let crd: Value = serde_yaml_ng::from_str(crd).map_err(|error| error.to_string())?;
    let (spec, version) = (&crd["spec"], &crd["spec"]["versions"][0]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let Some(parts) = schema["properties"].as_object() else {
        return Err("it has no schema with properties".to_owned());
    };
    let mut text = String::new();
    let kind = word(&spec["names"]["kind"]);
    line(&mut text, &format!("# {kind}\n\n{HEAD}\n"));
    let short: Vec<_> = list(&spec["names"]["shortNames"]).map(|name| format!("`{}`", word(name))).collect();
    let (group, name) = (word(&spec["group"]), word(&version["name"]));
    let scope = word(&spec["scope"]).to_lowercase();
    line(&mut text, &format!("`{group}/{name}`, {scope}, for short {}. {}", short.join(", "), described(schema)));
    let mut rules = Rules::default();
    rules.collect(kind, schema);
    for (name, part) in parts {
        line(&mut text, &format!("\n## {name}\n\n{}\n", described(part)));
        line(&mut text, "| field | type | limits | what it is |\n| --- | --- | --- | --- |");
        rules.collect(name, part);
        fields(&mut text, &mut rules, "", part);
    }
    line(&mut text, "\n## Rules\n\nThe API server refuses what breaks one of these, with this message.\n");
    line(&mut text, "| field | message | rule |\n| --- | --- | --- |");
    text.push_str(&rules.rows);
    line(&mut text, "\n## Columns\n\nThose of `kubectl get wrs`, and with `-o wide` the further ones.\n");
    line(&mut text, "| column | value | what it is |\n| --- | --- | --- |");
    for column in list(&version["additionalPrinterColumns"]) {
        let wide = if column["priority"].as_i64().unwrap_or_default() == 0 { "" } else { ", wide" };
        let path = word(&column["jsonPath"]).replace('|', "\\|");
        let (name, what) = (word(&column["name"]), described(column));
        line(&mut text, &format!("| {name}{wide} | `{path}` | {what} |"));
    }
    let selectable: Vec<_> =
        list(&version["selectableFields"]).map(|field| format!("`{}`", word(&field["jsonPath"]))).collect();
    line(&mut text, &format!("\n`--field-selector` knows, beside name and namespace, {}.", selectable.join(", ")));
    Ok(text)
}

/// The rules of all fields, as rows.
#[derive(Default)]
struct Rules {
    rows: String,
}

impl Rules {
    fn collect(&mut self, path: &str, schema: &Value) {
        for rule in list(&schema["x-kubernetes-validations"]) {
            let (rule, message) = (word(&rule["rule"]), word(&rule["message"]));
            line(&mut self.rows, &format!("| `{path}` | {} | `{}` |", cell(message), cell(rule)));
        }
    }
}

/// A row for each field, and for the fields below it.
fn fields(text: &mut String, rules: &mut Rules, path: &str, schema: &Value) {
    let none = Map::new();
    let required: Vec<_> = list(&schema["required"]).map(word).collect();
    for (name, field) in schema["properties"].as_object().unwrap_or(&none) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        // What a list holds is described by its items.
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
        line(text, &format!("| `{path}` | {kind} | {} | {} |", limits.join("; "), described(field)));
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
    for (least, most, unit) in [("minimum", "maximum", ""), ("minLength", "maxLength", " characters")] {
        match (number(least), number(most)) {
            (Some(least), Some(most)) => limits.push(format!("{least} to {most}{unit}")),
            (Some(least), None) => limits.push(format!("at least {least}{unit}")),
            (None, Some(most)) => limits.push(format!("at most {most}{unit}")),
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

/// The description in one line.
fn described(schema: &Value) -> String {
    cell(&word(&schema["description"]).split_whitespace().collect::<Vec<_>>().join(" "))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_definition_is_refused() {
        assert!(page("kind: ConfigMap").is_err());
        assert!(page("{").is_err());
    }

    #[test]
    fn a_field_has_its_type_its_limits_and_its_rules() {
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
