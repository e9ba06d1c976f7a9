//! Owns the tests of krew's archive and manifest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::call::{Folder, execute};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Packs this build as `make plugin` does. Returns the folder.
async fn pack(name: &str) -> Folder {
    let folder = Folder::new(name);
    let mut command = Command::new("bash");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/plugin/pack.sh")).arg(folder.path());
    command.arg(lab::binary("kubectl-stop_run")).args([VERSION, "amd64", "https://example.com/a?b&c=1"]);
    execute(command).await.exits_with(0);
    folder
}

fn archive(folder: &Path) -> PathBuf {
    folder.join(format!("kubectl-stop_run-{VERSION}-linux-amd64.tar.gz"))
}

/// Returns the command of a program of krew, at the version pinned in tests/lab/go/krew.
fn krew(program: &str, root: &Path) -> Command {
    let mut command = Command::new("go");
    command.args(["tool", program]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/go/krew"));
    command.env("GOWORK", "off").env("GOFLAGS", "-mod=readonly").env("KREW_ROOT", root);
    // With these it needs no network.
    command.env("KREW_OS", "linux").env("KREW_ARCH", "amd64").env("KREW_NO_UPGRADE_CHECK", "1");
    command
}

#[tokio::test]
async fn the_same_program_is_packed_to_the_same_bytes() {
    let (one, other) = (pack("packed-once").await, pack("packed-again").await);
    assert!(fs::read(archive(one.path())).unwrap() == fs::read(archive(other.path())).unwrap(), "the archives differ");
    assert_eq!(
        fs::read(one.path().join("stop-run.yaml")).unwrap(),
        fs::read(other.path().join("stop-run.yaml")).unwrap()
    );
}

#[tokio::test]
async fn krew_accepts_the_manifest_and_installs_the_archive() {
    let folder = pack("packed-for-krew").await;
    let (manifest, root) = (folder.path().join("stop-run.yaml"), folder.path().join("krew"));
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(!text.contains('@') && text.contains("https://example.com/a?b&c=1"), "{text}");
    let mut validate = krew("validate-krew-manifest", &root);
    execute({
        validate.arg("-skip-install").arg("-manifest").arg(&manifest);
        validate
    })
    .await
    .exits_with(0);
    let mut install = krew("krew", &root);
    install.arg("install").arg("--manifest").arg(&manifest).arg("--archive").arg(archive(folder.path()));
    execute(install).await.exits_with(0);
    let mut command = super::kubectl::kubectl("/nowhere/kubeconfig".as_ref());
    command.env("PATH", root.join("bin")).args(["stop-run", "--version"]);
    assert_eq!(execute(command).await.exits_with(0).out, format!("kubectl-stop_run {VERSION}\n"));
}
