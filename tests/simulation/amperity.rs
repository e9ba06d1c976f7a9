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

/// What comes of a stop request.
struct Fate {
    /// 0 where no answer comes.
    status: u16,
    body: String,
    effect: Option<Duration>,
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
            let way = if world.trouble(0.2) { Duration::from_secs(200) } else { Duration::from_millis(100) };
            world.pause(way).await;
            connected.await?;
            let id = request.url().path_segments().unwrap().nth(3).unwrap().to_owned();
            let stop = request.method() == "POST";
            let post = stop.then(|| written(&world, replica, &id));
            let (answered, answer) = oneshot::channel();
            tokio::spawn({
                let world = world.clone();
                async move {
                    world.pause(Duration::from_millis(300)).await;
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
            match answer.map_err(|_| "reset")? {
                (0, _) => Err("reset".into()),
                (status, body) => Ok(http::Response::builder().status(status).body(body).unwrap().into()),
            }
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

async fn stopped(world: &World, id: &str, number: usize) -> (u16, String) {
    let state = world.lock().run(id).unwrap().state;
    let fate = if state == "running" { fate_of_active(world, id) } else { fate_of_other(world, id, state) };
    let begun = Instant::now();
    if let Some(effect) = fate.effect {
        // What is to take effect does so before the answer, or at the latest when the settle time is over.
        let (world, id) = (world.clone(), id.to_owned());
        // Readers may see it later still, but two looks with the settle time in between do not miss it.
        let lag = if world.trouble(2.0) { world.below(27_000) } else { 0 };
        let lag = Duration::from_millis(lag);
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
        if fate.status == 0 || 500 <= fate.status { drop(tokio::spawn(take)) } else { take.await }
    } else {
        world.lock().run(id).unwrap().posts[number].pending = false;
    }
    {
        let mut inner = world.lock();
        let post = &mut inner.run(id).unwrap().posts[number];
        (post.server_error, post.success) = (500 <= fate.status, (200..300).contains(&fate.status));
    }
    world.tell(format!("POST {number} for {id} is answered {}", fate.status));
    // An answer that never comes is told by the client's own limit, or by a reset.
    if fate.status == 0 && world.below(2) == 0 {
        sleep(REQUEST_TIMEOUT * 2).await;
    }
    let state = world.lock().run(id).unwrap().state;
    let body = if fate.body == "run" { json!({"id": id, "state": state}).to_string() } else { fate.body };
    (fate.status, body)
}

fn fate_of_active(world: &World, id: &str) -> Fate {
    let at_once = Some(Duration::ZERO);
    // Measured from the end of the request, which comes no earlier than this moment.
    let late = Some(SETTLE_TIME.mul_f64(0.9).mul_f64(world.below(100) as f64 / 100.0));
    let fate = |status, body: &str, effect| Fate { status, body: body.to_owned(), effect };
    if !world.trouble(2.0) {
        return fate(200, "run", at_once);
    }
    let readable = world.lock().runs[id].readable;
    match world.below(13) {
        0 => fate(429, "", None),
        1 => fate(401, "", None),
        2 => fate(403, "", None),
        3 => fate(409, "", None),
        4 => fate(500, "", None),
        5 => fate(503, "", if readable { late } else { None }),
        6 | 7 => fate(0, "", None),
        8 | 9 => fate(0, "", late),
        10 => fate(200, "<html>", None),
        11 => fate(200, "<html>", at_once),
        _ => fate(202, "", at_once),
    }
}

fn fate_of_other(world: &World, _id: &str, state: &str) -> Fate {
    let status = if state == "stopping" || world.below(2) == 0 { 200 } else { [400, 409][world.below(2) as usize] };
    Fate { status, body: "run".to_owned(), effect: None }
}

async fn read(world: &World, id: &str) -> (u16, String) {
    if world.trouble(1.0) {
        return [(503, String::new()), (0, String::new()), (401, String::new()), (429, String::new())]
            [world.below(4) as usize]
            .clone();
    }
    let mut inner = world.lock();
    let run = inner.run(id).unwrap().clone();
    let hidden = run.hidden.is_some_and(|until| Instant::now() < until);
    let state = if hidden { "running" } else { run.state };
    inner.tell(&format!("{id} is read as {state}"));
    if !run.readable {
        return (403, String::new());
    }
    (200, json!({"id": id, "state": state, "task_instances": []}).to_string())
}
