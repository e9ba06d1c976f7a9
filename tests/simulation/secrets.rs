//! Owns the Secrets and the tokens: what they hold, which tokens Amperity takes, and what administrators do to them.
//! Never judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{Inner, TROUBLE, World};

/// A Secret with a static token.
pub const STATIC: &str = "amperity";

/// A Secret with the id and secret of an OAuth client.
pub const CLIENT: &str = "client";

#[derive(Default)]
pub struct Secrets {
    version: u64,
    /// By `namespace/name`; none while it is deleted.
    stored: BTreeMap<String, Option<Secret>>,
    /// Tokens and client secrets that Amperity does not take any more.
    revoked: BTreeSet<String>,
    /// Tokens that the token endpoint issued: for which client secret, and until when they are valid.
    issued: BTreeMap<String, (String, Instant)>,
}

#[derive(Clone)]
struct Secret {
    version: u64,
    /// The static token, or the client's secret.
    content: String,
}

impl Secrets {
    /// True if Amperity takes this token now.
    pub fn is_valid(&self, token: &str) -> bool {
        match self.issued.get(token) {
            Some((client, until)) => {
                Instant::now() < *until && !self.revoked.contains(token) && !self.revoked.contains(client)
            }
            None => token.starts_with("content-") && !self.revoked.contains(token),
        }
    }

    /// The client secret in the form of a token request, if the token endpoint knows it.
    pub fn client_of(&self, form: &str) -> Option<String> {
        let secret = form.split('&').find_map(|part| part.strip_prefix("client_secret="))?;
        (!self.revoked.contains(secret)).then(|| secret.to_owned())
    }

    /// A new token for a client, valid for so long.
    pub fn issue(&mut self, client: String, valid: Duration) -> String {
        let token = format!("token-{}", self.issued.len());
        self.issued.insert(token.clone(), (client, Instant::now() + valid));
        token
    }

    /// A Secret as the API server returns it.
    pub fn get(&self, key: &str) -> Option<Value> {
        let Secret { version, content } = self.stored.get(key)?.as_ref()?;
        let (namespace, name) = key.split_once('/')?;
        let data = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
        let data = match name {
            STATIC => json!({"token": data(content)}),
            _ => json!({"clientId": data("id"), "clientSecret": data(content)}),
        };
        let uid = format!("secret-{key}");
        let meta = json!({"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version.to_string()});
        Some(json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}))
    }
}

impl Inner {
    /// Stores the Secrets of all namespaces.
    pub fn create_secrets(&mut self) {
        for namespace in self.namespaces() {
            for name in [STATIC, CLIENT] {
                self.fill(&format!("{namespace}/{name}"));
            }
        }
    }

    /// Writes new content into a Secret; the old content is valid until it is revoked.
    fn fill(&mut self, key: &str) {
        self.secrets.version += 1;
        let version = self.secrets.version;
        self.secrets.stored.insert(key.to_owned(), Some(Secret { version, content: format!("content-{version}") }));
    }

    /// Amperity does not take what a Secret holds any more.
    pub fn revoke(&mut self, key: &str) {
        if let Some(Some(secret)) = self.secrets.stored.get(key).cloned() {
            self.tell(&format!("the content of the Secret {key} is revoked"));
            self.secrets.revoked.insert(secret.content);
        }
    }
}

/// Somebody who now and then revokes what a Secret holds, or deletes it, and mends that a while later.
pub async fn administer(world: World) {
    for _ in 0..world.below(3) {
        sleep(TROUBLE.mul_f64(0.6 * world.share())).await;
        let namespaces = world.lock().namespaces();
        let namespace = namespaces[world.below(namespaces.len() as u64) as usize];
        let key = format!("{namespace}/{}", [STATIC, CLIENT][world.below(2) as usize]);
        // What was revoked for ever stays as it is.
        if world.lock().faults.revoked_for_ever.as_ref() == Some(&key) {
            continue;
        }
        match world.below(4) {
            0 => {
                let mut inner = world.lock();
                inner.tell(&format!("the Secret {key} is deleted"));
                inner.secrets.stored.insert(key.clone(), None);
            }
            1 => world.lock().revoke(&key),
            2 => {
                let mut inner = world.lock();
                inner.tell("all tokens that were issued are revoked");
                let issued: Vec<_> = inner.secrets.issued.keys().cloned().collect();
                inner.secrets.revoked.extend(issued);
            }
            _ => {}
        }
        sleep(Duration::from_secs(world.below(60))).await;
        let mut inner = world.lock();
        inner.tell(&format!("the Secret {key} gets new content"));
        inner.revoke(&key);
        inner.fill(&key);
    }
}
