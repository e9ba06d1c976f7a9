//! `kubectl stop-run` as people use it: by the real kubectl, against a real API server and a running operator.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)]
#[path = "../cluster/rights.rs"]
mod rights;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;

use std::{os::unix::fs::symlink, path::PathBuf, process::Stdio, time::Duration};

use kube::{ResourceExt, api::DeleteParams};
use lab::{
    control_plane,
    simulator::{HoldPoint, Run},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use workflow_run_stop_operator::resource::{WorkflowRunStop, conditions::Reason};

use crate::support::{Place, TENANT, ends_at_once};

const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-stop_run");

/// A folder with the plugin, also under the name by which kubectl asks for completions.
fn plugins() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("plugins-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["kubectl-stop_run", "kubectl_complete-stop_run"] {
        let link = folder.join(name);
        // Another test of this process was first.
        let _ = symlink(PLUGIN, &link);
        assert!(link.exists());
    }
    folder
}

/// `kubectl` with these arguments and the plugin, for the namespace of this place.
fn kubectl(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(control_plane::kubectl().unwrap());
    command.args(args).env_clear().env("PATH", plugins());
    command.env("KUBECONFIG", place.cluster.kubeconfig_path()).env("KUBECACHEDIR", env!("CARGO_TARGET_TMPDIR"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if args.first() == Some(&"stop-run") {
        command.args(["--namespace", &place.namespace]);
    }
    command
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn said(mut command: Command) -> Said {
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

async fn stop_run(place: &Place, args: &[&str]) -> Said {
    said(kubectl(place, &[&["stop-run"], args, &["--tenant", TENANT, "--credentials", "amperity"]].concat())).await
}

/// The only stop there is.
async fn only(place: &Place) -> WorkflowRunStop {
    let mut stops = place.stops().list(&Default::default()).await.unwrap().items;
    assert_eq!(stops.len(), 1);
    stops.remove(0)
}

#[tokio::test]
async fn without_wait_it_creates_the_stop_says_so_as_kubectl_does_and_ends() {
    let place = Place::new().await;
    let said = stop_run(&place, &["wf-1"]).await;
    let stop = only(&place).await;
    assert!(stop.name().starts_with("stop-wf-1-"), "{}", stop.name());
    assert_eq!(
        (said.code, said.stdout, said.stderr.as_str()),
        (Some(0), format!("workflowrunstop.workflow.amperity.com/{} created\n", stop.name()), "")
    );
    assert_eq!((stop.spec.run_id.as_str(), stop.spec.tenant.as_str()), ("wf-1", TENANT));
}

#[tokio::test]
async fn with_wait_it_tells_each_change_once_and_how_it_ended_and_exits_with_0() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(3)).with_tasks(2));
    let _operator = place.operator().await;
    let said = stop_run(&place, &["wf-1", "--wait"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let name = only(&place).await.name_any();
    assert!(said.stdout.starts_with(&format!("{name}: The run is stopped: its state is canceled. (")), "{said:?}");
    let lines: Vec<_> = said.stderr.lines().collect();
    let following = |line: &&&str| line.starts_with(&format!("{name}: FollowingRun: "));
    assert_eq!(lines[0], format!("{name}: waits for the operator"));
    // Not a terminal: a line for each change, and none twice.
    assert_eq!(lines.iter().filter(following).count(), 1, "{said:?}");
    assert!(!said.stderr.contains('\u{1b}'), "{said:?}");
    assert_eq!(place.amperity.effects("wf-1"), 1);
}

#[tokio::test]
async fn what_fails_for_good_exits_with_1_and_several_runs_with_the_worst() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-good"));
    let _operator = place.operator().await;
    let said = stop_run(&place, &["wf-good", "wf-unknown", "--wait"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let lines: Vec<_> = said.stdout.lines().collect();
    assert!(lines[0].starts_with("stop-wf-good-") && lines[0].contains("The run is stopped"), "{said:?}");
    assert!(lines[1].starts_with("stop-wf-unknown-") && lines[1].contains("does not know this run"), "{said:?}");
}

#[tokio::test]
async fn a_wait_that_takes_too_long_exits_with_3_and_leaves_the_stop() {
    let place = Place::new().await;
    // No operator runs.
    let said = stop_run(&place, &["wf-1", "--wait", "--timeout", "500ms"]).await;
    assert_eq!(said.code, Some(3), "{said:?}");
    let name = only(&place).await.name_any();
    assert!(said.stderr.contains(&format!("kubectl describe wrs {name} --namespace {}", place.namespace)), "{said:?}");
    assert!(!only(&place).await.is_finished());
}

/// The next line of stderr with this text.
async fn says(child: &mut Child, text: &str) -> String {
    let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended without '{text}'"));
        if line.contains(text) {
            return line;
        }
    }
}

#[tokio::test]
async fn ctrl_c_leaves_the_stop_and_says_how_to_look_again() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let hold = place.amperity.hold_stops(HoldPoint::BeforeEffect);
    let _operator = place.operator_with(&["--request-timeout", "30s"]).await;
    // Not by kubectl, which is replaced by the plugin: the number is the same, but the signal needs it early.
    let mut command = Command::new(PLUGIN);
    command.args(["wf-1", "--tenant", TENANT, "--credentials", "amperity", "--wait", "--namespace", &place.namespace]);
    command.env_clear().env("KUBECONFIG", place.cluster.kubeconfig_path()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    says(&mut child, "StopRequested").await;
    Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status().await.unwrap();
    let line = says(&mut child, "interrupted").await;
    assert!(line.contains("stays, and the operator goes on with it"), "{line}");
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    hold.release();
    let name = only(&place).await.name_any();
    place.finished(&name).await;
    assert_eq!(place.sent("wf-1"), (1, 1, 0));
}

#[tokio::test]
async fn a_stop_that_is_deleted_while_it_is_waited_for_exits_with_1() {
    let place = Place::new().await;
    let mut command = Command::new(PLUGIN);
    command.args(["wf-1", "--tenant", TENANT, "--credentials", "amperity", "--wait", "--namespace", &place.namespace]);
    command.env_clear().env("KUBECONFIG", place.cluster.kubeconfig_path()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    says(&mut child, "waits for the operator").await;
    place.stops().delete(only(&place).await.name(), &DeleteParams::default()).await.unwrap();
    says(&mut child, "was deleted before it ended").await;
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
}

#[tokio::test]
async fn bad_arguments_exit_with_2_and_what_the_api_server_refuses_with_1_and_its_reason() {
    let place = Place::new().await;
    for (args, code, why) in [
        (&["wf-1", "--tenant", TENANT][..], 2, "--credentials <SECRET>"),
        (&["--tenant", TENANT, "--credentials", "amperity"], 2, "<RUN>..."),
        (&[], 2, "required"),
        (&["a", "b", "--name", "c", "--tenant", TENANT, "--credentials", "x"], 2, "leave it out to stop several runs"),
        (&["a", "--timeout", "soon", "--tenant", TENANT, "--credentials", "x"], 2, "it is not a duration such as 90s"),
        (
            &["wft-1", "--tenant", TENANT, "--credentials", "amperity"],
            1,
            "wft-1: spec.runId: runId names a task (wft-); give the id of the run that the task belongs to",
        ),
        (&["wf-1", "--tenant", "a b", "--credentials", "amperity"], 1, "spec.tenant: tenant may have only letters"),
    ] {
        let said = said(kubectl(&place, &[&["stop-run"], args].concat())).await;
        assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
        assert!(said.stderr.contains(why) && said.stdout.is_empty(), "{args:?}: {said:?}");
    }
    let mut elsewhere = Command::new(PLUGIN);
    elsewhere.args(["wf-1", "--tenant", TENANT, "--credentials", "amperity", "--namespace", "nowhere"]);
    elsewhere.env_clear().env("KUBECONFIG", place.cluster.kubeconfig_path());
    let said = said(elsewhere).await;
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), "error: wf-1: namespaces \"nowhere\" not found\n"));
}

#[tokio::test]
async fn without_a_cluster_it_says_what_to_set() {
    let mut command = Command::new(PLUGIN);
    command.args(["wf-1", "--tenant", TENANT, "--credentials", "amperity", "--kubeconfig", "/nowhere"]).env_clear();
    let said = said(command).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.starts_with("error: no access to a cluster: "), "{said:?}");
    assert!(said.stderr.contains("set KUBECONFIG or --kubeconfig"), "{said:?}");
}

#[tokio::test]
async fn a_manifest_of_a_dry_run_can_be_applied_and_nothing_is_created_before() {
    let place = Place::new().await;
    for format in ["yaml", "json"] {
        let said = stop_run(&place, &["wf-1", "wf-2", "--dry-run=client", "-o", format, "--ttl", "1h"]).await;
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        assert_eq!(place.stops().list(&Default::default()).await.unwrap().items.len(), 0);
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.{format}", place.namespace));
        std::fs::write(&file, said.stdout).unwrap();
        let apply = ["apply", "--dry-run=server", "-o", "name", "-f", file.to_str().unwrap()];
        let applied = self::said(kubectl(&place, &apply)).await;
        let name = "workflowrunstop.workflow.amperity.com/stop-wf-";
        assert_eq!(applied.stdout, format!("{name}1\n{name}2\n"), "{applied:?}");
    }
    let said = stop_run(&place, &["wft-1", "--dry-run=server"]).await;
    assert!(said.code == Some(1) && said.stderr.contains("names a task"), "{said:?}");
    let said = stop_run(&place, &["wf-1", "--dry-run=server"]).await;
    assert!(said.code == Some(0) && said.stdout.ends_with(" created (server dry run)\n"), "{said:?}");
    assert_eq!(place.stops().list(&Default::default()).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn machines_get_the_resource_alone_on_stdout() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = place.operator().await;
    let said = stop_run(&place, &["wf-1", "--wait", "-o", "json"]).await;
    let stop: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(stop["status"]["state"], "canceled", "{said:?}");
    assert_eq!(stop["metadata"]["managedFields"], Value::Null);
    assert!(said.stderr.contains("The run is stopped"), "{said:?}");
    let said = stop_run(&place, &["wf-1", "-o", "name"]).await;
    assert!(said.stdout.starts_with("workflowrunstop.workflow.amperity.com/stop-wf-1-"), "{said:?}");
}

#[tokio::test]
async fn on_a_terminal_a_spinner_shows_what_it_is_at_and_leaves_the_outcome_alone() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(3)).with_tasks(2));
    let _operator = place.operator().await;
    let line = format!("{PLUGIN} wf-1 --tenant {TENANT} --credentials amperity --wait --namespace {}", place.namespace);
    // script(1) gives the program a terminal.
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    command.env("KUBECONFIG", place.cluster.kubeconfig_path()).env("TERM", "xterm").env("COLUMNS", "200");
    let said = said(command).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("FollowingRun") && said.stdout.contains('\u{1b}'), "{said:?}");
    assert!(said.stdout.trim_end().ends_with(" s)"), "{said:?}");
}

#[tokio::test]
async fn kubectl_completes_flags_and_their_values() {
    let place = Place::new().await;
    let complete = async |words: &[&str]| said(kubectl(&place, &[&["__complete", "stop-run"], words].concat())).await;
    let flags = complete(&["wf-1", "--te"]).await.stdout;
    assert!(flags.starts_with("--tenant\tThe tenant that owns the runs") && flags.ends_with(":4\n"), "{flags}");
    for (words, values) in [
        (&["wf-1", "-o", ""][..], &["json", "yaml", "name"][..]),
        (&["wf-1", "--output", "y"], &["yaml"]),
        (&["wf-1", "--dry-run=s"], &["--dry-run=server"]),
        (&["wf-1", "--tenant", ""], &[]),
    ] {
        let said = complete(words).await.stdout;
        let found: Vec<_> =
            said.lines().filter(|line| !line.starts_with(':')).map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(found, values, "{words:?}: {said}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(PLUGIN);
        command.args(["completion", shell]).env_clear();
        let said = said(command).await;
        assert!(said.stdout.contains("kubectl-stop_run") && said.stdout.contains("credentials"), "{shell}");
    }
}

#[tokio::test]
async fn where_nobody_looks_at_a_stop_that_is_said() {
    let place = Place::new().await;
    let mut command = kubectl(&place, &["stop-run", "wf-1", "--tenant", TENANT, "--credentials", "amperity", "--wait"]);
    let mut child = command.spawn().unwrap();
    let line = says(&mut child, "no operator has looked at it yet").await;
    assert!(line.contains(&format!("does it watch the namespace {}?", place.namespace)), "{line}");
    let _operator = place.operator().await;
    place.reason(only(&place).await.name(), Reason::RunNotFound).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
}
