//! The decisions, without I/O and without a clock: an [`Input`] and the time go in, [`Effect`]s and the next deadline come out.
//!
//! ```text
//!   mcpd's events ──┐                          ┌── Offer, Cancel, Verdicts ──► sessions
//!   sessions' ──────┼──► Core::handle(.., now) ┼── End, Forget ─────────────► deliveries
//!   deliveries' ────┘    Core::tick(now, ..)   └── Link(..) ────────────────► mcpd
//! ```
//!
//! Who drives it owes it three things: every effect is carried out in order, [`Core::tick`] is called once
//! [`Core::next_deadline`] has passed, and inputs of one source arrive in their order.

pub mod link;
pub mod providers;
mod recent;
mod status;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::domain::{
    Activity, CancelReason, End, Failure, FailureCode, Outcome, Provider, ProviderName, Pushed, SessionHello,
    SessionKey, Task, TaskId, TaskKey, Verdicts,
};

pub use link::{LinkEffect, LinkInput};
pub use status::{ProviderView, SessionView, TaskPhase, TaskView};

use link::Link;
use providers::{Departure, Providers, Refusal};
use tasks::Tasks;

/// How long the providers of a session that went away without a word stay listed, and its unsent tasks wait: a restarting mcplocal
/// is back within it.
pub const SESSION_GRACE: Duration = Duration::from_secs(10);
/// How long a cancelled task's slot is held for a provider that does not confirm: longer than a model needs to notice, short enough
/// that a deaf client does not lose its capacity for good.
pub const CANCEL_BOUND: Duration = Duration::from_secs(30);
/// How much earlier than mcpd's own deadline a task ends, so that our answer arrives first.
pub const DEADLINE_MARGIN: Duration = Duration::from_millis(250);
/// How long after a task's deadline its end is still offered to an mcpd that does not answer.
pub const END_DELIVERY_BOUND: Duration = Duration::from_secs(60);
/// How long after the drain's end the last ends are still offered to mcpd: inside systemd's stop timeout of 150 s.
pub const DRAIN_DELIVERY_BOUND: Duration = Duration::from_secs(10);
/// Most bytes of requests held for tasks under way; beyond it new tasks are refused, whatever the queues allow.
pub const MAX_HELD_BYTES: usize = 256 << 20;

/// The owner's settings that the decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A whole task.
    pub task_timeout: Duration,
    /// From the offer to the first token of a stream.
    pub first_token_timeout: Duration,
    /// Between two tokens of a stream.
    pub idle_token_timeout: Duration,
    /// In the queue.
    pub queue_timeout: Duration,
    /// Inferences at once, for a provider that states no number.
    pub max_in_flight: u32,
    /// Tasks waiting, per provider.
    pub max_queued: u32,
    /// For running tasks, from the beginning of the drain.
    pub drain_timeout: Duration,
    /// The link's.
    pub link: link::Settings,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// mcpd handed over a task.
    Task(Task),
    /// mcpd handed over a task that makes no sense: it is answered with the failure.
    BadTask(Task, Failure),
    /// mcpd says that a task's caller went away.
    CallerLeft(TaskId),
    /// A session said Hello.
    SessionOpened(SessionKey, SessionHello),
    /// A session pushed its whole set; entries that make no sense come with the failure that says so.
    Snapshot(SessionKey, u32, Vec<Pushed>),
    /// A session ended a task.
    Finished(SessionKey, TaskKey, Outcome),
    /// A task's output cannot go on; the local side still has to end it.
    Broken(SessionKey, TaskKey, Failure),
    /// A session says goodbye; it finishes what runs.
    SessionDraining(SessionKey),
    /// A session's stream ended.
    SessionClosed(SessionKey),
    /// mcpd accepted a task's end, or delivery was given up for good.
    Settled(TaskKey),
    /// mcpd says, in answer to a part, that nobody waits for the task.
    NobodyWaits(TaskKey),
    /// A part was not taken, so the task has to end with this failure.
    DeliveryFailed(TaskKey, Failure),
    /// The owner pauses (`true`) or resumes one provider, or all.
    SetPaused(Option<ProviderName>, bool),
    /// Tasks of a former life, which are never run.
    Restored(Vec<TaskId>),
    /// Stop intake, let running tasks finish.
    Drain,
    /// Something about the link to mcpd.
    Link(LinkInput),
}

/// Something to do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Set up a task: everything later about it names the key.
    Begin(TaskKey, Task),
    /// Offer a task to a session, with the time it has left.
    Offer(TaskKey, SessionKey, Duration),
    /// Take back what a lost session knew of a task; it will be offered again.
    Requeued(TaskKey),
    /// Ask a session to stop a task.
    Cancel(TaskKey, SessionKey, CancelReason),
    /// The task's one end, to be delivered until the given moment.
    End(TaskKey, End, Instant),
    /// The task is over on both sides.
    Forget(TaskKey),
    /// Tell a session what became of its snapshot.
    Verdicts(SessionKey, u32, Verdicts),
    /// End a session's stream, because another with its client id came.
    Replaced(SessionKey),
    /// Something for the link to mcpd.
    Link(LinkEffect),
    /// The last task is over and the link is closed: nothing is left to do.
    Drained,
}

/// Reads a task's [`Activity`].
pub type ActivityOf<'a> = &'a dyn Fn(TaskKey) -> Activity;

/// All decisions of one agent.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    link: Link,
    providers: Providers,
    tasks: Tasks,
    drain: Drain,
}

/// How far the agent is with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// It is not.
    No,
    /// Running tasks may finish until then.
    Finishing(Instant),
    /// Since then everything has its end, and the ends are being delivered.
    Ending(Instant),
    /// Nothing is left.
    Over,
}

impl Core {
    /// A core with nothing connected. `seed` fixes the jitter.
    pub fn new(settings: Settings, sticky_session: Option<String>, seed: u64) -> Self {
        Self {
            link: Link::new(settings.link.clone(), sticky_session, seed),
            providers: Providers::new(settings.max_in_flight, settings.max_queued),
            tasks: Tasks::default(),
            settings,
            drain: Drain::No,
        }
    }

    /// Takes one input; the effects are appended to `fx` in the order in which they are to be carried out.
    pub fn handle(&mut self, input: Input, now: Instant, activity: ActivityOf<'_>, fx: &mut Vec<Effect>) {
        match input {
            Input::Task(task) => {
                let admitted = self.admit(&task);
                self.task(task, admitted, now, fx);
            }
            Input::BadTask(task, failure) => self.task(task, Err(failure), now, fx),
            Input::CallerLeft(id) => self.caller_left(&id, now, fx),
            Input::SessionOpened(session, hello) => self.session_opened(session, hello, now, activity, fx),
            Input::Snapshot(session, generation, pushed) => {
                self.providers.snapshot(session, generation, pushed);
                self.providers_changed(now, fx);
            }
            Input::Finished(session, key, outcome) => self.finished(session, key, outcome, now, fx),
            Input::Broken(session, key, failure) if self.tasks.is_with(key, session) => {
                self.broken(key, failure, CancelReason::UpstreamLost, now, fx);
            }
            Input::Broken(..) => {}
            Input::SessionDraining(session) => {
                self.providers.draining(session);
                self.providers_changed(now, fx);
            }
            Input::SessionClosed(session) => self.session_closed(session, now, activity, fx),
            Input::Settled(key) => self.settled(key, now, fx),
            Input::NobodyWaits(key) => self.nobody_waits(key, now, fx),
            Input::DeliveryFailed(key, failure) => {
                self.broken(key, failure, CancelReason::UpstreamLost, now, fx)
            }
            Input::SetPaused(name, paused) => {
                self.providers.set_paused(name, paused);
                self.providers_changed(now, fx);
            }
            Input::Restored(ids) => ids.iter().for_each(|id| self.tasks.remember(id, now)),
            Input::Drain => self.drain(now, fx),
            Input::Link(input) => self.link_input(input, now, fx),
        }
        self.settle_down(now, fx);
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Instant, activity: ActivityOf<'_>, fx: &mut Vec<Effect>) {
        if self.providers.next_deadline().is_some_and(|at| at <= now) {
            self.providers.tick(now);
            self.providers_changed(now, fx);
        }
        for key in self.tasks.due(now) {
            self.task_due(key, now, activity, fx);
        }
        if matches!(self.drain, Drain::Finishing(until) if until <= now) {
            self.drain_deadline(now, fx);
        }
        if matches!(self.drain, Drain::Ending(since) if since + DRAIN_DELIVERY_BOUND <= now) {
            // Ends from before the drain, too, for an mcpd that does not answer: a successor offers them again.
            self.drained(fx);
        }
        self.link.tick(now, fx);
        self.settle_down(now, fx);
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

    // ---- tasks coming in -------------------------------------------------------------------------------------------

    fn task(
        &mut self,
        task: Task,
        admitted: Result<ProviderName, Failure>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        if self.tasks.is_known(&task.id, now) {
            self.tasks.duplicates += 1;
            return;
        }
        let (key, entry) = self.tasks.begin(task, &self.settings, now);
        fx.push(Effect::Begin(key, entry.task.clone()));
        match admitted {
            Ok(name) => {
                entry.provider = Some(name.clone());
                self.providers.enqueue(&name, key);
                self.pump(&name, now, fx);
            }
            Err(failure) => {
                self.tasks.release(key);
                self.end(key, End::Failed(failure), now, fx);
            }
        }
    }

    fn admit(&self, task: &Task) -> Result<ProviderName, Failure> {
        if self.drain != Drain::No {
            return Err(shutting_down());
        }
        let name = ProviderName::new(&task.llm).map_err(|why| {
            Failure::new(FailureCode::Unavailable, format!("the LLM name of the task {why}"))
        })?;
        if self.tasks.held_bytes() + task.request.len() > MAX_HELD_BYTES {
            return Err(Refusal::Memory.failure(&name));
        }
        self.providers.admit(&name).map_err(|refusal| refusal.failure(&name))?;
        Ok(name)
    }

    /// Offers queued tasks of one provider while it has free slots.
    fn pump(&mut self, name: &ProviderName, now: Instant, fx: &mut Vec<Effect>) {
        while let Some((key, session, limit)) = self.providers.next_offer(name) {
            if let Some(failure) = self.too_late_or_large(key, limit, now) {
                self.providers.release(name, session);
                self.tasks.release(key);
                self.end(key, End::Failed(failure), now, fx);
            } else {
                let left = self.tasks.time_left(key, now);
                self.tasks.offered(key, session, &self.settings, now);
                fx.push(Effect::Offer(key, session, left));
            }
        }
    }

    /// Why a task whose turn has come is not offered after all: its time is over, though no tick has said so yet, or it does not
    /// fit into a message of `limit` bytes.
    fn too_late_or_large(&mut self, key: TaskKey, limit: usize, now: Instant) -> Option<Failure> {
        match self.tasks.what_is_due(key, now, &self.settings, &|_| Activity::default()) {
            tasks::Due::Timeout(failure) => Some(failure),
            _ => (self.tasks.request_len(key) + OFFER_OVERHEAD > limit).then(|| too_large(limit)),
        }
    }

    // ---- the local side --------------------------------------------------------------------------------------------

    fn session_opened(
        &mut self,
        session: SessionKey,
        hello: SessionHello,
        now: Instant,
        activity: ActivityOf<'_>,
        fx: &mut Vec<Effect>,
    ) {
        if let Some(former) = self.providers.opened(session, hello) {
            fx.push(Effect::Replaced(former));
            self.session_closed(former, now, activity, fx);
        }
    }

    fn finished(
        &mut self,
        session: SessionKey,
        key: TaskKey,
        outcome: Outcome,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        if !self.tasks.is_with(key, session) {
            return;
        }
        if self.tasks.is_open(key) {
            let end = match outcome {
                Outcome::Failed(failure) => End::Failed(failure),
                Outcome::Cancelled => End::Failed(Failure::new(
                    FailureCode::Internal,
                    "the provider stopped the inference without being asked to",
                )),
                answer => End::Answer(answer),
            };
            self.end(key, end, now, fx);
        }
        self.free_slot(key, now, fx);
    }

    /// The stream of a session ended. Without a goodbye its providers get a grace, and tasks that sent nothing wait for it.
    fn session_closed(
        &mut self,
        session: SessionKey,
        now: Instant,
        activity: ActivityOf<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let Some(departure) = self.providers.closed(session, now) else { return };
        for key in self.tasks.of_session(session) {
            let name = self.tasks.provider(key);
            if let Some(name) = &name {
                self.providers.release(name, session);
            }
            if !self.tasks.is_open(key) {
                self.tasks.release(key);
                self.forget_if_over(key, now, fx);
            } else if departure == Departure::Lost && !activity(key).any_output && self.drain == Drain::No {
                self.requeue(key, name.as_ref(), now, fx);
            } else {
                self.tasks.release(key);
                self.end(key, End::Failed(provider_lost()), now, fx);
            }
        }
        self.providers_changed(now, fx);
    }

    fn requeue(&mut self, key: TaskKey, name: Option<&ProviderName>, now: Instant, fx: &mut Vec<Effect>) {
        let Some(name) = name else { return };
        let wait = SESSION_GRACE.min(self.settings.queue_timeout);
        self.tasks.requeued(key, now + wait);
        self.providers.enqueue_first(name, key);
        fx.push(Effect::Requeued(key));
    }

    /// After any change of sessions, snapshots or pauses: verdicts, the published set, and queues that can move or must be emptied.
    fn providers_changed(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.providers.changed_verdicts(fx);
        for key in self.providers.strand_queues() {
            self.tasks.release(key);
            self.end(key, End::Failed(withdrawn()), now, fx);
        }
        for name in self.providers.waiting_names() {
            self.pump(&name, now, fx);
        }
        self.link.want(self.providers.published(), now, fx);
    }

    // ---- ends ------------------------------------------------------------------------------------------------------

    fn caller_left(&mut self, id: &TaskId, now: Instant, fx: &mut Vec<Effect>) {
        if let Some(key) = self.tasks.key_of(id) {
            self.stop(key, End::Nobody, CancelReason::CallerGone, now, fx);
        }
    }

    fn nobody_waits(&mut self, key: TaskKey, now: Instant, fx: &mut Vec<Effect>) {
        self.stop(key, End::Nobody, CancelReason::CallerGone, now, fx);
        self.settled(key, now, fx);
    }

    fn broken(
        &mut self,
        key: TaskKey,
        failure: Failure,
        reason: CancelReason,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        self.stop(key, End::Failed(failure), reason, now, fx);
    }

    /// Ends an open task from our side: out of the queue, or away from the session that runs it.
    fn stop(&mut self, key: TaskKey, end: End, reason: CancelReason, now: Instant, fx: &mut Vec<Effect>) {
        if end == End::Nobody && self.tasks.is_ending(key) {
            // The end was on its way when the caller left: nothing more is posted, and no second end is counted.
            fx.push(Effect::End(key, End::Nobody, now));
            return;
        }
        if !self.tasks.is_open(key) {
            return;
        }
        self.end(key, end, now, fx);
        match self.tasks.session_of(key) {
            Some(session) => {
                self.tasks.cancelling(key, now + CANCEL_BOUND);
                fx.push(Effect::Cancel(key, session, reason));
            }
            None => {
                if let Some(name) = self.tasks.provider(key) {
                    self.providers.unqueue(&name, key);
                }
                self.tasks.release(key);
            }
        }
    }

    /// Decides the one end of an open task.
    fn end(&mut self, key: TaskKey, end: End, now: Instant, fx: &mut Vec<Effect>) {
        let mut until = self.tasks.ended(key, now) + END_DELIVERY_BOUND;
        if let Drain::Finishing(drain) | Drain::Ending(drain) = self.drain {
            until = until.min(drain + DRAIN_DELIVERY_BOUND);
        }
        fx.push(Effect::End(key, end, until));
    }

    fn settled(&mut self, key: TaskKey, now: Instant, fx: &mut Vec<Effect>) {
        self.tasks.settled(key);
        self.forget_if_over(key, now, fx);
    }

    /// Gives the slot of a task back and lets the next one have it.
    fn free_slot(&mut self, key: TaskKey, now: Instant, fx: &mut Vec<Effect>) {
        let (session, name) = (self.tasks.session_of(key), self.tasks.provider(key));
        self.tasks.release(key);
        if let (Some(session), Some(name)) = (session, name) {
            self.providers.release(&name, session);
            self.pump(&name, now, fx);
        }
        self.forget_if_over(key, now, fx);
    }

    fn forget_if_over(&mut self, key: TaskKey, now: Instant, fx: &mut Vec<Effect>) {
        if self.tasks.forget_if_over(key, now) {
            fx.push(Effect::Forget(key));
        }
    }

    fn task_due(&mut self, key: TaskKey, now: Instant, activity: ActivityOf<'_>, fx: &mut Vec<Effect>) {
        match self.tasks.what_is_due(key, now, &self.settings, activity) {
            tasks::Due::Nothing => {}
            tasks::Due::Timeout(failure) => self.broken(key, failure, CancelReason::Deadline, now, fx),
            tasks::Due::CancelUnconfirmed => self.free_slot(key, now, fx),
        }
    }

    // ---- the link, and the end of everything -----------------------------------------------------------------------

    fn link_input(&mut self, input: LinkInput, now: Instant, fx: &mut Vec<Effect>) {
        let before = fx.len();
        self.link.handle(input, now, fx);
        for effect in &fx[before..] {
            if matches!(effect, Effect::Link(LinkEffect::SessionForgotten)) {
                self.tasks.forget_remembered();
            }
        }
    }

    fn drain(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.drain != Drain::No {
            return;
        }
        self.drain = Drain::Finishing(now + self.settings.drain_timeout);
        for key in self.tasks.queued() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, fx);
        }
        self.link.drain(now, fx);
    }

    /// The drain's time is over: what still runs gets its error, and nobody waits for a cancel to be confirmed any more.
    fn drain_deadline(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.drain = Drain::Ending(now);
        for key in self.tasks.all() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, fx);
            self.free_slot(key, now, fx);
        }
    }

    /// What follows from there being tasks or not, after every input.
    fn settle_down(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.link.set_busy(!self.tasks.is_empty(), now, fx);
        if self.providers.set_conflicts(self.link.conflicts()) {
            self.providers.changed_verdicts(fx);
        }
        let draining = matches!(self.drain, Drain::Finishing(_) | Drain::Ending(_));
        if draining && self.tasks.is_empty() && self.link.is_quiet() {
            self.drained(fx);
        }
    }

    fn drained(&mut self, fx: &mut Vec<Effect>) {
        self.drain = Drain::Over;
        fx.push(Effect::Drained);
    }
}

/// What an offer needs beyond the request's own bytes: ids, trace context, framing.
const OFFER_OVERHEAD: usize = 4 << 10;

fn shutting_down() -> Failure {
    Failure::retryable(
        FailureCode::ShuttingDown,
        "the agent is stopping; try again elsewhere or later",
        Duration::from_secs(5),
    )
}

fn withdrawn() -> Failure {
    Failure::retryable(
        FailureCode::Unavailable,
        "the provider was withdrawn by its owner while the task waited for it",
        SESSION_GRACE,
    )
}

fn provider_lost() -> Failure {
    Failure::new(
        FailureCode::ProviderLost,
        "the local program that ran the inference went away before its end (connection to mcplocal lost)",
    )
}

fn too_large(limit: usize) -> Failure {
    Failure::new(
        FailureCode::TooLarge,
        format!(
            "the request does not fit into a message of {limit} bytes, the most that the local program accepts"
        ),
    )
}
