//! Owns the handling of one request by the simulated API: the documented checks, then a fault or the normal response.
//! Never touches a connection: a reset or a missing response is returned as a value, and the server applies it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::HoldPoint;
use super::api_state::{ApiState, Shared};
use super::fault::{ErrorBody, Fault, Headers, StopEffect};
use super::request_log::{EntryId, Kind, RecordedRequest};
use super::response::{Reply, ResponseSpec};
use super::run::{Phase, RepeatedStop, Run, StopResponseTasks};
use super::tokens::form;

const TOKEN_PATH: &str = "/api/v0/oauth2/token";
const RUNS_PATH: &str = "/api/workflow/runs/";

/// Returns the kind of a request and its run id, from method and path.
pub(super) fn classify(method: &str, path: &str) -> (Kind, Option<String>) {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path == TOKEN_PATH {
        let kind = if method == "POST" { Kind::Token } else { Kind::Other };
        return (kind, None);
    }
    let Some(rest) = path.strip_prefix(RUNS_PATH) else {
        return (Kind::Other, None);
    };
    let (id, kind) = match (rest.strip_suffix("/stop"), method) {
        (Some(id), "POST") => (id, Kind::Stop),
        (Some(id), _) => (id, Kind::Other),
        (None, "GET") => (rest, Kind::Read),
        (None, _) => (rest, Kind::Other),
    };
    // A trailing slash or another segment makes the path unknown.
    if id.is_empty() || id.contains('/') {
        return (Kind::Other, None);
    }
    (kind, Some(id.to_owned()))
}

/// Checks one request and returns its reply.
pub(super) async fn handle(shared: &Arc<Shared>, entry: EntryId, request: &RecordedRequest) -> Reply {
    if let Some(response) = rate_limit_response(shared, request) {
        return response.into();
    }
    let reply = match request.kind {
        Kind::Stop => stop(shared, entry, request).await,
        Kind::Read => read(shared, request).await,
        Kind::Token => token(shared, request).await,
        Kind::Other => {
            let known = request.run_id.is_some() || request.path.split('?').next() == Some(TOKEN_PATH);
            let status = if known { 405 } else { 404 };
            error_response(&mut shared.lock(), status, "No such route").into()
        }
    };
    if let (Reply::Response(response), Some(tenant)) = (&reply, &request.tenant)
        && response.status == 429
    {
        shared.lock().limit.release(tenant, request.at);
    }
    reply
}

/// Returns the response to a request above the rate limit.
fn rate_limit_response(shared: &Shared, request: &RecordedRequest) -> Option<ResponseSpec> {
    let tenant = request.tenant.as_deref().filter(|_| request.kind != Kind::Other)?;
    let state = &mut *shared.lock();
    if state.limit.admit(tenant, request.at) {
        return None;
    }
    let retry_after = state.limit.retry_after.as_ref();
    let retry_after = retry_after.and_then(|after| after.header(request.wall));
    let response = error_response(state, 429, "Rate limit exceeded");
    Some(response.header("retry-after", retry_after))
}

/// The fault of one request, and headers to set on its response.
struct Injected {
    fault: Option<Fault>,
    headers: Headers,
}

impl Injected {
    /// Takes the fault of this request, and waits if it is a delay.
    async fn take(shared: &Shared, request: &RecordedRequest) -> Self {
        let fault = shared.lock().fault(request.kind, request.run_id.as_deref().unwrap_or_default());
        let unwrapped = fault.map(|fault| fault.unwrapped(request.wall));
        let (fault, headers) = unwrapped.map_or_else(Default::default, |(fault, headers)| (Some(fault), headers));
        if let Some(Fault::Slow(time)) = fault {
            tokio::time::sleep(time).await;
        }
        Injected { fault, headers }
    }

    fn set_headers(self, reply: Reply) -> Reply {
        let Reply::Response(response) = reply else { return reply };
        let set = |response: ResponseSpec, (name, value)| response.set_header(name, value);
        self.headers.into_iter().fold(response, set).into()
    }
}

async fn stop(shared: &Arc<Shared>, entry: EntryId, request: &RecordedRequest) -> Reply {
    let target = match validate(&mut shared.lock(), request) {
        Ok(target) => target,
        Err(response) => return response.into(),
    };
    let injected = Injected::take(shared, request).await;
    let reply = stop_reply(shared, entry, request, target, injected.fault.as_ref()).await;
    injected.set_headers(reply)
}

async fn stop_reply(
    shared: &Arc<Shared>,
    entry: EntryId,
    request: &RecordedRequest,
    (tenant, run_id): (&str, &str),
    fault: Option<&Fault>,
) -> Reply {
    shared.wait_at(HoldPoint::BeforeEffect).await;
    let before = match fault.map_or(StopEffect::Immediate, Fault::effect) {
        StopEffect::Immediate => Some(stop_run(shared, entry, tenant, run_id)),
        StopEffect::Delayed(delay) => {
            stop_run_later(shared, entry, (tenant.to_owned(), run_id.to_owned()), delay);
            None
        }
        StopEffect::NoEffect => None,
    };
    shared.wait_at(HoldPoint::AfterEffect).await;
    if let Some(reply) = fault_reply(shared, fault, request) {
        return reply;
    }
    let (repeated, record) = with_run(shared, tenant, run_id, |run| (run.on_repeated_stop, stop_record(run, fault)));
    let state = &mut *shared.lock();
    match (before, repeated) {
        (None | Some(Phase::Active), _) | (_, RepeatedStop::Unchanged200) => ResponseSpec::json(200, &record),
        (_, RepeatedStop::BadRequest400) => error_response(state, 400, "The workflow is not running"),
        (_, RepeatedStop::Conflict409) => error_response(state, 409, "The workflow is not running"),
    }
    .into()
}

/// Stops a run and returns its previous phase.
fn stop_run(shared: &Shared, entry: EntryId, tenant: &str, run_id: &str) -> Phase {
    let now = Instant::now();
    let before = with_run(shared, tenant, run_id, |run| run.stop(now));
    if matches!(before, Phase::Active | Phase::Stopping) {
        shared.requests.record_effect(entry, run_id);
    }
    before
}

/// Stops a run after a delay, unless the simulator is dropped before. Does not depend on the connection.
fn stop_run_later(shared: &Arc<Shared>, entry: EntryId, (tenant, run_id): (String, String), delay: Duration) {
    let (shared, at) = (Arc::clone(shared), Instant::now() + delay);
    tokio::spawn(async move {
        let mut ended = shared.ended.subscribe();
        tokio::select! {
            () = tokio::time::sleep_until(at) => {
                stop_run(&shared, entry, &tenant, &run_id);
            }
            _ = ended.wait_for(|ended| *ended) => {}
        }
    });
}

async fn read(shared: &Shared, request: &RecordedRequest) -> Reply {
    let (tenant, run_id) = match validate(&mut shared.lock(), request) {
        Ok(target) => target,
        Err(response) => return response.into(),
    };
    let verbose = match request.parameter("view") {
        None | Some("overview") => false,
        Some("verbose") => true,
        Some(_) => return error_response(&mut shared.lock(), 400, "Unknown view").into(),
    };
    let injected = Injected::take(shared, request).await;
    let reply = read_reply(shared, request, (tenant, run_id), verbose, injected.fault.as_ref());
    injected.set_headers(reply)
}

fn read_reply(
    shared: &Shared,
    request: &RecordedRequest,
    (tenant, run_id): (&str, &str),
    verbose: bool,
    fault: Option<&Fault>,
) -> Reply {
    if let Some(reply) = fault_reply(shared, fault, request) {
        return reply;
    }
    let (unreadable, record) = with_run(shared, tenant, run_id, |run| {
        let now = Instant::now();
        let run = run.as_read(now);
        let mut record = if verbose { run.record(now) } else { run.overview(now) };
        let tasks = task_count(fault).or(verbose.then_some(run.tasks));
        if let Some(tasks) = tasks {
            record.insert("task_instances".to_owned(), run.task_instances(tasks, now));
        }
        (run.unreadable, with_id(fault, record.into()))
    });
    match unreadable {
        Some(status) => error_response(&mut shared.lock(), status, "The run cannot be read"),
        None => ResponseSpec::json(200, &record),
    }
    .into()
}

async fn token(shared: &Shared, request: &RecordedRequest) -> Reply {
    let Some(tenant) = request.tenant.as_deref() else {
        return error_response(&mut shared.lock(), 400, "X-Amperity-Tenant is missing").into();
    };
    let injected = Injected::take(shared, request).await;
    let reply =
        fault_reply(shared, injected.fault.as_ref(), request).unwrap_or_else(|| token_reply(shared, request, tenant));
    injected.set_headers(reply)
}

fn token_reply(shared: &Shared, request: &RecordedRequest, tenant: &str) -> Reply {
    let fields = form(&request.body);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let state = &mut *shared.lock();
    if field("grant_type") != "client_credentials" {
        return error_response(state, 400, "Unsupported grant type").into();
    }
    let (id, secret) = &state.tokens.client;
    if field("client_id") != id || field("client_secret") != secret {
        return error_response(state, 401, "Invalid client").into();
    }
    let body = json!({
        "access_token": state.tokens.issue(tenant, Instant::now()),
        "token_type": "Bearer",
        "expires_in": state.tokens.expires_in,
    });
    ResponseSpec::json(200, &body).into()
}

/// Makes the documented checks of a request for a run. Returns tenant and run id, or the error response.
fn validate<'a>(state: &mut ApiState, request: &'a RecordedRequest) -> Result<(&'a str, &'a str), ResponseSpec> {
    // The header takes precedence over the query parameter.
    let version = request.header("api-version").or_else(|| request.parameter("api_version"));
    match version {
        Some("2024-04-01") => {}
        Some("2023-01-01") => return Err(error_response(state, 400, "API version no longer supported")),
        Some(_) | None => return Err(error_response(state, 401, "Invalid API version identifier")),
    }
    let Some(tenant) = request.tenant.as_deref() else {
        return Err(error_response(state, 400, "The header amperity-tenant is missing"));
    };
    let token = request.header("authorization").unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or_default();
    if !state.tokens.is_valid(token, tenant, Instant::now()) {
        return Err(error_response(state, 401, "Invalid or expired token"));
    }
    if request.kind == Kind::Stop && !request.body.is_empty() {
        return Err(error_response(state, 400, "This call takes no body"));
    }
    let run_id = request.run_id.as_deref().unwrap_or_default();
    if state.run(tenant, run_id).is_none() {
        return Err(error_response(state, 404, "Workflow run not found"));
    }
    Ok((tenant, run_id))
}

/// Returns the reply of a fault, or `None` if it only changes the normal response.
fn fault_reply(shared: &Shared, fault: Option<&Fault>, request: &RecordedRequest) -> Option<Reply> {
    let response = match fault? {
        Fault::TooManyRequests { retry_after } => {
            let retry_after = retry_after.header(request.wall);
            let response = error_response(&mut shared.lock(), 429, "Rate limit exceeded");
            response.header("retry-after", retry_after)
        }
        Fault::Status { code, body, .. } => match body {
            ErrorBody::ErrorJson => error_response(&mut shared.lock(), *code, "Something went wrong"),
            ErrorBody::Html => ResponseSpec::page(*code),
            ErrorBody::OtherJson => ResponseSpec::other_json(*code),
            ErrorBody::OAuthJson => ResponseSpec::oauth_error(*code),
            ErrorBody::Empty => ResponseSpec::empty(*code),
        },
        Fault::Reset(_) => return Some(Reply::Reset),
        Fault::NoResponse(_) => return Some(Reply::Never),
        Fault::HtmlWith200(_) => ResponseSpec::page(200),
        Fault::Redirect { code, location } => ResponseSpec::empty(*code).header("location", Some(location.clone())),
        Fault::EndlessBody(_) => ResponseSpec::endless(request.run_id.as_deref().unwrap_or_default()),
        Fault::Accepted202 => ResponseSpec::empty(202),
        Fault::JsonWith200(body, _) => ResponseSpec::json(200, body),
        Fault::Raw { code, body, .. } => ResponseSpec::raw(*code, body.clone()),
        // Already unwrapped by `Injected::take`.
        Fault::WithRetryAfter(fault, _) | Fault::WithHeader(fault, ..) => {
            return fault_reply(shared, Some(fault), request);
        }
        Fault::Slow(_) | Fault::WrongId(_) | Fault::ManyTasks(_) => return None,
    };
    Some(response.into())
}

/// Returns the body of the response to a stop.
fn stop_record(run: &Run, fault: Option<&Fault>) -> Value {
    let now = Instant::now();
    let mut record = run.record(now);
    let tasks = match run.stop_response_tasks {
        StopResponseTasks::Absent => None,
        StopResponseTasks::Empty => Some(0),
        StopResponseTasks::Full => Some(run.tasks),
    };
    if let Some(tasks) = task_count(fault).or(tasks) {
        record.insert("task_instances".to_owned(), run.task_instances(tasks, now));
    }
    with_id(fault, record.into())
}

fn task_count(fault: Option<&Fault>) -> Option<usize> {
    if let Some(Fault::ManyTasks(count)) = fault { Some(*count) } else { None }
}

/// Replaces the run id if the fault says so.
fn with_id(fault: Option<&Fault>, mut record: Value) -> Value {
    if let Some(Fault::WrongId(_)) = fault {
        record["id"] = json!("wf-19700101-00000-other");
    }
    record
}

fn with_run<T>(shared: &Shared, tenant: &str, id: &str, use_run: impl FnOnce(&mut Run) -> T) -> T {
    use_run(shared.lock().run(tenant, id).expect("the checks found this run, and runs are never removed"))
}

/// Creates a response with the documented error object.
fn error_response(state: &mut ApiState, status: u16, message: &str) -> ResponseSpec {
    ResponseSpec::error(status, message, &state.next_request_id())
}
