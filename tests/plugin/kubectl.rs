//! The plugin as kubectl runs it.

use std::{os::unix::fs::symlink, path::Path};

use lab::control_plane::User;
use tokio::process::Command;

use crate::call::{Ended, Folder, USUAL, done};
use crate::support::Place;

/// The real kubectl. Nothing of the test's own environment reaches it.
pub fn kubectl(kubeconfig: &Path) -> Command {
    let mut command = Command::new(lab::control_plane::kubectl().unwrap_or_else(|error| panic!("{error}")));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    // Without a home it would keep what it discovers in the working folder.
    command.env("KUBECACHEDIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/kubectl-cache"));
    command
}

/// A folder with the plugin under its own name and under the one by which kubectl asks for candidates.
fn installed(name: &str) -> Folder {
    let folder = Folder::new(name);
    for name in ["kubectl-stop_run", "kubectl_complete-stop_run"] {
        symlink(lab::binary("kubectl-stop_run"), folder.path().join(name)).unwrap();
    }
    folder
}

async fn complete(place: &Place, installed: &Folder, words: &[&str]) -> Vec<String> {
    let mut command = kubectl(&place.cluster.kubeconfig_for(User::Admin));
    command.env("PATH", installed.path()).args(["__complete", "stop-run"]).args(words);
    let Ended { out, .. } = done(command).await.with(0);
    out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn kubectl_runs_it_and_passes_on_its_exit_code() {
    let place = Place::new().await;
    let installed = installed("run-by-kubectl");
    let call = |args: &[&str]| {
        let mut command = kubectl(&place.cluster.kubeconfig_for(User::Admin));
        command.env("PATH", installed.path()).arg("stop-run").args(args).args(["-n", &place.namespace]);
        command
    };
    let created = done(call(&[&["wf-1"][..], &USUAL].concat())).await.with(0).created();
    assert_eq!(place.get(&created).await.spec.run_id, "wf-1");
    done(call(&["wf-1"])).await.with(2);
    done(call(&[&["wf-1", "--wait", "--timeout=1s"][..], &USUAL].concat())).await.with(3);
    done(call(&[&["cg-1"][..], &USUAL].concat())).await.with(1);
}

#[tokio::test]
async fn the_command_that_it_names_for_waiting_and_those_for_looking_are_right() {
    let place = Place::new().await;
    place.amperity.add_run(crate::support::TENANT, lab::simulator::Run::new("wf-1"));
    let _operator = place.operator().await;
    let created = done(crate::call::call(&place, &["wf-1"])).await.with(0);
    let wait = created.err.split_once("kubectl ").unwrap().1.trim_end().replace('\'', "");
    let mut command = kubectl(&place.cluster.kubeconfig_for(User::Admin));
    command.args(wait.split(' '));
    let waited = done(command).await.with(0);
    assert!(waited.out.contains(&format!("{} condition met", created.created())), "{}", waited.out);
    let timed_out = done(crate::call::call(&place, &["wf-2", "--suspend", "--wait", "--timeout=1s"])).await.with(3);
    let commands: Vec<_> = timed_out.err.lines().filter_map(|line| line.strip_prefix("  kubectl ")).collect();
    assert_eq!(commands.len(), 2, "{}", timed_out.err);
    for looks in commands {
        let mut command = kubectl(&place.cluster.kubeconfig_for(User::Admin));
        command.args(looks.split(' '));
        assert!(done(command).await.with(0).out.contains("Suspended"), "{looks}");
    }
}

#[tokio::test]
async fn kubectl_completes_flags_values_and_shells_and_no_file_names() {
    let place = Place::new().await;
    let installed = installed("completed-by-kubectl");
    assert_eq!(
        complete(&place, &installed, &["wf-1", "--wa"]).await,
        ["--wait\tWait until the stop has finished, and print its result", ":4"]
    );
    let values = complete(&place, &installed, &["wf-1", "--dry-run", ""]).await;
    let values: Vec<_> = values.iter().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(values, ["none", "client", "server", ":4"]);
    assert!(complete(&place, &installed, &["comp"]).await[0].starts_with("completion\t"));
    assert_eq!(complete(&place, &installed, &["wf-1", "--tenant", ""]).await, [":4"]);
}

#[tokio::test]
async fn a_shell_takes_the_completion_that_is_printed_for_it() {
    let script = |shell: &str| {
        let mut command = crate::call::plugin("/nowhere/kubeconfig".as_ref());
        command.args(["completion", shell]);
        done(command)
    };
    let bash = script("bash").await.with(0).out;
    let asked = format!(
        "{bash}\nCOMP_WORDS=(kubectl-stop_run wf-1 --wa) COMP_CWORD=2\n\
         $(complete -p kubectl-stop_run | sed 's/.*-F \\([^ ]*\\).*/\\1/') kubectl-stop_run --wa wf-1\necho \"${{COMPREPLY[@]}}\""
    );
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", &asked]);
    assert_eq!(done(command).await.with(0).out, "--wait\n");
    assert!(script("zsh").await.with(0).out.starts_with("#compdef kubectl-stop_run"));
    assert!(script("fish").await.with(0).out.contains("complete -c kubectl-stop_run"));
}
