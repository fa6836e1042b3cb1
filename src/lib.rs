//! mcprelay: the local agent between mcpd and the LLM providers of a workstation.
//!
//! mcpd, the central server, knows *virtual LLMs*: rows in its list whose inferences are relayed to a provider on somebody's
//! machine. The agent is what relays them: upwards it speaks HTTP and server-sent events with mcpd, downwards gRPC on a unix socket with
//! the programs that own the providers.
//!
//! # The modules
//!
//! ```text
//!  main ──► cli ──► agent ──┬──► upstream ──┬──► openai
//!                           ├──► bridge     │
//!                           ├──► core       └──► telemetry
//!                           └──────────┬───► domain ◄── everybody
//!           cli ──► provide ──(the socket)──► bridge; provide ──► openai
//! ```
//!
//! | module | what it is |
//! | --- | --- |
//! | [`config`], [`credentials`] | flags, environment and files become checked values |
//! | [`domain`] | the words everybody shares: names, tasks, failures; no I/O |
//! | [`core`] | every decision, without I/O and without a clock |
//! | [`agent`] | the one place that joins core, upstream and bridge; owns every task and the shutdown |
//! | [`upstream`] | mcpd: its contract, the calls, the control channel, the delivery of results |
//! | [`bridge`] | the unix socket: one actor per session, proto to domain and back |
//! | [`openai`] | OpenAI's JSON as bytes: merging, gathering, converting, failures; the scanner that upstream and provide read with |
//! | [`provide`] | the provider host: a client of the bridge like any other |
//! | [`telemetry`] | traces, metrics, the log |
//! | `plain_http` | the shorter way to servers without TLS and proxy in between, for upstream and provide |
//! | [`cli`] | the commands, one file each |
//!
//! `upstream` and `bridge` never see each other, and `core` knows no runtime: `tests/it/house.rs` holds these walls.
//!
//! # One task's way through them
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
//! 1. [`upstream::events`] reads a `task` from the control channel and makes a [`domain::Task`] of it; the request stays the bytes it came as.
//! 2. The hub writes its id to the tasks file, makes its [`upstream::outbox::Outbox`] and asks the [`core`], which admits, queues or refuses it.
//! 3. Once a slot is free the core answers with an offer, and [`bridge`] sends it to the session that serves the provider.
//! 4. What the provider answers goes from the session's actor straight into the outbox: the first token wakes the delivery at once, later ones merge
//!    while a POST is under way.
//! 5. One [`upstream::results::Delivery`] per task posts the parts in order, repeats what has to be repeated, and ends it exactly once. It reports to
//!    the hub, the core frees the slot, and the next task in the queue goes out.

pub mod agent;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod core;
pub mod credentials;
pub mod domain;
pub mod openai;
mod plain_http;
pub mod provide;
pub mod telemetry;
pub mod upstream;

/// The bridge's wire types and services, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("mcprelay.bridge.v1");
    /// The encoded descriptors, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bridge_descriptor.bin"));
}
