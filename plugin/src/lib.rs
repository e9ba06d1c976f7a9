//! Owns the kubectl plugin `kubectl stop-run`: it creates stops, waits for their end where asked to, and tells how it was.
//! Never stops anything itself: the operator in the cluster does. Never reads a Secret.

pub mod args;
mod cluster;
mod completion;
mod exit;
mod manifest;
mod print;
mod progress;
mod refusal;
mod wait;
mod words;

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
use self::wait::{Waited, wait};

/// Does what the command line says; the first argument is the name of the program.
pub fn run(args: Vec<OsString>) -> Exit {
    if completion::is_asked_by_kubectl(&args) {
        return written(print_out(completion::candidates(args).as_bytes()));
    }
    match Cli::read(&args) {
        Ok(Command::Completion { shell }) => written(print_out(&completion::script(shell))),
        Ok(Command::Stop(flags)) if flags.dry_run == DryRun::Client => dry_run(&flags),
        Ok(Command::Stop(flags)) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(stop(&flags)),
            Err(error) => failed(&error.to_string()),
        },
        Err(error) => {
            let printed = error.print();
            match (error.use_stderr(), printed) {
                (true, _) => Exit::Usage,
                // Help and version.
                (false, Ok(())) => Exit::Done,
                (false, Err(error)) => failed(&error.to_string()),
            }
        }
    }
}

/// Writes to stdout.
///
/// # Errors
/// If it cannot be written, other than because the reader of a pipe has gone.
fn print_out(bytes: &[u8]) -> Result<(), String> {
    output::stdout(bytes).map_err(|error| format!("stdout: {error}"))
}

fn failed(why: &str) -> Exit {
    stderr_line(&format!("error: {why}"));
    Exit::Failed
}

fn written(result: Result<(), String>) -> Exit {
    result.map_or_else(|error| failed(&error), |()| Exit::Done)
}

/// Prints what would be created, without a cluster.
fn dry_run(flags: &Flags) -> Exit {
    let each = flags.runs.iter().map(|run| {
        let manifest = manifest(run, flags, Naming::Fixed);
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        match flags.output {
            Some(output) => print::resource(&manifest, output),
            None => format!("{} created (dry run)\n", words::full_name(name)),
        }
    });
    written(print_out(each.collect::<String>().as_bytes()))
}

/// Creates the stops, and waits for them where asked to.
async fn stop(flags: &Flags) -> Exit {
    let cluster = match Cluster::new(flags).await {
        Ok(cluster) => cluster,
        Err(error) => return failed(&error),
    };
    // Kept from here on, so that no Ctrl-C is lost between two waits.
    let mut interrupt = match signal(SignalKind::interrupt()) {
        Ok(interrupt) => interrupt,
        Err(error) => return failed(&format!("Ctrl-C cannot be caught: {error}")),
    };
    let (mut created, mut worst) = (vec![], Exit::Done);
    for run in &flags.runs {
        tokio::select! {
            result = create(&cluster, flags, run) => match result {
                Ok(stop) => created.push(stop),
                Err(exit) => worst = worst.max(exit),
            },
            _ = interrupt.recv() => {
                stderr_line(&format!("interrupted; {run} may have been asked for all the same. To look:"));
                stderr_line(&format!("  {}", cluster.place.look_at_all()));
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
        stderr_line(&format!("To wait for the end: {}", cluster.place.how_to_wait(&names(&created))));
    }
    worst
}

fn names(stops: &[WorkflowRunStop]) -> Vec<&str> {
    stops.iter().map(WorkflowRunStop::name).collect()
}

/// Creates one stop and says so.
async fn create(cluster: &Cluster, flags: &Flags, run: &str) -> Result<WorkflowRunStop, Exit> {
    let is_dry_run = flags.dry_run == DryRun::Server;
    let manifest = manifest(run, flags, Naming::Generated);
    let created = cluster.create(&manifest, is_dry_run).await;
    let stop = created.map_err(|error| failed(&format!("{run}: {error}")))?;
    let said = match flags.output {
        None if is_dry_run => format!("{} created (server dry run)\n", words::full_name(stop.name())),
        None => format!("{} created\n", words::full_name(stop.name())),
        // With --wait the other formats tell of the end. A name is known now, and somebody may need it before.
        Some(output) if output == Output::Name || !flags.wait => print::resource(&stop, output),
        Some(_) => String::new(),
    };
    print_out(said.as_bytes()).map_err(|error| failed(&error))?;
    Ok(stop)
}

/// Waits until all have finished, the time is over, or Ctrl-C.
async fn wait_for_all(cluster: &Cluster, flags: &Flags, stops: &[WorkflowRunStop], interrupt: &mut Signal) -> Exit {
    let (progress, until) = (Progress::new(), Instant::now() + flags.timeout);
    let mut left = names(stops);
    let mut waits: FuturesUnordered<_> = stops
        .iter()
        .map(|stop| {
            let mut line = progress.line(stop.name());
            async move { (stop.name(), wait(cluster.stops(), stop.clone(), until, &mut line).await) }
        })
        .collect();
    let mut worst = Exit::Done;
    loop {
        tokio::select! {
            waited = waits.next() => {
                let Some((name, waited)) = waited else { return worst };
                left.retain(|known| *known != name);
                worst = worst.max(progress.aside(|| tell_end(cluster, flags, name, waited)));
            }
            _ = interrupt.recv() => break,
        }
    }
    // The spinners go first.
    drop(waits);
    stderr_line(&format!("interrupted; the operator goes on with {}. To look again:", left.join(", ")));
    stderr_line(&cluster.place.look_again(&left));
    Exit::Interrupted
}

/// Tells how the wait for one stop ended.
fn tell_end(cluster: &Cluster, flags: &Flags, name: &str, waited: Waited) -> Exit {
    let again = format!("The operator goes on with it. To look again:\n{}", cluster.place.look_again(&[name]));
    match waited {
        Waited::Finished(stop) => {
            let outcome = words::outcome(&stop);
            let shown = match flags.output {
                None => written(print_out(format!("{outcome}\n").as_bytes())),
                Some(output) => {
                    stderr_line(&outcome);
                    last_seen(&stop, output)
                }
            };
            shown.max(words::verdict(&stop))
        }
        Waited::TimedOut(stop) => {
            let limit = words::duration(flags.timeout);
            stderr_line(&format!("{name}: not finished after {limit}: {}\n{again}", words::progress(&stop)));
            flags.output.map_or(Exit::Done, |output| last_seen(&stop, output)).max(Exit::TimedOut)
        }
        Waited::Gone => failed(&format!("{name} was deleted before its end was seen")),
        Waited::Refused(why) => {
            let exit = failed(&format!("{name} was created, but cannot be watched: {why}"));
            stderr_line(&again);
            exit
        }
    }
}

/// Prints a resource when the wait for it is over. Its name was printed when it was created.
fn last_seen(stop: &WorkflowRunStop, output: Output) -> Exit {
    match output {
        Output::Name => Exit::Done,
        Output::Json | Output::Yaml => written(print_out(print::resource(stop, output).as_bytes())),
    }
}
