//! What became of the offered providers, told in the log: once per change.

use std::collections::HashMap;

use crate::{
    domain::Printable,
    pb::{self, Verdict},
};

/// The last verdict on each provider.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    last: HashMap<String, pb::ProviderVerdict>,
}

impl Verdicts {
    /// Logs what is new in `result` and remembers all of it.
    pub(super) fn take(&mut self, result: &pb::ProviderSnapshotResult) {
        for verdict in &result.verdicts {
            if self.last.get(&verdict.name) != Some(verdict) {
                log(verdict);
            }
        }
        self.last = result.verdicts.iter().map(|v| (v.name.clone(), v.clone())).collect();
    }
}

fn log(verdict: &pb::ProviderVerdict) {
    let name = Printable(&verdict.name);
    match verdict.verdict() {
        Verdict::Published => tracing::info!("{name}: published"),
        Verdict::NotOptedIn => {
            tracing::info!("{name}: not published; set \"publish\": true in config.json to publish it");
        }
        Verdict::StandingBy => {
            tracing::info!("{name}: standing by; another program serves under this name");
        }
        Verdict::Refused | Verdict::Unspecified => {
            let why = verdict.error.as_ref().map_or("no reason given", |error| error.message.as_str());
            tracing::warn!("{name}: refused by the agent: {}", Printable(why));
        }
    }
}
