//! Owns the simulated Amperity: every answer with and without an effect, early, late or never.
//! Never lets a request take effect later than the settle time after its end; that is what the operator assumes.

use std::time::Duration;

use reqwest::Request;
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::BoxError;
use workflow_run_stop_operator::amperity::http::{Carried, Carry};

use crate::world::{Post, REQUEST_TIMEOUT, SETTLE_TIME, World};

/// The API as one replica reaches it.
pub struct Amperity {
    pub world: World,
    pub replica: usize,
}

/// How long a 429 asks to wait, where it does.
const RETRY_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
enum Answer {
    /// With the run as it is.
    Run(u16),
    /// With a body that is no run.
    Other(u16),
    /// 429, and when to come again.
    Later,
    /// None; the connection breaks.
    Reset,
    /// None, for longer than anybody waits.
    Silence,
}

/// What comes of a stop request.
struct Fate {
    answer: Answer,
    effect: Option<Duration>,
}

impl Answer {
    fn status(self) -> Option<u16> {
        match self {
            Self::Run(status) | Self::Other(status) => Some(status),
            Self::Later => Some(429),
            Self::Reset | Self::Silence => None,
        }
    }

    /// True where nobody can tell from it that the stop had no effect.
    fn is_unclear(self) -> bool {
        self.status().is_none_or(|status| 500 <= status)
    }
}

impl Carry for Amperity {
    fn carry(&self, request: Request, connected: futures::future::BoxFuture<'static, Result<(), BoxError>>) -> Carried {
        let (world, replica) = (self.world.clone(), self.replica);
        Box::pin(async move {
            world.step(replica).await;
            if world.trouble(0.3) {
                return Err("no connection".into());
            }
            // A process that was stopped for a while finds its connection, and its claim too old.
            world.pause(Duration::from_millis(world.one_of(0.2, [100, 200_000]))).await;
            connected.await?;
            let id = request.url().path_segments().unwrap().nth(3).unwrap().to_owned();
            let stop = request.method() == "POST";
            let post = stop.then(|| written(&world, replica, &id));
            let (answered, answer) = oneshot::channel();
            tokio::spawn({
                let world = world.clone();
                async move {
                    world.pause(Duration::from_millis(world.one_of(0.5, [300, 25_000]))).await;
                    let answer = match post {
                        Some(post) => stopped(&world, &id, post).await,
                        None => read(&world, &id).await,
                    };
                    let _ = answered.send(answer);
                }
            });
            world.step(replica).await;
            let answer = timeout(REQUEST_TIMEOUT, answer).await.map_err(|_| "no answer in time")?;
            world.step(replica).await;
            let (answer, body) = answer.map_err(|_| "reset")?;
            let mut response = http::Response::builder().status(answer.status().ok_or("reset")?);
            if let Answer::Later = answer {
                response = response.header("retry-after", RETRY_AFTER.as_secs());
                let now = Instant::now();
                world.lock().closed.insert(replica, (now, now + RETRY_AFTER));
            }
            Ok(response.body(body).unwrap().into())
        })
    }
}

/// A stop request is written. Here is judged whether it may be.
fn written(world: &World, replica: usize, id: &str) -> usize {
    let mut inner = world.lock();
    let run = inner.runs[id].clone();
    let number = run.posts.len();
    inner.tell(&format!("replica {replica}: POST {number} for {id}"));
    let may_be_accepted = |post: &Post| (post.effect || post.pending) && (run.readable || !post.server_error);
    if run.posts.iter().any(may_be_accepted) {
        inner.fail(&format!("a further POST for {id} while an earlier one may have been accepted"));
    }
    let stored = inner.objects.values().find(|object| object["metadata"]["uid"] == run.uid).cloned();
    if let Some(stored) = stored {
        let claimed = stored["status"]["stopRequest"]["attempts"].as_u64().unwrap_or_default();
        if claimed < number as u64 + 1 {
            inner.fail(&format!("a POST for {id} without a claim"));
        }
    }
    let post = Post { effect: false, pending: true, server_error: false, success: false };
    inner.runs.get_mut(id).unwrap().posts.push(post);
    number
}

async fn stopped(world: &World, id: &str, number: usize) -> (Answer, String) {
    let state = world.lock().run(id).unwrap().state;
    let fate = if state == "running" { fate_of_active(world, id) } else { fate_of_other(world, state) };
    let begun = Instant::now();
    if let Some(effect) = fate.effect {
        // What is to take effect does so before the answer, or at the latest when the settle time is over.
        let (world, id) = (world.clone(), id.to_owned());
        // Readers may see it later still, but two looks with the settle time in between do not miss it.
        let lag = Duration::from_secs(world.one_of(2.0, [0, 27])).mul_f64(world.share());
        let take = async move {
            sleep_until(begun + effect).await;
            let mut inner = world.lock();
            inner.tell(&format!("POST {number} for {id} takes effect"));
            let lasts = inner.version % 3;
            let run = inner.run(&id).unwrap();
            run.posts[number].effect = true;
            run.posts[number].pending = false;
            if run.state == "running" {
                run.hidden = Some(Instant::now() + lag);
                run.state = if lasts == 0 { "canceled" } else { "stopping" };
                run.ends = Some((Instant::now() + Duration::from_secs(lasts * 20), "canceled"));
            }
        };
        if fate.answer.is_unclear() { drop(tokio::spawn(take)) } else { take.await }
    } else {
        world.lock().run(id).unwrap().posts[number].pending = false;
    }
    {
        let mut inner = world.lock();
        let (post, status) = (&mut inner.run(id).unwrap().posts[number], fate.answer.status());
        post.server_error = status.is_some_and(|status| 500 <= status);
        post.success = status.is_some_and(|status| (200..300).contains(&status));
    }
    world.tell(format!("POST {number} for {id} is answered {:?}", fate.answer.status()));
    if let Answer::Silence = fate.answer {
        sleep(REQUEST_TIMEOUT * 2).await;
    }
    let body = match fate.answer {
        Answer::Run(_) => json!({"id": id, "state": world.lock().run(id).unwrap().state}).to_string(),
        Answer::Other(_) | Answer::Later | Answer::Reset | Answer::Silence => "<html>".to_owned(),
    };
    (fate.answer, body)
}

fn fate_of_active(world: &World, id: &str) -> Fate {
    let at_once = Some(Duration::ZERO);
    // Measured from the end of the request, which comes no earlier than this moment.
    let late = Some(SETTLE_TIME.mul_f64(0.9).mul_f64(world.share()));
    let fate = |answer, effect| Fate { answer, effect };
    let readable = world.lock().runs[id].readable;
    let fates = [
        fate(Answer::Run(200), at_once),
        fate(Answer::Other(429), None),
        fate(Answer::Later, None),
        fate(Answer::Other(401), None),
        fate(Answer::Other(403), None),
        fate(Answer::Other(409), None),
        fate(Answer::Other(500), None),
        fate(Answer::Other(503), if readable { late } else { None }),
        fate(Answer::Reset, None),
        fate(Answer::Reset, at_once),
        fate(Answer::Reset, late),
        fate(Answer::Silence, None),
        fate(Answer::Silence, late),
        fate(Answer::Other(200), None),
        fate(Answer::Other(200), at_once),
        fate(Answer::Other(202), at_once),
    ];
    world.one_of(2.0, fates)
}

fn fate_of_other(world: &World, state: &str) -> Fate {
    let status = if state == "stopping" { 200 } else { [400, 200, 409, 200][world.below(4) as usize] };
    Fate { answer: Answer::Run(status), effect: None }
}

async fn read(world: &World, id: &str) -> (Answer, String) {
    let usual = Answer::Run(200);
    let answer = world
        .one_of(1.0, [usual, Answer::Other(503), Answer::Reset, Answer::Other(401), Answer::Other(429), Answer::Later]);
    let Answer::Run(_) = answer else { return (answer, String::new()) };
    let mut inner = world.lock();
    let run = inner.run(id).unwrap().clone();
    let hidden = run.hidden.is_some_and(|until| Instant::now() < until);
    let state = if hidden { "running" } else { run.state };
    inner.tell(&format!("{id} is read as {state}"));
    if !run.readable {
        return (Answer::Other(403), String::new());
    }
    (answer, json!({"id": id, "state": state, "task_instances": []}).to_string())
}
