//! The dashboard as it is written: what Grafana would not complain of, but show wrongly or not at all.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{DASHBOARD, read};

/// A query of a panel.
pub struct Query {
    pub panel: String,
    pub expr: String,
    /// Unlike any other one's. A heatmap has one query for classic and one for native histograms, of which one finds
    /// something.
    pub id: String,
    /// Asked for one moment, not for a range of time.
    pub instant: bool,
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

fn panels() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

/// All that show something.
fn shown() -> Vec<Value> {
    panels().into_iter().filter(|panel| panel["type"] != "row").collect()
}

/// All queries of all panels.
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
    shown().into_iter().flat_map(of_panel).collect()
}

/// The variables that are filled with the values of a label: name, metric and label.
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

/// A query as Grafana sends it, with these values of the variables.
pub fn filled(expr: &str, values: &[(&str, &str)]) -> String {
    let mut expr = expr.to_owned();
    // Short, as the test is; Grafana takes at least four times the interval of the scrapes.
    for (name, value) in [("__rate_interval", "5s"), ("__range", "60s")].iter().chain(values) {
        expr = expr.replace(&format!("${name}"), value);
    }
    assert!(!expr.contains('$'), "no such variable: {expr}");
    expr
}

#[test]
fn panels_have_ids_of_their_own_and_places_that_do_not_overlap() {
    let panels = panels();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in &panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(0 < w && 0 < h && x + w <= 24, "{}", panel["title"]);
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{} overlaps at {place:?}", panel["title"]);
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit() {
    for panel in shown() {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        // A heatmap's values are counts; its axis has the unit.
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
fn every_query_asks_the_chosen_data_source_about_what_was_chosen() {
    for Query { panel, expr, .. } in queries() {
        let metrics = expr.matches("workflow_run_stop_operator_").count();
        assert!(0 < metrics, "{panel}");
        assert_eq!(expr.matches(r#"{namespace=~"$namespace",job=~"$job""#).count(), metrics, "{panel}: {expr}");
    }
    let (sources, chosen) =
        ("\"datasource\": {", "\"datasource\": {\"type\": \"prometheus\", \"uid\": \"${datasource}\"}");
    let text = read(DASHBOARD);
    assert_eq!(text.matches(sources).count(), text.matches(chosen).count());
    let names: Vec<_> = variables().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["namespace", "job", "tenant"]);
}
