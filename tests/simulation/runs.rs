//! Owns a workflow run of the simulated Amperity: its states, the stop requests that it received, its permanent faults.
//! Never judges.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use crate::{
    answers::{Answer, Behavior, Effect, Page},
    assumptions::Assumption,
    world::{SETTLE_TIME, World},
};

#[derive(Clone)]
pub struct Run {
    /// The uid of the resource that is to stop it.
    pub uid: String,
    pub state: &'static str,
    /// Every state so far, the current one last.
    pub states: Vec<&'static str>,
    /// The next state that it reaches without another request, and when.
    pub next_state: Option<(Instant, &'static str)>,
    pub posts: Vec<Post>,
    /// The time until which reads do not show that a stop took effect.
    pub hidden_until: Option<Instant>,
    /// The permanent fault of stop requests.
    pub stop_fault: Option<Behavior>,
    /// The answer to every read, if the fault is permanent.
    pub read_fault: Option<Answer>,
    /// The time since which each replica received only answers that say that the run is unreadable.
    unreadable_since: BTreeMap<usize, Instant>,
    /// True if one replica received two such answers in a row, the settle time apart.
    pub was_unreadable: bool,
    /// The number of reads by each replica after the follow timeout.
    pub late_reads: BTreeMap<usize, u32>,
}

/// A stop request that was written.
#[derive(Clone)]
pub struct Post {
    pub written: Instant,
    /// True if it took effect.
    pub effect: bool,
    /// True if it may still take effect.
    pub pending: bool,
    /// True if the answer says that it was accepted.
    pub success: bool,
    /// The replica, and its incarnation, that received this answer.
    pub received: Option<(usize, u32)>,
}

impl Run {
    pub fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            state: "running",
            states: vec!["running"],
            next_state: None,
            posts: vec![],
            hidden_until: None,
            stop_fault: None,
            read_fault: None,
            unreadable_since: BTreeMap::new(),
            was_unreadable: false,
            late_reads: BTreeMap::new(),
        }
    }

    /// Draws permanent faults for some runs.
    pub fn draw_faults(&mut self, world: &World) {
        let no_effect = |answer| Behavior { answer, effect: Effect::None };
        if world.below(5) == 0 {
            let gateway = |status, effect| Behavior { answer: Answer::Foreign(status, Page::Html), effect };
            let faults = [
                no_effect(Answer::Own(403)),
                no_effect(Answer::Own(409)),
                no_effect(Answer::Own(400)),
                no_effect(Answer::Own(404)),
                no_effect(Answer::Own(503)),
                gateway(504, Effect::AtOnce),
                gateway(504, Effect::Late),
                gateway(504, Effect::None),
                gateway(403, Effect::AtOnce),
                gateway(404, Effect::None),
                gateway(302, Effect::None),
                Behavior { answer: Answer::Reset, effect: Effect::AtOnce },
            ];
            self.stop_fault = Some(faults[world.below(faults.len() as u64) as usize]);
        }
        // A read of the run would repair the damage that a stale GET of the resource does.
        let never_readable = world.is_off(Assumption::GetReturnsWhatIsStored);
        if world.below(7) == 0 || never_readable {
            let unreadable = [Answer::Own(403), Answer::Own(404), Answer::Foreign(403, Page::Html)];
            let faults = [&unreadable[..], &unreadable, &[Answer::Foreign(503, Page::Html)]].concat();
            self.read_fault = Some(faults[world.below(faults.len() as u64) as usize]);
        }
    }

    /// Returns true if reads return the run, except for temporary faults.
    pub fn is_readable(&self) -> bool {
        self.read_fault.is_none()
    }

    /// Changes the state.
    pub fn set_state(&mut self, state: &'static str) {
        self.state = state;
        self.states.push(state);
    }

    /// Records that a replica received this answer to a read.
    pub fn was_read(&mut self, replica: usize, answer: Answer) {
        if answer.is_unreadable() {
            let since = *self.unreadable_since.entry(replica).or_insert_with(Instant::now);
            // The replica measures from the same moment, the receipt of the answer.
            self.was_unreadable |= SETTLE_TIME.saturating_sub(Duration::from_millis(10)) <= since.elapsed();
        } else if let Answer::Run(_) = answer {
            self.unreadable_since.remove(&replica);
        }
    }

    /// Resets the counts for a replica whose process ended and lost its memory.
    pub fn forget(&mut self, replica: usize) {
        self.unreadable_since.remove(&replica);
        self.late_reads.remove(&replica);
    }

    /// Returns the number of stop requests that took effect.
    pub fn effects(&self) -> usize {
        self.posts.iter().filter(|post| post.effect).count()
    }

    /// Returns true if a status may say that a stop was accepted.
    pub fn is_accepted(&self) -> bool {
        self.posts.iter().any(|post| post.success || post.effect) || ["stopping", "canceled"].contains(&self.state)
    }
}
