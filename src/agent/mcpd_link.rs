//! The agent's side of the link to mcpd: makes the calls, opens the channel, and keeps the session's file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    credentials_watch::access,
    files::{StickySession, warn_of_wide_modes},
    http_settings,
    spawner::Spawner,
};
use crate::{
    config::{Config, SESSION_FILE},
    core::{LinkEffect, link::McpdChange},
    domain::{Provider, Reason, Trouble},
    telemetry::{self, ChannelOpening, ChannelTrace},
    upstream::{
        Event,
        client::{Access, Mcpd},
        connect::HttpError,
        contract::ReadFacts,
        events::{Channel, Delivered},
    },
};

/// Most tasks under way at once; beyond that the control channel is not read. At 16 KiB per task this is 256 MiB.
const MAX_UNDER_WAY: usize = 16_384;

/// The link to mcpd.
pub(super) struct McpdLink {
    mcpd: Mcpd,
    /// The mcpd that the agent used before, until it was told that nothing is published there any more.
    former: Option<Mcpd>,
    session: SessionFile,
    /// What was wrong with the way of results when that was last looked at.
    results_trouble: Option<(Trouble, Reason)>,
    /// The register call under way, if there is one.
    registering: CancellationToken,
    channel: Option<CancellationToken>,
    /// The channel that is being opened, by its epoch.
    opening: Option<(u64, ChannelOpening)>,
    /// The channel that was opened last: tasks link to it.
    trace: ChannelTrace,
    /// A permit for each task that may be under way.
    permits: Arc<Semaphore>,
    /// Where everything that comes from mcpd goes.
    events: mpsc::Sender<Delivered>,
    spawner: Spawner,
    telemetry: telemetry::Handle,
    /// Most bytes of one event of the control channel.
    event_limit: usize,
    /// A channel that has shown a keep-alive and is then silent for this long is given up.
    idle_timeout: Duration,
}

/// The file with the sticky id, and what it holds.
struct SessionFile {
    path: PathBuf,
    content: Option<StickySession>,
}

impl SessionFile {
    fn open(path: PathBuf) -> Self {
        let content = StickySession::read(&path);
        Self { path, content }
    }

    /// The sticky id of the session that was registered last.
    fn id(&self) -> Option<&str> {
        self.content.as_ref().map(|session| &*session.provider_session_id)
    }

    /// The session in the mcpd at this URL.
    fn id_in(&self, url: &str) -> Option<&str> {
        self.content.as_ref()?.id_in(url)
    }

    /// The mcpd that it belongs to.
    fn url(&self) -> Option<&str> {
        self.content.as_ref()?.mcpd_url.as_deref()
    }

    /// Writes the sticky id and the mcpd that it belongs to.
    fn keep(&mut self, provider_session_id: String, mcpd_url: Option<String>) {
        let session = self.content.take().unwrap_or_default().followed_by(provider_session_id, mcpd_url);
        session.write(&self.path);
        self.content = Some(session);
    }
}

impl McpdLink {
    /// A link without credentials yet; reads the session's file. Everything that comes from mcpd goes to `events`.
    pub(super) fn open(
        config: &Config,
        events: mpsc::Sender<Delivered>,
        spawner: Spawner,
        telemetry: telemetry::Handle,
    ) -> Self {
        let path = config.home.join(SESSION_FILE);
        warn_of_wide_modes(&config.home, &path);
        let sources = config.credential_sources();
        Self {
            mcpd: Mcpd::new(http_settings(config), Arc::new(move || Some(access(&sources).ok()?.0))),
            former: None,
            results_trouble: None,
            session: SessionFile::open(path),
            registering: CancellationToken::new(),
            channel: None,
            opening: None,
            trace: ChannelTrace::default(),
            permits: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            events,
            spawner,
            telemetry,
            event_limit: config.event_limit,
            idle_timeout: config.channel_idle_timeout,
        }
    }

    /// The sticky id of the session that was registered last.
    pub(super) fn session_id(&self) -> Option<&str> {
        self.session.id()
    }

    pub(super) fn mcpd(&self) -> &Mcpd {
        &self.mcpd
    }

    /// Where mcpd is, once that is known.
    pub(super) fn url(&self) -> Option<Arc<str>> {
        self.mcpd.url()
    }

    /// The channel that was opened last.
    pub(super) fn channel_trace(&self) -> &ChannelTrace {
        &self.trace
    }

    /// What is wrong with the way of results, if that has changed since this was last asked.
    pub(super) fn results_changed(&mut self) -> Option<Option<(Trouble, Reason)>> {
        let trouble = self.mcpd.results_trouble();
        let changed = trouble != self.results_trouble;
        self.results_trouble.clone_from(&trouble);
        changed.then_some(trouble)
    }

    /// Whether credentials that could not be used for the authorities' sake may be usable now.
    pub(super) fn may_access_now(&self) -> bool {
        self.mcpd.may_access_now()
    }

    /// Switches to these credentials. Tasks that another mcpd handed over keep that mcpd: their answers belong to its callers alone.
    pub(super) fn use_access(&mut self, access: &Access) -> Result<McpdChange, HttpError> {
        // Credentials may appear long after the start, and the id on disk may then be another mcpd's.
        let url = self.mcpd.url();
        let former = url.as_deref().or_else(|| self.session.url());
        if former.is_none_or(|url| url == access.url) {
            self.mcpd.set_access(access)?;
            return Ok(McpdChange::Same);
        }
        let mcpd = self.mcpd.anew();
        mcpd.set_access(access)?;
        self.former = Some(std::mem::replace(&mut self.mcpd, mcpd)).filter(|former| former.url().is_some());
        Ok(McpdChange::Other(self.session.id_in(&access.url).map(str::to_owned)))
    }

    /// Follows the files with certificate authorities; whether there is something new to be tried.
    pub(super) fn follow_authorities(&self) -> bool {
        self.mcpd.follow_authorities()
    }

    /// Does what the core wants of the link.
    pub(super) fn carry_out(&mut self, effect: LinkEffect) {
        match effect {
            LinkEffect::Register { attempt, session, providers, after_wake } => {
                self.register(attempt, session, providers, after_wake);
            }
            LinkEffect::Heartbeat { number, session, after_wake } => {
                self.heartbeat(number, session, after_wake);
            }
            LinkEffect::OpenChannel { epoch, again, session } => self.open_channel(epoch, again, session),
            LinkEffect::CloseChannel => self.close_channel(),
            LinkEffect::Persist(id) => self.session.keep(id, self.mcpd.url().as_deref().map(str::to_owned)),
            LinkEffect::SessionForgotten => info!("mcpd does not know this agent's session any more"),
            LinkEffect::SessionLeft(session) => self.leave(session),
        }
    }

    /// Tells the mcpd that the agent used before, best effort, that nothing is published there: its owner's consent went with the URL.
    fn leave(&mut self, session: Option<String>) {
        info!("the credentials lead to another mcpd; what was learnt of the former one is forgotten");
        self.registering.cancel();
        let Some((former, session)) = self.former.take().zip(session) else { return };
        self.spawner.spawn(async move {
            if let Err(why) = former.register(Some(&session), &[], false).await {
                info!("the former mcpd was not told that nothing is published there: {why}");
            }
        });
    }

    /// Registers. A call that the link has given up is ended, so that it cannot reach mcpd after this one.
    fn register(
        &mut self,
        attempt: u64,
        session: Option<String>,
        providers: Vec<Provider>,
        after_wake: bool,
    ) {
        self.registering.cancel();
        self.registering = CancellationToken::new();
        let current = self.registering.clone();
        let (mcpd, events) = (self.mcpd.clone(), self.events.clone());
        self.spawner.spawn(async move {
            let call = mcpd.register(session.as_deref(), &providers, after_wake);
            let Some(reply) = current.run_until_cancelled(call).await else { return };
            let _ = events.send((Event::Registered(attempt, reply), None)).await;
        });
    }

    fn heartbeat(&self, number: u64, session: String, after_wake: bool) {
        let (mcpd, events) = (self.mcpd.clone(), self.events.clone());
        self.spawner.spawn(async move {
            let reply = mcpd.heartbeat(&session, after_wake).await;
            let _ = events.send((Event::Heartbeat(number, reply), None)).await;
        });
    }

    fn open_channel(&mut self, epoch: u64, again: bool, session: String) {
        self.close_channel();
        if again {
            self.telemetry.metrics().reconnect();
        }
        self.opening = Some((epoch, ChannelOpening::start(&self.telemetry)));
        let channel = Channel {
            epoch,
            session,
            event_limit: self.event_limit,
            idle_timeout: self.idle_timeout,
            facts: if self.telemetry.traces() { ReadFacts::OfAll } else { ReadFacts::OfStreams },
            events: self.events.clone(),
            permits: Arc::clone(&self.permits),
        };
        let cancelled = self.spawner.child_token();
        self.channel = Some(cancelled.clone());
        self.spawner.spawn(channel.run(self.mcpd.clone(), cancelled));
    }

    fn close_channel(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.cancel();
        }
    }

    /// The channel of this epoch is open.
    pub(super) fn channel_opened(&mut self, epoch: u64) {
        if let Some((_, opening)) = self.opening.take_if(|(of, _)| *of == epoch) {
            self.trace = opening.opened();
        }
    }

    /// The channel of this epoch ended, for a reason of this word.
    pub(super) fn channel_closed(&mut self, epoch: u64, why: &'static str) {
        if let Some((_, opening)) = self.opening.take_if(|(of, _)| *of == epoch) {
            opening.failed(why);
        }
    }
}
