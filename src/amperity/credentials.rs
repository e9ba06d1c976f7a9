//! Owns credentials: what a Secret may hold, tokens kept until shortly before they expire, and
//! which credentials the API refused.
//! Never shows a secret: every type here hides it from `Debug`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use reqwest::header::HeaderValue;
use thiserror::Error;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

use crate::amperity::{endpoint::BudgetKey, purpose::Purpose};
use crate::fault_injection::{Fault, is_injected};
use crate::rng;

/// A token is renewed so long before it expires, or when nine tenths of its time are over.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(60);

/// How long refused credentials rest at first; doubles up to the maximum.
const FIRST_REST: Duration = Duration::from_secs(1);
const MAX_REST: Duration = Duration::from_secs(60);

/// How long the others wait while one call tries refused credentials.
const TRIAL: Duration = Duration::from_secs(5);

/// The value of an `Authorization` header. Its `Debug` is hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// A bearer token; `None` where it has characters that no header can carry.
    pub fn bearer(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// The header's value, marked as sensitive.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// What a Secret holds.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A token made by hand.
    Static(Token),
    /// The id and secret of an OAuth 2 client.
    Client(Client),
}

/// An OAuth 2 client.
#[derive(Clone)]
pub struct Client {
    /// The client's id.
    pub id: String,
    /// The client's secret.
    pub secret: String,
    /// Where tokens are fetched, if not at the documented place.
    pub token_url: Option<String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Why a Secret's content cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CredentialsError {
    /// Neither kind of credentials is complete.
    #[error("it has neither the key token nor the keys clientId and clientSecret")]
    NoKeys,
    /// A key is empty or has characters that cannot be sent.
    #[error("its key {0} is empty or has characters that cannot be sent")]
    Unusable(&'static str),
}

impl Credentials {
    /// Reads the content of a Secret; surrounding white space does not count.
    ///
    /// # Errors
    /// Where keys are missing or unusable. The message never holds a value.
    pub fn parse(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, CredentialsError> {
        let text = |key: &'static str| {
            data.get(key).map(|value| {
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
                Ok(Self::Client(Client { id: id?, secret: secret?, token_url: text("tokenUrl").transpose()? }))
            }
            (None, _) | (_, None) => Err(CredentialsError::NoKeys),
        }
    }
}

/// One version of one Secret, used for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CredentialsKey {
    /// The Secret's uid and resource version: new content is a new key.
    pub secret: (String, String),
    /// For whom it is used.
    pub budget: BudgetKey,
}

/// The tokens that were fetched and the credentials that were refused.
#[derive(Clone, Default)]
pub struct CredentialCache(Arc<Mutex<CacheState>>);

#[derive(Default)]
struct CacheState {
    tokens: HashMap<CredentialsKey, (Token, Instant)>,
    turns: HashMap<CredentialsKey, Arc<AsyncMutex<()>>>,
    refused: HashMap<CredentialsKey, HashMap<Scope, Refused>>,
}

impl CacheState {
    /// The refusals of these credentials that block requests for this purpose.
    fn refusals(&self, key: &CredentialsKey, purpose: Purpose) -> impl Iterator<Item = &Refused> {
        let known = self.refused.get(key);
        Scope::of(purpose).iter().filter_map(move |scope| known?.get(scope))
    }
}

/// The requests that a refusal blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// Every request.
    All,
    /// Stops only: the right to stop a run is not needed to read it.
    Stops,
}

impl Scope {
    /// The refusals that concern a purpose.
    fn of(purpose: Purpose) -> &'static [Self] {
        match purpose {
            Purpose::Stop => &[Self::All, Self::Stops],
            Purpose::Read | Purpose::Token if is_injected(Fault::ForbiddenClosesReads) => &[Self::All, Self::Stops],
            Purpose::Read | Purpose::Token => &[Self::All],
        }
    }
}

struct Refused {
    times: u32,
    refusal: Refusal,
    detail: String,
    since: Instant,
    until: Instant,
}

/// The permission to use credentials once: since when, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    at: Instant,
    purpose: Purpose,
}

/// Why credentials rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 401, or the token endpoint refused the client.
    Unauthorized,
    /// Amperity's own 403 to a stop.
    Forbidden,
    /// The token endpoint answered 429.
    RateLimited,
    /// No connection to the token endpoint.
    Unreachable,
    /// The token endpoint gave no token.
    Unavailable,
}

impl Refusal {
    fn scope(self) -> Scope {
        match self {
            Self::Forbidden => Scope::Stops,
            Self::Unauthorized | Self::RateLimited | Self::Unreachable | Self::Unavailable => Scope::All,
        }
    }
}

/// Refused credentials rest: until when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resting {
    /// Why.
    pub refusal: Refusal,
    /// What the API said.
    pub detail: String,
    /// When to look again.
    pub until: Instant,
}

impl CredentialCache {
    /// A fetched token that is still valid for a while.
    pub fn token(&self, key: &CredentialsKey) -> Option<Token> {
        let state = self.lock();
        let (token, renew) = state.tokens.get(key)?;
        (Instant::now() < *renew).then(|| token.clone())
    }

    /// Keeps a fetched token for as long as it is valid.
    pub fn keep(&self, key: CredentialsKey, token: Token, valid: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        state.tokens.retain(|_, (_, renew)| now < *renew);
        let renew = now + (valid - RENEW_BEFORE_EXPIRY.min(valid / 10));
        state.tokens.insert(key, (token, renew));
    }

    /// Forgets a fetched token that was refused, so that a new one is fetched.
    pub fn forget(&self, key: &CredentialsKey, token: &Token) {
        let mut state = self.lock();
        if state.tokens.get(key).is_some_and(|(kept, _)| kept == token) {
            state.tokens.remove(key);
        }
    }

    /// Waits for the turn to fetch a token: of all that need the same one, one asks for it.
    pub async fn turn(&self, key: &CredentialsKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut state = self.lock();
            state.turns.retain(|_, turn| 1 < Arc::strong_count(turn));
            state.turns.entry(key.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Whether these credentials may be used now. Of credentials that were refused, one call may
    /// try again when their rest is over; the others keep waiting for it.
    ///
    /// # Errors
    /// Where they rest.
    pub fn admit(&self, key: &CredentialsKey, purpose: Purpose) -> Result<Admitted, Resting> {
        let now = Instant::now();
        let mut state = self.lock();
        let resting = state.refusals(key, purpose).find(|refused| now < refused.until).map(|refused| Resting {
            refusal: refused.refusal,
            detail: refused.detail.clone(),
            until: refused.until,
        });
        if let Some(resting) = resting {
            return Err(resting);
        }
        for scope in Scope::of(purpose) {
            if let Some(refused) = state.refused.get_mut(key).and_then(|refused| refused.get_mut(scope)) {
                refused.until = now + TRIAL;
            }
        }
        Ok(Admitted { at: now, purpose })
    }

    /// True where the API refused these credentials after they were admitted, for what they were admitted for.
    pub fn was_refused_since(&self, key: &CredentialsKey, Admitted { at, purpose }: Admitted) -> bool {
        let state = self.lock();
        state.refusals(key, purpose).any(|refused| at < refused.since)
    }

    /// Says that the API refused these credentials; they rest for everybody who uses them, after a 403 for stops only.
    pub fn refused(&self, key: &CredentialsKey, Admitted { at, .. }: Admitted, refusal: Refusal, detail: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        state.refused.retain(|_, refused| {
            refused.retain(|_, refused| now < refused.until + MAX_REST * 10);
            !refused.is_empty()
        });
        let known = state.refused.entry(key.clone()).or_default();
        let times = match known.get(&refusal.scope()) {
            // It was on its way already when another one was refused: nothing new.
            Some(known) if at < known.since => return,
            Some(known) => known.times,
            None => 0,
        };
        let rest = FIRST_REST.saturating_mul(1 << times.min(10)).min(MAX_REST);
        let until = now + rest.mul_f64(rng::upper_half());
        let refused = Refused { times: times + 1, refusal, detail: detail.to_owned(), since: now, until };
        known.insert(refusal.scope(), refused);
    }

    /// Says that the API took these credentials for this use, so nothing that would close them for it is true any more.
    pub fn accepted(&self, key: &CredentialsKey, purpose: Purpose) {
        let mut state = self.lock();
        if let Some(refused) = state.refused.get_mut(key) {
            refused.retain(|scope, _| !Scope::of(purpose).contains(scope));
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

    fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn key(version: &str) -> CredentialsKey {
        let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
        let budget = endpoints.of("acme", None).unwrap().budget_key();
        CredentialsKey { secret: ("uid".into(), version.into()), budget }
    }

    #[test]
    fn a_secret_holds_a_token_or_a_client() {
        assert!(matches!(Credentials::parse(&secret(&[("token", " abc\n")])), Ok(Credentials::Static(_))));
        let client = secret(&[("clientId", "id\n"), ("clientSecret", "s"), ("tokenUrl", "https://x/y")]);
        assert!(matches!(Credentials::parse(&client), Ok(Credentials::Client(Client { token_url: Some(_), .. }))));
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
    fn debug_shows_no_secret() {
        let of = |pairs| format!("{:?}", Credentials::parse(&secret(pairs)).unwrap());
        for shown in [of(&[("token", "hush")]), of(&[("clientId", "id"), ("clientSecret", "hush")])] {
            assert!(!shown.contains("hush"), "{shown}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_lives_shortly_is_used_for_most_of_its_time() {
        let cache = CredentialCache::default();
        cache.keep(key("1"), Token::bearer("t").unwrap(), Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(26)).await;
        assert!(cache.token(&key("1")).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.token(&key("1")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_a_minute_before_it_expires() {
        let cache = CredentialCache::default();
        cache.keep(key("1"), Token::bearer("t").unwrap(), Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(3539)).await;
        assert!(cache.token(&key("1")).is_some());
        assert!(cache.token(&key("2")).is_none(), "another version of the Secret has its own token");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.token(&key("1")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_rest_for_all_and_one_call_tries_them_again() {
        let cache = CredentialCache::default();
        let together: Vec<_> = (0..10).map(|_| cache.admit(&key("1"), Purpose::Stop).unwrap()).collect();
        tokio::time::advance(Duration::from_millis(5)).await;
        for admitted in together {
            cache.refused(&key("1"), admitted, Refusal::Unauthorized, "");
        }
        let resting = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        assert!(resting.until <= Instant::now() + FIRST_REST, "ten refusals at once count once");
        assert_eq!(cache.admit(&key("1"), Purpose::Read).unwrap_err(), resting, "a 401 concerns reads as well");
        assert!(cache.admit(&key("2"), Purpose::Stop).is_ok(), "a new version of the Secret is tried at once");
        tokio::time::sleep_until(resting.until).await;
        let trial = cache.admit(&key("1"), Purpose::Stop).unwrap();
        assert!(cache.admit(&key("1"), Purpose::Stop).is_err(), "the others wait for the trial");
        cache.refused(&key("1"), trial, Refusal::Unauthorized, "");
        let resting = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        assert!(Instant::now() + FIRST_REST <= resting.until, "the second rest is longer");
        cache.accepted(&key("1"), Purpose::Read);
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_403_of_a_stop_closes_stops_only_and_reading_does_not_open_them() {
        let cache = CredentialCache::default();
        let stop = cache.admit(&key("1"), Purpose::Stop).unwrap();
        let read = cache.admit(&key("1"), Purpose::Read).unwrap();
        tokio::time::advance(Duration::from_millis(5)).await;
        cache.refused(&key("1"), stop, Refusal::Forbidden, "");
        assert!(cache.was_refused_since(&key("1"), stop));
        assert!(!cache.was_refused_since(&key("1"), read), "a read that was admitted goes on");
        assert!(cache.admit(&key("1"), Purpose::Read).is_ok());
        cache.accepted(&key("1"), Purpose::Read);
        let resting = cache.admit(&key("1"), Purpose::Stop).unwrap_err();
        assert_eq!(resting.refusal, Refusal::Forbidden);
        tokio::time::sleep_until(resting.until).await;
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
        assert!(cache.admit(&key("1"), Purpose::Stop).is_err(), "the others wait for the trial");
        cache.accepted(&key("1"), Purpose::Stop);
        assert!(cache.admit(&key("1"), Purpose::Stop).is_ok());
    }
}
