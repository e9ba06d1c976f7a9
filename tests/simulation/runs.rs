//! Owns a workflow run as Amperity keeps it: its state, the stop requests that arrived, its permanent faults.
//! Never judges.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use crate::{
    answers::{Answer, Effect, Fate, Page},
    assumptions::Assumption,
    world::{SETTLE_TIME, World},
};

#[derive(Clone)]
pub struct Run {
    /// The uid of the resource that is to stop it.
    pub uid: String,
    pub state: &'static str,
    /// Every state that it has had.
    pub states: Vec<&'static str>,
    /// When it reaches its next state by itself.
    pub ends: Option<(Instant, &'static str)>,
    pub posts: Vec<Post>,
    /// Until then readers do not see that a stop took effect.
    pub hidden: Option<Instant>,
    /// What every stop request is answered, if the fault is permanent.
    pub stop_fault: Option<Fate>,
    /// What every read is answered, if the fault is permanent.
    pub read_fault: Option<Answer>,
    /// Since when each replica has got nothing but answers by which the run cannot be read.
    unreadable_since: BTreeMap<usize, Instant>,
    /// Two such answers in a row, the settle time apart, reached one replica.
    pub was_unreadable: bool,
    /// Reads by each replica after the follow timeout.
    pub late_reads: BTreeMap<usize, u32>,
}

/// A stop request that was written.
#[derive(Clone)]
pub struct Post {
    pub written: Instant,
    /// It took effect.
    pub effect: bool,
    /// It may still take effect.
    pub pending: bool,
    /// It was answered with a success.
    pub success: bool,
    /// The replica and its life that received the success.
    pub received: Option<(usize, u32)>,
}

impl Run {
    pub fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            state: "running",
            states: vec!["running"],
            ends: None,
            posts: vec![],
            hidden: None,
            stop_fault: None,
            read_fault: None,
            unreadable_since: BTreeMap::new(),
            was_unreadable: false,
            late_reads: BTreeMap::new(),
        }
    }

    /// Some runs have permanent faults.
    pub fn draw_faults(&mut self, world: &World) {
        let none = |answer| Fate { answer, effect: Effect::None };
        if world.below(5) == 0 {
            let gateway = |status, effect| Fate { answer: Answer::Foreign(status, Page::Html), effect };
            let faults = [
                none(Answer::Own(403)),
                none(Answer::Own(409)),
                none(Answer::Own(400)),
                none(Answer::Own(404)),
                none(Answer::Own(503)),
                gateway(504, Effect::AtOnce),
                gateway(504, Effect::Late),
                gateway(504, Effect::None),
                gateway(403, Effect::AtOnce),
                gateway(404, Effect::None),
                gateway(302, Effect::None),
                Fate { answer: Answer::Reset, effect: Effect::AtOnce },
            ];
            self.stop_fault = Some(faults[world.below(faults.len() as u64) as usize]);
        }
        // Where a run can be read, a read makes good what a wrong GET of the resource spoils.
        let never_readable = world.is_off(Assumption::GetReturnsWhatIsStored);
        if world.below(7) == 0 || never_readable {
            let unreadable = [Answer::Own(403), Answer::Own(404), Answer::Foreign(403, Page::Html)];
            let faults = [&unreadable[..], &unreadable, &[Answer::Foreign(503, Page::Html)]].concat();
            self.read_fault = Some(faults[world.below(faults.len() as u64) as usize]);
        }
    }

    /// True if a read is answered with the run, but for passing trouble.
    pub fn is_readable(&self) -> bool {
        self.read_fault.is_none()
    }

    /// Moves to another state.
    pub fn becomes(&mut self, state: &'static str) {
        self.state = state;
        self.states.push(state);
    }

    /// A replica received the answer to a read.
    pub fn was_read(&mut self, replica: usize, answer: Answer) {
        if answer.is_unreadable() {
            let since = *self.unreadable_since.entry(replica).or_insert_with(Instant::now);
            // The replica measures from the moment when the answer reached it, which is this one.
            self.was_unreadable |= SETTLE_TIME.saturating_sub(Duration::from_millis(10)) <= since.elapsed();
        } else if let Answer::Run(_) = answer {
            self.unreadable_since.remove(&replica);
        }
    }

    /// The process that runs as this replica ended, and what it knew is gone.
    pub fn forget(&mut self, replica: usize) {
        self.unreadable_since.remove(&replica);
        self.late_reads.remove(&replica);
    }

    pub fn effects(&self) -> usize {
        self.posts.iter().filter(|post| post.effect).count()
    }

    /// True if it is true to say that a stop was accepted.
    pub fn is_accepted(&self) -> bool {
        self.posts.iter().any(|post| post.success || post.effect) || ["stopping", "canceled"].contains(&self.state)
    }
}
