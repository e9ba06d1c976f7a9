//! What somebody sees who sits at a terminal.

use std::time::Duration;

use lab::{control_plane::User, simulator::Run};
use tokio::process::Command;

use crate::call::done;
use crate::support::{Place, TENANT};

#[tokio::test]
async fn a_spinner_shows_the_state_and_leaves_only_the_outcome() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(2)));
    let _operator = place.operator().await;
    let plugin = lab::binary("kubectl-stop_run");
    let call =
        format!("{} wf-1 --tenant {TENANT} --credentials amperity -n {} --wait", plugin.display(), place.namespace);
    // It makes a terminal of its own, and passes on what is written to it.
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &call, "/dev/null"]);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("KUBECONFIG", place.cluster.kubeconfig_for(User::Admin)).env("TERM", "xterm");
    let ended = done(command).await.with(0);
    let drawn: Vec<_> =
        ended.out.split("\u{1b}[2K").filter(|line| line.contains("run stopping, FollowingRun: ")).collect();
    assert!(drawn.len() > 1, "it turns: {:?}", ended.out);
    assert!(
        drawn.iter().any(|line| line
            .trim_start()
            .starts_with(['⠁', '⠁', '⠉', '⠙', '⠚', '⠒', '⠂', '⠲', '⠴', '⠤', '⠄', '⠠', '⠐'])),
        "{drawn:?}"
    );
    // A line that is ended with a line feed stays, from its last clearing on.
    let stays: Vec<_> = ended.out.lines().map(|line| line.rsplit("\u{1b}[2K").next().unwrap()).collect();
    assert!(stays.iter().any(|line| line.contains(": Stopped (RunStopped)")), "{stays:?}");
    assert!(!stays.iter().any(|line| line.contains("FollowingRun") || line.contains('⠁')), "{stays:?}");
}
