//! The decisions, without I/O and without a clock: an [`Input`] and the time go in, [`Effect`]s and the next deadline come out.
//!
//! ```text
//!   mcpd's events ──┐                          ┌── Offer, Cancel, Verdicts ──► sessions
//!   sessions' ──────┼──► Core::handle(.., now) ┼── End, Forget ─────────────► deliveries
//!   deliveries' ────┘    Core::tick(now, ..)   └── Link(..) ────────────────► mcpd
//! ```
//!
//! The caller has three duties: to carry out every effect, in order; to call [`Core::tick`] once [`Core::next_deadline`] has passed; and to
//! pass on the inputs of each source in their order.

mod ends;
mod intake;
pub mod link;
mod messages;
pub mod providers;
mod recent;
mod sessions;
mod shutdown;
mod status;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::domain::{CancelReason, Pauses, Provider, Rule, TaskKey};

pub use link::{LinkEffect, LinkInput};
pub use messages::{ActivityOf, Effect, Input, Settings};
pub use providers::Paused;
pub use status::{ProviderView, SessionView, TaskPhase, TaskView};

use link::Link;
use providers::Providers;
use shutdown::Drain;
use tasks::Tasks;

/// How long the providers of a session that was lost without a goodbye stay listed, and its tasks without output wait: a restarting
/// mcplocal is back by then.
pub const SESSION_GRACE: Duration = Duration::from_secs(10);
/// How long a cancelled task's slot is held for a provider that does not confirm the cancellation: longer than a model needs to notice it,
/// short enough that a client that never answers does not lose its capacity for good.
pub const CANCEL_BOUND: Duration = Duration::from_secs(30);
/// How much earlier than mcpd's own deadline a task ends, so that the agent's answer arrives first.
pub const DEADLINE_MARGIN: Duration = Duration::from_millis(250);
/// How long after a task's deadline its end is still offered to an mcpd that does not answer.
pub const END_DELIVERY_BOUND: Duration = Duration::from_secs(60);
/// How long after the drain's end the last ends are still offered to mcpd: within systemd's stop timeout of 150 s.
pub const DRAIN_DELIVERY_BOUND: Duration = Duration::from_secs(10);
/// Most bytes of requests held for tasks under way; beyond it new tasks are refused, whatever the queues allow.
pub const MAX_HELD_BYTES: usize = 256 << 20;

/// All decisions of one agent.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    link: Link,
    providers: Providers,
    tasks: Tasks,
    drain: Drain,
}

impl Core {
    /// A core with nothing connected. `seed` fixes the jitter.
    pub fn new(settings: Settings, sticky_session: Option<String>, seed: u64) -> Self {
        Self {
            link: Link::new(&settings.link, sticky_session, seed),
            providers: Providers::new(&settings),
            tasks: Tasks::default(),
            settings,
            drain: Drain::No,
        }
    }

    /// Takes one input; the effects are appended to `effects` in the order in which they are to be carried out.
    pub fn handle(
        &mut self,
        input: Input,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        match input {
            Input::Task(task) => {
                let admitted = self.admit(&task);
                self.task(task, admitted, now, effects);
            }
            Input::BadTask(task, failure) => self.task(task, Err(failure), now, effects),
            Input::CallerLeft(id) => self.caller_left(&id, now, effects),
            Input::SessionOpened(session, hello) => {
                self.session_opened(session, hello, now, activity, effects)
            }
            Input::Snapshot(session, generation, pushed) => {
                self.providers.snapshot(session, generation, pushed, now);
                self.providers_changed(now, effects);
            }
            Input::Finished(session, key, outcome) => self.finished(session, key, outcome, now, effects),
            Input::Refused(session, key, failure) => {
                self.refused(session, key, failure, now, activity, effects);
            }
            Input::Broken(session, key, failure) if self.tasks.is_with(key, session) => {
                self.broken(key, failure, CancelReason::UpstreamLost, now, effects);
            }
            Input::Broken(..) => {}
            Input::SessionDraining(session, grace) => {
                let grace = grace.unwrap_or(self.settings.drain_timeout);
                self.providers.draining(session, now + grace);
                self.providers_changed(now, effects);
            }
            Input::SessionClosed(session) => self.session_closed(session, now, activity, effects),
            Input::Settled(key) => self.settled(key, now, effects),
            Input::CallerGone(key) => self.caller_gone(key, now, effects),
            Input::DeliveryFailed(key, failure) => {
                self.broken(key, failure, CancelReason::UpstreamLost, now, effects)
            }
            Input::SetPaused(name, pause) => {
                self.providers.pauses.set(name, pause);
                self.providers_changed(now, effects);
            }
            Input::Facts(facts) => {
                if self.providers.heed(&facts, now) {
                    self.providers_changed(now, effects);
                }
            }
            Input::Restored(ids) => ids.iter().for_each(|id| self.tasks.remember(id, now)),
            Input::Drain => self.drain(now, effects),
            Input::Abort => self.drain_deadline(now, effects),
            Input::Link(input) => self.with_link(effects, |link, out| link.handle(input, now, out)),
        }
        self.settle_down(now, effects);
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Instant, activity: ActivityOf<'_>, effects: &mut Vec<Effect>) {
        if self.providers.next_deadline().is_some_and(|at| at <= now) {
            for session in self.providers.overdue(now) {
                self.replaced(session, now, activity, effects);
            }
            self.providers.tick(now);
            self.providers_changed(now, effects);
        }
        for key in self.tasks.due(now) {
            self.task_due(key, now, activity, effects);
        }
        if matches!(self.drain, Drain::Finishing(until) if until <= now) {
            self.drain_deadline(now, effects);
        }
        if matches!(self.drain, Drain::Ending(since) if since + DRAIN_DELIVERY_BOUND <= now) {
            // This gives up ends from before the drain too, if mcpd does not answer: the next start offers them again.
            return self.drained(effects);
        }
        self.with_link(effects, |link, out| link.tick(now, out));
        self.settle_down(now, effects);
    }

    /// The same core with what its owner has paused.
    #[must_use]
    pub fn with_pauses(mut self, pauses: Pauses) -> Self {
        self.providers.pauses = pauses;
        self
    }

    /// What its owner has paused.
    pub fn pauses(&self) -> &Pauses {
        &self.providers.pauses
    }

    /// The rules under which the pushed providers are shared.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.providers.rules()
    }

    /// Whether [`Input::Facts`] can change anything.
    pub fn heeds_facts(&self) -> bool {
        self.pauses().are_timed() || self.rules().next().is_some()
    }

    /// When [`Core::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let drain = match self.drain {
            Drain::Finishing(until) => Some(until),
            Drain::Ending(since) => Some(since + DRAIN_DELIVERY_BOUND),
            Drain::No | Drain::Over => None,
        };
        let own =
            [self.providers.next_deadline(), self.tasks.next_deadline(), self.link.next_deadline(), drain];
        own.into_iter().flatten().min()
    }

    /// The provider that a session has a task for, as it was pushed.
    pub fn provider_of(&self, key: TaskKey) -> Option<&Provider> {
        let (session, name) = (self.tasks.session_of(key)?, self.tasks.provider(key)?);
        self.providers.sessions.get(&session)?.providers.get(&name)
    }

    /// Lets something happen to the link. The ids of remembered tasks mean nothing once their session has ended.
    fn with_link(
        &mut self,
        effects: &mut Vec<Effect>,
        happens: impl FnOnce(&mut Link, &mut Vec<LinkEffect>),
    ) {
        let mut of_link = Vec::new();
        happens(&mut self.link, &mut of_link);
        if of_link.iter().any(|e| matches!(e, LinkEffect::SessionForgotten | LinkEffect::SessionLeft(_))) {
            self.tasks.forget_remembered();
        }
        effects.extend(of_link.into_iter().map(Effect::Link));
    }
}
