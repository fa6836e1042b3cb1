//! Server-sent events: the one parser, linear and bounded, for the control channel, the answers of providers and `check-mcpd`.
//!
//! It stands in `crates/eventsource-stream`, because `reqwest-eventsource` needs it under a name of its own.

pub use eventsource_stream::{Event, Item, Parser, TooLarge};
