//! The session's file: mcpd's id of the agent's session, and those of other mcpds.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::write_atomically;

/// Most bytes read of the session file; an id has a few dozen.
const SESSION_LIMIT: u64 = 64 << 10;
/// How many sessions in other mcpds are kept (the contract's number).
const OTHERS_KEPT: usize = 7;

/// The sticky id, and the mcpd that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StickySession {
    /// mcpd's id of the agent's session.
    pub provider_session_id: String,
    /// The URL of that mcpd; absent in a file that another program wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcpd_url: Option<String>,
    /// The agent's sessions in other mcpds, the last one first: whoever returns to one of them is not taken for a stranger there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<FormerSession>,
}

/// A session in an mcpd that the agent used before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FormerSession {
    /// That mcpd's id of the session.
    pub provider_session_id: String,
    /// The URL of that mcpd.
    pub mcpd_url: String,
}

impl StickySession {
    /// The agent's session in the mcpd at this URL, the current one or one of the others.
    pub fn id_in(&self, url: &str) -> Option<&str> {
        if self.mcpd_url.as_deref() == Some(url) {
            return Some(&self.provider_session_id);
        }
        let other = self.others.iter().find(|other| other.mcpd_url == url);
        other.map(|other| &*other.provider_session_id).filter(|id| is_id(id))
    }

    /// Another session is the current one; the one until now is kept among the others.
    #[must_use]
    pub fn followed_by(mut self, provider_session_id: String, mcpd_url: Option<String>) -> Self {
        if let Some(url) = self.mcpd_url.filter(|url| mcpd_url.as_ref() != Some(url)) {
            self.others.retain(|other| other.mcpd_url != url);
            let former = FormerSession { provider_session_id: self.provider_session_id, mcpd_url: url };
            self.others.insert(0, former);
        }
        self.others.retain(|other| mcpd_url.as_ref() != Some(&other.mcpd_url));
        self.others.truncate(OTHERS_KEPT);
        Self { provider_session_id, mcpd_url, others: self.others }
    }

    /// Reads the file. A file without a usable id is treated as missing, with a warning.
    pub fn read(path: &Path) -> Option<Self> {
        let text = match fs::metadata(path).and_then(|m| match m.is_file() && m.len() <= SESSION_LIMIT {
            true => fs::read_to_string(path),
            false => Ok(String::new()),
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!("cannot read {}: {error}; a new session is registered", path.display());
                return None;
            }
        };
        let session = Self::parse(&text);
        if session.is_none() {
            warn!("{} holds no session id; a new session is registered", path.display());
        }
        session
    }

    /// Accepts JSON, and also a file that holds nothing but an id.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let session = if text.starts_with('{') {
            serde_json::from_str(text).ok()?
        } else {
            Self { provider_session_id: text.trim_matches('"').to_owned(), ..Self::default() }
        };
        Some(session).filter(|session| is_id(&session.provider_session_id))
    }

    /// Writes the file. A failure is only a warning, because the session works without the file until the next restart.
    pub fn write(&self, path: &Path) {
        let text = serde_json::to_string(self).expect("texts always serialise") + "\n";
        if let Err(error) = write_atomically(path, text.as_bytes()) {
            warn!("cannot write {}: {error}; after a restart the LLMs get new rows", path.display());
        }
    }
}

/// Whether this can be a session's id: it is sent in a header.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 1024 && id.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, url: Option<&str>) -> StickySession {
        StickySession::default().followed_by(id.to_owned(), url.map(str::to_owned))
    }

    #[test]
    fn a_session_file_is_read_in_both_forms_and_nonsense_is_none() {
        let with_url = session("s1", Some("http://x"));
        let text = r#"{"providerSessionId":"s1","mcpdUrl":"http://x"}"#;
        assert_eq!(StickySession::parse(text), Some(with_url));
        assert_eq!(StickySession::parse(" s2\n"), Some(session("s2", None)));
        for nonsense in ["", "{", "{}", "a b", "s\u{1b}[31m", r#"{"providerSessionId":""}"#] {
            assert_eq!(StickySession::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn the_sessions_of_the_last_seven_other_mcpds_are_kept_each_once() {
        let mut kept = StickySession::default();
        for n in (0..9).chain([0, 8]) {
            kept = kept.followed_by(format!("s{n}"), Some(format!("http://{n}")));
        }
        let others: Vec<_> = kept.others.iter().map(|other| &*other.provider_session_id).collect();
        assert_eq!(others, ["s0", "s7", "s6", "s5", "s4", "s3", "s2"]);
        assert_eq!((kept.id_in("http://8"), kept.id_in("http://0")), (Some("s8"), Some("s0")));
        assert_eq!(kept.id_in("http://1"), None, "it is the eighth");
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(StickySession::parse(&text), Some(kept));
    }
}
