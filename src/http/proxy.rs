//! Which proxy leads to a server, for those who have to be told.

use std::{env, time::Duration};

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::Url;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::is_loopback;

/// How long a proxy may take to say once more that it refuses.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// "HTTP/1.1 403": the part of a reply that has its status.
const STATUS_LINE: usize = 12;

/// What the environment says about the way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProxySetting {
    /// The way is direct.
    None,
    /// It leads through this proxy: "http://proxy:3128", without credentials.
    Through(String),
    /// This variable is set, but not to the URL of a proxy, so that the way is direct.
    Nonsense(&'static str),
}

/// The way to the server at `url`, as Clients take it.
pub(crate) fn proxy(url: &Url) -> ProxySetting {
    let lookup = |name: &str| env::var(name).ok();
    if is_loopback(url) { ProxySetting::None } else { decide(url, &Matcher::from_system(), &lookup) }
}

/// With which status the proxy on the way to `url` refuses a connection there: Clients know it and do not tell. `None` where it does not
/// refuse now, or cannot be asked.
pub(crate) async fn refusal(url: &Url) -> Option<u16> {
    let proxy = Matcher::from_system().intercept(&url.as_str().parse().ok()?)?;
    let status = timeout(REFUSAL_TIMEOUT, connect_status(&proxy, url)).await.ok()??;
    (!(200..300).contains(&status)).then_some(status)
}

async fn connect_status(proxy: &Intercept, url: &Url) -> Option<u16> {
    let (host, port) = (proxy.uri().host()?, proxy.uri().port_u16().unwrap_or(80));
    let target = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
    let login = proxy.basic_auth().and_then(|login| login.to_str().ok());
    let login = login.map(|login| format!("Proxy-Authorization: {login}\r\n")).unwrap_or_default();
    let mut stream = TcpStream::connect((host, port)).await.ok()?;
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line).await.ok()?;
    std::str::from_utf8(&line).ok()?.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

fn decide(url: &Url, matcher: &Matcher, lookup: &dyn Fn(&str) -> Option<String>) -> ProxySetting {
    let Ok(target) = url.as_str().parse() else { return ProxySetting::None };
    if let Some(found) = matcher.intercept(&target) {
        let uri = found.uri();
        let scheme = uri.scheme_str().unwrap_or("http");
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        return ProxySetting::Through(format!("{scheme}://{}{port}", uri.host().unwrap_or_default()));
    }
    let variables = match url.scheme() {
        "https" => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let is_nonsense = |text: &String| {
        !text.is_empty() && Matcher::builder().all(text.as_str()).build().intercept(&target).is_none()
    };
    let bad = variables.into_iter().find(|name| lookup(name).as_ref().is_some_and(is_nonsense));
    bad.map_or(ProxySetting::None, ProxySetting::Nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(proxy: &'static str, none: &str) -> ProxySetting {
        let matcher = Matcher::builder().all(proxy).no(none).build();
        let lookup = |name: &str| (name == "HTTPS_PROXY").then(|| proxy.to_owned());
        decide(&"https://mcpd.example".parse().unwrap(), &matcher, &lookup)
    }

    #[test]
    fn the_proxy_is_named_without_its_password_and_nonsense_is_found_out() {
        let through = |name: &str| ProxySetting::Through(name.to_owned());
        assert_eq!(way("http://user:secret@proxy.example:3128", ""), through("http://proxy.example:3128"));
        assert_eq!(way("proxy.example:3128", ""), through("http://proxy.example:3128"));
        assert_eq!(way("http://proxy.example:3128", "mcpd.example"), ProxySetting::None);
        assert_eq!(way("::::", ""), ProxySetting::Nonsense("HTTPS_PROXY"));
        assert_eq!(way("", ""), ProxySetting::None);
    }
}
