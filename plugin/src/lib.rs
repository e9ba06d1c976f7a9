//! Owns the kubectl plugin `kubectl stop-run`: it creates stops, waits for them with `--wait`, and prints their results.
//! Never sends a stop request: the operator in the cluster does. Never reads a Secret.

mod api_error;
pub mod args;
mod cluster;
mod completion;
mod exit;
mod manifest;
mod messages;
mod print;
mod progress;
mod wait;

use std::ffi::OsString;

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use workflow_run_stop_common::output::{self, stderr_line};

use workflow_run_stop_api::WorkflowRunStop;

use self::args::{Cli, Command, DryRun, Flags, Output};
use self::cluster::Cluster;
pub use self::exit::Exit;
use self::manifest::{Naming, manifest};
use self::progress::Progress;
use self::wait::{WaitResult, wait};

/// Runs a command line, whose first argument is the name of the program.
pub fn run(args: Vec<OsString>) -> Exit {
    if completion::is_requested_by_kubectl(&args) {
        return write_stdout(completion::candidates(args).as_bytes());
    }
    match Cli::read(&args) {
        Ok(Command::Completion { shell }) => write_stdout(&completion::script(shell)),
        Ok(Command::Stop(flags)) if flags.dry_run == DryRun::Client => print_manifests(&flags),
        Ok(Command::Stop(flags)) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(stop(&flags)),
            Err(error) => fail(&error.to_string()),
        },
        Err(error) => {
            let printed = error.print();
            match (error.use_stderr(), printed) {
                (true, _) => Exit::Usage,
                // Help and version.
                (false, Ok(())) => Exit::Done,
                (false, Err(error)) => fail(&error.to_string()),
            }
        }
    }
}

/// Prints an error to stderr and returns [`Exit::Failed`].
fn fail(message: &str) -> Exit {
    stderr_line(&format!("error: {message}"));
    Exit::Failed
}

/// Writes to stdout and returns the exit code. A pipe that its reader has closed is not an error; any other error is
/// printed.
fn write_stdout(bytes: &[u8]) -> Exit {
    match output::stdout(bytes) {
        Ok(()) => Exit::Done,
        Err(error) => fail(&format!("cannot write to stdout: {error}")),
    }
}

/// Prints the resources that would be created. Needs no cluster.
fn print_manifests(flags: &Flags) -> Exit {
    let each = flags.runs.iter().map(|run| {
        let manifest = manifest(run, flags, Naming::Fixed);
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        match flags.output {
            Some(output) => print::resource(&manifest, output),
            None => format!("{} created (dry run)\n", messages::full_name(name)),
        }
    });
    write_stdout(each.collect::<String>().as_bytes())
}

/// Creates the stops, and with `--wait` waits for their results.
async fn stop(flags: &Flags) -> Exit {
    let cluster = match Cluster::new(flags).await {
        Ok(cluster) => cluster,
        Err(error) => return fail(&error),
    };
    // Registered before the first request, so that no Ctrl-C is missed between two waits.
    let mut interrupt = match signal(SignalKind::interrupt()) {
        Ok(interrupt) => interrupt,
        Err(error) => return fail(&format!("cannot handle Ctrl-C: {error}")),
    };
    let (mut created, mut worst) = (vec![], Exit::Done);
    for run in &flags.runs {
        tokio::select! {
            result = create(&cluster, flags, run) => match result {
                Ok(stop) => created.push(stop),
                Err(exit) => worst = worst.max(exit),
            },
            _ = interrupt.recv() => {
                stderr_line(&format!("interrupted; the stop for {run} may have been created. To check:"));
                stderr_line(&format!("  {}", cluster.kubectl.get_all()));
                return Exit::Interrupted;
            }
        }
    }
    if created.is_empty() || flags.dry_run == DryRun::Server {
        return worst;
    }
    if flags.wait {
        return worst.max(wait_for_all(&cluster, flags, &created, &mut interrupt).await);
    }
    if flags.output.is_none() {
        stderr_line(&format!("To wait for the result: {}", cluster.kubectl.wait_for(&names(&created))));
    }
    worst
}

fn names(stops: &[WorkflowRunStop]) -> Vec<&str> {
    stops.iter().map(WorkflowRunStop::name).collect()
}

/// Creates one stop and prints it.
async fn create(cluster: &Cluster, flags: &Flags, run: &str) -> Result<WorkflowRunStop, Exit> {
    let is_dry_run = flags.dry_run == DryRun::Server;
    let manifest = manifest(run, flags, Naming::Generated);
    let created = cluster.create(&manifest, is_dry_run).await;
    let stop = created.map_err(|error| fail(&format!("{run}: {error}")))?;
    let text = match flags.output {
        None if is_dry_run => format!("{} created (server dry run)\n", messages::full_name(stop.name())),
        None => format!("{} created\n", messages::full_name(stop.name())),
        // With --wait, JSON and YAML are printed when the wait is over. A name does not change, so it is printed now.
        Some(output) if output == Output::Name || !flags.wait => print::resource(&stop, output),
        Some(_) => String::new(),
    };
    let exit = write_stdout(text.as_bytes());
    if exit == Exit::Done { Ok(stop) } else { Err(exit) }
}

/// Waits until all stops have finished, `--timeout` has expired, or Ctrl-C.
async fn wait_for_all(cluster: &Cluster, flags: &Flags, stops: &[WorkflowRunStop], interrupt: &mut Signal) -> Exit {
    let (progress, deadline) = (Progress::new(), Instant::now() + flags.timeout);
    let mut unfinished = names(stops);
    let mut waits: FuturesUnordered<_> = stops
        .iter()
        .map(|stop| {
            let mut line = progress.line(stop.name());
            async move { (stop.name(), wait(cluster.stops(), stop.clone(), deadline, &mut line).await) }
        })
        .collect();
    let mut worst = Exit::Done;
    loop {
        tokio::select! {
            ended = waits.next() => {
                let Some((name, result)) = ended else { return worst };
                unfinished.retain(|other| *other != name);
                worst = worst.max(progress.suspend(|| report(cluster, flags, name, result)));
            }
            _ = interrupt.recv() => break,
        }
    }
    // Removes the spinners before the message is written.
    drop(waits);
    stderr_line(&format!("interrupted; the operator continues with {}. To check:", unfinished.join(", ")));
    stderr_line(&cluster.kubectl.get_and_describe(&unfinished));
    Exit::Interrupted
}

/// Prints how the wait for one stop ended.
fn report(cluster: &Cluster, flags: &Flags, name: &str, result: WaitResult) -> Exit {
    let check = format!("The operator continues with it. To check:\n{}", cluster.kubectl.get_and_describe(&[name]));
    match result {
        WaitResult::Finished(stop) => {
            let outcome = messages::outcome(&stop);
            let printed = match flags.output {
                None => write_stdout(format!("{outcome}\n").as_bytes()),
                Some(output) => {
                    stderr_line(&outcome);
                    print_last_seen(&stop, output)
                }
            };
            printed.max(messages::exit(&stop))
        }
        WaitResult::TimedOut(stop) => {
            let limit = messages::duration(flags.timeout);
            let progress = messages::progress(&stop);
            stderr_line(&format!("{name}: timed out waiting for the result after {limit}: {progress}\n{check}"));
            flags.output.map_or(Exit::Done, |output| print_last_seen(&stop, output)).max(Exit::TimedOut)
        }
        WaitResult::Deleted => fail(&format!("{name} was deleted before its result was read")),
        WaitResult::Refused(reason) => {
            let exit = fail(&format!("{name} was created, but cannot be watched: {reason}"));
            stderr_line(&check);
            exit
        }
    }
}

/// Prints a resource when the wait for it is over. With `-o name`, prints nothing: the name was printed when the
/// resource was created.
fn print_last_seen(stop: &WorkflowRunStop, output: Output) -> Exit {
    match output {
        Output::Name => Exit::Done,
        Output::Json | Output::Yaml => write_stdout(print::resource(stop, output).as_bytes()),
    }
}
