//! What goes over the wire to the API, and by which way.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use lab::simulator::{Kind, Recorded, Run, Simulator, proxy::Proxy};
use tokio::process::Command;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, ConditionType, Reason},
};

use crate::support::{Operator, Place, TENANT, a_stop, ends_at_once, is, message, ready};

/// A file with the authority that signed the simulator's certificate.
fn authority(amperity: &Simulator) -> PathBuf {
    let file = format!("authority-{}.pem", amperity.address().port());
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&file, amperity.ca_pem()).unwrap();
    file
}

/// A place whose API is served with TLS, and the command of an operator that trusts it.
async fn tls_place() -> (Place, Command) {
    let place = Place::with(Simulator::start_tls().await).await;
    let mut command = place.command();
    command.env("SSL_CERT_FILE", authority(&place.amperity)).args(["--allowed-hosts", "localhost"]);
    (place, command)
}

/// A stop that names the simulator's endpoint itself.
fn a_stop_at(amperity: &Simulator, run: &str) -> WorkflowRunStop {
    let mut stop = a_stop(run);
    stop.spec.base_url = Some(amperity.base_url());
    stop
}

fn of_kind(amperity: &Simulator, kind: Kind) -> Vec<Recorded> {
    amperity.requests().into_iter().filter(|request| request.kind == kind).collect()
}

/// The fields of a form.
fn form(body: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(body.as_bytes()).into_owned().collect()
}

#[tokio::test]
async fn the_authorities_of_ssl_cert_file_are_trusted() {
    let (place, command) = tls_place().await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    place.apply(a_stop_at(&place.amperity, "wf-1")).await;
    let stop = place.finished("wf-1").await;
    assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    let url = format!("{}/workflow/runs/wf-1/stop", place.amperity.base_url());
    assert_eq!(stop.status.unwrap().stop_request.unwrap().url, Some(url));
    assert_eq!(place.amperity.stops("wf-1"), 1);
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted() {
    let (place, mut command) = tls_place().await;
    command.env_remove("SSL_CERT_FILE");
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    place.apply(a_stop_at(&place.amperity, "wf-1")).await;
    let stop = place.reason("wf-1", Reason::Unreachable).await;
    assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::Unreachable));
    let message = message(&stop, ConditionType::Ready).to_lowercase();
    assert!(message.contains("certificate"), "{message}");
    assert!(!stop.is_finished());
    assert_eq!(stop.status.unwrap().stop_request.unwrap().claim, None, "it is known that nothing was sent");
    assert_eq!(place.amperity.requests().len(), 0);
}

#[tokio::test]
async fn https_proxy_is_the_way_to_amperity_and_not_to_the_cluster() {
    let (place, mut command) = tls_place().await;
    let proxy = Proxy::start_towards(Some(place.amperity.address())).await;
    for tenant in [TENANT, "globex"] {
        place.amperity.add_run(tenant, ends_at_once(&format!("wf-{tenant}")));
    }
    command.env("HTTPS_PROXY", proxy.url()).args(["--amperity-base-url", "https://{tenant}.amperity.test/api"]);
    let _operator = Operator::start(command).await;
    for tenant in [TENANT, "globex"] {
        let mut stop = a_stop(&format!("wf-{tenant}"));
        stop.spec.tenant = tenant.to_owned();
        place.apply(stop).await;
    }
    for tenant in [TENANT, "globex"] {
        let stop = place.finished(&format!("wf-{tenant}")).await;
        assert_eq!(ready(&stop), is(ConditionStatus::True, Reason::RunStopped));
    }
    let mut seen = proxy.seen();
    seen.sort();
    assert_eq!(seen, ["CONNECT acme.amperity.test:443", "CONNECT globex.amperity.test:443"]);
    for request in place.amperity.requests() {
        let tenant = request.tenant.clone().unwrap();
        assert_eq!(request.header("host"), Some(format!("{tenant}.amperity.test").as_str()));
        assert_eq!(request.path, format!("/api/workflow/runs/wf-{tenant}/stop"));
    }
}

#[tokio::test]
async fn no_proxy_names_the_hosts_that_are_reached_without_one() {
    let (place, mut command) = tls_place().await;
    let proxy = Proxy::start().await;
    command.env("HTTPS_PROXY", proxy.url()).env("NO_PROXY", "example.org,localhost");
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let _operator = Operator::start(command).await;
    place.apply(a_stop("wf-1")).await;
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(proxy.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stop_and_a_read_are_sent_as_documented() {
    let place = Place::new().await;
    let run = "wf-2024.06_A~b";
    place.amperity.add_run(TENANT, Run::new(run).with_tasks(1));
    let base = format!("{}/", place.amperity.base_url());
    let _operator = place.operator_with(&["--amperity-base-url", &base]).await;
    let mut stop = a_stop(run);
    stop.metadata.name = Some("wf-1".to_owned());
    place.apply(stop).await;
    place.finished("wf-1").await;
    let [stop, read] = &place.amperity.requests()[..] else { panic!("a stop and, for the tasks, a read") };
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
async fn a_token_is_asked_for_as_documented_and_once_for_many_stops() {
    let place = Place::new().await;
    let (id, secret) = ("client+1", "s3cr&t=+%/\"#");
    place.amperity.set_client(id, secret);
    place.put_secret("amperity", &[("clientId", id), ("clientSecret", secret)]).await;
    let runs: Vec<_> = (0..20).map(|number| format!("wf-{number}")).collect();
    for run in &runs {
        place.amperity.add_run(TENANT, ends_at_once(run));
    }
    place.apply_all(runs.iter().map(|run| a_stop(run))).await;
    let _operator = place.operator_with(&["--requests-per-second", "100"]).await;
    for run in &runs {
        assert_eq!(ready(&place.finished(run).await), is(ConditionStatus::True, Reason::RunStopped));
    }
    let tokens = of_kind(&place.amperity, Kind::Token);
    let [token] = &tokens[..] else { panic!("{} token requests for 20 stops", tokens.len()) };
    assert_eq!((token.method.as_str(), token.path.as_str()), ("POST", "/api/v0/oauth2/token"));
    assert_eq!(token.header("x-amperity-tenant"), Some(TENANT));
    assert_eq!(token.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(token.header("accept"), Some("application/json"));
    assert_eq!(token.header("authorization"), None);
    let expected = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    assert_eq!(form(&token.body), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    for stop in of_kind(&place.amperity, Kind::Stop) {
        assert_eq!(stop.header("authorization"), Some("Bearer tok-1"));
    }
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let place = Place::new().await;
    place.put_secret("amperity", &[("clientId", "good-client"), ("clientSecret", "good-secret")]).await;
    // It is renewed when nine tenths of its time are over, and the run is read two seconds after the stop.
    place.amperity.set_expires_in(2);
    place.amperity.add_run(TENANT, Run::new("wf-1").stops_in(Duration::from_secs(1)));
    let _operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    let requests = place.amperity.requests();
    let kinds: Vec<_> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Token, Kind::Stop, Kind::Token, Kind::Read]);
    assert_eq!(requests[1].header("authorization"), Some("Bearer tok-1"));
    assert_eq!(requests[3].header("authorization"), Some("Bearer tok-2"));
    assert!(requests.iter().all(|request| request.answered == Some(200)));
}

#[tokio::test]
async fn the_token_url_of_the_secret_is_used() {
    let place = Place::new().await;
    let tokens = Simulator::start_tls().await;
    // What the other server issues first.
    place.amperity.set_tokens(["tok-1"]);
    let url = format!("{}/api/v0/oauth2/token", tokens.origin());
    let secret = [("clientId", "good-client"), ("clientSecret", "good-secret"), ("tokenUrl", &url)];
    place.put_secret("amperity", &secret).await;
    place.amperity.add_run(TENANT, ends_at_once("wf-1"));
    let mut command = place.command();
    command.env("SSL_CERT_FILE", authority(&tokens)).args(["--allowed-hosts", "localhost"]);
    let _operator = Operator::start(command).await;
    place.apply(a_stop("wf-1")).await;
    assert_eq!(ready(&place.finished("wf-1").await), is(ConditionStatus::True, Reason::RunStopped));
    assert_eq!(of_kind(&tokens, Kind::Token).len(), 1);
    assert_eq!(tokens.requests().len(), 1);
    let kinds: Vec<_> = place.amperity.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Stop]);
}
