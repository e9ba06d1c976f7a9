//! Owns what the demo shows: the table of the stops while it changes, and what the samples came to.
//! Never renders a column itself: the table is the API server's own.

use std::io::{IsTerminal, Write, stdout};

use kube::Client;
use lab::table::table;
use serde_json::Value;
use tokio::time::Instant;

/// The stops of the demo's namespace, where the API server lists them.
const PATH: &str = "/apis/workflow.amperity.com/v1alpha1/namespaces/default/workflowrunstops";

/// The list as `kubectl get wrs` prints it, again and again.
pub struct LiveTable {
    client: Client,
    since: Instant,
    /// Lines to go back before the next picture; on a terminal only.
    drawn: usize,
    last: String,
    on_terminal: bool,
}

impl LiveTable {
    pub fn new(client: Client) -> Self {
        Self { client, since: Instant::now(), drawn: 0, last: String::new(), on_terminal: stdout().is_terminal() }
    }

    /// Shows the list as it is now: in place on a terminal; elsewhere only when more than an age has changed.
    pub async fn show(&mut self) -> Result<(), kube::Error> {
        let picture = table(&self.client, PATH, false).await?;
        if self.on_terminal {
            // A wrapped line would count twice on the way back, so lines are cut at the edge for the moment.
            let back = if self.drawn == 0 { "\n".to_owned() } else { format!("\x1b[{}A", self.drawn) };
            print!("{back}\x1b[J\x1b[?7l{picture}\x1b[?7h");
            // The last escape follows the last line break, and would wait for the next one.
            stdout().flush().map_err(|error| kube::Error::Service(error.into()))?;
            self.drawn = picture.lines().count();
        } else if without_age(&picture) != self.last {
            print!("\nafter {:.1} s:\n{picture}", self.since.elapsed().as_secs_f32());
            self.last = without_age(&picture);
        }
        Ok(())
    }
}

/// AGE is the last column; it changes every second.
fn without_age(picture: &str) -> String {
    picture.lines().map(|line| line.rsplit_once(' ').map_or(line, |(rest, _)| rest.trim_end())).collect()
}

/// The whole list, with every column.
pub async fn wide(client: &Client) -> Result<(), kube::Error> {
    println!("$ kubectl get wrs -o wide    (the same table, from the API server)");
    println!("{}", table(client, PATH, true).await?);
    Ok(())
}

/// One status as YAML.
pub fn status(name: &str, resource: &Value) {
    println!("$ kubectl get wrs {name} -o yaml    (its status)");
    match serde_yaml_ng::to_string(&resource["status"]) {
        Ok(yaml) => println!("{yaml}"),
        Err(error) => println!("{error}\n"),
    }
}
