//! Owns the simulated Amperity and the gateway in front of it: every answer with and without an effect, early, late or
//! never; tokens that are fetched, expire and are revoked.
//! Never lets a request take effect later than the settle time after its end, unless that assumption is off.

use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::Request;
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::BoxError;
use workflow_run_stop_operator::amperity::transport::{CustomTransport, TransportFuture};

use crate::{
    answers::{Answer, Effect, Fate, Page, answer_to_read, any, fate_of_active, fate_of_other},
    assumptions::Assumption,
    judge_requests::{fence_was_passed, read_is_written, request_is_written, stop_is_written},
    replica::request_timeout,
    world::{SETTLE_TIME, World},
};

/// The API as one process that runs as a replica reaches it.
pub struct Amperity {
    pub world: World,
    pub replica: usize,
    pub life: u32,
}

/// How long an answer with `Retry-After` asks to wait.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a request asks for.
#[derive(Clone)]
enum Call {
    Stop(String),
    Read(String),
    Token(String),
}

/// A request that was written.
#[derive(Clone)]
struct Written {
    call: Call,
    tenant: String,
    token: String,
    /// The number of a stop request among those for its run.
    number: usize,
}

impl Call {
    fn of(request: &Request) -> Self {
        if request.url().path().ends_with("/oauth2/token") {
            let form = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
            return Self::Token(String::from_utf8_lossy(form).into_owned());
        }
        let id = request.url().path_segments().unwrap().nth(3).unwrap().to_owned();
        if request.method() == "POST" { Self::Stop(id) } else { Self::Read(id) }
    }
}

fn header(request: &Request, name: &str) -> Option<String> {
    Some(request.headers().get(name)?.to_str().ok()?.to_owned())
}

impl CustomTransport for Amperity {
    fn carry(&self, request: Request, connected: BoxFuture<'static, Result<(), BoxError>>) -> TransportFuture {
        let (world, replica, life) = (self.world.clone(), self.replica, self.life);
        Box::pin(async move {
            world.step(replica).await;
            if world.trouble(0.3) {
                return Err("no connection".into());
            }
            // A process that was stopped for a while finds its connection, and its claim too old; so does one on a
            // machine that was suspended, by its wall clock only.
            let (pause, suspended) = world.one_of(0.3, [(100, false), (200_000, false), (100, true)]);
            world.pause(Duration::from_millis(pause)).await;
            if suspended {
                world.suspend(replica);
            }
            connected.await?;
            let tenant = header(&request, "amperity-tenant").or_else(|| header(&request, "x-amperity-tenant"));
            let token = header(&request, "authorization").unwrap_or_default().replace("Bearer ", "");
            let mut written = Written { call: Call::of(&request), tenant: tenant.unwrap(), token, number: 0 };
            request_is_written(&mut world.lock(), replica, &written.tenant);
            match &written.call {
                Call::Stop(id) => {
                    fence_was_passed(&mut world.lock(), replica, id);
                    if world.is_off(Assumption::NoStopBeforeWrite) && world.trouble(0.5) {
                        // Nothing that happens meanwhile takes the request back, not even its timeout.
                        let pause = Duration::from_secs(300).mul_f64(world.share());
                        let (world, id) = (world.clone(), id.clone());
                        tokio::spawn(async move {
                            sleep(pause).await;
                            written.number = stop_is_written(&mut world.lock(), replica, &id);
                            serve(&world, written).await
                        });
                        return std::future::pending().await;
                    }
                    written.number = stop_is_written(&mut world.lock(), replica, id);
                }
                Call::Read(id) => read_is_written(&mut world.lock(), replica, id),
                Call::Token(_) => {}
            }
            let limit = request_timeout(&world, replica);
            let (answered, answer) = oneshot::channel();
            tokio::spawn({
                let (world, written) = (world.clone(), written.clone());
                async move {
                    let longest = limit.saturating_sub(Duration::from_secs(5)).as_millis() as u64;
                    world.pause(Duration::from_millis(world.one_of(0.5, [300, longest]))).await;
                    let _ = answered.send(serve(&world, written).await);
                }
            });
            world.step(replica).await;
            let answer = timeout(limit, answer).await.map_err(|_| "no answer in time")?;
            world.step(replica).await;
            let (answer, body) = answer.map_err(|_| "reset")?;
            let response = response(answer, body).ok_or("reset")?;
            let mut inner = world.lock();
            if let Answer::Later(429) = answer {
                inner.close(replica, &written.tenant, RETRY_AFTER);
            }
            match &written.call {
                Call::Stop(id) if answer.accepts() => {
                    inner.runs.get_mut(id).unwrap().posts[written.number].received = Some((replica, life));
                }
                Call::Read(id) => inner.runs.get_mut(id).unwrap().was_read(replica, answer),
                Call::Stop(_) | Call::Token(_) => {}
            }
            Ok(response)
        })
    }
}

fn response(answer: Answer, body: String) -> Option<reqwest::Response> {
    let mut response = http::Response::builder().status(answer.status()?);
    if let Answer::Later(_) = answer {
        response = response.header("retry-after", RETRY_AFTER.as_secs());
    }
    if let Answer::Foreign(300..400, _) = answer {
        response = response.header("location", "https://login.example.org/");
    }
    Some(response.body(body).unwrap().into())
}

async fn serve(world: &World, written: Written) -> (Answer, String) {
    let Written { call, tenant, token, number } = written;
    let outage = world.lock().faults.outage(&tenant);
    let is_valid = world.lock().secrets.is_valid(&token);
    match call {
        Call::Stop(id) => stopped(world, &id, number, outage, is_valid).await,
        Call::Read(id) => {
            let answer = read(world, &id, outage, is_valid);
            if let Answer::Silence = answer.0 {
                sleep(SETTLE_TIME * 4).await;
            }
            answer
        }
        Call::Token(form) => fetched(world, &form, outage),
    }
}

async fn stopped(world: &World, id: &str, number: usize, outage: Option<Fate>, is_valid: bool) -> (Answer, String) {
    let (state, fault) = {
        let mut inner = world.lock();
        let run = inner.run(id).unwrap();
        (run.state, run.stop_fault)
    };
    let fate = match outage.or(fault) {
        _ if !is_valid => Fate { answer: Answer::Own(401), effect: Effect::None },
        Some(fate) => fate,
        None if state == "running" => fate_of_active(world),
        None => fate_of_other(world),
    };
    {
        let mut inner = world.lock();
        inner.run(id).unwrap().posts[number].success = fate.answer.accepts();
    }
    match fate.effect {
        Effect::None => world.lock().run(id).unwrap().posts[number].pending = false,
        Effect::AtOnce => takes_effect(world, id, number, lag(world)),
        Effect::Late => {
            // Measured from the end of the request, which comes no earlier than this moment.
            let late = SETTLE_TIME.mul_f64(0.9).mul_f64(world.share());
            let late = if world.is_off(Assumption::EffectWithinSettleTime) { late * 8 } else { late };
            let (world, id, at, lag) = (world.clone(), id.to_owned(), Instant::now() + late, lag(world));
            tokio::spawn(async move {
                sleep_until(at).await;
                takes_effect(&world, &id, number, lag);
            });
        }
    }
    world.tell(format!("POST {number} for {id} is answered {:?}, effect {:?}", fate.answer, fate.effect));
    if let Answer::Silence = fate.answer {
        sleep(SETTLE_TIME * 4).await;
    }
    let state = world.lock().run(id).unwrap().state;
    (fate.answer, fate.answer.body(id, state))
}

/// How much later readers see an effect. Two looks with the settle time in between do not miss it.
fn lag(world: &World) -> Duration {
    let lag = world.one_of(2.0, [Duration::ZERO, SETTLE_TIME.mul_f64(0.9)]).mul_f64(world.share());
    if world.is_off(Assumption::ReadsShowAnEffect) { lag * 12 } else { lag }
}

/// A stop request takes effect now, and readers see it a while later.
fn takes_effect(world: &World, id: &str, number: usize, lag: Duration) {
    let mut inner = world.lock();
    inner.tell(&format!("POST {number} for {id} takes effect"));
    let lasts = inner.version % 3;
    let run = inner.run(id).unwrap();
    (run.posts[number].effect, run.posts[number].pending) = (true, false);
    if run.state == "running" {
        run.hidden = Some(Instant::now() + lag);
        run.becomes(if lasts == 0 { "canceled" } else { "stopping" });
        run.ends = Some((Instant::now() + Duration::from_secs(lasts * 20), "canceled"));
    }
}

fn read(world: &World, id: &str, outage: Option<Fate>, is_valid: bool) -> (Answer, String) {
    let fault = world.lock().runs[id].read_fault;
    let answer = match outage {
        _ if !is_valid => Answer::Own(401),
        Some(fate) => fate.answer,
        None => match answer_to_read(world) {
            Answer::Run(_) => fault.unwrap_or(Answer::Run(200)),
            passing => passing,
        },
    };
    let mut inner = world.lock();
    let run = inner.run(id).unwrap();
    let hidden = run.hidden.is_some_and(|until| Instant::now() < until);
    let state = if hidden { "running" } else { run.state };
    inner.tell(&format!("the read of {id} is answered {answer:?}, its state is {state}"));
    (answer, answer.body(id, state))
}

/// The answer of the token endpoint.
fn fetched(world: &World, form: &str, outage: Option<Fate>) -> (Answer, String) {
    let client = world.lock().secrets.client_of(form);
    let usual = if client.is_some() { Answer::Run(200) } else { Answer::Own(401) };
    let ways = [
        usual,
        Answer::Own(401),
        Answer::Own(429),
        Answer::Foreign(503, Page::Html),
        Answer::Foreign(200, Page::Html),
        Answer::Reset,
    ];
    let answer = outage.map_or_else(|| world.one_of(1.0, ways), |fate| fate.answer);
    let valid = Duration::from_secs(any(world, &[30, 120, 3600]));
    let mut inner = world.lock();
    inner.tell(&format!("a token request is answered {answer:?}"));
    let (Answer::Run(_), Some(client)) = (answer, client) else {
        let oauth = matches!(answer, Answer::Own(401)).then(|| json!({"error": "invalid_client"}).to_string());
        return (answer, oauth.unwrap_or_else(|| answer.body("", "")));
    };
    let token = inner.secrets.issue(client, valid);
    (answer, json!({"access_token": token, "expires_in": valid.as_secs()}).to_string())
}
