//! What a caller must not read: addresses and paths of the owner's machine, which errors like to name.
//!
//! Public addresses stay, because a server's advice may be one (`see https://example.com/docs`).

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
};

use bytes::Bytes;
use serde_json::Value;

/// What stands in the place of what is hidden.
const HIDDEN: &str = "(hidden)";
/// First parts of paths that are a machine's and no web server's.
const ROOTS: [&str; 24] = [
    "home",
    "Users",
    "root",
    "mnt",
    "media",
    "data",
    "var",
    "opt",
    "srv",
    "tmp",
    "usr",
    "etc",
    "run",
    "proc",
    "sys",
    "dev",
    "nix",
    "private",
    "Volumes",
    "workspace",
    "Library",
    "snap",
    "storage",
    "cache",
];
/// Endings of files that servers of models name in their errors.
const FILES: [&str; 20] = [
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".onnx",
    ".py",
    ".cpp",
    ".cu",
    ".c",
    ".h",
    ".go",
    ".rs",
    ".json",
    ".yaml",
    ".yml",
    ".txt",
    ".log",
    ".sock",
    ".jinja",
];
/// Endings of host names that no public server has.
const PRIVATE_DOMAINS: [&str; 8] =
    [".localhost", ".local", ".lan", ".internal", ".intranet", ".home", ".home.arpa", ".localdomain"];

/// `text` without the addresses and paths in it.
pub fn hide_private(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept = 0;
    for (at, word) in words(text) {
        if let Some(found) = private_part(word) {
            out.push_str(&text[kept..at + found]);
            out.push_str(HIDDEN);
            kept = at + word.len();
        }
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept..]);
    Cow::Owned(out)
}

/// A JSON object without the addresses and paths in its texts; byte for byte if there are none.
///
/// # Errors
/// If `body` is not a JSON object.
pub fn without_private(body: &Bytes) -> Result<Bytes, serde_json::Error> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(body)?;
    let mut hidden = false;
    object.values_mut().for_each(|value| hidden |= hide_in(value));
    if hidden { serde_json::to_vec(&object).map(Bytes::from) } else { Ok(body.clone()) }
}

/// Whether anything was hidden.
fn hide_in(value: &mut Value) -> bool {
    match value {
        Value::String(text) => match hide_private(text) {
            Cow::Borrowed(_) => false,
            Cow::Owned(shown) => {
                *text = shown;
                true
            }
        },
        // Each is looked at, also after the first find.
        Value::Array(list) => list.iter_mut().map(hide_in).filter(|hidden| *hidden).count() > 0,
        Value::Object(members) => members.values_mut().map(hide_in).filter(|hidden| *hidden).count() > 0,
        _ => false,
    }
}

/// The parts of a text that may be addresses or paths, without the punctuation around them, and where they are.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let around = |c: char| c.is_whitespace() || "\"'`()<>{},;|".contains(c);
    text.split(around).map(move |word| {
        let at = word.as_ptr().addr() - text.as_ptr().addr();
        (at, word.trim_end_matches(['.', ':', '!', '?']))
    })
}

/// Where in a word the private part begins; it lasts to the word's end.
fn private_part(word: &str) -> Option<usize> {
    let starts = [0].into_iter().chain(word.match_indices(['=', '@', '[']).map(|(at, _)| at + 1));
    starts.filter(|at| *at < word.len()).find(|at| is_private(&word[*at..]))
}

fn is_private(text: &str) -> bool {
    if let Some((scheme, rest)) = text.split_once("://") {
        return is_scheme(scheme) && is_private_url(scheme, rest);
    }
    is_private_host(host_of(text)) || is_path(text)
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn is_private_url(scheme: &str, rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host_of(authority.rsplit('@').next().unwrap_or_default());
    // A name without a dot is one of the owner's own network.
    matches!(scheme, "file" | "unix")
        || authority.contains('@')
        || !host.contains(['.', ':'])
        || is_private_host(host)
}

/// The host of `host:port`, `[v6]:port` or `host:port/path`, without the port.
fn host_of(text: &str) -> &str {
    let text = text.strip_prefix('[').unwrap_or(text);
    if let Some((v6, _)) = text.split_once(']') {
        return v6;
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return text;
    }
    text.split([':', '/', '\\']).next().unwrap_or_default()
}

fn is_private_host(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()
        }
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private_host(&ip.to_string()),
            // The text "::" alone is a path of names in several languages.
            None => {
                ip.is_loopback()
                    || ip.is_unique_local()
                    || ip.is_unicast_link_local()
                    || ip.is_unspecified() && host.len() > 2
            }
        },
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost"
                || PRIVATE_DOMAINS.iter().any(|domain| name.len() > domain.len() && name.ends_with(domain))
        }
    }
}

/// Whether it is a file's path: from a root that is a machine's, or to a file of a kind that servers have.
fn is_path(text: &str) -> bool {
    let bytes = text.as_bytes();
    let drive =
        bytes.len() > 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && b"\\/".contains(&bytes[2]);
    let (rooted, home) = (text.strip_prefix('/'), text.starts_with("~/"));
    let Some(rest) = rooted else { return drive || home || text.starts_with("\\\\") && bytes.len() > 3 };
    let (root, below) = rest.split_once('/').unwrap_or((rest, ""));
    let file = rest.split(':').next().unwrap_or_default();
    (ROOTS.contains(&root) && !below.is_empty()) || FILES.iter().any(|ending| file.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_of_the_machine_are_hidden_and_the_rest_stays() {
        for (text, shown) in [
            ("dial tcp 127.0.0.1:11434: connection refused", "dial tcp (hidden): connection refused"),
            (
                "cannot connect to http://localhost:8080/v1; is it up?",
                "cannot connect to (hidden); is it up?",
            ),
            ("HTTPConnectionPool(host='10.0.0.7', port=80)", "HTTPConnectionPool(host='(hidden)', port=80)"),
            ("error loading model \"/home/bob/x.gguf\".", "error loading model \"(hidden)\"."),
            ("no file /models/x.gguf here", "no file (hidden) here"),
            ("path=/srv/llm/x and C:\\Users\\bob\\x", "path=(hidden) and (hidden)"),
            ("at [::1]:8000, [::ffff:192.168.1.2]:80, gpu.local:1", "at (hidden), (hidden), (hidden)"),
            ("see http://gpu-box:8000/docs", "see (hidden)"),
            ("https://user:pass@example.com/x", "(hidden)"),
            ("unix:///run/x.sock", "(hidden)"),
        ] {
            assert_eq!(hide_private(text).replace("[(hidden)", "(hidden)"), shown, "{text}");
        }
    }

    #[test]
    fn public_addresses_and_paths_of_an_interface_stay() {
        for text in [
            "see https://platform.openai.com/account/api-keys.",
            "Invalid URL (POST /v1/chat/completions)",
            "model 'hf.co/bartowski/Llama-3.2:Q4' not found, ratio 1/2, either/or",
            "std::bad_alloc at 12:30, key: value, a=b",
            "the maximum is 8.8.8.8 or v1.2.3",
            "models/gemini-2.0 is not found for API version v1main",
        ] {
            assert_eq!(hide_private(text), text);
        }
    }

    #[test]
    fn an_error_body_keeps_its_bytes_unless_something_in_it_is_hidden() {
        let body = Bytes::from_static(br#" {"error" : {"message":"full","code":1.50}} "#);
        assert_eq!(without_private(&body).ok(), Some(body));
        let body = Bytes::from_static(br#"{"error":{"message":"no \/home\/bob\/m","code":404}}"#);
        let shown = without_private(&body).expect("an object");
        assert_eq!(shown, r#"{"error":{"code":404,"message":"no (hidden)"}}"#);
        assert!(without_private(&Bytes::from_static(b"[]")).is_err());
    }
}
