//! Carrying out what the core has decided.

use std::time::Duration;

use tracing::error;

use super::{journal::Journal, mcpd_link::McpdLink, notices::Notices, relays::Relays, sessions::Sessions};
use crate::{
    core::{Core, Effect, LinkEffect},
    domain::{SessionKey, TaskKey},
    upstream::events::Handover,
};

/// Everything that the core's effects are for.
pub(super) struct Executor {
    pub(super) mcpd: McpdLink,
    pub(super) sessions: Sessions,
    pub(super) relays: Relays,
    pub(super) journal: Journal,
    pub(super) notices: Notices,
    /// Whether the core has said that nothing is left to do.
    pub(super) drained: bool,
}

impl Executor {
    /// Carries out one effect. A task that begins takes its handover.
    pub(super) fn carry_out(&mut self, effect: Effect, core: &Core, handover: &mut Option<Handover>) {
        if self.follows_an_offer(&effect) {
            self.send_offers();
        }
        match effect {
            Effect::Repeated(id) => self.relays.repeated(&id),
            Effect::Begin(key, task) => {
                let Some(handover) = handover.take() else { return error!("a task begins that nobody sent") };
                self.journal.begun(&task.id, handover.mcpd.url().as_deref());
                self.relays.begin(key, task, handover, self.mcpd.channel_trace());
            }
            Effect::Offer(key, session, timeout) => self.offer(key, session, timeout, core),
            Effect::Requeued(key, why) => self.relays.requeued(key, why),
            Effect::Cancel(key, session, reason) => {
                if let Some(relay) = self.relays.get(key) {
                    self.sessions.cancel(session, &relay.task.id, reason);
                }
            }
            Effect::End(key, end, until) => self.relays.end(key, end, until),
            Effect::Forget(key) => self.forget(key),
            Effect::Verdicts(session, generation, verdicts) => {
                self.sessions.verdicts(session, generation, &verdicts);
            }
            Effect::Replaced(session) => self.sessions.replaced(session),
            Effect::Link(effect) => {
                if let LinkEffect::Register { providers, .. } = &effect {
                    self.notices.listed(providers.len());
                }
                self.mcpd.carry_out(effect);
            }
            Effect::Drained => self.drained = true,
        }
    }

    /// Whether held offers must go out before this effect: a session cannot cancel or forget a task that it was not offered.
    fn follows_an_offer(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Cancel(key, ..) | Effect::Forget(key) | Effect::Requeued(key, _) => {
                self.sessions.holds(*key)
            }
            Effect::Replaced(_) => self.sessions.has_held(),
            _ => false,
        }
    }

    fn offer(&mut self, key: TaskKey, session: SessionKey, timeout: Duration, core: &Core) {
        let Some(provider) = core.provider_of(key) else {
            return error!("an offer names a task whose provider is gone");
        };
        let known = self.sessions.since(session).is_some();
        match self.relays.offer(key, session, provider, timeout).filter(|_| known) {
            Some(offer) => self.sessions.hold(session, offer),
            None => error!("an offer names a task or a session that the agent does not have"),
        }
    }

    fn forget(&mut self, key: TaskKey) {
        let Some(relay) = self.relays.forget(key) else { return };
        self.journal.over(&relay.task.id);
        if let Some(session) = relay.session {
            self.sessions.forget(session, &relay.task.id);
        }
    }

    /// Sends the offers that are held back. A killed agent must have written down every id that a provider may have seen.
    pub(super) fn send_offers(&mut self) {
        if self.sessions.has_held() {
            self.journal.flush();
            self.sessions.send_held();
        }
    }
}
