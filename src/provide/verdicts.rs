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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

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

    #[test]
    fn a_verdict_is_logged_when_it_changes_and_only_then() {
        let log = logged(|| {
            let mut verdicts = Verdicts::default();
            for _ in 0..3 {
                verdicts.take(&result(Verdict::Published, None));
            }
            verdicts.take(&result(Verdict::Refused, Some("taken\x1b[2J")));
        });
        assert_eq!(log.matches("a: published").count(), 1, "{log}");
        assert!(log.contains("WARN") && log.contains("a: refused by the agent: taken\\u{1b}[2J"), "{log}");
    }
}
