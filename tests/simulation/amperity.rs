//! Owns the simulated Amperity and the gateway in front of it: every answer with and without an effect, early, late or
//! never; tokens that are issued, expire and are revoked.
//! Never lets a request take effect later than the settle time after its end, unless that assumption is off.

use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::BoxError;
use workflow_run_stop_operator::amperity::transport::{CustomTransport, Request, Response, TransportFuture};

use crate::{
    answers::{
        Answer, Behavior, Effect, Page, answer_to_read, behavior_for_active_run, behavior_for_inactive_run, pick,
    },
    assumptions::Assumption,
    judge_requests::{check_fence, check_read, check_request, record_stop},
    replica::request_timeout,
    world::{SETTLE_TIME, World},
};

/// The API as one process of a replica reaches it.
pub struct Amperity {
    pub world: World,
    pub replica: usize,
    pub incarnation: u32,
}

/// The `Retry-After` of an answer that has one.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The operation that a request asks for.
#[derive(Clone)]
enum Call {
    Stop(String),
    Read(String),
    Token(String),
}

/// A written request.
#[derive(Clone)]
struct Written {
    call: Call,
    tenant: String,
    token: String,
    /// The index of a stop request among those for its run.
    number: usize,
}

impl Call {
    fn of(request: &Request) -> Self {
        if request.url.path().ends_with("/oauth2/token") {
            return Self::Token(String::from_utf8_lossy(&request.body).into_owned());
        }
        let id = request.url.path_segments().unwrap().nth(3).unwrap().to_owned();
        if request.method == "POST" { Self::Stop(id) } else { Self::Read(id) }
    }
}

fn header(request: &Request, name: &str) -> Option<String> {
    Some(request.headers.get(name)?.to_str().ok()?.to_owned())
}

impl CustomTransport for Amperity {
    fn send(&self, request: Request, connected: BoxFuture<'static, Result<(), BoxError>>) -> TransportFuture {
        let (world, replica, incarnation) = (self.world.clone(), self.replica, self.incarnation);
        Box::pin(async move {
            world.step(replica).await;
            if world.fault_occurs(0.3) {
                return Err("no connection".into());
            }
            // A process that was paused still has its connection, but its claim is too old. On a machine that was
            // suspended, only the wall clock shows that.
            let (pause, suspended) = world.choose(0.3, [(100, false), (200_000, false), (100, true)]);
            world.delay(Duration::from_millis(pause)).await;
            if suspended {
                world.suspend(replica);
            }
            connected.await?;
            let tenant = header(&request, "amperity-tenant").or_else(|| header(&request, "x-amperity-tenant"));
            let token = header(&request, "authorization").unwrap_or_default().replace("Bearer ", "");
            let mut written = Written { call: Call::of(&request), tenant: tenant.unwrap(), token, number: 0 };
            check_request(&mut world.lock(), replica, &written.tenant);
            match &written.call {
                Call::Stop(id) => {
                    check_fence(&mut world.lock(), replica, id);
                    if world.is_off(Assumption::NoStopBeforeWrite) && world.fault_occurs(0.5) {
                        // The request is written after the pause whatever happens meanwhile, even after its timeout.
                        let pause = Duration::from_secs(300).mul_f64(world.fraction());
                        let (world, id) = (world.clone(), id.clone());
                        tokio::spawn(async move {
                            sleep(pause).await;
                            written.number = record_stop(&mut world.lock(), replica, &id);
                            serve(&world, written).await
                        });
                        return std::future::pending().await;
                    }
                    written.number = record_stop(&mut world.lock(), replica, id);
                }
                Call::Read(id) => check_read(&mut world.lock(), replica, id),
                Call::Token(_) => {}
            }
            let limit = request_timeout(&world, replica);
            let (answered, answer) = oneshot::channel();
            tokio::spawn({
                let (world, written) = (world.clone(), written.clone());
                async move {
                    let max = limit.saturating_sub(Duration::from_secs(5)).as_millis() as u64;
                    world.delay(Duration::from_millis(world.choose(0.5, [300, max]))).await;
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
                inner.rate_limited(replica, &written.tenant, RETRY_AFTER);
            }
            match &written.call {
                Call::Stop(id) if answer.accepts() => {
                    inner.runs.get_mut(id).unwrap().posts[written.number].received = Some((replica, incarnation));
                }
                Call::Read(id) => inner.runs.get_mut(id).unwrap().was_read(replica, answer),
                Call::Stop(_) | Call::Token(_) => {}
            }
            Ok(response)
        })
    }
}

fn response(answer: Answer, body: String) -> Option<Response> {
    let mut response = http::Response::builder().status(answer.status()?);
    if let Answer::Later(_) = answer {
        response = response.header("retry-after", RETRY_AFTER.as_secs());
    }
    if let Answer::Foreign(300..400, _) = answer {
        response = response.header("location", "https://login.example.org/");
    }
    Some(response.body(Full::from(body).map_err(BoxError::from).boxed_unsync()).unwrap())
}

/// Executes a request. Returns the answer and its body.
async fn serve(world: &World, written: Written) -> (Answer, String) {
    let Written { call, tenant, token, number } = written;
    let outage = world.lock().faults.outage(&tenant);
    let is_valid = world.lock().secrets.is_valid(&token);
    match call {
        Call::Stop(id) => serve_stop(world, &id, number, outage, is_valid).await,
        Call::Read(id) => {
            let answer = serve_read(world, &id, outage, is_valid);
            if let Answer::Silence = answer.0 {
                sleep(SETTLE_TIME * 4).await;
            }
            answer
        }
        Call::Token(form) => serve_token(world, &form, outage),
    }
}

async fn serve_stop(
    world: &World,
    id: &str,
    number: usize,
    outage: Option<Behavior>,
    is_valid: bool,
) -> (Answer, String) {
    let (state, fault) = {
        let mut inner = world.lock();
        let run = inner.run(id).unwrap();
        (run.state, run.stop_fault)
    };
    let behavior = match outage.or(fault) {
        _ if !is_valid => Behavior { answer: Answer::Own(401), effect: Effect::None },
        Some(behavior) => behavior,
        None if state == "running" => behavior_for_active_run(world),
        None => behavior_for_inactive_run(world),
    };
    {
        let mut inner = world.lock();
        inner.run(id).unwrap().posts[number].success = behavior.answer.accepts();
    }
    match behavior.effect {
        Effect::None => world.lock().run(id).unwrap().posts[number].pending = false,
        Effect::AtOnce => apply_stop(world, id, number, read_lag(world)),
        Effect::Late => {
            // The settle time counts from the end of the request, which is not before now.
            let late = SETTLE_TIME.mul_f64(0.9).mul_f64(world.fraction());
            let late = if world.is_off(Assumption::EffectWithinSettleTime) { late * 8 } else { late };
            let (world, id, at, lag) = (world.clone(), id.to_owned(), Instant::now() + late, read_lag(world));
            tokio::spawn(async move {
                sleep_until(at).await;
                apply_stop(&world, &id, number, lag);
            });
        }
    }
    world.log(format!("POST {number} for {id} is answered {:?}, effect {:?}", behavior.answer, behavior.effect));
    if let Answer::Silence = behavior.answer {
        sleep(SETTLE_TIME * 4).await;
    }
    let state = world.lock().run(id).unwrap().state;
    (behavior.answer, behavior.answer.body(id, state))
}

/// Returns the time after which reads show an effect. Of two reads that are the settle time apart, one shows it.
fn read_lag(world: &World) -> Duration {
    let lag = world.choose(2.0, [Duration::ZERO, SETTLE_TIME.mul_f64(0.9)]).mul_f64(world.fraction());
    if world.is_off(Assumption::ReadsShowAnEffect) { lag * 12 } else { lag }
}

/// Applies the effect of a stop request now; reads show it `lag` later.
fn apply_stop(world: &World, id: &str, number: usize, lag: Duration) {
    let mut inner = world.lock();
    inner.log(&format!("POST {number} for {id} takes effect"));
    let duration = inner.version % 3;
    let run = inner.run(id).unwrap();
    (run.posts[number].effect, run.posts[number].pending) = (true, false);
    if run.state == "running" {
        run.hidden_until = Some(Instant::now() + lag);
        run.set_state(if duration == 0 { "canceled" } else { "stopping" });
        run.next_state = Some((Instant::now() + Duration::from_secs(duration * 20), "canceled"));
    }
}

fn serve_read(world: &World, id: &str, outage: Option<Behavior>, is_valid: bool) -> (Answer, String) {
    let fault = world.lock().runs[id].read_fault;
    let answer = match outage {
        _ if !is_valid => Answer::Own(401),
        Some(behavior) => behavior.answer,
        None => match answer_to_read(world) {
            Answer::Run(_) => fault.unwrap_or(Answer::Run(200)),
            temporary_fault => temporary_fault,
        },
    };
    let mut inner = world.lock();
    let run = inner.run(id).unwrap();
    let hidden = run.hidden_until.is_some_and(|until| Instant::now() < until);
    let state = if hidden { "running" } else { run.state };
    inner.log(&format!("the read of {id} is answered {answer:?}, its state is {state}"));
    (answer, answer.body(id, state))
}

/// Returns the answer of the token endpoint.
fn serve_token(world: &World, form: &str, outage: Option<Behavior>) -> (Answer, String) {
    let client = world.lock().secrets.client_of(form);
    let undisturbed = if client.is_some() { Answer::Run(200) } else { Answer::Own(401) };
    let options = [
        undisturbed,
        Answer::Own(401),
        Answer::Own(429),
        Answer::Foreign(503, Page::Html),
        Answer::Foreign(200, Page::Html),
        Answer::Reset,
    ];
    let answer = outage.map_or_else(|| world.choose(1.0, options), |behavior| behavior.answer);
    let valid = Duration::from_secs(pick(world, &[30, 120, 3600]));
    let mut inner = world.lock();
    inner.log(&format!("a token request is answered {answer:?}"));
    let (Answer::Run(_), Some(client)) = (answer, client) else {
        let oauth = matches!(answer, Answer::Own(401)).then(|| json!({"error": "invalid_client"}).to_string());
        return (answer, oauth.unwrap_or_else(|| answer.body("", "")));
    };
    let token = inner.secrets.issue(client, valid);
    (answer, json!({"access_token": token, "expires_in": valid.as_secs()}).to_string())
}
