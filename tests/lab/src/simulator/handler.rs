//! Owns what the simulated API does with one request: the documented checks, then a fault or the proper answer.
//! Never touches a connection: a reset or a silence is returned as a value, and the server carries it out.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::HoldPoint;
use super::answer::{Answer, Reply};
use super::fault::{ErrorBody, Fault, Took};
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
pub(super) async fn handle(shared: &Shared, entry: Entry, call: &Recorded) -> Reply {
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

async fn stop(shared: &Shared, entry: Entry, call: &Recorded) -> Reply {
    let (tenant, run_id) = match checked(&mut shared.world(), call) {
        Ok(target) => target,
        Err(refused) => return refused.into(),
    };
    let fault = shared.world().fault(Kind::Stop, run_id);
    if let Some(Fault::Slow(time)) = fault {
        tokio::time::sleep(time).await;
    }
    shared.pass(HoldPoint::BeforeEffect).await;
    let mut before = None;
    if fault.as_ref().map_or(Took::Effect, Fault::took) == Took::Effect {
        let now = Instant::now();
        let phase = with_run(shared, tenant, run_id, |run| run.stop(now));
        if matches!(phase, Phase::Active | Phase::Stopping) {
            shared.journal.effect(entry, run_id);
        }
        before = Some(phase);
    }
    shared.pass(HoldPoint::AfterEffect).await;
    if let Some(reply) = faulty(shared, fault.as_ref(), call) {
        return reply;
    }
    let (again, record) = with_run(shared, tenant, run_id, |run| (run.again, stop_answer(run, fault.as_ref())));
    let world = &mut *shared.world();
    match (before, again) {
        (None | Some(Phase::Active), _) | (_, Again::Unchanged200) => Answer::json(200, &record),
        (_, Again::BadRequest400) => refusal(world, 400, "The workflow is not running"),
        (_, Again::Conflict409) => refusal(world, 409, "The workflow is not running"),
    }
    .into()
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
    let fault = shared.world().fault(Kind::Read, run_id);
    if let Some(Fault::Slow(time)) = fault {
        tokio::time::sleep(time).await;
    }
    if let Some(reply) = faulty(shared, fault.as_ref(), call) {
        return reply;
    }
    let (unreadable, record) = with_run(shared, tenant, run_id, |run| {
        let now = Instant::now();
        let mut record = if verbose { run.record(now) } else { run.overview(now) };
        let tasks = tasks_of(fault.as_ref()).or(verbose.then_some(run.tasks));
        if let Some(tasks) = tasks {
            record.insert("task_instances".to_owned(), run.task_instances(tasks, now));
        }
        (run.unreadable, named(fault.as_ref(), record.into()))
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
    let fault = shared.world().fault(Kind::Token, "");
    if let Some(Fault::Slow(time)) = fault {
        tokio::time::sleep(time).await;
    }
    if let Some(reply) = faulty(shared, fault.as_ref(), call) {
        return reply;
    }
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
            ErrorBody::Empty => Answer::empty(*code),
        },
        Fault::Reset(_) => return Some(Reply::Reset),
        Fault::NoAnswer(_) => return Some(Reply::Never),
        Fault::HtmlWith200(_) => Answer::page(200),
        Fault::Redirect { code, location } => Answer::empty(*code).header("location", Some(location.clone())),
        Fault::EndlessBody(_) => Answer::endless(call.run_id.as_deref().unwrap_or_default()),
        Fault::Accepted202 => Answer::empty(202),
        Fault::JsonWith200(body, _) => Answer::json(200, body),
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
