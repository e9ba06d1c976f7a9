//! Owns a list of resources as text, in the format of `kubectl get`.
//! Never chooses columns or cells: they come from the API server.

use hyper::{Request, header};
use kube::Client;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
}

/// Returns the list (or the resource) at this path of the API server, such as
/// `/apis/example.com/v1/namespaces/x/things`, as `kubectl get` prints it; with `wide`, as `kubectl get -o wide` does.
/// An empty list gives an empty string.
///
/// # Errors
/// If the request fails.
pub async fn table(client: &Client, path: &str, wide: bool) -> Result<String, kube::Error> {
    let request = Request::get(path)
        .header(header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    Ok(render(&client.request(request).await?, wide))
}

fn render(table: &Table, wide: bool) -> String {
    if table.rows.is_empty() {
        return String::new();
    }
    let shown: Vec<usize> = (0..table.column_definitions.len())
        .filter(|&column| wide || table.column_definitions[column].priority == 0)
        .collect();
    let headers = shown.iter().map(|&column| table.column_definitions[column].name.to_uppercase());
    let rows = table
        .rows
        .iter()
        .map(|row| shown.iter().map(|&column| row.cells.get(column).map(cell).unwrap_or_default()).collect());
    let lines: Vec<Vec<String>> = std::iter::once(headers.collect()).chain(rows).collect();
    align(&lines)
}

/// Returns the text of a cell, cut at the first line break as kubectl does.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => match text.split_once(['\n', '\r', '\x0c']) {
            Some((first, _)) => format!("{first}..."),
            None => text.clone(),
        },
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Aligns the columns: three spaces between them, a minimum width of six, and no padding after the last column.
fn align(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count() + 3).max().unwrap_or(0).max(6);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        if let Some((last, before)) = line.split_last() {
            for (cell, width) in before.iter().zip(&widths) {
                text.push_str(&format!("{cell:<width$}"));
            }
            text.push_str(last);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn a_table() -> Table {
        serde_json::from_value(json!({
            "columnDefinitions": [
                {"name": "Name", "priority": 0},
                {"name": "N", "priority": 0},
                {"name": "Message", "priority": 1},
                {"name": "Age", "priority": 0},
            ],
            "rows": [
                {"cells": ["first-of-two", 1, "what\nelse", "5s"]},
                {"cells": ["second", null, null, "3d"]},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn columns_with_a_priority_above_zero_are_left_out() {
        assert_eq!(
            render(&a_table(), false),
            "NAME           N     AGE\n\
             first-of-two   1     5s\n\
             second               3d\n"
        );
    }

    #[test]
    fn wide_shows_all_columns_and_the_first_line_of_each_cell() {
        assert_eq!(
            render(&a_table(), true),
            "NAME           N     MESSAGE   AGE\n\
             first-of-two   1     what...   5s\n\
             second                         3d\n"
        );
    }

    #[test]
    fn an_empty_list_prints_nothing() {
        let table = Table { rows: Vec::new(), ..a_table() };
        assert_eq!(render(&table, true), "");
    }
}
