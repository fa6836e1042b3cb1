//! Logs what became of the offered providers, once per change.

use std::collections::HashMap;

use super::offered::Offered;
use crate::{
    domain::{Printable, ProviderState},
    pb::{self, Verdict},
};

/// What was last said of each provider.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    last: HashMap<String, Said>,
}

/// What is said of a provider.
#[derive(Debug, PartialEq)]
struct Said {
    verdict: pb::ProviderVerdict,
    /// It cannot work now, so mcpd does not list it, whatever the verdict.
    away: bool,
}

impl Verdicts {
    /// Logs what is new in `result`, which answers a snapshot of `offered`, and remembers all of it.
    pub(super) fn take(&mut self, result: &pb::ProviderSnapshotResult, offered: &[Offered]) {
        let mut now = HashMap::new();
        for verdict in &result.verdicts {
            let pushed =
                offered.iter().map(|offered| &offered.info).find(|info| info.name.as_str() == verdict.name);
            let away = pushed.is_some_and(|info| info.state == ProviderState::Unavailable);
            let said = Said { verdict: verdict.clone(), away };
            if self.last.get(&verdict.name) != Some(&said) {
                log(&said);
            }
            now.insert(verdict.name.clone(), said);
        }
        self.last = now;
    }
}

fn log(said: &Said) {
    let verdict = &said.verdict;
    let name = Printable(&verdict.name);
    match verdict.verdict() {
        // The reason was logged where it was found.
        Verdict::Published if said.away => tracing::info!("{name}: not published until it can work"),
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::{
        domain::{Provider, ProviderName},
        provide::{Clients, config_file::Entry, providers},
    };

    /// Everything logged while `run` runs, as text.
    fn logged(run: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Log {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(text)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, run);
        let text = log.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    fn result(verdict: Verdict, why: Option<&str>) -> pb::ProviderSnapshotResult {
        let error = why.map(|why| pb::Error { message: why.to_owned(), ..pb::Error::default() });
        let verdict = pb::ProviderVerdict { name: "a".to_owned(), verdict: verdict.into(), error };
        pb::ProviderSnapshotResult { generation: 1, verdicts: vec![verdict] }
    }

    fn offered(state: ProviderState) -> Vec<Offered> {
        let entry = Entry::new(ProviderName::new("a").unwrap(), "echo", "m");
        let provider = providers::open(&entry, &Clients::default()).unwrap().provider;
        let info = Provider {
            name: entry.name,
            kind: entry.kind.into(),
            model: entry.model.into(),
            tier: entry.tier,
            description: entry.description,
            publish: true,
            sharing: Vec::new(),
            max_in_flight: None,
            state,
            state_detail: String::new(),
            features: Vec::new(),
            context_tokens: None,
            max_output_tokens: None,
            server: None,
        };
        vec![Offered { info, provider }]
    }

    #[test]
    fn a_verdict_is_logged_when_it_changes_and_only_then() {
        let log = logged(|| {
            let (mut verdicts, ready) = (Verdicts::default(), offered(ProviderState::Ready));
            for _ in 0..3 {
                verdicts.take(&result(Verdict::Published, None), &ready);
            }
            verdicts.take(&result(Verdict::Refused, Some("taken\x1b[2J")), &ready);
        });
        assert_eq!(log.matches("a: published").count(), 1, "{log}");
        assert!(log.contains("WARN") && log.contains("a: refused by the agent: taken\\u{1b}[2J"), "{log}");
    }

    #[test]
    fn what_cannot_work_is_called_published_only_when_it_can() {
        let log = logged(|| {
            let mut verdicts = Verdicts::default();
            verdicts.take(&result(Verdict::Published, None), &offered(ProviderState::Unavailable));
        });
        assert!(log.contains("a: not published until it can work") && !log.contains("a: published"), "{log}");
        let log = logged(|| {
            let mut verdicts = Verdicts::default();
            for state in [ProviderState::Unavailable, ProviderState::Ready, ProviderState::Unavailable] {
                verdicts.take(&result(Verdict::Published, None), &offered(state));
            }
        });
        let told: Vec<_> =
            log.lines().filter_map(|line| line.split_once(": a: ")).map(|(_, said)| said).collect();
        assert_eq!(
            told,
            ["not published until it can work", "published", "not published until it can work"],
            "{log}"
        );
    }
}
