//! Owns the tests that the documents list all reasons, flags, metrics, fields and log lines, and none that do not exist.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::sync::Arc;
use workflow_run_stop_api::{
    StopRequest, WorkflowRunStop, WorkflowRunStopSpec, WorkflowRunStopStatus,
    conditions::{ConditionStatus, ConditionType, Reason, condition, set},
};
use workflow_run_stop_operator::{
    amperity::{
        budget::Budget,
        endpoint::{AllowedHosts, Endpoints},
        purpose::Purpose,
        request_metrics::RequestMetrics,
        wait_queue::Requester,
    },
    clock::Clock,
    config::Cli,
    observe::{
        event_filter::{EventDraft, EventFilter},
        metrics::Metrics,
    },
    operator::http_server::{ANY, ANY_IPV4},
    reconcile::facts::Facts,
};

use super::markdown::{Document, all, codes, read, rows};

const PREFIX: &str = "workflow_run_stop_operator_";

const THEN: Time = Time(Timestamp::UNIX_EPOCH);

/// The reasons with which a resource can finish, and whether that is a success.
const ENDS: &[(Reason, bool)] = &[
    (Reason::RunStopped, true),
    (Reason::RunEndedOtherwise, true),
    (Reason::RunUnreadable, true),
    (Reason::Expired, true),
    (Reason::RunStillActive, false),
    (Reason::RunNotFound, false),
    (Reason::Rejected, false),
    (Reason::UnexpectedAnswer, false),
    (Reason::DeadlineExceeded, false),
];

/// Returns the type of the event that is emitted for a reason, as the documents write it.
fn event_type(reason: Reason) -> &'static str {
    let mut stop = WorkflowRunStop::new("a", WorkflowRunStopSpec::new("wf-1", "acme", "amperity"));
    let mut status = WorkflowRunStopStatus::default();
    let with_reason = |kind, status| condition(kind, status, (reason, reason.message("")), None, &THEN);
    let end = ENDS.iter().find(|(ends, _)| *ends == reason);
    if [Reason::StopAccepted, Reason::ConfirmedByRead].contains(&reason) {
        status.stop_request = Some(StopRequest { accepted_time: Some(THEN), ..StopRequest::default() });
        set(&mut status.conditions, with_reason(ConditionType::StopAccepted, ConditionStatus::True));
        let following = (Reason::FollowingRun, String::new());
        set(&mut status.conditions, condition(ConditionType::Ready, ConditionStatus::Unknown, following, None, &THEN));
    } else {
        let normal = [
            Reason::Suspended,
            Reason::WaitingForBudget,
            Reason::NamespaceLimit,
            Reason::StopRequested,
            Reason::FollowingRun,
        ];
        let ready = match end {
            Some((_, true)) => ConditionStatus::True,
            None if normal.contains(&reason) => ConditionStatus::Unknown,
            Some((_, false)) | None => ConditionStatus::False,
        };
        set(&mut status.conditions, with_reason(ConditionType::Ready, ready));
    }
    status.completion_time = end.map(|_| THEN);
    stop.status = Some(status);
    let mut filter = EventFilter::default();
    match filter.update(&stop).first() {
        Some(draft) if draft.warning => "Warning",
        Some(_) => "Normal",
        None if reason == EventDraft::backlog(1).reason => {
            "Warning, one for each namespace, after two to three minutes"
        }
        None => "none",
    }
}

#[test]
fn every_reason_has_a_complete_section_and_there_are_no_others() {
    let reasons = Document::at("docs/reasons.md");
    let list = reasons.text.split("\n## ").next().unwrap();
    for reason in Reason::ALL {
        let section = reasons.section(&format!("## {}", reason.as_str()));
        for label in ["Cause", "To do", "Goes on by itself", "Event"] {
            assert_eq!(section.matches(&format!("\n- {label}: ")).count(), 1, "{}: {label}", reason.as_str());
        }
        let documented = section.lines().find_map(|line| line.strip_prefix("- Event: ")).unwrap();
        let expected = event_type(*reason);
        assert_eq!(documented.trim_end_matches('.'), expected, "{}", reason.as_str());
        let link = format!("[{}](#{})", reason.as_str(), reason.as_str().to_lowercase());
        assert_eq!(list.matches(&link).count(), 1, "{link} is in the list at the beginning");
    }
    assert_eq!(reasons.text.matches("\n## ").count(), Reason::ALL.len());
}

#[test]
fn every_flag_has_a_row_with_its_default_and_there_are_no_others() {
    let command = <Cli as CommandFactory>::command();
    let flags: Vec<_> =
        command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect();
    let table = rows(&Document::at("docs/operations.md").section("## Flags"));
    for flag in &flags {
        let name = flag.get_long().unwrap();
        let row =
            table.iter().find(|row| row[0] == format!("`--{name}`")).unwrap_or_else(|| panic!("--{name} has no row"));
        if name == "http-addr" {
            assert_eq!(row[1], format!("`{ANY}`"));
            assert!(row[2].contains(&format!("`{ANY_IPV4}`")), "{}", row[2]);
        }
        for default in flag.get_default_values().iter().filter(|default| !default.is_empty()) {
            assert_eq!(row[1], format!("`{}`", default.to_str().unwrap()), "--{name}");
        }
        let variable = flag.get_env().unwrap().to_str().unwrap();
        assert_eq!(variable, name.to_uppercase().replace('-', "_"));
    }
    assert_eq!(table.len(), flags.len());
}

#[test]
fn every_option_of_the_plugin_has_a_row_and_there_are_no_others() {
    let command = <kubectl_stop_run::args::Cli as CommandFactory>::command();
    let options = command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
    let options: Vec<_> = options.filter(|name| !["--help", "--version"].contains(&name.as_str())).collect();
    let table = rows(&Document::at("docs/kubectl-plugin.md").section("## Options"));
    let documented: Vec<_> =
        table.iter().flat_map(|row| codes(&row[0])).filter(|name| name.starts_with("--")).collect();
    for option in &options {
        assert_eq!(documented.iter().filter(|name| *name == option).count(), 1, "{option}");
    }
    assert_eq!(documented.len(), options.len());
}

#[test]
fn every_exit_code_of_the_plugin_has_a_row() {
    let text = Document::at("docs/kubectl-plugin.md").text;
    let codes = text.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |")?.0.parse::<u8>().ok());
    let mut codes: Vec<_> = codes.collect();
    codes.sort_unstable();
    let mut known = kubectl_stop_run::Exit::ALL.map(kubectl_stop_run::Exit::code);
    known.sort_unstable();
    assert_eq!(codes, known);
}

/// Returns the metrics of a replica that has worked for a tenant.
async fn metrics_text() -> String {
    let budget = Budget::new(10);
    let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
    let key = endpoints.of("acme", None).unwrap().budget_key();
    let _slot = budget.acquire(&key, &Requester::new("ops", "amperity", Purpose::Stop, Timestamp::UNIX_EPOCH)).await;
    let clock: Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    let metrics = Metrics::new(&RequestMetrics::default(), &Default::default(), &budget, &clock);
    let spec = WorkflowRunStopSpec::new("wf-1", "acme", "amperity");
    let _resource = metrics.enter("acme", &Facts::of(&WorkflowRunStop::new("wf-1", spec)));
    metrics.text()
}

/// Returns the type of each metric, by the name of its series.
fn types(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(PREFIX)?.split_once(' '));
    let series = types.map(|(name, kind)| match kind {
        "counter" => (format!("{name}_total"), kind),
        "info" => (format!("{name}_info"), kind),
        _ => (name.to_owned(), kind),
    });
    series.map(|(name, kind)| (name, kind.to_owned())).collect()
}

/// Returns the name and the labels of each series.
fn series(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(['{', ' ']).unwrap();
            let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
            let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            let labels = pairs.map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned())).collect();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            (base.to_owned(), labels)
        })
        .collect()
}

#[tokio::test]
async fn every_metric_has_a_row_with_its_type_and_labels_and_there_are_no_others() {
    let text = metrics_text().await;
    let (types, series) = (types(&text), series(&text));
    let table = rows(&Document::at("docs/metrics.md").section("## The metrics"));
    for (name, kind) in &types {
        let row = table.iter().find(|row| row[0] == format!("`{name}`")).unwrap_or_else(|| panic!("{name} has no row"));
        assert_eq!(row[1], *kind, "{name}");
        let of = series.iter().find(|(of, _)| of == name).unwrap_or_else(|| panic!("{name} has no series"));
        let labels: BTreeSet<_> = of.1.keys().map(String::as_str).filter(|label| *label != "le").collect();
        assert_eq!(codes(&row[2]).into_iter().collect::<BTreeSet<_>>(), labels, "{name}");
    }
    assert_eq!(table.len(), types.len());
}

#[tokio::test]
async fn every_value_of_a_label_is_documented_and_there_are_no_others() {
    let mut values = BTreeMap::<String, BTreeSet<String>>::new();
    for (name, labels) in series(&metrics_text().await) {
        for (label, value) in &labels {
            let row = match label.as_str() {
                "le" | "tenant" | "version" => continue,
                "answer" => format!("`answer` of `{}`", labels["purpose"]),
                "result" => format!("`result` of `{name}`"),
                _ => format!("`{label}`"),
            };
            values.entry(row).or_default().insert(value.clone());
        }
    }
    let table = rows(&Document::at("docs/metrics.md").section("## Values of labels"));
    for (label, values) in &values {
        let row = table.iter().find(|row| row[0] == *label).unwrap_or_else(|| panic!("{label} has no row"));
        let documented: BTreeSet<_> = codes(&row[1]).into_iter().map(str::to_owned).collect();
        assert_eq!(&documented, values, "{label}");
    }
    assert_eq!(table.len(), values.len());
}

#[tokio::test]
async fn every_metric_in_a_document_exists() {
    let text = metrics_text().await;
    let types = types(&text);
    for document in all() {
        for after in document.text.split(PREFIX).skip(1) {
            let name: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            assert!(name.is_empty() || types.contains_key(base), "{}: {PREFIX}{name}", document.path);
        }
    }
}

#[test]
fn every_documented_log_line_is_in_the_code() {
    fn sources(folder: &str) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(
                |path| {
                    if path.is_dir() { sources(path.to_str().unwrap()) } else { std::fs::read_to_string(path).unwrap() }
                },
            )
            .collect()
    }
    let code = sources(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let table = rows(&Document::at("docs/operations.md").section("### Lines worth knowing"));
    assert!(5 < table.len());
    for row in table {
        let line = codes(&row[0])[0].to_owned();
        assert!(code.contains(&line), "no code logs '{line}'");
    }
}

#[test]
fn the_page_of_the_api_matches_the_crd() {
    let page = lab::api_docs::page(&read("crds/workflowrunstops.yaml")).unwrap();
    assert!(read("docs/api.md") == page, "run `make api-docs` and commit the result");
}
