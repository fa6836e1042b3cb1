//! `mcprelay check-mcpd`: tests a live mcpd against the whole provider contract, with a throw-away provider that has a random name, so that
//! nobody else's rows or sessions are touched. Prints one line per clause.

mod frames;
mod inference;
mod peer;
mod session;
#[cfg(test)]
mod tests;
mod uploads;

use std::{io, time::Duration};

use clap::Args;

use self::peer::{Channel, Peer};
use super::{
    Stop,
    http::{CallError, Mcpd},
    llms,
    report::{Finding, Format, Report},
};
use crate::config::{self, FolderArgs, Lookup, McpdArgs};

/// What to do about a clause that mcpd does not fulfil.
const ADVICE: &str =
    "correct it in mcpd, or change the name in the agent if mcpd means the same by another one";
/// What to do if nothing comes: it may not be mcpd's fault.
const SILENT: &str = "run `mcprelay doctor`, which knows a proxy that holds the channel back; if there is none, correct it in mcpd";
/// What to do about an unfulfilled clause that the agent can do without.
const OPTIONAL: &str = "the agent works without it; it makes mcpd more robust";

/// How soon a provider should hear that its caller has gone: mcpd notices a closed connection at once.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Arguments of `check-mcpd`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Format,
    /// How long to wait for the channel's first keep-alive
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = config::duration)]
    pub keep_alive_wait: Duration,
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Where the files are.
    #[command(flatten)]
    pub folder: FolderArgs,
}

/// Why a clause is not fulfilled, or not known to be.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// mcpd does something else.
    Not(String),
    /// mcpd says nothing in time.
    Silent,
    /// The agent can live with what mcpd does.
    Weak(String),
    /// It cannot be tested here.
    Skip(String),
}

/// Tests every clause, and removes the throw-away provider again, whatever happens.
pub async fn run(args: CheckArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let mcpd = Mcpd::new(&args.mcpd, &args.folder.path(env)?, env)?;
    // Without an answer or a token nothing can be tested; a missing list is a clause like any other.
    if let Err(error @ (CallError::NoAnswer { .. } | CallError::Refused { .. })) = llms::list(&mcpd).await {
        return Err(error.into());
    }
    let mut check = Check::new(mcpd, args.output, args.keep_alive_wait, CANCEL_WAIT);
    let ended = tokio::select! {
        ended = check.everything() => ended,
        _ = tokio::signal::ctrl_c() => Err(Stop::Failed("cancelled: the throw-away provider is taken away".into())),
    };
    check.clean_up().await;
    ended?;
    check.report.end()
}

/// A check under way.
#[derive(Debug)]
struct Check {
    peer: Peer,
    report: Report,
    keep_alive_wait: Duration,
    cancel_wait: Duration,
    /// The throw-away session, as soon as there is one.
    session: Option<String>,
    /// The id of the provider's row.
    row: Option<String>,
    /// Whether mcpd drops a part it has already applied.
    idempotent: bool,
    /// Whether it takes a streamed answer as one upload.
    result_stream: bool,
}

impl Check {
    fn new(mcpd: Mcpd, format: Format, keep_alive_wait: Duration, cancel_wait: Duration) -> Self {
        let name = format!("mcprelay-check-{:08x}", fastrand::u32(..));
        let report = Report::new(format);
        Self {
            peer: Peer { mcpd, name },
            report,
            keep_alive_wait,
            cancel_wait,
            session: None,
            row: None,
            idempotent: false,
            result_stream: false,
        }
    }

    /// Every clause, in the order of a provider's life.
    async fn everything(&mut self) -> Result<(), Stop> {
        self.list_and_token().await?;
        let Some(session) = self.registered().await? else {
            return self.cannot_go_on("without a session no other clause can be tried");
        };
        self.sessions(&session).await?;
        let Some(mut channel) = self.opened(&session).await? else {
            return self.cannot_go_on("without a channel no other clause can be tried");
        };
        self.heartbeats(&session).await?;
        self.plain(&mut channel).await?;
        self.failing(&mut channel).await?;
        self.streaming(&mut channel).await?;
        self.breaking(&mut channel).await?;
        self.leaving(&mut channel).await?;
        self.uploading(&mut channel).await?;
        self.withdrawing(&session, &mut channel).await?;
        self.keep_alive(&mut channel).await
    }

    fn cannot_go_on(&mut self, why: &str) -> Result<(), Stop> {
        Ok(self.report.add(Finding::skipped("the rest", why))?)
    }

    /// Reports one clause of a section; returns its result if it is fulfilled.
    fn clause<T>(&mut self, section: &str, text: &str, outcome: Result<T, Broken>) -> io::Result<Option<T>> {
        let subject = format!("section {section}, {text}");
        let (finding, value) = match outcome {
            Ok(value) => (Finding::ok(&subject, "held"), Some(value)),
            Err(Broken::Not(why)) => (Finding::failure(&subject, why, ADVICE), None),
            Err(Broken::Silent) => (Finding::failure(&subject, "nothing comes in time", SILENT), None),
            Err(Broken::Weak(why)) => (Finding::warning(&subject, why, OPTIONAL), None),
            Err(Broken::Skip(why)) => (Finding::skipped(&subject, why), None),
        };
        self.report.add(finding)?;
        Ok(value)
    }

    async fn keep_alive(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let held = match channel.is_kept_alive(channel.opened + self.keep_alive_wait).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let wait = humantime::format_duration(self.keep_alive_wait);
                Err(Broken::Weak(format!("neither a ping nor a comment comes within {wait}")))
            }
            Err(error) => Err(error),
        };
        self.clause("2", "the channel is kept alive", held)?;
        Ok(())
    }

    /// Deregisters. Best effort: mcpd forgets the session anyhow when its heartbeats stop.
    async fn clean_up(&self) {
        if let Some(session) = &self.session {
            let _ = self.peer.register(Some(session), false).await;
        }
    }
}

/// Fails with this reason unless `held`.
fn so(held: bool, why: impl FnOnce() -> String) -> Result<(), Broken> {
    if held { Ok(()) } else { Err(Broken::Not(why())) }
}
