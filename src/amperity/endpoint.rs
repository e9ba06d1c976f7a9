//! Owns where requests may go: base URL, `{tenant}`, the list of allowed hosts.
//! Never resolves a name or opens a connection.

use thiserror::Error;
use url::Url;

/// The hosts that a resource or a Secret may name: exact names, or `*.` and a domain for every
/// name below that domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Parses a comma-separated list.
    ///
    /// # Errors
    /// Where an entry is neither a host name nor `*.` and a domain.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let checked = entries.map(|entry| {
            let name = entry.strip_prefix("*.").unwrap_or(entry);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if name.is_empty() || !name.chars().all(plain) || name.starts_with('.') {
                return Err(format!("'{entry}' is not a host name such as app.amperity.com or *.amperity.com"));
            }
            Ok(entry.to_ascii_lowercase())
        });
        checked.collect::<Result<_, _>>().map(Self)
    }

    /// True where the list has the host.
    pub fn allow(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.0.iter().any(|entry| match entry.strip_prefix('*') {
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => host == *entry,
        })
    }
}

/// Why a URL is not used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Not a URL, or one with parts that have no place in a base URL.
    #[error("'{0}' is not a usable URL: {1}")]
    Unusable(String, &'static str),
    /// Only https may be used here.
    #[error("'{0}' is not https")]
    NotHttps(String),
    /// The host is not on the list.
    #[error("the host '{0}' is not on the operator's list")]
    HostNotAllowed(String),
}

impl EndpointError {
    /// The same without the URL.
    fn hidden(self) -> Self {
        let hidden = "(hidden)".to_owned();
        match self {
            Self::Unusable(_, why) => Self::Unusable(hidden, why),
            Self::NotHttps(_) => Self::NotHttps(hidden),
            Self::HostNotAllowed(host) => Self::HostNotAllowed(host),
        }
    }
}

/// Whose requests share one budget: one tenant at one scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BudgetKey {
    origin: String,
    tenant: String,
}

impl BudgetKey {
    /// The tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }
}

/// A checked base URL for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    base: Url,
    tenant: String,
}

/// Puts the tenant into the base URL and checks the result.
fn parse(base: &str, tenant: &str) -> Result<Url, EndpointError> {
    // A URL with a password in it is not repeated in a message.
    let shown = if base.contains('@') { "(hidden)" } else { base };
    let unusable = |why| EndpointError::Unusable(shown.to_owned(), why);
    if !tenant.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(unusable("the tenant may have only letters, digits, - and _"));
    }
    let url = Url::parse(&base.replace("{tenant}", tenant)).map_err(|_| unusable("it cannot be parsed"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable("its scheme is neither https nor http"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(unusable("it has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(unusable("it carries a user or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(unusable("it carries a query or fragment"));
    }
    Ok(url)
}

/// Where the API is, as the administrator set it up, and which other hosts may be named.
#[derive(Clone, Debug)]
pub struct Endpoints {
    base: String,
    allowed: AllowedHosts,
}

impl Endpoints {
    /// Checks the operator's own base URL, which may be http: it is the administrator's.
    ///
    /// # Errors
    /// Where it is no usable base URL.
    pub fn new(base: &str, allowed: AllowedHosts) -> Result<Self, EndpointError> {
        parse(base, "tenant")?;
        Ok(Self { base: base.to_owned(), allowed })
    }

    /// The endpoint of a tenant: the operator's own, or the one that the resource names.
    ///
    /// # Errors
    /// Where the resource's URL is not usable, not https, or of a host that is not allowed.
    pub fn of(&self, tenant: &str, named: Option<&str>) -> Result<Endpoint, EndpointError> {
        let base = match named {
            Some(named) => self.allowed(parse(named, tenant)?)?,
            None => parse(&self.base, tenant)?,
        };
        Ok(Endpoint { base, tenant: tenant.to_owned() })
    }

    /// Checks the token URL of a Secret: https and allowed, or of the same origin as the endpoint.
    ///
    /// # Errors
    /// As for an endpoint.
    /// Of the URL, which comes from a Secret, no more than its host stands in the error.
    pub fn token_url(&self, url: &str, endpoint: &Endpoint) -> Result<Url, EndpointError> {
        let url = parse(url, &endpoint.tenant).map_err(EndpointError::hidden)?;
        if url.origin() == endpoint.base.origin() {
            return Ok(url);
        }
        self.allowed(url).map_err(EndpointError::hidden)
    }

    fn allowed(&self, url: Url) -> Result<Url, EndpointError> {
        if url.scheme() != "https" {
            return Err(EndpointError::NotHttps(url.into()));
        }
        let host = url.host_str().unwrap_or_default();
        if self.allowed.allow(host) { Ok(url) } else { Err(EndpointError::HostNotAllowed(host.to_owned())) }
    }
}

impl Endpoint {
    /// The tenant, as it goes into the header.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Whose budget its requests use.
    pub fn budget_key(&self) -> BudgetKey {
        BudgetKey { origin: self.base.origin().ascii_serialization(), tenant: self.tenant.clone() }
    }

    /// `POST {base}/workflow/runs/{id}/stop`.
    pub fn stop_url(&self, run_id: &str) -> Url {
        self.below_base(&["workflow", "runs", run_id, "stop"])
    }

    /// `GET {base}/workflow/runs/{id}?view=verbose`; only this view carries the tasks.
    pub fn run_url(&self, run_id: &str) -> Url {
        let mut url = self.below_base(&["workflow", "runs", run_id]);
        url.set_query(Some("view=verbose"));
        url
    }

    /// The documented place of the token endpoint: `{scheme+host}/api/v0/oauth2/token`.
    pub fn default_token_url(&self) -> Url {
        let mut url = self.base.clone();
        url.set_path("/api/v0/oauth2/token");
        url
    }

    fn below_base(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(segments);
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(base: &str) -> Endpoints {
        Endpoints::new(base, AllowedHosts::parse("*.amperity.com, tokens.example.org").unwrap()).unwrap()
    }

    #[test]
    fn urls_are_built_as_documented() {
        let endpoint = endpoints("https://{tenant}.amperity.com/api/").of("acme2-max", None).unwrap();
        assert_eq!(
            endpoint.stop_url("wf-1~a").as_str(),
            "https://acme2-max.amperity.com/api/workflow/runs/wf-1~a/stop"
        );
        assert_eq!(
            endpoint.run_url("wf-1").as_str(),
            "https://acme2-max.amperity.com/api/workflow/runs/wf-1?view=verbose"
        );
        assert_eq!(endpoint.default_token_url().as_str(), "https://acme2-max.amperity.com/api/v0/oauth2/token");
    }

    #[test]
    fn a_resource_names_only_https_and_only_allowed_hosts() {
        let endpoints = endpoints("http://127.0.0.1:8080/api");
        assert!(endpoints.of("acme", None).is_ok(), "the administrator's own URL may be http");
        assert!(endpoints.of("acme", Some("https://app.amperity.com/api")).is_ok());
        assert!(endpoints.of("evil.org/x\r\n", None).is_err());
        for (url, why) in [
            ("http://app.amperity.com/api", "is not https"),
            ("https://amperity.com/api", "not on the operator's list"),
            ("https://app.amperity.com.evil.org/api", "not on the operator's list"),
            ("https://evilamperity.com/api", "not on the operator's list"),
            ("https://u:p@app.amperity.com/api", "user or password"),
            ("https://app.amperity.com/api?x=1", "query"),
            ("ftp://app.amperity.com", "scheme"),
            ("nonsense", "parsed"),
        ] {
            let error = endpoints.of("acme", Some(url)).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn a_token_url_is_of_the_same_origin_or_allowed() {
        let endpoints = endpoints("http://127.0.0.1:8080/api");
        let endpoint = endpoints.of("acme", None).unwrap();
        assert!(endpoints.token_url("http://127.0.0.1:8080/token", &endpoint).is_ok());
        assert!(endpoints.token_url("https://tokens.example.org/token", &endpoint).is_ok());
        assert!(endpoints.token_url("http://tokens.example.org/token", &endpoint).is_err());
        assert!(endpoints.token_url("https://elsewhere.org/token", &endpoint).is_err());
        for secret in ["hush", "http://hush/hush", "https://hush:hush@x", "https://x/?hush"] {
            let error = endpoints.token_url(secret, &endpoint).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_tenant_at_another_port_has_another_budget() {
        let of = |base: &str, tenant: &str| endpoints(base).of(tenant, None).unwrap().budget_key();
        assert_eq!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com:443/api/x", "a"));
        assert_ne!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com/api", "b"));
        assert_ne!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com:8443/api", "a"));
    }

    #[test]
    fn a_list_of_hosts_is_checked() {
        assert!(AllowedHosts::parse("*.amperity.com,localhost").is_ok());
        for list in ["https://x.org", "*", "a b", "*.", "x.org/y"] {
            assert!(AllowedHosts::parse(list).is_err(), "{list}");
        }
    }
}
