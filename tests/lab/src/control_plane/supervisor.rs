//! Owns the shell process that runs etcd and kube-apiserver: the commands to it and its reports.
//! Never uses the Kubernetes API, and never depends on a tokio runtime: a thread reads the reports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::sync::watch;

/// Number of lines at the end of each log that an error message quotes.
const TAIL_LINES: usize = 15;

const APISERVER: &str = "kube-apiserver";

/// The ports of one control plane, all on loopback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) apiserver: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
}

/// The state that the shell process reported last.
#[derive(Debug, Default)]
struct State {
    /// The running programs and their process ids.
    running: BTreeMap<String, u32>,
    /// Number of commands that are done.
    done: u64,
    /// kube-apiserver was killed on purpose, so its exit is expected.
    killed: bool,
    /// The end of both programs was requested.
    closing: bool,
    /// The first unexpected exit.
    unexpected_exit: Option<String>,
    /// The shell process has exited, after both programs, and the folder is removed.
    gone: bool,
}

/// The pipe to the shell process. When it closes, for any reason, both programs are killed.
struct Commands {
    pipe: Option<ChildStdin>,
    sent: u64,
}

/// A running shell process with etcd and kube-apiserver as its children.
pub(super) struct Supervisor {
    commands: Mutex<Commands>,
    state: watch::Sender<State>,
}

impl Supervisor {
    /// Starts etcd; [`Supervisor::start_apiserver`] starts kube-apiserver, with these flags in addition. From here on the
    /// shell process owns the folder.
    pub(super) fn spawn(folder: &Path, binaries: &Path, ports: Ports, flags: &[&str]) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", include_str!("supervisor.sh"), "control-plane"])
            .args([folder, binaries])
            .args([ports.apiserver, ports.etcd, ports.etcd_peer].map(|port| port.to_string()))
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Its own process group: Ctrl-C in a terminal reaches this process only, which may still have something to
            // write. The programs end after it.
            .process_group(0)
            // etcd reads its settings from the environment, too.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .spawn()?;
        let pipe = child.stdin.take();
        let (state, _) = watch::channel(State::default());
        let reported = state.clone();
        let folder = folder.to_owned();
        thread::Builder::new()
            .name("control-plane".to_owned())
            .spawn(move || read_reports(&mut child, &reported, &folder))?;
        Ok(Self { commands: Mutex::new(Commands { pipe, sent: 0 }), state })
    }

    /// Starts kube-apiserver. It is not ready yet.
    pub(super) async fn start_apiserver(&self) -> Result<(), String> {
        if self.processes().contains_key(APISERVER) {
            return Err("kube-apiserver is already running".to_owned());
        }
        self.state.send_modify(|state| state.killed = false);
        self.command("start").await
    }

    /// Kills kube-apiserver and waits until it has exited.
    pub(super) async fn kill_apiserver(&self) -> Result<(), String> {
        self.state.send_modify(|state| state.killed = true);
        self.command("kill").await
    }

    /// Pauses kube-apiserver (SIGSTOP).
    pub(super) async fn pause_apiserver(&self) -> Result<(), String> {
        self.command("pause").await
    }

    /// Resumes a paused kube-apiserver (SIGCONT).
    pub(super) async fn resume_apiserver(&self) -> Result<(), String> {
        self.command("resume").await
    }

    /// Sends one command and waits until it is done.
    async fn command(&self, word: &str) -> Result<(), String> {
        let number = self.send(word).map_err(|error| {
            self.unexpected_exit().unwrap_or_else(|| format!("cannot send a command to the supervisor: {error}"))
        })?;
        let mut states = self.state.subscribe();
        let state = states
            .wait_for(|state| state.done >= number || state.gone)
            .await
            .expect("the sender lives as long as self");
        if state.done >= number { Ok(()) } else { Err("the supervisor exited before the command was done".to_owned()) }
    }

    fn send(&self, word: &str) -> io::Result<u64> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = commands.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{word}\n").as_bytes())?;
        commands.sent += 1;
        Ok(commands.sent)
    }

    /// Returns a description of an unexpected exit, with the last lines of the logs.
    pub(super) fn unexpected_exit(&self) -> Option<String> {
        self.state.borrow().unexpected_exit.clone()
    }

    /// Waits for an unexpected exit and returns its description.
    pub(super) async fn wait_for_unexpected_exit(&self) -> String {
        let mut states = self.state.subscribe();
        let state =
            states.wait_for(|state| state.unexpected_exit.is_some()).await.expect("the sender lives as long as self");
        state.unexpected_exit.clone().expect("the condition of the wait")
    }

    /// Returns the process ids of the running programs by name.
    pub(super) fn processes(&self) -> BTreeMap<String, u32> {
        self.state.borrow().running.clone()
    }

    /// Closes the pipe: both programs are killed, and the folder is removed.
    pub(super) fn close(&self) {
        self.state.send_modify(|state| state.closing = true);
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.pipe = None;
    }

    /// Waits until both programs have exited and the folder is removed.
    pub(super) async fn wait_until_gone(&self) {
        let mut states = self.state.subscribe();
        states.wait_for(|state| state.gone).await.expect("the sender lives as long as self");
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads the reports of the shell process until it exits.
fn read_reports(child: &mut Child, state: &watch::Sender<State>, folder: &Path) {
    let stdout = child.stdout.take().expect("its stdout is piped");
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let (event, name, value) = (words.next(), words.next(), words.next());
        state.send_modify(|state| match (event, name, value) {
            (Some("done"), _, _) => state.done += 1,
            (Some("started"), Some(name), Some(process)) => {
                state.running.extend(process.parse().map(|process| (name.to_owned(), process)).ok());
            }
            (Some("ended"), Some(name), Some(status)) => {
                state.running.remove(name);
                let expected = state.closing || (state.killed && name == APISERVER);
                if !expected && state.unexpected_exit.is_none() {
                    state.unexpected_exit = Some(format!("{name} exited with status {status}\n{}", logs(folder)));
                }
            }
            (_, _, _) => {}
        });
    }
    let status = child.wait();
    state.send_modify(|state| {
        state.gone = true;
        if !state.closing && state.unexpected_exit.is_none() {
            state.unexpected_exit = Some(format!("the supervisor exited: {status:?}"));
        }
    });
}

/// Returns the last lines of every log in the folder.
pub(super) fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["supervisor", "etcd", APISERVER] {
        let path: PathBuf = folder.join(format!("{name}.log"));
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if !tail.is_empty() {
            writeln!(text, "--- {name}.log\n{}", tail.join("\n")).expect("writing to a String cannot fail");
        }
    }
    text
}
