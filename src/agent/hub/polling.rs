//! What the hub has to check once a second, because nothing notifies it: the sleep clock and the credentials.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use tracing::{info, warn};

use super::Hub;
use crate::{
    core::{LinkInput, link::UrlChange},
    credentials::{self, Fingerprint, Sources, WideMode},
    upstream::{client::Access, connect::HttpError},
};

/// A jump of the sleep clock by more than this is a sleep; less can come from reading the two clocks one after the other.
const SLEEP_JUMP: Duration = Duration::from_secs(5);

impl Hub {
    /// Once a second: has the machine slept, are there other credentials?
    pub(super) fn look_around(&mut self) {
        let slept = self.surroundings.clock.slept_for();
        if slept > self.slept + SLEEP_JUMP {
            info!("the machine slept for {} s", (slept - self.slept).as_secs());
            self.feed_link(LinkInput::Woke);
        }
        self.slept = slept;
        let fingerprint = Fingerprint::of(&self.credentials.sources.home);
        if fingerprint != self.credentials.fingerprint {
            self.credentials.fingerprint = fingerprint;
            self.read_credentials();
        }
    }

    pub(super) fn read_credentials(&mut self) {
        let read = self.take_credentials();
        match &read {
            Err(problem) => {
                // One warning per problem, however often the file changes.
                if self.credentials.problem.as_ref() != Some(problem) {
                    let meanwhile = match self.mcpd.url() {
                        Some(_) => "until that is mended, what was read before is used",
                        None => "going online when that is mended",
                    };
                    warn!("{problem}; {meanwhile}");
                    self.credentials.problem = Some(problem.clone());
                }
                if self.mcpd.url().is_some() {
                    // Unusable credentials are no reason to drop those that work.
                    return;
                }
            }
            Ok(_) => {
                if self.credentials.problem.take().is_some() {
                    info!("the credentials can be used again");
                }
            }
        }
        self.feed_link(LinkInput::Credentials(read));
    }

    /// Switches to the credentials that the files hold now.
    fn take_credentials(&mut self) -> Result<UrlChange, String> {
        let (access, wide_mode) = access(&self.credentials.sources)?;
        self.warn_of_a_wide_mode(wide_mode);
        // Credentials may appear long after the start, and the id on disk may then be another mcpd's.
        let url = self.mcpd.url();
        let former =
            url.as_deref().or_else(|| self.files.session.as_ref().and_then(|s| s.mcpd_url.as_deref()));
        let other = former.is_some_and(|url| url != access.url);
        self.use_access(&access, other).map_err(|error| error.to_string())?;
        Ok(if other { UrlChange::Other } else { UrlChange::Same })
    }

    /// Switches to these credentials. Tasks that another mcpd handed over keep that mcpd: their answers belong to its callers alone.
    fn use_access(&mut self, access: &Access, other: bool) -> Result<(), HttpError> {
        if !other {
            return self.mcpd.set_access(access);
        }
        let mcpd = self.mcpd.anew();
        mcpd.set_access(access)?;
        self.mcpd = mcpd;
        Ok(())
    }

    /// Warns once per mode, however often the files change or mcpd refuses the token.
    fn warn_of_a_wide_mode(&mut self, found: Option<WideMode>) {
        if let Some(wide) = found.as_ref().filter(|_| found != self.credentials.wide_mode) {
            warn!("{wide}");
        }
        self.credentials.wide_mode = found;
    }
}

/// The credentials as the client wants them, or why there are none.
pub(super) fn access(sources: &Sources) -> Result<(Access, Option<WideMode>), String> {
    let found = credentials::load(sources).map_err(|problem| problem.to_string())?;
    let access = Access { url: found.url.as_str().to_owned(), token: found.token.expose_secret().into() };
    Ok((access, found.wide_mode))
}
