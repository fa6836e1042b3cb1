//! What an error of a call means, and how it reads.

use std::error::Error;

use h2::Reason;

/// Where rustls tells programmers more; nobody else can use it.
const LIBRARY_LINK: &str = ": https://docs.rs/";

/// What rustls calls the alert of a server that speaks none of the protocols which it was offered.
const NO_SUCH_PROTOCOL: &str = "NoApplicationProtocol";

/// The cause at the bottom of a chain of errors, which is what people can act on: "Connection refused".
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    without_link(&cause.to_string()).to_owned()
}

/// An error and all its causes in one line, none of them twice.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = without_link(&error.to_string()).to_owned();
    for cause in causes(error) {
        let part = cause.to_string();
        let part = without_link(&part);
        if !text.contains(part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

/// Whether an HTTP/2 server says that it has not processed the request: it refused the stream, or went away before its turn (RFC 9113,
/// 6.8 and 8.7). h2 gives the error of a GOAWAY, whatever its code, only to streams above the last one that the server names.
pub(crate) fn was_refused_unprocessed(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

/// Whether the server does not speak the HTTP/2 that was taken for granted: TLS ended for it, or what came made no sense as such.
pub(crate) fn is_wrong_protocol(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| match cause.downcast_ref::<h2::Error>() {
        Some(error) => error.is_library(),
        None => cause.to_string().contains(NO_SUCH_PROTOCOL),
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

fn without_link(text: &str) -> &str {
    text.split(LIBRARY_LINK).next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error sending request")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once_and_without_links_to_a_librarys_manual() {
        let eof = "peer closed connection without sending TLS close_notify";
        let cause = std::io::Error::other(format!("{eof}: https://docs.rs/rustls/latest/eof"));
        let error = Outer(cause);
        assert_eq!(with_causes(&error), format!("error sending request: {eof}"));
        assert_eq!(root_cause(&error), eof);
    }
}
