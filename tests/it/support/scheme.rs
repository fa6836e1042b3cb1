//! How the agent reaches mcpd: what holds over `http` has to hold over `https`, as it is in production.

use std::cell::Cell;

use fake_mcpd::Tls;

/// A way to mcpd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// `http`.
    #[default]
    Http,
    /// `https` with HTTP/1.1.
    Https1,
    /// `https` with HTTP/2.
    Https2,
}

thread_local! {
    static CURRENT: Cell<Scheme> = const { Cell::new(Scheme::Http) };
}

impl Scheme {
    /// The scheme of the worlds that this thread makes.
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Runs a test whose worlds all have this scheme.
    pub fn during(self, test: fn()) {
        CURRENT.set(self);
        test();
        CURRENT.set(Self::default());
    }

    /// What an mcpd serves to have it.
    pub fn tls(self) -> Option<Tls> {
        match self {
            Self::Http => None,
            Self::Https1 => Some(Tls::default().without_http2()),
            Self::Https2 => Some(Tls::default().without_http1()),
        }
    }
}

/// Runs tests of this file, which by themselves go over `http`, over `https` with each protocol too.
macro_rules! over_https {
    ($($test:ident),+ $(,)?) => {
        mod https_1 {
            $(#[test] fn $test() { crate::support::Scheme::Https1.during(super::$test) })+
        }
        mod https_2 {
            $(#[test] fn $test() { crate::support::Scheme::Https2.during(super::$test) })+
        }
    };
}

pub(crate) use over_https;
