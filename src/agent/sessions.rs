//! The connected sessions, and the offers that are held back for them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    bridge::{CloseReason, Offer, STOPPING, SessionHandle},
    domain::{CancelReason, LinkStatus, SessionHello, SessionKey, TaskId, TaskKey, Verdicts},
};

/// One connected session.
#[derive(Debug)]
struct Connected {
    handle: SessionHandle,
    client_id: String,
    since: SystemTime,
    /// It said goodbye, and finishes its tasks whoever comes.
    drains: bool,
}

/// The connected sessions.
#[derive(Default)]
pub(super) struct Sessions {
    connected: BTreeMap<SessionKey, Connected>,
    /// Offers that go out once the ids of their tasks are on disk: all offers of a turn after one write.
    held: Vec<(SessionKey, Offer)>,
    /// The drain's end, once it has begun.
    draining_until: Option<Instant>,
    /// Pieces that sessions which are gone by now sent for tasks that they did not have.
    late_chunks: u64,
}

impl Sessions {
    /// Takes a session in, and welcomes it. Whatever another session of the same client still sends must not reach a task that is
    /// offered again, so it is cut off.
    pub(super) fn opened(
        &mut self,
        session: SessionKey,
        hello: &SessionHello,
        handle: SessionHandle,
        message_bytes: usize,
        link: &LinkStatus,
    ) {
        handle.welcome(session, message_bytes, link);
        self.say_goodbye(&handle);
        let same_client = self.connected.values().filter(|s| s.client_id == hello.client_id && !s.drains);
        same_client.for_each(|s| s.handle.detach());
        let (client_id, since) = (hello.client_id.clone(), SystemTime::now());
        let connected = Connected { handle, client_id, since, drains: false };
        self.connected.insert(session, connected);
    }

    /// A session said goodbye.
    pub(super) fn drains(&mut self, session: SessionKey) {
        if let Some(connected) = self.connected.get_mut(&session) {
            connected.drains = true;
        }
    }

    pub(super) fn closed(&mut self, session: SessionKey) {
        let gone = self.connected.remove(&session);
        self.late_chunks += gone.map_or(0, |session| session.handle.late());
    }

    /// When a session said Hello.
    pub(super) fn since(&self, session: SessionKey) -> Option<SystemTime> {
        self.connected.get(&session).map(|s| s.since)
    }

    /// Pieces that came for tasks that a session did not have.
    pub(super) fn late_chunks(&self) -> u64 {
        self.late_chunks + self.connected.values().map(|s| s.handle.late()).sum::<u64>()
    }

    // ---- offers ----------------------------------------------------------------------------------------------------

    /// Holds an offer back until [`Sessions::send_held`].
    pub(super) fn hold(&mut self, session: SessionKey, offer: Offer) {
        self.held.push((session, offer));
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether the offer of this task is held back.
    pub(super) fn holds(&self, key: TaskKey) -> bool {
        self.held.iter().any(|(_, offer)| offer.key == key)
    }

    pub(super) fn send_held(&mut self) {
        for (session, offer) in self.held.drain(..) {
            if let Some(connected) = self.connected.get(&session) {
                connected.handle.offer(offer);
            }
        }
    }

    // ---- what they are told ----------------------------------------------------------------------------------------

    pub(super) fn cancel(&self, session: SessionKey, id: &TaskId, reason: CancelReason) {
        self.tell(session, |handle| handle.cancel(id, reason));
    }

    /// A session need not end this task any more.
    pub(super) fn forget(&self, session: SessionKey, id: &TaskId) {
        self.tell(session, |handle| handle.forget(id));
    }

    pub(super) fn verdicts(&self, session: SessionKey, generation: u32, verdicts: &Verdicts) {
        self.tell(session, |handle| handle.verdicts(generation, verdicts));
    }

    pub(super) fn replaced(&self, session: SessionKey) {
        self.tell(session, |handle| handle.close(CloseReason::Replaced));
    }

    pub(super) fn link(&self, status: &LinkStatus) {
        self.connected.values().for_each(|s| s.handle.status(status));
    }

    pub(super) fn close_all(&self) {
        self.connected.values().for_each(|s| s.handle.close(CloseReason::Stopping));
    }

    fn tell(&self, session: SessionKey, what: impl FnOnce(&SessionHandle)) {
        if let Some(connected) = self.connected.get(&session) {
            what(&connected.handle);
        }
    }

    // ---- the drain -------------------------------------------------------------------------------------------------

    pub(super) fn is_draining(&self) -> bool {
        self.draining_until.is_some()
    }

    /// The agent is stopping: says so to every session, and to those that still come.
    pub(super) fn drain(&mut self, grace: Duration) {
        self.draining_until = Some(Instant::now() + grace);
        self.connected.values().for_each(|s| self.say_goodbye(&s.handle));
    }

    fn say_goodbye(&self, session: &SessionHandle) {
        if let Some(until) = self.draining_until {
            session.drain(until.saturating_duration_since(Instant::now()), STOPPING);
        }
    }
}
