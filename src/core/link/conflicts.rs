//! The names that mcpd gives to somebody else.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::registration::ProviderSet;
use crate::domain::ProviderName;

/// How often names that mcpd gave to somebody else are tried again (the contract's number).
pub const CONFLICT_RETRY: Duration = Duration::from_secs(60);

/// The names that mcpd gives to somebody else, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    names: BTreeSet<ProviderName>,
    retry_at: Option<Instant>,
    /// Whether they are being tried again.
    retrying: bool,
}

impl Conflicts {
    pub(super) fn names(&self) -> &BTreeSet<ProviderName> {
        &self.names
    }

    /// Whether a name is left out of the published set.
    pub(super) fn excludes(&self, name: &ProviderName) -> bool {
        !self.retrying && self.names.contains(name)
    }

    /// mcpd refused these names.
    pub(super) fn refused(&mut self, names: BTreeSet<ProviderName>, now: Instant) {
        if std::mem::take(&mut self.retrying) {
            self.names.clear();
        }
        self.names.extend(names);
        self.retry_at = Some(now + CONFLICT_RETRY);
    }

    /// mcpd accepted this set.
    pub(super) fn accepted(&mut self, set: &ProviderSet) {
        self.names.retain(|name| !set.contains_key(name));
        self.retrying = false;
    }

    /// This set is wanted now: conflicts about other names are settled.
    pub(super) fn keep_only(&mut self, wanted: &ProviderSet) {
        self.names.retain(|name| wanted.contains_key(name));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            self.retrying = !self.names.is_empty();
        }
    }
}
