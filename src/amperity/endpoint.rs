//! Owns the URLs of requests: base URL, `{tenant}`, the list of allowed hosts.
//! Never resolves a name or opens a connection.

use std::sync::Arc;

use thiserror::Error;
use url::Url;

/// The hosts that a resource or a Secret may use: exact names, or `*.` and a domain for every name below that domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Parses a comma-separated list.
    ///
    /// # Errors
    /// If an entry is neither a host name nor `*.` and a domain.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let checked = entries.map(|entry| {
            let name = entry.strip_prefix("*.").unwrap_or(entry);
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if name.is_empty() || !name.chars().all(is_allowed) || name.starts_with('.') {
                return Err(format!("'{entry}' is not a host name such as app.amperity.com or *.amperity.com"));
            }
            Ok(entry.to_ascii_lowercase())
        });
        checked.collect::<Result<_, _>>().map(Self)
    }

    /// Returns true if the list contains the host.
    pub fn contains(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.0.iter().any(|entry| match entry.strip_prefix('*') {
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => host == *entry,
        })
    }
}

/// The reason why a URL is not used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Not a URL, or one with parts that a base URL must not have.
    #[error("'{0}' is not a usable URL: {1}")]
    Unusable(String, &'static str),
    /// The URL must be https and is not.
    #[error("'{0}' is not https")]
    NotHttps(String),
    /// The host is not on the list.
    #[error("the host '{0}' is not on the operator's list")]
    HostNotAllowed(String),
    /// Not the id of a run.
    #[error("runId is not the id of a workflow run: only letters, digits, '.', '_', '~' and '-' are allowed")]
    RunId,
}

impl EndpointError {
    /// Removes the URL from the error.
    fn redacted(self) -> Self {
        let redacted = "(hidden)".to_owned();
        match self {
            Self::Unusable(_, why) => Self::Unusable(redacted, why),
            Self::NotHttps(_) => Self::NotHttps(redacted),
            Self::HostNotAllowed(host) => Self::HostNotAllowed(host),
            Self::RunId => Self::RunId,
        }
    }
}

/// The key of a budget: one tenant at one scheme, host and port.
///
/// <https://docs.amperity.com/api/rate_limits.html> does not say whether the limit applies to a tenant, an API key or
/// an endpoint. So all requests for one tenant at one origin count together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BudgetKey {
    origin: Arc<str>,
    tenant: Arc<str>,
}

impl BudgetKey {
    /// Returns the tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Returns true if the URL is of the origin of this budget.
    pub fn is_of(&self, url: &Url) -> bool {
        *self.origin == url.origin().ascii_serialization()
    }
}

/// A checked base URL for one tenant, see <https://docs.amperity.com/api/base_url.html>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    base: Url,
    tenant: String,
}

/// Inserts the tenant into the base URL and checks the result.
fn parse(base: &str, tenant: &str) -> Result<Url, EndpointError> {
    // A message must not repeat a URL that contains a password.
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

/// The id of a workflow run, which can be a segment of a URL's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// Parses an id: 1 to 128 letters, digits, `.`, `_`, `~` and `-`, but not `.` or `..`, which would change the path.
    ///
    /// # Errors
    /// If it is not an id. The CustomResourceDefinition refuses the same, if it is of this version.
    pub fn parse(id: &str) -> Result<Self, EndpointError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-');
        let valid = (1..=128).contains(&id.len()) && id.bytes().all(allowed) && !matches!(id, "." | "..");
        if valid { Ok(Self(id.to_owned())) } else { Err(EndpointError::RunId) }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The base URL that the administrator configured, and the hosts that resources and Secrets may use instead.
#[derive(Clone, Debug)]
pub struct Endpoints {
    base: String,
    allowed_hosts: AllowedHosts,
}

impl Endpoints {
    /// Checks the operator's base URL. It may be http, since the administrator sets it.
    ///
    /// # Errors
    /// If it is not a usable base URL.
    pub fn new(base: &str, allowed_hosts: AllowedHosts) -> Result<Self, EndpointError> {
        parse(base, "tenant")?;
        Ok(Self { base: base.to_owned(), allowed_hosts })
    }

    /// Returns the endpoint of a tenant: with the operator's base URL, or with the one of the resource.
    ///
    /// # Errors
    /// If the resource's URL is not usable, not https, or of a host that is not allowed.
    pub fn of(&self, tenant: &str, base_url: Option<&str>) -> Result<Endpoint, EndpointError> {
        let base = match base_url {
            Some(url) => self.check_allowed(parse(url, tenant)?)?,
            None => parse(&self.base, tenant)?,
        };
        Ok(Endpoint { base, tenant: tenant.to_owned() })
    }

    /// Checks the token URL of a Secret: https and an allowed host, or the origin of the endpoint.
    ///
    /// # Errors
    /// If the URL is not usable or not allowed. The error contains at most the host, since the URL comes from a Secret.
    pub fn token_url(&self, url: &str, endpoint: &Endpoint) -> Result<Url, EndpointError> {
        let url = parse(url, &endpoint.tenant).map_err(EndpointError::redacted)?;
        if url.origin() == endpoint.base.origin() {
            return Ok(url);
        }
        self.check_allowed(url).map_err(EndpointError::redacted)
    }

    fn check_allowed(&self, url: Url) -> Result<Url, EndpointError> {
        if url.scheme() != "https" {
            return Err(EndpointError::NotHttps(url.into()));
        }
        let host = url.host_str().unwrap_or_default();
        if self.allowed_hosts.contains(host) { Ok(url) } else { Err(EndpointError::HostNotAllowed(host.to_owned())) }
    }
}

impl Endpoint {
    /// Returns the tenant, the value of the header `amperity-tenant`.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Returns the key of the budget for requests to this endpoint.
    pub fn budget_key(&self) -> BudgetKey {
        BudgetKey { origin: self.base.origin().ascii_serialization().into(), tenant: self.tenant.as_str().into() }
    }

    /// Returns `{base}/workflow/runs/{id}/stop`, see
    /// <https://docs.amperity.com/api/endpoint_post_workflows_stop.html>.
    pub fn stop_url(&self, run_id: &RunId) -> Url {
        self.below_base(&["workflow", "runs", run_id.as_str(), "stop"])
    }

    /// Returns `{base}/workflow/runs/{id}?view=verbose`; only this view has the tasks, see
    /// <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html>.
    pub fn run_url(&self, run_id: &RunId) -> Url {
        let mut url = self.below_base(&["workflow", "runs", run_id.as_str()]);
        url.set_query(Some("view=verbose"));
        url
    }

    /// Returns the documented URL of the token endpoint, `{origin}/api/v0/oauth2/token`, see
    /// <https://docs.amperity.com/api/authentication.html>.
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
            endpoint.stop_url(&RunId::parse("wf-1~a").unwrap()).as_str(),
            "https://acme2-max.amperity.com/api/workflow/runs/wf-1~a/stop"
        );
        assert_eq!(
            endpoint.run_url(&RunId::parse("wf-1").unwrap()).as_str(),
            "https://acme2-max.amperity.com/api/workflow/runs/wf-1?view=verbose"
        );
        assert_eq!(endpoint.default_token_url().as_str(), "https://acme2-max.amperity.com/api/v0/oauth2/token");
    }

    #[test]
    fn the_url_of_a_resource_must_be_https_and_of_an_allowed_host() {
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
    fn a_token_url_must_be_of_the_same_origin_or_of_an_allowed_host() {
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
    fn another_tenant_or_port_has_another_budget_and_another_path_has_not() {
        let of = |base: &str, tenant: &str| endpoints(base).of(tenant, None).unwrap().budget_key();
        assert_eq!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com:443/api/x", "a"));
        assert_ne!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com/api", "b"));
        assert_ne!(of("https://app.amperity.com/api", "a"), of("https://app.amperity.com:8443/api", "a"));
    }

    #[test]
    fn invalid_entries_in_the_list_of_allowed_hosts_are_rejected() {
        assert!(AllowedHosts::parse("*.amperity.com,localhost").is_ok());
        for list in ["https://x.org", "*", "a b", "*.", "x.org/y"] {
            assert!(AllowedHosts::parse(list).is_err(), "{list}");
        }
    }

    #[test]
    fn a_run_id_is_one_segment_of_a_path() {
        for id in ["wf-20240619-14418-6UhqSe", "a.b_c~d", "...", &"a".repeat(128)] {
            assert_eq!(RunId::parse(id).unwrap().as_str(), id);
        }
        for id in ["", ".", "..", "a/b", "a b", "a%2fb", "\u{e9}", "a?b", "a#b", &"a".repeat(129)] {
            assert_eq!(RunId::parse(id), Err(EndpointError::RunId), "{id}");
        }
    }

    #[test]
    fn an_endpoint_and_its_budget_name_the_tenant() {
        let endpoint = endpoints("https://app.amperity.com/api").of("acme", None).unwrap();
        assert_eq!((endpoint.tenant(), endpoint.budget_key().tenant()), ("acme", "acme"));
    }

    #[test]
    fn a_wildcard_matches_subdomains_and_not_an_empty_label() {
        let hosts = AllowedHosts::parse("*.amperity.com").unwrap();
        assert!(hosts.contains("app.amperity.com") && hosts.contains("A.B.Amperity.Com"));
        assert!(!hosts.contains(".amperity.com") && !hosts.contains("amperity.com"));
    }

    #[test]
    fn a_url_with_only_a_user_or_only_a_password_is_refused() {
        for url in ["https://u@app.amperity.com", "https://:p@app.amperity.com"] {
            let error = endpoints("https://app.amperity.com").of("acme", Some(url)).unwrap_err().to_string();
            assert!(error.contains("user or password"), "{error}");
        }
    }
}
