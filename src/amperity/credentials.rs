//! Owns credentials: the content of a Secret, the cache of fetched tokens, and the credentials that the API refused.
//! Never shows a secret: every type here hides it from `Debug`.
//!
//! The kinds of tokens are described in <https://docs.amperity.com/api/authentication.html>.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::header::HeaderValue;
use thiserror::Error;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

use crate::amperity::{endpoint::BudgetKey, purpose::Purpose};
use crate::bounded_map::BoundedMap;
use crate::fault_injection::{Fault, is_injected};
use crate::rng;

/// A token is renewed this long before it expires, or after nine tenths of its lifetime if that is later.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(60);

/// The backoff after the first refusal of credentials; doubles with each further one up to the maximum.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The time for which other requests wait while one request tries refused credentials again.
const TRIAL_TIME: Duration = Duration::from_secs(5);

/// The bound for all cached tokens, and the size of one of them besides its text, in bytes.
const MAX_TOKENS: usize = 8 * 1024 * 1024;
const TOKEN_OVERHEAD: usize = 512;

/// The largest number of credentials whose refusals are remembered. Others are tried again without a backoff.
const MOST_REFUSED: usize = 4096;

/// The longest detail of a remembered refusal, in bytes.
const MAX_DETAIL: usize = 256;

/// The value of an `Authorization` header. `Debug` does not show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// Creates a bearer token. Returns `None` if it has characters that are not allowed in a header.
    pub fn bearer(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// Returns the value of the header, marked as sensitive.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// The credentials in a Secret.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A token that was created in Amperity's user interface.
    Static(Token),
    /// The id and secret of an OAuth 2 client.
    Client(OauthClient),
}

/// An OAuth 2 client.
#[derive(Clone)]
pub struct OauthClient {
    /// The client's id.
    pub id: String,
    /// The client's secret.
    pub secret: String,
    /// The URL of the token endpoint, if it is not the documented one.
    pub token_url: Option<String>,
}

impl fmt::Debug for OauthClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OauthClient").finish_non_exhaustive()
    }
}

/// The largest value of a key, in bytes.
pub const MAX_VALUE: usize = 16 * 1024;

/// The value of a key of a Secret.
#[derive(Clone)]
pub enum SecretValue {
    /// The value.
    Bytes(Vec<u8>),
    /// It is larger than [`MAX_VALUE`], and was not read.
    TooLarge,
}

/// The values of the keys that credentials are made of. `Debug` does not show them.
#[derive(Clone, Default)]
pub struct SecretData(BTreeMap<&'static str, SecretValue>);

impl SecretData {
    /// The keys that credentials are made of.
    pub const KEYS: [&str; 4] = ["token", "clientId", "clientSecret", "tokenUrl"];

    /// Sets the value of a key. Any other key is ignored.
    pub fn insert(&mut self, key: &str, value: SecretValue) {
        if let Some(key) = Self::KEYS.into_iter().find(|known| *known == key) {
            self.0.insert(key, value);
        }
    }
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretData").finish_non_exhaustive()
    }
}

/// The reason why the content of a Secret cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CredentialsError {
    /// Neither kind of credentials is complete.
    #[error("it has neither the key token nor the keys clientId and clientSecret")]
    NoKeys,
    /// A key is empty or has characters that cannot be sent.
    #[error("its key {0} is empty or has characters that cannot be sent")]
    Unusable(&'static str),
    /// A key is too large.
    #[error("its key {0} is larger than {max} KiB", max = MAX_VALUE / 1024)]
    TooLarge(&'static str),
}

impl Credentials {
    /// Parses the content of a Secret. Surrounding white space is ignored.
    ///
    /// # Errors
    /// If keys are missing or unusable. The message never contains a value.
    pub fn parse(data: &SecretData) -> Result<Self, CredentialsError> {
        let text = |key: &'static str| {
            data.0.get(key).map(|value| {
                let SecretValue::Bytes(value) = value else { return Err(CredentialsError::TooLarge(key)) };
                let text = std::str::from_utf8(value).map(str::trim).unwrap_or_default();
                let usable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
                if usable { Ok(text.to_owned()) } else { Err(CredentialsError::Unusable(key)) }
            })
        };
        if let Some(token) = text("token") {
            return Token::bearer(&token?).map(Self::Static).ok_or(CredentialsError::Unusable("token"));
        }
        match (text("clientId"), text("clientSecret")) {
            (Some(id), Some(secret)) => {
                Ok(Self::Client(OauthClient { id: id?, secret: secret?, token_url: text("tokenUrl").transpose()? }))
            }
            (None, _) | (_, None) => Err(CredentialsError::NoKeys),
        }
    }
}

/// The key of cached credentials: one version of one Secret, used for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CredentialsKey {
    /// The namespace of the Secret.
    pub namespace: Arc<str>,
    /// The Secret's uid and resource version: new content is a new key.
    pub secret: (String, String),
    /// The tenant and origin that it is used for.
    pub budget: BudgetKey,
}

/// The cache of fetched tokens and refused credentials.
#[derive(Clone, Default)]
pub struct CredentialCache(Arc<Mutex<CacheState>>);

struct CacheState {
    tokens: BoundedMap<CredentialsKey, (Token, Instant)>,
    fetch_locks: HashMap<CredentialsKey, Arc<AsyncMutex<()>>>,
    refusals: BoundedMap<CredentialsKey, HashMap<Refused, RefusalRecord>>,
}

impl Default for CacheState {
    fn default() -> Self {
        Self {
            tokens: BoundedMap::new(MAX_TOKENS),
            fetch_locks: HashMap::new(),
            refusals: BoundedMap::new(MOST_REFUSED),
        }
    }
}

impl CacheState {
    /// Returns the refusals of these credentials that block requests for this purpose.
    fn refusals(&self, key: &CredentialsKey, purpose: Purpose) -> impl Iterator<Item = &RefusalRecord> {
        let known = self.refusals.get(key);
        Refused::blocking(purpose).iter().filter_map(move |refused| known?.get(refused))
    }
}

/// The kind of a refusal. Each kind has its own backoff, because a different answer ends each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Refused {
    /// The token endpoint issued no token. Blocks every request until it issues one.
    Issuing,
    /// The API answered 401. Blocks every request until the API accepts the token.
    Token,
    /// The API answered a stop request with 403. Blocks stop requests only: reading a run needs no permission to stop
    /// it.
    Stop,
}

impl Refused {
    /// Returns the kinds that block requests for this purpose.
    fn blocking(purpose: Purpose) -> &'static [Self] {
        match purpose {
            Purpose::Stop => &[Self::Issuing, Self::Token, Self::Stop],
            Purpose::Read | Purpose::Token if is_injected(Fault::ForbiddenBlocksReads) => Self::blocking(Purpose::Stop),
            Purpose::Read | Purpose::Token => &[Self::Issuing, Self::Token],
        }
    }
}

struct RefusalRecord {
    /// The number of consecutive refusals.
    count: u32,
    refusal: Refusal,
    detail: String,
    since: Instant,
    until: Instant,
}

/// The permission to use credentials for one request.
#[derive(Clone, Copy, Debug)]
pub struct Permit {
    issued_at: Instant,
    purpose: Purpose,
}

/// The reason why credentials are in backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 401.
    Unauthorized,
    /// Amperity answered a stop request with its own 403.
    Forbidden,
    /// The token endpoint refused the client.
    ClientRefused,
    /// The token endpoint could not be reached.
    Unreachable,
    /// The token endpoint did not return a token.
    Unavailable,
}

impl Refusal {
    fn refused(self) -> Refused {
        match self {
            Self::Unauthorized => Refused::Token,
            Self::Forbidden => Refused::Stop,
            Self::ClientRefused | Self::Unreachable | Self::Unavailable => Refused::Issuing,
        }
    }
}

/// The backoff of refused credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsBackoff {
    /// The reason.
    pub refusal: Refusal,
    /// The answer of the API.
    pub detail: String,
    /// The end of the backoff.
    pub until: Instant,
}

impl CredentialCache {
    /// Returns a fetched token that is not due for renewal.
    pub fn token(&self, key: &CredentialsKey) -> Option<Token> {
        let state = self.lock();
        let (token, renew_at) = state.tokens.get(key)?;
        (Instant::now() < *renew_at).then(|| token.clone())
    }

    /// Caches a fetched token until it is due for renewal, and ends the backoff of token requests. `lifetime` is the time
    /// until the token expires.
    pub fn store_token(&self, key: CredentialsKey, token: Token, lifetime: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        state.tokens.retain(|(_, renew_at)| now < *renew_at);
        if let Some(records) = state.refusals.get_mut(&key) {
            records.remove(&Refused::Issuing);
        }
        let renew_at = now + (lifetime - RENEW_BEFORE_EXPIRY.min(lifetime / 10));
        let (namespace, size) = (key.namespace.clone(), token.0.len() + TOKEN_OVERHEAD);
        state.tokens.insert(&namespace, key, size, (token, renew_at));
    }

    /// Removes a token that was refused from the cache, so that a new one is fetched.
    pub fn remove_token(&self, key: &CredentialsKey, token: &Token) {
        let mut state = self.lock();
        if state.tokens.get(key).is_some_and(|(cached, _)| cached == token) {
            state.tokens.remove(key);
        }
    }

    /// Locks the fetching of a token: of all requests that need the same token, one fetches it.
    pub async fn lock_token_fetch(&self, key: &CredentialsKey) -> OwnedMutexGuard<()> {
        self.fetch_lock(key).lock_owned().await
    }

    /// Locks the fetching of a token, unless another request fetches it now.
    pub fn try_lock_token_fetch(&self, key: &CredentialsKey) -> Option<OwnedMutexGuard<()>> {
        self.fetch_lock(key).try_lock_owned().ok()
    }

    fn fetch_lock(&self, key: &CredentialsKey) -> Arc<AsyncMutex<()>> {
        let mut state = self.lock();
        if !state.fetch_locks.contains_key(key) {
            state.fetch_locks.retain(|_, lock| 1 < Arc::strong_count(lock));
        }
        state.fetch_locks.entry(key.clone()).or_default().clone()
    }

    /// Permits the use of these credentials for one request. After the backoff of refused credentials, one request may
    /// try them again, while the others keep waiting.
    ///
    /// # Errors
    /// If the credentials are in backoff.
    pub fn admit(&self, key: &CredentialsKey, purpose: Purpose) -> Result<Permit, CredentialsBackoff> {
        let now = Instant::now();
        let mut state = self.lock();
        let backoff = state.refusals(key, purpose).find(|record| now < record.until).map(|record| CredentialsBackoff {
            refusal: record.refusal,
            detail: record.detail.clone(),
            until: record.until,
        });
        if let Some(backoff) = backoff {
            return Err(backoff);
        }
        for refused in Refused::blocking(purpose) {
            if let Some(record) = state.refusals.get_mut(key).and_then(|records| records.get_mut(refused)) {
                record.until = now + TRIAL_TIME;
            }
        }
        Ok(Permit { issued_at: now, purpose })
    }

    /// Returns true if the API refused these credentials for the purpose of the permit after it was issued.
    pub fn was_refused_since(&self, key: &CredentialsKey, Permit { issued_at, purpose }: Permit) -> bool {
        let state = self.lock();
        state.refusals(key, purpose).any(|record| issued_at < record.since)
    }

    /// Records that the API refused these credentials: starts a backoff for all requests that use them, after a 403 for
    /// stop requests only.
    pub fn record_refusal(
        &self,
        key: &CredentialsKey,
        Permit { issued_at, .. }: Permit,
        refusal: Refusal,
        detail: &str,
    ) {
        let now = Instant::now();
        let mut state = self.lock();
        state.refusals.retain(|records| {
            records.retain(|_, record| now < record.until + MAX_BACKOFF * 10);
            !records.is_empty()
        });
        if state.refusals.get(key).is_none() {
            state.refusals.insert(&key.namespace, key.clone(), 1, HashMap::new());
        }
        let Some(records) = state.refusals.get_mut(key) else { return };
        let count = match records.get(&refusal.refused()) {
            // This request was in flight already when another one was refused, so it says nothing new.
            Some(record) if issued_at < record.since => return,
            Some(record) => record.count,
            None => 0,
        };
        let backoff = FIRST_BACKOFF.saturating_mul(1 << count.min(10)).min(MAX_BACKOFF);
        let until = now + backoff.mul_f64(rng::upper_half());
        let detail = detail[..detail.floor_char_boundary(MAX_DETAIL)].to_owned();
        let record = RefusalRecord { count: count + 1, refusal, detail, since: now, until };
        records.insert(refusal.refused(), record);
    }

    /// Records that the API accepted these credentials for this purpose, which ends the backoffs that concern it.
    pub fn record_acceptance(&self, key: &CredentialsKey, purpose: Purpose) {
        let mut state = self.lock();
        if let Some(records) = state.refusals.get_mut(key) {
            records.retain(|refused, _| !Refused::blocking(purpose).contains(refused));
        }
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::endpoint::{AllowedHosts, Endpoints};

    fn secret(pairs: &[(&str, &str)]) -> SecretData {
        let mut data = SecretData::default();
        pairs.iter().for_each(|(key, value)| data.insert(key, SecretValue::Bytes(value.as_bytes().to_vec())));
        data
    }

    fn key(version: &str) -> CredentialsKey {
        let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
        let budget = endpoints.of("acme", None).unwrap().budget_key();
        CredentialsKey { namespace: "ops".into(), secret: ("uid".into(), version.into()), budget }
    }

    #[test]
    fn a_secret_holds_a_token_or_a_client() {
        assert!(matches!(Credentials::parse(&secret(&[("token", " abc\n")])), Ok(Credentials::Static(_))));
        let client = secret(&[("clientId", "id\n"), ("clientSecret", "s"), ("tokenUrl", "https://x/y")]);
        assert!(matches!(Credentials::parse(&client), Ok(Credentials::Client(OauthClient { token_url: Some(_), .. }))));
        for (pairs, error) in [
            (&[][..], CredentialsError::NoKeys),
            (&[("clientId", "x")], CredentialsError::NoKeys),
            (&[("token", " \n")], CredentialsError::Unusable("token")),
            (&[("token", "a b")], CredentialsError::Unusable("token")),
            (&[("clientId", "x"), ("clientSecret", "ä")], CredentialsError::Unusable("clientSecret")),
        ] {
            assert_eq!(Credentials::parse(&secret(pairs)).unwrap_err(), error);
        }
    }

    #[test]
    fn a_key_that_is_too_large_is_named_with_the_limit_if_it_is_needed() {
        let mut data = secret(&[("clientId", "id"), ("clientSecret", "s")]);
        data.insert("tokenUrl", SecretValue::TooLarge);
        data.insert("ca.crt", SecretValue::TooLarge);
        let error = Credentials::parse(&data).unwrap_err();
        assert_eq!(error, CredentialsError::TooLarge("tokenUrl"));
        assert_eq!(error.to_string(), "its key tokenUrl is larger than 16 KiB");
        data.insert("token", SecretValue::Bytes(b"t".to_vec()));
        assert!(matches!(Credentials::parse(&data), Ok(Credentials::Static(_))));
        data.insert("token", SecretValue::TooLarge);
        assert_eq!(Credentials::parse(&data).unwrap_err(), CredentialsError::TooLarge("token"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = |pairs| format!("{:?}", Credentials::parse(&secret(pairs)).unwrap());
        assert_eq!(shown(&[("token", "hush")]), "Static(Token(Sensitive))");
        assert_eq!(shown(&[("clientId", "id"), ("clientSecret", "hush")]), "Client(OauthClient { .. })");
        assert_eq!(format!("{:?}", secret(&[("token", "hush")])), "SecretData { .. }");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_lived_token_is_used_for_nine_tenths_of_its_lifetime() {
        let cache = CredentialCache::default();
        cache.store_token(key("1"), Token::bearer("t").unwrap(), Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(26)).await;
        assert!(cache.token(&key("1")).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.token(&key("1")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_a_minute_before_it_expires() {
        let cache = CredentialCache::default();
        cache.store_token(key("1"), Token::bearer("t").unwrap(), Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(3539)).await;
        assert!(cache.token(&key("1")).is_some());
        assert!(cache.token(&key("2")).is_none(), "another version of the Secret has its own token");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.token(&key("1")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_in_backoff_until_one_request_tries_them_again() {
        let cache = CredentialCache::default();
        let permits: Vec<_> = (0..10).map(|_| cache.admit(&key("1"), Purpose::Stop).unwrap()).collect();
        tokio::time::advance(Duration::from_millis(5)).await;
        for permit in permits {
            cache.record_refusal(&key("1"), permit, Refusal::Unauthorized, "");
        }
        let backoff = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        assert!(backoff.until <= Instant::now() + FIRST_BACKOFF, "ten refusals of concurrent requests count once");
        assert_eq!(cache.admit(&key("1"), Purpose::Read).unwrap_err(), backoff, "a 401 concerns reads as well");
        assert!(cache.admit(&key("2"), Purpose::Stop).is_ok(), "a new version of the Secret is tried at once");
        tokio::time::sleep_until(backoff.until).await;
        let trial = cache.admit(&key("1"), Purpose::Stop).unwrap();
        assert!(cache.admit(&key("1"), Purpose::Stop).is_err(), "the others wait for the trial");
        cache.record_refusal(&key("1"), trial, Refusal::Unauthorized, "");
        let backoff = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        let wait = backoff.until - Instant::now();
        assert!((FIRST_BACKOFF..=FIRST_BACKOFF * 2).contains(&wait), "the second backoff is longer: {wait:?}");
        cache.record_acceptance(&key("1"), Purpose::Read);
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_403_to_a_stop_blocks_stops_only_and_a_read_does_not_unblock_them() {
        let cache = CredentialCache::default();
        let stop = cache.admit(&key("1"), Purpose::Stop).unwrap();
        let read = cache.admit(&key("1"), Purpose::Read).unwrap();
        tokio::time::advance(Duration::from_millis(5)).await;
        cache.record_refusal(&key("1"), stop, Refusal::Forbidden, "");
        assert!(cache.was_refused_since(&key("1"), stop));
        assert!(!cache.was_refused_since(&key("1"), read), "a read that has a permit continues");
        assert!(cache.admit(&key("1"), Purpose::Read).is_ok());
        cache.record_acceptance(&key("1"), Purpose::Read);
        let backoff = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        assert_eq!(backoff.refusal, Refusal::Forbidden);
        tokio::time::sleep_until(backoff.until).await;
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
        assert!(cache.admit(&key("1"), Purpose::Stop).is_err(), "the others wait for the trial");
        cache.record_acceptance(&key("1"), Purpose::Stop);
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_issued_token_ends_the_backoff_of_token_requests_and_no_other() {
        for (refusal, ends) in [
            (Refusal::ClientRefused, true),
            (Refusal::Unreachable, true),
            (Refusal::Unavailable, true),
            (Refusal::Unauthorized, false),
            (Refusal::Forbidden, false),
        ] {
            let cache = CredentialCache::default();
            let permit = cache.admit(&key("1"), Purpose::Stop).unwrap();
            cache.record_refusal(&key("1"), permit, refusal, "");
            cache.store_token(key("1"), Token::bearer("t").unwrap(), Duration::from_secs(3600));
            assert_eq!(cache.admit(&key("1"), Purpose::Stop).is_ok(), ends, "{refusal:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_removed_and_a_newer_one_stays() {
        let (cache, [old, new]) =
            (CredentialCache::default(), ["old", "new"].map(|token| Token::bearer(token).unwrap()));
        cache.store_token(key("1"), new.clone(), Duration::from_secs(3600));
        cache.remove_token(&key("1"), &old);
        assert_eq!(cache.token(&key("1")), Some(new.clone()));
        cache.remove_token(&key("1"), &new);
        assert_eq!(cache.token(&key("1")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_tokens_and_old_refusals_leave_the_cache() {
        let cache = CredentialCache::default();
        let token = || Token::bearer("t").unwrap();
        cache.store_token(key("1"), token(), Duration::from_secs(30));
        cache.store_token(key("2"), token(), Duration::from_secs(3600));
        let permit = cache.admit(&key("1"), Purpose::Stop).unwrap();
        cache.record_refusal(&key("1"), permit, Refusal::Unauthorized, "");
        let sizes = || {
            let state = cache.lock();
            (state.tokens.len(), state.refusals.len())
        };
        tokio::time::advance(Duration::from_secs(300)).await;
        let permit = cache.admit(&key("3"), Purpose::Stop).unwrap();
        cache.record_refusal(&key("3"), permit, Refusal::Unauthorized, "");
        cache.store_token(key("3"), token(), Duration::from_secs(3600));
        assert_eq!(sizes(), (2, 2), "the short-lived token is gone, and the backoff is remembered");
        tokio::time::advance(Duration::from_secs(400)).await;
        let permit = cache.admit(&key("4"), Purpose::Stop).unwrap();
        cache.record_refusal(&key("4"), permit, Refusal::Unauthorized, "");
        assert_eq!(sizes(), (2, 2), "the first refusal is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_at_a_time_fetches_a_token() {
        let cache = CredentialCache::default();
        let first = cache.lock_token_fetch(&key("1")).await;
        let key_1 = key("1");
        let second = cache.lock_token_fetch(&key_1);
        assert!(tokio::time::timeout(Duration::from_secs(9), second).await.is_err(), "it waits for the first");
        let _other = cache.lock_token_fetch(&key("2")).await;
        drop(first);
        let _second = cache.lock_token_fetch(&key("1")).await;
        assert_eq!(cache.lock().fetch_locks.len(), 2, "locks in use are kept");
        drop(_other);
        let _third = cache.lock_token_fetch(&key("3")).await;
        assert_eq!(cache.lock().fetch_locks.len(), 2, "unused locks are removed");
    }
}
