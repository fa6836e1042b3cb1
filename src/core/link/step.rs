//! The next step that leads from what is to what is wanted.

use std::time::Instant;

use super::{Link, LinkEffect, registration::ProviderSet};
use crate::domain::{Provider, ProviderName};

impl Link {
    /// What is wanted, without the names that mcpd gives to somebody else unless they are being tried again.
    fn publishable(&self) -> impl Iterator<Item = (&ProviderName, &Provider)> {
        self.wanted.iter().filter(|(name, _)| !self.conflicts.excludes(name))
    }

    pub(super) fn publishes(&self) -> bool {
        self.publishable().next().is_some()
    }

    /// Whether nothing is to be published and nothing runs.
    fn is_resting(&self) -> bool {
        !self.publishes() && !self.draining && !self.busy
    }

    pub(super) fn must_register(&self) -> bool {
        self.registration.lacks(self.publishable(), self.wanted.is_empty())
    }

    /// Whether only the spacing between two calls may hold up the next one.
    pub(super) fn is_register_due(&self) -> bool {
        !self.retry.is_waiting() && !self.registration.is_under_way() && self.must_register()
    }

    /// Does the next thing that is missing.
    pub(super) fn step(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        if self.credentials.is_err() {
            return;
        }
        if self.is_resting() {
            self.rest(effects);
        }
        if self.is_register_due() && self.registration.next_start().is_none_or(|at| at <= now) {
            self.register(now, effects);
        }
        self.open_if_ready(now, effects);
        self.beat_if_due(now, effects);
    }

    fn register(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        let set: ProviderSet = self.publishable().map(|(name, p)| (name.clone(), p.clone())).collect();
        effects.push(LinkEffect::Register {
            session: self.session().map(str::to_owned),
            providers: set.values().cloned().collect(),
            after_wake: self.retry.is_eager(now),
            attempt: self.registration.start(set, now),
        });
    }

    fn open_if_ready(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        // A set that is about to be deregistered needs no channel: opened here, it would be closed at once, and so on in a circle.
        let unwanted = self.draining || self.is_resting() || self.retry.is_waiting();
        if unwanted || !self.registration.needs_channel() || !self.channel.is_closed() {
            return;
        }
        let Some(session) = self.session().map(str::to_owned) else { return };
        // The set may be wanted again before the reply to its deregistration has come, and then nothing else sets the heartbeat.
        self.heartbeat.start(now);
        let (epoch, again) = self.channel.open();
        effects.push(LinkEffect::OpenChannel { epoch, again, session });
    }

    fn beat_if_due(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        if !self.heartbeat.is_due(now) {
            return;
        }
        let Some(session) = self.session().map(str::to_owned) else { return self.heartbeat.stop() };
        let after_wake = self.retry.is_eager(now);
        effects.push(LinkEffect::Heartbeat { number: self.heartbeat.beat(now), session, after_wake });
    }

    /// Nothing is opted in: no channel, no heartbeat, no waiting.
    fn rest(&mut self, effects: &mut Vec<LinkEffect>) {
        self.close_channel(effects);
        self.channel.rest();
        self.heartbeat.stop();
        if !self.must_register() {
            self.retry.end_wait();
        }
    }

    pub(super) fn close_channel(&mut self, effects: &mut Vec<LinkEffect>) {
        if self.channel.close() {
            effects.push(LinkEffect::CloseChannel);
        }
    }
}
