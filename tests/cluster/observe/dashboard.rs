//! Owns the tests of the dashboard's JSON, for mistakes that Grafana does not report.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{DASHBOARD, read};

/// A query of a panel.
pub struct Query {
    pub panel: String,
    pub expr: String,
    /// The key of the query. The queries of a heatmap, one for classic and one for native histograms, share a key, because
    /// only one of them returns data.
    pub id: String,
    /// Whether it is an instant query rather than a range query.
    pub instant: bool,
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

fn panels() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

/// Returns the panels that show data.
fn data_panels() -> Vec<Value> {
    panels().into_iter().filter(|panel| panel["type"] != "row").collect()
}

/// Returns all queries of all panels.
pub fn queries() -> Vec<Query> {
    let of_panel = |panel: Value| {
        let targets = panel["targets"].as_array().unwrap().clone().into_iter();
        let heatmap = panel["type"] == "heatmap";
        targets.map(move |target| Query {
            panel: panel["title"].as_str().unwrap().to_owned(),
            id: format!("{} {}", panel["title"], if heatmap { &Value::Null } else { &target["refId"] }),
            expr: target["expr"].as_str().unwrap().to_owned(),
            instant: target["instant"] == true,
        })
    };
    data_panels().into_iter().flat_map(of_panel).collect()
}

/// Returns name, metric and label of the variables whose values are those of a label.
pub fn variables() -> Vec<(String, String, String)> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let of_query = variables.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = variable["query"]["query"].as_str().unwrap();
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (metric, label) = inner.rsplit_once(", ").unwrap();
        (variable["name"].as_str().unwrap().to_owned(), metric.to_owned(), label.to_owned())
    });
    of_query.collect()
}

/// Returns a query with these values of its variables, as Grafana sends it.
pub fn interpolated(expr: &str, values: &[(&str, &str)]) -> String {
    let mut expr = expr.to_owned();
    // Short for the test; Grafana's rate interval is at least four scrape intervals.
    for (name, value) in [("__rate_interval", "5s"), ("__range", "60s")].iter().chain(values) {
        expr = expr.replace(&format!("${name}"), value);
    }
    assert!(!expr.contains('$'), "unknown variable: {expr}");
    expr
}

#[test]
fn panels_have_unique_ids_and_do_not_overlap() {
    let panels = panels();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut occupied = BTreeSet::new();
    for panel in &panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(0 < w && 0 < h && x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(occupied.insert(cell), "{} overlaps at {cell:?}", panel["title"]);
        }
    }
}

#[test]
fn every_panel_has_a_description_and_a_unit() {
    for panel in data_panels() {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        // The values of a heatmap are counts; the unit is that of its axis.
        let unit = if panel["type"] == "heatmap" {
            &panel["options"]["yAxis"]["unit"]
        } else {
            &panel["fieldConfig"]["defaults"]["unit"]
        };
        assert!(unit.is_string(), "{title}");
        assert!(panel["datasource"].is_object(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let refs: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert_eq!(refs.len(), targets.len(), "{title}");
    }
}

#[test]
fn every_query_uses_the_selected_data_source_namespace_and_job() {
    for Query { panel, expr, .. } in queries() {
        let metrics = expr.matches("workflow_run_stop_operator_").count();
        assert!(0 < metrics, "{panel}");
        assert_eq!(expr.matches(r#"{namespace=~"$namespace",job=~"$job""#).count(), metrics, "{panel}: {expr}");
    }
    let (sources, selected) =
        ("\"datasource\": {", "\"datasource\": {\"type\": \"prometheus\", \"uid\": \"${datasource}\"}");
    let text = read(DASHBOARD);
    assert_eq!(text.matches(sources).count(), text.matches(selected).count());
    let names: Vec<_> = variables().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["namespace", "job", "tenant"]);
}
