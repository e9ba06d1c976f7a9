//! The README names what there is: every reason and every flag.
#![allow(clippy::unwrap_used, missing_docs)]

use clap::CommandFactory;
use workflow_run_stop_operator::{
    config::Cli,
    operator::metrics::Metrics,
    resource::{WorkflowRunStop, WorkflowRunStopSpec, conditions::Reason},
};

const README: &str = include_str!("../README.md");

#[test]
fn every_reason_has_a_row_that_says_what_to_do() {
    for reason in Reason::ALL {
        assert!(README.contains(&format!("\n| `{}` | ", reason.as_str())), "{} has no row", reason.as_str());
    }
}

#[test]
fn every_flag_has_a_row_with_its_default_and_none_has_a_row_too_many() {
    let command = <Cli as CommandFactory>::command();
    let flags: Vec<_> =
        command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect();
    for flag in &flags {
        let name = flag.get_long().unwrap();
        let row = README.lines().find(|line| line.starts_with(&format!("| `--{name}` | ")));
        let row = row.unwrap_or_else(|| panic!("--{name} has no row"));
        for default in flag.get_default_values().iter().filter(|default| !default.is_empty()) {
            assert!(row.contains(&format!("`{}`", default.to_str().unwrap())), "{row}");
        }
        let variable = flag.get_env().unwrap().to_str().unwrap();
        assert_eq!(variable, name.to_uppercase().replace('-', "_"));
    }
    assert_eq!(README.matches("\n| `--").count(), flags.len());
}

#[test]
fn every_metric_has_a_row_and_none_has_a_row_too_many() {
    let metrics = Metrics::default();
    let spec = WorkflowRunStopSpec::new("wf-1", "acme", "amperity");
    let _standing = metrics.enter(&WorkflowRunStop::new("wf-1", spec));
    let text = metrics.text();
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE workflow_run_stop_operator_"));
    let names = kinds.map(|kind| match kind.split_once(' ').unwrap() {
        (name, "counter") => format!("{name}_total"),
        (name, "info") => format!("{name}_info"),
        (name, _) => name.to_owned(),
    });
    let names: Vec<_> = names.collect();
    let table = README.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    for name in &names {
        assert!(table.contains(&format!("\n| `{name}` | ")), "{name} has no row");
    }
    assert_eq!(table.matches("\n| `").count(), names.len());
}
