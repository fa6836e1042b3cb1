//! HTTP as a client speaks it, whoever the server is: how Clients are built and what they trust, bodies within bounds, when to try
//! again, and what an error means. It knows no other module of this crate.

mod backoff;
mod body;
mod client;
mod error;
mod headers;
mod idle;
mod outgoing;
mod proxy;
mod trust;

pub use self::client::is_loopback;
pub(crate) use self::{
    backoff::Backoff,
    body::{Frames, ReadError, drain, page_title, read, read_at_most},
    client::{ClientError, ClientOptions, Version, client, is_this_machine},
    error::{is_wrong_protocol, root_cause, was_refused_unprocessed, with_causes},
    headers::{is_html, keep_alive, retry_after},
    idle::IdleLimit,
    outgoing::{Outgoing, Progress},
    proxy::{ProxySetting, proxy, refusal},
    trust::{CertificatesError, Trust, TrustFiles},
};
