//! Owns `kubectl stop-run`: creates a stop for each run, and waits for its end where that is wanted.
//! Never talks to Amperity or reads a Secret: the operator does the work, this asks for it.

pub mod complete;
pub mod flags;
pub mod manifest;
pub mod progress;
pub mod refusal;
pub mod wait;
pub mod words;

use std::{ffi::OsString, io::Write, path::Path};

use clap::{CommandFactory, Parser};
use futures::{StreamExt, stream::FuturesOrdered};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::Instant;

use crate::plugin::{
    flags::{Cli, Command, DryRun, Flags, Output},
    progress::Progress,
    wait::{Ended, wait},
    words::{again, created, outcome},
};
use crate::resource::WorkflowRunStop;

/// All went well.
pub const STOPPED: u8 = 0;
/// A stop failed for good, or the cluster refused something.
pub const STALLED: u8 = 1;
/// The arguments make no sense; what clap and kubectl's plugins use.
pub const USAGE: u8 = 2;
/// The time to wait was over. The stop goes on.
pub const TIMEOUT: u8 = 3;
/// Ctrl-C, as shells have it. The stop goes on.
pub const INTERRUPTED: u8 = 130;

/// The name under which kubectl asks for completions.
const COMPLETER: &str = "kubectl_complete-stop_run";

/// Does what these arguments say; the program's own name is the first. Returns the exit code.
pub fn main(args: Vec<OsString>) -> u8 {
    let name = args.first().map(Path::new).and_then(Path::file_stem);
    if name.is_some_and(|name| name == COMPLETER) {
        let words: Vec<_> = args.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        return print(&complete::candidates(&Cli::command(), &words));
    }
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Some(Command::Completion { shell }), .. }) => print(&complete::script(Cli::command(), shell)),
        Ok(Cli { command: None, stop: Some(flags) }) => {
            if let Err(error) = flags.check() {
                return fail(USAGE, &error);
            }
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(run(&flags)),
                Err(error) => fail(STALLED, &error.to_string()),
            }
        }
        Ok(Cli { command: None, stop: None }) => fail(USAGE, "name a run; see kubectl stop-run --help"),
        Err(error) => {
            // Help and version are no errors, and go to stdout.
            let code = if error.use_stderr() { USAGE } else { STOPPED };
            if error.print().is_err() { STALLED } else { code }
        }
    }
}

async fn run(flags: &Flags) -> u8 {
    let stops = flags.runs.iter().map(|run| manifest::stop(flags, run)).collect::<Vec<_>>();
    if flags.dry_run == DryRun::Client {
        return show(flags, &stops);
    }
    let api = match api(flags).await {
        Ok(api) => api,
        Err(error) => return fail(STALLED, &error),
    };
    let started = Instant::now();
    let params = PostParams { dry_run: flags.dry_run == DryRun::Server, ..PostParams::default() };
    let (mut code, mut made) = (STOPPED, vec![]);
    for (run, stop) in flags.runs.iter().zip(&stops) {
        match api.create(&params, stop).await {
            Ok(stop) => made.push(stop),
            Err(error) => code = code.max(fail(STALLED, &refusal::words(&error, run))),
        }
    }
    if !flags.wait || flags.dry_run == DryRun::Server {
        return code.max(show(flags, &made));
    }
    let progress = Progress::new(made.len());
    let waits = made.iter().map(|stop| wait(&api, stop, &progress));
    let mut waits: FuturesOrdered<_> = waits.collect();
    let mut ended = vec![];
    let interrupted = tokio::select! {
        () = async { while let Some(end) = waits.next().await { ended.push(end) } } => None,
        () = tokio::time::sleep(flags.timeout) => Some((TIMEOUT, format!("{} s are over", flags.timeout.as_secs()))),
        _ = tokio::signal::ctrl_c() => Some((INTERRUPTED, "interrupted".to_owned())),
    };
    drop(waits);
    progress.clear();
    // What ended is told in the order of the arguments, also where others have not.
    let mut last = vec![];
    for end in ended {
        match end {
            Ended::Finished(stop) => {
                let (told, well) = outcome(&stop, started.elapsed());
                if flags.output.is_none() {
                    code = code.max(print(&told))
                } else {
                    say(&told)
                }
                code = code.max(if well { STOPPED } else { STALLED });
                last.push(*stop);
            }
            Ended::Gone(why) => code = code.max(fail(STALLED, &why)),
        }
    }
    if let Some((by, why)) = interrupted {
        let open = made.iter().filter(|stop| last.iter().all(|ended| ended.uid() != stop.uid()));
        for stop in open {
            say(&again(stop, &why));
        }
        // What failed for good is worse than what is not known yet.
        code = if code == STALLED { code } else { by };
    }
    if flags.output.is_some() { code.max(show(flags, &last)) } else { code }
}

/// The stops of the namespace that is meant, as kubectl finds it.
async fn api(flags: &Flags) -> Result<Api<WorkflowRunStop>, String> {
    let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
    let config = match &flags.kubeconfig {
        Some(file) => match Kubeconfig::read_from(file) {
            Ok(kubeconfig) => {
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        },
        None if flags.context.is_some() => Config::from_kubeconfig(&options).await.map_err(|error| error.to_string()),
        None => Config::infer().await.map_err(|error| error.to_string()),
    };
    let config = config
        .map_err(|error| format!("no access to a cluster: {error}; set KUBECONFIG or --kubeconfig, and --context"))?;
    let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| format!("no access to a cluster: {error}"))?;
    Ok(Api::namespaced(client, &namespace))
}

/// Prints the resources as `-o` says.
fn show(flags: &Flags, stops: &[WorkflowRunStop]) -> u8 {
    let text = match flags.output {
        None => Ok(stops.iter().map(|stop| created(stop, flags.dry_run.note())).collect()),
        Some(Output::Name) => Ok(stops.iter().map(words::name_line).collect()),
        Some(Output::Json) => manifest::json(stops),
        Some(Output::Yaml) => manifest::yaml(stops),
    };
    match text {
        Ok(text) => print(&text),
        Err(error) => fail(STALLED, &error),
    }
}

fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => STOPPED,
        // Who reads has had enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => STOPPED,
        Err(error) => fail(STALLED, &error.to_string()),
    }
}

/// For people, beside what is printed.
fn say(text: &str) {
    // Where even stderr is gone the exit code has to do.
    let _ = write!(std::io::stderr(), "{text}");
}

fn fail(code: u8, why: &str) -> u8 {
    say(&format!("error: {why}\n"));
    code
}
