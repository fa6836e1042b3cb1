//! The provider host: a process of its own in `mcprelay provide`, part of the agent's process in `mcprelay run --provide` and
//! `mcprelay demo`.

use std::{future::pending, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Clients, DEFAULT_MAX_MESSAGE_BYTES, Offered, Provider, Registrar, RegistrarConfig,
    config_file::Entry,
    follow::{self, Entries},
    providers::{self, CannotOpen, Opened, Readiness},
    task::{Chunks, Finished, Task},
};
use crate::{
    credentials::CONFIG_FILE,
    domain::{self, Failure, FailureCode, ProviderState},
};

/// Between two looks at the files with certificate authorities: a change is followed within 5 s.
const AUTHORITIES: Duration = Duration::from_secs(4);
/// The host's id when it is a process of its own.
pub const CLIENT_ID: &str = "mcprelay/provide";
/// The host's id inside the agent's process: a session from outside outranks it.
pub const BUILT_IN_CLIENT_ID: &str = "mcprelay/run";
/// How long the host waits for new entries to say whether they are ready before it pushes the set without their answer: a server that
/// runs on this machine answers in time, so that the set is pushed once and not twice.
const FIRST_ANSWERS: Duration = Duration::from_millis(500);
/// How long running tasks may go on after the host was asked to stop, unless configured otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Where the host finds its agent and its file.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The folder with config.json.
    pub home: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// [`CLIENT_ID`] or [`BUILT_IN_CLIENT_ID`].
    pub client_id: String,
    /// A PEM file with authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The largest message the host accepts, in bytes.
    pub max_message_bytes: u32,
    /// How long running tasks may go on after the host was asked to stop.
    pub drain_timeout: Duration,
}

impl HostConfig {
    /// The host as a process of its own, with the usual limits.
    pub fn new(home: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            socket: socket.into(),
            client_id: CLIENT_ID.to_owned(),
            ca_file: None,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }

    /// The same inside the agent's process.
    #[must_use]
    pub fn built_in(mut self) -> Self {
        BUILT_IN_CLIENT_ID.clone_into(&mut self.client_id);
        self
    }
}

/// The provider host, before it runs.
pub struct Host {
    config: HostConfig,
    fixed: Option<Vec<Entry>>,
}

impl Host {
    /// A host that serves config.json and follows its changes.
    pub fn new(config: HostConfig) -> Self {
        Self { config, fixed: None }
    }

    /// Serves these entries instead of the file's.
    #[must_use]
    pub fn with_providers(mut self, entries: Vec<Entry>) -> Self {
        self.fixed = Some(entries);
        self
    }

    /// Runs until `shutdown`, then says goodbye and lets running tasks finish within the drain time. Neither a missing agent nor
    /// a missing file is an error. Dropping the future ends everything at once.
    pub async fn run(self, shutdown: CancellationToken) {
        // A fixed set never changes, but its sender must live as long as the receiver is used.
        let (_fixed, entries) = match self.fixed {
            Some(entries) => {
                let (keep, entries) = watch::channel(Entries::from(entries));
                (Some(keep), entries)
            }
            None => (None, follow::follow(self.config.home.join(CONFIG_FILE)).await),
        };
        let mut serving =
            Serving { clients: Clients::trusting(self.config.ca_file), entries, served: Vec::new() };
        serving.update().await;
        let registrar = Registrar::start(
            RegistrarConfig {
                socket: self.config.socket,
                client_id: self.config.client_id,
                client_version: concat!("mcprelay/", env!("CARGO_PKG_VERSION")).to_owned(),
                max_message_bytes: self.config.max_message_bytes,
            },
            serving.offered(),
        );
        shutdown.run_until_cancelled(serving.run(&registrar)).await;
        registrar.stop(self.config.drain_timeout).await;
    }
}

/// The entries and what serves them.
struct Serving {
    clients: Clients,
    entries: watch::Receiver<Entries>,
    served: Vec<Served>,
}

struct Served {
    entry: Entry,
    opened: Opened,
}

impl Serving {
    async fn run(&mut self, registrar: &Registrar) {
        let mut looks = interval(AUTHORITIES);
        loop {
            tokio::select! {
                // The file has changed.
                Ok(()) = self.entries.changed() => self.update().await,
                _ = looks.tick() => {
                    if !self.clients.follow_authorities() {
                        continue;
                    }
                    // Tasks that run keep what they run on.
                    self.served.clear();
                    self.update().await;
                }
                // A provider has become ready, or has gone.
                () = any_changed(&mut self.served) => {}
            }
            registrar.set_providers(self.offered());
        }
    }

    /// Opens what is new, keeps what is as before, and lets go of what is gone.
    async fn update(&mut self) {
        let entries = self.entries.borrow_and_update().clone();
        let mut before = std::mem::take(&mut self.served);
        for entry in &*entries {
            let same = before.iter().position(|served| served.entry == *entry);
            let served = match same {
                Some(at) => before.swap_remove(at),
                None => Served { entry: entry.clone(), opened: open(entry, &self.clients) },
            };
            self.served.push(served);
        }
        settle(&mut self.served).await;
    }

    fn offered(&self) -> Vec<Offered> {
        self.served.iter().map(Served::offered).collect()
    }
}

impl Served {
    fn offered(&self) -> Offered {
        let entry = &self.entry;
        let readiness = self.readiness();
        let info = domain::Provider {
            name: entry.name.clone(),
            kind: entry.kind.as_str().into(),
            model: entry.listed_model().into(),
            tier: entry.tier.clone(),
            description: entry.description.clone(),
            publish: entry.publish,
            sharing: entry.sharing.clone(),
            max_in_flight: entry.max_in_flight,
            state: readiness.state,
            state_detail: readiness.detail.to_string(),
            features: Vec::new(),
            context_tokens: readiness.context_tokens,
            max_output_tokens: None,
            server: entry.url.as_deref().and_then(domain::ServerAddress::of),
        };
        Offered { info, provider: self.opened.provider.clone() }
    }

    /// A provider that is not opted in is not asked: no request is sent to it.
    fn readiness(&self) -> Readiness {
        match self.entry.publish {
            true => self.opened.readiness.borrow().clone(),
            false => Readiness::new(ProviderState::Ready, "not asked, because it is not opted in"),
        }
    }
}

/// Waits for the first answer of every opted-in provider, but not long.
async fn settle(served: &mut [Served]) {
    let opted_in = served.iter_mut().filter(|served| served.entry.publish);
    let answers = opted_in
        .map(|served| async { drop(served.opened.readiness.wait_for(|readiness| readiness.known).await) });
    // A provider that has not answered by then is pushed as not ready, and again once it is.
    let _ = timeout(FIRST_ANSWERS, join_all(answers)).await;
}

/// Waits until a provider's readiness changes.
async fn any_changed(served: &mut [Served]) {
    let mut changes: FuturesUnordered<_> = served
        .iter_mut()
        .map(|served| async {
            if served.opened.readiness.changed().await.is_err() {
                // It never changes.
                pending::<()>().await;
            }
        })
        .collect();
    if changes.next().await.is_none() {
        pending::<()>().await;
    }
}

fn open(entry: &Entry, clients: &Clients) -> Opened {
    providers::open(entry, clients).unwrap_or_else(|CannotOpen(why)| {
        if entry.publish {
            tracing::warn!("{}: cannot be offered: {}", entry.name, domain::Printable(&why));
        }
        let (_, readiness) = watch::channel(Readiness::new(ProviderState::Unavailable, why.clone()));
        Opened { provider: Arc::new(Unusable(why)), readiness }
    })
}

/// Replaces a provider that cannot be opened: it is shown with the reason, and never ready.
struct Unusable(String);

#[tonic::async_trait]
impl Provider for Unusable {
    async fn run(&self, _task: Task, _chunks: Chunks, _cancel: CancellationToken) -> Finished {
        Failure::new(FailureCode::Unavailable, self.0.clone()).into()
    }
}
