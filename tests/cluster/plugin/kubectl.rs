//! Owns the tests of the plugin as kubectl runs it.

use std::{os::unix::fs::symlink, path::Path};

use lab::{control_plane::User, testing::TestEnv};
use tokio::process::Command;

use super::call::{Finished, Folder, REQUIRED_FLAGS, execute};

/// Returns the command of the real kubectl, with no other environment variable than these.
pub fn kubectl(kubeconfig: &Path) -> Command {
    let mut command = Command::new(lab::control_plane::kubectl().unwrap_or_else(|error| panic!("{error}")));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    // Without a home, kubectl would write its cache to the working folder.
    command.env("KUBECACHEDIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/kubectl-cache"));
    command
}

/// Creates a folder with the plugin under its own name and under the one by which kubectl requests candidates.
fn installed(name: &str) -> Folder {
    let folder = Folder::new(name);
    for name in ["kubectl-stop_run", "kubectl_complete-stop_run"] {
        symlink(lab::binary("kubectl-stop_run"), folder.path().join(name)).unwrap();
    }
    folder
}

async fn complete(env: &TestEnv, installed: &Folder, words: &[&str]) -> Vec<String> {
    let mut command = kubectl(&env.cluster.kubeconfig_for(User::Admin));
    command.env("PATH", installed.path()).args(["__complete", "stop-run"]).args(words);
    let Finished { out, .. } = execute(command).await.exits_with(0);
    out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn kubectl_runs_the_plugin_and_returns_its_exit_code() {
    let env = TestEnv::new().await;
    let installed = installed("run-by-kubectl");
    let call = |args: &[&str]| {
        let mut command = kubectl(&env.cluster.kubeconfig_for(User::Admin));
        command.env("PATH", installed.path()).arg("stop-run").args(args).args(["-n", &env.namespace]);
        command
    };
    let created = execute(call(&[&["wf-1"][..], &REQUIRED_FLAGS].concat())).await.exits_with(0).created();
    assert_eq!(env.get(&created).await.spec.run_id, "wf-1");
    execute(call(&["wf-1"])).await.exits_with(2);
    execute(call(&[&["wf-1", "--wait", "--timeout=1s"][..], &REQUIRED_FLAGS].concat())).await.exits_with(3);
    execute(call(&[&["cg-1"][..], &REQUIRED_FLAGS].concat())).await.exits_with(1);
}

#[tokio::test]
async fn the_printed_wait_get_and_describe_commands_work() {
    let env = TestEnv::new().await;
    env.amperity.add_run(lab::testing::TENANT, lab::simulator::Run::new("wf-1"));
    let _operator = env.start_operator().await;
    let created = execute(super::call::call(&env, &["wf-1"])).await.exits_with(0);
    let wait = created.err.split_once("kubectl ").unwrap().1.trim_end().replace('\'', "");
    let mut command = kubectl(&env.cluster.kubeconfig_for(User::Admin));
    command.args(wait.split(' '));
    let waited = execute(command).await.exits_with(0);
    assert!(waited.out.contains(&format!("{} condition met", created.created())), "{}", waited.out);
    let timed_out =
        execute(super::call::call(&env, &["wf-2", "--suspend", "--wait", "--timeout=1s"])).await.exits_with(3);
    let commands: Vec<_> = timed_out.err.lines().filter_map(|line| line.strip_prefix("  kubectl ")).collect();
    assert_eq!(commands.len(), 2, "{}", timed_out.err);
    for printed in commands {
        let mut command = kubectl(&env.cluster.kubeconfig_for(User::Admin));
        command.args(printed.split(' '));
        assert!(execute(command).await.exits_with(0).out.contains("Suspended"), "{printed}");
    }
}

#[tokio::test]
async fn kubectl_completes_flags_values_and_subcommands_but_no_file_names() {
    let env = TestEnv::new().await;
    let installed = installed("completed-by-kubectl");
    assert_eq!(
        complete(&env, &installed, &["wf-1", "--wa"]).await,
        ["--wait\tWait until the stop has finished, and print its result", ":4"]
    );
    let values = complete(&env, &installed, &["wf-1", "--dry-run", ""]).await;
    let values: Vec<_> = values.iter().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(values, ["none", "client", "server", ":4"]);
    assert!(complete(&env, &installed, &["comp"]).await[0].starts_with("completion\t"));
    assert_eq!(complete(&env, &installed, &["wf-1", "--tenant", ""]).await, [":4"]);
}

#[tokio::test]
async fn each_shell_accepts_its_completion_script() {
    let script = |shell: &str| {
        let mut command = super::call::plugin("/nowhere/kubeconfig".as_ref());
        command.args(["completion", shell]);
        execute(command)
    };
    let bash = script("bash").await.exits_with(0).out;
    let completion = format!(
        "{bash}\nCOMP_WORDS=(kubectl-stop_run wf-1 --wa) COMP_CWORD=2\n\
         $(complete -p kubectl-stop_run | sed 's/.*-F \\([^ ]*\\).*/\\1/') kubectl-stop_run --wa wf-1\necho \"${{COMPREPLY[@]}}\""
    );
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", &completion]);
    assert_eq!(execute(command).await.exits_with(0).out, "--wait\n");
    assert!(script("zsh").await.exits_with(0).out.starts_with("#compdef kubectl-stop_run"));
    assert!(script("fish").await.exits_with(0).out.contains("complete -c kubectl-stop_run"));
}
