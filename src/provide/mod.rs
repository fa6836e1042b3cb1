//! The provider side of the bridge: a Rust client of the agent's socket, and the provider host that is built on it.
//!
//! ```text
//!   config.json --follow--> host --open--> providers/* --run--> a server's HTTP
//!                            |                 ^
//!                      set_providers        Task, Chunks
//!                            v                 |
//!                        registrar ------> session ------> the agent's socket
//! ```
//!
//! The host is an ordinary client. A program with its own providers uses [`Registrar`] directly:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use mcprelay::{
//!     domain::{self, Delta, Outcome, ProviderName, ProviderState},
//!     provide::{
//!         Chunks, DEFAULT_MAX_MESSAGE_BYTES, Finished, Offered, Provider, Registrar, RegistrarConfig, Task, async_trait,
//!     },
//! };
//! use tokio_util::sync::CancellationToken;
//!
//! struct Greeter;
//!
//! #[async_trait]
//! impl Provider for Greeter {
//!     async fn run(&self, _task: Task, chunks: Chunks, _cancel: CancellationToken) -> Finished {
//!         for word in ["Hello", " there"] {
//!             let piece = Delta { content: word.to_owned(), ..Delta::default() };
//!             if let Err(reason) = chunks.delta(piece).await {
//!                 return reason.into();
//!             }
//!         }
//!         Outcome::Complete.into()
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let greeter = domain::Provider {
//!     name: ProviderName::new("greeter")?,
//!     kind: "greeter".into(),
//!     model: "greeter-1".into(),
//!     tier: String::new(),
//!     description: "says hello".to_owned(),
//!     publish: true,
//!     sharing: Vec::new(),
//!     max_in_flight: None,
//!     state: ProviderState::Ready,
//!     state_detail: String::new(),
//!     features: Vec::new(),
//!     context_tokens: None,
//!     max_output_tokens: None,
//!     server: None,
//! };
//! let config = RegistrarConfig {
//!     socket: "/home/me/.mcpctl/mcprelay.sock".into(),
//!     client_id: "greeter".to_owned(),
//!     client_version: "greeter/1.0.0".to_owned(),
//!     max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
//! };
//! // Returns at once; the agent may come later, go, and come back.
//! let registrar = Registrar::start(config, vec![Offered { info: greeter, provider: Arc::new(Greeter) }]);
//! tokio::signal::ctrl_c().await?;
//! registrar.stop(std::time::Duration::from_secs(30)).await;
//! # Ok(())
//! # }
//! ```

pub mod config_file;
pub mod detect;
mod follow;
mod gather;
pub mod host;
mod offered;
mod openai;
pub mod providers;
mod registrar;
mod session;
mod task;
mod verdicts;
mod wire;

pub use host::{Host, HostConfig};
pub use offered::{Offered, RegistrarConfig};
pub use openai::http::Clients;
pub use registrar::{DEFAULT_MAX_MESSAGE_BYTES, Registrar};
pub use task::{Chunks, Finished, NotSent, Provider, Task};
pub use tonic::async_trait;
