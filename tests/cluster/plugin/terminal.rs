//! Owns the test of the output on a terminal.

use std::time::Duration;

use lab::{
    control_plane::User,
    simulator::Run,
    testing::{TENANT, TestEnv},
};
use tokio::process::Command;

use super::call::execute;

#[tokio::test]
async fn a_spinner_shows_the_state_and_leaves_only_the_outcome() {
    let env = TestEnv::new().await;
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(2)));
    let _operator = env.start_operator().await;
    let plugin = lab::binary("kubectl-stop_run");
    let call =
        format!("{} wf-1 --tenant {TENANT} --credentials amperity -n {} --wait", plugin.display(), env.namespace);
    // Runs the call on a pseudo-terminal, and copies its output.
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &call, "/dev/null"]);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("KUBECONFIG", env.cluster.kubeconfig_for(User::Admin)).env("TERM", "xterm");
    let ended = execute(command).await.exits_with(0);
    let drawn: Vec<_> =
        ended.out.split("\u{1b}[2K").filter(|line| line.contains("run stopping, FollowingRun: ")).collect();
    assert!(drawn.len() > 1, "the spinner is redrawn: {:?}", ended.out);
    assert!(
        drawn.iter().any(|line| line
            .trim_start()
            .starts_with(['⠁', '⠁', '⠉', '⠙', '⠚', '⠒', '⠂', '⠲', '⠴', '⠤', '⠄', '⠠', '⠐'])),
        "{drawn:?}"
    );
    // What follows the last clearing of a line stays if a line feed ends it.
    let remaining: Vec<_> = ended.out.lines().map(|line| line.rsplit("\u{1b}[2K").next().unwrap()).collect();
    assert!(remaining.iter().any(|line| line.contains(": Stopped (RunStopped)")), "{remaining:?}");
    assert!(!remaining.iter().any(|line| line.contains("FollowingRun") || line.contains('⠁')), "{remaining:?}");
}
