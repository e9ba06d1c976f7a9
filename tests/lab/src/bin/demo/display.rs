//! Owns the output of the demo: the table of the stops while it changes, and the results.
//! Never renders a column itself: the API server does.

use std::io::{IsTerminal, Write, stdout};

use kube::Client;
use lab::table::table;
use serde_json::Value;
use tokio::time::Instant;

/// The path of the stops in the demo's namespace.
const PATH: &str = "/apis/workflow.amperity.com/v1alpha1/namespaces/default/workflowrunstops";

/// A live view of `kubectl get wrs`.
pub struct LiveTable {
    client: Client,
    since: Instant,
    /// Number of lines to overwrite; used only if stdout is a terminal.
    drawn: usize,
    /// The last printed table without AGE; used only if stdout is not a terminal.
    last: String,
    on_terminal: bool,
}

impl LiveTable {
    /// Creates a view; the displayed times count from now.
    pub fn new(client: Client) -> Self {
        Self { client, since: Instant::now(), drawn: 0, last: String::new(), on_terminal: stdout().is_terminal() }
    }

    /// Prints the current table: in place on a terminal; elsewhere only if more than the column AGE has changed.
    pub async fn show(&mut self) -> Result<(), kube::Error> {
        let text = table(&self.client, PATH, false).await?;
        if self.on_terminal {
            // Disables line wrapping meanwhile, because a wrapped line would count twice.
            let back = if self.drawn == 0 { "\n".to_owned() } else { format!("\x1b[{}A", self.drawn) };
            print!("{back}\x1b[J\x1b[?7l{text}\x1b[?7h");
            // stdout is line-buffered, and the last escape sequence follows the last line break.
            stdout().flush().map_err(|error| kube::Error::Service(error.into()))?;
            self.drawn = text.lines().count();
        } else if without_age(&text) != self.last {
            print!("\nafter {:.1} s:\n{text}", self.since.elapsed().as_secs_f32());
            self.last = without_age(&text);
        }
        Ok(())
    }
}

/// Removes the last column, AGE, which changes every second.
fn without_age(text: &str) -> String {
    text.lines().map(|line| line.rsplit_once(' ').map_or(line, |(rest, _)| rest.trim_end())).collect()
}

/// Prints the list with all columns.
pub async fn wide(client: &Client) -> Result<(), kube::Error> {
    println!("$ kubectl get wrs -o wide    (the same table, from the API server)");
    println!("{}", table(client, PATH, true).await?);
    Ok(())
}

/// Prints a status as YAML.
pub fn status(name: &str, resource: &Value) {
    println!("$ kubectl get wrs {name} -o yaml    (its status)");
    match serde_yaml_ng::to_string(&resource["status"]) {
        Ok(yaml) => println!("{yaml}"),
        Err(error) => println!("{error}\n"),
    }
}
