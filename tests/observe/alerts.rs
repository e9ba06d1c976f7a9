//! The alerts as they are written: promtool runs their tests, and each has its section in docs/alerts.md.

use std::process::Command;

use serde_json::Value;

use crate::{ALERT_TESTS, ALERTS, prometheus::program, read};

fn alerts() -> Vec<Value> {
    let rules: Value = serde_yaml_ng::from_str(&read(ALERTS)).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The expressions of the alerts.
pub fn queries() -> Vec<String> {
    alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()).collect()
}

pub fn names() -> Vec<String> {
    alerts().iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect()
}

fn promtool(args: &[&str]) {
    let mut command = Command::new(program("promtool"));
    let output = command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {args:?}:\n{}", String::from_utf8_lossy(&told));
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", ALERTS]);
}

#[test]
fn each_alert_fires_when_it_should_and_is_silent_when_it_should_not_be() {
    promtool(&["test", "rules", ALERT_TESTS]);
    // And none is without such tests.
    let tests: Value = serde_yaml_ng::from_str(&read(ALERT_TESTS)).unwrap();
    let tests = tests["tests"].as_array().unwrap().iter();
    let looks: Vec<_> = tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for name in names() {
        let of_alert = || looks.iter().filter(|look| look["alertname"] == *name);
        let fires = |look: &&&Value| !look["exp_alerts"].as_array().unwrap().is_empty();
        assert!(of_alert().any(|look| fires(&look)), "{name} never fires");
        assert!(of_alert().any(|look| !fires(&look)), "{name} is never silent");
    }
}

#[test]
fn each_alert_says_how_grave_it_is_and_where_it_is_explained() {
    let runbook = read("docs/alerts.md");
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, names());
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        let annotations = &alert["annotations"];
        assert!(["summary", "description"].iter().all(|text| annotations[text].is_string()), "{name}");
        // As the sites that show Markdown name their headings.
        assert_eq!(annotations["runbook_url"], format!("docs/alerts.md#{}", name.to_lowercase()));
        let section = runbook.split(&format!("\n## {name}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
        for part in ["**It means**", "**Look first**", "**Causes**", "**Remedy**"] {
            assert_eq!(section.matches(part).count(), 1, "{name}: {part}");
        }
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(section.contains(&format!("Severity: {severity}.")), "{name}: {severity}");
    }
}
