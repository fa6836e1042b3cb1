//! The credentials as they were last read, and what has been said about them.

use secrecy::ExposeSecret as _;
use tracing::{info, warn};

use crate::{
    credentials::{self, Fingerprint, Sources, WideMode},
    domain::Reason,
    upstream::client::Access,
};

/// Watches the files that the credentials come from.
pub(super) struct CredentialsWatch {
    sources: Sources,
    fingerprint: Fingerprint,
    /// The problem that was logged last, until it is solved.
    problem: Option<Reason>,
    /// The file mode that was warned of last.
    wide_mode: Option<WideMode>,
}

impl CredentialsWatch {
    pub(super) fn new(sources: Sources) -> Self {
        let fingerprint = Fingerprint::of(&sources.home);
        Self { sources, fingerprint, problem: None, wide_mode: None }
    }

    /// Whether the files have changed since this was last asked.
    pub(super) fn have_changed(&mut self) -> bool {
        let fingerprint = Fingerprint::of(&self.sources.home);
        let changed = fingerprint != self.fingerprint;
        self.fingerprint = fingerprint;
        changed
    }

    /// The credentials that the files hold now, or why there are none. Warns once per mode, however often the files change or mcpd
    /// refuses the token.
    pub(super) fn read(&mut self) -> Result<Access, Reason> {
        let (access, wide_mode) = access(&self.sources)?;
        if let Some(wide) = wide_mode.as_ref().filter(|_| wide_mode != self.wide_mode) {
            warn!("{wide}");
        }
        self.wide_mode = wide_mode;
        Ok(access)
    }

    /// Logs a problem once, however often the files change, and that it is solved.
    pub(super) fn report<T>(&mut self, read: &Result<T, Reason>, others_work: bool) {
        match read {
            Err(problem) if self.problem.as_ref() != Some(problem) => {
                let meanwhile = match others_work {
                    true => "until that is corrected, those read before stay in use",
                    false => "going online once that is corrected",
                };
                warn!("{problem}; {meanwhile}");
                self.problem = Some(problem.clone());
            }
            Err(_) => {}
            Ok(_) => {
                if self.problem.take().is_some() {
                    info!("the credentials can be used again");
                }
            }
        }
    }
}

/// The credentials as the client wants them, or why there are none.
pub(super) fn access(sources: &Sources) -> Result<(Access, Option<WideMode>), Reason> {
    let found = credentials::load(sources).map_err(|problem| Reason::of_sentence(&problem.to_string()))?;
    let access = Access { url: found.url.as_str().to_owned(), token: found.token.expose_secret().into() };
    Ok((access, found.wide_mode))
}
