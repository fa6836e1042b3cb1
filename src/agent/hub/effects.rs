//! Carrying out what the core has decided.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{super::files::StickySession, Hub, Relay};
use crate::{
    bridge::{CloseReason, Offer},
    core::{Effect, LinkEffect},
    domain::{FailureCode, SessionKey, Task, TaskKey},
    telemetry::{ChannelOpening, TaskTrace},
    upstream::{self, contract::ReadFacts, events::Channel, outbox::Outbox, results::Delivery},
};

impl Hub {
    pub(super) fn carry_out(&mut self, mut fx: Vec<Effect>) {
        for effect in fx.drain(..) {
            self.effect(effect);
        }
        self.fx = fx;
        self.status_may_have_changed();
    }

    fn effect(&mut self, effect: Effect) {
        if self.follows_an_offer(&effect) {
            self.send_offers();
        }
        match effect {
            Effect::Begin(key, task) => self.begin(key, task),
            Effect::Offer(key, session, timeout) => self.offer(key, session, timeout),
            Effect::Requeued(key) => {
                if let Some(relay) = self.relays.get_mut(&key) {
                    relay.session = None;
                    relay.outbox.trace(|trace| trace.requeued(FailureCode::ProviderLost));
                }
            }
            Effect::Cancel(key, session, reason) => {
                if let (Some(session), Some(relay)) = (self.sessions.get(&session), self.relays.get(&key)) {
                    session.handle.cancel(&relay.task.id, reason);
                }
            }
            Effect::End(key, end, until) => {
                if let Some(relay) = self.relays.get(&key) {
                    relay.outbox.end(end, until);
                }
            }
            Effect::Forget(key) => self.forget(key),
            Effect::Verdicts(session, generation, verdicts) => {
                if let Some(session) = self.sessions.get(&session) {
                    session.handle.verdicts(generation, &verdicts);
                }
            }
            Effect::Replaced(session) => {
                if let Some(session) = self.sessions.get(&session) {
                    session.handle.close(CloseReason::Replaced);
                }
            }
            Effect::Link(effect) => self.link_effect(effect),
            Effect::Drained => self.drained = true,
        }
    }

    /// Whether held offers must go out before this effect: a session cannot cancel or forget a task that it was not offered.
    fn follows_an_offer(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Cancel(key, ..) | Effect::Forget(key) | Effect::Requeued(key) => {
                self.offers.iter().any(|(_, offer)| offer.key == *key)
            }
            Effect::Replaced(_) => !self.offers.is_empty(),
            _ => false,
        }
    }

    fn begin(&mut self, key: TaskKey, task: Arc<Task>) {
        let (place, mcpd) = self.place.take().unzip();
        let mcpd = mcpd.unwrap_or_else(|| self.mcpd.clone());
        self.files.tasks.begun(&task.id, mcpd.url().as_deref());
        let trace = TaskTrace::start(&self.surroundings.telemetry, &task, &self.calls.trace);
        let outbox = Outbox::new(Arc::clone(&task), mcpd.room(), trace);
        let mut delivery = Delivery::new(
            (key, Arc::clone(&task)),
            task.asked.include_usage,
            Arc::clone(&outbox),
            mcpd,
            self.rng.u64(..),
            self.channels.reports.0.clone(),
        );
        self.spawn(async move { delivery.run().await });
        let relay =
            Relay { task, arrived: Instant::now(), outbox, session: None, recorded: false, _place: place };
        self.relays.insert(key, relay);
    }

    fn offer(&mut self, key: TaskKey, session: SessionKey, timeout: Duration) {
        let Some(relay) = self.relays.get_mut(&key).filter(|_| self.sessions.contains_key(&session)) else {
            error!("an offer names a task or a session that the agent does not have");
            return;
        };
        let Some(provider) = self.core.provider_of(key) else {
            error!("an offer names a task whose provider is gone");
            return;
        };
        relay.session = Some(session);
        let trace_context = relay.outbox.trace(|trace| {
            trace.running(provider);
            trace.offer_context()
        });
        let offer = Offer {
            key,
            id: relay.task.id.clone(),
            provider: provider.name.clone(),
            request: relay.task.request.clone(),
            streaming: relay.task.streaming,
            timeout,
            trace_context: trace_context.unwrap_or_default(),
            sink: Arc::clone(&relay.outbox) as Arc<_>,
        };
        self.offers.push((session, offer));
    }

    fn forget(&mut self, key: TaskKey) {
        let Some(relay) = self.relays.remove(&key) else { return };
        self.files.tasks.over(&relay.task.id);
        // Only now is the count final: the provider has ended the task, or is no longer listened to.
        self.history.late_chunks += u64::from(relay.outbox.late());
        if let Some(session) = relay.session.and_then(|s| self.sessions.get(&s)) {
            session.handle.forget(&relay.task.id);
        }
    }

    fn link_effect(&mut self, effect: LinkEffect) {
        let (mcpd, events) = (self.mcpd.clone(), self.channels.upstream.0.clone());
        match effect {
            LinkEffect::Register { attempt, session, providers, after_wake } => {
                self.set_is_asked_for(providers.len());
                let current = self.next_register_call();
                self.spawn(async move {
                    let call = mcpd.register(session.as_deref(), &providers, after_wake);
                    let Some(reply) = current.run_until_cancelled(call).await else { return };
                    let _ = events.send((upstream::Event::Registered(attempt, reply), None)).await;
                });
            }
            LinkEffect::Heartbeat { number, session, after_wake } => self.spawn(async move {
                let reply = mcpd.heartbeat(&session, after_wake).await;
                let _ = events.send((upstream::Event::Heartbeat(number, reply), None)).await;
            }),
            LinkEffect::OpenChannel { epoch, session } => self.open_channel(epoch, session),
            LinkEffect::CloseChannel => self.close_channel(),
            LinkEffect::Persist(id) => self.keep_session(id),
            LinkEffect::SessionForgotten => info!("mcpd does not know this agent's session any more"),
            LinkEffect::SessionLeft => {
                info!("the credentials lead to another mcpd, where a new session begins")
            }
        }
    }

    /// Ends a register call that the link has given up, so that it cannot reach mcpd after the one that follows.
    fn next_register_call(&mut self) -> CancellationToken {
        self.calls.registering.cancel();
        self.calls.registering = CancellationToken::new();
        self.calls.registering.clone()
    }

    /// Writes the sticky id and the mcpd that it belongs to.
    fn keep_session(&mut self, id: String) {
        let session = StickySession {
            provider_session_id: id,
            mcpd_url: self.mcpd.url().as_deref().map(str::to_owned),
        };
        session.write(&self.files.session_path);
        self.files.session = Some(session);
    }

    fn open_channel(&mut self, epoch: u64, session: String) {
        self.close_channel();
        if epoch > 1 {
            self.surroundings.telemetry.metrics().reconnect();
        }
        self.calls.opening = Some((epoch, ChannelOpening::start(&self.surroundings.telemetry)));
        let channel = Channel {
            epoch,
            session,
            event_limit: self.limits.event_bytes,
            idle_timeout: self.limits.channel_idle,
            facts: if self.surroundings.telemetry.traces() { ReadFacts::OfAll } else { ReadFacts::OfStreams },
            events: self.channels.upstream.0.clone(),
            places: Arc::clone(&self.places),
        };
        let cancelled = self.halt.child_token();
        self.calls.channel = Some(cancelled.clone());
        self.spawn(channel.run(self.mcpd.clone(), cancelled));
    }

    pub(super) fn close_channel(&mut self) {
        if let Some(channel) = self.calls.channel.take() {
            channel.cancel();
        }
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Boxed, because each wrapper would contain the whole future and grow by its size.
        self.spawned.spawn(self.halt.clone().run_until_cancelled_owned(Box::pin(work)));
    }
}
