//! mcprelay: the local agent between mcpd and the LLM providers of a workstation.
//!
//! mcpd, the central server, lists *virtual LLMs*: rows whose inferences are relayed to a provider on somebody's machine. The agent
//! does the relaying. Upstream it speaks HTTP and server-sent events with mcpd, downstream gRPC on a unix socket with the programs that
//! own the providers.
//!
//! # The modules
//!
//! ```text
//!  main ──► cli ──┬──► agent ──┬──► core
//!                 │            ├──► bridge ◄──(the socket)── provide
//!                 │            └──► upstream ──┬──► openai
//!                 │                            └──► http
//!                 └──► provide ──┬──► openai
//!                                └──► http
//! ```
//!
//! The picture leaves out what several modules use: `domain`, `config`, `credentials`, `platform` and `telemetry`. The table has it all:
//! `tests/it/architecture.rs` reads the last column, and allows nothing else.
//!
//! | module | what it is | uses |
//! | --- | --- | --- |
//! | [`agent`] | the one place that joins core, upstream and bridge; owns every task and the shutdown | `bridge`, `config`, `core`, `credentials`, `domain`, `pb`, `platform`, `telemetry`, `upstream` |
//! | [`bridge`] | the unix socket: one actor per session, conversion between proto and domain | `domain`, `pb` |
//! | [`cli`] | the commands, one file each | `agent`, `bridge`, `config`, `credentials`, `domain`, `http`, `pb`, `platform`, `provide`, `sse`, `telemetry`, `upstream` |
//! | [`config`] | flags, environment and files become checked values | `credentials`, `platform` |
//! | [`core`] | every decision, without I/O and without a clock | `domain` |
//! | [`credentials`] | where mcpd is, and the token for it | `http` |
//! | [`domain`] | the vocabulary that all modules share: names, tasks, failures; no I/O | |
//! | [`openai`] | OpenAI's JSON as bytes: merging, gathering, converting, failures | `domain`, `json` |
//! | [`json`] | JSON as bytes: the scanner for what is read per token, strings in their escaped form | |
//! | [`sse`] | server-sent events: the one parser | |
//! | [`pb`] | the bridge's wire types, generated | |
//! | `platform` | what differs between Linux and macOS: clocks, a tick, file changes, limits | |
//! | `http` | HTTP as a client speaks it, whoever the server is: Clients and what they trust, bodies, errors, backoff | |
//! | [`provide`] | the provider host, an ordinary client of the bridge | `bridge`, `credentials`, `domain`, `json`, `openai`, `pb`, `http`, `platform`, `sse` |
//! | [`telemetry`] | traces, metrics, the log | `domain` |
//! | [`upstream`] | mcpd: its contract, the calls, the control channel, the delivery of results | `domain`, `json`, `openai`, `http`, `telemetry` |
//!
//! # The path of one task
//!
//! ```text
//!  mcpd                        agent (one process, one thread)                                  provider
//!   │
//!   │ SSE "task"   ┌──────────────────┐ Event::Task ┌───────────┐ Input::Task ┌──────┐
//!   ├─────────────►│ upstream::events ├────────────►│           ├────────────►│      │  admit, queue,
//!   │              └──────────────────┘             │ agent hub │             │ core │  choose a slot,
//!   │                                               │           │◄────────────┤      │  watch deadlines
//!   │                                               └─┬───┬───▲─┘   Effects   └──────┘
//!   │                             makes an Outbox and │   │   │
//!   │                             spawns its Delivery │   │   │ Finished, Cancelled, ...
//!   │                                                 │   │ Offer
//!   │                                                 │   ▼   │
//!   │                                                 │ ┌─────┴───────────┐  gRPC offer  ┌────────────┐
//!   │                                                 │ │ bridge::session ├─────────────►│ mcplocal,  │
//!   │                                                 │ │ one actor each  │◄─────────────┤ or provide │
//!   │                                                 │ └─────┬───────────┘    chunks    └────────────┘
//!   │                                                 ▼       │ tokens: straight to the outbox,
//!   │ POST result  ┌───────────────────┐  next()  ┌────────┐  │ past the hub
//!   │◄─────────────┤ upstream::results │◄─────────┤ Outbox │◄─┘
//!   │  part 0,1,.. │ Delivery          │          └────────┘
//!   │              └───────────────────┘      openai merges what waits
//! ```
//!
//! 1. [`upstream::events`] reads a `task` event from the control channel and turns it into a [`domain::Task`]; the request stays as it came, in bytes.
//! 2. The hub asks the [`core`], which admits, queues or refuses the task. Unless it is a duplicate, the hub notes its id in the tasks file and
//!    creates its [`upstream::outbox::Outbox`].
//! 3. Once a slot is free, the core makes an offer, and [`bridge`] sends it to the session that serves the provider.
//! 4. The provider's answer goes from the session's actor straight into the outbox. The first token wakes the delivery at once; later ones merge
//!    while a POST is under way.
//! 5. One [`upstream::results::Delivery`] per task posts the parts in order, repeats what has to be repeated, and ends the task exactly once. It
//!    reports to the hub, the core frees the slot, and the next task in the queue goes out.

pub mod agent;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod core;
pub mod credentials;
pub mod domain;
mod http;
pub mod json;
pub mod openai;
mod platform;
pub mod provide;
pub mod sse;
pub mod telemetry;
pub mod upstream;

/// The bridge's wire types and services, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("mcprelay.bridge.v1");
    /// The encoded descriptors, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bridge_descriptor.bin"));
}
