//! Owns the temporary and permanent faults of a tenant, namespace or Secret, and which of them permit a resource to
//! stay unfinished.
//! Never answers a request: the simulated APIs ask it.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    answers::{Answer, Behavior, Effect, Page, pick},
    secrets::STATIC,
    world::{FAULT_PERIOD, Inner, Size, World},
};

#[derive(Default)]
pub struct Faults {
    /// True if wall clocks jump.
    pub clocks_jump: bool,
    /// Times in which a gateway answers in place of Amperity.
    outages: Vec<Outage>,
    /// The operator has no right to read Secrets in this namespace, permanently.
    pub secrets_forbidden: Option<&'static str>,
    /// Every request for an object of this namespace fails, permanently.
    pub failing_namespace: Option<&'static str>,
    /// Amperity rejects the content of this Secret, permanently.
    pub permanently_revoked: Option<String>,
    /// Amperity answers this tenant with 429, permanently.
    pub always_rate_limited: Option<&'static str>,
    /// The API server refuses watches that begin with a list, as Kubernetes 1.33 does.
    pub refuses_streaming_lists: bool,
    /// Somebody keeps writing a resource that cannot be decoded.
    pub has_undecodable: bool,
}

/// A time in which a gateway answers the requests of a tenant in place of Amperity.
struct Outage {
    tenant: &'static str,
    from: Instant,
    until: Instant,
    /// The answer to every request, and the effect of stop requests.
    behavior: Behavior,
}

impl Faults {
    /// Returns the behavior that replaces Amperity's for this tenant now.
    pub fn outage(&self, tenant: &str) -> Option<Behavior> {
        let now = Instant::now();
        if self.always_rate_limited == Some(tenant) {
            return Some(Behavior { answer: Answer::Own(429), effect: Effect::None });
        }
        let mut outages = self.outages.iter();
        let outage = outages.find(|outage| outage.tenant == tenant && outage.from <= now && now < outage.until);
        outage.map(|outage| outage.behavior)
    }
}

impl World {
    /// Draws the faults of this world.
    pub fn draw_faults(&self) {
        let (large, namespaces, tenants) = {
            let inner = self.lock();
            (inner.size == Size::Large, inner.namespaces(), inner.tenants())
        };
        let clocks_jump = self.below(4) == 0;
        let mut outages = vec![];
        if self.below(4) == 0 {
            let from = Instant::now() + FAULT_PERIOD.mul_f64(0.5 * self.fraction());
            let until = from + Duration::from_secs(5 + self.below(115));
            let effect = pick(self, &[Effect::None, Effect::AtOnce, Effect::Late]);
            let answers = [502, 503, 504, 403, 404, 302].map(|status| Answer::Foreign(status, Page::Html));
            let behavior = Behavior { answer: pick(self, &answers), effect };
            outages.push(Outage { tenant: pick(self, &tenants), from, until, behavior });
        }
        let refuses_streaming_lists = self.below(2) == 0;
        let has_undecodable = self.below(3) == 0;
        let mut faults = Faults { clocks_jump, outages, refuses_streaming_lists, has_undecodable, ..Faults::default() };
        if large {
            match self.below(6) {
                0 => faults.secrets_forbidden = namespaces.last().copied(),
                1 => faults.failing_namespace = namespaces.last().copied(),
                2 => faults.always_rate_limited = tenants.last().copied(),
                3 => faults.permanently_revoked = Some(format!("{}/{STATIC}", namespaces[0])),
                _ => {}
            }
        }
        let mut inner = self.lock();
        if let Some(key) = faults.permanently_revoked.clone() {
            inner.revoke(&key);
        }
        inner.faults = faults;
    }
}

impl Inner {
    pub fn namespaces(&self) -> Vec<&'static str> {
        match self.size {
            Size::Small => vec!["sim"],
            Size::Large => vec!["sim-a", "sim-b", "sim-c"],
        }
    }

    pub fn tenants(&self) -> Vec<&'static str> {
        match self.size {
            Size::Small => vec!["acme"],
            Size::Large => vec!["acme", "bolt", "coil"],
        }
    }

    /// Returns the reasons with which an unfinished resource may wait for ever; none if it has to finish. `None` in the
    /// list means any reason.
    pub fn permitted_waits(&mut self, object: &Value) -> Vec<Option<&'static str>> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let spec = &object["spec"];
        let secret = format!("{namespace}/{}", spec["credentialsSecretRef"]["name"].as_str().unwrap_or_default());
        if self.faults.failing_namespace == Some(namespace) {
            return vec![None];
        }
        let status = &object["status"]["stopRequest"];
        let (claimed, accepted) = (status["claim"].is_object(), status["acceptedTime"].is_string());
        let bounded = spec["stopDeadlineSeconds"].is_number() || spec["notAfter"].is_string();
        if claimed || accepted || bounded {
            // The limit of an open claim, the follow timeout or a deadline ends it, unless the outcome of an open claim
            // cannot be confirmed before somebody repairs something.
            let missing = self.faults.secrets_forbidden == Some(namespace) || self.secrets.get(&secret).is_none();
            let limited = self.faults.always_rate_limited == spec["tenant"].as_str();
            let refused = self.faults.permanently_revoked.as_ref() == Some(&secret);
            return match claimed {
                true if missing => vec![Some("CredentialsMissing")],
                true if !bounded && !refused && !limited => self.permitted_waits_of_run(spec),
                _ => vec![],
            };
        }
        if self.faults.secrets_forbidden == Some(namespace) {
            return vec![Some("CredentialsMissing")];
        }
        if !spec["tenant"].is_null() && self.faults.always_rate_limited == spec["tenant"].as_str() {
            return vec![Some("RateLimited"), Some("WaitingForBudget"), Some("StopRequested")];
        }
        if self.faults.permanently_revoked.as_ref() == Some(&secret) {
            // The Secret may also have been deleted.
            return vec![Some("Unauthorized"), Some("StopRequested"), Some("CredentialsMissing")];
        }
        self.permitted_waits_of_run(spec)
    }

    fn permitted_waits_of_run(&mut self, spec: &Value) -> Vec<Option<&'static str>> {
        let Some(run) = self.run(spec["runId"].as_str().unwrap_or_default()) else { return vec![] };
        let Some(Behavior { answer, effect: Effect::None }) = run.stop_fault else { return vec![] };
        // Between two attempts with this answer, one may have been lost.
        let after_lost = [Some("Unavailable"), Some("OutcomeUnknown"), Some("StopRequested"), Some("WaitingForBudget")];
        if answer == Answer::Own(403) {
            return [&[Some("Forbidden")], &after_lost[..]].concat();
        }
        if run.state != "running" || !run.is_readable() {
            return vec![];
        }
        match answer {
            Answer::Own(409) => [&[Some("Conflict"), Some("Forbidden")], &after_lost[..]].concat(),
            Answer::Own(500..) | Answer::Foreign(500.., _) => [&[Some("Forbidden")], &after_lost[..]].concat(),
            _ => vec![],
        }
    }
}
