//! Owns the tests of build.sh: where the programs of the control plane come from.
//! Never builds them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use axum::Router;
use axum::routing::get;

/// Returns the build script, without the settings that the caller's environment may have.
fn build_script() -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane/build.sh"));
    command.env_remove("KUBEBUILDER_ASSETS").env_remove("BUILD_CONTROL_PLANE");
    command
}

/// As [`build_script`], with an empty cache of programs, and an index of prebuilt ones at this address.
fn build_script_with_index(cache: &Path, index: &str) -> Command {
    // GOCACHE keeps Go's own cache, which is below XDG_CACHE_HOME by default, in its usual place.
    let go_cache = Command::new("go").args(["env", "GOCACHE"]).output().expect("Go is installed").stdout;
    let mut command = build_script();
    command.env("GOCACHE", String::from_utf8(go_cache).unwrap().trim());
    command.env("XDG_CACHE_HOME", cache).env("ENVTEST_INDEX", index);
    command
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn binaries_named_by_the_environment_are_used() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["etcd", "kube-apiserver"] {
        write_program(&folder.path().join(program), "");
    }
    let output = build_script().env("KUBEBUILDER_ASSETS", folder.path()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", folder.path().display()));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_missing_go_toolchain_is_reported_in_one_line() {
    let output = build_script().env_clear().env("PATH", "/nonexistent").output().unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("Go >= 1.26 is needed") && message.lines().count() == 1, "{message}");
}

#[tokio::test]
async fn prebuilt_programs_of_the_pinned_minor_version_are_fetched_once() {
    let (release, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let envtest = release.path().join("controller-tools/envtest");
    fs::create_dir_all(&envtest).unwrap();
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        write_program(&envtest.join(program), "echo Kubernetes prebuilt");
    }
    let pack = r#"cd "$0" && tar czf release.tar.gz controller-tools && sha512sum release.tar.gz"#;
    let packed = Command::new("/bin/sh").args(["-c", pack]).arg(release.path()).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    let hash = String::from_utf8(packed.stdout).unwrap().split_whitespace().next().unwrap().to_owned();

    let pinned = include_str!("../../../go/kubernetes/go.mod");
    let version = pinned.split_whitespace().skip_while(|word| *word != "k8s.io/kubernetes").nth(1).unwrap();
    let minor = version.rsplit_once('.').unwrap().0;
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let index = format!(
        "releases:\n  {minor}.99:\n    envtest-{minor}.99-{os}-{arch}.tar.gz:\n      hash: {hash}\n      selfLink: \
         http://{address}/release\n"
    );
    let archive = fs::read(release.path().join("release.tar.gz")).unwrap();
    let router = Router::new()
        .route("/index", get(|| async { index }))
        .route("/release", get(|| async { ([("content-type", "application/gzip")], archive) }));
    let server = tokio::spawn(async { axum::serve(listener, router).await });

    let script = |wanted: &'static [&str]| {
        let mut command = build_script_with_index(cache.path(), &format!("http://{address}/index"));
        let run = move || command.args(wanted).output().unwrap();
        tokio::task::spawn_blocking(run)
    };
    let output = script(&[]).await.unwrap();
    let (folder, messages) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(messages.ends_with("control plane: fetched Kubernetes prebuilt\n"), "{messages}");
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        assert!(Path::new(folder.trim()).join(program).exists(), "{program}");
    }
    server.abort();
    let _ = server.await;
    let output = script(&["kubectl"]).await.unwrap();
    assert_eq!(
        (String::from_utf8(output.stdout).unwrap(), output.stderr),
        (folder, vec![]),
        "nothing is fetched again"
    );
}

#[test]
fn without_an_answer_of_the_index_the_programs_are_built() {
    let cache = tempfile::tempdir().unwrap();
    // At the first address, connections are established but never served. Nothing listens at the second one.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for index in [format!("http://{}/index", silent.local_addr().unwrap()), "http://127.0.0.1:1/index".to_owned()] {
        let mut script = build_script_with_index(cache.path(), &index).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(script.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "control plane: no prebuilt programs can be fetched: building them"));
        let next = lines.next().unwrap();
        assert!(next.starts_with("control plane: building etcd"), "{next}");
        let ended = Command::new("kill").arg(script.id().to_string()).status().unwrap();
        assert!(ended.success() && !script.wait().unwrap().success());
    }
}
