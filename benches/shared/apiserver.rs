//! Owns the counts of requests to the API server, from its own metrics.
//! Never counts what the measurement itself sends while it is not measuring.

use std::collections::BTreeMap;

use lab::control_plane::ControlPlane;

/// The resources whose requests are counted.
const RESOURCES: [&str; 3] = ["workflowrunstops", "events", "secrets"];

/// The numbers of requests so far, by resource and verb, such as `workflowrunstops/status PATCH`.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Reads the counts.
    pub async fn now(cluster: &ControlPlane) -> Self {
        let request = http::Request::get("/metrics").body(Vec::<u8>::new()).unwrap();
        let text = cluster.client().request_text(request).await.unwrap();
        let mut counts = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, value)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split('"').next()
            };
            let (resource, subresource) =
                (label(",resource").unwrap_or_default(), label("subresource").unwrap_or_default());
            if RESOURCES.contains(&resource) {
                let slash = if subresource.is_empty() { "" } else { "/" };
                let key = format!("{resource}{slash}{subresource} {}", label("verb").unwrap_or_default());
                *counts.entry(key).or_default() += value.parse::<f64>().unwrap() as u64;
            }
        }
        Self(counts)
    }

    /// Returns the number of requests since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |(key, count): (&String, &u64)| (key.clone(), count - earlier.of(key));
        Self(self.0.iter().map(since).filter(|(_, count)| *count > 0).collect())
    }

    /// Returns the number of requests with this key.
    pub fn of(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// Returns the number of events that were written.
    pub fn events(&self) -> u64 {
        self.of("events POST") + self.of("events PATCH")
    }

    /// Returns all counts as text.
    pub fn text(&self) -> String {
        let counts: Vec<_> = self.0.iter().map(|(key, count)| format!("{key} {count}")).collect();
        counts.join(", ")
    }
}
