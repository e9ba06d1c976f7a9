//! Owns the faults that lie on a whole tenant, namespace or Secret, for a while or for ever, and which of them excuse
//! a resource that never finishes.
//! Never makes a fault happen: it says what one is.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    answers::{Answer, Effect, Fate, Page, any},
    secrets::STATIC,
    world::{Inner, Size, TROUBLE, World},
};

#[derive(Default)]
pub struct Faults {
    /// Wall clocks jump in this world.
    pub clocks_jump: bool,
    /// A gateway in front of Amperity is in trouble.
    outages: Vec<Outage>,
    /// The operator may never read Secrets in this namespace.
    pub secrets_forbidden: Option<&'static str>,
    /// Every request for an object of this namespace fails for ever.
    pub broken: Option<&'static str>,
    /// Amperity does not take what this Secret holds, for ever.
    pub revoked_for_ever: Option<String>,
    /// Amperity answers this tenant with 429 for ever.
    pub limited_for_ever: Option<&'static str>,
}

/// A gateway answers in place of Amperity.
struct Outage {
    tenant: &'static str,
    from: Instant,
    until: Instant,
    /// The answer; of a stop request also its effect.
    fate: Fate,
}

impl Faults {
    /// What a gateway makes of a request for this tenant now.
    pub fn outage(&self, tenant: &str) -> Option<Fate> {
        let now = Instant::now();
        if self.limited_for_ever == Some(tenant) {
            return Some(Fate { answer: Answer::Own(429), effect: Effect::None });
        }
        let mut outages = self.outages.iter();
        let outage = outages.find(|outage| outage.tenant == tenant && outage.from <= now && now < outage.until);
        outage.map(|outage| outage.fate)
    }
}

impl World {
    /// Chooses the faults of this world.
    pub fn draw_faults(&self) {
        let (large, namespaces, tenants) = {
            let inner = self.lock();
            (inner.size == Size::Large, inner.namespaces(), inner.tenants())
        };
        let clocks_jump = self.below(4) == 0;
        let mut outages = vec![];
        if self.below(4) == 0 {
            let from = Instant::now() + TROUBLE.mul_f64(0.5 * self.share());
            let until = from + Duration::from_secs(5 + self.below(115));
            let effect = any(self, &[Effect::None, Effect::AtOnce, Effect::Late]);
            let fates = [502, 503, 504, 403, 404, 302].map(|status| Answer::Foreign(status, Page::Html));
            let fate = Fate { answer: any(self, &fates), effect };
            outages.push(Outage { tenant: any(self, &tenants), from, until, fate });
        }
        let mut faults = Faults { clocks_jump, outages, ..Faults::default() };
        if large {
            match self.below(6) {
                0 => faults.secrets_forbidden = namespaces.last().copied(),
                1 => faults.broken = namespaces.last().copied(),
                2 => faults.limited_for_ever = tenants.last().copied(),
                3 => faults.revoked_for_ever = Some(format!("{}/{STATIC}", namespaces[0])),
                _ => {}
            }
        }
        let mut inner = self.lock();
        if let Some(key) = faults.revoked_for_ever.clone() {
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

    /// The reasons with which an unfinished resource may wait for ever; none where it has to finish. `None` in the
    /// list stands for every reason.
    pub fn excuses(&mut self, object: &Value) -> Vec<Option<&'static str>> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let spec = &object["spec"];
        let secret = format!("{namespace}/{}", spec["credentialsSecretRef"]["name"].as_str().unwrap_or_default());
        if self.faults.broken == Some(namespace) {
            return vec![None];
        }
        let status = &object["status"]["stopRequest"];
        let (claimed, accepted) = (status["claim"].is_object(), status["acceptedTime"].is_string());
        let bounded = spec["stopDeadlineSeconds"].is_number() || spec["notAfter"].is_string();
        if claimed || accepted || bounded {
            // An open claim, a follow timeout or a deadline ends it in time, unless somebody has to do something before an
            // open claim can be cleared up.
            let missing = self.faults.secrets_forbidden == Some(namespace) || self.secrets.get(&secret).is_none();
            let limited = self.faults.limited_for_ever == spec["tenant"].as_str();
            let refused = self.faults.revoked_for_ever.as_ref() == Some(&secret);
            return match claimed {
                true if missing => vec![Some("CredentialsMissing")],
                true if !bounded && !refused && !limited => self.excuses_of_run(spec),
                _ => vec![],
            };
        }
        if self.faults.secrets_forbidden == Some(namespace) {
            return vec![Some("CredentialsMissing")];
        }
        if !spec["tenant"].is_null() && self.faults.limited_for_ever == spec["tenant"].as_str() {
            return vec![Some("RateLimited"), Some("WaitingForBudget"), Some("StopRequested")];
        }
        if self.faults.revoked_for_ever.as_ref() == Some(&secret) {
            // Somebody may have deleted it as well.
            return vec![Some("Unauthorized"), Some("StopRequested"), Some("CredentialsMissing")];
        }
        self.excuses_of_run(spec)
    }

    fn excuses_of_run(&mut self, spec: &Value) -> Vec<Option<&'static str>> {
        let Some(run) = self.run(spec["runId"].as_str().unwrap_or_default()) else { return vec![] };
        let Some(Fate { answer, effect: Effect::None }) = run.stop_fault else { return vec![] };
        // Between two attempts that were refused one may have been lost.
        let lost = [Some("Unavailable"), Some("OutcomeUnknown"), Some("StopRequested"), Some("WaitingForBudget")];
        if answer == Answer::Own(403) {
            return [&[Some("Forbidden")], &lost[..]].concat();
        }
        if run.state != "running" || !run.is_readable() {
            return vec![];
        }
        match answer {
            Answer::Own(409) => [&[Some("Conflict"), Some("Forbidden")], &lost[..]].concat(),
            Answer::Own(500..) | Answer::Foreign(500.., _) => [&[Some("Forbidden")], &lost[..]].concat(),
            _ => vec![],
        }
    }
}
