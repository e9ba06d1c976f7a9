//! Owns the shell process that keeps etcd and kube-apiserver: its commands, and what it tells about them.
//! Never speaks Kubernetes, and never depends on a tokio runtime: what it tells is read by a thread
//! of its own.

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

/// How many of a log's last lines tell what went wrong.
const TAIL_LINES: usize = 15;

const APISERVER: &str = "kube-apiserver";

/// The ports of one control plane, all on loopback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) apiserver: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
}

/// What was heard from the shell process so far.
#[derive(Debug, Default)]
struct Seen {
    /// Each program that runs, and its process.
    running: BTreeMap<String, u32>,
    /// How many commands it answered.
    answered: u64,
    /// kube-apiserver was killed on purpose, so its end is no fault.
    killed: bool,
    /// The end of everything was asked for.
    closing: bool,
    /// What ended that should run.
    fault: Option<String>,
    /// The shell process is gone, and with it both programs and the folder.
    gone: bool,
}

/// The pipe to the shell process. When it closes, in whatever way, everything below ends.
struct Commands {
    pipe: Option<ChildStdin>,
    sent: u64,
}

/// A running shell process with etcd and kube-apiserver below it.
pub(super) struct Supervisor {
    commands: Mutex<Commands>,
    seen: watch::Sender<Seen>,
}

impl Supervisor {
    /// Starts etcd at once; kube-apiserver waits for [`Supervisor::start_apiserver`]. From here on
    /// the folder belongs to the shell process.
    pub(super) fn spawn(folder: &Path, binaries: &Path, ports: Ports) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", include_str!("supervisor.sh"), "control-plane"])
            .args([folder, binaries])
            .args([ports.apiserver, ports.etcd, ports.etcd_peer].map(|port| port.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in a terminal reaches this process only, which may still
            // have something to write, and the end follows its end.
            .process_group(0)
            // etcd takes each of its settings from the environment too.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .spawn()?;
        let pipe = child.stdin.take();
        let (seen, _) = watch::channel(Seen::default());
        let listener = seen.clone();
        let folder = folder.to_owned();
        thread::Builder::new()
            .name("control-plane".to_owned())
            .spawn(move || listen(&mut child, &listener, &folder))?;
        Ok(Self { commands: Mutex::new(Commands { pipe, sent: 0 }), seen })
    }

    /// Starts kube-apiserver. It is not ready yet.
    pub(super) async fn start_apiserver(&self) -> Result<(), String> {
        if self.processes().contains_key(APISERVER) {
            return Err("kube-apiserver runs already".to_owned());
        }
        self.seen.send_modify(|seen| seen.killed = false);
        self.command("start").await
    }

    /// Kills kube-apiserver and waits for its end.
    pub(super) async fn kill_apiserver(&self) -> Result<(), String> {
        self.seen.send_modify(|seen| seen.killed = true);
        self.command("kill").await
    }

    /// Stops kube-apiserver where it is (SIGSTOP).
    pub(super) async fn pause_apiserver(&self) -> Result<(), String> {
        self.command("pause").await
    }

    /// Lets a paused kube-apiserver go on (SIGCONT).
    pub(super) async fn resume_apiserver(&self) -> Result<(), String> {
        self.command("resume").await
    }

    /// Sends one command and waits for its answer.
    async fn command(&self, word: &str) -> Result<(), String> {
        let number = self
            .send(word)
            .map_err(|error| self.fault().unwrap_or_else(|| format!("the supervisor takes no commands: {error}")))?;
        let mut seen = self.seen.subscribe();
        let answered =
            seen.wait_for(|seen| seen.answered >= number || seen.gone).await.expect("the sender lives as long as self");
        if answered.answered >= number { Ok(()) } else { Err("the supervisor ended before it answered".to_owned()) }
    }

    fn send(&self, word: &str) -> io::Result<u64> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = commands.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{word}\n").as_bytes())?;
        commands.sent += 1;
        Ok(commands.sent)
    }

    /// What ended although nobody asked for it, with the last lines of the logs.
    pub(super) fn fault(&self) -> Option<String> {
        self.seen.borrow().fault.clone()
    }

    /// Waits until something ends although nobody asked for it.
    pub(super) async fn failed(&self) -> String {
        let mut seen = self.seen.subscribe();
        let seen = seen.wait_for(|seen| seen.fault.is_some()).await.expect("the sender lives as long as self");
        seen.fault.clone().expect("just waited for")
    }

    /// The processes below the shell process by the names of their programs.
    pub(super) fn processes(&self) -> BTreeMap<String, u32> {
        self.seen.borrow().running.clone()
    }

    /// Closes the pipe: both programs end, and the folder goes away.
    pub(super) fn close(&self) {
        self.seen.send_modify(|seen| seen.closing = true);
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.pipe = None;
    }

    /// Waits until both programs and the folder are gone.
    pub(super) async fn gone(&self) {
        let mut seen = self.seen.subscribe();
        seen.wait_for(|seen| seen.gone).await.expect("the sender lives as long as self");
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes in what the shell process tells, until it is gone.
fn listen(child: &mut Child, seen: &watch::Sender<Seen>, folder: &Path) {
    let told = child.stdout.take().expect("its stdout is piped");
    for line in BufReader::new(told).lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let (what, name, value) = (words.next(), words.next(), words.next());
        seen.send_modify(|seen| match (what, name, value) {
            (Some("done"), _, _) => seen.answered += 1,
            (Some("started"), Some(name), Some(process)) => {
                seen.running.extend(process.parse().map(|process| (name.to_owned(), process)).ok());
            }
            (Some("ended"), Some(name), Some(status)) => {
                seen.running.remove(name);
                let expected = seen.closing || (seen.killed && name == APISERVER);
                if !expected && seen.fault.is_none() {
                    seen.fault = Some(format!("{name} ended with status {status}\n{}", logs(folder)));
                }
            }
            (_, _, _) => {}
        });
    }
    let status = child.wait();
    seen.send_modify(|seen| {
        seen.gone = true;
        if !seen.closing && seen.fault.is_none() {
            seen.fault = Some(format!("the supervisor ended: {status:?}"));
        }
    });
}

/// The last lines of every log in the folder.
pub(super) fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["supervisor", "etcd", APISERVER] {
        let path: PathBuf = folder.join(format!("{name}.log"));
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if !tail.is_empty() {
            writeln!(text, "--- {name}.log\n{}", tail.join("\n")).expect("a String takes everything");
        }
    }
    text
}
