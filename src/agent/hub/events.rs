//! The events from mcpd, the bridge and the deliveries, and what each of them tells the core.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Connected, Hub, left_behind::end_left_behind};
use crate::{
    bridge::{self, STOPPING, SessionHandle},
    core::{Input, LinkInput},
    domain::{CallFailure, ProviderName, SessionHello, SessionKey, TaskId, TaskKey},
    upstream::{self, events::Delivered, outbox::Summary, results::Report},
};

impl Hub {
    pub(super) fn upstream_event(&mut self, (event, place): Delivered) {
        self.place = place;
        match event {
            upstream::Event::Task(task) | upstream::Event::BadTask(task, _)
                if self.is_left_behind(&task.id) =>
            {
                debug!(task_id = %task.id, "mcpd handed over a task that a former life left behind; not run");
            }
            upstream::Event::Task(task) => {
                self.history.tasks += 1;
                self.feed(Input::Task(task));
            }
            upstream::Event::BadTask(task, failure) => {
                self.history.tasks += 1;
                self.feed(Input::BadTask(task, failure));
            }
            upstream::Event::LostTask => {
                self.history.lost();
                self.surroundings.telemetry.metrics().task_lost();
            }
            upstream::Event::CallerLeft(id) => self.feed(Input::CallerLeft(id)),
            upstream::Event::Registered(attempt, reply) => self.registered(attempt, reply),
            upstream::Event::Heartbeat(number, reply) => self.heartbeat(number, reply),
            upstream::Event::ChannelOpened(epoch) => self.channel_opened(epoch),
            upstream::Event::ChannelProved(epoch) => self.feed_link(LinkInput::ChannelProved(epoch)),
            upstream::Event::ChannelClosed(epoch, why) => self.channel_closed(epoch, why),
        }
        // A task that was not taken (a duplicate) needs no place.
        self.place = None;
    }

    fn heartbeat(&mut self, number: u64, reply: Result<(), CallFailure>) {
        if let Err(why) = &reply {
            warn!("heartbeat missed: {why}");
            self.surroundings.telemetry.metrics().heartbeat_missed();
        }
        self.feed_link(LinkInput::Heartbeat(number, reply));
    }

    fn channel_opened(&mut self, epoch: u64) {
        if let Some((_, opening)) = self.calls.opening.take_if(|(of, _)| *of == epoch) {
            self.calls.trace = opening.opened();
        }
        self.feed_link(LinkInput::ChannelOpened(epoch));
    }

    fn channel_closed(&mut self, epoch: u64, why: CallFailure) {
        if let Some((_, opening)) = self.calls.opening.take_if(|(of, _)| *of == epoch) {
            opening.failed(why.word());
        }
        self.feed_link(LinkInput::ChannelClosed(epoch, why));
    }

    fn registered(&mut self, attempt: u64, reply: Result<String, CallFailure>) {
        let accepted = reply.is_ok();
        self.feed_link(LinkInput::Registered(attempt, reply));
        if accepted && !self.files.left_behind.is_empty() {
            self.end_left_behind();
        }
    }

    /// Ends the tasks of this mcpd that a former life left behind. Those of another mcpd wait until the agent uses that one again: here
    /// their ids may mean something else.
    fn end_left_behind(&mut self) {
        let url = self.mcpd.url();
        let may_be_ours =
            |(_, of): &(TaskId, Option<Arc<str>>)| of.is_none() || of.as_deref() == url.as_deref();
        let (ours, others) =
            std::mem::take(&mut self.files.left_behind).into_iter().partition::<Vec<_>, _>(may_be_ours);
        self.files.left_behind = others;
        if ours.is_empty() {
            return;
        }
        info!(tasks = ours.len(), "ending tasks that a former life of this agent left behind");
        let (mcpd, over) = (self.mcpd.clone(), self.channels.restarted.0.clone());
        self.spawn(end_left_behind(mcpd, ours.into_iter().map(|(id, _)| id).collect(), over));
    }

    /// Whether the task that has just come is one that a former life left behind.
    fn is_left_behind(&self, id: &TaskId) -> bool {
        let url = self.place.as_ref().and_then(|(_, mcpd)| mcpd.url());
        self.files.tasks.is_left_behind(id, url.as_deref())
    }

    /// A task of a former life has its end; from now on its id is treated like that of any other task that has ended.
    pub(super) fn left_behind_is_over(&mut self, id: TaskId) {
        self.files.tasks.over(&id);
        self.feed(Input::Restored(vec![id]));
    }

    pub(super) fn bridge_event(&mut self, event: bridge::Event) {
        match event {
            bridge::Event::Opened(session, hello, handle) => self.session_opened(session, hello, handle),
            bridge::Event::Snapshot(session, generation, pushed) => {
                self.feed(Input::Snapshot(session, generation, pushed));
                self.link_may_have_changed();
            }
            bridge::Event::Finished(session, key, outcome, usage) => {
                if let Some(relay) = self.relays.get(&key) {
                    relay.outbox.set_usage(usage);
                }
                self.feed(Input::Finished(session, key, outcome));
            }
            bridge::Event::Broken(session, key, failure) => self.feed(Input::Broken(session, key, failure)),
            bridge::Event::Draining(session) => {
                self.feed(Input::SessionDraining(session));
                self.link_may_have_changed();
            }
            bridge::Event::Closed(session) => {
                let gone = self.sessions.remove(&session);
                self.history.late_chunks += gone.map_or(0, |session| session.handle.late());
                self.feed(Input::SessionClosed(session));
                self.link_may_have_changed();
            }
            bridge::Event::SetPaused(name, paused, reply) => {
                // Whoever asked may be gone, but the request is carried out.
                let _ = reply.send(self.set_paused(name, paused));
            }
            bridge::Event::StatusWanted => self.publish_status(),
        }
    }

    fn session_opened(&mut self, session: SessionKey, hello: SessionHello, handle: SessionHandle) {
        // A session that is cut off below must not get an offer afterwards.
        self.send_offers();
        let link = self.core.link_status(Instant::now().into_std());
        handle.welcome(session, self.limits.message_bytes, &link);
        self.say_goodbye(&handle);
        // Whatever a session of the same client still sends must not reach a task that is offered again.
        let same_client = self.sessions.values().filter(|s| s.client_id == hello.client_id);
        same_client.for_each(|s| s.handle.detach());
        let connected = Connected { handle, client_id: hello.client_id.clone(), since: SystemTime::now() };
        self.sessions.insert(session, connected);
        self.feed(Input::SessionOpened(session, hello));
    }

    /// Pauses or resumes; gives the names that this changed, or `None` for one that nobody has pushed.
    fn set_paused(&mut self, name: Option<ProviderName>, paused: bool) -> Option<Vec<String>> {
        let before = self.core.providers();
        if name.as_ref().is_some_and(|name| before.iter().all(|p| p.provider.name != *name)) {
            return None;
        }
        self.feed(Input::SetPaused(name, paused));
        self.link_may_have_changed();
        let after = self.core.providers();
        let changed = before.iter().zip(&after).filter(|(before, after)| before.paused != after.paused);
        let names: BTreeSet<_> = changed.map(|(_, after)| after.provider.name.as_str().to_owned()).collect();
        Some(names.into_iter().collect())
    }

    pub(super) fn reported(&mut self, key: TaskKey, report: Report) {
        match report {
            Report::Failed(failure) => self.feed(Input::DeliveryFailed(key, failure)),
            Report::Settled(summary) => {
                self.record(key, summary);
                self.feed(Input::Settled(key));
            }
            Report::NobodyWaits(summary) => {
                self.record(key, summary);
                self.feed(Input::NobodyWaits(key));
            }
        }
    }

    fn record(&mut self, key: TaskKey, summary: Summary) {
        if let Some(relay) = self.relays.get_mut(&key) {
            relay.recorded = true;
            self.history.record(relay.ended(summary, Instant::now()));
        }
    }

    /// Tells a session that the agent is stopping, if it is.
    fn say_goodbye(&self, session: &SessionHandle) {
        if let Some(until) = self.draining_until {
            session.drain(until.saturating_duration_since(Instant::now()), STOPPING);
        }
    }

    pub(super) fn drain(&mut self) {
        self.send_offers();
        info!("stopping: no new tasks are taken; running ones have {} s", self.limits.drain.as_secs());
        self.serving.send_replace(false);
        self.draining_until = Some(Instant::now() + self.limits.drain);
        self.sessions.values().for_each(|session| self.say_goodbye(&session.handle));
        self.feed(Input::Drain);
        self.link_may_have_changed();
    }
}
