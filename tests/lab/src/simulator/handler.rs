//! Owns what the simulated API does with one request: the documented checks, then a fault or the proper answer.
//! Never touches a connection: a reset or a silence is returned as a value, and the server carries it out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::HoldPoint;
use super::answer::{Answer, Reply};
use super::fault::{ErrorBody, Fault, Headers, Took};
use super::record::{Entry, Kind, Recorded};
use super::run::{Again, Phase, Run, StopAnswerTasks};
use super::tokens::form;
use super::world::{Shared, World};

const TOKEN_PATH: &str = "/api/v0/oauth2/token";
const RUNS_PATH: &str = "/api/workflow/runs/";

/// What a request asks for, and for which run, by its method and path alone.
pub(super) fn asked(method: &str, path: &str) -> (Kind, Option<String>) {
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
    // A slash at the end, or one more segment, is a path that nobody knows.
    if id.is_empty() || id.contains('/') {
        return (Kind::Other, None);
    }
    (kind, Some(id.to_owned()))
}

/// One request from its checks to its answer.
pub(super) async fn handle(shared: &Arc<Shared>, entry: Entry, call: &Recorded) -> Reply {
    if let Some(over) = over_the_limit(shared, call) {
        return over.into();
    }
    let reply = match call.kind {
        Kind::Stop => stop(shared, entry, call).await,
        Kind::Read => read(shared, call).await,
        Kind::Token => token(shared, call).await,
        Kind::Other => {
            let known = call.run_id.is_some() || call.path.split('?').next() == Some(TOKEN_PATH);
            let status = if known { 405 } else { 404 };
            refusal(&mut shared.world(), status, "No such route").into()
        }
    };
    if let (Reply::Answer(answer), Some(tenant)) = (&reply, &call.tenant)
        && answer.status == 429
    {
        shared.world().limit.release(tenant, call.at);
    }
    reply
}

fn over_the_limit(shared: &Shared, call: &Recorded) -> Option<Answer> {
    let tenant = call.tenant.as_deref().filter(|_| call.kind != Kind::Other)?;
    let world = &mut *shared.world();
    if world.limit.admit(tenant, call.at) {
        return None;
    }
    let retry_after = world.limit.retry_after.as_ref();
    let retry_after = retry_after.and_then(|after| after.header(call.wall));
    let answer = refusal(world, 429, "Rate limit exceeded");
    Some(answer.header("retry-after", retry_after))
}

/// What one request meets instead of its proper answer, and headers of the answer.
struct Met {
    fault: Option<Fault>,
    headers: Headers,
}

impl Met {
    /// Takes the fault of this request, and waits if it says so.
    async fn by(shared: &Shared, call: &Recorded) -> Self {
        let fault = shared.world().fault(call.kind, call.run_id.as_deref().unwrap_or_default());
        let unwrapped = fault.map(|fault| fault.unwrapped(call.wall));
        let (fault, headers) = unwrapped.map_or_else(Default::default, |(fault, headers)| (Some(fault), headers));
        if let Some(Fault::Slow(time)) = fault {
            tokio::time::sleep(time).await;
        }
        Met { fault, headers }
    }

    fn on(self, reply: Reply) -> Reply {
        let Reply::Answer(answer) = reply else { return reply };
        let set = |answer: Answer, (name, value)| answer.set_header(name, value);
        self.headers.into_iter().fold(answer, set).into()
    }
}

async fn stop(shared: &Arc<Shared>, entry: Entry, call: &Recorded) -> Reply {
    let target = match checked(&mut shared.world(), call) {
        Ok(target) => target,
        Err(refused) => return refused.into(),
    };
    let met = Met::by(shared, call).await;
    let reply = stop_of(shared, entry, call, target, met.fault.as_ref()).await;
    met.on(reply)
}

async fn stop_of(
    shared: &Arc<Shared>,
    entry: Entry,
    call: &Recorded,
    (tenant, run_id): (&str, &str),
    fault: Option<&Fault>,
) -> Reply {
    shared.pass(HoldPoint::BeforeEffect).await;
    let before = match fault.map_or(Took::Effect, Fault::took) {
        Took::Effect => Some(effect(shared, entry, tenant, run_id)),
        Took::Late(delay) => {
            late_effect(shared, entry, (tenant.to_owned(), run_id.to_owned()), delay);
            None
        }
        Took::NoEffect => None,
    };
    shared.pass(HoldPoint::AfterEffect).await;
    if let Some(reply) = faulty(shared, fault, call) {
        return reply;
    }
    let (again, record) = with_run(shared, tenant, run_id, |run| (run.again, stop_answer(run, fault)));
    let world = &mut *shared.world();
    match (before, again) {
        (None | Some(Phase::Active), _) | (_, Again::Unchanged200) => Answer::json(200, &record),
        (_, Again::BadRequest400) => refusal(world, 400, "The workflow is not running"),
        (_, Again::Conflict409) => refusal(world, 409, "The workflow is not running"),
    }
    .into()
}

/// Stops a run. Returns how far it had come before.
fn effect(shared: &Shared, entry: Entry, tenant: &str, run_id: &str) -> Phase {
    let now = Instant::now();
    let before = with_run(shared, tenant, run_id, |run| run.stop(now));
    if matches!(before, Phase::Active | Phase::Stopping) {
        shared.journal.effect(entry, run_id);
    }
    before
}

/// Stops a run later, unless the simulator ends before. Neither the client nor the connection matters any more.
fn late_effect(shared: &Arc<Shared>, entry: Entry, (tenant, run_id): (String, String), delay: Duration) {
    let (shared, at) = (Arc::clone(shared), Instant::now() + delay);
    tokio::spawn(async move {
        let mut ended = shared.ended.subscribe();
        tokio::select! {
            () = tokio::time::sleep_until(at) => {
                effect(&shared, entry, &tenant, &run_id);
            }
            _ = ended.wait_for(|ended| *ended) => {}
        }
    });
}

async fn read(shared: &Shared, call: &Recorded) -> Reply {
    let (tenant, run_id) = match checked(&mut shared.world(), call) {
        Ok(target) => target,
        Err(refused) => return refused.into(),
    };
    let verbose = match call.parameter("view") {
        None | Some("overview") => false,
        Some("verbose") => true,
        Some(_) => return refusal(&mut shared.world(), 400, "Unknown view").into(),
    };
    let met = Met::by(shared, call).await;
    let reply = read_of(shared, call, (tenant, run_id), verbose, met.fault.as_ref());
    met.on(reply)
}

fn read_of(
    shared: &Shared,
    call: &Recorded,
    (tenant, run_id): (&str, &str),
    verbose: bool,
    fault: Option<&Fault>,
) -> Reply {
    if let Some(reply) = faulty(shared, fault, call) {
        return reply;
    }
    let (unreadable, record) = with_run(shared, tenant, run_id, |run| {
        let now = Instant::now();
        let run = run.as_read(now);
        let mut record = if verbose { run.record(now) } else { run.overview(now) };
        let tasks = tasks_of(fault).or(verbose.then_some(run.tasks));
        if let Some(tasks) = tasks {
            record.insert("task_instances".to_owned(), run.task_instances(tasks, now));
        }
        (run.unreadable, named(fault, record.into()))
    });
    match unreadable {
        Some(status) => refusal(&mut shared.world(), status, "The run cannot be read"),
        None => Answer::json(200, &record),
    }
    .into()
}

async fn token(shared: &Shared, call: &Recorded) -> Reply {
    let Some(tenant) = call.tenant.as_deref() else {
        return refusal(&mut shared.world(), 400, "X-Amperity-Tenant is missing").into();
    };
    let met = Met::by(shared, call).await;
    let reply = faulty(shared, met.fault.as_ref(), call).unwrap_or_else(|| token_of(shared, call, tenant));
    met.on(reply)
}

fn token_of(shared: &Shared, call: &Recorded, tenant: &str) -> Reply {
    let fields = form(&call.body);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let world = &mut *shared.world();
    if field("grant_type") != "client_credentials" {
        return refusal(world, 400, "Unsupported grant type").into();
    }
    let (id, secret) = &world.tokens.client;
    if field("client_id") != id || field("client_secret") != secret {
        return refusal(world, 401, "Invalid client").into();
    }
    let answer = json!({
        "access_token": world.tokens.issue(tenant, Instant::now()),
        "token_type": "Bearer",
        "expires_in": world.tokens.expires_in,
    });
    Answer::json(200, &answer).into()
}

/// The documented checks of a call for a run: its tenant and its run's id, or the refusal.
fn checked<'a>(world: &mut World, call: &'a Recorded) -> Result<(&'a str, &'a str), Answer> {
    // A header wins over the query's parameter.
    let version = call.header("api-version").or_else(|| call.parameter("api_version"));
    match version {
        Some("2024-04-01") => {}
        Some("2023-01-01") => return Err(refusal(world, 400, "API version no longer supported")),
        Some(_) | None => return Err(refusal(world, 401, "Invalid API version identifier")),
    }
    let Some(tenant) = call.tenant.as_deref() else {
        return Err(refusal(world, 400, "The header amperity-tenant is missing"));
    };
    let token = call.header("authorization").unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or_default();
    if !world.tokens.good(token, tenant, Instant::now()) {
        return Err(refusal(world, 401, "Invalid or expired token"));
    }
    if call.kind == Kind::Stop && !call.body.is_empty() {
        return Err(refusal(world, 400, "This call takes no body"));
    }
    let run_id = call.run_id.as_deref().unwrap_or_default();
    if world.run(tenant, run_id).is_none() {
        return Err(refusal(world, 404, "Workflow run not found"));
    }
    Ok((tenant, run_id))
}

/// The reply of a fault, unless it is one that only changes the proper answer.
fn faulty(shared: &Shared, fault: Option<&Fault>, call: &Recorded) -> Option<Reply> {
    let answer = match fault? {
        Fault::TooManyRequests { retry_after } => {
            let retry_after = retry_after.header(call.wall);
            let answer = refusal(&mut shared.world(), 429, "Rate limit exceeded");
            answer.header("retry-after", retry_after)
        }
        Fault::Status { code, body, .. } => match body {
            ErrorBody::ErrorJson => refusal(&mut shared.world(), *code, "Something went wrong"),
            ErrorBody::Html => Answer::page(*code),
            ErrorBody::OtherJson => Answer::other_json(*code),
            ErrorBody::OAuthJson => Answer::oauth_error(*code),
            ErrorBody::Empty => Answer::empty(*code),
        },
        Fault::Reset(_) => return Some(Reply::Reset),
        Fault::NoAnswer(_) => return Some(Reply::Never),
        Fault::HtmlWith200(_) => Answer::page(200),
        Fault::Redirect { code, location } => Answer::empty(*code).header("location", Some(location.clone())),
        Fault::EndlessBody(_) => Answer::endless(call.run_id.as_deref().unwrap_or_default()),
        Fault::Accepted202 => Answer::empty(202),
        Fault::JsonWith200(body, _) => Answer::json(200, body),
        Fault::Raw { code, body, .. } => Answer::raw(*code, body.clone()),
        // Unwrapped before.
        Fault::WithRetryAfter(fault, _) | Fault::WithHeader(fault, ..) => return faulty(shared, Some(fault), call),
        Fault::Slow(_) | Fault::WrongId(_) | Fault::ManyTasks(_) => return None,
    };
    Some(answer.into())
}

fn stop_answer(run: &Run, fault: Option<&Fault>) -> Value {
    let now = Instant::now();
    let mut record = run.record(now);
    let tasks = match run.stop_answer_tasks {
        StopAnswerTasks::Absent => None,
        StopAnswerTasks::Empty => Some(0),
        StopAnswerTasks::Full => Some(run.tasks),
    };
    if let Some(tasks) = tasks_of(fault).or(tasks) {
        record.insert("task_instances".to_owned(), run.task_instances(tasks, now));
    }
    named(fault, record.into())
}

fn tasks_of(fault: Option<&Fault>) -> Option<usize> {
    if let Some(Fault::ManyTasks(count)) = fault { Some(*count) } else { None }
}

fn named(fault: Option<&Fault>, mut record: Value) -> Value {
    if let Some(Fault::WrongId(_)) = fault {
        record["id"] = json!("wf-19700101-00000-other");
    }
    record
}

fn with_run<T>(shared: &Shared, tenant: &str, id: &str, ask: impl FnOnce(&mut Run) -> T) -> T {
    ask(shared.world().run(tenant, id).expect("the checks found this run, and a run is never taken away"))
}

fn refusal(world: &mut World, status: u16, message: &str) -> Answer {
    Answer::error(status, message, &world.next_request_id())
}
