//! The requests to the Amperity API as they are sent: TLS, proxies, headers, tokens.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use lab::{
    simulator::{Kind, RecordedRequest, Run, Simulator, proxy::Proxy},
    testing::{Operator, TENANT, TestEnv, a_stop, ends_at_once, is, message, ready},
};
use tokio::process::Command;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

/// Writes the CA certificate of the simulator to a file.
pub fn authority(amperity: &Simulator) -> PathBuf {
    let file = format!("authority-{}.pem", amperity.address().port());
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&file, amperity.ca_pem()).unwrap();
    file
}

/// Returns an environment whose Amperity is served with TLS, and the command of an operator that trusts it.
async fn tls_env() -> (TestEnv, Command) {
    let env = TestEnv::with_amperity(Simulator::start_tls().await).await;
    let mut command = env.operator_command();
    command.env("SSL_CERT_FILE", authority(&env.amperity)).args(["--allowed-hosts", "localhost"]);
    (env, command)
}

/// A stop whose spec has the base URL of the simulator.
fn a_stop_at(amperity: &Simulator, run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.base_url = Some(amperity.base_url());
    stop
}

fn of_kind(amperity: &Simulator, kind: Kind) -> Vec<RecordedRequest> {
    amperity.requests().into_iter().filter(|request| request.kind == kind).collect()
}

/// Parses a form body.
fn form(body: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(body.as_bytes()).into_owned().collect()
}

#[tokio::test]
async fn the_authorities_of_ssl_cert_file_are_trusted() {
    let (env, command) = tls_env().await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    env.create(a_stop_at(&env.amperity, "wf-1")).await;
    let stop = env.wait_finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    let url = format!("{}/workflow/runs/wf-1/stop", env.amperity.base_url());
    assert_eq!(stop.status.unwrap().stop_request.unwrap().url, Some(url));
    assert_eq!(env.amperity.stops("wf-1"), 1);
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let (env, mut command) = tls_env().await;
    command.env_remove("SSL_CERT_FILE");
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    env.create(a_stop_at(&env.amperity, "wf-1")).await;
    let stop = env.wait_for_reason("wf-1", Reason::Unreachable).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Unreachable));
    let message = message(&stop, ConditionType::Ready).to_lowercase();
    assert!(message.contains("certificate"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(stop.status.unwrap().stop_request.unwrap().claim, None, "it is known that nothing was sent");
    assert_eq!(env.amperity.requests().len(), 0);
}

#[tokio::test]
async fn https_proxy_is_used_for_amperity_and_not_for_the_cluster() {
    let (env, mut command) = tls_env().await;
    let proxy = Proxy::start_with_upstream(Some(env.amperity.address())).await;
    for tenant in [TENANT, "globex"] {
        env.amperity.add_run(tenant, ends_at_once(&format!("wf-{tenant}")));
    }
    command.env("HTTPS_PROXY", proxy.url()).args(["--amperity-base-url", "https://{tenant}.amperity.test/api"]);
    let _operator = Operator::start(command).await;
    for tenant in [TENANT, "globex"] {
        let mut stop = a_stop(&format!("wf-{tenant}"));
        stop.spec.tenant = tenant.to_owned();
        env.create(stop).await;
    }
    for tenant in [TENANT, "globex"] {
        let stop = env.wait_finished(&format!("wf-{tenant}")).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    }
    let mut connects = proxy.requests();
    connects.sort();
    assert_eq!(connects, ["CONNECT acme.amperity.test:443", "CONNECT globex.amperity.test:443"]);
    for request in env.amperity.requests() {
        let tenant = request.tenant.clone().unwrap();
        assert_eq!(request.header("host"), Some(format!("{tenant}.amperity.test").as_str()));
        assert_eq!(request.path, format!("/api/workflow/runs/wf-{tenant}/stop"));
    }
}

#[tokio::test]
async fn hosts_in_no_proxy_are_reached_without_the_proxy() {
    let (env, mut command) = tls_env().await;
    let proxy = Proxy::start().await;
    command.env("HTTPS_PROXY", proxy.url()).env("NO_PROXY", "example.org,localhost");
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    env.create(a_stop("wf-1")).await;
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(proxy.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stop_and_a_read_are_sent_as_documented() {
    let env = TestEnv::new().await;
    let run = "wf-2024.06_A~b";
    env.amperity.add_run(TENANT, Run::new(run).with_tasks(1));
    let base = format!("{}/", env.amperity.base_url());
    let _operator = env.start_operator_with(&["--amperity-base-url", &base]).await;
    let mut stop = a_stop(run);
    stop.metadata.name = Some("wf-1".to_owned());
    env.create(stop).await;
    env.wait_finished("wf-1").await;
    let [stop, read] = &env.amperity.requests()[..] else { panic!("expected one stop, and one read for the tasks") };
    assert_eq!((stop.method.as_str(), stop.path.as_str()), ("POST", "/api/workflow/runs/wf-2024.06_A~b/stop"));
    assert_eq!((read.method.as_str(), read.path.as_str()), ("GET", "/api/workflow/runs/wf-2024.06_A~b?view=verbose"));
    let agent = concat!("workflow-run-stop-operator/", env!("CARGO_PKG_VERSION"));
    for request in [stop, read] {
        assert_eq!(request.header("authorization"), Some("Bearer good-token"));
        assert_eq!(request.header("amperity-tenant"), Some(TENANT));
        assert_eq!(request.header("api-version"), Some("2024-04-01"));
        assert_eq!(request.header("accept"), Some("application/json"));
        assert_eq!(request.header("user-agent"), Some(agent));
        assert_eq!(request.body, "");
        assert_eq!(request.header("transfer-encoding"), None);
        assert_eq!(request.header("content-type"), None);
    }
    assert_eq!(stop.header("content-length"), Some("0"), "a POST without it is refused by some gateways");
}

#[tokio::test]
async fn a_token_is_requested_as_documented_and_once_for_many_stops() {
    let env = TestEnv::new().await;
    let (id, secret) = ("client+1", "s3cr&t=+%/\"#");
    env.amperity.set_client(id, secret);
    env.put_secret("amperity", &[("clientId", id), ("clientSecret", secret)]).await;
    let runs: Vec<_> = (0..20).map(|number| format!("wf-{number}")).collect();
    for run in &runs {
        env.amperity.add_run(TENANT, ends_at_once(run));
    }
    env.create_all(runs.iter().map(|run| a_stop(run))).await;
    let _operator = env.start_operator_with(&["--requests-per-second", "100"]).await;
    for run in &runs {
        assert_eq!(ready(&env.wait_finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
    }
    let tokens = of_kind(&env.amperity, Kind::Token);
    let [token] = &tokens[..] else { panic!("{} token requests for 20 stops", tokens.len()) };
    assert_eq!((token.method.as_str(), token.path.as_str()), ("POST", "/api/v0/oauth2/token"));
    assert_eq!(token.header("x-amperity-tenant"), Some(TENANT));
    assert_eq!(token.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(token.header("accept"), Some("application/json"));
    assert_eq!(token.header("authorization"), None);
    let expected = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    assert_eq!(form(&token.body), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    for stop in of_kind(&env.amperity, Kind::Stop) {
        assert_eq!(stop.header("authorization"), Some("Bearer tok-1"));
    }
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let env = TestEnv::new().await;
    env.put_secret("amperity", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    // A token is renewed after nine tenths of its lifetime, and the first read is due two seconds after the stop.
    env.amperity.set_expires_in(2);
    env.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let _operator = env.start_operator().await;
    env.create(a_stop("wf-1")).await;
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    let requests = env.amperity.requests();
    let kinds: Vec<_> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop, Kind::Token, Kind::Read]);
    assert_eq!(requests[1].header("authorization"), Some("Bearer tok-1"));
    assert_eq!(requests[3].header("authorization"), Some("Bearer tok-2"));
    assert!(requests.iter().all(|request| request.response_status == Some(200)));
}

#[tokio::test]
async fn the_token_url_of_the_secret_is_used() {
    let env = TestEnv::new().await;
    let tokens = Simulator::start_tls().await;
    // The first token that the other server issues.
    env.amperity.set_tokens(["tok-1"]);
    let url = format!("{}/api/v0/oauth2/token", tokens.origin());
    let secret = [("clientId", "good-client"), ("clientSecret", "good-secret"), ("tokenUrl", &url)];
    env.put_secret("amperity", &secret).await;
    env.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut command = env.operator_command();
    command.env("SSL_CERT_FILE", authority(&tokens)).args(["--allowed-hosts", "localhost"]);
    let _operator = Operator::start(command).await;
    env.create(a_stop("wf-1")).await;
    assert_eq!(ready(&env.wait_finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(of_kind(&tokens, Kind::Token).len(), 1);
    assert_eq!(tokens.requests().len(), 1);
    let kinds: Vec<_> = env.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Stop]);
}
