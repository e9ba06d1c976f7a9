//! Owns the tests of the alert rules: promtool runs their unit tests, and each alert has its section in docs/alerts.md.

use std::process::Command;

use serde_json::Value;

use super::{ALERT_TESTS, ALERTS, prometheus::program, read};

fn alerts() -> Vec<Value> {
    let rules: Value = serde_yaml_ng::from_str(&read(ALERTS)).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Returns the expressions of the alerts.
pub fn queries() -> Vec<String> {
    alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()).collect()
}

/// Returns the names of the alerts.
pub fn names() -> Vec<String> {
    alerts().iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect()
}

/// Runs promtool, which must succeed.
fn promtool(args: &[&str]) {
    let mut command = Command::new(program("promtool"));
    let output = command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {args:?}:\n{}", String::from_utf8_lossy(&printed));
}

#[test]
fn promtool_accepts_the_rules_without_warnings() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", ALERTS]);
}

#[test]
fn each_alert_fires_and_is_silent_as_its_unit_tests_say() {
    promtool(&["test", "rules", ALERT_TESTS]);
    // Each alert has a test in which it fires and one in which it does not.
    let tests: Value = serde_yaml_ng::from_str(&read(ALERT_TESTS)).unwrap();
    let tests = tests["tests"].as_array().unwrap().iter();
    let checks: Vec<_> = tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for name in names() {
        let of_alert = || checks.iter().filter(|check| check["alertname"] == *name);
        let fires = |check: &&&Value| !check["exp_alerts"].as_array().unwrap().is_empty();
        assert!(of_alert().any(|check| fires(&check)), "no test in which {name} fires");
        assert!(of_alert().any(|check| !fires(&check)), "no test in which {name} is silent");
    }
}

#[test]
fn each_alert_has_a_severity_texts_and_a_runbook() {
    let runbook = read("docs/alerts.md");
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, names());
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        let annotations = &alert["annotations"];
        assert!(["summary", "description"].iter().all(|text| annotations[text].is_string()), "{name}");
        // The anchor that Markdown renderers generate for the heading.
        assert_eq!(annotations["runbook_url"], format!("docs/alerts.md#{}", name.to_lowercase()));
        let section = runbook.split(&format!("\n## {name}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
        for part in ["**It means**", "**Look first**", "**Causes**", "**Remedy**"] {
            assert_eq!(section.matches(part).count(), 1, "{name}: {part}");
        }
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(section.contains(&format!("Severity: {severity}.")), "{name}: {severity}");
    }
}
