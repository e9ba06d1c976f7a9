//! Owns the Secrets and tokens: their content, which tokens Amperity accepts, and the administrator who changes them.
//! Never judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{FAULT_PERIOD, Inner, World};

/// The name of a Secret with a static token.
pub const STATIC: &str = "amperity";

/// The name of a Secret with the id and secret of an OAuth client.
pub const CLIENT: &str = "client";

#[derive(Default)]
pub struct Secrets {
    version: u64,
    /// Secrets by `namespace/name`; none while deleted.
    stored: BTreeMap<String, Option<Secret>>,
    /// Tokens and client secrets that Amperity no longer accepts.
    revoked: BTreeSet<String>,
    /// Tokens that the token endpoint issued, with their client secret and the end of their validity.
    issued: BTreeMap<String, (String, Instant)>,
}

#[derive(Clone)]
struct Secret {
    version: u64,
    /// The static token, or the client's secret.
    content: String,
}

impl Secrets {
    /// Returns true if Amperity accepts this token now.
    pub fn is_valid(&self, token: &str) -> bool {
        match self.issued.get(token) {
            Some((client, until)) => {
                Instant::now() < *until && !self.revoked.contains(token) && !self.revoked.contains(client)
            }
            None => token.starts_with("content-") && !self.revoked.contains(token),
        }
    }

    /// Returns the client secret in the form of a token request, if the token endpoint accepts it.
    pub fn client_of(&self, form: &str) -> Option<String> {
        let secret = form.split('&').find_map(|part| part.strip_prefix("client_secret="))?;
        (!self.revoked.contains(secret)).then(|| secret.to_owned())
    }

    /// Issues a token for a client.
    pub fn issue(&mut self, client: String, valid: Duration) -> String {
        let token = format!("token-{}", self.issued.len());
        self.issued.insert(token.clone(), (client, Instant::now() + valid));
        token
    }

    /// Returns a Secret as the API server does.
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
    /// Creates the Secrets of all namespaces.
    pub fn create_secrets(&mut self) {
        for namespace in self.namespaces() {
            for name in [STATIC, CLIENT] {
                self.renew(&format!("{namespace}/{name}"));
            }
        }
    }

    /// Writes new content into a Secret. The old content stays valid until it is revoked.
    pub fn renew(&mut self, key: &str) {
        self.secrets.version += 1;
        let version = self.secrets.version;
        self.secrets.stored.insert(key.to_owned(), Some(Secret { version, content: format!("content-{version}") }));
    }

    /// Lets Amperity reject the content of a Secret from now on.
    pub fn revoke(&mut self, key: &str) {
        if let Some(Some(secret)) = self.secrets.stored.get(key).cloned() {
            self.log(&format!("the content of the Secret {key} is revoked"));
            self.secrets.revoked.insert(secret.content);
        }
    }
}

/// Revokes the content of a Secret, or deletes it, and repairs that some time later; up to twice.
pub async fn change_secrets(world: World) {
    for _ in 0..world.below(3) {
        sleep(FAULT_PERIOD.mul_f64(0.6 * world.fraction())).await;
        let namespaces = world.lock().namespaces();
        let namespace = namespaces[world.below(namespaces.len() as u64) as usize];
        let key = format!("{namespace}/{}", [STATIC, CLIENT][world.below(2) as usize]);
        // A permanently revoked content is never renewed.
        if world.lock().faults.permanently_revoked.as_ref() == Some(&key) {
            continue;
        }
        match world.below(4) {
            0 => {
                let mut inner = world.lock();
                inner.log(&format!("the Secret {key} is deleted"));
                inner.secrets.stored.insert(key.clone(), None);
            }
            1 => world.lock().revoke(&key),
            2 => {
                let mut inner = world.lock();
                inner.log("all tokens that were issued are revoked");
                let issued: Vec<_> = inner.secrets.issued.keys().cloned().collect();
                inner.secrets.revoked.extend(issued);
            }
            _ => {}
        }
        sleep(Duration::from_secs(world.below(60))).await;
        let mut inner = world.lock();
        inner.log(&format!("the Secret {key} gets new content"));
        inner.revoke(&key);
        inner.renew(&key);
    }
}
