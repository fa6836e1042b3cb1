//! The clauses on sessions and rows: register, list, channel, heartbeat, withdrawal.

use std::collections::BTreeMap;

use reqwest::header;
use serde_json::json;

use super::{
    Broken, Check,
    peer::{Channel, KIND, MODEL, Reply, read},
    so,
};
use crate::{
    cli::Stop,
    upstream::contract::{
        ACTIVE_STATUS, Conflicts, EVENT_STREAM, IDEMPOTENT_RESULTS, LLMS_PATH, LlmRow, RESULT_STREAM,
        RegisterReply, VIRTUAL_KIND,
    },
};

/// A session that no mcpd knows.
const UNKNOWN_SESSION: &str = "mcprelay-check-unknown-session";

impl Check {
    /// The list, and who may read it.
    pub(super) async fn list_and_token(&mut self) -> Result<(), Stop> {
        let listed = self.peer.row().await;
        self.clause("1", "the list of LLMs is there", listed)?;
        let refused = read(self.peer.mcpd.get_without_token(LLMS_PATH))
            .await
            .and_then(|reply| reply.expect(&[401, 403]));
        self.clause("1", "a call without a token is refused", refused)?;
        Ok(())
    }

    /// The first registration; returns the session.
    pub(super) async fn registered(&mut self) -> Result<Option<String>, Stop> {
        let reply = self.peer.register(None, true).await.and_then(register_reply);
        let session = reply.as_ref().ok().and_then(|reply| reply.provider_session_id.clone());
        self.session.clone_from(&session);
        let offers =
            |what| reply.as_ref().is_ok_and(|reply| reply.features.iter().any(|feature| feature == what));
        (self.idempotent, self.result_stream) = (offers(IDEMPOTENT_RESULTS), offers(RESULT_STREAM));
        let row = reply.as_ref().ok().and_then(|reply| self.own(&reply.llms));
        let given = reply.and_then(|_| so(session.is_some(), || "its reply has no providerSessionId".into()));
        if self.clause("1", "registering gives a session", given)?.is_none() {
            return Ok(None);
        }
        let told = row.ok_or_else(|| Broken::Not("its reply does not list the row".into()));
        let active = told.and_then(|row| virtual_and_active(&row).map(|()| row.id));
        self.row = self.clause("1", "registering gives an active virtual row", active)?.flatten();
        Ok(session)
    }

    fn own(&self, rows: &[LlmRow]) -> Option<LlmRow> {
        rows.iter().find(|row| row.name.as_ref() == Some(&self.peer.name)).cloned()
    }

    /// What becomes of the row and of the name while the session lives.
    pub(super) async fn sessions(&mut self, session: &str) -> Result<(), Stop> {
        let row = self.peer.row().await;
        let listed = row.and_then(|row| row.ok_or_else(|| Broken::Not("the list does not have it".into())));
        self.clause(
            "1",
            "callers see the row, with type and model",
            listed.and_then(|row| as_registered(&row)),
        )?;

        let again = self.peer.register(Some(session), true).await.and_then(register_reply);
        let revived = again.and_then(|reply| self.same_session_and_row(session, &reply));
        self.clause("4", "the sticky id brings the same session and row back", revived)?;

        let taken = self.taken_name().await;
        self.clause("1", "a name that is taken is a conflict with a list", taken)?;
        Ok(())
    }

    fn same_session_and_row(&self, session: &str, reply: &RegisterReply) -> Result<(), Broken> {
        so(reply.provider_session_id.as_deref() == Some(session), || "it gives another session".into())?;
        let id = self.own(&reply.llms).and_then(|row| row.id);
        so(self.row.is_some() && id == self.row, || "it gives another row, or no row id".into())
    }

    async fn taken_name(&self) -> Result<(), Broken> {
        let reply = self.peer.register(None, true).await?;
        if reply.status == 200 {
            // The name now belongs to another session: it is given back before anything else is tested.
            let other = register_reply(reply)?.provider_session_id;
            self.peer.register(other.as_deref(), false).await?;
            self.peer.register(self.session.as_deref(), true).await?;
            return Err(Broken::Not("it takes the name for a second session".into()));
        }
        let body = reply.expect(&[409])?.body;
        let conflicts = serde_json::from_value::<Conflicts>(body).unwrap_or_default().conflicts;
        match conflicts.contains(&self.peer.name) {
            true => Ok(()),
            false => {
                Err(Broken::Weak("its 409 does not list the name, so the agent backs off as a whole".into()))
            }
        }
    }

    /// Opens the channel; returns it if it is one.
    pub(super) async fn opened(&mut self, session: &str) -> Result<Option<Channel>, Stop> {
        let unknown = match self.peer.open(UNKNOWN_SESSION).await {
            Ok(response) => {
                let status = response.status().as_u16();
                so(matches!(status, 404 | 410), || format!("it answers {status} and not 404 or 410"))
            }
            Err(error) => Err(error),
        };
        self.clause("1", "a channel of an unknown session is refused", unknown)?;
        let opened = self.peer.open(session).await.and_then(|response| {
            let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let is_stream = kind.is_some_and(|kind| kind.starts_with(EVENT_STREAM));
            let status = response.status();
            so(status == 200 && is_stream, || {
                format!("it answers {status} with {}", kind.unwrap_or("no type"))
            })?;
            Ok(Channel::new(response))
        });
        let mut channel = self.clause("1", "the channel opens as an event stream", opened)?;
        if let Some(channel) = &mut channel {
            let named = match channel.hello().await {
                Ok(named) if named.as_deref() == Some(session) => Ok(()),
                Ok(_) => Err(Broken::Weak("hello does not name the session".into())),
                Err(Broken::Silent) => Err(Broken::Weak("no hello comes".into())),
                Err(error) => Err(error),
            };
            self.clause("2", "hello names the session", named)?;
        }
        Ok(channel)
    }

    /// Heartbeats of a known and of an unknown session.
    pub(super) async fn heartbeats(&mut self, session: &str) -> Result<(), Stop> {
        let taken = self.peer.heartbeat(session).await.and_then(|reply| reply.expect(&[200]));
        self.clause("1", "a heartbeat is taken", taken)?;
        let refused = self.peer.heartbeat(UNKNOWN_SESSION).await.and_then(|reply| reply.expect(&[404, 410]));
        self.clause("1", "a heartbeat of an unknown session is refused", refused)?;
        Ok(())
    }

    /// Withdraws the provider and brings it back, all under one channel.
    pub(super) async fn withdrawing(&mut self, session: &str, channel: &mut Channel) -> Result<(), Stop> {
        let withdrawn = self.withdrawn(session).await;
        let refused = match &withdrawn {
            Ok(()) => self.peer.infer(false).reply().await.and_then(|reply| reply.expect(&[503])).map(drop),
            Err(_) => Err(Broken::Skip("the row is not inactive".into())),
        };
        self.clause("1", "a row that is missing from the set goes inactive", withdrawn)?;
        self.clause("1", "an inactive row answers its callers 503", refused)?;
        let again = self.peer.register(Some(session), true).await.and_then(register_reply);
        let revived = again.and_then(|reply| self.same_session_and_row(session, &reply));
        self.clause("1", "a row that is back in the set is revived with its id", revived)?;
        let works = self.works_on(channel).await;
        self.clause("1", "the channel stays open across a change of the set", works)?;
        Ok(())
    }

    async fn withdrawn(&self, session: &str) -> Result<(), Broken> {
        self.peer.register(Some(session), false).await?.expect(&[200])?;
        let status = self.peer.row().await?.and_then(|row| row.status);
        so(status.as_deref() != Some(ACTIVE_STATUS), || "it is still active".into())
    }

    async fn works_on(&self, channel: &mut Channel) -> Result<(), Broken> {
        let mut call = self.peer.infer(false);
        let task = channel.task(&self.peer.name).await?;
        self.peer.post_status(&task.id, 200, &json!({}), BTreeMap::new()).await?;
        call.reply().await?.expect(&[200]).map(drop)
    }
}

fn register_reply(reply: Reply) -> Result<RegisterReply, Broken> {
    serde_json::from_value(reply.expect(&[200])?.body)
        .map_err(|_| Broken::Not("its reply is not the JSON of a register reply".into()))
}

fn virtual_and_active(row: &LlmRow) -> Result<(), Broken> {
    so(row.kind.as_deref() == Some(VIRTUAL_KIND), || "the row's kind is not \"virtual\"".into())?;
    so(row.status.as_deref() == Some(ACTIVE_STATUS), || "the row's status is not \"active\"".into())
}

fn as_registered(row: &LlmRow) -> Result<(), Broken> {
    virtual_and_active(row)?;
    let same = row.provider_type.as_deref() == Some(KIND) && row.model.as_deref() == Some(MODEL);
    if same { Ok(()) } else { Err(Broken::Weak("the row's type or model is not as registered".into())) }
}
