//! Owns the answers to stop requests and reads, with and without an effect: Amperity's own and those of a gateway.
//! Never chooses when an answer is sent.

use serde_json::json;

use crate::{assumptions::Assumption, world::World};

/// An answer to a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// 200 with the run in its current state.
    Run(u16),
    /// Amperity's own error object.
    Own(u16),
    /// Amperity's own error object, with `Retry-After`.
    Later(u16),
    /// An answer of a gateway, a proxy or a load balancer.
    Foreign(u16, Page),
    /// 200 with another run.
    OtherRun,
    /// No answer; the connection is reset.
    Reset,
    /// No answer within any timeout.
    Silence,
}

/// The body of a foreign answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Page {
    Html,
    Empty,
    Json,
}

/// The time at which a stop request takes effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    None,
    /// Before the answer.
    AtOnce,
    /// After the answer, within the settle time.
    Late,
}

/// The behavior of Amperity, or of a gateway in its place, for a stop request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behavior {
    pub answer: Answer,
    pub effect: Effect,
}

impl Answer {
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Run(status) | Self::Own(status) | Self::Later(status) | Self::Foreign(status, _) => Some(status),
            Self::OtherRun => Some(200),
            Self::Reset | Self::Silence => None,
        }
    }

    /// Returns true if this answer to a stop request means that it was accepted.
    pub fn accepts(self) -> bool {
        match self {
            Self::Run(200) => true,
            Self::Foreign(status, page) => (201..300).contains(&status) && page != Page::Html,
            _ => false,
        }
    }

    /// Returns true if this answer to a read means that the run is unreadable.
    pub fn is_unreadable(self) -> bool {
        let status = self.status().unwrap_or_default();
        (300..500).contains(&status) && ![401, 408, 429, 499].contains(&status)
    }

    pub fn body(self, id: &str, state: &str) -> String {
        match self {
            Self::Run(_) => json!({"id": id, "state": state, "task_instances": []}).to_string(),
            Self::OtherRun => json!({"id": "wf-other", "state": "canceled"}).to_string(),
            Self::Own(status) | Self::Later(status) => {
                json!({"status": status, "message": "no", "request_id": "r-1"}).to_string()
            }
            Self::Foreign(_, Page::Html) => "<html>".to_owned(),
            Self::Foreign(_, Page::Json) => json!({"message": "no route"}).to_string(),
            Self::Foreign(_, Page::Empty) | Self::Reset | Self::Silence => String::new(),
        }
    }
}

/// Picks one of these, for what is no fault.
pub fn pick<T: Copy>(world: &World, all: &[T]) -> T {
    all[world.below(all.len() as u64) as usize]
}

fn page(world: &World) -> Page {
    pick(world, &[Page::Json, Page::Empty, Page::Html])
}

/// Chooses the behavior for a stop request for an active run: each kind of answer that the operator distinguishes, with
/// each effect that is possible with it.
pub fn behavior_for_active_run(world: &World) -> Behavior {
    use Effect::{AtOnce, Late, None};
    #[derive(Clone, Copy)]
    enum Row {
        Accepted,
        RateLimited,
        RetryAfter,
        OwnUnauthorized,
        OwnForbidden,
        OwnInvalid,
        OwnGone,
        ForeignRateLimited,
        ForeignUnauthorized,
        OwnError(Effect),
        ForeignError(Effect),
        ForeignClientError(Effect),
        Redirect(Effect),
        NotOurRun(Effect),
        OtherSuccess(Effect),
        OtherSuccessPage(Effect),
        Reset(Effect),
        Silence(Effect),
    }
    let row = world.choose(
        2.0,
        [
            Row::Accepted,
            Row::RateLimited,
            Row::RetryAfter,
            Row::OwnUnauthorized,
            Row::OwnForbidden,
            Row::OwnInvalid,
            Row::OwnGone,
            Row::ForeignRateLimited,
            Row::ForeignUnauthorized,
            Row::OwnError(None),
            Row::OwnError(AtOnce),
            Row::OwnError(Late),
            Row::ForeignError(None),
            Row::ForeignError(AtOnce),
            Row::ForeignError(Late),
            Row::ForeignClientError(None),
            Row::ForeignClientError(AtOnce),
            Row::ForeignClientError(Late),
            Row::Redirect(None),
            Row::Redirect(Late),
            Row::NotOurRun(None),
            Row::NotOurRun(AtOnce),
            Row::NotOurRun(Late),
            Row::OtherSuccess(AtOnce),
            Row::OtherSuccess(Late),
            Row::OtherSuccessPage(None),
            Row::OtherSuccessPage(Late),
            Row::Reset(None),
            Row::Reset(AtOnce),
            Row::Reset(Late),
            Row::Silence(None),
            Row::Silence(Late),
        ],
    );
    let (answer, effect) = match row {
        Row::Accepted => (Answer::Run(200), AtOnce),
        Row::RateLimited => (Answer::Own(429), None),
        Row::RetryAfter => (Answer::Later(429), None),
        Row::OwnUnauthorized => (Answer::Own(401), None),
        Row::OwnForbidden => (Answer::Own(403), None),
        Row::OwnInvalid => (Answer::Own(pick(world, &[400, 422, 409])), None),
        Row::OwnGone => (Answer::Own(pick(world, &[405, 410, 404])), None),
        Row::ForeignRateLimited => (Answer::Foreign(429, page(world)), None),
        Row::ForeignUnauthorized => (Answer::Foreign(401, page(world)), None),
        Row::OwnError(effect) => (pick(world, &[Answer::Later(503), Answer::Own(500), Answer::Own(503)]), effect),
        Row::ForeignError(effect) => {
            (Answer::Foreign(pick(world, &[408, 499, 500, 502, 503, 504]), page(world)), effect)
        }
        Row::ForeignClientError(effect) => {
            (Answer::Foreign(pick(world, &[400, 404, 405, 409, 410, 418, 422, 403]), page(world)), effect)
        }
        Row::Redirect(effect) => (Answer::Foreign(pick(world, &[301, 307, 302]), Page::Empty), effect),
        Row::NotOurRun(effect) => (pick(world, &[Answer::OtherRun, Answer::Foreign(200, page(world))]), effect),
        Row::OtherSuccess(effect) => {
            (Answer::Foreign(pick(world, &[204, 202]), pick(world, &[Page::Json, Page::Empty])), effect)
        }
        Row::OtherSuccessPage(effect) => (Answer::Foreign(202, Page::Html), effect),
        Row::Reset(effect) => (Answer::Reset, effect),
        Row::Silence(effect) => (Answer::Silence, effect),
    };
    let refused = matches!(answer, Answer::Own(400..500) | Answer::Later(429));
    let has_effect = refused && world.is_off(Assumption::OwnRefusalHasNoEffect) && world.below(2) == 0;
    Behavior { answer, effect: if has_effect { AtOnce } else { effect } }
}

/// Chooses the behavior for a stop request for a run that is stopping or has ended: nothing changes.
pub fn behavior_for_inactive_run(world: &World) -> Behavior {
    let undisturbed = pick(world, &[Answer::Own(400), Answer::Own(409), Answer::Run(200), Answer::Run(200)]);
    let answer = world.choose(
        1.5,
        [
            undisturbed,
            Answer::Own(503),
            Answer::Own(429),
            Answer::Own(403),
            Answer::Foreign(504, Page::Html),
            Answer::Foreign(409, Page::Json),
            Answer::Foreign(404, Page::Html),
            Answer::Foreign(200, Page::Html),
            Answer::Reset,
        ],
    );
    Behavior { answer, effect: Effect::None }
}

/// Chooses the answer to a read of a run without permanent faults.
pub fn answer_to_read(world: &World) -> Answer {
    let unavailable = [
        Answer::Own(500),
        Answer::Own(503),
        Answer::Foreign(502, Page::Html),
        Answer::Foreign(504, Page::Empty),
        Answer::Foreign(200, Page::Html),
        Answer::OtherRun,
    ];
    let unreadable = [
        Answer::Foreign(302, Page::Empty),
        Answer::Foreign(404, Page::Html),
        Answer::Foreign(404, Page::Json),
        Answer::Foreign(403, Page::Html),
    ];
    let options = [
        Answer::Run(200),
        pick(world, &unavailable),
        pick(world, &unreadable),
        Answer::Reset,
        Answer::Own(401),
        Answer::Foreign(429, Page::Empty),
        Answer::Later(429),
        Answer::Silence,
    ];
    world.choose(1.0, options)
}
